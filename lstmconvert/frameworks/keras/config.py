"""Keras configs of every generation as one tree of frozen values: layers, options, calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.values import dataclass

MODELS = frozenset({"Sequential", "Functional", "Model"})
_CONSTANT = "_CONSTANT_VALUE"


@dataclass(frozen=True, slots=True)
class Reference:
    """An output of a layer: which layer, the how-manieth of its calls, which output of that call."""

    layer: str
    call: int
    output: int


@dataclass(frozen=True, slots=True)
class CallSpec:
    """How a layer is called: arguments as Python has them, with ``Reference`` in place of tensors."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    def references(self) -> Iterator[Reference]:
        """Every tensor among the arguments, in the order in which Keras visits them."""
        yield from _references((*self.positional, *(self.named[key] for key in sorted(self.named))))


@dataclass(frozen=True, slots=True, eq=False)
class LayerSpec:
    """A layer as its config has it.

    Attributes:
        class_name: Keras's class, in the spelling of Keras 2 and 3.
        name: the user's name.
        config: its options.
        module: the module of the class as Keras 3 writes it, or ``""``.
        calls: its calls, in a functional model.
        model: what is in it, when it is a model itself.
    """

    class_name: str
    name: str
    config: Mapping[str, Any]
    module: str = ""
    calls: tuple[CallSpec, ...] = ()
    model: ModelSpec | None = None

    @property
    def is_operator(self) -> bool:
        """Whether this is one of ``keras.ops`` and no layer (Keras 3 lists both alike)."""
        if self.module:
            return self.module.startswith("keras.src.ops") or self.module == "keras.ops"
        # A legacy file of Keras 3 does not say it; these are the layers that do not note "trainable".
        layer = self.class_name == "InputLayer" or self.class_name.startswith("SpatialDropout")
        return not layer and self.model is None and "trainable" not in self.config


@dataclass(frozen=True, slots=True, eq=False)
class ModelSpec:
    """A model as its config has it.

    Attributes:
        name: its name.
        sequential: whether the layers simply follow each other.
        layers: every layer, in the order of the config (also the order of the weights).
        inputs, outputs: of a functional model.
        built_shape: of the input of a sequential model that has no Input layer, if it was ever called.
    """

    name: str
    sequential: bool
    layers: tuple[LayerSpec, ...]
    inputs: tuple[Reference, ...] = ()
    outputs: tuple[Reference, ...] = ()
    built_shape: Any = None


