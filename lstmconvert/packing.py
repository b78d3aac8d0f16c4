"""Tensors put together from blocks, as a whole or any part of them without the rest.

A writer takes a large tensor in pieces that fit into the cache of a core: each is put together there and
written at once, so the tensor never lies in memory as a whole. Where the pieces' elements come from is worked
out from the places, lengths and strides of the same views into which the whole would be copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from lstmconvert.memory import room
from lstmconvert.pieces import sliced
from lstmconvert.tensors import Array, Lazy, Placement, Ranges, Slices, copy_into
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """A block of a tensor.

    Attributes:
        block: the block.
        view: given the tensor, the view of it that the block fills, with the block's axes.
    """

    block: Lazy
    view: Callable[[Array], Array]


def assembled(shape: tuple[int, ...], dtype: np.dtype[np.generic], pieces: Sequence[Piece]) -> Lazy:
    """The tensor of this shape that the blocks make; zeros where there is none.

    Args:
        shape, dtype: of the tensor; the blocks have the same dtype.
        pieces: the blocks, which do not overlap.
    """

    def load() -> Array:
        array: Array = np.zeros(shape, dtype)
        source = None
        for piece in pieces:
            # The last array stays referenced until the next is there: gates that share a tensor are
            # then read from the file once.
            source = piece.block.read()
            copy_into(piece.view(array), source)
        del source
        return array

    return Lazy(shape, dtype, load, lambda: _ranges(shape, dtype, pieces))


@dataclass(frozen=True, slots=True)
class _Band:
    """Consecutive elements of a tensor that blocks fill together, all of them along one axis of each.

    Attributes:
        first: the first element.
        step: elements from one position on that axis to the next, the same for all blocks.
        length: how many positions there are.
        blocks: for each block, where it lies and which axis it is.
    """

    first: int
    step: int
    length: int
    blocks: tuple[tuple[Lazy, Placement, int], ...]

    @property
    def last(self) -> int:
        """The element behind the band's."""
        return self.first + self.step * self.length


def _bands(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], pieces: Sequence[Piece]
) -> list[_Band] | None:
    """The bands that a tensor is made of, in order; ``None`` where its blocks do not lie so."""
    bands: list[_Band] = []
    held: list[tuple[Lazy, Placement]] = []
    for piece in pieces:
        placement = Placement.of(piece.view, shape, dtype)
        if placement is None or not placement.steps or min(placement.steps) < 0:
            return None
        held.append((piece.block, placement))
    for block, placement in sorted(held, key=lambda each: each[1].first):
        axis = max(range(len(placement.steps)), key=lambda n: (placement.shape[n] > 1, placement.steps[n]))
        step, length = placement.steps[axis], placement.shape[axis]
        reach = placement.without(axis).reach
        band = bands[-1] if bands else None
        same_steps = band is not None and (step, length) == (band.step, band.length)
        if band is not None and same_steps and placement.first < band.first + step:
            bands[-1] = _Band(band.first, step, length, (*band.blocks, (block, placement, axis)))
        else:
            bands.append(_Band(placement.first, step, length, ((block, placement, axis),)))
        if placement.first + reach > bands[-1].first + step:
            return None
    if any(one.last > two.first for one, two in pairwise(bands)):
        return None
    return bands


def _ranges(shape: tuple[int, ...], dtype: np.dtype[np.generic], pieces: Sequence[Piece]) -> Ranges | None:
    bands = _bands(shape, dtype, pieces)
    if bands is None:
        return None
    parts = [[sliced(block, axis) for block, _, axis in band.blocks] for band in bands]

    full = sum(piece.block.size for piece in pieces) == math.prod(shape)

    def give(start: int, stop: int) -> Array:
        elements: Array = room((stop - start) * dtype.itemsize).view(dtype)
        if not full:
            elements[...] = np.zeros((), dtype)
        for band, slices in zip(bands, parts, strict=True):
            first = max(0, (start - band.first) // band.step)
            last = min(band.length, -((band.first - stop) // band.step))
            if first >= last:
                continue
            begin, end = band.first + first * band.step, band.first + last * band.step
            if start <= begin and end <= stop:
                _fill(elements[begin - start : end - start], band, slices, first, last)
            else:  # the range begins or ends inside a position
                wider: Array = np.zeros(end - begin, dtype)
                _fill(wider, band, slices, first, last)
                low, high = max(start, begin), min(stop, end)
                elements[low - start : high - start] = wider[low - begin : high - begin]
        return elements

    return give


def _fill(target: Array, band: _Band, slices: Sequence[Slices], first: int, last: int) -> None:
    """Put the positions from ``first`` up to ``last`` of a band into the elements that they make."""
    for (_, placement, axis), part in zip(band.blocks, slices, strict=True):
        shape = (*placement.shape[:axis], last - first, *placement.shape[axis + 1 :])
        strides = [step * target.itemsize for step in placement.steps]
        place = (placement.first - band.first) * target.itemsize
        view: Array = np.ndarray(shape, target.dtype, target.data, place, strides)
        copy_into(view, part(first, last))
