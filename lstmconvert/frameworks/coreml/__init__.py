"""Core ML: the recurrent layers of neural networks and programs, and stacks of them to write.

What a layer computes is taken from the documentation of NeuralNetwork.proto and of the MIL operations in
coremltools 9.0; Core ML's runtime is part of macOS. torch's layers, converted by coremltools and read here,
compute what torch computes.
"""

from __future__ import annotations

from lstmconvert.containers import Archive
from lstmconvert.frameworks.coreml.forms import FORMS, NAME
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions, WriteOptions

__all__ = ["NAME", "NEEDS_TOPOLOGY", "read", "reads", "write"]

NEEDS_TOPOLOGY = True
"""The files are a graph: weights alone cannot be written."""


def reads(archive: Archive, container: str) -> bool:
    """Whether the archive is one of Core ML's."""
    return container in FORMS and "layers" in archive.metadata


def read(archive: Archive, container: str, options: ReadOptions) -> Model:
    """The recurrent layers of a model; see ``reader.read``."""
    from lstmconvert.frameworks.coreml import reader

    return reader.read(archive, container, options)


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """A stack of recurrent layers; see ``writer.write``."""
    from lstmconvert.frameworks.coreml import writer

    return writer.write(model, container, options)
