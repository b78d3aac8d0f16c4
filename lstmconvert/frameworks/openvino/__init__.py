"""OpenVINO: recurrent layers in the graphs of its intermediate representation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmconvert.containers import Archive
    from lstmconvert.model import Model
    from lstmconvert.options import ReadOptions, WriteOptions

NAME = "openvino"
NEEDS_TOPOLOGY = True
"""An IR is a graph: weights alone cannot be written."""


def reads(archive: Archive, container: str) -> bool:
    """Whether the archive is an IR."""
    return container == "openvino_ir" and "graph" in archive.metadata


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - one container
    """The model in an IR; see ``reader``."""
    from lstmconvert.frameworks.openvino import reader

    return reader.read(archive, options)


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """The IR of a model; see ``writer``."""
    from lstmconvert.frameworks.openvino import writer

    return writer.write(model, container, options)
