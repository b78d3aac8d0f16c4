"""What becomes of a layer between any two frameworks, worked out from their mapping files alone.

A plain layer of the one, with random numbers in every place that it has, is fitted to the other: exactly,
with rounding, or not at all. Options beyond a plain layer (peepholes, projections, clips, other activations)
are what ``capabilities`` lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import lowering, registry
from lstmconvert.activations import Activation
from lstmconvert.canonical import (
    BlockKey,
    Coupling,
    Equations,
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    RnnEquations,
    UpdateKeeps,
    Weights,
)
from lstmconvert.errors import NotRepresentable
from lstmconvert.gates import Cell, Direction, Part
from lstmconvert.layout import places, ties
from lstmconvert.mapping import Layout, MappingFile
from lstmconvert.model import Model
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

_INPUT, _HIDDEN = 3, 64
"""So many numbers that one that rounds is sure to be among them."""


class Kind(StrEnum):
    """The plain layers that are compared."""

    LSTM = "LSTM"
    GRU_AFTER = "GRU, reset after the product"
    GRU_BEFORE = "GRU, reset before the product"
    RNN = "RNN"


class Verdict(StrEnum):
    """What becomes of a layer."""

    EXACT = "exact"
    ROUNDS = "rounds"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a layer of one kind on its way from one framework to another.

    Attributes:
        verdict: in one word.
        reasons: what was rewritten with rounding, or why the target refuses it.
    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()


def outcome(source: MappingFile, target: MappingFile, kind: Kind) -> Outcome | None:
    """What becomes of a plain layer of ``source`` in ``target``; ``None`` where the source has none."""
    layer = sample(source, kind)
    if layer is None:
        return None
    spells_out = getattr(registry.module_of(target), "spells_out", None)
    try:
        _, rewrites = lowering.lower(Model({layer.name: layer}), target, spells_out)
    except NotRepresentable as error:
        return Outcome(Verdict.REFUSED, tuple(error.reasons))
    rounding = tuple(dict.fromkeys(step.description for step in rewrites if not step.exact))
    return Outcome(Verdict.ROUNDS if rounding else Verdict.EXACT, rounding)


def sample(framework: MappingFile, kind: Kind) -> RecurrentLayer | None:
    """A plain layer as a framework's files have it, in the first of its layouts that fits."""
    cell = {Kind.LSTM: Cell.LSTM, Kind.RNN: Cell.RNN}.get(kind, Cell.GRU)
    for layout in sorted(framework.of_cell(cell), key=lambda layout: (layout.reads_only, bool(layout.tied))):
        equations = _equations(layout, kind)
        if equations is not None:
            direction = RecurrentDirection(Direction.FORWARD, equations, _weights(layout))
            return RecurrentLayer(str(cell), (direction,))
    return None


_USUAL: Mapping[Kind, Equations] = MappingProxyType({
    Kind.LSTM: LstmEquations(),
    Kind.GRU_AFTER: GruEquations(ResetPlace.AFTER_PRODUCT),
    Kind.GRU_BEFORE: GruEquations(ResetPlace.BEFORE_PRODUCT),
    Kind.RNN: RnnEquations(),
})  # fmt: skip
_CHOICES: Mapping[str, Any] = MappingProxyType({"coupling": Coupling, "update_keeps": UpdateKeeps})


def _equations(layout: Layout, kind: Kind) -> Equations | None:
    """The usual equations, or what a layout has in their place; ``None`` when its reset gate is elsewhere."""
    dialect = layout.dialect
    usual: Any = _USUAL[kind]
    changes: dict[str, Any] = {}
    for option in fields(usual):
        name, value = option.name, getattr(usual, option.name)
        if isinstance(value, Activation):
            accepted = dialect.activations.get(name, ())
            if accepted and not any(pattern.matches(value) for pattern in accepted):
                changes[name] = Activation(accepted[0].kind, *(accepted[0].parameters or ()))
        elif name == "reset" and value not in dialect.choices.get(name, ()):
            return None
        elif name in _CHOICES and (allowed := dialect.choices.get(name, ())) and value not in allowed:
            changes[name] = _CHOICES[name](allowed[0])
        elif name in dialect.fixed_clips:
            changes[name] = dialect.fixed_clips[name]
        elif name == "constant" and dialect.constant is not None:
            changes[name] = dialect.constant
    made: Equations = replace(usual, **changes)
    return made


def _weights(layout: Layout) -> Weights:
    """Random numbers in every place of a layout but peepholes and projections."""
    assert layout.cell is not None
    rng = np.random.default_rng(0)
    shapes = {Part.KERNEL: (_HIDDEN, _INPUT), Part.RECURRENT: (_HIDDEN, _HIDDEN)}
    blocks: dict[BlockKey, Lazy] = {}
    for place in places(layout, (Direction.FORWARD,)):
        part, gate = place.key
        if gate is not None and part is not Part.PEEPHOLE:
            values = rng.normal(0, 0.1, shapes.get(part, (_HIDDEN,))).astype(np.float32)
            blocks[part, gate] = Lazy.of(values)
    blocks |= {
        (part, gate): blocks[part, first] for part, gate, first in ties(layout) if (part, first) in blocks
    }
    return Weights(layout.cell, blocks)
