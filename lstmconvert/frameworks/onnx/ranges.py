"""ONNX operators that make an axis longer or shorter: ranges of positions, zeros around them, copies.

Source: the operators' documentation at onnx.ai, opset 7 to 22.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lstmconvert.frameworks.onnx.arrangement import Atom, Axis, Held, length
from lstmconvert.frameworks.onnx.known import Size, partial
from lstmconvert.frameworks.onnx.neighbour_node import Node, Reader
from lstmconvert.frameworks.onnx.topology import NotUnderstood, batch_first
from lstmconvert.operations import Crop, Operation, Repeat, UpSample, ZeroPad


def resized(node: Node, x: Held, axis: int, before: int, after: int) -> Held:
    """The tensor with so many positions more (zeros) or, where negative, less at the ends of an axis."""
    if (before, after) == (0, 0):
        return x
    if before * after < 0:
        return resized(node, resized(node, x, axis, before, 0), axis, 0, after)
    taken = x.axes[axis]
    held = _between(node, x, taken)
    place = held.logical.index(taken)
    amounts = [(0, 0)] * (len(held.logical) - 2)
    amounts[place - 1] = abs(before), abs(after)
    operation: Operation = ZeroPad(tuple(amounts)) if before + after > 0 else Crop(tuple(amounts))
    size = length(taken)
    new: Axis = (Atom(None if size is None else size + before + after),)
    value = node.call(operation, [held])

    def changed(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(new if a == taken else a for a in axes)

    return Held(value, changed(held.logical), changed(held.axes), x.dtype)


def _between(node: Node, x: Held, taken: Axis) -> Held:
    """The tensor as a value with the axis between the batch and the last one."""
    if not taken:
        raise NotUnderstood("it acts on an axis of length one")
    if taken not in x.logical:
        x = node.topology.arranged(x, batch_first(x, x.axes), node.name)
    place = x.logical.index(taken)
    if place == 0:
        raise NotUnderstood("it acts on the batch")
    if place < len(x.logical) - 1:
        return x
    others = [axis for axis in x.logical[1:-1] if axis] or [()]
    return node.topology.arranged(x, [x.logical[0], taken, *others], node.name)


def _pad(node: Node) -> list[Held]:
    node.only("mode", "pads", "value")
    if node.attributes.get("mode", "constant") != "constant":
        raise NotUnderstood("it pads with something else than a number")
    value = float(node.weights(2, "value").read().reshape(())) if node.is_given(2) else 0.0
    if node.attributes.get("value", value) != 0.0:
        raise NotUnderstood("it pads with something else than zeros")
    x = node.held(0)
    pads = node.integers("pads", 1) or ()
    axes = tuple(range(x.rank))
    if node.is_given(3):
        axes = tuple(int(n) % x.rank for n in node.weights(3, "axes").read().reshape(-1))
    if len(pads) != 2 * len(axes):
        raise NotUnderstood("its amounts are not two for each axis")
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        x = resized(node, x, axis, before, after)
    return [x]


def _tile(node: Node) -> list[Held]:
    x = node.held(0)
    counts = node.integers("repeats", 1)
    if counts is None or len(counts) != x.rank:
        raise NotUnderstood("how often it repeats is not known")
    if any(n != 1 and length(axis) != 1 for n, axis in zip(counts, x.axes, strict=True)):
        raise NotUnderstood("it repeats an axis as a whole")
    return _repeated(node, x, counts)


def _expand(node: Node) -> list[Held]:
    x = node.held(0)
    target = partial(node.scope.known(node.inputs[1])) if node.is_given(1) else None
    if target is None or target.scalar or len(target.values) > x.rank:
        raise NotUnderstood("its shape is not known")
    return _repeated(node, x, (*[1] * (x.rank - len(target.values)), *target.values))


def _repeated(node: Node, x: Held, wanted: Sequence[int | Size | None]) -> list[Held]:
    """The tensor with axes of length one as long as is wanted; one is left as it is."""
    new = [n for n, size in enumerate(wanted) if length(x.axes[n]) == 1 and size != 1]
    pairs = enumerate(zip(wanted, x.sizes, strict=True))
    same = all(size in (1, own) for n, (size, own) in pairs if n not in new)
    if not new and same:
        return [x]
    count = wanted[new[0]] if len(new) == 1 else None
    if not same or not isinstance(count, int):
        raise NotUnderstood("it repeats several axes, or one a number of times that is not known")
    (axis,) = new
    copies: Axis = (Atom(count),)
    axes = (*x.axes[:axis], copies, *x.axes[axis + 1 :])
    lived = [a for a in x.axes if a]
    if len(lived) == 2 and x.logical[0] in lived:
        batch = x.logical[0]
        (features,) = (a for a in lived if a != batch)
        plain = node.topology.arranged(x, [batch, features], node.name)
        return [Held(node.call(Repeat(count), [plain]), (batch, copies, features), axes, x.dtype)]
    repeated = x.axes[axis - 1] if axis else ()
    if repeated not in x.logical[1:-1]:
        raise NotUnderstood("it repeats something else than the steps of an axis, one by one")
    place = x.logical.index(repeated)
    factors = [1] * (len(x.logical) - 2)
    factors[place - 1] = count
    value = node.call(UpSample(tuple(factors)), [x])
    logical = (*x.logical[:place], (*repeated, *copies), *x.logical[place + 1 :])
    return [Held(value, logical, axes, x.dtype)]


RANGES: Mapping[str, Reader] = MappingProxyType({"Pad": _pad, "Expand": _expand, "Tile": _tile})
"""The operators of this module."""
