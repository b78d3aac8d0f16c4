"""TensorBundles: what TensorFlow writes is read, what is written here TensorFlow reads, damage is an error of ours."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from lstmconvert import registry
from lstmconvert.containers import Archive, sstable, tensor_bundle
from lstmconvert.containers.crc32c import crc32c
from lstmconvert.errors import BadFile, ConversionError, UnsupportedSource
from lstmconvert.tensors import Lazy, same_bits
from tests.tensorflow1_runtime import RUNTIME

RNG = np.random.default_rng(7)
ARRAYS = {
    "rnn/kernel": RNG.normal(size=(3, 5)).astype(np.float32),
    "rnn/bias": np.array([-0.0, np.nan, np.inf, 1e-42], np.float32),
    "wide": RNG.normal(size=(2, 3, 4)),
    "half": RNG.normal(size=(7,)).astype(np.float16),
    "step": np.array(12345678901, np.int64),
    "flags": np.array([[True, False]]),
    "empty": np.zeros((0, 4), np.float32),
    "bytes": np.arange(-3, 4, dtype=np.int8),
    "large": RNG.normal(size=(700, 900)).astype(np.float32),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix of a checkpoint that TensorFlow wrote."""
    prefix = tmp_path_factory.mktemp("bundle") / "model.ckpt-7"
    RUNTIME.save(prefix, ARRAYS)
    return prefix


def index_of(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def data_of(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".data-00000-of-00001")


def copied(prefix: Path, folder: Path) -> Path:
    for path in (index_of(prefix), data_of(prefix)):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / prefix.name


def test_what_tensorflow_writes_is_read(saved: Path) -> None:
    archive = tensor_bundle.read(index_of(saved))
    assert set(archive.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert archive.tensors[name].shape == array.shape
        assert same_bits(np.asarray(archive.tensors[name].read()), array), name


def test_tensorflow_reads_what_is_written(tmp_path: Path) -> None:
    text = "äöü" * 100
    given = {name: Lazy.of(array) for name, array in ARRAYS.items()}
    given |= {f"many/{n}": Lazy.of(np.array(n, np.float32)) for n in range(200)}
    tensor_bundle.write(tmp_path / "new.index", Archive(given, {"lstmconvert": text}))
    found = RUNTIME.variables(tmp_path / "new")
    assert set(found) == set(given)
    for name, array in ARRAYS.items():
        assert same_bits(found[name], array), name
    back = tensor_bundle.read(tmp_path / "new")
    assert back.metadata["lstmconvert"] == text
    assert all(same_bits(np.asarray(back.tensors[name].read()), np.asarray(a)) for name, a in ARRAYS.items())


def test_bfloat16_comes_back(tmp_path: Path) -> None:
    array = RNG.normal(size=(3, 2)).astype(ml_dtypes.bfloat16)
    tensor_bundle.write(tmp_path / "new.index", Archive({"a": Lazy.of(array)}))
    assert same_bits(np.asarray(tensor_bundle.read(tmp_path / "new.index").tensors["a"].read()), array)


def test_all_the_paths_that_stand_for_a_checkpoint(saved: Path, tmp_path: Path) -> None:
    prefix = copied(saved, tmp_path)
    for path in (prefix, index_of(prefix), data_of(prefix), tmp_path):
        assert registry.container_of(path).name == "tensor_bundle", path
        assert list(tensor_bundle.read(path).tensors)


def test_the_folder_names_its_latest_checkpoint(saved: Path, tmp_path: Path) -> None:
    copied(saved, tmp_path)
    other = Archive({"other": Lazy.of(np.zeros(2, np.float32))})
    tensor_bundle.write(tmp_path / "b.index", other)
    with pytest.raises(BadFile, match=r"Name the \.index file"):
        tensor_bundle.read(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/b"\n')
    assert list(tensor_bundle.read(tmp_path).tensors) == ["other"]


def test_a_missing_data_file_is_named(saved: Path, tmp_path: Path) -> None:
    prefix = copied(saved, tmp_path)
    data_of(prefix).unlink()
    with pytest.raises(BadFile, match="data-00000-of-00001"):
        tensor_bundle.read(index_of(prefix))


def test_cuts_end_in_bad_file(saved: Path, tmp_path: Path) -> None:
    prefix = copied(saved, tmp_path)
    whole = index_of(prefix).read_bytes()
    for length in range(0, len(whole), 7):
        index_of(prefix).write_bytes(whole[:length])
        with pytest.raises(BadFile):
            tensor_bundle.read(index_of(prefix))
    index_of(prefix).write_bytes(whole)
    data = data_of(prefix).read_bytes()
    data_of(prefix).write_bytes(data[:-1])
    with pytest.raises(BadFile):
        tensor_bundle.read(index_of(prefix))


def test_a_changed_byte_of_a_tensor_is_found(saved: Path, tmp_path: Path) -> None:
    prefix = copied(saved, tmp_path)
    data = bytearray(data_of(prefix).read_bytes())
    data[len(data) // 2] ^= 4
    data_of(prefix).write_bytes(data)
    archive = tensor_bundle.read(index_of(prefix))
    with pytest.raises(BadFile, match="checksum"):
        for tensor in archive.tensors.values():
            tensor.read()


@pytest.mark.parametrize("number", range(60))
def test_damage_ends_in_an_error_of_ours(saved: Path, tmp_path: Path, number: int) -> None:
    prefix = copied(saved, tmp_path)
    choice = random.Random(number)
    data = bytearray(index_of(prefix).read_bytes())
    # The checksums are made to fit again in every second case, so that what lies behind them is reached.
    if number % 2:
        entries = sstable.read(index_of(prefix))
        key = choice.choice(sorted(entries))
        value = bytearray(entries[key])
        value[choice.randrange(len(value))] = choice.randrange(256)
        index_of(prefix).unlink()
        sstable.write(index_of(prefix), {**entries, key: bytes(value)})
    else:
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        index_of(prefix).write_bytes(data)
    try:
        for tensor in tensor_bundle.read(index_of(prefix)).tensors.values():
            tensor.read()
    except ConversionError as error:
        assert str(tmp_path) in str(error)


def test_other_byte_order_is_refused(saved: Path, tmp_path: Path) -> None:
    prefix = copied(saved, tmp_path)
    entries = sstable.read(index_of(prefix))
    index_of(prefix).unlink()
    sstable.write(index_of(prefix), {**entries, b"": b"\x08\x01\x10\x01"})
    with pytest.raises(UnsupportedSource, match="byte order"):
        tensor_bundle.read(index_of(prefix))


def test_crc32c_of_known_texts() -> None:
    # RFC 3720, B.4
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@pytest.mark.parametrize("length", [0, 1, 8191, 8192, 100_003, 2_097_152, 2_200_001])
def test_crc32c_in_pieces(length: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length, np.uint8).tobytes()
    split = length // 3
    assert crc32c(data[split:], crc32c(data[:split])) == crc32c(data)


def test_a_block_can_be_split_over_restarts(tmp_path: Path) -> None:
    entries = {f"key{n:06d}".encode(): struct.pack("<I", n) * 20 for n in range(9000)}
    sstable.write(tmp_path / "table", entries)
    assert sstable.read(tmp_path / "table") == entries
