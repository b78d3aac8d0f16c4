"""The operators around recurrent layers, each as what it does to tensors that are arrangements of values.

``read`` gives the tensors that a node makes. It raises ``NotUnderstood`` (or ``CannotArrange``) where the
operations of a model cannot express the node; nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from lstmconvert.frameworks.onnx import indices, sorting
from lstmconvert.frameworks.onnx.arrangement import CannotArrange, Held, Unknown
from lstmconvert.frameworks.onnx.constants import Graphs, Scope, node_name
from lstmconvert.frameworks.onnx.elementwise import ELEMENTWISE
from lstmconvert.frameworks.onnx.kept_whole import DOMAIN, KEPT_WHOLE
from lstmconvert.frameworks.onnx.moving import MOVING
from lstmconvert.frameworks.onnx.neighbour_node import Node
from lstmconvert.frameworks.onnx.sliding import SLIDING
from lstmconvert.frameworks.onnx.topology import NotUnderstood, Topology
from lstmconvert.frameworks.onnx.weighted import WEIGHTED

if TYPE_CHECKING:
    import onnx

_STANDARD = ("", "ai.onnx")
_READERS = MappingProxyType({**MOVING, **ELEMENTWISE, **SLIDING, **WEIGHTED})


def read(topology: Topology, node: onnx.NodeProto, scope: Scope, graphs: Graphs) -> Sequence[Held | Unknown]:
    """The tensors that a node makes.

    Raises:
        NotUnderstood, CannotArrange: when operations cannot express it.
    """
    attributes = graphs.attributes(node)
    view = Node(
        node.op_type if node.domain in _STANDARD else "",
        node_name(node),
        tuple(node.input),
        attributes,
        scope,
        topology,
        graphs.opsets.get("", 1),
        len(node.output),
    )
    piece = indices.read(view)
    if piece is not None:
        return [piece]
    ordered = sorting.read(view)
    if ordered is not None:
        return ordered
    if view.kind in ("If", "Loop", "Scan"):
        raise NotUnderstood("what it does depends on the inputs")
    reader = KEPT_WHOLE.get(node.op_type) if node.domain == DOMAIN else _READERS.get(view.kind)
    if reader is None:
        for name in node.input:  # what it takes may say more
            if name and scope.known(name) is None:
                topology.get(name)
        raise NotUnderstood("the operator is not one of those that are folded into layers")
    try:
        return reader(view)
    except CannotArrange:
        steps = topology.steps_of(view.inputs)
        if steps is None:
            raise
        return topology.every_step(steps, lambda: reader(view))
