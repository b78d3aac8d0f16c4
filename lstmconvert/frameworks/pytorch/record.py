"""What a state_dict cannot say of the model it belongs to: a JSON text in the metadata of files written here.

Read back, it gives the whole model without running the module's source. A file without it, or whose
tensors no longer fit it, is read like any other state_dict.
"""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from lstmconvert import layout as layouts
from lstmconvert import provenance, shapes
from lstmconvert.activations import Activation
from lstmconvert.canonical import (
    RecurrentDirection,
    RecurrentLayer,
    SequenceBehaviour,
    Weights,
)
from lstmconvert.errors import BadFile
from lstmconvert.frameworks.pytorch.declared import INITIAL, Place
from lstmconvert.frameworks.pytorch.use import Held, layout_named
from lstmconvert.gates import Direction
from lstmconvert.model import Call, Layer, Model, OperationLayer, Port
from lstmconvert.operations import Operation, TimeDistributed
from lstmconvert.tensors import Lazy

KEY = "lstmconvert.module"
"""The metadata key of the text."""
_SCHEMA = 1


def dumps(model: Model, places: Mapping[str, tuple[Place, ...]], held: Mapping[str, Held]) -> str:
    """The text for a model whose topology is known."""
    layers = []
    for key, layer in model.layers.items():
        if isinstance(layer, RecurrentLayer):
            layers.append({"key": key, **_recurrent_to_json(layer, places[key])})
        elif key in held or not layer.weights:
            layers.append({"key": key, **_operation_to_json(layer, held.get(key, Held()))})
    return json.dumps(
        {
            "schema": _SCHEMA,
            "layers": layers,
            "calls": [_to_json(call) for call in model.calls or ()],
            "inputs": [_to_json(port) for port in model.inputs],
            "outputs": [_to_json(port) for port in model.outputs],
        },
        separators=(",", ":"),
    )


def loads(text: object, tensors: Mapping[str, Lazy]) -> Model | None:
    """The model that a text describes, of these tensors; ``None`` where the two do not fit."""
    if not isinstance(text, str):
        return None
    try:
        data = json.loads(text)
        if data["schema"] != _SCHEMA:
            return None
        layers: dict[str, Layer] = {}
        for item in data["layers"]:
            read = _recurrent_from_json if "places" in item else _operation_from_json
            layer = layers[str(item["key"])] = read(item, tensors)
            if layer.name != item["key"]:
                return None
        model = Model(
            MappingProxyType(layers),
            tuple(_from_json(Call, item) for item in data["calls"]),
            tuple(_from_json(Port, item) for item in data["inputs"]),
            tuple(_from_json(Port, item) for item in data["outputs"]),
        )
        shapes.infer(model)  # whether every layer is fed what it takes
        return model
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, BadFile):
        return None


# Recurrent layers.


def _recurrent_to_json(layer: RecurrentLayer, places: tuple[Place, ...]) -> dict[str, Any]:
    return {
        "name": layer.name,
        "equations": [provenance.equations_to_json(d.equations) for d in layer.directions],
        "sequence": _to_json(layer.sequence),
        "notes": dict(layer.notes),
        "biases": [[[str(part), gate] for part, gate in d.weights] for d in layer.directions],
        "places": [_to_json(place) for place in places],
    }


