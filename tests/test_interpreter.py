"""Every operation of the interpreter against Keras 3's layer of that name, and how a model is run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lstmconvert import interpreter, operations, shapes
from lstmconvert.activations import RELU, SIGMOID, TANH, Activation
from lstmconvert.canonical import MaskedOutput, Merge, Returns, ReverseOutput, SequenceBehaviour
from lstmconvert.errors import UnsupportedSource
from lstmconvert.interpreter.operations import _FUNCTIONS
from lstmconvert.model import Call, Model, OperationLayer, Port
from lstmconvert.operations import Combination, MaskedRow, Noise, Operation, Padding, Pool
from lstmconvert.tensors import Array, Lazy
from tests.support import assert_close, random_layer, random_mask

# Keras spells axes otherwise: (width, input, output) is (output, input, width) here.
_KERNEL_1D = functools.partial(np.transpose, axes=(2, 1, 0))
_KERNEL_2D = functools.partial(np.transpose, axes=(3, 2, 0, 1))
_DEPTHWISE = functools.partial(np.transpose, axes=(1, 2, 0))


def _clipped(x: Any, low: float | None, high: float | None) -> Any:
    import keras

    return keras.ops.clip(x, -np.inf if low is None else low, np.inf if high is None else high)


def _same(array: Array) -> Array:
    return array


@dataclass(frozen=True)
class Case:
    """A Keras layer and the operation that should compute the same.

    Attributes:
        layer: makes the layer, given ``keras.layers``.
        operation: the operation.
        parts: the layer's weights by name in order, with how each is turned.
        inputs: shapes of the inputs.
        whole: the inputs are whole numbers below this.
        masks: shapes of masks that follow the inputs.
        call: arguments of the layer's call; masks are given by name or as a list.
        tolerance: relative to the scale of the outputs.
    """

    name: str
    layer: Callable[[Any], Any]
    operation: Operation
    parts: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)
    inputs: Sequence[tuple[int, ...]] = ((2, 7, 6),)
    whole: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    as_list: bool = False


def _conv1d(name: str, operation: operations.Convolution1D, bias: bool = True, **options: Any) -> Case:
    return Case(
        name,
        lambda k: k.Conv1D(4, 3, use_bias=bias, **options),
        operation,
        {"kernel": _KERNEL_1D} | ({"bias": _same} if bias else {}),
    )


def _pooling(rank: int, kind: str, padding: str, size: int, strides: int, time: int) -> Case:
    axes = ("height", "width")[:rank]
    return Case(
        f"{kind}_pooling_{rank}d_{padding}_{size}_{strides}_{time}",
        lambda k: getattr(k, f"{kind.title()}Pooling{rank}D")(size, strides, padding),
        operations.Pooling(Pool(kind), (size,) * rank, (strides,) * rank, Padding(padding)),
        inputs=((2, *(time + 2 * n for n, _ in enumerate(axes)), 3),),
    )


def _conv_lstm(rank: int, name: str, operation: operations.ConvolutionalLstm, **options: Any) -> Case:
    return Case(
        f"convolutional_lstm_{rank}d_{name}",
        lambda k: getattr(k, f"ConvLSTM{rank}D")(2, 3, recurrent_activation="sigmoid", **options),
        operation,
        {"kernel": _same, "recurrent": _same, "bias": _same},
        ((2, 4, *(6, 5)[:rank], 3),),
    )


_SCALE_OFFSET = {"scale": _same, "offset": _same}
_SIGMOID_TANH = TANH, SIGMOID

CASES = [
    Case("dense", lambda k: k.Dense(4, "relu"), operations.Dense(RELU), {"kernel": np.transpose, "bias": _same}),
    Case("dense_softmax", lambda k: k.Dense(4, "softmax", use_bias=False),
         operations.Dense(Activation("softmax")), {"kernel": np.transpose}),
    Case("dense_whole", lambda k: k.Dense(4), operations.Dense(), {"kernel": np.transpose, "bias": _same}, whole=5),
    Case("einsum_dense", lambda k: k.EinsumDense("abc,cde->abde", (None, 2, 5), bias_axes="de", activation="tanh"),
         operations.EinsumDense("abc,cde->abde", TANH), {"kernel": _same, "bias": _same}),
    Case("einsum_dense_dots", lambda k: k.EinsumDense("...x,xy->...y", 5, bias_axes="y"),
         operations.EinsumDense("...x,xy->...y"), {"kernel": _same, "bias": _same}),
    Case("embedding", lambda k: k.Embedding(9, 4), operations.Embedding(), {"embeddings": _same}, ((2, 7),), 9),
    Case("masking", lambda k: k.Masking(2.0), operations.Masking(2.0), inputs=((2, 7, 1),), whole=4),
    _conv1d("conv1d_valid", operations.Convolution1D(activation=RELU), activation="relu"),
    _conv1d("conv1d_no_bias", operations.Convolution1D(), bias=False),
    _conv1d("conv1d_same", operations.Convolution1D(padding=Padding.SAME), padding="same"),
    _conv1d("conv1d_same_2", operations.Convolution1D(2, Padding.SAME), padding="same", strides=2),
    _conv1d("conv1d_same_3", operations.Convolution1D(3, Padding.SAME), padding="same", strides=3),
    _conv1d("conv1d_causal", operations.Convolution1D(padding=Padding.CAUSAL), padding="causal"),
    _conv1d("conv1d_causal_2", operations.Convolution1D(2, Padding.CAUSAL), padding="causal", strides=2),
    _conv1d("conv1d_dilated", operations.Convolution1D(padding=Padding.SAME, dilation=2),
            padding="same", dilation_rate=2),
    _conv1d("conv1d_causal_dilated", operations.Convolution1D(padding=Padding.CAUSAL, dilation=3),
            padding="causal", dilation_rate=3),
    _conv1d("conv1d_groups", operations.Convolution1D(groups=2), groups=2),
    Case("conv1d_even_same", lambda k: k.Conv1D(2, 4, padding="same"), operations.Convolution1D(padding=Padding.SAME),
         {"kernel": _KERNEL_1D, "bias": _same}),
    Case("conv2d", lambda k: k.Conv2D(4, (3, 2), (2, 1), "same", activation="tanh"),
         operations.Convolution2D((2, 1), Padding.SAME, activation=TANH), {"kernel": _KERNEL_2D, "bias": _same},
         ((2, 8, 5, 6),)),
    Case("conv2d_dilated_groups", lambda k: k.Conv2D(4, (2, 3), dilation_rate=(2, 1), groups=2),
         operations.Convolution2D(dilation=(2, 1), groups=2), {"kernel": _KERNEL_2D, "bias": _same}, ((2, 8, 5, 6),)),
    Case("depthwise", lambda k: k.DepthwiseConv1D(3, padding="same", strides=2, depth_multiplier=2, activation="relu"),
         operations.DepthwiseConvolution1D(2, Padding.SAME, activation=RELU), {"kernel": _DEPTHWISE, "bias": _same}),
    Case("depthwise_dilated", lambda k: k.DepthwiseConv1D(3, dilation_rate=2, use_bias=False),
         operations.DepthwiseConvolution1D(dilation=2), {"kernel": _DEPTHWISE}),
    Case("separable", lambda k: k.SeparableConv1D(4, 3, padding="same", depth_multiplier=2, activation="relu"),
         operations.SeparableConvolution1D(padding=Padding.SAME, activation=RELU),
         {"depthwise_kernel": _DEPTHWISE, "pointwise_kernel": lambda a: a[0].T, "bias": _same}),
    _conv_lstm(1, "last", operations.ConvolutionalLstm(1, (1,), Padding.VALID, (1,), *_SIGMOID_TANH)),
    _conv_lstm(1, "sequence", operations.ConvolutionalLstm(1, (2,), Padding.SAME, (1,), *_SIGMOID_TANH, True),
               strides=2, padding="same", return_sequences=True),
    _conv_lstm(1, "backwards", operations.ConvolutionalLstm(
        1, (1,), Padding.SAME, (2,), *_SIGMOID_TANH, True, True, True),
        dilation_rate=2, padding="same", return_sequences=True, return_state=True, go_backwards=True),
    _conv_lstm(2, "states", operations.ConvolutionalLstm(
        2, (1, 1), Padding.SAME, (1, 1), *_SIGMOID_TANH, False, True), padding="same", return_state=True),
    *(_pooling(rank, kind, padding, size, strides, time) for rank in (1, 2) for kind in ("max", "average")
      for padding in ("valid", "same") for size, strides, time in ((2, 2, 5), (3, 2, 6), (3, 1, 5), (2, 3, 7))),
    *(Case(f"global_{kind}_{rank}d_{keep}",
           functools.partial(lambda k, kind, rank, keep: getattr(k, f"Global{kind.title()}Pooling{rank}D")(keepdims=keep),
                             kind=kind, rank=rank, keep=keep),
           operations.GlobalPooling(Pool(kind), rank, keep), inputs=((2, *(5, 4)[:rank], 3),))
      for kind in ("max", "average") for rank in (1, 2) for keep in (False, True)),
    Case("batch_normalization", lambda k: k.BatchNormalization(), operations.BatchNormalization(),
         {"scale": _same, "offset": _same, "mean": _same, "variance": np.abs}),
    Case("batch_normalization_axis", lambda k: k.BatchNormalization(axis=1, epsilon=0.1, scale=False),
         operations.BatchNormalization(0.1, 1), {"offset": _same, "mean": _same, "variance": np.abs}),
    Case("layer_normalization", lambda k: k.LayerNormalization(epsilon=0.01),
         operations.LayerNormalization(epsilon=0.01), _SCALE_OFFSET),
    Case("layer_normalization_axes", lambda k: k.LayerNormalization(axis=(1, 2)),
         operations.LayerNormalization((1, 2)), _SCALE_OFFSET),
    Case("layer_normalization_first", lambda k: k.LayerNormalization(axis=1, center=False),
         operations.LayerNormalization((1,)), {"scale": _same}),
    Case("root_mean_square", lambda k: k.RMSNormalization(epsilon=0.01),
         operations.LayerNormalization(epsilon=0.01, root_mean_square=True), {"scale": _same}),
    Case("group_normalization", lambda k: k.GroupNormalization(3, epsilon=0.01),
         operations.GroupNormalization(3, epsilon=0.01), _SCALE_OFFSET),
    Case("group_normalization_2d", lambda k: k.GroupNormalization(2), operations.GroupNormalization(2), _SCALE_OFFSET,
         ((2, 4, 3, 6),)),
    Case("group_normalization_axis", lambda k: k.GroupNormalization(2, axis=1), operations.GroupNormalization(2, 1),
         _SCALE_OFFSET, ((2, 4, 3),)),
    Case("normalization", lambda k: k.Normalization(mean=[1.0, 2, 3, 4, 5, 6], variance=[0.0, 1, 2, 3, 4, 5]),
         operations.Normalization()),
    Case("normalization_inverse",
         lambda k: k.Normalization(mean=[1.0, 2, 3, 4, 5, 6], variance=[0.0, 1, 2, 3, 4, 5], invert=True),
         operations.Normalization(invert=True)),
    Case("rescaling", lambda k: k.Rescaling(0.5, 1.5), operations.Rescaling(0.5, 1.5)),
    Case("rescaling_features", lambda k: k.Rescaling([1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 3, 2, 1]),
         operations.Rescaling((1.0, 2, 3, 4, 5, 6), (6.0, 5, 4, 3, 2, 1))),
    *(Case(f"identity_{noise}", functools.partial(lambda k, make: make(k), make=make),
           operations.Identity(noise, 0.3)) for noise, make in (
        (None, lambda k: k.Identity()), (Noise.DROPOUT, lambda k: k.Dropout(0.3)),
        (Noise.SPATIAL_DROPOUT, lambda k: k.SpatialDropout1D(0.3)),
        (Noise.ALPHA_DROPOUT, lambda k: k.AlphaDropout(0.3)),
        (Noise.GAUSSIAN_DROPOUT, lambda k: k.GaussianDropout(0.3)),
        (Noise.GAUSSIAN_NOISE, lambda k: k.GaussianNoise(0.3)))),
    Case("activate", lambda k: k.Activation("sigmoid"), operations.Activate(SIGMOID)),
    Case("softmax_axis", lambda k: k.Softmax(axis=1), operations.Activate(Activation("softmax"), 1)),
    Case("leaky_relu", lambda k: k.LeakyReLU(negative_slope=0.2), operations.Activate(Activation("leaky_relu", 0.2))),
    *(Case(f"clamped_relu_{maximum}_{slope}_{threshold}",
           functools.partial(lambda k, *a: k.ReLU(*a)) if False else
           (lambda k, m=maximum, s=slope, t=threshold: k.ReLU(m, s, t)),
           operations.ClampedRelu(slope, threshold, maximum), whole=whole)
      for maximum in (None, 1.5, 6.0) for slope in (0.0, 0.25) for threshold in (0.0, 1.0) for whole in (None, 3)),
    *(Case(f"clip_{low}_{high}", lambda k, a=low, b=high: k.Activation(lambda x: _clipped(x, a, b)),
           operations.Clip(low, high)) for low, high in ((-0.4, 0.3), (0.1, None), (None, 0.2))),
    Case("parametric_relu", lambda k: k.PReLU(), operations.ParametricRelu(), {"slope": _same}),
    Case("parametric_relu_shared", lambda k: k.PReLU(shared_axes=[1]), operations.ParametricRelu(), {"slope": _same}),
    Case("flatten", lambda k: k.Flatten(), operations.Flatten()),
    Case("reshape", lambda k: k.Reshape((3, -1, 2)), operations.Reshape((3, -1, 2))),
    Case("transpose", lambda k: k.Permute((3, 1, 2)), operations.Transpose((0, 3, 1, 2)), inputs=((2, 3, 4, 5),)),
    Case("repeat", lambda k: k.RepeatVector(3), operations.Repeat(3), inputs=((2, 5),)),
    Case("crop_1d", lambda k: k.Cropping1D((1, 2)), operations.Crop(((1, 2),))),
    Case("crop_2d", lambda k: k.Cropping2D(((1, 0), (0, 2))), operations.Crop(((1, 0), (0, 2))),
         inputs=((2, 5, 6, 3),)),
    Case("zero_pad_1d", lambda k: k.ZeroPadding1D((1, 2)), operations.ZeroPad(((1, 2),))),
    Case("zero_pad_2d", lambda k: k.ZeroPadding2D(((1, 0), (0, 2))), operations.ZeroPad(((1, 0), (0, 2))),
         inputs=((2, 5, 6, 3),)),
    Case("up_sample_1d", lambda k: k.UpSampling1D(3), operations.UpSample((3,))),
    Case("up_sample_2d", lambda k: k.UpSampling2D((2, 3)), operations.UpSample((2, 3)), inputs=((2, 5, 6, 3),)),
    Case("concatenate", lambda k: k.Concatenate(), operations.Concatenate(), inputs=((2, 5, 3), (2, 5, 4)), as_list=True),
    Case("concatenate_time", lambda k: k.Concatenate(axis=1), operations.Concatenate(1),
         inputs=((2, 5, 3), (2, 2, 3)), as_list=True),
    *(Case(f"combine_{kind}_{len(inputs)}_{inputs[0][1]}_{len(inputs[1])}",
           functools.partial(lambda k, kind: getattr(k, kind.title())(), kind=str(kind)),
           operations.Combine(kind), inputs=inputs, as_list=True)
      for kind in Combination if kind not in (Combination.AND, Combination.OR)
      for inputs in (((2, 5, 3), (2, 5, 3)), ((2, 5, 3), (2, 3)),
            ((2, 1, 3), (2, 3)), ((2, 5, 3), (2, 5, 3), (2, 5, 1)))
      if len(inputs) == 2 or kind is not Combination.SUBTRACT),
    *(Case(f"dot_{axes}_{normalize}_{len(inputs[0])}_{len(inputs[1])}",
           functools.partial(lambda k, axes, normalize: k.Dot(axes, normalize), axes=axes, normalize=normalize),
           operations.Dot(axes, normalize), inputs=inputs, as_list=True)
      for axes, inputs in (((2, 2), ((2, 5, 3), (2, 4, 3))), ((1, 2), ((2, 3, 5), (2, 4, 3))),
                           ((-1, 1), ((2, 5, 3), (2, 3, 4))), ((1, 1), ((2, 3), (2, 3))),
                           ((2, 1), ((2, 5, 3), (2, 3))), ((1, 2), ((2, 3), (2, 5, 3))),
                           ((3, 1), ((2, 4, 5, 3), (2, 3, 6))))
      for normalize in (False, True)),
    Case("time_distributed_dense", lambda k: k.TimeDistributed(k.Dense(4)), operations.TimeDistributed(operations.Dense()),
         {"kernel": np.transpose, "bias": _same}),
    Case("time_distributed_conv", lambda k: k.TimeDistributed(k.Conv1D(4, 3, padding="same")),
         operations.TimeDistributed(operations.Convolution1D(padding=Padding.SAME)),
         {"kernel": _KERNEL_1D, "bias": _same}, ((2, 3, 5, 6),)),
    Case("time_distributed_flatten", lambda k: k.TimeDistributed(k.Flatten()),
         operations.TimeDistributed(operations.Flatten()), inputs=((2, 3, 5, 6),)),
    Case("attention", lambda k: k.Attention(use_scale=True), operations.Attention(), {"scale": _same},
         ((2, 5, 3), (2, 4, 3)), as_list=True),
    Case("attention_key", lambda k: k.Attention(), operations.Attention(return_scores=True),
         inputs=((2, 5, 3), (2, 4, 6), (2, 4, 3)), call={"return_attention_scores": True}, as_list=True),
    Case("attention_concat", lambda k: k.Attention(score_mode="concat", use_scale=True), operations.Attention(True),
         {"scale": _same, "concat_score_weight": _same}, ((2, 5, 3), (2, 4, 3)), as_list=True),
    Case("attention_causal", lambda k: k.Attention(), operations.Attention(causal=True),
         inputs=((2, 5, 3), (2, 4, 3)), call={"use_causal_mask": True}, as_list=True),
    Case("additive_attention", lambda k: k.AdditiveAttention(), operations.AdditiveAttention(), {"scale": _same},
         ((2, 5, 3), (2, 4, 3)), as_list=True),
    Case("additive_attention_plain", lambda k: k.AdditiveAttention(use_scale=False),
         operations.AdditiveAttention(return_scores=True), inputs=((2, 5, 3), (2, 4, 6), (2, 4, 3)),
         call={"return_attention_scores": True}, as_list=True),
]  # fmt: skip
_IDS = [f"{case.name}{'_whole' if case.whole else ''}" for case in CASES]


def _randomize(layer: Any, rng: np.random.Generator) -> None:
    layer.set_weights([rng.standard_normal(w.shape).astype(np.float32) for w in layer.get_weights()])
    for weight in layer.weights:
        if "variance" in weight.path:
            weight.assign(np.abs(weight.numpy()) + 0.1)


def _parts(case: Case, layer: Any) -> dict[str, Lazy]:
    arrays = [np.asarray(w) for w in layer.get_weights()]
    if isinstance(layer, _keras().layers.Normalization):
        return {name: Lazy.of(np.asarray(getattr(layer, name)).reshape(-1)) for name in ("mean", "variance")}
    assert len(arrays) == len(case.parts), [w.path for w in layer.weights]
    return {
        name: Lazy.of(np.array(turn(array)))
        for (name, turn), array in zip(case.parts.items(), arrays, strict=True)
    }


def _keras() -> Any:
    import keras

    return keras


def _model(
    operation: Operation, parts: Mapping[str, Lazy], inputs: Sequence[Array], outputs: int = 1
) -> Model:
    ports = tuple(Port(f"x{n}", f"x{n}", (None, *x.shape[1:]), str(x.dtype)) for n, x in enumerate(inputs))
    names = tuple(f"y{n}" for n in range(outputs))
    call = Call("layer", tuple(port.value for port in ports), names)
    layer = OperationLayer("layer", operation, parts)
    return Model({"layer": layer}, (call,), ports, tuple(Port(name, name, ()) for name in names))


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


@pytest.mark.parametrize("case", CASES, ids=_IDS)
def test_an_operation_computes_what_the_layer_does(case: Case) -> None:
    """float32 within rounding, and float64 within float32's rounding; shapes as ``shapes.infer`` says."""
    rng = np.random.default_rng(len(case.name))
    if case.whole is None:
        inputs = [rng.standard_normal(shape).astype(np.float32) for shape in case.inputs]
    else:
        inputs = [rng.integers(0, case.whole, shape) for shape in case.inputs]
    floating = not isinstance(case.operation, operations.Embedding)
    given = [x.astype(np.float32) if floating else x for x in inputs]
    layer = case.layer(_keras().layers)
    layer(given if case.as_list else given[0])
    _randomize(layer, rng)
    expected = _tuple(layer(given if case.as_list else given[0], **case.call))
    makes_mask = isinstance(case.operation, operations.Masking)
    model = _model(case.operation, _parts(case, layer), given, len(expected) + makes_mask)
    for dtype in (None, np.float64):
        got = _tuple(interpreter.run(model, *given, dtype=dtype))
        for ours, theirs in zip(got, expected, strict=False):  # a mask follows, judged elsewhere
            assert ours.dtype == (dtype or np.float32)
            assert_close(ours, theirs, tolerance=1e-5, context=dtype)
    if floating and not makes_mask:
        from_whole = _tuple(interpreter.run(model, *inputs))
        for ours, theirs in zip(from_whole, expected, strict=True):
            assert_close(ours, theirs, tolerance=1e-5)
    known = shapes.infer(model)
    for n, ours in enumerate(_tuple(interpreter.run(model, *given))):
        assert str(ours.dtype) == shapes.dtypes(model)[f"y{n}"]
        assert known[f"y{n}"] == (None, *ours.shape[1:])


