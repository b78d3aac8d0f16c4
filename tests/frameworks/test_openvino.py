"""OpenVINO models that the matrix does not have: other dtypes, cells, states, merges, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import lstmconvert as lc
from tests.matrix import judges, judges_openvino
from tests.matrix.judges import HIDDEN, INPUT, Case, draw, inputs
from tests.matrix.judges_openvino import compiled

CELLS = ("lstm", "gru", "rnn")


def ran(path: Path, x: Any) -> Any:
    import openvino

    return np.asarray(compiled(openvino.Core().read_model(path))([x])[0])


@pytest.mark.parametrize("cell", CELLS)
def test_half_precision_constants_are_widened(cell: str, tmp_path: Path) -> None:
    import openvino

    case = Case(cell, 1, False, True)
    sample = judges_openvino.make_openvino(case, tmp_path)
    small = tmp_path / "small.xml"
    openvino.save_model(openvino.Core().read_model(sample.path), small, compress_to_fp16=True)
    model = lc.read(small)
    assert next(iter(model.recurrent.values())).dtype == np.float32
    y = model.run(sample.x.astype(np.float64))
    assert np.max(np.abs(y - ran(small, sample.x))) <= 1e-5
    lc.convert(small, tmp_path / "out.onnx")
    assert (
        np.max(np.abs(judges.run_onnx(tmp_path / "out.onnx", sample.x, case) - ran(small, sample.x))) <= 1e-5
    )


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_compressed_weights_are_dequantised_and_reported(dtype: str, tmp_path: Path) -> None:
    import openvino
    import openvino.opset13 as ops

    rng = np.random.default_rng(5)

    def compressed(shape: tuple[int, ...]) -> Any:
        whole = rng.integers(0, 100, shape).astype(dtype)
        scale = rng.uniform(0.005, 0.02, (*shape[:-1], 1)).astype(np.float32)
        wide = ops.convert(ops.constant(whole), np.float32)
        return ops.multiply(ops.subtract(wide, ops.constant(np.float32(40))), ops.constant(scale))

    x = ops.parameter([2, 5, INPUT], np.float32, name="x")
    state = ops.constant(np.zeros((2, 1, HIDDEN), np.float32))
    lengths = ops.constant(np.array([5, 5]))
    kernel, recurrent = compressed((1, 4 * HIDDEN, INPUT)), compressed((1, 4 * HIDDEN, HIDDEN))
    bias = ops.constant(draw(rng, (1, 4 * HIDDEN)))
    node = ops.lstm_sequence(x, state, state, lengths, kernel, recurrent, bias, HIDDEN, "forward")
    y = ops.squeeze(node.output(0), ops.constant([1]))
    path = tmp_path / "compressed.xml"
    openvino.save_model(openvino.Model([y], [x], "m"), path, compress_to_fp16=False)
    model = lc.read(path)
    target = tmp_path / "out.onnx"
    told = [step.description for step in lc.convert(path, target).rewrites]
    assert all(any(f"{key} was dequantised from {dtype}, one scale a row" in t for t in told) for key in "WR")
    given = rng.normal(0, 1, (2, 5, INPUT)).astype(np.float32)
    assert np.max(np.abs(model.run(given.astype(np.float64)) - ran(path, given))) <= 1e-5
    session = onnxruntime.InferenceSession(target)
    (name,) = (value.name for value in session.get_inputs())
    assert np.max(np.abs(session.run(None, {name: given})[0] - ran(path, given))) <= 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_cells_are_read_once_however_often_they_are_called(cell: str, tmp_path: Path) -> None:
    import openvino
    import openvino.opset13 as ops

    rng = np.random.default_rng(11)
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell]
    weights = [
        ops.constant(draw(rng, shape)) for shape in ((gates * HIDDEN, INPUT), (gates * HIDDEN, HIDDEN))
    ]
    weights.append(ops.constant(draw(rng, (gates * HIDDEN,))))
    x = ops.parameter([2, 3, INPUT], np.float32, name="x")
    steps = ops.split(x, ops.constant(1), 3)
    states = [ops.constant(np.zeros((2, HIDDEN), np.float32))] * (2 if cell == "lstm" else 1)
    kind = {"lstm": ops.lstm_cell, "gru": ops.gru_cell, "rnn": ops.rnn_cell}[cell]
    for n in range(3):
        step = ops.squeeze(steps.output(n), ops.constant([1]))
        told = [["tanh"], [], []] if cell == "rnn" else []
        states = list(kind(step, *states, *weights, HIDDEN, *told).outputs())
    path = tmp_path / "cells.xml"
    openvino.save_model(openvino.Model([states[0]], [x], "m"), path, compress_to_fp16=False)
    model = lc.read(path)
    (layer,) = model.recurrent.values()
    assert model.calls is None
    assert model.metadata["topology"]
    given = rng.normal(0, 1, (2, 3, INPUT)).astype(np.float32)
    assert np.max(np.abs(layer.run(given)[0][:, -1] - ran(path, given))) <= 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_what_openvino_makes_of_an_onnx_model(cell: str, tmp_path: Path) -> None:
    import openvino

    case = Case(cell, 2, True, True)
    sample = judges.make_onnx(case, tmp_path)
    path = tmp_path / "converted.xml"
    openvino.save_model(openvino.convert_model(sample.path), path, compress_to_fp16=False)
    lc.convert(path, tmp_path / "again.onnx")
    y = judges.run_onnx(tmp_path / "again.onnx", sample.x, case)
    assert np.max(np.abs(y - sample.y)) <= 1e-5


@pytest.mark.parametrize("cell", CELLS)
def test_activations_that_are_named_for_both_directions(cell: str, tmp_path: Path) -> None:
    import keras
    import openvino

    made = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[cell]
    layer = keras.layers.Bidirectional(made(HIDDEN, return_sequences=True))
    keras.Sequential([keras.Input((5, INPUT)), layer]).save(tmp_path / "both.keras")
    lc.convert(tmp_path / "both.keras", tmp_path / "both.onnx")
    path = tmp_path / "both.xml"
    openvino.save_model(openvino.convert_model(tmp_path / "both.onnx"), path, compress_to_fp16=False)
    activations = re.findall(r' activations="([^"]*)"', path.read_text())
    assert len(activations[0].split(",")) % 2 == 0  # named twice
    print("seed 20261130")
    x = np.random.default_rng(20261130).standard_normal((3, 5, INPUT)).astype(np.float32)
    assert np.max(np.abs(lc.read(path).run(x.astype(np.float64)) - ran(path, x))) <= 1e-5


def test_lengths_from_outside_are_not_taken_for_whole_sequences(tmp_path: Path) -> None:
    import openvino
    import openvino.opset13 as ops

    rng = np.random.default_rng(3)
    x = ops.parameter([2, 5, INPUT], np.float32, name="x")
    lengths = ops.parameter([2], np.int32, name="lengths")
    state = ops.constant(np.zeros((2, 1, HIDDEN), np.float32))
    weights = [ops.constant(draw(rng, s)) for s in ((1, HIDDEN, INPUT), (1, HIDDEN, HIDDEN), (1, HIDDEN))]
    node = ops.rnn_sequence(x, state, lengths, *weights, HIDDEN, "forward")
    y = ops.squeeze(node.output(0), ops.constant([1]))
    path = tmp_path / "lengths.xml"
    openvino.save_model(openvino.Model([y], [x, lengths], "m"), path, compress_to_fp16=False)
    model = lc.read(path)
    assert model.calls is None
    assert "sequence lengths" in model.metadata["topology"]


def test_a_trained_initial_state_is_kept(tmp_path: Path) -> None:
    import openvino
    import openvino.opset13 as ops

    rng = np.random.default_rng(4)
    x = ops.parameter([2, 5, INPUT], np.float32, name="x")
    states = [ops.constant(np.repeat(draw(rng, (1, 1, HIDDEN)), 2, axis=0)) for _ in range(2)]
    gates = 4 * HIDDEN
    weights = [ops.constant(draw(rng, s)) for s in ((1, gates, INPUT), (1, gates, HIDDEN), (1, gates))]
    node = ops.lstm_sequence(x, *states, ops.constant([5, 5]), *weights, HIDDEN, "reverse")
    y = ops.squeeze(node.output(0), ops.constant([1]))
    path = tmp_path / "states.xml"
    openvino.save_model(openvino.Model([y], [x], "m"), path, compress_to_fp16=False)
    given = rng.normal(0, 1, (2, 5, INPUT)).astype(np.float32)
    expected = ran(path, given)
    assert np.max(np.abs(lc.read(path).run(given) - expected)) <= 1e-5
    back = tmp_path / "back.xml"
    lc.convert(path, tmp_path / "out.onnx")
    lc.convert(tmp_path / "out.onnx", back)
    assert np.max(np.abs(ran(back, given) - expected)) <= 1e-5


@pytest.mark.parametrize("case", [Case("lstm", 1, False, True), Case("gru", 1, True, True)], ids=str)
def test_the_last_step_of_a_keras_layer(case: Case, tmp_path: Path) -> None:
    import keras

    kind = keras.layers.LSTM if case.cell == "lstm" else keras.layers.GRU
    layer = kind(HIDDEN)
    model = keras.Sequential(
        [
            keras.layers.Input((None, INPUT)),
            keras.layers.Bidirectional(layer) if case.bidirectional else layer,
        ]
    )
    rng = np.random.default_rng(case.seed)
    model.set_weights([draw(rng, w.shape) for w in model.get_weights()])
    path = tmp_path / "model.keras"
    model.save(path)
    lc.convert(path, tmp_path / "out.xml")
    x = inputs(case)
    assert np.max(np.abs(ran(tmp_path / "out.xml", x) - np.asarray(model(x)))) <= 1e-5


def test_other_layers_are_refused_with_a_way_out(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential(
        [keras.layers.Input((None, INPUT)), keras.layers.LSTM(HIDDEN), keras.layers.Dense(2)]
    )
    model.save(tmp_path / "model.keras")
    with pytest.raises(lc.NotRepresentable, match="Convert to ONNX"):
        lc.convert(tmp_path / "model.keras", tmp_path / "out.xml")
    assert not list(tmp_path.glob("out*"))
