"""Lowering: fitting a canonical layer to what a target can express, or saying why it cannot be done.

A rewrite either leaves every result as it is (exact), or changes it by rounding and says by how much.
Whatever no rewrite can mend is a reason to refuse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import bias_split
from lstmconvert.canonical import (
    BlockKey,
    Coupling,
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    UpdateKeeps,
    Weights,
)
from lstmconvert.dialect import block_keys, reasons, spell
from lstmconvert.errors import NotRepresentable
from lstmconvert.gates import GATES, Cell, Direction, Gate, Part
from lstmconvert.layout import places, ties
from lstmconvert.mapping import Layout, MappingFile
from lstmconvert.model import Layer, Model, Port
from lstmconvert.tensors import Lazy, same_bits
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One step that was taken to fit a layer to its target.

    Attributes:
        layer: name of the layer.
        name: the rule.
        description: what was done, for people.
        exact: whether every result stays as it is.
        rounding: where it is not exact, the largest absolute change of a stored number.
    """

    layer: str
    name: str
    description: str
    exact: bool
    rounding: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Attempt:
    """A layer on its way into a layout."""

    layer: RecurrentLayer
    rewrites: tuple[Rewrite, ...] = ()

    def done(
        self,
        name: str,
        description: str,
        function: Callable[[RecurrentDirection], RecurrentDirection],
        *,
        exact: bool = True,
        rounding: float = 0.0,
    ) -> _Attempt:
        step = Rewrite(self.layer.name, name, description, exact, rounding)
        return _Attempt(self.layer.mapped(function), (*self.rewrites, step))


def layout_for(mapping: MappingFile, layer: RecurrentLayer) -> Layout:
    """The first layout of a framework that holds ``layer`` as it is.

    Raises:
        NotRepresentable: with the reasons of the layout that comes closest.
    """
    attempts = [(layout, reasons(layout, layer)) for layout in _candidates(mapping, layer.cell)]
    for layout, against in attempts:
        if not against:
            return layout
    raise _refusal(mapping, layer, [against for _, against in attempts])


def layout_note(mapping: MappingFile) -> str:
    """Key of the note that keeps the layout that a layer had in files of a framework."""
    return f"{mapping.name}_layout"


def noted_layout(mapping: MappingFile, layer: RecurrentLayer) -> Layout | None:
    """The layout that a layer had in files of this framework, where it can still be written in it."""
    noted = mapping.layouts.get(layer.notes.get(layout_note(mapping), ""))
    if noted is None or noted.cell is not layer.cell or noted.reads_only or reasons(noted, layer):
        return None
    return noted


def lower_layer(
    layer: RecurrentLayer, mapping: MappingFile
) -> tuple[RecurrentLayer, Layout, tuple[Rewrite, ...]]:
    """Fit a layer to the layout of a framework that holds it with the fewest rewrites, exact ones first.

    Raises:
        NotRepresentable: with every reason and the frameworks that can hold the layer.
    """
    refused = []
    fits: list[tuple[_Attempt, Layout]] = []
    for layout in _candidates(mapping, layer.cell):
        attempt = _rewritten(layer, layout)
        against = reasons(layout, attempt.layer)
        if against:
            refused.append(against)
        else:
            fits.append((attempt, layout))
    if not fits:
        raise _refusal(mapping, layer, refused)
    attempt, layout = min(fits, key=lambda fit: _cost(fit[0]))
    return attempt.layer, layout, attempt.rewrites


def _cost(attempt: _Attempt) -> tuple[int, int]:
    """Rounding rewrites count first, then all of them."""
    return sum(not step.exact for step in attempt.rewrites), len(attempt.rewrites)


def lower(
    model: Model, mapping: MappingFile, keep: Callable[[RecurrentLayer], bool] | None = None
) -> tuple[Model, tuple[Rewrite, ...]]:
    """Fit every recurrent layer of a model to a framework.

    Args:
        model: the model.
        mapping: the target.
        keep: for a layer that the target's own layers cannot hold: whether it is left as it is
            because the target's writer spells out its equations. Without it such a layer is refused.

    Raises:
        NotRepresentable: naming the layer.
    """
    rewrites: list[Rewrite] = []
    layers: dict[str, Layer] = {}
    for name, layer in model.layers.items():
        if isinstance(layer, RecurrentLayer):
            try:
                layer, layout, steps = lower_layer(layer, mapping)
                layer = _shared(layer, noted_layout(mapping, layer) or layout)
                rewrites += steps
            except NotRepresentable:
                if keep is None or not keep(layer):
                    raise
        layers[name] = layer
    return replace(model, layers=layers), tuple(rewrites)


