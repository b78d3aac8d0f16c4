"""PyTorch: state_dicts to models, and models to a state_dict and the readable module that it belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmconvert.canonical import RecurrentLayer
    from lstmconvert.containers import Archive
    from lstmconvert.model import Model
    from lstmconvert.options import ReadOptions, WriteOptions

NAME = "pytorch"
TOLD = ("architecture",)
"""What the user may say of its files beyond what every framework is told."""


def reads(archive: Archive, container: str) -> bool:
    """Whether the archive is one of torch's, or has tensors that are named as in a state_dict."""
    from lstmconvert.frameworks.pytorch.reader import reads

    return reads(archive, container)


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - names say it all
    """The recurrent layers of a state_dict; the whole model of a file that ``write`` made.

    Raises:
        BadFile: where tensors contradict each other.
        AmbiguousSource: naming the option that says what a state_dict does not.
        UnsupportedSource: naming what cannot be read.
    """
    from lstmconvert.frameworks.pytorch.reader import read

    if options.architecture is None:
        return read(archive, options)

    from dataclasses import replace

    from lstmconvert.frameworks.pytorch import architecture

    described = architecture.load(options.architecture)
    activation = architecture.nonlinearity(described)
    weights = read(archive, options if activation is None else replace(options, activation=activation))
    return architecture.wired(weights, archive, described)


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """The state_dict of a model and, beside it, the source of its module.

    Raises:
        NotRepresentable: naming what torch cannot express.
    """
    from lstmconvert.frameworks.pytorch.writer import write

    return write(model, container, options)


def spells_out(layer: RecurrentLayer) -> bool:  # noqa: ARG001 - there are no equations that it cannot spell out
    """Whether the generated module can hold a layer that torch's own layers cannot: any."""
    return True