def _references(value: Any) -> Iterator[Reference]:
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from _references(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _references(item)


def read_layer(data: Any, *, inside: str = "") -> LayerSpec:
    """A layer, or a whole model, from its parsed JSON.

    Args:
        data: ``{"class_name": ..., "config": ...}``.
            inside: where it stands, for messages.

    Raises:
        BadFile: when it is not what Keras writes.
    """
    place = inside or "model_config"
    if not isinstance(data, Mapping) or "class_name" not in data:
        raise BadFile("the configuration is not one of Keras", place=place, expected="class_name and config")
    class_name = str(data["class_name"])
    config = data.get("config")
    if isinstance(config, list) and class_name == "Sequential":
        config = {"layers": config}  # Keras before 2.2.3
    if not isinstance(config, Mapping):
        raise BadFile(
            "a layer has no configuration", place=f"{place}: {class_name}", found=type(config).__name__
        )
    name = str(data.get("name") or config.get("name") or class_name.lower())
    spec = LayerSpec(class_name, name, MappingProxyType(dict(config)), str(data.get("module") or ""))
    if isinstance(config.get("layers"), list) and "cell" not in config:
        if class_name == "Sequential" or "output_layers" not in config:
            build = data.get("build_config") or {}
            shape = config.get("build_input_shape") or (build.get("input_shape") if build else None)
            return replace(spec, model=_read_sequential(name, config, shape))
        return replace(spec, model=_read_functional(name, config))
    return _modern(spec)


def _read_sequential(name: str, config: Mapping[str, Any], built_shape: Any) -> ModelSpec:
    layers = tuple(read_layer(layer, inside=name) for layer in config["layers"])
    return ModelSpec(name, True, layers, built_shape=built_shape)


def _read_functional(name: str, config: Mapping[str, Any]) -> ModelSpec:
    entries = config["layers"]
    names = {str(entry.get("name") or entry.get("config", {}).get("name")) for entry in entries}
    layers = []
    for entry in entries:
        spec = read_layer(entry, inside=name)
        calls = tuple(_read_call(node, names, spec.name) for node in entry.get("inbound_nodes") or ())
        layers.append(replace(spec, calls=calls))
    inputs = tuple(_ports(config["input_layers"], f"{name}: input_layers"))
    outputs = tuple(_ports(config["output_layers"], f"{name}: output_layers"))
    keras3 = any(isinstance(node, Mapping) for entry in entries for node in entry.get("inbound_nodes") or ())
    return _recounted(ModelSpec(name, False, tuple(layers), inputs, outputs), keras3=keras3)


def _ports(value: Any, place: str) -> Iterator[Reference]:
    """Tensors of a structure, in the order in which Keras flattens it."""
    if isinstance(value, (list, tuple)) and len(value) >= 3 and isinstance(value[0], str):
        yield Reference(value[0], int(value[1]), int(value[2]))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from _ports(value[key], place)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _ports(item, place)
    else:
        raise BadFile(
            "a tensor of the model is not given as [layer, call, output]", place=place, found=repr(value)
        )


def _read_call(node: Any, names: set[str], layer: str) -> CallSpec:
    if isinstance(node, Mapping) and "args" in node:
        positional = tuple(_keras3_value(value) for value in node["args"])
        named = {key: _keras3_value(value) for key, value in (node.get("kwargs") or {}).items()}
        return CallSpec(positional, MappingProxyType(named))
    if isinstance(node, Mapping):
        raise UnsupportedSource(
            "a layer that takes a dictionary of tensors is not supported", place=f"layer {layer!r}"
        )
    if node and isinstance(node[0], str):
        node = [node]
    tensors: list[Any] = []
    named = {}
    for item in node:
        if not isinstance(item, (list, tuple)) or len(item) < 3:
            raise BadFile("a call of a layer cannot be read", place=f"layer {layer!r}", found=repr(item))
        tensors.append(
            item[2] if item[0] == _CONSTANT else Reference(str(item[0]), int(item[1]), int(item[2]))
        )
        if len(item) > 3:
            named.update({key: _keras2_value(value, names) for key, value in item[3].items()})
    first = tensors[0] if len(tensors) == 1 else tuple(tensors)
    return CallSpec((first,), MappingProxyType(named))


def _keras3_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        kind = value.get("class_name")
        if kind == "__keras_tensor__":
            layer, call, output = value["config"]["keras_history"]
            return Reference(str(layer), int(call), int(output))
        if kind == "__tuple__":
            return tuple(_keras3_value(item) for item in value["config"].get("items", ()))
        return MappingProxyType({key: _keras3_value(item) for key, item in value.items()})
    if isinstance(value, list):
        return tuple(_keras3_value(item) for item in value)
    return value


def _keras2_value(value: Any, names: set[str]) -> Any:
    if isinstance(value, (list, tuple)):
        if (
            len(value) in (3, 4)
            and isinstance(value[0], str)
            and value[0] in names
            and isinstance(value[1], int)
        ):
            return Reference(value[0], value[1], int(value[2]))
        return tuple(_keras2_value(item, names) for item in value)
    if isinstance(value, Mapping):
        return MappingProxyType({key: _keras2_value(item, names) for key, item in value.items()})
    return value


def _recounted(model: ModelSpec, *, keras3: bool) -> ModelSpec:
    """References that count calls from 0 also where Keras counts from 1.

    A model that is a layer of another one has a call of its own from when it was made, which is not
    in the config: Keras 2 counts it everywhere, Keras 3 only for functional models and only where it
    names the outputs.
    """
    nested = {layer.name: layer for layer in model.layers if layer.model is not None}
    if not nested:
        return model
    inner = [ref for layer in model.layers for call in layer.calls for ref in call.references()]
    if keras3:
        in_calls: frozenset[str] = frozenset()
        in_outputs = frozenset(n for n, layer in nested.items() if layer.model and not layer.model.sequential)
    else:
        in_calls = in_outputs = _counted_from_one(nested, [*inner, *model.outputs])

    def recount(value: Any, counted: frozenset[str]) -> Any:
        if isinstance(value, Reference):
            return replace(value, call=value.call - 1) if value.layer in counted else value
        if isinstance(value, Mapping):
            return MappingProxyType({key: recount(item, counted) for key, item in value.items()})
        if isinstance(value, tuple):
            return tuple(recount(item, counted) for item in value)
        return value

    def recount_call(call: CallSpec) -> CallSpec:
        return CallSpec(recount(call.positional, in_calls), recount(call.named, in_calls))

    layers = tuple(replace(layer, calls=tuple(map(recount_call, layer.calls))) for layer in model.layers)
    return replace(model, layers=layers, outputs=recount(model.outputs, in_outputs))


def _counted_from_one(nested: Mapping[str, LayerSpec], references: Sequence[Reference]) -> frozenset[str]:
    """The nested models of which the last call that is referred to has the number of all calls."""
    highest: dict[str, int] = {}
    for reference in references:
        if reference.layer in nested:
            highest[reference.layer] = max(reference.call, highest.get(reference.layer, 0))
    return frozenset(name for name, number in highest.items() if number >= len(nested[name].calls))


# Keras 1 in the words of Keras 2.

_RENAMED_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "Convolution1D": "Conv1D",
        "Convolution2D": "Conv2D",
        "SeparableConvolution1D": "SeparableConv1D",
        "MaxPool1D": "MaxPooling1D",
        "MaxPool2D": "MaxPooling2D",
        "AvgPool1D": "AveragePooling1D",
        "AvgPool2D": "AveragePooling2D",
        "GlobalMaxPool1D": "GlobalMaxPooling1D",
        "GlobalMaxPool2D": "GlobalMaxPooling2D",
        "GlobalAvgPool1D": "GlobalAveragePooling1D",
        "GlobalAvgPool2D": "GlobalAveragePooling2D",
        "BatchNormalizationV1": "BatchNormalization",
        "BatchNormalizationV2": "BatchNormalization",
        "SyncBatchNormalization": "BatchNormalization",
        "TimeDistributedDense": "Dense",
        "LSTMV2": "LSTM",
        "GRUV2": "GRU",
    }
)

