"""Layers that shift and scale: by stored statistics, by the input's own, or by fixed numbers."""

from __future__ import annotations

import numpy as np

from lstmconvert.frameworks.pytorch.source import call
from lstmconvert.frameworks.pytorch.use import Use
from lstmconvert.frameworks.pytorch.values import Value
from lstmconvert.operations import (
    BatchNormalization,
    GroupNormalization,
    LayerNormalization,
    Normalization,
)
from lstmconvert.shapes import Shape
from lstmconvert.tensors import Lazy

_NORMALIZATION_FLOOR = "1e-7"
"""Keras Normalization divides by no less than this."""
_AFFINE = {"scale": 1.0, "offset": 0.0}


def _decimal(value: float) -> str:
    """A number that is a difference of decimals, without what binary fractions add."""
    return repr(round(value, 12))


def _features_on_axis_1(use: Use, axis: int) -> Value | None:
    """The input as torch's normalising layers take it; ``None`` where other axes would have to move."""
    (x,) = use.floats()
    axis %= x.rank
    if axis == x.rank - 1:
        return x.first()
    return x.last() if axis == 1 else None


def _affine(use: Use) -> tuple[dict[str, str], dict[str, float]]:
    """The argument for a layer without scale and offset, and what fills in for just one."""
    if "scale" not in use.weights and "offset" not in use.weights:
        return {"affine": "False"}, {}
    return {}, _AFFINE


def batch_normalization(use: Use, operation: BatchNormalization, shape: Shape) -> Value:
    """BatchNorm1d or BatchNorm2d."""
    del shape
    x = _features_on_axis_1(use, operation.axis)
    if x is None or x.rank > 5:
        raise use.refused(f"batch normalisation along axis {operation.axis}")
    affine, fill = _affine(use)
    named = {"eps": repr(operation.epsilon), "momentum": _decimal(1.0 - operation.momentum), **affine}
    kind = f"nn.BatchNorm{max(x.rank - 2, 1)}d"
    constructor = call(kind, str(use.weights["mean"].shape[0]), **named)
    counted = {"num_batches_tracked": Lazy.of(np.zeros((), np.int64))}
    layer = use.sublayer(constructor, "batch_normalization", fill=fill, extra=counted)
    return x.named(call(layer, x.code))


def layer_normalization(use: Use, operation: LayerNormalization, shape: Shape) -> Value:
    """LayerNorm where it has the layer's axes, else its steps."""
    x = use.last()
    axes = sorted(axis % x.rank for axis in operation.axes)
    sizes = [shape[axis] for axis in axes]
    trailing = axes == list(range(x.rank - len(axes), x.rank))
    if not trailing or None in sizes or operation.root_mean_square:
        return _layer_normalization_in_steps(use, operation, axes)
    size = str(sizes[0]) if len(sizes) == 1 else f"({', '.join(map(str, sizes))})"
    eps = repr(operation.epsilon)
    if not use.weights:
        layer = use.plain(call("nn.LayerNorm", size, eps=eps, elementwise_affine="False"))
        return x.named(call(layer, x.code))
    if "scale" not in use.weights:
        return _layer_normalization_in_steps(use, operation, axes)
    bias = {} if "offset" in use.weights else {"bias": "False"}
    local = {"scale": "weight", "offset": "bias"}
    tensors = {part: (local[part], lazy, tuple(range(len(lazy.shape)))) for part, lazy in use.weights.items()}
    layer = use.owner(call("nn.LayerNorm", size, eps=eps, **bias), tensors)
    return x.named(call(layer, x.code))


def _layer_normalization_in_steps(use: Use, operation: LayerNormalization, axes: list[int]) -> Value:
    x = use.named(use.last())
    dims = str(tuple(axes)) if len(axes) > 1 else str(axes[0])
    centred = x.code
    if not operation.root_mean_square:
        centred = use.module.assigned("centred", f"{x.code} - {x.code}.mean(dim={dims}, keepdim=True)")
    square = use.module.assigned("square", f"{centred}.square().mean(dim={dims}, keepdim=True)")
    code = f"{centred} * torch.rsqrt({square} + {operation.epsilon!r})"
    if use.weights:
        code = use.module.assigned("normal", code)
    for sign, part in (("*", "scale"), ("+", "offset")):
        if part in use.weights:
            code = f"{code} {sign} {_spread(use, part, axes, x.rank)}"
    return x.named(code)


def _spread(use: Use, part: str, axes: list[int], rank: int) -> str:
    """A part over ``axes`` so that it broadcasts against a value of ``rank`` axes."""
    name = use.parameter(part)
    if axes == list(range(rank - len(axes), rank)):
        return name
    shape = use.weights[part].shape
    sizes = [str(shape[axes.index(axis)]) if axis in axes else "1" for axis in range(axes[0], rank)]
    return f"{name}.view({', '.join(sizes)})"


def group_normalization(use: Use, operation: GroupNormalization, shape: Shape) -> Value:
    """GroupNorm."""
    x = _features_on_axis_1(use, operation.axis)
    features = shape[operation.axis % len(shape)]
    if x is None or features is None:
        raise use.refused(f"group normalisation along axis {operation.axis}")
    affine, fill = _affine(use)
    constructor = call(
        "nn.GroupNorm", str(operation.groups), str(features), eps=repr(operation.epsilon), **affine
    )
    if affine:
        return x.named(call(use.plain(constructor), x.code))
    return x.named(call(use.sublayer(constructor, "group_normalization", fill=fill), x.code))


def normalization(use: Use, operation: Normalization, shape: Shape) -> Value:
    """Shifted and scaled by stored mean and variance along the last axis."""
    del shape
    x = use.last()
    mean, variance = (use.parameter(part, trained=False) for part in ("mean", "variance"))
    deviation = f"{variance}.sqrt().clamp(min={_NORMALIZATION_FLOOR})"
    if operation.invert:
        return x.named(f"{mean} + {x.operand} * {deviation}")
    return x.named(f"({x.operand} - {mean}) / {deviation}")
