"""What the README shows is what happens."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import lstmconvert
from scripts import first_case
from tests.corpus import corpus_file
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


def example(section: str) -> str:
    """The only Python example of a section."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(found)


def run(source: str, **given: object) -> dict[str, object]:
    names: dict[str, object] = dict(given)
    exec(compile(source, "README.md", "exec"), names)  # noqa: S102 - it is our own
    return names


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_case.write_model(tmp_path / "model.h5", "sigmoid")
    monkeypatch.chdir(tmp_path)
    run(example("The library"))
    assert (tmp_path / "model.onnx").is_file()


def test_a_trained_keras_model_runs_in_torch_in_three_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    shutil.copy(corpus_file("dgaintel"), tmp_path / "dgaintel.h5")
    monkeypatch.chdir(tmp_path)
    source = example("From Keras to PyTorch")
    assert len([line for line in source.splitlines() if line]) == 3
    y = run(source)["y"]
    expected = lstmconvert.read("dgaintel.h5").run(np.zeros((1, 82), np.int32))
    assert isinstance(y, torch.Tensor)
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-5)


def test_the_module_in_the_readme_fits_on_a_screen() -> None:
    text = README.split("<!-- generated: module -->")[1].split("<!-- end -->")[0]
    source = text.split("```py\n")[1].split("```")[0]
    assert "bidirectional_1 = nn.LSTM(128, 64, batch_first=True, bidirectional=True)" in source
    assert len(source.splitlines()) <= 40


def test_the_example_of_a_live_module_runs() -> None:
    import keras
    import onnx
    import torch

    module = torch.nn.LSTM(3, 4, batch_first=True)
    found = run(example("From PyTorch"), lc=lstmconvert, module=module, example=torch.randn(2, 5, 3))
    assert isinstance(found["proto"], onnx.ModelProto)
    assert isinstance(found["model"], keras.Model)


def test_the_example_of_an_optimizer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras
    import torch

    source = keras.Sequential([keras.layers.Input((5, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])
    source.compile("adam", "mse")
    source.fit(torch.randn(4, 5, 3).numpy(), torch.randn(4, 2).numpy(), verbose=0)
    source.save(tmp_path / "model.keras")
    monkeypatch.chdir(tmp_path)
    lstmconvert.convert("model.keras", "model.safetensors", with_optimizer=True)
    model = lstmconvert.to_torch("model.keras")
    optimizer = run(example("Going on with the training"), torch=torch, model=model)["optimizer"]
    assert isinstance(optimizer, torch.optim.Adam)
    assert len(optimizer.state) == 5


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