def _under(prefix: str, names: Iterable[str], tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """Those of the names that there are tensors of behind the prefix, and these."""
    return {name: tensors[prefix + name] for name in names if prefix + name in tensors}


def _recurrent_from_json(data: Mapping[str, Any], tensors: Mapping[str, Lazy]) -> RecurrentLayer:
    directions: list[RecurrentDirection] = []
    origin: list[str] = []
    stored: tuple[Any, ...] = ()
    equations = [provenance.equations_from_json(item) for item in data["equations"]]
    for item in data["places"]:
        place: Place = _from_json(Place, item)
        layout = layout_named(place.layout)
        if layout.cell is None:
            raise ValueError(f"{place.layout} is no layout of a cell")
        local = _under(place.prefix, _names(place.layout, place.layer), tensors)
        found = layouts.unpack(layout, local, place.layer)
        if len(found) != len(place.directions):
            raise ValueError("another number of directions")
        used = _tensor_names(place.layout, tuple(found), place.layer)
        origin += [place.prefix + name for name in used if name in local]
        stored = layout.gates
        for row, (direction, blocks) in enumerate(zip(place.directions, found.values(), strict=True)):
            for part, name in zip(INITIAL, place.initial, strict=False):
                if name:
                    blocks[part, None] = _row(tensors[name], row)
            wanted = {(part, gate) for part, gate in data["biases"][len(directions)]}
            kept = {key: block for key, block in blocks.items() if (str(key[0]), key[1]) in wanted}
            if len(kept) != len(wanted):
                raise ValueError("a block is missing")
            weights = Weights(layout.cell, kept)
            directions.append(RecurrentDirection(Direction(direction), equations[len(directions)], weights))
    return RecurrentLayer(
        str(data["name"]),
        tuple(directions),
        _from_json(SequenceBehaviour, data["sequence"]),
        tuple(origin),
        stored,
        MappingProxyType({str(k): str(v) for k, v in data["notes"].items()}),
    )


@functools.lru_cache(maxsize=4096)
def _tensor_names(layout: str, directions: tuple[Direction, ...], layer: str) -> tuple[str, ...]:
    """The names of a layout's tensors; the proof reads the same layers several times."""
    return layouts.tensor_names(layout_named(layout), directions, layer)


def _names(layout: str, layer: str) -> tuple[str, ...]:
    """The names that a layer's tensors may have, whichever directions there are."""
    both = (Direction.FORWARD, Direction.REVERSE)
    every = (name for ways in (both[:1], both) for name in _tensor_names(layout, ways, layer))
    return tuple(dict.fromkeys(every))


def _row(lazy: Lazy, row: int) -> Lazy:
    return lazy.map(lambda array: array[row, 0], lazy.shape[2:])


# Operations.


def _operation_to_json(layer: OperationLayer, held: Held) -> dict[str, Any]:
    parts = sorted(layer.weights)
    return {
        "name": layer.name,
        "operation": _to_json(layer.operation),
        "parts": parts,
        "layout": held.layout,
        "prefix": held.prefix,
        "sizes": _sizes(layer) if held.layout else {},
        "tensors": {part: [name, list(order)] for part, (name, order) in held.tensors.items()},
    }


def _sizes(layer: OperationLayer) -> dict[str, int]:
    """The lengths of the axes of all parts."""
    inner = layer.operation.inner if isinstance(layer.operation, TimeDistributed) else layer.operation
    axes = inner.PARTS
    return {
        axis: size
        for part, lazy in layer.weights.items()
        for axis, size in zip(axes[part], lazy.shape, strict=True)
    }


def _operation_from_json(data: Mapping[str, Any], tensors: Mapping[str, Lazy]) -> OperationLayer:
    operation = _from_json(Operation, data["operation"])
    if data["layout"]:
        layout = layout_named(data["layout"])
        local = _under(data["prefix"], (rule.name for rule in layout.tensors), tensors)
        found = layouts.unpack_operation(layout, local, {str(k): int(v) for k, v in data["sizes"].items()})
    else:
        found = {part: _reordered(tensors[name], order) for part, (name, order) in data["tensors"].items()}
    weights = {part: found[part] for part in data["parts"]}
    return OperationLayer(str(data["name"]), operation, MappingProxyType(weights))


def _reordered(lazy: Lazy, order: list[int]) -> Lazy:
    """A tensor whose axis k is axis ``order[k]`` of the part, as the part."""
    if sorted(order) != list(range(len(lazy.shape))):
        raise ValueError("the axes do not fit")
    back = tuple(order.index(axis) for axis in range(len(order)))
    return lazy.map(lambda array: array.transpose(back), tuple(lazy.shape[axis] for axis in back))


# Values.


def _to_json(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _to_json(getattr(value, f.name)) for f in fields(value)}
        return {"type": type(value).__name__, **own} if isinstance(value, Operation) else own
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(kind: Any, value: Any) -> Any:
    """The inverse of ``_to_json``, by the annotations of the dataclass ``kind``.

    Raises:
        ValueError, KeyError, TypeError: when the data are not such a value.
    """
    if kind is Operation:
        found = {cls.__name__: cls for cls in Operation.__subclasses__()}
        kind = found[value["type"]]
    hints = _hints(kind)
    given = {f.name: _typed(hints[f.name], value[f.name]) for f in fields(kind)}
    return kind(**given)


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    """The annotations of a dataclass, evaluated once."""
    return typing.get_type_hints(kind)


def _typed(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if not isinstance(value, list):
            raise TypeError("a list was expected")
        if len(items) == 2 and items[1] is Ellipsis:
            return tuple(_typed(items[0], item) for item in value)
        return tuple(_typed(item, own) for item, own in zip(items, value, strict=True))
    if options := typing.get_args(hint):  # a union
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is not type(None):
                try:
                    return _typed(option, value)
                except TypeError:
                    continue
        raise TypeError("no such value")
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    if hint is Activation or hint is Operation:
        return _from_json(hint, value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError(f"{hint} was expected")
    return value
