"""Where the elements of a view lie in the tensor that it was cut from, known without moving one.

A view is a place in memory, lengths and strides: together they say exactly which element of the tensor
every element of the view is. What reading makes of a tensor is found out with a stand-in, memory that is
set aside and never touched, so it costs nothing however large the tensor is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from lstmconvert.tensors import Array, Lazy, Placement
from lstmconvert.values import dataclass


class StandIn:
    """Memory of a tensor's size that is never written to.

    Attributes:
        lazy: what to hand out in the tensor's place.
        shape: its shape.
    """

    def __init__(self, like: Lazy) -> None:
        self._memory: Array = np.empty(like.shape, like.dtype)
        self.shape = like.shape
        self.lazy = Lazy.of(self._memory)

    def region(self, view: Array) -> Region | None:
        """Which elements a view shows; ``None`` when it does not lie in this memory."""
        placement = Placement.between(view, self._memory)
        if placement is None:
            return None
        axes = zip(placement.steps, placement.shape, strict=True)
        return Region(placement.first, tuple((step, length) for step, length in axes if length > 1))


@dataclass(frozen=True, slots=True)
class Region:
    """The elements ``offset + sum(step * i)`` of a tensor in row-major order, ``i < length`` on each axis."""

    offset: int
    axes: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many elements a view of it shows."""
        return math.prod(length for _, length in self.axes)

    def along(self, shape: Sequence[int]) -> list[Array] | None:
        """The positions on each axis of a tensor of this shape whose combinations are the elements.

        ``None`` where a step goes from one row into the next, so that they are no combinations.
        """
        steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        places: list[Array] = [
            np.array([n], np.int64) for n in (int(n) for n in np.unravel_index(self.offset, shape))
        ]
        for step, length in self.axes:
            fitting = (axis for axis, own in enumerate(steps) if shape[axis] > 1 and abs(step) >= own)
            axis = next(fitting, len(shape) - 1)
            factor, rest = divmod(step, steps[axis])
            if rest:
                return None
            places[axis] = (places[axis][:, np.newaxis] + factor * np.arange(length)).ravel()
        inside = all(p.min() >= 0 and p.max() < n for p, n in zip(places, shape, strict=True))
        return places if inside else None

    def elements(self) -> Array:
        """Every element, one by one."""
        found = np.array([self.offset], np.int64)
        for step, length in self.axes:
            found = (found[:, np.newaxis] + step * np.arange(length)).ravel()
        return found


@dataclass(frozen=True, slots=True)
class Cover:
    """An element of a tensor that is shown more than once; else one that is not shown, if there is one."""

    twice: int | None
    missing: int | None


def cover(regions: Sequence[Region], shape: Sequence[int]) -> Cover:
    """Whether each element of a tensor is shown once, exactly, whatever its size.

    Regions that are combinations of positions on the axes are compared axis by axis: two of them share
    an element only if they share positions on every axis, and then they are told apart from none. Those
    that share nothing cover the tensor if they have as many elements as it.
    """
    places = [region.along(shape) for region in regions]
    known = [p for p in places if p is not None]
    if len(known) < len(places):
        return _counted(regions, math.prod(shape))
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    marks = [[_marked(at, length) for at, length in zip(own, shape, strict=True)] for own in known]
    for own, marked in zip(known, marks, strict=True):
        for axis, (positions, mark) in enumerate(zip(own, marked, strict=True)):
            if int(np.count_nonzero(mark)) < positions.size:
                ordered = np.sort(positions)
                corner = [int(p[0]) for p in own]
                corner[axis] = int(ordered[1:][ordered[1:] == ordered[:-1]][0])
                return Cover(sum(n * step for n, step in zip(corner, steps, strict=True)), None)
    for one, two in combinations(marks, 2):
        shared = [a & b for a, b in zip(one, two, strict=True)]
        if all(both.any() for both in shared):
            return Cover(sum(int(s.argmax()) * step for s, step in zip(shared, steps, strict=True)), None)
    if sum(region.size for region in regions) == math.prod(shape):
        return Cover(None, None)
    return _counted(regions, math.prod(shape))


def _marked(positions: Array, length: int) -> Array:
    """Which of the ``length`` places on an axis are among ``positions``."""
    mark: Array = np.zeros(length, np.bool_)
    mark[positions] = True
    return mark


def _counted(regions: Sequence[Region], size: int) -> Cover:
    """The same for regions of any kind, element by element."""
    seen = np.zeros(size, np.uint8)
    twice = None
    for region in regions:
        elements = region.elements()
        ordered = np.sort(elements)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        known = elements[seen[elements] > 0]
        if again.size or known.size:
            twice = int(again[0] if again.size else known[0])
        seen[elements] = 1
    return Cover(twice, None if seen.all() else int(np.argmin(seen)))
