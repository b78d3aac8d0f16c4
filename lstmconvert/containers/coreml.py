"""Core ML: ``.mlmodel`` files and ``.mlpackage`` folders, the recurrent layers in them and their weights.

Neural networks keep their weights in the specification, programs (MIL) in ``weights/weight.bin``. Tensors
are ``LAYER/WEIGHT`` (``forward/`` and ``backward/`` before those of a bidirectional LSTM). ``layers`` in the
metadata is a list of dictionaries with ``type``, ``name``, ``options`` and the values that the layer
``takes`` and ``gives``, ``others`` a list of the types of all other layers, ``quantised`` names of tensors to
their stored dtype and what has a scale of its own. Texts that a model has about itself are there as well.

Source: the protobuf descriptors and the documentation of coremltools 9.0, and files that it made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges, coreml_program
from lstmconvert.containers.coreml_messages import OTHER, Reader, Span
from lstmconvert.containers.onnx_wire import FileSource
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import Array, Lazy

NAME = "coreml"
SUFFIXES = (".mlmodel", ".mlpackage")

_MANIFEST = "Manifest.json"
_LARGEST_MANIFEST = 1 << 20
_NETWORKS = ("neuralNetwork", "neuralNetworkClassifier", "neuralNetworkRegressor")
_RECURRENT = ("simpleRecurrent", "gru", "uniDirectionalLSTM", "biDirectionalLSTM")
_KIND_NAMES: Mapping[int, str] = MappingProxyType(
    {
        100: "convolution", 120: "pooling", 130: "activation", 140: "innerProduct", 150: "embedding",
        160: "batchnorm", 175: "softmax", 230: "add", 231: "multiply", 300: "reshape", 301: "flatten",
        310: "permute", 320: "concat", 350: "slice",
    }
)  # fmt: skip


def probe(path: Path) -> bool:
    """Whether the folder has a manifest of Core ML, or the file begins like a specification with a model."""
    if path.is_dir():
        return (path / _MANIFEST).is_file() and (path / "Data").is_dir()
    try:
        with FileSource(path) as source:
            return _is_specification(source)
    except (OSError, BadFile):
        return False


def _is_specification(source: FileSource) -> bool:
    from lstmconvert.containers.protobuf_wire import fields

    numbers = [field.number for field in fields(source, 0, source.size)]
    return numbers[:2] == [1, 2] and any(number >= 200 for number in numbers)


def read(path: Path) -> Archive:
    """The recurrent layers of a model; see the module.

    Raises:
        BadFile: when the file is damaged, or weights do not lie where it says.
        UnsupportedSource: when it holds another kind of model than a network or a program.
    """
    specification = _specification_of(path) if path.is_dir() else path
    try:
        with FileSource(specification) as source:
            model = Reader(source).read("Model", 0, source.size)
        found = next((_network(specification, model[key]) for key in _NETWORKS if key in model), None)
        if "mlProgram" in model:
            found = coreml_program.read(specification, model["mlProgram"])
        if found is not None:
            return replace(found, metadata=MappingProxyType({**_texts(model), **found.metadata}))
    except BadFile as error:
        raise error.located(file=path) from error.__cause__
    raise UnsupportedSource(
        "the Core ML model is neither a neural network nor a program",
        file=path,
        found=f"field {model.get(OTHER)}",
        remedy="A pipeline holds its models as files of their own; convert one of them.",
    )


def write(path: Path, archive: Archive) -> None:
    """Write a stack of recurrent layers: the form ``network`` to a file, ``program`` to a folder.

    What goes beside ``layers`` and ``form`` into the metadata of the archive is kept where it is text.
    """
    from lstmconvert.containers import coreml_writing

    form = archive.metadata["form"]
    texts = {key: text for key, text in archive.metadata.items() if isinstance(text, str) and key != "form"}
    writing = {"network": coreml_writing.write_network, "program": coreml_writing.write_package}
    writing[form](path, archive, texts)


def _texts(model: Mapping[str, Any]) -> dict[str, str]:
    entries = model.get("description", {}).get("metadata", {}).get("userDefined", [])
    return {entry.get("key", ""): entry.get("value", "") for entry in entries}


def _specification_of(package: Path) -> Path:
    """The specification that the manifest of a package names; it lies in the package."""
    manifest = package / _MANIFEST
    try:
        if manifest.stat().st_size > _LARGEST_MANIFEST:
            raise BadFile("the manifest is far too large", file=manifest)
        data = json.loads(manifest.read_text(encoding="utf-8"))
        relative = data["itemInfoEntries"][data["rootModelIdentifier"]]["path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFile("the manifest does not name a model", file=manifest) from error
    found = byte_ranges.inside(package / "Data", str(relative))
    if found is None:
        raise BadFile("the manifest names a model that is not in the package", file=manifest, found=relative)
    return found


# Neural networks.


def _network(path: Path, network: Mapping[str, Any]) -> Archive:
    layers: list[dict[str, Any]] = []
    others: list[str] = []
    tensors: dict[str, Lazy] = {}
    quantised: dict[str, tuple[str, str]] = {}
    for layer in network.get("layers", ()):
        kind = next((name for name in _RECURRENT if name in layer), None)
        name = layer.get("name", "")
        if kind is None:
            number = layer.get(OTHER, 0)
            others.append(_KIND_NAMES.get(number, f"type {number}"))
            continue
        held = layer[kind]
        sizes = held.get("inputVectorSize", 0), held.get("outputVectorSize", 0)
        for key, weights in _weights(kind, held):
            place = f"{name}/{key}"
            if place in tensors:
                raise BadFile("two layers have one name", place=f"layer {name!r}")
            tensors[place], how = _array(path, weights, _shape(key, *sizes), place)
            if how is not None:
                quantised[place] = how
        options = {key: value for key, value in held.items() if not key.endswith(("Matrix", "Vector"))}
        options.pop("weightParams", None)
        takes, gives = ((layer.get(way) or [""])[0] for way in ("input", "output"))
        layers.append({"type": kind, "name": name, "options": options, "takes": takes, "gives": gives})
    metadata = {"form": "network", "layers": layers, "others": others, "quantised": quantised}
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def _weights(kind: str, held: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The weights of a layer under the names of the specification."""
    if kind == "biDirectionalLSTM":
        both = held.get("weightParams", [])
        if len(both) != 2:
            raise BadFile("a bidirectional LSTM needs weights of two directions", found=len(both))
        for direction, own in zip(("forward", "backward"), both, strict=True):
            yield from ((f"{direction}/{key}", weights) for key, weights in own.items() if key != OTHER)
    else:
        own = held.get("weightParams", {}) if kind == "uniDirectionalLSTM" else held
        for key, weights in own.items():
            if isinstance(weights, dict) and key.endswith(("Matrix", "Vector", "matrix", "vector")):
                yield key, weights


