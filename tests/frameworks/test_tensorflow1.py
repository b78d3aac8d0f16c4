"""Checkpoints of TensorFlow 1: every class and construction, judged by its own cells; what is written, it restores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert.containers import Archive, tensor_bundle
from lstmconvert.gates import Gate
from lstmconvert.tensors import Lazy
from tests.tensorflow1_runtime import RUNTIME

SEED = 11
X = np.random.default_rng(SEED).normal(0, 1.5, (2, 7, 3)).astype(np.float32)


def cell(kind: str, units: int, **arguments: Any) -> dict[str, Any]:
    return {"class": kind, "arguments": {"num_units": units, **arguments}}


def spec(way: str, *cells: dict[str, Any], scope: str = "rnn") -> dict[str, Any]:
    return {"scope": scope, "way": way, "cells": list(cells)}


def run(model: lc.Model, x: Any = X) -> Any:
    for layer in model.recurrent.values():
        x, _ = layer.run(x)
    return x


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "basic": (spec("plain", cell("BasicLSTMCell", 4)), {}),
    "basic, other forget bias": (
        spec("plain", cell("BasicLSTMCell", 4, forget_bias=-0.5)), {"forget_bias": -0.5},
    ),
    "basic, no forget bias": (spec("plain", cell("BasicLSTMCell", 4, forget_bias=0.0)), {"forget_bias": 0.0}),
    "basic, relu": (spec("plain", cell("BasicLSTMCell", 4, activation="relu")), {"activation": "relu"}),
    "peepholes": (spec("plain", cell("LSTMCell", 4, use_peepholes=True)), {}),
    "projection": (spec("plain", cell("LSTMCell", 5, num_proj=2)), {}),
    "peepholes and projection": (spec("plain", cell("LSTMCell", 5, use_peepholes=True, num_proj=2)), {}),
    "clips": (
        spec("plain", cell("LSTMCell", 5, use_peepholes=True, num_proj=2, cell_clip=0.3, proj_clip=0.2)),
        {"cell_clip": 0.3, "projection_clip": 0.2},
    ),
    "gru": (spec("plain", cell("GRUCell", 4)), {}),
    "gru, relu": (spec("plain", cell("GRUCell", 4, activation="relu")), {"activation": "relu"}),
    "cudnn gru": (spec("plain", cell("CudnnCompatibleGRUCell", 4)), {}),
    "rnn": (spec("plain", cell("BasicRNNCell", 4)), {}),
    "rnn, relu": (spec("plain", cell("BasicRNNCell", 4, activation="relu")), {"activation": "relu"}),
    "several cells": (
        spec("multi", cell("LSTMCell", 5, num_proj=2), cell("GRUCell", 4), cell("BasicRNNCell", 3)), {},
    ),
    "twelve cells": (spec("multi", *(cell("GRUCell", 3) for _ in range(12))), {}),
    "two directions": (spec("both", cell("LSTMCell", 4), scope="bidirectional_rnn"), {}),
    "stack of two directions": (
        spec("stack_both", cell("GRUCell", 4), cell("BasicLSTMCell", 2), scope="stack_bidirectional_rnn"), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_computes_what_its_cells_compute(name: str, tmp_path: Path) -> None:
    made, options = CASES[name]
    y = RUNTIME.make(tmp_path / "model.ckpt", [made], X, SEED, adam=True)
    model = lc.read(tmp_path / "model.ckpt", **options)
    found = run(model)
    assert found.shape == y.shape
    np.testing.assert_allclose(found, y, rtol=0, atol=1e-5 * np.abs(y).max())
    others = model.metadata["other_tensors"]
    assert any(other.endswith("/Adam_1") for other in others)
    assert not any(other.endswith(("kernel", "bias")) for other in others)


@pytest.mark.parametrize(
    "name", [name for name, (_, options) in CASES.items() if not options or name == "rnn, relu"]
)
def test_what_is_written_tensorflow_restores(name: str, tmp_path: Path) -> None:
    made, options = CASES[name]
    y = RUNTIME.make(tmp_path / "model", [made], X, SEED)
    lc.convert(tmp_path / "model.index", tmp_path / "dump.npz", to="numpy", **options)
    lc.convert(tmp_path / "dump.npz", tmp_path / "back.index", to="tensorflow1")
    np.testing.assert_array_equal(RUNTIME.run(tmp_path / "back", X), y)
    if not options:
        original, back = RUNTIME.variables(tmp_path / "model"), RUNTIME.variables(tmp_path / "back")
        assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in original.items()}


def test_each_way_a_stack_stays_apart(tmp_path: Path) -> None:
    made = spec("each_way_a_stack", cell("GRUCell", 4), cell("GRUCell", 2), scope="bidirectional_rnn")
    y = RUNTIME.make(tmp_path / "model", [made], X, SEED)
    layers = lc.read(tmp_path / "model").recurrent
    assert list(layers) == [f"bidirectional_rnn.{way}.{n}" for way in ("bw", "fw") for n in (0, 1)]
    sides = []
    for way in ("fw", "bw"):
        value = X
        for n in (0, 1):
            layer = layers[f"bidirectional_rnn.{way}.{n}"]
            assert layer.direction == {"fw": "forward", "bw": "reverse"}[way]
            value, _ = layer.run(value)
        sides.append(value)
    np.testing.assert_allclose(np.concatenate(sides, 2), y, atol=1e-5)


@pytest.mark.parametrize("gate", ["forget", "input"])
def test_the_judge_sees_swapped_gates(tmp_path: Path, gate: str) -> None:
    y = RUNTIME.make(tmp_path / "model", [spec("plain", cell("BasicLSTMCell", 4))], X, SEED)
    held = RUNTIME.variables(tmp_path / "model")
    kernel = held["rnn/basic_lstm_cell/kernel"].reshape(7, 4, 4)
    order = [0, 2, 1, 3] if gate == "forget" else [3, 1, 2, 0]
    held["rnn/basic_lstm_cell/kernel"] = np.ascontiguousarray(kernel[:, order].reshape(7, 16))
    tensor_bundle.write(tmp_path / "swapped.index", Archive({n: Lazy.of(a) for n, a in held.items()}))
    assert np.abs(run(lc.read(tmp_path / "swapped")) - y).max() > 1e-2


def test_a_forget_bias_that_was_moved_comes_back(tmp_path: Path) -> None:
    RUNTIME.make(tmp_path / "model", [spec("plain", cell("BasicLSTMCell", 4))], X, SEED)
    result = lc.convert(tmp_path / "model", tmp_path / "m.safetensors", to="pytorch")
    assert [step.name for step in result.rewrites if not step.exact] == ["move_constant_into_bias"]
    layer = next(iter(lc.read(tmp_path / "m.safetensors").recurrent.values()))
    assert dict(layer.equations.constant) == {Gate.FORGET: 1.0}


def test_a_note_of_other_numbers_is_let_go(tmp_path: Path) -> None:
    import safetensors.numpy
    from safetensors import safe_open

    RUNTIME.make(tmp_path / "model", [spec("plain", cell("BasicLSTMCell", 4))], X, SEED)
    lc.convert(tmp_path / "model", tmp_path / "m.safetensors", to="pytorch", weights_only=True)
    with safe_open(tmp_path / "m.safetensors", "numpy") as file:
        metadata = file.metadata()
        held = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118 - no mapping
    bias = next(name for name in held if name.endswith("bias_ih_l0"))
    held[bias] += np.float32(0.25)
    safetensors.numpy.save_file(held, tmp_path / "trained.safetensors", metadata)
    layer = next(iter(lc.read(tmp_path / "trained.safetensors").recurrent.values()))
    assert not layer.equations.constant
    assert np.array_equal(layer.directions[0].weights.bias_input[Gate.INPUT], held[bias][:4])


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (cell("GRUCell", 4), {"reset_after": True}),
        (cell("GRUCell", 4), {"recurrent_activation": "hard_sigmoid"}),
        (cell("LSTMCell", 4, forget_bias=0.0, name="cudnn_compatible_lstm_cell"), {"forget_bias": 1.0}),
        (cell("BasicRNNCell", 4), {"activation": "no such"}),
    ],
)
def test_an_option_that_the_class_cannot_have_is_refused(
    tmp_path: Path, made: dict[str, Any], options: dict[str, Any]
) -> None:
    RUNTIME.make(tmp_path / "model", [spec("plain", made)], X, SEED)
    with pytest.raises(lc.ConversionError) as error:
        lc.read(tmp_path / "model", **options)
    assert error.value.exit_status == 2


def test_files_that_say_it_themselves_take_no_forget_bias(tmp_path: Path) -> None:
    RUNTIME.make(tmp_path / "model", [spec("plain", cell("GRUCell", 4))], X, SEED)
    lc.convert(tmp_path / "model", tmp_path / "m.onnx")
    with pytest.raises(lc.ConversionError, match="--forget-bias"):
        lc.read(tmp_path / "m.onnx", forget_bias=1.0)


def test_a_block_cell_of_the_first_version_is_read(tmp_path: Path) -> None:
    y = RUNTIME.make(tmp_path / "model", [spec("plain", cell("GRUCell", 4))], X, SEED)
    held = RUNTIME.variables(tmp_path / "model")
    names = {"gates/kernel": "w_ru", "gates/bias": "b_ru", "candidate/kernel": "w_c", "candidate/bias": "b_c"}
    renamed = {f"rnn/gru_cell/{new}": held[f"rnn/gru_cell/{old}"] for old, new in names.items()}
    RUNTIME.save(tmp_path / "block", renamed)
    np.testing.assert_allclose(run(lc.read(tmp_path / "block")), y, atol=1e-5)


def test_a_keras_layer_is_not_taken_for_a_cell(tmp_path: Path) -> None:
    held = {
        "lstm/lstm_cell/kernel": np.zeros((9, 16), np.float32),
        "lstm/lstm_cell/recurrent_kernel": np.zeros((4, 16), np.float32),
        "lstm/lstm_cell/bias": np.zeros(16, np.float32),
    }
    RUNTIME.save(tmp_path / "model", held)
    with pytest.raises(lc.UnsupportedSource):
        lc.read(tmp_path / "model", framework="tensorflow1")


def test_a_scope_that_says_nothing_is_refused_with_what_is_there(tmp_path: Path) -> None:
    RUNTIME.make(tmp_path / "model", [spec("plain", cell("BasicLSTMCell", 4, name="encoder"))], X, SEED)
    with pytest.raises(lc.UnsupportedSource, match="rnn/encoder/kernel") as error:
        lc.read(tmp_path / "model")
    assert "--mapping" in str(error.value)


def test_contradicting_shapes_are_named(tmp_path: Path) -> None:
    held = {
        "rnn/basic_lstm_cell/kernel": np.zeros((7, 18), np.float32),
        "rnn/basic_lstm_cell/bias": np.zeros(16, np.float32),
    }
    RUNTIME.save(tmp_path / "model", held)
    with pytest.raises(lc.BadFile, match="rnn/basic_lstm_cell/kernel"):
        lc.read(tmp_path / "model")