def test_every_operation_is_tested() -> None:
    """No function of the interpreter is without a case."""
    tested = {type(case.operation) for case in CASES} | {
        operations.Reverse,
        operations.Select,
        operations.MultiHeadAttention,
        operations.ValidSteps,
    }
    assert set(_FUNCTIONS) <= tested


# Masks.


def test_embedding_and_masking_make_masks() -> None:
    """The masks are those that Keras's ``compute_mask`` gives; a Masking layer zeroes what it masks."""
    layers = _keras().layers
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 3, (4, 6))
    embedding = layers.Embedding(3, 2, mask_zero=True)
    expected = embedding(ids)
    parts = {"embeddings": Lazy.of(embedding.get_weights()[0])}
    y, mask = interpreter.run(_model(operations.Embedding(True), parts, [ids], 2), ids)
    assert_close(y, expected)
    np.testing.assert_array_equal(mask, embedding.compute_mask(ids))
    assert mask.dtype == bool
    x = rng.integers(0, 2, (4, 6, 2)).astype(np.float32) * np.float32(0.1)
    masking = layers.Masking(0.1)
    for dtype in (np.float32, np.float64):
        y, mask = interpreter.run(_model(operations.Masking(0.1), {}, [x], 2), x, dtype=dtype)
        assert_close(y, masking(x))
        np.testing.assert_array_equal(mask, masking.compute_mask(x))
        assert not mask.all() and mask.any()


