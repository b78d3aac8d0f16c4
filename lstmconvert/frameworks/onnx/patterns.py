"""What the writer spells out in several nodes, found again in a graph by its data flow.

A pattern is made by the writer itself, from placeholders, so what is read is what would be written: nothing
is described a second time. Names mean nothing; operators, attributes, constants and wiring have to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from lstmconvert import onnx_proto
from lstmconvert.frameworks.onnx.constants import attribute_value
from lstmconvert.frameworks.onnx.graph import Graph
from lstmconvert.tensors import Array, Lazy, same_bits
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    import onnx

Maker = tuple["onnx.NodeProto", int]
"""A node, and which of its outputs a tensor is."""


def makers_of(nodes: Sequence[onnx.NodeProto]) -> dict[str, Maker]:
    """What makes each tensor."""
    return {name: (node, n) for node in nodes for n, name in enumerate(node.output) if name}


@dataclass(frozen=True, slots=True)
class Pattern:
    """Nodes that the writer made from placeholders.

    Attributes:
        makers: what makes each of its tensors.
        constants: its small constants.
        weights: the tensors that stand for weights, with their shapes; an empty axis stands for any length.
        outputs: its results, in order.
    """

    makers: Mapping[str, Maker]
    constants: Mapping[str, Array]
    weights: Mapping[str, tuple[int, ...]]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, graph: Graph, outputs: Sequence[str]) -> Pattern:
        """The pattern in a graph that was written from placeholders."""
        return cls(
            makers_of(graph.nodes),
            {name: onnx_proto.array_of(tensor) for name, tensor in graph.constants.items()},
            {name: tensor.shape for name, tensor in graph.weights.items()},
            tuple(outputs),
        )

    def root(self, output: int) -> onnx.NodeProto | None:
        """The last node of an output."""
        maker = self.makers.get(self.outputs[output])
        return None if maker is None else maker[0]


@dataclass(frozen=True, slots=True)
class Flow:
    """A graph in which patterns are looked for.

    Attributes:
        makers: what makes each tensor.
        constant: the array that a tensor always is, or ``None``.
    """

    makers: Mapping[str, Maker]
    constant: Callable[[str], Lazy | None]

    def source(self, name: str) -> str:
        """The tensor that another one is a copy of, or itself."""
        while (maker := self.makers.get(name)) is not None and maker[0].op_type == "Identity":
            name = maker[0].input[0]
        return name

    def maker(self, name: str) -> Maker | None:
        """What makes a tensor; copies are passed over."""
        return self.makers.get(self.source(name))


@dataclass(slots=True)
class Match:
    """Which tensor of a graph each tensor of a pattern is."""

    tensors: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, onnx.NodeProto] = field(default_factory=dict)


def match(
    pattern: Pattern, flow: Flow, found: str, output: int = 0, bound: Mapping[str, str] | None = None
) -> Match | None:
    """The pattern with ``found`` as one of its outputs; ``None`` where it is not there.

    Args:
        pattern, flow: what is looked for, and where.
        found: a tensor of the graph.
        output: which output of the pattern it has to be.
        bound: placeholders whose tensors are known already.
    """
    result = Match({key: flow.source(name) for key, name in (bound or {}).items()})
    open_pairs = [(pattern.outputs[output], found)]
    while open_pairs:
        wanted, name = open_pairs.pop()
        name = flow.source(name)
        known = result.tensors.get(wanted)
        if known is not None:
            if known != name:
                return None
            continue
        result.tensors[wanted] = name
        if wanted in pattern.constants:
            if not _same_constant(pattern.constants[wanted], flow.constant(name)):
                return None
        elif wanted in pattern.weights:
            if not _fits(pattern.weights[wanted], flow.constant(name)):
                return None
        elif wanted in pattern.makers:
            pairs = _node_pairs(pattern.makers[wanted], flow.maker(name))
            if pairs is None:
                return None
            made = flow.maker(name)
            assert made is not None
            result.nodes[pattern.makers[wanted][0].name] = made[0]
            open_pairs += pairs
    return result


def _same_constant(wanted: Array, found: Lazy | None) -> bool:
    return found is not None and found.shape == wanted.shape and same_bits(found.read(), wanted)


def _fits(wanted: tuple[int, ...], found: Lazy | None) -> bool:
    if found is None or len(found.shape) != len(wanted):
        return False
    return all(size in (0, other) for size, other in zip(wanted, found.shape, strict=True))


def _node_pairs(wanted: Maker, found: Maker | None) -> list[tuple[str, str]] | None:
    """The inputs that have to agree, of nodes that do; ``None`` of nodes that do not."""
    if found is None or found[1] != wanted[1]:
        return None
    ours, theirs = wanted[0], found[0]
    if (ours.op_type, ours.domain) != (theirs.op_type, theirs.domain):
        return None
    if attributes_of(ours) != attributes_of(theirs):
        return None
    inputs = [list(node.input) for node in (ours, theirs)]
    longest = max(map(len, inputs))
    for names in inputs:
        names += [""] * (longest - len(names))
    if any(bool(a) != bool(b) for a, b in zip(*inputs, strict=True)):
        return None
    return [(a, b) for a, b in zip(*inputs, strict=True) if a]


def attributes_of(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: attribute_value(attribute) for attribute in node.attribute}
