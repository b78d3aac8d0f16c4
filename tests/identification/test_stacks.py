"""identify on whole networks of which only inputs and end-to-end outputs are known; torch and Keras judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert.cli import main
from tests.identification.packings import same_layer
from tests.support import random_layer

Array = np.ndarray[Any, Any]
TORCH = ("input", "forget", "cell", "output")


def torch_network(
    cell: str, *, last: bool, activation: str, seed: int
) -> tuple[dict[str, Array], Array, Array]:
    """A stack of two torch layers and a dense head: its arrays without names, a sample's input and output."""
    import torch

    torch.manual_seed(seed)
    layers = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](5, 6, 2, batch_first=True)
    head = torch.nn.Linear(6, 3)
    for parameter in (*layers.parameters(), *head.parameters()):
        torch.nn.init.normal_(parameter, std=0.7)
    x = torch.randn(4, 7, 5)
    activate = {
        "linear": lambda v: v, "softmax": lambda v: torch.softmax(v, -1), "sigmoid": torch.sigmoid
    }[activation]  # fmt: skip
    with torch.no_grad():
        sequence = layers(x)[0]
        y = activate(head(sequence[:, -1] if last else sequence))
    arrays = [p.detach().numpy() for p in (*layers.parameters(), *head.parameters())]
    return {f"arr_{n}": array for n, array in enumerate(arrays)}, x.numpy(), y.numpy()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(("last", "activation"), [(False, "linear"), (True, "softmax"), (False, "sigmoid")])
def test_a_torch_stack_with_a_dense_head(cell: str, last: bool, activation: str) -> None:
    arrays, x, y = torch_network(cell, last=last, activation=activation, seed=2)
    found = lc.identify(arrays, x, y)
    assert found.certain, found.doubts
    assert found.gates == (TORCH if cell == "lstm" else ("reset", "update", "candidate"))
    assert [own.layer.cell for own in found.layers] == [cell, cell]
    assert [own.layer.origin for own in found.layers] == [
        ("arr_0", "arr_1", "arr_2", "arr_3"), ("arr_4", "arr_5", "arr_6", "arr_7")
    ]  # fmt: skip
    assert found.head == ((activation, ("arr_8", "arr_9")),)
    assert found.mapping == "pytorch"
    assert found.unused == ()


@pytest.mark.parametrize("by_part", [False, True], ids=["layer by layer", "part by part"])
def test_a_keras_stack_of_two_sizes(by_part: bool, tmp_path: Path) -> None:
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.LSTM(6, return_sequences=True, recurrent_activation="hard_sigmoid", input_shape=(None, 4)),
            layers.LSTM(5, recurrent_activation="hard_sigmoid"),
            layers.Dense(2, activation="tanh"),
        ]
    )
    rng = np.random.default_rng(6)
    model.set_weights([rng.standard_normal(w.shape) * 0.6 for w in model.get_weights()])
    x = rng.standard_normal((5, 8, 4)).astype(np.float32)
    y = model.predict(x, verbose=0)
    arrays = model.get_weights()
    if by_part:
        arrays = [arrays[n] for n in (0, 3, 1, 4, 2, 5, 6, 7)]
    np.savez(tmp_path / "dump.npz", *arrays)
    described = tmp_path / "dump.toml"
    found = lc.identify(tmp_path / "dump.npz", x, y, write_mapping=described)
    assert found.certain
    assert found.gates == TORCH
    assert str(found.layers[1].layer.equations.gate_activation) == "hard_sigmoid(0.2, 0.5)"  # type: ignore[union-attr]
    assert found.head[0][0] == "tanh"
    # Both layers stand in one place of the dump, and both are read.
    read = lc.read(tmp_path / "dump.npz", mapping=described).recurrent
    assert [(layer.input_size, layer.hidden_size) for layer in read.values()] == [(4, 6), (6, 5)]
    inner = read["layer_2"].run(read["layer_1"].run(x)[0])[0][:, -1]
    np.testing.assert_allclose(np.tanh(inner @ arrays[-2] + arrays[-1]), y, rtol=0, atol=2e-6)
    command = ["convert", str(tmp_path / "dump.npz"), "--mapping", str(described), "--quiet"]
    for name in read:
        assert main([*command, "--layer", name, "-o", str(tmp_path / f"{name}.onnx")]) == 0


def test_a_stack_of_different_cells() -> None:
    first = random_layer("lstm", seed=4, input_size=3, hidden_size=5, biases="input")
    second = random_layer("gru", seed=5, input_size=5, hidden_size=4)
    arrays = []
    for layer, order in ((first, (3, 1, 0, 2)), (second, (1, 2, 0))):
        weights = layer.directions[0].weights
        for part in ("kernel", "recurrent", "bias_input", "bias_recurrent"):
            blocks = list(getattr(weights, part).values())
            if blocks:
                arrays.append(np.concatenate([blocks[n] for n in order]))
    x = np.random.default_rng(3).standard_normal((3, 6, 3)).astype(np.float32)
    found = lc.identify(arrays, x, second.run(first.run(x)[0])[0])
    assert found.certain, found.doubts
    assert found.gates == ("output", "forget", "input", "cell")
    assert all(same_layer(own.layer, layer) for own, layer in zip(found.layers, (first, second), strict=True))


def test_a_layer_that_the_sample_does_not_move_is_not_certain() -> None:
    """The second layer's recurrent numbers are zero: many orders of its gates compute the same on the sample."""
    arrays, x, y = torch_network("lstm", last=False, activation="linear", seed=3)
    found = lc.identify(arrays, x[:, :1], y[:, :1])
    assert found.fits
    assert not found.certain
