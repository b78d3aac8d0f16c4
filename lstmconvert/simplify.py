"""Simplifying a model's graph: what exporters spell out around a recurrent layer goes back into the layer.

Every step leaves every result as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from lstmconvert.canonical import Merge, RecurrentLayer, Returns, ReverseOutput
from lstmconvert.gates import Direction
from lstmconvert.model import Call, Model, OperationLayer
from lstmconvert.operations import Combination, Combine, Concatenate, Reverse, Select

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
    uses = _uses(model)
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
    count: int = 1,
) -> Model:
    """The model without the flip; the recurrent call has its place, and its first ``count`` outputs."""
    new = replace(
        recurrent,
        inputs=recurrent.inputs if inputs is None else inputs,
        outputs=recurrent.outputs if outputs is None else (*outputs, *recurrent.outputs[count:]),
    )
    calls = tuple(new if call is recurrent else call for call in model.calls or () if call is not flip)
    still_used = {call.layer for call in calls}
    layers = {
        name: layer if name == recurrent.layer else held
        for name, held in model.layers.items()
        if name != flip.layer or name in still_used
    }
    return replace(model, layers=layers, calls=calls)


def fold_last_steps(model: Model) -> Model:
    """Layers of one direction of which only the step that is visited last is used give only that step."""
    while model.calls is not None:
        uses, shared = _uses(model), Counter(call.layer for call in model.calls)
        makers = {call.outputs[0]: call for call in model.calls}
        tried = (_last_step(model, select, makers, uses, shared) for select in model.calls)
        folded = next((new for new in tried if new is not None), None)
        if folded is None:
            return model
        model = folded
    return model


def _last_step(
    model: Model, select: Call, makers: Mapping[str, Call], uses: Counter[str], shared: Counter[str]
) -> Model | None:
    picked = model.layers[select.layer]
    if not isinstance(picked, OperationLayer) or not isinstance(picked.operation, Select):
        return None
    call = makers.get(select.inputs[0])
    layer = None if call is None else _alone(model, call, shared)
    if call is None or layer is None or uses[call.outputs[0]] != 1 or call.mask is not None:
        return None
    sequence = layer.sequence
    backwards = layer.directions[0].direction is Direction.REVERSE
    first = backwards and sequence.reverse_output is ReverseOutput.INPUT_ORDER
    if sequence.returns is not Returns.SEQUENCE or picked.operation != Select(1, 0 if first else -1):
        return None
    behaviour = replace(sequence, returns=Returns.LAST, reverse_output=ReverseOutput.INPUT_ORDER)
    return _joined(model, select, call, replace(layer, sequence=behaviour), outputs=select.outputs)


_MERGES = {
    Concatenate(-1): Merge.CONCAT,
    Combine(Combination.ADD): Merge.SUM,
    Combine(Combination.MULTIPLY): Merge.MULTIPLY,
    Combine(Combination.AVERAGE): Merge.AVERAGE,
}


def pair_directions(model: Model) -> Model:
    """A forward and a reverse layer of one input, whose outputs are joined, become one of two directions.

    It has the name of what joined them. The same of one layer whose directions are outputs of their own.
    """
    while model.calls is not None:
        uses, shared = _uses(model), Counter(call.layer for call in model.calls)
        makers = {value: call for call in model.calls for value in call.outputs}
        tried = (_pair(model, join, makers, uses, shared) for join in model.calls)
        folded = next((new for new in tried if new is not None), None)
        if folded is None:
            return model
        model = folded
    return model


def _pair(
    model: Model, join: Call, makers: Mapping[str, Call], uses: Counter[str], shared: Counter[str]
) -> Model | None:
    joining = model.layers[join.layer]
    if not isinstance(joining, OperationLayer) or joining.operation not in _MERGES or len(join.inputs) != 2:
        return None
    if shared[join.layer] != 1:
        return None
    whole = makers.get(join.inputs[0])
    if whole is not None and whole.outputs == join.inputs and shared[whole.layer] == 1:
        held = model.layers[whole.layer]
        if isinstance(held, RecurrentLayer) and all(uses[value] == 1 for value in join.inputs):
            sequence = replace(held.sequence, merge=_MERGES[joining.operation])
            return _joined(
                model, join, whole, replace(held, sequence=sequence), outputs=join.outputs, count=2
            )
        return None
    found = []
    for value, direction in zip(join.inputs, (Direction.FORWARD, Direction.REVERSE), strict=True):
        call = makers.get(value)
        layer = None if call is None else _alone(model, call, shared)
        if call is None or layer is None or uses[value] != 1:
            return None
        plain = call.mask is None and not call.initial_state and len(call.outputs) == 1
        if not plain or layer.directions[0].direction is not direction:
            return None
        found.append((call, layer))
    (first, forward), (second, backward) = found
    behaviour = replace(forward.sequence, merge=_MERGES[joining.operation])
    names = ("cell", "input_size", "hidden_size", "recurrent_size", "dtype")
    if (
        first.inputs != second.inputs
        or replace(backward.sequence, merge=behaviour.merge) != behaviour
        or any(getattr(forward, name) != getattr(backward, name) for name in names)
    ):
        return None
    both = replace(
        forward,
        name=join.layer,
        directions=(*forward.directions, *backward.directions),
        sequence=behaviour,
        origin=(*forward.origin, *backward.origin),
    )
    new = Call(join.layer, first.inputs, join.outputs)
    kept = tuple(
        new if call is join else call
        for call in model.calls or ()
        if call is not first and call is not second
    )
    layers = {
        name: both if name == join.layer else layer
        for name, layer in model.layers.items()
        if name not in (first.layer, second.layer)
    }
    return replace(model, layers=layers, calls=kept)


def _uses(model: Model) -> Counter[str]:
    calls = model.calls or ()
    uses = Counter(
        v for call in calls for v in (*call.inputs, *call.initial_state, call.mask) if v is not None
    )
    uses.update(port.value for port in model.outputs)
    return uses
