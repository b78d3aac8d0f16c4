"""What each operation computes, one function each, on arrays of one floating dtype.

Source: the layers of the same names in Keras 3.15, which tests/test_interpreter.py runs them against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lstmconvert import operations as ops
from lstmconvert.equations import COMPUTED_IN
from lstmconvert.errors import UnsupportedSource
from lstmconvert.interpreter import attention, moves, normalizations, windows
from lstmconvert.interpreter.convolutional_lstm import convolutional_lstm
from lstmconvert.model import OperationLayer
from lstmconvert.operations import Combination, Operation, Pool
from lstmconvert.tensors import Array

Weights = Mapping[str, Array]
Results = Array | tuple[Array, ...]

_ANY_DTYPE = (
    ops.Concatenate, ops.Crop, ops.Embedding, ops.Flatten, ops.Identity, ops.Masking, ops.Repeat,
    ops.Reshape, ops.Reverse, ops.Select, ops.TimeDistributed, ops.Transpose, ops.UpSample,
    ops.ValidSteps, ops.ZeroPad,
)  # fmt: skip
"""Operations that take whole numbers and masks as they are."""


def run(
    layer: OperationLayer,
    inputs: Sequence[Array],
    *,
    mask: Array | None = None,
    dtype: np.dtype[Any] | None = None,
) -> tuple[Array, ...]:
    """What a call of an operation gives.

    Args:
        layer: the operation and its weights.
        inputs: its inputs.
        mask: true at valid steps, for the operations that heed one.
        dtype: of the computation; by promotion of the floating inputs and weights if not given.

    Raises:
        UnsupportedSource: when a mask reaches an operation that has no rule for one, or a weight is missing.
        ValueError: on shapes that do not fit.
    """
    operation = layer.operation
    inner = operation.inner if isinstance(operation, ops.TimeDistributed) else operation
    if isinstance(inner, ops.Cast):
        return (_cast(inner, inputs[0], dtype),)
    if dtype is None:
        dtype = _working_dtype(layer, inputs)
    weights = {part: lazy.read() for part, lazy in layer.weights.items()}
    weights = {part: array.astype(dtype, copy=False) for part, array in weights.items()}
    try:
        results = _operate(operation, weights, _prepared(operation, inputs, dtype), mask, dtype)
    except KeyError as error:
        raise UnsupportedSource(
            f"{type(operation).__name__} lacks its weight {error.args[0]!r}", place=f"layer {layer.name!r}"
        ) from error
    except UnsupportedSource as error:
        raise error.located(place=f"layer {layer.name!r}") from None
    return results if isinstance(results, tuple) else (results,)


def _working_dtype(layer: OperationLayer, inputs: Sequence[Array]) -> np.dtype[Any]:
    weights = [lazy.dtype if lazy.dtype in COMPUTED_IN else COMPUTED_IN[1] for lazy in layer.weights.values()]
    found = [*weights, *(array.dtype for array in inputs if array.dtype in COMPUTED_IN)]
    return np.result_type(*found) if found else COMPUTED_IN[1]


def _prepared(operation: Operation, inputs: Sequence[Array], dtype: np.dtype[Any]) -> list[Array]:
    """Floating inputs in the dtype of the computation; others too where the operation computes with them."""
    masks = len(operation.masks) if isinstance(operation, _ATTENTION) else 0
    kept_whole = isinstance(operation, _ANY_DTYPE) or (
        isinstance(operation, ops.Combine) and operation.kind is not Combination.AVERAGE
    )
    ahead = len(inputs) - masks
    floating = [
        array.astype(dtype, copy=False) if array.dtype.kind == "f" or not kept_whole else array
        for array in inputs[:ahead]
    ]
    return [*floating, *inputs[ahead:]]


def _operate(
    operation: Operation, weights: Weights, inputs: Sequence[Array], mask: Array | None, dtype: np.dtype[Any]
) -> Results:
    if mask is not None:
        return _masked(operation, inputs, mask)
    if isinstance(operation, ops.TimeDistributed):
        return _time_distributed(operation, weights, inputs, dtype)
    function = _FUNCTIONS.get(type(operation))
    if function is None:
        raise UnsupportedSource(f"the interpreter has no rule for {type(operation).__name__}")
    return function(operation, weights, inputs)


def _masked(operation: Operation, inputs: Sequence[Array], mask: Array) -> Results:
    """The operations that heed a mask; dropping it elsewhere could change a result in silence."""
    valid = mask.astype(bool)
    (x,) = inputs
    match operation:
        case ops.GlobalPooling(kind=Pool.AVERAGE, rank=1, keep_axes=keep):
            if valid.shape != x.shape[:2]:
                raise ValueError(f"the mask has shape {valid.shape}, expected {x.shape[:2]}")
            column = valid[:, :, np.newaxis]
            total = np.where(column, x, x.dtype.type(0)).sum(axis=1, keepdims=keep)
            with np.errstate(invalid="ignore"):  # a sequence without valid steps gives 0 / 0, as in Keras
                mean: Array = total / column.astype(x.dtype).sum(axis=1, keepdims=keep)
            return mean
        case ops.Activate(activation=activation, axis=axis) if activation.kind == "softmax":
            # Keras Softmax: aligned at the last axis; masked places are zero, also where all are.
            shares = _along(activation, np.where(valid, x, np.finfo(x.dtype).min), axis)
            return np.where(valid, shares, x.dtype.type(0))
    raise UnsupportedSource(f"{type(operation).__name__} with a mask is not supported")


# Of the last axis.


def _dense(operation: ops.Dense, weights: Weights, inputs: Sequence[Array]) -> Array:
    return operation.activation(_biased(inputs[0] @ weights["kernel"].T, weights))


def _biased(x: Array, weights: Weights) -> Array:
    return x + weights["bias"] if "bias" in weights else x


def _einsum_dense(operation: ops.EinsumDense, weights: Weights, inputs: Sequence[Array]) -> Array:
    product: Array = np.einsum(operation.equation, inputs[0], weights["kernel"], optimize=True)
    return operation.activation(_biased(product, weights))


def _embedding(operation: ops.Embedding, weights: Weights, inputs: Sequence[Array]) -> Results:
    (x,) = inputs
    table = weights["embeddings"]
    rows = x.astype(np.int64)  # numbers that are not whole are cut off, as Keras does
    if rows.size and not (rows.min() >= 0 and rows.max() < table.shape[0]):
        raise ValueError(f"rows {rows.min()} to {rows.max()} were asked for, the table has {table.shape[0]}")
    found = table[rows]
    return (found, x != 0) if operation.mask_zero else found


def _masking(operation: ops.Masking, _: Weights, inputs: Sequence[Array]) -> Results:
    (x,) = inputs
    # A float32 input that runs in float64 equals the value as float32 has it.
    values = {operation.mask_value, float(np.float32(operation.mask_value))}
    equal = np.logical_or.reduce([x == x.dtype.type(value) for value in values])
    mask: Array = np.any(~equal, axis=-1)
    return np.where(mask[..., np.newaxis], x, x.dtype.type(0)), mask


def _valid_steps(_: ops.ValidSteps, __: Weights, inputs: Sequence[Array]) -> Array:
    lengths, x = inputs
    found: Array = np.arange(x.shape[1]) < lengths[:, np.newaxis]
    return found


# Windows.


def _convolution_1d(operation: ops.Convolution1D, weights: Weights, inputs: Sequence[Array]) -> Array:
    product = windows.correlate(
        inputs[0],
        weights["kernel"],
        (operation.stride,),
        (operation.dilation,),
        operation.padding,
        operation.groups,
    )
    return operation.activation(_biased(product, weights))


def _convolution_2d(operation: ops.Convolution2D, weights: Weights, inputs: Sequence[Array]) -> Array:
    product = windows.correlate(
        inputs[0],
        weights["kernel"],
        operation.strides,
        operation.dilation,
        operation.padding,
        operation.groups,
    )
    return operation.activation(_biased(product, weights))


def _depthwise(operation: ops.DepthwiseConvolution1D, weights: Weights, inputs: Sequence[Array]) -> Array:
    product = windows.correlate_depthwise(
        inputs[0], weights["kernel"], (operation.stride,), (operation.dilation,), operation.padding
    )
    return operation.activation(_biased(product, weights))


def _separable(operation: ops.SeparableConvolution1D, weights: Weights, inputs: Sequence[Array]) -> Array:
    expanded = windows.correlate_depthwise(
        inputs[0], weights["depthwise_kernel"], (operation.stride,), (operation.dilation,), operation.padding
    )
    return operation.activation(_biased(expanded @ weights["pointwise_kernel"].T, weights))


def _pooling(operation: ops.Pooling, _: Weights, inputs: Sequence[Array]) -> Array:
    return windows.pool(inputs[0], operation.kind, operation.size, operation.strides, operation.padding)


_POOLS: Mapping[Pool, Callable[..., Array]] = {Pool.MAX: np.max, Pool.AVERAGE: np.mean, Pool.SUM: np.sum}


def _global_pooling(operation: ops.GlobalPooling, _: Weights, inputs: Sequence[Array]) -> Array:
    (x,) = inputs
    if x.ndim != operation.rank + 2:
        raise ValueError(f"pooling over {operation.rank} axes takes inputs of {operation.rank + 2} axes")
    axes = tuple(range(1, operation.rank + 1))
    result: Array = _POOLS[operation.kind](x, axis=axes, keepdims=operation.keep_axes)
    return result


# Element by element.


def _identity(_: ops.Identity, __: Weights, inputs: Sequence[Array]) -> Array:
    return inputs[0]


def _along(activation: Callable[[Array], Array], x: Array, axis: int) -> Array:
    """An activation of which some act on the last axis, on another one."""
    return np.moveaxis(activation(np.moveaxis(x, axis, -1)), -1, axis)


def _activate(operation: ops.Activate, _: Weights, inputs: Sequence[Array]) -> Array:
    return _along(operation.activation, inputs[0], operation.axis)


def _clamped_relu(operation: ops.ClampedRelu, _: Weights, inputs: Sequence[Array]) -> Array:
    (x,) = inputs
    kind = x.dtype.type
    threshold = kind(operation.threshold)
    passed = np.where(x > threshold, x, kind(0))
    if operation.maximum is not None:
        passed = np.clip(passed, kind(0), kind(operation.maximum))
    if operation.slope:
        passed = passed - kind(operation.slope) * np.maximum(threshold - x, kind(0))
    return np.where(np.isnan(x), x, passed)


def _clip(operation: ops.Clip, _: Weights, inputs: Sequence[Array]) -> Array:
    (x,) = inputs
    kind = x.dtype.type
    if operation.minimum is not None:
        x = np.maximum(x, kind(operation.minimum))
    return x if operation.maximum is None else np.minimum(x, kind(operation.maximum))


def _parametric_relu(_: ops.ParametricRelu, weights: Weights, inputs: Sequence[Array]) -> Array:
    (x,) = inputs
    return np.where(x > 0, x, weights["slope"] * x)


def _cast(operation: ops.Cast, x: Array, dtype: np.dtype[Any] | None) -> Array:
    """To a floating dtype means to that of the computation, where one was asked for."""
    target = np.dtype(operation.dtype)
    floating = target in COMPUTED_IN or target.name == "bfloat16"
    return x.astype(dtype if dtype is not None and floating else target)


_COMBINATIONS: Mapping[Combination, Callable[[Array, Array], Array]] = {
    Combination.ADD: np.add,
    Combination.AVERAGE: np.add,
    Combination.SUBTRACT: np.subtract,
    Combination.MULTIPLY: np.multiply,
    Combination.MAXIMUM: np.maximum,
    Combination.MINIMUM: np.minimum,
    Combination.AND: np.logical_and,
    Combination.OR: np.logical_or,
}


def _combine(operation: ops.Combine, _: Weights, inputs: Sequence[Array]) -> Array:
    rank = max(x.ndim for x in inputs)
    total, *others = (
        x.reshape(*x.shape[:1], *(1,) * (rank - x.ndim), *x.shape[1:]) if x.ndim else x for x in inputs
    )
    for other in others:
        total = _COMBINATIONS[operation.kind](total, other)
    return total / total.dtype.type(len(inputs)) if operation.kind is Combination.AVERAGE else total


def _dot(operation: ops.Dot, _: Weights, inputs: Sequence[Array]) -> Array:
    return attention.dot(operation, inputs)


def _time_distributed(
    operation: ops.TimeDistributed, weights: Weights, inputs: Sequence[Array], dtype: np.dtype[Any]
) -> Results:
    """All steps at once, as a longer batch."""
    batch, time = inputs[0].shape[:2]
    if any(x.shape[:2] != (batch, time) for x in inputs):
        raise ValueError("the inputs differ in batch or steps")
    steps = [x.reshape(batch * time, *x.shape[2:]) for x in inputs]
    inner = operation.inner
    results = _operate(inner, weights, _prepared(inner, steps, dtype), None, dtype)
    if isinstance(results, tuple):
        return tuple(result.reshape(batch, time, *result.shape[1:]) for result in results)
    return results.reshape(batch, time, *results.shape[1:])


_ATTENTION = (ops.Attention, ops.AdditiveAttention, ops.MultiHeadAttention)

_FUNCTIONS: Mapping[type[Operation], Callable[[Any, Weights, Sequence[Array]], Results]] = {
    ops.Dense: _dense,
    ops.EinsumDense: _einsum_dense,
    ops.Embedding: _embedding,
    ops.Masking: _masking,
    ops.ValidSteps: _valid_steps,
    ops.Convolution1D: _convolution_1d,
    ops.Convolution2D: _convolution_2d,
    ops.DepthwiseConvolution1D: _depthwise,
    ops.SeparableConvolution1D: _separable,
    ops.ConvolutionalLstm: convolutional_lstm,
    ops.Pooling: _pooling,
    ops.GlobalPooling: _global_pooling,
    ops.BatchNormalization: normalizations.batch_normalization,
    ops.LayerNormalization: normalizations.layer_normalization,
    ops.GroupNormalization: normalizations.group_normalization,
    ops.Normalization: normalizations.normalization,
    ops.Rescaling: normalizations.rescaling,
    ops.Identity: _identity,
    ops.Activate: _activate,
    ops.ClampedRelu: _clamped_relu,
    ops.Clip: _clip,
    ops.ParametricRelu: _parametric_relu,
    ops.Flatten: moves.flatten,
    ops.Reshape: moves.reshape,
    ops.Transpose: moves.transpose,
    ops.Repeat: moves.repeat,
    ops.Crop: moves.crop,
    ops.ZeroPad: moves.zero_pad,
    ops.UpSample: moves.up_sample,
    ops.Reverse: moves.reverse,
    ops.Select: moves.select,
    ops.Concatenate: moves.concatenate,
    ops.Combine: _combine,
    ops.Dot: _dot,
    ops.Attention: attention.attention,
    ops.AdditiveAttention: attention.additive_attention,
    ops.MultiHeadAttention: attention.multi_head_attention,
}