_RENAMED_OPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "inner_activation": "recurrent_activation",
        "nb_filter": "filters",
        "filter_length": "kernel_size",
        "subsample_length": "strides",
        "subsample": "strides",
        "border_mode": "padding",
        "pool_length": "pool_size",
        "stride": "strides",
        "bias": "use_bias",
        "p": "rate",
        "sigma": "stddev",
        "dropout_W": "dropout",
        "dropout_U": "recurrent_dropout",
    }
)
_DIM_ORDERINGS: Mapping[str, str] = MappingProxyType({"tf": "channels_last", "th": "channels_first"})
_KERAS1_MERGES: Mapping[str, str] = MappingProxyType(
    {
        "sum": "Add",
        "mul": "Multiply",
        "ave": "Average",
        "max": "Maximum",
        "concat": "Concatenate",
        "dot": "Dot",
    }
)


def _modern(spec: LayerSpec) -> LayerSpec:
    """A layer of Keras 1 (or with an older name) as Keras 2 would write it."""
    config = {_RENAMED_OPTIONS.get(key, key): value for key, value in spec.config.items()}
    if "nb_row" in config:
        config["kernel_size"] = [config.pop("nb_row"), config.pop("nb_col")]
    if "dim_ordering" in config:
        ordering = config.pop("dim_ordering")
        config["data_format"] = _DIM_ORDERINGS.get(str(ordering), ordering)
    if "output_dim" in config and spec.class_name != "Embedding":
        config["units"] = config.pop("output_dim")
    class_name = _RENAMED_CLASSES.get(spec.class_name, spec.class_name)
    if spec.class_name == "Merge":
        class_name, config = _modern_merge(spec, config)
    return replace(spec, class_name=class_name, config=MappingProxyType(config))


def _modern_merge(spec: LayerSpec, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    mode = config.get("mode")
    kept = {"name": spec.name}
    if not isinstance(mode, str) or mode not in _KERAS1_MERGES or "layers" in config:
        raise UnsupportedSource(
            f"a Merge layer of Keras 1 with mode {mode!r} is not supported",
            place=f"layer {spec.name!r}",
            expected=", ".join(_KERAS1_MERGES),
        )
    if mode == "concat":
        kept["axis"] = config.get("concat_axis", -1)
    if mode == "dot":
        kept["axes"] = config.get("dot_axes", -1)
    return _KERAS1_MERGES[mode], kept
