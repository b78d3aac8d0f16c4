"""MATLAB's ``.mat`` files: arrays of numbers, also in structures, of versions 5 to 7 and 7.3.

Version 5 is read by a small reader of our own; 7.3 is HDF5 with the axes turned around. Every array has at
least two axes in MATLAB: a bias is ``(n, 1)`` or ``(1, n)``, for which a mapping file writes
``(gate hidden) ()``. Objects (a ``dlnetwork`` is one) are no arrays and are left out: save their weights as
arrays. ``metadata["ignored"]`` names what was left out.

Source: "MAT-File Format" (MathWorks, 2023), level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

NAME = "mat"
SUFFIXES = (".mat",)

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STRUCTURE = 2
_CLASSES: Mapping[int, str] = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_STORED: Mapping[int, str] = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
_COMPLEX = 0x08
_LARGEST = 1 << 33
_DEEPEST = 16
_MOST_AXES = 32


def probe(path: Path) -> bool:
    """Whether the file has the header of a MAT-file of version 5 to 7.3."""
    try:
        return byte_ranges.read_range(path, 0, _HEADER).startswith((b"MATLAB 5.0", b"MATLAB 7.3"))
    except BadFile:
        return False


def read(path: Path) -> Archive:
    """The arrays of a file, those of structures as ``structure/field``; see the module.

    Raises:
        BadFile: when it is cut short or damaged.
        UnsupportedSource: when it was written by a machine of the other byte order.
    """
    head = byte_ranges.read_range(path, 0, _HEADER)
    if head.startswith(b"MATLAB 7.3"):
        return _read_hdf5(path)
    if head[126:128] != b"IM":
        raise UnsupportedSource("the file was written on a machine of another byte order", file=path)
    tensors: dict[str, Lazy] = {}
    ignored: dict[str, str] = {}
    size = byte_ranges.file_size(path)
    at = _HEADER
    while at + 8 <= size:
        kind, count = struct.unpack("<II", byte_ranges.read_range(path, at, 8))
        if count > size - at - 8:
            raise BadFile("the file ends inside an array", file=path, place=f"byte {at}")
        if kind == _COMPRESSED:
            source: _Source = _Deflated(path, at + 8, count)
        else:
            source = _Plain(path, at, 8 + count)
        try:
            for name, found in _matrix(source, 0, 0):
                if name in tensors or name in ignored:
                    raise BadFile("two arrays have one name", file=path, place=name[:80])
                if isinstance(found, str):
                    ignored[name] = found
                else:
                    tensors[name] = found
        except (struct.error, UnicodeDecodeError) as error:
            raise BadFile("an array is damaged", file=path, place=f"byte {at}") from error
        at += 8 + count + (-count % 8 if kind != _COMPRESSED else 0)
    if at < size or not (tensors or ignored):
        raise BadFile("the file ends inside an array, or before the first", file=path, place=f"byte {at}")
    return Archive(MappingProxyType(tensors), MappingProxyType({"ignored": ignored}))


def _read_hdf5(path: Path) -> Archive:
    from lstmconvert.containers import hdf5

    def turned(tensor: Lazy) -> Lazy:
        return tensor.map(np.transpose, tensor.shape[::-1])

    found = hdf5.read(path)
    tensors = {name: turned(t) for name, t in found.tensors.items() if not name.startswith("#")}
    return Archive(MappingProxyType(tensors), MappingProxyType({"ignored": {}}))


@dataclass(frozen=True, slots=True)
class _Plain:
    """An element as it lies in the file."""

    path: Path
    begin: int
    size: int

    def read(self, offset: int, count: int) -> bytes:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise BadFile("an array ends before its numbers", file=self.path, place=f"byte {self.begin}")
        return byte_ranges.read_range(self.path, self.begin + offset, count)


@dataclass(frozen=True, slots=True)
class _Deflated:
    """An element that is compressed as a whole."""

    path: Path
    begin: int
    stored: int

    @property
    def size(self) -> int:
        kind, count = struct.unpack("<II", self._inflated(8))
        if kind != _MATRIX or count > min(_LARGEST, self.stored * 1100 + 1024):
            raise BadFile("a compressed array is none", file=self.path, place=f"byte {self.begin}")
        return int(count) + 8

    def read(self, offset: int, count: int) -> bytes:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise BadFile("an array ends before its numbers", file=self.path, place=f"byte {self.begin}")
        return self._inflated(offset + count)[offset:]

    def _inflated(self, count: int) -> bytes:
        data = byte_ranges.read_range(self.path, self.begin, self.stored)
        try:
            found = zlib.decompressobj().decompress(data, count)
        except zlib.error as error:
            place = f"byte {self.begin}"
            raise BadFile("a compressed array is damaged", file=self.path, place=place) from error
        if len(found) < count:
            raise BadFile("a compressed array is cut short", file=self.path, place=f"byte {self.begin}")
        return found


_Source = _Plain | _Deflated


@dataclass(frozen=True, slots=True)
class _Element:
    """Type, place and size of an element's data, and where the next element begins."""

    kind: int
    offset: int
    size: int
    following: int


