"""Layouts at work: named tensors to blocks of gates and back, from one description.

``unpack`` gives views, ``pack`` assigns into the same views of a new tensor: the inverse is never
written a second time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lstmconvert import axes
from lstmconvert.canonical import BlockKey, Weights
from lstmconvert.errors import BadFile
from lstmconvert.gates import GATED_PARTS, PART_AXES, Cell, Direction, Gate, Part
from lstmconvert.mapping import BIAS_PAIR, EACH, Layout, TensorRule, operation_class
from lstmconvert.packing import Piece, assembled
from lstmconvert.tensors import Array, Lazy, same_bits
from lstmconvert.values import dataclass

_PAIR = (Part.BIAS_INPUT, Part.BIAS_RECURRENT)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one block lies: its direction and key, its tensor and the positions on that tensor's axes.

    ``also`` is a second name of the tensor, where the framework has one.
    """

    direction: Direction
    key: BlockKey
    rule: TensorRule
    tensor: str
    at: Mapping[str, int]
    also: str | None = None

    @property
    def group(self) -> str | None:
        """The tensors that are present or absent together with this one's; ``None`` if always there."""
        return self.tensor if self.rule.optional == EACH else self.rule.optional

    @property
    def order(self) -> tuple[str, ...]:
        """Axes of the block."""
        return PART_AXES[self.key[0]]


def places(layout: Layout, directions: tuple[Direction, ...], layer: str = "0") -> tuple[Place, ...]:
    """Every place of a layout, for the directions that are there and the number of a layer."""
    return tuple(
        place
        for direction_index, direction in enumerate(directions)
        for rule in layout.tensors
        for place in _places_of_rule(
            layout, rule, direction, direction_index, layer, is_alone=len(directions) == 1
        )
    )


def _places_of_rule(
    layout: Layout,
    rule: TensorRule,
    direction: Direction,
    direction_index: int,
    layer: str,
    *,
    is_alone: bool,
) -> Iterable[Place]:
    names = rule.axes.names
    base = {"direction": direction_index} if "direction" in names else {}

    def place(part: Part, gate: Gate | None, at: Mapping[str, int]) -> Place:
        def expand(template: str) -> str:
            return _expand(template, layout, gate, direction, layer, is_alone=is_alone)

        also = None if rule.also is None else expand(rule.also)
        return Place(direction, (part, gate), rule, expand(rule.name), MappingProxyType({**base, **at}), also)

    if rule.slots:
        for index, slot in enumerate(rule.slots):
            yield place(slot.part, slot.gate, {"slot": index})
        return
    parts = _PAIR if rule.part == BIAS_PAIR else (Part(rule.part),)
    for bias_index, part in enumerate(parts):
        bias = {"bias": bias_index} if rule.part == BIAS_PAIR else {}
        if not rule.gates:
            yield place(part, None, bias)
        for gate_index, gate in enumerate(rule.gates):
            yield place(part, gate, {**bias, "gate": gate_index} if "gate" in names else bias)


def _expand(
    template: str,
    layout: Layout,
    gate: Gate | None,
    direction: Direction,
    layer: str,
    *,
    is_alone: bool = False,
) -> str:
    spelled = layout.direction_spelling.get(direction, "")
    if is_alone and layout.alone is not None:
        spelled = layout.alone
    holes = {"layer": layer, "direction": spelled, "side": layout.side_spelling.get(direction, "")}
    if gate is not None:
        holes["gate"] = layout.gate_spelling.get(gate, "")
    return re.sub(r"\{(\w+)\}", lambda hole: holes[hole[1]], template)


def tensor_names(layout: Layout, directions: tuple[Direction, ...], layer: str = "0") -> tuple[str, ...]:
    """The names of all tensors that the layout may use."""
    every = places(layout, directions, layer)
    second = (place.also for place in every if place.also is not None)
    return tuple(dict.fromkeys((*(place.tensor for place in every), *second)))


