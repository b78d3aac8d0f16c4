"""Recurrent nodes that are fed the valid steps of masked sequences, as layers that heed a mask.

The nodes that ``masks`` writes around a recurrent node are looked for as patterns: what counts the valid
steps, what moves them to the front, and what moves the outputs back.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from lstmconvert.canonical import MaskedOutput
from lstmconvert.frameworks.onnx import masks
from lstmconvert.frameworks.onnx.graph import Graph, Value, in_order
from lstmconvert.frameworks.onnx.patterns import Flow, Match, Pattern, match
from lstmconvert.gates import Direction
from lstmconvert.values import dataclass

MASK, X, FINAL, INITIAL = "mask", "x", "final", "initial"
_RESERVED = (MASK, X, FINAL, INITIAL)


@dataclass(frozen=True, slots=True)
class Fed:
    """What a masked node is fed.

    Attributes:
        mask: the tensor that is true at valid steps (batch, time).
        x: the tensor that has all the steps; empty where the valid ones were in front already.
        time_major: whether ``x`` is.
    """

    mask: str
    x: str
    time_major: bool


def _graph(opset: int) -> Graph:
    graph = Graph(opset, _RESERVED)
    graph.enter("layer")
    return graph


def _mask() -> Value:
    return Value(MASK, (None, None), "bool", (0, 1))


@cache
def _lengths(opset: int) -> Pattern:
    graph = _graph(opset)
    return Pattern.of(graph, [masks.sequence_lens(graph, masks.compaction(graph, _mask()))])


@cache
def _compacted(opset: int, width: int, *, time_major: bool) -> Pattern:
    graph = _graph(opset)
    order = masks.TIME_MAJOR if time_major else masks.BATCH_MAJOR
    steps = masks.compaction(graph, _mask())
    return Pattern.of(graph, [masks.compacted(graph, steps, Value(X, (None, None, width), "float32", order))])


def mask_of(flow: Flow, opset: int, lengths: str) -> str | None:
    """The mask whose valid steps ``lengths`` counts; ``None`` where it is something else."""
    found = match(_lengths(opset), flow, lengths)
    return None if found is None else found.tensors[MASK]


def fed(flow: Flow, opset: int, mask: str, x: str, width: int) -> Fed:
    """What a node is fed whose lengths are those of ``mask``."""
    for time_major in (True, False):
        pattern = _compacted(opset, width, time_major=time_major)
        found = match(pattern, flow, x, bound={MASK: mask})
        if found is not None:
            return Fed(mask, found.tensors[X], time_major)
    return Fed(mask, "", time_major=True)


@dataclass(frozen=True, slots=True)
class Spreading:
    """The way in which compacted outputs are moved back.

    Attributes:
        kind: what stands at masked steps.
        direction: in which the output is held; it does not matter to zeros.
        visited: whether the steps are turned around as well.
        batch_major: whether the result is (batch, time, features), else time comes first.
    """

    kind: MaskedOutput
    direction: Direction
    visited: bool
    batch_major: bool


def _spreadings() -> Iterator[Spreading]:
    for batch_major in (False, True):
        for visited in (False, True):
            yield Spreading(MaskedOutput.ZERO, Direction.FORWARD, visited, batch_major)
            for direction in (Direction.FORWARD, Direction.REVERSE):
                yield Spreading(MaskedOutput.HOLD, direction, visited, batch_major)


@cache
def _spread(opset: int, width: int, spreading: Spreading) -> Pattern:
    graph = _graph(opset)
    steps = masks.compaction(graph, _mask())
    where = masks.places(graph, steps, spreading.kind, spreading.direction)
    if spreading.visited:
        where = graph.flipped(where, 1)
    y = Value(X, (None, None, width), "float32", masks.TIME_MAJOR)
    value = masks.spread(graph, steps, y, where)
    name = value.name
    if spreading.batch_major:
        name = graph.ordered(value)
    return Pattern.of(graph, [name])


def spread(flow: Flow, opset: int, found: str, width: int) -> tuple[Spreading, Match] | None:
    """How a tensor is an output moved back to the steps of the input; the match has ``X`` and ``MASK``."""
    for spreading in _spreadings():
        held = match(_spread(opset, width, spreading), flow, found)
        if held is not None:
            return spreading, held
    return None


@cache
def _held_final(opset: int, *, or_zero: bool, dtype: str) -> Pattern:
    """A final state, or where no step is valid the initial one (or zero)."""
    graph = _graph(opset)
    steps = masks.compaction(graph, _mask())
    none = graph.add("Equal", [steps.lengths, graph.integers(0)])
    other = graph.number(0, dtype) if or_zero else INITIAL
    return Pattern.of(graph, [graph.add("Where", [none, other, FINAL])])


def held_final(flow: Flow, opset: int, found: str, dtype: str) -> tuple[Match, bool] | None:
    """A final state that is the initial one, or (then true) zero, where no step is valid."""
    for or_zero in (True, False):
        held = match(_held_final(opset, or_zero=or_zero, dtype=dtype), flow, found)
        if held is not None:
            return held, or_zero
    return None


@cache
def _last_or_zero(opset: int, *, forward: bool, dtype: str) -> Pattern:
    graph = _graph(opset)
    valid = graph.add("Gather", [MASK, graph.integers(-1 if forward else 0)], {"axis": 1})
    return Pattern.of(graph, [graph.add("Where", [valid, FINAL, graph.number(0, dtype)])])


def last_or_zero(flow: Flow, opset: int, found: str, dtype: str) -> tuple[Match, Direction] | None:
    """A final state that is zero where the last step that is visited is masked."""
    for direction in (Direction.FORWARD, Direction.REVERSE):
        pattern = _last_or_zero(opset, forward=direction is Direction.FORWARD, dtype=dtype)
        held = match(pattern, flow, found)
        if held is not None:
            return held, direction
    return None


@cache
def _masked_mean(opset: int, dtype: str, *, keep: bool) -> Pattern:
    from lstmconvert.frameworks.onnx import windows
    from lstmconvert.frameworks.onnx.use import Use
    from lstmconvert.operations import GlobalPooling, Pool

    graph = _graph(opset)
    x = Value(X, (None, None, None), dtype, in_order(3))
    use = Use(graph, "layer", {}, (x,), _mask())
    result = windows.global_pooling(use, GlobalPooling(Pool.AVERAGE, 1, keep))
    return Pattern.of(graph, [result.name])


def masked_mean(flow: Flow, opset: int, found: str, dtype: str) -> tuple[Match, bool] | None:
    """The mean of the valid steps; true where the axis of time is kept."""
    for keep in (False, True):
        held = match(_masked_mean(opset, dtype, keep=keep), flow, found)
        if held is not None:
            return held, keep
    return None
