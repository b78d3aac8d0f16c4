"""NumPy arrays inside pickles, rebuilt without NumPy's own (executing) reader.

Source: ``numpy.ndarray.__reduce_ex__`` and ``numpy.dtype.__reduce__`` of NumPy 1.26 and 2.x.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lstmconvert.containers import byte_ranges
from lstmconvert.containers.pickle_objects import Constructor, Global, Span
from lstmconvert.errors import BadFile
from lstmconvert.tensors import Lazy

_MOST_AXES = 32
_ML_DTYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


class PickledDtype:
    """A dtype; ``number`` is ``None`` for what is no plain number (text, objects, records)."""

    def __init__(self, code: str, number: np.dtype[Any] | None) -> None:
        self.code = code
        self.number = number

    def restore(self, state: object) -> None:
        """Take the byte order."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise BadFile("a pickled dtype has no byte order")
        if self.number is not None and state[1] in ("<", ">"):
            self.number = self.number.newbyteorder(state[1])


class PickledArray:
    """An array whose shape, dtype and bytes come after it was begun."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype = PickledDtype("nothing", None)
        self.fortran = False
        self.data: bytes | Span | None = None

    def restore(self, state: object) -> None:
        """Take ``(version, shape, dtype, whether columns come first, bytes)``."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise BadFile("a pickled array has no state that is known")
        self.fill(*state[1:])

    def fill(self, shape: object, dtype: object, fortran: object, data: object) -> None:
        """Take shape, dtype, order and bytes, checked against one another."""
        self.shape = checked_shape(shape)
        if not isinstance(dtype, PickledDtype) or not isinstance(fortran, bool | int):
            raise BadFile("a pickled array has no dtype")
        self.dtype, self.fortran = dtype, bool(fortran)
        if dtype.number is None:
            return
        if isinstance(data, str):
            data = data.encode()  # What Python 2 wrote as a string, and was text by chance.
        if not isinstance(data, bytes | Span):
            raise BadFile("a pickled array has no bytes")
        size = data.size if isinstance(data, Span) else len(data)
        if size != math.prod(self.shape) * dtype.number.itemsize:
            raise BadFile(
                "a pickled array has not as many bytes as its shape needs",
                found=f"{size} bytes",
                expected=f"{dtype.number} {list(self.shape)}",
            )
        self.data = data

    def lazy(self, path: Path | None = None) -> Lazy | None:
        """The array of numbers; ``None`` when it holds something else.

        Args:
            path: the file that the pickle is, where its long byte strings were left in it.
        """
        data, dtype, shape = self.data, self.dtype.number, self.shape
        if dtype is None or data is None:
            return None
        strides = None
        if self.fortran:
            strides = tuple(math.prod(shape[:axis]) for axis in range(len(shape)))
        if isinstance(data, Span):
            assert path is not None
            return byte_ranges.lazy(path, data.offset, shape, dtype, strides=strides)
        raw = np.frombuffer(data, np.uint8)
        native = dtype.newbyteorder("=")
        return Lazy(shape, native, lambda: byte_ranges.shaped(raw, shape, dtype, strides))


def checked_shape(shape: object) -> tuple[int, ...]:
    """A shape out of a file: a tuple of lengths.

    Raises:
        BadFile: when it is none.
    """
    if isinstance(shape, list):
        shape = tuple(shape)
    if not isinstance(shape, tuple) or len(shape) > _MOST_AXES:
        raise BadFile("the shape of an array is none", found=repr(shape)[:80])
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in shape):
        raise BadFile("the shape of an array is none", found=repr(shape)[:80])
    return shape


def _dtype(code: object, _align: object = False, _copy: object = True) -> PickledDtype:
    if isinstance(code, Global):
        name = code.name.removeprefix("ml_dtypes.")
        if name in _ML_DTYPES:
            import ml_dtypes

            return PickledDtype(name, np.dtype(getattr(ml_dtypes, name)))
        return PickledDtype(code.name, None)
    if not isinstance(code, str):
        raise BadFile("a pickled dtype has no name")
    if re.fullmatch(r"(b1|[iu][1248]|f[248]|c8|c16)", code):
        return PickledDtype(code, np.dtype(code))
    return PickledDtype(code[:40], None)


def _reconstruct(kind: object, _shape: object, _code: object) -> PickledArray:
    if not isinstance(kind, Global):
        raise BadFile("a pickled array is of no class")
    return PickledArray()


def _from_buffer(
    data: object, dtype: object, shape: object, order: object, _axes: object = None
) -> PickledArray:
    made = PickledArray()
    if order not in ("C", "F") or _axes is not None:
        raise BadFile("a pickled array is in no order that is known")
    made.fill(shape, dtype, order == "F", data)
    return made


def _scalar(dtype: object, data: object = b"") -> object:
    """A NumPy scalar, as a Python number; ``None`` when it is something else."""
    if not isinstance(dtype, PickledDtype):
        raise BadFile("a pickled number has no dtype")
    if dtype.number is None:
        return None
    if isinstance(data, str):
        data = data.encode()
    if not isinstance(data, bytes) or len(data) != dtype.number.itemsize:
        raise BadFile("a pickled number has not as many bytes as it needs")
    value: object = np.frombuffer(data, dtype.number)[0].item()
    return value


def _table() -> dict[str, object]:
    table: dict[str, object] = {"numpy.dtype": Constructor(_dtype)}
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray._reconstruct"] = Constructor(_reconstruct)
        table[f"{core}.multiarray.scalar"] = Constructor(_scalar)
        table[f"{core}.numeric._frombuffer"] = Constructor(_from_buffer)
    return table


ARRAYS: Mapping[str, object] = _table()
"""The table for NumPy's arrays and scalars; arrays come as ``PickledArray``."""
