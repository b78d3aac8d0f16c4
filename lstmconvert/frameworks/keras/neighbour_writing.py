"""A neighbour of the recurrent layers as a layer of Keras 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from lstmconvert import layout as layouts
from lstmconvert import mapping
from lstmconvert import operations as ops
from lstmconvert.frameworks.keras import activation_names
from lstmconvert.frameworks.keras.layer_to_write import (
    OPERATORS,
    LayerToWrite,
    TensorToWrite,
    activation_name,
    refuse,
)
from lstmconvert.frameworks.keras.recurrent import snake
from lstmconvert.model import OperationLayer
from lstmconvert.operations import Noise, Operation
from lstmconvert.shapes import Shape

Writer = Callable[[Any, OperationLayer, Shape], LayerToWrite]
_WRITERS: dict[type[Operation], Writer] = {}
_T = TypeVar("_T", bound=Writer)


def _writes(*kinds: type[Operation]) -> Callable[[_T], _T]:
    def register(writer: _T) -> _T:
        _WRITERS.update(dict.fromkeys(kinds, writer))
        return writer

    return register


def neighbour(layer: OperationLayer, output: Shape, dtype: str) -> LayerToWrite:
    """A neighbour.

    Args:
        layer: it.
        output: shape of its first output.
        dtype: of the model.

    Raises:
        NotRepresentable: naming what Keras lacks.
    """
    if isinstance(layer.operation, ops.TimeDistributed):
        return _time_distributed(layer.operation, layer, output, dtype)
    writer = _WRITERS.get(type(layer.operation))
    if writer is None:
        raise refuse(layer.name, f"no layer for {type(layer.operation).__name__}")
    return writer(layer.operation, layer, output)


def _time_distributed(
    operation: ops.TimeDistributed, layer: OperationLayer, output: Shape, dtype: str
) -> LayerToWrite:
    inner = neighbour(replace(layer, operation=operation.inner), (output[0], *output[2:]), dtype)
    if inner.is_operator:
        raise refuse(layer.name, f"no layer for {type(operation.inner).__name__} inside TimeDistributed")
    name = snake(inner.class_name)
    config = {"name": name, "trainable": True, "dtype": dtype, **inner.config}
    data = {"module": inner.module, "class_name": inner.class_name, "config": config, "registered_name": None}
    tensors = tuple(
        replace(t, path=f"layer/{t.path}" if t.path else "layer", name=f"{name}/{t.name}")
        for t in inner.tensors
    )
    return LayerToWrite("TimeDistributed", {"layer": data}, tensors)


def _packed(layer: OperationLayer, layout: str, *, frozen: tuple[str, ...] = ()) -> tuple[TensorToWrite, ...]:
    try:
        tensors = layouts.pack_operation(mapping.load("keras").layouts[layout], layer.weights)
    except ValueError as error:
        raise refuse(layer.name, str(error)) from error
    return tuple(TensorToWrite("", name, lazy, name not in frozen) for name, lazy in tensors.items())


def _plain(layer: OperationLayer, **names: str) -> tuple[TensorToWrite, ...]:
    """Parts that are stored as they are, under the names that Keras has for them, in that order."""
    return tuple(
        TensorToWrite("", name, layer.weights[part]) for part, name in names.items() if part in layer.weights
    )


def _layer(class_name: str, tensors: tuple[TensorToWrite, ...] = (), **config: Any) -> LayerToWrite:
    return LayerToWrite(class_name, config, tensors)


@_writes(ops.Dense)
def _dense(operation: ops.Dense, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del output
    return _layer(
        "Dense",
        _packed(layer, "dense"),
        units=layer.weights["kernel"].shape[0],
        activation=activation_name(operation.activation, layer.name),
        use_bias="bias" in layer.weights,
    )


@_writes(ops.EinsumDense)
def _einsum_dense(operation: ops.EinsumDense, layer: OperationLayer, output: Shape) -> LayerToWrite:
    bias = layer.weights.get("bias")
    result = operation.equation.replace(" ", "").split("->")[1]
    letters = result.replace("...", "")
    # Sizes of the letters behind the batch or the dots; from the right, where nothing is left open.
    own = letters if result.startswith("...") else letters[1:]
    axes = None
    if bias is not None:
        rank = len(bias.shape)
        last = letters[-rank:] if rank else ""
        axes = "".join(a for a, n in zip(last, bias.shape, strict=True) if n > 1) or last[-1:]
    return _layer(
        "EinsumDense",
        _plain(layer, kernel="kernel", bias="bias"),
        equation=operation.equation,
        output_shape=list(output[len(output) - len(own) :]),
        activation=activation_name(operation.activation, layer.name),
        bias_axes=axes,
    )


@_writes(ops.Embedding)
def _embedding(operation: ops.Embedding, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del output
    vocabulary, features = layer.weights["embeddings"].shape
    return _layer(
        "Embedding",
        _packed(layer, "embedding"),
        input_dim=vocabulary,
        output_dim=features,
        mask_zero=operation.mask_zero,
    )


@_writes(ops.Masking)
def _masking(operation: ops.Masking, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    return _layer("Masking", mask_value=operation.mask_value)


@_writes(ops.Convolution1D)
def _convolution_1d(operation: ops.Convolution1D, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del output
    filters, _, width = layer.weights["kernel"].shape
    return _layer(
        "Conv1D",
        _packed(layer, "convolution_1d"),
        filters=filters,
        kernel_size=[width],
        strides=[operation.stride],
        padding=str(operation.padding),
        dilation_rate=[operation.dilation],
        groups=operation.groups,
        activation=activation_name(operation.activation, layer.name),
        use_bias="bias" in layer.weights,
    )


@_writes(ops.Convolution2D)
def _convolution_2d(operation: ops.Convolution2D, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del output
    filters, _, height, width = layer.weights["kernel"].shape
    return _layer(
        "Conv2D",
        _packed(layer, "convolution_2d"),
        filters=filters,
        kernel_size=[height, width],
        strides=list(operation.strides),
        padding=str(operation.padding),
        dilation_rate=list(operation.dilation),
        groups=operation.groups,
        activation=activation_name(operation.activation, layer.name),
        use_bias="bias" in layer.weights,
    )


@_writes(ops.DepthwiseConvolution1D)
def _depthwise(operation: ops.DepthwiseConvolution1D, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del output
    _, multiplier, width = layer.weights["kernel"].shape
    return _layer(
        "DepthwiseConv1D",
        _packed(layer, "depthwise_convolution_1d"),
        kernel_size=width,
        strides=operation.stride,
        padding=str(operation.padding),
        depth_multiplier=multiplier,
        dilation_rate=operation.dilation,
        activation=activation_name(operation.activation, layer.name),
        use_bias="bias" in layer.weights,
    )


@_writes(ops.SeparableConvolution1D)
def _separable(operation: ops.SeparableConvolution1D, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del output
    _, multiplier, width = layer.weights["depthwise_kernel"].shape
    return _layer(
        "SeparableConv1D",
        _packed(layer, "separable_convolution_1d"),
        filters=layer.weights["pointwise_kernel"].shape[0],
        kernel_size=width,
        strides=operation.stride,
        padding=str(operation.padding),
        depth_multiplier=multiplier,
        dilation_rate=operation.dilation,
        activation=activation_name(operation.activation, layer.name),
        use_bias="bias" in layer.weights,
    )


@_writes(ops.ConvolutionalLstm)
def _convolutional_lstm(
    operation: ops.ConvolutionalLstm, layer: OperationLayer, output: Shape
) -> LayerToWrite:
    del output
    names = {"kernel": "kernel", "recurrent": "recurrent_kernel", "bias": "bias"}
    kernel = layer.weights["kernel"].shape
    return _layer(
        f"ConvLSTM{operation.rank}D",
        tuple(replace(tensor, path="cell") for tensor in _plain(layer, **names)),
        filters=kernel[-1] // 4,
        kernel_size=list(kernel[: operation.rank]),
        strides=list(operation.strides),
        padding=str(operation.padding),
        dilation_rate=list(operation.dilation),
        activation=activation_name(operation.activation, layer.name),
        recurrent_activation=activation_name(operation.recurrent_activation, layer.name),
        use_bias="bias" in layer.weights,
        return_sequences=operation.return_sequences,
        return_state=operation.return_state,
        go_backwards=operation.go_backwards,
    )


@_writes(ops.Pooling)
def _pooling(operation: ops.Pooling, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    kind = {ops.Pool.MAX: "Max", ops.Pool.AVERAGE: "Average"}[operation.kind]
    return _layer(
        f"{kind}Pooling{len(operation.size)}D",
        pool_size=list(operation.size),
        strides=list(operation.strides),
        padding=str(operation.padding),
    )


@_writes(ops.GlobalPooling)
def _global_pooling(operation: ops.GlobalPooling, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    if operation.kind is ops.Pool.SUM:
        axes = list(range(1, operation.rank + 1))
        config = {"axis": axes[0] if len(axes) == 1 else axes, "keepdims": operation.keep_axes}
        return LayerToWrite("Sum", config, (), OPERATORS)
    kind = {ops.Pool.MAX: "Max", ops.Pool.AVERAGE: "Average"}[operation.kind]
    return _layer(f"Global{kind}Pooling{operation.rank}D", keepdims=operation.keep_axes)


_MOVING = ("moving_mean", "moving_variance")


@_writes(ops.BatchNormalization)
def _batch_normalization(
    operation: ops.BatchNormalization, layer: OperationLayer, output: Shape
) -> LayerToWrite:
    del output
    return _layer(
        "BatchNormalization",
        _packed(layer, "batch_normalization", frozen=_MOVING),
        axis=operation.axis,
        momentum=operation.momentum,
        epsilon=operation.epsilon,
        center="offset" in layer.weights,
        scale="scale" in layer.weights,
    )


@_writes(ops.LayerNormalization)
def _layer_normalization(
    operation: ops.LayerNormalization, layer: OperationLayer, output: Shape
) -> LayerToWrite:
    del output
    if operation.root_mean_square:
        if set(layer.weights) != {"scale"}:
            raise refuse(layer.name, "RMSNormalization has a scale and no offset")
        (axis, *others) = operation.axes
        if others:
            raise refuse(layer.name, "RMSNormalization over several axes")
        return _layer("RMSNormalization", _plain(layer, scale="scale"), axis=axis, epsilon=operation.epsilon)
    return _layer(
        "LayerNormalization",
        _plain(layer, scale="gamma", offset="beta"),
        axis=list(operation.axes),
        epsilon=operation.epsilon,
        center="offset" in layer.weights,
        scale="scale" in layer.weights,
    )


@_writes(ops.GroupNormalization)
def _group_normalization(
    operation: ops.GroupNormalization, layer: OperationLayer, output: Shape
) -> LayerToWrite:
    del output
    return _layer(
        "GroupNormalization",
        _packed(layer, "group_normalization"),
        groups=operation.groups,
        axis=operation.axis,
        epsilon=operation.epsilon,
        center="offset" in layer.weights,
        scale="scale" in layer.weights,
    )


@_writes(ops.Normalization)
def _normalization(operation: ops.Normalization, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del output
    numbers = {part: layer.weights[part].read().tolist() for part in ("mean", "variance")}
    return _layer("Normalization", axis=-1, invert=operation.invert, **numbers)


@_writes(ops.Rescaling)
def _rescaling(operation: ops.Rescaling, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    scale, offset = (list(v) if isinstance(v, tuple) else v for v in (operation.scale, operation.offset))
    return _layer("Rescaling", scale=scale, offset=offset)


@_writes(ops.Identity)
def _identity(operation: ops.Identity, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer
    match operation.noise:
        case None:
            return _layer("Identity")
        case Noise.SPATIAL_DROPOUT:
            return _layer(f"SpatialDropout{max(1, len(output) - 2)}D", rate=operation.rate)
        case Noise.GAUSSIAN_NOISE:
            return _layer("GaussianNoise", stddev=operation.rate)
        case Noise.ACTIVITY_REGULARIZATION:
            return _layer("ActivityRegularization")
        case Noise.DROPOUT:
            return _layer("Dropout", rate=operation.rate)
        case Noise.ALPHA_DROPOUT:
            return _layer("AlphaDropout", rate=operation.rate)
        case Noise.GAUSSIAN_DROPOUT:
            return _layer("GaussianDropout", rate=operation.rate)


@_writes(ops.Activate)
def _activate(operation: ops.Activate, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del output
    activation = operation.activation
    if activation.kind == "softmax" and operation.axis != -1:
        return _layer("Softmax", axis=operation.axis)
    if activation_names.write(activation) is None:
        match activation.kind:
            case "leaky_relu":
                return _layer("LeakyReLU", negative_slope=activation.alpha)
            case "elu":
                return _layer("ELU", alpha=activation.alpha)
            case "clipped_relu":
                return _layer("ReLU", max_value=activation.alpha)
            case "thresholded_relu":
                return _layer("ReLU", threshold=activation.alpha)
            case "affine":
                return _layer("Rescaling", scale=activation.alpha, offset=activation.beta)
            case _:
                pass
    return _layer("Activation", activation=activation_name(activation, layer.name))


@_writes(ops.ClampedRelu)
def _clamped_relu(operation: ops.ClampedRelu, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    return _layer(
        "ReLU", max_value=operation.maximum, negative_slope=operation.slope, threshold=operation.threshold
    )


@_writes(ops.ParametricRelu)
def _parametric_relu(operation: ops.ParametricRelu, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del operation
    slope = layer.weights["slope"].shape
    if len(slope) != len(output) - 1:
        raise refuse(layer.name, f"PReLU has a slope of {len(output) - 1} axes, not {len(slope)}")
    shared = [axis for axis, (n, size) in enumerate(zip(slope, output[1:], strict=True), 1) if n == 1 != size]
    return _layer("PReLU", _plain(layer, slope="alpha"), shared_axes=shared or None)


@_writes(ops.Flatten)
def _flatten(operation: ops.Flatten, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del operation, layer, output
    return _layer("Flatten")


@_writes(ops.Reshape)
def _reshape(operation: ops.Reshape, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    return _layer("Reshape", target_shape=list(operation.shape))


@_writes(ops.Transpose)
def _transpose(operation: ops.Transpose, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    if operation.permutation[0] != 0:
        return LayerToWrite("Transpose", {"axes": list(operation.permutation)}, (), OPERATORS)
    return _layer("Permute", dims=list(operation.permutation[1:]))


@_writes(ops.Clip)
def _clip(operation: ops.Clip, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    least = -math.inf if operation.minimum is None else operation.minimum
    largest = math.inf if operation.maximum is None else operation.maximum
    return LayerToWrite("Clip", {"x_min": least, "x_max": largest}, (), OPERATORS)


@_writes(ops.Reverse)
def _reverse(operation: ops.Reverse, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    return LayerToWrite("Flip", {"axis": operation.axis}, (), OPERATORS)


@_writes(ops.Select)
def _select(operation: ops.Select, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    return LayerToWrite("Take", {"axis": operation.axis}, (), OPERATORS)


@_writes(ops.Repeat)
def _repeat(operation: ops.Repeat, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    return _layer("RepeatVector", n=operation.count)


@_writes(ops.Crop)
def _crop(operation: ops.Crop, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    amounts = [list(pair) for pair in operation.amounts]
    return _layer(f"Cropping{len(amounts)}D", cropping=amounts if len(amounts) > 1 else amounts[0])


@_writes(ops.ZeroPad)
def _zero_pad(operation: ops.ZeroPad, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    amounts = [list(pair) for pair in operation.amounts]
    return _layer(f"ZeroPadding{len(amounts)}D", padding=amounts if len(amounts) > 1 else amounts[0])


@_writes(ops.UpSample)
def _upsample(operation: ops.UpSample, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    factors = list(operation.factors)
    return _layer(f"UpSampling{len(factors)}D", size=factors if len(factors) > 1 else factors[0])


@_writes(ops.Concatenate)
def _concatenate(operation: ops.Concatenate, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    return _layer("Concatenate", axis=operation.axis)


_COMBINATIONS = {
    ops.Combination.ADD: "Add",
    ops.Combination.SUBTRACT: "Subtract",
    ops.Combination.MULTIPLY: "Multiply",
    ops.Combination.AVERAGE: "Average",
    ops.Combination.MAXIMUM: "Maximum",
    ops.Combination.MINIMUM: "Minimum",
}


@_writes(ops.Combine)
def _combine(operation: ops.Combine, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del output
    if operation.kind not in _COMBINATIONS:
        raise refuse(layer.name, f"no layer for {operation.kind!r} of masks")
    return _layer(_COMBINATIONS[operation.kind])


@_writes(ops.Dot)
def _dot(operation: ops.Dot, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del layer, output
    return _layer("Dot", axes=list(operation.axes), normalize=operation.normalize)


@_writes(ops.Attention)
def _attention(operation: ops.Attention, layer: OperationLayer, output: Shape) -> LayerToWrite:
    del output
    # "dot" is the default, and Keras 3 takes the word for a function when it loads a .h5.
    mode = {"score_mode": "concat"} if operation.concat else {}
    tensors = _plain(layer, scale="scale", concat_score_weight="concat_score_weight")
    return _layer("Attention", tensors, use_scale="scale" in layer.weights, **mode)


@_writes(ops.AdditiveAttention)
def _additive_attention(
    operation: ops.AdditiveAttention, layer: OperationLayer, output: Shape
) -> LayerToWrite:
    del operation, output
    return _layer(
        "AdditiveAttention", _packed(layer, "additive_attention"), use_scale="scale" in layer.weights
    )


@_writes(ops.MultiHeadAttention)
def _multi_head_attention(
    operation: ops.MultiHeadAttention, layer: OperationLayer, output: Shape
) -> LayerToWrite:
    del output
    computed = operation.dropout > 0 or operation.return_scores
    if operation.masks and computed != (operation.masked_row is ops.MaskedRow.ZERO):
        row = "zero" if computed else "of uniform weights"
        raise refuse(layer.name, f"rows that are masked as a whole are {row} in this layer of Keras 3")
    heads, size, features = layer.weights["query_kernel"].shape
    width = layer.weights["output_kernel"].shape[0]
    paths = {
        "query": "query_dense",
        "key": "key_dense",
        "value": "value_dense",
        "attention_output": "output_dense",
    }
    tensors = tuple(
        replace(tensor, path=paths[tensor.name.split("/")[0]])
        for tensor in _packed(layer, "multi_head_attention")
    )
    return _layer(
        "MultiHeadAttention",
        tensors,
        num_heads=heads,
        key_dim=size,
        value_dim=layer.weights["value_kernel"].shape[1],
        dropout=operation.dropout,
        use_bias="query_bias" in layer.weights,
        output_shape=None if width == features else [width],
    )
