"""Core ML's protobuf messages as dictionaries, in which long rows of numbers are places in the file."""

from __future__ import annotations

import struct
from typing import Any

from lstmconvert.containers.coreml_schema import SCHEMA
from lstmconvert.containers.protobuf_wire import DELIMITED, FIXED32, Field, Source, fields, varint
from lstmconvert.errors import BadFile
from lstmconvert.values import dataclass

_MOST_FIELDS = 2_000_000
_LONGEST_TEXT = 1 << 16
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
