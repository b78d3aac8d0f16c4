"""One operator of a graph on its way to an operation: what goes in, and how to ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.frameworks.tflite.kernels import Known
from lstmconvert.reading_notes import dequantised
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    from lstmconvert.frameworks.tflite.reader import Reader

Shape = tuple[int | None, ...]


class NotRead(Exception):
    """Why an operator is not read."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A value of the model and its shape (batch first); ``turned`` where the graph has it time first."""

    name: str
    shape: Shape
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """A tensor that is there and of which nothing is known; ``None`` is one that is not there."""


UNKNOWN = Unknown()


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One operator: what goes in, and the tensor that comes out."""

    reader: Reader
    kind: str
    options: Mapping[str, Any]
    given: Sequence[Known | Flow | Unknown | None]
    title: str
    entry: Mapping[str, Any]

    def flow(self, number: int = 0) -> Flow:
        """An input that is a value of the model, its axes as the graph has them."""
        value = self.given[number] if number < len(self.given) else None
        if not isinstance(value, Flow):
            raise NotRead(f"{self.kind} of something that is not understood")
        return self.reader.arranged(value, f"{self.title}/time_first")

    def known(self, number: int) -> Known:
        """An input that is a constant."""
        value = self.given[number] if number < len(self.given) else None
        if not isinstance(value, Known):
            raise NotRead(f"{self.kind} with something that is not a constant")
        return value

    def integers(self, number: int) -> list[int]:
        """A constant of a few integers: axes, a shape."""
        tensor = self.known(number).tensor
        if tensor.dtype.kind not in "iu" or tensor.size > 64:
            raise NotRead(f"{self.kind} with something that is not a few integers")
        return [int(n) for n in tensor.read().ravel()]

    def weight(self, number: int, part: str) -> Lazy:
        """A constant of float32; that it was dequantised is noted under the name of the part."""
        value = self.known(number)
        if value.quantised:
            self.reader.notes.append(dequantised(self.title, part, value.quantised, value.scale))
        if value.tensor.dtype != np.float32:
            raise NotRead(f"{self.kind} with weights of {value.tensor.dtype}")
        return value.tensor

    def shape(self, rank: int) -> Shape:
        """The shape that the file gives the result, of a free batch."""
        if len(self.entry["shape"]) != rank:
            raise NotRead(f"{self.kind} gives a shape that is not understood")
        return (None, *self.entry["shape"][1:])
