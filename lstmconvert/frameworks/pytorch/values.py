"""Values of the generated ``forward``: how they are spelled, and how their axes lie."""

from __future__ import annotations

import re
from dataclasses import replace

from lstmconvert.frameworks.pytorch.source import bracketed
from lstmconvert.shapes import Shape
from lstmconvert.values import dataclass

_CASTS = {
    "float32": "float", "float64": "double", "float16": "half", "bfloat16": "bfloat16",
    "int64": "long", "int32": "int", "bool": "bool",
}  # fmt: skip
_FLOATING = ("float16", "bfloat16", "float32", "float64")


def is_floating(dtype: str) -> bool:
    """Whether NumPy's name of a dtype is that of a floating one."""
    return dtype in _FLOATING


def cast(code: str, dtype: str) -> str:
    """An expression in another dtype."""
    if dtype in _CASTS:
        return f"{bracketed(code)}.{_CASTS[dtype]}()"
    return f"{bracketed(code)}.to(torch.{dtype})"


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the graph inside ``forward``.

    Attributes:
        code: the expression that gives it.
        shape: its logical shape, batch first and features last.
        dtype: NumPy's name of its dtype.
        channels_first: whether the expression has the features on axis 1, as torch's convolutions do.
    """

    code: str
    shape: Shape
    dtype: str
    channels_first: bool = False

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def variables(self) -> frozenset[str]:
        """The names in its expression."""
        return frozenset(re.findall(r"(?<![.\w])[A-Za-z_]\w*", self.code))

    @property
    def is_atom(self) -> bool:
        """Whether the expression is a name, or an entry of one: nothing is computed."""
        return re.fullmatch(r"[A-Za-z_]\w*(\[-?\d+\])*", self.code) is not None

    @property
    def operand(self) -> str:
        """The expression as an operand."""
        return bracketed(self.code)

    def axis(self, axis: int) -> int:
        """Where a logical axis lies."""
        axis %= self.rank
        if not self.channels_first or axis == 0:
            return axis
        return 1 if axis == self.rank - 1 else axis + 1

    def named(self, code: str) -> Value:
        """Another expression for a value whose axes lie alike."""
        return replace(self, code=code)

    def in_dtype(self, dtype: str) -> Value:
        """The value in another dtype."""
        return self if dtype == self.dtype else replace(self, code=cast(self.code, dtype), dtype=dtype)

    def last(self) -> Value:
        """With the features on the last axis."""
        if not self.channels_first or self.rank < 3:
            return replace(self, channels_first=False)
        order = [0, *range(2, self.rank), 1]
        return replace(self, code=_permuted(self.operand, order), channels_first=False)

    def first(self) -> Value:
        """With the features on axis 1."""
        if self.channels_first or self.rank < 3:
            return replace(self, channels_first=True)
        order = [0, self.rank - 1, *range(1, self.rank - 1)]
        return replace(self, code=_permuted(self.operand, order), channels_first=True)


def _permuted(code: str, order: list[int]) -> str:
    if len(order) == 3:
        return f"{code}.transpose(1, 2)"
    return f"{code}.permute({', '.join(map(str, order))})"
