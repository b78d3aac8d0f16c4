"""The neighbours of recurrent layers in torch: which function writes which operation."""

from __future__ import annotations

from collections.abc import Callable

from lstmconvert.frameworks.pytorch import attention, moves, normalizations, windows
from lstmconvert.frameworks.pytorch.convolutional_lstm import convolutional_lstm
from lstmconvert.frameworks.pytorch.source import call, number
from lstmconvert.frameworks.pytorch.use import Use
from lstmconvert.frameworks.pytorch.values import Value, is_floating
from lstmconvert.operations import (
    Activate,
    AdditiveAttention,
    Attention,
    BatchNormalization,
    Cast,
    ClampedRelu,
    Clip,
    Combination,
    Combine,
    Concatenate,
    Convolution1D,
    Convolution2D,
    ConvolutionalLstm,
    Crop,
    Dense,
    DepthwiseConvolution1D,
    Dot,
    EinsumDense,
    Embedding,
    Flatten,
    GlobalPooling,
    GroupNormalization,
    Identity,
    LayerNormalization,
    Masking,
    MultiHeadAttention,
    Noise,
    Normalization,
    Operation,
    ParametricRelu,
    Pooling,
    Repeat,
    Rescaling,
    Reshape,
    Reverse,
    Select,
    SeparableConvolution1D,
    TimeDistributed,
    Transpose,
    UpSample,
    ValidSteps,
    ZeroPad,
)
from lstmconvert.shapes import Shape

_ON_FEATURES = (Dense, Identity, Cast, ClampedRelu, Clip, Rescaling, Normalization)
"""Operations that serve all steps of a sequence at once."""


def write(use: Use, operation: Operation, shapes: list[Shape]) -> list[Value]:
    """Write a call of an operation; what it gives, in the order of ``Call.outputs``.

    Args:
        use: the call.
        operation: what is called.
        shapes: of the results, features last.

    Raises:
        NotRepresentable: where there is no rule.
    """
    if use.mask is not None and not isinstance(operation, (GlobalPooling, Activate)):
        raise use.refused(f"{type(operation).__name__} does not heed a mask here")
    match operation:
        case Embedding():
            return _embedding(use, operation, shapes)
        case Masking():
            return _masking(use, operation)
        case Attention() | AdditiveAttention():
            return attention.attention(use, operation, shapes)
        case MultiHeadAttention():
            return attention.multi_head_attention(use, operation, shapes)
        case ConvolutionalLstm():
            return convolutional_lstm(use, operation, shapes)
        case TimeDistributed():
            return [_time_distributed(use, operation, shapes[0])]
    function = _FUNCTIONS.get(type(operation))
    if function is None:
        raise use.refused(f"there is no rule for {type(operation).__name__}")
    return [function(use, operation, shapes[0])]


# Of the last axis.


def _dense(use: Use, operation: Dense, shape: Shape) -> Value:
    outputs, inputs = use.weights["kernel"].shape
    bias = {} if "bias" in use.weights else {"bias": "False"}
    layer = use.sublayer(call("nn.Linear", str(inputs), str(outputs), **bias), "dense")
    return use.activated(use.value(call(layer, use.last().code), shape), operation.activation)


def _einsum_dense(use: Use, operation: EinsumDense, shape: Shape) -> Value:
    equation = "".join(c for c in operation.equation if c.isascii() and (c.isalpha() or c in ",.->"))
    code = call("torch.einsum", f'"{equation}"', use.last().code, use.parameter("kernel"))
    if "bias" in use.weights:
        code = f"{code} + {use.parameter('bias')}"
    return use.activated(use.value(code, shape), operation.activation)


def _embedding(use: Use, operation: Embedding, shapes: list[Shape]) -> list[Value]:
    """Numbers that are not whole are cut off first, as Keras does."""
    vocabulary, features = use.weights["embeddings"].shape
    layer = use.sublayer(call("nn.Embedding", str(vocabulary), str(features)), "embedding")
    rows = use.x.last()
    whole = rows if rows.dtype in ("int32", "int64") else rows.in_dtype("int64")
    results = [use.value(call(layer, whole.code), shapes[0])]
    if operation.mask_zero:
        results.append(use.value(f"{rows.operand} != 0", rows.shape, "bool"))
    return results


