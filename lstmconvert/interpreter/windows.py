"""Convolutions and pooling over (batch, *places, features), position by position of the window.

A window of w positions is w matrix products over all places at once: no copy of the input per position.
Padding is TensorFlow's: ``same`` gives ceil(size / stride) places, and the odd one pads the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from lstmconvert.operations import Padding, Pool
from lstmconvert.tensors import Array


def _padding(size: int, reach: int, stride: int, padding: Padding) -> tuple[int, int]:
    if padding is Padding.VALID:
        return 0, 0
    if padding is Padding.CAUSAL:
        return reach - 1, 0
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _positions(
    x: Array,
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: Padding,
    fill: float = 0,
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Every position of the window, with what all the windows hold there (batch, *places, features)."""
    rank = len(window)
    if x.ndim != rank + 2:
        raise ValueError(
            f"a window of {rank} axes takes inputs of {rank + 2} axes, batch and features included"
        )
    if padding is Padding.CAUSAL and rank != 1:
        raise ValueError("causal padding is for one axis")
    reach = [d * (w - 1) + 1 for w, d in zip(window, dilation, strict=True)]
    amounts = [
        _padding(size, r, s, padding) for size, r, s in zip(x.shape[1:-1], reach, strides, strict=True)
    ]
    whole = np.pad(x, [(0, 0), *amounts, (0, 0)], constant_values=fill)
    places = [(size - r) // s + 1 for size, r, s in zip(whole.shape[1:-1], reach, strides, strict=True)]
    if min(places) < 1:
        raise ValueError(f"a window that reaches over {tuple(reach)} does not fit into {x.shape[1:-1]}")
    for position in product(*(range(w) for w in window)):
        cuts = [
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(position, dilation, places, strides, strict=True)
        ]
        yield position, whole[(slice(None), *cuts, slice(None))]


def _at(kernel: Array, position: tuple[int, ...]) -> Array:
    """The numbers at one position of the window, whose axes come last."""
    for index in reversed(position):
        kernel = kernel[..., index]
    return kernel


def correlate(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: Padding,
    groups: int = 1,
) -> Array:
    """Cross-correlation; kernel (output, input / groups, *window)."""
    outputs, inputs = kernel.shape[:2]
    if x.shape[-1] != inputs * groups or outputs % groups:
        raise ValueError(
            f"the kernel takes {inputs} features in each of {groups} groups and gives {outputs}, "
            f"the input has {x.shape[-1]} features"
        )
    blocks = kernel.reshape(groups, outputs // groups, *kernel.shape[1:])
    total: Array | None = None
    for position, part in _positions(x, kernel.shape[2:], strides, dilation, padding):
        weights = _at(blocks, position)  # (group, output / groups, input / groups)
        if groups == 1:
            share = part @ weights[0].T
        else:
            split = part.reshape(*part.shape[:-1], groups, inputs)
            share = (split[..., np.newaxis, :] @ weights.swapaxes(1, 2))[..., 0, :]
            share = share.reshape(*part.shape[:-1], outputs)
        total = share if total is None else total + share
    assert total is not None
    return total


def correlate_depthwise(
    x: Array, kernel: Array, strides: Sequence[int], dilation: Sequence[int], padding: Padding
) -> Array:
    """Each feature on its own; kernel (input, multiplier, *window), output input * multiplier + m."""
    inputs, multiplier = kernel.shape[:2]
    if x.shape[-1] != inputs:
        raise ValueError(f"the kernel takes {inputs} features, the input has {x.shape[-1]}")
    total: Array | None = None
    for position, part in _positions(x, kernel.shape[2:], strides, dilation, padding):
        share = part[..., np.newaxis] * _at(kernel, position)
        total = share if total is None else total + share
    assert total is not None
    return total.reshape(*total.shape[:-2], inputs * multiplier)


def pool(x: Array, kind: Pool, size: Sequence[int], strides: Sequence[int], padding: Padding) -> Array:
    """The largest or the average of the real elements of every window."""
    if padding is Padding.CAUSAL:
        raise ValueError("pooling has no causal padding")
    ones = (1,) * len(size)
    if kind is Pool.MAX:
        parts = (part for _, part in _positions(x, size, strides, ones, padding, -np.inf))
        total = next(parts)
        for part in parts:
            total = np.maximum(total, part)
        return total
    counted = np.ones((1, *x.shape[1:-1], 1), x.dtype)
    return _sum(x, size, strides, padding) / _sum(counted, size, strides, padding)


def _sum(x: Array, size: Sequence[int], strides: Sequence[int], padding: Padding) -> Array:
    parts = (part for _, part in _positions(x, size, strides, (1,) * len(size), padding))
    total: Array = next(parts)
    for part in parts:
        total = total + part
    return total
