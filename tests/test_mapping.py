"""The mapping-file language: what is wrong is said with file, line and key, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lstmconvert import mapping
from lstmconvert.errors import BadFile

GOOD = """schema = 1

[framework]
name = "mine"
containers = ["npz"]

[layout.gru]
cell = "gru"
gates = ["reset", "update", "candidate"]

[layout.gru.tensors]
kernel = { name = "w_ih", axes = "(gate hidden) input" }
recurrent = { name = "w_hh", axes = "(gate hidden) recurrent" }
bias_input = { name = "b_ih", axes = "(gate hidden)", optional = "bias" }
bias_recurrent = { name = "b_hh", axes = "(gate hidden)", optional = "bias" }

[layout.gru.equations]
gate_activation = "sigmoid"
candidate_activation = "tanh"
reset = "after_product"
update_keeps = "state"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_every_shipped_mapping_file_loads() -> None:
    paths = sorted(mapping.folder().glob("*.toml"))
    assert len(paths) >= 4
    for path in paths:
        loaded = mapping.load_file(path)
        assert loaded.name == path.stem
        assert loaded.layouts or not loaded.suffixes  # one that is only read may use the layouts of another
        assert mapping.framework_head(path)["name"] == path.stem


def test_a_good_file_loads(tmp_path: Path) -> None:
    loaded = mapping.load_file(written(tmp_path, GOOD))
    assert loaded.layouts["gru"].gates == ("reset", "update", "candidate")


@pytest.mark.parametrize(
    ("old", "new", "pieces"),
    [
        ('gates = ["reset', 'gatse = ["reset', ["line 9", "layout.gru.gatse", "did you mean 'gates'"]),
        ('"reset", "update", "candidate"]', '"reset", "updat", "candidate"]', ["line 9", "layout.gru.gates", "'updat'", "update"]),
        ('"reset", "update", "candidate"]', '"reset", "reset", "candidate"]', ["line 9", "appears twice"]),
        ("(gate hidden) input", "(gate hiden) input", ["line 12", "tensors.kernel", "unknown axis 'hiden'"]),
        ("(gate hidden) recurrent", "(gate hidden) input", ["line 13", "tensors.recurrent", "expected exactly"]),
        ("axes = \"(gate hidden) input\"", "axis = \"(gate hidden) input\"", ["line 12", "kernel.axis", "did you mean 'axes'"]),
        ("kernel = {", "kernal = {", ["line 12", "tensors.kernal", "did you mean 'kernel'", "'kernel' is missing"]),
        ('"w_ih"', '"w_{gat}"', ["line 12", "the hole {gat}"]),
        ('"w_ih"', '"w_{direction}"', ["line 12", "spelling.direction"]),
        ('reset = "after_product"', 'reset = "after"', ["line 20", "equations.reset", "'after'"]),
        ('reset = "after_product"\n', "", ["mentions reset"]),
        ('"sigmoid"', '"sigmoyd"', ["line 18", "'sigmoyd'", "did you mean 'sigmoid'"]),
        ("schema = 1", "schema = 9", ["line 1", "schema 1"]),
        ('cell = "gru"', 'cell = "grue"', ["line 8", "layout.gru.cell"]),
        ("update_keeps =", "update_keep =", ["line 21", "did you mean 'update_keeps'"]),
    ],
)  # fmt: skip
def test_a_typo_names_file_line_and_key(tmp_path: Path, old: str, new: str, pieces: list[str]) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(BadFile) as caught:
        mapping.load_file(path)
    message = str(caught.value)
    assert str(path) in message
    for piece in pieces:
        assert piece in message, message


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    text = (
        GOOD.replace("gates =", "gatse =")
        .replace('"sigmoid"', '"sigmoyd"')
        .replace('"after_product"', '"after"')
    )
    with pytest.raises(BadFile) as caught:
        mapping.load_file(written(tmp_path, text))
    assert str(caught.value).count("line ") == 3


def test_text_of_a_mapping_file_is_never_formatted(tmp_path: Path) -> None:
    text = GOOD.replace('"w_ih"', '"{gate.__class__}"')
    with pytest.raises(BadFile, match="hole"):
        mapping.load_file(written(tmp_path, text))


def test_bytes_that_are_no_toml_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile):
        mapping.load_file(path)
    with pytest.raises(BadFile):
        mapping.load_file(tmp_path / "missing.toml")
