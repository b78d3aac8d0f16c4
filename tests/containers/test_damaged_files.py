"""Valid files with random damage: they are read as what they still are, or refused by an error of ours."""

from __future__ import annotations

import io
import pickle as plain_pickle
import random
import tempfile
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.numpy
import scipy.io
import torch
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from lstmconvert.containers import Archive, eqx, mat, msgpack, npz, pickle, tflite_file, torch_archive
from lstmconvert.containers import safetensors as safetensors_file
from lstmconvert.errors import BadFile, ConversionError
from lstmconvert.tensors import Lazy
from tests.matrix import judges_tflite
from tests.matrix.judges import Case


def torch_file(value: object, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def torch_script() -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), stream)
    return stream.getvalue()


def numpy_file(*, compressed: bool) -> bytes:
    stream = io.BytesIO()
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(4, np.int8)}
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def single_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(6.0).reshape(2, 3))
    return stream.getvalue()


def flat_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return judges_tflite.make_tflite(Case("rnn", 1, True, True), Path(folder)).path.read_bytes()


def matlab_file(*, compressed: bool) -> bytes:
    stream = io.BytesIO()
    layer = {"W": np.arange(6.0).reshape(2, 3) + 0.5, "b": np.ones((4, 1), np.float32)}
    scipy.io.savemat(stream, {"layer": layer}, do_compression=compressed)
    return stream.getvalue()


def written_by(module: ModuleType) -> bytes:
    """A file of ours of two arrays and a text, where the container has room for one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        tensors = {"a": Lazy.of(np.arange(6.0).reshape(2, 3)), "b/c": Lazy.of(np.ones(300, np.float32))}
        module.write(path, Archive(tensors))
        return path.read_bytes()


CHECKPOINT = {
    "model": torch.nn.LSTM(2, 3).state_dict(),
    "epoch": 3,
    "words": ["a", "b"],
    "array": np.arange(3.0),
}
FILES: dict[str, tuple[ModuleType, bytes]] = {
    "torch zip": (torch_archive, torch_file(CHECKPOINT)),
    "torch legacy": (torch_archive, torch_file(CHECKPOINT, zipped=False)),
    "torch script": (torch_archive, torch_script()),
    "npz": (npz, numpy_file(compressed=False)),
    "npz compressed": (npz, numpy_file(compressed=True)),
    "npy": (npz, single_array()),
    "safetensors": (
        safetensors_file,
        safetensors.numpy.save({"a": np.arange(6.0).reshape(2, 3), "b": np.ones(4, np.int8)}, {"c": "d"}),
    ),
    "msgpack": (msgpack, written_by(msgpack)),
    "eqx": (eqx, single_array()),
    "pickle": (pickle, plain_pickle.dumps({"a": {"w": np.arange(600.0)}, "b": np.ones(4, np.int8), "n": 3})),
    "pickle of ours": (pickle, written_by(pickle)),
    "tflite": (tflite_file, flat_file()),
    "mat": (mat, matlab_file(compressed=False)),
    "mat compressed": (mat, matlab_file(compressed=True)),
}


def damaged(data: bytes, number: int) -> bytes:
    """The file with a few random changes, the same for the same number."""
    choice = random.Random(number)
    changed = bytearray(data)
    for _ in range(choice.randint(1, 3)):
        at = choice.randrange(len(changed))
        match choice.randrange(5):
            case 0:
                changed[at] ^= 1 << choice.randrange(8)
            case 1:
                changed[at] = choice.choice([0, 1, 0x7F, 0x80, 0xFF, choice.randrange(256)])
            case 2:
                width = choice.choice([2, 4, 8])
                value = choice.choice([0, 1, 255, (1 << 31) - 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1])
                changed[at : at + width] = value.to_bytes(8, "little")[:width]
            case 3:
                del changed[at : at + choice.randint(1, 20)]
            case _:
                changed[at:at] = changed[choice.randrange(len(changed)) :][: choice.randint(1, 20)]
        if not changed:
            break
    return bytes(changed)


@pytest.mark.parametrize("name", FILES)
@seed(20)
@settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(number=st.integers(0, 1 << 32))
@example(number=0)
def test_damage_ends_in_an_error_of_ours(name: str, number: int) -> None:
    module, data = FILES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(damaged(data, number))
        module.probe(path)
        try:
            archive = module.read(path)
            for tensor in archive.tensors.values():
                array = tensor.read()
                assert (array.shape, array.dtype) == (tensor.shape, tensor.dtype)
        except ConversionError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_ends_in_bad_file(name: str, tmp_path: Path) -> None:
    module, data = FILES[name]
    path = tmp_path / "file"
    for length in range(0, len(data), max(1, len(data) // 100)):
        path.write_bytes(data[:length])
        with pytest.raises(BadFile):
            module.read(path)