def test_lengths_are_a_mask() -> None:
    import tensorflow as tf

    lengths, x = np.array([0, 7, 1, 4], np.int32), np.zeros((4, 7, 2), np.float32)
    ports = (Port("lengths", "lengths", (None,), "int32"), Port("x", "x", (None, None, 2)))
    layer = OperationLayer("mask", operations.ValidSteps())
    call = Call("mask", ("lengths", "x"), ("m",))
    model = Model({"mask": layer}, (call,), ports, (Port("m", "m", (None, None), "bool"),))
    mask = interpreter.run(model, lengths, x)
    np.testing.assert_array_equal(mask, tf.sequence_mask(lengths, 7).numpy())
    assert shapes.dtypes(model)["m"] == "bool"
    assert shapes.infer(model)["m"] == (None, None)


def _masked_model(
    operation: Operation, x: Array, mask: Array, parts: Mapping[str, Lazy] | None = None
) -> Model:
    return Model(
        {"layer": OperationLayer("layer", operation, parts or {})},
        (Call("layer", ("x",), ("y",), mask="m"),),
        (Port("x", "x", x.shape), Port("m", "m", mask.shape, "bool")),
        (Port("y", "y", ()),),
    )


@pytest.mark.parametrize("keep", [False, True])
def test_an_average_heeds_a_mask(keep: bool) -> None:
    """A sequence without a valid step gives NaN, as in Keras."""
    x = np.random.default_rng(2).standard_normal((4, 6, 3)).astype(np.float32)
    mask = random_mask(seed=3)
    expected = _keras().layers.GlobalAveragePooling1D(keepdims=keep)(x, mask=mask)
    got = interpreter.run(_masked_model(operations.GlobalPooling(Pool.AVERAGE, 1, keep), x, mask), x, mask)
    assert_close(got, expected)
    assert np.isnan(got).any()


