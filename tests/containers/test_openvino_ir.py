"""OpenVINO's files: what its own library saves is read, what is written is read by it, damage is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lstmconvert import registry
from lstmconvert.containers import openvino_ir
from lstmconvert.errors import BadFile
from tests.matrix import judges_openvino
from tests.matrix.judges import Case

CASE = Case("lstm", 1, True, True)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return judges_openvino.make_openvino(CASE, tmp_path).path


def test_constants_are_those_of_the_library(saved: Path) -> None:
    archive = openvino_ir.read(saved)
    assert registry.container_of(saved).name == openvino_ir.NAME
    (node,) = [layer for layer in archive.metadata["graph"] if layer["type"] == "LSTMSequence"]
    names = [archive.metadata["graph"][source]["name"] for source, _ in node["inputs"][-3:]]
    for name, expected in zip(names, judges_openvino.weights_openvino(saved), strict=True):
        assert archive.tensors[name].read().tobytes() == expected.tobytes()


def test_what_is_written_is_read_back_and_by_the_library(saved: Path, tmp_path: Path) -> None:
    import openvino

    archive = openvino_ir.read(saved)
    target = tmp_path / "written.xml"
    openvino_ir.write(target, archive)
    again = openvino_ir.read(target)
    for one, other in zip(again.metadata["graph"], archive.metadata["graph"], strict=True):
        if one["type"] != "Const":  # those lie in other places
            assert one == other
    assert {n: t.read().tobytes() for n, t in again.tensors.items()} == {
        n: t.read().tobytes() for n, t in archive.tensors.items()
    }
    x = np.ones((2, 5, 3), np.float32)
    first, second = (
        np.asarray(judges_openvino.compiled(openvino.Core().read_model(path))([x])[0])
        for path in (saved, target)
    )
    assert first.tobytes() == second.tobytes()


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "cut off": (lambda text: text[: len(text) // 2], "damaged"),
    "entities": (
        replaced("<net ", '<!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><net '),
        "document type",
    ),
    "offset outside": (replaced('offset="0"', 'offset="99999999"'), "outside the file"),
    "negative offset": (replaced('offset="0"', 'offset="-8"'), "outside the file"),
    "size of another shape": (replaced('size="4"', 'size="8"'), "does not fit its shape"),
    "shape without bound": (replaced('shape="2, 16, 3"', 'shape="9999999999, 9999999999"'), "impossible"),
    "shape of letters": (replaced('shape="2, 16, 3"', 'shape="two"'), "no proper place"),
    "edge to nowhere": (replaced('from-layer="0"', 'from-layer="77"'), "edge"),
    "an edge too few": (
        replaced('<edge from-layer="0" from-port="0" to-layer="2" to-port="0" />', ""),
        "no edge",
    ),
    "another version": (replaced('version="11"', 'version="7"'), "version"),
    "another encoding": (replaced('version="1.0"', 'version="1.0" encoding="latin-1"'), "UTF-8"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told(saved: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    saved.write_text(change(saved.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(BadFile, match=message) as caught:
        openvino_ir.read(saved)
    assert str(saved) in str(caught.value) or saved.stem in str(caught.value)


def test_a_missing_or_short_bin_is_told(saved: Path) -> None:
    data = saved.with_suffix(".bin")
    whole = data.read_bytes()
    data.write_bytes(whole[:-40])
    with pytest.raises(BadFile, match="outside the file"):
        openvino_ir.read(saved)
    data.unlink()
    with pytest.raises(BadFile, match="missing"):
        openvino_ir.read(saved)
