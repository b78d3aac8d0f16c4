"""The verdict: what a search has shown, what it has excluded, and what the sample cannot tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from lstmconvert.canonical import RecurrentDirection, RecurrentLayer, Weights
from lstmconvert.gates import GATES, Cell, Direction, Gate, Part
from lstmconvert.identification.candidates import Choice
from lstmconvert.identification.forms import CANDIDATE, Form
from lstmconvert.identification.search import Found, Hit
from lstmconvert.proof import gap, scale
from lstmconvert.tensors import Array, Lazy

CLEAR = 10.0
"""How many tolerances away an alternative is before the sample excludes it."""
_SPARE_BITS = 20
"""How much more the sample must say, in bits, than would single out one candidate by chance."""
_SAME = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What a search has shown.

    Attributes:
        certain: whether the nearest candidate explains the sample and all that compute something else are
            excluded.
        runner_up: the nearest candidate that computes something else.
        equivalent: other ways to read the arrays that compute the same on all inputs.
        undecided: candidates that compute something else and are not excluded.
        doubts: why it is not certain, for people.
    """

    certain: bool
    runner_up: Hit | None
    equivalent: tuple[Hit, ...]
    undecided: tuple[Hit, ...]
    doubts: tuple[str, ...]


def recurrent_layer(form: Form, choice: Choice, arrays: Mapping[str, Array], name: str) -> RecurrentLayer:
    """The canonical layer that a form and a choice make of the arrays."""
    blocks: dict[tuple[Part, Gate | None], Lazy] = {}
    dtypes = {arrays[tensor].dtype for tensor in form.tensors}
    common = dtypes.pop() if len(dtypes) == 1 else np.result_type(*(arrays[t].dtype for t in form.tensors))
    for (part, position), block in form.blocks(arrays).items():
        gate = Gate.CANDIDATE if position == CANDIDATE else choice.gates[position]
        blocks[part, gate] = Lazy.of(block.astype(common, copy=False))
    direction = RecurrentDirection(Direction.FORWARD, choice.equations, Weights(form.cell, blocks))
    return RecurrentLayer(name, (direction,), origin=form.tensors, stored_gates=choice.gates)


def _same_function(a: Hit, b: Hit, arrays: Mapping[str, Array]) -> bool:
    """Whether two candidates compute the same on inputs and states that move every gate."""
    first, second = a.structure, b.structure
    sizes = [(f.cell, f.input_size, f.hidden_size) for f in first.layers]
    if sizes != [(f.cell, f.input_size, f.hidden_size) for f in second.layers]:
        return False
    if (first.head, a.activations) != (second.head, b.activations):
        return False
    rng = np.random.default_rng(5)
    for own, other, p, q in zip(first.layers, second.layers, a.layers, b.layers, strict=True):
        one = recurrent_layer(own, p, arrays, "one")
        two = recurrent_layer(other, q, arrays, "two")
        for size in (0.3, 1.0, 3.0):
            x = rng.standard_normal((3, 5, own.input_size)) * size
            states = [rng.uniform(-1, 1, (1, 3, own.hidden_size)) for _ in range(1 + (own.cell is Cell.LSTM))]
            initial = tuple(states) if len(states) == 2 else states[0]
            y, z = one.run(x, initial_state=initial)[0], two.run(x, initial_state=initial)[0]
            if gap([y], [z]) > _SAME * max(scale([y]), 1e-300):
                return False
    return True


def judge(found: Found, arrays: Mapping[str, Array]) -> Verdict:
    """What a search has shown."""
    best, *others = found.hits
    reach = CLEAR * max(found.tolerance, best.error)
    equivalent: list[Hit] = []
    undecided: list[Hit] = []
    runner_up: Hit | None = None
    for hit in others:
        near = hit.error <= reach
        if (near or runner_up is None) and _same_function(best, hit, arrays):
            equivalent.append(hit)
            continue
        runner_up = runner_up or hit
        if near:
            undecided.append(hit)
    doubts = []
    if not found.fits:
        doubts.append(
            f"nothing that was tried explains the sample: the nearest is {best.error:.3g} off, "
            f"rounding explains {found.tolerance:.3g}"
        )
    elif undecided:
        doubts.append(f"the sample cannot tell apart {differences(best, undecided)}")
    if found.fits and (lacking := _lacking(found)) is not None:
        doubts.append(lacking)
    if not found.exhausted:
        doubts.append("there are more ways to read the arrays than were tried")
    return Verdict(not doubts, runner_up, tuple(equivalent), tuple(undecided), tuple(doubts))


def _lacking(found: Found) -> str | None:
    """Whether the sample has too few numbers to speak for one among all candidates."""
    best = found.hits[0]
    spread = min(found.typical, 2 * best.reading.scale)
    bits = 0.0
    if spread > found.tolerance > 0:
        bits = best.reading.y.size * math.log2(spread / found.tolerance)
    needed = math.log2(max(found.tried, 2)) + _SPARE_BITS
    if bits >= needed:
        return None
    return (
        f"the sample says too little: {best.reading.y.size} numbers speak for one of "
        f"{found.tried} candidates by chance"
    )


def differences(best: Hit, others: list[Hit] | tuple[Hit, ...]) -> str:
    """What distinguishes other candidates from the best one, for people."""
    found: dict[str, dict[str, None]] = {}

    def note(what: str, first: object, second: object) -> None:
        if first != second:
            values = found.setdefault(what, {str(first): None})
            values[str(second)] = None

    for other in others:
        if len(other.structure.layers) != len(best.structure.layers):
            note("layers", len(best.structure.layers), len(other.structure.layers))
            continue
        pairs = zip(best.structure.layers, other.structure.layers, best.layers, other.layers, strict=True)
        for n, (form, second, own, choice) in enumerate(pairs, 1):
            at = f" of layer {n}" if len(best.structure.layers) > 1 else ""
            note(f"cell{at}", form.cell.upper(), second.cell.upper())
            if form.cell is second.cell:
                note(f"order of gates{at}", _spell(own.gates), _spell(choice.gates))
                for option in fields(own.equations):
                    values = [getattr(c.equations, option.name) for c in (own, choice)]
                    if option.name == "constant":
                        values = [v.get(Gate.FORGET, 0.0) for v in values]
                    name = (
                        "forget bias at run time"
                        if option.name == "constant"
                        else option.name.replace("_", " ")
                    )
                    note(name + at, *values)
            note(f"place of the numbers{at}", _places(form), _places(second))
        note("activations of the dense layers", _spell(best.activations), _spell(other.activations))
    return "; ".join(f"{what}: {' or '.join(list(values)[:4])}" for what, values in found.items())


def _spell(items: tuple[object, ...]) -> str:
    return ", ".join(map(str, items)) or "none"


def _places(form: Form) -> str:
    """Where everything lies, in short."""
    return ", ".join(dict.fromkeys(f"{r.part} {r.tensor} as {r.axes.text!r}" for r in form.rules))


def gates_are(choice: Choice, cell: Cell) -> str:
    """The order of gates, for people."""
    return _spell(choice.gates) if len(GATES[cell]) > 1 else "one"
