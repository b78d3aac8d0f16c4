"""FlatBuffers, read piece by piece and written front to back, by a schema given as a value.

The ``flatbuffers`` package trusts every offset of a file and builds a new one in memory as a whole; here
every offset is checked, nothing but what the schema names is followed, and large vectors of bytes stay where
they are: on reading they are ranges of the file, on writing they come last, one after the other.

A schema is a table of tables: name to fields, each field its number in the table and its type. A type is a
scalar's name with an optional default (``int32``, ``int32=1``), ``string``, ``range`` for a vector of bytes
that is not read, a table's name, any of them but ``range`` in brackets for a vector, or ``union FIELD`` for
one of the tables in the schema's ``unions``, chosen by the number in FIELD.

Source: "FlatBuffers internals" in the documentation of FlatBuffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lstmconvert.containers import byte_ranges
from lstmconvert.errors import BadFile
from lstmconvert.values import dataclass

LARGEST = (1 << 31) - 1
"""Bytes that offsets can span."""
_PAGE = 1 << 16
_PAGES = 64
_MOST_TABLES = 1 << 17
_MOST_NUMBERS = 1 << 22
_SCALARS: Mapping[str, str] = MappingProxyType(
    {
        "bool": "?", "int8": "b", "uint8": "B", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q",
        "float32": "f",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables by name, and the tables that a union's numbers stand for."""

    tables: Mapping[str, Mapping[str, tuple[int, str]]]
    unions: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a file that were not read."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are written last; only their number is known."""

    key: Any
    size: int


@dataclass(frozen=True, slots=True)
class Laid:
    """A file without its blobs: its first bytes, and where the content of each blob begins.

    What lies between is zeros.
    """

    head: bytes
    blobs: tuple[tuple[Blob, int], ...]
    size: int


@cache
def _scalar(kind: str) -> tuple[struct.Struct, Any] | None:
    """How a scalar is stored, and its default."""
    name, _, default = kind.partition("=")
    if name not in _SCALARS:
        return None
    form = struct.Struct("<" + _SCALARS[name])
    if name == "bool":
        return form, default == "1"
    return form, float(default or 0) if name == "float32" else int(default or 0)


# Reading.


def read(path: Path, schema: Schema, root: str) -> dict[str, Any]:
    """The root table of a file, and all that it holds, as dictionaries.

    Absent scalars have their defaults, absent vectors are ``()``, absent texts ``""`` and absent tables
    ``None``; so is a union of a table that the schema does not name.

    Raises:
        BadFile: when an offset leads out of the file, or tables are shared so often that they have no end.
    """
    return _Reader(path, schema).table(root, 0)


