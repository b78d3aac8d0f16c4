"""A case as an ONNX model with its inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmconvert import layout, mapping
from lstmconvert.conformance.cases import Case
from lstmconvert.gates import Cell
from lstmconvert.tensors import Array, Lazy

_OPERATORS = {Cell.LSTM: "LSTM", Cell.GRU: "GRU", Cell.RNN: "RNN"}


def tensors(case: Case) -> tuple[dict[str, Array], dict[str, Array]]:
    """The node's inputs and what it should give, under ONNX's names; outputs in float64."""
    held = {
        direction: weights.mapped(lambda _k, b: Lazy.of(b.read().astype(case.dtype)))
        for direction, weights in zip(case.directions, case.weights(), strict=True)
    }
    described = mapping.load("onnx").layouts[str(case.cell)]
    packed = layout.pack(described, held)
    x, states = case.inputs()
    given: dict[str, Array] = {"X": x.transpose(1, 0, 2).astype(case.dtype)}
    given |= {name: np.array(lazy.read()) for name, lazy in packed.items()}
    if case.lengths:
        given["sequence_lens"] = np.array(case.lengths, np.int32)
    for name, state in zip(("initial_h", "initial_c"), states, strict=False):
        given[name] = state.astype(case.dtype)
    found = dict(zip(("Y", "Y_h", "Y_c"), case.expected(), strict=False))
    if case.layout:
        given["X"] = given["X"].transpose(1, 0, 2)
        for name in ("initial_h", "initial_c"):
            if name in given:
                given[name] = given[name].transpose(1, 0, 2)
        found["Y"] = found["Y"].transpose(2, 0, 1, 3)
        for name in ("Y_h", "Y_c"):
            if name in found:
                found[name] = found[name].transpose(1, 0, 2)
    return {n: np.ascontiguousarray(a) for n, a in given.items()}, found


def model(case: Case, *, weights_inside: bool = True) -> Any:
    """The ``onnx.ModelProto`` of a case: one node of opset 14, weights as initializers or as inputs."""
    from onnx import TensorProto, helper, numpy_helper

    given, found = tensors(case)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(case.dtype))
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h"]
    names += ["initial_c", "P"] if case.cell is Cell.LSTM else []
    inputs = [name if name in given else "" for name in names]
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node(_OPERATORS[case.cell], inputs, list(found), name=case.name, **_attributes(case))
    outside = [n for n in inputs if n and not (weights_inside and n in ("W", "R", "B", "P"))]
    graph = helper.make_graph(
        [node],
        case.name,
        [
            helper.make_tensor_value_info(
                n, TensorProto.INT32 if n == "sequence_lens" else kind, given[n].shape
            )
            for n in outside
        ],
        [helper.make_tensor_value_info(n, kind, array.shape) for n, array in found.items()],
        [numpy_helper.from_array(given[n], n) for n in inputs if n and n not in outside],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], producer_name="lstmconvert")
    made.ir_version = 8
    return made


def _attributes(case: Case) -> dict[str, Any]:
    attributes: dict[str, Any] = {"hidden_size": case.sizes[1], "direction": case.direction}
    if case.activations:
        attributes["activations"] = [name for name, _, _ in case.activations]
        alphas = [alpha for _, alpha, _ in case.activations if alpha is not None]
        betas = [beta for _, _, beta in case.activations if beta is not None]
        attributes |= {"activation_alpha": alphas} if alphas else {}
        attributes |= {"activation_beta": betas} if betas else {}
    if case.clip is not None:
        attributes["clip"] = case.clip
    if case.layout:
        attributes["layout"] = 1
    if case.input_forget:
        attributes["input_forget"] = 1
    if case.linear_before_reset:
        attributes["linear_before_reset"] = 1
    return attributes
