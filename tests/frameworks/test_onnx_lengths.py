"""Lengths that a graph is given: ONNX Runtime on the source is the judge of what ONNX, torch and Keras run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import lstmconvert as lc
from lstmconvert.live import read_any
from lstmconvert.tensors import Array
from tests.frameworks.test_onnx_back import same_results

HIDDEN, FEATURES = 4, 3
BLOCKS = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTHS = [6, 2, 4, 1]


def graph(
    operator: str, direction: str, wanted: tuple[str, ...], before: tuple[onnx.NodeProto, ...] = ()
) -> onnx.ModelProto:
    """One node that is fed ``lengths``, or ``own_lengths`` and ``own_x`` where nodes before it make them."""
    random = np.random.default_rng(3)
    rows, directions = BLOCKS[operator] * HIDDEN, 2 if direction == "bidirectional" else 1
    made = {name for node in before for name in node.output}
    x, lengths = (f"own_{name}" if f"own_{name}" in made else name for name in ("x", "lengths"))
    node = helper.make_node(
        operator,
        [x, "W", "R", "B", lengths],
        [name if name in wanted else "" for name in ("Y", "Y_h", "Y_c")[: 3 if operator == "LSTM" else 2]],
        name="rnn",
        hidden_size=HIDDEN,
        direction=direction,
        **({"linear_before_reset": 1} if operator == "GRU" else {}),
    )
    tensors = {"W": (rows, FEATURES), "R": (rows, HIDDEN), "B": (2 * rows,)}
    weights = [
        numpy_helper.from_array(random.normal(size=(directions, *shape)).astype(np.float32), name)
        for name, shape in tensors.items()
    ]
    shapes = {
        "Y": ["time", directions, "batch", HIDDEN],
        "Y_h": [directions, "batch", HIDDEN],
        "Y_c": [directions, "batch", HIDDEN],
    }
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["time", "batch", FEATURES]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in wanted]
    made_of = helper.make_graph([*before, node], "given_lengths", inputs, outputs, weights)
    return helper.make_model(made_of, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def judged(model: onnx.ModelProto, x: Array, lengths: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, {"x": x, "lengths": lengths})]


def listed(value: Any) -> list[Array]:
    several = value if isinstance(value, list | tuple) else [value]
    return [v.detach().numpy() if isinstance(v, torch.Tensor) else np.asarray(v) for v in several]


@pytest.mark.parametrize("wanted", [("Y",), ("Y_h",), ("Y", "Y_h"), ("Y", "Y_h", "Y_c")], ids="+".join)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", list(BLOCKS))
def test_lengths_that_are_given(
    operator: str, direction: str, wanted: tuple[str, ...], tmp_path: Path
) -> None:
    if operator != "LSTM" and "Y_c" in wanted:
        wanted = wanted[:2]
    source = graph(operator, direction, wanted)
    x = np.random.default_rng(5).normal(size=(6, 4, FEATURES)).astype(np.float32)
    lengths = np.array(LENGTHS, np.int32)
    expected = judged(source, x, lengths)
    again = lc.to_onnx(source)
    assert not {"Less", "CumSum", "ScatterElements", "Loop"} & {node.op_type for node in again.graph.node}
    same_results(judged(again, x, lengths), expected, "ONNX Runtime")
    # Lengths are not moved to the front a second time: what was written is read as what was read.
    assert read_any(again).calls is not None
    same_results(listed(lc.to_torch(source)(torch.tensor(x), torch.tensor(lengths))), expected, "torch")
    file = tmp_path / "model.keras"
    lc.to_keras(source).save(file)
    keras.backend.clear_session()
    same_results(listed(keras.models.load_model(file)([x, lengths])), expected, "Keras")
    back = lc.read(file)
    assert back.calls is not None
    same_results(judged(lc.to_onnx(back), x, lengths), expected, "ONNX of Keras")


def test_the_proof_feeds_lengths_that_fit(tmp_path: Path) -> None:
    """A file is converted and proved: random lengths lie between one and the number of steps."""
    source = tmp_path / "source.onnx"
    onnx.save(graph("LSTM", "bidirectional", ("Y", "Y_h")), source)
    result = lc.convert(source, tmp_path / "target.keras")
    assert result.proof is not None
    assert result.proof.verdict == "proved"


def by_length(*more: onnx.NodeProto) -> tuple[onnx.NodeProto, ...]:
    """The lengths sorted, the longest first, and the order that this is."""
    return (
        helper.make_node("Shape", ["lengths"], ["size"]),
        helper.make_node("TopK", ["lengths", "size"], ["own_lengths", "order"], axis=0),
        *more,
    )


def test_sequences_that_are_not_put_back_are_refused() -> None:
    sort = helper.make_node("Gather", ["x", "order"], ["own_x"], axis=1)
    model = read_any(graph("GRU", "forward", ("Y_h",), by_length(sort)))
    assert model.calls is None
    assert "order of their lengths" in model.metadata["topology"]


def test_lengths_in_another_order_than_the_sequences_are_refused() -> None:
    model = read_any(graph("GRU", "forward", ("Y_h",), by_length()))
    assert model.calls is None
    assert "its lengths are not one for each sequence" in model.metadata["topology"]


def test_sorted_sequences_are_not_added_to_others() -> None:
    sort = helper.make_node("Gather", ["x", "order"], ["by_length"], axis=1)
    add = helper.make_node("Add", ["x", "by_length"], ["own_x"])
    model = read_any(graph("GRU", "forward", ("Y_h",), by_length(sort, add)))
    assert model.calls is None
    assert "sorted by their lengths" in model.metadata["topology"]


def test_half_of_the_lengths_is_no_order() -> None:
    half = (
        helper.make_node("Constant", [], ["two"], value_ints=[2]),
        helper.make_node("TopK", ["lengths", "two"], ["own_lengths", "order"], axis=0),
        helper.make_node("Gather", ["x", "order"], ["own_x"], axis=1),
    )
    model = read_any(graph("GRU", "forward", ("Y_h",), half))
    assert model.calls is None
    assert "its sequence lengths are" in model.metadata["topology"]
