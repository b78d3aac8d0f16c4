"""Operations that compute nothing and move numbers to other places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lstmconvert import operations as ops
from lstmconvert.tensors import Array

Weights = Mapping[str, Array]


def flatten(_: ops.Flatten, __: Weights, inputs: Sequence[Array]) -> Array:
    """All axes but the batch become one."""
    (x,) = inputs
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def reshape(operation: ops.Reshape, _: Weights, inputs: Sequence[Array]) -> Array:
    """The axes behind the batch in another shape."""
    (x,) = inputs
    known = math.prod(size for size in operation.shape if size != -1)
    shape = [math.prod(x.shape[1:]) // max(known, 1) if size == -1 else size for size in operation.shape]
    return x.reshape(x.shape[0], *shape)


def transpose(operation: ops.Transpose, _: Weights, inputs: Sequence[Array]) -> Array:
    """Axes in another order."""
    return inputs[0].transpose(operation.permutation)


def repeat(operation: ops.Repeat, _: Weights, inputs: Sequence[Array]) -> Array:
    """Every sequence step the same."""
    return np.repeat(inputs[0][:, np.newaxis], operation.count, axis=1)


def crop(operation: ops.Crop, _: Weights, inputs: Sequence[Array]) -> Array:
    """Steps cut off at both ends."""
    (x,) = inputs
    for axis, (before, after) in enumerate(operation.amounts, start=1):
        if before + after >= x.shape[axis]:
            raise ValueError(f"cropping {before} and {after} leaves nothing of axis {axis}")
    cuts = [slice(before, x.shape[a] - after) for a, (before, after) in enumerate(operation.amounts, start=1)]
    return x[(slice(None), *cuts)]


def zero_pad(operation: ops.ZeroPad, _: Weights, inputs: Sequence[Array]) -> Array:
    """Zeros put on at both ends."""
    (x,) = inputs
    rest = x.ndim - 1 - len(operation.amounts)
    return np.pad(x, [(0, 0), *operation.amounts, *[(0, 0)] * rest])


def up_sample(operation: ops.UpSample, _: Weights, inputs: Sequence[Array]) -> Array:
    """Every step several times."""
    (x,) = inputs
    for axis, factor in enumerate(operation.factors, start=1):
        x = np.repeat(x, factor, axis=axis)
    return x


def reverse(operation: ops.Reverse, _: Weights, inputs: Sequence[Array]) -> Array:
    """One axis the other way round."""
    return np.flip(inputs[0], axis=operation.axis)


def select(operation: ops.Select, _: Weights, inputs: Sequence[Array]) -> Array:
    """One position of an axis."""
    selected: Array = np.take(inputs[0], operation.index, axis=operation.axis)
    return selected


def concatenate(operation: ops.Concatenate, _: Weights, inputs: Sequence[Array]) -> Array:
    """The inputs one after the other."""
    return np.concatenate(inputs, axis=operation.axis)
