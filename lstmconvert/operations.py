"""The neighbours of recurrent layers: what each computes, as frozen values without arrays.

An operation states semantics, never a framework's spelling. Values are batch first and channels last:
(batch, time, features), (batch, height, width, features). ``PARTS`` names the weights of an operation
and the axes of each; arrays live in ``model.OperationLayer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar

from lstmconvert.activations import LINEAR, Activation
from lstmconvert.values import dataclass

Axes = Mapping[str, tuple[str, ...]]


def _parts(**axes: str) -> Axes:
    return MappingProxyType({name: tuple(text.split()) for name, text in axes.items()})


class Padding(StrEnum):
    """What a window does at the ends."""

    VALID = "valid"
    SAME = "same"
    """As TensorFlow: output length is ceil(input / stride), the odd one goes to the end."""
    CAUSAL = "causal"
    """Zeros before the first step only."""


class Pool(StrEnum):
    """What a pooling window gives."""

    MAX = "max"
    AVERAGE = "average"
    SUM = "sum"
    """Over all places only: no framework has a layer that sums within windows."""


class Combination(StrEnum):
    """How several equal-shaped (or broadcastable) inputs become one."""

    ADD = "add"
    SUBTRACT = "subtract"
    MULTIPLY = "multiply"
    AVERAGE = "average"
    MAXIMUM = "maximum"
    MINIMUM = "minimum"
    AND = "and"
    """Of masks (booleans)."""
    OR = "or"
    """Of masks (booleans)."""


class MaskedRow(StrEnum):
    """What the weights of an attention row are of which every score is masked."""

    UNIFORM = "uniform"
    """All equal: every score had the same large number taken off, which leaves nothing else in float32."""
    ZERO = "zero"
    """All zero (MultiHeadAttention of Keras 3 with dropout, or where it returns its scores)."""


class Noise(StrEnum):
    """What acts in training only."""

    DROPOUT = "dropout"
    SPATIAL_DROPOUT = "spatial_dropout"
    ALPHA_DROPOUT = "alpha_dropout"
    GAUSSIAN_DROPOUT = "gaussian_dropout"
    GAUSSIAN_NOISE = "gaussian_noise"
    ACTIVITY_REGULARIZATION = "activity_regularization"


@dataclass(frozen=True, slots=True)
class Operation:
    """Base of all operations."""

    PARTS: ClassVar[Axes] = _parts()


@dataclass(frozen=True, slots=True)
class Dense(Operation):
    """activation(x kernel^T + bias) on the last axis."""

    PARTS: ClassVar[Axes] = _parts(kernel="output input", bias="output")
    activation: Activation = LINEAR


@dataclass(frozen=True, slots=True)
class EinsumDense(Operation):
    """activation(einsum(equation, x, kernel) + bias); kernel and bias as the equation has them."""

    equation: str = ""
    activation: Activation = LINEAR


@dataclass(frozen=True, slots=True)
class Embedding(Operation):
    """Row ``x`` of the table. With ``mask_zero`` a second output: the mask x != 0."""

    PARTS: ClassVar[Axes] = _parts(embeddings="vocabulary features")
    mask_zero: bool = False


@dataclass(frozen=True, slots=True)
class Masking(Operation):
    """Outputs: x with masked steps set to zero, and the mask any(x != mask_value, last axis)."""

    mask_value: float = 0.0


@dataclass(frozen=True, slots=True)
class ValidSteps(Operation):
    """The mask (batch, time) of sequences that are padded behind: true where a step is below the length.

    Inputs are the lengths (batch,), whole numbers, and the sequences (batch, time, ...), of which only the
    number of steps counts.
    """


@dataclass(frozen=True, slots=True)
class Convolution1D(Operation):
    """Cross-correlation over (batch, time, features)."""

    PARTS: ClassVar[Axes] = _parts(kernel="output input width", bias="output")
    stride: int = 1
    padding: Padding = Padding.VALID
    dilation: int = 1
    groups: int = 1
    activation: Activation = LINEAR


@dataclass(frozen=True, slots=True)
class Convolution2D(Operation):
    """Cross-correlation over (batch, height, width, features); pairs are (height, width)."""

    PARTS: ClassVar[Axes] = _parts(kernel="output input height width", bias="output")
    strides: tuple[int, int] = (1, 1)
    padding: Padding = Padding.VALID
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: Activation = LINEAR


@dataclass(frozen=True, slots=True)
class DepthwiseConvolution1D(Operation):
    """Each input channel with its own filters; output channel = input channel * multiplier + m."""

    PARTS: ClassVar[Axes] = _parts(kernel="input multiplier width", bias="output")
    stride: int = 1
    padding: Padding = Padding.VALID
    dilation: int = 1
    activation: Activation = LINEAR


@dataclass(frozen=True, slots=True)
class SeparableConvolution1D(Operation):
    """A depthwise convolution (no bias) and then a pointwise one."""

    PARTS: ClassVar[Axes] = _parts(
        depthwise_kernel="input multiplier width", pointwise_kernel="output expanded", bias="output"
    )
    stride: int = 1
    padding: Padding = Padding.VALID
    dilation: int = 1
    activation: Activation = LINEAR


@dataclass(frozen=True, slots=True)
class ConvolutionalLstm(Operation):
    """ConvLSTM of rank 1 or 2 (Keras ConvLSTM1D, ConvLSTM2D), gates i, f, c, o in the kernels' blocks.

    Weights ``kernel`` (*window, input, 4 filters), ``recurrent`` (*window, filters, 4 filters) and ``bias``
    (4 filters,), as Keras has them. The recurrent convolution has stride 1 and ``same`` padding. With
    ``return_state`` the final states h and c follow the output.
    """

    rank: int
    strides: tuple[int, ...]
    padding: Padding
    dilation: tuple[int, ...]
    activation: Activation
    recurrent_activation: Activation
    return_sequences: bool = False
    return_state: bool = False
    go_backwards: bool = False


@dataclass(frozen=True, slots=True)
class Pooling(Operation):
    """A window over the axes between batch and features; one entry per axis."""

    kind: Pool
    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Padding = Padding.VALID


@dataclass(frozen=True, slots=True)
class GlobalPooling(Operation):
    """Over all axes between batch and features; an average heeds a mask over time."""

    kind: Pool
    rank: int = 1
    keep_axes: bool = False


@dataclass(frozen=True, slots=True)
class BatchNormalization(Operation):
    """(x - mean) / sqrt(variance + epsilon) * scale + offset along ``axis``; scale, offset optional."""

    PARTS: ClassVar[Axes] = _parts(scale="features", offset="features", mean="features", variance="features")
    epsilon: float = 1e-3
    axis: int = -1
    momentum: float = 0.99
    """How much of the old moving statistics is kept in training; recorded."""


@dataclass(frozen=True, slots=True)
class LayerNormalization(Operation):
    """Normalises over ``axes``; scale and offset optional, shaped like those axes.

    ``root_mean_square`` takes no mean off: x / sqrt(mean(x * x) + epsilon).
    """

    axes: tuple[int, ...] = (-1,)
    epsilon: float = 1e-3
    root_mean_square: bool = False


@dataclass(frozen=True, slots=True)
class GroupNormalization(Operation):
    """Normalises over groups of channels and all axes but the batch."""

    PARTS: ClassVar[Axes] = _parts(scale="features", offset="features")
    groups: int = 32
    axis: int = -1
    epsilon: float = 1e-3


@dataclass(frozen=True, slots=True)
class Normalization(Operation):
    """(x - mean) / max(sqrt(variance), 1e-7); mean and variance broadcast along the last axis.

    ``invert`` gives mean + x * sqrt(variance).
    """

    PARTS: ClassVar[Axes] = _parts(mean="features", variance="features")
    invert: bool = False


@dataclass(frozen=True, slots=True)
class Rescaling(Operation):
    """x * scale + offset; a number, or one number for each feature."""

    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0


@dataclass(frozen=True, slots=True)
class Identity(Operation):
    """Training-only operations and pass-throughs: the input."""

    noise: Noise | None = None
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Activate(Operation):
    """An activation on its own; softmax acts on ``axis``."""

    activation: Activation = LINEAR
    axis: int = -1


@dataclass(frozen=True, slots=True)
class ClampedRelu(Operation):
    """Keras ReLU layer: x > threshold passes (up to ``maximum``), below it slope * (x - threshold)."""

    slope: float = 0.0
    threshold: float = 0.0
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Clip(Operation):
    """x, but no less than ``minimum`` and no more than ``maximum``; either may be open."""

    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class ParametricRelu(Operation):
    """x above zero, slope * x below; the weight ``slope`` broadcasts against x without its batch."""


@dataclass(frozen=True, slots=True)
class Flatten(Operation):
    """All axes but the batch become one."""


@dataclass(frozen=True, slots=True)
class Reshape(Operation):
    """To ``shape`` without the batch; one -1 is worked out."""

    shape: tuple[int, ...] = (-1,)


@dataclass(frozen=True, slots=True)
class Transpose(Operation):
    """Output axis k is input axis ``permutation[k]``; the batch axis counts as 0."""

    permutation: tuple[int, ...] = (0, 2, 1)


@dataclass(frozen=True, slots=True)
class Repeat(Operation):
    """(batch, features) to (batch, count, features)."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Crop(Operation):
    """Cuts (before, after) steps from each axis after the batch, features excepted."""

    amounts: tuple[tuple[int, int], ...] = ((1, 1),)