def test_softmax_heeds_a_mask() -> None:
    """Masked places are zero, also in a row that has no others."""
    x = np.random.default_rng(2).standard_normal((4, 6)).astype(np.float32)
    mask = random_mask(seed=3)
    expected = _keras().layers.Softmax()(x, mask=mask)
    got = interpreter.run(_masked_model(operations.Activate(Activation("softmax")), x, mask), x, mask)
    assert_close(got, expected)


@pytest.mark.parametrize(
    "operation", [operations.GlobalPooling(Pool.MAX), operations.Dense(), operations.Activate(RELU)]
)
def test_a_mask_is_never_dropped_in_silence(operation: Operation) -> None:
    """What has no rule for a mask refuses it."""
    x = np.zeros((2, 3, 4), np.float32)
    model = _masked_model(
        operation, x, np.ones((2, 3), bool), {"kernel": Lazy.of(np.zeros((2, 4), np.float32))}
    )
    with pytest.raises(UnsupportedSource, match=r"layer 'layer'.*mask"):
        interpreter.run(model, x, np.ones((2, 3), bool))


_ROLES = {"query": (4, 5), "value": (4, 6)}


def _attention_mask(role: str) -> Array:
    """One batch row without any true place, the others with holes."""
    return random_mask(seed=len(role), batch=4, time=_ROLES[role][1])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("roles", [("query",), ("value",), ("value", "query")])