def _masking(use: Use, operation: Masking) -> list[Value]:
    x = use.named(use.last(), "steps")
    mask = use.module.assigned("mask", f"({x.code} != {number(operation.mask_value)}).any(dim=-1)")
    filled = f"{x.code}.masked_fill(~{mask}.unsqueeze(-1), 0.0)"
    return [x.named(filled), Value(mask, x.shape[:-1], "bool")]


def _valid_steps(use: Use, operation: ValidSteps, shape: Shape) -> Value:
    del operation
    lengths, steps = use.inputs[0], use.named(use.inputs[1].last(), "steps")
    lengths = use.named(lengths, "lengths")
    numbers = f"torch.arange({steps.code}.shape[1], device={lengths.code}.device)"
    return use.named(Value(f"{numbers} < {lengths.code}.unsqueeze(1)", shape, "bool"), "mask")


# Element by element.

_NOISES = {Noise.DROPOUT: "nn.Dropout", Noise.ALPHA_DROPOUT: "nn.AlphaDropout"}


def _identity(use: Use, operation: Identity, shape: Shape) -> Value:
    del shape
    x = use.x
    if not 0.0 < operation.rate <= 1.0 or not is_floating(x.dtype):
        return x
    rate = repr(float(operation.rate))
    if operation.noise in _NOISES:
        return x.named(call(use.plain(call(_NOISES[operation.noise], rate)), x.code))
    if operation.noise is Noise.SPATIAL_DROPOUT and x.rank in (3, 4):
        x = x.first()
        return x.named(call(use.plain(call(f"nn.Dropout{x.rank - 2}d", rate)), x.code))
    return x  # the noises that torch has no layer for; they act in training only


def _activate(use: Use, operation: Activate, shape: Shape) -> Value:
    del shape
    (x,) = use.floats()
    if use.mask is None:
        return use.activated(x, operation.activation, operation.axis)
    if operation.activation.kind != "softmax":
        raise use.refused(f"{operation.activation} does not heed a mask")
    x = use.named(x.last())
    masked = f"~{use.mask.operand}"
    filled = x.named(f"{x.code}.masked_fill({masked}, torch.finfo({x.code}.dtype).min)")
    result = use.activated(filled, operation.activation, operation.axis)
    return result.named(f"{result.code}.masked_fill({masked}, 0.0)")


def _clamped_relu(use: Use, operation: ClampedRelu, shape: Shape) -> Value:
    del shape
    (x,) = use.floats()
    slope, threshold, maximum = operation.slope, operation.threshold, operation.maximum
    if threshold == 0.0 and slope == 0.0:
        return x.named(
            f"{x.operand}.clamp(0.0, {number(maximum)})" if maximum is not None else f"torch.relu({x.code})"
        )
    if threshold == 0.0 and maximum is None:
        return x.named(f"F.leaky_relu({x.code}, {number(slope)})")
    x = use.named(x)
    passed = f"torch.where({x.code} <= {number(threshold)}, 0.0, {x.code})"
    if maximum is not None:
        passed += f".clamp(0.0, {number(maximum)})"
    if slope:
        passed += f" - {number(slope)} * ({number(threshold)} - {x.code}).clamp(min=0.0)"
    return x.named(passed)


def _clip(use: Use, operation: Clip, shape: Shape) -> Value:
    del shape
    (x,) = use.floats()
    bounds = (("min", operation.minimum), ("max", operation.maximum))
    given = ", ".join(f"{name}={number(bound)}" for name, bound in bounds if bound is not None)
    return x.named(f"{x.operand}.clamp({given})") if given else x


def _parametric_relu(use: Use, operation: ParametricRelu, shape: Shape) -> Value:
    del operation, shape
    x = use.named(use.last())
    return x.named(f"torch.where({x.code} > 0, {x.code}, {use.parameter('slope')} * {x.code})")


def _rescaling(use: Use, operation: Rescaling, shape: Shape) -> Value:
    del shape
    x = use.last()
    several = isinstance(operation.scale, tuple) or isinstance(operation.offset, tuple)
    x = use.named(x) if several else x
    code = x.operand
    for sign, amount, neutral in (("*", operation.scale, 1.0), ("+", operation.offset, 0.0)):
        if isinstance(amount, tuple):
            code = f"{code} {sign} {x.code}.new_tensor([{', '.join(map(number, amount))}])"
        elif amount != neutral:
            code = f"{code} {sign} {number(amount)}"
    return x.named(code)


def _cast(use: Use, operation: Cast, shape: Shape) -> Value:
    del shape
    return use.x.in_dtype(operation.dtype)


