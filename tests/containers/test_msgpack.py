"""Flax's MessagePack files, judged by flax.serialization in both directions."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training.train_state import TrainState

import lstmconvert as lc
from lstmconvert.containers import Archive, msgpack
from lstmconvert.errors import BadFile, NotRepresentable
from lstmconvert.tensors import Lazy, same_bits

DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float64",
    "int8",
    "uint32",
    "int64",
    "bool",
    "complex64",
)


def tree() -> dict[str, Any]:
    rng = np.random.default_rng(6)
    arrays = {
        name: rng.integers(0, 2, (3, 5)).astype(np.dtype(getattr(ml_dtypes, name, name))) for name in DTYPES
    }
    return {
        "params": {"a": arrays, "list": [np.ones(3), np.zeros((0, 2), np.float32)], "ü": np.float32(-0.0)},
        "none": None, "number": 3, "text": "x" * 300, "real": 1.5, "complex": 1 + 2j, "bytes": b"abc",
    }  # fmt: skip


def flat(found: Any, path: str = "") -> dict[str, np.ndarray]:
    if isinstance(found, dict):
        pairs = [flat(value, f"{path}/{key}" if path else str(key)) for key, value in found.items()]
        return {name: array for pair in pairs for name, array in pair.items()}
    return {path: np.asarray(found)} if isinstance(found, np.ndarray | np.generic) else {}


def test_what_flax_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.msgpack"
    path.write_bytes(serialization.to_bytes(tree()))
    expected = flat(serialization.msgpack_restore(path.read_bytes()))
    found = msgpack.read(path).tensors
    assert msgpack.probe(path)
    assert len(found) == len(DTYPES) + 3
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert same_bits(tensor.read(), expected[name]), name


def test_flax_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.msgpack"
    held = flat(serialization.to_state_dict(tree()))
    msgpack.write(path, Archive({name: Lazy.of(array) for name, array in held.items()}))
    found = flat(serialization.msgpack_restore(path.read_bytes()))
    assert found.keys() == held.keys()
    assert all(same_bits(found[name], array) for name, array in held.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    array = np.arange(70).reshape(7, 10).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 32)
    monkeypatch.setattr(msgpack, "_LARGEST_PIECE", 32)
    theirs, ours = tmp_path / "theirs.msgpack", tmp_path / "ours.msgpack"
    theirs.write_bytes(serialization.to_bytes({"a": {"w": array}}))
    msgpack.write(ours, Archive({"a/w": Lazy.of(array)}))
    assert b"__msgpack_chunked_array__" in theirs.read_bytes()
    assert same_bits(serialization.msgpack_restore(ours.read_bytes())["a"]["w"], array)
    for path in (theirs, ours):
        assert same_bits(msgpack.read(path).tensors["a/w"].read(), array)


def test_a_train_state_gives_its_parameters_and_no_optimizer_slots(tmp_path: Path) -> None:
    """What flax.training saves; Adam's slots have the names of the weights."""
    module = nn.RNN(nn.GRUCell(4))
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    params = module.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.25, params)
    state = TrainState.create(apply_fn=module.apply, params=params, tx=optax.adam(1e-2))
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    path = tmp_path / "state.msgpack"
    path.write_bytes(serialization.to_bytes(state))
    model = lc.read(path)
    (layer,) = model.recurrent.values()
    assert all(name.startswith("params/cell/") for name in layer.origin)
    assert any("/mu/" in name for name in msgpack.read(path).tensors)
    expected = np.asarray(module.apply({"params": state.params}, x))
    np.testing.assert_allclose(layer.run(x)[0], expected, atol=2e-6)


def test_a_name_that_is_a_folder_too_is_refused(tmp_path: Path) -> None:
    held = {"a": Lazy.of(np.ones(2)), "a/b": Lazy.of(np.ones(2))}
    for order in (list(held), list(reversed(held))):
        with pytest.raises(NotRepresentable, match="folder"):
            msgpack.write(tmp_path / "-".join(order).replace("/", "_"), Archive({n: held[n] for n in order}))


def array_of(shape: bytes, dtype: bytes, data: bytes) -> bytes:
    inner = b"\x93" + shape + dtype + b"\xc4" + bytes([len(data)]) + data
    return b"\x81\xa1a\xc7" + bytes([len(inner)]) + b"\x01" + inner


LYING = {
    "a shape of 2^62": array_of(b"\x91\xcf" + struct.pack(">Q", 1 << 61), b"\xa7float32", bytes(8)),
    "a shape too small": array_of(b"\x91\x01", b"\xa7float32", bytes(8)),
    "a negative shape": array_of(b"\x91\xff", b"\xa7float32", bytes(4)),
    "a shape that is a text": array_of(b"\xa1x", b"\xa7float32", bytes(4)),
    "an axis that is true": array_of(b"\x91\xc3", b"\xa7float32", bytes(4)),
    "a dtype that is a number": array_of(b"\x91\x01", b"\x01", bytes(4)),
    "a key twice": b"\x82\xa1a\x01\xa1a\x02",
    "four thousand million values": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "lists a million deep": b"\x81\xa1a" + b"\x91" * 1_000_000,
    "more behind the end": array_of(b"\x91\x01", b"\xa7float32", bytes(4)) + b"\x00",
    "a text of 4 GiB": b"\x81\xdb\xff\xff\xff\xffa",
}  # fmt: skip


@pytest.mark.parametrize("case", LYING)
def test_a_lying_file_is_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.msgpack"
    path.write_bytes(LYING[case])
    with pytest.raises(BadFile):
        msgpack.read(path)
    assert not msgpack.probe(path)


def test_pieces_that_do_not_make_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 16)
    data = serialization.to_bytes({"a": np.zeros((3, 4), np.float32)})
    path = tmp_path / "a.msgpack"
    path.write_bytes(data)
    assert msgpack.read(path).tensors["a"].shape == (3, 4)
    path.write_bytes(data.replace(b"shape\x82\xa10\x03", b"shape\x82\xa10\x05"))
    with pytest.raises(BadFile, match="pieces"):
        msgpack.read(path)
