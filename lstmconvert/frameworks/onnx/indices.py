"""Indices that count from the end, as exporters spell them out: x where it is not negative, else x + size.

Keras writes this before every embedding, and tf2onnx writes the choice as a sum of products. A row of a
table is taken by ONNX's own rule for negative indices, which is the same, so the spelling is folded away.
"""

from __future__ import annotations

from enum import StrEnum

from lstmconvert.frameworks.onnx.arrangement import Held, Unknown
from lstmconvert.frameworks.onnx.neighbour_node import Node
from lstmconvert.values import dataclass


class Piece(StrEnum):
    """A part of the computation, of an index x."""

    NEGATIVE = "x < 0"
    NOT_NEGATIVE = "not x < 0"
    SHIFTED = "x + size"
    SHIFTED_IF_NEGATIVE = "(x < 0) * (x + size)"
    KEPT_IF_NOT_NEGATIVE = "(not x < 0) * x"


@dataclass(frozen=True, slots=True)
class IndexPiece(Unknown):
    """A tensor that is part of such a computation, and of no other use."""

    piece: Piece
    index: Held
    size: int = 0


def read(node: Node) -> Held | IndexPiece | None:
    """What a node gives to the computation of an index; ``None`` of any other node."""
    parts = [node.topology.peek(name) for name in node.inputs]
    pieces = {part.piece: part for part in parts if isinstance(part, IndexPiece)}
    match node.kind:
        case "Less" if len(parts) == 2 and _integer(node, 1) == 0:
            index = node.topology.before_cast(parts[0])
            return None if index is None else _made(node, Piece.NEGATIVE, index)
        case "Not" if Piece.NEGATIVE in pieces:
            return _made(node, Piece.NOT_NEGATIVE, pieces[Piece.NEGATIVE].index)
        case "Cast" if pieces:
            return next(iter(pieces.values()))
        case "Add" if pieces.keys() == {Piece.SHIFTED_IF_NEGATIVE, Piece.KEPT_IF_NOT_NEGATIVE}:
            shifted = pieces[Piece.SHIFTED_IF_NEGATIVE]
            return _wrapped(node, shifted, pieces[Piece.KEPT_IF_NOT_NEGATIVE].index)
        case "Add" if not pieces:
            return _shifted(node, parts)
        case "Mul":
            return _product(node, pieces, parts)
        case "Where" if len(parts) == 3:
            chosen, shifted_part, kept = parts
            if not isinstance(chosen, IndexPiece) or not isinstance(shifted_part, IndexPiece):
                return None
            kinds = (chosen.piece, shifted_part.piece)
            if kinds != (Piece.NEGATIVE, Piece.SHIFTED) or not isinstance(kept, Held):
                return None
            return _wrapped(node, shifted_part, kept) if _alike(chosen.index, kept) else None
    return None


def _shifted(node: Node, parts: list[Held | Unknown | None]) -> IndexPiece | None:
    for here, other in ((0, 1), (1, 0)):
        index = parts[here] if len(parts) == 2 else None
        size = _integer(node, other)
        if isinstance(index, Held) and size is not None and _is_integer(index):
            return _made(node, Piece.SHIFTED, index, size)
    return None


def _product(
    node: Node, pieces: dict[Piece, IndexPiece], parts: list[Held | Unknown | None]
) -> IndexPiece | None:
    if pieces.keys() == {Piece.NEGATIVE, Piece.SHIFTED}:
        shifted = pieces[Piece.SHIFTED]
        if _alike(shifted.index, pieces[Piece.NEGATIVE].index):
            return _made(node, Piece.SHIFTED_IF_NEGATIVE, shifted.index, shifted.size)
    if pieces.keys() == {Piece.NOT_NEGATIVE}:
        index = pieces[Piece.NOT_NEGATIVE].index
        if any(isinstance(part, Held) and _alike(part, index) for part in parts):
            return _made(node, Piece.KEPT_IF_NOT_NEGATIVE, index)
    return None


def _wrapped(node: Node, shifted: IndexPiece, index: Held) -> Held | None:
    if not _alike(shifted.index, index):
        return None
    node.topology.counts_from_end(index, shifted.size)
    return index


def _made(node: Node, piece: Piece, index: Held, size: int = 0) -> IndexPiece:
    reason = f"node {node.name!r} ({node.kind}): it computes with integers"
    return IndexPiece(reason, piece, index, size)


def _alike(a: Held, b: Held) -> bool:
    return (a.value, a.axes) == (b.value, b.axes)


def _is_integer(held: Held) -> bool:
    return held.dtype.startswith(("int", "uint"))


def _integer(node: Node, index: int) -> int | None:
    """A constant input that is one whole number, of any dtype."""
    array = node.constant(index)
    if array is None or array.size != 1 or array.dtype.kind not in "iuf":
        return None
    number = float(array.read().reshape(()))
    return int(number) if number.is_integer() else None
