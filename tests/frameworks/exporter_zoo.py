"""Models as the exporters of other projects write them to ONNX: torch.onnx, tf2onnx and Keras's own export."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstmconvert.tensors import Array

BATCH, TIME, FEATURES, HIDDEN = 3, 7, 4, 5
Module = tuple[nn.Module, dict[str, Array]]


def _rng() -> np.random.Generator:
    return np.random.default_rng(23)


def _x(*shape: int) -> Array:
    return _rng().standard_normal(shape).astype(np.float32)


X = {"x": _x(BATCH, TIME, FEATURES)}
TOKENS = {"x": _rng().integers(0, 20, (BATCH, TIME))}


class LastStep(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(FEATURES, HIDDEN, batch_first=True, **options)
        self.head = nn.Linear(HIDDEN * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x)[0][:, -1, :])


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6, padding_idx=0)
        self.lstm = nn.LSTM(6, HIDDEN, 2, batch_first=True, bidirectional=True)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(2 * HIDDEN, 4)

    def forward(self, x: Any) -> Any:
        return torch.log_softmax(self.head(self.drop(self.lstm(self.words(x))[0])), dim=-1)


class FinalStates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 3)

    def forward(self, x: Any) -> Any:
        h = self.gru(x)[1]
        return torch.sigmoid(self.head(torch.cat((h[-2], h[-1]), dim=1)))


class Crnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d((2, 1)))
        self.lstm = nn.LSTM(6 * 4, HIDDEN, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 7)

    def forward(self, x: Any) -> Any:
        x = self.second(self.first(x))
        b, c, h, w = x.size()
        x = x.permute(3, 0, 1, 2).reshape(w, b, c * h)
        return torch.log_softmax(self.head(self.lstm(x)[0]), dim=2)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 3)

    def forward(self, x: Any, lengths: Any) -> Any:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, (h, _) = self.lstm(packed)
        y, _ = pad_packed_sequence(y, batch_first=True)
        return self.head(y), h


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True, proj_size=3)

    def forward(self, x: Any) -> Any:
        return self.lstm(x)[0]


class AdditivePooling(nn.Module):
    """Bahdanau's attention over the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.score = nn.Linear(HIDDEN, 6)
        self.weight = nn.Linear(6, 1, bias=False)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, x: Any) -> Any:
        y = self.lstm(x)[0]
        a = torch.softmax(self.weight(torch.tanh(self.score(y))), dim=1)
        return self.head((a * y).sum(dim=1))


class ProductPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.weight = nn.Linear(HIDDEN, 1)

    def forward(self, x: Any) -> Any:
        y = self.gru(x)[0]
        a = torch.softmax(self.weight(y).squeeze(-1), dim=1)
        return torch.bmm(a.unsqueeze(1), y).squeeze(1)


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(3 * HIDDEN, 2)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.gru(x)[0])
        return self.head(torch.cat([y.mean(1), y.max(1).values, y[:, -1]], dim=1))


class EveryStep(nn.Module):
    """A picture for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.lstm = nn.LSTM(3 * 4 * 3, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 2)

    def forward(self, x: Any) -> Any:
        b, t, c, h, w = x.shape
        y = torch.relu(self.conv(x.reshape(b * t, c, h, w)))
        return self.head(self.lstm(y.reshape(b, t, -1))[0])


class Gated(nn.Module):
    """Halves of the features, and activations that are spelled out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.rnn = nn.RNN(4, HIDDEN, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, x: Any) -> Any:
        a, b = self.first(x).chunk(2, dim=-1)
        y = self.rnn(a * torch.sigmoid(b))[0]
        return nn.functional.gelu(self.head(y)).clamp(min=-0.05, max=1.5)


