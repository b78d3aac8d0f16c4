"""The member table of a zip archive, read strictly, and its members as bytes or arrays.

Knows what weights come in: members stored plainly, whose bytes are ranges of the file, or deflated. An
archive with two members of one name, a member that points outside the archive, members that share bytes,
or one that would grow far beyond its compressed size is refused before anything of it is read.

Source: PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.4, zip64 included.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from lstmconvert.containers import byte_ranges, zip_format
from lstmconvert.containers.byte_ranges import Checksum, read_range
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

LARGEST_GROWTH = 200
"""How many times its compressed size a deflated member may have ..."""
ALWAYS_ALLOWED = 64 << 20
"""... once it is larger than this many bytes."""
LARGEST_TABLE = 256 << 20
"""Bytes of member table; a million members need about 100 MB."""

_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1
_LONGEST_HEAD = 1 << 16


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a zip archive.

    Attributes:
        path: the archive.
        name: its name in the archive, parts joined by ``/``.
        offset: where its bytes begin in the archive's file.
        size: its size in bytes, unpacked.
        stored_size: how many bytes it takes in the archive; ``size`` unless ``compressed``.
        compressed: whether it is deflated.
        crc: CRC-32 of its bytes, or ``None`` when the archive does not say (torch can leave it out).
    """

    path: Path
    name: str
    offset: int
    size: int
    stored_size: int
    compressed: bool
    crc: int | None


def is_zip(path: Path) -> bool:
    """Whether a file begins like a zip archive."""
    try:
        with path.open("rb") as file:
            return file.read(4) in (zip_format.LOCAL_MARK, zip_format.END_MARK)
    except OSError:
        return False


def members(path: Path) -> Mapping[str, Member]:
    """The members of an archive by name, in the archive's order; folders are left out.

    Raises:
        BadFile: when the file is no zip archive, is cut short, contradicts itself, or is unsafe.
        UnsupportedSource: when a member is encrypted, or compressed by another method than deflate.
    """
    found: dict[str, Member] = {}
    size = byte_ranges.file_size(path)
    table_offset, table_size, count = _table_place(path, size)
    if table_size > LARGEST_TABLE:
        raise _damaged(
            path, "its member table is larger than any archive of weights has", f"{table_size} bytes"
        )
    table = read_range(path, table_offset, table_size, place="member table")
    ranges: list[tuple[int, int, str]] = [(table_offset, table_offset + table_size, "member table")]
    with path.open("rb") as file:
        for entry in _entries(path, table, count):
            member = _located(file, path, entry, table_offset)
            if entry.name in found:
                raise _damaged(path, "two members have one name", entry.name)
            ranges.append((entry.header, member.offset + member.stored_size, entry.name))
            if not entry.name.endswith("/"):
                found[entry.name] = member
    ranges.sort()
    for (_, end, _), (begin, _, name) in itertools.pairwise(ranges):
        if begin < end:
            raise _damaged(path, "two members share bytes of the file", name)
    return MappingProxyType(found)


def read_member(member: Member, *, limit: int) -> bytes:
    """All bytes of a member.

    Args:
        member: the member.
        limit: how many bytes are acceptable.

    Raises:
        BadFile: when it is larger, cut short, or does not have the checksum that the archive states.
    """
    if member.size > limit:
        raise BadFile(
            "a member is larger than what it is for can be",
            file=member.path,
            place=member.name,
            found=f"{member.size} bytes",
            expected=f"at most {limit}",
        )
    data = _raw(member).tobytes()
    if member.crc is not None and zlib.crc32(data) != member.crc:
        raise _bad_checksum(member)
    return data


def read_head(member: Member, size: int) -> bytes:
    """The first bytes of a member, fewer than ``size`` where it is shorter; their checksum is not known."""
    if not member.compressed:
        return read_range(member.path, member.offset, min(size, member.size), place=member.name)
    packed = read_range(member.path, member.offset, min(member.stored_size, size + 1024), place=member.name)
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size)
    except zlib.error as error:
        raise BadFile("a compressed member is damaged", file=member.path, place=member.name) from error


