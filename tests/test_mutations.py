"""Planted faults: every way of mixing up weights that people meet is caught by ``verify``, in every mapping file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from lstmconvert import layout, lowering, movement, registry
from lstmconvert.activations import HARD_SIGMOID_KERAS2, HARD_SIGMOID_KERAS3
from lstmconvert.canonical import (
    BlockKey,
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    Weights,
)
from lstmconvert.dialect import block_keys, reasons
from lstmconvert.errors import NotRepresentable
from lstmconvert.gates import GATES, Cell, Direction, Gate, Part
from lstmconvert.judging import verify_models
from lstmconvert.mapping import Layout
from lstmconvert.model import Model
from lstmconvert.tensors import Array, Lazy
from tests.support import random_layer

SIZE = 4  # square, so that a transposed matrix still fits

BOTH = ("forward", "reverse")
_BIASES = (Part.BIAS_INPUT, Part.BIAS_RECURRENT)


def layers_of(described: Layout) -> RecurrentLayer | None:
    """A layer that the layout holds, with as many directions, biases and peepholes as it can."""
    assert described.cell is not None
    for directions in (BOTH, ("forward",)):
        for biases in ("two", "input", "recurrent", "none"):
            for peephole in (True, False) if described.cell is Cell.LSTM else (False,):
                for equations in _equations(described.cell):
                    extra: dict[str, Any] = {"peephole": True} if peephole else {}
                    layer = random_layer(
                        described.cell, seed=11, directions=directions, biases=biases,
                        input_size=SIZE, hidden_size=SIZE, equations=equations, **extra,
                    )  # fmt: skip
                    held = block_keys(described)
                    layer = changed(layer, lambda key, block, _, held=held: block if key in held else None)  # type: ignore[misc]
                    try:
                        if not reasons(described, layer):
                            return layer
                    except NotRepresentable:
                        continue
    return None


def _equations(cell: Cell) -> Iterator[Any]:
    from lstmconvert.canonical import RnnEquations, UpdateKeeps

    constants: Any = (MappingProxyType({}), MappingProxyType({Gate.FORGET: 1.0}))
    if cell is Cell.LSTM:
        for constant in constants:
            yield LstmEquations(constant=constant)
    elif cell is Cell.GRU:
        for reset in ResetPlace:
            for keeps in UpdateKeeps:
                yield GruEquations(reset, keeps)
    else:
        yield RnnEquations()


LAYOUTS = [
    (name, key)
    for name in registry.frameworks()
    for key, described in registry.mapping_of(name).layouts.items()
    if described.cell is not None
]


def tensors_of(described: Layout, layer: RecurrentLayer) -> dict[str, Lazy]:
    if _names_directions(described):
        return layout.pack(described, {d.direction: d.weights for d in layer.directions})
    return {
        f"{d.direction}/{name}": tensor
        for d in layer.directions
        for name, tensor in layout.pack(described, {Direction.FORWARD: d.weights}).items()
    }


def _names_directions(described: Layout) -> bool:
    """Whether both directions lie in one layout; else each is a layer of its own, as in Keras."""
    rule = described.tensors[0]
    return "{direction}" in rule.name or "direction" in rule.axes.names


def read(described: Layout, layer: RecurrentLayer, tensors: dict[str, Lazy]) -> RecurrentLayer:
    """The layer that a reader makes of tensors."""
    assert described.cell is not None
    found = {}
    if _names_directions(described):
        found = layout.read_weights(described.cell, described, tensors)
    else:
        for direction in layer.directions:
            prefix = f"{direction.direction}/"
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            (found[direction.direction],) = layout.read_weights(described.cell, described, own).values()
    return replace(layer, directions=tuple(replace(d, weights=found[d.direction]) for d in layer.directions))


def changed(
    layer: RecurrentLayer, function: Callable[[BlockKey, Lazy, Weights], Lazy | None]
) -> RecurrentLayer:
    return layer.mapped(
        lambda d: replace(d, weights=d.weights.mapped(lambda key, block: function(key, block, d.weights)))
    )


def swapped(layer: RecurrentLayer, one: Gate, other: Gate) -> RecurrentLayer:
    turn = {one: other, other: one}
    return changed(layer, lambda key, block, w: w.get((key[0], turn.get(key[1], key[1])), block))  # type: ignore[arg-type]


def computed(block: Lazy, function: Callable[[Array], Array]) -> Lazy:
    return Lazy.of(np.ascontiguousarray(function(block.read())))


def faults(layer: RecurrentLayer) -> Iterator[tuple[str, RecurrentLayer]]:
    """Every fault that makes sense for a layer, as the layer that a wrong converter would give."""
    for one, other in combinations(GATES[layer.cell], 2):
        yield f"swap {one} and {other}", swapped(layer, one, other)
    parts = {key[0] for d in layer.directions for key in d.weights}
    for part in (Part.KERNEL, Part.RECURRENT):
        for gate in GATES[layer.cell]:

            def turned(key: BlockKey, block: Lazy, _: Weights, part: Part = part, gate: Gate = gate) -> Lazy:
                return computed(block, np.transpose) if key == (part, gate) else block

            yield f"transpose {part} of {gate}", changed(layer, turned)
    for part in _BIASES:
        if part in parts:
            for fault, factor in (("drop", 0), ("double", 2)):

                def scaled(
                    key: BlockKey, block: Lazy, _: Weights, part: Part = part, factor: int = factor
                ) -> Lazy:
                    return computed(block, lambda a: a * factor) if key[0] is part else block

                yield f"{fault} {part}", changed(layer, scaled)
    if len(layer.directions) == 2:
        first, second = layer.directions
        yield (
            "exchange directions",
            replace(
                layer,
                directions=(
                    replace(first, weights=second.weights),
                    replace(second, weights=first.weights),
                ),
            ),
        )
        yield "forward twice", replace(layer, directions=(first, replace(second, weights=first.weights)))
    else:
        yield "turn the direction", _turned(layer)
    yield from _wrong_equations(layer)


def _turned(layer: RecurrentLayer) -> RecurrentLayer:
    (only,) = layer.directions
    other = Direction.REVERSE if only.direction is Direction.FORWARD else Direction.FORWARD
    return replace(layer, directions=(replace(only, direction=other),))


def _wrong_equations(layer: RecurrentLayer) -> Iterator[tuple[str, RecurrentLayer]]:
    def told(**options: Any) -> RecurrentLayer:
        def tell(direction: RecurrentDirection) -> RecurrentDirection:
            equations: Any = direction.equations
            return replace(direction, equations=replace(equations, **options))

        return layer.mapped(tell)

    if isinstance(layer.equations, GruEquations):
        other = next(place for place in ResetPlace if place is not layer.equations.reset)
        yield "toggle reset_after", told(reset=other)
    if layer.cell is not Cell.RNN:
        yield "hard_sigmoid for sigmoid", told(gate_activation=HARD_SIGMOID_KERAS2)


@pytest.mark.parametrize(("framework", "name"), LAYOUTS, ids=str)
def test_every_planted_fault_is_caught(
    framework: str, name: str, record_property: Callable[[str, object], None]
) -> None:
    described = registry.mapping_of(framework).layouts[name]
    layer = layers_of(described)
    if layer is None:
        assert described.reads_only or reasons(described, random_layer(described.cell or Cell.LSTM, seed=1))
        return
    # The tensors of the layout are what is mutated: read wrongly, or written wrongly, it is the same layer.
    honest = read(described, layer, tensors_of(described, layer))
    assert verdict(layer, honest)
    missed = []
    count = 0
    for fault, mutant in faults(honest):
        count += 1
        if verdict(layer, mutant):
            missed.append(fault)
    if any(d.equations != x.equations for d, x in zip(layer.directions, honest.directions, strict=True)):
        missed.append("equations changed by reading")
    record_property("mutation score", f"{count - len(missed)} of {count}")
    print(f"{framework} {name}: {count - len(missed)} of {count} faults caught")
    assert count >= 3
    assert not missed


def verdict(a: RecurrentLayer, b: RecurrentLayer) -> bool:
    return verify_models(Model({a.name: a}), Model({b.name: b})).proved


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_slope_of_hard_sigmoid_is_caught(cell: str) -> None:
    kind: Any = LstmEquations if cell == "lstm" else lambda **o: GruEquations(ResetPlace.AFTER_PRODUCT, **o)
    one, two = (
        random_layer(cell, seed=3, equations=kind(gate_activation=slope))
        for slope in (HARD_SIGMOID_KERAS2, HARD_SIGMOID_KERAS3)
    )
    assert verdict(one, one)
    assert not verdict(one, two)


@pytest.mark.parametrize("framework", ["onnx", "keras", "pytorch"])
@pytest.mark.parametrize("fault", ["swap", "transpose", "overlap"])
def test_the_movement_of_data_alone_finds_moves(framework: str, fault: str) -> None:
    """No numbers are compared: a layout that swaps, turns or overlaps leaves indices in the wrong place."""
    mapping = registry.mapping_of(framework)
    layer = random_layer("lstm", seed=4, directions=BOTH, biases="input", input_size=SIZE, hidden_size=SIZE)
    fitted, described, _ = lowering.lower_layer(layer, mapping)
    model = Model({fitted.name: fitted})

    def write(given: Model) -> Any:
        from lstmconvert.containers import Archive

        return Archive(tensors_of(described, next(iter(given.recurrent.values()))))

    def honest(archive: Any) -> Model:
        return Model({fitted.name: read(described, fitted, dict(archive.tensors))})

    def wrong(archive: Any) -> Model:
        layer = honest(archive).recurrent[fitted.name]
        if fault == "swap":
            return Model({fitted.name: swapped(layer, Gate.INPUT, Gate.FORGET)})
        key = (Part.RECURRENT, Gate.CELL)

        def spoil(found: BlockKey, block: Lazy, weights: Weights) -> Lazy:
            if found != key:
                return block
            if fault == "transpose":
                return computed(block, np.transpose)
            return computed(block, lambda a: np.concatenate([a[:1], a[:-1]]))

        return Model({fitted.name: changed(layer, spoil)})

    good = movement.of_target(model, write, honest, write(model))
    assert good.proved and good.target == sum(b.size for d in fitted.directions for b in d.weights.values())
    assert not good.skipped
    assert not movement.of_target(model, write, wrong, write(model)).proved
    assert movement.of_source(write(model), honest).proved
    # One element used twice and another left out shows on the source's side as well.
    assert movement.of_source(write(model), wrong).proved == (fault != "overlap")


@pytest.mark.parametrize(
    ("held", "hidden", "cell", "proved"),
    [
        ([0.0], [0, 0, 0], [0, 0, 0], True),
        ([1.0, 2.0, 3.0], [0, 1, 2], [0, 1, 2], True),
        ([1.0, 2.0, 3.0], [0, 1, 1], [0, 1, 2], False),
        ([1.0, 2.0, 3.0, 4.0], [0, 1, 2], [0, 1, 2], False),
    ],
    ids=["filled", "shared", "twice", "left out"],
)
def test_states_may_share_their_numbers(
    held: list[float], hidden: list[int], cell: list[int], proved: bool
) -> None:
    """Exporters start both states of an LSTM from one constant, often a single zero."""
    from lstmconvert.containers import Archive

    layer = random_layer("lstm", seed=5, hidden_size=3)
    (only,) = layer.directions
    starts = {Part.INITIAL_HIDDEN: hidden, Part.INITIAL_CELL: cell}
    plain = {f"{part} {gate}": block for (part, gate), block in only.weights.items()}

    def read_all(archive: Archive) -> Model:
        def state(places: list[int]) -> Lazy:
            return archive.tensors["state"].map(lambda a: a[places], (3,))

        blocks: dict[BlockKey, Lazy] = {key: archive.tensors[f"{key[0]} {key[1]}"] for key in only.weights}
        blocks |= {(part, None): state(places) for part, places in starts.items()}
        weights = Weights(only.weights.cell, blocks)
        return Model(
            {"lstm": replace(layer, directions=(replace(only, weights=weights),), origin=("state",))}
        )

    archive = Archive({"state": Lazy.of(np.array(held, np.float32)), **plain})
    found = movement.of_source(archive, read_all)
    assert not found.skipped
    assert found.proved == proved, found
