"""CRC-32, as zip archives state it, worked out on all cores: that of parts which follow each other is joined.

Source of the joining: the product of two polynomials modulo that of the CRC, ISO 3309 and zlib's
``crc32_combine``; the first CRC is multiplied by x to the number of bits that come behind it.
"""

from __future__ import annotations

import zlib
from functools import cache

from lstmconvert.parallel import LARGE, ahead, shared
from lstmconvert.pieces import cuts, opened
from lstmconvert.tensors import Lazy

_POLYNOMIAL = 0xEDB88320
"""Bit 31 stands for x to the 0."""
_ONE = 1 << 31


def of_bytes(data: memoryview, start: int = 0) -> int:
    """The CRC-32 of bytes in memory, continued from ``start``."""
    parts = shared(lambda begin, end: (zlib.crc32(data[begin:end]), end - begin), len(data), LARGE)
    for checksum, length in parts:
        start = joined(start, checksum, length)
    return start


def of_tensor(tensor: Lazy) -> int:
    """The CRC-32 of an array of bytes, piece by piece."""
    give, ends = opened(tensor), cuts(tensor)
    checksum = 0
    for (begin, end), each in zip(
        ends, ahead(lambda n: zlib.crc32(give(*ends[n]).data), len(ends)), strict=True
    ):
        checksum = joined(checksum, each, end - begin)
    return checksum


def joined(first: int, second: int, length: int) -> int:
    """The CRC-32 of bytes and of ``length`` more, out of that of each."""
    return _product(_shift(length), first) ^ second


@cache
def _shift(length: int) -> int:
    """x to the number of bits in so many bytes, modulo the polynomial."""
    result, power = _ONE, _ONE >> 8
    while length:
        if length & 1:
            result = _product(power, result)
        power = _product(power, power)
        length >>= 1
    return result


def _product(a: int, b: int) -> int:
    result = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            result ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return result