def names_read(
    layout: Layout, directions: tuple[Direction, ...], tensors: Mapping[str, Lazy], layer: str = "0"
) -> tuple[str, ...]:
    """The names of the tensors that ``unpack`` reads."""
    found: dict[str, None] = {}
    for place in places(layout, directions, layer):
        if place.tensor in tensors:
            found[place.tensor] = None
        elif place.also is not None and place.also in tensors:
            found[place.also] = None
    return tuple(found)


def _local_sizes(rule: TensorRule, directions: int) -> dict[str, int]:
    return {"gate": len(rule.gates), "bias": 2, "slot": len(rule.slots), "direction": directions}


def _present_directions(layout: Layout, tensors: Mapping[str, Lazy], layer: str) -> tuple[Direction, ...]:
    """The directions that the tensors hold; a single one that is not named counts as forward."""
    both = (Direction.FORWARD, Direction.REVERSE)
    kernel = next(rule for rule in layout.tensors if rule.part == Part.KERNEL)
    if "{direction}" in kernel.name:
        gate = kernel.gates[0]
        templates = [kernel.name] if kernel.also is None else [kernel.name, kernel.also]
        present = tuple(
            d for d in both if any(_expand(t, layout, gate, d, layer) in tensors for t in templates)
        )
        return present if layout.alone is None or len(present) == 2 else both[:1]
    if "direction" in kernel.axes.names:
        name = _expand(kernel.name, layout, kernel.gates[0], Direction.FORWARD, layer)
        if name in tensors:
            axis = [d.terms for d in kernel.axes.dimensions].index((("direction",),))
            shape = tensors[name].shape
            count = shape[axis] if axis < len(shape) else 0
            if count not in (1, 2):
                raise BadFile(
                    "unexpected shape", place=name, found=shape, expected=f"axes {kernel.axes.text!r}"
                )
            return both[:count]
    return both[:1]


def _check_presence(layout: Layout, wanted: tuple[Place, ...], tensors: Mapping[str, Lazy]) -> None:
    """Required tensors are there; optional ones are there in whole groups or not at all."""
    groups: dict[str, set[bool]] = {}
    for place in wanted:
        present = place.tensor in tensors
        if place.group is not None:
            groups.setdefault(place.group, set()).add(present)
        elif not present:
            raise BadFile(
                f"a tensor of layout {layout.name!r} is missing",
                place=place.tensor,
                found=", ".join(list(tensors)[:8]) or "no tensors",
            )
    for group, presence in groups.items():
        if len(presence) > 1:
            names = [p.tensor for p in wanted if p.group == group]
            missing = next(name for name in names if name not in tensors)
            raise BadFile(
                f"of the tensors {', '.join(dict.fromkeys(names))} some are there and some are missing",
                place=missing,
            )


def _sizes(wanted: tuple[Place, ...], tensors: Mapping[str, Lazy], directions: int) -> dict[str, int]:
    """The lengths of all axes, worked out from all shapes together."""
    used = {(p.rule, p.tensor): None for p in wanted if p.tensor in tensors}
    projected = any(rule.part == Part.PROJECTION for rule, _ in used)
    shared: dict[str, int] = {}
    progress = True
    while progress:
        progress = False
        for rule, name in used:
            sizes = {**shared, **_local_sizes(rule, directions)}
            try:
                progress |= axes.solve(rule.axes, tensors[name].shape, sizes)
            except ValueError as error:
                raise BadFile(f"unexpected shape: {error}", place=name) from error
            shared |= {
                axis: n for axis, n in sizes.items() if axis in ("input", "hidden", "recurrent", "projected")
            }
        source = "projected" if projected else "hidden"
        if not progress and "recurrent" not in shared and source in shared:
            shared["recurrent"] = shared[source]
            progress = True
    return shared


