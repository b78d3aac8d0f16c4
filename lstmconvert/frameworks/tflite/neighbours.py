"""Operators beside the recurrent ones, as operations; each acts on the sequences of a batch one by one.

Source: the operators' descriptions in TensorFlow's MLIR dialect ``tfl``, and running LiteRT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.activations import TANH, Activation
from lstmconvert.errors import BadFile
from lstmconvert.frameworks.tflite import kernels
from lstmconvert.frameworks.tflite.kernels import Known
from lstmconvert.frameworks.tflite.use import Flow, NotRead, Shape, Unknown, Use
from lstmconvert.operations import (
    Activate,
    Cast,
    Combination,
    Combine,
    Concatenate,
    Convolution2D,
    Dense,
    Embedding,
    GlobalPooling,
    Padding,
    Pool,
    Pooling,
    Repeat,
    Rescaling,
    Reshape,
    Reverse,
    Select,
    Transpose,
)
from lstmconvert.tensors import Array

if TYPE_CHECKING:
    from lstmconvert.frameworks.tflite.reader import Reader

_SMALL = 1 << 12


def result(
    reader: Reader,
    operator: Mapping[str, Any],
    given: Sequence[Known | Flow | Unknown | None],
    entry: Mapping[str, Any],
) -> Flow:
    """What an operator gives, of which an input is a value of the model.

    Raises:
        NotRead: with the reason.
        BadFile: when the operator and its inputs contradict each other.
    """
    kind = operator["type"]
    rule = _RULES.get(kind)
    if rule is None or len(operator["outputs"]) != 1:
        raise NotRead(f"{kind} is not read beside recurrent layers")
    if "scale" in entry and entry["dtype"] != "float32" and kind != "GATHER":
        raise NotRead(f"{kind} rounds what it gives to {entry['dtype']}")
    use = Use(reader, kind, operator["options"], given, reader.title_of(operator), entry)
    try:
        found = rule(use)
    except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError) as error:
        raise BadFile(f"{kind} does not fit its inputs: {error}", place=entry["name"]) from error
    number = use.options.get("activation", 0)
    if number and kind not in ("FULLY_CONNECTED",):
        function = _fused(number)
        return reader.emit(Activate(function), [found], f"{use.title}/activation", found.shape)
    return found


def folded(kind: str, given: Sequence[Known]) -> Known | None:
    """What an operator makes of constants; ``None`` where that is not known."""
    first = given[0]
    if kind == "DEQUANTIZE":
        if first.tensor.dtype.kind != "f":
            return None
        tensor = first.tensor

        def widened(array: Array) -> Array:
            return array.astype(np.float32)

        return Known(tensor.map(widened, tensor.shape, np.float32), first.quantised, first.scale)
    return None


def _fused(number: int) -> Activation:
    function = kernels.ACTIVATIONS.get(number)
    if function is None:
        raise NotRead("a fused activation that is not known")
    return function


def _dense(use: Use) -> Flow:
    x = use.flow()
    kernel = use.weight(1, "kernel")
    rank = len(x.shape)
    if len(kernel.shape) != 2 or x.shape[-1] != kernel.shape[1] or use.options.get("weights_format"):
        raise NotRead("FULLY_CONNECTED over more than the last axis")
    if rank != 2 and not use.options.get("keep_num_dims"):
        raise NotRead("FULLY_CONNECTED that joins batch and time")
    weights = {"kernel": kernel}
    if len(use.given) > 2 and use.given[2] is not None:
        weights["bias"] = use.weight(2, "bias")
    function = _fused(use.options.get("activation", 0))
    return use.reader.emit(Dense(function), [x], use.title, (*x.shape[:-1], kernel.shape[0]), weights)


def _embedding(use: Use) -> Flow:
    table, ids = use.known(0), use.flow(1)
    axis, dims = use.options.get("axis", 0), use.options.get("batch_dims", 0)
    if len(table.tensor.shape) != 2 or axis or dims:
        raise NotRead("GATHER from something that is not a table of rows")
    weight = use.weight(0, "embeddings")
    return use.reader.emit(
        Embedding(), [ids], use.title, (*ids.shape, weight.shape[1]), {"embeddings": weight}
    )


def _transpose(use: Use) -> Flow:
    order = tuple(use.integers(1))
    value = use.given[0]
    if order == (1, 0, 2) and isinstance(value, Flow) and len(value.shape) == 3:
        return Flow(value.name, value.shape, turned=not value.turned)
    x = use.flow()
    if sorted(order) != list(range(len(x.shape))) or order[:1] != (0,):
        raise NotRead("TRANSPOSE that moves the batch")
    return use.reader.emit(Transpose(order), [x], use.title, tuple(x.shape[n] for n in order))


def _reshape(use: Use) -> Flow:
    x = use.flow()
    wanted = use.integers(1) if len(use.given) > 1 else list(use.options.get("new_shape", ()))
    rest = tuple(wanted[1:])
    if not rest or any(n < -1 or n == 0 for n in wanted) or not all(x.shape[1:]):
        raise NotRead("RESHAPE of a shape that is not understood")
    inner = int(np.prod([n or 1 for n in x.shape[1:]]))
    if -1 in rest:
        if wanted[0] not in (1,):
            raise NotRead("RESHAPE that may join the batch with other axes")
        fixed = int(np.prod([n for n in rest if n > 0]))
        if rest.count(-1) != 1 or inner % fixed:
            raise NotRead("RESHAPE of a shape that is not understood")
        rest = tuple(inner // fixed if n == -1 else n for n in rest)
    if int(np.prod(rest)) != inner:
        raise NotRead("RESHAPE that joins the batch with other axes")
    if rest == x.shape[1:]:
        return x
    return use.reader.emit(Reshape(rest), [x], use.title, (x.shape[0], *rest))


def _reverse(use: Use) -> Flow:
    x = use.flow()
    axes = {n % len(x.shape) for n in use.integers(1)}
    if len(axes) != 1 or 0 in axes:
        raise NotRead("REVERSE_V2 of the batch or of several axes")
    return use.reader.emit(Reverse(axes.pop()), [x], use.title, x.shape)


def _select(use: Use) -> Flow:
    """One index of one axis, all of the others."""
    x = use.flow()
    begin, end, step = (use.integers(n) for n in (1, 2, 3))
    rank = len(x.shape)
    options = use.options
    shrunk = options.get("shrink_axis_mask", 0)
    if (
        len(begin) != rank or any(n != 1 for n in step)
        or options.get("ellipsis_mask") or options.get("new_axis_mask") or options.get("offset")
    ):  # fmt: skip
        raise NotRead("STRIDED_SLICE of a form that is not understood")
    chosen = [n for n in range(rank) if shrunk >> n & 1]
    for n in range(rank):
        whole = options.get("begin_mask", 0) >> n & 1 or begin[n] == 0
        ends = options.get("end_mask", 0) >> n & 1
        if n not in chosen and not (
            whole and (ends or (x.shape[n] is not None and end[n] >= (x.shape[n] or 0)))
        ):
            raise NotRead("STRIDED_SLICE that cuts an axis")
    if len(chosen) != 1 or chosen[0] == 0:
        raise NotRead("STRIDED_SLICE of a form that is not understood")
    (axis,) = chosen
    shape = tuple(n for k, n in enumerate(x.shape) if k != axis)
    return use.reader.emit(Select(axis, begin[axis]), [x], use.title, shape)


def _concatenate(use: Use) -> Flow:
    flows = [use.flow(n) for n in range(len(use.given))]
    rank = len(flows[0].shape)
    axis = use.options.get("axis", 0)
    axis = axis % rank if -rank <= axis < rank else 0
    if axis == 0 or any(len(flow.shape) != rank for flow in flows):
        raise NotRead("CONCATENATION along the batch")
    lengths = [flow.shape[axis] for flow in flows]
    total = None if None in lengths else sum(n or 0 for n in lengths)
    shape = (*flows[0].shape[:axis], total, *flows[0].shape[axis + 1 :])
    return use.reader.emit(Concatenate(axis - rank), flows, use.title, shape)


_COMBINED = {
    "ADD": Combination.ADD, "MUL": Combination.MULTIPLY, "SUB": Combination.SUBTRACT,
    "MAXIMUM": Combination.MAXIMUM, "MINIMUM": Combination.MINIMUM,
}  # fmt: skip


def _combined(use: Use) -> Flow:
    first, second = use.given
    if isinstance(first, Flow) and isinstance(second, Flow):
        a, b = use.flow(0), use.flow(1)
        if len(a.shape) != len(b.shape):
            raise NotRead(f"{use.kind} of values of unequal rank")
        shape = tuple(m if n == 1 else n for m, n in zip(a.shape, b.shape, strict=True))
        return use.reader.emit(Combine(_COMBINED[use.kind]), [a, b], use.title, shape)
    swapped = isinstance(first, Known)
    if swapped and use.kind not in ("ADD", "MUL"):
        raise NotRead(f"{use.kind} of a constant and a value")
    x = use.flow(1 if swapped else 0)
    constant = use.weight(0 if swapped else 1, "constant")
    if constant.size > _SMALL or (constant.size > 1 and constant.shape[-1] != constant.size):
        raise NotRead(f"{use.kind} with a constant that is not one number for each feature")
    if constant.size not in (1, x.shape[-1]) or len(constant.shape) > len(x.shape):
        raise NotRead(f"{use.kind} that widens a value")
    numbers = tuple(float(n) for n in constant.read().ravel())
    told = numbers[0] if len(numbers) == 1 else numbers
    match use.kind:
        case "ADD":
            operation = Rescaling(offset=told)
        case "MUL":
            operation = Rescaling(scale=told)
        case "SUB":
            negative = tuple(-n for n in numbers)
            operation = Rescaling(offset=negative[0] if len(negative) == 1 else negative)
        case _:
            raise NotRead(f"{use.kind} with a constant")
    return use.reader.emit(operation, [x], use.title, x.shape)


def _softmax(use: Use) -> Flow:
    x = use.flow()
    if use.options.get("beta", 0.0) != 1.0:
        raise NotRead("SOFTMAX with a factor")
    return use.reader.emit(Activate(Activation("softmax")), [x], use.title, x.shape)


def _windowed(size: int, window: int, stride: int, padding: Padding) -> int:
    reach = size if padding is Padding.SAME else size - window + 1
    return -(-reach // stride)


def _places(use: Use, window: tuple[int, ...]) -> tuple[Flow, tuple[int, int], Padding, Shape]:
    """The input of a window over (height, width), its strides, its padding and the lengths that come out."""
    x = use.flow()
    strides = (use.options.get("stride_h", 0), use.options.get("stride_w", 0))
    padding = {0: Padding.SAME, 1: Padding.VALID}.get(use.options.get("padding", 0))
    if len(x.shape) != 4 or padding is None or min(strides) < 1 or min(window) < 1:
        raise NotRead(f"{use.kind} of a form that is not understood")
    lengths = tuple(
        None if n is None else _windowed(n, size, stride, padding)
        for n, size, stride in zip(x.shape[1:3], window, strides, strict=True)
    )
    return x, strides, padding, lengths


def _convolution(use: Use) -> Flow:
    """The kernel is (output, height, width, input)."""
    kernel = use.weight(1, "kernel")
    count, height, width, channels = kernel.shape
    dilation = (use.options.get("dilation_h", 1), use.options.get("dilation_w", 1))
    window = tuple((n - 1) * step + 1 for n, step in zip((height, width), dilation, strict=True))
    x, strides, padding, lengths = _places(use, window)
    if x.shape[3] != channels or min(dilation) < 1:
        raise NotRead("CONV_2D over groups of channels")
    shape = (count, channels, height, width)
    weights = {"kernel": kernel.map(lambda a: a.transpose(0, 3, 1, 2), shape)}
    if len(use.given) > 2 and use.given[2] is not None:
        weights["bias"] = use.weight(2, "bias")
    operation = Convolution2D(strides, padding, dilation)
    return use.reader.emit(operation, [x], use.title, (x.shape[0], *lengths, count), weights)


def _pool_2d(kind: Pool) -> Callable[[Use], Flow]:
    def rule(use: Use) -> Flow:
        size = (use.options.get("filter_height", 0), use.options.get("filter_width", 0))
        x, strides, padding, lengths = _places(use, size)
        return use.reader.emit(
            Pooling(kind, size, strides, padding), [x], use.title, (x.shape[0], *lengths, x.shape[3])
        )

    return rule


def _repeat(use: Use) -> Flow:
    """The one step of (batch, 1, features), several times."""
    x = use.flow()
    times = use.integers(1)
    if len(x.shape) != 3 or x.shape[1] != 1 or len(times) != 3 or times[::2] != [1, 1] or times[1] < 1:
        raise NotRead("TILE of a form that is not understood")
    row = use.reader.emit(Reshape((x.shape[2] or -1,)), [x], f"{use.title}/row", (x.shape[0], x.shape[2]))
    shape = (x.shape[0], times[1], x.shape[2])
    return use.reader.emit(Repeat(times[1]), [row], use.title, shape)


def _leaky(use: Use) -> Flow:
    x = use.flow()
    slope = use.options.get("alpha", 0.0)
    return use.reader.emit(Activate(Activation("leaky_relu", float(slope))), [x], use.title, x.shape)


def _function(function: Activation) -> Callable[[Use], Flow]:
    def rule(use: Use) -> Flow:
        x = use.flow()
        return use.reader.emit(Activate(function), [x], use.title, x.shape)

    return rule


def _pooled(kind: Pool) -> Callable[[Use], Flow]:
    def rule(use: Use) -> Flow:
        x = use.flow()
        axes = [n % len(x.shape) for n in use.integers(1)]
        if len(x.shape) != 3 or axes != [1]:
            raise NotRead(f"{use.kind} over other axes than time")
        keep = bool(use.options.get("keep_dims"))
        shape = (x.shape[0], 1, x.shape[2]) if keep else (x.shape[0], x.shape[2])
        return use.reader.emit(GlobalPooling(kind, 1, keep), [x], use.title, shape)

    return rule


def _widened(use: Use) -> Flow:
    """Rows of a quantised table were widened where the table was read."""
    x = use.flow()
    if use.entry["dtype"] != "float32":
        raise NotRead("DEQUANTIZE of a form that is not understood")
    return x


def _cast(use: Use) -> Flow:
    x = use.flow()
    dtype = use.entry["dtype"]
    if dtype not in ("int32", "int64", "float32"):
        raise NotRead(f"CAST to {dtype or 'an unknown dtype'}")
    return use.reader.emit(Cast(dtype), [x], use.title, x.shape)


def _reshaped(use: Use) -> Flow:
    """Axes of length one that come or go, as the file's shapes have them."""
    x = use.flow()
    shape = use.shape(len(use.entry["shape"]))
    inner = [n for n in x.shape[1:] if n != 1]
    if None in shape[1:] or None in inner or [n for n in shape[1:] if n != 1] != inner:
        raise NotRead(f"{use.kind} of a shape that is not understood")
    return use.reader.emit(Reshape(tuple(n or 1 for n in shape[1:])), [x], use.title, shape)


