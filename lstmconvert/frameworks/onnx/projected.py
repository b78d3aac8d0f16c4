"""Nodes of ``lstmconvert.torch`` that are one layer of an LSTM with projections: ONNX has no such operator.

Inputs: X (time, batch, input), initial_h (directions, batch, projected), initial_c (directions, batch,
hidden), and of each direction the tensors of ``torch.nn.LSTM``, in its order. Outputs: Y (time, directions,
batch, projected) and the final states, as ONNX's own LSTM gives them.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from lstmconvert import layout, mapping
from lstmconvert.canonical import LstmEquations, RecurrentDirection, RecurrentLayer
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.onnx.constants import Scope
from lstmconvert.frameworks.onnx.kept_whole import DOMAIN
from lstmconvert.frameworks.onnx.recurrent_node import Recurrent
from lstmconvert.gates import Cell, Direction
from lstmconvert.tensors import Lazy

if TYPE_CHECKING:
    import onnx

_STATES = ("X", "initial_h", "initial_c")
_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def is_projected(node: onnx.NodeProto) -> bool:
    """Whether a node is such a layer."""
    return (node.domain, node.op_type) == (DOMAIN, "LSTM")


def read(node: onnx.NodeProto, scope: Scope, name: str) -> tuple[Recurrent, RecurrentLayer]:
    """The node by names, and its layer.

    Raises:
        BadFile: when its tensors are not those of one or two directions.
        UnsupportedSource: when they are no constants.
    """
    given = list(node.input)[len(_STATES) :]
    parts = _PARTS if len(given) % len(_PARTS) == 0 else tuple(p for p in _PARTS if "bias" not in p)
    if len(given) not in (len(parts), 2 * len(parts)):
        raise BadFile("an LSTM with projections has other tensors", place=name, found=f"{len(given)} of them")
    names = [f"{part}_l0{suffix}" for suffix in ("", "_reverse") for part in parts]
    tensors: dict[str, Lazy] = {}
    for key, held in zip(names, given, strict=False):
        constant = scope.constant(held)
        if constant is None:
            raise UnsupportedSource("the weights of an LSTM are not constants", place=f"{name}, {held}")
        tensors[key] = constant
    described = mapping.load("pytorch").layouts["lstm"]
    directions = tuple(
        RecurrentDirection(direction, LstmEquations(), weights)
        for direction, weights in layout.read_weights(Cell.LSTM, described, tensors).items()
    )
    both = "bidirectional" if len(directions) == 2 else str(Direction.FORWARD)
    view = Recurrent(
        name,
        str(Cell.LSTM),
        MappingProxyType(dict(zip(_STATES, node.input, strict=False))),
        tuple(node.output),
        MappingProxyType({"direction": both}),
        scope,
    )
    return view, RecurrentLayer(name, directions, origin=tuple(given), stored_gates=described.gates)