def unpack(
    layout: Layout, tensors: Mapping[str, Lazy], layer: str = "0"
) -> dict[Direction, dict[BlockKey, Lazy]]:
    """The blocks of one layer, as views of its tensors, by direction.

    Args:
        layout: a layout of a cell.
        tensors: the layer's tensors under the names of the layout; others are ignored.
        layer: what stands for ``{layer}`` in the names.

    Raises:
        BadFile: when a tensor is missing or its shape does not fit, naming tensor and axes.
    """
    directions = _present_directions(layout, tensors, layer)
    wanted = places(layout, directions or (Direction.FORWARD,), layer)
    tensors = _under_first_names(wanted, tensors)
    _check_presence(layout, wanted, tensors)
    sizes = _sizes(wanted, tensors, len(directions))
    result: dict[Direction, dict[BlockKey, Lazy]] = {direction: {} for direction in directions}
    for place in wanted:
        tensor = tensors.get(place.tensor)
        if tensor is not None:
            result[place.direction][place.key] = _block(
                tensor, place, {**sizes, **_local_sizes(place.rule, len(directions))}
            )
    for blocks in result.values():
        for part, gate, first in ties(layout):
            if (part, first) in blocks:
                blocks[part, gate] = blocks[part, first]  # the same one: it is moved once
    return result


def ties(layout: Layout) -> Iterable[tuple[Part, Gate, Gate]]:
    """Every gated part of every gate that shares its numbers, and the gate that has them."""
    for group in layout.tied:
        for gate in group[1:]:
            for part in GATED_PARTS:
                yield part, gate, group[0]


def untied(layout: Layout, weights: Weights) -> tuple[Gate, Gate] | None:
    """Two gates that share their numbers in this layout and have different ones in ``weights``."""
    for part, gate, first in ties(layout):
        a, b = weights.get((part, first)), weights.get((part, gate))
        if a is b:
            continue
        if a is None or b is None or not same_bits(a.read(), b.read()):
            return first, gate
    return None


def _under_first_names(wanted: tuple[Place, ...], tensors: Mapping[str, Lazy]) -> Mapping[str, Lazy]:
    """The tensors, those that have only their second name also under the first.

    Raises:
        BadFile: when the tensors of two such names cannot be one.
    """
    found: dict[str, Lazy] = {}
    for place in wanted:
        second = None if place.also is None else tensors.get(place.also)
        if second is None:
            continue
        first = tensors.get(place.tensor)
        if first is None:
            found[place.tensor] = second
        elif (first.shape, first.dtype) != (second.shape, second.dtype):
            raise BadFile(
                f"{place.tensor!r} and {place.also!r} are names of one tensor, but differ",
                place=place.also,
                found=f"{first.dtype} {first.shape} and {second.dtype} {second.shape}",
            )
    return {**tensors, **found} if found else tensors


def _block(tensor: Lazy, place: Place, sizes: Mapping[str, int]) -> Lazy:
    def cut(array: Array) -> Array:
        return axes.view(array, place.rule.axes, sizes, place.at, place.order)

    return tensor.view(cut, tuple(sizes[axis] for axis in place.order))


def read_weights(
    cell: Cell, layout: Layout, tensors: Mapping[str, Lazy], layer: str = "0"
) -> dict[Direction, Weights]:
    """``unpack``, as checked ``Weights``.

    Raises:
        BadFile: as ``unpack``, and when the blocks contradict each other in size or dtype.
    """
    result = {}
    for direction, blocks in unpack(layout, tensors, layer).items():
        try:
            result[direction] = Weights(cell, blocks)
        except ValueError as error:
            names = ", ".join(n for n in tensor_names(layout, (direction,), layer) if n in tensors)
            raise BadFile(f"the tensors do not make a {cell.upper()}: {error}", place=names) from error
    return result


