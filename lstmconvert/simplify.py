"""Simplifying a model's graph: what exporters spell out around a recurrent layer goes back into the layer.

Every step leaves every result as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from lstmconvert.canonical import RecurrentLayer, Returns, ReverseOutput
from lstmconvert.gates import Direction
from lstmconvert.model import Call, Model, OperationLayer
from lstmconvert.operations import Reverse

_FLIPPED = {
    ReverseOutput.INPUT_ORDER: ReverseOutput.VISITED_ORDER,
    ReverseOutput.VISITED_ORDER: ReverseOutput.INPUT_ORDER,
}


def without_unused(model: Model) -> tuple[Model, tuple[str, ...]]:
    """The model without what no output depends on, and the names of the layers that went with it."""
    if model.calls is None:
        return model, ()
    needed = {port.value for port in model.outputs}
    kept: list[Call] = []
    for call in reversed(model.calls):
        if needed.isdisjoint(call.outputs):
            continue
        kept.append(call)
        needed.update(call.inputs, call.initial_state, () if call.mask is None else (call.mask,))
    if len(kept) == len(model.calls):
        return model, ()
    used = {call.layer for call in kept}
    unused = {call.layer for call in model.calls} - used
    layers = {name: layer for name, layer in model.layers.items() if name not in unused}
    gone = tuple(name for name in model.layers if name in unused)
    return replace(model, layers=layers, calls=tuple(reversed(kept))), gone


def fold_reversals(model: Model) -> Model:
    """Flips of time before and after a recurrent layer become the layer's own direction and output order.

    A forward layer behind a flip is a reverse layer whose outputs come as visited; a flip behind a
    single reverse layer changes the order of its outputs.
    """
    while model.calls is not None:
        folded = _fold_one(model)
        if folded is None:
            return model
        model = folded
    return model


def _fold_one(model: Model) -> Model | None:
    calls = model.calls or ()
    uses = Counter(
        v for call in calls for v in (*call.inputs, *call.initial_state, call.mask) if v is not None
    )
    uses.update(port.value for port in model.outputs)
    shared = Counter(call.layer for call in calls)
    producers = {call.outputs[0]: call for call in calls}
    for call in calls:
        recurrent = _alone(model, call, shared)
        if recurrent is not None:
            before = producers.get(call.inputs[0])
            if (
                before is not None
                and _flips(model, before)
                and uses[call.inputs[0]] == 1
                and call.mask is None
            ) and recurrent.directions[0].direction is Direction.FORWARD:
                return _joined(model, before, call, _turned(recurrent), inputs=before.inputs)
        elif _flips(model, call):
            before = producers.get(call.inputs[0])
            layer = None if before is None else _alone(model, before, shared)
            if before is None or layer is None or uses[call.inputs[0]] != 1:
                continue
            sequence = layer.sequence
            if layer.directions[0].direction is Direction.REVERSE and sequence.returns is Returns.SEQUENCE:
                flipped = replace(sequence, reverse_output=_FLIPPED[sequence.reverse_output])
                return _joined(model, call, before, replace(layer, sequence=flipped), outputs=call.outputs)
    return None


def _flips(model: Model, call: Call) -> bool:
    layer = model.layers[call.layer]
    return isinstance(layer, OperationLayer) and layer.operation == Reverse(1)


def _alone(model: Model, call: Call, shared: Counter[str]) -> RecurrentLayer | None:
    """The layer of a call, if it is a recurrent one of one direction that is used once."""
    layer = model.layers[call.layer]
    single = isinstance(layer, RecurrentLayer) and len(layer.directions) == 1 and shared[call.layer] == 1
    return layer if single and isinstance(layer, RecurrentLayer) else None


def _turned(layer: RecurrentLayer) -> RecurrentLayer:
    (direction,) = layer.directions
    sequence = replace(layer.sequence, reverse_output=ReverseOutput.VISITED_ORDER)
    return replace(layer, directions=(replace(direction, direction=Direction.REVERSE),), sequence=sequence)


def _joined(
    model: Model,
    flip: Call,
    recurrent: Call,
    layer: RecurrentLayer,
    *,
    inputs: tuple[str, ...] | None = None,
    outputs: tuple[str, ...] | None = None,
) -> Model:
    """The model without the flip, and the recurrent call in its place."""
    new = replace(
        recurrent,
        inputs=recurrent.inputs if inputs is None else inputs,
        outputs=recurrent.outputs if outputs is None else (*outputs, *recurrent.outputs[1:]),
    )
    calls = tuple(new if call is recurrent else call for call in model.calls or () if call is not flip)
    still_used = {call.layer for call in calls}
    layers = {
        name: layer if name == recurrent.layer else held
        for name, held in model.layers.items()
        if name != flip.layer or name in still_used
    }
    return replace(model, layers=layers, calls=calls)
