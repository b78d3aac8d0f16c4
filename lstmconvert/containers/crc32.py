"""CRC-32, as zip archives state it, worked out on all cores: that of parts which follow each other is joined.

Python's own ``zlib`` takes four times as long as zlib-ng's, and cannot join.
"""

from __future__ import annotations

from lstmconvert.parallel import LARGE, ahead, shared
from lstmconvert.pieces import cuts, opened
from lstmconvert.tensors import Lazy


def of_bytes(data: memoryview, start: int = 0) -> int:
    """The CRC-32 of bytes in memory, continued from ``start``."""
    from zlib_ng.zlib_ng import crc32, crc32_combine

    parts = shared(lambda begin, end: (crc32(data[begin:end]), end - begin), len(data), LARGE)
    for checksum, length in parts:
        start = crc32_combine(start, checksum, length)
    return start


def of_tensor(tensor: Lazy) -> int:
    """The CRC-32 of an array of bytes, piece by piece."""
    from zlib_ng.zlib_ng import crc32, crc32_combine

    give, ends = opened(tensor), cuts(tensor)
    checksum = 0
    for (begin, end), each in zip(ends, ahead(lambda n: crc32(give(*ends[n]).data), len(ends)), strict=True):
        checksum = crc32_combine(checksum, each, end - begin)
    return checksum