def pack(layout: Layout, directions: Mapping[Direction, Weights], layer: str = "0") -> dict[str, Lazy]:
    """The tensors of one layer, each made from its blocks when it is read.

    A block that the layer lacks but its tensor needs is zeros; a group of optional tensors of which
    the layer has nothing is left out.

    Raises:
        ValueError: when the layer has a block for which the layout has no place (lowering comes first).
    """
    wanted = places(layout, tuple(directions), layer)
    for direction, weights in directions.items():
        held = {place.key for place in wanted if place.direction is direction}
        shared = {(part, gate) for part, gate, _ in ties(layout)}
        if (differing := untied(layout, weights)) is not None:
            raise ValueError(f"layout {layout.name!r} has one block for {' and '.join(differing)}")
        for key in weights:
            if key not in held and key not in shared:
                raise ValueError(f"layout {layout.name!r} has no place for {key[0]} {key[1] or ''}".rstrip())
    written = {p.group for p in wanted if p.group is None or p.key in directions[p.direction]}
    by_tensor: dict[str, list[Place]] = {}
    for place in wanted:
        if place.group in written:
            by_tensor.setdefault(place.tensor, []).append(place)
    result = {}
    for name, at in by_tensor.items():
        result[name] = _tensor(at, directions)
        if at[0].also is not None:
            result[at[0].also] = result[name]
    return result


def _tensor(held: list[Place], directions: Mapping[Direction, Weights]) -> Lazy:
    first = directions[held[0].direction]
    sizes = {"input": first.input_size, "hidden": first.hidden_size, "recurrent": first.recurrent_size}
    sizes["projected"] = first.recurrent_size

    def sizes_of(place: Place) -> dict[str, int]:
        return {**sizes, **_local_sizes(place.rule, len(directions))}

    shape = axes.shape(held[0].rule.axes, sizes_of(held[0]))

    def view(place: Place) -> Callable[[Array], Array]:
        return lambda array: axes.view(array, place.rule.axes, sizes_of(place), place.at, place.order)

    blocks = ((place, directions[place.direction].get(place.key)) for place in held)
    pieces = [Piece(block, view(place)) for place, block in blocks if block is not None]
    return assembled(shape, first.dtype, pieces)


@dataclass(frozen=True, slots=True)
class Found:
    """A set of tensors that looks like one layer: what stands before the names, and the layer's number."""

    layout: Layout
    prefix: str
    layer: str


def find(layout: Layout, names: Iterable[str]) -> tuple[Found, ...]:
    """Where tensors of this layout stand among ``names``: every prefix and layer number that has a kernel.

    Where the layout has a ``scope``, the prefix ends with it.
    """
    kernel = next(rule for rule in layout.tensors if rule.part == Part.KERNEL)
    gate = kernel.gates[0] if kernel.gates else None
    scope = rf"(?:.*[^A-Za-z0-9_])?{re.escape(layout.scope)}(?:_\d+)?[^A-Za-z0-9_]" if layout.scope else ".*?"
    held = dict.fromkeys(names)
    found: dict[tuple[str, str], set[str]] = {}
    for template in (kernel.name, kernel.also):
        if template is not None:
            regex = re.compile(rf"(?P<prefix>{scope})(?<![A-Za-z0-9])" + _pattern(template, layout))
            for name in held:
                if match := regex.fullmatch(name):
                    parts = match.groupdict()
                    ways = found.setdefault((match["prefix"], parts.get("layer") or "0"), set())
                    ways.add(parts.get("direction") or "")
    places: dict[tuple[str, str], None] = {}
    for (prefix, layer), ways in found.items():
        pair = [prefix + _expand(kernel.name, layout, gate, d, layer) for d in Direction]
        lonely = layout.alone is not None and layout.alone not in ways and not all(n in held for n in pair)
        if lonely and kernel.name.startswith("{direction}"):
            # A module that is called like one of a pair, and is none.
            for way in ways:
                places[prefix + way.removesuffix(layout.alone or ""), layer] = None
        else:
            places[prefix, layer] = None
    return tuple(Found(layout, prefix, layer) for prefix, layer in places)


