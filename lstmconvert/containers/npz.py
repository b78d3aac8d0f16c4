"""NumPy's ``.npz`` archives and single ``.npy`` files, without the pickles that they may hold.

Read with these keys in ``metadata``:

- ``ignored``: what is in the file beside arrays of numbers, name to description;
- every text that ``write`` added, such as the provenance, under its own key.

A single array is named after its file.

Source: NumPy's format description (``numpy.lib.format``), versions 1.0 to 3.0.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges, zip_reader
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource
from lstmconvert.tensors import Lazy

NAME = "npz"
SUFFIXES = (".npz", ".npy")

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000
_LARGEST_TEXT = 16 << 20
_MOST_AXES = 32
_TEXT = ".txt"
"""Suffix of the members that hold metadata; NumPy gives them as bytes."""


def probe(path: Path) -> bool:
    """Whether the file is a NumPy array, or a zip archive that has some."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                return True
        return zip_reader.is_zip(path) and any(name.endswith(".npy") for name in zip_reader.members(path))
    except (OSError, BadFile, UnsupportedSource):
        return False


def read(path: Path) -> Archive:
    """The arrays of a file; see the module.

    Raises:
        BadFile: when it is damaged or unsafe.
        UnsupportedSource: when it holds pickled objects, or numbers of an unnamed format.
    """
    path = Path(path)
    if not zip_reader.is_zip(path):
        head = byte_ranges.read_range(path, 0, min(byte_ranges.file_size(path), _LONGEST_HEADER + 12))
        header = _header(head, path, path.stem)
        if header.dtype is None:
            raise UnsupportedSource("the array does not hold numbers", file=path, found=header.description)
        present = byte_ranges.file_size(path) - header.size
        _check_size(header, present, path, path.stem)
        lazy = byte_ranges.lazy(path, header.size, header.shape, header.dtype, strides=header.strides)
        return Archive(MappingProxyType({path.stem: lazy}), MappingProxyType({"ignored": {}}))
    tensors: dict[str, Lazy] = {}
    metadata: dict[str, Any] = {}
    ignored: dict[str, str] = {}
    for name, member in zip_reader.members(path).items():
        if name.endswith(".npy"):
            header = _header(zip_reader.read_head(member, _LONGEST_HEADER + 12), path, name)
            key = name.removesuffix(".npy")
            if header.dtype is None:
                ignored[key] = header.description
                continue
            _check_size(header, member.size - header.size, path, name)
            tensors[key] = zip_reader.lazy(
                member, header.size, header.shape, header.dtype, strides=header.strides
            )
        elif name.endswith(_TEXT) and member.size <= _LARGEST_TEXT:
            data = zip_reader.read_member(member, limit=_LARGEST_TEXT)
            metadata[name.removesuffix(_TEXT)] = data.decode("utf-8", "replace")
        else:
            ignored[name] = f"a member of {member.size} bytes"
    metadata["ignored"] = ignored
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def write(path: Path, archive: Archive) -> None:
    """Write all tensors to the new ``.npz`` file ``path``, and each text of the metadata beside them.

    A ``path`` that ends in ``.npy`` takes one tensor and no metadata.

    Raises:
        NotRepresentable: when a tensor has a dtype that NumPy files do not name.
    """
    from lstmconvert.containers.zip_writer import ZipWriter, little_endian

    for name, tensor in archive.tensors.items():
        _check_writable(name, tensor)
    if path.suffix == ".npy":
        if len(archive.tensors) != 1:
            raise NotRepresentable("a .npy file holds one array", remedy="Write a .npz file.")
        (tensor,) = archive.tensors.values()
        with path.open("xb") as file:
            file.write(_written_header(tensor))
            file.write(little_endian(tensor.read()).data)
        return
    with ZipWriter(path, alignment=64) as target:
        for name, tensor in archive.tensors.items():
            target.add_array(f"{name}.npy", tensor, head=_written_header(tensor))
        for key, text in archive.metadata.items():
            if not isinstance(text, str):
                raise TypeError(f"the metadata {key!r} is no text")
            target.add(f"{key}{_TEXT}", text.encode())


def _check_writable(name: str, tensor: Lazy) -> None:
    if tensor.dtype.kind not in "biufc" or tensor.dtype.char in "gG":
        raise NotRepresentable(
            f"NumPy files have no name for numbers of the format {tensor.dtype}",
            place=name,
            remedy="Write another format, such as .safetensors, or choose one that they have with --dtype.",
        )
    parts = name.split("/")
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise NotRepresentable("a tensor has a name that cannot be that of a file", place=repr(name))


# ------------------------------------------------------------------------------------------ the header


@dataclass(frozen=True, slots=True)
class _Header:
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


def _header(head: bytes, path: Path, name: str) -> _Header:
    if len(head) < 10 or not head.startswith(_MAGIC) or head[6] not in (1, 2, 3):
        raise BadFile("this is not a NumPy array", file=path, place=name, found=f"first bytes {head[:8]!r}")
    kind = struct.Struct("<H" if head[6] == 1 else "<I")
    begin = 8 + kind.size
    if len(head) < begin:
        raise BadFile("the header of a NumPy array is cut short", file=path, place=name)
    (length,) = kind.unpack_from(head, 8)
    if length > _LONGEST_HEADER or begin + length > len(head):
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
    return _Header(begin + length, shape, dtype, fortran, description)


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


def _check_size(header: _Header, present: int, path: Path, name: str) -> None:
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


def _written_header(tensor: Lazy) -> bytes:
    """The header of an array, version 1.0 where it fits, of a size that is a multiple of 64."""
    descr = tensor.dtype.newbyteorder("<").str
    said: Mapping[str, object] = {"descr": descr, "fortran_order": False, "shape": tensor.shape}
    text = repr(dict(said)).encode("latin-1")
    size = -(10 + len(text) + 1) % 64
    text += b" " * size + b"\n"
    return _MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text
