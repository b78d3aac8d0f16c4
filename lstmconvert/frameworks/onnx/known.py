"""What can be known of a value in an ONNX graph: a constant, a broadcast of one, or a partly known shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

_LARGEST = 1 << 33  # bytes that a computed constant may have: a hostile file can ask for any number
_MOST_SHAPE_ENTRIES = 1024


@dataclass(frozen=True, slots=True)
class Spread:
    """A constant that was broadcast to a shape that depends on the model's inputs."""

    base: Lazy


@dataclass(frozen=True, slots=True)
class Size:
    """A length that is free, as a symbol: the axes (by serial number) whose product it is."""

    factors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Partial:
    """A vector, or with ``scalar`` a single number, of integers of which some are symbols or not known."""

    values: tuple[int | Size | None, ...]
    scalar: bool = False


@dataclass(frozen=True, slots=True)
class UnknownShape:
    """The shape of a value of which not even the number of axes is known."""


UNKNOWN_SHAPE = UnknownShape()

Known = Lazy | Spread | Partial | UnknownShape
Results = Sequence[Known | None] | None


@dataclass(frozen=True, slots=True)
class Operator:
    """A node with what is known of its inputs.

    Attributes:
        inputs: what is known; ``None`` where an input is left out or not known.
        given: whether each input is there at all.
        attributes: the attributes that are given; tensors as ``Lazy``.
        opset: version of its operator set.
        outputs: how many outputs it has.
    """

    kind: str
    inputs: tuple[Known | None, ...]
    given: tuple[bool, ...]
    attributes: Mapping[str, Any]
    opset: int
    outputs: int

    def input(self, index: int) -> Known | None:
        """What is known of an input; ``None`` where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def array(self, index: int) -> Lazy | None:
        """An input that is a constant."""
        known = self.input(index)
        return known if isinstance(known, Lazy) else None

    def integers(self, index: int) -> tuple[int, ...] | None:
        """A short constant vector (or single number) of integers."""
        array = self.array(index)
        if array is None or array.size > _MOST_SHAPE_ENTRIES or array.dtype.kind not in "iu":
            return None
        return tuple(int(n) for n in array.read().reshape(-1))

    def option(self, name: str, index: int) -> tuple[int, ...] | None:
        """Integers that older opsets have as an attribute and newer ones as an input."""
        if name in self.attributes:
            return tuple(self.attributes[name])
        return self.integers(index)

    def is_given(self, index: int) -> bool:
        """Whether an input is there."""
        return index < len(self.given) and self.given[index]


def partial(known: Known | None) -> Partial | None:
    """Integers as a vector with holes, where they are known as such."""
    if isinstance(known, Partial):
        return known
    if not isinstance(known, Lazy) or known.dtype.kind not in "iu":
        return None
    if len(known.shape) > 1 or known.size > _MOST_SHAPE_ENTRIES:
        return None
    return Partial(tuple(int(n) for n in known.read().reshape(-1)), scalar=not known.shape)


def whole(partial: Partial) -> Known:
    """The same as a constant once there are no holes."""
    if not all(isinstance(value, int) for value in partial.values):
        return partial
    values = np.array(partial.values, np.int64)
    return Lazy.of(values.reshape(()) if partial.scalar else values)


def uniform(known: Known | None) -> Array | None:
    """The one value that all elements have, of a broadcast scalar."""
    if isinstance(known, Spread) and known.base.size == 1:
        return known.base.read().reshape(())
    return None


def bounded(array: Lazy) -> Lazy | None:
    """The array, unless it is larger than can be meant."""
    return array if array.nbytes <= _LARGEST else None


def normal_axes(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the front; raises ValueError on one that is not there, or twice."""
    normal = [axis + rank if axis < 0 else axis for axis in axes]
    if any(not 0 <= axis < rank for axis in normal) or len(set(normal)) < len(normal):
        raise ValueError(f"axes {list(axes)} of {rank}")
    return normal


def reshaped(array: Lazy, shape: tuple[int, ...]) -> Lazy:
    """The array in another shape."""
    return array.map(lambda a: a.reshape(shape), shape)
