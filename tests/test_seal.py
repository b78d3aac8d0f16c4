"""The digest of a proof is taken while a file is written, and stands in it wherever its container has texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lstmconvert
from lstmconvert import provenance, verification
from lstmconvert.tensors import Lazy
from scripts import large_model

NAMES = ["a.onnx", "a.safetensors", "a.pt", "a.keras", "a.h5", "a.weights.h5", "a.npz"]


@pytest.mark.parametrize("name", NAMES)
def test_a_written_file_is_sealed_with_what_is_in_it(tmp_path: Path, name: str) -> None:
    source = large_model.write(tmp_path / "model.h5", [7, 300], input_size=600)
    target = tmp_path / name
    lstmconvert.convert(source, target, to="pytorch" if name == "a.npz" else None)
    found = verification.carried_proof(target)
    assert found["verdict"] == "intact", found
    weights = lstmconvert.read(target).recurrent["lstm_2"].directions[0].weights
    last = np.ascontiguousarray(next(iter(weights.values())).read()[:1, :1]).tobytes()
    data = target.read_bytes()
    place = data.find(last)
    assert place > 0
    changed = tmp_path / f"changed-{name}"
    changed.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    try:
        assert verification.carried_proof(changed)["verdict"] == "changed"
    except lstmconvert.BadFile as error:
        assert "checksum" in str(error)  # The container's own.


def test_the_seal_is_the_same_in_whatever_order_tensors_are_read() -> None:
    arrays = {name: np.full((600, 600), n, np.float32) for n, name in enumerate("abc")}
    tensors = {name: Lazy.of(array) for name, array in arrays.items()}
    empty = provenance.Provenance()
    closed = provenance.Seal(empty, tensors).closed()
    seal = provenance.Seal(empty, tensors)
    for name in ("c", "a", "b", "a"):
        assert np.array_equal(seal.tensors[name].read(), arrays[name])
    assert seal.closed() == closed
    assert len(seal.open.dumps()) == len(closed.dumps())
    arrays["b"][599, 599] = 7
    assert provenance.Seal(empty, tensors).closed() != closed
