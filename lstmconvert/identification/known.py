"""Known layouts: which frameworks keep a layer as a form and a choice say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lstmconvert import registry
from lstmconvert.axes import Axes
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.dialect import reasons
from lstmconvert.gates import GATES, Gate
from lstmconvert.identification.candidates import Choice
from lstmconvert.identification.forms import CANDIDATE, Form
from lstmconvert.identification.verdict import recurrent_layer
from lstmconvert.mapping import Layout, TensorRule
from lstmconvert.tensors import Array

_Place = tuple[object, ...]


def _dimensions(axes: Axes) -> tuple[object, ...]:
    """The axes, without those of length one and that of the direction."""
    return tuple(d.terms for d in axes.dimensions if d.terms not in (((),), (("direction",),)))


def _stored(form: Form, gates: tuple[Gate, ...]) -> frozenset[_Place] | None:
    """Every part and how it lies, with the gates named; ``None`` where every gate has arrays of its own."""
    places: set[_Place] = set()
    for rule in form.rules:
        if len(rule.positions) < len(GATES[form.cell]) and rule.positions != (CANDIDATE,):
            return None
        slots = tuple((part, gates[n] if n != CANDIDATE else GATES[form.cell][2]) for part, n in rule.slots)
        held = tuple(GATES[form.cell][2] if n == CANDIDATE else gates[n] for n in rule.positions)
        places.add((str(rule.part), _dimensions(rule.axes), () if slots else held, slots))
    return frozenset(places)


def _place(rule: TensorRule) -> _Place:
    slots = tuple((slot.part, slot.gate) for slot in rule.slots)
    return (str(rule.part), _dimensions(rule.axes), () if slots else rule.gates, slots)


def _keeps(layout: Layout, stored: frozenset[_Place]) -> bool:
    own = [(rule, _place(rule)) for rule in layout.tensors]
    required = {place for rule, place in own if rule.optional is None}
    single = all("{gate}" not in rule.name for rule, _ in own)
    return single and required <= stored <= {place for _, place in own}


def _rank_of_axes(form: Form, layout: Layout) -> int:
    """How many arrays have a number of axes that the layout's have not."""
    lengths = {rule.part: len(rule.axes.dimensions) for rule in layout.tensors}
    return sum(len(rule.axes.dimensions) != lengths[str(rule.part)] for rule in form.rules)


def orders_like(form: Form) -> list[tuple[Any, str, Layout]]:
    """Frameworks and their layouts in which numbers lie so, whatever the names, the gates and the equations.

    Returns:
        A rank, the name and the layout of each; the best known and most exact first.
    """
    found: list[tuple[Any, str, Layout]] = []
    stored: dict[tuple[Gate, ...], frozenset[_Place] | None] = {}
    for name in registry.frameworks():
        described = registry.mapping_of(name)
        for layout in described.of_cell(form.cell):
            if layout.gates not in stored:
                stored[layout.gates] = _stored(form, layout.gates)
            places = stored[layout.gates]
            if places is not None and _keeps(layout, places):
                rank = (
                    _rank_of_axes(form, layout),
                    layout.reads_only,
                    described.verified != "runtime",
                    not registry.has_module(name),
                    name,
                )
                found.append((rank, name, layout))
    return sorted(found, key=lambda item: item[0])


def layouts_like(form: Form, choice: Choice) -> list[tuple[Any, str, Layout]]:
    """Those of ``orders_like`` that have the gates in the order of a choice."""
    return [entry for entry in orders_like(form) if entry[2].gates == choice.gates]


def frameworks_like(form: Form, choice: Choice, arrays: Mapping[str, Array]) -> tuple[str, ...]:
    """Frameworks that keep and compute a layer so, the best known first."""
    layer: RecurrentLayer = recurrent_layer(form, choice, arrays, "layer")
    fitting = [name for _, name, layout in layouts_like(form, choice) if not reasons(layout, layer)]
    return tuple(dict.fromkeys(fitting))
