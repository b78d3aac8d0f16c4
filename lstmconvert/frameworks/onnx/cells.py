"""LSTM cells that an exporter wrote out operator by operator, recognised by their data flow.

torch's exporters turn ``nn.LSTMCell`` into two ``Gemm``, an ``Add``, a ``Split`` into four and the
equations. Which part is which gate is not taken from any convention: it follows from what the parts meet,
``c' = f * c + i * g`` and ``h' = o * tanh(c')``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from lstmconvert.canonical import BlockKey, LstmEquations, RecurrentDirection, RecurrentLayer, Weights
from lstmconvert.frameworks.onnx.constants import Scope, node_name
from lstmconvert.gates import Cell, Direction, Gate, Part
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    import onnx

WRITTEN_OUT = "written_out"
"""Note of a layer that was found as operators: the node that splits its gates."""

_MOVES = ("Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Split", "Identity", "Transpose")
_INPUTS = MappingProxyType({"Add": (2, 2), "Mul": (2, 2), "Gemm": (2, 3), "Tanh": (1, 1), "Sigmoid": (1, 1)})
"""The fewest and the most inputs that operators of a cell have."""
_MOVED = 1, 5
"""The same of what moves a value, whose first input it is."""


@dataclass(frozen=True, slots=True)
class _Product:
    """A ``Gemm`` of a value with a constant matrix, whose rows (gate hidden) are the outputs."""

    value: str
    matrix: Lazy
    bias: Lazy | None
    names: tuple[str, ...]


class _Nodes:
    """The nodes of one graph, by what they make and take; of no others than a cell may have."""

    def __init__(self, nodes: Sequence[onnx.NodeProto]) -> None:
        nodes = [node for node in nodes if _may_belong(node)]
        self.maker = {name: node for node in nodes for name in node.output if name}
        self.takers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in nodes:
            for name in node.input:
                self.takers[name].append(node)

    def only(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node of a kind that takes a value, if there is exactly one."""
        found = [node for node in self.takers[name] if node.op_type == kind]
        return found[0] if len(found) == 1 else None

    def root(self, name: str) -> str:
        """Where a value comes from, when it was only moved."""
        while (node := self.maker.get(name)) is not None and node.op_type in _MOVES:
            name = node.input[0]
        return name


def _may_belong(node: onnx.NodeProto) -> bool:
    """Whether a node is an operator of a cell or moves a value, and has the inputs that it needs."""
    bounds = _MOVED if node.op_type in _MOVES else _INPUTS.get(node.op_type)
    return bounds is not None and bounds[0] <= len(node.input) <= bounds[1] and bool(node.output)


def find(nodes: Sequence[onnx.NodeProto], scope: Scope) -> list[RecurrentLayer]:
    """The cells among the nodes of one graph, each as a layer."""
    graph = _Nodes(nodes)
    found = []
    for node in nodes:
        if node.op_type == "Split" and len(node.output) == 4 and _may_belong(node):
            layer = _cell(graph, node, scope)
            if layer is not None:
                found.append(layer)
    return found


def _cell(graph: _Nodes, split: onnx.NodeProto, scope: Scope) -> RecurrentLayer | None:
    order = _gates(graph, split)
    total = graph.maker.get(split.input[0])
    if order is None or total is None or total.op_type != "Add":
        return None
    gates, cell_state = order
    products = [_product(graph, name, scope) for name in total.input]
    if len(products) != 2 or products[0] is None or products[1] is None:
        return None
    pair = _sides(graph, (products[0], products[1]), cell_state)
    if pair is None:
        return None
    inputs, recurrent = pair
    hidden = recurrent.matrix.shape[1]
    blocks: dict[BlockKey, Lazy] = {}
    sides = (
        (Part.KERNEL, Part.BIAS_INPUT, inputs),
        (Part.RECURRENT, Part.BIAS_RECURRENT, recurrent),
    )
    for number, gate in enumerate(gates):
        rows = slice(number * hidden, (number + 1) * hidden)
        for matrix, bias, product in sides:
            blocks[matrix, gate] = _rows(product.matrix, rows)
            if product.bias is not None:
                blocks[bias, gate] = _rows(product.bias, rows)
    try:
        weights = Weights(Cell.LSTM, blocks)
    except ValueError:
        return None
    names = (*inputs.names, *recurrent.names)
    module = {name.rpartition(".")[0] for name in names}  # torch: model.rnn.weight_ih, model.rnn.bias_hh, ...
    shared = module.pop() if len(module) == 1 else ""
    name = scope.path + (shared or node_name(split))
    return RecurrentLayer(
        name,
        (RecurrentDirection(Direction.FORWARD, LstmEquations(), weights),),
        origin=names,
        stored_gates=gates,
        notes=MappingProxyType({WRITTEN_OUT: node_name(split)}),
    )