@pytest.mark.parametrize("additive", [False, True])
def test_attention_heeds_masks(additive: bool, roles: tuple[str, ...], causal: bool) -> None:
    """Masks of the value take part in the scores, masks of the query make rows zero."""
    rng = np.random.default_rng(7)
    inputs = [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 5, 3), (4, 6, 3))]
    masks = {role: _attention_mask(role) for role in roles}
    keras_layer = (_keras().layers.AdditiveAttention if additive else _keras().layers.Attention)(
        use_scale=True
    )
    keras_layer(inputs)
    _randomize(keras_layer, rng)
    expected = keras_layer(
        inputs,
        mask=[masks.get("query"), masks.get("value")],
        use_causal_mask=causal,
        return_attention_scores=True,
    )
    kind = operations.AdditiveAttention if additive else operations.Attention
    operation = kind(causal=causal, return_scores=True, masks=roles)
    parts = {"scale": Lazy.of(np.asarray(keras_layer.get_weights()[0]))}
    given = [*inputs, *masks.values()]
    model = _model(operation, parts, given, 2)
    known = shapes.infer(model)
    for n, (ours, theirs) in enumerate(zip(interpreter.run(model, *given), expected, strict=True)):
        assert_close(ours, theirs)
        assert known[f"y{n}"][1:] == ours.shape[1:]


