"""Models as files of Keras: ``.keras``, whole-model ``.h5``, ``.weights.h5``.

Written for Keras 3.15; a whole-model ``.h5`` is one that tf_keras 2.21 loads as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lstmconvert.containers import Archive
from lstmconvert.errors import NotRepresentable, Usage
from lstmconvert.frameworks.keras import activation_names
from lstmconvert.frameworks.keras.ordering import Node, orders
from lstmconvert.frameworks.keras.plan import CallToWrite, Entry, Plan, Tensor, plan
from lstmconvert.frameworks.keras.recurrent import snake
from lstmconvert.model import Model
from lstmconvert.tensors import Lazy

if TYPE_CHECKING:
    from lstmconvert.options import WriteOptions

RELEASE = "3.15.1"
"""The release whose files these are."""


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """See ``lstmconvert.frameworks.keras.write``."""
    if options.states:
        raise Usage(
            "--states is not available for Keras",
            remedy="Keras layers take and give states themselves (initial_state, return_state).",
        )
    planned = plan(_whole(model))
    name = planned.name(str(model.metadata.get("name") or "model"))
    if container == "keras_archive":
        return _keras_archive(planned, name)
    if container == "keras_weights":
        return _weights(planned, name)
    if container == "hdf5":
        return _whole_model(planned, name)
    raise Usage(f"Keras is not written to the container {container!r}")


def config_and_weights(model: Model) -> tuple[dict[str, Any], dict[str, tuple[Lazy, ...]]]:
    """The config of a model for Keras 3, and the weights of each layer as ``set_weights`` takes them.

    Raises:
        NotRepresentable: naming what Keras cannot express.
    """
    planned = plan(_whole(model))
    name = planned.name(str(model.metadata.get("name") or "model"))
    weights = {e.name: tuple(t.lazy for t in e.layer.tensors) for e in _ordered(planned) if e.layer.tensors}
    return _keras3_config(planned, name), weights


def _whole(model: Model) -> Model:
    """The model, or the one recurrent stack of a model without topology as a whole model."""
    if model.calls is not None:
        return model
    from lstmconvert import stacks

    found = stacks.split(model)
    if len(found) != 1:
        raise NotRepresentable(
            str(model.metadata.get("topology") or "the source does not say how its layers are wired")
            + ", and it has several recurrent stacks",
            reasons=[", ".join(found) or "none"],
            remedy="Name one layer with --layer, or write a folder.",
        )
    return next(iter(found.values()))


# Configs.


def _is_sequential(planned: Plan) -> bool:
    """Whether every layer takes the output of the one before, and nothing else."""
    entries = list(planned.entries.values())
    if len(planned.inputs) != 1 or len(planned.outputs) != 1 or len(entries) < 2:
        return False
    before = entries[0].name
    for entry in entries[1:]:
        if entry.layer.is_operator or len(entry.calls) != 1:
            return False
        (call,) = entry.calls
        if call.named or len(call.positional) != 1:
            return False
        (item,) = call.positional
        if not isinstance(item, Tensor) or item.layer != before or item.output != 0:
            return False
        before = entry.name
    last = planned.outputs[0]
    return last.layer == before and last.output == 0


def _without_masks(planned: Plan) -> Plan:
    """The plan without the operators and arguments that only spell out what Keras passes on by itself."""
    hidden = {
        entry.name
        for entry in planned.entries.values()
        if entry.layer.is_operator and entry.layer.class_name in ("NotEqual", "Any")
    }

    def implied(call: CallToWrite) -> bool:
        x = call.positional[0] if call.positional else None
        if not isinstance(x, Tensor) or x.mask is None or set(call.named) != {"mask"}:
            return False
        return bool(planned.mask_tensors.get(x.mask) == call.named["mask"])

    result = Plan(planned.model, planned.dtype)
    result.inputs, result.outputs = planned.inputs, planned.outputs
    for entry in planned.entries.values():
        if entry.name in hidden:
            continue
        calls = [CallToWrite(c.positional, {}) if implied(c) else c for c in entry.calls]
        result.entries[entry.name] = Entry(entry.name, entry.layer, calls)
    used = {t.layer for entry in result.entries.values() for call in entry.calls for t in call.tensors()}
    return planned if used & hidden else result


def in_keras_order(planned: Plan) -> list[Entry]:
    """All entries of a plan, sorted as Keras sorts the layers of the loaded model."""

    def parents(node: Node) -> list[Node]:
        calls = planned.entries[node[0]].calls
        return [(tensor.layer, tensor.call) for tensor in calls[node[1]].tensors()] if calls else []

    inputs = [tensor.layer for tensor in planned.inputs]
    outputs = [(tensor.layer, tensor.call) for tensor in planned.outputs]
    return [planned.entries[name] for name in orders(inputs, outputs, parents).layers]


def _config(entry: Entry, planned: Plan) -> dict[str, Any]:
    config: dict[str, Any] = {"name": entry.name}
    class_name = entry.layer.class_name
    if not entry.layer.is_operator and class_name != "InputLayer":
        if not class_name.startswith("SpatialDropout"):  # these take no such argument in Keras 3
            config["trainable"] = True
        config["dtype"] = planned.dtype
    return {**config, **entry.layer.config}


def _layer_data(entry: Entry, planned: Plan) -> dict[str, Any]:
    return {
        "module": entry.layer.module,
        "class_name": entry.layer.class_name,
        "config": _config(entry, planned),
        "registered_name": entry.layer.class_name if entry.layer.is_operator else None,
    }


def _keras3_node(call: CallToWrite) -> dict[str, Any]:
    def data(item: Any) -> Any:
        if isinstance(item, Tensor):
            return {
                "class_name": "__keras_tensor__",
                "config": {
                    "shape": list(item.shape),
                    "dtype": item.dtype,
                    "keras_history": [item.layer, item.call, item.output],
                },
            }
        if isinstance(item, tuple):
            return [data(part) for part in item]
        return item

    return {
        "args": [data(item) for item in call.positional],
        "kwargs": {key: data(item) for key, item in call.named.items()},
    }


def _reference(tensor: Tensor) -> list[Any]:
    return [tensor.layer, tensor.call, tensor.output]


def _keras3_config(planned: Plan, name: str) -> dict[str, Any]:
    simple = _without_masks(planned)
    if _is_sequential(simple):
        first = simple.inputs[0]
        config: dict[str, Any] = {
            "name": name,
            "trainable": True,
            "dtype": planned.dtype,
            "layers": [_layer_data(entry, planned) for entry in simple.entries.values()],
            "build_input_shape": list(first.shape),
        }
        return {
            "module": "keras",
            "class_name": "Sequential",
            "config": config,
            "registered_name": None,
            "build_config": {"input_shape": list(first.shape)},
        }
    layers = []
    for entry in in_keras_order(planned):
        nodes = [_keras3_node(call) for call in entry.calls]
        layers.append({**_layer_data(entry, planned), "name": entry.name, "inbound_nodes": nodes})
    config = {
        "name": name,
        "trainable": True,
        "layers": layers,
        "input_layers": [_reference(tensor) for tensor in planned.inputs],
        "output_layers": [_reference(tensor) for tensor in planned.outputs],
    }
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": config,
        "registered_name": "Functional",
        "build_config": {"input_shape": None},
    }


# Tensors.


def _ordered(planned: Plan) -> list[Entry]:
    """The entries in the order in which Keras 3 has the layers of the loaded model."""
    simple = _without_masks(planned)
    if _is_sequential(simple):
        return [entry for entry in simple.entries.values() if entry.layer.class_name != "InputLayer"]
    return [entry for entry in in_keras_order(planned) if not entry.layer.is_operator]


def _by_path(planned: Plan, name: str) -> tuple[dict[str, Lazy], dict[str, str]]:
    tensors: dict[str, Lazy] = {}
    names = {"": name}
    counts: dict[str, int] = {}
    for entry in _ordered(planned):
        base = snake(entry.layer.class_name)
        number = counts.get(base, 0)
        counts[base] = number + 1
        path = f"layers/{base}{f'_{number}' if number else ''}"
        names[path] = entry.name
        variables: dict[str, int] = {}
        for tensor in entry.layer.tensors:
            at = f"{path}/{tensor.path}" if tensor.path else path
            variables[at] = variables.get(at, -1) + 1
            tensors[f"{at}/vars/{variables[at]}"] = tensor.lazy
    return tensors, names


def _keras_archive(planned: Plan, name: str) -> Archive:
    tensors, names = _by_path(planned, name)
    metadata = {
        "form": "keras_archive",
        "config": _keras3_config(planned, name),
        "keras_version": RELEASE,
        "variable_names": names,
    }
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def _weights(planned: Plan, name: str) -> Archive:
    tensors, names = _by_path(planned, name)
    return Archive(
        MappingProxyType(tensors), MappingProxyType({"form": "weights_v3", "variable_names": names})
    )


# The whole-model HDF5 file.

_LEGACY_NAMES = {"batch_shape": "batch_input_shape"}


def _whole_model(planned: Plan, name: str) -> Archive:
    simple = _without_masks(planned)
    if _is_sequential(simple):
        entries = list(simple.entries.values())
        config: dict[str, Any] = {
            "name": name,
            "layers": [_legacy_layer(entry, planned) for entry in entries],
        }
        model_config = {"class_name": "Sequential", "config": config}
        entries = [entry for entry in entries if entry.layer.class_name != "InputLayer"]
    else:
        entries = _legacy_order(planned, simple)
        layers = [
            {**_legacy_layer(e, planned), "name": e.name, "inbound_nodes": [_legacy_node(c) for c in e.calls]}
            for e in entries
        ]
        config = {
            "name": name,
            "trainable": True,
            "layers": layers,
            "input_layers": [_reference(tensor) for tensor in simple.inputs],
            "output_layers": [_reference(tensor) for tensor in simple.outputs],
        }
        model_config = {"class_name": "Functional", "config": config}
    tensors: dict[str, Lazy] = {}
    stored: dict[str, tuple[tuple[str, str], ...]] = {}
    for entry in entries:
        own = sorted(entry.layer.tensors, key=lambda tensor: not tensor.trainable)
        named = [(f"{entry.name}/{tensor.name}", tensor.lazy) for tensor in own]
        stored[entry.name] = tuple((weight, f"model_weights/{entry.name}/{weight}") for weight, _ in named)
        tensors.update((f"model_weights/{entry.name}/{weight}", lazy) for weight, lazy in named)
    metadata = {
        "form": "whole_model",
        "model_config": model_config,
        "keras_version": RELEASE,
        "backend": "tensorflow",
        "layer_weights": stored,
    }
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def _refuse_legacy(reason: str, place: str) -> NotRepresentable:
    return NotRepresentable(
        "a whole-model .h5 of Keras cannot hold this model",
        reasons=[reason],
        place=place,
        remedy="Write a .keras file.",
    )


def _says_hard_sigmoid(config: Any) -> bool:
    """Whether an activation anywhere in a layer's config has the slope that the Keras releases differ in."""
    if isinstance(config, Mapping):
        return any(_says_hard_sigmoid(value) for value in config.values())
    if isinstance(config, list | tuple):
        return any(_says_hard_sigmoid(value) for value in config)
    return bool(config == activation_names.HARD_SIGMOID)