def _shared(layer: RecurrentLayer, layout: Layout) -> RecurrentLayer:
    """The layer with one block for gates that share their numbers in the layout; they have the same bits."""

    def share(direction: RecurrentDirection) -> RecurrentDirection:
        weights = direction.weights
        blocks: dict[BlockKey, Lazy] = {
            (part, gate): weights[part, first]
            for part, gate, first in ties(layout)
            if (part, gate) in weights
        }
        return replace(direction, weights=weights.with_blocks(blocks))

    return layer.mapped(share) if layout.tied else layer


def _candidates(mapping: MappingFile, cell: Cell) -> list[Layout]:
    return [layout for layout in mapping.of_cell(cell) if not layout.reads_only]


def _refusal(
    mapping: MappingFile, layer: RecurrentLayer, refused: Sequence[Sequence[str]]
) -> NotRepresentable:
    from lstmconvert import registry

    why = min(refused, key=len) if refused else [f"it has no {layer.cell.upper()}"]
    able = []
    for name in registry.frameworks():
        other = registry.mapping_of(name)
        if other.name != mapping.name and any(
            not reasons(layout, _rewritten(layer, layout).layer) for layout in _candidates(other, layer.cell)
        ):
            able.append(other.title)
    remedy = None
    if "no cell clip" in why and able:
        remedy = (
            "If no cell state ever reaches the bound, leave it out with --cell-clip inf. "
            f"Targets that can hold it: {', '.join(able)}."
        )
    return NotRepresentable(
        f"{mapping.title} cannot express this {layer.cell.upper()}",
        reasons=why,
        alternatives=able,
        place=f"layer {layer.name!r}",
        remedy=remedy,
    )


def refuse_initial_states(layer: RecurrentLayer, mapping: MappingFile) -> None:
    """For targets that have no place for a trained initial state.

    Raises:
        NotRepresentable: when the layer has one.
    """
    if any(d.weights.has(Part.INITIAL_HIDDEN) or d.weights.has(Part.INITIAL_CELL) for d in layer.directions):
        raise NotRepresentable(
            f"{mapping.title} keeps no trained initial state with a layer", place=f"layer {layer.name!r}"
        )


# Rewrites.


def _rewritten(layer: RecurrentLayer, layout: Layout) -> _Attempt:
    attempt = _Attempt(layer)
    rules = (
        _turn_update_gate,
        _uncouple,
        _drop_clips,
        _drop_zero_peepholes,
        _move_constants,
        _one_bias,
        _fill_biases,
    )
    for rule in rules:
        attempt = rule(attempt, layout)
    return attempt


def _negated(weights: Weights, gates: Sequence[Gate]) -> Weights:
    """Turns the sign of every block of these gates; ``-(-x)`` gives the bits back."""

    def turn(key: BlockKey, block: Lazy) -> Lazy:
        return block.map(np.negative, block.shape) if key[1] in gates else block

    return weights.mapped(turn)


def _turn_update_gate(attempt: _Attempt, layout: Layout) -> _Attempt:
    """z and 1 - z change places: sigma(-a) = 1 - sigma(a)."""
    allowed = layout.dialect.choices.get("update_keeps", ())
    equations = attempt.layer.equations
    if not isinstance(equations, GruEquations) or equations.update_keeps in allowed or len(allowed) != 1:
        return attempt
    if not all(
        isinstance(d.equations, GruEquations) and d.equations.gate_activation.odd_about_half
        for d in attempt.layer.directions
    ):
        return attempt

    def turn(direction: RecurrentDirection) -> RecurrentDirection:
        old = direction.equations
        assert isinstance(old, GruEquations)
        constant = {gate: -value if gate is Gate.UPDATE else value for gate, value in old.constant.items()}
        equations = replace(old, update_keeps=UpdateKeeps(allowed[0]), constant=MappingProxyType(constant))
        return replace(direction, equations=equations, weights=_negated(direction.weights, [Gate.UPDATE]))

    return attempt.done(
        "negate_update_gate", f"the update gate's sign was turned, so that it keeps the {allowed[0]}", turn
    )


