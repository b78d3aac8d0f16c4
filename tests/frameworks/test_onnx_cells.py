"""LSTM cells that are written out operator by operator: any gate order is found from the data flow alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert.frameworks.onnx.cells import WRITTEN_OUT
from lstmconvert.gates import Gate

GATES = ("input", "forget", "cell", "output")
ORDERS = list(itertools.permutations(range(4)))


def written_out(folder: Path, order: tuple[int, ...], width: int, hidden: int, *, together: bool) -> Path:
    """A cell whose parts stand for the gates ``order`` names; ``together``: h and c are cut from one input."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(sum(n * 7**k for k, n in enumerate(order)) + width)
    shapes = {"W": (4 * hidden, width), "R": (4 * hidden, hidden), "b": (4 * hidden,), "d": (4 * hidden,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {"zero": np.array(0), "one": np.array(1)}
    float32 = TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", float32, ["n", width])]
    nodes = []
    if together:
        inputs.append(helper.make_tensor_value_info("state", float32, [2, "n", hidden]))
        nodes += [
            helper.make_node("Gather", ["state", k], [v], axis=0) for k, v in (("zero", "h"), ("one", "c"))
        ]
    else:
        inputs += [helper.make_tensor_value_info(name, float32, ["n", hidden]) for name in ("h", "c")]
    part = {GATES[gate]: f"part{n}" for n, gate in enumerate(order)}
    nodes += [
        helper.make_node("Gemm", ["h", "R", "d"], ["from_h"], transB=1),
        helper.make_node("Gemm", ["x", "W", "b"], ["from_x"], transB=1),
        helper.make_node("Add", ["from_h", "from_x"], ["total"]),
        helper.make_node("Split", ["total"], [f"part{n}" for n in range(4)], name="gates", axis=1),
        helper.make_node("Sigmoid", [part["input"]], ["i"]),
        helper.make_node("Sigmoid", [part["forget"]], ["f"]),
        helper.make_node("Tanh", [part["cell"]], ["g"]),
        helper.make_node("Sigmoid", [part["output"]], ["o"]),
        helper.make_node("Mul", ["g", "i"], ["new"]),
        helper.make_node("Mul", ["f", "c"], ["kept"]),
        helper.make_node("Add", ["kept", "new"], ["c_out"]),
        helper.make_node("Tanh", ["c_out"], ["squashed"]),
        helper.make_node("Mul", ["o", "squashed"], ["h_out"]),
    ]
    outputs = [helper.make_tensor_value_info(name, float32, ["n", hidden]) for name in ("h_out", "c_out")]
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "cell", inputs, outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "cell.onnx"
    onnx.save(model, path)
    return path


def run(path: Path, feeds: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize(("width", "together"), [(3, False), (5, True)], ids=["unequal", "square"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(GATES[n][0] for n in order))
def test_a_written_out_cell_computes_what_it_did(
    order: tuple[int, ...], width: int, together: bool, tmp_path: Path
) -> None:
    path = written_out(tmp_path, order, width, 5, together=together)
    (layer,) = lc.read(path).recurrent.values()
    assert layer.stored_gates == tuple(Gate(GATES[n]) for n in order)
    assert layer.notes[WRITTEN_OUT] == "gates"
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, width)).astype(np.float32)
    h, c = rng.normal(size=(2, 2, 5)).astype(np.float32)
    feeds = {"x": x, "state": np.stack([h, c])} if together else {"x": x, "h": h, "c": c}
    y, (_, cell_state) = layer.run(x[:, np.newaxis], initial_state=(h[np.newaxis], c[np.newaxis]))
    for got, expected in zip((y[:, 0], cell_state[0]), run(path, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_products_that_nothing_tells_apart_are_no_cell(tmp_path: Path) -> None:
    """Square matrices and states of their own: which product is the input's would be a guess."""
    path = written_out(tmp_path, (0, 1, 2, 3), 5, 5, together=False)
    assert not lc.read(path).recurrent
