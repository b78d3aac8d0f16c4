"""Random whole models of Keras: graphs of recurrent layers and their neighbours, made from a seed.

A graph grows from its inputs: a layer is drawn that some value admits, applied, and its results join the
values. What nothing uses becomes an output. Weights are all different; inputs have several batch sizes and,
where time is left open, several lengths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_BATCHES, _LENGTHS = (1, 4), (13, 10)
_WORDS = 9


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph.

    Attributes:
        tensor: Keras's symbolic tensor.
        times: length of axis 1 for every length of the inputs; empty for (batch, features).
        rest: the axes after it.
        masked: whether a mask comes with it.
    """

    tensor: Any
    times: tuple[int, ...]
    rest: tuple[int, ...]
    masked: bool = False

    @property
    def is_sequence(self) -> bool:
        """Whether it is (batch, time, features)."""
        return bool(self.times) and len(self.rest) == 1

    @property
    def is_vector(self) -> bool:
        """Whether it is (batch, features)."""
        return not self.times

    @property
    def features(self) -> int:
        """Size of the last axis."""
        return self.rest[-1]

    @property
    def fixed(self) -> int | None:
        """Its number of steps, where Keras knows it."""
        size: int | None = self.tensor.shape[1] if self.times else None
        return size


@dataclass
class Architecture:
    """A random model and what to feed it.

    Attributes:
        seed: what it was made from.
        model: the Keras model.
        cases: its inputs, in order, for several batch sizes and lengths.
        kinds: the classes of its layers, in the order of drawing.
    """

    seed: int
    model: Any
    cases: list[list[Array]]
    kinds: list[str]


class _Grower:
    """The state of one growing graph."""

    def __init__(self, keras: Any, rng: np.random.Generator, *, keras3: bool) -> None:
        self.keras, self.layers, self.rng, self.keras3 = keras, keras.layers, rng, keras3
        self.values: list[Value] = []
        self.used: set[int] = set()
        self.kinds: list[str] = []
        self.shared: list[tuple[Any, Value, Callable[[Value], list[Value]]]] = []
        self.named: Counter[str] = Counter()
        self.stateful = False
        self.nested = False

    # Drawing.

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def size(self) -> int:
        return int(self.rng.integers(2, 6))

    def name(self, kind: str) -> str:
        # Not as Keras names layers: the concatenation that it makes of two masks is an operation "concatenate_1".
        name = f"{kind}_no_{1 + self.named[kind]}"
        self.named[kind] += 1
        return name

    def find(self, admits: Callable[[Value], bool]) -> Value | None:
        """A value that a layer admits; new ones are drawn more often."""
        found = [value for value in self.values if admits(value)]
        if not found:
            return None
        weights = np.array([3.0 if id(v) not in self.used else 1.0 for v in found]) * np.arange(
            1, len(found) + 1
        )
        return found[int(self.rng.choice(len(found), p=weights / weights.sum()))]

    def make(self, kind: str, *arguments: Any, **options: Any) -> Any:
        """A layer, named after what it is."""
        self.kinds.append(kind)
        short = "".join("_" + c.lower() if c.isupper() else c for c in kind).lstrip("_")
        return getattr(self.layers, kind)(*arguments, **options, name=self.name(short))

    def take(self, *values: Value) -> Any:
        """The tensors of values, which are used from now on."""
        self.used.update(id(value) for value in values)
        return values[0].tensor if len(values) == 1 else [value.tensor for value in values]

    def give(
        self, tensor: Any, times: tuple[int, ...], rest: tuple[int, ...], *, masked: bool = False
    ) -> Value:
        value = Value(tensor, times, rest, masked)
        self.values.append(value)
        return value


# Each grows the graph by one layer (or a few that belong together), and tells whether it could.
Growth = Callable[[_Grower], bool]
_GROWTHS: list[tuple[float, Growth]] = []


def _growth(weight: float) -> Callable[[Growth], Growth]:
    def register(function: Growth) -> Growth:
        _GROWTHS.append((weight, function))
        return function

    return register