def _legacy_layer(entry: Entry, planned: Plan) -> dict[str, Any]:
    place = f"layer {entry.name!r}"
    if entry.layer.is_operator:
        raise _refuse_legacy(f"it has no place for the operator {entry.layer.class_name}", place)
    if _says_hard_sigmoid(entry.layer.config):
        raise _refuse_legacy(
            "Keras 2 and Keras 3 both load it, and take its hard_sigmoid for different functions", place
        )
    config = {_LEGACY_NAMES.get(key, key): value for key, value in _config(entry, planned).items()}
    if isinstance(config.get("axis"), list) and len(config["axis"]) > 1:
        raise _refuse_legacy("loading it forgets a normalisation over several axes", place)
    if entry.layer.class_name == "LeakyReLU":
        config["alpha"] = config.pop("negative_slope")
    return {"class_name": entry.layer.class_name, "config": config}


def _legacy_order(planned: Plan, simple: Plan) -> list[Entry]:
    """The order of the layers after loading, which is how their weights are found.

    Keras 3 counts the operators of masks among the steps of the graph, tf_keras has none.

    Raises:
        NotRepresentable: when the two would order the layers differently.
    """
    if simple is planned and any(entry.layer.is_operator for entry in planned.entries.values()):
        raise _refuse_legacy("it has no place for masks that are handed over", "model")
    first = [entry.name for entry in in_keras_order(planned) if not entry.layer.is_operator]
    ordered = in_keras_order(simple)
    weighted = {entry.name for entry in ordered if entry.layer.tensors}
    if [n for n in first if n in weighted] != [e.name for e in ordered if e.name in weighted]:
        raise _refuse_legacy("Keras 3 and tf_keras would take its layers in different orders", "model")
    return list(ordered)


def _legacy_node(call: CallToWrite) -> Any:
    """A call in the form that both load; one with tensors beside its input only in Keras 3's form."""
    inputs = (
        call.positional[0] if call.positional and isinstance(call.positional[0], tuple) else call.positional
    )
    plain = all(isinstance(item, Tensor) for item in inputs) and not list(_named_tensors(call.named))
    if not plain or (len(call.positional) > 1):
        return _keras3_node(call)
    return [[*_reference(tensor), dict(call.named)] for tensor in inputs]


def _named_tensors(named: Mapping[str, Any]) -> Sequence[Tensor]:
    return list(CallToWrite((), named).tensors())
