"""Named arrays whose shape and dtype are known at once and whose numbers come when asked for."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lstmconvert.memory import room
from lstmconvert.parallel import LARGE, shared
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = np.ndarray

_Result = TypeVar("_Result")


Ranges = Callable[[int, int], Array]
"""Gives the elements of an array from a first up to a last, row-major and without axes; on any thread."""

Slices = Callable[[int, int], Array]
"""Gives the part of an array from a first up to a last position on one of its axes; on any thread."""


class Lazy:
    """An array of known shape and dtype that is read on demand and not kept.

    While somebody holds the array that ``read`` returned (or a view of it), further calls give the
    same one, so four gates that lie in one tensor cost one read.

    Args:
        shape: its shape.
        dtype: its dtype (bfloat16 and float8 are those of ml_dtypes).
        load: gives the array; called again after the last one was let go.
        ranges: for an array of which a part can be had without the rest; see ``ranges``.
    """

    __slots__ = ("_load", "_memory", "_place", "_ranges", "dtype", "shape")

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        load: Callable[[], Array],
        ranges: Callable[[], Ranges | None] | None = None,
    ) -> None:
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)
        self._load = load
        self._ranges = ranges
        # The owner of the memory that was read last, and where in it this array lies: views that
        # are taken from an array keep its owner alive, not the array itself.
        self._memory: weakref.ref[Array] | None = None
        self._place: tuple[int, tuple[int, ...]] = (0, ())

    @classmethod
    def of(cls, array: Array) -> Lazy:
        """Wrap an array that is in memory already; it is made read-only for whoever asks."""
        view = array.view()
        view.flags.writeable = False
        return Lazy(view.shape, view.dtype, lambda: view)

    @property
    def size(self) -> int:
        """Number of elements."""
        total: int = math.prod(self.shape)
        return total

    @property
    def nbytes(self) -> int:
        """Size in bytes once read."""
        return self.size * int(self.dtype.itemsize)

    def read(self) -> Array:
        """The array, read-only, of exactly the stated shape and dtype."""
        memory = None if self._memory is None else self._memory()
        if memory is not None:
            offset, strides = self._place
            array: Array = np.ndarray(self.shape, self.dtype, memory, offset, strides)
        else:
            array = np.asarray(self._load())  # arithmetic on arrays without axes gives scalars
            if array.shape != self.shape or array.dtype != self.dtype:
                raise AssertionError(
                    f"loader gave {array.dtype} {array.shape}, stated {self.dtype} {self.shape}"
                )
            memory = array.base if isinstance(array.base, np.ndarray) else array
            if memory.flags.c_contiguous:
                self._memory = weakref.ref(memory)
                self._place = array.ctypes.data - memory.ctypes.data, array.strides
        if array.flags.writeable:
            array = array.view()
            array.flags.writeable = False
        return array

    def ranges(self) -> Ranges | None:
        """What gives any range of the elements; ``None`` where the array only comes as a whole.

        What it needs whole of other arrays is read at once, and held as long as it is.
        """
        return None if self._ranges is None else self._ranges()

    def slices(self, axis: int) -> Slices | None:
        """What gives the part between two positions on an axis; ``None`` where that takes most of the rest.

        It holds what ``ranges`` holds.
        """
        inner = math.prod(self.shape[axis + 1 :])
        if inner * self.shape[axis] != self.size:
            return None  # it lies in several pieces
        give = self.ranges()
        if give is None:
            return None
        before, behind = self.shape[:axis], self.shape[axis + 1 :]
        return lambda start, stop: give(inner * start, inner * stop).reshape(*before, stop - start, *behind)

    def map(self, function: Callable[[Array], Array], shape: tuple[int, ...], dtype: Any = None) -> Lazy:
        """What ``function`` makes of this array, as lazily as this one; state the new shape."""
        return Lazy(shape, self.dtype if dtype is None else dtype, lambda: function(self.read()))

    def view(self, function: Callable[[Array], Array], shape: tuple[int, ...]) -> Lazy:
        """As ``map``, for a function that moves nothing: what it returns is a view of what it is given."""
        return _View(self, function, shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.read(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"Lazy({self.dtype}, {self.shape})"


class _View(Lazy):
    """A view of another array, which knows where in it its elements lie."""

    __slots__ = ("_function", "_whole")

    def __init__(self, whole: Lazy, function: Callable[[Array], Array], shape: tuple[int, ...]) -> None:
        super().__init__(shape, whole.dtype, lambda: function(whole.read()))
        self._whole = whole
        self._function = function

    def view(self, function: Callable[[Array], Array], shape: tuple[int, ...]) -> Lazy:
        inner = self._function
        return _View(self._whole, lambda array: function(inner(array)), shape)

    def ranges(self) -> Ranges | None:
        placement = self._placement()
        give = self._whole.ranges() if placement is not None and placement.is_one_piece else None
        if placement is None or give is None:
            return None
        return lambda start, stop: give(placement.first + start, placement.first + stop)

    def slices(self, axis: int) -> Slices | None:
        placement = self._placement()
        if placement is None or min(placement.steps) < 0:
            return None
        step, reach = placement.steps[axis], placement.without(axis).reach
        if max(step, reach) * self.shape[axis] > _WASTE * self.size:
            return None
        give = self._whole.ranges()
        if give is None:
            return None
        strides = [n * self.dtype.itemsize for n in placement.steps]

        def part(start: int, stop: int) -> Array:
            shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
            if stop == start:
                return np.empty(shape, self.dtype)
            first = placement.first + step * start
            elements = give(first, first + step * (stop - start - 1) + reach)
            found: Array = np.ndarray(shape, self.dtype, elements.data, 0, strides)
            return found

        return part

    def _placement(self) -> Placement | None:
        return Placement.of(self._function, self._whole.shape, self._whole.dtype)


_WASTE = 2
"""How many times as many elements as it has a part may be read for."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the elements of a view lie in the array that it was taken of, both counted in elements.

    Attributes:
        first: the place of its first element.
        shape: its shape.
        steps: from one element to the next, for each axis.
    """

    first: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, function: Callable[[Array], Array], shape: tuple[int, ...], dtype: Any) -> Placement | None:
        """Of the view that ``function`` takes of row-major arrays of this shape; see ``between``."""
        memory: Array = np.empty(shape, dtype)  # set aside and never touched, so it costs nothing
        return cls.between(function(memory), memory)

    @classmethod
    def between(cls, view: Array, memory: Array) -> Placement | None:
        """Of a view of a row-major array; ``None`` where there are none, or they are not elements of it."""
        width = memory.itemsize
        first, rest = divmod(_address(view) - _address(memory), width)
        steps = tuple(stride // width for stride in view.strides)
        reach = [step * (length - 1) for step, length in zip(steps, view.shape, strict=True)]
        lowest, highest = first + sum(n for n in reach if n < 0), first + sum(n for n in reach if n > 0)
        exact = rest == 0 and view.itemsize == width and not any(s % width for s in view.strides)
        if not view.size or not exact or lowest < 0 or highest >= memory.size:
            return None
        return cls(first, view.shape, steps)

    @property
    def reach(self) -> int:
        """From the first element up to the last, where no step goes back."""
        return 1 + sum(step * (n - 1) for step, n in zip(self.steps, self.shape, strict=True))

    @property
    def is_one_piece(self) -> bool:
        """Whether the elements follow each other without a gap, in the view's own order."""
        expected = math.prod(self.shape)
        for step, length in zip(self.steps, self.shape, strict=True):
            expected //= length
            if length > 1 and step != expected:
                return False
        return True

    def without(self, axis: int) -> Placement:
        """Of what is at the first position of an axis."""
        shape = (*self.shape[:axis], *self.shape[axis + 1 :])
        return Placement(self.first, shape, (*self.steps[:axis], *self.steps[axis + 1 :]))


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