_ACTIVATIONS = ("tanh", "sigmoid", "relu", "elu", "selu", "softplus", "softsign", "gelu", "swish", "linear")
_KERAS3_ACTIVATIONS = ("relu6", "silu", "leaky_relu", "hard_silu", "mish", "celu", "hard_tanh", "log_sigmoid")


def _activation(g: _Grower) -> str:
    names = _ACTIVATIONS + (("hard_sigmoid", *_KERAS3_ACTIVATIONS) if g.keras3 else ())
    return str(g.pick(names))


def _recurrent_options(g: _Grower, kind: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if g.chance(0.2):
        # What has no bound grows beyond float32 within a few steps of a GRU.
        bounded = ("sigmoid", "softsign", "tanh")
        options["activation"] = g.pick(bounded if kind == "GRU" else (*bounded, "relu", "linear", "elu"))
    if kind != "SimpleRNN" and g.chance(0.3):
        options["recurrent_activation"] = (
            g.pick(("hard_sigmoid", "hard_sigmoid", "tanh")) if g.keras3 else "tanh"
        )
    if kind == "GRU" and g.chance(0.4):
        options["reset_after"] = False
    if g.chance(0.15):
        options["use_bias"] = False
    if g.chance(0.1):
        options["dropout"] = 0.2
    return options


def _recurrent(g: _Grower, value: Value) -> tuple[str, dict[str, Any]]:
    kind = g.pick(("LSTM", "LSTM", "GRU", "GRU", "SimpleRNN"))
    options = _recurrent_options(g, kind)
    if g.chance(0.15):
        options["go_backwards"] = True
    if value.masked and g.keras3 and g.chance(0.2):
        options["zero_output_for_mask"] = True
    if g.stateful and g.chance(0.5):
        options["stateful"] = True
    return kind, options


@_growth(6)
def recurrent(g: _Grower) -> bool:
    """LSTM, GRU or SimpleRNN, perhaps with its states as further values, or with states given."""
    value = g.find(lambda v: v.is_sequence)
    if value is None:
        return False
    sequences = g.chance(0.7)
    kind, options = _recurrent(g, value)
    units = g.size()
    count = 2 if kind == "LSTM" else 1
    initial: list[Value] = []
    if g.chance(0.25) and not options.get("stateful"):
        vectors = [v for v in g.values if v.is_vector]
        if vectors:
            units = g.pick(vectors).features
            initial = [g.pick([v for v in vectors if v.features == units]) for _ in range(count)]
    states = g.chance(0.2)
    layer = g.make(kind, units, return_sequences=sequences, return_state=states, **options)
    given = {"initial_state": [v.tensor for v in initial]} if initial else {}
    g.used.update(id(v) for v in initial)
    result = layer(g.take(value), **given)
    result, finals = (result[0], result[1:]) if states else (result, [])
    if sequences:
        g.give(result, value.times, (units,), masked=value.masked)
    else:
        g.give(result, (), (units,))
    for final in finals:
        g.give(final, (), (units,))
    if not states and not initial:
        g.shared.append((layer, value, lambda v: [_again(g, layer, v, units, sequences=sequences)]))
    return True


def _again(g: _Grower, layer: Any, value: Value, units: int, *, sequences: bool) -> Value:
    times = value.times if sequences else ()
    return g.give(layer(g.take(value)), times, (units,), masked=value.masked and sequences)


@_growth(4)
def bidirectional(g: _Grower) -> bool:
    """Both directions, every merge mode; perhaps a backward layer of another kind."""
    value = g.find(lambda v: v.is_sequence)
    if value is None:
        return False
    sequences = g.chance(0.7)
    kind, options = _recurrent(g, value)
    options.pop("stateful", None)
    options.pop("zero_output_for_mask", None)
    options.pop("go_backwards", None)
    units = g.size()
    merge = g.pick(("concat", "concat", "sum", "mul", "ave", None))
    inner = getattr(g.layers, kind)(units, return_sequences=sequences, **options)
    extra = {}
    if g.chance(0.15):
        other = g.pick(("LSTM", "GRU", "SimpleRNN"))
        extra["backward_layer"] = getattr(g.layers, other)(
            units, return_sequences=sequences, go_backwards=True, **_recurrent_options(g, other)
        )
    result = g.make("Bidirectional", inner, merge_mode=merge, **extra)(g.take(value))
    times = value.times if sequences else ()
    if merge is None:
        for one in result:
            # Keras hands no mask on where the layer gives two sequences of which only one might be used.
            g.give(one, times, (units,), masked=value.masked and sequences)
    else:
        width = 2 * units if merge == "concat" else units
        g.give(result, times, (width,), masked=value.masked and sequences)
    return True


@_growth(1)
def cells(g: _Grower) -> bool:
    """RNN over one cell or several."""
    value = g.find(lambda v: v.is_sequence)
    if value is None:
        return False
    sequences = g.chance(0.7)
    made, units = [], 0
    for _ in range(int(g.rng.integers(1, 4))):
        units = g.size()
        kind = g.pick(("LSTM", "GRU", "SimpleRNN"))
        made.append(getattr(g.layers, kind + "Cell")(units, **_recurrent_options(g, kind)))
    layer = g.make("RNN", made if len(made) > 1 else made[0], return_sequences=sequences)
    _again(g, layer, value, units, sequences=sequences)
    return True


@_growth(2)
def dense(g: _Grower) -> bool:
    value = g.find(lambda v: True)
    if value is None:
        return False
    units = g.size()
    layer = g.make("Dense", units, activation=_activation(g), use_bias=g.chance(0.8))
    g.give(layer(g.take(value)), value.times, (*value.rest[:-1], units), masked=value.masked)
    g.shared.append(
        (layer, value, lambda v: [g.give(layer(g.take(v)), v.times, (*v.rest[:-1], units), masked=v.masked)])
    )
    return True


@_growth(1)
def einsum(g: _Grower) -> bool:
    value = g.find(lambda v: v.is_sequence and not v.masked)
    if value is None:
        return False
    units = g.size()
    layer = g.make("EinsumDense", "abc,cd->abd", output_shape=(None, units), bias_axes="d" if g.chance(0.7) else None,
                   activation=_activation(g))  # fmt: skip
    g.give(layer(g.take(value)), value.times, (units,))
    return True


def _shrunk(
    times: tuple[int, ...], width: int, stride: int = 1, *, same: bool, dilation: int = 1
) -> tuple[int, ...]:
    if same:
        return tuple(-(-t // stride) for t in times)
    return tuple((t - dilation * (width - 1) - 1) // stride + 1 for t in times)


@_growth(3)
def convolution(g: _Grower) -> bool:
    value = g.find(lambda v: v.is_sequence and min(v.times) >= 6)
    if value is None:
        return False
    kind = g.pick(("Conv1D", "Conv1D", "DepthwiseConv1D", "SeparableConv1D"))
    width, stride, dilation = int(g.rng.integers(1, 4)), 1, 1
    if g.chance(0.3):
        stride = 2
    elif kind != "DepthwiseConv1D" and g.chance(0.3):
        dilation = 2
    causal = kind == "Conv1D" and g.chance(0.25)
    padding = "causal" if causal else g.pick(("same", "valid"))
    options = {"strides": stride, "padding": padding, "dilation_rate": dilation,
               "use_bias": g.chance(0.8), "activation": _activation(g)}  # fmt: skip
    features = g.size()
    if kind == "DepthwiseConv1D":
        multiplier = int(g.rng.integers(1, 3))
        layer, features = (
            g.make(kind, width, depth_multiplier=multiplier, **options),
            value.features * multiplier,
        )
    elif kind == "SeparableConv1D":
        layer = g.make(kind, features, width, depth_multiplier=int(g.rng.integers(1, 3)), **options)
    else:
        groups = 1
        if value.features % 2 == 0 and g.chance(0.2):
            groups, features = 2, 4
        layer = g.make(kind, features, width, groups=groups, **options)
    times = _shrunk(value.times, width, stride, same=padding != "valid", dilation=dilation)
    g.give(layer(g.take(value)), times, (features,))
    return True


@_growth(2)
def pooling(g: _Grower) -> bool:
    value = g.find(lambda v: v.is_sequence and min(v.times) >= 6)
    if value is None:
        return False
    kind = g.pick(("MaxPooling1D", "AveragePooling1D"))
    size, stride, padding = int(g.rng.integers(2, 4)), int(g.rng.integers(1, 3)), g.pick(("same", "valid"))
    layer = g.make(kind, size, strides=stride, padding=padding)
    g.give(layer(g.take(value)), _shrunk(value.times, size, stride, same=padding == "same"), value.rest)
    return True


@_growth(2)
def global_pooling(g: _Grower) -> bool:
    value = g.find(lambda v: v.is_sequence)
    if value is None:
        return False
    kind = g.pick(("GlobalAveragePooling1D", "GlobalMaxPooling1D"))
    g.give(g.make(kind)(g.take(value)), (), value.rest)
    return True


@_growth(2)
def normalization(g: _Grower) -> bool:
    value = g.find(lambda v: True)
    if value is None:
        return False
    grouped = g.keras3 and not value.masked and value.is_sequence
    kinds = ["BatchNormalization", "LayerNormalization"] + (["GroupNormalization"] if grouped else [])
    kind = g.pick(kinds)
    options: dict[str, Any] = {"epsilon": float(g.pick((1e-3, 1e-2)))}
    if kind == "GroupNormalization":
        options["groups"] = value.features if g.chance(0.5) else 1
    else:
        options |= {"scale": g.chance(0.8), "center": g.chance(0.8)}
    layer = g.make(kind, **options)
    keeps = kind != "GroupNormalization"
    g.give(layer(g.take(value)), value.times, value.rest, masked=value.masked and keeps)
    return True


@_growth(2)
def activation_layer(g: _Grower) -> bool:
    value = g.find(lambda v: True)
    if value is None:
        return False
    kind = g.pick(("Activation", "ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax"))
    options: dict[str, Any] = {}
    arguments: tuple[Any, ...] = ()
    if kind == "Activation":
        arguments = (_activation(g),)
    elif kind == "ReLU" and g.chance(0.5):
        options = {"max_value": 1.5, "negative_slope": 0.1, "threshold": 0.2}
    elif kind == "PReLU" and value.times:
        options = {"shared_axes": [1]}
    elif kind == "Softmax" and value.masked:
        kind = "ELU"
    layer = g.make(kind, *arguments, **options)
    g.give(layer(g.take(value)), value.times, value.rest, masked=value.masked)
    return True


@_growth(1)
def training_only(g: _Grower) -> bool:
    value = g.find(lambda v: True)
    if value is None:
        return False
    kinds = ["Dropout", "GaussianNoise", "GaussianDropout", "AlphaDropout"] + (
        ["SpatialDropout1D"] if value.is_sequence else []
    )
    layer = g.make(g.pick(kinds), 0.2)
    g.give(layer(g.take(value)), value.times, value.rest, masked=value.masked)
    return True


@_growth(1)
def rescaling(g: _Grower) -> bool:
    value = g.find(lambda v: not v.masked)
    if value is None:
        return False
    g.give(g.make("Rescaling", 0.5, offset=-0.25)(g.take(value)), value.times, value.rest)
    return True


@_growth(2)
def stretch(g: _Grower) -> bool:
    """Cropping1D, ZeroPadding1D and UpSampling1D."""
    value = g.find(lambda v: v.is_sequence and min(v.times) >= 6 and max(v.times) < 20)
    if value is None:
        return False
    kind = g.pick(("Cropping1D", "ZeroPadding1D", "UpSampling1D"))
    if kind == "UpSampling1D":
        times, layer = tuple(2 * t for t in value.times), g.make(kind, 2)
    else:
        before, after = int(g.rng.integers(0, 3)), int(g.rng.integers(0, 2))
        sign = -1 if kind == "Cropping1D" else 1
        times, layer = tuple(t + sign * (before + after) for t in value.times), g.make(kind, (before, after))
    g.give(layer(g.take(value)), times, value.rest)
    return True


@_growth(1)
def repeat(g: _Grower) -> bool:
    value = g.find(lambda v: v.is_vector)
    if value is None:
        return False
    count = int(g.rng.integers(2, 8))
    lengths = len(_LENGTHS)
    g.give(g.make("RepeatVector", count)(g.take(value)), (count,) * lengths, value.rest)
    return True


@_growth(2)
def rearrange(g: _Grower) -> bool:
    """Flatten, Permute and Reshape, where all sizes are known."""
    value = g.find(lambda v: v.is_sequence and v.fixed is not None)
    if value is None or value.fixed is None:
        return False
    steps, features, lengths = value.fixed, value.features, len(value.times)
    kind = g.pick(("Flatten", "Permute", "Reshape"))
    if kind == "Flatten" and steps * features <= 60:
        g.give(g.make(kind)(g.take(value)), (), (steps * features,))
    elif kind == "Permute" and steps <= 16:
        g.give(g.make(kind, (2, 1))(g.take(value)), (features,) * lengths, (steps,))
    elif kind == "Reshape" and steps * features <= 90:
        if steps % 2 == 0:
            g.give(
                g.make(kind, (steps // 2, 2 * features))(g.take(value)),
                (steps // 2,) * lengths,
                (2 * features,),
            )
        else:
            g.give(g.make(kind, (steps * features,))(g.take(value)), (), (steps * features,))
    else:
        return False
    return True


@_growth(2)
def pictures(g: _Grower) -> bool:
    """(batch, time, rows, channels): Conv2D, pooling, ConvLSTM1D, and back to a sequence."""
    value = g.find(
        lambda v: (
            v.is_sequence
            and v.fixed is not None
            and 4 <= v.fixed <= 16
            and v.features % 2 == 0
            and v.features >= 4
        )
    )
    if value is None or value.fixed is None:
        return False
    steps, rows, lengths = value.fixed, value.features // 2, len(value.times)
    shaped = g.make("Reshape", (steps, rows, 2))(g.take(value))
    kind = g.pick(
        ("Conv2D", "ConvLSTM1D", "TimeDistributed", "ZeroPadding2D", "MaxPooling2D", "AveragePooling2D")
    )
    channels = 2
    if kind == "Conv2D":
        channels = g.size()
        shaped = g.make(kind, channels, (3, 2), padding="same", activation=_activation(g))(shaped)
    elif kind == "ConvLSTM1D":
        channels = g.size()
        options = {"go_backwards": g.chance(0.3), "recurrent_activation": "sigmoid"}
        shaped = g.make(kind, channels, 2, padding="same", return_sequences=True, **options)(shaped)
    elif kind == "TimeDistributed":
        channels = g.size()
        shaped = g.make(kind, g.layers.Conv1D(channels, 2, padding="same", activation=_activation(g)))(shaped)
    elif kind == "ZeroPadding2D":
        shaped = g.make(kind, ((1, 0), (1, 2)))(shaped)
        steps, rows = steps + 1, rows + 3
    else:
        shaped = g.make(kind, (2, 1), padding="same")(shaped)
        steps = -(-steps // 2)
    flat = g.make("TimeDistributed", g.layers.Flatten())(shaped)
    g.give(flat, (steps,) * lengths, (rows * channels,))
    return True


@_growth(2)
def steps_alone(g: _Grower) -> bool:
    """TimeDistributed over a layer or over a model."""
    value = g.find(lambda v: v.is_sequence)
    if value is None:
        return False
    units, L = g.size(), g.layers
    kind = g.pick(("dense", "norm", "model", "activation"))
    inner = {
        "dense": lambda: L.Dense(units, activation=_activation(g)),
        "norm": lambda: L.LayerNormalization(),
        "activation": lambda: L.Activation(_activation(g)),
        "model": lambda: g.keras.Sequential(
            [g.keras.Input((value.features,)), L.Dense(4, activation=_activation(g)), L.Dense(units)],
            name=g.name("steps_model"),
        ),
    }[kind]()
    features = units if kind in ("dense", "model") else value.features
    g.give(g.make("TimeDistributed", inner)(g.take(value)), value.times, (features,), masked=value.masked)
    return True


@_growth(4)
def merge(g: _Grower) -> bool:
    """Add and its kin, of values of one shape."""
    value = g.find(lambda v: any(_alike(v, w) for w in g.values if w is not v))
    if value is None:
        return False
    others = [w for w in g.values if w is not value and _alike(value, w)]
    two = [value, g.pick(others)]
    kind = g.pick(("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"))
    if len(others) > 1 and kind != "Subtract" and g.chance(0.3):
        two.append(g.pick([w for w in others if w is not two[1]]))
    masked = any(v.masked for v in two)
    g.give(g.make(kind)(g.take(*two)), value.times, value.rest, masked=masked)
    return True


def _alike(a: Value, b: Value) -> bool:
    return a.times == b.times and a.rest == b.rest and tuple(a.tensor.shape) == tuple(b.tensor.shape)


@_growth(4)
def concatenation(g: _Grower) -> bool:
    """Side by side, or one after the other in time."""

    def beside(a: Value, b: Value) -> bool:
        return a is not b and a.times == b.times and len(a.rest) == len(b.rest) == 1 and a.fixed == b.fixed

    def after(a: Value, b: Value) -> bool:
        joins = g.keras3 or a.masked == b.masked  # tf_keras fails on one mask of two
        return a is not b and a.is_sequence and b.is_sequence and a.features == b.features and joins

    fits, axis = (beside, -1) if g.chance(0.7) else (after, 1)
    value = g.find(lambda v: any(fits(v, w) for w in g.values))
    if value is None:
        return False
    other = g.pick([w for w in g.values if fits(value, w)])
    masked = value.masked or other.masked
    if axis == -1:
        if value.features + other.features > 24:
            return False
        g.give(
            g.make("Concatenate")(g.take(value, other)),
            value.times,
            (value.features + other.features,),
            masked=masked,
        )
    else:
        if max(value.times) + max(other.times) > 30:
            return False
        times = tuple(a + b for a, b in zip(value.times, other.times, strict=True))
        g.give(g.make("Concatenate", axis=1)(g.take(value, other)), times, value.rest, masked=masked)
    return True


@_growth(1.5)
def dot(g: _Grower) -> bool:
    fits = lambda a, b: (  # noqa: E731
        a is not b and not a.masked and not b.masked and a.features == b.features
        and ((a.is_vector and b.is_vector) or (a.is_sequence and b.is_sequence and b.fixed is not None))
    )  # fmt: skip
    value = g.find(lambda v: any(fits(v, w) for w in g.values))
    if value is None:
        return False
    other = g.pick([w for w in g.values if fits(value, w)])
    layer = g.make("Dot", axes=1 if value.is_vector else 2, normalize=g.chance(0.3))
    result = layer(g.take(value, other))
    if value.is_vector:
        g.give(result, (), (1,))
    else:
        g.give(result, value.times, (other.fixed,))
    return True


@_growth(3)
def attention(g: _Grower) -> bool:
    """The three attentions of Keras over two sequences, or one and itself."""
    kind = g.pick(("Attention", "AdditiveAttention", "MultiHeadAttention"))
    value = g.find(lambda v: v.is_sequence)
    if value is None:
        return False
    many = kind == "MultiHeadAttention"
    others = [w for w in g.values if w.is_sequence and (many or w.features == value.features)]
    other = g.pick(others)
    call: dict[str, Any] = {}
    if many:
        heads = int(g.rng.integers(1, 4))
        layer = g.make(kind, heads, g.size(), use_bias=g.chance(0.8))
        if g.chance(0.2):
            call["use_causal_mask"] = True
        g.used.update((id(value), id(other)))
        result = layer(value.tensor, other.tensor, **call)
        g.give(result, value.times, value.rest, masked=value.masked)
        return True
    options: dict[str, Any] = {"use_scale": g.chance(0.6)}
    if kind == "Attention" and g.chance(0.3):
        options["score_mode"] = "concat"
    layer = g.make(kind, **options)
    g.used.update((id(value), id(other)))
    result = layer([value.tensor, other.tensor], **call)
    g.give(result, value.times, other.rest, masked=value.masked)
    return True


@_growth(2)
def shared_layer(g: _Grower) -> bool:
    """A layer that has been used, on another value."""
    g.rng.shuffle(order := list(range(len(g.shared))))
    for index in order:
        layer, first, again = g.shared[index]
        fits = [v for v in g.values if v is not first and v.rest == first.rest and bool(v.times) == bool(first.times)
                and v.fixed == first.fixed and not (getattr(layer, "stateful", False))]  # fmt: skip
        if fits:
            again(g.pick(fits))
            return True
    return False


@_growth(1.5)
def nested_model(g: _Grower) -> bool:
    """A model of a few layers as one layer, perhaps used twice."""
    if g.nested:
        return False
    value = g.find(lambda v: v.is_sequence and not v.masked)
    if value is None:
        return False
    inner = _Grower(g.keras, g.rng, keras3=g.keras3)
    inner.nested = True
    port = g.keras.Input((value.fixed, value.features), name="inner_in")
    inner.give(port, value.times, value.rest)
    _grow(inner, int(g.rng.integers(2, 5)))
    outs = [v for v in inner.values[1:] if id(v) not in inner.used][-2:]
    if not outs:
        return False
    name = g.name("inner_model")
    made = g.keras.Model(port, [v.tensor for v in outs] if len(outs) > 1 else outs[0].tensor, name=name)
    g.kinds += ["Model", *inner.kinds]

    def apply(v: Value) -> list[Value]:
        result = made(g.take(v))
        results = result if isinstance(result, (list, tuple)) else [result]
        return [g.give(tensor, o.times, o.rest) for tensor, o in zip(results, outs, strict=True)]

    apply(value)
    if all(v.is_vector or v.times == value.times for v in outs):
        twins = [v for v in g.values if v is not value and _alike(v, value) and not v.masked]
        if twins and g.chance(0.5):
            apply(g.pick(twins))
    return True


def _grow(g: _Grower, count: int) -> None:
    weights = np.array([weight for weight, _ in _GROWTHS])
    grown = 0
    for _ in range(8 * count):
        _, growth = _GROWTHS[int(g.rng.choice(len(_GROWTHS), p=weights / weights.sum()))]
        grown += growth(g)
        if grown >= count:
            return


def _inputs(g: _Grower) -> tuple[list[Any], list[Callable[[int, int], Array]]]:
    """Input tensors, and for each what makes an array for (case, batch)."""
    rng, keras = g.rng, g.keras
    ports: list[Any] = []
    makers: list[Callable[[int, int], Array]] = []
    free = g.chance(0.5) and not g.stateful
    for number in range(int(g.pick((1, 1, 2, 3)))):
        kind = g.pick(("sequence", "sequence", "masked", "tokens", "tokens_masked", "vector"))
        if number == 0 and kind == "vector":
            kind = "sequence"
        features, name = g.size(), f"input_{'abc'[number]}"
        lengths = _LENGTHS if free else (_LENGTHS[0] if g.chance(0.5) else 8,) * 2
        if kind == "vector":
            shape: tuple[int | None, ...] = (features,)
        else:
            shape = (None if free else lengths[0],) + (() if kind.startswith("tokens") else (features,))
        batch = {"batch_shape": (_BATCHES[-1], *shape)} if g.stateful else {"shape": shape}
        dtype = {"dtype": "int32"} if kind.startswith("tokens") else {}
        port = keras.Input(**batch, **dtype, name=name)
        ports.append(port)
        holes = str(g.pick(("right", "right", "left", "holes")))
        if kind == "vector":
            g.give(port, (), (features,))
            makers.append(lambda _case, n, f=features: rng.standard_normal((n, f)).astype(np.float32))
        elif kind.startswith("tokens"):
            masked = kind == "tokens_masked"
            words = g.make("Embedding", _WORDS, features, mask_zero=masked)(port)
            g.give(words, lengths, (features,), masked=masked)
            makers.append(lambda case, n, t=lengths, h=holes if masked else "": _tokens(rng, n, t[case], h))
        elif kind == "masked":
            g.give(g.make("Masking")(port), lengths, (features,), masked=True)
            makers.append(lambda case, n, t=lengths, f=features, h=holes: _padded(rng, n, t[case], f, h))
        else:
            g.give(port, lengths, (features,))
            makers.append(
                lambda case, n, t=lengths, f=features: rng.standard_normal((n, t[case], f)).astype(np.float32)
            )
    return ports, makers


def _kept(rng: np.random.Generator, batch: int, time: int, holes: str) -> Array:
    """Which steps count; every row has one that does."""
    keep = np.ones((batch, time), bool)
    for row in range(batch):
        cut = int(rng.integers(1, time))
        if holes == "right":
            keep[row, cut:] = False
        elif holes == "left":
            keep[row, :-cut] = False
        elif holes == "holes":
            keep[row] = rng.random(time) < 0.6
            keep[row, cut] = True
    return keep


def _tokens(rng: np.random.Generator, batch: int, time: int, holes: str) -> Array:
    tokens = rng.integers(1 if holes else 0, _WORDS, (batch, time))
    return (tokens * _kept(rng, batch, time, holes)).astype(np.int32)


def _padded(rng: np.random.Generator, batch: int, time: int, features: int, holes: str) -> Array:
    x = rng.standard_normal((batch, time, features))
    return np.asarray(x * _kept(rng, batch, time, holes)[:, :, np.newaxis], np.float32)


def randomise(model: Any, rng: np.random.Generator) -> None:
    """Every weight another number, of a size that keeps a signal alive through many layers."""
    weights = []
    for variable, old in zip(model.weights, model.get_weights(), strict=True):
        if old.dtype.kind not in "fV":
            weights.append(old)
            continue
        fan = old.shape[0] if old.ndim == 2 else int(np.prod(old.shape[:-1])) if old.ndim > 2 else 4
        new = rng.normal(0, 1.2 / np.sqrt(max(fan, 1)), old.shape)
        name = variable.name
        if "variance" in name:
            new = np.abs(new) + 0.3
        elif "gamma" in name or "embeddings" in name:
            new = rng.normal(1.0 if "gamma" in name else 0.0, 0.5, old.shape)
        weights.append(new.astype(old.dtype))
    model.set_weights(weights)


def grow(seed: int, keras: Any) -> Architecture:
    """The random model of a seed.

    Args:
        seed: any whole number.
        keras: Keras 3 or tf_keras.
    """
    keras.backend.clear_session()
    for attempt in range(20):
        rng = np.random.default_rng([seed, attempt])
        keras3 = keras.__name__ == "keras"
        g = _Grower(keras, rng, keras3=keras3)
        g.stateful = g.chance(0.08)
        ports, makers = _inputs(g)
        leaves = len(g.values)
        _grow(g, int(rng.integers(3, 10)))
        ends = [v for v in g.values[leaves:] if id(v) not in g.used]
        if not ends:
            continue
        ends = ends[-4:]
        model = keras.Model(
            ports if len(ports) > 1 else ports[0],
            [v.tensor for v in ends] if len(ends) > 1 else ends[0].tensor,
            name=f"graph_{seed}",
        )
        if not any(kind in _RECURRENT for kind in g.kinds):
            continue
        randomise(model, rng)
        batches = (_BATCHES[-1],) * 2 if g.stateful else _BATCHES
        cases = [[make(case, batch) for make in makers] for case, batch in enumerate(batches)]
        return Architecture(seed, model, cases, g.kinds)
    raise AssertionError(f"no graph grew from seed {seed}")


_RECURRENT = {"LSTM", "GRU", "SimpleRNN", "Bidirectional", "RNN", "ConvLSTM1D"}


def predict(model: Any, inputs: Sequence[Array]) -> list[Array]:
    """What Keras itself computes, from zero states."""
    for layer in model.layers:
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_states"):
            layer.reset_states()
        elif getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
            layer.reset_state()
    result = model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
    found = result if isinstance(result, (list, tuple)) else [result]
    return [np.asarray(item.detach() if hasattr(item, "detach") else item) for item in found]
