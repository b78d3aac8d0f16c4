"""NumPy's files, judged by NumPy in both directions; nothing in them is unpickled."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lstmconvert.containers import Archive, npz
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource
from lstmconvert.tensors import Lazy, same_bits

CODES = [
    "?",
    "i1",
    "u1",
    "<i2",
    ">i2",
    "<u2",
    "i4",
    "u4",
    "i8",
    ">u8",
    "f2",
    "<f4",
    ">f4",
    "f8",
    ">f8",
    "c8",
    ">c16",
]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    made: dict[str, np.ndarray] = {}
    for code in CODES:
        width = np.dtype(code).itemsize
        data = rng.integers(0, 2 if code == "?" else 256, (3, 4 * width), dtype=np.uint8)
        made[f"code {code}"] = data.view(code)
    made |= {
        "enc/w ü": rng.normal(size=(6, 7)),
        "scalar": np.array(-0.0, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "fortran": np.asfortranarray(rng.normal(size=(4, 5, 6)).astype(np.float32)),
    }
    return made


def native(values: np.ndarray) -> np.ndarray:
    return np.array(values, values.dtype.newbyteorder("="), order="C")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_that_numpy_writes(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "w.npz"
    save(path, **arrays())
    assert npz.probe(path)
    archive = npz.read(path)
    assert list(archive.tensors) == list(arrays())
    for name, values in arrays().items():
        lazy = archive.tensors[name]
        assert (lazy.shape, lazy.dtype) == (values.shape, values.dtype.newbyteorder("="))
        assert same_bits(lazy.read(), native(values)), name


def test_single_arrays_are_named_after_their_file(tmp_path: Path) -> None:
    for name, values in arrays().items():
        path = tmp_path / "kernel.npy"
        np.save(path, values)
        assert npz.probe(path)
        archive = npz.read(path)
        assert same_bits(archive.tensors["kernel"].read(), native(values)), name


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header(tmp_path: Path, version: tuple[int, int]) -> None:
    path = tmp_path / "a.npy"
    values = np.arange(12.0).reshape(3, 4)
    with path.open("wb") as file:
        np.lib.format.write_array(file, values, version=version)
    assert same_bits(npz.read(path).tensors["a"].read(), values)


def test_a_header_of_python_2(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6.0).reshape(2, 3))
    path.write_bytes(path.read_bytes().replace(b"(2, 3), }  ", b"(2L, 3L), }"))
    assert b"2L" in path.read_bytes()
    assert npz.read(path).tensors["a"].read().shape == (2, 3)


def test_what_is_written_numpy_loads(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    npz.write(
        path, Archive({k: Lazy.of(native(v)) for k, v in arrays().items()}, {"lstmconvert": "a note ü"})
    )
    with np.load(path, allow_pickle=False) as judge:
        assert judge.files == [*arrays(), "lstmconvert.txt"]
        for name, values in arrays().items():
            assert same_bits(judge[name], native(values)), name
    archive = npz.read(path)
    assert archive.metadata["lstmconvert"] == "a note ü"
    assert list(archive.tensors) == list(arrays())
    for name, values in arrays().items():
        assert same_bits(archive.tensors[name].read(), native(values)), name


def test_a_fortran_ordered_array_is_written_in_rows(tmp_path: Path) -> None:
    values = np.asfortranarray(np.random.default_rng(0).normal(size=(300, 200)))
    npz.write(tmp_path / "w.npz", Archive({"w": Lazy.of(values)}))
    assert same_bits(np.load(tmp_path / "w.npz")["w"], np.array(values, order="C"))
    npz.write(tmp_path / "w.npy", Archive({"w": Lazy.of(values)}))
    assert same_bits(np.load(tmp_path / "w.npy"), np.array(values, order="C"))
    with pytest.raises(NotRepresentable, match="one array"):
        npz.write(tmp_path / "v.npy", Archive({"a": Lazy.of(values), "b": Lazy.of(values)}))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_dtypes_that_numpy_files_do_not_name(tmp_path: Path, dtype: Any) -> None:
    values = np.ones(3, dtype)
    with pytest.raises(NotRepresentable, match="no name"):
        npz.write(tmp_path / "w.npz", Archive({"w": Lazy.of(values)}))
    np.savez(tmp_path / "w.npz", w=values)
    with pytest.raises(UnsupportedSource, match="safetensors"):
        npz.read(tmp_path / "w.npz")


@pytest.mark.parametrize("name", ["../up", "/up", "a//b", "a\\b", ""])
def test_names_that_are_no_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotRepresentable, match="name"):
        npz.write(tmp_path / "w.npz", Archive({name: Lazy.of(np.ones(2))}))


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path / "hacked").write_text, ("x",)

    objects = np.array([1, None], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", w=np.ones(2), evil=objects)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(UnsupportedSource, match="pickled Python objects"):
            npz.read(tmp_path / name)


def test_text_dates_and_records_are_left_out_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(
        path,
        w=np.ones(2),
        words=np.array(["a", "bc"]),
        codes=np.array([b"a"]),
        when=np.array(["2024-01-01"], dtype="M8[D]"),
        rows=np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    )
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("readme.md", "text")
    archive = npz.read(path)
    assert list(archive.tensors) == ["w"]
    assert set(archive.metadata["ignored"]) == {"words", "codes", "when", "rows", "readme.md"}


def single(path: Path, header: str, data: bytes = b"", version: int = 1) -> Path:
    text = header.encode("latin-1")
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text + data)
    return path


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


@pytest.mark.parametrize(
    "header",
    [
        GOOD.replace("(2,)", "(3,)"),
        GOOD.replace("(2,)", "(1,)"),
        GOOD.replace("(2,)", "(-2,)"),
        GOOD.replace("(2,)", "(-1, -2)"),
        GOOD.replace("(2,)", "(True, 2)"),
        GOOD.replace("(2,)", "(2.0,)"),
        GOOD.replace("(2,)", "2"),
        GOOD.replace("(2,)", "[2]"),
        GOOD.replace("(2,)", "(9223372036854775808, 2)"),
        GOOD.replace("(2,)", "(4294967296, 4294967296)"),
        GOOD.replace("(2,)", "(" + "1, " * 40 + "2)"),
        GOOD.replace("False", "0"),
        GOOD.replace("False", "__import__('os').system('touch hacked')"),
        GOOD.replace("'<f4'", "5"),
        GOOD.replace("'<f4'", "''"),
        GOOD.replace("'<f4'", "'<f4, (2)f8'"),
        GOOD.replace("'shape'", "'form'"),
        GOOD.replace("}", "'more': 1}"),
        "",
        "[]",
        "{",
        "(" * 5000,
        "{[]: 1}",
        "'\\x'",
        "1if 2else 3",
        "9" * 9000,
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: str) -> None:
    assert npz.read(single(tmp_path / "a.npy", GOOD, bytes(8))).tensors["a"].shape == (2,)
    with pytest.raises(BadFile):
        npz.read(single(tmp_path / "a.npy", header, bytes(8)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as target:
        target.write(tmp_path / "a.npy", "a.npy")
    with pytest.raises(BadFile):
        npz.read(tmp_path / "a.npz")


@pytest.mark.parametrize("code", ["<f3", "<f16", "<i16", "|V4", "<c32"])
def test_unknown_formats_are_refused(tmp_path: Path, code: str) -> None:
    with pytest.raises((BadFile, UnsupportedSource)):
        npz.read(single(tmp_path / "a.npy", GOOD.replace("<f4", code), bytes(32)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, None])
def test_truncations_are_refused(tmp_path: Path, save: Any) -> None:
    path = tmp_path / ("a.npz" if save else "a.npy")
    if save:
        save(path, a=np.arange(10.0), b=np.ones((2, 3)))
    else:
        np.save(path, np.arange(10.0))
    data = path.read_bytes()
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(BadFile):
            npz.read(path)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(20 << 20))
    with pytest.raises(BadFile, match="far beyond"):
        npz.read(tmp_path / "a.npz")


def test_other_files_are_not_numpy_files(tmp_path: Path) -> None:
    for data in (b"", b"\x93NUMP", b"PK\x03\x04", bytes(100)):
        (tmp_path / "f").write_bytes(data)
        assert not npz.probe(tmp_path / "f")
    assert not npz.probe(tmp_path / "missing")
