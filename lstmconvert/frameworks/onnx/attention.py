"""Attention and products of two sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lstmconvert.frameworks.onnx.graph import Value
from lstmconvert.frameworks.onnx.use import Use
from lstmconvert.operations import AdditiveAttention, Attention, Dot, MaskedRow, MultiHeadAttention

_FAR = 1e9
"""How far down masked scores are put, as in Keras; 65504 is the largest number of float16."""
_FAR_FLOAT16 = 65504.0
_NORM_FLOOR = 1e-7
"""Keras divides by no smaller a norm."""


def dot(use: Use, operation: Dot) -> Value:
    """Batched MatMul over one axis of each input."""
    left, right = (use.logical(value) for value in use.inputs)
    axes = operation.axes[0] % left.rank, operation.axes[1] % right.rank
    if not {left.rank, right.rank} <= {2, 3}:
        raise use.refused("it takes inputs of two or three axes")
    if operation.normalize:
        left, right = _unit(use, left, axes[0]), _unit(use, right, axes[1])
    graph = use.graph
    a, b = left.name, right.name
    if left.rank == 2:
        a = use.add("Unsqueeze", a, graph.integers(1))
    elif axes[0] == 1:
        a = graph.transpose(a, (0, 2, 1))
    if right.rank == 2:
        b = use.add("Unsqueeze", b, graph.integers(2))
    elif axes[1] == 2:
        b = graph.transpose(b, (0, 2, 1))
    (name,) = graph.add_main("MatMul", [a, b])
    rows = [size for axis, size in enumerate(left.shape) if axis not in (0, axes[0])]
    columns = [size for axis, size in enumerate(right.shape) if axis not in (0, axes[1])]
    if not rows and not columns:
        return use.value(use.add("Squeeze", name, graph.integers(2)), (left.shape[0], 1))
    unit = [axis for axis, sizes in ((1, rows), (2, columns)) if not sizes]
    if unit:
        name = use.add("Squeeze", name, graph.integers(*unit))
    return use.value(name, (left.shape[0], *rows, *columns))


def _unit(use: Use, value: Value, axis: int) -> Value:
    square = use.graph.reduce("ReduceSum", use.add("Mul", value.name, value.name), [axis], keep_axes=True)
    inverse = use.add("Min", use.add("Reciprocal", use.add("Sqrt", square)), use.number(1 / _NORM_FLOOR))
    return value.named(use.add("Mul", value.name, inverse))


def attention(use: Use, operation: Attention) -> tuple[Value, ...]:
    """Scores by products, or by ``concat`` through tanh of every pair's sum."""
    query, value, key, masks = _taken_apart(use, operation.masks)
    held = use.tensors(operation)
    if operation.concat:
        sums = _pairs(use, query, key)
        if "scale" in held:
            sums = use.add("Mul", held["scale"], sums)
        scores = use.graph.reduce("ReduceSum", use.add("Tanh", sums), [-1], keep_axes=False)
        scores = use.add("Mul", held["concat_score_weight"], scores)
    else:
        scores = use.add("MatMul", query.name, use.graph.transpose(key.name, (0, 2, 1)))
        if "scale" in held:
            scores = use.add("Mul", scores, held["scale"])
    results = _attended(use, query, value, scores, masks, causal=operation.causal)
    return results if operation.return_scores else results[:1]


def additive_attention(use: Use, operation: AdditiveAttention) -> tuple[Value, ...]:
    """Scores by tanh of every pair's sum (Bahdanau)."""
    query, value, key, masks = _taken_apart(use, operation.masks)
    held = use.tensors(operation)
    terms = use.add("Tanh", _pairs(use, query, key))
    if "scale" in held:
        terms = use.add("Mul", held["scale"], terms)
    scores = use.graph.reduce("ReduceSum", terms, [-1], keep_axes=False)
    results = _attended(use, query, value, scores, masks, causal=operation.causal)
    return results if operation.return_scores else results[:1]


def _taken_apart(use: Use, names: tuple[str, ...]) -> tuple[Value, Value, Value, Mapping[str, str]]:
    """Query, value, key (the value where it is not given), and the masks that follow them."""
    count = len(use.inputs) - len(names)
    if count not in (2, 3):
        raise use.refused(f"it takes query, value and perhaps key, not {count} inputs")
    values = [use.logical(value) for value in use.inputs[:count]]
    masks = [use.graph.ordered(mask) for mask in use.inputs[count:]]
    return values[0], values[1], values[-1], dict(zip(names, masks, strict=True))


