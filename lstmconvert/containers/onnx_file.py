"""ONNX files: a ModelProto in which large tensors stay on the disk until somebody asks for them.

``read`` walks the protobuf wire format and leaves the large byte strings out of what it hands to the
onnx package, so that a file of several gigabytes costs no more than its graph. The resulting
``Archive`` has in ``tensors`` every initializer (those of nested graphs under ``node/attribute/name``)
and every large or external tensor of a node, and in ``metadata``:

``model``
    the ``onnx.ModelProto`` without those tensors' bytes. A tensor whose bytes are in ``tensors`` has
    ``data_location = EXTERNAL`` and as external ``location`` its key there; all others are inline.

and every text of the model's ``metadata_props`` under its key.

``write`` takes the same back: the bytes of a tensor come from ``tensors`` under its external
location, or, of a tensor without any data, under its name.

Source: onnx.proto of onnx 1.23, ExternalData.md of the ONNX specification.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lstmconvert.containers import Archive, onnx_wire
from lstmconvert.containers.onnx_tensors import DATA_FIELDS, MARKER, TensorReader, drop_data, element_dtype
from lstmconvert.errors import BadFile
from lstmconvert.pieces import pieces
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    import onnx

NAME = "onnx_file"
SUFFIXES = (".onnx",)
TELLS_LATE = True

LARGEST_SINGLE_FILE = 1_900_000_000
"""Bytes of tensors beyond which they go to a file beside: a protobuf message ends at 2 GiB."""

_SMALLEST_EXTERNAL = 1024  # shapes and axes stay inline, where shape inference looks for them
_ALIGNMENT = 4096  # lets a runtime map the tensors
_LARGEST_GRAPH = 1 << 30


def probe(path: Path) -> bool:
    """Whether the file is an ONNX model, judged by its first fields; a truncated one counts."""
    try:
        with onnx_wire.FileSource(path) as source:
            return onnx_wire.looks_like_model(source)
    except (OSError, BadFile):
        return False


def read(path: Path) -> Archive:
    """The archive of an ONNX file; see the module.

    Raises:
        BadFile: when the file is missing, damaged, or points outside its folder.
        UnsupportedSource: on tensor types that are not arrays of numbers where numbers are needed.
    """
    from google.protobuf.message import DecodeError

    from lstmconvert import onnx_proto

    path = Path(path)
    cuts: list[onnx_wire.Cut] = []
    try:
        with onnx_wire.FileSource(path) as source:
            skeleton = onnx_wire.without_large_tensors(source, cuts, MARKER, _LARGEST_GRAPH)
        model = onnx_proto.ModelProto()
        model.ParseFromString(skeleton)
    except DecodeError as error:
        raise BadFile("this is not an ONNX model, or it is damaged", file=path, found=str(error)) from error
    except OSError as error:
        raise BadFile("the file cannot be read", file=path, found=error.strerror or error) from error
    except BadFile as error:
        raise error.located(file=path) from None
    if not model.HasField("graph"):
        raise BadFile("the ONNX model has no graph", file=path)
    tensors: dict[str, Lazy] = {}
    reader = TensorReader(path, cuts)
    try:
        for place in _tensor_places(model):
            if place.keyed or reader.is_elsewhere(place.tensor):
                _move(place, reader, tensors)
    except BadFile as error:
        raise error.located(file=path) from None
    texts = {entry.key: entry.value for entry in model.metadata_props if entry.key != "model"}
    return Archive(tensors, {**texts, "model": model})


def write(path: Path, archive: Archive) -> None:
    """Write the model of an archive, streaming its tensors; see the module.

    When the tensors exceed ``LARGEST_SINGLE_FILE``, they go to a second file beside ``path``, named
    ``path`` with ``.data`` added.
    """
    model = _with_texts(archive)
    pieces, arrays = _planned(model, archive, {}, "")
    if sum(array.nbytes for array in arrays.values()) > LARGEST_SINGLE_FILE:
        data = path.with_name(path.name + ".data")
        pieces, _ = _planned(model, archive, _write_external(data, arrays), data.name)
    with path.open("xb") as file:
        for piece in pieces:
            if isinstance(piece, Lazy):
                _write_array(file, piece)
            else:
                file.write(piece)
        if archive.late:
            _write_late(file, model, archive, pieces[-1])


# Reading.


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor of the model, the key it would have, and whether it goes to ``tensors`` in any case."""

    tensor: onnx.TensorProto
    key: str
    keyed: bool


def _tensor_places(model: onnx.ModelProto) -> Iterator[_Place]:
    yield from _graph_places(model.graph, "")
    _check_texts(model.producer_name, *(text for e in model.metadata_props for text in (e.key, e.value)))
    for function in model.functions:
        _check_texts(function.domain, function.name, *function.input, *function.output)
        yield from _node_places(function.node, f"{function.domain}::{function.name}/")


def _graph_places(graph: onnx.GraphProto, prefix: str) -> Iterator[_Place]:
    names = set()
    infos = (*graph.input, *graph.output, *graph.value_info)
    _check_texts(graph.name, *(tensor.name for tensor in graph.initializer), *(info.name for info in infos))
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in names:
            problem = "appears twice" if tensor.name else "has no name"
            raise BadFile(f"an initializer {problem}", place=prefix + (tensor.name or graph.name))
        names.add(tensor.name)
        yield _Place(tensor, prefix + tensor.name, keyed=tensor.data_type != tensor.STRING)
    yield from _node_places(graph.node, prefix)


