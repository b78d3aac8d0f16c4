"""ONNX operators that arrange, choose and join numbers, as what they do to arranged values.

Source: the operators' documentation at onnx.ai, opset 7 to 22.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from lstmconvert import onnx_proto
from lstmconvert.frameworks.onnx.arrangement import Atom, Axis, CannotArrange, Held, length, pieces, regrouped
from lstmconvert.frameworks.onnx.known import Size, partial, uniform
from lstmconvert.frameworks.onnx.neighbour_node import (
    Node,
    Reader,
    axis_places,
    batch_first_order,
    pattern,
    unpacked,
)
from lstmconvert.frameworks.onnx.ranges import RANGES, resized
from lstmconvert.frameworks.onnx.topology import NotUnderstood, batch_first
from lstmconvert.operations import (
    Cast,
    Concatenate,
    Embedding,
    Identity,
    Noise,
    Reshape,
    Reverse,
)
from lstmconvert.tensors import shortest_decimal


def _identity(node: Node) -> list[Held]:
    return [node.held(0)]


def _transpose(node: Node) -> list[Held]:
    x = node.held(0)
    order = node.attributes.get("perm") or tuple(range(x.rank))[::-1]
    if sorted(order) != list(range(x.rank)):
        raise NotUnderstood(f"it permutes {x.rank} axes by {order}")
    return [x.arranged(x.axes[n] for n in order)]


def _squeeze(node: Node) -> list[Held]:
    x = node.held(0)
    axes = node.integers("axes", 1)
    if axes is None:
        if any(length(axis) is None for axis in x.axes):
            raise NotUnderstood("which axes it drops depends on sizes that are free")
        axes = tuple(n for n, axis in enumerate(x.axes) if length(axis) == 1)
    places = axis_places(axes, x.rank)
    if any(length(x.axes[n]) not in (1, None) for n in places):
        raise NotUnderstood(f"it drops axes {tuple(axes)}, which are longer than one")
    if any(length(x.axes[n]) is None for n in places):
        raise NotUnderstood("it drops an axis of free size")
    return [x.arranged(axis for n, axis in enumerate(x.axes) if n not in places)]


def _unsqueeze(node: Node) -> list[Held]:
    x = node.held(0)
    axes = node.integers("axes", 1) or ()
    result = list(x.axes)
    for place in axis_places(axes, x.rank + len(axes)):
        result.insert(place, ())
    return [x.arranged(result)]


def _reshape(node: Node) -> list[Held]:
    x = node.held(0)
    target = partial(node.scope.known(node.inputs[1])) if node.is_given(1) else None
    if target is None or target.scalar:
        raise NotUnderstood("its shape is not known")
    keeps_zero = node.attributes.get("allowzero", 0)
    sizes = [
        x.sizes[n] if size == 0 and not keeps_zero and n < x.rank else size
        for n, size in enumerate(target.values)
    ]
    try:
        return [regrouped(x, sizes)]
    except CannotArrange:
        behind = [size for size in sizes[1:] if isinstance(size, int)]
        if sizes[0] not in (x.sizes[0], -1) or len(behind) < len(sizes) - 1 or x.axes[0] != x.logical[0]:
            raise
        if sizes[0] == -1 and (-1 in behind or math.prod(behind) != _behind(x)):
            raise
    return [_shaped(node, x, behind)]


def _behind(x: Held) -> int | None:
    """The number of elements behind the batch."""
    sizes = [length(axis) for axis in x.axes[1:]]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _shaped(node: Node, x: Held, sizes: Sequence[int]) -> Held:
    """The numbers behind the batch in another shape that is not made of the axes' factors."""
    whole = _behind(x)
    if whole is None:
        raise NotUnderstood("it mixes axes of free size")
    rest = math.prod(size for size in sizes if size != -1)
    known = [whole // rest if size == -1 and rest else size for size in sizes]
    if min(known) < 1 or math.prod(known) != whole:
        raise NotUnderstood("its shape does not fit")
    x = node.topology.arranged(x, x.axes, node.name)
    axes = (x.axes[0], *(node.topology.axis(size) for size in known))
    return Held.plain(node.call(Reshape(tuple(known)), [x]), axes, x.dtype)


def _flatten(node: Node) -> list[Held]:
    x = node.held(0)
    axis = node.attributes.get("axis", 1)
    axis = axis + x.rank if axis < 0 else axis
    front = tuple(atom for part in x.axes[:axis] for atom in part)
    back = tuple(atom for part in x.axes[axis:] for atom in part)
    return [x.arranged([front, back])]


def _dropout(node: Node) -> list[Held]:
    if node.constant(2) is not None and bool(node.weights(2, "mode").read()):
        raise NotUnderstood("it drops values at inference too")
    given = node.constant(1)
    rate = node.attributes.get("ratio", 0.5) if given is None else float(given.read().reshape(()))
    x = node.held(0)
    return [node.same(Identity(Noise.DROPOUT, shortest_decimal(rate)), x)]


def _cast(node: Node) -> list[Held]:
    x = node.held(0)
    dtype = onnx_proto.dtype_of(node.attributes["to"]).name
    if dtype == x.dtype:
        return [x]
    after = replace(node.same(Cast(dtype), x), dtype=dtype)
    node.topology.note_cast(x, after)
    return [after]


def _gather(node: Node) -> list[Held]:
    table, index = node.constant(0), node.constant(1)
    axis = node.attributes.get("axis", 0)
    if table is not None and index is None:
        ids = node.held(1)
        if len(table.shape) != 2 or axis not in (0, -2):
            raise NotUnderstood("it looks up something else than rows of a table")
        if node.topology.rows(ids) not in (None, table.shape[0]):
            raise NotUnderstood("its negative indices count from another end than the table's")
        weights = unpacked("embedding", {"embeddings": table})
        value = node.call(Embedding(), [ids], weights)
        features: Axis = (Atom(table.shape[1]),)
        return [Held(value, (*ids.logical, features), (*ids.axes, features), table.dtype.name)]
    if index is None or index.size != 1:
        raise NotUnderstood("it takes several positions, or ones that are not constant")
    x = node.held(0)
    place = axis_places([axis], x.rank)[0]
    chosen = node.topology.select(x, place, int(index.read().reshape(())), node.name)
    if not index.shape:
        return [chosen]
    units: list[Axis] = [()] * len(index.shape)
    return [chosen.arranged([*chosen.axes[:place], *units, *chosen.axes[place:]])]


def _slice(node: Node) -> list[Held]:
    x = node.held(0)
    starts, ends = node.integers("starts", 1), node.integers("ends", 2)
    if starts is None or ends is None:
        raise NotUnderstood("it has no bounds")
    axes = node.integers("axes", 3) or tuple(range(len(starts)))
    steps = (node.integers("steps", 4) if node.is_given(4) else None) or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise NotUnderstood("its bounds are not as many as its axes")
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _cut(node, x, axis_places([axis], x.rank)[0], start, end, step)
    return [x]


def _cut(node: Node, x: Held, axis: int, start: int, end: int, step: int) -> Held:
    size = length(x.axes[axis])
    if size is not None and step == 1:
        start, end, _ = slice(start, end).indices(size)
        if (start, end) == (0, size):
            return x
        if start >= end:
            raise NotUnderstood("it takes nothing")
    if step == 1 and (end - start == 1 or (start == -1 and end >= (1 << 31) - 1)):
        chosen = node.topology.select(x, axis, start, node.name)
        return chosen.arranged([*chosen.axes[:axis], (), *chosen.axes[axis:]])
    parts = pieces(x, axis)
    if parts is not None and step == 1:
        return _pieces(axis, parts[start:end])
    if step == -1 and start in (-1, size) and end < -(1 << 31) + 2:
        turned = _place_behind_batch(node, x, axis)
        return node.same(Reverse(turned.logical.index(x.axes[axis])), turned)
    if step != 1:
        raise NotUnderstood(f"it takes every {step}th position")
    if axis == 0 and size is not None and end - start <= 64 and x.axes[0] == x.logical[0]:
        # Rows of a tensor of states: each is a value of its own.
        rows = [node.topology.select(x, 0, n, f"{node.name}/{n}") for n in range(start, end)]
        return _pieces(0, rows)
    if size is not None:
        before, after = start, size - end
    elif start >= 0 and (end < 0 or end >= (1 << 31) - 1):
        before, after = start, max(-end, 0)
    else:
        raise NotUnderstood(f"it takes positions {start} to {end} of an axis of free size")
    return resized(node, x, axis, -before, -after)


def _reverse_sequence(node: Node) -> list[Held]:
    """A flip of an axis, where every sequence is as long as the axis."""
    node.only("time_axis", "batch_axis")
    x = node.held(0)
    axis = axis_places([node.attributes.get("time_axis", 0)], x.rank)[0]
    if x.axes[axis] == x.logical[0] or not _lasts(node, x.sizes[axis]):
        raise NotUnderstood("its sequences have lengths of their own")
    turned = _place_behind_batch(node, x, axis)
    return [node.same(Reverse(turned.logical.index(x.axes[axis])), turned)]


def _lasts(node: Node, size: int | Size) -> bool:
    """Whether the lengths are all the length of an axis: a broadcast of it."""
    known = node.scope.known(node.inputs[1])
    number = uniform(known)
    if number is not None:
        return bool(number == size)
    maker = node.topology.flow(node.scope).maker(node.inputs[1])
    if maker is None or maker[0].op_type != "Expand":
        return False
    given = partial(node.scope.known(maker[0].input[0]))
    return given is not None and given.values == (size,)


def _pieces(axis: int, parts: Sequence[Held]) -> Held:
    """A tensor that is known by its positions on one axis only."""
    if not parts:
        raise NotUnderstood("it takes nothing")
    atom = Atom(len(parts))
    axes = [*parts[0].axes[:axis], (atom,), *parts[0].axes[axis:]]
    return Held("", parts[0].logical, tuple(axes), parts[0].dtype, ((atom, tuple(parts)),))


def _place_behind_batch(node: Node, x: Held, axis: int) -> Held:
    """The tensor as a value that has the axis as one of its own, not the first."""
    taken = x.axes[axis]
    if not taken:
        raise NotUnderstood("it acts on an axis of length one")
    if taken in x.logical[1:]:
        return x
    if taken == x.logical[0] and len(x.logical) > 2:
        turned = [x.logical[1], taken, *x.logical[2:]]
        return node.topology.arranged(x, turned, node.name)
    return node.topology.arranged(x, batch_first(x, x.axes), node.name)


def _split(node: Node) -> list[Held]:
    x = node.held(0)
    axis = axis_places([node.attributes.get("axis", 0)], x.rank)[0]
    size = length(x.axes[axis])
    sizes = node.integers("split", 1)
    if size is None or (sizes is None and size % node.outputs):
        raise NotUnderstood("it splits an axis of free size")
    sizes = sizes or (size // node.outputs,) * node.outputs
    bounds = np.cumsum([0, *sizes])
    return [
        _cut(replace(node, name=f"{node.name}/{n}"), x, axis, int(bounds[n]), int(bounds[n + 1]), 1)
        for n in range(len(sizes))
    ]


def _concat(node: Node) -> list[Held]:
    parts = [node.held(n) for n in range(len(node.inputs))]
    if len(parts) == 1:
        return parts
    axis = axis_places([node.attributes.get("axis", 1)], parts[0].rank)[0]
    if len({part.rank for part in parts}) > 1:
        raise NotUnderstood("its inputs have different numbers of axes")
    whole = node.topology.joined_directions(parts, axis) if len(parts) == 2 else None
    if whole is not None:
        return [whole]
    rows = [row for part in parts for row in pieces(part, axis) or (None,)]
    held = [row for row in rows if row is not None]
    if len(held) == len(rows) and len({pattern(row) for row in held}) == 1:
        return [_stacked(node, parts, axis, held)]
    return [_joined(node, parts, axis)]


def _stacked(node: Node, parts: Sequence[Held], axis: int, rows: Sequence[Held]) -> Held:
    """Rows stacked on a new axis; whoever takes one of them takes it as it is."""
    try:
        whole = _joined(node, parts, axis)
    except (NotUnderstood, CannotArrange):
        return _pieces(axis, rows)
    (atom,) = whole.axes[axis]
    return replace(whole, parts=((atom, tuple(rows)),))


def _joined(node: Node, parts: Sequence[Held], axis: int) -> Held:
    """The tensors one after the other on an axis, as a value."""
    first = parts[0]
    lengths = [length(part.axes[axis]) for part in parts]
    total = None if None in lengths else sum(n for n in lengths if n is not None)
    joined: Axis = (Atom(total),)
    axes = (*first.axes[:axis], joined, *first.axes[axis + 1 :])
    if all(pattern(part) == pattern(first) for part in parts) and first.axes[axis] in first.logical[1:]:
        place = first.logical.index(first.axes[axis])
        value = node.call(_joined_on(place, first, len(first.logical)), parts)
        logical = (*first.logical[:place], joined, *first.logical[place + 1 :])
        return Held(value, logical, axes, first.dtype)
    order = batch_first_order(first)
    turned = [node.topology.arranged(part, [part.axes[n] for n in order], node.name) for part in parts]
    place = order.index(axis)
    if place == 0:
        raise NotUnderstood("it joins batches")
    value = node.call(_joined_on(place, first, first.rank), turned)
    return Held(value, tuple(axes[n] for n in order), axes, first.dtype)


def _joined_on(place: int, first: Held, rank: int) -> Concatenate:
    """Features are the last axis; a mask has steps only, and time is axis 1."""
    return Concatenate(-1 if place == rank - 1 and first.dtype != "bool" else place)


MOVING: Mapping[str, Reader] = MappingProxyType(
    {
        "Identity": _identity,
        "Transpose": _transpose,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Dropout": _dropout,
        "Cast": _cast,
        "Gather": _gather,
        "Slice": _slice,
        "ReverseSequence": _reverse_sequence,
        "Split": _split,
        "Concat": _concat,
        **RANGES,
    }
)
"""The operators of this module."""
