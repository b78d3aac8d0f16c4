"""Runs what the ONNX writer makes, and puts the weights of Keras layers into canonical ones by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from lstmconvert.canonical import Equations, RecurrentDirection, RecurrentLayer, SequenceBehaviour, Weights
from lstmconvert.containers import Archive
from lstmconvert.frameworks.onnx import writer
from lstmconvert.gates import GATES, PEEPHOLE_GATES, Cell, Direction, Gate
from lstmconvert.model import Model
from lstmconvert.options import WriteOptions
from lstmconvert.tensors import Array

LOOPS = {"Loop", "Scan", "If"}
FUSED = {"LSTM", "GRU", "RNN"}


def filled(archive: Archive) -> onnx.ModelProto:
    """The whole model, after the strictest checks that the onnx package has."""
    model = onnx.ModelProto()
    model.CopyFrom(archive.metadata["model"])
    for tensor in model.graph.initializer:
        if tensor.name in archive.tensors:
            tensor.raw_data = np.ascontiguousarray(archive.tensors[tensor.name].read()).tobytes()
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return model


def written(model: Model, options: WriteOptions | None = None) -> onnx.ModelProto:
    """The ONNX model that is made of a model."""
    return filled(writer.write(model, "onnx_file", options or WriteOptions()))


def operators(model: onnx.ModelProto) -> list[str]:
    """The operators of its nodes, in order."""
    return [node.op_type for node in model.graph.node]


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Its outputs in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_close(got: Array, expected: Any, what: object, tolerance: float = 1e-5) -> None:
    """Equal in shape, and in every number up to ``tolerance`` of the largest."""
    reference = np.asarray(expected)
    assert got.shape == reference.shape, (what, got.shape, reference.shape)
    scale = max(1.0, float(np.max(np.abs(reference), initial=0.0)))
    error = float(np.max(np.abs(got.astype(np.float64) - reference), initial=0.0))
    assert error <= tolerance * scale, (what, error)


def random_weights(
    rng: np.random.Generator, cell: Cell, input_size: int, hidden_size: int, *, peephole: bool = False
) -> Weights:
    """Weights that differ for every gate and part."""

    def blocks(gates: Sequence[Gate], *shape: int) -> dict[Gate, Array]:
        return {gate: (rng.standard_normal(shape) * 0.6).astype(np.float32) for gate in gates}

    gates = GATES[cell]
    return Weights.of(
        cell,
        kernel=blocks(gates, hidden_size, input_size),
        recurrent=blocks(gates, hidden_size, hidden_size),
        bias_input=blocks(gates, hidden_size),
        bias_recurrent=blocks(gates, hidden_size),
        peephole=blocks(PEEPHOLE_GATES, hidden_size) if peephole else None,
    )


# Keras lays its gates side by side in columns, in this order (Keras documentation of LSTM and GRU).
_KERAS_GATES: Mapping[Cell, tuple[Gate, ...]] = {
    Cell.LSTM: (Gate.INPUT, Gate.FORGET, Gate.CELL, Gate.OUTPUT),
    Cell.GRU: (Gate.UPDATE, Gate.RESET, Gate.CANDIDATE),
    Cell.RNN: (Gate.HIDDEN,),
}


def from_keras(cell: Cell, arrays: Sequence[Array]) -> Weights:
    """Kernel (input, gates hidden), recurrent kernel (hidden, gates hidden) and bias of one Keras cell."""
    gates = _KERAS_GATES[cell]

    def split(array: Array) -> dict[Gate, Array]:
        return dict(zip(gates, np.split(array.T, len(gates)), strict=True))

    kernel, recurrent, *bias = arrays
    both = bool(bias) and bias[0].ndim == 2  # a GRU that resets after the product
    return Weights.of(
        cell,
        kernel=split(kernel),
        recurrent=split(recurrent),
        bias_input=(split(bias[0][0]) if both else split(bias[0])) if bias else None,
        bias_recurrent=split(bias[0][1]) if both else None,
    )


def randomize(rng: np.random.Generator, keras_layer: Any) -> None:
    """Random weights for a built Keras layer; variances stay positive."""
    for weight in keras_layer.weights:
        values = rng.standard_normal(weight.shape) * 0.6
        weight.assign(np.abs(values) + 0.1 if "variance" in weight.path else values)


def layer_of(
    name: str,
    cell: Cell,
    equations: Equations,
    directions: Mapping[Direction, Sequence[Array]],
    sequence: SequenceBehaviour,
) -> RecurrentLayer:
    """A canonical layer with the weights of Keras cells."""
    made = [RecurrentDirection(d, equations, from_keras(cell, arrays)) for d, arrays in directions.items()]
    return RecurrentLayer(name, tuple(made), sequence)