def _node_places(nodes: Any, prefix: str) -> Iterator[_Place]:
    for node in nodes:
        names = (attribute.name for attribute in node.attribute)
        _check_texts(node.name, node.op_type, node.domain, *node.input, *node.output, *names)
        here = f"{prefix}{node.name or next(filter(None, node.output), node.op_type)}/"
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield _Place(attribute.t, here + attribute.name, keyed=False)
            for number, tensor in enumerate(attribute.tensors):
                yield _Place(tensor, f"{here}{attribute.name}/{number}", keyed=False)
            if attribute.HasField("g"):
                yield from _graph_places(attribute.g, f"{here}{attribute.name}/")
            for number, graph in enumerate(attribute.graphs):
                yield from _graph_places(graph, f"{here}{attribute.name}/{number}/")


def _move(place: _Place, reader: TensorReader, tensors: dict[str, Lazy]) -> None:
    """Move a tensor's data to ``tensors`` and leave its key in the model."""
    tensor, key, number = place.tensor, place.key, 1
    while key in tensors:
        number += 1
        key = f"{place.key}#{number}"
    try:
        tensors[key] = reader.lazy(tensor)
    except BadFile as error:
        raise error.located(place=f"tensor {key!r}") from None
    drop_data(tensor)
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value=key)


def _check_texts(*texts: object) -> None:
    """Protobuf gives texts that are no UTF-8 as bytes."""
    for text in texts:
        if not isinstance(text, str):
            raise BadFile("a name in the model is no text", found=text)


# Writing.


def _with_texts(archive: Archive) -> onnx.ModelProto:
    """The archive's model, its texts in ``metadata_props``."""
    from lstmconvert.onnx_proto import ModelProto

    model = ModelProto()
    model.CopyFrom(archive.metadata["model"])
    texts = {entry.key: entry.value for entry in model.metadata_props}
    texts |= {key: value for key, value in archive.metadata.items() if isinstance(value, str)}
    del model.metadata_props[:]
    for key, value in texts.items():
        model.metadata_props.add(key=key, value=value)
    return model


def _planned(
    model: onnx.ModelProto, archive: Archive, external: Mapping[str, int], location: str
) -> tuple[list[bytes | Lazy], dict[str, Lazy]]:
    """The bytes of the file, with arrays where their bytes go, and those arrays by their keys.

    The keys in ``external`` stay out of the file: they lie at that offset in ``location``.
    """
    from lstmconvert.onnx_proto import TensorProto

    arrays: dict[str, Lazy] = {}

    def fill(content: bytes) -> list[bytes | Lazy] | None:
        tensor = TensorProto.FromString(content)
        key = _key(tensor, archive)
        if key is None:
            return None
        array = arrays[key] = _stored(tensor, key, archive.tensors[key])
        drop_data(tensor)
        if key not in external:
            return [tensor.SerializeToString(), onnx_wire.raw_data_header(array.nbytes), array]
        tensor.data_location = tensor.EXTERNAL
        entries = {"location": location, "offset": external[key], "length": array.nbytes}
        for name, value in entries.items():
            tensor.external_data.add(key=name, value=str(value))
        return [tensor.SerializeToString()]

    return onnx_wire.with_tensors(model.SerializeToString(), fill), arrays


def _write_late(file: BinaryIO, model: onnx.ModelProto, archive: Archive, last: bytes | Lazy) -> None:
    """Put the late texts in the places that are held for them, in the last piece: it begins in the graph."""
    told = archive.told()
    assert isinstance(last, bytes)
    file.seek(-len(last), os.SEEK_END)
    for entry in model.metadata_props:
        if entry.key in told:
            held, text = entry.value.encode(), told[entry.key].encode()
            if len(held) != len(text) or last.count(held) != 1:
                raise AssertionError("a late text has another length than what held its place")
            last = last.replace(held, text)
    file.write(last)


def _key(tensor: onnx.TensorProto, archive: Archive) -> str | None:
    """The key under which the archive has this tensor's bytes; none when they are inline."""
    if tensor.data_location == tensor.EXTERNAL:
        return str(next(entry.value for entry in tensor.external_data if entry.key == "location"))
    inline = tensor.HasField("raw_data") or any(len(getattr(tensor, name)) for name in DATA_FIELDS[1:])
    return None if inline or tensor.name not in archive.tensors else str(tensor.name)


def _stored(tensor: onnx.TensorProto, key: str, array: Lazy) -> Lazy:
    """The array as its bytes go into the file, after comparing it with what the model says of it."""
    dtype, bits = element_dtype(tensor.data_type)
    if array.shape != tuple(tensor.dims) or array.dtype != dtype:
        raise ValueError(
            f"tensor {key!r} is {array.dtype} {array.shape}, the model says {dtype} {tuple(tensor.dims)}"
        )
    if bits % 8 == 0:
        return array

    def packed() -> Array:
        from lstmconvert import onnx_proto

        return np.frombuffer(onnx_proto.tensor_of(array.read()).raw_data, np.uint8)

    return Lazy(((array.size * bits + 7) // 8,), np.uint8, packed)


def _write_external(path: Path, arrays: Mapping[str, Lazy]) -> dict[str, int]:
    """Write the larger arrays into a file of their own; the offset of each."""
    offsets: dict[str, int] = {}
    with path.open("xb") as file:
        for key, array in arrays.items():
            if array.nbytes < _SMALLEST_EXTERNAL:
                continue
            file.write(bytes(-file.tell() % _ALIGNMENT))
            offsets[key] = file.tell()
            _write_array(file, array)
    return offsets


def _write_array(file: BinaryIO, array: Lazy) -> None:
    file.writelines(pieces(array))