class _Reader:
    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self.schema = schema
        self.size = byte_ranges.file_size(path)
        self.pages: dict[int, bytes] = {}
        self.left = 4 * self.size + _PAGE
        self.tables = 0
        self.numbers = 0

    def take(self, offset: int, size: int, place: str) -> bytes:
        """Bytes of the file; all that is taken together is bounded by a multiple of the file's size."""
        self.left -= size
        if offset < 0 or offset + size > self.size:
            raise BadFile(
                "an offset leads out of the file",
                place=place,
                found=f"{size} bytes at {offset} of {self.size}",
                remedy="The file is cut short or damaged.",
            )
        if self.left < 0:
            raise BadFile("the tables of the file refer to each other without end", place=place)
        if size > _PAGE:
            return byte_ranges.read_range(self.path, offset, size)
        parts = []
        while size:
            number, start = divmod(offset, _PAGE)
            part = self._page(number)[start : start + size]
            if not part:
                raise BadFile("the file ends inside a table", place=place)
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _page(self, number: int) -> bytes:
        page = self.pages.get(number)
        if page is None:
            if len(self.pages) >= _PAGES:
                self.pages.pop(next(iter(self.pages)))
            start = number * _PAGE
            page = byte_ranges.read_range(self.path, start, min(_PAGE, self.size - start))
            self.pages[number] = page
        return page

    def number(self, form: str, offset: int, place: str) -> int:
        value: int = struct.unpack("<" + form, self.take(offset, struct.calcsize(form), place))[0]
        return value

    def table(self, name: str, reference: int) -> dict[str, Any]:
        """The table that the offset at ``reference`` leads to."""
        self.tables += 1
        if self.tables > _MOST_TABLES:
            raise BadFile("the file has more tables than any model", place=name)
        start = reference + self.number("I", reference, name)
        described = start - self.number("i", start, name)
        # Two lengths in bytes, its own and the table's, then a place in the table for each field.
        length = self.number("H", described, name)
        if length < 4 or length % 2:
            raise BadFile("a table is described by an impossible length", place=name, found=length)
        places = struct.unpack(f"<{length // 2}H", self.take(described, length, name))[2:]
        found: dict[str, Any] = {}
        for key, (number, kind) in self.schema.tables[name].items():
            place = places[number] if number < len(places) else 0
            found[key] = self._value(kind, start + place if place else None, f"{name}.{key}", found)
        return found

    def _value(self, kind: str, at: int | None, place: str, found: Mapping[str, Any]) -> Any:
        if (scalar := _scalar(kind)) is not None:
            form, default = scalar
            return default if at is None else form.unpack(self.take(at, form.size, place))[0]
        if kind.startswith("union "):
            name = self.schema.unions.get(found[kind[6:]])
            return None if name is None or at is None else self.table(name, at)
        if kind == "range":
            return None if at is None else self._range(at, place)
        if kind == "string":
            return "" if at is None else self._text(at, place)
        if kind.startswith("["):
            return () if at is None else self._vector(kind[1:-1], at, place)
        return None if at is None else self.table(kind, at)

    def _range(self, at: int, place: str) -> Range:
        start = at + self.number("I", at, place)
        size = self.number("I", start, place)
        if start + 4 + size > self.size:
            raise BadFile(
                "a vector leads out of the file",
                place=place,
                found=f"{size} bytes at {start + 4} of {self.size}",
                remedy="The file is cut short or damaged.",
            )
        return Range(start + 4, size)

    def _text(self, at: int, place: str) -> str:
        found = self._range(at, place)
        return self.take(found.offset, found.size, place).decode("utf-8", "replace")

    def _vector(self, kind: str, at: int, place: str) -> tuple[Any, ...]:
        start = at + self.number("I", at, place)
        count = self.number("I", start, place)
        if (scalar := _scalar(kind)) is not None:
            self.numbers += count
            if self.numbers > _MOST_NUMBERS:
                raise BadFile("the file has more numbers in its tables than any model", place=place)
            code = scalar[0].format[1:]
            size = count * scalar[0].size
            return struct.unpack(f"<{count}{code}", self.take(start + 4, size, place)) if size else ()
        if start + 4 + 4 * count > self.size:
            raise BadFile("a vector leads out of the file", place=place, found=f"{count} entries")
        entries = range(start + 4, start + 4 + 4 * count, 4)
        if kind == "string":
            return tuple(self._text(entry, place) for entry in entries)
        return tuple(self.table(kind, entry) for entry in entries)


# Writing.


def lay_out(schema: Schema, root: str, value: Mapping[str, Any], identifier: bytes) -> Laid:
    """Where everything of a file lies: a table is followed by what it refers to, blobs come last.

    Fields that are absent, or have their default, are left out.
    """
    return _Writer(schema).lay_out(root, value, identifier)


