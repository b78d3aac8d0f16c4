"""LiteRT's model files (``.tflite``): a FlatBuffer of subgraphs, operators, tensors and buffers.

The tensors are those with content of their own, under their names; of a name that comes twice the second
gets ``#`` and the tensor's number, and those of further subgraphs stand behind ``subgraph1/`` and so on.
``graph`` in the metadata is the first subgraph: ``tensors`` is a list of dictionaries with ``name``,
``shape`` (``None`` where free), ``dtype`` (``""`` where it is not known here), ``constant``, ``variable``,
``unread`` (why a constant is not among the tensors) and, of whole numbers with scales, ``scale``,
``zero_point`` and ``axis``; ``operators`` is a list of dictionaries with ``type``, ``inputs``, ``outputs``
(positions in ``tensors``, -1 for none) and ``options``; ``inputs`` and ``outputs`` are pairs of a name and
a position. ``subgraphs`` counts them all, ``description`` is the file's, and every text of the file's
metadata stands under its own key.

The file is read and written by a small reader of our own: see ``flatbuffer``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges, flatbuffer
from lstmconvert.containers.flatbuffer import Blob, Range
from lstmconvert.containers.tflite_schema import OPERATORS, SCHEMA
from lstmconvert.errors import BadFile, NotRepresentable
from lstmconvert.pieces import pieces
from lstmconvert.tensors import Lazy

NAME = "tflite_file"
SUFFIXES = (".tflite",)
TELLS_LATE = True
IDENTIFIER = b"TFL3"

_MOST_ELEMENTS = 1 << 40
_LARGEST_TEXT = 1 << 26


_CUSTOM = OPERATORS.index("CUSTOM")
_PLACEHOLDER = OPERATORS.index("PLACEHOLDER")

_DTYPES: Mapping[int, str] = MappingProxyType(
    {
        0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8",
        10: "float64", 12: "uint64", 15: "uint32", 16: "uint16", 18: "bfloat16",
    }
)  # fmt: skip
_TYPES = {dtype: number for number, dtype in _DTYPES.items()}
_NAMES = {5: "texts", 13: "resources", 14: "variants", 17: "int4", 19: "int2", 20: "uint4"}


def probe(path: Path) -> bool:
    """Whether the file has the identifier of a model."""
    try:
        with path.open("rb") as file:
            return file.read(8)[4:] == IDENTIFIER
    except OSError:
        return False


def read(path: Path) -> Archive:
    """The first subgraph, and the constants of all; see the module.

    Raises:
        BadFile: when an offset, a position or a size in the file does not fit the rest.
    """
    path = Path(path)
    try:
        return _Reading(path).archive()
    except BadFile as error:
        raise error.located(file=path) from error.__cause__


class _Reading:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = byte_ranges.file_size(path)
        if self.size < 12 or not probe(path):
            raise BadFile("the file is not a model", found=f"{self.size} bytes", expected="TFL3 at byte 4")
        self.model = flatbuffer.read(path, SCHEMA, "Model")
        self.tensors: dict[str, Lazy] = {}
        if self.model["version"] != 3:
            raise BadFile("this version of the format is not known", found=self.model["version"], expected=3)
        if not self.model["subgraphs"]:
            raise BadFile("the file has no graph")

    def archive(self) -> Archive:
        codes = [_operator(code) for code in self.model["operator_codes"]]
        graphs = [self._graph(n, graph, codes) for n, graph in enumerate(self.model["subgraphs"])]
        metadata: dict[str, Any] = {
            "graph": graphs[0],
            "subgraphs": len(graphs),
            "description": self.model["description"],
        }
        for entry in self.model["metadata"]:
            text = self._text(entry)
            if text is not None:
                metadata.setdefault(entry["name"], text)
        return Archive(MappingProxyType(self.tensors), MappingProxyType(metadata))

    def _text(self, entry: Mapping[str, Any]) -> str | None:
        place = self._content(entry["buffer"], f"metadata {entry['name']!r}")
        if place is None or not 0 < place.size <= _LARGEST_TEXT:
            return None
        try:
            return byte_ranges.read_range(self.path, place.offset, place.size).decode("utf-8")
        except UnicodeDecodeError:
            return None

    def _content(self, number: int, place: str) -> Range | None:
        """Where the bytes of a buffer lie, or ``None`` where it has none."""
        buffers = self.model["buffers"]
        if number >= len(buffers):
            raise BadFile("there is no such buffer", place=place, found=number, expected=len(buffers))
        buffer = buffers[number]
        found: Range | None = buffer["data"]
        if buffer["offset"] > 1:  # 0 and 1 stand for none
            found = Range(buffer["offset"], buffer["size"])
        if found is None or not found.size:
            return None
        byte_ranges.check_range(self.path, found.offset, found.size, place=place)
        return found

    def _graph(self, number: int, graph: Mapping[str, Any], codes: list[str]) -> dict[str, Any]:
        prefix = f"subgraph{number}/" if number else ""
        count = len(graph["tensors"])
        tensors = [self._tensor(prefix, n, tensor) for n, tensor in enumerate(graph["tensors"])]
        operators = []
        for operator in graph["operators"]:
            if operator["opcode_index"] >= len(codes):
                raise BadFile("an operator has no code", found=operator["opcode_index"])
            kind = codes[operator["opcode_index"]]
            for position in (*operator["inputs"], *operator["outputs"]):
                if not -1 <= position < count:
                    raise BadFile("an operator uses a tensor that is not there", place=kind, found=position)
            operators.append(
                {
                    "type": kind,
                    "inputs": operator["inputs"],
                    "outputs": operator["outputs"],
                    "options": operator["options"] or {},
                }
            )
        ports = {}
        for key in ("inputs", "outputs"):
            for position in graph[key]:
                if not 0 <= position < count:
                    raise BadFile("a port of the graph is a tensor that is not there", found=position)
            ports[key] = [(self._port(number, key, p) or tensors[p]["name"], p) for p in graph[key]]
        return {"tensors": tensors, "operators": operators, **ports}

    def _port(self, graph: int, key: str, position: int) -> str:
        """The name that the graph's signature gives a port, if it has one."""
        for signature in self.model["signature_defs"][:1]:
            if signature["subgraph_index"] == graph:
                for entry in signature[key]:
                    if entry["tensor_index"] == position:
                        name: str = entry["name"]
                        return name
        return ""

    def _tensor(self, prefix: str, number: int, tensor: Mapping[str, Any]) -> dict[str, Any]:
        name = prefix + (tensor["name"] or f"tensor{number}")
        while name in self.tensors:
            name += f"#{number}"
        shape, signature = tensor["shape"], tensor["shape_signature"] or tensor["shape"]
        if len(signature) != len(shape):
            raise BadFile("a tensor has two shapes of unequal rank", place=name, found=signature)
        found: dict[str, Any] = {
            "name": name,
            "shape": tuple(None if n < 0 else n for n in signature),
            "dtype": _DTYPES.get(tensor["type"], ""),
            "constant": False,
            "variable": tensor["is_variable"],
            "unread": "",
        }
        scales = tensor["quantization"]
        if scales is not None and scales["scale"]:
            found |= {
                "scale": scales["scale"],
                "zero_point": scales["zero_point"] or (0,) * len(scales["scale"]),
                "axis": scales["quantized_dimension"],
            }
        content = self._content(tensor["buffer"], name)
        if content is None and not tensor["external_buffer"]:
            return found
        found["constant"] = True
        found["unread"] = _unread(tensor)
        if content is not None and not found["unread"]:
            lazy = self._lazy(content, shape, found["dtype"], name)
            self.tensors[name] = lazy
        return found

    def _lazy(self, content: Range, shape: tuple[int, ...], dtype: str, name: str) -> Lazy:
        if any(n < 0 for n in shape) or math.prod(shape) > _MOST_ELEMENTS or len(shape) > 32:
            raise BadFile("a constant has an impossible shape", place=name, found=shape)
        if dtype == "bfloat16":
            import ml_dtypes  # noqa: F401 - makes the dtype known to NumPy
        stored = np.dtype(dtype).newbyteorder("<") if dtype != "bfloat16" else np.dtype(dtype)
        expected = math.prod(shape) * stored.itemsize
        if content.size != expected:
            raise BadFile(
                "the size of a constant does not fit its shape",
                place=name,
                found=content.size,
                expected=expected,
            )
        return byte_ranges.lazy(self.path, content.offset, shape, stored, place=name)


