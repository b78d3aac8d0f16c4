"""The protobuf wire format: fields of a message by their places, without a schema and without values.

Just enough to find the large byte strings of a file that is never read as a whole, and to write
messages around byte strings that are not there yet. Source: the "Encoding" page of the Protocol Buffers
documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from lstmconvert.errors import BadFile
from lstmconvert.values import dataclass

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


class Source(Protocol):
    """Bytes that are read piece by piece."""

    @property
    def size(self) -> int:
        """How many there are."""

    def read(self, start: int, end: int) -> bytes:
        """Those from ``start`` up to ``end``; raises BadFile when they are not there."""


@dataclass(frozen=True, slots=True)
class BytesSource:
    """A source in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """How many bytes."""
        return len(self.data)

    def read(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end``."""
        return self.data[start:end]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    Attributes:
        number: its field number.
        wire_type: how it is encoded.
        start: where its tag begins.
        payload: where its content begins, after the tag and the length.
        end: where it ends.
    """

    number: int
    wire_type: int
    start: int
    payload: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.end - self.payload


def fields(source: Source, start: int, end: int) -> Iterator[Field]:
    """The fields of the message that lies from ``start`` up to ``end``.

    Raises:
        BadFile: when the bytes are no message, or a field runs past its end.
    """
    at = start
    while at < end:
        header = source.read(at, min(at + 2 * _LONGEST_VARINT, end))
        tag, used = varint(header, 0, at)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise BadFile("a protobuf field has number 0", place=f"byte {at}")
        match wire_type:
            case 0:
                payload = at + used
                _, used = varint(header, used, at)
                stop = at + used
            case 1 | 5:
                payload = at + used
                stop = payload + (8 if wire_type == FIXED64 else 4)
            case 2:
                length, used = varint(header, used, at)
                payload = at + used
                stop = payload + length
            case _:
                raise BadFile(f"a protobuf field has wire type {wire_type}", place=f"byte {at}")
        if stop > end:
            raise BadFile(
                "a field runs past the end of what holds it: the file is truncated or damaged",
                place=f"byte {at}",
                found=f"{end - payload} bytes",
                expected=f"{stop - payload}",
            )
        yield Field(number, wire_type, at, payload, stop)
        at = stop


def varint(data: bytes, at: int, place: int = 0) -> tuple[int, int]:
    """The number that begins at ``at`` and where it ends.

    Raises:
        BadFile: when it does not end.
    """
    value = 0
    for count in range(_LONGEST_VARINT):
        if at + count >= len(data):
            break
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise BadFile("a protobuf number does not end", place=f"byte {place}")


def encoded_varint(value: int) -> bytes:
    """A number that is not negative, as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def delimited(number: int, length: int) -> bytes:
    """Tag and length of a field of ``length`` bytes."""
    return encoded_varint(number << 3 | DELIMITED) + encoded_varint(length)
