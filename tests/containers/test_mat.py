"""MATLAB's files as scipy.io writes them, and as version 7.3 has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from lstmconvert import registry
from lstmconvert.containers import mat
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import same_bits


def held() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {
        "W": rng.normal(size=(12, 3)).astype(np.float32),
        "double": rng.normal(size=(4, 5)),
        "cube": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "scalar": np.array([[2.0]]),
        "bias": rng.normal(size=(12, 1)),
        "counts": np.array([[1, 2, 300]], np.int32),
        "empty": np.zeros((0, 3)),
        "whole": np.array([[1.0, 2.0, -3.0]]),
    }


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_writes_is_read(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    layer = {"InputWeights": held()["W"], "inner": {"Bias": held()["bias"]}}
    others = {"text": "words", "cells": np.array([1, "a"], object), "complex": np.array([[1 + 2j]])}
    scipy.io.savemat(path, {**held(), **others, "layer": layer}, do_compression=compressed)
    archive = mat.read(path)
    expected = {k: v for k, v in scipy.io.loadmat(path).items() if k in held()}
    assert registry.container_of(path).name == "mat"
    assert archive.tensors.keys() == {*held(), "layer/InputWeights", "layer/inner/Bias"}
    for name, array in expected.items():
        assert same_bits(archive.tensors[name].read(), np.ascontiguousarray(array)), name
    assert same_bits(archive.tensors["layer/inner/Bias"].read(), held()["bias"])
    assert archive.metadata["ignored"].keys() >= {"text", "cells", "complex"}


def test_version_7_3_is_hdf5_with_the_axes_turned(tmp_path: Path) -> None:
    """The layout that MATLAB documents: a 512-byte header before HDF5, arrays column by column."""
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name in ("W", "bias", "cube"):
            file[name] = held()[name].transpose()
        file["layer/Bias"] = held()["bias"].transpose()
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    found = mat.read(path).tensors
    assert same_bits(found["W"].read(), held()["W"])
    assert same_bits(found["cube"].read(), held()["cube"])
    assert same_bits(found["layer/Bias"].read(), held()["bias"])


def test_a_file_of_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.ones((2, 2))})
    data = path.read_bytes()
    path.write_bytes(data[:124] + b"\x01\x00MI" + data[128:])
    with pytest.raises(UnsupportedSource, match="byte order"):
        mat.read(path)


def test_a_lying_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.arange(6.0).reshape(2, 3) + 0.5})
    data = path.read_bytes()
    shape = np.array([2, 3], np.int32).tobytes()
    for axes in ([2, 4], [-2, -3], [2**31 - 1, 2**31 - 1]):
        path.write_bytes(data.replace(shape, np.array(axes, np.int32).tobytes()))
        with pytest.raises(BadFile):
            mat.read(path)
    path.write_bytes(data + b"\0\0\0")
    with pytest.raises(BadFile, match="ends"):
        mat.read(path)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    """A compressed array of eight GiB of zeros is stated, and is not in the few bytes that there are."""
    import struct
    import zlib

    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": np.ones((2, 2))})
    body = zlib.compress(struct.pack("<II", 14, 1 << 32 - 1) + bytes(1000))
    path.write_bytes(path.read_bytes()[:128] + struct.pack("<II", 15, len(body)) + body)
    with pytest.raises(BadFile, match="compressed"):
        mat.read(path)
