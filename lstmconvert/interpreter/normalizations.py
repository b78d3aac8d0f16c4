"""Operations that shift and scale: by stored statistics, by the input's own, or by fixed numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lstmconvert import operations as ops
from lstmconvert.tensors import Array

Weights = Mapping[str, Array]

_NORMALIZATION_FLOOR = 1e-7
"""Keras Normalization divides by no less than this."""


def _along_axis(vector: Array, x: Array, axis: int) -> Array:
    """A vector shaped to broadcast along one axis of ``x``."""
    shape = [1] * x.ndim
    shape[axis] = vector.size
    return vector.reshape(shape)


def _scaled(x: Array, weights: Weights, spread: Callable[[Array], Array]) -> Array:
    if "scale" in weights:
        x = x * spread(weights["scale"])
    return x + spread(weights["offset"]) if "offset" in weights else x


def batch_normalization(
    operation: ops.BatchNormalization, weights: Weights, inputs: Sequence[Array]
) -> Array:
    """By stored statistics along one axis."""
    (x,) = inputs

    def spread(vector: Array) -> Array:
        return _along_axis(vector, x, operation.axis)

    deviation = np.sqrt(weights["variance"] + x.dtype.type(operation.epsilon))
    return _scaled((x - spread(weights["mean"])) / spread(deviation), weights, spread)


def layer_normalization(
    operation: ops.LayerNormalization, weights: Weights, inputs: Sequence[Array]
) -> Array:
    """By the statistics of each place's own axes."""
    (x,) = inputs
    axes = tuple(sorted(axis % x.ndim for axis in operation.axes))
    wide = x.astype(np.result_type(x.dtype, np.float32))  # as Keras does, against overflow in float16
    if not operation.root_mean_square:
        wide = wide - wide.mean(axis=axes, keepdims=True)
    square = (wide * wide).mean(axis=axes, keepdims=True)
    normal = wide / np.sqrt(square + wide.dtype.type(operation.epsilon))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return _scaled(normal, weights, lambda part: part.reshape(shape)).astype(x.dtype)


def group_normalization(
    operation: ops.GroupNormalization, weights: Weights, inputs: Sequence[Array]
) -> Array:
    """By the statistics of each group of features over all places."""
    (x,) = inputs
    axis = operation.axis % x.ndim
    groups = operation.groups
    if x.shape[axis] % groups:
        raise ValueError(f"{x.shape[axis]} features do not make {groups} equal groups")
    wide = x.astype(np.result_type(x.dtype, np.float32))
    split = wide.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
    over = tuple(a for a in range(1, split.ndim) if a != axis)
    centred = split - split.mean(axis=over, keepdims=True)
    square = (centred * centred).mean(axis=over, keepdims=True)
    normal = (centred / np.sqrt(square + split.dtype.type(operation.epsilon))).reshape(x.shape)
    return _scaled(normal, weights, lambda part: _along_axis(part, x, axis)).astype(x.dtype)


def normalization(operation: ops.Normalization, weights: Weights, inputs: Sequence[Array]) -> Array:
    """By stored statistics of the features, or back."""
    (x,) = inputs
    deviation = np.maximum(np.sqrt(weights["variance"]), x.dtype.type(_NORMALIZATION_FLOOR))
    result: Array = weights["mean"] + x * deviation if operation.invert else (x - weights["mean"]) / deviation
    return result


def rescaling(operation: ops.Rescaling, _: Weights, inputs: Sequence[Array]) -> Array:
    """By fixed numbers."""
    (x,) = inputs
    result: Array = x * np.asarray(operation.scale, x.dtype) + np.asarray(operation.offset, x.dtype)
    return result
