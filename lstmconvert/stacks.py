"""Recurrent stacks of a file that holds weights only: each becomes a small model of its own."""

from __future__ import annotations

from dataclasses import replace

from lstmconvert.canonical import RecurrentLayer, Returns
from lstmconvert.model import Call, Model, Port

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