# Of several inputs.

_OPERATORS = {
    Combination.ADD: "+",
    Combination.AVERAGE: "+",
    Combination.SUBTRACT: "-",
    Combination.MULTIPLY: "*",
    Combination.AND: "&",
    Combination.OR: "|",
}
_PAIRWISE = {Combination.MAXIMUM: "torch.maximum", Combination.MINIMUM: "torch.minimum"}


def _alike(use: Use) -> tuple[Value, ...]:
    """The inputs in one dtype, and all features first only where all are."""
    values = use.inputs if len({value.dtype for value in use.inputs}) == 1 else use.floats()
    if all(value.channels_first for value in values) and len({value.rank for value in values}) == 1:
        return values
    return tuple(value.last() for value in values)


def _combine(use: Use, operation: Combine, shape: Shape) -> Value:
    values = _alike(use)
    if operation.kind is Combination.AVERAGE:
        values = tuple(value if is_floating(value.dtype) else value.in_dtype(use.dtype) for value in values)
    rank = max(value.rank for value in values)
    codes = [value.operand + ".unsqueeze(1)" * (rank - value.rank if value.rank else 0) for value in values]
    if operation.kind in _PAIRWISE:
        total = codes[0]
        for code in codes[1:]:
            total = call(_PAIRWISE[operation.kind], total, code)
    else:
        total = f" {_OPERATORS[operation.kind]} ".join(codes)
    if operation.kind is Combination.AVERAGE:
        total = f"({total}) / {len(values)}"
    return Value(total, shape, values[0].dtype, values[0].channels_first)


def _concatenate(use: Use, operation: Concatenate, shape: Shape) -> Value:
    values = _alike(use)
    at = values[0].axis(operation.axis)
    dim = -1 if at == values[0].rank - 1 else at
    code = call("torch.cat", f"[{', '.join(value.code for value in values)}]", dim=str(dim))
    return Value(code, shape, values[0].dtype, values[0].channels_first)


# Every step.


def _time_distributed(use: Use, operation: TimeDistributed, shape: Shape) -> Value:
    """Operations on the last axis serve all steps at once; others get the steps as a longer batch."""
    inner, x = operation.inner, use.x
    along_last = isinstance(inner, (Activate, BatchNormalization)) and inner.axis == -1
    trailing = isinstance(inner, LayerNormalization) and all(axis < 0 for axis in inner.axes)
    at_once = isinstance(inner, _ON_FEATURES) or along_last or trailing
    if (x.rank > 2 and at_once) or (isinstance(inner, Embedding) and not inner.mask_zero):
        return write(use, inner, [shape])[0]
    if isinstance(inner, TimeDistributed):
        raise use.refused("a TimeDistributed inside another, around such a layer")
    x = use.named(x.last(), "sequence")
    steps = Value(f"{x.code}.flatten(0, 1)", (None, *x.shape[2:]), x.dtype)
    result = use.named(write(use.inner(steps), inner, [(None, *shape[2:])])[0], "steps").last()
    return Value(f"{result.operand}.unflatten(0, {x.code}.shape[:2])", shape, result.dtype)


_FUNCTIONS: dict[type[Operation], Callable[..., Value]] = {
    Dense: _dense,
    EinsumDense: _einsum_dense,
    ValidSteps: _valid_steps,
    Identity: _identity,
    Activate: _activate,
    ClampedRelu: _clamped_relu,
    Clip: _clip,
    ParametricRelu: _parametric_relu,
    Rescaling: _rescaling,
    Cast: _cast,
    Combine: _combine,
    Concatenate: _concatenate,
    Dot: attention.dot,
    Convolution1D: windows.convolution,
    Convolution2D: windows.convolution,
    DepthwiseConvolution1D: windows.depthwise_convolution,
    SeparableConvolution1D: windows.separable_convolution,
    Pooling: windows.pooling,
    GlobalPooling: windows.global_pooling,
    BatchNormalization: normalizations.batch_normalization,
    LayerNormalization: normalizations.layer_normalization,
    GroupNormalization: normalizations.group_normalization,
    Normalization: normalizations.normalization,
    Flatten: moves.flatten,
    Reshape: moves.reshape,
    Transpose: moves.transpose,
    Repeat: moves.repeat,
    Crop: moves.crop,
    ZeroPad: moves.zero_pad,
    UpSample: moves.up_sample,
    Reverse: moves.reverse,
    Select: moves.select,
}