def kernels(found: Found) -> frozenset[str]:
    """The full names that the kernels of a found layer may have."""
    both = (Direction.FORWARD, Direction.REVERSE)
    own = [p for ways in (both[:1], both) for p in places(found.layout, ways, found.layer)]
    names = {n for p in own if p.key[0] is Part.KERNEL for n in (p.tensor, p.also) if n is not None}
    return frozenset(found.prefix + name for name in names)


def _pattern(template: str, layout: Layout) -> str:
    """A regular expression for the names that a template stands for."""

    def either(texts: Iterable[str]) -> str:
        # The longest first: the empty text fits everywhere.
        return "|".join(re.escape(text) for text in sorted(set(texts), key=len, reverse=True))

    ways = [*layout.direction_spelling.values(), *([] if layout.alone is None else [layout.alone])]
    spelled = {
        "layer": r"(?P<layer>\d+)",
        "gate": f"(?:{either(layout.gate_spelling.values())})",
        "direction": f"(?P<direction>{either(ways)})",
        "side": f"(?:{either(layout.side_spelling.values())})",
    }
    pieces = re.split(r"\{(\w+)\}", template)
    return "".join(spelled[piece] if n % 2 else re.escape(piece) for n, piece in enumerate(pieces))


def unpack_operation(
    layout: Layout, tensors: Mapping[str, Lazy], known: Mapping[str, int] | None = None
) -> dict[str, Lazy]:
    """The canonical parts of a neighbour (Dense, Embedding, ...) as views of its tensors.

    Args:
        layout: a layout of an operation.
        tensors: the layer's tensors under the names of the layout; others are ignored.
        known: lengths of axes that the shapes leave open (how many heads make up an axis).

    Raises:
        BadFile: when a tensor is missing or has the wrong number of axes.
    """
    sizes: dict[str, int] = dict(known or {})
    result: dict[str, Lazy] = {}
    parts = operation_axes(layout.operation)
    for rule in layout.tensors:
        tensor = tensors.get(rule.name)
        if tensor is None:
            if rule.optional is None:
                raise BadFile(f"a tensor of layout {layout.name!r} is missing", place=rule.name)
            continue
        try:
            axes.solve(rule.axes, tensor.shape, sizes)
        except ValueError as error:
            raise BadFile(f"unexpected shape: {error}", place=rule.name) from error
        result[rule.part] = _moved(tensor, rule, dict(sizes), parts[rule.part])
    return result


def _moved(tensor: Lazy, rule: TensorRule, sizes: Mapping[str, int], order: tuple[str, ...]) -> Lazy:
    return tensor.view(lambda a: axes.view(a, rule.axes, sizes, {}, order), tuple(sizes[n] for n in order))


def pack_operation(layout: Layout, parts: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """The tensors of a neighbour from its canonical parts.

    Raises:
        ValueError: when a part has no place in the layout, or a required one is missing.
    """
    rules = {rule.part: rule for rule in layout.tensors}
    if unknown := [part for part in parts if part not in rules]:
        raise ValueError(f"layout {layout.name!r} has no place for {unknown[0]!r}")
    known = operation_axes(layout.operation)
    result: dict[str, Lazy] = {}
    for part, rule in rules.items():
        block = parts.get(part)
        if block is None:
            if rule.optional is None:
                raise ValueError(f"layout {layout.name!r} needs the part {part!r}")
            continue
        sizes = dict(zip(known[part], block.shape, strict=True))
        result[rule.name] = _packed(block, rule, sizes, known[part])
    return result


def _packed(block: Lazy, rule: TensorRule, sizes: Mapping[str, int], order: tuple[str, ...]) -> Lazy:
    piece = Piece(block, lambda array: axes.view(array, rule.axes, sizes, {}, order))
    return assembled(axes.shape(rule.axes, sizes), block.dtype, [piece])


def operation_axes(operation: str) -> Mapping[str, tuple[str, ...]]:
    """The parts of an operation, under its name in mapping files, and the axes of each."""
    return operation_class(operation).PARTS