class Scaled(nn.Module):
    """Numbers put into a range, padded in time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, FEATURES))
        self.register_buffer("deviation", torch.linspace(0.5, 3, FEATURES))
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, x: Any) -> Any:
        x = nn.functional.pad((x - self.mean) / self.deviation, (0, 0, 2, 0))
        return self.head(nn.functional.silu(self.lstm(x)[0]))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(FEATURES, FEATURES, batch_first=True)
        self.second = nn.LSTM(FEATURES, FEATURES, batch_first=True)
        self.conv = nn.Conv1d(FEATURES, 6, 3, padding=1)

    def forward(self, x: Any) -> Any:
        y = x + self.first(x)[0]
        z = y + self.second(y)[0].flip(1)
        return torch.tanh(self.conv(z.transpose(1, 2))).transpose(1, 2)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        y = self.lstm(x)[0]
        return self.head(y + self.attention(y, y, y, need_weights=False)[0])


class Decoder(nn.Module):
    """An encoder whose final state starts a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.words = nn.Embedding(20, 6)
        self.decoder = nn.GRU(6, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, 20)

    def forward(self, x: Any, tokens: Any) -> Any:
        _, h = self.encoder(x)
        return self.head(self.decoder(self.words(tokens), h)[0])


TORCH: dict[str, Callable[[], Module]] = {
    "lstm_last": lambda: (LastStep(nn.LSTM, num_layers=2, dropout=0.2), X),
    "gru_last": lambda: (LastStep(nn.GRU, bidirectional=True), X),
    "rnn_last": lambda: (LastStep(nn.RNN), X),
    "tagger": lambda: (Tagger(), TOKENS),
    "final_states": lambda: (FinalStates(), X),
    "crnn": lambda: (Crnn(), {"x": _x(2, 1, 16, 12)}),
    "packed": lambda: (Packed(), {**X, "lengths": np.array([7, 3, 5])}),
    "projected": lambda: (Projected(), X),
    "additive_pooling": lambda: (AdditivePooling(), X),
    "product_pooling": lambda: (ProductPooling(), X),
    "pools": lambda: (Pools(), X),
    "every_step": lambda: (EveryStep(), {"x": _x(2, 4, 1, 6, 5)}),
    "gated": lambda: (Gated(), X),
    "scaled": lambda: (Scaled(), X),
    "residual": lambda: (Residual(), X),
    "heads": lambda: (Heads(), X),
    "decoder": lambda: (Decoder(), {**X, "tokens": _rng().integers(0, 20, (BATCH, 5))}),
}


def export_torch(name: str, path: Path, *, dynamo: bool) -> dict[str, Array]:
    """Write a module as ``torch.onnx.export`` does; the arrays that it takes."""
    torch.manual_seed(7)
    module, feeds = TORCH[name]()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    module.eval()
    arguments = tuple(torch.from_numpy(array) for array in feeds.values())
    pictures = feeds["x"].ndim > 3
    axes = {
        key: {0: "batch"} if pictures or array.ndim < 2 else {0: "batch", 1: f"{key}_time"}
        for key, array in feeds.items()
    }
    options: dict[str, Any] = {"dynamic_axes": axes}
    if dynamo:
        options = {"external_data": False, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, arguments, str(path), dynamo=dynamo, input_names=list(feeds), **options)
    return feeds