def _pairs(use: Use, query: Value, key: Value) -> str:
    """query + key of every pair of steps (batch, query steps, key steps, features)."""
    return use.add(
        "Add",
        use.add("Unsqueeze", query.name, use.graph.integers(2)),
        use.add("Unsqueeze", key.name, use.graph.integers(1)),
    )


def _attended(
    use: Use, query: Value, value: Value, scores: str, masks: Mapping[str, str], *, causal: bool
) -> tuple[Value, Value]:
    """The mixed values, rows of masked queries zero, and the weights."""
    graph = use.graph
    in_scores = {role: mask for role, mask in masks.items() if role != "query"}
    allowed = _allowed(use, query, value, in_scores, causal=causal)
    weights = graph.add("Softmax", [_far_where_masked(use, allowed, scores)], {"axis": -1})
    (name,) = graph.add_main("MatMul", [weights, value.name])
    if "query" in masks:
        rows = use.add("Unsqueeze", masks["query"], graph.integers(2))
        name = use.add("Where", rows, name, use.number(0))
    return (
        use.value(name, (*query.shape[:2], value.shape[2])),
        use.value(weights, (*query.shape[:2], value.shape[1])),
    )


def _allowed(use: Use, query: Value, value: Value, masks: Mapping[str, str], *, causal: bool) -> str | None:
    """Which scores count (batch or 1, query steps or 1, value steps or 1)."""
    graph = use.graph
    axis = {"query": 2, "value": 1, "key": 1}
    each = [
        mask if role == "attention" else use.add("Unsqueeze", mask, graph.integers(axis[role]))
        for role, mask in masks.items()
    ]
    if causal:
        column = use.add("Unsqueeze", _steps(use, query.name), graph.integers(1))
        lower = use.add("GreaterOrEqual", column, _steps(use, value.name))
        each.append(use.add("Unsqueeze", lower, graph.integers(0)))
    if not each:
        return None
    allowed, *others = each
    for other in others:
        allowed = use.add("And", allowed, other)
    return allowed


def _far_where_masked(use: Use, allowed: str | None, scores: str) -> str:
    """The scores with those that do not count so far down that nothing is left of them."""
    if allowed is None:
        return scores
    far = _FAR_FLOAT16 if use.dtype == "float16" else _FAR
    return use.add("Where", allowed, scores, use.number(-far))


def _steps(use: Use, tensor: str) -> str:
    size = use.add("Squeeze", use.graph.size(tensor, 1))
    return use.add("Range", use.graph.integer(0), size, use.graph.integer(1))


def multi_head_attention(use: Use, operation: MultiHeadAttention) -> tuple[Value, ...]:
    """Projections to heads, attention in every head, and the projection of all heads together."""
    query, value, key, masks = _taken_apart(use, operation.masks)
    held, graph = use.tensors(operation), use.graph
    heads, size, _ = use.weights["query_kernel"].shape

    def split(x: Value, part: str) -> str:
        """(batch, steps, features) to (batch, head, steps, size)."""
        flat = use.add("MatMul", x.name, held[f"{part}_kernel"])
        if f"{part}_bias" in held:
            flat = use.add("Add", flat, held[f"{part}_bias"])
        return graph.transpose(use.add("Reshape", flat, graph.integers(0, 0, heads, -1)), (0, 2, 1, 3))

    scaled = use.add("Mul", split(query, "query"), use.number(1.0 / math.sqrt(size)))
    scores = use.add("MatMul", scaled, graph.transpose(split(key, "key"), (0, 1, 3, 2)))
    allowed = _allowed(use, query, value, masks, causal=operation.causal)
    if allowed is not None:
        allowed = use.add("Unsqueeze", allowed, graph.integers(1))
    weights = graph.add("Softmax", [_far_where_masked(use, allowed, scores)], {"axis": -1})
    if allowed is not None and operation.masked_row is MaskedRow.ZERO:
        weights = use.add("Where", allowed, weights, use.number(0))
    mixed = use.add("MatMul", weights, split(value, "value"))
    joined = use.add("Reshape", graph.transpose(mixed, (0, 2, 1, 3)), graph.integers(0, 0, -1))
    (name,) = graph.add_main("MatMul", [joined, held["output_kernel"]])
    if "output_bias" in held:
        name = use.add("Add", name, held["output_bias"])
    result = use.value(name, (*query.shape[:2], use.weights["output_kernel"].shape[0]))
    if not operation.return_scores:
        return (result,)
    return result, use.value(weights, (query.shape[0], heads, query.shape[1], value.shape[1]))
