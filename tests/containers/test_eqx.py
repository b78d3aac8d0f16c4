"""Equinox's leaves, judged by equinox in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import equinox
import jax
import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert import registry
from lstmconvert.containers import Archive, eqx
from lstmconvert.errors import AmbiguousSource, BadFile, UnsupportedSource
from lstmconvert.tensors import Lazy, same_bits


def drawn(module: Any, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.normal(0, 0.7, leaf.shape).astype(np.float32)), module
    )


@pytest.mark.parametrize("line", [None, {"hidden": 5}])
def test_what_equinox_writes_is_read(tmp_path: Path, line: dict[str, int] | None) -> None:
    path = tmp_path / "a.eqx"
    module = drawn(equinox.nn.MLP(2, 3, 4, 2, key=jax.random.key(0)).layers)
    with path.open("wb") as file:
        if line is not None:
            file.write((json.dumps(line) + "\n").encode())
        equinox.tree_serialise_leaves(file, module)
    archive = eqx.read(path)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(module)]
    assert registry.container_of(path).name == "eqx"
    assert len(archive.tensors) == len(leaves)
    assert all(same_bits(t.read(), leaf) for t, leaf in zip(archive.tensors.values(), leaves, strict=True))
    assert archive.metadata.get("hyperparameters") == (None if line is None else json.dumps(line))


def test_equinox_reads_what_is_written_and_metadata_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.eqx"
    module = drawn(equinox.nn.GRUCell(3, 4, key=jax.random.key(0)))
    leaves = {str(n): Lazy.of(np.asarray(leaf)) for n, leaf in enumerate(jax.tree.leaves(module))}
    eqx.write(path, Archive(leaves, {"lstmconvert": "remembered"}))
    found = equinox.tree_deserialise_leaves(path, drawn(module, seed=2))
    assert equinox.tree_equal(found, module)
    back = eqx.read(path)
    assert back.metadata == {"lstmconvert": "remembered"}
    assert len(back.tensors) == len(leaves)


def test_cells_in_a_larger_model_are_found(tmp_path: Path) -> None:
    key = jax.random.key(0)
    module = drawn((equinox.nn.Embedding(7, 3, key=key), equinox.nn.LSTMCell(3, 4, key=key),
                    equinox.nn.GRUCell(4, 5, key=key), equinox.nn.Linear(5, 2, key=key)))  # fmt: skip
    path = tmp_path / "a.eqx"
    equinox.tree_serialise_leaves(path, module)
    layers = lc.read(path).recurrent
    assert [(layer.cell, layer.input_size, layer.hidden_size) for layer in layers.values()] == [
        ("lstm", 3, 4), ("gru", 4, 5),
    ]  # fmt: skip
    assert same_bits(
        layers["gru"].directions[0].weights.bias_recurrent["candidate"], np.asarray(module[2].bias_n)
    )


def test_what_could_be_another_layer_is_asked_for(tmp_path: Path) -> None:
    key = jax.random.key(0)
    path = tmp_path / "a.eqx"
    equinox.tree_serialise_leaves(
        path, drawn((equinox.nn.LSTMCell(3, 4, use_bias=False, key=key), np.ones((2, 4))))
    )
    with pytest.raises(AmbiguousSource, match="--mapping"):
        lc.read(path)


def test_a_file_without_cells_says_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.eqx"
    equinox.tree_serialise_leaves(path, drawn(equinox.nn.MLP(2, 3, 4, 2, key=jax.random.key(0)).layers))
    with pytest.raises(UnsupportedSource, match=r"shapes \[4, 2\]"):
        lc.read(path)


def test_a_lying_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.eqx"
    equinox.tree_serialise_leaves(path, [np.arange(6.0), np.arange(4.0)])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"'shape': (4,)", b"'shape': (5,)"))
    with pytest.raises(BadFile, match="array 1"):
        eqx.read(path)
    path.write_bytes(b"{not json}\n" + data)
    with pytest.raises(BadFile, match="JSON"):
        eqx.read(path)
    path.write_bytes(b"")
    with pytest.raises(BadFile):
        eqx.read(path)
