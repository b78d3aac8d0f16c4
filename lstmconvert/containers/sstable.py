"""Sorted tables of LevelDB, as TensorFlow writes them into the ``.index`` of a TensorBundle.

A table is data blocks, an index block and a footer. A block is entries (shared length, own length, value
length, own part of the key, value), restart points and their number, then one byte for the compression
and a masked CRC-32C. Source: "leveldb File format" (table_format.md) of LevelDB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from lstmconvert.containers import byte_ranges
from lstmconvert.containers.crc32c import crc32c, masked
from lstmconvert.containers.protobuf_wire import encoded_varint, varint
from lstmconvert.errors import BadFile, UnsupportedSource

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
FOOTER = 48
_TRAILER = 5
_RESTART_INTERVAL = 16
_BLOCK = 1 << 18


def read(path: Path) -> dict[bytes, bytes]:
    """All entries, in the order of their keys.

    Raises:
        BadFile: when the table is truncated or damaged.
        UnsupportedSource: when a block is compressed (TensorFlow never compresses the index of a bundle).
    """
    size = byte_ranges.file_size(path)
    if size < FOOTER:
        raise BadFile("the file is too short for a table", file=path, found=f"{size} bytes")
    footer = byte_ranges.read_range(path, size - FOOTER, FOOTER)
    if not footer.endswith(MAGIC):
        raise BadFile("the file does not end like a table: it is truncated or something else", file=path)
    try:
        _, at = _handle(footer, 0)
        index, _ = _handle(footer, at)
        result: dict[bytes, bytes] = {}
        before: bytes | None = None
        for _, value in _entries(_block(path, size, index)):
            place, _ = _handle(value, 0)
            for key, text in _entries(_block(path, size, place)):
                if before is not None and key <= before:
                    raise BadFile("the keys of the table are not in order", place=repr(key)[:80])
                result[key] = text
                before = key
        return result
    except (BadFile, UnsupportedSource) as error:
        raise error.located(file=path) from error.__cause__


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where the handle ends."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(path: Path, file_size: int, handle: tuple[int, int]) -> bytes:
    offset, size = handle
    if offset + size + _TRAILER > file_size:
        raise BadFile("a block lies outside the table", found=f"{size} bytes at {offset} of {file_size}")
    data = byte_ranges.read_range(path, offset, size + _TRAILER)
    (stored,) = struct.unpack_from("<I", data, size + 1)
    if masked(crc32c(data[: size + 1])) != stored:
        raise BadFile(
            "a block does not have the checksum that the table states",
            place=f"byte {offset}",
            remedy="The file was damaged; fetch or save it again.",
        )
    if data[size] != 0:
        raise UnsupportedSource(
            "a block of the table is compressed", place=f"byte {offset}", found=data[size]
        )
    return data[:size]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    if len(block) < 4:
        raise BadFile("a block is too short", found=f"{len(block)} bytes")
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise BadFile("a block has more restart points than bytes", found=restarts)
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + own + length > end:
            raise BadFile("an entry runs past its block")
        key = key[:shared] + block[at : at + own]
        at += own
        yield key, block[at : at + length]
        at += length


def write(path: Path, entries: Mapping[bytes, bytes]) -> None:
    """Write entries to the new file ``path``, sorted."""
    index: list[tuple[bytes, bytes]] = []
    with path.open("xb") as file:
        at = 0

        def put(pairs: list[tuple[bytes, bytes]], interval: int) -> bytes:
            nonlocal at
            data = _packed(pairs, interval)
            file.write(data + b"\0" + struct.pack("<I", masked(crc32c(data + b"\0"))))
            handle = encoded_varint(at) + encoded_varint(len(data))
            at += len(data) + _TRAILER
            return handle

        held: list[tuple[bytes, bytes]] = []
        size = 0
        for pair in sorted(entries.items()):
            held.append(pair)
            size += len(pair[0]) + len(pair[1])
            if size >= _BLOCK:
                index.append((pair[0], put(held, _RESTART_INTERVAL)))
                held, size = [], 0
        if held:
            index.append((held[-1][0], put(held, _RESTART_INTERVAL)))
        footer = put([], 1) + put(index, 1)
        file.write(footer.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC)


def _packed(pairs: list[tuple[bytes, bytes]], interval: int) -> bytes:
    """A block without its trailer."""
    out = bytearray()
    restarts = [0]
    before = b""
    for number, (key, value) in enumerate(pairs):
        shared = 0
        if number % interval == 0:
            if number:
                restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += encoded_varint(shared) + encoded_varint(len(key) - shared) + encoded_varint(len(value))
        out += key[shared:] + value
        before = key
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
