"""Arrays and bytes that lie plainly somewhere in a file.

Everything is read with ``readinto`` when it is asked for, never mapped: a file that is cut short while it
is mapped ends the process, while a short read is an error that can be told.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from lstmconvert.errors import BadFile
from lstmconvert.memory import room
from lstmconvert.parallel import LARGE, shared
from lstmconvert.tensors import Array, Lazy, Ranges
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class Checksum:
    """A CRC-32 that the bytes of a whole array have to continue to.

    Attributes:
        start: the CRC of what comes before them.
        expected: the CRC with them.
    """

    start: int
    expected: int


def file_size(path: Path) -> int:
    """The size of a file in bytes.

    Raises:
        BadFile: when there is no such file.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise BadFile(f"the file cannot be read: {error.strerror}", file=path) from error


def inside(folder: Path, name: str) -> Path | None:
    """The file of a folder that a name stands for; ``None`` where there is none, or it lies elsewhere."""
    if "\0" in name:
        return None
    root = folder.resolve()
    path = (root / name).resolve()
    return path if path.is_relative_to(root) and path.is_file() else None


def read_range(path: Path, offset: int, size: int, *, place: str | None = None) -> bytes:
    """Exactly ``size`` bytes at ``offset``.

    Raises:
        BadFile: when the file has no such bytes; nothing is allocated for them.
    """
    check_range(path, offset, size, place=place)
    return _read(path, offset, size, place).tobytes()


def check_range(path: Path, offset: int, size: int, *, place: str | None = None) -> None:
    """Make sure that a file has ``size`` bytes at ``offset``.

    Raises:
        BadFile: when it does not.
    """
    present = file_size(path)
    if offset < 0 or size < 0 or offset + size > present:
        raise BadFile(
            "the bytes lie outside the file",
            file=path,
            place=place,
            found=f"{size} bytes at {offset} in a file of {present} bytes",
        )


def lazy(
    path: Path,
    offset: int,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    strides: tuple[int, ...] | None = None,
    checksum: Checksum | None = None,
    place: str | None = None,
) -> Lazy:
    """The array at ``offset`` in ``path``, read when asked for.

    Args:
        path: the file.
        offset: where its first element lies, in bytes.
        shape: its shape.
        dtype: the dtype that the bytes in the file have; the array that is read has the native byte order.
        strides: elements from one index to the next, per axis; row-major when left out.
        checksum: checked when the bytes are read.
        place: what to call it in an error.

    Raises:
        BadFile: when the bytes do not all lie in the file; on reading, when they do not any more.
    """
    stored = np.dtype(dtype)
    size = extent(shape, strides) * stored.itemsize
    check_range(path, offset, size, place=place)

    def load() -> Array:
        raw = _read(path, offset, size, place)
        if checksum is not None:
            from lstmconvert.containers import crc32

            if crc32.of_bytes(raw.data, checksum.start) != checksum.expected:
                raise BadFile(
                    "the bytes of a tensor do not have the checksum that the file states",
                    file=path,
                    place=place,
                    remedy="The file was damaged; fetch or save it again.",
                )
        return shaped(raw, shape, stored, strides)

    plain = strides is None and checksum is None and stored.isnative

    def ranges() -> Ranges | None:
        return part if plain else None

    def part(start: int, stop: int) -> Array:
        width = stored.itemsize
        return _read(path, offset + start * width, (stop - start) * width, place).view(stored)

    return Lazy(shape, stored.newbyteorder("="), load, ranges)


def extent(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> int:
    """How many elements lie between the first and the last element of an array, both counted."""
    if 0 in shape:
        return 0
    if strides is None:
        return math.prod(shape)
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


def shaped(raw: Array, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None) -> Array:
    """The array of native byte order whose elements lie in ``raw``, bytes of the given dtype."""
    stored = np.dtype(dtype)
    if 0 in shape:
        return np.empty(shape, stored.newbyteorder("="))
    values = raw.view(stored)
    if not stored.isnative:
        values = values.byteswap().view(stored.newbyteorder("="))
    if strides is None:
        whole: Array = values.reshape(shape)
        return whole
    steps = tuple(stride * stored.itemsize for stride in strides)
    view: Array = np.ndarray(shape, values.dtype, values.data, 0, steps)
    return view


def _read(path: Path, offset: int, size: int, place: str | None) -> Array:
    """``size`` bytes at ``offset``, as an array of bytes that nobody else has."""
    raw = room(size, offset)

    def fill(start: int, stop: int) -> None:
        view = raw.data[start:stop]
        with path.open("rb", buffering=0) as file:
            file.seek(offset + start)
            while view:
                count = file.readinto(view)
                if not count:
                    raise BadFile("the file ends inside a tensor", file=path, place=place)
                view = view[count:]

    try:
        shared(fill, size, LARGE)
    except OSError as error:
        raise BadFile(f"the file cannot be read: {error.strerror}", file=path, place=place) from error
    return raw
