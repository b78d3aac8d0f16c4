"""Reading and writing of Keras files in the tests, without the pipeline around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lstmconvert import lowering, mapping, registry
from lstmconvert.containers import Archive
from lstmconvert.frameworks import keras as framework
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions, WriteOptions


def archive_of(path: Path) -> tuple[Archive, str]:
    """A file's archive and container."""
    entry = registry.container_of(path)
    return registry.container_module(entry.name).read(path), entry.name


def read(path: Path, **options: Any) -> Model:
    """The model in a file."""
    archive, container = archive_of(path)
    assert framework.reads(archive, container)
    return framework.read(archive, container, ReadOptions(**options))


def write(model: Model, path: Path, container: str) -> Path:
    """Write a model, fitted to Keras; returns ``path``."""
    fitted, _ = lowering.lower(model, mapping.load("keras"))
    archive = framework.write(fitted, container, WriteOptions())
    module = registry.container_module("hdf5" if container == "keras_weights" else container)
    module.write(path, archive)
    return path


def run(model: Model, inputs: list[np.ndarray], dtype: Any = np.float64) -> list[np.ndarray]:
    """The NumPy interpreter's outputs."""
    result = model.run(*[x.astype(dtype) if x.dtype.kind == "f" else x for x in inputs])
    return list(result) if isinstance(result, tuple) else [result]


def assert_close(
    found: list[np.ndarray], wanted: list[np.ndarray], what: str, tolerance: float = 1e-5
) -> None:
    """Equal to ``tolerance`` of each output's scale."""
    assert [f.shape for f in found] == [w.shape for w in wanted], what
    for number, (f, w) in enumerate(zip(found, wanted, strict=True)):
        error = float(np.abs(f - w).max() / max(1.0, float(np.abs(w).max())))
        assert error <= tolerance, f"{what}: output {number} differs by {error:.3g}"