def _uncouple(attempt: _Attempt, layout: Layout) -> _Attempt:
    """f = 1 - sigma(a) = sigma(-a): the forget gate gets the input gate's blocks with the sign turned."""
    if Coupling.FORGET_IS_ONE_MINUS_INPUT in layout.dialect.choices.get("coupling", ()):
        return attempt
    directions = attempt.layer.directions
    coupled = [
        isinstance(d.equations, LstmEquations) and d.equations.coupling is not Coupling.NONE
        for d in directions
    ]
    if not any(coupled) or not all(
        isinstance(d.equations, LstmEquations) and d.equations.gate_activation.odd_about_half
        for d in directions
    ):
        return attempt

    def uncouple(direction: RecurrentDirection) -> RecurrentDirection:
        old, weights = direction.equations, direction.weights
        if not isinstance(old, LstmEquations) or old.coupling is Coupling.NONE:
            return direction
        kept = weights.mapped(lambda key, block: None if _optional_forget(key) else block)
        copies: dict[BlockKey, Lazy] = {
            (part, Gate.FORGET): block.map(np.negative, block.shape)
            for (part, gate), block in weights.items()
            if gate is Gate.INPUT
        }
        constant: dict[Gate, float] = {g: value for g, value in old.constant.items() if g is not Gate.FORGET}
        if Gate.INPUT in constant:
            constant[Gate.FORGET] = -constant[Gate.INPUT]
        equations = replace(old, coupling=Coupling.NONE, constant=MappingProxyType(constant))
        return replace(direction, equations=equations, weights=kept.with_blocks(copies))

    return attempt.done(
        "uncouple_forget_gate",
        "the forget gate, one minus the input gate, was written out as a gate",
        uncouple,
    )


def _optional_forget(key: BlockKey) -> bool:
    return key[1] is Gate.FORGET and key[0] not in (Part.KERNEL, Part.RECURRENT)


def _drop_clips(attempt: _Attempt, layout: Layout) -> _Attempt:
    """A clip at infinity does nothing."""
    names = [
        name
        for name in ("preactivation_clip", "cell_clip", "projection_clip")
        for d in attempt.layer.directions
        if getattr(d.equations, name, None) is not None
        and np.isinf(getattr(d.equations, name))
        and name not in layout.dialect.clips
    ]
    if not names:
        return attempt

    def drop(direction: RecurrentDirection) -> RecurrentDirection:
        equations: Any = direction.equations
        return replace(direction, equations=replace(equations, **dict.fromkeys(names)))

    return attempt.done("drop_infinite_clip", "a clip at infinity was left out", drop)


def _drop_zero_peepholes(attempt: _Attempt, layout: Layout) -> _Attempt:
    held = block_keys(layout)
    peepholes = [
        block
        for d in attempt.layer.directions
        for key, block in d.weights.items()
        if key[0] is Part.PEEPHOLE and key not in held
    ]
    if not peepholes or not all(map(bias_split.is_zero, peepholes)):
        return attempt

    def drop(direction: RecurrentDirection) -> RecurrentDirection:
        kept = direction.weights.mapped(lambda key, block: None if key[0] is Part.PEEPHOLE else block)
        return replace(direction, weights=kept)

    return attempt.done("drop_zero_peepholes", "peepholes that are all zero were left out", drop)


