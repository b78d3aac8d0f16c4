"""Where the tensors lie in the wire format of an ONNX model, and models without or with their bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from lstmconvert.containers.protobuf_wire import (
    DELIMITED,
    BytesSource,
    Field,
    Source,
    delimited,
    encoded_varint,
    fields,
    varint,
)
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

LARGE = 1 << 16
"""Byte strings of a tensor longer than this stay in the file."""

_DEEPEST = 200
_WINDOW = 1 << 18

# Fields that lead to tensors, from onnx.proto: message -> field number -> message in it.
_INNER: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "ModelProto": {7: "GraphProto", 25: "FunctionProto"},
        "GraphProto": {1: "NodeProto", 5: "TensorProto"},
        "NodeProto": {5: "AttributeProto"},
        "AttributeProto": {5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto"},
        "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    }
)
_FLOAT_DATA, _RAW_DATA, _DOUBLE_DATA, _DATA_TYPE, _EXTERNAL_DATA = 4, 9, 10, 2, 13
_TYPES_OF_FIXED_DATA = {_FLOAT_DATA: 1, _DOUBLE_DATA: 11}  # the data_type whose elements these fields hold

# Wire types of the fields of ModelProto and GraphProto, to recognise them.
_MODEL_FIELDS = {1: 0, 5: 0, **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), DELIMITED)}
_GRAPH_FIELDS = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 14, 15, 16), DELIMITED)

Piece = bytes | Lazy
"""Bytes of a file, or an array in the place where its bytes go."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A byte string that was left where it is: its place in the file."""

    start: int
    end: int


