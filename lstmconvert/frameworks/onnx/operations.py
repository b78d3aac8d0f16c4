"""The neighbours of recurrent layers as plain ONNX operators: which function writes which operation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lstmconvert.frameworks.onnx import (
    attention,
    convolutional,
    masks,
    normalizations,
    shapes,
    windows,
)
from lstmconvert.frameworks.onnx.graph import Dimension, Value, in_order
from lstmconvert.frameworks.onnx.use import Use, fixed
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

_SEVERAL = (Attention, AdditiveAttention, MultiHeadAttention, Embedding, Masking, ConvolutionalLstm)
"""Operations that may give several values, which is not written for every step."""


def write(use: Use, operation: Operation) -> tuple[Value, ...]:
    """Write one use of an operation; the values that it gives.

    Raises:
        NotRepresentable: when ONNX has no operators for it, or not without a loop.
    """
    if use.mask is not None and not isinstance(operation, GlobalPooling):
        raise use.refused(f"{type(operation).__name__} does not heed a mask here")
    match operation:
        case Attention():
            return attention.attention(use, operation)
        case AdditiveAttention():
            return attention.additive_attention(use, operation)
        case MultiHeadAttention():
            return attention.multi_head_attention(use, operation)
        case Embedding():
            return _embedding(use, operation)
        case Masking():
            return _masking(use, operation)
        case ConvolutionalLstm():
            return convolutional.convolutional_lstm(use, operation)
        case _:
            return (_single(use, operation),)


def _single(use: Use, operation: Operation) -> Value:
    """An operation that gives one value."""
    match operation:
        case Dense():
            return _dense(use, operation)
        case EinsumDense():
            return _einsum_dense(use, operation)
        case Identity():
            return use.x
        case Activate():
            (x,) = use.floats()
            return use.activated(x, operation.activation, operation.axis)
        case ClampedRelu():
            return _clamped_relu(use, operation)
        case Clip():
            return _clip(use, operation)
        case ParametricRelu():
            x, held = use.logical(use.x), use.tensors(operation)
            return x.named(use.graph.add_main("PRelu", [x.name, held["slope"]])[0])
        case ValidSteps():
            return masks.of_lengths(use.graph, *use.inputs)
        case Cast():
            return use.graph.cast(use.x, operation.dtype)
        case TimeDistributed():
            return _time_distributed(use, operation)
        case Combine():
            return _combine(use, operation)
        case Dot():
            return attention.dot(use, operation)
        case Convolution1D() | Convolution2D():
            return windows.convolution(use, operation)
        case DepthwiseConvolution1D():
            return windows.depthwise_convolution(use, operation)
        case SeparableConvolution1D():
            return windows.separable_convolution(use, operation)
        case Pooling():
            return windows.pooling(use, operation)
        case GlobalPooling():
            return windows.global_pooling(use, operation)
        case BatchNormalization():
            return normalizations.batch_normalization(use, operation)
        case LayerNormalization():
            return normalizations.layer_normalization(use, operation)
        case GroupNormalization():
            return normalizations.group_normalization(use, operation)
        case Normalization():
            return normalizations.normalization(use, operation)
        case Rescaling():
            return normalizations.rescaling(use, operation)
        case _:
            return _moved(use, operation)


def _moved(use: Use, operation: Operation) -> Value:
    """An operation that computes nothing."""
    match operation:
        case Flatten():
            return shapes.flatten(use)
        case Reshape():
            return shapes.reshape(use, operation)
        case Transpose():
            return shapes.transpose(use, operation)
        case Repeat():
            return shapes.repeat(use, operation)
        case Crop():
            return shapes.crop(use, operation)
        case ZeroPad():
            return shapes.zero_pad(use, operation)
        case UpSample():
            return shapes.up_sample(use, operation)
        case Reverse():
            return shapes.reverse(use, operation)
        case Select():
            return shapes.select(use, operation)
        case Concatenate():
            return shapes.concatenate(use, operation)
    raise use.refused(f"there is no rule for {type(operation).__name__}")


def _dense(use: Use, operation: Dense) -> Value:
    """Gemm for (batch, features), else MatMul and Add."""
    (x,) = use.floats()
    if not x.features_last:
        x = use.graph.in_logical_order(x)
    held = use.tensors(operation)
    if x.rank == 2:
        (name,) = use.graph.add_main(
            "Gemm", [x.name, held["kernel"], *([held["bias"]] if "bias" in held else [])]
        )
    else:
        (name,) = use.graph.add_main("MatMul", [x.name, held["kernel"]])
        if "bias" in held:
            name = use.add("Add", name, held["bias"])
    shape = (*x.shape[:-1], use.weights["kernel"].shape[0])
    return use.activated(replace(x, name=name, shape=shape), operation.activation)


def _einsum_dense(use: Use, operation: EinsumDense) -> Value:
    """Einsum and Add."""
    x, held = use.logical(use.x), use.tensors(operation)
    equation = operation.equation.replace(" ", "")
    inputs, _, result = equation.partition("->")
    left, _, right = inputs.partition(",")
    letters = left.replace("...", "")
    behind = len(left.partition("...")[2]) if "..." in left else len(letters)
    ahead = len(letters) - behind
    sizes: dict[str, Dimension] = dict(zip(right, use.weights["kernel"].shape, strict=True))
    named = (*x.shape[:ahead], *(x.shape[x.rank - behind :] if behind else ()))
    sizes |= {letter: size for letter, size in zip(letters, named, strict=True) if letter not in sizes}
    rest = x.shape[ahead : x.rank - behind]
    front, dots, back = result.partition("...")
    shape = (*(sizes[n] for n in front), *(rest if dots else ()), *(sizes[n] for n in back))
    (name,) = use.graph.add_main("Einsum", [x.name, held["kernel"]], {"equation": equation})
    if "bias" in held:
        name = use.add("Add", name, held["bias"])
    return use.activated(use.value(name, shape), operation.activation)


def _embedding(use: Use, operation: Embedding) -> tuple[Value, ...]:
    """Gather; numbers that are not whole are cut off first, as Keras does."""
    ids, graph = use.x, use.graph
    held = use.tensors(operation)
    whole = ids if ids.dtype in ("int32", "int64") else graph.cast(ids, "int64")
    (name,) = graph.add_main("Gather", [held["embeddings"], whole.name])
    features = use.weights["embeddings"].shape[1]
    value = Value(name, (*ids.shape, features), use.dtype, (*ids.order, ids.rank))
    if ids.rank == 2:
        other = (ids.order[1], ids.order[0], 2)
        moved = graph.transpose(whole.name, (1, 0))
        graph.offer(value, other, lambda: graph.add("Gather", [held["embeddings"], moved]))
    if not operation.mask_zero:
        return (value,)
    zero = graph.constant(np.zeros((), ids.dtype))
    mask = use.add("Not", use.add("Equal", ids.name, zero))
    return value, Value(mask, ids.shape, "bool", ids.order)


def _masking(use: Use, operation: Masking) -> tuple[Value, ...]:
    """The mask any(x != value) and x with masked steps set to zero."""
    (x,) = use.floats()
    graph = use.graph
    if not x.features_last:
        x = graph.in_logical_order(x)
    equal = Value(use.add("Equal", x.name, use.number(operation.mask_value)), x.shape, "bool", x.order)
    counted = graph.cast(equal, "int32").name
    # Masked where the least of "equals the value" over the features is one.
    masked = graph.reduce("ReduceMin", counted, [x.rank - 1], keep_axes=False)
    kept = use.add("Equal", masked, graph.constant(np.zeros((), np.int32)))
    column = use.add("Unsqueeze", kept, graph.integers(x.rank - 1))
    (name,) = graph.add_main("Where", [column, x.name, use.number(0)])
    return x.named(name), Value(kept, x.shape[:-1], "bool", x.order[:-1])


def _clamped_relu(use: Use, operation: ClampedRelu) -> Value:
    (x,) = use.floats()
    slope, threshold, maximum = operation.slope, operation.threshold, operation.maximum
    name = x.name
    if threshold == 0.0 and slope == 0.0:
        name = use.add("Relu", name)
    elif threshold == 0.0:
        name = use.graph.add("LeakyRelu", [name], {"alpha": slope})
    else:
        passes = use.add("Greater", name, use.number(threshold))
        below = use.add("Mul", use.add("Sub", name, use.number(threshold)), use.number(slope))
        name = use.add("Where", passes, name, below if slope else use.number(0))
    if maximum is not None:
        name = use.add("Min", name, use.number(maximum))
    return x.named(name)


def _clip(use: Use, operation: Clip) -> Value:
    (x,) = use.floats()
    bounds = ["" if n is None else use.number(n) for n in (operation.minimum, operation.maximum)]
    while bounds and not bounds[-1]:
        bounds.pop()
    return x.named(use.graph.add_main("Clip", [x.name, *bounds])[0]) if bounds else x


_COMBINATIONS = {
    Combination.ADD: "Add",
    Combination.AVERAGE: "Add",
    Combination.SUBTRACT: "Sub",
    Combination.MULTIPLY: "Mul",
    Combination.MAXIMUM: "Max",
    Combination.MINIMUM: "Min",
    Combination.AND: "And",
    Combination.OR: "Or",
}


def _combine(use: Use, operation: Combine) -> Value:
    """Element by element, two at a time, in the order in which the first input lies."""
    graph = use.graph
    of_masks = operation.kind in (Combination.AND, Combination.OR)
    values = shapes.same_rank(use, use.inputs if of_masks else use.floats())
    first = values[0]
    names = [graph.ordered(value, first.order) for value in values]
    total, *others = names
    for name in others:
        total = use.add(_COMBINATIONS[operation.kind], total, name)
    if operation.kind is Combination.AVERAGE:
        total = use.add("Div", total, use.number(len(values)))
    return replace(first, name=total, shape=shapes.broadcast(tuple(value.shape for value in values)))


def _time_distributed(use: Use, operation: TimeDistributed) -> Value:
    """Operations on the last axis serve all steps at once; others get the steps as a longer batch."""
    inner, x, graph = operation.inner, use.x, use.graph
    on_features = (Dense, Identity, Cast, ClampedRelu, Clip, Rescaling, TimeDistributed)
    along_last = isinstance(inner, (Activate, BatchNormalization)) and inner.axis == -1
    trailing = isinstance(inner, LayerNormalization) and all(axis < 0 for axis in inner.axes)
    if x.rank > 2 and (isinstance(inner, on_features) or along_last or trailing):
        return _single(use, inner)
    if isinstance(inner, Embedding) and not inner.mask_zero:
        return _embedding(use, inner)[0]
    if isinstance(inner, _SEVERAL):
        raise use.refused(f"{type(inner).__name__} for every step")
    whole = graph.in_logical_order(x)
    rest = [fixed(use, size, f"axis {axis}") for axis, size in enumerate(x.shape) if axis > 1]
    long = use.add("Reshape", whole.name, graph.integers(-1, *rest))
    steps = Value(long, (None, *rest), x.dtype, in_order(x.rank - 1))
    result = graph.in_logical_order(_single(use.inner(steps), inner))
    sizes = [
        graph.integers(fixed(use, size, f"axis {axis} of a step's result"))
        for axis, size in enumerate(result.shape)
        if axis
    ]
    lead = [graph.size(whole.name, 0), graph.size(whole.name, 1)]
    name = use.add("Reshape", result.name, graph.add("Concat", [*lead, *sizes], {"axis": 0}))
    return Value(name, (*x.shape[:2], *result.shape[1:]), result.dtype, in_order(result.rank + 1))
