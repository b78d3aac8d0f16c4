"""Keras 1, 2 and 3 and tf.keras: configurations and weights to and from models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmconvert.containers import Archive
    from lstmconvert.model import Model
    from lstmconvert.options import ReadOptions, WriteOptions

NAME = "keras"
FOLDS_PROJECTIONS = True
"""A layer of its own can follow an LSTM whose projection was folded into it."""

_FORMS = ("whole_model", "legacy_weights", "weights_v3", "keras_archive")


def reads(archive: Archive, container: str) -> bool:
    """Whether Keras wrote the archive."""
    return container in ("hdf5", "keras_archive") and archive.metadata.get("form") in _FORMS


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - the form says it
    """The model in an archive of Keras: whole where its configuration is there, else its recurrent layers.

    Raises:
        BadFile: where configuration and weights contradict each other.
        UnsupportedSource: naming the layer and option that cannot be read.
        AmbiguousSource: naming the option that says what the file does not.
        Usage: where an option contradicts the file.
    """
    from lstmconvert.frameworks.keras import opening

    return opening.read(archive, options)


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """The archive of a model for ``keras_archive``, ``hdf5`` (whole model) or ``keras_weights``.

    Raises:
        NotRepresentable: naming what Keras cannot express.
    """
    from lstmconvert.frameworks.keras import writer

    return writer.write(model, container, options)
