"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from scripts import first_case
from tests.loading import script

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_generated_parts_are_up_to_date() -> None:
    tables = script("tables")
    assert tables.generated(README) == README
    assert set(re.findall(r"<!-- generated: (\w+) -->", README)) == set(tables.PARTS)


def test_an_edited_table_is_seen() -> None:
    edited = README.replace("input, forget, cell, output", "forget, input, cell, output", 1)
    assert edited != README
    assert script("tables").generated(edited) == README


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_case.write_model(tmp_path / "model.h5", "sigmoid")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - it is our own
    assert (tmp_path / "model.onnx").is_file()


def test_the_commands_exist() -> None:
    from lstmconvert.cli import main

    shown = re.findall(r"^\$ lstmconvert (\w+)", README, re.MULTILINE)
    assert len(shown) > 5
    for command in sorted(set(shown)):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0, command


def test_the_scripts_exist() -> None:
    for line in re.findall(r"^\$ (scripts/.*)$", README, re.MULTILINE):
        path = ROOT / shlex.split(line, comments=True)[0]
        assert path.is_file() and path.stat().st_mode & 0o111, path