def lazy(
    member: Member,
    offset: int,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    strides: tuple[int, ...] | None = None,
) -> Lazy:
    """The array that lies at ``offset`` in a member.

    The checksum of the member is checked whenever the whole of the member after ``offset`` is read.

    Args:
        member: the member.
        offset: where its first element lies, in bytes from the member's beginning.
        shape: its shape.
        dtype: the dtype of the bytes; the array has the native byte order.
        strides: elements from one index to the next, per axis; row-major when left out.

    Raises:
        BadFile: when the array does not lie inside the member.
    """
    stored = np.dtype(dtype)
    size = byte_ranges.extent(shape, strides) * stored.itemsize
    if offset < 0 or offset + size > member.size:
        raise BadFile(
            "a tensor lies outside the member that holds it",
            file=member.path,
            place=member.name,
            found=f"{size} bytes at {offset} of {member.size}",
        )
    if not member.compressed:
        return byte_ranges.lazy(
            member.path,
            member.offset + offset,
            shape,
            stored,
            strides=strides,
            checksum=_checksum(member, offset, size),
            place=member.name,
        )

    def load() -> Array:
        raw = _raw(member)
        if member.crc is not None and zlib.crc32(raw.data) != member.crc:
            raise _bad_checksum(member)
        return byte_ranges.shaped(raw[offset : offset + size], shape, stored, strides)

    return Lazy(shape, stored.newbyteorder("="), load)


def _checksum(member: Member, offset: int, size: int) -> Checksum | None:
    """The checksum of an array that takes all of a stored member but a short head."""
    if member.crc is None or size == 0 or offset + size != member.size or offset > _LONGEST_HEAD:
        return None
    before = read_range(member.path, member.offset, offset, place=member.name)
    return Checksum(zlib.crc32(before), member.crc)


