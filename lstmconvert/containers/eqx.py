"""Arrays one after another in one file, each as ``numpy.save`` writes it: Equinox's ``.eqx`` files.

The arrays have no names: they are called by their positions, ``"0"``, ``"1"``, ... ``metadata``:

- ``hyperparameters``: the line of JSON before the arrays, as Equinox's documentation has it, if there is one;
- every text that ``write`` added, such as the provenance, under its own key. They stand in one more array of
  bytes behind the last, which Equinox does not look at.

Source: ``tree_serialise_leaves`` of equinox 0.13; NumPy's format description.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges, npy
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource
from lstmconvert.tensors import Lazy

NAME = "eqx"
SUFFIXES = (".eqx",)

_LONGEST_LINE = 1 << 20
_LARGEST_TEXT = 64 << 20
_NOTE = b'{"lstmconvert-metadata":'
_MOST_ARRAYS = 1_000_000


def probe(path: Path) -> bool:
    """Whether the file is NumPy arrays one after another: more than one, or one behind a line of JSON."""
    try:
        with path.open("rb") as file:
            head = file.read(len(npy.MAGIC))
        if not head.startswith((npy.MAGIC, b"{")):
            return False
        begin, _ = _line(path)
        blocks = _blocks(path, begin, most=2)
    except (OSError, BadFile, UnsupportedSource):
        return False
    return len(blocks) > 1 or (begin > 0 and len(blocks) == 1)


def read(path: Path) -> Archive:
    """The arrays of a file; see the module.

    Raises:
        BadFile: when it is cut short or damaged.
        UnsupportedSource: when an array holds no numbers, or numbers of a format without a name.
    """
    begin, line = _line(path)
    blocks = _blocks(path, begin, most=_MOST_ARRAYS)
    if not blocks:
        raise BadFile("there is no array in the file", file=path)
    metadata: dict[str, Any] = {} if line is None else {"hyperparameters": line}
    if blocks and (texts := _texts(path, *blocks[-1])) is not None:
        metadata |= texts
        blocks.pop()
    tensors = {
        str(n): byte_ranges.lazy(
            path, offset, header.shape, header.dtype, strides=header.strides, place=f"array {n}"
        )
        for n, (offset, header) in enumerate(blocks)
    }
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def _line(path: Path) -> tuple[int, str | None]:
    """Where the arrays begin, and the line of JSON before them."""
    size = byte_ranges.file_size(path)
    head = byte_ranges.read_range(path, 0, min(size, _LONGEST_LINE))
    if not head.startswith(b"{"):
        return 0, None
    end = head.find(b"\n")
    try:
        if end < 0 or not isinstance(json.loads(head[:end]), dict):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise BadFile("what stands before the arrays is no line of JSON", file=path) from error
    return end + 1, head[:end].decode("utf-8")


def _blocks(path: Path, begin: int, *, most: int) -> list[tuple[int, npy.Header]]:
    """The headers of the arrays and where the numbers of each begin."""
    size = byte_ranges.file_size(path)
    found: list[tuple[int, npy.Header]] = []
    at = begin
    while at < size and len(found) < most:
        place = f"array {len(found)}"
        longest = min(size - at, npy.LONGEST_HEADER + 12)
        header = npy.header(byte_ranges.read_range(path, at, longest), path, place)
        if header.dtype is None:
            raise UnsupportedSource(
                "an array does not hold numbers", file=path, place=place, found=header.description
            )
        offset = at + header.size
        count = byte_ranges.extent(header.shape, None) * header.dtype.itemsize
        if count > size - offset:
            raise BadFile("the file ends inside an array", file=path, place=place)
        found.append((offset, header))
        at = offset + count
    return found


def _texts(path: Path, offset: int, header: npy.Header) -> dict[str, str] | None:
    """The texts of the metadata, if the last array holds them."""
    if header.dtype != np.dtype(np.uint8) or len(header.shape) != 1 or header.shape[0] > _LARGEST_TEXT:
        return None
    if header.shape[0] < len(_NOTE) or byte_ranges.read_range(path, offset, len(_NOTE)) != _NOTE:
        return None
    try:
        (said,) = json.loads(byte_ranges.read_range(path, offset, header.shape[0])).values()
        return {str(key): str(text) for key, text in said.items()}
    except (ValueError, AttributeError, RecursionError):
        return None


def write(path: Path, archive: Archive) -> None:
    """Write all tensors in order to the new file ``path``, and the texts of the metadata behind them.

    Raises:
        NotRepresentable: when a tensor has a dtype that NumPy files do not name.
    """
    tensors = dict(archive.tensors)
    texts = {key: text for key, text in archive.metadata.items() if isinstance(text, str)}
    for name, tensor in tensors.items():
        if tensor.dtype.kind not in "biufc":
            raise NotRepresentable(
                f"NumPy files have no name for numbers of the format {tensor.dtype}",
                place=name,
                remedy="Choose another with --dtype.",
            )
    with path.open("xb") as file:
        for tensor in tensors.values():
            file.write(npy.written_header(tensor))
            array = tensor.read().astype(tensor.dtype.newbyteorder("<"), copy=False)
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if texts:
            note = _NOTE + json.dumps(texts).encode() + b"}"
            block = Lazy.of(np.frombuffer(note, np.uint8))
            file.write(npy.written_header(block) + note)