def _move_constants(attempt: _Attempt, layout: Layout) -> _Attempt:
    """Constants that the target does not add at run time go into the input biases, or come out of them."""
    target = layout.dialect.constant
    if target is None or all(dict(d.equations.constant) == dict(target) for d in attempt.layer.directions):
        return attempt
    rounding = 0.0
    moved: list[RecurrentDirection] = []
    memory: dict[str, Any] = {}
    held = block_keys(layout)
    for direction in attempt.layer.directions:
        old = direction.equations.constant
        noted = memory.setdefault(
            direction.direction, {"constant": dict(old), "target": dict(target), "biases": {}}
        )
        blocks: dict[BlockKey, Lazy] = {}
        for gate in GATES[attempt.layer.cell]:
            difference = old.get(gate, 0.0) - target.get(gate, 0.0)
            if difference == 0.0:
                continue
            key = (Part.BIAS_INPUT, gate)
            if key not in held:
                return attempt
            bias = direction.weights.get(key)
            before = (
                np.zeros(direction.weights.hidden_size, direction.weights.dtype)
                if bias is None
                else bias.read()
            )
            after = before + before.dtype.type(difference)
            exact = before.astype(np.float64) + difference
            rounding = max(rounding, float(np.max(np.abs(after.astype(np.float64) - exact), initial=0.0)))
            blocks[key] = Lazy.of(after)
            noted["biases"][gate] = bias_split.remember_constant(None if bias is None else before, after)
        equations: Any = direction.equations
        moved.append(
            RecurrentDirection(
                direction.direction,
                replace(equations, constant=MappingProxyType(dict(target))),
                direction.weights.with_blocks(blocks),
            )
        )
    changed = dict(zip(attempt.layer.directions, moved, strict=True))
    result = attempt.done(
        "move_constant_into_bias",
        f"constants added at run time ({spell(attempt.layer.equations.constant)}) went into input biases",
        lambda direction: changed[direction],
        exact=rounding == 0.0,
        rounding=rounding,
    )
    notes = MappingProxyType({**result.layer.notes, bias_split.CONSTANT_NOTE: json.dumps(memory)})
    return replace(result, layer=replace(result.layer, notes=notes))


def _one_bias(attempt: _Attempt, layout: Layout) -> _Attempt:
    """Where the target has one bias for a gate, the two are added: exact where one of them is zero."""
    held = block_keys(layout)
    surplus = {
        key[1]
        for d in attempt.layer.directions
        for key in d.weights
        if key[0] is Part.BIAS_RECURRENT and key not in held
    }
    swap = {
        key[1]
        for d in attempt.layer.directions
        for key in d.weights
        if key[0] is Part.BIAS_INPUT and key not in held and (Part.BIAS_RECURRENT, key[1]) in held
    }
    if swap and not surplus:
        return _swap_bias(attempt, swap)
    surplus = {gate for gate in surplus if (Part.BIAS_INPUT, gate) in held}
    if not surplus:
        return attempt
    exact, rounding = True, 0.0
    changed: dict[RecurrentDirection, RecurrentDirection] = {}
    split: dict[str, dict[str, str]] = {}
    for direction in attempt.layer.directions:
        blocks: dict[BlockKey, Lazy] = {}
        drop: set[BlockKey] = set()
        for gate in GATES[attempt.layer.cell]:
            recurrent = direction.weights.get((Part.BIAS_RECURRENT, gate))
            if gate not in surplus or recurrent is None:
                continue
            if _multiplied(direction, gate) and not bias_split.is_zero(recurrent):
                continue  # the reset gate multiplies it: no sum can stand for it
            drop.add((Part.BIAS_RECURRENT, gate))
            given = direction.weights.get((Part.BIAS_INPUT, gate))
            if given is None:
                blocks[Part.BIAS_INPUT, gate] = recurrent
                continue
            a, b = given.read(), recurrent.read()
            if same_bits(b, np.zeros_like(b)):
                continue
            total = bias_split.total_of(a, b)
            wide = a.astype(np.float64) + b.astype(np.float64)
            error = float(np.max(np.abs(total.astype(np.float64) - wide), initial=0.0))
            exact, rounding = exact and error == 0.0, max(rounding, error)
            blocks[Part.BIAS_INPUT, gate] = Lazy.of(total)
            split.setdefault(direction.direction, {})[gate] = bias_split.remember(a, b, total)
        kept = direction.weights.mapped(lambda key, block, drop=drop: None if key in drop else block)  # type: ignore[misc]
        changed[direction] = replace(direction, weights=kept.with_blocks(blocks))
    if all(new.weights.keys() == old.weights.keys() for old, new in changed.items()):
        return attempt
    result = attempt.done(
        "sum_biases" if split else "drop_zero_bias",
        "input bias and recurrent bias were added"
        if split
        else "a recurrent bias that is all zero, or the only one, became the one bias",
        lambda direction: changed[direction],
        exact=exact,
        rounding=rounding,
    )
    if not split:
        return result
    notes = MappingProxyType({**result.layer.notes, bias_split.NOTE: json.dumps(split)})
    return replace(result, layer=replace(result.layer, notes=notes))


