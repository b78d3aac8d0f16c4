"""States that a file has outside: what its source starts from, and the source with its states outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstmconvert.canonical import RecurrentLayer
from lstmconvert.gates import Cell, Part
from lstmconvert.model import Call, Layer, Model, Port
from lstmconvert.tensors import Array

_PARTS = (Part.INITIAL_HIDDEN, Part.INITIAL_CELL)


def uses(model: Model, inputs: int) -> list[Call] | None:
    """The calls whose states are ``inputs`` further inputs of a file, in order; ``None`` where none fit.

    These are all recurrent calls that start by themselves, or those of stateful layers only; of a stateful
    layer that is used several times the first.
    """
    for stateful_only in (False, True):
        found: list[Call] = []
        for call in model.calls or ():
            layer = model.layers[call.layer]
            if not isinstance(layer, RecurrentLayer) or call.initial_state:
                continue
            stateful = layer.sequence.stateful
            if (stateful_only and not stateful) or (stateful and any(c.layer == call.layer for c in found)):
                continue
            found.append(call)
        if found and sum(len(sizes(_layer(model, call))) for call in found) == inputs:
            return found
    return None


def _layer(model: Model, call: Call) -> RecurrentLayer:
    layer = model.layers[call.layer]
    assert isinstance(layer, RecurrentLayer)
    return layer


def sizes(layer: RecurrentLayer) -> tuple[int, ...]:
    """The sizes of h, and of an LSTM's c."""
    both = (layer.recurrent_size, layer.hidden_size)
    return both if layer.cell is Cell.LSTM else both[:1]


def starts(model: Model, calls: Sequence[Call], batch: int) -> list[Array]:
    """What the model starts from by itself, each (directions, batch, size): trained states, else zeros."""
    result = []
    for call in calls:
        layer = _layer(model, call)
        for part, size in zip(_PARTS, sizes(layer), strict=False):
            blocks = [direction.weights.get((part, None)) for direction in layer.directions]
            rows = [np.zeros(size) if block is None else block.read() for block in blocks]
            result.append(np.stack([np.broadcast_to(row, (batch, size)) for row in rows]).astype(layer.dtype))
    return result


def random_states(model: Model, calls: Sequence[Call], batch: int, seed: int) -> list[Array]:
    """States that are not zero, each (directions, batch, size)."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(-0.9, 0.9, start.shape).astype(start.dtype) for start in starts(model, calls, batch)]


def with_states(model: Model, calls: Sequence[Call]) -> Model | None:
    """The model with the states of these calls as further inputs and outputs, each (batch, size).

    Inputs and outputs are ordered call by call, and within a call as its states are. ``None`` where a
    stateful layer is used several times: its states go from one use to the next.
    """
    often = [call.layer for call in model.calls or ()]
    if any(often.count(call.layer) > 1 and _layer(model, call).sequence.stateful for call in calls):
        return None
    inputs, outputs = list(model.inputs), list(model.outputs)
    layers: dict[str, Layer] = dict(model.layers)
    changed: list[Call] = []
    for number, call in enumerate(model.calls or ()):
        layer = model.layers[call.layer]
        if not isinstance(layer, RecurrentLayer):
            changed.append(call)
            continue
        names = [(d, k) for d in range(len(layer.directions)) for k in range(len(sizes(layer)))]
        if not layer.sequence.return_state:
            layers[call.layer] = replace(layer, sequence=replace(layer.sequence, return_state=True))
            call = replace(call, outputs=(*call.outputs, *(f"{number}/final/{d}/{k}" for d, k in names)))
        if (model.calls or ())[number] in calls:
            states = tuple(f"{number}/initial/{d}/{k}" for d, k in names)
            widths = [sizes(layer)[k] for _, k in names]
            pairs = zip(states, widths, strict=True)
            inputs += [Port(name, name, (None, width), layer.dtype.name) for name, width in pairs]
            finals = call.outputs[-len(names) :]
            outputs += [
                Port(name, name, (None, w), layer.dtype.name) for name, w in zip(finals, widths, strict=True)
            ]
            call = replace(call, initial_state=states)
        changed.append(call)
    return replace(model, layers=layers, calls=tuple(changed), inputs=tuple(inputs), outputs=tuple(outputs))


def one_by_one(model: Model, calls: Sequence[Call], states: Sequence[Array]) -> list[Array]:
    """States (directions, batch, size), kind by kind, as the inputs that ``with_states`` adds."""
    rest, result = list(states), []
    for call in calls:
        layer = _layer(model, call)
        kinds = [rest.pop(0) for _ in sizes(layer)]
        result += [kind[d] for d in range(len(layer.directions)) for kind in kinds]
    return result


def together(model: Model, calls: Sequence[Call], states: Sequence[Array]) -> list[Array]:
    """The outputs that ``with_states`` adds as states (directions, batch, size), kind by kind."""
    rest, result = list(states), []
    for call in calls:
        layer = _layer(model, call)
        kinds, directions = len(sizes(layer)), len(layer.directions)
        own = [rest.pop(0) for _ in range(kinds * directions)]
        result += [np.stack(own[kind::kinds]) for kind in range(kinds)]
    return result


def fed(
    model: Model, case: Mapping[str, Any], calls: Sequence[Call], states: Sequence[Array]
) -> dict[str, Any]:
    """The inputs of ``with_states``."""
    added = [
        f"{number}/initial/{d}/{k}"
        for number, call in enumerate(model.calls or ())
        if call in calls
        for d in range(len(_layer(model, call).directions))
        for k in range(len(sizes(_layer(model, call))))
    ]
    return {**case, **dict(zip(added, one_by_one(model, calls, states), strict=True))}
