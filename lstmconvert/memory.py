"""Memory for the numbers of large tensors: where it begins, and that it is used again.

New memory is dear: the system clears every page of it, which takes as long as what is then done with it.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_LINE = 64
_ALIGNED_FROM = 4096
_KEPT_FROM = 1 << 24
"""What is smaller is kept by the C library (see ``_keep_smaller``)."""


def room(size: int, place: int = 0) -> Bytes:
    """Memory for the bytes that lie, or will lie, from ``place`` on in a file; any number may be put there.

    It begins where ``place`` does in a line of the cache, but at a multiple of 16: processors of AMD copy
    five times more slowly to what lies up to half a line behind its source, counted within a page. Files
    begin at the start of a page, and NumPy's large arrays 16 bytes behind it.
    """
    if size < _ALIGNED_FROM:
        return np.empty(size, np.uint8)
    memory = _SPARE.taken(size + _LINE) if size >= _KEPT_FROM else np.empty(size + _LINE, np.uint8)
    address: int = memory.__array_interface__["data"][0]
    start = (place // 16 * 16 - address) % _LINE
    return memory[start : start + size]


class _Spare:
    """The memory of one large array that nobody uses any more, kept for the next."""

    def __init__(self) -> None:
        self._blocks: list[Bytes] = []

    def taken(self, size: int) -> Bytes:
        """An array of at least this size, whose memory is used again when it and all its views are gone."""
        try:
            block = self._blocks.pop()
        except IndexError:
            block = np.empty(size, np.uint8)
        if block.size < size:
            block = np.empty(size, np.uint8)
        # The block itself stays out of sight: what others hold, and watch, is an array of its own.
        array = np.frombuffer(block.data, np.uint8)
        weakref.finalize(array, self._back, block).atexit = False
        return array

    def _back(self, block: Bytes) -> None:
        if not self._blocks:
            self._blocks.append(block)


_SPARE = _Spare()


def _keep_smaller() -> None:
    """Have the C library keep the memory of smaller arrays for the next ones.

    GNU's gives what is larger than 128 KB back to the system each time, until something larger than that was
    let go of: it then keeps as much (``man mallopt``, M_MMAP_THRESHOLD, which grows up to 32 MB). This array
    is never touched, so it costs nothing.
    """
    np.empty(31 << 20, np.uint8)


_keep_smaller()
