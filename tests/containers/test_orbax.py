"""Folders that orbax writes, read without orbax and judged by what was put into them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import lstmconvert as lc
from lstmconvert.containers import orbax
from lstmconvert.errors import BadFile
from lstmconvert.tensors import same_bits


def tree() -> dict[str, Any]:
    rng = np.random.default_rng(7)
    return {
        "net": {
            "w": jnp.asarray(rng.normal(size=(3, 5)).astype(np.float32)),
            "half": jnp.ones(4, jnp.bfloat16),
        },
        "plain": rng.normal(size=6).astype(np.float32),
        "step": 3,
    }


def saved(path: Path, item: Any, **settings: Any) -> Path:
    with ocp.PyTreeCheckpointer(**settings) as checkpointer:
        checkpointer.save(path, item)
    return path


@pytest.mark.parametrize("settings", [{}, {"use_ocdbt": False}, {"use_zarr3": True}], ids=str)
def test_what_orbax_writes_is_read(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = saved(tmp_path / "saved", tree(), **settings)
    found = orbax.read(path).tensors
    expected = tree()
    assert orbax.probe(path)
    assert same_bits(found["net/w"].read(), np.asarray(expected["net"]["w"]))
    assert same_bits(found["net/half"].read(), np.asarray(expected["net"]["half"]))
    assert same_bits(found["plain"].read(), expected["plain"])


def test_a_train_state_gives_its_parameters_and_no_optimizer_slots(tmp_path: Path) -> None:
    module = nn.RNN(nn.OptimizedLSTMCell(4))
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    params = jax.tree.map(lambda leaf: leaf + 0.25, module.init(jax.random.key(0), x)["params"])
    state = TrainState.create(apply_fn=module.apply, params=params, tx=optax.adam(1e-2))
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(7, args=ocp.args.StandardSave(state))
    path = tmp_path / "run" / "7"
    assert any("mu" in name for name in orbax.read(path).tensors)
    (layer,) = lc.read(path).recurrent.values()
    assert all(name.startswith("params/cell/") for name in layer.origin)
    np.testing.assert_allclose(
        layer.run(x)[0], np.asarray(module.apply({"params": state.params}, x)), atol=2e-6
    )


def test_the_state_of_an_nnx_model(tmp_path: Path) -> None:
    """Its leaves are variables with a value; the keys of dropout are no weights."""
    layer = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", nnx.state(layer, nnx.Param))
    result = lc.convert(tmp_path / "saved", tmp_path / "out.onnx")
    assert result.framework_from == "flax_nnx"
    (found,) = lc.read(tmp_path / "saved").recurrent.values()
    np.testing.assert_allclose(found.run(x)[0], np.asarray(layer(x)), atol=2e-6)


def test_the_state_of_an_nnx_model_among_other_things(tmp_path: Path) -> None:
    """As a training loop saves it: the model, its optimizer and a step."""
    layer = nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    optimizer = nnx.Optimizer(layer, optax.adam(1e-2), wrt=nnx.Param)
    tree = {
        "model": nnx.state(layer, nnx.Param),
        "optimizer": nnx.state(optimizer),
        "step": np.array(3),
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", tree)
    (found,) = lc.read(tmp_path / "saved").recurrent.values()
    assert all(name.startswith("model/cell/") for name in found.origin)
    np.testing.assert_allclose(found.run(x)[0], np.asarray(layer(x)), atol=2e-6)


def test_damage_is_an_error_of_ours(tmp_path: Path) -> None:
    path = saved(tmp_path / "saved", tree())
    metadata = path / "_METADATA"
    good = metadata.read_text()
    for bad in ("", "[]", "{}", good[: len(good) // 2], '{"tree_metadata": {"a": {}}}', "[" * 100_000):
        metadata.write_text(bad)
        with pytest.raises(BadFile, match="damaged"):
            orbax.read(path)
    metadata.write_text(good.replace('"plain"', '"missing"'))
    with pytest.raises(BadFile, match="opened"):
        orbax.read(path)
    metadata.write_text(good)
    for data in path.rglob("*"):
        if data.is_file() and data.parent.name == "d":
            data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(BadFile):
        [tensor.read() for tensor in orbax.read(path).tensors.values()]


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    inner = saved(tmp_path / "saved", {"a": np.ones(3, np.float32)}, use_ocdbt=False)
    outside = saved(tmp_path / "outside", {"secret": np.ones(3, np.float32)}, use_ocdbt=False)
    assert (outside / "secret").is_dir()
    said = json.loads((inner / "_METADATA").read_text())
    for entry in said["tree_metadata"].values():
        entry["key_metadata"] = [{"key": "/../outside/secret", "key_type": 2}]
    (inner / "_METADATA").write_text(json.dumps(said))
    with pytest.raises(BadFile):
        orbax.read(inner)
