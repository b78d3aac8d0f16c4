"""TensorFlow.js layers models: the configurations of Keras 2, with defaults and limits of their own.

What is not said in a configuration is what TensorFlow.js takes: ``hardSigmoid`` (0.2 x + 0.5) for the gates,
a GRU's reset gate before the product. Source: tfjs-layers 4.22.0, and models that it ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lstmconvert import layout as layouts
from lstmconvert import mapping
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.containers import Archive
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource
from lstmconvert.frameworks import keras
from lstmconvert.model import Layer, Model
from lstmconvert.options import ReadOptions, WriteOptions
from lstmconvert.reading_notes import dequantised
from lstmconvert.tensors import Lazy

NAME = "tensorflowjs"
NEEDS_TOPOLOGY = True
"""The files are whole models: weights alone cannot be written."""
FOLDS_PROJECTIONS = True
"""A layer of its own can follow an LSTM whose projection was folded into it."""

_RELEASE = "2.15.0-tf"
"""The Keras whose configurations TensorFlow.js takes."""
_BOTH = "Bidirectional"
_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "LSTM": {"recurrent_activation": "hard_sigmoid"},
        "LSTMCell": {"recurrent_activation": "hard_sigmoid"},
        "GRU": {"recurrent_activation": "hard_sigmoid", "reset_after": False},
        "GRUCell": {"recurrent_activation": "hard_sigmoid", "reset_after": False},
    }
)
_CLASSES = frozenset(
    {
        "Activation", "Add", "Average", "AveragePooling1D", "AveragePooling2D", "BatchNormalization",
        "Bidirectional", "Concatenate", "Conv1D", "Conv2D", "Cropping2D", "Dense", "DepthwiseConv2D", "Dot",
        "Dropout", "ELU", "Embedding", "Flatten", "Functional", "GRU", "GaussianDropout", "GaussianNoise",
        "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D",
        "InputLayer", "LSTM", "LayerNormalization", "LeakyReLU", "Masking", "MaxPooling1D", "MaxPooling2D",
        "Maximum", "Minimum", "Model", "Multiply", "PReLU", "Permute", "ReLU", "RepeatVector", "Rescaling",
        "Reshape", "SeparableConv2D", "Sequential", "SimpleRNN", "Softmax", "SpatialDropout1D",
        "ThresholdedReLU", "TimeDistributed", "UpSampling2D", "ZeroPadding2D",
    }
)  # fmt: skip
"""What tfjs-layers 4.22.0 can load of what Keras writes."""


def reads(archive: Archive, container: str) -> bool:
    """Whether the archive is one of TensorFlow.js."""
    return container == "tensorflowjs" and "topology" in archive.metadata


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - one container
    """The whole model, as the Keras framework reads it.

    Raises:
        BadFile, UnsupportedSource, AmbiguousSource, Usage: as ``lstmconvert.frameworks.keras.read``.
    """
    try:
        return _read(archive, options)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise BadFile(
            "the configuration of the model is damaged, or not one of TensorFlow.js",
            found=f"{type(error).__name__}: {error}"[:200],
        ) from error


def _read(archive: Archive, options: ReadOptions) -> Model:
    topology = archive.metadata["topology"]
    config = topology.get("model_config", topology)
    if str(topology.get("keras_version", "")).startswith("3"):
        raise UnsupportedSource(
            "the configuration is one of Keras 3", remedy="Convert the Keras model from which it was made."
        )
    config = _with_defaults(config)
    _refuse_masks(config)
    metadata = {
        "form": "whole_model",
        "model_config": config,
        "layer_weights": _layer_weights(config, archive),
        "keras_version": _RELEASE,
        "backend": "tensorflow",
    }
    model = keras.read(replace(archive, metadata=MappingProxyType(metadata)), "hdf5", options)
    model = model.map_layers(lambda layer: _own_weights(layer, archive))
    quantised = archive.metadata["quantised"]
    notes = [dequantised(name.split("/")[0], name, *how) for name, how in quantised.items()]
    return replace(model, metadata=MappingProxyType({**model.metadata, "rewrites": notes}))


def _own_weights(layer: Layer, archive: Archive) -> Layer:
    """A recurrent layer with the weights as this framework's layouts say where they lie."""
    if not isinstance(layer, RecurrentLayer):
        return layer
    described = mapping.load(NAME).layouts[str(layer.cell)]
    count = len(layer.origin) // len(layer.directions)
    directions = []
    for number, direction in enumerate(layer.directions):
        names = layer.origin[number * count : (number + 1) * count]
        local = {name.rpartition("/")[2]: archive.tensors[name] for name in names}
        (weights,) = layouts.read_weights(layer.cell, described, local).values()
        directions.append(replace(direction, weights=weights))
    return replace(layer, directions=tuple(directions))


