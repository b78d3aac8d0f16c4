"""Masks for fused recurrent nodes: the valid steps moved to the front, the outputs moved back.

A recurrent node of ONNX knows lengths only, no masks. Whatever the pattern of a mask, a layer holds its
state at masked steps, so it computes the same as a layer that is fed the valid steps alone. They are
gathered to the front of each sequence, their number is the node's ``sequence_lens``, and the rows of the
output are gathered back to where they belong. A right-padded mask is the case in which nothing moves.

All of it is whole numbers of shape (batch, time), computed once for every mask of a model.
"""

from __future__ import annotations

from lstmconvert.canonical import MaskedOutput
from lstmconvert.frameworks.onnx.graph import Graph, Value
from lstmconvert.gates import Direction
from lstmconvert.values import dataclass

TIME_MAJOR = (1, 0, 2)
BATCH_MAJOR = (0, 1, 2)
_COMPACTED, _LENGTHS = "compacted", "lengths"


@dataclass(frozen=True, slots=True)
class Compaction:
    """Where the steps of masked sequences go; names of tensors.

    Attributes:
        mask: true at valid steps (batch, time).
        valid: the mask as whole numbers.
        counts: valid steps up to and with each (batch, time).
        lengths: valid steps of each sequence (batch, 1).
        positions: where each step goes: valid ones to the front, in order, then the others (batch, time).
        sources: which step comes to each place, the inverse of ``positions`` (batch, time).
        batch, time: the sizes, each a list of one.
        in_front: whether the valid steps are known to be in front, so that nothing has to be moved.
    """

    mask: str
    valid: str
    counts: str
    lengths: str
    positions: str
    sources: str
    batch: str
    time: str
    in_front: bool


def of_lengths(graph: Graph, lengths: Value, x: Value) -> Value:
    """The mask that is true at the first ``lengths`` (batch,) steps of sequences (batch, time, ...)."""
    steps = _range(graph, graph.size(x.name, x.axis(1)))
    name = graph.add("Less", [steps, _as_column(graph, lengths)])
    mask = Value(name, x.shape[:2], "bool", (0, 1))
    graph.offer(mask, (_LENGTHS,), lambda: graph.cast(lengths, "int32").name)
    return mask


def _as_column(graph: Graph, lengths: Value) -> str:
    return graph.add("Unsqueeze", [graph.cast(lengths, "int64").name, graph.integers(1)])


def _offered_lengths(graph: Graph, mask: str) -> Value | None:
    """The lengths (batch,) of which a mask was made."""
    given = graph.offered(Value(mask, (None, None), "bool", (0, 1)), (_LENGTHS,))
    return None if given is None else Value(given, (None,), "int32", (0,))


def compaction(graph: Graph, mask: Value) -> Compaction:
    """The nodes that work it out; the same for every layer that heeds ``mask``."""
    mask = graph.cast(mask, "bool")
    name = graph.ordered(mask)
    valid = graph.cast(mask.named(name), "int64").name
    counts = graph.add("CumSum", [valid, graph.integer(1)])
    given = _offered_lengths(graph, name)
    if given is None:
        lengths = graph.reduce("ReduceSum", valid, [1], keep_axes=True)
    else:
        lengths = _as_column(graph, given)
    batch, time = graph.size(name, 0), graph.size(name, 1)
    steps = _range(graph, time)
    one = graph.integers(1)
    last = graph.add("Sub", [counts, one])
    # Among the masked steps, this one is number (step - counts).
    behind = graph.add("Add", [lengths, graph.add("Sub", [steps, counts])])
    positions = graph.add("Where", [name, last, behind])
    every_step = graph.add("Expand", [steps, graph.add("Shape", [name])])
    sources = graph.add("ScatterElements", [positions, positions, every_step], {"axis": 1})
    return Compaction(name, valid, counts, lengths, positions, sources, batch, time, given is not None)


