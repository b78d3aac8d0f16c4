"""Recurrent stacks of a file that holds weights only: each becomes a small model of its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import MappingProxyType

from lstmconvert.canonical import Merge, RecurrentLayer, Returns, ReverseOutput
from lstmconvert.model import Call, Layer, Model, Port

STACK = "stack"
"""Note of a layer that was stored as one of a stack: the stack's name."""


def split(model: Model) -> dict[str, Model]:
    """One model for every recurrent stack of a model without topology.

    Layers whose ``stack`` note agrees follow each other; any other layer is alone. Each model takes
    ``x`` (batch, time, features) and gives the sequence ``y`` of its last layer.
    """
    return {name: _chain(name, layers, model, "x", "y") for name, layers in _groups(model).items()}


def side_by_side(model: Model) -> Model:
    """All stacks of a model without topology as one model, each with an input and an output of its own."""
    groups = _groups(model)
    if len(groups) == 1:
        return next(iter(split(model).values()))
    chains = [_chain(name, layers, model, f"{name}.x", f"{name}.y") for name, layers in groups.items()]
    return Model(
        {name: layer for chain in chains for name, layer in chain.layers.items()},
        tuple(call for chain in chains for call in chain.calls or ()),
        tuple(port for chain in chains for port in chain.inputs),
        tuple(port for chain in chains for port in chain.outputs),
        framework=model.framework,
        metadata=model.metadata,
    )


def noted(model: Model) -> Model:
    """A wired model whose layers remember, in a file without wiring, which of them follow each other.

    Layers make a stack where each is called once and gives its whole sequence, the outputs of two
    directions side by side, to the next one and to nothing else.
    """
    if model.calls is None:
        return model
    calls = Counter(call.layer for call in model.calls)
    uses = Counter(value for call in model.calls for value in (*call.inputs, *call.initial_state))
    uses.update(port.value for port in model.outputs)
    takers = {call.inputs[0]: call for call in model.calls if len(call.inputs) == 1}
    layers = model.recurrent
    followers: dict[str, str] = {}
    for call in model.calls:
        taker = takers.get(call.outputs[0]) if call.outputs else None
        if taker is None or taker.initial_state or uses[call.outputs[0]] != 1:
            continue
        once = all(name in layers and calls[name] == 1 for name in (call.layer, taker.layer))
        if once and _gives_on(layers[call.layer]):
            followers[call.layer] = taker.layer
    stacks: dict[str, str] = {}
    fed = set(followers.values())
    for first in followers:
        if first not in fed:
            name: str | None = first
            while name is not None:
                stacks[name] = first
                name = followers.get(name)

    def note(layer: Layer) -> Layer:
        if not isinstance(layer, RecurrentLayer) or layer.name not in stacks:
            return layer
        return replace(layer, notes=MappingProxyType({**layer.notes, STACK: stacks[layer.name]}))

    return model.map_layers(note)


def _gives_on(layer: RecurrentLayer) -> bool:
    """Whether what a layer gives is what the next layer of a stack takes."""
    sequence = layer.sequence
    return (
        sequence.merge is Merge.CONCAT
        and sequence.returns is Returns.SEQUENCE
        and sequence.reverse_output is ReverseOutput.INPUT_ORDER
    )


def _groups(model: Model) -> dict[str, list[RecurrentLayer]]:
    groups: dict[str, list[RecurrentLayer]] = {}
    for layer in model.recurrent.values():
        groups.setdefault(layer.notes.get(STACK, layer.name), []).append(layer)
    return groups


def _chain(name: str, layers: list[RecurrentLayer], model: Model, first: str, last: str) -> Model:
    """A model that runs ``layers`` one after the other on whole sequences."""
    value = first
    calls = []
    held = {}
    for layer in layers:
        sequence = replace(layer.sequence, returns=Returns.SEQUENCE, return_state=False, time_major=False)
        held[layer.name] = replace(layer, sequence=sequence)
        calls.append(Call(layer.name, (value,), (f"{layer.name}.y",)))
        value = calls[-1].outputs[0]
    dtype = str(layers[0].dtype)
    return Model(
        held,
        tuple(calls),
        (Port(first, first, (None, None, layers[0].input_size), dtype),),
        (Port(last, value, (None, None, layers[-1].width), dtype),),
        framework=model.framework,
        metadata={**model.metadata, "name": name},
    )
