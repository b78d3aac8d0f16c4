"""Writes HDF5 files: first the structure with room for every array, then all bytes in one pass.

HDF5 only lays out the file, in memory, where room that was reserved takes no memory. Then structure and
numbers are written from front to back, one tensor at a time: nothing is buffered twice, the same bytes
go into a file or into a zip archive, and a full disk is an ordinary ``OSError``.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.containers import Archive
from lstmconvert.containers.hdf5 import MODEL_WEIGHTS, NOTE, TOP_LEVEL
from lstmconvert.containers.hdf5_objects import is_utf8
from lstmconvert.errors import NotRepresentable
from lstmconvert.pieces import pieces
from lstmconvert.tensors import Lazy

if TYPE_CHECKING:
    import h5py

# What Keras allows itself in one attribute; HDF5 stops at 64 KiB for a whole object header message.
_LARGEST_ATTRIBUTE = 64512


def write(archive: Archive, sink: Callable[[memoryview], object], *, file_name: object = None) -> Sparse:
    """Write ``archive`` as an HDF5 file; the contract is in ``lstmconvert.containers.hdf5``.

    Args:
        archive: what to write.
        sink: takes the bytes of the file in order, and all that it is given.
        file_name: the file, for errors.

    Returns:
        The structure that was written, without the arrays.
    """
    import h5py

    form = archive.metadata.get("form", "plain")
    _check_names(archive.tensors)
    layout = Sparse()
    with h5py.File(layout, "w", libver="earliest") as file:
        if form in ("whole_model", "legacy_weights"):
            _write_layers(file, archive)
        elif form in ("plain", "weights_v3"):
            if form == "weights_v3":
                _write_variable_groups(file, archive)
            _write_texts(file, archive.metadata)
        else:
            raise AssertionError(f"no HDF5 file has the form {form!r}")
        if NOTE in archive.metadata:
            file.attrs[NOTE] = str(archive.metadata[NOTE]).encode()
        places = {
            key: _reserve(file, key, tensor, form=form, file_name=file_name)
            for key, tensor in archive.tensors.items()
        }
    position = 0
    for place, key in sorted((place, key) for key, place in places.items() if place is not None):
        layout.copy(position, place, sink)
        tensor = archive.tensors[key]
        _pour(tensor, sink)
        position = place + tensor.nbytes
    layout.copy(position, layout.length, sink)
    return layout


def _pour(tensor: Lazy, sink: Callable[[memoryview], object]) -> None:
    """Hand the bytes of a tensor on; nothing of it is in memory any more when this returns."""
    for piece in pieces(tensor):
        sink(piece)


class Sparse(io.RawIOBase):
    """A file in memory of which only the pages that were written to exist."""

    _PAGE = 4096

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._position = 0
        self.length = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.length}[whence]
        self._position = base + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.length = self._position if size is None else size
        return self.length

    def write(self, buffer: Any) -> int:
        data = memoryview(buffer).cast("B")
        for start, stop, page, inside in self._pieces(self._position, len(data)):
            part = self._pages.setdefault(page, bytearray(self._PAGE))
            part[inside : inside + stop - start] = data[start:stop]
        self._position += len(data)
        self.length = max(self.length, self._position)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        data = memoryview(buffer).cast("B")
        for start, stop, page, inside in self._pieces(self._position, len(data)):
            part = self._pages.get(page)
            data[start:stop] = bytes(stop - start) if part is None else part[inside : inside + stop - start]
        self._position += len(data)
        return len(data)

    def copy(self, start: int, stop: int, sink: Callable[[memoryview], object]) -> None:
        """Hand the bytes from ``start`` to ``stop`` on, page by page."""
        for first, last, page, inside in self._pieces(start, stop - start):
            part = self._pages.get(page, bytes(self._PAGE))
            sink(memoryview(part)[inside : inside + last - first])

    def find(self, content: bytes) -> int:
        """Where the only occurrence of ``content`` begins."""
        found = []
        for page in sorted(self._pages):
            run, last = bytearray(self._pages[page]), page
            while len(run) < self._PAGE + len(content) and last + 1 in self._pages:
                last += 1
                run += self._pages[last]
            at = run.find(content)
            if 0 <= at < self._PAGE:
                found.append(page * self._PAGE + at)
        (place,) = found
        return place

    def _pieces(self, position: int, size: int) -> Iterator[tuple[int, int, int, int]]:
        """Where each part of a range lies: from, to (both in the range), page, place in the page."""
        done = 0
        while done < size:
            page, inside = divmod(position + done, self._PAGE)
            count = min(self._PAGE - inside, size - done)
            yield done, done + count, page, inside
            done += count


def _write_texts(group: h5py.Group, metadata: Mapping[str, Any]) -> None:
    for key in ("keras_version", "backend"):
        if metadata.get(key) is not None:
            group.attrs[key] = str(metadata[key]).encode()


def _write_layers(file: h5py.File, archive: Archive) -> None:
    """The groups and attributes of both legacy forms."""
    metadata = archive.metadata
    layers: Mapping[str, Sequence[tuple[str, str]]] = metadata["layer_weights"]
    top_level: Sequence[tuple[str, str]] = metadata.get("top_level_weights", ())
    prefix = ""
    group: h5py.Group = file
    if metadata["form"] == "whole_model":
        # bytes, as Keras writes them: loaders of Keras 2 call decode().
        file.attrs["model_config"] = json.dumps(metadata["model_config"]).encode()
        _write_texts(file, metadata)
        prefix = f"{MODEL_WEIGHTS}/"
        group = file.create_group(MODEL_WEIGHTS)
    _write_texts(group, metadata)
    _write_names(group, "layer_names", layers)
    expected = []
    for layer, weights in [*layers.items(), (TOP_LEVEL, top_level)]:
        _check_names([prefix + layer])
        layer_group = group.require_group(layer)
        _write_names(layer_group, "weight_names", [name for name, _ in weights])
        for name, key in weights:
            if key != f"{prefix}{layer}/{name}":
                raise AssertionError(f"weight {name!r} of layer {layer!r} has the key {key!r}")
            expected.append(key)
    if expected != list(archive.tensors):
        raise AssertionError("the tensors are not those that layer_weights lists, in that order")


def _write_names(group: h5py.Group, attribute: str, names: Iterable[str]) -> None:
    """A list of names, cut into numbered attributes where it is too long for one."""
    encoded = np.array([name.encode() for name in names] or np.zeros(0, "S1"))
    parts = 1
    while any(part.nbytes > _LARGEST_ATTRIBUTE for part in np.array_split(encoded, parts)):
        parts += 1
        if parts > len(encoded):
            raise NotRepresentable("a name is too long for an HDF5 attribute", place=str(group.name))
    if parts == 1:
        group.attrs[attribute] = encoded
    else:
        for number, part in enumerate(np.array_split(encoded, parts)):
            group.attrs[f"{attribute}{number}"] = part


def _write_variable_groups(file: h5py.File, archive: Archive) -> None:
    """The ``vars`` groups, with the names of what they belong to."""
    for key in archive.tensors:
        if key.split("/")[-2:-1] != ["vars"]:
            raise AssertionError(f"the key {key!r} does not end in vars/NAME")
    for owner, name in archive.metadata.get("variable_names", {}).items():
        path = f"{owner}/vars" if owner else "vars"
        _check_names([path])
        file.require_group(path).attrs["name"] = name


def _check_names(paths: Iterable[str]) -> None:
    """Refuse paths that HDF5 would read differently, or that need one name for two things."""
    paths = list(paths)
    taken = set(paths)
    for path in paths:
        components = path.split("/")
        unusable = any(each in ("", ".", "..") or "\0" in each for each in components)
        if unusable or not is_utf8(path):
            raise NotRepresentable(
                "a name cannot be a path in an HDF5 file", place=repr(path), remedy="Rename the layer."
            )
        for depth in range(1, len(components)):
            if "/".join(components[:depth]) in taken:
                raise NotRepresentable(
                    "one name would be both a group and an array in the HDF5 file",
                    place=path,
                    remedy="Rename the layer.",
                )


def _reserve(file: h5py.File, key: str, tensor: Lazy, *, form: str, file_name: object) -> int | None:
    """Make the dataset, contiguous and unfilled; returns where its bytes belong in the file."""
    import h5py

    dtype = tensor.dtype
    bfloat16 = dtype.name == "bfloat16"
    if bfloat16 and form in ("whole_model", "legacy_weights"):
        raise NotRepresentable(
            "a legacy HDF5 file of Keras cannot say that its numbers are bfloat16",
            file=file_name,
            place=key,
            remedy="Write a .keras or .weights.h5 file, or convert with --dtype float32.",
        )
    if not bfloat16 and (dtype.kind not in "fiub" or dtype.itemsize > 8):
        raise NotRepresentable(f"HDF5 files of Keras do not hold {dtype}", file=file_name, place=key)
    stored = h5py.h5t.py_create(np.dtype("V2") if bfloat16 else dtype, logical=True)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)
    *groups, name = key.split("/")
    group: h5py.Group = file
    for each in groups:
        group = group[each] if each in group else group.create_group(each)
    space = h5py.h5s.create_simple(tensor.shape) if tensor.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    made = h5py.h5d.create(group.id, name.encode(), stored, space, plan)
    if bfloat16:
        h5py.Dataset(made).attrs["dtype"] = "bfloat16"
    return made.get_offset() if tensor.nbytes else None