def _rows(tensor: Lazy, rows: slice) -> Lazy:
    def cut(array: Array) -> Array:
        return array[rows]

    return tensor.map(cut, (rows.stop - rows.start, *tensor.shape[1:]))


def _gates(graph: _Nodes, split: onnx.NodeProto) -> tuple[tuple[Gate, ...], str] | None:
    """The gates in the order of the parts, and the old cell state; ``None`` where this is no LSTM."""
    tanh = [graph.only(part, "Tanh") for part in split.output]
    sigmoid = [graph.only(part, "Sigmoid") for part in split.output]
    candidates = [n for n, node in enumerate(tanh) if node is not None]
    if len(candidates) != 1 or sum(node is not None for node in sigmoid) != 3:
        return None
    (g,) = candidates
    gated = {node.output[0]: n for n, node in enumerate(sigmoid) if node is not None}
    cell_node = tanh[g]
    assert cell_node is not None
    product = graph.only(cell_node.output[0], "Mul")
    i = None if product is None else gated.get(_other(product, cell_node.output[0]))
    total = None if product is None else graph.only(product.output[0], "Add")
    if product is None or total is None or i is None:
        return None
    kept = graph.maker.get(_other(total, product.output[0]))
    if kept is None or kept.op_type != "Mul":
        return None
    forget = [name for name in kept.input if name in gated]
    squashed = graph.only(total.output[0], "Tanh")
    result = None if squashed is None else graph.only(squashed.output[0], "Mul")
    if len(forget) != 1 or squashed is None or result is None:
        return None
    f, o = gated[forget[0]], gated.get(_other(result, squashed.output[0]))
    if o is None or {i, f, g, o} != {0, 1, 2, 3}:
        return None
    places = {i: Gate.INPUT, f: Gate.FORGET, g: Gate.CELL, o: Gate.OUTPUT}
    return tuple(places[n] for n in range(4)), _other(kept, forget[0])


def _other(node: onnx.NodeProto, name: str) -> str:
    """The other one of a node's two inputs."""
    first, second = (str(given) for given in node.input)
    return second if first == name else first


def _product(graph: _Nodes, name: str, scope: Scope) -> _Product | None:
    node = graph.maker.get(name)
    if node is None or node.op_type != "Gemm":
        return None
    attributes = {a.name: a.i if a.name.startswith("trans") else a.f for a in node.attribute}
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    if any(attributes.get(key, value) != value for key, value in plain.items()):
        return None
    matrix = scope.constant(node.input[1])
    bias = scope.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if matrix is None or len(matrix.shape) != 2 or (len(node.input) > 2 and bias is None):
        return None
    if not attributes.get("transB", 0):
        matrix = matrix.map(lambda a: a.T, matrix.shape[::-1])
    if bias is not None and bias.shape != matrix.shape[:1]:
        return None
    return _Product(node.input[0], matrix, bias, tuple(node.input[1:]))


def _sides(
    graph: _Nodes, products: tuple[_Product, _Product], cell_state: str
) -> tuple[_Product, _Product] | None:
    """Which product is the input's and which the hidden state's; ``None`` where nothing tells them apart."""
    hidden = products[0].matrix.shape[0] // 4
    square = [product.matrix.shape == (4 * hidden, hidden) for product in products]
    if square == [True, True]:
        # Hidden and cell state are kept together; the input is not.
        kept = graph.root(cell_state)
        square = [graph.root(product.value) == kept for product in products]
    if square == [True, False]:
        return products[1], products[0]
    return products if square == [False, True] else None