def _swap_bias(attempt: _Attempt, gates: set[Gate | None]) -> _Attempt:
    """The target keeps its one bias on the recurrent side; the sum is the same."""

    def swap(direction: RecurrentDirection) -> RecurrentDirection:
        moved = {
            (Part.BIAS_RECURRENT, gate): block
            for (part, gate), block in direction.weights.items()
            if part is Part.BIAS_INPUT and gate in gates
        }
        kept = direction.weights.mapped(
            lambda key, block: None if key[0] is Part.BIAS_INPUT and key[1] in gates else block
        )
        return replace(direction, weights=kept.with_blocks(moved))

    if any(_multiplied(d, gate) for d in attempt.layer.directions for gate in gates):
        return attempt
    return attempt.done("move_bias", "the input bias became the recurrent bias", swap)


def _fill_biases(attempt: _Attempt, layout: Layout) -> _Attempt:
    """A bias that the target always has and the layer lacks is zeros, and remembered as such."""
    tied = {group[0]: group for group in layout.tied}
    always = [
        (place.key[0], gate)
        for place in places(layout, (Direction.FORWARD,))
        if place.rule.optional is None and place.key[0] in (Part.BIAS_INPUT, Part.BIAS_RECURRENT)
        if place.key[1] is not None
        for gate in tied.get(place.key[1], (place.key[1],))
    ]
    lacking = {
        str(d.direction): [f"{part}.{gate}" for part, gate in always if (part, gate) not in d.weights]
        for d in attempt.layer.directions
    }
    if not any(lacking.values()):
        return attempt

    def fill(direction: RecurrentDirection) -> RecurrentDirection:
        weights = direction.weights
        zeros = Lazy.of(np.zeros(weights.hidden_size, weights.dtype))
        blocks: dict[BlockKey, Lazy] = {key: zeros for key in always if key not in weights}
        return replace(direction, weights=weights.with_blocks(blocks))

    result = attempt.done("fill_zero_biases", "biases that the target always has were written as zeros", fill)
    notes = MappingProxyType({**result.layer.notes, bias_split.FILLED_NOTE: json.dumps(lacking)})
    return replace(result, layer=replace(result.layer, notes=notes))


def _multiplied(direction: RecurrentDirection, gate: Gate | None) -> bool:
    """Whether the reset gate multiplies this gate's recurrent bias."""
    equations = direction.equations
    return (
        gate is Gate.CANDIDATE
        and isinstance(equations, GruEquations)
        and equations.reset is ResetPlace.AFTER_PRODUCT
    )


# Another dtype.


def cast(model: Model, dtype: np.dtype[Any]) -> tuple[Model, tuple[Rewrite, ...]]:
    """The model with floating weights in another dtype, and the rounding of every layer that it cost.

    Inputs and outputs that have the dtype of the weights go with them, except that float32 is taken and
    given by models of every dtype.
    """
    rewrites: list[Rewrite] = []

    def convert(name: str, blocks: Mapping[Any, Lazy]) -> dict[Any, Lazy]:
        worst = 0.0
        changed = {}
        for key, block in blocks.items():
            if not _floating(block.dtype) or block.dtype == dtype:
                changed[key] = block
                continue
            array = block.read()
            new = array.astype(dtype)
            gap = np.abs(array.astype(np.float64) - new.astype(np.float64))
            worst = max(worst, float(np.max(np.where(np.isfinite(gap), gap, 0.0), initial=0.0)))
            changed[key] = block.map(lambda a: a.astype(dtype), block.shape, dtype)
        if any(changed[key] is not blocks[key] for key in blocks):
            rewrites.append(Rewrite(name, "cast", f"weights were cast to {dtype}", worst == 0.0, worst))
        return changed

    layers: dict[str, Layer] = {}
    for name, layer in model.layers.items():
        if isinstance(layer, RecurrentLayer):
            layers[name] = layer.mapped(
                lambda d, name=name: replace(d, weights=Weights(d.weights.cell, convert(name, d.weights)))  # type: ignore[misc]
            )
        else:
            layers[name] = replace(layer, weights=convert(name, layer.weights))
    before = {str(layer.dtype) for layer in model.recurrent.values()} - {"float32"}

    def ported(ports: tuple[Port, ...]) -> tuple[Port, ...]:
        return tuple(replace(p, dtype=str(dtype)) if p.dtype in before else p for p in ports)

    cast = replace(model, layers=layers, inputs=ported(model.inputs), outputs=ported(model.outputs))
    return cast, tuple(rewrites)


def _floating(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