@dataclass(frozen=True, slots=True)
class ZeroPad(Operation):
    """Adds (before, after) zeros to each axis after the batch, features excepted."""

    amounts: tuple[tuple[int, int], ...] = ((1, 1),)


@dataclass(frozen=True, slots=True)
class UpSample(Operation):
    """Repeats every step of each axis after the batch, features excepted, ``factors`` times."""

    factors: tuple[int, ...] = (2,)


@dataclass(frozen=True, slots=True)
class Reverse(Operation):
    """Flips one axis."""

    axis: int = 1


@dataclass(frozen=True, slots=True)
class Select(Operation):
    """One position of one axis, which disappears (a recurrent layer's last step: axis 1, index -1)."""

    axis: int = 1
    index: int = -1


@dataclass(frozen=True, slots=True)
class Concatenate(Operation):
    """Joins the inputs along an axis."""

    axis: int = -1


@dataclass(frozen=True, slots=True)
class Combine(Operation):
    """Element by element, in the order of the inputs.

    An input of fewer axes than the others gets axes of length one behind its batch.
    """

    kind: Combination = Combination.ADD


@dataclass(frozen=True, slots=True)
class Dot(Operation):
    """Keras Dot: batched contraction of one axis of each of two inputs; ``normalize`` to unit length."""

    axes: tuple[int, int] = (-1, -1)
    normalize: bool = False


