"""From an archive to a model: which form it has, which release wrote it, what has to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lstmconvert.errors import AmbiguousSource, BadFile
from lstmconvert.frameworks.keras.reader import read_model
from lstmconvert.frameworks.keras.recurrent import Context
from lstmconvert.frameworks.keras.stores import store_of
from lstmconvert.frameworks.keras.version import Release, release_of

if TYPE_CHECKING:
    from lstmconvert.containers import Archive
    from lstmconvert.model import Model
    from lstmconvert.options import ReadOptions


def read(archive: Archive, options: ReadOptions) -> Model:
    """See ``lstmconvert.frameworks.keras.read``."""
    metadata = archive.metadata
    release = release_of(metadata, options)
    config = metadata.get("model_config") or metadata.get("config")
    if config is None:
        from lstmconvert.frameworks.keras import weights_only

        return weights_only.read(archive, release, options)
    if release is None:
        raise AmbiguousSource(
            "the file does not say which release of Keras wrote it",
            remedy="Say it with --keras-version, such as 2.2 or 3: equal names have several meanings.",
        )
    context = Context(release, options)
    store = store_of(archive.tensors, metadata)
    try:
        return read_model(config, store, context, _facts(release))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # Of a configuration that Keras wrote, every mistake is found and named where it is read.
        raise BadFile(
            "the configuration of the model is damaged, or not one of Keras",
            found=f"{type(error).__name__}: {error}",
        ) from error


def _facts(release: Release) -> Mapping[str, Any]:
    return {"keras_version": release.text, "backend": release.backend}
