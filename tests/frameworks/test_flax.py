"""Flax's cells by themselves, in lists and in modules of a user's own, judged by flax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import serialization

import lstmconvert as lc
from lstmconvert.gates import Gate
from tests.matrix.judges_named import random_tree

X = np.random.default_rng(3).normal(0, 1.2, (2, 5, 3)).astype(np.float32)


def saved(path: Path, module: Any) -> Any:
    """A file with random parameters of a module, and what it makes of X."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)
    variables = random_tree(shapes, np.random.default_rng(4))
    path.write_bytes(serialization.to_bytes(variables))
    return np.asarray(module.apply(variables, X))


CELLS: dict[str, tuple[Any, dict[str, str]]] = {
    "LSTMCell": (lambda: nn.LSTMCell(4), {}),
    "OptimizedLSTMCell": (lambda: nn.OptimizedLSTMCell(4), {}),
    "GRUCell": (lambda: nn.GRUCell(4), {}),
    "MGUCell": (lambda: nn.MGUCell(4), {}),
    "SimpleCell": (lambda: nn.SimpleCell(4), {"activation": "tanh"}),
    "SimpleCell relu": (lambda: nn.SimpleCell(4, activation_fn=nn.relu), {"activation": "relu"}),
}


@pytest.mark.parametrize("both", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_told_by_its_names(tmp_path: Path, name: str, both: bool) -> None:
    cell, told = CELLS[name]
    module = nn.Bidirectional(nn.RNN(cell()), nn.RNN(cell())) if both else nn.RNN(cell())
    path = tmp_path / "a.msgpack"
    y = saved(path, module)
    (layer,) = lc.read(path, **told).recurrent.values()
    np.testing.assert_allclose(layer.run(X)[0], y, atol=2e-6)
    result = lc.convert(path, tmp_path / "a.onnx", **told)
    assert result.proof is not None
    assert result.proof.proved
    if name == "MGUCell":
        for direction in layer.directions:
            assert direction.weights.kernel[Gate.UPDATE] is not None
            assert np.array_equal(direction.weights.kernel[Gate.UPDATE], direction.weights.kernel[Gate.RESET])


class Network(nn.Module):
    """Layers as users name them, with neighbours between."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.RNN(nn.OptimizedLSTMCell(4, parent=None), name="encoder")(x)
        x = nn.Dense(6)(x)
        ways = [nn.RNN(nn.GRUCell(5, parent=None), parent=None) for _ in range(2)]
        x = nn.Bidirectional(*ways, name="both")(x)
        return nn.RNN(nn.MGUCell(3))(x)  # the cell is named as a part of this module


def test_layers_of_a_users_module_are_found_and_its_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.msgpack"
    saved(path, Network())
    model = lc.read(path)
    found = [(layer.cell, len(layer.directions), layer.hidden_size) for layer in model.recurrent.values()]
    assert sorted(found) == [("gru", 1, 3), ("gru", 2, 5), ("lstm", 1, 4)]
    assert list(model.recurrent) == ["params.MGUCell_0", "params.both", "params.encoder.cell"]
    assert set(model.metadata["other_tensors"]) == {"params/Dense_0/kernel", "params/Dense_0/bias"}


def test_what_is_no_gru_is_not_taken_for_one(tmp_path: Path) -> None:
    """MGUCell(reset_gate=False) multiplies nothing: no GRU has its equations."""
    path = tmp_path / "a.msgpack"
    saved(path, nn.RNN(nn.MGUCell(4, reset_gate=False)))
    with pytest.raises(lc.ConversionError):
        lc.read(path)
    with pytest.raises(lc.BadFile, match="hn/bias"):
        lc.read(path, framework="flax")


def test_a_gru_whose_gates_happen_to_be_equal_stays_a_gru(tmp_path: Path) -> None:
    path = tmp_path / "a.msgpack"
    module = nn.RNN(nn.GRUCell(4))
    shapes = jax.eval_shape(module.init, jax.random.key(0), X)
    params = random_tree(shapes, np.random.default_rng(4))["params"]["cell"]
    for side in ("i", "h"):
        params[f"{side}z"] = params[f"{side}r"]
    path.write_bytes(serialization.to_bytes({"params": {"cell": params}}))
    lc.convert(path, tmp_path / "a.safetensors", to="mlx")
    lc.convert(tmp_path / "a.safetensors", tmp_path / "back.msgpack", to="flax")
    returned = serialization.msgpack_restore((tmp_path / "back.msgpack").read_bytes())
    (layer,) = lc.read(tmp_path / "back.msgpack").recurrent.values()
    assert "iz/kernel" in " ".join(layer.origin), returned.keys()


def test_a_minimal_unit_comes_back_as_one(tmp_path: Path) -> None:
    path = tmp_path / "a.msgpack"
    y = saved(path, nn.RNN(nn.MGUCell(4)))
    lc.convert(path, tmp_path / "a.safetensors", to="mlx")
    lc.convert(tmp_path / "a.safetensors", tmp_path / "back.msgpack", to="flax")
    returned = serialization.msgpack_restore((tmp_path / "back.msgpack").read_bytes())
    np.testing.assert_array_equal(np.asarray(nn.RNN(nn.MGUCell(4)).apply(returned, X)), y)
