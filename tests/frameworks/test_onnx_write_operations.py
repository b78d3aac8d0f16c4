"""The neighbours of recurrent layers in ONNX, judged by Keras 3 in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from lstmconvert.activations import KINDS, LINEAR, RELU, SIGMOID, TANH, Activation
from lstmconvert.errors import NotRepresentable
from lstmconvert.frameworks.onnx import writer
from lstmconvert.model import Call, Layer, Model, OperationLayer, Port
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
    MaskedRow,
    MultiHeadAttention,
    Normalization,
    Operation,
    Padding,
    ParametricRelu,
    Pool,
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
    ZeroPad,
)
from lstmconvert.options import WriteOptions
from lstmconvert.tensors import Array, Lazy
from tests.frameworks.onnx_running import LOOPS, assert_close, operators, randomize, run, written

Shape = tuple[int | None, ...]
Arrays = Mapping[str, Array]
BATCH, TIME = 3, 8
SEQUENCE: Shape = (None, None, 6)
FIXED: Shape = (None, TIME, 6)
IMAGE: Shape = (None, None, None, 4)
VECTOR: Shape = (None, 6)


def parts(*names: str) -> Callable[[Sequence[Array]], Arrays]:
    """Weights that are the canonical parts as they are."""
    return lambda arrays: dict(zip(names, arrays, strict=True))


def moved(kernel: tuple[int, ...], *others: str) -> Callable[[Sequence[Array]], Arrays]:
    """A kernel whose axes are moved to the canonical order, and other parts."""
    return lambda arrays: {
        "kernel": arrays[0].transpose(kernel),
        **dict(zip(others, arrays[1:], strict=True)),
    }


def _separable(arrays: Sequence[Array]) -> Arrays:
    depthwise, pointwise, bias = arrays
    return {
        "depthwise_kernel": depthwise.transpose(1, 2, 0),
        "pointwise_kernel": pointwise[0].T,
        "bias": bias,
    }


def _normalized(arrays: Sequence[Array]) -> Arrays:
    scale, offset, mean, variance = arrays
    return {"scale": scale, "offset": offset, "mean": mean, "variance": variance}


def _heads(arrays: Sequence[Array]) -> Arrays:
    query, query_bias, key, key_bias, value, value_bias, output, output_bias = arrays
    return {
        "query_kernel": query.transpose(1, 2, 0),
        "query_bias": query_bias,
        "key_kernel": key.transpose(1, 2, 0),
        "key_bias": key_bias,
        "value_kernel": value.transpose(1, 2, 0),
        "value_bias": value_bias,
        "output_kernel": output.transpose(2, 0, 1),
        "output_bias": output_bias,
    }


def nothing(arrays: Sequence[Array]) -> Arrays:
    assert not [a for a in arrays if a.dtype.kind == "f"], "weights that the case forgets"
    return {}


def clipped(x: Any, low: float | None, high: float | None) -> Any:
    """What Keras makes of bounds, either of which may be open."""
    import keras

    return keras.ops.clip(x, -np.inf if low is None else low, np.inf if high is None else high)


@dataclass(frozen=True)
class Case:
    """A Keras layer and the canonical operation that it is."""

    name: str
    keras: Callable[[Any], Any]
    operation: Operation
    shapes: tuple[Shape, ...] = (SEQUENCE,)
    weights: Callable[[Sequence[Array]], Arrays] = nothing
    call: Callable[[Any, list[Any]], Any] | None = None


def dense(arrays: Sequence[Array]) -> Arrays:
    return moved((1, 0), "bias")(arrays)


PAIR = (SEQUENCE, SEQUENCE)
TRIPLE = (SEQUENCE, SEQUENCE, SEQUENCE)

CASES = [
    Case("dense_2d", lambda L: L.Dense(5, activation="tanh"), Dense(TANH), (VECTOR,), dense),
    Case("dense_3d", lambda L: L.Dense(5, activation="relu"), Dense(RELU), (SEQUENCE,), dense),
    Case(
        "dense_softmax",
        lambda L: L.Dense(5, activation="softmax"),
        Dense(Activation("softmax")),
        (SEQUENCE,),
        dense,
    ),
    Case("dense_4d", lambda L: L.Dense(5), Dense(), (IMAGE,), dense),
    Case("dense_no_bias", lambda L: L.Dense(5, use_bias=False), Dense(), (SEQUENCE,), moved((1, 0))),
    Case(
        "einsum",
        lambda L: L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d"),
        EinsumDense("abc,cd->abd"),
        (SEQUENCE,),
        parts("kernel", "bias"),
    ),
    Case(
        "einsum_heads",
        lambda L: L.EinsumDense("...x,xyz->...yz", (2, 3), bias_axes="yz"),
        EinsumDense("...x,xyz->...yz"),
        (SEQUENCE,),
        parts("kernel", "bias"),
    ),
    *(
        Case(
            f"conv1d_{padding}_s{stride}_d{dilation}_{groups}",
            lambda L, p=padding, s=stride, d=dilation, g=groups: L.Conv1D(
                4, 3, s, p, dilation_rate=d, groups=g, activation="relu"
            ),
            Convolution1D(stride, Padding(padding), dilation, groups, RELU),
            (shape,),
            moved((2, 1, 0), "bias"),
        )
        for padding in Padding
        for stride, dilation, groups in ((1, 1, 1), (2, 1, 1), (3, 1, 2), (1, 2, 1))
        for shape in (SEQUENCE,)
    ),
    Case(
        "conv1d_fixed",
        lambda L: L.Conv1D(4, 4, 3, "same"),
        Convolution1D(3, Padding.SAME),
        (FIXED,),
        moved((2, 1, 0), "bias"),
    ),
    Case(
        "conv1d_even",
        lambda L: L.Conv1D(4, 4, padding="same"),
        Convolution1D(1, Padding.SAME),
        (SEQUENCE,),
        moved((2, 1, 0), "bias"),
    ),
    *(
        Case(
            f"conv2d_{padding}_{strides}",
            lambda L, p=padding, s=strides: L.Conv2D(5, (3, 2), s, p),
            Convolution2D(strides, Padding(padding)),
            (IMAGE,),
            moved((3, 2, 0, 1), "bias"),
        )
        for padding in ("valid", "same")
        for strides in ((1, 1), (2, 3))
    ),
    Case(
        "conv2d_dilated",
        lambda L: L.Conv2D(6, 3, dilation_rate=(2, 1), groups=2),
        Convolution2D(dilation=(2, 1), groups=2),
        (IMAGE,),
        moved((3, 2, 0, 1), "bias"),
    ),
    *(
        Case(
            f"depthwise_{padding}",
            lambda L, p=padding: L.DepthwiseConv1D(3, padding=p, depth_multiplier=2),
            DepthwiseConvolution1D(padding=Padding(padding)),
            (SEQUENCE,),
            moved((1, 2, 0), "bias"),
        )
        for padding in ("valid", "same")
    ),
    Case(
        "separable",
        lambda L: L.SeparableConv1D(5, 3, padding="same", depth_multiplier=2, activation="tanh"),
        SeparableConvolution1D(padding=Padding.SAME, activation=TANH),
        (SEQUENCE,),
        _separable,
    ),
    *(
        Case(
            f"{kind}_pool1d_{padding}_{size}_{strides}",
            lambda L, k=kind, p=padding, n=size, s=strides: getattr(L, f"{k.title()}Pooling1D")(n, s, p),
            Pooling(Pool(kind), (size,), (strides,), Padding(padding)),
        )
        for kind in ("max", "average")
        for padding in ("valid", "same")
        for size, strides in ((2, 2), (3, 2), (3, 1))
    ),
    Case(
        "max_pool2d",
        lambda L: L.MaxPooling2D((2, 3), padding="same"),
        Pooling(Pool.MAX, (2, 3), (2, 3), Padding.SAME),
        (IMAGE,),
    ),
    Case(
        "average_pool2d",
        lambda L: L.AveragePooling2D((2, 3)),
        Pooling(Pool.AVERAGE, (2, 3), (2, 3)),
        (IMAGE,),
    ),
    Case("global_max", lambda L: L.GlobalMaxPooling1D(), GlobalPooling(Pool.MAX)),
    Case("global_average", lambda L: L.GlobalAveragePooling1D(), GlobalPooling(Pool.AVERAGE)),
    Case(
        "global_keep",
        lambda L: L.GlobalAveragePooling1D(keepdims=True),
        GlobalPooling(Pool.AVERAGE, keep_axes=True),
    ),
    Case("global_2d", lambda L: L.GlobalMaxPooling2D(), GlobalPooling(Pool.MAX, 2), (IMAGE,)),
    *(
        Case(
            f"batch_normalization_{len(shape)}_{axis}",
            lambda L, a=axis: L.BatchNormalization(axis=a),
            BatchNormalization(axis=axis),
            (shape,),
            _normalized,
        )
        for shape, axis in ((VECTOR, -1), (SEQUENCE, -1), (IMAGE, -1), (FIXED, 1))
    ),
    Case(
        "batch_normalization_bare",
        lambda L: L.BatchNormalization(center=False, scale=False),
        BatchNormalization(),
        (SEQUENCE,),
        parts("mean", "variance"),
    ),
    Case(
        "batch_normalization_bare_2d",
        lambda L: L.BatchNormalization(center=False, scale=False),
        BatchNormalization(),
        (VECTOR,),
        parts("mean", "variance"),
    ),
    Case(
        "layer_normalization",
        lambda L: L.LayerNormalization(),
        LayerNormalization(),
        (SEQUENCE,),
        parts("scale", "offset"),
    ),
    Case(
        "layer_normalization_bare",
        lambda L: L.LayerNormalization(center=False, scale=False),
        LayerNormalization(),
        (SEQUENCE,),
        parts(),
    ),
    Case(
        "layer_normalization_two",
        lambda L: L.LayerNormalization(axis=(1, 2)),
        LayerNormalization((1, 2)),
        (FIXED,),
        parts("scale", "offset"),
    ),
    Case(
        "layer_normalization_time",
        lambda L: L.LayerNormalization(axis=1),
        LayerNormalization((1,)),
        (FIXED,),
        parts("scale", "offset"),
    ),
    Case(
        "root_mean_square",
        lambda L: L.RMSNormalization(epsilon=1e-3),
        LayerNormalization(root_mean_square=True),
        (SEQUENCE,),
        parts("scale"),
    ),
    Case(
        "group_normalization",
        lambda L: L.GroupNormalization(3),
        GroupNormalization(3),
        (SEQUENCE,),
        parts("scale", "offset"),
    ),
    Case(
        "group_normalization_2d",
        lambda L: L.GroupNormalization(2),
        GroupNormalization(2),
        (IMAGE,),
        parts("scale", "offset"),
    ),
    Case("rescaling", lambda L: L.Rescaling(2.5, -1.0), Rescaling(2.5, -1.0)),
    Case("identity", lambda L: L.Dropout(0.5), Identity()),
    Case("softmax_axis", lambda L: L.Softmax(axis=1), Activate(Activation("softmax"), 1)),
    *(
        Case(
            f"relu_{slope}_{threshold}_{maximum}",
            lambda L, s=slope, t=threshold, m=maximum: L.ReLU(max_value=m, negative_slope=s, threshold=t),
            ClampedRelu(slope, threshold, maximum),
        )
        for slope, threshold, maximum in (
            (0.0, 0.0, None),
            (0.2, 0.0, 0.5),
            (0.3, 0.4, 1.0),
            (0.0, 0.4, None),
        )
    ),
    *(
        Case(
            f"clip_{low}_{high}",
            lambda L, a=low, b=high: L.Activation(lambda x: clipped(x, a, b)),
            Clip(low, high),
        )
        for low, high in ((-0.4, 0.3), (0.1, None), (None, 0.2))
    ),
    Case("prelu", lambda L: L.PReLU(), ParametricRelu(), (FIXED,), parts("slope")),
    Case("prelu_shared", lambda L: L.PReLU(shared_axes=[1]), ParametricRelu(), (SEQUENCE,), parts("slope")),
    Case("flatten", lambda L: L.Flatten(), Flatten(), (FIXED,)),
    Case("reshape", lambda L: L.Reshape((4, -1)), Reshape((4, -1)), (FIXED,)),
    Case("permute", lambda L: L.Permute((2, 1)), Transpose((0, 2, 1))),
    Case("permute_2d", lambda L: L.Permute((3, 1, 2)), Transpose((0, 3, 1, 2)), (IMAGE,)),
    Case("repeat", lambda L: L.RepeatVector(4), Repeat(4), (VECTOR,)),
    Case("crop", lambda L: L.Cropping1D((2, 1)), Crop(((2, 1),))),
    Case("crop_front", lambda L: L.Cropping1D((2, 0)), Crop(((2, 0),))),
    Case("crop_2d", lambda L: L.Cropping2D(((1, 0), (2, 1))), Crop(((1, 0), (2, 1))), (IMAGE,)),
    Case("zero_pad", lambda L: L.ZeroPadding1D((2, 1)), ZeroPad(((2, 1),))),
    Case("zero_pad_2d", lambda L: L.ZeroPadding2D(((2, 1), (0, 3))), ZeroPad(((2, 1), (0, 3))), (IMAGE,)),
    Case("up_sample", lambda L: L.UpSampling1D(3), UpSample((3,))),
    Case("up_sample_2d", lambda L: L.UpSampling2D((2, 3)), UpSample((2, 3)), (IMAGE,)),
    Case("concatenate", lambda L: L.Concatenate(), Concatenate(), PAIR),
    Case("concatenate_time", lambda L: L.Concatenate(axis=1), Concatenate(1), PAIR),
    *(
        Case(
            str(kind),
            lambda L, k=kind: getattr(L, k.title())(),
            Combine(kind),
            PAIR if kind == "subtract" else TRIPLE,
        )
        for kind in Combination
        if kind not in (Combination.AND, Combination.OR)
    ),
    Case("add_vector", lambda L: L.Add(), Combine(), (SEQUENCE, VECTOR)),
    Case("dot_3_3", lambda L: L.Dot(axes=(2, 2)), Dot((2, 2)), PAIR),
    Case("dot_time", lambda L: L.Dot(axes=(1, 1)), Dot((1, 1)), PAIR),
    Case("dot_2_2", lambda L: L.Dot(axes=1), Dot((1, 1)), (VECTOR, VECTOR)),
    Case("dot_3_2", lambda L: L.Dot(axes=(2, 1)), Dot((2, 1)), (SEQUENCE, VECTOR)),
    Case("dot_2_3", lambda L: L.Dot(axes=(1, 2)), Dot((1, 2)), (VECTOR, SEQUENCE)),
    Case("dot_unit", lambda L: L.Dot(axes=(2, 2), normalize=True), Dot((2, 2), normalize=True), PAIR),
    Case("attention", lambda L: L.Attention(), Attention(), PAIR),
    Case("attention_scaled", lambda L: L.Attention(use_scale=True), Attention(), TRIPLE, parts("scale")),
    Case(
        "attention_concat",
        lambda L: L.Attention(score_mode="concat"),
        Attention(concat=True),
        PAIR,
        parts("concat_score_weight"),
    ),
    Case(
        "attention_concat_scaled",
        lambda L: L.Attention(score_mode="concat", use_scale=True),
        Attention(concat=True),
        PAIR,
        parts("scale", "concat_score_weight"),
    ),
    Case(
        "attention_causal",
        lambda L: L.Attention(),
        Attention(causal=True, return_scores=True),
        PAIR,
        nothing,
        lambda k, x: k(x, use_causal_mask=True, return_attention_scores=True),
    ),
    Case("additive", lambda L: L.AdditiveAttention(), AdditiveAttention(), PAIR, parts("scale")),
    Case(
        "additive_bare",
        lambda L: L.AdditiveAttention(use_scale=False),
        AdditiveAttention(causal=True),
        TRIPLE,
        nothing,
        lambda k, x: k(x, use_causal_mask=True),
    ),
    Case(
        "multi_head",
        lambda L: L.MultiHeadAttention(2, 3, value_dim=5),
        MultiHeadAttention(),
        PAIR,
        _heads,
        lambda k, x: k(*x),
    ),
    Case(
        "multi_head_causal",
        lambda L: L.MultiHeadAttention(2, 3, output_shape=7),
        MultiHeadAttention(causal=True, return_scores=True),
        TRIPLE,
        _heads,
        lambda k, x: k(*x, use_causal_mask=True, return_attention_scores=True),
    ),
    Case(
        "time_dense",
        lambda L: L.TimeDistributed(L.Dense(4, activation="tanh")),
        TimeDistributed(Dense(TANH)),
        (SEQUENCE,),
        dense,
    ),
    Case(
        "time_flatten",
        lambda L: L.TimeDistributed(L.Flatten()),
        TimeDistributed(Flatten()),
        ((None, None, 3, 4),),
    ),
    Case(
        "time_conv",
        lambda L: L.TimeDistributed(L.Conv1D(3, 2, activation="relu")),
        TimeDistributed(Convolution1D(activation=RELU)),
        ((None, None, 5, 4),),
        moved((2, 1, 0), "bias"),
    ),
    Case(
        "time_global",
        lambda L: L.TimeDistributed(L.GlobalMaxPooling1D()),
        TimeDistributed(GlobalPooling(Pool.MAX)),
        ((None, None, 5, 4),),
    ),
    Case(
        "time_batch_normalization",
        lambda L: L.TimeDistributed(L.BatchNormalization()),
        TimeDistributed(BatchNormalization()),
        (SEQUENCE,),
        _normalized,
    ),
]


def model_of(
    operation: Operation, weights: Arrays, shapes: Sequence[Shape], outputs: int = 1, *, masked: bool = False
) -> Model:
    """A model of one operation; a mask is the last input."""
    layer = OperationLayer(
        "layer", operation, {name: Lazy.of(np.asarray(array)) for name, array in weights.items()}
    )
    inputs = tuple(Port(f"x{n}", f"x{n}", shape) for n, shape in enumerate(shapes))
    names = tuple(f"y{n}" for n in range(outputs))
    mask = (Port("mask", "mask", (None, None), "bool"),) if masked else ()
    call = Call("layer", tuple(p.name for p in inputs), names, "mask" if masked else None)
    return Model({"layer": layer}, (call,), (*inputs, *mask), tuple(Port(n, n, ()) for n in names))


def random_inputs(rng: np.random.Generator, shapes: Sequence[Shape]) -> list[Array]:
    """Inputs with sizes that differ from each other where they are free."""
    free = (BATCH, TIME + 1, 7, 5)
    return [
        rng.standard_normal([free[axis] if n is None else n for axis, n in enumerate(shape)]).astype(
            np.float32
        )
        for shape in shapes
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_operation_computes_what_keras_computes(case: Case) -> None:
    import keras

    rng = np.random.default_rng(1)
    inputs = random_inputs(rng, case.shapes)
    layer = case.keras(keras.layers)
    call = case.call or (lambda made, x: made(x if len(x) > 1 else x[0]))
    symbols = [keras.Input(shape[1:]) for shape in case.shapes]
    judge = keras.Model(symbols, call(layer, symbols))
    randomize(rng, judge)
    wanted = judge(inputs if len(inputs) > 1 else inputs[0])
    wanted = wanted if isinstance(wanted, (tuple, list)) else [wanted]
    arrays = layer.get_weights()
    model = written(model_of(case.operation, case.weights(arrays), case.shapes, len(wanted)))
    got = run(model, {f"x{n}": x for n, x in enumerate(inputs)})
    for (name, value), judged in zip(got.items(), wanted, strict=True):
        assert_close(value, judged, (case.name, name))
    assert not LOOPS.intersection(operators(model))


@pytest.mark.parametrize("opset", [14, 22])
@pytest.mark.parametrize(
    "name", ["layer_normalization", "global_average", "zero_pad", "group_normalization", "additive"]
)
def test_operators_that_changed_between_opsets(name: str, opset: int) -> None:
    import keras

    case = next(case for case in CASES if case.name == name)
    rng = np.random.default_rng(2)
    inputs = random_inputs(rng, case.shapes)
    layer = case.keras(keras.layers)
    layer.build(list(case.shapes) if len(case.shapes) > 1 else case.shapes[0])
    randomize(rng, layer)
    model = written(
        model_of(case.operation, case.weights(layer.get_weights()), case.shapes), WriteOptions(opset=opset)
    )
    got = run(model, {f"x{n}": x for n, x in enumerate(inputs)})
    assert_close(got["y0"], layer(inputs if len(inputs) > 1 else inputs[0]), (name, opset))


_PARAMETERS = {
    "hard_sigmoid": (0.3, 0.45), "affine": (0.5, -0.2), "scaled_tanh": (1.2, 0.7), "leaky_relu": (0.2,),
    "thresholded_relu": (0.6,), "clipped_relu": (0.9,), "elu": (0.7,), "celu": (1.3,), "selu": (1.6, 1.1),
    "hard_silu": (1 / 6, 0.5), "soft_shrink": (0.4,), "hard_shrink": (0.4,), "squareplus": (4.0,),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_activation_has_nodes_that_compute_it(kind: str) -> None:
    activation = Activation(kind, *_PARAMETERS.get(kind, ()))
    x = np.concatenate([np.linspace(-4, 4, 58), [0.0, -30.0]]).astype(np.float32).reshape(2, 5, 6)
    model = written(model_of(Activate(activation), {}, [SEQUENCE]))
    assert_close(run(model, {"x0": x})["y0"], activation(x.astype(np.float64)), kind)


VALUE_MASK = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]], bool)
QUERY_MASK = np.array([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 1]], bool)


def test_an_average_heeds_its_mask() -> None:
    import keras

    value = np.random.default_rng(3).standard_normal((3, 5, 4)).astype(np.float32)
    for keep in (False, True):
        wanted = keras.layers.GlobalAveragePooling1D(keepdims=keep)(value, mask=VALUE_MASK)
        operation = GlobalPooling(Pool.AVERAGE, keep_axes=keep)
        model = written(model_of(operation, {}, [(None, None, 4)], masked=True))
        assert_close(run(model, {"x0": value, "mask": VALUE_MASK})["y0"], wanted, keep)


def attention_model(operation: Operation, weights: Arrays, masks: Sequence[str]) -> Model:
    """Attention over q and v, with masks as further inputs."""
    held = {name: Lazy.of(np.asarray(array)) for name, array in weights.items()}
    ports = [Port("q", "q", (None, None, 4)), Port("v", "v", (None, None, 4))]
    ports += [Port(mask, mask, (None,) * (3 if mask == "attention" else 2), "bool") for mask in masks]
    call = Call("layer", tuple(port.name for port in ports), ("y", "scores"))
    outputs = (Port("y", "y", ()), Port("scores", "scores", ()))
    return Model({"layer": OperationLayer("layer", operation, held)}, (call,), tuple(ports), outputs)


def query_and_value(rng: np.random.Generator) -> tuple[Array, Array]:
    """Of 6 and 5 steps."""
    query, value = (rng.standard_normal((3, steps, 4)).astype(np.float32) for steps in (6, 5))
    return query, value


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masks", [(), ("value",), ("value", "query")], ids="-".join)
@pytest.mark.parametrize("kind", ["attention", "additive_attention"])
def test_attention_heeds_its_masks(kind: str, masks: tuple[str, ...], causal: bool) -> None:
    import keras

    rng = np.random.default_rng(4)
    query, value = query_and_value(rng)
    judge = keras.layers.Attention() if kind == "attention" else keras.layers.AdditiveAttention()
    judge.build([query.shape, value.shape])
    randomize(rng, judge)
    given = [QUERY_MASK if "query" in masks else None, VALUE_MASK if "value" in masks else None]
    wanted = judge([query, value], mask=given, use_causal_mask=causal, return_attention_scores=True)
    made = Attention if kind == "attention" else AdditiveAttention
    weights = {} if kind == "attention" else {"scale": judge.get_weights()[0]}
    model = written(attention_model(made(causal=causal, return_scores=True, masks=masks), weights, masks))
    feeds = {"value": VALUE_MASK, "query": QUERY_MASK}
    got = run(model, {"q": query, "v": value, **{mask: feeds[mask] for mask in masks}})
    for name, judged in zip(("y", "scores"), wanted, strict=True):
        assert_close(got[name], judged, (kind, masks, causal, name))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "masks", [("query",), ("value",), ("query", "value", "key", "attention")], ids="-".join
)
def test_multi_head_attention_heeds_its_masks(masks: tuple[str, ...], causal: bool) -> None:
    import keras

    rng = np.random.default_rng(5)
    query, value = query_and_value(rng)
    key_mask, attention_mask = np.roll(VALUE_MASK, 1, axis=0), rng.random((3, 6, 5)) < 0.7
    feeds = {"query": QUERY_MASK, "value": VALUE_MASK, "key": key_mask, "attention": attention_mask}
    whole = {
        "query": QUERY_MASK[:, :, np.newaxis],
        "value": VALUE_MASK[:, np.newaxis],
        "key": key_mask[:, np.newaxis],
        "attention": attention_mask,
    }
    together = np.ones((3, 6, 5), bool)
    for mask in masks:
        together &= whole[mask]
    judge = keras.layers.MultiHeadAttention(2, 3)
    judge.build(query.shape, value.shape)
    randomize(rng, judge)
    wanted = judge(
        query, value, attention_mask=together, use_causal_mask=causal, return_attention_scores=True
    )
    weights = _heads(judge.get_weights())
    given = {"q": query, "v": value, **{mask: feeds[mask] for mask in masks}}
    zero = MaskedRow.ZERO  # what Keras 3 does where it gives the scores
    operation = MultiHeadAttention(causal=causal, return_scores=True, masks=masks, masked_row=zero)
    got = run(written(attention_model(operation, weights, masks)), given)
    for name, judged in zip(("y", "scores"), wanted, strict=True):
        assert_close(got[name], judged, (masks, causal, name))
    uniform = replace(operation, masked_row=MaskedRow.UNIFORM)
    scores = run(written(attention_model(uniform, weights, masks)), given)["scores"]
    counts = (together & np.tril(np.ones((6, 5), bool)) if causal else together).any(-1)
    assert "query" not in masks or not counts.all()
    assert_close(scores[:, 0][~counts], np.full((int((~counts).sum()), 5), 0.2), "uniform")
    assert_close(scores[:, 0][counts], got["scores"][:, 0][counts], "the other rows")


def test_masks_are_joined_by_and_and_or() -> None:
    other = ~QUERY_MASK[:, :5]
    for kind, wanted in ((Combination.AND, VALUE_MASK & other), (Combination.OR, VALUE_MASK | other)):
        layer = OperationLayer("layer", Combine(kind))
        ports = tuple(Port(name, name, (None, None), "bool") for name in ("a", "b"))
        call = Call("layer", ("a", "b"), ("y",))
        model = Model({"layer": layer}, (call,), ports, (Port("y", "y", (), "bool"),))
        np.testing.assert_array_equal(run(written(model), {"a": VALUE_MASK, "b": other})["y"], wanted)


def test_a_mask_that_an_operation_does_not_heed_is_refused() -> None:
    with pytest.raises(NotRepresentable, match="mask"):
        writer.write(model_of(Flatten(), {}, [FIXED], masked=True), "onnx_file", WriteOptions())


def _conv_lstm_weights(arrays: Sequence[Array]) -> Arrays:
    return dict(zip(("kernel", "recurrent", "bias"), arrays, strict=False))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("padding", [Padding.VALID, Padding.SAME])
def test_a_convolutional_lstm_of_fixed_length_is_written_out(
    padding: Padding, sequences: bool, rank: int
) -> None:
    import keras

    rng = np.random.default_rng(9)
    options = [
        ((1,) * rank, (1,) * rank, True),
        ((2,) * rank, (1,) * rank, False),
        ((1,) * rank, (2,) * rank, True),
    ]
    for number, (strides, dilation, bias) in enumerate(options):
        backwards = number == 1
        made = keras.layers.ConvLSTM1D if rank == 1 else keras.layers.ConvLSTM2D
        judge = made(
            3,
            (3, 2)[:rank],
            strides=strides,
            padding=str(padding),
            dilation_rate=dilation,
            use_bias=bias,
            recurrent_activation="hard_sigmoid",
            return_sequences=sequences,
            return_state=True,
            go_backwards=backwards,
        )
        x = rng.standard_normal((*(2, 4, 7, 6)[: rank + 2], 2)).astype(np.float32)
        judge.build(x.shape)
        randomize(rng, judge)
        operation = ConvolutionalLstm(
            rank,
            strides,
            padding,
            dilation,
            TANH,
            Activation("hard_sigmoid", 1 / 6, 0.5),
            return_sequences=sequences,
            return_state=True,
            go_backwards=backwards,
        )
        shape: Shape = (None, 4, *[None] * rank, 2)
        model = written(model_of(operation, _conv_lstm_weights(judge.get_weights()), [shape], 3))
        got = run(model, {"x0": x})
        for (name, value), wanted in zip(got.items(), judge(x), strict=True):
            assert_close(value, wanted, (number, name))
        assert not LOOPS.intersection(operators(model))


def test_a_convolutional_lstm_of_free_length_is_refused() -> None:
    operation = ConvolutionalLstm(1, (1,), Padding.VALID, (1,), TANH, SIGMOID)
    weights = _conv_lstm_weights([np.zeros((3, 2, 4)), np.zeros((3, 1, 4))])
    with pytest.raises(NotRepresentable, match="Loop"):
        writer.write(model_of(operation, weights, [(None, None, 4, 2)]), "onnx_file", WriteOptions())


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
def test_an_embedding_takes_the_dtype_of_its_port(dtype: str) -> None:
    import keras

    rng = np.random.default_rng(4)
    judge = keras.layers.Embedding(7, 5, mask_zero=True)
    judge.build((None, None))
    randomize(rng, judge)
    layer = OperationLayer(
        "embedding", Embedding(mask_zero=True), {"embeddings": Lazy.of(judge.get_weights()[0])}
    )
    model = written(
        Model(
            {"embedding": layer},
            (Call("embedding", ("ids",), ("e", "m")),),
            (Port("ids", "ids", (None, None), dtype),),
            (Port("e", "e", (None, None, 5)), Port("m", "m", (None, None), "bool")),
        )
    )
    ids = rng.integers(0, 7, (3, 5)).astype(dtype)
    if dtype == "float32":
        ids += np.float32(0.5)  # cut off
    got = run(model, {"ids": ids})
    assert_close(got["e"], judge(ids), dtype)
    np.testing.assert_array_equal(got["m"], judge.compute_mask(ids))


def test_cast_reverse_select_and_normalization() -> None:
    import keras

    rng = np.random.default_rng(5)
    (x,) = random_inputs(rng, [SEQUENCE])
    mean, variance = (
        rng.standard_normal(6).astype(np.float32),
        np.abs(rng.standard_normal(6)).astype(np.float32),
    )
    for invert in (False, True):
        judge = keras.layers.Normalization(mean=mean, variance=variance, invert=invert)
        model = written(model_of(Normalization(invert), {"mean": mean, "variance": variance}, [SEQUENCE]))
        assert_close(run(model, {"x0": x})["y0"], judge(x), invert)
    wanted: list[tuple[Operation, Array]] = [
        (Reverse(), x[:, ::-1]),
        (Select(), x[:, -1]),
        (Select(2, 1), x[:, :, 1]),
        (Cast("float32"), x),
        (Rescaling((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 1.0), x * np.arange(1, 7, dtype=np.float32) + 1),
    ]
    for operation, result in wanted:
        assert_close(run(written(model_of(operation, {}, [SEQUENCE])), {"x0": x})["y0"], result, operation)


def chain(*steps: tuple[Operation, Arrays], shape: Shape = SEQUENCE) -> Model:
    """Operations one after the other."""
    layers: dict[str, Layer] = {}
    calls = []
    for n, (operation, weights) in enumerate(steps):
        layers[f"l{n}"] = OperationLayer(
            f"l{n}", operation, {k: Lazy.of(np.asarray(a)) for k, a in weights.items()}
        )
        calls.append(Call(f"l{n}", (f"v{n}",), (f"v{n + 1}",)))
    return Model(layers, tuple(calls), (Port("x", "v0", shape),), (Port("y", f"v{len(steps)}", ()),))


def test_convolutions_in_a_row_are_transposed_once() -> None:
    import keras

    rng = np.random.default_rng(6)
    judge = keras.Sequential(
        [
            keras.Input((None, 6)),
            keras.layers.Conv1D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.MaxPooling1D(2),
            keras.layers.Conv1D(5, 2, padding="causal"),
            keras.layers.GlobalMaxPooling1D(),
        ]
    )
    randomize(rng, judge)
    held = [layer.get_weights() for layer in judge.layers]
    kernel = moved((2, 1, 0), "bias")
    model = written(
        chain(
            (Convolution1D(activation=RELU), kernel(held[0])),
            (BatchNormalization(), _normalized(held[1])),
            (Pooling(Pool.MAX, (2,), (2,)), {}),
            (Convolution1D(padding=Padding.CAUSAL), kernel(held[3])),
            (GlobalPooling(Pool.MAX), {}),
        )
    )
    (x,) = random_inputs(rng, [SEQUENCE])
    assert_close(run(model, {"x": x})["y"], judge(x), "chain")
    assert operators(model) == [
        "Transpose",
        "Conv",
        "Relu",
        "BatchNormalization",
        "MaxPool",
        "Conv",
        "ReduceMax",
    ]
    assert [n.name for n in model.graph.node if n.op_type in ("Conv", "BatchNormalization")] == [
        "l0",
        "l1",
        "l3",
    ]


def test_values_in_different_orders_meet() -> None:
    rng = np.random.default_rng(7)
    kernel = rng.standard_normal((6, 6, 1)).astype(np.float32)
    weights = {"kernel": Lazy.of(kernel)}
    layers: dict[str, Layer] = {
        "conv": OperationLayer("conv", Convolution1D(), weights),
        "permute": OperationLayer("permute", Transpose((0, 2, 1))),
        "back": OperationLayer("back", Transpose((0, 2, 1))),
        "add": OperationLayer("add", Combine()),
        "join": OperationLayer("join", Concatenate(1)),
        "norm": OperationLayer("norm", LayerNormalization()),
        "scale": OperationLayer("scale", Rescaling((1.0, 2.0, 3.0, 4.0, 5.0, 6.0))),
        "softmax": OperationLayer("softmax", Activate(Activation("softmax"))),
    }
    calls = (
        Call("conv", ("x",), ("c",)),
        Call("permute", ("c",), ("p",)),
        Call("back", ("p",), ("b",)),
        Call("scale", ("b",), ("s",)),
        Call("add", ("s", "x"), ("a",)),
        Call("join", ("x", "a"), ("j",)),
        Call("norm", ("c",), ("n",)),
        Call("softmax", ("c",), ("m",)),
    )
    names = ("p", "a", "j", "n", "m")
    model = written(Model(layers, calls, (Port("x", "x", SEQUENCE),), tuple(Port(n, n, ()) for n in names)))
    (x,) = random_inputs(rng, [SEQUENCE])
    got = run(model, {"x": x})
    c = x @ kernel[:, :, 0].T
    a = c * np.arange(1, 7, dtype=np.float32) + x
    assert_close(got["p"], c.transpose(0, 2, 1), "p")
    assert_close(got["a"], a, "a")
    assert_close(got["j"], np.concatenate([x, a], axis=1), "j")
    centred = c - c.mean(-1, keepdims=True)
    assert_close(got["n"], centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3), "n")
    assert_close(got["m"], Activation("softmax")(c), "m")


def test_outputs_that_are_one_value_or_an_input() -> None:
    layers: dict[str, Layer] = {
        "id": OperationLayer("id", Identity()),
        "relu": OperationLayer("relu", Activate(RELU)),
    }
    calls = (Call("id", ("x",), ("i",)), Call("relu", ("i",), ("r",)))
    outputs = (Port("a", "r", ()), Port("b", "r", ()), Port("c", "i", ()), Port("x", "x", ()))
    model = written(Model(layers, calls, (Port("x", "x", VECTOR),), outputs))
    x = np.array([[-1.0, 2.0, 0.0, 3.0, 4.0, 5.0]], np.float32)
    got = run(model, {"x": x})
    assert list(got) == ["a", "b", "c", "x_output"]
    for name, wanted in (("a", np.maximum(x, 0)), ("b", np.maximum(x, 0)), ("c", x), ("x_output", x)):
        np.testing.assert_array_equal(got[name], wanted)


def test_a_shared_layer_has_its_weights_once() -> None:
    rng = np.random.default_rng(8)
    kernel = rng.standard_normal((5, 6)).astype(np.float32)
    layers: dict[str, Layer] = {"dense": OperationLayer("dense", Dense(LINEAR), {"kernel": Lazy.of(kernel)})}
    calls = (Call("dense", ("a",), ("ya",)), Call("dense", ("b",), ("yb",)))
    ports = tuple(Port(n, n, VECTOR) for n in ("a", "b")), tuple(Port(n, n, ()) for n in ("ya", "yb"))
    model = written(Model(layers, calls, *ports))
    assert [t.name for t in model.graph.initializer] == ["dense/kernel"]
    assert [n.name for n in model.graph.node] == ["dense", "dense_2"]
    a, b = random_inputs(rng, [VECTOR, VECTOR])
    got = run(model, {"a": a, "b": b})
    assert_close(got["ya"], a @ kernel.T, "a")
    assert_close(got["yb"], b @ kernel.T, "b")