Tensors = Mapping[str, Lazy]
"""The named arrays of a file, in the order in which the file has them."""


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays have the same shape, dtype and bytes (NaN payloads and -0.0 count)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    whole = f"u{a.dtype.itemsize}"
    if a.dtype.hasobject or a.dtype.itemsize not in (1, 2, 4, 8) or not a.ndim:
        return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    first, second = a.view(whole), b.view(whole)
    if second.flags.c_contiguous:
        first, second = second, first
    height = max(1, _PIECE * a.shape[0] // max(1, a.size))

    def same(start: int, stop: int) -> bool:
        return all(
            _equal(first[row : min(row + height, stop)], second[row : min(row + height, stop)])
            for row in range(start, stop, height)
        )

    return all(_by_rows(same, a))


def copy_into(target: Array, source: Array) -> None:
    """Copy ``source`` into ``target`` (same shape and dtype), in tiles where one of them is transposed.

    A transposition done in one go misses the cache at every element: for 2048 x 8192 float32 it
    takes six times as long as in tiles.
    """
    if not target.ndim:
        target[...] = source
        return

    def copy(start: int, stop: int) -> None:
        one, other = target[start:stop], source[start:stop]
        if one.ndim != 2 or min(one.shape) <= _NARROW or _rows(one) == _rows(other):
            one[...] = other
        elif _rows(one):
            _turn(one, other)
        else:
            _turn(one.T, other.T)

    _by_rows(copy, target)


def _by_rows(work: Callable[[int, int], _Result], array: Array) -> list[_Result]:
    """What is worked out for the rows of an array: all at once, or on all cores where it is large."""
    rows = array.shape[0]
    return [work(0, rows)] if array.nbytes < LARGE else shared(work, rows, _ROWS)


def _equal(a: Array, b: Array) -> bool:
    """Whether arrays of integers are equal; NumPy compares many times faster where both lie in one order."""
    if a.ndim == 2 and _rows(a) != _rows(b):
        ordered = np.empty_like(a)
        copy_into(ordered, b)
        b = ordered
    return bool((a == b).all())


_ROWS = 128
"""The fewest rows of a large array that a core takes."""
_LINES, _RUN = 512, 1024
"""The sides of a tile: how many runs of adjacent elements of the source, and of how many bytes."""
_GAP = 64
"""Bytes between the runs in the copy of a tile."""
_NARROW = 16
_PIECE = 1 << 20
"""Elements that are compared at once."""


def _turn(target: Array, source: Array) -> None:
    """Copy an array whose columns lie together into one whose rows do, in tiles.

    Each tile is first copied as it is: runs that are a power of two apart fall on the same lines of the
    cache, and would push each other out before they are used up. The tiles are as large as the cache of a
    core allows, for threads that take small ones hand the interpreter to and fro.
    """
    run = _RUN // source.itemsize
    copies: Array = np.empty((_LINES, run + _GAP // source.itemsize), source.dtype)
    for row in range(0, source.shape[0], run):
        for column in range(0, source.shape[1], _LINES):
            tile = slice(row, row + run), slice(column, column + _LINES)
            part = source[tile].T
            copy = copies[: part.shape[0], : part.shape[1]]
            copy[...] = part
            target[tile] = copy.T


def _rows(array: Array) -> bool:
    """Whether the elements of a row lie closer together than those of a column."""
    return bool(array.strides[0] > array.strides[1])


def shortest_decimal(value: float) -> float:
    """The shortest decimal that single precision rounds to this: what was meant by the writer of a file."""
    return float(str(np.float32(value)))


def row_major(array: Array) -> Array:
    """The elements of an array in one row; not copied where they lie so already."""
    if not array.flags.c_contiguous:
        ordered: Array = room(array.nbytes).view(array.dtype).reshape(array.shape)
        copy_into(ordered, array)
        array = ordered
    return array.reshape(-1)


def little_endian(array: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of an array, row-major and little-endian; not copied where they lie so already."""
    elements = row_major(array)
    if elements.dtype.byteorder == ">" or (elements.dtype.byteorder == "=" and sys.byteorder == "big"):
        elements = elements.byteswap()
    return elements.view(np.uint8)