def _raw(member: Member) -> Array:
    """The unpacked bytes of a member."""
    packed = np.frombuffer(
        read_range(member.path, member.offset, member.stored_size, place=member.name), np.uint8
    )
    if not member.compressed:
        return packed
    raw = np.empty(member.size, np.uint8)
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    at, rest = 0, packed.data
    try:
        while at < member.size:
            piece = machine.decompress(rest, min(1 << 20, member.size - at))
            if not piece and (machine.eof or not machine.unconsumed_tail):
                break
            raw[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
            rest = memoryview(machine.unconsumed_tail)
        more = machine.decompress(rest, 1)
    except zlib.error as error:
        raise BadFile("a compressed member is damaged", file=member.path, place=member.name) from error
    if at != member.size or more or not machine.eof:
        raise BadFile(
            "a compressed member does not have the size that the archive states",
            file=member.path,
            place=member.name,
            expected=f"{member.size} bytes",
        )
    return raw


# ------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the member table says of one member."""

    name: str
    raw_name: bytes
    method: int
    crc: int
    size: int
    stored_size: int
    header: int


def _damaged(path: Path, what: str, found: object = None) -> BadFile:
    return BadFile(f"the zip archive is damaged or unsafe: {what}", file=path, found=found)


def _bad_checksum(member: Member) -> BadFile:
    return BadFile(
        "a member does not have the checksum that the archive states",
        file=member.path,
        place=member.name,
        remedy="The file was damaged; fetch or save it again.",
    )


def _table_place(path: Path, size: int) -> tuple[int, int, int]:
    """Offset and size of the member table, and how many members it has."""
    tail_size = min(size, zip_format.END.size + 0xFFFF)
    tail = read_range(path, size - tail_size, tail_size)
    at = tail.rfind(zip_format.END_MARK)
    while at >= 0:
        if at + zip_format.END.size <= len(tail):
            fields = zip_format.END.unpack_from(tail, at)
            if at + zip_format.END.size + fields[7] == len(tail):
                break
        at = tail.rfind(zip_format.END_MARK, 0, at)
    else:
        raise _damaged(path, "it has no end; it was cut short")
    _, disk, table_disk, count_here, count, table_size, table_offset, _ = fields
    end = size - tail_size + at
    if end >= zip_format.END64_LOCATOR.size:
        locator = read_range(path, end - zip_format.END64_LOCATOR.size, zip_format.END64_LOCATOR.size)
        if locator.startswith(zip_format.END64_LOCATOR_MARK):
            end = zip_format.END64_LOCATOR.unpack(locator)[2]
            mark, _, _, _, disk, table_disk, count_here, count, table_size, table_offset = (
                zip_format.END64.unpack(
                    read_range(path, end, zip_format.END64.size, place="zip64 end record")
                )
            )
            if mark != zip_format.END64_MARK:
                raise _damaged(path, "its zip64 end record is not where it should be")
    if disk or table_disk or count != count_here:
        raise UnsupportedSource("the zip archive is one part of several", file=path)
    if table_offset + table_size != end:
        raise _damaged(
            path, "its member table is not where it should be", f"{table_size} bytes at {table_offset}"
        )
    return table_offset, table_size, count


def _entries(path: Path, table: bytes, count: int) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        if at + zip_format.ENTRY.size > len(table):
            raise _damaged(path, "its member table is cut short")
        mark, _, _, flags, method, _, _, crc, stored_size, size, *rest = zip_format.ENTRY.unpack_from(
            table, at
        )
        name_size, extra_size, comment_size, _, _, _, header = rest
        if mark != zip_format.ENTRY_MARK:
            raise _damaged(path, "its member table is not one")
        begin = at + zip_format.ENTRY.size
        at = begin + name_size + extra_size + comment_size
        if at > len(table):
            raise _damaged(path, "its member table is cut short")
        raw_name = table[begin : begin + name_size]
        extra = table[begin + name_size : begin + name_size + extra_size]
        if zip_format.ELSEWHERE in (size, stored_size, header):
            size, stored_size, header = _zip64(path, extra, size, stored_size, header)
        name = _name(path, raw_name, flags)
        if flags & _ENCRYPTED:
            raise UnsupportedSource("a member of the zip archive is encrypted", file=path, place=name)
        if method not in (_STORED, _DEFLATED):
            raise UnsupportedSource(
                "a member of the zip archive is compressed by a method other than deflate",
                file=path,
                place=name,
                found=f"method {method}",
            )
        yield _Entry(name, raw_name, method, crc, size, stored_size, header)
    if at != len(table):
        raise _damaged(path, "its member table has more than it states")


def _zip64(path: Path, extra: bytes, *narrow: int) -> tuple[int, int, int]:
    """The values that did not fit into 32 bits, from the extra field: size, stored size, header offset."""
    at, content = 0, b""
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == zip_format.ZIP64_TAG:
            content = extra[at + 4 : at + 4 + length]
            break
        at += 4 + length
    wide = list(narrow)
    for index, value in enumerate(narrow):
        if value == zip_format.ELSEWHERE:
            if len(content) < 8:
                raise _damaged(path, "a size of 64 bits is missing")
            (wide[index],) = struct.unpack_from("<Q", content)
            content = content[8:]
    return wide[0], wide[1], wide[2]


def _name(path: Path, raw: bytes, flags: int) -> str:
    try:
        name = raw.decode("utf-8" if flags & zip_format.UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise _damaged(path, "the name of a member is not text", raw[:80]) from error
    parts = name.removesuffix("/").split("/")
    unsafe = "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name)
    if unsafe or any(part in ("", ".", "..") for part in parts):
        raise _damaged(path, "the name of a member points outside the archive", repr(name[:80]))
    return name


def _located(file: BinaryIO, path: Path, entry: _Entry, table_offset: int) -> Member:
    """The member that an entry describes."""
    if entry.header + zip_format.LOCAL.size > table_offset:
        raise _damaged(path, "a member lies outside the file", entry.name)
    file.seek(entry.header)
    local = file.read(zip_format.LOCAL.size + len(entry.raw_name))
    if len(local) != zip_format.LOCAL.size + len(entry.raw_name):
        raise _damaged(path, "a member lies outside the file", entry.name)
    mark, *_, name_size, extra_size = zip_format.LOCAL.unpack_from(local)
    if (
        mark != zip_format.LOCAL_MARK
        or name_size != len(entry.raw_name)
        or local[zip_format.LOCAL.size :] != entry.raw_name
    ):
        raise _damaged(path, "a member is not what the member table says", entry.name)
    offset = entry.header + zip_format.LOCAL.size + name_size + extra_size
    compressed = entry.method == _DEFLATED
    if offset + entry.stored_size > table_offset:
        raise _damaged(path, "a member lies outside the file", entry.name)
    if not compressed and entry.size != entry.stored_size:
        raise _damaged(path, "a stored member has two sizes", entry.name)
    if compressed and entry.size > max(ALWAYS_ALLOWED, LARGEST_GROWTH * entry.stored_size):
        raise _damaged(
            path,
            "a member would grow far beyond its compressed size",
            f"{entry.name}: {entry.stored_size} bytes to {entry.size}",
        )
    return Member(path, entry.name, offset, entry.size, entry.stored_size, compressed, entry.crc or None)