_MULTI_HEAD_PARTS = {
    "query": lambda a: a.transpose(1, 2, 0),
    "key": lambda a: a.transpose(1, 2, 0),
    "value": lambda a: a.transpose(1, 2, 0),
    "output": lambda a: a.transpose(2, 0, 1),
}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "roles", [(), ("query",), ("value",), ("query", "value", "key", "attention")], ids="_".join
)
@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention(
    bias: bool, roles: tuple[str, ...], causal: bool, scores: bool, dropout: float
) -> None:
    """All masks take part in the scores.

    A row of which none counts is zero in Keras 3 where the layer has dropout or returns the scores; its
    other path, dot_product_attention, leaves such a row uniform.
    """
    rng = np.random.default_rng(8)
    query, value, key = (rng.standard_normal(s).astype(np.float32) for s in ((4, 5, 3), (4, 6, 4), (4, 6, 7)))
    layer = _keras().layers.MultiHeadAttention(
        2, 3, value_dim=5, output_shape=8, use_bias=bias, dropout=dropout
    )
    layer(query, value, key)
    _randomize(layer, rng)
    masks = {role: _attention_mask(role) for role in roles if role in _ROLES}
    if "key" in roles:
        masks["key"] = random_mask(seed=11, batch=4, time=6)
        masks["attention"] = rng.random((4, 5, 6)) < 0.6
    # Keras takes the query's mask from the tensor alone.
    whole = masks.get("attention", np.ones((4, 5, 6), bool))
    if "query" in roles:
        whole = whole & masks["query"][:, :, np.newaxis]
    expected = _tuple(
        layer(
            query,
            value,
            key,
            value_mask=masks.get("value"),
            key_mask=masks.get("key"),
            attention_mask=whole if "query" in roles else None,
            use_causal_mask=causal,
            return_attention_scores=scores,
        )
    )
    parts = {}
    for name, turn in _MULTI_HEAD_PARTS.items():
        dense = getattr(layer, f"{name}_dense")
        arrays = dense.get_weights()
        parts[f"{name}_kernel"] = Lazy.of(np.ascontiguousarray(turn(arrays[0])))
        if bias:
            parts[f"{name}_bias"] = Lazy.of(arrays[1])
    operation = operations.MultiHeadAttention(
        causal, scores, roles, MaskedRow.ZERO if scores or dropout else MaskedRow.UNIFORM
    )
    given = [query, value, key, *(masks[role] for role in roles)]
    model = _model(operation, parts, given, len(expected))
    for n, (ours, theirs) in enumerate(zip(_tuple(interpreter.run(model, *given)), expected, strict=True)):
        assert_close(ours, theirs)
        assert shapes.infer(model)[f"y{n}"][1:] == ours.shape[1:]


# Small operations that have no layer of their own, and combinations of masks.


