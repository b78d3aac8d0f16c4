"""The quick reader of plain TOML gives what ``tomllib`` gives, or nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmconvert import mapping, plain_toml
from lstmconvert.errors import BadFile
from lstmconvert.gates import Cell

FILES = sorted(mapping.folder().glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_of_the_package_is_plain_and_read_as_tomllib_reads_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert plain_toml.loads(text) == tomllib.loads(text)
    assert mapping.framework_head(path) == tomllib.loads(text)["framework"]
    built_in, whole = mapping.load(path.stem), mapping.load_file(path)
    assert built_in == whole
    assert list(built_in.layouts) == list(whole.layouts)
    for cell in Cell:
        assert built_in.of_cell(cell) == whole.of_cell(cell)


def test_a_layout_of_the_package_is_read_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (mapping.folder() / "numpy.toml").read_text(encoding="utf-8")
    text += '\n[layout.bad]\ncell = "lstm"\n\n[layout.worse]\ncell = "gru\n'
    (tmp_path / "broken.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(mapping, "folder", lambda: tmp_path)
    described = mapping.load("broken")
    monkeypatch.undo()
    good = mapping.load("numpy").layouts
    assert [described.layouts[name] for name in good] == list(good.values())
    line = text.splitlines().index("[layout.bad]") + 1
    with pytest.raises(BadFile, match=rf"line {line}: layout\.bad: the key 'tensors' is missing"):
        described.layouts["bad"]
    with pytest.raises(BadFile, match="not valid TOML"):
        described.layouts["worse"]
    assert "bad" in described.layouts
    assert "none" not in described.layouts
    with pytest.raises(KeyError):
        described.layouts["none"]


@pytest.mark.parametrize(
    "text",
    [
        'a = "x" # remark',
        "a = 'x'",
        'a = "\\u0041"',
        'a = """\nx"""',
        "a = 1_000",
        "a = 1979-05-27",
        "a = [1, 2,]",
        "[[a]]\nb = 1",
        "[ a ]\nb = 1",
        '["a.b"]\nc = 1',
        '"a b" = 1',
        "a = { b = 1 } # remark",
        "a = [\n  1,\n  2, # remark\n]",
        "  # indented",
    ],
)
def test_what_is_not_plain_is_left_to_tomllib(text: str) -> None:
    tomllib.loads(text)
    with pytest.raises(ValueError, match=r".*"):
        plain_toml.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        'a = "x, b = y"',
        'a = ["{ b = c }"]',
        'a = { b = "c = d", e = "" }',
        "a.b = 1\na.c = 2.5",
        "a = { b = true, c = [false] }",
        "[a.b]\nc = 1\n[a.d]\ne = -1",
    ],
)
def test_signs_inside_text_mean_nothing(text: str) -> None:
    assert plain_toml.loads(text) == tomllib.loads(text)


@pytest.mark.parametrize("text", ["a = 1\na = 2", "a = 1\n[a]", "a", "a = ", '= "x"', "[a", "a = [\n1"])
def test_a_fault_is_none_of_its_values(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(text)
    with pytest.raises(ValueError, match=r".*"):
        plain_toml.loads(text)


LETTERS = st.text('ab"=,.[]{} \n#\\', max_size=12)


@given(st.sampled_from(FILES), st.integers(0, 10_000), st.integers(0, 4), LETTERS)
def test_a_changed_file_is_read_alike_or_left(path: Path, at: int, gone: int, put: str) -> None:
    text = path.read_text(encoding="utf-8")
    text = text[: at % len(text)] + put + text[at % len(text) + gone :]
    try:
        expected = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    try:
        found = plain_toml.loads(text)
    except ValueError:
        return
    assert found == expected
