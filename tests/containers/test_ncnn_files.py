"""ncnn's files: weights in every storage that its library knows, and damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert import registry
from lstmconvert.containers import ncnn_files
from lstmconvert.errors import BadFile
from tests.matrix import judges_ncnn
from tests.matrix.judges import HIDDEN, INPUT, Case, inputs

CASES = [Case(cell, 1, True, True) for cell in ("lstm", "gru", "rnn")]


def put(path: Path, case: Case, data: bytes, weights: list[np.ndarray], more: str = "") -> None:
    lines = ["7767517", "2 2", "Input in0 0 1 in0"]
    lines.append(f"{case.cell.upper()} rnn 1 1 in0 out0 {judges_ncnn.params(case, weights)}{more}")
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".bin").write_bytes(data)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def as_half(array: np.ndarray) -> bytes:
    return (0x01306B47).to_bytes(4, "little") + padded(array.astype(np.float16).tobytes())


def as_table(array: np.ndarray) -> bytes:
    table = np.linspace(-2, 2, 256, dtype=np.float32)
    nearest = np.abs(array.reshape(-1, 1) - table).argmin(axis=1).astype(np.uint8)
    return b"\1\1\1\1" + table.tobytes() + padded(nearest.tobytes())


@pytest.mark.parametrize("stored", [as_half, as_table])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_narrow_weights_are_read_as_the_library_reads_them(
    case: Case, stored: Callable[[np.ndarray], bytes], tmp_path: Path
) -> None:
    weights = judges_ncnn.members(case, INPUT, np.random.default_rng(case.seed))
    path = tmp_path / "narrow.param"
    put(path, case, b"".join(map(stored, weights)), weights)
    x = inputs(case)
    y = lc.read(path).run(x.astype(np.float64))
    assert np.max(np.abs(y - judges_ncnn.run_ncnn(path, x, case))) <= 1e-5


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_of_8_bits_are_dequantised_and_reported(case: Case, tmp_path: Path) -> None:
    weights = judges_ncnn.members(case, INPUT, np.random.default_rng(case.seed))
    data, scales = [], {}
    for number, array in enumerate(weights):
        if number == 1:
            data.append(bytes(4) + array.tobytes())
            continue
        # The two matrices are of other ranges, so that the order of their scales is told.
        array = array * (0.3 if number == 2 else 2)
        scales[number] = (127 / np.abs(array).max(axis=-1)).astype(np.float32)
        whole = np.round(array * scales[number][..., None]).astype(np.int8)
        data.append((0x000D4B38).to_bytes(4, "little") + padded(whole.tobytes()))
    path = tmp_path / "eight.param"
    put(path, case, b"".join(data) + scales[0].tobytes() + scales[2].tobytes(), weights, " 8=2")
    model = lc.read(path)
    told = [step.description for step in lc.convert(path, tmp_path / "out.onnx").rewrites]
    assert any("weight_hc was dequantised from int8, one scale a row" in text for text in told)
    x = inputs(case)
    # The library rounds inputs and states to 8 bits as well while it runs.
    assert np.max(np.abs(model.run(x) - judges_ncnn.run_ncnn(path, x, case))) <= 0.06


def test_weights_behind_other_layers_are_found(tmp_path: Path) -> None:
    case = CASES[0]
    sample = judges_ncnn.make_ncnn(case, tmp_path)
    lines = sample.path.read_text().splitlines()
    data = sample.path.with_suffix(".bin").read_bytes()
    fc = "InnerProduct fc 1 1 in0 fc 0=3 1=1 2=9"
    lines[1:] = ["3 3", lines[2], fc, lines[3].replace(" in0 ", " fc ")]
    sample.path.write_text("\n".join(lines) + "\n")
    sample.path.with_suffix(".bin").write_bytes(bytes(4) + np.ones(12, np.float32).tobytes() + data)
    model = lc.read(sample.path)
    (layer,) = model.recurrent.values()
    assert "InnerProduct" in model.metadata["topology"]
    y = layer.run(sample.x)[0]
    assert np.max(np.abs(y - sample.y)) <= 1e-5


def changed(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "counts": (changed("2 2", "9 2"), "number of layers"),
    "no counts": (changed("2 2", "two"), "second line"),
    "cut line": (changed(" 1 1 in0 out0", ""), "line"),
    "parameter": (changed("0=4", "0:4"), "NUMBER=VALUE"),
    "no hidden units": (changed("0=4", "0=0"), "does not fit"),
    "other size": (changed("1=96", "1=97"), "does not fit"),
    "larger size": (changed("1=96", "1=192"), "outside the file"),
    "negative": (changed("0=4", "0=-4"), "out of range"),
    "huge": (changed("1=96", "1=99999999999999"), "out of range"),
    "direction": (changed("2=2", "2=7"), "outside the file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    path = judges_ncnn.make_ncnn(CASES[0], tmp_path).path
    assert registry.container_of(path).name == ncnn_files.NAME
    path.write_text(change(path.read_text()))
    with pytest.raises(BadFile, match=message):
        lc.read(path)


@pytest.mark.parametrize("kept", [0, 3, 200, -4])
def test_short_weights_are_told(kept: int, tmp_path: Path) -> None:
    path = judges_ncnn.make_ncnn(CASES[0], tmp_path).path
    data = path.with_suffix(".bin")
    data.write_bytes(data.read_bytes()[:kept])
    with pytest.raises(BadFile, match="outside the file"):
        ncnn_files.read(path)
    data.unlink()
    with pytest.raises(BadFile, match="missing"):
        ncnn_files.read(path)


def test_longer_weights_are_told(tmp_path: Path) -> None:
    path = judges_ncnn.make_ncnn(CASES[0], tmp_path).path
    data = path.with_suffix(".bin")
    data.write_bytes(data.read_bytes() + bytes(4))
    with pytest.raises(BadFile, match="longer"):
        ncnn_files.read(path)


def test_hidden_size_is_the_runtimes(tmp_path: Path) -> None:
    model = lc.read(judges_ncnn.make_ncnn(Case("lstm", 2, True, True, "projection"), tmp_path).path)
    sizes = {(layer.hidden_size, layer.recurrent_size) for layer in model.recurrent.values()}
    assert sizes == {(HIDDEN, judges_ncnn.PROJECTED)}
