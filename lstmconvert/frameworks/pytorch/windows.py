"""Convolutions and pooling: layers that slide a window and want the features on axis 1."""

from __future__ import annotations

from collections.abc import Sequence

from lstmconvert.frameworks.pytorch.source import call, pair
from lstmconvert.frameworks.pytorch.use import Use
from lstmconvert.frameworks.pytorch.values import Value
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
from lstmconvert.shapes import Shape


def _tuple(values: Sequence[int]) -> str:
    return f"({', '.join(map(str, values))}{',' if len(values) == 1 else ''})"


def padded(
    use: Use, x: Value, reach: Sequence[int], strides: Sequence[int], padding: Padding, value: str = ""
) -> Value:
    """The value (features on axis 1) with the zeros that the windows need around it."""
    if padding is Padding.VALID:
        return x
    filled = {"value": value} if value else {}
    sizes = x.shape[1:-1]
    if padding is Padding.CAUSAL:
        return x.named(call("F.pad", x.code, f"({reach[0] - 1}, 0)", **filled))
    if None in sizes and any(stride != 1 for stride in strides):
        helper = use.module.helper("pad_same")
        return x.named(call(helper, x.code, _tuple(reach), _tuple(strides), **filled))
    amounts: list[int] = []
    for size, window, stride in zip(sizes, reach, strides, strict=True):
        steps = 0 if stride == 1 or size is None else (-(-size // stride) - 1) * stride - size + 1
        total = max(steps + window - 1, 0)
        amounts = [total // 2, total - total // 2, *amounts]
    return x.named(call("F.pad", x.code, _tuple(amounts), **filled)) if any(amounts) else x


def _window(
    kind: str,
    sizes: tuple[int, int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    *,
    groups: int,
    bias: bool,
    same: bool,
) -> str:
    named: dict[str, str] = {}
    if any(stride != 1 for stride in strides):
        named["stride"] = pair(strides)
    if same:
        named["padding"] = '"same"'
    if any(d != 1 for d in dilation):
        named["dilation"] = pair(dilation)
    if groups != 1:
        named["groups"] = str(groups)
    if not bias:
        named["bias"] = "False"
    return call(f"nn.{kind}", str(sizes[0]), str(sizes[1]), pair(window), **named)


def _reach(window: Sequence[int], dilation: Sequence[int]) -> list[int]:
    return [d * (w - 1) + 1 for w, d in zip(window, dilation, strict=True)]


def convolution(use: Use, operation: Convolution1D | Convolution2D, shape: Shape) -> Value:
    """Conv1d or Conv2d."""
    outputs, inputs, *window = use.weights["kernel"].shape
    if isinstance(operation, Convolution1D):
        strides: tuple[int, ...] = (operation.stride,)
        dilation: tuple[int, ...] = (operation.dilation,)
    else:
        strides, dilation = operation.strides, operation.dilation
    # torch pads like TensorFlow, the odd one at the end, as long as the stride is 1.
    same = operation.padding is Padding.SAME and all(stride == 1 for stride in strides)
    x = use.first()
    if not same:
        x = padded(use, x, _reach(window, dilation), strides, operation.padding)
    rank = len(window)
    constructor = _window(
        f"Conv{rank}d", (inputs * operation.groups, outputs), window, strides, dilation,
        groups=operation.groups, bias="bias" in use.weights, same=same,
    )  # fmt: skip
    code = call(use.sublayer(constructor, f"convolution_{rank}d"), x.code)
    return use.activated(Value(code, shape, use.dtype, True), operation.activation)


def depthwise_convolution(use: Use, operation: DepthwiseConvolution1D, shape: Shape) -> Value:
    """Conv1d with one group for every input feature."""
    features, multiplier, width = use.weights["kernel"].shape
    same = operation.padding is Padding.SAME and operation.stride == 1
    x = use.first()
    if not same:
        reach = _reach([width], [operation.dilation])
        x = padded(use, x, reach, [operation.stride], operation.padding)
    constructor = _window(
        "Conv1d", (features, features * multiplier), [width], [operation.stride], [operation.dilation],
        groups=features, bias="bias" in use.weights, same=same,
    )  # fmt: skip
    code = call(use.sublayer(constructor, "depthwise_convolution_1d"), x.code)
    return use.activated(Value(code, shape, use.dtype, True), operation.activation)


def separable_convolution(use: Use, operation: SeparableConvolution1D, shape: Shape) -> Value:
    """A Conv1d with one group for every input feature, then one with a window of one step."""
    features, multiplier, width = use.weights["depthwise_kernel"].shape
    outputs = use.weights["pointwise_kernel"].shape[0]
    same = operation.padding is Padding.SAME and operation.stride == 1
    x = use.first()
    if not same:
        reach = _reach([width], [operation.dilation])
        x = padded(use, x, reach, [operation.stride], operation.padding)
    depthwise = _window(
        "Conv1d", (features, features * multiplier), [width], [operation.stride], [operation.dilation],
        groups=features, bias=False, same=same,
    )  # fmt: skip
    pointwise = _window(
        "Conv1d", (features * multiplier, outputs), [1], [1], [1],
        groups=1, bias="bias" in use.weights, same=False,
    )  # fmt: skip
    layer = use.sublayer(call("nn.Sequential", depthwise, pointwise), "separable_convolution_1d")
    return use.activated(Value(call(layer, x.code), shape, use.dtype, True), operation.activation)


def pooling(use: Use, operation: Pooling, shape: Shape) -> Value:
    """MaxPool or AvgPool; an average counts no padding."""
    if operation.padding is Padding.CAUSAL:
        raise use.refused("pooling has no causal padding")
    x = use.first()
    is_max = operation.kind is Pool.MAX
    stride = {} if operation.strides == operation.size else {"stride": pair(operation.strides)}
    kind = "MaxPool" if is_max else "AvgPool"
    layer = use.plain(call(f"nn.{kind}{len(operation.size)}d", pair(operation.size), **stride))
    if operation.padding is Padding.VALID:
        return Value(call(layer, x.code), shape, use.dtype, True)
    value = 'float("-inf")' if is_max else ""
    whole = padded(use, x, operation.size, operation.strides, operation.padding, value)
    if is_max or whole.code == x.code:
        return Value(call(layer, whole.code), shape, use.dtype, True)
    x = use.named(x)
    ones = x.named(f"torch.ones_like({x.code})")
    counted = padded(use, ones, operation.size, operation.strides, operation.padding)
    whole = padded(use, x, operation.size, operation.strides, operation.padding)
    share = use.module.assigned("share", call(layer, counted.code))  # of each window that is no padding
    return Value(f"{call(layer, whole.code)} / {share}", shape, use.dtype, True)


def global_pooling(use: Use, operation: GlobalPooling, shape: Shape) -> Value:
    """The largest, the mean or the sum of all places; with a mask the mean of the valid steps."""
    (x,) = use.floats()
    keep = {"keepdim": "True"} if operation.keep_axes else {}
    if use.mask is not None:
        if operation.kind is not Pool.AVERAGE or operation.rank != 1:
            raise use.refused("only an average over time heeds a mask")
        valid = use.module.assigned("valid", f"{use.mask.in_dtype('bool').operand}.unsqueeze(-1)")
        total = call(f"{x.last().operand}.masked_fill(~{valid}, 0.0).sum", dim="1", **keep)
        total = use.module.assigned("total", total)
        return use.value(f"{total} / {call(f'{valid}.sum', dim='1', **keep)}", shape)
    places = sorted(x.axis(axis) for axis in range(1, operation.rank + 1))
    dim = str(places[0]) if len(places) == 1 else _tuple(places)
    function = {Pool.MAX: "amax", Pool.AVERAGE: "mean", Pool.SUM: "sum"}[operation.kind]
    code = call(f"{x.operand}.{function}", dim=dim, **keep)
    return Value(code, shape, use.dtype, x.channels_first and operation.keep_axes)
