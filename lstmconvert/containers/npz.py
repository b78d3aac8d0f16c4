"""NumPy's ``.npz`` archives and single ``.npy`` files, without the pickles that they may hold.

Read with these keys in ``metadata``:

- ``ignored``: what is in the file beside arrays of numbers, name to description;
- every text that ``write`` added, such as the provenance, under its own key.

A single array is named after its file.

Source: NumPy's format description (``numpy.lib.format``), versions 1.0 to 3.0.
"""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges, check_number, npy, zip_reader
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource
from lstmconvert.pieces import pieces
from lstmconvert.tensors import Lazy

NAME = "npz"
SUFFIXES = (".npz", ".npy")

_LARGEST_TEXT = 16 << 20
_TEXT = ".txt"
"""End of the names of metadata, arrays of bytes: MLX takes every member for an array."""


def probe(path: Path) -> bool:
    """Whether the file is a NumPy array, or a zip archive that has some."""
    try:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC)) == npy.MAGIC:
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
        head = byte_ranges.read_range(path, 0, min(byte_ranges.file_size(path), npy.LONGEST_HEADER + 12))
        header = npy.header(head, path, path.stem)
        if header.dtype is None:
            raise UnsupportedSource("the array does not hold numbers", file=path, found=header.description)
        present = byte_ranges.file_size(path) - header.size
        npy.check_size(header, present, path, path.stem)
        lazy = byte_ranges.lazy(path, header.size, header.shape, header.dtype, strides=header.strides)
        return Archive(MappingProxyType({path.stem: lazy}), MappingProxyType({"ignored": {}}))
    tensors: dict[str, Lazy] = {}
    metadata: dict[str, Any] = {}
    ignored: dict[str, str] = {}
    for name, member in zip_reader.members(path).items():
        if name.endswith(".npy"):
            header = npy.header(zip_reader.read_head(member, npy.LONGEST_HEADER + 12), path, name)
            key = name.removesuffix(".npy")
            if header.dtype is None:
                ignored[key] = header.description
                continue
            npy.check_size(header, member.size - header.size, path, name)
            if key.endswith(_TEXT) and header.dtype == np.uint8 and member.size <= _LARGEST_TEXT:
                data = zip_reader.read_member(member, limit=_LARGEST_TEXT)[header.size :]
                metadata[key.removesuffix(_TEXT)] = data.decode("utf-8", "replace")
                continue
            tensors[key] = zip_reader.lazy(
                member, header.size, header.shape, header.dtype, strides=header.strides
            )
            check_number(len(tensors))
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
    from lstmconvert.containers.zip_writer import ZipWriter

    for name, tensor in archive.tensors.items():
        _check_writable(name, tensor)
    if path.suffix == ".npy":
        if len(archive.tensors) != 1:
            raise NotRepresentable("a .npy file holds one array", remedy="Write a .npz file.")
        (tensor,) = archive.tensors.values()
        with path.open("xb") as file:
            file.write(npy.written_header(tensor))
            file.writelines(pieces(tensor))
        return
    with ZipWriter(path, alignment=64) as target:
        for name, tensor in archive.tensors.items():
            target.add_array(f"{name}.npy", tensor, head=npy.written_header(tensor))
        for key, text in archive.metadata.items():
            if not isinstance(text, str):
                raise TypeError(f"the metadata {key!r} is no text")
            data = Lazy.of(np.frombuffer(text.encode(), np.uint8))
            target.add_array(f"{key}{_TEXT}.npy", data, head=npy.written_header(data))


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
