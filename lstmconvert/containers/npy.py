"""The head of a NumPy array in a file: what the bytes behind it are.

Source: NumPy's format description (``numpy.lib.format``), versions 1.0 to 3.0.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000
_MOST_AXES = 32


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before an array: its size in bytes, and what it says.

    ``dtype`` is ``None`` for text and dates, which ``description`` names.
    """

    size: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    fortran: bool
    description: str

    @property
    def strides(self) -> tuple[int, ...] | None:
        """Elements from one index to the next, where columns come first."""
        if not self.fortran:
            return None
        return tuple(math.prod(self.shape[:axis]) for axis in range(len(self.shape)))


def header(head: bytes, path: Path, name: str) -> Header:
    """The header that ``head`` begins with.

    Raises:
        BadFile: when it is none, or is damaged.
        UnsupportedSource: when its numbers are of a format that is not known.
    """
    if len(head) < 10 or not head.startswith(MAGIC) or head[6] not in (1, 2, 3):
        raise BadFile("this is not a NumPy array", file=path, place=name, found=f"first bytes {head[:8]!r}")
    kind = struct.Struct("<H" if head[6] == 1 else "<I")
    begin = 8 + kind.size
    if len(head) < begin:
        raise BadFile("the header of a NumPy array is cut short", file=path, place=name)
    (length,) = kind.unpack_from(head, 8)
    if length > LONGEST_HEADER or begin + length > len(head):
        raise BadFile(
            "the header of a NumPy array is cut short or far too long",
            file=path,
            place=name,
            found=f"{length} bytes",
        )
    text = head[begin : begin + length]
    try:
        # Python 2 wrote an L behind long numbers.
        said = _literal(re.sub(r"(\d)L\b", r"\1", text.decode("utf-8" if head[6] == 3 else "latin-1")))
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise _not_a_header(path, name, text) from error
    if not isinstance(said, dict) or set(said) != {"descr", "fortran_order", "shape"}:
        raise _not_a_header(path, name, text)
    shape, fortran = said["shape"], said["fortran_order"]
    fits = isinstance(shape, tuple) and len(shape) <= _MOST_AXES and isinstance(fortran, bool)
    if not fits or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise _not_a_header(path, name, text)
    dtype, description = _dtype(said["descr"], path, name)
    return Header(begin + length, shape, dtype, fortran, description)


def _literal(text: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The parser's remarks on escapes and numbers.
        value: object = ast.literal_eval(text.strip())
    return value


def _not_a_header(path: Path, name: str, text: bytes) -> BadFile:
    return BadFile("the header of a NumPy array is damaged", file=path, place=name, found=repr(text[:80]))


def _dtype(descr: object, path: Path, name: str) -> tuple[np.dtype[Any] | None, str]:
    """The dtype that a header names; ``None`` and a description for what is no number."""
    if isinstance(descr, list):
        return None, "records"
    match = re.fullmatch(r"([<>|=]?)([a-zA-Z?])(\d{0,9})(\[.*\])?", descr) if isinstance(descr, str) else None
    if match is None:
        raise BadFile(
            "the header of a NumPy array names no dtype", file=path, place=name, found=repr(descr)[:80]
        )
    order, kind, width, _ = match.groups()
    if kind == "O":
        raise UnsupportedSource(
            "the array holds pickled Python objects, which are not opened",
            file=path,
            place=name,
            remedy="Save each array of numbers under a name of its own: numpy.savez(PATH, name=array, ...).",
        )
    if kind == "V":
        raise UnsupportedSource(
            "the array holds bytes of an unnamed format",
            file=path,
            place=name,
            found=f"{width} bytes each",
            remedy="NumPy loses the name of bfloat16 and float8; save as float32, or as safetensors.",
        )
    if kind in "USaMm":
        return None, {"M": "dates", "m": "durations"}.get(kind, "text")
    if not re.fullmatch(r"\?|b1|[iu][1248]|f[248]|c8|c16", kind + width):
        raise UnsupportedSource(
            "the array holds numbers of a format that is not known", file=path, place=name, found=descr
        )
    return np.dtype(("<" if order == "=" else order) + kind + width), ""


def check_size(header: Header, present: int, path: Path, name: str) -> None:
    """See that behind a header of numbers lie as many bytes as it says.

    Raises:
        BadFile: when there are more or fewer.
    """
    assert header.dtype is not None
    needed = math.prod(header.shape) * header.dtype.itemsize
    if needed != present:
        raise BadFile(
            "an array has not as many bytes as its header says",
            file=path,
            place=name,
            found=f"{present} bytes",
            expected=f"{needed} for {header.dtype} {list(header.shape)}",
        )


def written_header(tensor: Lazy) -> bytes:
    """The header of an array, version 1.0 where it fits, of a size that is a multiple of 64."""
    descr = tensor.dtype.newbyteorder("<").str
    said: Mapping[str, object] = {"descr": descr, "fortran_order": False, "shape": tensor.shape}
    text = repr(dict(said)).encode("latin-1")
    size = -(10 + len(text) + 1) % 64
    text += b" " * size + b"\n"
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text
