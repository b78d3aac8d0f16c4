"""Core ML's protobuf messages as dictionaries.

In what is read, long rows of numbers are places in the file; in what is written, arrays that come late.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from lstmconvert.containers.coreml_schema import SCHEMA
from lstmconvert.containers.protobuf_wire import (
    DELIMITED,
    FIXED32,
    Field,
    Source,
    delimited,
    encoded_varint,
    fields,
    varint,
)
from lstmconvert.errors import BadFile
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

_MOST_FIELDS = 2_000_000
_LONGEST_TEXT = 1 << 22
OTHER = "other"
"""Key under which a message has the number of the last field that the schema does not know."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where bytes lie in the file."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.end - self.start


class Reader:
    """Decodes messages of one file; the number of fields is bounded."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = _MOST_FIELDS

    def read(self, message: str, start: int, end: int) -> dict[str, Any]:
        """The message that lies from ``start`` up to ``end``.

        Raises:
            BadFile: when it is none.
        """
        known = SCHEMA[message]
        result: dict[str, Any] = {}
        for field in fields(self._source, start, end):
            self._left -= 1
            if self._left < 0:
                raise BadFile("the specification has more fields than a model can have")
            if field.number not in known:
                result[OTHER] = field.number
                continue
            name, kind = known[field.number]
            many = kind.endswith("*")
            value = self._value(field, kind.rstrip("*"))
            if many:
                result.setdefault(name, []).append(value)
            elif kind == "numbers" and name in result:
                raise BadFile("a row of numbers is in several pieces", place=f"byte {field.start}")
            else:
                result[name] = value
        return result

    def _value(self, field: Field, kind: str) -> Any:
        if kind in ("int", "float"):
            if field.wire_type != (FIXED32 if kind == "float" else 0):
                raise BadFile("a field is encoded in another way than its kind", place=f"byte {field.start}")
            data = self._source.read(field.payload, field.end)
            return struct.unpack("<f", data)[0] if kind == "float" else varint(data, 0, field.start)[0]
        if field.wire_type != DELIMITED:
            raise BadFile("a field is encoded in another way than its kind", place=f"byte {field.start}")
        if kind == "text":
            if field.size > _LONGEST_TEXT:
                raise BadFile("a name is longer than a name can be", place=f"byte {field.start}")
            return self._source.read(field.payload, field.end).decode("utf-8", "replace")
        if kind == "ints":
            if field.size > _LONGEST_TEXT:
                raise BadFile("a list of numbers is longer than expected", place=f"byte {field.start}")
            return _integers(self._source.read(field.payload, field.end), field.payload)
        if kind in ("numbers", "bytes"):
            return Span(field.payload, field.end)
        return self.read(kind, field.payload, field.end)


def _integers(data: bytes, place: int) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = varint(data, at, place)
        found.append(value - (1 << 64) if value >= 1 << 63 else value)
    return found


Pieces = list[bytes | Lazy]
"""A message as bytes, and the arrays between them that are not read yet."""


def encoded(message: str, values: Mapping[str, Any]) -> Pieces:
    """A message from its values, in the order of its field numbers; ``Reader.read`` gives them back.

    Raises:
        KeyError: when the schema does not have one of them.
    """
    left = set(values)
    pieces: Pieces = []
    for number, (name, kind) in sorted(SCHEMA[message].items()):
        if name in left:
            left.remove(name)
            for value in values[name] if kind.endswith("*") else [values[name]]:
                pieces += _field(number, kind.rstrip("*"), value)
    if left:
        raise KeyError(f"{message} has no {', '.join(sorted(left))}")
    return pieces


def size_of(pieces: Pieces) -> int:
    """How many bytes a message takes."""
    return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in pieces)


def _field(number: int, kind: str, value: Any) -> Pieces:
    match kind:
        case "int":
            return [encoded_varint(number << 3) + _signed(value)]
        case "float":
            return [encoded_varint(number << 3 | FIXED32) + struct.pack("<f", value)]
        case "text":
            content: Pieces = [value.encode("utf-8")]
        case "ints":
            content = [b"".join(map(_signed, value))]
        case "numbers" | "bytes":
            content = [value]
        case _:
            content = encoded(kind, value)
    return [delimited(number, size_of(content)), *content]


def _signed(value: int) -> bytes:
    """A number as a varint: negative ones as the 64 bit number with their bits."""
    return encoded_varint(int(value) & (1 << 64) - 1)
