"""ONNX: graphs of operators to and from models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmconvert.containers import Archive
    from lstmconvert.model import Model
    from lstmconvert.options import ReadOptions, WriteOptions

NAME = "onnx"
NEEDS_TOPOLOGY = True
"""An ONNX file is a graph: weights alone cannot be written."""
FOLDS_PROJECTIONS = True
"""A layer of its own can follow an LSTM whose projection was folded into it."""


def reads(archive: Archive, container: str) -> bool:
    """Whether the archive is an ONNX model."""
    return container == "onnx_file" and "model" in archive.metadata


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - one container
    """The model in an ONNX archive; see ``reader``."""
    from lstmconvert.frameworks.onnx import reader

    return reader.read(archive, options)


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """The ONNX archive of a model; see ``writer``."""
    from lstmconvert.frameworks.onnx import writer

    return writer.write(model, container, options)
