"""Convolutions and pooling: operators that slide a window and want the features on axis 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lstmconvert.frameworks.onnx.graph import Dimension, Value
from lstmconvert.frameworks.onnx.use import Use
from lstmconvert.onnx_proto import Attribute
from lstmconvert.operations import (
    Convolution1D,
    Convolution2D,
    DepthwiseConvolution1D,
    GlobalPooling,
    Padding,
    Pool,
    Pooling,
    SeparableConvolution1D,
)


def _channels_first(rank: int) -> tuple[int, ...]:
    return (0, rank - 1, *range(1, rank - 1))


def output_length(size: Dimension, window: int, stride: int, padding: Padding) -> Dimension:
    """How many places a (dilated) window has on an axis."""
    if padding is not Padding.VALID and stride == 1:
        return size
    if not isinstance(size, int):
        return None
    return (size - window) // stride + 1 if padding is Padding.VALID else -(-size // stride)


def padding_attributes(
    padding: Padding, windows: Sequence[int], strides: Sequence[int]
) -> dict[str, Attribute]:
    """The attributes for padding; ``windows`` with their dilation counted in."""
    if padding is Padding.VALID:
        return {}
    if padding is Padding.CAUSAL:
        return {"pads": [*(window - 1 for window in windows), *[0] * len(windows)]}
    if all(stride == 1 for stride in strides):
        before = [(window - 1) // 2 for window in windows]
        return {"pads": [*before, *(window - 1 - b for window, b in zip(windows, before, strict=True))]}
    return {"auto_pad": "SAME_UPPER"}  # as TensorFlow: ceil(input / stride), the odd one at the end


def _convolved(
    use: Use,
    x: Value,
    kernel: str,
    bias: str,
    features: int,
    windows: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    padding: Padding,
    groups: int,
) -> Value:
    graph, order = use.graph, _channels_first(x.rank)
    reach = [dilation * (window - 1) + 1 for window, dilation in zip(windows, dilations, strict=True)]
    attributes: dict[str, Attribute] = {
        "kernel_shape": list(windows),
        "strides": list(strides),
        "dilations": list(dilations),
        "group": groups,
        **padding_attributes(padding, reach, strides),
    }
    inputs = [graph.ordered(x, order), kernel, *([bias] if bias else [])]
    (name,) = graph.add_main("Conv", inputs, attributes)
    sizes = [output_length(n, r, s, padding) for n, r, s in zip(x.shape[1:-1], reach, strides, strict=True)]
    return Value(name, (x.shape[0], *sizes, features), use.dtype, order)


def convolution(use: Use, operation: Convolution1D | Convolution2D) -> Value:
    """Conv."""
    shape = use.weights["kernel"].shape
    if isinstance(operation, Convolution1D):
        strides: tuple[int, ...] = (operation.stride,)
        dilations: tuple[int, ...] = (operation.dilation,)
    else:
        strides, dilations = operation.strides, operation.dilation
    held = use.tensors(operation)
    (x,) = use.floats()
    y = _convolved(
        use, x, held["kernel"], held.get("bias", ""), shape[0], shape[2:], strides, dilations,
        operation.padding, operation.groups,
    )  # fmt: skip
    return use.activated(y, operation.activation)


def depthwise_convolution(use: Use, operation: DepthwiseConvolution1D) -> Value:
    """Conv with one group for every input feature."""
    features, multiplier, window = use.weights["kernel"].shape
    held = use.tensors(operation)
    (x,) = use.floats()
    y = _convolved(
        use, x, held["kernel"], held.get("bias", ""), features * multiplier, (window,), (operation.stride,),
        (operation.dilation,), operation.padding, features,
    )  # fmt: skip
    return use.activated(y, operation.activation)


def separable_convolution(use: Use, operation: SeparableConvolution1D) -> Value:
    """A Conv with one group for every input feature, then one with a window of one step."""
    features, multiplier, window = use.weights["depthwise_kernel"].shape
    held = use.tensors(operation)
    (x,) = use.floats()
    inner = _convolved(
        use, x, held["depthwise_kernel"], "", features * multiplier, (window,), (operation.stride,),
        (operation.dilation,), operation.padding, features,
    )  # fmt: skip
    y = _convolved(
        use, inner, held["pointwise_kernel"], held.get("bias", ""), use.weights["pointwise_kernel"].shape[0],
        (1,), (1,), (1,), Padding.VALID, 1,
    )  # fmt: skip
    return use.activated(y, operation.activation)


def pooling(use: Use, operation: Pooling) -> Value:
    """MaxPool or AveragePool; an average counts no padding."""
    (x,) = use.floats()
    graph, order = use.graph, _channels_first(x.rank)
    if operation.padding is Padding.CAUSAL:
        raise use.refused("pooling has no causal padding")
    attributes: dict[str, Attribute] = {
        "kernel_shape": list(operation.size),
        "strides": list(operation.strides),
        **padding_attributes(operation.padding, operation.size, operation.strides),
    }
    operator = "MaxPool" if operation.kind is Pool.MAX else "AveragePool"
    (name,) = graph.add_main(operator, [graph.ordered(x, order)], attributes)
    sizes = [
        output_length(n, window, stride, operation.padding)
        for n, window, stride in zip(x.shape[1:-1], operation.size, operation.strides, strict=True)
    ]
    return Value(name, (x.shape[0], *sizes, x.shape[-1]), x.dtype, order)


def global_pooling(use: Use, operation: GlobalPooling) -> Value:
    """ReduceMax, ReduceMean or ReduceSum; with a mask the mean of the valid steps."""
    (x,) = use.floats()
    graph, axes = use.graph, range(1, x.rank - 1)
    keep = operation.keep_axes
    if operation.kind is Pool.AVERAGE and use.mask is not None:
        return _masked_mean(use, x, use.mask, keep=keep)
    physical = sorted(x.axis(axis) for axis in axes)
    operator = {Pool.MAX: "ReduceMax", Pool.AVERAGE: "ReduceMean", Pool.SUM: "ReduceSum"}[operation.kind]
    name = graph.reduce(operator, x.name, physical, keep_axes=keep)
    if keep:
        return replace(x, name=name, shape=(x.shape[0], *[1] * len(axes), x.shape[-1]))
    swapped = x.axis(0) > x.axis(-1)
    return Value(name, (x.shape[0], x.shape[-1]), x.dtype, (1, 0) if swapped else (0, 1))


def _masked_mean(use: Use, x: Value, mask: Value, *, keep: bool) -> Value:
    """Sum over the valid steps by their number: not a number where there is none, as in Keras."""
    graph = use.graph
    logical = graph.ordered(x)
    column = use.add("Unsqueeze", graph.ordered(mask), graph.integers(2))
    valid = use.add("Where", column, logical, use.number(0))
    count = graph.cast(mask.named(column), x.dtype).name
    total = graph.reduce("ReduceSum", valid, [1], keep_axes=keep)
    steps = graph.reduce("ReduceSum", count, [1], keep_axes=keep)
    shape = (x.shape[0], 1, x.shape[2]) if keep else (x.shape[0], x.shape[2])
    return use.value(use.add("Div", total, steps), shape)
