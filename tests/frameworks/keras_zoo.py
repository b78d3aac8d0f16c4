"""Models of Keras for the tests: each is built with Keras 3 or with tf_keras, weights random and all different."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Built = tuple[Any, list[np.ndarray]]
MODELS: dict[str, Callable[[Any, np.random.Generator], Built]] = {}
ONLY_KERAS3: set[str] = set()
ONLY_KERAS2: set[str] = set()


def model(
    function: Callable[[Any, np.random.Generator], Built],
) -> Callable[[Any, np.random.Generator], Built]:
    MODELS[function.__name__] = function
    return function


def build(name: str, keras: Any, seed: int = 0) -> Built:
    """The model with random weights, and inputs for it."""
    keras.backend.clear_session()
    rng = np.random.default_rng([seed, sum(name.encode())])
    built, inputs = MODELS[name](keras, rng)
    randomise(built, rng)
    return built, inputs


def randomise(built: Any, rng: np.random.Generator) -> None:
    """Every weight another number; variances positive; whole numbers stay."""
    weights = []
    for variable, old in zip(built.weights, built.get_weights(), strict=True):
        new = rng.normal(0, 0.6, old.shape)
        if "variance" in variable.name:
            new = np.abs(new) + 0.3
        weights.append(new.astype(old.dtype) if old.dtype.kind == "f" else old)
    built.set_weights(weights)
    for layer in built.layers:
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


def predict(built: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """What Keras itself computes."""
    # Called and not predicted: compiling a graph for every model takes most of the time.
    result = built(inputs if len(inputs) > 1 else inputs[0], training=False)
    if isinstance(result, dict):
        result = [result[key] for key in sorted(result)]
    found = result if isinstance(result, (list, tuple)) else [result]
    return [np.asarray(item.detach() if hasattr(item, "detach") else item) for item in found]


def _x(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _tokens(rng: np.random.Generator, vocabulary: int = 9, time: int = 7) -> np.ndarray:
    """Right padding, left padding, a hole, no padding, and nothing but padding."""
    tokens = rng.integers(1, vocabulary, (5, time))
    tokens[0, 4:] = 0
    tokens[1, :2] = 0
    tokens[2, 3] = 0
    tokens[4] = 0
    return tokens.astype(np.int32)


def _masked_x(rng: np.random.Generator, time: int = 7, features: int = 4) -> np.ndarray:
    x = _x(rng, 4, time, features)
    x[0, 5:] = 0
    x[1, :3] = 0
    x[2, 2] = 0
    return x


@model
def two_lstm(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    layers = [
        keras.Input((None, 4)),
        L.LSTM(3, return_sequences=True, name="first"),
        L.Dropout(0.3),
        L.LSTM(5, name="second"),
        L.Dense(2, activation="softmax", name="head"),
    ]
    return keras.Sequential(layers), [_x(rng, 3, 6, 4)]


def _single(layer: str, **options: Any) -> Callable[[Any, np.random.Generator], Built]:
    def build_one(keras: Any, rng: np.random.Generator) -> Built:
        made = getattr(keras.layers, layer)(5, name="layer", **options)
        return keras.Sequential([keras.Input((6, 4)), made]), [_x(rng, 3, 6, 4) * 3]

    return build_one


for _name, _layer, _options in [
    ("lstm_hard_sigmoid", "LSTM", {"recurrent_activation": "hard_sigmoid", "return_sequences": True}),
    ("lstm_no_bias", "LSTM", {"use_bias": False, "activation": "softsign"}),
    ("lstm_backwards", "LSTM", {"go_backwards": True, "return_sequences": True}),
    ("lstm_backwards_last", "LSTM", {"go_backwards": True}),
    ("gru_reset_after", "GRU", {"return_sequences": True}),
    ("gru_reset_before", "GRU", {"reset_after": False, "recurrent_activation": "hard_sigmoid"}),
    ("gru_no_bias", "GRU", {"use_bias": False}),
    ("rnn_relu", "SimpleRNN", {"activation": "relu", "return_sequences": True}),
    ("rnn_no_bias_backwards", "SimpleRNN", {"use_bias": False, "go_backwards": True}),
]:
    MODELS[_name] = _single(_layer, **_options)


def _bidirectional(merge: str | None, layer: str, *, sequences: bool) -> Callable[..., Built]:
    def build_one(keras: Any, rng: np.random.Generator) -> Built:
        L = keras.layers
        x = keras.Input((None, 4), name="x")
        inner = getattr(L, layer)(3, return_sequences=sequences)
        y = L.Bidirectional(inner, merge_mode=merge, name="both")(x)
        return keras.Model(x, y), [_x(rng, 3, 6, 4)]

    return build_one


for _merge in ("concat", "sum", "mul", "ave", None):
    MODELS[f"bidirectional_{_merge}"] = _bidirectional(_merge, "LSTM", sequences=True)
    MODELS[f"bidirectional_gru_last_{_merge}"] = _bidirectional(_merge, "GRU", sequences=False)


@model
def bidirectional_states(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input((5, 4), name="x")
    y, *states = L.Bidirectional(L.LSTM(3, return_sequences=True, return_state=True), name="one")(x)
    z = L.Bidirectional(L.LSTM(3, return_sequences=True), merge_mode="sum", name="two")(
        y, initial_state=states
    )
    return keras.Model(x, [z, *states]), [_x(rng, 3, 5, 4)]


@model
def bidirectional_unlike(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input((5, 4), name="x")
    y = L.Bidirectional(
        L.LSTM(3, return_sequences=True),
        backward_layer=L.GRU(3, return_sequences=True, go_backwards=True),
        merge_mode="mul",
        name="unlike",
    )(x)
    return keras.Model(x, y), [_x(rng, 3, 5, 4)]


@model
def stacked_cells(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input((5, 4), name="x")
    cells = [L.LSTMCell(3), L.GRUCell(6, reset_after=False), L.LSTMCell(2)]
    y = L.RNN(cells, return_sequences=True, name="stack")(x)
    y = L.RNN(L.SimpleRNNCell(4), go_backwards=True, return_sequences=True, name="one")(y)
    y = L.RNN([L.GRUCell(3), L.GRUCell(5)], go_backwards=True, return_sequences=True, name="back")(y)
    y = L.Bidirectional(L.RNN([L.GRUCell(3), L.LSTMCell(2)], return_sequences=True), name="both")(y)
    return keras.Model(x, y), [_x(rng, 3, 5, 4)]


@model
def masked_embedding(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    tokens = keras.Input((7,), name="tokens", dtype="int32")
    e = L.Embedding(9, 4, mask_zero=True, name="words")(tokens)
    y = L.LSTM(3, return_sequences=True, name="held")(e)
    z = L.GRU(3, name="last")(L.Dropout(0.1)(y))
    b = L.Bidirectional(L.LSTM(3, return_sequences=True), name="both")(e)
    c = L.Bidirectional(L.GRU(2), name="both_last", merge_mode="sum")(L.Dense(3, activation="tanh")(b))
    g = L.GlobalAveragePooling1D(name="mean")(L.TimeDistributed(L.Dense(3), name="steps")(b))
    w = L.LSTM(2, go_backwards=True, return_sequences=True, name="back")(e)
    tokens_in = _tokens(rng)
    return keras.Model(tokens, [y, z, b, c, g, w]), [np.delete(tokens_in, 4, axis=0)]


@model
def all_padding(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    layers = [
        keras.Input((7,), dtype="int32"),
        L.Embedding(9, 4, mask_zero=True),
        L.Bidirectional(L.LSTM(3, return_sequences=True)),
        L.GRU(3, return_sequences=True),
        L.LSTM(2),
    ]
    return keras.Sequential(layers), [_tokens(rng)]


@model
def masking_merges(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    a, b = keras.Input((7, 4), name="a"), keras.Input((7, 4), name="b")
    p, q = L.Masking(name="mask_a")(a), L.Masking(name="mask_b")(b)
    added = L.GRU(3, return_sequences=True, name="g_add")(L.Add(name="add")([p, q]))
    beside = L.GRU(3, return_sequences=True, name="g_beside")(L.Concatenate(name="beside")([p, q]))
    after = L.GRU(3, return_sequences=True, name="g_after")(L.Concatenate(axis=1, name="after")([p, q]))
    half = L.GRU(3, return_sequences=True, name="g_half")(L.Concatenate(name="half")([p, b]))
    mixed = L.GRU(3, return_sequences=True, name="g_mixed")(L.Average(name="mean")([p, b]))
    y, r = _masked_x(rng), _masked_x(rng)[::-1].copy()
    return keras.Model([a, b], [added, beside, after, half, mixed]), [y, r]


@model
def merged_masks_in_attention(keras: Any, rng: np.random.Generator) -> Built:
    """Attention finds masks on its inputs when it runs; they are not noted in its call."""
    L = keras.layers
    a, b = keras.Input((7, 4), name="a"), keras.Input((7, 4), name="b")
    p, q = L.Masking(name="mask_a")(a), L.Masking(name="mask_b")(b)
    outputs = [
        L.Attention(name="of_sum")([a, L.Add(name="add")([p, q])]),
        L.Attention(name="of_both")(
            [L.Concatenate(name="beside")([p, q]), L.Concatenate(name="half")([p, b])]
        ),
        L.Attention(name="of_long")([a, L.Concatenate(axis=1, name="after")([p, q])]),
        L.AdditiveAttention(name="of_mean")([L.Average(name="mean")([p, b]), q]),
    ]
    return keras.Model([a, b], outputs), [_masked_x(rng), _masked_x(rng)[::-1].copy()]


@model
def mask_dropped(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input((7, 4), name="x")
    m = L.Masking(name="masking")(x)
    a = L.LSTM(3, return_sequences=True, name="after_conv")(L.Conv1D(3, 2, padding="same", name="conv")(m))
    b = L.LSTM(3, return_sequences=True, name="after_norm")(L.LayerNormalization(name="norm")(m))
    c = L.LSTM(3, return_sequences=True, name="after_reshape")(L.Reshape((7, 4), name="shape")(m))
    return keras.Model(x, [a, b, c]), [_masked_x(rng)]


@model
def masked_states(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x, y = keras.Input((7, 4), name="x"), keras.Input((7, 4), name="y")
    m, n = L.Masking(name="m")(x), L.Masking(name="n")(y)
    _, h, c = L.LSTM(3, return_state=True, name="encoder")(m)
    d = L.LSTM(3, return_sequences=True, name="decoder")(n, initial_state=[h, c])
    e = L.GRU(2, return_sequences=True, name="follows")(d)
    return keras.Model([x, y], [d, e, h]), [_masked_x(rng), _masked_x(rng)]


@model
def zero_output(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    layers = [
        keras.Input((7, 4)),
        L.Masking(0.0),
        L.LSTM(3, return_sequences=True, zero_output_for_mask=True),
        L.LSTM(2, zero_output_for_mask=True),
    ]
    return keras.Sequential(layers), [_masked_x(rng)]


@model
def convolutions(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    layers = [
        keras.Input((12, 4)),
        L.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu", name="causal"),
        L.BatchNormalization(name="norm"),
        L.Conv1D(4, 2, padding="same", strides=2, name="strided"),
        L.MaxPooling1D(2, padding="same", name="pool"),
        L.Conv1D(6, 2, groups=2, use_bias=False, name="grouped"),
        L.LSTM(3, return_sequences=True, name="lstm"),
        L.AveragePooling1D(2, strides=1, name="mean"),
        L.Flatten(name="flat"),
        L.Dense(2, activation="sigmoid", name="head"),
    ]
    return keras.Sequential(layers), [_x(rng, 3, 12, 4)]


@model
def separated_convolutions(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    layers = [
        keras.Input((9, 4)),
        L.DepthwiseConv1D(3, depth_multiplier=2, padding="same", activation="tanh", name="depthwise"),
        L.SeparableConv1D(5, 2, depth_multiplier=3, strides=2, name="separable"),
        L.GRU(3, return_sequences=True, name="gru"),
        L.GlobalMaxPooling1D(name="max"),
    ]
    return keras.Sequential(layers), [_x(rng, 3, 9, 4)]


@model
def pictures(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    layers = [
        keras.Input((10, 8, 3)),
        L.Conv2D(4, (3, 2), strides=(1, 2), padding="same", activation="elu", name="conv"),
        L.ZeroPadding2D(((1, 2), (0, 1)), name="pad"),
        L.MaxPooling2D((2, 1), name="pool"),
        L.AveragePooling2D(2, padding="same", name="mean"),
        L.SpatialDropout2D(0.2, name="drop"),
        L.Permute((2, 1, 3), name="turn"),
        L.Reshape((-1, 12), name="steps"),
        L.LSTM(3, name="lstm"),
    ]
    return keras.Sequential(layers), [_x(rng, 2, 10, 8, 3)]


@model
def global_pools(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x, y = keras.Input((6, 4), name="x"), keras.Input((6, 5, 3), name="y")
    g = L.GRU(3, return_sequences=True, name="gru")(x)
    outputs = [
        L.GlobalAveragePooling1D(name="a")(g),
        L.GlobalMaxPooling1D(name="b", keepdims=True)(g),
        L.GlobalAveragePooling2D(name="c", keepdims=True)(y),
        L.GlobalMaxPooling2D(name="d")(y),
    ]
    return keras.Model([x, y], outputs), [_x(rng, 3, 6, 4), _x(rng, 3, 6, 5, 3)]


@model
def steps(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input((5, 6, 4), name="x")
    y = L.TimeDistributed(L.Conv1D(3, 2, activation="relu"), name="conv")(x)
    y = L.TimeDistributed(L.BatchNormalization(), name="norm")(y)
    y = L.TimeDistributed(L.Flatten(), name="flat")(y)
    y = L.TimeDistributed(L.Dropout(0.4), name="drop")(y)
    y = L.LSTM(3, return_sequences=True, name="lstm")(y)
    inside = keras.Sequential([keras.Input((3,)), L.Dense(4, activation="relu"), L.Dense(2)], name="inside")
    y = L.TimeDistributed(inside, name="heads")(y)
    return keras.Model(x, y), [_x(rng, 3, 5, 6, 4)]


@model
def normalisations(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input((6, 4), name="x")
    scaled = L.Rescaling(0.5, offset=-0.25, name="rescale")(x)
    standard = L.Normalization(name="standard")
    standard.adapt(_x(rng, 30, 6, 4) * 2 + 1)
    y = standard(scaled)
    y = L.LayerNormalization(epsilon=1e-2, name="layer")(y)
    y = L.GroupNormalization(groups=2, name="group")(y)
    y = L.BatchNormalization(scale=False, epsilon=1e-2, name="batch")(y)
    y = L.LayerNormalization(center=False, axis=[1, 2], name="both")(y)
    y = L.BatchNormalization(center=False, axis=1, name="time")(y)
    y = L.LSTM(3, name="lstm")(y)
    y = L.BatchNormalization(center=False, scale=False, name="bare")(y)
    return keras.Model(x, y), [_x(rng, 3, 6, 4)]


@model
def activation_layers(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input((6, 4), name="x")
    outputs = [
        L.ReLU(name="relu")(x),
        L.ReLU(max_value=1.5, negative_slope=0.1, threshold=0.2, name="clamped")(x),
        L.LeakyReLU(0.25, name="leaky")(x),
        L.ELU(0.7, name="elu")(x),
        L.PReLU(name="prelu")(x),
        L.PReLU(shared_axes=[1], name="prelu_shared")(x),
        L.Softmax(axis=1, name="softmax_time")(x),
        L.Softmax(name="softmax")(x),
    ]
    names = [
        "selu",
        "gelu",
        "swish",
        "softplus",
        "softsign",
        "exponential",
        "mish",
        "hard_sigmoid",
        "relu",
        "elu",
    ]
    outputs += [L.Activation(name, name=f"a_{name}")(x) for name in names]
    outputs += [
        L.Dense(3, activation=name, name=f"d_{name}")(x) for name in ("hard_sigmoid", "selu", "linear")
    ]
    return keras.Model(x, outputs), [_x(rng, 3, 6, 4) * 2]


@model
def activations_of_keras3(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input((6, 4), name="x")
    names = [
        "relu6", "log_softmax", "hard_silu", "hard_tanh", "hard_shrink", "soft_shrink", "tanh_shrink", "celu",
        "squareplus", "sparse_plus", "sparse_sigmoid", "log_sigmoid", "silu", "leaky_relu",
    ]  # fmt: skip
    outputs = [L.Activation(name, name=f"a_{name}")(x) for name in names]
    outputs.append(L.RMSNormalization(name="rms")(x))
    outputs.append(L.Identity(name="same")(x))
    return keras.Model(x, outputs), [_x(rng, 3, 6, 4) * 2]


ONLY_KERAS3.add("activations_of_keras3")


@model
def training_only(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    layers = [
        keras.Input((6, 4)),
        L.SpatialDropout1D(0.2),
        L.GaussianNoise(0.1),
        L.LSTM(3, return_sequences=True, dropout=0.2, recurrent_dropout=0.3),
        L.GaussianDropout(0.1),
        L.AlphaDropout(0.1),
        L.ActivityRegularization(0.1),
        L.Activation("tanh"),
    ]
    return keras.Sequential(layers), [_x(rng, 3, 6, 4)]


@model
def shapes(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input((8, 4), name="x")
    y = L.Cropping1D((1, 2), name="crop")(x)
    y = L.ZeroPadding1D((2, 0), name="pad")(y)
    y = L.UpSampling1D(2, name="up")(y)
    y = L.Permute((2, 1), name="turn")(y)
    y = L.LSTM(3, name="lstm")(y)
    y = L.RepeatVector(5, name="repeat")(y)
    y = L.Reshape((3, 5), name="reshape")(y)
    y = L.EinsumDense("abc,cd->abd", output_shape=(None, 6), bias_axes="d", activation="relu", name="einsum")(
        y
    )
    y = L.EinsumDense("...x,xy->...y", output_shape=2, name="einsum_any")(y)
    return keras.Model(x, y), [_x(rng, 3, 8, 4)]


@model
def merges(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x, y, z = (keras.Input((5, 4), name=name) for name in "xyz")
    g = L.GRU(4, return_sequences=True, name="shared")
    p, q, r = g(x), g(y), g(z)
    outputs = [
        L.Add(name="add")([p, q, r]),
        L.Subtract(name="sub")([p, q]),
        L.Multiply(name="mul")([p, q, r]),
        L.Average(name="ave")([p, q, r]),
        L.Maximum(name="max")([p, q, r]),
        L.Minimum(name="min")([p, q]),
        L.Concatenate(name="cat")([p, q, r]),
        L.Concatenate(axis=1, name="cat1")([p, q]),
        L.Dot(axes=(2, 2), name="dot")([p, q]),
        L.Dot(axes=1, normalize=True, name="cosine")([p, q]),
    ]
    return keras.Model([x, y, z], outputs), [_x(rng, 3, 5, 4) for _ in range(3)]


@model
def attention(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    a, b = keras.Input((7,), dtype="int32", name="a"), keras.Input((5, 4), name="b")
    e = L.LSTM(4, return_sequences=True, name="lstm")(L.Embedding(9, 4, mask_zero=True, name="words")(a))
    f = L.GRU(4, return_sequences=True, name="gru")(b)
    plain = L.Attention(use_scale=True, name="plain")([f, e])
    other = L.Attention(score_mode="concat", use_scale=True, name="concat")([e, f, f])
    added = L.AdditiveAttention(name="added")([e, e])
    bare = L.AdditiveAttention(use_scale=False, name="bare")([f, f])
    end = L.LSTM(3, return_sequences=True, name="end")(added)
    tokens = np.delete(_tokens(rng), 4, axis=0)
    return keras.Model([a, b], [plain, other, added, bare, end]), [tokens, _x(rng, 4, 5, 4)]


@model
def attention_scores(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    b = keras.Input((5, 4), name="b")
    f = L.GRU(4, return_sequences=True, name="gru")(b)
    causal, scores = L.Attention(name="causal")([f, f], return_attention_scores=True, use_causal_mask=True)
    many, weights = L.MultiHeadAttention(2, 3, value_dim=5, output_shape=6, name="many")(
        f, b, return_attention_scores=True
    )
    again = L.MultiHeadAttention(3, 2, use_bias=False, name="again")(f, b, key=f, use_causal_mask=True)
    return keras.Model(b, [causal, scores, many, weights, again]), [_x(rng, 3, 5, 4)]


@model
def masked_heads(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    a, b = keras.Input((7,), dtype="int32", name="a"), keras.Input((5, 4), name="b")
    e = L.Embedding(9, 4, mask_zero=True, name="words")(a)
    cross = L.MultiHeadAttention(2, 3, name="cross")(b, e)
    tokens = np.delete(_tokens(rng), 4, axis=0)
    end = L.LSTM(3, return_sequences=True, name="end")(cross)
    return keras.Model([a, b], [cross, end]), [tokens, _x(rng, 4, 5, 4)]


@model
def self_attention(keras: Any, rng: np.random.Generator) -> Built:
    """A transformer block with padding: rows of the padding are masked as a whole."""
    L = keras.layers
    a = keras.Input((7,), dtype="int32", name="a")
    e = L.Embedding(9, 4, mask_zero=True, name="words")(a)
    y = L.MultiHeadAttention(2, 3, name="heads")(e, e)
    y = L.LayerNormalization(name="norm")(L.Add(name="residual")([e, y]))
    y = L.GRU(3, return_sequences=True, name="gru")(y)
    return keras.Model(a, [y]), [np.delete(_tokens(rng), 4, axis=0)]


@model
def heads_one_after_the_other(keras: Any, rng: np.random.Generator) -> Built:
    """In Keras 3 the first attention that runs takes the mask off the tensors that it shares with others."""
    L = keras.layers
    a, b = keras.Input((7,), dtype="int32", name="a"), keras.Input((5, 4), name="b")
    e = L.Embedding(9, 4, mask_zero=True, name="words")(a)
    d = L.Dropout(0.2, name="drop")(e)
    first, second = L.MultiHeadAttention(2, 3, name="first"), L.MultiHeadAttention(2, 3, name="second")
    outputs = [first(b, e), second(b, d), L.Attention(name="third")([b, e])]
    n = L.LayerNormalization(name="norm")(L.Add(name="residual")([e, L.Dense(4, name="dense")(e)]))
    outputs.append(L.MultiHeadAttention(1, 2, name="later")(outputs[0], n))
    outputs.append(L.LSTM(2, name="lstm")(n))
    tokens = np.delete(_tokens(rng), 4, axis=0)
    return keras.Model([a, b], outputs), [tokens, _x(rng, 4, 5, 4)]


@model
def transformer(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    a = keras.Input((7,), dtype="int32", name="a")
    y = L.Embedding(9, 4, mask_zero=True, name="words")(a)
    for n in "ab":
        h = L.MultiHeadAttention(2, 3, name=f"heads_{n}")(y, y)
        y = L.LayerNormalization(name=f"norm_{n}")(L.Add(name=f"residual_{n}")([y, L.Dropout(0.1)(h)]))
        y = L.Dense(4, activation="relu", name=f"dense_{n}")(y)
    pooled = L.GlobalAveragePooling1D(name="mean")(y)
    return keras.Model(a, [pooled, y]), [np.delete(_tokens(rng), 4, axis=0)]


@model
def translator(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    source, target = keras.Input((None, 4), name="source"), keras.Input((None, 3), name="target")
    _, h, c = L.LSTM(5, return_state=True, name="encoder")(source)
    y, h2, _ = L.LSTM(5, return_sequences=True, return_state=True, name="decoder")(
        target, initial_state=[h, c]
    )
    _, g = L.GRU(5, return_state=True, name="gru")(y, initial_state=h2)
    out = L.Dense(3, activation="softmax", name="words")(y)
    return keras.Model([source, target], [out, g]), [_x(rng, 3, 6, 4), _x(rng, 3, 4, 3)]


@model
def nested(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    i = keras.Input((None, 4), name="inner_in")
    j = L.LSTM(4, return_sequences=True, name="lstm")(i)
    j = L.BatchNormalization(name="norm")(j)
    k = L.Dense(4, name="dense")(j)
    inner = keras.Model(i, [j, k], name="inner")
    tail = keras.Sequential(
        [keras.Input((None, 4)), L.Dense(4, name="dense"), L.BatchNormalization()], name="tail"
    )
    a, b = keras.Input((5, 4), name="a"), keras.Input((5, 4), name="b")
    p, q = inner(a)
    r, s = inner(b)
    m = L.Add(name="add")([q, s])
    t = tail(m)
    u = tail(L.GRU(4, return_sequences=True, name="lstm")(t))
    return keras.Model([b, a], [u, p, r], name="outer"), [_x(rng, 3, 5, 4), _x(rng, 3, 5, 4)]


@model
def frozen(keras: Any, rng: np.random.Generator) -> Built:
    """Legacy files list what is trainable first: a frozen layer inside a model changes the order."""
    L = keras.layers
    i = keras.Input((None, 4), name="inner_in")
    first = L.Dense(4, name="first")
    j = L.Dense(4, name="second")(L.BatchNormalization(name="norm")(first(i)))
    inner = keras.Model(i, j, name="inner")
    first.trainable = False
    a = keras.Input((5, 4), name="a")
    lstm = L.LSTM(4, name="lstm")
    y = lstm(inner(a))
    lstm.trainable = False
    return keras.Model(a, y), [_x(rng, 3, 5, 4)]


@model
def stateful(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input(batch_shape=(3, 5, 4), name="x")
    y = L.LSTM(3, stateful=True, return_sequences=True, name="lstm")(x)
    return keras.Model(x, y), [_x(rng, 3, 5, 4)]


@model
def convolutional_lstm(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x, y = keras.Input((4, 6, 2), name="x"), keras.Input((3, 5, 4, 2), name="y")
    a = L.ConvLSTM1D(3, 2, padding="same", return_sequences=True, name="one")(x)
    b = L.ConvLSTM1D(2, 3, go_backwards=True, recurrent_activation="sigmoid", name="two")(a)
    c = L.ConvLSTM2D(2, (3, 2), strides=(2, 1), return_sequences=True, name="three")(y)
    return keras.Model([x, y], [a, b, c]), [_x(rng, 3, 4, 6, 2), _x(rng, 3, 3, 5, 4, 2)]


@model
def time_major(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input(batch_shape=(6, 3, 4), name="x")
    y = L.LSTM(5, time_major=True, return_sequences=True, name="lstm")(x)
    z = L.GRU(2, time_major=True, name="gru")(y)
    return keras.Model(x, [y, z]), [_x(rng, 6, 3, 4)]


ONLY_KERAS2.add("time_major")


@model
def operators(keras: Any, rng: np.random.Generator) -> Built:
    L = keras.layers
    x = keras.Input((5, 4), name="x")
    y = L.LSTM(4, return_sequences=True, name="lstm")(x)
    ops = keras.ops
    outputs = [
        x + y,
        y * x,
        y - x,
        y * 2.0,
        y + 1,
        y - 0.5,
        y[:, -1],
        y[:, 1, :],
        ops.relu(x),
        ops.softmax(x, axis=1),
    ]
    outputs += [ops.flip(x, axis=1), ops.transpose(y, (0, 2, 1)), ops.take(y, 2, axis=2), ops.tanh(x)]
    outputs += [ops.concatenate([x, y], axis=1)]
    return keras.Model(x, outputs), [_x(rng, 3, 5, 4)]


ONLY_KERAS3.add("operators")