@dataclass(frozen=True, slots=True)
class Attention(Operation):
    """Keras Attention over inputs (query, value[, key]); weight ``scale`` () where trained.

    Scores are scale * (q . k); ``concat`` scores are sum(tanh(scale * (q + k))) times the weight
    ``concat_score_weight`` ().

    ``masks`` names the masks that follow the inputs, in this order: ``value`` (batch, value steps) takes part
    in the scores, ``query`` (batch, query steps) makes output rows (not scores) zero where it is false.
    A row whose scores are all masked has uniform weights.
    """

    concat: bool = False
    causal: bool = False
    return_scores: bool = False
    masks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdditiveAttention(Operation):
    """Keras AdditiveAttention (Bahdanau) over (query, value[, key]); weight ``scale`` (features,).

    Scores are sum(scale * tanh(q + k)); ``masks`` as for ``Attention``.
    """

    PARTS: ClassVar[Axes] = _parts(scale="features")
    causal: bool = False
    return_scores: bool = False
    masks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MultiHeadAttention(Operation):
    """Keras MultiHeadAttention over (query, value[, key]), attention over axis 1.

    Weights: query_kernel, key_kernel (head size input), value_kernel (head value input), output_kernel
    (output head value) and the biases (head size), (head size), (head value), (output). Scores are
    (q . k) / sqrt(size).

    ``masks`` names the masks that follow the inputs, in this order: ``query`` (batch, query steps),
    ``value`` and ``key`` (batch, value steps), ``attention`` (batch, query steps, value steps). A score
    counts where all of them (and the causal mask) are true; ``masked_row`` says what a row is where none
    counts.
    With ``return_scores`` the weights (batch, head, query steps, value steps) are a second output.
    """

    PARTS: ClassVar[Axes] = _parts(
        query_kernel="head size query",
        query_bias="head size",
        key_kernel="head size key",
        key_bias="head size",
        value_kernel="head value input",
        value_bias="head value",
        output_kernel="output head value",
        output_bias="output",
    )
    causal: bool = False
    return_scores: bool = False
    masks: tuple[str, ...] = ()
    masked_row: MaskedRow = MaskedRow.UNIFORM
    dropout: float = 0.0
    """Of the weights, in training; recorded."""


@dataclass(frozen=True, slots=True)
class TimeDistributed(Operation):
    """``inner`` applied to every step of axis 1; the weights are the inner operation's."""

    inner: Operation = Identity()


@dataclass(frozen=True, slots=True)
class Cast(Operation):
    """To another dtype, by NumPy's name."""

    dtype: str = "float32"
