"""Ranges of files as arrays: exactly these bytes, or a ``BadFile``."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from lstmconvert.containers import byte_ranges
from lstmconvert.containers.byte_ranges import Checksum
from lstmconvert.errors import BadFile
from lstmconvert.tensors import same_bits


@pytest.fixture
def numbers(tmp_path: Path) -> tuple[Path, np.ndarray]:
    values = np.random.default_rng(3).normal(size=60).astype(np.float32)
    path = tmp_path / "numbers"
    path.write_bytes(b"head" + values.tobytes() + b"tail")
    return path, values


def test_a_range_is_read_as_an_array(numbers: tuple[Path, np.ndarray]) -> None:
    path, values = numbers
    lazy = byte_ranges.lazy(path, 4 + 8, (4, 5), np.float32)
    assert same_bits(lazy.read(), values[2:22].reshape(4, 5))
    assert byte_ranges.read_range(path, 0, 4) == b"head"


@pytest.mark.parametrize("strides", [(1, 3), (0, 2), (20, 1), (7, 5)])
def test_strides_are_in_elements(numbers: tuple[Path, np.ndarray], strides: tuple[int, int]) -> None:
    path, values = numbers
    expected = np.lib.stride_tricks.as_strided(values[2:], (3, 4), tuple(4 * s for s in strides))
    read = byte_ranges.lazy(path, 4 + 8, (3, 4), np.float32, strides=strides).read()
    assert same_bits(read, expected)


def test_views_of_a_strided_array_share_one_read(numbers: tuple[Path, np.ndarray]) -> None:
    path, _ = numbers
    lazy = byte_ranges.lazy(path, 4, (5, 3), np.float32, strides=(1, 5))
    column = lazy.read()[:, 1]
    assert np.shares_memory(lazy.read(), column)


@pytest.mark.parametrize("code", [">f4", ">f8", ">i2", ">u8", ">c8"])
def test_big_endian_numbers_become_native(tmp_path: Path, code: str) -> None:
    values = np.arange(12, dtype=code).reshape(3, 4)
    path = tmp_path / "big"
    path.write_bytes(values.tobytes())
    lazy = byte_ranges.lazy(path, 0, (3, 4), code)
    assert lazy.dtype.isnative
    assert same_bits(lazy.read(), values.astype(values.dtype.newbyteorder("=")))


@pytest.mark.parametrize(
    ("offset", "shape"), [(0, (64,)), (-4, (2,)), (244, (2,)), (1 << 63, (1,)), (0, (1 << 40, 1 << 20))]
)
def test_a_range_outside_the_file_is_refused_at_once(
    numbers: tuple[Path, np.ndarray], offset: int, shape: tuple[int, ...]
) -> None:
    with pytest.raises(BadFile, match="outside the file"):
        byte_ranges.lazy(numbers[0], offset, shape, np.float32)


def test_strides_that_leave_the_file_are_refused(numbers: tuple[Path, np.ndarray]) -> None:
    with pytest.raises(BadFile, match="outside the file"):
        byte_ranges.lazy(numbers[0], 0, (2, 2), np.float32, strides=(61, 1))


def test_an_empty_array_needs_no_bytes(numbers: tuple[Path, np.ndarray]) -> None:
    assert byte_ranges.lazy(numbers[0], 4, (0, 1 << 40), np.float32).read().shape == (0, 1 << 40)


def test_a_file_cut_short_meanwhile_is_an_error(numbers: tuple[Path, np.ndarray]) -> None:
    path, _ = numbers
    lazy = byte_ranges.lazy(path, 4, (60,), np.float32)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadFile, match="ends inside a tensor"):
        lazy.read()


def test_a_file_removed_meanwhile_is_an_error(numbers: tuple[Path, np.ndarray]) -> None:
    path, _ = numbers
    lazy = byte_ranges.lazy(path, 4, (60,), np.float32)
    path.unlink()
    with pytest.raises(BadFile, match="cannot be read"):
        lazy.read()


def test_the_checksum_is_checked(numbers: tuple[Path, np.ndarray]) -> None:
    path, values = numbers
    checksum = Checksum(zlib.crc32(b"head"), zlib.crc32(b"head" + values.tobytes()))
    lazy = byte_ranges.lazy(path, 4, (60,), np.float32, checksum=checksum)
    assert same_bits(lazy.read(), values)
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    with pytest.raises(BadFile, match="checksum"):
        lazy.read()


def test_only_files_of_the_folder_are_inside(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    for place in (folder / "weights", tmp_path / "outside"):
        place.write_bytes(b"1")
    (folder / "link").symlink_to(tmp_path / "outside")
    assert byte_ranges.inside(folder, "weights") == folder / "weights"
    for name in ("../outside", str(tmp_path / "outside"), "link", "missing", "", ".", "wei\0ghts"):
        assert byte_ranges.inside(folder, name) is None, name
