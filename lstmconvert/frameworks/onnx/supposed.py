"""Operations that the writer spells out in several nodes, supposed at their last node and compared.

Each function supposes what a tensor might be, and gives it where the nodes that the writer would make of
it are those that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from lstmconvert.frameworks.onnx import masked, operations
from lstmconvert.frameworks.onnx.arrangement import Held
from lstmconvert.frameworks.onnx.constants import Scope, node_name
from lstmconvert.frameworks.onnx.graph import Graph, Value, in_order
from lstmconvert.frameworks.onnx.patterns import Flow, Pattern, match
from lstmconvert.frameworks.onnx.use import Use
from lstmconvert.operations import GlobalPooling, Masking, Pool

if TYPE_CHECKING:
    import onnx

    from lstmconvert.frameworks.onnx.topology import Topology


class Place:
    """A tensor that might be the result of an operation, and what is around it."""

    def __init__(self, topology: Topology, node: onnx.NodeProto, scope: Scope) -> None:
        self.topology = topology
        self.node = node
        self.name = node_name(node)
        self.tensor = node.output[0]
        self.flow: Flow = topology.flow(scope)
        self.opset = topology.opset

    def held(self, name: str) -> Held | None:
        """A tensor that is an arrangement of a value."""
        found = self.topology.peek(self.flow.source(name))
        return found if isinstance(found, Held) else None

    def above(self, *kinds: str) -> list[onnx.NodeProto] | None:
        """The nodes that lead to the tensor by their first inputs, the last one first, if of these kinds."""
        found, name = [], self.tensor
        for kind in kinds:
            maker = self.flow.maker(name)
            if maker is None or maker[0].op_type != kind:
                return None
            found.append(maker[0])
            name = maker[0].input[0]
        return found


def read(topology: Topology, node: onnx.NodeProto, scope: Scope) -> Held | None:
    """The tensor that a node gives as the last one of several that are an operation; ``None`` of others."""
    place = Place(topology, node, scope)
    for suppose in _SUPPOSED.get(node.op_type, ()):
        found = suppose(place)
        if found is not None:
            return found
    return None


def plain(held: Held, place: Place) -> Held:
    """The tensor as a value whose axes are those of the tensor."""
    return place.topology.arranged(held, held.axes, place.name)


# Masks.


def _index_mask(place: Place) -> Held | None:
    """not (index == 0)."""
    nodes = place.above("Not", "Equal")
    if nodes is None:
        return None
    index, zero = nodes[1].input
    number = place.flow.constant(zero)
    held = place.held(index)
    if held is None or number is None or number.shape != () or number.read() != 0 or held.dtype == "bool":
        return None
    return place.topology.index_mask(held)


@cache
def _masking_pattern(opset: int, rank: int, value: float, dtype: str) -> Pattern:
    graph = Graph(opset, ["x"])
    graph.enter("layer")
    use = Use(graph, "layer", {}, (Value("x", (None,) * rank, dtype, in_order(rank)),))
    return Pattern.of(graph, [given.name for given in operations.write(use, Masking(value))])


def _masking_mask(place: Place) -> Held | None:
    nodes = place.above("Equal", "ReduceMin", "Cast", "Equal")
    return None if nodes is None else _masking(place, nodes[3], 1)


def _masking_value(place: Place) -> Held | None:
    if place.node.op_type != "Where" or len(place.node.input) != 3:
        return None
    maker = place.flow.maker(place.node.input[0])
    for kind in ("Unsqueeze", "Equal", "ReduceMin", "Cast"):
        if maker is None or maker[0].op_type != kind:
            return None
        maker = place.flow.maker(maker[0].input[0])
    return None if maker is None or maker[0].op_type != "Equal" else _masking(place, maker[0], 0)


def _masking(place: Place, equal: onnx.NodeProto, output: int) -> Held | None:
    """x with masked steps set to zero, or the mask: one layer gives both."""
    x, number = place.held(equal.input[0]), place.flow.constant(equal.input[1])
    if x is None or number is None or number.size != 1 or x.rank < 2 or x.axes[-1] != x.logical[-1]:
        return None
    value = float(number.read().reshape(()))
    pattern = _masking_pattern(place.opset, x.rank, value, x.dtype)
    if match(pattern, place.flow, place.tensor, output) is None:
        return None
    key = (x.value, value)
    known = place.topology.maskings.get(key)
    if known is None:
        known = place.topology.call_several(place.name, Masking(value), [x], more=[".mask"])
        place.topology.maskings[key] = known
    if output == 0:
        return replace(x, value=known[0], parts=())
    return Held(known[1], x.logical[:-1], x.axes[:-1], "bool")


def _masked_mean(place: Place) -> Held | None:
    for dtype in ("float32", "float64", "float16"):
        found = masked.masked_mean(place.flow, place.opset, place.tensor, dtype)
        if found is None:
            continue
        tensors, keep = found
        x, mask = (place.held(tensors.tensors[name]) for name in (masked.X, masked.MASK))
        if x is None or mask is None or x.rank != 3 or x.dtype != dtype or mask.axes[:1] != x.axes[:1]:
            return None
        operation = GlobalPooling(Pool.AVERAGE, 1, keep)
        inputs = [plain(x, place)]
        (value,) = place.topology.call_several(place.name, operation, inputs, mask=plain(mask, place))
        axes = (x.axes[0], (), x.axes[2]) if keep else (x.axes[0], x.axes[2])
        return Held.plain(value, axes, dtype)
    return None


Supposition = Callable[[Place], Held | None]

_SUPPOSED: Mapping[str, Sequence[Supposition]] = MappingProxyType(
    {
        "Not": (_index_mask,),
        "Equal": (_masking_mask,),
        "Where": (_masking_value,),
        "Div": (_masked_mean,),
    }
)
"""What a node of each kind may be the last one of."""
