"""Live models and layers of Keras 3 and tf_keras, in and out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive
from lstmconvert.errors import UnsupportedSource
from lstmconvert.frameworks.keras import opening
from lstmconvert.frameworks.keras.config import read_layer
from lstmconvert.frameworks.keras.reader import read_unit
from lstmconvert.frameworks.keras.recurrent import Context
from lstmconvert.frameworks.keras.stores import OrderStore, Owner
from lstmconvert.frameworks.keras.version import parse
from lstmconvert.model import Layer, Model
from lstmconvert.options import ReadOptions
from lstmconvert.tensors import Lazy


def read_live(model: Any, options: ReadOptions | None = None) -> Model:
    """A model from a live one; nothing is imported but what the model brings.

    Args:
        model: a ``keras.Model`` or ``keras.Layer`` of Keras 3, or of tf_keras.
        options: what the model does not say, and the user's own layers.

    Returns:
        The whole model of a Sequential or functional one. Of a model of the user's own class, and of a
        single layer, its recurrent layers without topology.

    Raises:
        UnsupportedSource: naming the layer and option that cannot be read.
    """
    options = options or ReadOptions()
    metadata = _metadata(model)
    if not hasattr(model, "layers"):
        return _layers_alone([model], metadata, options)
    try:
        config = json.loads(model.to_json())
    except (NotImplementedError, TypeError, ValueError):
        config = None
    if config is None or "layers" not in config.get("config", {}):
        inside = [layer for layer in _everything_inside(model) if _is_recurrent(layer)]
        return _layers_alone(inside, metadata, options)
    stored: dict[str, tuple[tuple[str, str], ...]] = {}
    tensors: dict[str, Lazy] = {}
    for layer in model.layers:
        stored[layer.name] = tuple(_stored(layer, tensors))
    whole = {**metadata, "form": "whole_model", "model_config": config, "layer_weights": stored}
    return opening.read(Archive(MappingProxyType(tensors), MappingProxyType(whole)), options)


def _metadata(model: Any) -> dict[str, Any]:
    """Release and backend of the Keras that the object belongs to."""
    for kind in type(model).__mro__:
        package = sys.modules.get(kind.__module__.split(".")[0])
        if package is not None and package.__name__ in ("keras", "tf_keras"):
            backend = getattr(package, "backend", None)
            name = backend.backend() if backend is not None and hasattr(backend, "backend") else ""
            return {"keras_version": str(package.__version__), "backend": str(name)}
    raise UnsupportedSource("this is not an object of Keras", found=type(model).__qualname__)


def _stored(layer: Any, tensors: dict[str, Lazy]) -> Iterator[tuple[str, str]]:
    """Name and key of each weight of a layer, trainable ones first, as legacy files have them."""
    for number, variable in enumerate([*layer.trainable_weights, *layer.non_trainable_weights]):
        name = str(getattr(variable, "path", variable.name))
        key = f"{layer.name}/{number}/{name}"
        tensors[key] = _lazy(variable)
        yield name, key


def _lazy(variable: Any) -> Lazy:
    kind = variable.dtype
    name = str(getattr(kind, "name", kind)).removeprefix("torch.")
    if name == "bfloat16":
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(name)
    return Lazy(tuple(variable.shape), dtype, lambda: np.asarray(variable, order="C"))


def _everything_inside(model: Any) -> Iterable[Any]:
    found = list(model._flatten_layers(include_self=False, recursive=True))
    wrapped = {
        id(inner)
        for layer in found
        if type(layer).__name__ == "Bidirectional"
        for inner in (layer.forward_layer, layer.backward_layer)
    }
    return [layer for layer in found if id(layer) not in wrapped]


def _is_recurrent(layer: Any) -> bool:
    return type(layer).__name__ in ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional")


def _layers_alone(layers: Iterable[Any], metadata: Mapping[str, Any], options: ReadOptions) -> Model:
    release = parse(str(metadata["keras_version"]), str(metadata["backend"]))
    assert release is not None
    context = Context(release, options)
    result: dict[str, Layer] = {}
    for layer in layers:
        data = {"class_name": type(layer).__name__, "config": _plain(layer.get_config())}
        spec = read_layer(data)
        unit = read_unit(spec, context)
        tensors: dict[str, Lazy] = {}
        stored = {layer.name: tuple(_stored(layer, tensors))}
        if not tensors and unit.slots:
            raise UnsupportedSource(
                "the layer has no weights yet",
                place=f"layer {layer.name!r}",
                remedy="Call it once, or build it.",
            )
        owner = Owner(layer.name, "", unit.slots, bool(layer.trainable))
        found = OrderStore(stored, tensors).find(layer.name, [owner])[layer.name]
        own = {slot.key: lazy for slot, (_, lazy) in found.items()}
        result.update(unit.layers(layer.name, own, tuple(key for key, _ in found.values())))
    if not result:
        raise UnsupportedSource(
            "there are no recurrent layers in this model, and its topology is code",
            remedy="Give a Sequential or functional model.",
        )
    facts = {key: metadata[key] for key in ("keras_version", "backend")}
    return Model(MappingProxyType(result), framework="keras", metadata=MappingProxyType(facts))


def _plain(config: Any) -> Any:
    """A config as it looks after a way through JSON."""
    return json.loads(json.dumps(config, default=_serialised))


def _serialised(value: Any) -> Any:
    if hasattr(value, "get_config"):
        return {"class_name": type(value).__name__, "config": value.get_config()}
    if hasattr(value, "tolist"):
        return value.tolist()
    return getattr(value, "__name__", str(value))


def to_live(model: Model) -> Any:
    """A live model of Keras 3; this is the one function that imports it.

    Raises:
        NotRepresentable: naming what Keras cannot express.
    """
    import keras

    from lstmconvert.frameworks.keras import writer

    config, layers = writer.config_and_weights(model)
    live = keras.saving.deserialize_keras_object(config)
    for name, tensors in layers.items():
        live.get_layer(name).set_weights([lazy.read() for lazy in tensors])
    return live
