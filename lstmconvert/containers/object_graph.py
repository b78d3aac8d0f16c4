"""The object graph of a checkpoint of TensorFlow 2, and what Keras notes beside a SavedModel.

Three messages of which a few fields are read: ``TrackableObjectGraph`` (the tensor of text
``_CHECKPOINTABLE_OBJECT_GRAPH``), ``SavedMetadata`` (``keras_metadata.pb``) and ``SavedModel`` (only the
release of TensorFlow). Source: trackable_object_graph.proto, saved_metadata.proto and saved_model.proto of
tensorflow 2.21 and keras 2.15.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lstmconvert.containers import byte_ranges
from lstmconvert.containers.protobuf_wire import DELIMITED, VARINT, BytesSource, Source, fields, varint
from lstmconvert.errors import BadFile
from lstmconvert.values import dataclass

_LARGEST = 1 << 28


@dataclass(frozen=True, slots=True)
class Node:
    """One object.

    Attributes:
        children: the name that each child has here, to its number.
        variables: (full name, key in the checkpoint) of what is saved of it.
    """

    children: Mapping[str, int]
    variables: tuple[tuple[str, str], ...]


def nodes(message: bytes) -> tuple[Node, ...]:
    """The objects by number; the first one is the root.

    Raises:
        BadFile: when the message is damaged.
    """
    found = []
    for number, value in _values(message):
        if number == 1 and isinstance(value, bytes):
            found.append(_node(value))
    if any(child >= len(found) for node in found for child in node.children.values()):
        raise BadFile("the object graph of the checkpoint names an object that is not there")
    return tuple(found)


def _node(message: bytes) -> Node:
    children: dict[str, int] = {}
    variables = []
    for number, value in _values(message):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            said = dict(_values(value))
            at, name = said.get(1, 0), said.get(2, b"")
            if isinstance(at, int) and isinstance(name, bytes):
                children[_text(name)] = at
        elif number == 2:
            said = dict(_values(value))
            full, key = said.get(2, b""), said.get(3, b"")
            if isinstance(full, bytes) and isinstance(key, bytes):
                variables.append((_text(full), _text(key)))
    return Node(MappingProxyType(children), tuple(variables))


def keras_objects(path: Path) -> Mapping[str, Any]:
    """Path of every Keras object (``root.layer_with_weights-0``) to its values in ``keras_metadata.pb``.

    Raises:
        BadFile: when the file is damaged.
    """
    size = byte_ranges.file_size(path)
    if size > _LARGEST:
        raise BadFile("the file is far too long", file=path, found=f"{size} bytes")
    found: dict[str, Any] = {}
    try:
        for number, value in _values(byte_ranges.read_range(path, 0, size)):
            if number != 1 or not isinstance(value, bytes):
                continue
            said = dict(_values(value))
            where, text = said.get(3, b""), said.get(5, b"{}")
            if isinstance(where, bytes) and isinstance(text, bytes):
                found[_text(where)] = json.loads(text)
    except BadFile as error:
        raise error.located(file=path) from error.__cause__
    except (ValueError, RecursionError) as error:
        raise BadFile("the notes of Keras are damaged", file=path, found=str(error)) from error
    return MappingProxyType(found)


def tensorflow_version(source: Source) -> str | None:
    """The release of TensorFlow that wrote a ``saved_model.pb``: field 5 of the first graph's description."""
    for graph in fields(source, 0, source.size):
        if graph.number != 2 or graph.wire_type != DELIMITED:
            continue
        for part in fields(source, graph.payload, graph.end):
            if part.number == 1 and part.wire_type == DELIMITED:
                for fact in fields(source, part.payload, part.end):
                    if fact.number == 5 and fact.wire_type == DELIMITED and fact.size < 100:
                        return _text(source.read(fact.payload, fact.end))
    return None


def _values(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    source = BytesSource(message)
    for field in fields(source, 0, source.size):
        raw = source.read(field.payload, field.end)
        yield field.number, varint(raw, 0)[0] if field.wire_type == VARINT else raw


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile("a name in the object graph is no text", found=repr(raw)[:80]) from error
