"""Tensors behind a prefix, however many others there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import lstmconvert as lc
from lstmconvert.prefixed import Prefixed
from lstmconvert.tensors import Lazy


def test_names_are_those_behind_the_prefix() -> None:
    tensors = {name: Lazy.of(np.ones(1)) for name in ("a.x", "a.y", "b.x", "x")}
    local = Prefixed("a.", tensors)
    assert list(local) == ["x", "y"]
    assert len(local) == 2
    assert local["x"] is tensors["a.x"]
    assert "a.x" not in local
    assert dict(Prefixed("", tensors)) == tensors


def test_a_file_of_many_layers_is_not_gone_through_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand layers took a quarter of an hour for the names alone."""
    passes = []
    iterate = Prefixed.__iter__

    def counted(self: Prefixed) -> Iterator[str]:
        passes.append(self)
        return iterate(self)

    monkeypatch.setattr(Prefixed, "__iter__", counted)
    rng = np.random.default_rng(1)
    shapes = {"weight_ih_l0": (4, 1), "weight_hh_l0": (4, 1), "bias_ih_l0": (4,), "bias_hh_l0": (4,)}
    arrays = {
        f"l{n}.{name}": rng.normal(size=shape).astype(np.float32)
        for n in range(20)
        for name, shape in shapes.items()
    }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path)
    assert len(lc.read(path, framework="pytorch").recurrent) == 20
    assert len(lc.read(path).recurrent) == 20
    lc.convert(path, tmp_path / "model.npz")
    assert not passes
