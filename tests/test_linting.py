"""check: each problem is found in a file made to have it, and nothing in clean ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lstmconvert as lc
from lstmconvert.cli import main
from lstmconvert.linting import check
from lstmconvert.model import Model
from tests.corpus import corpus_file
from tests.support import random_layer

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN, INPUT, TIME, BATCH = 3, 2, 5, 2


def made(
    path: Path,
    operator: str = "LSTM",
    *,
    inputs: tuple[str, ...] = (),
    outputs: tuple[str, ...] = ("Y",),
    tail: str = "",
    spoil: Any = None,
    **attributes: Any,
) -> Path:
    """A file of one node with random weights; ``spoil`` changes them."""
    rng = np.random.default_rng(7)
    rows = GATES[operator] * HIDDEN
    weights = {
        "W": rng.standard_normal((1, rows, INPUT)).astype(np.float32),
        "R": rng.standard_normal((1, rows, HIDDEN)).astype(np.float32),
        "B": rng.standard_normal((1, 2 * rows)).astype(np.float32),
    }
    if operator == "GRU" and not attributes.get("linear_before_reset"):
        weights["B"][:, rows:] = 0
    if spoil is not None:
        spoil(weights)
    order = ["sequence_lens", "initial_h", "initial_c"][: 3 if operator == "LSTM" else 2]
    given = ["X", "W", "R", "B", *(name if name in inputs else "" for name in order)]
    every = ("Y", "Y_h", "Y_c")[: 3 if operator == "LSTM" else 2]
    node = helper.make_node(
        operator,
        given,
        [n if n in outputs else "" for n in every],
        name="cell",
        hidden_size=HIDDEN,
        **attributes,
    )
    shapes: dict[str, tuple[int, list[int]]] = {
        "X": (TensorProto.FLOAT, [TIME, BATCH, INPUT]),
        "sequence_lens": (TensorProto.INT32, [BATCH]),
        "initial_h": (TensorProto.FLOAT, [1, BATCH, HIDDEN]),
        "initial_c": (TensorProto.FLOAT, [1, BATCH, HIDDEN]),
    }
    nodes = [node]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    if tail == "last":
        nodes.append(helper.make_node("Gather", ["Y", "minus_one"], ["last"], axis=0))
        weights["minus_one"] = np.array(-1, np.int64)
        results = [helper.make_tensor_value_info("last", TensorProto.FLOAT, None)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, *shapes[n]) for n in ("X", *inputs)],
        results,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)]), path)
    return path


def put(name: str, where: Any, value: float) -> Any:
    def spoil(weights: dict[str, Any]) -> None:
        weights[name][where] = value

    return spoil


ROWS = slice(HIDDEN, 2 * HIDDEN)


def dead(weights: dict[str, Any]) -> None:
    weights["W"][:, ROWS] = 0
    weights["R"][:, ROWS] = 0


def copied(weights: dict[str, Any]) -> None:
    for name in "WR":
        weights[name][:, ROWS] = weights[name][:, :HIDDEN]


def shrunk(weights: dict[str, Any]) -> None:
    for name in "WR":
        weights[name][:, ROWS] *= 1e-5


def misplaced(weights: dict[str, Any]) -> None:
    weights["B"][:] *= 0.05
    weights["B"][:, :HIDDEN] += (
        1  # the input gate's, where Keras, PyTorch users and TF1 have the forget gate's
    )


PROBLEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lbr": ("linear_before_reset", {"operator": "GRU", "spoil": put("B", slice(None), 0.5)}),
    "layout": ("batch_major_layout", {"layout": 1}),
    "affine": ("activation_parameters", {"operator": "RNN", "activations": ["Affine"]}),
    "scaled_tanh": (
        "activation_parameters",
        {"activations": ["Sigmoid", "ScaledTanh", "Tanh"], "activation_alpha": [1.7]},
    ),
    "lengths": ("lengths_ignored", {"inputs": ("sequence_lens",), "tail": "last"}),
    "no_state_out": ("state_dropped", {"inputs": ("initial_h", "initial_c")}),
    "half_a_state": ("state_dropped", {"inputs": ("initial_h",), "outputs": ("Y", "Y_h", "Y_c")}),
    "nan": ("not_finite", {"spoil": put("W", (0, 1, 1), np.nan)}),
    "infinity": ("not_finite", {"spoil": put("R", (0, 0, 0), np.inf)}),
    "dead": ("dead_gate", {"spoil": dead}),
    "copied": ("gate_statistics", {"spoil": copied}),
    "shrunk": ("gate_statistics", {"spoil": shrunk}),
    "misplaced": ("gate_statistics", {"spoil": misplaced}),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_each_problem_is_found_where_it_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule, arguments = PROBLEMS[name]
    path = made(tmp_path / "bad.onnx", **arguments)
    found = check(path)
    assert {f.rule for f in found} == {rule}
    assert all(f.consequence and f.cure and f.place for f in found)
    assert main(["check", str(path), "--json"]) == 1
    assert {f["rule"] for f in json.loads(capsys.readouterr().out)["findings"]} == {rule}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"operator": "GRU"},
        {"operator": "GRU", "linear_before_reset": 1},
        {"operator": "RNN", "activations": ["Affine"], "activation_alpha": [1.0], "activation_beta": [0.1]},
        {"activations": ["HardSigmoid", "Tanh", "Tanh"]},
        {"inputs": ("sequence_lens",)},
        {"inputs": ("sequence_lens",), "outputs": ("Y_h",)},
        {"tail": "last"},
        {"inputs": ("initial_h", "initial_c"), "outputs": ("Y", "Y_h", "Y_c")},
    ],
    ids=str,
)
def test_clean_nodes_have_none(arguments: dict[str, Any], tmp_path: Path) -> None:
    path = made(tmp_path / "good.onnx", **arguments)
    assert check(path) == []
    assert main(["check", str(path), "--quiet"]) == 0


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("target", ["out.onnx", "out.keras", "out.safetensors", "out.pt"])
def test_what_is_written_here_is_clean(cell: str, target: str, tmp_path: Path) -> None:
    layer = random_layer(cell, seed=5, directions=("forward", "reverse"))
    lc.write(Model({layer.name: layer}), tmp_path / "s.npz", to="numpy")
    lc.convert(tmp_path / "s.npz", tmp_path / target)
    assert check(tmp_path / target) == []


def test_hard_sigmoid_of_keras_2_is_found_and_that_of_keras_3_is_not(tmp_path: Path) -> None:
    import keras

    from tests.frameworks import keras_files  # noqa: F401 - chooses the backend

    model = keras.Sequential(
        [keras.layers.Input((None, 3)), keras.layers.LSTM(4, recurrent_activation="hard_sigmoid")]
    )
    model.save(tmp_path / "three.keras")
    assert check(tmp_path / "three.keras") == []
    found = check(corpus_file("shakkala_simple_gru"))
    assert {f.rule for f in found} == {"keras2_hard_sigmoid"}


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name", ["dgaintel", "beatnet", "silero_vad_onnx", "silero_vad_safetensors", "silero_vad_jit"]
)
def test_the_open_corpus_is_clean(name: str) -> None:
    assert [f for f in check(corpus_file(name)) if f.rule != "keras2_hard_sigmoid"] == []
