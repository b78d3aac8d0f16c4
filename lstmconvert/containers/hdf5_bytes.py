"""Where the bytes of an HDF5 file lie, and the watch that is kept over what HDF5 reads of them.

HDF5 itself does not survive every damaged file: it searches some for ever and crashes on others. So it
reads through a window in Python, which looks at the bytes before HDF5 acts on them.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.containers import byte_ranges
from lstmconvert.errors import BadFile, ConversionError
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    import h5py

SIGNATURE = b"\x89HDF\r\n\x1a\n"

# How often HDF5 may read a file over; it keeps what it has read, so that once is the rule.
_READ_AT_LEAST = 64 * 2**20
_READ_PER_BYTE = 16

# h5py answers damage with nearly every exception there is, depending on the byte that is wrong.
_DAMAGE = (
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    ArithmeticError,
    MemoryError,
    SystemError,
)


@contextmanager
def damage_is_bad_file(file: object, place: str | None = None) -> Iterator[None]:
    """Turn what h5py raises on damaged bytes into a ``BadFile`` that says where it was."""
    try:
        yield
    except ConversionError as error:
        raise error.located(file=file, place=place) from error.__cause__
    except _DAMAGE as error:
        raise BadFile(
            "the HDF5 structure is damaged",
            file=file,
            place=place,
            found=str(error).strip("'\"")[:200] or type(error).__name__,
            remedy="Copy or download the file again; it may have been cut off.",
        ) from error


# Signatures of the structures that came with HDF5 1.8 (object headers, heaps, trees and indexes).
_NEWER = re.compile(b"OHDR|OCHK|FRHP|FHDB|FHIB|BTHD|BTIN|BTLF|FAHD|EAHD")


_STRINGS = re.compile(b"\x19\x01.\0\x10\0\0\0.{16}(?=\x01)", re.DOTALL)
"""The type of an attribute of strings of any length, padded to 24 bytes, before a dataspace of version 1."""


class Guard:
    """What is looked for in the bytes that HDF5 reads, before it acts on them.

    Attributes:
        allows_newer: whether structures of HDF5 1.8 and later may be read. On damaged ones HDF5 1.14
            can crash the process, so they are tried in another process first.
        met_newer: whether such a structure was met where it is not allowed.
    """

    def __init__(self, *, allows_newer: bool) -> None:
        self.allows_newer = allows_newer
        self.met_newer = False


class _Window(io.RawIOBase):
    """A part of a file, as a file of its own for h5py, which sees no byte unchecked."""

    def __init__(self, read: Callable[[int, memoryview], int], length: int, guard: Guard | None) -> None:
        self._read = read
        self._length = length
        self._guard = guard
        self._position = 0
        self._budget = _READ_AT_LEAST + _READ_PER_BYTE * length
        self._heaps: set[int] = set()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._fill(self._position, view)
        if self._guard is not None:
            if not self._guard.allows_newer and _NEWER.search(view):
                self._guard.met_newer = True
                raise OSError("structures of HDF5 1.8 or later")
            for found in re.finditer(b"GCOL", view):
                self._check_heap(self._position + found.start())
            for found in _STRINGS.finditer(view):
                self._check_strings(view[found.end() :])
        self._position += len(view)
        return len(view)

    def _fill(self, position: int, view: memoryview) -> None:
        self._budget -= len(view)
        if self._budget < 0:
            raise OSError("the structure goes round in circles")
        # h5py ignores how much was read and would go on with whatever lay in its buffer.
        if position < 0 or position + len(view) > self._length:
            raise OSError("reads past the end of the file")
        done = 0
        while done < len(view):
            count = self._read(position + done, view[done:])
            if count == 0:
                raise OSError("the file ends too early")
            done += count

    def _check_strings(self, rest: memoryview) -> None:
        """Refuse strings longer than the file, for which HDF5 would make room before it looks for them.

        ``rest`` is what follows the type of an attribute: its dataspace (version, rank, flags, padding to 8
        bytes, sizes and, by the flags, largest sizes), then a length of 4 bytes and 12 of a place for each
        string. Source: HDF5 file format specification, IV.A.2.m and IV.A.2.b, version 1 of both.
        """
        rank, flags = (rest[1], rest[2]) if len(rest) >= 8 else (0, 0)
        begin = 8 + 8 * rank * (1 + (flags & 1))
        count = math.prod(int.from_bytes(rest[8 * n : 8 * n + 8], "little") for n in range(1, rank + 1))
        for at in range(begin, min(begin + 16 * count, len(rest) - 3), 16):
            if int.from_bytes(rest[at : at + 4], "little") > self._length:
                raise OSError("a string is longer than the file")

    def _check_heap(self, place: int) -> None:
        """Refuse a global heap (where strings lie) in which HDF5 1.14 would search for ever.

        It is a header of 16 bytes (signature, version, size) and objects of 16 bytes (number, uses,
        size) and content; number 0 is free space, whose size counts its own header. Free space of
        size 0 never comes to an end. Source: HDF5 file format specification, III.E.
        """
        if place in self._heaps or place + 16 > self._length:
            return
        self._heaps.add(place)
        header = bytearray(16)
        self._fill(place, memoryview(header))
        size = int.from_bytes(header[8:], "little")
        if not 16 <= size <= self._length - place:
            raise OSError("a heap of strings states a wrong size")
        heap = bytearray(size)
        self._fill(place, memoryview(heap))
        at = 16
        while at + 16 <= size:
            number = int.from_bytes(heap[at : at + 2], "little")
            content = int.from_bytes(heap[at + 8 : at + 16], "little")
            step = content if number == 0 else 16 + (content + 7) // 8 * 8
            if step < 16 or at + step > size:
                raise OSError("a heap of strings states a wrong size")
            at += step


@dataclass(frozen=True, slots=True)
class FileBytes:
    """An HDF5 file that lies in a file: the whole of it, or the part that a stored zip member is.

    Attributes:
        path: the file on the disk.
        start: where the HDF5 bytes begin in it.
        length: how many there are.
    """

    path: Path
    start: int
    length: int

    @property
    def name(self) -> object:
        """What to call it in an error."""
        return self.path

    @contextmanager
    def opened(self, guard: Guard | None) -> Iterator[h5py.File]:
        """The file as h5py sees it, closed afterwards; without a guard no attribute may be read."""
        import h5py

        descriptor = os.open(self.path, os.O_RDONLY)
        try:

            def read(offset: int, view: memoryview) -> int:
                return os.preadv(descriptor, [view], self.start + offset)

            with h5py.File(_Window(read, self.length, guard), "r") as file:
                yield file
        finally:
            os.close(descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes at once, for a look at a compressed chunk."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            return os.pread(descriptor, size, self.start + offset)
        finally:
            os.close(descriptor)

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], place: str) -> Lazy:
        """The array whose bytes lie plainly at ``offset``."""
        return byte_ranges.lazy(self.path, self.start + offset, shape, dtype, place=place)


class HeldBytes:
    """An HDF5 file that was unpacked into memory."""

    def __init__(self, data: bytes, name: object) -> None:
        self._data = data
        self.length = len(data)
        self.name = name

    @contextmanager
    def opened(self, guard: Guard | None) -> Iterator[h5py.File]:
        """The file as h5py sees it; without a guard no attribute may be read."""
        import h5py

        def read(offset: int, view: memoryview) -> int:
            view[:] = self._data[offset : offset + len(view)]
            return len(view)

        with h5py.File(_Window(read, self.length, guard), "r") as file:
            yield file

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes at once, for a look at a compressed chunk."""
        return self._data[offset : offset + size]

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], place: str) -> Lazy:
        """The array whose bytes lie plainly at ``offset``; ``place`` is for errors, of which it has none."""
        del place
        size = math.prod(shape) * dtype.itemsize

        def load() -> Array:
            return byte_ranges.shaped(np.frombuffer(self._data, np.uint8, size, offset), shape, dtype)

        return Lazy(shape, dtype.newbyteorder("="), load)


Source = FileBytes | HeldBytes