def test_select_reverse_cast_and_masks_combined() -> None:
    """Against NumPy itself."""
    x = np.arange(24.0, dtype=np.float32).reshape(2, 4, 3)
    np.testing.assert_array_equal(interpreter.run(_model(operations.Select(1, -1), {}, [x]), x), x[:, -1])
    np.testing.assert_array_equal(interpreter.run(_model(operations.Reverse(1), {}, [x]), x), x[:, ::-1])
    whole = interpreter.run(_model(operations.Cast("int64"), {}, [x]), x + 0.7)
    assert whole.dtype == np.int64 and (whole == x).all()
    back = interpreter.run(_model(operations.Cast("float32"), {}, [whole]), whole, dtype=np.float64)
    assert back.dtype == np.float64
    masks = [np.array([[True, False, True]]), np.array([[True, True, False]])]
    both = interpreter.run(_model(operations.Combine(Combination.AND), {}, masks), *masks)
    either = interpreter.run(_model(operations.Combine(Combination.OR), {}, masks), *masks)
    assert both.dtype == either.dtype == bool
    assert both.tolist() == [[True, False, False]] and either.tolist() == [[True, True, True]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_model_runs_in_any_floating_dtype(dtype: Any) -> None:
    """Every layer and value is of that dtype, whatever the weights and inputs are."""
    rng = np.random.default_rng(3)
    layers = {
        "table": OperationLayer(
            "table", operations.Embedding(True), {"embeddings": Lazy.of(rng.standard_normal((5, 3)))}
        ),
        "lstm": random_layer("lstm", seed=4, dtype=np.float32),
        "dense": OperationLayer(
            "dense", operations.Dense(), {"kernel": Lazy.of(rng.standard_normal((2, 5)).astype(np.float16))}
        ),
    }
    calls = (
        Call("table", ("ids",), ("e", "m")),
        Call("lstm", ("e",), ("h",), mask="m"),
        Call("dense", ("h",), ("y",)),
    )
    model = Model(layers, calls, (Port("ids", "ids", (None, None), "int64"),), (Port("out", "y", ()),))
    values = interpreter.run_values(model, {"ids": np.array([[1, 2, 0]])}, dtype=dtype)
    assert {name: values[name].dtype for name in ("e", "h", "y")} == dict.fromkeys(
        ("e", "h", "y"), np.dtype(dtype)
    )
    assert values["ids"].dtype.kind == "i" and values["m"].dtype == bool
    assert interpreter.run(model, np.array([[1, 2, 0]])).dtype == np.float64  # by promotion: the table's


# Recurrent layers in a model.


def _recurrent_model(layer: Any, outputs: int, *, states: int = 0, mask: bool = False) -> Model:
    names = tuple(f"y{n}" for n in range(outputs))
    given = tuple(f"s{n}" for n in range(states))
    ports = [Port("x", "x", (None, None, layer.input_size)), *(Port(s, s, (None, None)) for s in given)]
    if mask:
        ports.append(Port("m", "m", (None, None), "bool"))
    call = Call(layer.name, ("x",), names, "m" if mask else None, given)
    return Model({layer.name: layer}, (call,), tuple(ports), tuple(Port(n, n, ()) for n in names))


_KERAS_ORDER = {
    "lstm": ("input", "forget", "cell", "output"),
    "gru": ("update", "reset", "candidate"),
    "rnn": ("hidden",),
}
_KERAS_CLASS = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}


def keras_weights(weights: Any) -> list[Array]:
    """kernel, recurrent_kernel and bias as Keras stores them, from a canonical direction with two biases."""
    order = _KERAS_ORDER[str(weights.cell)]
    kernel = np.concatenate([weights.kernel[g].T for g in order], axis=1)
    recurrent = np.concatenate([weights.recurrent[g].T for g in order], axis=1)
    biases = [
        np.concatenate([part[g] for g in order]) for part in (weights.bias_input, weights.bias_recurrent)
    ]
    bias = np.stack(biases) if str(weights.cell) == "gru" else biases[0] + biases[1]
    return [kernel, recurrent, bias]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("returns", list(Returns))