class _Writer:
    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.out = bytearray()
        self.blobs: list[tuple[Blob, int]] = []

    def lay_out(self, root: str, value: Mapping[str, Any], identifier: bytes) -> Laid:
        self.out += b"\0\0\0\0" + identifier
        self._table(root, value, 0)
        end = len(self.out)
        placed = []
        for blob, reference in self.blobs:
            # The content of a vector of bytes begins at a multiple of 16, its length stands before it.
            start = end + 4 + -(end + 4) % 16
            struct.pack_into("<I", self.out, reference, start - 4 - reference)
            placed.append((blob, start))
            end = start + blob.size
        return Laid(bytes(self.out), tuple(placed), end)

    def _align(self, size: int, ahead: int = 0) -> None:
        """Pad so that what comes ``ahead`` bytes later begins at a multiple of ``size``."""
        self.out += bytes(-(len(self.out) + ahead) % size)

    def _point(self, reference: int) -> None:
        """Let the offset at ``reference`` lead to what is written next."""
        struct.pack_into("<I", self.out, reference, len(self.out) - reference)

    def _table(self, name: str, value: Mapping[str, Any], reference: int) -> None:
        present = [
            (number, key, kind)
            for key, (number, kind) in self.schema.tables[name].items()
            if not self._absent(kind, value.get(key))
        ]
        count = 1 + max((number for number, _, _ in present), default=-1)
        sizes = {number: self._size(kind) for number, _, kind in present}
        self._align(8, ahead=4 + 2 * count)
        described = len(self.out)
        self.out += bytes(4 + 2 * count)
        start = len(self.out)
        self._point(reference)
        self.out += struct.pack("<i", start - described)
        places: dict[int, int] = {}
        for number in sorted(sizes, key=lambda number: -sizes[number]):
            self._align(sizes[number])
            places[number] = len(self.out) - start
            self.out += bytes(sizes[number])
        struct.pack_into("<HH", self.out, described, 4 + 2 * count, len(self.out) - start)
        for number, place in places.items():
            struct.pack_into("<H", self.out, described + 4 + 2 * number, place)
        for number, key, kind in present:
            self._field(kind, value[key], start + places[number], value)

    def _absent(self, kind: str, value: Any) -> bool:
        scalar = _scalar(kind)
        if scalar is not None:
            return value is None or bool(value == scalar[1])
        return value is None or (kind == "string" and value == "")

    def _size(self, kind: str) -> int:
        scalar = _scalar(kind)
        return 4 if scalar is None else scalar[0].size

    def _field(self, kind: str, value: Any, at: int, table: Mapping[str, Any]) -> None:
        if (scalar := _scalar(kind)) is not None:
            scalar[0].pack_into(self.out, at, value)
        elif kind.startswith("union "):
            self._table(self.schema.unions[table[kind[6:]]], value, at)
        elif kind == "range":
            self.blobs.append((value, at))
        elif kind == "string":
            self._string(value, at)
        elif kind.startswith("["):
            self._vector(kind[1:-1], value, at)
        else:
            self._table(kind, value, at)

    def _string(self, text: str, at: int) -> None:
        data = text.encode("utf-8")
        self._align(4)
        self._point(at)
        self.out += struct.pack("<I", len(data)) + data + b"\0"

    def _vector(self, kind: str, items: Sequence[Any], at: int) -> None:
        scalar = _scalar(kind)
        self._align(max(4, 4 if scalar is None else scalar[0].size), ahead=4)
        self._align(4)
        self._point(at)
        self.out += struct.pack("<I", len(items))
        if scalar is not None:
            self.out += struct.pack(f"<{len(items)}{scalar[0].format[1:]}", *items)
            return
        first = len(self.out)
        self.out += bytes(4 * len(items))
        for number, item in enumerate(items):
            if kind == "string":
                self._string(item, first + 4 * number)
            else:
                self._table(kind, item, first + 4 * number)


def pieces(laid: Laid) -> Iterator[tuple[bytes, Blob | None]]:
    """What to write, in order: bytes, then the content of a blob, if one follows."""
    held, end = laid.head, len(laid.head)
    for blob, start in laid.blobs:
        yield held + bytes(start - 4 - end) + struct.pack("<I", blob.size), blob
        held, end = b"", start + blob.size
    yield held + bytes(laid.size - end), None
