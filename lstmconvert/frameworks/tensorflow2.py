"""tf.keras in checkpoints and SavedModels of TensorFlow: the object graph names, Keras does the rest.

A SavedModel with ``keras_metadata.pb`` (TensorFlow 2.5 to 2.15, tf_keras) is a whole model. Everything else
is weights without configuration: ``save_weights``, ``tf.train.Checkpoint`` and checkpoints of
``tf.compat.v1.train.Saver`` that have Keras layers in them. What those do not say has to be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lstmconvert.containers import Archive
from lstmconvert.errors import BadFile, NotRepresentable
from lstmconvert.frameworks import keras
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions, WriteOptions

NAME = "tensorflow2"
_WHOLE = ("Sequential", "Functional", "Model")
_LAYER = re.compile(r"root\.(layer(?:_with_weights)?-\d+)")
_BESIDE = re.compile(r"optimizer|keras_api|signatures|save_counter|_.*|.*metrics|loss.*")
_SAVED = "/.ATTRIBUTES/VARIABLE_VALUE"

Variables = tuple[tuple[str, str], ...]
"""Full name and key of each variable, in order."""


def reads(archive: Archive, container: str) -> bool:
    """Whether there are recurrent layers of Keras among the variables, or a model of Keras around them."""
    if container != "tensor_bundle":
        return False
    if _config(archive) is not None:
        return True
    return any(name.endswith("recurrent_kernel") for name, _ in _named(archive))


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - one form
    """The model, as the Keras framework reads it.

    Raises:
        BadFile, UnsupportedSource, AmbiguousSource, Usage: as ``lstmconvert.frameworks.keras.read``.
    """
    config = _config(archive)
    metadata: dict[str, Any]
    if config is None:
        layers: dict[str, Variables] = {}
        for name, key in _named(archive):
            top = name.split("/")[0]
            layers[top] = (*layers.get(top, ()), (name, key))
        metadata = {"form": "legacy_weights", "layer_weights": layers}
    else:
        release = archive.metadata.get("tensorflow_version")
        metadata = {
            "form": "whole_model",
            "model_config": config,
            "layer_weights": _layer_weights(archive),
            "keras_version": f"{release}-tf" if release else "2.5-tf",
        }
    held = replace(archive, metadata=MappingProxyType({**archive.metadata, **metadata}))
    return keras.read(held, "hdf5", options)


def write(model: Model, container: str, options: WriteOptions) -> Archive:  # noqa: ARG001 - never written
    """Refused: Keras reads ``.keras`` and ``.h5`` files.

    Raises:
        NotRepresentable: always.
    """
    raise NotRepresentable(
        "checkpoints of tf.keras are not written", remedy="Write .keras, .h5 or .weights.h5 (--to keras)."
    )


def _config(archive: Archive) -> dict[str, Any] | None:
    """Class and configuration of a whole model, as a ``.h5`` has them."""
    objects = archive.metadata.get("keras_objects") or {}
    root = objects.get("root")
    if not isinstance(root, Mapping) or root.get("class_name") not in _WHOLE or "config" not in root:
        return None
    return {"class_name": root["class_name"], "config": _plain(root["config"])}


def _plain(value: Any) -> Any:
    """A configuration without the wrapping that SavedModels give to tuples."""
    if isinstance(value, dict):
        if value.get("class_name") == "__tuple__":
            return [_plain(item) for item in value.get("items", ())]
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _layer_weights(archive: Archive) -> dict[str, Variables]:
    """The variables of every top-level layer, in Keras's order: each layer lists them."""
    graph = archive.metadata.get("object_graph") or ()
    layers: dict[str, Variables] = {}
    for path, said in archive.metadata["keras_objects"].items():
        match = _LAYER.fullmatch(path)
        if match is None or not isinstance(said, Mapping) or "name" not in said:
            continue
        if not graph or match[1] not in graph[0].children:
            raise BadFile("a layer of the model is not in the object graph", place=path)
        layer = graph[graph[0].children[match[1]]]
        listed = graph[layer.children["variables"]] if "variables" in layer.children else None
        found: list[tuple[str, str]] = []
        if listed is not None:
            numbers = sorted((name for name in listed.children if name.isdigit()), key=int)
            found = [pair for number in numbers for pair in graph[listed.children[number]].variables]
        layers.setdefault(str(said["name"]), tuple(found))
    return layers


def _named(archive: Archive) -> list[tuple[str, str]]:
    """Full name and key of every variable of a model, without those of optimizers and metrics."""
    graph = archive.metadata.get("object_graph")
    if graph:
        return [pair for pair in dict.fromkeys(_walk(graph)) if pair[1] in archive.tensors]
    return [(name, name) for name in archive.tensors]


def _walk(graph: Any) -> Iterator[tuple[str, str]]:
    seen = {0}
    waiting = [0]
    while waiting:
        node = graph[waiting.pop()]
        for full, key in node.variables:
            # A variable without a name of its own is called by the way to it.
            yield full or key.removesuffix(_SAVED), key
        below = [n for name, n in node.children.items() if n not in seen and not _BESIDE.fullmatch(name)]
        seen.update(below)
        waiting += reversed(list(dict.fromkeys(below)))