def write(model: Model, container: str, options: WriteOptions) -> Archive:  # noqa: ARG001 - one container
    """The topology and weights of a model.

    Raises:
        NotRepresentable: naming what TensorFlow.js cannot load.
    """
    whole = keras.write(model, "hdf5", options)
    config = whole.metadata["model_config"]
    for inner in _layers(config):
        if reason := _lack(inner):
            raise NotRepresentable(
                f"TensorFlow.js has no {reason}",
                place=f"layer {inner['config'].get('name', '')!r}",
                remedy="Write ONNX, which runs in a browser as well (onnxruntime-web).",
            )
    topology = {
        "model_config": config,
        "keras_version": _RELEASE.removesuffix("-tf"),
        "backend": "tensorflow",
    }
    both = {one["config"]["name"]: one["config"] for one in _layers(config) if one["class_name"] == _BOTH}
    tensors: dict[str, Lazy] = {}
    for layer, stored in whole.metadata["layer_weights"].items():
        for number, (name, key) in enumerate(stored):
            way = ""
            if layer in both:
                # TensorFlow.js calls the two after the layer that both are made from.
                way = f"{'forward' if number < len(stored) // 2 else 'backward'}_"
                way += f"{both[layer]['layer']['config']['name']}/"
            tensors[f"{layer}/{way}{name.removesuffix(':0').rpartition('/')[2]}"] = whole.tensors[key]
    return Archive(MappingProxyType(tensors), MappingProxyType({"topology": topology}))


def _lack(layer: Mapping[str, Any]) -> str:
    """What of a layer TensorFlow.js does not have, or has in another meaning; empty if nothing."""
    kind, config = layer["class_name"], layer["config"]
    nodes = layer.get("inbound_nodes") or ()
    nested = "inbound_nodes" in layer and "layers" in config
    lacks = {
        f"layer {kind}": kind not in _CLASSES,
        "model inside a model": nested,
        "argument of a call beside its input": any(isinstance(node, dict) for node in nodes),
        "mask as Keras has it": kind == "Masking" or bool(config.get("mask_zero")),
        "groups in a convolution": config.get("groups", 1) != 1,
        "other layer for the way back": kind == _BOTH and "backward_layer" in config and not _alike(config),
        "state that is kept": bool(config.get("stateful")),
    }
    return next((lack for lack, holds in lacks.items() if holds), "")


def _alike(config: Mapping[str, Any]) -> bool:
    """Whether a Bidirectional layer has the same configuration in both directions, but for the direction."""
    one, two = (config[key] for key in ("layer", "backward_layer"))
    beside = {"name", "go_backwards"}
    kept = [{k: v for k, v in each["config"].items() if k not in beside} for each in (one, two)]
    return one["class_name"] == two["class_name"] and kept[0] == kept[1]


def _layers(config: Any) -> Iterator[dict[str, Any]]:
    """Every configuration of a layer in a configuration, from the outside in."""
    waiting = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            inner = item.get("config")
            named = isinstance(inner, dict) and not {"layers", "name", "units"}.isdisjoint(inner)
            if named and isinstance(item.get("class_name"), str):
                yield item
            waiting += item.values()


def _refuse_masks(config: Any) -> None:
    """Only where layers simply follow each other do masks mean what they mean in Keras."""
    kinds = {layer["class_name"]: layer for layer in _layers(config)}
    masked = "Masking" in kinds or any(layer["config"].get("mask_zero") for layer in _layers(config))
    simple = isinstance(config, dict) and config.get("class_name") == "Sequential" and _BOTH not in kinds
    if masked and not simple:
        raise UnsupportedSource(
            "what TensorFlow.js makes of masks here is not what Keras does, and not known well enough",
            expected="masks in a model of one layer after another, without Bidirectional",
        )


def _with_defaults(config: Any) -> Any:
    """The configuration with what TensorFlow.js takes where nothing is said."""
    if isinstance(config, list):
        return [_with_defaults(item) for item in config]
    if not isinstance(config, dict):
        return config
    filled = {key: _with_defaults(value) for key, value in config.items()}
    inner = filled.get("config")
    if isinstance(inner, dict) and config.get("class_name") in _DEFAULTS:
        filled["config"] = {**_DEFAULTS[config["class_name"]], **inner}
    return filled


def _layer_weights(config: Any, archive: Archive) -> dict[str, tuple[tuple[str, str], ...]]:
    """The weights of every layer of the model, in their order; those of a model inside it are its own."""
    inner = config.get("config") if isinstance(config, dict) else None
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    if not isinstance(layers, list):
        raise BadFile("the topology lists no layers")
    owner: dict[str, str] = {}
    for layer in layers:
        name = str(layer.get("name") or layer.get("config", {}).get("name"))
        for below in _layers(layer):
            owner.setdefault(str(below["config"].get("name")), name)
        owner[name] = name
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in dict.fromkeys(owner.values())}
    for key in archive.tensors:
        first = key.split("/")[0]
        if first not in owner:
            raise BadFile("a weight belongs to no layer of the topology", place=key[:200])
        found[owner[first]].append((f"{key}:0", key))
    return {name: tuple(pairs) for name, pairs in found.items()}
