"""Models of Keras 3 and tf_keras to save: everything that gives a weight a place of its own in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FRAMEWORKS = ("keras", "tf_keras")


def framework(name: str) -> Any:
    """Keras 3 or tf_keras."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if name == "keras":
        import keras

        return keras
    import tf_keras

    return tf_keras


def model(name: str) -> Any:
    """Recurrent layers twice of one class, wrapped, stacked, nested; compiled, with random weights."""
    k = framework(name)
    layers = k.layers
    start = k.Input((5, 3), name="start")
    x = layers.LSTM(4, return_sequences=True, name="enc_a")(start)
    x = layers.LSTM(2, return_sequences=True, name="enc_b")(x)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True, name="inner"), name="bi")(x)
    cells = [layers.LSTMCell(2), layers.LSTMCell(3, name="second_cell")]
    x = layers.RNN(cells, return_sequences=True, name="stack")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    x = layers.SimpleRNN(3, return_sequences=True, name="simple")(x)
    nested = [k.Input((5, 3)), layers.LSTM(2, name="sub_lstm"), layers.Dense(4, name="sub_dense")]
    x = k.Sequential(nested, name="nested")(x)
    x = layers.BatchNormalization(name="norm")(x)
    made = k.Model(start, layers.Dense(2, name="out")(x), name="whole")
    made.compile("adam", "mse")
    made.optimizer.build(made.trainable_variables)
    randomize(made, seed=7)
    return made


def randomize(made: Any, *, seed: int) -> None:
    """Give every weight of a model other numbers, positive ones so that variances stay possible."""
    rng = np.random.default_rng(seed)
    made.set_weights([rng.uniform(0.1, 1, w.shape).astype(np.float32) for w in made.get_weights()])


def legacy_weights(layer: Any) -> list[np.ndarray]:
    """A layer's weights in the order of the legacy files."""
    return [np.asarray(w) for w in [*layer.trainable_weights, *layer.non_trainable_weights]]


def v3_weights(made: Any) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Where the newer files keep the weights of ``model``: group, and the arrays in it.

    Written down by hand, from the documentation of the format rather than from a file.
    """
    at = {layer.name: layer for layer in made.layers}
    yield "layers/lstm/cell", at["enc_a"].get_weights()
    yield "layers/lstm_1/cell", at["enc_b"].get_weights()
    forward, backward = np.array_split(np.arange(6), 2)
    both = at["bi"].get_weights()
    yield "layers/bidirectional/forward_layer/cell", [both[n] for n in forward]
    yield "layers/bidirectional/backward_layer/cell", [both[n] for n in backward]
    yield "layers/rnn/cell/cells/lstm_cell", at["stack"].get_weights()[:3]
    yield "layers/rnn/cell/cells/lstm_cell_1", at["stack"].get_weights()[3:]
    yield "layers/simple_rnn/cell", at["simple"].get_weights()
    yield "layers/sequential/layers/lstm/cell", at["nested"].get_weights()[:3]
    yield "layers/sequential/layers/dense", at["nested"].get_weights()[3:]
    yield "layers/batch_normalization", at["norm"].get_weights()
    yield "layers/dense", at["out"].get_weights()


def assert_same_model(made: Any, other: Any) -> None:
    """The same weights bit for bit, and the same output."""
    assert len(made.get_weights()) == len(other.get_weights()) > 0
    for ours, theirs in zip(made.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(made(x)), np.asarray(other(x)))


KINDS = {
    "whole_model": "model.h5",
    "weights_v3": "model.weights.h5",
    "keras_archive": "model.keras",
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Of each framework: the model, and the folder with all its files."""
    found = {}
    for name in FRAMEWORKS:
        folder = tmp_path_factory.mktemp(name)
        made = model(name)
        made.save(folder / KINDS["whole_model"])
        made.save(folder / KINDS["keras_archive"])
        made.save_weights(folder / KINDS["weights_v3"])
        if name == "tf_keras":
            made.save_weights(folder / "legacy.h5")
        found[name] = made, folder
    return found