class FileSource:
    """The bytes of a file, read through a small window; a context manager."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise BadFile("there is no such file" if not path.exists() else "this is not a file", file=path)
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size
        self._window = b""
        self._start = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end``."""
        at = start - self._start
        if at >= 0 and at + end - start <= len(self._window):
            return self._window[at : at + end - start]
        self._start = start
        self._window = self._pread(start, max(end - start, min(_WINDOW, self.size - start)))
        return self._window[: end - start]

    def _pread(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        pieces, missing = [], size
        while missing > 0:
            piece = self._file.read(missing)
            if not piece:
                raise BadFile(
                    "the file ended while it was being read", found=f"{size - missing} bytes", expected=size
                )
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def looks_like_model(source: Source) -> bool:
    """Whether the fields are those of a ModelProto with a graph; the graph may be truncated."""
    at = 0
    for _ in range(1000):
        header = source.read(at, min(at + 20, source.size))
        if not header:
            return False
        tag, used = varint(header, 0)
        number, wire_type = tag >> 3, tag & 7
        if _MODEL_FIELDS.get(number) != wire_type:
            return False
        value, used = varint(header, used)
        if number == 7:
            return value > 0 and _looks_like_graph(source, at + used)
        at += used + (value if wire_type == DELIMITED else 0)
        if at > source.size:
            return False
    return False


def _looks_like_graph(source: Source, at: int) -> bool:
    tag, _ = varint(source.read(at, min(at + 10, source.size)), 0)
    return _GRAPH_FIELDS.get(tag >> 3) == tag & 7


def without_large_tensors(source: Source, cuts: list[Cut], marker: str, limit: int) -> bytes:
    """The model without the large byte strings of its tensors.

    Args:
        source: the file.
        cuts: receives the place of each byte string that was left out.
        marker: key of the external_data entry that stands for one; its value is the index in ``cuts``.
        limit: the most bytes that may remain.

    Raises:
        BadFile: when the bytes are no protobuf message.
        UnsupportedSource: when more than ``limit`` bytes remain.
    """
    remaining = 0

    def copied(start: int, end: int) -> bytes:
        nonlocal remaining
        remaining += end - start
        if remaining > limit:
            raise UnsupportedSource(
                "the graph apart from its tensors is too large to be read", expected=f"at most {limit} bytes"
            )
        return source.read(start, end)

    def tensor(start: int, end: int) -> bytes:
        found = list(fields(source, start, end))
        large = _large_data(source, found)
        content = [copied(f.start, f.end) for f in found if f is not large]
        if large is not None:
            entry = _text(1, marker) + _text(2, str(len(cuts)))
            content.append(delimited(_EXTERNAL_DATA, len(entry)) + entry)
            cuts.append(Cut(large.payload, large.end))
        return b"".join(content)

    def message(kind: str, start: int, end: int, depth: int) -> bytes:
        if depth > _DEEPEST:
            raise BadFile("messages are nested too deeply", place=f"byte {start}")
        inner = _INNER[kind]
        content: list[bytes] = []
        for field in fields(source, start, end):
            kind_inside = inner.get(field.number) if field.wire_type == DELIMITED else None
            if kind_inside is None or field.size <= LARGE:
                content.append(copied(field.start, field.end))
                continue
            if kind_inside == "TensorProto":
                inside = tensor(field.payload, field.end)
            else:
                inside = message(kind_inside, field.payload, field.end, depth + 1)
            content.append(delimited(field.number, len(inside)) + inside)
        return b"".join(content)

    return message("ModelProto", 0, source.size, 0)


def _large_data(source: Source, found: list[Field]) -> Field | None:
    """The field whose bytes are the tensor's elements as they lie in memory, if it is large."""
    large = [f for f in found if f.number in (_RAW_DATA, *_TYPES_OF_FIXED_DATA) and f.size > LARGE]
    if len(large) != 1 or large[0].wire_type != DELIMITED:
        return None
    field = large[0]
    if sum(f.number == field.number for f in found) > 1:
        return None  # raw_data given twice, or packed numbers in several pieces
    if field.number != _RAW_DATA:
        types = [f for f in found if f.number == _DATA_TYPE]
        kinds = {varint(source.read(f.payload, f.end), 0)[0] for f in types}
        if kinds != {_TYPES_OF_FIXED_DATA[field.number]}:
            return None
    return field


def _text(number: int, text: str) -> bytes:
    data = text.encode()
    return delimited(number, len(data)) + data


def with_tensors(model: bytes, fill: Callable[[bytes], list[Piece] | None]) -> list[Piece]:
    """The bytes of a model after ``fill`` has been asked about each of its tensors.

    Args:
        model: a serialised ModelProto.
        fill: given the bytes of a TensorProto, the pieces that come in their place, or none to keep
            them.
    """
    source = BytesSource(model)
    return list(_joined(_filled(source, "ModelProto", 0, source.size, fill)))


def _filled(
    source: BytesSource, kind: str, start: int, end: int, fill: Callable[[bytes], list[Piece] | None]
) -> list[Piece]:
    pieces: list[Piece] = []
    for field in fields(source, start, end):
        kind_inside = _INNER[kind].get(field.number) if field.wire_type == DELIMITED else None
        inside: list[Piece] | None = None
        if kind_inside == "TensorProto":
            inside = fill(source.read(field.payload, field.end))
        elif kind_inside is not None:
            inside = _filled(source, kind_inside, field.payload, field.end, fill)
        if inside is None:
            pieces.append(source.read(field.start, field.end))
        else:
            pieces += [delimited(field.number, sum(_size(piece) for piece in inside)), *inside]
    return pieces


def _size(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.nbytes


def _joined(pieces: list[Piece]) -> Iterator[Piece]:
    """The same pieces with neighbouring bytes in one."""
    run: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            run.append(piece)
            continue
        yield b"".join(run)
        run = []
        yield piece
    yield b"".join(run)


def raw_data_header(nbytes: int) -> bytes:
    """What precedes the bytes of a tensor's elements inside a TensorProto."""
    return encoded_varint(_RAW_DATA << 3 | DELIMITED) + encoded_varint(nbytes)
