"""Operations beside recurrent layers as operators of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.activations import Activation
from lstmconvert.errors import NotRepresentable
from lstmconvert.model import Call, OperationLayer
from lstmconvert.operations import (
    Activate,
    Cast,
    Combination,
    Combine,
    Concatenate,
    Dense,
    Embedding,
    Flatten,
    GlobalPooling,
    Identity,
    Operation,
    Pool,
    Repeat,
    Rescaling,
    Reshape,
    Reverse,
    Select,
    TimeDistributed,
    Transpose,
)
from lstmconvert.tensors import Lazy

if TYPE_CHECKING:
    from lstmconvert.frameworks.tflite.writer import Graph, Lengths, Value

REMEDY = "Convert to ONNX, or take one recurrent layer with --layer."
_FUNCTIONS: Mapping[Activation, tuple[str, Mapping[str, Any]]] = {
    Activation("sigmoid"): ("LOGISTIC", {}),
    Activation("tanh"): ("TANH", {}),
    Activation("relu"): ("RELU", {}),
    Activation("clipped_relu", 6.0): ("RELU6", {}),
    Activation("hard_tanh"): ("RELU_N1_TO_1", {}),
    Activation("elu", 1.0): ("ELU", {}),
    Activation("exponential"): ("EXP", {}),
    Activation("softmax"): ("SOFTMAX", {"beta": 1.0}),
    Activation("log_softmax"): ("LOG_SOFTMAX", {}),
}
_COMBINED = {
    Combination.ADD: "ADD", Combination.SUBTRACT: "SUB", Combination.MULTIPLY: "MUL",
    Combination.AVERAGE: "ADD", Combination.MAXIMUM: "MAXIMUM", Combination.MINIMUM: "MINIMUM",
}  # fmt: skip


def written(graph: Graph, call: Call, layer: OperationLayer) -> Value:
    """The value that an operation gives.

    Raises:
        NotRepresentable: when there is no operator for it, or not one that LiteRT runs as it is meant.
    """
    operation = layer.operation
    if isinstance(operation, TimeDistributed) and isinstance(
        operation.inner, Dense | Activate | Identity | Rescaling
    ):
        operation = operation.inner  # these act on the last axis, or on each number
    rule = _RULES.get(type(operation))
    if rule is None:
        raise _refused(f"{type(operation).__name__} is not written to a .tflite file", layer)
    given = [graph.value(name, call.layer) for name in call.inputs]
    return rule(graph, layer, operation, given)


def _refused(message: str, layer: OperationLayer) -> NotRepresentable:
    return NotRepresentable(message, place=f"layer {layer.name!r}", remedy=REMEDY)


def _float_weight(graph: Graph, layer: OperationLayer, part: str) -> Value:
    weight = layer.weights[part]
    if weight.dtype != np.float32:
        raise NotRepresentable(
            f"weights of {weight.dtype} are not written to a .tflite file: its kernels run float32",
            place=f"layer {layer.name!r}",
            remedy="Choose --dtype float32.",
        )
    return graph.constant(f"{layer.name}/{part}", weight)


def _activated(graph: Graph, layer: OperationLayer, x: Value, function: Activation, name: str) -> Value:
    if function.kind == "linear":
        return x
    if function.kind == "leaky_relu":
        kind, options = "LEAKY_RELU", {"alpha": function.alpha}
    elif function in _FUNCTIONS:
        kind, options = _FUNCTIONS[function][0], dict(_FUNCTIONS[function][1])
    else:
        raise _refused(f"the activation {function} has no operator in a .tflite file", layer)
    return graph.add(kind, [x], graph.tensor(name, x.shape), options)


def _dense(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    (x,) = given
    kernel = _float_weight(graph, layer, "kernel")
    inputs: list[Value | None] = [x, kernel, None]
    if "bias" in layer.weights:
        inputs[2] = _float_weight(graph, layer, "bias")
    linear = operation.activation.kind == "linear"
    name = layer.name if linear else f"{layer.name}/product"
    y = graph.tensor(name, (*x.shape[:-1], kernel.shape[0]))
    graph.add("FULLY_CONNECTED", inputs, y, {"keep_num_dims": len(x.shape) > 2})
    return _activated(graph, layer, y, operation.activation, layer.name)


def _activate(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    (x,) = given
    if "softmax" in operation.activation.kind and operation.axis % len(x.shape) != len(x.shape) - 1:
        raise _refused("a softmax over another axis than the last is not written to a .tflite file", layer)
    return _activated(graph, layer, x, operation.activation, layer.name)


def _embedding(
    graph: Graph,
    layer: OperationLayer,
    operation: Any,  # noqa: ARG001 - all rules take it
    given: Sequence[Value],
) -> Value:
    (ids,) = given
    table = _float_weight(graph, layer, "embeddings")
    if ids.dtype not in ("int32", "int64"):
        whole = graph.tensor(f"{layer.name}/whole", ids.shape, dtype="int32")
        ids = graph.add("CAST", [ids], whole, _cast_options(graph, ids.dtype, "int32"))
    y = graph.tensor(layer.name, (*ids.shape, table.shape[1]))
    return graph.add("GATHER", [table, ids], y, {"axis": 0})


def _cast_options(graph: Graph, source: str, target: str) -> dict[str, int]:
    return {"in_type": graph.type_number(source), "out_type": graph.type_number(target)}


def _cast(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    (x,) = given
    if operation.dtype not in ("float32", "int32", "int64"):
        raise _refused(f"a cast to {operation.dtype} is not written to a .tflite file", layer)
    if operation.dtype == x.dtype:
        return x
    y = graph.tensor(layer.name, x.shape, dtype=operation.dtype)
    return graph.add("CAST", [x], y, _cast_options(graph, x.dtype, operation.dtype))


def _select(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    (x,) = given
    rank = len(x.shape)
    axis = operation.axis % rank
    if axis == 0:
        raise _refused("one sequence of the batch is not picked in a .tflite file", layer)
    return graph.picked(layer.name, x, axis, operation.index)


def _reverse(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    (x,) = given
    axis = operation.axis % len(x.shape)
    return graph.add("REVERSE_V2", [x, graph.integers(axis)], graph.tensor(layer.name, x.shape))


def _concatenate(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    rank = len(given[0].shape)
    axis = operation.axis % rank
    if any(len(value.shape) != rank for value in given) or axis == 0:
        raise _refused("inputs of unequal rank are not joined in a .tflite file", layer)
    lengths = [value.shape[axis] for value in given]
    total = None if None in lengths else sum(n or 0 for n in lengths)
    shape = (*given[0].shape[:axis], total, *given[0].shape[axis + 1 :])
    return graph.add("CONCATENATION", given, graph.tensor(layer.name, shape), {"axis": axis})


def _combine(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    kind = _COMBINED.get(operation.kind)
    if kind is None or any(len(value.shape) != len(given[0].shape) for value in given):
        raise _refused(f"this combination ({operation.kind}) is not written to a .tflite file", layer)
    total = given[0]
    for number, value in enumerate(given[1:], 1):
        pairs = zip(total.shape, value.shape, strict=True)
        shape = tuple(b if a == 1 else a for a, b in pairs)
        last = number == len(given) - 1 and operation.kind is not Combination.AVERAGE
        name = layer.name if last else f"{layer.name}/{number}"
        total = graph.add(kind, [total, value], graph.tensor(name, shape))
    if operation.kind is Combination.AVERAGE:
        share = graph.constant(f"{layer.name}/share", Lazy.of(np.array(1 / len(given), np.float32)))
        total = graph.add("MUL", [total, share], graph.tensor(layer.name, total.shape))
    return total


def _rescaling(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    (x,) = given
    for kind, numbers, neutral in (("MUL", operation.scale, 1.0), ("ADD", operation.offset, 0.0)):
        if numbers != neutral:
            constant = graph.constant(f"{layer.name}/{kind.lower()}", Lazy.of(np.array(numbers, np.float32)))
            x = graph.add(kind, [x, constant], graph.tensor(f"{layer.name}/{kind}", x.shape))
    return x


def _reshape(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    (x,) = given
    inner = x.shape[1:]
    if None in inner:
        raise _refused("axes of a free length are not joined in a .tflite file", layer)
    count = int(np.prod([n or 1 for n in inner]))
    wanted = (-1,) if isinstance(operation, Flatten) else operation.shape
    known = int(np.prod([n for n in wanted if n != -1]))
    rest: Lengths = tuple(count // known if n == -1 else n for n in wanted)
    target = graph.integers(-1, *[n or 1 for n in rest])
    return graph.add("RESHAPE", [x, target], graph.tensor(layer.name, (x.shape[0], *rest)))


def _transpose(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    (x,) = given
    order = operation.permutation
    if order[:1] != (0,):
        raise _refused("the batch is not moved in a .tflite file", layer)
    y = graph.tensor(layer.name, tuple(x.shape[n] for n in order))
    return graph.add("TRANSPOSE", [x, graph.integers(*order)], y)


def _pooling(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    (x, *more) = given
    if operation.rank != 1 or more or len(x.shape) != 3:
        raise _refused("only a pooling over all steps is written to a .tflite file", layer)
    if operation.kind is Pool.SUM:
        raise _refused("a sum over all steps is not written to a .tflite file", layer)
    kind = "MEAN" if operation.kind is Pool.AVERAGE else "REDUCE_MAX"
    shape = (x.shape[0], 1, x.shape[2]) if operation.keep_axes else (x.shape[0], x.shape[2])
    told = {"keep_dims": operation.keep_axes}
    return graph.add(kind, [x, graph.integers(1)], graph.tensor(layer.name, shape), told)


def _repeat(graph: Graph, layer: OperationLayer, operation: Any, given: Sequence[Value]) -> Value:
    (x,) = given
    batch, width = x.shape
    if width is None:
        raise _refused("a row of a free length is not repeated in a .tflite file", layer)
    step = graph.tensor(f"{layer.name}/step", (batch, 1, width))
    graph.add("RESHAPE", [x, graph.integers(-1, 1, width)], step)
    y = graph.tensor(layer.name, (batch, operation.count, width))
    return graph.add("TILE", [step, graph.integers(1, operation.count, 1)], y)


_Rule = Callable[["Graph", OperationLayer, Any, Sequence["Value"]], "Value"]
_RULES: Mapping[type[Operation], _Rule] = {
    Dense: _dense,
    Activate: _activate,
    Embedding: _embedding,
    Cast: _cast,
    Identity: lambda graph, layer, operation, given: given[0],  # noqa: ARG005 - all rules take them
    Select: _select,
    Reverse: _reverse,
    Concatenate: _concatenate,
    Combine: _combine,
    Rescaling: _rescaling,
    Reshape: _reshape,
    Flatten: _reshape,
    Transpose: _transpose,
    Repeat: _repeat,
    GlobalPooling: _pooling,
}