_RULES: Mapping[str, Callable[[Use], Flow]] = {
    "FULLY_CONNECTED": _dense,
    "GATHER": _embedding,
    "TRANSPOSE": _transpose,
    "RESHAPE": _reshape,
    "REVERSE_V2": _reverse,
    "STRIDED_SLICE": _select,
    "CONCATENATION": _concatenate,
    **dict.fromkeys(_COMBINED, _combined),
    "SOFTMAX": _softmax,
    "TILE": _repeat,
    "CONV_2D": _convolution,
    "MAX_POOL_2D": _pool_2d(Pool.MAX),
    "AVERAGE_POOL_2D": _pool_2d(Pool.AVERAGE),
    "LEAKY_RELU": _leaky,
    "LOGISTIC": _function(Activation("sigmoid")),
    "TANH": _function(TANH),
    "RELU": _function(Activation("relu")),
    "RELU_N1_TO_1": _function(Activation("hard_tanh")),
    "RELU6": _function(Activation("clipped_relu", 6.0)),
    "ELU": _function(Activation("elu", 1.0)),
    "EXP": _function(Activation("exponential")),
    "LOG_SOFTMAX": _function(Activation("log_softmax")),
    "MEAN": _pooled(Pool.AVERAGE),
    "REDUCE_MAX": _pooled(Pool.MAX),
    "DEQUANTIZE": _widened,
    "CAST": _cast,
    "EXPAND_DIMS": _reshaped,
    "SQUEEZE": _reshaped,
}
