"""The recurrent operations of a Core ML program (MIL), and their weights in ``weights/weight.bin``.

A weight is a value in the program, or a place in the file beside it: 64 bytes at the offset say 0xDEADBEEF,
the dtype, the size and where the numbers begin.

Source: MIL.proto and the iOS15 operations of coremltools 9.0, and files that it made.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges
from lstmconvert.containers.coreml_messages import Span
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import Lazy

_RECURRENT = ("lstm", "gru", "rnn")
_WEIGHTS = ("weight_ih", "weight_hh", "bias", "peephole", "input_bias")
_SENTINEL = 0xDEADBEEF
_ROOT = "@model_path/"
_DTYPES: Mapping[int, str] = MappingProxyType({1: "<f2", 2: "<f4"})
"""Of ``weight.bin``: half and single precision."""
_TYPES: Mapping[int, str] = MappingProxyType({10: "<f2", 11: "<f4"})
"""Of a program's tensors."""

_Value = Mapping[str, Any]


def read(path: Path, program: Mapping[str, Any]) -> Archive:
    """The recurrent operations; ``path`` is the specification, beside which the weights lie.

    Raises:
        BadFile: when weights do not lie where the program says.
        UnsupportedSource: when a weight is of a form that is not read.
    """
    layers: list[dict[str, Any]] = []
    others: list[str] = []
    tensors: dict[str, Lazy] = {}
    for operation, constants in _operations(program):
        kind = str(operation.get("type", ""))
        if kind not in _RECURRENT:
            if kind != "const":
                others.append(kind)
            continue
        name = _name(operation, kind, len(layers))
        options: dict[str, Any] = {}
        states: list[str] = []
        takes = ""
        for entry in operation.get("inputs", ()):
            key = str(entry.get("key", ""))
            if key == "x":
                takes = _named(entry)
            value = _bound(entry, constants)
            if key.removesuffix("_back") in _WEIGHTS:
                if value is None:
                    raise UnsupportedSource(
                        "a weight is worked out by the program, or compressed",
                        place=f"{name}/{key}",
                        remedy="Save the model with plain float16 or float32 weights.",
                    )
                tensors[f"{name}/{key}"] = _array(path, value, f"{name}/{key}")
            elif value is not None and key in ("initial_h", "initial_c"):
                if np.any(_array(path, value, f"{name}/{key}").read()):
                    states.append(key)
            elif value is not None:
                options[key] = _scalar(path, value)
        gives = str((operation.get("outputs") or [{}])[0].get("name", ""))
        layers.append(
            {"type": kind, "name": name, "options": options, "states": states, "takes": takes, "gives": gives}
        )
    metadata = {"form": "program", "layers": layers, "others": others, "quantised": {}}
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def _operations(program: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, _Value]]]:
    """The operations of the main function, with the constants that they may name."""
    functions = {entry.get("key"): entry.get("value", {}) for entry in program.get("functions", ())}
    main = functions.get("main")
    if main is None:
        raise BadFile("the program has no main function", found=", ".join(map(str, functions)))
    blocks = {entry.get("key"): entry.get("value", {}) for entry in main.get("block_specializations", ())}
    block: Mapping[str, Any] = blocks.get(main.get("opset")) or next(iter(blocks.values()), {})
    operations = block.get("operations", [])
    constants: dict[str, _Value] = {}
    for operation in operations:
        if operation.get("type") == "const":
            values = {entry.get("key"): entry.get("value") for entry in operation.get("attributes", ())}
            for output in operation.get("outputs", ()):
                if values.get("val") is not None:
                    constants[str(output.get("name"))] = values["val"]
    return [(operation, constants) for operation in operations]


def _name(operation: Mapping[str, Any], kind: str, number: int) -> str:
    for entry in operation.get("attributes", ()):
        if entry.get("key") == "name":
            texts = entry.get("value", {}).get("immediateValue", {}).get("tensor", {}).get("strings", {})
            if texts.get("values"):
                return str(texts["values"][0])
    return f"{kind}_{number}"


def _bound(entry: Mapping[str, Any], constants: Mapping[str, _Value]) -> _Value | None:
    """The constant that an input is bound to; ``None`` of one that is computed."""
    bindings = entry.get("value", {}).get("arguments", [])
    if len(bindings) != 1:
        return None
    value = bindings[0].get("value")
    return value if value is not None else constants.get(str(bindings[0].get("name")))


def _named(entry: Mapping[str, Any]) -> str:
    """The name of the value that an input is bound to."""
    bindings = entry.get("value", {}).get("arguments", [])
    return str(bindings[0].get("name", "")) if len(bindings) == 1 else ""


def _scalar(path: Path, value: _Value) -> Any:
    """A text, a truth value or a number."""
    tensor = value.get("immediateValue", {}).get("tensor", {})
    if "strings" in tensor:
        return (tensor["strings"].get("values") or [""])[0]
    if "bools" in tensor:
        return bool((tensor["bools"].get("values") or [0])[0])
    if "ints" in tensor:
        return (tensor["ints"].get("values") or [0])[0]
    if "floats" in tensor or "bytes" in tensor:
        numbers = _array(path, value, "a number")
        return float(numbers.read().reshape(-1)[0]) if numbers.size == 1 else None
    return None


def _array(path: Path, value: _Value, place: str) -> Lazy:
    kind = value.get("type", {}).get("tensorType", {})
    dtype = _TYPES.get(kind.get("dataType", 0))
    dimensions = kind.get("dimensions", [])
    shape = tuple(int(d.get("constant", {}).get("size", 0)) for d in dimensions)
    if dtype is None:
        raise UnsupportedSource("weights of this dtype are not read", place=place, found=kind.get("dataType"))
    if len(shape) > 8 or any(not 0 <= n < 1 << 31 for n in shape):
        raise BadFile("weights have an impossible shape", place=place, found=shape)
    size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    if "blobFileValue" in value:
        file, offset = _blob(path, value["blobFileValue"], dtype, size, place)
        return byte_ranges.lazy(file, offset, shape, np.dtype(dtype), place=place)
    tensor = value.get("immediateValue", {}).get("tensor", {})
    span = tensor.get("floats", tensor.get("bytes", {})).get("values")
    if not isinstance(span, Span) or span.size != size:
        raise BadFile("weights are not as many as their type says", place=place, expected=f"{size} bytes")
    return byte_ranges.lazy(path, span.start, shape, np.dtype(dtype), place=place)


def _blob(path: Path, blob: Mapping[str, Any], dtype: str, size: int, place: str) -> tuple[Path, int]:
    """The file and the offset at which the numbers of a weight begin."""
    said = str(blob.get("fileName", ""))
    file = byte_ranges.inside(path.parent, said.removeprefix(_ROOT)) if said.startswith(_ROOT) else None
    if file is None:
        raise BadFile("weights are in a file that is not in the package", place=place, found=said[:200])
    head = byte_ranges.read_range(file, int(blob.get("offset", 0)), 64, place=place)
    sentinel, code, length, begin = struct.unpack("<IIQQ", head[:24])
    if sentinel != _SENTINEL:
        raise BadFile("there are no weights where the program says", place=place)
    if _DTYPES.get(code) != dtype or length != size:
        raise BadFile(
            "weights are not what the program says",
            place=place,
            found=f"dtype {code}, {length} bytes",
            expected=f"{np.dtype(dtype).name}, {size} bytes",
        )
    return file, begin
