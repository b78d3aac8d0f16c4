"""TensorFlow.js layers models: ``model.json`` with the topology, and the weights in files beside it.

The manifest lists the weights in groups; the files of a group make one row of bytes in which its weights lie
one after the other. Keys of ``metadata``: ``topology`` (the parsed ``modelTopology``), ``quantised`` (names
of weights that were dequantised to the stored dtype and what has a scale of its own), and every text of
``userDefinedMetadata``.

Source: tfjs-core's ``io/types.ts`` and ``io_utils.ts`` and files that TensorFlow.js 4.22.0 writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource
from lstmconvert.pieces import pieces
from lstmconvert.tensors import Array, Lazy

NAME = "tensorflowjs"
SUFFIXES = (".json",)

_LARGEST_JSON = 1 << 27
_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "|b1", "uint8": "|u1", "uint16": "<u2", "float16": "<f2"}
_STORED = ("float32", "int32", "bool")


def probe(path: Path) -> bool:
    """Whether the file is a JSON object with a manifest of weights."""
    try:
        if path.is_dir() or path.stat().st_size > _LARGEST_JSON:
            return False
        data = path.read_bytes()
    except OSError:
        return False
    return data.lstrip()[:1] == b"{" and b'"weightsManifest"' in data


def read(path: Path) -> Archive:
    """The topology and the weights; see the module.

    Raises:
        BadFile: when the text is damaged, or weights do not lie in the files beside it.
        UnsupportedSource: when it is a graph of operations, which has no layers.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") == "graph-model":
            raise UnsupportedSource(
                "a graph model of TensorFlow.js has operations and no layers",
                remedy="Convert the Keras model or SavedModel from which it was made.",
            )
        topology, manifest = data["modelTopology"], data["weightsManifest"]
        told = data.get("userDefinedMetadata") or {}
        metadata = {key: value for key, value in told.items() if isinstance(value, str)}
        tensors, quantised = _weights(path.parent, manifest)
    except (BadFile, UnsupportedSource) as error:
        raise error.located(file=path) from error.__cause__
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadFile(
            "the model.json is damaged", file=path, found=f"{type(error).__name__}: {error}"[:200]
        ) from error
    held = {"topology": topology, "quantised": quantised}
    return Archive(MappingProxyType(tensors), MappingProxyType({**metadata, **held}))


def write(path: Path, archive: Archive) -> None:
    """Write ``path`` and, beside it, one file of weights with its stem and the suffix ``.bin``.

    Raises:
        NotRepresentable: when a weight is of a dtype that TensorFlow.js does not have.
    """
    entries = []
    beside = path.with_suffix(".bin")
    with beside.open("xb") as file:
        for name, tensor in archive.tensors.items():
            if tensor.dtype.name not in _STORED:
                raise NotRepresentable(
                    f"TensorFlow.js has no dtype {tensor.dtype}", place=name, remedy="Use --dtype float32."
                )
            file.writelines(pieces(tensor))
            entries.append({"name": name, "shape": list(tensor.shape), "dtype": tensor.dtype.name})
    texts = {key: value for key, value in archive.metadata.items() if isinstance(value, str)}
    model = {
        "format": "layers-model",
        "generatedBy": "lstmconvert",
        "convertedBy": None,
        "modelTopology": archive.metadata["topology"],
        "weightsManifest": [{"paths": [beside.name], "weights": entries}],
        "userDefinedMetadata": {**texts, **archive.told()},
    }
    with path.open("x", encoding="utf-8", newline="\n") as out:
        json.dump(model, out)


def _weights(folder: Path, manifest: Any) -> tuple[dict[str, Lazy], dict[str, tuple[str, str]]]:
    tensors: dict[str, Lazy] = {}
    quantised: dict[str, tuple[str, str]] = {}
    for group in manifest:
        files = [_beside(folder, str(name)) for name in group["paths"]]
        row = _Row(files)
        at = 0
        for entry in group["weights"]:
            name = str(entry["name"])
            if name in tensors:
                raise BadFile("two weights have one name", place=name[:200])
            quantization = entry.get("quantization")
            dtype = str(quantization["dtype"] if quantization else entry["dtype"])
            shape = tuple(entry["shape"])
            if dtype not in _DTYPES or (not quantization and dtype not in _STORED):
                raise UnsupportedSource("weights of this dtype are not read", place=name[:200], found=dtype)
            if len(shape) > 32 or any(type(n) is not int or not 0 <= n < 1 << 31 for n in shape):
                raise BadFile("a weight has an impossible shape", place=name[:200], found=str(shape)[:80])
            plain = row.lazy(at, shape, np.dtype(_DTYPES[dtype]), name)
            at += math.prod(shape) * plain.dtype.itemsize
            tensors[name] = plain
            if quantization:
                tensors[name] = _dequantised(plain, quantization, entry)
                quantised[name] = dtype, "one scale for the tensor"
        if at != row.size:
            raise BadFile(
                "the files hold another number of bytes than the manifest", found=row.size, expected=at
            )
    return tensors, quantised


def _dequantised(plain: Lazy, quantization: Mapping[str, Any], entry: Mapping[str, Any]) -> Lazy:
    """q * scale + min in float32, or half precision widened."""
    if entry["dtype"] != "float32":
        raise UnsupportedSource("quantised whole numbers are not read", place=str(entry["name"])[:200])
    if plain.dtype.name == "float16":
        return plain.map(lambda a: a.astype(np.float32), plain.shape, np.float32)
    scale, least = float(quantization["scale"]), float(quantization["min"])
    if not (math.isfinite(scale) and math.isfinite(least)):
        raise BadFile("a scale is no number", place=str(entry["name"])[:200])

    def load(array: Array) -> Array:
        # As JavaScript computes it: in double precision, rounded when it is stored.
        values: Array = (array.astype(np.float64) * scale + least).astype(np.float32)
        return values

    return plain.map(load, plain.shape, np.float32)


def _beside(folder: Path, name: str) -> Path:
    path = byte_ranges.inside(folder, name)
    if path is None:
        raise BadFile(
            "a file of weights is not beside the model", found=name[:200], expected="a file in its folder"
        )
    return path


class _Row:
    """Files as one row of bytes."""

    def __init__(self, files: list[Path]) -> None:
        self._files = [(path, byte_ranges.file_size(path)) for path in files]
        self.size = sum(size for _, size in self._files)

    def lazy(self, start: int, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> Lazy:
        """An array of the row; from one file directly, else from the pieces of several."""
        end = start + math.prod(shape) * dtype.itemsize
        if end > self.size:
            raise BadFile("the weights reach beyond their files", place=name[:200])
        begin = 0
        for path, size in self._files:
            if begin <= start and end <= begin + size:
                return byte_ranges.lazy(path, start - begin, shape, dtype, place=name)
            begin += size

        def load() -> Array:
            data = b"".join(self._pieces(start, end, name))
            array: Array = np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
            return array

        return Lazy(shape, dtype.newbyteorder("="), load)

    def _pieces(self, start: int, end: int, name: str) -> Iterator[bytes]:
        begin = 0
        for path, size in self._files:
            low, high = max(start, begin), min(end, begin + size)
            if low < high:
                yield byte_ranges.read_range(path, low - begin, high - low, place=name)
            begin += size
