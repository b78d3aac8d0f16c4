"""Recurrent layers as attributes of the generated module: torch's own where they fit, else spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lstmconvert import layout as layouts
from lstmconvert import lowering, mapping
from lstmconvert.canonical import (
    RecurrentDirection,
    RecurrentLayer,
    RnnEquations,
)
from lstmconvert.errors import NotRepresentable
from lstmconvert.frameworks.pytorch.module import Module
from lstmconvert.frameworks.pytorch.source import call as call_code
from lstmconvert.gates import Cell, Direction, Part
from lstmconvert.mapping import Layout
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

INITIAL = (Part.INITIAL_HIDDEN, Part.INITIAL_CELL)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a direction, or two, of a layer of the source lie in the state_dict.

    Attributes:
        layout: name of the layout.
        prefix: what stands before the layout's names.
        layer: the number in the stack.
        directions: the directions, as the source calls them.
        initial: names of the tensors of trained initial states that are not in the layout.
    """

    layout: str
    prefix: str
    layer: str
    directions: tuple[Direction, ...]
    initial: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One attribute of the module that runs one direction of a layer, or two, or a stack of layers.

    Attributes:
        attribute: its name.
        directions: of the layer, by index.
        masked: whether it takes a mask itself.
        flipped: whether it is fed the sequence from its end.
        initial: attributes of trained initial states that are not its own.
    """

    attribute: str
    directions: tuple[int, ...]
    masked: bool
    flipped: bool
    initial: tuple[str, ...] = ()


def fused_layout(layer: RecurrentLayer) -> Layout | None:
    """The layout of the layer of torch that holds ``layer``; a single reverse direction counts as forward."""
    if any(len({has(d, part) for d in layer.directions}) > 1 for part in INITIAL):
        return None
    plain = layer.mapped(_without_initial)
    if len(plain.directions) == 1:
        plain = plain.mapped(lambda d: replace(d, direction=Direction.FORWARD))
    try:
        return lowering.layout_for(mapping.load("pytorch"), plain)
    except NotRepresentable:
        return None


def has(direction: RecurrentDirection, part: Part) -> bool:
    """Whether a direction has a block of a part that belongs to no gate."""
    return (part, None) in direction.weights


def _without_initial(direction: RecurrentDirection) -> RecurrentDirection:
    """Initial states are arguments of torch's layers."""
    weights = direction.weights.mapped(lambda key, block: None if key[0] in INITIAL else block)
    return replace(direction, weights=weights)


def state_sizes(layer: RecurrentLayer) -> tuple[int, ...]:
    """Sizes of the states: of h, and for an LSTM of c."""
    return (layer.recurrent_size, layer.hidden_size) if layer.cell is Cell.LSTM else (layer.recurrent_size,)


def fused_tensors(stack: Sequence[RecurrentLayer], layout: Layout) -> dict[str, Lazy]:
    """The state_dict of one module of torch that is a stack of layers."""
    tensors: dict[str, Lazy] = {}
    for number, layer in enumerate(stack):
        plain = layer.mapped(_without_initial)
        if len(plain.directions) == 1:
            weights = {Direction.FORWARD: plain.directions[0].weights}
        else:
            weights = {d.direction: d.weights for d in plain.directions}
        tensors |= layouts.pack(layout, weights, str(number))
    return tensors


def _fused_constructor(stack: Sequence[RecurrentLayer], layout: Layout, tensors: dict[str, Lazy]) -> str:
    first = stack[0]
    named: dict[str, str] = {}
    if len(stack) > 1:
        named["num_layers"] = str(len(stack))
    equations = first.equations
    if isinstance(equations, RnnEquations) and equations.hidden_activation.kind == "relu":
        named["nonlinearity"] = '"relu"'
    if not any(name.startswith("bias") for name in tensors):
        named["bias"] = "False"
    named["batch_first"] = "True"
    if len(first.directions) == 2:
        named["bidirectional"] = "True"
    if first.projected_size is not None:
        named["proj_size"] = str(first.projected_size)
    return call_code(f"nn.{layout.classes[0]}", str(first.input_size), str(first.hidden_size), **named)


@dataclass(frozen=True, slots=True, eq=False)
class Declared:
    """A layer, or stack of layers, that is in the module.

    Attributes:
        runs: what runs it.
        places: where its tensors are, for each layer of the stack.
    """

    runs: tuple[Run, ...]
    places: tuple[tuple[Place, ...], ...]


def declare(module: Module, name: str, stack: Sequence[RecurrentLayer], *, masked: bool) -> Declared:
    """Make a stack of layers, most often just one, part of the module.

    Args:
        module: where it goes.
        name: of the attribute.
        stack: layers that follow each other; more than one only where one module of torch holds them.
        masked: whether a call of it heeds a mask.
    """
    layout = fused_layout(stack[0])
    if layout is None:
        (layer,) = stack
        return _declare_spelled_out(module, name, layer, masked=masked)
    tensors = fused_tensors(stack, layout)
    attribute = module.submodule(name, _fused_constructor(stack, layout, tensors), tensors)
    layer = stack[0]
    initial = _declare_initial(module, attribute, layer)
    directions = tuple(d.direction for d in layer.directions)
    flipped = directions == (Direction.REVERSE,)
    run = Run(attribute, tuple(range(len(directions))), False, flipped, initial)
    places = tuple(
        (Place(layout.name, f"{attribute}.", str(number), directions, initial if number == 0 else ()),)
        for number in range(len(stack))
    )
    return Declared((run,), places)


def _declare_initial(module: Module, attribute: str, layer: RecurrentLayer) -> tuple[str, ...]:
    """Trained initial states as parameters (directions, 1, size)."""
    names = []
    for part, size in zip(INITIAL, state_sizes(layer), strict=False):
        blocks = [direction.weights.get((part, None)) for direction in layer.directions]
        held = [block for block in blocks if block is not None]
        names.append(module.parameter(attribute, part, _rows(held, size)) if held else "")
    return tuple(names) if any(names) else ()


def _rows(blocks: Sequence[Lazy], size: int) -> Lazy:
    def load() -> Array:
        import numpy as np

        return np.stack([block.read() for block in blocks])[:, np.newaxis]

    return Lazy((len(blocks), 1, size), blocks[0].dtype, load)


def _declare_spelled_out(module: Module, name: str, layer: RecurrentLayer, *, masked: bool) -> Declared:
    from lstmconvert.frameworks.pytorch import cells  # felt where torch's own layers do

    runs, places = [], []
    for index, direction in enumerate(layer.directions):
        recipe = cells.recipe_of(direction, masked=masked)
        class_name = module.own_class(recipe.key, recipe.title, recipe)
        wanted = f"{name}_{direction.direction}" if len(layer.directions) == 2 else name
        attribute = module.submodule(
            wanted, cells.constructor(class_name, direction), cells.tensors(direction)
        )
        runs.append(Run(attribute, (index,), masked, direction.direction is Direction.REVERSE))
        layout = cells.layout_of(layer.cell).name
        places.append(Place(layout, f"{attribute}.", "0", (direction.direction,)))
    return Declared(tuple(runs), (tuple(places),))
