"""TFLite / LiteRT: the fused recurrent operators in its graphs, and the plain operators around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmconvert.containers import Archive
    from lstmconvert.model import Model
    from lstmconvert.options import ReadOptions, WriteOptions

NAME = "tflite"
NEEDS_TOPOLOGY = True
"""A file is a graph: weights alone cannot be written."""
TOLD = ("cell_clip",)
"""TensorFlow's converter writes a cell clip of 10 that the source has not: the user may say so."""


def reads(archive: Archive, container: str) -> bool:
    """Whether the archive is such a graph."""
    return container == "tflite_file" and "graph" in archive.metadata


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - one container
    """The model in a file; see ``reader``."""
    from lstmconvert.frameworks.tflite import reader

    return reader.read(archive, options)


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """The file of a model; see ``writer``."""
    from lstmconvert.frameworks.tflite import writer

    return writer.write(model, container, options)