@pytest.mark.parametrize("direction", ["forward", "reverse", "both"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_recurrent_call_gives_what_keras_gives(
    cell: str, direction: str, returns: Returns, masked: bool
) -> None:
    """Outputs and states of single, go_backwards and Bidirectional layers with initial states."""
    keras = _keras()
    directions = ("forward", "reverse") if direction == "both" else (direction,)
    sequences = returns is Returns.SEQUENCE
    # Bidirectional zeroes masked steps where it returns sequences; a lone layer holds the last output.
    held = MaskedOutput.ZERO if direction == "both" and sequences else MaskedOutput.HOLD
    order = ReverseOutput.VISITED_ORDER if direction == "reverse" else ReverseOutput.INPUT_ORDER
    behaviour = SequenceBehaviour(
        returns=returns, return_state=True, reverse_output=order, masked_output=held, stateful=True
    )
    layer = random_layer(cell, seed=5, directions=directions, sequence=behaviour)
    x = np.random.default_rng(6).standard_normal((4, 6, 3)).astype(np.float32)
    mask = random_mask(seed=7) if masked else None
    make = getattr(keras.layers, _KERAS_CLASS[cell])
    theirs = make(5, return_sequences=sequences, return_state=True, go_backwards=direction == "reverse")
    if direction == "both":
        theirs = keras.layers.Bidirectional(theirs)
    kinds = 2 if cell == "lstm" else 1
    states = [
        np.random.default_rng(n).uniform(-1, 1, (4, 5)).astype(np.float32)
        for n in range(kinds * len(directions))
    ]
    theirs(x)
    theirs.set_weights([array for d in layer.directions for array in keras_weights(d.weights)])
    expected = _tuple(theirs(x, mask=mask, initial_state=states))
    model = _recurrent_model(layer, len(expected), states=len(states), mask=masked)
    got = _tuple(interpreter.run(model, x, *states, *([mask] if masked else [])))
    for n, (ours, wanted) in enumerate(zip(got, expected, strict=True)):
        assert_close(ours, wanted, context=f"output {n}")


@pytest.mark.parametrize("merge", list(Merge))
@pytest.mark.parametrize("returns", list(Returns))
def test_two_directions_merge_as_in_keras(merge: Merge, returns: Returns) -> None:
    """Every merge mode, the two outputs apart included."""
    keras = _keras()
    mode = {Merge.AVERAGE: "ave", Merge.MULTIPLY: "mul", Merge.SEPARATE: None}.get(merge, str(merge))
    behaviour = SequenceBehaviour(merge=merge, returns=returns)
    layer = random_layer("gru", seed=9, directions=("forward", "reverse"), sequence=behaviour)
    x = np.random.default_rng(6).standard_normal((4, 6, 3)).astype(np.float32)
    inner = keras.layers.GRU(5, return_sequences=returns is Returns.SEQUENCE)
    theirs = keras.layers.Bidirectional(inner, merge_mode=mode)
    theirs(x)
    theirs.set_weights([array for d in layer.directions for array in keras_weights(d.weights)])
    expected = _tuple(theirs(x))
    model = _recurrent_model(layer, len(expected))
    for ours, wanted in zip(_tuple(model.run(x)), expected, strict=True):
        assert_close(ours, wanted)
    known = shapes.infer(model)
    assert [known[f"y{n}"][-1] for n in range(len(expected))] == [y.shape[-1] for y in expected]


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_zero_output_for_mask(backwards: bool, sequences: bool) -> None:
    """A lone layer with zero_output_for_mask: zero at masked steps, the last one included."""
    behaviour = SequenceBehaviour(
        returns=Returns.SEQUENCE if sequences else Returns.LAST,
        reverse_output=ReverseOutput.VISITED_ORDER if backwards else ReverseOutput.INPUT_ORDER,
        masked_output=MaskedOutput.ZERO,
    )
    layer = random_layer(
        "lstm", seed=5, directions=("reverse" if backwards else "forward",), sequence=behaviour
    )
    x = np.random.default_rng(6).standard_normal((4, 6, 3)).astype(np.float32)
    mask = random_mask(seed=8)
    mask[2, [0, -1]] = [True, False]
    mask[3, [0, -1]] = [False, True]
    theirs = _keras().layers.LSTM(
        5, return_sequences=sequences, go_backwards=backwards, zero_output_for_mask=True
    )
    theirs(x)
    theirs.set_weights(keras_weights(layer.directions[0].weights))
    expected = theirs(x, mask=mask)
    assert_close(_recurrent_model(layer, 1, mask=True).run(x, mask), expected)


# What is said about wrong calls.


def _dense_model() -> Model:
    kernel = Lazy.of(np.ones((2, 3), np.float32))
    return _model(operations.Dense(), {"kernel": kernel}, [np.zeros((1, 3), np.float32)])


def test_wrong_inputs_are_named() -> None:
    """Missing, unknown, doubled and misshapen inputs."""
    model = _dense_model()
    x = np.zeros((1, 3), np.float32)
    for arrays, named, message in (
        ((), {}, "'x0' is missing"),
        ((x,), {"other": x}, "no input 'other'"),
        ((x,), {"x0": x}, "given twice"),
        ((x, x), {}, "2 inputs were given"),
        ((np.zeros((1, 4)),), {}, r"'x0' takes shape \(any, 3\), not \(1, 4\)"),
        ((np.zeros(3),), {}, r"'x0' takes shape"),
    ):
        with pytest.raises(ValueError, match=message):
            interpreter.run(model, *arrays, **named)
    with pytest.raises(ValueError, match="float16, float32 or float64"):
        interpreter.run(model, x, dtype=np.int32)


def test_a_source_of_weights_only_says_what_to_do() -> None:
    """No topology: one layer at a time."""
    model = Model({"lstm": random_layer("lstm", seed=1)})
    with pytest.raises(UnsupportedSource, match="recurrent") as raised:
        model.run(np.zeros((1, 2, 3)))
    assert "model.recurrent[NAME].run(x)" in str(raised.value)


def test_what_does_not_fit_names_the_layer() -> None:
    """Shapes that only show inside, rows that a table does not have, weights that are not there."""
    wide = _model(operations.Dense(), {"kernel": Lazy.of(np.ones((2, 5), np.float32))}, [np.zeros((1, 3))])
    with pytest.raises(ValueError, match=r"layer 'layer' on inputs of shape \(1, 3\)"):
        interpreter.run(wide, np.zeros((1, 3)))
    table = {"embeddings": Lazy.of(np.ones((4, 2), np.float32))}
    for row in (-1, 4):
        ids = np.array([[row]])
        with pytest.raises(ValueError, match="the table has 4"):
            interpreter.run(_model(operations.Embedding(), table, [ids]), ids)
    with pytest.raises(UnsupportedSource, match="kernel"):
        interpreter.run(_model(operations.Dense(), {}, [np.zeros((1, 3))]), np.zeros((1, 3)))
    short = np.zeros((1, 2, 3), np.float32)
    kernel = {"kernel": Lazy.of(np.zeros((2, 3, 5), np.float32))}
    with pytest.raises(ValueError, match="does not fit"):
        interpreter.run(_model(operations.Convolution1D(), kernel, [short]), short)
    last = random_layer("rnn", seed=1, sequence=SequenceBehaviour(returns=Returns.LAST))
    with pytest.raises(ValueError, match="no last step"):
        _recurrent_model(last, 1).run(np.zeros((1, 0, 3), np.float32))


def test_only_needed_values_are_kept() -> None:
    """``run_values`` gives every value, ``run`` the outputs, also when an output is used again."""
    kernel = {"kernel": Lazy.of(np.eye(3, dtype=np.float32) * 2)}
    layer = OperationLayer("twice", operations.Dense(), kernel)
    calls = (Call("twice", ("x",), ("a",)), Call("twice", ("a",), ("b",)), Call("twice", ("b",), ("c",)))
    outputs = (Port("first", "a", ()), Port("last", "c", ()), Port("same", "x", ()))
    model = Model({"twice": layer}, calls, (Port("in", "x", (None, 3)),), outputs)
    x = np.ones((1, 3), np.float32)
    first, last, same = model.run(x)
    assert (first == 2).all() and (last == 8).all() and (same == 1).all()
    assert set(interpreter.run_values(model, {"in": x})) == {"x", "a", "b", "c"}
