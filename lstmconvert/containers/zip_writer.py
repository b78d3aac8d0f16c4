"""Zip archives of plainly stored, aligned members, written one after another.

Not with ``zipfile``, whose checksum is a large part of the time of a large archive. ``zipfile`` of Python
3.11, torch and Keras read what is written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lstmconvert.containers import zip_format
from lstmconvert.pieces import pieces
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

_PLAIN, _ZIP64 = 20, 45
"""Versions of the format."""
_UNIX = 3 << 8
_MODE = 0o100644 << 16
_DATE = 1 << 5 | 1
"""The first of January 1980: the bytes of an archive depend on nothing but its contents."""
_PADDING = b"FB"
"""Tag of the extra field that only fills up; the one that torch writes."""
_LIMIT, _MOST_MEMBERS = zip_format.ELSEWHERE, zip_format.COUNTED_ELSEWHERE
"""Sizes and offsets, and numbers of members, from which on ZIP64 has them."""

Sink = Callable[[Any], None]
"""Takes the next bytes, in any buffer."""


@dataclass(frozen=True, slots=True)
class _Member:
    """What the directory says of a member."""

    name: bytes
    offset: int
    crc: int
    size: int

    @property
    def flags(self) -> int:
        return 0 if self.name.isascii() else zip_format.UTF8


class ZipWriter:
    """A new zip archive.

    Args:
        path: the file, which must not exist.
        alignment: the content of every member begins at a multiple of it.
    """

    def __init__(self, path: Path, *, alignment: int = 1) -> None:
        self._alignment = alignment
        self._members: list[_Member] = []
        self._file = path.open("xb")

    def add(self, name: str, data: bytes) -> None:
        """Add a member."""
        with self._member(name, len(data)) as sink:
            sink(data)

    def add_array(self, name: str, array: Lazy, *, head: bytes = b"") -> None:
        """Add a member of some bytes and then the array's, row-major and little-endian."""
        with self._member(name, len(head) + array.nbytes) as sink:
            sink(head)
            for piece in pieces(array):
                sink(piece)

    def open(self, name: str) -> AbstractContextManager[Sink]:
        """Add a member whose size is not known before: the bytes that are handed to what this gives."""
        return self._member(name, None)

    @contextmanager
    def _member(self, name: str, size: int | None) -> Iterator[Sink]:
        from zlib_ng.zlib_ng import crc32

        encoded = name.encode()
        offset = self._file.tell()
        large = size is None or size >= _LIMIT
        extra = 20 if large else 0
        padding = -(offset + zip_format.LOCAL.size + len(encoded) + extra) % self._alignment
        while 0 < padding < 4:  # tag and length of an extra field take four bytes
            padding += self._alignment
        self._file.write(bytes(zip_format.LOCAL.size + len(encoded) + extra + padding))
        checksum = written = 0

        def sink(data: Any) -> None:
            nonlocal checksum, written
            checksum = crc32(data, checksum)
            written += memoryview(data).nbytes
            self._file.write(data)

        yield sink
        member = _Member(encoded, offset, checksum, written)
        self._members.append(member)
        end = self._file.tell()
        self._file.seek(offset)
        self._file.write(_local(member, large=large, padding=padding))
        self._file.seek(end)

    def _finish(self) -> None:
        """Write the directory."""
        start = self._file.tell()
        for member in self._members:
            self._file.write(_central(member))
        size, count = self._file.tell() - start, len(self._members)
        many = count >= _MOST_MEMBERS
        if many or size >= _LIMIT or start >= _LIMIT:
            head = zip_format.END64_MARK, zip_format.END64.size - 12, _UNIX | _ZIP64, _ZIP64, 0, 0
            self._file.write(zip_format.END64.pack(*head, count, count, size, start))
            self._file.write(zip_format.END64_LOCATOR.pack(zip_format.END64_LOCATOR_MARK, 0, start + size, 1))
        held = zip_format.COUNTED_ELSEWHERE if many else count
        self._file.write(
            zip_format.END.pack(zip_format.END_MARK, 0, 0, held, held, _held(size), _held(start), 0)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._finish()


def _held(number: int) -> int:
    """What a plain field says of a size or an offset."""
    return number if number < _LIMIT else zip_format.ELSEWHERE


def _local(member: _Member, *, large: bool, padding: int) -> bytes:
    """What stands before the content of a member."""
    extra = struct.pack("<HHQQ", zip_format.ZIP64_TAG, 16, member.size, member.size) if large else b""
    if padding:
        extra += struct.pack("<2sH", _PADDING, padding - 4) + bytes(padding - 4)
    size = zip_format.ELSEWHERE if large else member.size
    version = _ZIP64 if large else _PLAIN
    fields = version, member.flags, 0, 0, _DATE, member.crc, size, size, len(member.name), len(extra)
    return zip_format.LOCAL.pack(zip_format.LOCAL_MARK, *fields) + member.name + extra


def _central(member: _Member) -> bytes:
    """The entry of a member in the directory."""
    beyond = [n for n in (member.size, member.size, member.offset) if n >= _LIMIT]
    extra = (
        struct.pack(f"<HH{len(beyond)}Q", zip_format.ZIP64_TAG, 8 * len(beyond), *beyond) if beyond else b""
    )
    size, offset = _held(member.size), _held(member.offset)
    version = _ZIP64 if beyond else _PLAIN
    fields = _UNIX | version, version, member.flags, 0, 0, _DATE, member.crc, size, size
    tail = len(member.name), len(extra), 0, 0, 0, _MODE, offset
    return zip_format.ENTRY.pack(zip_format.ENTRY_MARK, *fields, *tail) + member.name + extra