def sequence_lens(graph: Graph, steps: Compaction) -> str:
    """The number of valid steps of each sequence (batch,), as recurrent nodes take it."""
    given = _offered_lengths(graph, steps.mask)
    if given is not None:
        return given.name
    lengths = Value(steps.lengths, (None, 1), "int64", (0, 1))
    return graph.add("Squeeze", [graph.cast(lengths, "int32").name, graph.integers(1)])


def offer_compacted(graph: Graph, steps: Compaction, value: Value, tensor: str) -> None:
    """State that ``tensor`` (time, batch, features) has the valid steps of ``value`` in front already."""
    graph.offer(value, (_COMPACTED, steps.mask), lambda: tensor)


def compacted(graph: Graph, steps: Compaction, x: Value) -> str:
    """The steps of ``x`` (batch, time, features), valid ones first, as (time, batch, features)."""
    ready = graph.offered(x, (_COMPACTED, steps.mask))
    if ready is not None:
        return ready
    if steps.in_front:
        return graph.ordered(x, TIME_MAJOR)
    if x.order not in (TIME_MAJOR, BATCH_MAJOR):
        x = graph.in_logical_order(x)
    time_major = graph.transpose(steps.sources, (1, 0))
    if x.order == TIME_MAJOR:
        rows = graph.add("Add", [graph.add("Mul", [time_major, steps.batch]), _range(graph, steps.batch)])
    else:
        first = graph.add("Mul", [_range(graph, steps.batch), steps.time])
        rows = graph.add("Add", [time_major, first])
    return graph.add("Gather", [_rows(graph, x.name, x.shape[-1]), rows])


def places(graph: Graph, steps: Compaction, masked_output: MaskedOutput, direction: Direction) -> str:
    """For every step of the input, the place in the compacted output where its output stands (batch, time).

    Recurrent nodes give zeros beyond a sequence's length, so a place there is a zero.
    """
    if masked_output is MaskedOutput.ZERO:
        return steps.positions
    if direction is Direction.REVERSE:
        # The step visited before a masked one is the next valid one; after the last there is none.
        return graph.add("Sub", [steps.counts, steps.valid])
    none_yet = nothing_before(graph, steps, direction)
    return graph.add("Where", [none_yet, steps.lengths, graph.add("Sub", [steps.counts, graph.integers(1)])])


def nothing_before(graph: Graph, steps: Compaction, direction: Direction) -> str:
    """Whether no valid step was visited up to and with each step (batch, time)."""
    if direction is Direction.FORWARD:
        return graph.add("Equal", [steps.counts, graph.integers(0)])
    return graph.add("Equal", [graph.add("Sub", [steps.counts, steps.valid]), steps.lengths])


def spread(graph: Graph, steps: Compaction, y: Value, where: str) -> Value:
    """A compacted output, time-major, at the steps of the input.

    Args:
        graph: where the nodes go.
        steps: of the mask.
        y: the output (batch, time, width).
        where: the place of every step (batch, time).
    """
    if steps.in_front and where == steps.positions:
        return y
    rows = graph.add("Add", [graph.add("Mul", [where, steps.batch]), _column(graph, steps.batch)])
    table = _rows(graph, y.name, y.shape[-1])
    value = y.named(graph.add("Gather", [table, graph.transpose(rows, (1, 0))]))
    graph.offer(value, BATCH_MAJOR, lambda: graph.add("Gather", [table, rows]))
    return value


def _range(graph: Graph, size: str) -> str:
    """0, 1, ... as many as ``size`` (a list of one) says."""
    scalar = graph.add("Squeeze", [size])
    return graph.add("Range", [graph.integer(0), scalar, graph.integer(1)])


def _column(graph: Graph, size: str) -> str:
    return graph.add("Unsqueeze", [_range(graph, size), graph.integers(1)])


def _rows(graph: Graph, tensor: str, width: object) -> str:
    """A tensor of three axes as a table of steps."""
    assert isinstance(width, int)
    return graph.add("Reshape", [tensor, graph.integers(-1, width)])