def _shape(key: str, inputs: int, hidden: int) -> tuple[int, ...]:
    if key.lower().endswith("weightmatrix"):
        return hidden, inputs
    return (hidden, hidden) if key.lower().endswith("matrix") else (hidden,)


def _array(
    path: Path, weights: Mapping[str, Any], shape: tuple[int, ...], place: str
) -> tuple[Lazy, tuple[str, str] | None]:
    """The numbers, and where they were quantised, of what and how finely."""
    for key, dtype in (("floatValue", "<f4"), ("float16Value", "<f2")):
        if key in weights and weights[key].size:
            return _plain(path, weights[key], shape, dtype, place), None
    quantization = weights.get("quantization")
    raw = weights.get("rawValue")
    if quantization is None or raw is None or not raw.size:
        raise UnsupportedSource("weights of this form are not read", place=place, found=sorted(weights))
    bits = quantization.get("numberOfBits", 0)
    if bits != 8:
        raise UnsupportedSource("weights of this many bits are not read", place=place, found=bits, expected=8)
    codes = _plain(path, raw, shape, "<u1", place)
    if "lookupTable" in quantization:
        table = _row(path, quantization["lookupTable"].get("floatValue"), 256, place)
        return codes.map(lambda a: table[a], shape, np.float32), ("8 bit codes", "one table for the tensor")
    linear = quantization.get("linearQuantization", {})
    scale, bias = (_row(path, linear.get(key), None, place) for key in ("scale", "bias"))
    if scale.size not in (1, shape[0]) or bias.size not in (0, 1, shape[0]):
        raise BadFile("the scales do not fit the weights", place=place, found=scale.size, expected=shape[0])
    column = (-1, *[1] * (len(shape) - 1))

    def dequantised(array: Array) -> Array:
        offset = bias.reshape(column) if bias.size else np.float32(0)
        values: Array = array.astype(np.float32) * scale.reshape(column) + offset
        return values

    how = "one scale for the tensor" if scale.size == 1 else "one scale a row"
    return codes.map(dequantised, shape, np.float32), ("uint8", how)


def _plain(path: Path, span: Span, shape: tuple[int, ...], dtype: str, place: str) -> Lazy:
    width = np.dtype(dtype).itemsize
    if span.size != int(np.prod(shape, dtype=object)) * width:
        raise BadFile(
            "weights are not as many as the sizes of the layer say",
            place=place,
            found=f"{span.size} bytes",
            expected=f"{list(shape)} of {np.dtype(dtype).name}",
        )
    return byte_ranges.lazy(path, span.start, shape, np.dtype(dtype), place=place)


def _row(path: Path, span: Span | None, length: int | None, place: str) -> Array:
    if span is None:
        return np.zeros(0, np.float32)
    if span.size % 4 or span.size > 1 << 24 or (length is not None and span.size != 4 * length):
        raise BadFile("the scales of weights cannot be", place=place, found=f"{span.size} bytes")
    data = byte_ranges.read_range(path, span.start, span.size, place=place)
    return np.frombuffer(data, "<f4").astype(np.float32)
