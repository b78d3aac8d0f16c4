"""Layers around the recurrent ones: their configs as operations, and which tensors they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import layout as layouts
from lstmconvert import mapping, operations
from lstmconvert.activations import RELU, Activation
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.keras import activation_names
from lstmconvert.frameworks.keras.layer_options import LayerOptions
from lstmconvert.frameworks.keras.slots import Slot, slots
from lstmconvert.operations import Combination, Noise, Operation, Padding, Pool
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Neighbour:
    """What one layer computes and what it has.

    Attributes:
        operation: what it computes.
        slots: its tensors.
        layout: name of the layout of its tensors in the mapping file; ``""`` where each tensor is a part
            as it is.
        parts: for those: Keras's name to the name of the part.
        constants: parts whose numbers are in the config.
        sizes: lengths of canonical axes that the config states.
    """

    operation: Operation
    slots: tuple[Slot, ...] = ()
    layout: str = ""
    parts: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    constants: Mapping[str, Lazy] = field(default_factory=lambda: _NOTHING)
    sizes: Mapping[str, int] = field(default_factory=lambda: _NOTHING)

    def weights(self, tensors: Mapping[str, Lazy], place: str) -> Mapping[str, Lazy]:
        """Canonical parts from the tensors under their keys.

        Raises:
            BadFile: when shapes contradict each other or the config.
        """
        own = {slot.part: tensors[slot.key] for slot in self.slots if slot.key in tensors}
        if not self.layout:
            return {**self.constants, **{self.parts.get(part, part): lazy for part, lazy in own.items()}}
        layout = mapping.load("keras").layouts[self._layout_for(own)]
        try:
            parts = layouts.unpack_operation(layout, own)
        except BadFile as error:
            raise error.located(place=place) from None
        axes = layouts.operation_axes(layout.operation)
        for part, lazy in parts.items():
            for axis, length in zip(axes[part], lazy.shape, strict=True):
                if self.sizes.get(axis, length) != length:
                    raise BadFile(
                        f"{part} has another number of {axis} than the config",
                        place=place,
                        found=length,
                        expected=self.sizes[axis],
                    )
        return {**self.constants, **parts}

    def _layout_for(self, tensors: Mapping[str, Lazy]) -> str:
        # Keras 1 kept the kernel of a 1D convolution as one of a 2D convolution.
        if self.layout == "convolution_1d" and len(tensors["kernel"].shape) == 4:
            return "convolution_1d_v1"
        return self.layout


Reader = Callable[[LayerOptions, int], Neighbour]
_READERS: dict[str, Reader] = {}


def _reads(*class_names: str) -> Callable[[Reader], Reader]:
    def register(reader: Reader) -> Reader:
        _READERS.update(dict.fromkeys(class_names, reader))
        return reader

    return register


def known_classes() -> tuple[str, ...]:
    """The classes that can be read here."""
    return tuple(sorted(_READERS))


def read(options: LayerOptions, generation: int) -> Neighbour | None:
    """The neighbour that a config describes, or ``None`` for a class that is not known.

    Args:
        options: of the layer.
        generation: of Keras; equal names mean different things.

    Raises:
        UnsupportedSource: naming an option that cannot be read.
    """
    reader = _READERS.get(options.spec.class_name)
    if reader is None:
        return None
    neighbour = reader(options, generation)
    options.finish()
    return neighbour


def _activation(options: LayerOptions, generation: int) -> Activation:
    return activation_names.read(options.take("activation", None), generation, options.place)


def _float(options: LayerOptions, name: str, default: float) -> float:
    value = options.take(name, default)
    return activation_names.number(default if value is None else value)


def _kernel_slots(options: LayerOptions, kernel: str = "kernel", *others: str) -> tuple[Slot, ...]:
    use_bias = options.flag("use_bias", True)
    return slots(kernel, *(["bias"] if use_bias else []), kernel=others)


# With weights.


@_reads("Dense")
def _dense(options: LayerOptions, generation: int) -> Neighbour:
    options.refuse_unless("lora_rank", None)
    units = options.whole("units")
    operation = operations.Dense(_activation(options, generation))
    return Neighbour(operation, _kernel_slots(options), "dense", sizes={"output": units})


@_reads("EinsumDense")
def _einsum_dense(options: LayerOptions, generation: int) -> Neighbour:
    options.refuse_unless("lora_rank", None)
    options.take("output_shape", None)
    equation = str(options.take("equation"))
    has_bias = options.take("bias_axes", None) is not None
    operation = operations.EinsumDense(equation, _activation(options, generation))
    return Neighbour(operation, slots("kernel", *(["bias"] if has_bias else [])))


@_reads("Embedding")
def _embedding(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    options.refuse_unless("lora_rank", None)
    options.take("dropout", None)
    sizes = {"vocabulary": options.whole("input_dim"), "features": options.whole("output_dim")}
    operation = operations.Embedding(options.flag("mask_zero"))
    return Neighbour(operation, slots("embeddings", embeddings=("W",)), "embedding", sizes=sizes)


_PADDINGS = {"valid": Padding.VALID, "same": Padding.SAME, "causal": Padding.CAUSAL}


def _padding(options: LayerOptions, default: str = "valid") -> Padding:
    value = options.take("padding", default)
    if value not in _PADDINGS:
        raise UnsupportedSource(
            f"padding={value!r} is not supported", place=options.place, expected=", ".join(_PADDINGS)
        )
    return _PADDINGS[value]


@_reads("Conv1D")
def _convolution_1d(options: LayerOptions, generation: int) -> Neighbour:
    options.channels_last()
    sizes = {"output": options.whole("filters"), "width": options.whole("kernel_size")}
    operation = operations.Convolution1D(
        options.whole("strides", 1),
        _padding(options),
        options.whole("dilation_rate", 1),
        options.whole("groups", 1),
        _activation(options, generation),
    )
    return Neighbour(operation, _kernel_slots(options), "convolution_1d", sizes=sizes)


@_reads("Conv2D")
def _convolution_2d(options: LayerOptions, generation: int) -> Neighbour:
    options.channels_last()
    height, width = options.wholes("kernel_size", 2)
    sizes = {"output": options.whole("filters"), "height": height, "width": width}
    operation = operations.Convolution2D(
        _two(options.wholes("strides", 2, 1)),
        _padding(options),
        _two(options.wholes("dilation_rate", 2, 1)),
        options.whole("groups", 1),
        _activation(options, generation),
    )
    return Neighbour(operation, _kernel_slots(options), "convolution_2d", sizes=sizes)


def _two(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


@_reads("DepthwiseConv1D")
def _depthwise_1d(options: LayerOptions, generation: int) -> Neighbour:
    options.channels_last()
    sizes = {"width": options.whole("kernel_size"), "multiplier": options.whole("depth_multiplier", 1)}
    operation = operations.DepthwiseConvolution1D(
        options.whole("strides", 1),
        _padding(options),
        options.whole("dilation_rate", 1),
        _activation(options, generation),
    )
    options.refuse_unless("groups", 1, None)
    options.take("filters", None)
    own = _kernel_slots(options, "kernel", "depthwise_kernel")
    return Neighbour(operation, own, "depthwise_convolution_1d", sizes=sizes)


@_reads("SeparableConv1D")
def _separable_1d(options: LayerOptions, generation: int) -> Neighbour:
    options.channels_last()
    options.refuse_unless("groups", 1, None)
    sizes = {
        "width": options.whole("kernel_size"),
        "multiplier": options.whole("depth_multiplier", 1),
        "output": options.whole("filters"),
    }
    operation = operations.SeparableConvolution1D(
        options.whole("strides", 1),
        _padding(options),
        options.whole("dilation_rate", 1),
        _activation(options, generation),
    )
    bias = ["bias"] if options.flag("use_bias", True) else []
    own = slots("depthwise_kernel", "pointwise_kernel", *bias)
    return Neighbour(operation, own, "separable_convolution_1d", sizes=sizes)


@_reads("BatchNormalization")
def _batch_normalization(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    options.refuse_unless("mode", 0, None, why="only mode 0 of Keras 1 is")
    options.take("virtual_batch_size", None)
    operation = operations.BatchNormalization(
        _float(options, "epsilon", 1e-3), options.whole("axis", -1), _float(options, "momentum", 0.99)
    )
    return Neighbour(operation, _normal_slots(options, moving=True), "batch_normalization")


def _normal_slots(options: LayerOptions, *, moving: bool = False) -> tuple[Slot, ...]:
    wanted = [
        *(["gamma"] if options.flag("scale", True) else []),
        *(["beta"] if options.flag("center", True) else []),
    ]
    found = slots(*wanted)
    if moving:
        found += (
            Slot("moving_mean", names=("moving_mean", "running_mean"), trainable=False),
            Slot(
                "moving_variance",
                names=("moving_variance", "running_std", "running_variance"),
                trainable=False,
            ),
        )
    return found


_SCALE_AND_OFFSET = MappingProxyType({"gamma": "scale", "beta": "offset"})


@_reads("LayerNormalization")
def _layer_normalization(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    options.refuse_unless("rms_scaling", False)
    axis = options.take("axis", -1)
    axes = tuple(int(n) for n in axis) if isinstance(axis, (list, tuple)) else (int(axis),)
    operation = operations.LayerNormalization(axes, _float(options, "epsilon", 1e-3))
    return Neighbour(operation, _normal_slots(options), parts=_SCALE_AND_OFFSET)


@_reads("RMSNormalization")
def _root_mean_square(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    axis = options.take("axis", -1)
    axes = tuple(int(n) for n in axis) if isinstance(axis, (list, tuple)) else (int(axis),)
    epsilon = _float(options, "epsilon", 1e-6)
    operation = operations.LayerNormalization(axes, epsilon, root_mean_square=True)
    return Neighbour(operation, slots("scale"))


@_reads("GroupNormalization")
def _group_normalization(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    operation = operations.GroupNormalization(
        options.whole("groups", 32), options.whole("axis", -1), _float(options, "epsilon", 1e-3)
    )
    return Neighbour(operation, _normal_slots(options), "group_normalization")


@_reads("Normalization")
def _normalization(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    axis = options.take("axis", -1)
    axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
    given = [options.take(name, None) for name in ("mean", "variance")]
    operation = operations.Normalization(options.flag("invert"))
    if axis is None or isinstance(axis, (list, tuple)):
        raise UnsupportedSource(
            f"axis={axis} is not supported", place=options.place, expected="one axis, the last one"
        )
    if all(value is not None for value in given):
        arrays = [np.atleast_1d(np.squeeze(np.asarray(_plain(value), np.float32))) for value in given]
        constants = {name: Lazy.of(array) for name, array in zip(("mean", "variance"), arrays, strict=True)}
        return Neighbour(operation, constants=constants)
    own = tuple(Slot(name, names=(name,), trainable=False) for name in ("mean", "variance"))
    count = Slot("count", names=("count",), trainable=False, read=False)
    return Neighbour(operation, (*own, count), "normalization")


def _plain(value: Any) -> Any:
    """A list of numbers that may be a serialised array."""
    if isinstance(value, Mapping):
        config = value.get("config", value)
        return config.get("value", value) if isinstance(config, Mapping) else config
    return value


@_reads("PReLU")
def _parametric_relu(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    options.take("shared_axes", None)  # the shape of the weight says it
    return Neighbour(operations.ParametricRelu(), slots("alpha"), parts={"alpha": "slope"})


@_reads("Attention")
def _attention(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    _attention_dropout(options)
    concat = options.take("score_mode", "dot")
    if concat not in ("dot", "concat"):
        raise UnsupportedSource(f"score_mode={concat!r} is not supported", place=options.place)
    own = ["scale"] if options.flag("use_scale") else []
    own += ["concat_score_weight"] if concat == "concat" else []
    return Neighbour(operations.Attention(concat == "concat", options.flag("causal")), slots(*own))


def _attention_dropout(options: LayerOptions) -> None:
    options.take("dropout", 0.0)


@_reads("AdditiveAttention")
def _additive_attention(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    _attention_dropout(options)
    options.refuse_unless("score_mode", "dot", None)
    own = slots("scale") if options.flag("use_scale", True) else ()
    return Neighbour(operations.AdditiveAttention(options.flag("causal")), own, "additive_attention")


@_reads("MultiHeadAttention")
def _multi_head_attention(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    dropout = _float(options, "dropout", 0.0)
    options.refuse_unless("use_gate", False, None)
    options.refuse_unless("sliding_window", None)
    options.refuse_unless("attention_axes", None, [1], (1,))
    heads, size = options.whole("num_heads"), options.whole("key_dim")
    value_size = options.take("value_dim", None)
    output = options.take("output_shape", None)
    if isinstance(output, (list, tuple)) and len(output) != 1:
        raise UnsupportedSource(f"output_shape={output} is not supported", place=options.place)
    options.flag("softmax_robust_masking")
    sizes = {"head": heads, "size": size, "value": size if value_size is None else int(value_size)}
    parts = ["kernel", *(["bias"] if options.flag("use_bias", True) else [])]
    paths = {
        "query": "query_dense",
        "key": "key_dense",
        "value": "value_dense",
        "attention_output": "output_dense",
    }
    own = tuple(
        Slot(f"{name}/{part}", path, (part,), old_path=f"_{path}")
        for name, path in paths.items()
        for part in parts
    )
    return Neighbour(operations.MultiHeadAttention(dropout=dropout), own, "multi_head_attention", sizes=sizes)


@_reads("ConvLSTM1D", "ConvLSTM2D")
def _convolutional_lstm(options: LayerOptions, generation: int) -> Neighbour:
    rank = int(options.spec.class_name[-2])
    options.channels_last()
    options.take("filters")
    options.wholes("kernel_size", rank)
    for training_only in ("dropout", "recurrent_dropout"):
        options.take(training_only, 0.0)
    if options.flag("stateful"):
        raise UnsupportedSource("stateful ConvLSTM layers are not supported", place=options.place)
    options.flag("zero_output_for_mask")
    options.flag("time_major")
    name = "recurrent_activation"
    gate = activation_names.read(options.take(name, "hard_sigmoid"), generation, options.place)
    operation = operations.ConvolutionalLstm(
        rank,
        options.wholes("strides", rank, 1),
        _padding(options),
        options.wholes("dilation_rate", rank, 1),
        activation_names.read(options.take("activation", "tanh"), generation, options.place),
        gate,
        options.flag("return_sequences"),
        options.flag("return_state"),
        options.flag("go_backwards"),
    )
    own = ["kernel", "recurrent_kernel", *(["bias"] if options.flag("use_bias", True) else [])]
    parts = {"recurrent_kernel": "recurrent"}
    return Neighbour(operation, tuple(s.under("cell") for s in slots(*own)), parts=parts)


# Without weights.


@_reads("Masking")
def _masking(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    return Neighbour(operations.Masking(_float(options, "mask_value", 0.0)))


_POOLS = {"Max": Pool.MAX, "Average": Pool.AVERAGE}


@_reads("MaxPooling1D", "AveragePooling1D", "MaxPooling2D", "AveragePooling2D")
def _pooling(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    name = options.spec.class_name
    rank = int(name[-2])
    options.channels_last()
    size = options.wholes("pool_size", rank, 2)
    steps = options.wholes("strides", rank, size)
    return Neighbour(operations.Pooling(_POOLS[name.split("Pool")[0]], size, steps, _padding(options)))


@_reads("GlobalMaxPooling1D", "GlobalAveragePooling1D", "GlobalMaxPooling2D", "GlobalAveragePooling2D")
def _global_pooling(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    name = options.spec.class_name
    options.channels_last()
    kind = _POOLS[name.removeprefix("Global").split("Pool")[0]]
    return Neighbour(operations.GlobalPooling(kind, int(name[-2]), options.flag("keepdims")))


_NOISES = {
    "Dropout": (Noise.DROPOUT, "rate"),
    "SpatialDropout1D": (Noise.SPATIAL_DROPOUT, "rate"),
    "SpatialDropout2D": (Noise.SPATIAL_DROPOUT, "rate"),
    "AlphaDropout": (Noise.ALPHA_DROPOUT, "rate"),
    "GaussianDropout": (Noise.GAUSSIAN_DROPOUT, "rate"),
    "GaussianNoise": (Noise.GAUSSIAN_NOISE, "stddev"),
}


@_reads(*_NOISES)
def _noise(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    noise, rate = _NOISES[options.spec.class_name]
    options.take("data_format", None)
    return Neighbour(operations.Identity(noise, _float(options, rate, 0.0)))


@_reads("ActivityRegularization")
def _activity_regularization(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    for name in ("l1", "l2"):
        options.take(name, 0.0)
    return Neighbour(operations.Identity(Noise.ACTIVITY_REGULARIZATION))


@_reads("Identity")
def _identity(options: LayerOptions, generation: int) -> Neighbour:
    del options, generation
    return Neighbour(operations.Identity())


@_reads("Activation")
def _activate(options: LayerOptions, generation: int) -> Neighbour:
    return Neighbour(operations.Activate(_activation(options, generation)))


@_reads("LeakyReLU", "ELU", "ThresholdedReLU")
def _activation_layer(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    activation = activation_names.activation_layer(options.spec.class_name, options.spec.config)
    assert activation is not None
    for name in ("negative_slope", "alpha", "theta"):
        options.take(name, None)
    return Neighbour(operations.Activate(activation))


@_reads("ReLU")
def _relu(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    maximum = options.take("max_value", None)
    slope, threshold = _float(options, "negative_slope", 0.0), _float(options, "threshold", 0.0)
    if maximum is None and slope == 0 and threshold == 0:
        return Neighbour(operations.Activate(RELU))
    limit = None if maximum is None else activation_names.number(maximum)
    return Neighbour(operations.ClampedRelu(slope, threshold, limit))


@_reads("Softmax")
def _softmax(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    options.take("robust_masking", None)
    return Neighbour(operations.Activate(Activation("softmax"), options.whole("axis", -1)))


@_reads("Flatten")
def _flatten(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    options.channels_last()
    return Neighbour(operations.Flatten())


@_reads("Reshape")
def _reshape(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    return Neighbour(operations.Reshape(tuple(int(n) for n in options.take("target_shape"))))


@_reads("Permute")
def _permute(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    return Neighbour(operations.Transpose((0, *(int(n) for n in options.take("dims")))))


@_reads("RepeatVector")
def _repeat(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    return Neighbour(operations.Repeat(options.whole("n")))


@_reads("Cropping1D", "Cropping2D")
def _crop(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    options.channels_last()
    rank = int(options.spec.class_name[-2])
    return Neighbour(operations.Crop(options.pairs("cropping", rank)))


@_reads("ZeroPadding1D", "ZeroPadding2D")
def _zero_padding(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    options.channels_last()
    rank = int(options.spec.class_name[-2])
    return Neighbour(operations.ZeroPad(options.pairs("padding", rank)))


@_reads("UpSampling1D", "UpSampling2D")
def _upsample(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    options.channels_last()
    options.refuse_unless("interpolation", "nearest", None)
    rank = int(options.spec.class_name[-2])
    length = options.take("length", None)  # Keras 1
    factors = options.wholes("size", rank, length if length is not None else 2)
    return Neighbour(operations.UpSample(factors))


@_reads("Rescaling")
def _rescaling(options: LayerOptions, generation: int) -> Neighbour:
    del generation

    def value(name: str, default: float) -> float | tuple[float, ...]:
        given = _plain(options.take(name, default))
        return tuple(float(n) for n in given) if isinstance(given, (list, tuple)) else float(given)

    return Neighbour(operations.Rescaling(value("scale", 1.0), value("offset", 0.0)))


# Of several inputs.


@_reads("Concatenate")
def _concatenate(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    return Neighbour(operations.Concatenate(options.whole("axis", -1)))


_COMBINATIONS = {
    "Add": Combination.ADD,
    "Subtract": Combination.SUBTRACT,
    "Multiply": Combination.MULTIPLY,
    "Average": Combination.AVERAGE,
    "Maximum": Combination.MAXIMUM,
    "Minimum": Combination.MINIMUM,
}
ARITHMETIC: Mapping[str, Combination] = MappingProxyType(_COMBINATIONS)
"""Layers, and operators of the same names, that combine their inputs element by element."""


@_reads(*_COMBINATIONS)
def _combine(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    return Neighbour(operations.Combine(_COMBINATIONS[options.spec.class_name]))


@_reads("Dot")
def _dot(options: LayerOptions, generation: int) -> Neighbour:
    del generation
    axes = options.take("axes")
    pair = axes if isinstance(axes, (list, tuple)) else (axes, axes)
    return Neighbour(operations.Dot(_two([int(n) for n in pair]), options.flag("normalize")))
