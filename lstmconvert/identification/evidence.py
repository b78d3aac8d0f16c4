"""Evidence: what arrays say of themselves, without a sample: shapes, biases near one, statistics of gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lstmconvert.gates import GATES, Cell, Gate, Part
from lstmconvert.identification.candidates import Choice
from lstmconvert.identification.forms import CANDIDATE, Form
from lstmconvert.tensors import Array

_NEAR_ONE = (0.6, 1.7)
_APART = 0.5
_KEPT_TOGETHER = 4.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Something that the arrays alone say.

    Attributes:
        claim: what it speaks for.
        because: what was seen.
        certain: whether nothing else explains it.
    """

    claim: str
    because: str
    certain: bool


def biases(form: Form, arrays: Mapping[str, Array]) -> Array | None:
    """Both biases together by gate position (gate, hidden), or ``None`` where there are none."""
    blocks = form.blocks(arrays)
    found = {key: block for key, block in blocks.items() if key[0] in (Part.BIAS_INPUT, Part.BIAS_RECURRENT)}
    if not found:
        return None
    total = np.zeros((len(GATES[form.cell]), form.hidden_size))
    for (_, position), block in found.items():
        if position != CANDIDATE:
            total[position] += block
    return total


def forget_position(form: Form, arrays: Mapping[str, Array]) -> tuple[int, bool] | None:
    """Which block's bias sits near one while the others do not, and whether it is still exactly one.

    An LSTM's forget gate is the only one that frameworks initialise so (Keras's ``unit_forget_bias``;
    Jozefowicz et al. 2015), and training leaves it near.
    """
    total = biases(form, arrays) if form.cell is Cell.LSTM else None
    if total is None:
        return None
    means = total.mean(axis=1)
    position = int(np.argmax(means))
    others = np.delete(means, position)
    if not _NEAR_ONE[0] <= means[position] <= _NEAR_ONE[1] or means[position] - others.max() < _APART:
        return None
    exact = bool((total[position] == 1).all() and (np.delete(total, position, 0) == 0).all())
    return position, exact


def of_layer(form: Form, arrays: Mapping[str, Array], rivals: Sequence[Form]) -> list[Evidence]:
    """What a layer's arrays alone say.

    Args:
        form: how the layer is read.
        arrays: the arrays.
        rivals: every form that the shapes allow, this one included.
    """
    found = []
    gates = len(GATES[form.cell])
    if {rival.cell for rival in rivals} == {form.cell}:
        found.append(
            Evidence(
                f"the cell is {_an(form.cell)}",
                f"{gates} block{'s' * (gates > 1)} of {form.hidden_size} in every array, and no other cell "
                "fits the shapes",
                certain=True,
            )
        )
    for part, axis in ((Part.KERNEL, "input"), (Part.RECURRENT, "recurrent")):
        own = {_orientation(rival, part, axis) for rival in rivals}
        if len(own) == 1:
            (which,) = own
            found.append(
                Evidence(
                    f"the {_words(part)} is {which}", "no other orientation fits its shape", certain=True
                )
            )
    if (place := forget_position(form, arrays)) is not None:
        position, exact = place
        total = biases(form, arrays)
        assert total is not None
        means = ", ".join(f"{mean:.3g}" for mean in total.mean(axis=1))
        because = (
            "its bias is exactly 1 in every unit and all others are exactly 0, as in a new layer"
            if exact
            else f"its bias sits near one (means of the blocks: {means})"
        )
        found.append(Evidence(f"block {position + 1} of {gates} is the forget gate", because, certain=exact))
    elif form.cell is Cell.LSTM and biases(form, arrays) is not None:
        found.append(
            Evidence(
                "the biases do not tell the forget gate",
                "no block's bias sits near one: the forget bias may be added at run time, or there was none",
                certain=False,
            )
        )
    if gates > 1 and (packing := _packing(form, arrays)) is not None:
        found.append(packing)
    return found


def _an(cell: Cell) -> str:
    return f"{'an' if cell is not Cell.GRU else 'a'} {cell.upper()}"


def _words(part: Part) -> str:
    return {Part.KERNEL: "kernel", Part.RECURRENT: "recurrent kernel"}[part]


def _orientation(form: Form, part: Part, axis: str) -> str:
    rule = next(rule for rule in form.rules if rule.part == part)
    names = rule.axes.names
    return f"({axis}, gates)" if names.index(axis) < names.index("hidden") else f"(gates, {axis})"


def _packing(form: Form, arrays: Mapping[str, Array]) -> Evidence | None:
    """Whether the recurrent kernel's columns are alike by blocks, or by every n-th one."""
    rule = next(rule for rule in form.rules if rule.part == Part.RECURRENT)
    if len(rule.positions) == 1:
        return None
    blocks = form.blocks(arrays)
    gates = len(GATES[form.cell])
    norms = np.stack(
        [np.linalg.norm(blocks[Part.RECURRENT, n].astype(np.float64), axis=1) for n in range(gates)]
    )
    own, other = _spread(norms), _spread(norms.reshape(-1).reshape(-1, gates).T)
    if norms.shape[1] < 8 or own < _KEPT_TOGETHER * other or own < _KEPT_TOGETHER:
        return None
    return Evidence(
        f"gates lie as {rule.axes.text!r}",
        f"rows are alike in size within the gates so, {own / max(other, 1e-9):.1f} times more than otherwise",
        certain=False,
    )


def _spread(norms: Array) -> float:
    """How much groups (group, member) differ, beside how much their members do (an F ratio)."""
    groups, members = norms.shape
    between = float(members * norms.mean(axis=1).var(ddof=1)) if groups > 1 else 0.0
    within = float(norms.var(axis=1, ddof=1).mean()) if members > 1 else 0.0
    return between / within if within > 0 else 0.0


def statistics(form: Form, choice: Choice, arrays: Mapping[str, Array]) -> list[dict[str, object]]:
    """Mean of the biases and sizes of the matrices of every gate position."""
    blocks, total = form.blocks(arrays), biases(form, arrays)
    return [
        {
            "block": n + 1,
            "gate": str(choice.gates[n]) if len(choice.gates) > n else None,
            "bias_mean": None if total is None else float(total[n].mean()),
            "kernel_deviation": float(blocks[Part.KERNEL, n].astype(np.float64).std()),
            "recurrent_deviation": float(blocks[Part.RECURRENT, n].astype(np.float64).std()),
        }
        for n in range(len(GATES[form.cell]))
    ]


def guess(form: Form, arrays: Mapping[str, Array], known: Sequence[tuple[Gate, ...]]) -> tuple[Gate, ...]:
    """The most plausible order of gates: a known one, with the forget gate where the bias says.

    Args:
        form: how the layer is read.
        arrays: the arrays.
        known: orders that frameworks use for such a layout, the best known first.
    """
    place = forget_position(form, arrays)
    if place is not None:
        for order in known:
            if order[place[0]] is Gate.FORGET:
                return order
        rest: list[Gate] = [gate for gate in GATES[form.cell] if gate is not Gate.FORGET]
        rest.insert(place[0], Gate.FORGET)
        return tuple(rest)
    return known[0] if known else GATES[form.cell]