def _keras_models(keras: Any) -> dict[str, Callable[[], tuple[Any, list[Array]]]]:
    L = keras.layers

    def sequential(*layers: Any) -> Any:
        return keras.Sequential(list(layers))

    def tokens() -> Array:
        return _rng().integers(1, 20, (BATCH, TIME)).astype(np.int32)

    def bidirectional() -> Any:
        return sequential(
            keras.Input((TIME,), dtype="int32"),
            L.Embedding(20, 6),
            L.Bidirectional(L.LSTM(HIDDEN, return_sequences=True)),
            L.Bidirectional(L.GRU(3)),
            L.Dense(2, activation="softmax"),
        )

    def convolutional() -> Any:
        return sequential(
            keras.Input((12, FEATURES)),
            L.Conv1D(6, 3, padding="same", activation="relu"),
            L.BatchNormalization(),
            L.MaxPooling1D(2),
            L.LSTM(HIDDEN, return_sequences=True),
            L.LayerNormalization(),
            L.GlobalAveragePooling1D(),
            L.Dense(3, activation="sigmoid"),
        )

    def normalized() -> Any:
        return sequential(
            keras.Input((None, FEATURES)),
            L.LSTM(HIDDEN, return_sequences=True),
            L.LayerNormalization(center=False),
            L.GRU(HIDDEN),
            L.LayerNormalization(scale=False, epsilon=1e-2),
            L.Dense(HIDDEN),
            L.LayerNormalization(scale=False, center=False),
        )

    def reset_before() -> Any:
        return sequential(
            keras.Input((TIME, FEATURES)),
            L.GRU(HIDDEN, reset_after=False, return_sequences=True),
            L.TimeDistributed(L.Dense(3, activation="tanh")),
            L.Flatten(),
            L.Dense(2),
        )

    def branches() -> Any:
        x = keras.Input((TIME, FEATURES), name="x")
        a = L.LSTM(HIDDEN, name="a")(x)
        b = L.GRU(HIDDEN, go_backwards=True, name="b")(x)
        y = L.Concatenate(name="joined")([a, b])
        return keras.Model(x, [L.Dense(2, name="first")(y), L.Add(name="sum")([a, b])])

    def simple() -> Any:
        return sequential(
            keras.Input((TIME, FEATURES)),
            L.SimpleRNN(HIDDEN, activation="relu"),
            L.Dense(2, activation="elu"),
        )

    def summed() -> Any:
        return sequential(
            keras.Input((TIME, FEATURES)),
            L.Bidirectional(L.LSTM(HIDDEN, return_sequences=True), merge_mode="sum"),
            L.LSTM(3, return_sequences=False),
            L.RepeatVector(4),
            L.LSTM(3, return_sequences=True),
        )

    def masked() -> Any:
        return sequential(
            keras.Input((TIME,), dtype="int32"),
            L.Embedding(20, 6, mask_zero=True),
            L.LSTM(HIDDEN),
            L.Dense(2),
        )

    x = [_x(BATCH, TIME, FEATURES)]
    return {
        "bidirectional": lambda: (bidirectional(), [tokens()]),
        "convolutional": lambda: (convolutional(), [_x(BATCH, 12, FEATURES)]),
        "normalized": lambda: (normalized(), x),
        "reset_before": lambda: (reset_before(), x),
        "branches": lambda: (branches(), x),
        "simple": lambda: (simple(), x),
        "summed": lambda: (summed(), x),
        "masked": lambda: (masked(), [tokens()]),
    }


KERAS = (
    "bidirectional",
    "convolutional",
    "normalized",
    "reset_before",
    "branches",
    "simple",
    "summed",
    "masked",
)


def export_keras(name: str, path: Path, *, generation: int) -> dict[str, Array]:
    """Write a model as tf2onnx does for tf_keras (2) or ``model.export`` of Keras 3; the arrays that it takes."""
    import importlib

    import tensorflow as tf

    keras = importlib.import_module("tf_keras" if generation == 2 else "keras")
    keras.utils.set_random_seed(5)
    keras.backend.clear_session()
    built, arrays = _keras_models(keras)[name]()
    rng = _rng()
    built.set_weights(
        [
            (
                np.abs(rng.normal(0, 0.5, old.shape)) + 0.2
                if "variance" in v.name
                else rng.normal(0, 0.5, old.shape)
            ).astype(old.dtype)
            for v, old in zip(built.weights, built.get_weights(), strict=True)
        ]
    )
    if generation == 2:
        import tf2onnx

        specs = [tf.TensorSpec((None, *a.shape[1:]), a.dtype, name=f"x{n}") for n, a in enumerate(arrays)]
        tf2onnx.convert.from_keras(built, input_signature=specs, opset=17, output_path=str(path))
    else:
        built(arrays[0])  # a Sequential model is exported only after it was called
        built.export(str(path), format="onnx", verbose=False)
    import onnx

    names = [info.name for info in onnx.load(path).graph.input]
    return dict(zip(names, arrays, strict=True))
