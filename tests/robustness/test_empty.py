"""Nothing in a file, and layers of size zero, in every container: one plain error."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
import safetensors.numpy
import scipy.io
import torch
from flax import serialization
from onnx import helper, numpy_helper

from lstmconvert import cli

Arrays = Mapping[str, np.ndarray[Any, Any]]


def lstm(hidden: int, inputs: int) -> Arrays:
    rows = 4 * hidden
    shapes = {
        "weight_ih": (rows, inputs),
        "weight_hh": (rows, hidden),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
    }
    return {f"{name}_l0": np.zeros(shape, np.float32) for name, shape in shapes.items()}


ARRAYS: dict[str, Arrays] = {"no arrays": {}, "no units": lstm(0, 2), "no input": lstm(3, 0)}


def in_memory(write: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def torch_file(arrays: Arrays, *, zipped: bool) -> bytes:
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    return in_memory(lambda stream: torch.save(tensors, stream, _use_new_zipfile_serialization=zipped))


def matlab_file(arrays: Arrays) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return in_memory(lambda stream: scipy.io.savemat(stream, {"layer": dict(arrays)} if arrays else {}))


HOLDING: dict[str, Callable[[Arrays], bytes]] = {
    "x.pt": lambda arrays: torch_file(arrays, zipped=True),
    "legacy.pt": lambda arrays: torch_file(arrays, zipped=False),
    "x.safetensors": lambda arrays: safetensors.numpy.save(dict(arrays)),
    "x.npz": lambda arrays: in_memory(lambda stream: np.savez(stream, **arrays)),
    "x.pkl": lambda arrays: pickle.dumps({"lstm": dict(arrays)}, 4),
    "x.pdparams": lambda arrays: pickle.dumps({f"0.cell.{name[:-3]}": a for name, a in arrays.items()}, 4),
    "x.msgpack": lambda arrays: bytes(serialization.msgpack_serialize({"params": {"cell": dict(arrays)}})),
    "x.mat": matlab_file,
}


def hdf5(config: object = None) -> bytes:
    def write(stream: io.BytesIO) -> None:
        with h5py.File(stream, "w") as file:
            if config is not None:
                file.attrs["keras_version"] = "2.2.4"
                file.attrs["backend"] = "tensorflow"
                file.attrs["model_config"] = json.dumps(config)
                file.create_group("model_weights").attrs["layer_names"] = np.array([], "S1")

    return in_memory(write)


def keras_archive(config: object) -> bytes:
    def write(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("config.json", json.dumps(config))
            archive.writestr("metadata.json", json.dumps({"keras_version": "3.8.0"}))
            archive.writestr("model.weights.h5", hdf5())

    return in_memory(write)


def graph(directions: int = 1, hidden: int = 3, inputs: int = 2) -> bytes:
    shapes = {"W": (directions, 4 * hidden, inputs), "R": (directions, 4 * hidden, hidden)}
    held = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()]
    ports = [
        helper.make_tensor_value_info(name, 1, ["t", "b", size])
        for name, size in (("x", inputs), ("y", hidden))
    ]
    node = helper.make_node("LSTM", ["x", "W", "R"], ["y"], hidden_size=hidden)
    return onnx_file(helper.make_graph([node], "g", ports[:1], ports[1:], held))


def onnx_file(made: onnx.GraphProto) -> bytes:
    return bytes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


SEQUENTIAL = {"class_name": "Sequential", "config": {"name": "s", "layers": []}}
FUNCTIONAL = {
    "class_name": "Model",
    "config": {"name": "m", "layers": [], "input_layers": [], "output_layers": []},
}
WEB = {
    "format": "layers-model",
    "modelTopology": {"model_config": SEQUENTIAL, "keras_version": "2.2.4"},
    "weightsManifest": [],
}
FILES: dict[str, Mapping[str, bytes]] = {
    **{f"{kind} in {name}": {name: write(arrays)} for name, write in HOLDING.items() for kind, arrays in ARRAYS.items()},
    "nothing.h5": {"x.h5": hdf5()},
    "no layers.h5": {"x.h5": hdf5(SEQUENTIAL)},
    "no layers, wired.h5": {"x.h5": hdf5(FUNCTIONAL)},
    "no layers.keras": {"x.keras": keras_archive(SEQUENTIAL)},
    "null.keras": {"x.keras": keras_archive(None)},
    "no nodes.onnx": {"x.onnx": onnx_file(helper.make_graph([], "g", [], []))},
    "no units.onnx": {"x.onnx": graph(hidden=0)},
    "no input.onnx": {"x.onnx": graph(inputs=0)},
    "no directions.onnx": {"x.onnx": graph(directions=0)},
    "no layers.json": {"model.json": json.dumps(WEB).encode()},
    "no layers.param": {"x.param": b"7767517\n0 0\n", "x.bin": b""},
    "no layers.xml": {"x.xml": b'<?xml version="1.0"?><net name="n" version="11"><layers></layers><edges></edges></net>'},
    "no numbers.npy": {"x.npy": in_memory(lambda stream: np.save(stream, np.zeros((0, 3), np.float32)))},
    "no bytes.eqx": {"x.eqx": b""},
    "no bytes.mlmodel": {"x.mlmodel": b""},
    "no bytes.index": {"x.index": b""},
    "no graphs.tflite": {"x.tflite": b"\x1c\0\0\0TFL3" + bytes(60)},
    "saved model": {"saved_model.pb": b""},
    "orbax": {"_METADATA": b"{}"},
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_nothing_is_a_plain_error(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, data in FILES[case].items():
        (folder / name).write_bytes(data)
    (main, *_) = FILES[case]
    source = folder if main in ("saved_model.pb", "_METADATA") else folder / main
    options = ["--activation", "tanh", "--recurrent-activation", "sigmoid"]
    status = cli.main(["convert", str(source), "-o", str(tmp_path / "out.safetensors"), *options])
    message = capsys.readouterr().err
    assert status == 4, message
    assert message.startswith("lstmconvert: ") and "internal error" not in message, message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
