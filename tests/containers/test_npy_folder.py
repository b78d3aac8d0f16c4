"""Folders of NumPy's single arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lstmconvert import registry
from lstmconvert.containers import npy_folder
from lstmconvert.errors import BadFile, ConversionError
from lstmconvert.tensors import same_bits


def test_arrays_are_called_by_their_paths(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "encoder/lstm/w": np.ones(3, np.float32), "b.c": np.zeros(2)}
    for name, array in arrays.items():
        path = tmp_path / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    (tmp_path / "notes.txt").write_text("other files do not matter")
    assert registry.container_of(tmp_path).name == "npy_folder"
    found = npy_folder.read(tmp_path).tensors
    assert found.keys() == arrays.keys()
    assert all(same_bits(found[name].read(), array) for name, array in arrays.items())


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    np.save(tmp_path / "secret.npy", np.ones(3))
    folder = tmp_path / "dump"
    folder.mkdir()
    np.save(folder / "a.npy", np.ones(2))
    (folder / "b.npy").symlink_to(tmp_path / "secret.npy")
    assert list(npy_folder.read(folder).tensors) == ["a"]


def test_damage_names_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(20))
    np.save(tmp_path / "b.npy", np.array([{"code": 1}]), allow_pickle=True)
    with pytest.raises(ConversionError, match=r"b\.npy"):
        [tensor.read() for tensor in npy_folder.read(tmp_path).tensors.values()]
    (tmp_path / "b.npy").unlink()
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:150])
    with pytest.raises(BadFile, match=r"a\.npy"):
        [tensor.read() for tensor in npy_folder.read(tmp_path).tensors.values()]


def test_a_folder_without_arrays_is_nothing_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="a folder"):
        registry.container_of(tmp_path)
