"""Large arrays a piece at a time: small enough for the cache of a core, and where they are cut is fixed.

A gigabyte that is read, turned, digested and written in pieces goes through memory once; done one after the
other with the whole, each of these steps waits for memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from lstmconvert.parallel import LARGE, ahead
from lstmconvert.tensors import Array, Lazy, Ranges, Slices, little_endian, row_major, same_bits

Result = TypeVar("Result")

PIECE = 1 << 21
"""The most bytes of a piece."""


def cuts(tensor: Lazy) -> list[tuple[int, int]]:
    """The first and last elements of the pieces of an array, in order: whole rows, where they are short.

    They depend on shape and dtype alone.
    """
    most = PIECE // tensor.dtype.itemsize
    row = tensor.shape[-1] if tensor.shape else 1
    step = most // row * row if 0 < row <= most else most
    return list(itertools.pairwise([*range(0, tensor.size, step), tensor.size]))


def opened(tensor: Lazy) -> Ranges:
    """What gives any range of the elements; it holds the whole array where there is no better way."""
    give = tensor.ranges() if tensor.nbytes >= LARGE else None
    return give if give is not None else partial(ranged, row_major(tensor.read()))


def ranged(elements: Array, start: int, stop: int) -> Array:
    """The elements between two of an array without axes."""
    return elements[start:stop]


def pieces(tensor: Lazy) -> Iterator[memoryview]:
    """The bytes of an array in order, row-major and little-endian; the next ones are made on other cores."""
    give, ends = opened(tensor), cuts(tensor)
    return ahead(lambda n: little_endian(give(*ends[n])).data, len(ends))


def of_pairs(
    pairs: Sequence[tuple[Lazy, Lazy]], work: Callable[[Array, Array], Result]
) -> Iterator[tuple[int, Result]]:
    """What ``work`` gives for parts of two arrays of one shape that cover them; at most one is read whole.

    Small arrays, and such as do not come in parts, are one part. Arrays that are read whole stay in memory
    until the end, so others that lie in the same tensor are not read again.

    Args:
        pairs: the arrays.
        work: called with the same part of both arrays of a pair; of large ones on several threads.

    Returns:
        The number of the pair beside each result.
    """
    jobs = [(number, job) for number, pair in enumerate(pairs) for job in _jobs(*pair, work)]
    if sum(first.nbytes for first, _ in pairs) < LARGE:
        return ((number, job()) for number, job in jobs)
    return zip((number for number, _ in jobs), ahead(lambda n: jobs[n][1](), len(jobs)), strict=True)


def _jobs(a: Lazy, b: Lazy, work: Callable[[Array, Array], Result]) -> list[Callable[[], Result]]:
    parts = _parts(a, b) if a.nbytes >= LARGE and a.shape == b.shape else None
    if parts is None:
        return [partial(work, a.read(), b.read())]
    axis, first, second = parts
    length = a.shape[axis]
    step = max(1, PIECE * length // a.nbytes)

    def worked(begin: int) -> Result:
        end = min(length, begin + step)
        return work(first(begin, end), second(begin, end))

    return [partial(worked, begin) for begin in range(0, length, step)]


def same(a: Lazy, b: Lazy) -> bool:
    """``same_bits`` of two arrays, of which at most one is read as a whole if they are large."""
    return (a.shape, a.dtype) == (b.shape, b.dtype) and all(
        equal for _, equal in of_pairs([(a, b)], same_bits)
    )


def _parts(a: Lazy, b: Lazy) -> tuple[int, Slices, Slices] | None:
    """An axis along which two arrays are taken in parts, one of them perhaps out of the whole."""
    found = [(n, a.slices(n), b.slices(n)) for n, length in enumerate(a.shape) if length > 1]
    for axis, first, second in found:
        if first is not None and second is not None:
            return axis, first, second
    for axis, first, second in found:
        if first is not None or second is not None:
            return axis, first or sliced(a, axis), second or sliced(b, axis)
    return None


def sliced(tensor: Lazy, axis: int) -> Slices:
    """The parts of an array along an axis; out of the whole, which is held as long, if it has to be."""
    return tensor.slices(axis) or partial(_slice, tensor.read(), axis)


def _slice(array: Array, axis: int, start: int, stop: int) -> Array:
    return array[(*[slice(None)] * axis, slice(start, stop))]