def _unread(tensor: Mapping[str, Any]) -> str:
    """Why the content of a constant is not read; ``""`` where it is."""
    if tensor["external_buffer"]:
        return "its content is in another file"
    if tensor["sparsity"] is not None:
        return "its content is sparse"
    scales = tensor["quantization"]
    if scales is not None and scales["details_type"]:
        return "it is scaled in a way of its own"
    if tensor["type"] not in _DTYPES:
        return f"it is of {_NAMES.get(tensor['type'], 'an unknown type')}"
    return ""


def _operator(code: Mapping[str, Any]) -> str:
    # Files from before 2020 have the code in the older field; the newer one is then zero.
    number = max(code["builtin_code"], code["deprecated_builtin_code"])
    if number == _CUSTOM:
        return f"CUSTOM {code['custom_code']}"
    return OPERATORS[number] if 0 <= number < len(OPERATORS) else f"operator {number}"


# Writing.


def write(path: Path, archive: Archive) -> None:
    """Write a graph as ``read`` gives it; tensors are streamed one by one to the end of the file.

    Raises:
        NotRepresentable: when a constant has a dtype that the format does not name, or all are too large.
    """
    graph = archive.metadata["graph"]
    buffers: list[dict[str, Any]] = [{}]  # the first one is empty by custom: for all that have no content
    tensors = [_entry(tensor, archive, buffers) for tensor in graph["tensors"]]
    texts = {key: text for key, text in archive.metadata.items() if isinstance(text, str)}
    description = texts.pop("description", "")
    metadata = []
    for key, text in texts.items():
        metadata.append({"name": key, "buffer": len(buffers)})
        buffers.append({"data": Blob(("text", key), len(text.encode("utf-8")))})
    kinds = list(dict.fromkeys(operator["type"] for operator in graph["operators"]))
    model = {
        "version": 3,
        "operator_codes": [_code(kind) for kind in kinds],
        "subgraphs": [
            {
                "tensors": tensors,
                "inputs": [position for _, position in graph["inputs"]],
                "outputs": [position for _, position in graph["outputs"]],
                "operators": [
                    _stored_operator(operator, kinds.index(operator["type"]))
                    for operator in graph["operators"]
                ],
                "name": "main",
            }
        ],
        "description": description,
        "buffers": buffers,
        "metadata": metadata,
        "signature_defs": [
            {
                **{
                    key: [{"name": name, "tensor_index": position} for name, position in graph[key]]
                    for key in ("inputs", "outputs")
                },
                "signature_key": "serving_default",
            }
        ],
    }
    laid = flatbuffer.lay_out(SCHEMA, "Model", model, IDENTIFIER)
    if laid.size > flatbuffer.LARGEST:
        raise NotRepresentable(
            f"a .tflite file holds at most 2 GiB, and this model takes {laid.size} bytes",
            remedy="Convert to ONNX, or take its layers one by one with --layer.",
        )
    with path.open("xb") as file:
        for data, blob in flatbuffer.pieces(laid):
            file.write(data)
            if blob is None:
                continue
            kind, key = blob.key
            if kind == "tensor":
                file.writelines(pieces(archive.tensors[key]))
            else:
                text = archive.late[key]() if key in archive.late else texts[key]
                told = text.encode("utf-8")
                if len(told) != blob.size:
                    raise AssertionError("a late text has another length than what held its place")
                file.write(told)


