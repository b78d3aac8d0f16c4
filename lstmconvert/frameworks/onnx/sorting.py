"""Sequences sorted by their lengths and put back into their order, as torch does around packed sequences.

Every layer computes each sequence by itself, so the sorted tensor is the value as it was, with a batch axis
of another name; putting it back gives the axis its name again. What is not put back is not understood.

Source: ``pack_padded_sequence(enforce_sorted=False)`` as ``torch.onnx`` 2.13 writes it: ``TopK`` of the
lengths, ``Gather`` by its indices, and ``Gather`` by their inverse, a ``ScatterElements`` of a ``Range``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lstmconvert.frameworks.onnx.arrangement import Atom, Axis, Held, Unknown, symbolic
from lstmconvert.frameworks.onnx.known import Partial
from lstmconvert.frameworks.onnx.neighbour_node import Node
from lstmconvert.frameworks.onnx.topology import NotUnderstood
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity", "Dropout", "Shape", "Concat")


@dataclass(frozen=True, slots=True)
class Order(Unknown):
    """The numbers of the sequences in the order of their lengths.

    Attributes:
        name: of the tensor.
        inverse: whether it is the other way around: the numbers of the sorted ones in the first order.
    """

    name: str
    inverse: bool = False


def read(node: Node) -> Sequence[Held | Unknown] | None:
    """What a node gives that sorts, takes an order or a sorted tensor; ``None`` of any other node.

    Raises:
        NotUnderstood: when it does with a sorted tensor what might mix sequences.
    """
    parts = [node.topology.peek(name) for name in node.inputs]
    match node.kind:
        case "TopK":
            return _sorted(node)
        case "Cast" | "Identity" if isinstance(parts[0], Order):
            return [parts[0]]
        case "ScatterElements" if len(parts) == 3 and isinstance(parts[1], Order):
            return [_inverse(node, parts[1])]
        case "Gather" if len(parts) == 2 and isinstance(parts[1], Order) and isinstance(parts[0], Held):
            return [_looked_up(node, parts[1])]
    tensors = [part for part in parts if isinstance(part, Held)]
    if any(node.topology.order_of(axis) for held in tensors for axis in held.axes):
        _see_that_nothing_mixes(node, tensors)
    return None


def _sorted(node: Node) -> Sequence[Held | Unknown] | None:
    """The lengths in their order, and the order."""
    lengths = node.topology.before_cast(node.topology.peek(node.inputs[0]))
    if lengths is None or lengths.rank != 1 or node.attributes.get("axis", -1) not in (-1, 0):
        return None
    known, (batch,) = node.scope.known(node.inputs[1]), lengths.axes
    if not isinstance(known, Partial) or known.values != (symbolic(batch),):
        count = known.read().reshape(-1).tolist() if isinstance(known, Lazy) and known.size == 1 else []
        if count != [symbolic(batch)]:
            raise NotUnderstood("it takes some of the lengths only")
    given = node.topology.sorted_axis(node.name, batch)
    order = Order(f"node {node.name!r} (TopK): it is the order of lengths", node.name)
    return [_with_axis(lengths, batch, given), order]


def _inverse(node: Node, order: Order) -> Order:
    """Numbers from zero, each put where the order says."""
    maker = node.topology.flow(node.scope).maker(node.inputs[2])
    bounds = (
        [] if maker is None or maker[0].op_type != "Range" else [_number(node, n) for n in maker[0].input]
    )
    if (
        bounds[::2] != [0, 1]
        or node.attributes.get("axis", 0) not in (-1, 0)
        or "reduction" in node.attributes
    ):
        raise NotUnderstood("it puts something else than numbers in order")
    return replace(order, inverse=not order.inverse)


def _number(node: Node, name: str) -> int | None:
    known = node.scope.known(name)
    if isinstance(known, Lazy) and known.size == 1:
        return int(known.read().reshape(-1)[0])
    return None


def _looked_up(node: Node, order: Order) -> Held:
    """A tensor with its sequences in another order."""
    held, topology = node.held(0), node.topology
    axis = node.attributes.get("axis", 0)
    taken = held.axes[axis] if -held.rank <= axis < held.rank else ()
    if order.inverse:
        given = topology.first_axis(order.name, taken)
    else:
        given = (
            topology.sorted_axis(order.name, taken) if taken and topology.order_of(taken) is None else None
        )
    if given is None:
        raise NotUnderstood("it takes something else than sequences in the order of their lengths")
    return _with_axis(held, taken, given)


def _with_axis(held: Held, old: Axis, new: Axis) -> Held:
    """The tensor with an axis under another name, wherever it stands."""
    names: dict[Atom, Atom] = dict(zip(old, new, strict=True))

    def renamed(axes: Sequence[Axis]) -> tuple[Axis, ...]:
        return tuple(tuple(names.get(atom, atom) for atom in axis) for axis in axes)

    parts = tuple((atom, tuple(_with_axis(part, old, new) for part in own)) for atom, own in held.parts)
    return replace(held, logical=renamed(held.logical), axes=renamed(held.axes), parts=parts)


def _see_that_nothing_mixes(node: Node, tensors: Sequence[Held]) -> None:
    if node.kind == "Slice":
        axes = node.integers("axes", 3) or range(tensors[0].rank)
        if not any(node.topology.order_of(tensors[0].axes[axis]) for axis in axes):
            return
    if node.kind not in _MOVES:
        raise NotUnderstood("it takes sequences that are sorted by their lengths")
    orders = [{order for axis in held.axes if (order := node.topology.order_of(axis))} for held in tensors]
    if node.kind != "Concat" or not tensors:
        return
    axis = node.attributes.get("axis", 0)
    if any(one != orders[0] for one in orders) or node.topology.order_of(tensors[0].axes[axis]):
        raise NotUnderstood("it joins sequences in several orders")
