"""Slots sent the way of the weights: read as if they were weights, packed as if they were weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from lstmconvert.canonical import RecurrentLayer
from lstmconvert.containers import Archive
from lstmconvert.errors import NotRepresentable
from lstmconvert.gates import Part
from lstmconvert.lowering import Rewrite
from lstmconvert.model import Model, OperationLayer
from lstmconvert.optimizers.state import SQUARED, OptimizerState, Slot
from lstmconvert.tensors import Array, Lazy, same_bits

Place = tuple[str, ...]
"""Of a block: its layer, and for recurrent layers its direction, part and gate, for others its part."""
_BIASES = (str(Part.BIAS_INPUT), "bias")


def blocks(model: Model) -> dict[Place, Lazy]:
    """Every block of weights by its place."""
    found: dict[Place, Lazy] = {}
    for name, layer in model.layers.items():
        if isinstance(layer, RecurrentLayer):
            for direction in layer.directions:
                for (part, gate), block in direction.weights.items():
                    found[name, str(direction.direction), str(part), str(gate or "")] = block
        else:
            found |= {(name, part): block for part, block in layer.weights.items()}
    return found


def with_blocks(model: Model, given: Mapping[Place, Lazy]) -> Model:
    """The model with other numbers in all of its blocks."""

    def put(layer: RecurrentLayer | OperationLayer, name: str) -> RecurrentLayer | OperationLayer:
        if isinstance(layer, OperationLayer):
            return replace(
                layer, weights=MappingProxyType({part: given[name, part] for part in layer.weights})
            )
        return layer.mapped(
            lambda d: replace(
                d,
                weights=d.weights.mapped(
                    lambda key, _: given[name, str(d.direction), str(key[0]), str(key[1] or "")]
                ),
            )
        )

    return replace(model, layers=MappingProxyType({name: put(la, name) for name, la in model.layers.items()}))


def carry(
    state: OptimizerState,
    archive: Archive,
    model: Model,
    lowered: Model,
    read: Callable[[Archive], Model],
    write: Callable[[Model], Archive],
) -> tuple[OptimizerState, tuple[Rewrite, ...]]:
    """The state over the weights of the target.

    Args:
        state: the state over the weights of the source.
        archive, model: the source, as tensors and as it was read.
        lowered: the model as it is written.
        read: reads the source's framework.
        write: writes the target's framework.

    Returns:
        The state over the target's names, and what was done to it.

    Raises:
        NotRepresentable: when a weight of the target is no moved weight of the source, or is trained in part.
    """
    signs, halved = _signs(blocks(model), blocks(lowered))

    def through(tensors: Mapping[str, Lazy], *, squared: bool) -> Mapping[str, Lazy]:
        """Slots (or marks) by the names of the target."""
        held = blocks(read(replace(archive, tensors=MappingProxyType(_all(archive, tensors)))))
        moved = {
            place: _filled(0, block)
            if (sign := signs.get(place)) is None
            else _negative(held[place])
            if sign < 0 and not squared
            else held[place]
            for place, block in blocks(lowered).items()
        }
        return write(with_blocks(lowered, moved)).tensors

    trained = {name: _filled(1, archive.tensors[name]) for name in state.weights}
    covered = {}
    for name, mark in through(trained, squared=True).items():
        # Texts and sizes that a graph has beside its weights are no numbers to be trained.
        values = set(np.unique(mark.read())) if mark.dtype.kind == "f" else {0}
        if values == {0.0, 1.0}:
            raise NotRepresentable("the optimizer trains a part of this tensor only", place=name)
        covered[name] = values == {1.0}
    names = [name for name, whole in covered.items() if whole]
    marks = blocks(read(replace(archive, tensors=MappingProxyType(_all(archive, trained)))))
    slots: dict[Slot, Mapping[str, Lazy]] = {}
    for slot, tensors in state.slots.items():
        moved = through(tensors, squared=slot in SQUARED)
        slots[slot] = MappingProxyType({name: moved[name] for name in names})
    done = [
        Rewrite(
            "", "optimizer", f"{state.kind} state of {len(state.weights)} weights moved with them", True, 0.0
        )
    ]
    done += [
        Rewrite(
            place[0],
            "optimizer",
            f"two biases were trained and one is left ({' '.join(place[1:])}): it learns at half the pace",
            exact=False,
            rounding=0.0,
        )
        for place, beside in halved.items()
        if marks[beside].read().all()
    ]
    return replace(state, slots=MappingProxyType(slots)), tuple(done)


def _signs(
    source: Mapping[Place, Lazy], target: Mapping[Place, Lazy]
) -> tuple[dict[Place, int], dict[Place, Place]]:
    """Which of the target's blocks are the source's, as they are or negated.

    And the biases that are a sum now, each to the one that was added to it.
    """
    signs: dict[Place, int] = {}
    halved = {}
    for place, block in target.items():
        given = source.get(place)
        if given is None:
            continue  # a constant of the target, such as its second bias
        one, other = block.read(), given.read()
        if one.shape == other.shape and same_bits(one, other):
            signs[place] = 1
        elif one.shape == other.shape and same_bits(one, -other):
            signs[place] = -1
        elif place[-1] in _BIASES or (len(place) == 4 and place[2] in _BIASES):
            signs[place] = 1  # a constant was added to it, or the other bias was
            beside = (*place[:2], str(Part.BIAS_RECURRENT), place[-1])
            if beside in source and beside not in target and beside[2] != place[2]:
                halved[place] = beside
        else:
            raise NotRepresentable(
                "the weights were changed on the way, so that the optimizer's state does not fit them",
                place=" ".join(place),
                remedy="Leave out --with-optimizer, and let the optimizer begin anew.",
            )
    return signs, halved


def _all(archive: Archive, given: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """All tensors of the file: those given, and zeros for the others."""
    return {name: given.get(name) or _filled(0, tensor) for name, tensor in archive.tensors.items()}


def _filled(number: float, like: Lazy) -> Lazy:
    def load() -> Array:
        return np.full(like.shape, number, like.dtype)

    return Lazy(like.shape, like.dtype, load)


def _negative(block: Lazy) -> Lazy:
    return Lazy(block.shape, block.dtype, lambda: -block.read())