def _entry(tensor: Mapping[str, Any], archive: Archive, buffers: list[dict[str, Any]]) -> dict[str, Any]:
    """A tensor's table; a buffer is added for its content."""
    name, shape = tensor["name"], tensor["shape"]
    if tensor["dtype"] not in _TYPES:
        raise NotRepresentable(f".tflite files have no dtype {tensor['dtype']}", place=name)
    entry: dict[str, Any] = {
        "shape": [1 if n is None else n for n in shape],
        "type": _TYPES[tensor["dtype"]],
        "buffer": 0,
        "name": name,
        "is_variable": tensor.get("variable", False),
        "has_rank": True,
    }
    if None in shape:
        entry["shape_signature"] = [-1 if n is None else n for n in shape]
    if "scale" in tensor:
        entry["quantization"] = {
            "scale": tensor["scale"],
            "zero_point": tensor["zero_point"],
            "quantized_dimension": tensor["axis"],
        }
    if tensor.get("constant"):
        entry["buffer"] = len(buffers)
        buffers.append({"data": Blob(("tensor", name), archive.tensors[name].nbytes)})
    return entry


def _code(kind: str) -> dict[str, Any]:
    number = OPERATORS.index(kind)
    return {"deprecated_builtin_code": min(number, _PLACEHOLDER), "builtin_code": number}


def _stored_operator(operator: Mapping[str, Any], code: int) -> dict[str, Any]:
    entry = {"opcode_index": code, "inputs": operator["inputs"], "outputs": operator["outputs"]}
    if operator.get("options_type"):
        entry |= {"options_type": operator["options_type"], "options": operator["options"]}
    return entry