def _element(source: _Source, at: int) -> _Element:
    first, count = struct.unpack("<II", source.read(at, 8))
    if first >> 16:  # short: type, size and up to four bytes of data in one
        return _Element(first & 0xFFFF, at + 4, first >> 16, at + 8)
    return _Element(first, at + 8, count, at + 8 + count + -count % 8)


def _integers(source: _Source, element: _Element) -> tuple[int, ...]:
    if element.kind not in (5, 6) or element.size > 4 * _MOST_AXES or element.size % 4:
        raise BadFile("an array is damaged", file=source.path, place=f"byte {source.begin}")
    return struct.unpack(f"<{element.size // 4}i", source.read(element.offset, element.size))


def _matrix(source: _Source, at: int, depth: int, prefix: str = "") -> Iterator[tuple[str, Lazy | str]]:
    """The arrays of a matrix element; what is none comes as its description."""
    outer = _element(source, at)
    if outer.kind != _MATRIX or depth > _DEEPEST:
        if depth:
            raise BadFile("a structure is damaged", file=source.path, place=prefix[:80])
        return
    if not outer.size:
        return
    flags = _element(source, outer.offset)
    shape_at = _element(source, flags.following)
    name_at = _element(source, shape_at.following)
    word = struct.unpack("<I", source.read(flags.offset, 4))[0]
    kind, is_complex = word & 0xFF, bool(word >> 8 & _COMPLEX)
    shape = _integers(source, shape_at)
    if any(n < 0 for n in shape):
        raise BadFile("the shape of an array is none", file=source.path, found=str(shape)[:80])
    own = source.read(name_at.offset, min(name_at.size, 1024)).decode("utf-8")
    name = f"{prefix}{own}"
    if kind == _STRUCTURE and math.prod(shape) == 1:
        yield from _fields(source, name_at.following, depth, name)
    elif kind in _CLASSES and not is_complex:
        yield name, _numbers(source, _element(source, name_at.following), kind, shape, name)
    else:
        yield name, "complex numbers" if is_complex else f"a value of MATLAB's class {kind}"


def _fields(source: _Source, at: int, depth: int, name: str) -> Iterator[tuple[str, Lazy | str]]:
    length_at = _element(source, at)
    lengths = _integers(source, length_at)
    names_at = _element(source, length_at.following)
    if len(lengths) != 1 or not 0 < lengths[0] <= 256 or names_at.size % lengths[0]:
        raise BadFile("a structure is damaged", file=source.path, place=name[:80])
    length = lengths[0]
    names = source.read(names_at.offset, names_at.size)
    at = names_at.following
    for begin in range(0, len(names), length):
        field = names[begin : begin + length].split(b"\0")[0].decode("utf-8")
        yield from _matrix(source, at, depth + 1, f"{name}/{field}")
        at = _element(source, at).following


def _numbers(source: _Source, data: _Element, kind: int, shape: tuple[int, ...], name: str) -> Lazy:
    stored = np.dtype("<" + _STORED[data.kind]) if data.kind in _STORED else None
    if stored is None or data.size != math.prod(shape) * stored.itemsize:
        raise BadFile("an array has not as many bytes as its shape needs", file=source.path, place=name[:80])
    # Whole numbers are stored in fewer bytes than their class has.
    dtype: np.dtype[Any] = np.dtype(_CLASSES[kind])

    def load() -> Array:
        values = np.frombuffer(source.read(data.offset, data.size), stored)
        array: Array = values.astype(dtype).reshape(shape, order="F")
        return array

    return Lazy(shape, dtype, load)
