"""Writes stacks of recurrent layers as Core ML models: neural networks and programs.

A neural network takes ``x`` (features of every step) and, for each layer, its states as optional inputs; a
program takes ``x`` (time, 1, features) and starts from zeros. Both are laid out as coremltools 9.0 does it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lstmconvert.containers import Archive
from lstmconvert.containers.coreml_messages import Pieces, encoded
from lstmconvert.pieces import pieces
from lstmconvert.tensors import Array, Lazy, little_endian

INPUT, OUTPUT = "x", "y"
_NETWORK_VERSION, _PROGRAM_VERSION = 1, 6
"""Of the specification: what these layers need, iOS 11 and iOS 15."""
_OPERATIONS = "CoreML5"
_FLOAT32, _DOUBLE = 65568, 65600
"""``ArrayFeatureType.ArrayDataType``."""
_BOOL_TYPE, _TEXT_TYPE, _FLOAT32_TYPE = 1, 2, 11
"""``MILSpec.DataType``."""
_ANY = -1
_STATES = {"lstm": ("h", "c"), "gru": ("h",), "rnn": ("h",)}
_NETWORK_STATES = {"uniDirectionalLSTM": ("h", "c"), "biDirectionalLSTM": ("h", "c", "h_rev", "c_rev")}
_PLACE = "com.apple.CoreML"
_BLOB = struct.Struct("<IIQQ40x")
_ALIGNED = 64
_MODEL_ITEM, _WEIGHTS_ITEM = "0b6f9f6e-6d6f-4465-9c00-000000000001", "0b6f9f6e-7765-4967-9874-000000000002"
"""Always the same, so that equal models are equal files."""
_SENTINEL, _SINGLE, _BLOB_VERSION = 0xDEADBEEF, 2, 2


def write_network(path: Path, archive: Archive, texts: Mapping[str, str]) -> None:
    """A ``.mlmodel`` file of the form ``network``.

    Args:
        path: the new file.
        archive: layers and tensors as ``coreml.read`` gives them.
        texts: kept in the metadata of the model.
    """
    layers = archive.metadata["layers"]
    inputs, outputs, made = [], [], []
    value = INPUT
    for number, layer in enumerate(layers):
        name, kind = layer["name"], layer["type"]
        given = OUTPUT if number == len(layers) - 1 else f"{name}_{OUTPUT}"
        size = layer["options"]["outputVectorSize"]
        states = _NETWORK_STATES.get(kind, ("h",))
        inputs += [_feature(f"{name}_{state}_in", [size], _DOUBLE, optional=True) for state in states]
        outputs += [_feature(f"{name}_{state}_out", [size], _DOUBLE) for state in states]
        made.append(
            {
                "name": name,
                "input": [value, *(f"{name}_{state}_in" for state in states)],
                "output": [given, *(f"{name}_{state}_out" for state in states)],
                kind: {**layer["options"], **_weights(kind, name, archive.tensors)},
            }
        )
        value = given
    first, last = layers[0]["options"], layers[-1]
    width = last["options"]["outputVectorSize"] * (2 if last["type"] == "biDirectionalLSTM" else 1)
    description = {
        "input": [_feature(INPUT, [first["inputVectorSize"]], _DOUBLE), *inputs],
        "output": [_feature(OUTPUT, [width], _DOUBLE), *outputs],
        "metadata": _metadata(texts),
    }
    model = {
        "specificationVersion": _NETWORK_VERSION,
        "description": description,
        "neuralNetwork": {"layers": made},
    }
    with path.open("xb") as file:
        _put(file, encoded("Model", model))


def write_package(path: Path, archive: Archive, texts: Mapping[str, str]) -> None:
    """A ``.mlpackage`` folder of the form ``program``; the arguments are those of ``write_network``."""
    root = path / "Data" / _PLACE
    (root / "weights").mkdir(parents=True)
    with (root / "weights" / "weight.bin").open("xb") as file:
        places = _blobs(file, archive.tensors)
    layers = archive.metadata["layers"]
    operations: list[dict[str, Any]] = []
    value = INPUT
    for number, layer in enumerate(layers):
        given = OUTPUT if number == len(layers) - 1 else f"{layer['name']}_{OUTPUT}"
        operations += _operations(layer, archive.tensors, places, value, given)
        value = given
    width = archive.tensors[f"{layers[0]['name']}/weight_ih"].shape[1]
    block = {"outputs": [OUTPUT], "operations": operations}
    function = {
        "inputs": [{"name": INPUT, "type": _type(_FLOAT32_TYPE, (_ANY, 1, width))}],
        "opset": _OPERATIONS,
        "block_specializations": [{"key": _OPERATIONS, "value": block}],
    }
    description = {
        "input": [_feature(INPUT, [1, 1, width], _FLOAT32, flexible=True)],
        "output": [_feature(OUTPUT, [], _FLOAT32)],
        "metadata": _metadata(texts),
    }
    model = {
        "specificationVersion": _PROGRAM_VERSION,
        "description": description,
        "mlProgram": {"version": 1, "functions": [{"key": "main", "value": function}]},
    }
    with (root / "model.mlmodel").open("xb") as file:
        _put(file, encoded("Model", model))
    (path / "Manifest.json").write_text(_manifest(), encoding="utf-8")


def _put(file: BinaryIO, message: Pieces) -> None:
    held: Array | None = None
    for piece in message:
        if isinstance(piece, bytes):
            file.write(piece)
        else:
            # The last one stays until the next is there: gates that lie in one tensor are read once.
            held = piece.read()
            file.write(little_endian(held).data)
    del held


def _metadata(texts: Mapping[str, str]) -> dict[str, Any]:
    return {"userDefined": [{"key": key, "value": text} for key, text in texts.items()]}


def _feature(
    name: str, shape: Sequence[int], dtype: int, *, optional: bool = False, flexible: bool = False
) -> dict[str, Any]:
    """An input or output of the model; of a flexible one the first axis may have any length."""
    array: dict[str, Any] = {"dataType": dtype}
    if shape:
        array["shape"] = shape
    if flexible:
        sizes = [{"lowerBound": n, "upperBound": n} for n in shape[1:]]
        array["shapeRange"] = {"sizeRanges": [{"lowerBound": 1, "upperBound": _ANY}, *sizes]}
    kind: dict[str, Any] = {"multiArrayType": array}
    if optional:
        kind["isOptional"] = 1
    return {"name": name, "type": kind}


# Neural networks.


def _weights(kind: str, name: str, tensors: Mapping[str, Lazy]) -> dict[str, Any]:
    """The weights of a layer as fields of its message."""
    prefix = f"{name}/"
    own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    if kind == "biDirectionalLSTM":
        both = [
            {key.removeprefix(way): {"floatValue": t} for key, t in own.items() if key.startswith(way)}
            for way in ("forward/", "backward/")
        ]
        return {"weightParams": both}
    weights = {key: {"floatValue": tensor} for key, tensor in own.items()}
    return {"weightParams": weights} if kind == "uniDirectionalLSTM" else weights


# Programs.


def _blobs(file: BinaryIO, tensors: Mapping[str, Lazy]) -> dict[str, int]:
    """Write the weights of a program; where the description of each begins."""
    file.write(struct.pack("<II56x", len(tensors), _BLOB_VERSION))
    places = {}
    for name, tensor in tensors.items():
        places[name] = file.tell()
        file.write(_BLOB.pack(_SENTINEL, _SINGLE, tensor.nbytes, places[name] + _ALIGNED))
        file.writelines(pieces(tensor))
        file.write(bytes(-tensor.nbytes % _ALIGNED))
    return places


def _operations(
    layer: Mapping[str, Any], tensors: Mapping[str, Lazy], places: Mapping[str, int], value: str, given: str
) -> list[dict[str, Any]]:
    """The constants of a recurrent operation, and the operation."""
    name, kind, options = layer["name"], layer["type"], layer["options"]
    own = {key.split("/")[1]: t for key, t in tensors.items() if key.startswith(f"{name}/")}
    ways = 2 if options["direction"] == "bidirectional" else 1
    width = ways * own["weight_hh"].shape[1]
    states = _STATES[kind]
    constants = {f"initial_{state}": _zeros((1, width)) for state in states}
    for key, tensor in own.items():
        blob = {"fileName": "@model_path/weights/weight.bin", "offset": places[f"{name}/{key}"]}
        constants[key] = {"type": _type(_FLOAT32_TYPE, tensor.shape), "blobFileValue": blob}
    for key, option in options.items():
        constants[key] = _text(option) if isinstance(option, str) else _truth(option)
    outputs = [(given, (_ANY, 1, width)), *((f"{name}_last_{state}", (1, width)) for state in states)]
    operation = {
        "type": kind,
        "inputs": [
            {"key": key, "value": {"arguments": [{"name": source}]}}
            for key, source in {"x": value, **{key: f"{name}_{key}_0" for key in constants}}.items()
        ],
        "outputs": [{"name": out, "type": _type(_FLOAT32_TYPE, shape)} for out, shape in outputs],
        "attributes": [{"key": "name", "value": _text(name)}],
    }
    return [*(_constant(f"{name}_{key}_0", made) for key, made in constants.items()), operation]


def _constant(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "const",
        "outputs": [{"name": name, "type": value["type"]}],
        "attributes": [{"key": "val", "value": value}, {"key": "name", "value": _text(name)}],
    }


def _type(code: int, shape: Sequence[int] = ()) -> dict[str, Any]:
    kind: dict[str, Any] = {"dataType": code}
    if shape:
        sizes: list[dict[str, Any]] = [
            {"unknown": {}} if n == _ANY else {"constant": {"size": n}} for n in shape
        ]
        kind |= {"rank": len(shape), "dimensions": sizes}
    return {"tensorType": kind}


def _zeros(shape: tuple[int, ...]) -> dict[str, Any]:
    zeros = Lazy.of(np.zeros(shape, np.float32))
    return {"type": _type(_FLOAT32_TYPE, shape), "immediateValue": {"tensor": {"floats": {"values": zeros}}}}


def _text(text: str) -> dict[str, Any]:
    tensor = {"strings": {"values": [text]}}
    return {"type": _type(_TEXT_TYPE), "immediateValue": {"tensor": tensor}}


def _truth(value: bool) -> dict[str, Any]:
    tensor = {"bools": {"values": [int(value)]}}
    return {"type": _type(_BOOL_TYPE), "immediateValue": {"tensor": tensor}}


def _manifest() -> str:
    def item(name: str, description: str) -> dict[str, str]:
        return {"author": _PLACE, "description": description, "name": name, "path": f"{_PLACE}/{name}"}

    entries = {
        _MODEL_ITEM: item("model.mlmodel", "CoreML Model Specification"),
        _WEIGHTS_ITEM: item("weights", "CoreML Model Weights"),
    }
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": _MODEL_ITEM,
    }
    return json.dumps(manifest, indent=4)
