"""Optimizer state: after the conversion, one more step from the same batch gives the same weights on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from tests.tensorflow1_runtime import RUNTIME

Array = np.ndarray[Any, Any]
BATCH, TIME, INPUT, HIDDEN = 4, 6, 3, 5
RNG = np.random.default_rng(41)
X, Y = (
    RNG.normal(size=(BATCH, TIME, INPUT)).astype(np.float32),
    RNG.normal(size=(BATCH, 2)).astype(np.float32),
)
KERAS = {
    "adam": lambda keras: keras.optimizers.Adam(0.02, beta_1=0.8, beta_2=0.95),
    "adamw": lambda keras: keras.optimizers.AdamW(0.02, weight_decay=0.1, beta_2=0.95),
    "rmsprop": lambda keras: keras.optimizers.RMSprop(0.01, rho=0.8),
    "rmsprop momentum": lambda keras: keras.optimizers.RMSprop(0.01, rho=0.8, momentum=0.7),
    "sgd momentum": lambda keras: keras.optimizers.SGD(0.05, momentum=0.9),
    "sgd nesterov": lambda keras: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
}
TORCH = {
    "adam": lambda torch, p: torch.optim.Adam(p, 0.02, (0.8, 0.95)),
    "adamw": lambda torch, p: torch.optim.AdamW(p, 0.02, (0.9, 0.95), weight_decay=0.1),
    "rmsprop": lambda torch, p: torch.optim.RMSprop(p, 0.01, alpha=0.8),
    "rmsprop momentum": lambda torch, p: torch.optim.RMSprop(p, 0.01, alpha=0.8, momentum=0.7),
    "sgd momentum": lambda torch, p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "sgd nesterov": lambda torch, p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
}


def keras_model(keras: Any, cell: str) -> Any:
    layers = keras.layers
    recurrent = {
        "lstm": lambda: layers.LSTM(HIDDEN), "gru": lambda: layers.GRU(HIDDEN), "rnn": lambda: layers.SimpleRNN(HIDDEN),
        "bidirectional": lambda: layers.Bidirectional(layers.LSTM(HIDDEN)),
    }[cell]()  # fmt: skip
    model = keras.Sequential([
        layers.Input((TIME, INPUT)), layers.Dense(4, activation="tanh"), layers.LSTM(4, return_sequences=True), recurrent,
        layers.BatchNormalization(), layers.Dense(2),
    ])  # fmt: skip
    rng = np.random.default_rng(7)
    model.set_weights([w if w.ndim == 1 else rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def weight_of_loss(kind: str) -> float:
    """Large gradients where steps do not depend on their size, so that epsilon, which is not the same, is small."""
    return 1.0 if kind.startswith("sgd") else 1000.0


def keras_steps(model: Any, steps: int, kind: str, y: Array = Y) -> None:
    import tensorflow as tf

    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = weight_of_loss(kind) * tf.reduce_sum((model(X, training=False) - y) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def torch_steps(module: Any, optimizer: Any, steps: int, kind: str, y: Array = Y) -> None:
    import torch

    for _ in range(steps):
        optimizer.zero_grad()
        (weight_of_loss(kind) * ((module(torch.from_numpy(X)) - torch.from_numpy(y)) ** 2).sum()).backward()
        optimizer.step()


def torch_optimizer(kind: str, module: Any, path: Path) -> Any:
    """As the documentation says: over the parameters that the file names."""
    import torch

    state = torch.load(path, weights_only=True)
    parameters = dict(module.named_parameters())
    names = state["param_groups"][0]["param_names"]
    optimizer = TORCH[kind](torch, [(name, parameters[name]) for name in names])
    optimizer.load_state_dict(state)
    return optimizer


def close(a: Array, b: Array, what: str) -> None:
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(np.max(np.abs(b))), err_msg=what)


CASES = [("lstm", kind) for kind in KERAS] + [
    (cell, kind) for cell in ("gru", "rnn", "bidirectional") for kind in ("adam", "sgd momentum")
]


@pytest.mark.parametrize(("cell", "kind"), CASES)
def test_keras_to_torch_and_back(cell: str, kind: str, tmp_path: Path) -> None:
    import keras

    model = keras_model(keras, cell)
    model.compile(KERAS[kind](keras), "mse")
    keras_steps(model, 3, kind)
    source = tmp_path / "source.keras"
    model.save(source)
    result = lc.convert(source, tmp_path / "out.safetensors", with_optimizer=True)
    assert result.report["verdict"] == "proved"
    assert tmp_path / "out.optimizer.pt" in result.written
    module = lc.to_torch(source)
    optimizer = torch_optimizer(kind, module, tmp_path / "out.optimizer.pt")
    before = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}

    keras_steps(model, 1, kind)
    torch_steps(module, optimizer, 1, kind)
    after = tmp_path / "after.keras"
    model.save(after)
    expected = lc.to_torch(after)
    moved = 0
    for name, parameter in expected.named_parameters():
        close(dict(module.named_parameters())[name].detach().numpy(), parameter.detach().numpy(), name)
        moved += not np.array_equal(before[name], parameter.detach().numpy())
    assert moved > 5

    lc.convert(tmp_path / "out.safetensors", tmp_path / "back.keras", with_optimizer=True)
    back = keras.models.load_model(tmp_path / "back.keras")
    assert type(back.optimizer) is type(model.optimizer)
    assert int(back.optimizer.iterations) == (
        0 if kind.startswith("sgd") else 3
    )  # SGD of torch does not count
    keras_steps(back, 1, kind)
    for one, other in zip(back.weights, model.weights, strict=True):
        close(np.asarray(one), np.asarray(other), one.path)


@pytest.mark.parametrize("kind", KERAS)
@pytest.mark.parametrize("names", [True, False], ids=["named", "numbered"])
def test_a_torch_checkpoint_to_keras(kind: str, names: bool, tmp_path: Path) -> None:
    """A GRU keeps its two biases in Keras; what is converted is the layer, in a model of one."""
    import keras
    import torch

    torch.manual_seed(3)
    gru = torch.nn.GRU(INPUT, HIDDEN, batch_first=True)
    parameters = gru.named_parameters() if names else gru.parameters()
    optimizer = TORCH[kind](torch, parameters)
    goal = RNG.normal(size=(BATCH, TIME, HIDDEN)).astype(np.float32)

    def call(x: Any) -> Any:
        return gru(x)[0]

    torch_steps(call, optimizer, 3, kind, goal)
    torch.save({"model": gru.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "source.pt")
    target = tmp_path / "out.keras"
    lc.convert(tmp_path / "source.pt", target, with_optimizer=True)
    model = keras.models.load_model(target)
    keras_steps(model, 1, kind, goal)
    torch_steps(call, optimizer, 1, kind, goal)
    model.save(tmp_path / "after.keras")
    torch.save(gru.state_dict(), tmp_path / "after.pt")
    ours, theirs = lc.read(tmp_path / "after.keras"), lc.read(tmp_path / "after.pt")
    a, b = (next(iter(m.recurrent.values())).directions[0].weights for m in (ours, theirs))
    for key in b:
        close(a[key].read(), b[key].read(), str(key))


TENSORFLOW1 = {
    "adam": ("AdamOptimizer", {"learning_rate": 0.02}),
    "rmsprop": ("RMSPropOptimizer", {"learning_rate": 0.01, "decay": 0.8, "epsilon": 1e-7}),
    "sgd momentum": ("MomentumOptimizer", {"learning_rate": 0.05, "momentum": 0.9}),
}
SPECS = [
    {
        "scope": "rnn",
        "way": "plain",
        "cells": [{"class": "BasicLSTMCell", "arguments": {"num_units": HIDDEN}}],
    }
]
GOAL = RNG.normal(size=(BATCH, TIME, HIDDEN)).astype(np.float32)


def same_weights(one: Path, other: Path) -> None:
    """Both files have the same recurrent layer, whatever a framework adds to its forget bias at run time."""
    a, b = (next(iter(lc.read(p).recurrent.values())) for p in (one, other))
    for key in b.directions[0].weights:
        x, y = (layer.directions[0].weights[key].read().astype(np.float64) for layer in (a, b))
        for layer, sign in ((a, 1), (b, -1)):
            if str(key[0]) == "bias_input":
                x = x + sign * layer.directions[0].equations.constant.get(key[1], 0.0)
        close(x, y, str(key))


@pytest.mark.parametrize("kind", TENSORFLOW1)
def test_a_checkpoint_of_tensorflow_1_goes_on_in_torch_and_back(kind: str, tmp_path: Path) -> None:
    import torch

    name, arguments = TENSORFLOW1[kind]
    told = {"optimizer": name, "arguments": arguments, "weight": weight_of_loss(kind)}
    RUNTIME.train(tmp_path / "none", tmp_path / "three", SPECS, X, GOAL, steps=3, seed=5, **told)
    RUNTIME.train(tmp_path / "three", tmp_path / "four", SPECS, X, GOAL, steps=1, **told)
    source = tmp_path / "three.index"
    lc.convert(source, tmp_path / "out.safetensors", with_optimizer=True)
    state = torch.load(tmp_path / "out.optimizer.pt", weights_only=True)
    lstm = torch.nn.LSTM(INPUT, HIDDEN, batch_first=True)
    from safetensors.torch import load_file

    held = load_file(tmp_path / "out.safetensors")
    prefix = next(key for key in held if key.endswith("weight_ih_l0")).removesuffix("weight_ih_l0")
    lstm.load_state_dict({key.removeprefix(prefix): value for key, value in held.items()})
    names = state["param_groups"][0]["param_names"]
    parameters = {prefix + key: value for key, value in lstm.named_parameters()}
    # A checkpoint says neither the learning rate nor anything else; the user does.
    own = {
        "adam": lambda p: torch.optim.Adam(p, 0.02, eps=1e-8),
        "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, alpha=0.8, eps=1e-7),
        "sgd momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    }[kind]([(key, parameters[key]) for key in names])
    settings = {key: value for key, value in own.state_dict()["param_groups"][0].items() if key != "params"}
    own.load_state_dict(state)
    own.param_groups[0].update(settings)
    torch_steps(lambda x: lstm(x)[0], own, 1, kind, GOAL)
    torch.save({prefix + key: value for key, value in lstm.state_dict().items()}, tmp_path / "after.pt")
    same_weights(tmp_path / "after.pt", tmp_path / "four.index")

    lc.convert(tmp_path / "out.safetensors", tmp_path / "back.index", to="tensorflow1", with_optimizer=True)
    RUNTIME.train(tmp_path / "back", tmp_path / "again", None, X, GOAL, steps=1, **told)
    same_weights(tmp_path / "again.index", tmp_path / "four.index")


def test_a_checkpoint_of_tensorflow_1_goes_on_in_keras(tmp_path: Path) -> None:
    import keras

    name, arguments = TENSORFLOW1["adam"]
    told = {"optimizer": name, "arguments": arguments, "weight": 1000.0}
    RUNTIME.train(tmp_path / "none", tmp_path / "three", SPECS, X, GOAL, steps=3, seed=5, **told)
    RUNTIME.train(tmp_path / "three", tmp_path / "four", SPECS, X, GOAL, steps=1, **told)
    lc.convert(tmp_path / "three.index", tmp_path / "out.keras", with_optimizer=True)
    model = keras.models.load_model(tmp_path / "out.keras")
    assert int(model.optimizer.iterations) == 3
    model.optimizer.learning_rate = 0.02
    keras_steps(model, 1, "adam", GOAL)
    model.save(tmp_path / "after.keras")
    same_weights(tmp_path / "after.keras", tmp_path / "four.index")


@pytest.mark.parametrize("package", ["keras", "tf_keras", "legacy optimizers of tf_keras"])
@pytest.mark.parametrize("kind", ["adam", "rmsprop momentum", "sgd momentum"])
def test_h5_files_have_their_state_by_names(package: str, kind: str, tmp_path: Path) -> None:
    """All releases of Keras: converted to ``.keras``, Keras 3 goes on where the other one would have."""
    import importlib

    import keras

    source = importlib.import_module("keras" if package == "keras" else "tf_keras")
    model = keras_model(source, "lstm")
    home = source.optimizers.legacy if package.startswith("legacy") else source.optimizers
    made = {
        "adam": lambda: home.Adam(0.02, beta_1=0.8, beta_2=0.95),
        "rmsprop momentum": lambda: home.RMSprop(0.01, rho=0.8, momentum=0.7),
        "sgd momentum": lambda: home.SGD(0.05, momentum=0.9),
    }[kind]()
    model.compile(made, "mse")
    keras_steps(model, 3, kind)
    model.save(tmp_path / "source.h5")
    lc.convert(tmp_path / "source.h5", tmp_path / "out.keras", with_optimizer=True)
    back = keras.models.load_model(tmp_path / "out.keras")
    assert int(back.optimizer.iterations) == 3
    keras_steps(model, 1, kind)
    keras_steps(back, 1, kind)
    for one, other in zip(back.get_weights(), model.get_weights(), strict=True):
        close(one, other, f"{package} {kind}")


def test_what_does_not_travel_is_refused(tmp_path: Path) -> None:
    import keras
    import torch

    def saved(optimizer: Any, steps: int = 1) -> Path:
        model = keras_model(keras, "lstm")
        model.compile(optimizer, "mse")
        keras_steps(model, steps, "sgd")
        path = tmp_path / "refused.keras"
        model.save(path)
        return path

    out = tmp_path / "out.safetensors"
    for optimizer, words in (
        (keras.optimizers.Adam(amsgrad=True), "amsgrad"),
        (keras.optimizers.Adam(clipnorm=1.0), "clipnorm"),
        (keras.optimizers.Nadam(), "nadam|Nadam"),
    ):
        with pytest.raises(lc.UnsupportedSource, match=words):
            lc.convert(saved(optimizer), out, with_optimizer=True)
        assert not out.exists()
    plain = saved(keras.optimizers.Adam())
    with pytest.raises(lc.NotRepresentable, match="onnx"):
        lc.convert(plain, tmp_path / "out.onnx", with_optimizer=True)
    with pytest.raises(lc.NotRepresentable, match=r"\.keras"):
        lc.convert(plain, tmp_path / "out.h5", with_optimizer=True)
    lstm = torch.nn.LSTM(3, 4)
    torch.save(lstm.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(lc.UnsupportedSource, match="no state of an optimizer"):
        lc.convert(tmp_path / "bare.pt", tmp_path / "out.keras", with_optimizer=True)


def test_two_biases_that_become_one_are_said_to_learn_slower(tmp_path: Path) -> None:
    import torch

    lstm = torch.nn.LSTM(INPUT, HIDDEN, batch_first=True)
    optimizer = torch.optim.Adam(lstm.parameters())
    torch_steps(lambda x: lstm(x)[0], optimizer, 1, "adam", GOAL)
    torch.save({"model": lstm.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "source.pt")
    result = lc.convert(tmp_path / "source.pt", tmp_path / "out.keras", with_optimizer=True)
    told = [
        step for step in result.rewrites if step.name == "optimizer" and "half the pace" in step.description
    ]
    assert len(told) == 4
    assert not any(step.exact for step in told)
