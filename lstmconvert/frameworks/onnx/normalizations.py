"""Layers that shift and scale: by stored statistics, by the input's own, or by fixed numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lstmconvert.frameworks.onnx.graph import Value, numpy_dtype
from lstmconvert.frameworks.onnx.use import Use, fixed
from lstmconvert.operations import (
    BatchNormalization,
    GroupNormalization,
    LayerNormalization,
    Normalization,
    Rescaling,
)

_NORMALIZATION_FLOOR = 1e-7
"""Keras Normalization divides by no less than this."""


def batch_normalization(use: Use, operation: BatchNormalization) -> Value:
    """The operator where the features are on axis 1, else its two steps with the factors worked out first."""
    (x,) = use.floats()
    held, graph = use.tensors(operation), use.graph
    scale, offset = held.get("scale"), held.get("offset")
    if x.axis(operation.axis) == 1:
        size = use.weights["mean"].shape[0]
        inputs = [
            x.name,
            scale or _filled(use, 1.0, size),
            offset or _filled(use, 0.0, size),
            held["mean"],
            held["variance"],
        ]
        (name,) = graph.add_main("BatchNormalization", inputs, {"epsilon": operation.epsilon})
        return x.named(name)
    deviation = use.add("Sqrt", use.add("Add", held["variance"], use.number(operation.epsilon)))
    factor = use.add("Div", scale or use.number(1.0), deviation)
    shift = use.add("Neg", use.add("Mul", held["mean"], factor))
    if offset is not None:
        shift = use.add("Add", offset, shift)
    (scaled,) = graph.add_main("Mul", [x.name, use.along(factor, x, operation.axis)])
    return x.named(use.add("Add", scaled, use.along(shift, x, operation.axis)))


def _filled(use: Use, value: float, size: int) -> str:
    return use.graph.constant(np.full(size, value, use.weights["mean"].dtype))


def layer_normalization(use: Use, operation: LayerNormalization) -> Value:
    """The operator where it has the layer's axes (opset 17), else its steps.

    ``root_mean_square`` takes no mean off, neither from x nor for the deviation.
    """
    (x,) = use.floats()
    held, graph = use.tensors(operation), use.graph
    axes = sorted(axis % x.rank for axis in operation.axes)
    trailing = axes == list(range(x.rank - len(axes), x.rank))
    if not (len(axes) == 1 and trailing and x.features_last):
        x = graph.in_logical_order(x)
    shape = [fixed(use, x.shape[axis], f"axis {axis}") for axis in axes]
    if trailing and not operation.root_mean_square and graph.opset >= 17 and x.dtype != "float64":
        scale = held.get("scale") or graph.constant(np.ones(shape, numpy_dtype(x.dtype)))
        inputs = [x.name, scale, *([held["offset"]] if "offset" in held else [])]
        attributes = {"axis": -len(axes), "epsilon": operation.epsilon}
        (name,) = graph.add_main("LayerNormalization", inputs, attributes)
        return x.named(name)
    centred = x.name if operation.root_mean_square else _centred(use, x.name, axes)
    result = use.add("Mul", centred, _inverse_root(use, centred, axes, operation.epsilon))
    spread = graph.integers(*(shape[axes.index(axis)] if axis in axes else 1 for axis in range(x.rank)))
    for operator, part in (("Mul", "scale"), ("Add", "offset")):
        if part in held:
            result = use.add(operator, result, use.add("Reshape", held[part], spread))
    return x.named(result)


def _centred(use: Use, x: str, axes: Sequence[int]) -> str:
    """x less its mean."""
    return use.add("Sub", x, use.graph.reduce("ReduceMean", x, axes, keep_axes=True))


def _inverse_root(use: Use, x: str, axes: Sequence[int], epsilon: float) -> str:
    """One over the root of the mean square of x."""
    square = use.graph.reduce("ReduceMean", use.add("Mul", x, x), axes, keep_axes=True)
    return use.add("Reciprocal", use.add("Sqrt", use.add("Add", square, use.number(epsilon))))


def group_normalization(use: Use, operation: GroupNormalization) -> Value:
    """Normalised over all axes but batch and group, the features split into groups."""
    (x,) = use.floats()
    held, graph = use.tensors(operation), use.graph
    axis = operation.axis % x.rank
    features, groups = fixed(use, x.shape[axis], "the features"), operation.groups
    sizes = [
        graph.integers(n) if isinstance(n, int) else graph.size(graph.ordered(x), a)
        for a, n in enumerate(x.shape)
    ]
    split = [*sizes[:axis], graph.integers(groups, features // groups), *sizes[axis + 1 :]]
    grouped = use.add("Reshape", graph.ordered(x), graph.add("Concat", split, {"axis": 0}))
    axes = [a for a in range(1, x.rank + 1) if a != axis]
    centred = _centred(use, grouped, axes)
    inverse = _inverse_root(use, centred, axes, operation.epsilon)
    whole = graph.add("Concat", sizes, {"axis": 0})
    result = use.value(use.add("Reshape", use.add("Mul", centred, inverse), whole), x.shape)
    for operator, part in (("Mul", "scale"), ("Add", "offset")):
        if part in held:
            result = result.named(use.add(operator, result.name, use.along(held[part], result, axis)))
    return result


def normalization(use: Use, operation: Normalization) -> Value:
    """Shifted and scaled by stored mean and variance along the last axis."""
    x = use.logical(use.x)
    held = use.tensors(operation)
    deviation = use.add("Max", use.add("Sqrt", held["variance"]), use.number(_NORMALIZATION_FLOOR))
    if operation.invert:
        return x.named(use.add("Add", held["mean"], use.add("Mul", x.name, deviation)))
    return x.named(use.add("Div", use.add("Sub", x.name, held["mean"]), deviation))


def rescaling(use: Use, operation: Rescaling) -> Value:
    """Mul and Add with numbers, or with one number for each feature."""
    (x,) = use.floats()
    graph = use.graph
    for operator, amount, neutral in (("Mul", operation.scale, 1.0), ("Add", operation.offset, 0.0)):
        if amount == neutral:
            continue
        if isinstance(amount, tuple):
            operand = use.along(graph.constant(np.asarray(amount, numpy_dtype(use.dtype))), x)
        else:
            operand = use.number(amount)
        x = replace(x, name=use.add(operator, x.name, operand))
    return x
