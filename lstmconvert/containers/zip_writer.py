"""Zip archives of plainly stored, aligned arrays, written one after another."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Self

from lstmconvert.pieces import pieces
from lstmconvert.tensors import Lazy

_HEADER = 30
"""Size of a local header without name and extra field."""
_ZIP64 = 20
_PADDING = b"FB"
"""Tag of the extra field that only fills up; the one that torch writes."""
_LARGE = 1 << 31
_DATE = (1980, 1, 1, 0, 0, 0)


class ZipWriter:
    """A new zip archive; its members are stored, its bytes depend on nothing but its contents."""

    def __init__(self, path: Path, *, alignment: int = 1) -> None:
        self._alignment = alignment
        self._file = path.open("xb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def add(self, name: str, data: bytes) -> None:
        """Add a member."""
        with self._zip.open(self._member(name, len(data)), "w") as member:
            member.write(data)

    def add_array(self, name: str, array: Lazy, *, head: bytes = b"") -> None:
        """Add a member of some bytes and then the array's, row-major and little-endian."""
        size = len(head) + array.nbytes
        large = size >= _LARGE
        with self._zip.open(self._member(name, size), "w", force_zip64=large) as member:
            if head:
                member.write(head)
            member.writelines(pieces(array))

    def _member(self, name: str, size: int) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, _DATE)
        info.file_size = size
        header = _HEADER + len(name.encode()) + (_ZIP64 if size >= _LARGE else 0)
        over = (self._file.tell() + header) % self._alignment
        if over:
            # An extra field takes four bytes before its content begins.
            missing = (self._alignment - over - 4) % self._alignment
            info.extra = struct.pack("<2sH", _PADDING, missing) + bytes(missing)
        return info

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._zip.close()
        finally:
            # Else an archive that could not be finished would try again when it is collected.
            self._zip.fp = None
            self._file.close()
