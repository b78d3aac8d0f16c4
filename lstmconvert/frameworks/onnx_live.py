"""Live ONNX models: a ``ModelProto`` in memory, read and made."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lstmconvert.containers import onnx_file
from lstmconvert.frameworks import onnx as onnx_framework
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions, WriteOptions


def read_live(proto: Any) -> Model:
    """The model in an ``onnx.ModelProto`` whose weights are inside it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        model = onnx_framework.read(onnx_file.read(path), onnx_file.NAME, ReadOptions())
        return model.in_memory()


def to_live(model: Model, options: WriteOptions) -> Any:
    """An ``onnx.ModelProto`` of a model that was fitted to ONNX."""
    import onnx

    archive = onnx_framework.write(model, onnx_file.NAME, options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx_file.write(path, archive)
        return onnx.load(path)
