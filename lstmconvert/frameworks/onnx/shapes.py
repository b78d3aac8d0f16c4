"""Operations that move, cut, join or repeat values without computing anything."""

from __future__ import annotations

import math
from dataclasses import replace

from lstmconvert.frameworks.onnx.graph import Dimension, Value, in_order
from lstmconvert.frameworks.onnx.use import Use, known
from lstmconvert.operations import (
    Concatenate,
    Crop,
    Repeat,
    Reshape,
    Reverse,
    Select,
    Transpose,
    UpSample,
    ZeroPad,
)


def flatten(use: Use) -> Value:
    """All axes but the batch become one."""
    x = use.graph.in_logical_order(use.x)
    if x.rank == 2:
        return x
    sizes = [known(size) for size in x.shape[1:]]
    total = None if None in sizes else math.prod(size for size in sizes if size is not None)
    (name,) = use.graph.add_main("Flatten", [x.name], {"axis": 1})
    return use.value(name, (x.shape[0], total), x.dtype)


def reshape(use: Use, operation: Reshape) -> Value:
    """Another shape behind the batch."""
    x = use.graph.in_logical_order(use.x)
    (name,) = use.graph.add_main("Reshape", [x.name, use.graph.integers(0, *operation.shape)])
    sizes = [known(size) for size in x.shape[1:]]
    shape: list[Dimension] = [None if size == -1 else size for size in operation.shape]
    if None in shape and None not in sizes:
        given = math.prod(size for size in operation.shape if size != -1)
        shape[shape.index(None)] = math.prod(size for size in sizes if size is not None) // given
    return use.value(name, (x.shape[0], *shape), x.dtype)


def transpose(use: Use, operation: Transpose) -> Value:
    """No node: the value only counts its axes differently from here on."""
    x, permutation = use.x, operation.permutation
    shape = tuple(x.shape[axis] for axis in permutation)
    return replace(x, shape=shape, order=tuple(permutation.index(axis) for axis in x.order))


def repeat(use: Use, operation: Repeat) -> Value:
    """(batch, features) as every one of ``count`` steps, time-major, since recurrent layers follow."""
    x, graph = use.graph.in_logical_order(use.x), use.graph
    column = use.add("Unsqueeze", x.name, graph.integers(0))
    (name,) = graph.add_main("Expand", [column, graph.integers(operation.count, 1, 1)])
    return Value(name, (x.shape[0], operation.count, x.shape[1]), x.dtype, (1, 0, 2))


def crop(use: Use, operation: Crop) -> Value:
    """Slice."""
    x, graph = use.x, use.graph
    cuts = [(axis, *amount) for axis, amount in enumerate(operation.amounts, 1) if any(amount)]
    if not cuts:
        return x
    starts = graph.integers(*(before for _, before, _ in cuts))
    ends = graph.integers(*(-after if after else 2**62 for _, _, after in cuts))
    axes = graph.integers(*(x.axis(axis) for axis, _, _ in cuts))
    (name,) = graph.add_main("Slice", [x.name, starts, ends, axes])
    shape = list(x.shape)
    for axis, before, after in cuts:
        size = shape[axis]
        shape[axis] = max(size - before - after, 0) if isinstance(size, int) else None
    return replace(x, name=name, shape=tuple(shape))


def zero_pad(use: Use, operation: ZeroPad) -> Value:
    """Pad."""
    x = use.x
    before, after = [0] * x.rank, [0] * x.rank
    shape = list(x.shape)
    for axis, (first, last) in enumerate(operation.amounts, 1):
        before[x.axis(axis)], after[x.axis(axis)] = first, last
        size = shape[axis]
        shape[axis] = size + first + last if isinstance(size, int) else None
    (name,) = use.graph.add_main("Pad", [x.name, use.graph.integers(*before, *after)])
    return replace(x, name=name, shape=tuple(shape))


def up_sample(use: Use, operation: UpSample) -> Value:
    """Every step several times: an axis of its own for the copies, then joined with the step's."""
    x, graph = use.graph.in_logical_order(use.x), use.graph
    for axis, factor in enumerate(operation.factors, 1):
        if factor == 1:
            continue
        sizes = [
            graph.integers(n) if isinstance(n, int) else graph.size(x.name, a) for a, n in enumerate(x.shape)
        ]
        ones = [1] * (x.rank + 1)
        ones[axis + 1] = factor
        copies = use.add(
            "Expand", use.add("Unsqueeze", x.name, graph.integers(axis + 1)), graph.integers(*ones)
        )
        whole = [*sizes[:axis], use.add("Mul", sizes[axis], graph.integers(factor)), *sizes[axis + 1 :]]
        name = use.add("Reshape", copies, graph.add("Concat", whole, {"axis": 0}))
        size = x.shape[axis]
        longer = size * factor if isinstance(size, int) else None
        x = replace(x, name=name, shape=(*x.shape[:axis], longer, *x.shape[axis + 1 :]))
    return x


def reverse(use: Use, operation: Reverse) -> Value:
    """Slice with a step of -1."""
    return use.x.named(use.graph.flipped(use.x.name, use.x.axis(operation.axis)))


def select(use: Use, operation: Select) -> Value:
    """Gather of one position."""
    x, axis = use.x, operation.axis % use.x.rank
    inputs = [x.name, use.graph.integer(operation.index)]
    (name,) = use.graph.add_main("Gather", inputs, {"axis": x.axis(axis)})
    order = tuple(a - (a > axis) for a in x.order if a != axis)
    return Value(name, (*x.shape[:axis], *x.shape[axis + 1 :]), x.dtype, order)


def concatenate(use: Use, operation: Concatenate) -> Value:
    """Concat, in the order in which the first input lies."""
    values = _alike(use)
    first = values[0]
    axis = operation.axis % first.rank
    names = [use.graph.ordered(value, first.order) for value in values]
    (name,) = use.graph.add_main("Concat", names, {"axis": first.axis(axis)})
    sizes = [known(value.shape[axis]) for value in values]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    shape = list(first.shape)
    for other in values[1:]:
        shape = [
            a if isinstance(a, int) or not isinstance(b, int) else b
            for a, b in zip(shape, other.shape, strict=True)
        ]
    shape[axis] = total
    return replace(first, name=name, shape=tuple(shape))


def _alike(use: Use) -> tuple[Value, ...]:
    """The inputs in one dtype."""
    if len({value.dtype for value in use.inputs}) == 1:
        return use.inputs
    return use.floats()


def same_rank(use: Use, values: tuple[Value, ...]) -> tuple[Value, ...]:
    """The values with axes of length one behind the batch until all have as many (Keras's merging layers)."""
    rank = max(value.rank for value in values)
    result = []
    for value in values:
        missing = rank - value.rank
        if missing:
            logical = use.graph.in_logical_order(value)
            name = use.add("Unsqueeze", logical.name, use.graph.integers(*range(1, missing + 1)))
            shape = (value.shape[0], *[1] * missing, *value.shape[1:])
            value = Value(name, shape, value.dtype, in_order(rank))
        result.append(value)
    return tuple(result)


def broadcast(shapes: tuple[tuple[Dimension, ...], ...]) -> tuple[Dimension, ...]:
    """The shape that shapes of equal rank have together."""
    result: list[Dimension] = []
    for sizes in zip(*shapes, strict=True):
        others = [size for size in sizes if size != 1]
        fixed = [size for size in others if isinstance(size, int)]
        named = [size for size in others if size is not None]
        result.append(fixed[0] if fixed else named[0] if named else None if others else 1)
    return tuple(result)
