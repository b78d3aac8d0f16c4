"""TensorBundles, TensorFlow's checkpoints of format V2: an ``.index`` (a sorted table) and ``.data-*`` files.

Read and written by a small reader of our own, because the alternative is to import TensorFlow: no smaller
package reads them. The index has a ``BundleHeaderProto`` under the empty key and a ``BundleEntryProto`` for
each tensor; both have a few plain fields. Source: tensorflow/core/protobuf/tensor_bundle.proto and
tensorflow/core/util/tensor_bundle (releases 1.0 to 2.21).

A path may be the ``.index``, the prefix that TensorFlow calls the checkpoint's path, one of the data files,
or the folder with the file ``checkpoint``, which names the latest one.

``metadata``: ``strings`` has the tensors of text (name to a tuple of bytes); a tensor of one text is under
its own name as well, and so the texts of the metadata come back that were written here. ``object_graph``
(``object_graph.Node`` by number) is there in checkpoints of TensorFlow 2; ``tensorflow_version`` and
``keras_objects`` where the bundle is that of a SavedModel.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges, protobuf_wire, sstable
from lstmconvert.containers.crc32c import crc32c, masked
from lstmconvert.containers.protobuf_wire import delimited, encoded_varint, varint
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

NAME = "tensor_bundle"
SUFFIXES = (".index",)

_SUFFIX = ".index"
_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")
_LATEST = re.compile(r'^model_checkpoint_path:\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)
_STRING = 7
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_LARGEST_TEXT = 1 << 28
_DTYPES: Mapping[int, str] = MappingProxyType(
    {
        1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64",
        10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64",
    }
)  # fmt: skip
_NUMBERS = {name: number for number, name in _DTYPES.items()}


def probe(path: Path) -> bool:
    """Whether the path stands for a bundle: its index ends like a sorted table."""
    try:
        index = _index_of(path)
        with index.open("rb") as file:
            file.seek(-sstable.FOOTER, 2)
            return file.read().endswith(sstable.MAGIC)
    except (OSError, BadFile):
        return False


def read(path: Path) -> Archive:
    """The tensors of a bundle; see the module.

    Raises:
        BadFile: when the index or a data file is missing, truncated or damaged.
        UnsupportedSource: when the bundle is of a machine with the other byte order, or of a later format.
    """
    index = _index_of(path)
    entries = sstable.read(index)
    try:
        shards = _shards(entries.pop(b"", None))
        tensors: dict[str, Lazy] = {}
        strings: dict[str, tuple[bytes, ...]] = {}
        for key, value in entries.items():
            if key.startswith(b"\0"):
                continue  # a slice of a partitioned variable; the variable's own entry says that it has some
            name = _name(key)
            entry = _entry(value, name)
            data = index.with_name(f"{_stem(index)}.data-{entry.shard:05d}-of-{shards:05d}")
            if not 0 <= entry.shard < shards:
                raise BadFile("a tensor lies in a file that is not there", place=name, found=entry.shard)
            if entry.dtype == _STRING:
                strings[name] = _strings(data, entry, name)
            elif entry.dtype in _DTYPES:
                tensors[name] = _lazy(data, entry, name)
    except (BadFile, UnsupportedSource) as error:
        raise error.located(file=index) from error.__cause__
    metadata: dict[str, Any] = {"strings": MappingProxyType(strings)}
    for name, texts in strings.items():
        if len(texts) == 1 and name != "strings" and not name.startswith("_"):
            metadata[name] = texts[0].decode("utf-8", "replace")
    metadata |= _around(index, strings)
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def _around(index: Path, strings: Mapping[str, tuple[bytes, ...]]) -> dict[str, Any]:
    """The object graph of TensorFlow 2, and what a SavedModel says beside its variables."""
    from lstmconvert.containers import object_graph
    from lstmconvert.containers.onnx_wire import FileSource

    found: dict[str, Any] = {}
    graph = strings.get(_OBJECT_GRAPH, ())
    if len(graph) == 1:
        found["object_graph"] = object_graph.nodes(graph[0])
    model = index.parent.parent / "saved_model.pb"
    if index.parent.name == "variables" and model.is_file():
        with FileSource(model) as source:
            found["tensorflow_version"] = object_graph.tensorflow_version(source)
        if (notes := model.with_name("keras_metadata.pb")).is_file():
            found["keras_objects"] = object_graph.keras_objects(notes)
    return found


def write(path: Path, archive: Archive) -> None:
    """Write the index to the new file ``path`` and the numbers beside it; texts of the metadata as scalars.

    Raises:
        NotRepresentable: when a tensor has a dtype that TensorFlow does not have.
    """
    data = path.with_name(f"{_stem(path)}.data-00000-of-00001")
    texts = {key: value for key, value in archive.metadata.items() if isinstance(value, str)}
    index = {b"": _header()}
    with data.open("xb") as file:
        at = 0
        for name, tensor in archive.tensors.items():
            number = _NUMBERS.get(tensor.dtype.name)
            if number is None:
                raise NotRepresentable(f"TensorFlow has no dtype {tensor.dtype}", place=name)
            array = tensor.read()
            raw = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
            bytes_of = raw.reshape(-1).view(np.uint8)
            file.write(bytes_of.data)
            index[name.encode()] = _encoded(number, tensor.shape, at, bytes_of.size, crc32c(bytes_of))
            at += bytes_of.size
        for name, text in texts.items():
            raw_text = text.encode()
            length = struct.pack("<I", len(raw_text))
            check = struct.pack("<I", masked(crc32c(length)))
            stored = encoded_varint(len(raw_text)) + check + raw_text
            file.write(stored)
            index[name.encode()] = _encoded(_STRING, (), at, len(stored), crc32c(length + check + raw_text))
            at += len(stored)
    sstable.write(path, index)


# Which file it is.


def _index_of(path: Path) -> Path:
    """The index that a path stands for.

    Raises:
        BadFile: when it stands for none.
    """
    if path.is_dir():
        return _latest(path)
    if path.name.endswith(_SUFFIX):
        return path
    stem = _DATA.sub("", path.name)
    index = path.with_name(stem + _SUFFIX)
    if not index.is_file():
        raise BadFile("there is no index of a checkpoint", file=index)
    return index


def _latest(folder: Path) -> Path:
    """The index of the latest checkpoint in a folder, or of the only one, or of a SavedModel's variables."""
    variables = folder / "variables" / "variables.index"
    if variables.is_file() and (folder / "saved_model.pb").is_file():
        return variables
    try:
        said = _LATEST.search((folder / "checkpoint").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        said = None
    if said is not None:
        # An absolute path is of the machine that trained; what counts is the name in this folder.
        index = folder / (PureWindowsPath(said[1]).name + _SUFFIX)
        if index.is_file():
            return index
    found = sorted(folder.glob("*" + _SUFFIX))
    if len(found) != 1:
        raise BadFile(
            "the folder does not say which checkpoint is meant",
            file=folder,
            found=", ".join(each.name for each in found[:6]) or "no .index file",
            remedy="Name the .index file.",
        )
    return found[0]


def _stem(index: Path) -> str:
    return index.name.removesuffix(_SUFFIX)


# What the index says.


@dataclass(frozen=True, slots=True)
class _Entry:
    """A ``BundleEntryProto``."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool


def _name(key: bytes) -> str:
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile("the name of a tensor is no text", place=repr(key)[:80]) from error


def _shards(header: bytes | None) -> int:
    if header is None:
        raise BadFile("the index has no header")
    shards, big = 0, False
    for number, value in _numbers(header):
        if number == 1 and isinstance(value, int):
            shards = value
        elif number == 2:
            big = value != 0
    if big:
        raise UnsupportedSource("the checkpoint was written by a machine with the other byte order")
    if not 1 <= shards < 100_000:
        raise BadFile("the index names no data files", found=shards)
    return shards


def _numbers(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field."""
    source = protobuf_wire.BytesSource(message)
    for field in protobuf_wire.fields(source, 0, source.size):
        raw = source.read(field.payload, field.end)
        if field.wire_type == protobuf_wire.VARINT:
            yield field.number, varint(raw, 0)[0]
        elif field.wire_type == protobuf_wire.FIXED32:
            yield field.number, int.from_bytes(raw, "little")
        else:
            yield field.number, raw


def _entry(message: bytes, name: str) -> _Entry:
    try:
        values: dict[int, int] = {}
        shape: tuple[int, ...] = ()
        sliced = False
        for number, value in _numbers(message):
            if isinstance(value, int):
                values[number] = value
            elif number == 2:
                shape = _shape(value)
            elif number == 7:
                sliced = True
    except BadFile as error:
        raise error.located(place=name) from error.__cause__
    dtype, shard, offset, size, crc = (values.get(number, 0) for number in (1, 3, 4, 5, 6))
    return _Entry(dtype, shape, shard, offset, size, crc, sliced)


def _shape(message: bytes) -> tuple[int, ...]:
    sizes = []
    for number, value in _numbers(message):
        if number == 2 and isinstance(value, bytes):
            sizes.append(next((s for n, s in _numbers(value) if n == 1 and isinstance(s, int)), 0))
    if any(size >= 1 << 62 for size in sizes) or len(sizes) > 32:
        raise BadFile("a tensor has an impossible shape", found=sizes[:8])
    return tuple(sizes)


def _lazy(data: Path, entry: _Entry, name: str) -> Lazy:
    dtype = _dtype(entry.dtype)
    if entry.sliced:
        return Lazy(entry.shape, dtype, lambda: _refuse_slices(data, name))
    if math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise BadFile(
            "the size of a tensor does not fit its shape",
            place=name,
            found=f"{entry.size} bytes for {entry.shape} of {dtype}",
        )
    stored = byte_ranges.lazy(data, entry.offset, entry.shape, dtype.newbyteorder("<"), place=name)

    def checked(array: Array) -> Array:
        raw = np.ascontiguousarray(array.astype(dtype.newbyteorder("<"), copy=False)).reshape(-1)
        if masked(crc32c(raw.view(np.uint8))) != entry.crc:
            raise BadFile(
                "the bytes of a tensor do not have the checksum that the index states",
                file=data,
                place=name,
                remedy="The file was damaged; fetch or save it again.",
            )
        return array

    return stored.map(checked, entry.shape)


def _dtype(number: int) -> np.dtype[Any]:
    if _DTYPES[number] == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(_DTYPES[number])


def _refuse_slices(data: Path, name: str) -> Array:
    raise UnsupportedSource(
        "the variable is partitioned: the checkpoint holds it in slices",
        file=data,
        place=name,
        remedy="Load it in TensorFlow without a partitioner and save it again.",
    )


def _strings(data: Path, entry: _Entry, name: str) -> tuple[bytes, ...]:
    """The texts of a tensor: their lengths as varints, four bytes of checksum, then the texts."""
    if entry.size > _LARGEST_TEXT:
        raise BadFile("a tensor of texts is far too long", place=name, found=f"{entry.size} bytes")
    raw = byte_ranges.read_range(data, entry.offset, entry.size, place=name)
    count = math.prod(entry.shape)
    if count > len(raw):
        raise BadFile("a tensor of texts has more texts than bytes", place=name, found=count)
    at, lengths = 0, []
    for _ in range(count):
        length, at = varint(raw, at)
        lengths.append(length)
    at += 4
    if at + sum(lengths) != len(raw):
        raise BadFile("the lengths of a tensor's texts do not fit its size", place=name)
    texts = []
    for length in lengths:
        texts.append(raw[at : at + length])
        at += length
    packed = b"".join(struct.pack("<I", length) for length in lengths)
    start = len(raw) - sum(lengths)
    if masked(crc32c(packed + raw[start - 4 :])) != entry.crc:
        raise BadFile(
            "the bytes of a tensor of texts do not have the checksum that the index states",
            file=data,
            place=name,
            remedy="The file was damaged; fetch or save it again.",
        )
    return tuple(texts)


# Writing.


def _varint_field(number: int, value: int) -> bytes:
    return encoded_varint(number << 3) + encoded_varint(value) if value else b""


def _bytes_field(number: int, value: bytes) -> bytes:
    return delimited(number, len(value)) + value


def _header() -> bytes:
    """One data file, little endian, version 1 of the format."""
    return _varint_field(1, 1) + _bytes_field(3, _varint_field(1, 1))


def _encoded(dtype: int, shape: tuple[int, ...], offset: int, size: int, crc: int) -> bytes:
    dims = b"".join(_bytes_field(2, _varint_field(1, length)) for length in shape)
    return (
        _varint_field(1, dtype)
        + _bytes_field(2, dims)
        + _varint_field(4, offset)
        + _varint_field(5, size)
        + encoded_varint(6 << 3 | protobuf_wire.FIXED32)
        + struct.pack("<I", masked(crc))
    )
