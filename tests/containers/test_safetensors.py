"""safetensors, judged by the package of that name in both directions."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from lstmconvert.containers import Archive
from lstmconvert.containers import safetensors as container
from lstmconvert.errors import BadFile, ConversionError, NotRepresentable, UnsupportedSource
from lstmconvert.tensors import Lazy, same_bits

DTYPES = [
    np.bool_,
    np.uint8,
    np.int8,
    np.int16,
    np.uint16,
    np.float16,
    ml_dtypes.bfloat16,
    np.int32,
    np.uint32,
]
DTYPES += [np.float32, np.int64, np.uint64, np.float64, np.complex64, ml_dtypes.float8_e4m3fn]
DTYPES += [ml_dtypes.float8_e5m2]


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    made: dict[str, np.ndarray] = {}
    for dtype in DTYPES:
        width = np.dtype(dtype).itemsize
        data = rng.integers(0, 2 if dtype is np.bool_ else 256, (3, 5 * width), dtype=np.uint8)
        made[np.dtype(dtype).name] = data.view(dtype)
    made['a name with ü, " and \\'] = rng.normal(size=(7,)).astype(np.float32)
    made["scalar"] = np.array(-0.0, np.float32)
    made["none"] = np.zeros((0, 4), np.float32)
    made["transposed"] = np.asfortranarray(rng.normal(size=(200, 150)))
    return made


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def same(tensor: torch.Tensor, values: np.ndarray) -> bool:
    name = str(tensor.dtype).removeprefix("torch.")
    return (
        name == values.dtype.name
        and tuple(tensor.shape) == values.shape
        and bits(tensor) == np.array(values, order="C").tobytes()
    )


def test_what_is_written_the_package_loads(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    texts = {"format": "pt", "lstmconvert": 'a "note" with ü\n'}
    container.write(path, Archive({k: Lazy.of(v) for k, v in arrays().items()}, texts))
    with safetensors.safe_open(path, "pt") as judge:
        assert judge.metadata() == texts
        assert set(judge.keys()) == set(arrays())
        for name, values in arrays().items():
            assert same(judge.get_tensor(name), values), name
    header = json.loads(path.read_bytes()[8 : 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]])
    begin = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    for name, values in arrays().items():
        assert (begin + header[name]["data_offsets"][0]) % values.dtype.itemsize == 0


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    container.write(tmp_path / "a", Archive({k: Lazy.of(v) for k, v in arrays().items()}))
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(tmp_path / "a"), path, {"format": "pt"})
    assert container.probe(path)
    archive = container.read(path)
    assert dict(archive.metadata) == {"format": "pt"}
    assert set(archive.tensors) == set(arrays())
    for name, values in arrays().items():
        assert same_bits(archive.tensors[name].read(), np.array(values, order="C")), name


def test_no_tensors_and_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    container.write(path, Archive({}))
    assert safetensors.torch.load_file(path) == {}
    assert dict(container.read(path).tensors) == {}


def test_dtypes_and_names_that_the_format_lacks_are_refused(tmp_path: Path) -> None:
    for name, values in {"w": np.zeros(2, np.complex128), "__metadata__": np.zeros(2)}.items():
        with pytest.raises(NotRepresentable):
            container.write(tmp_path / "w", Archive({name: Lazy.of(values)}))
        assert not (tmp_path / "w").exists()
    with pytest.raises(TypeError, match="no text"):
        container.write(tmp_path / "w", Archive({}, {"a": 1}))


def made(path: Path, header: str | bytes, data: bytes = b"") -> Path:
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ENTRY = '"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    "header",
    [
        "{" + ENTRY + "}",
        " { " + ENTRY.replace(":", " : ").replace(",", " , ") + " }   ",
        '{"__metadata__":null,' + ENTRY + "}",
        '{"__metadata__":{},' + ENTRY + "}",
        "{" + ENTRY + ',"__metadata__":{"a":"b","c":""}}',
        '{"w":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}',
    ],
)
def test_headers_that_others_write(tmp_path: Path, header: str) -> None:
    path = made(tmp_path / "w.safetensors", header, struct.pack("<2f", 1, 2))
    assert container.read(path).tensors["w"].read().tolist() == [1, 2]


BAD = {
    "empty": "",
    "no object": "[]",
    "nothing": "{",
    "no value": '{"w"}',
    "no end": "{" + ENTRY,
    "comma at the end": "{" + ENTRY + ",}",
    "something behind": "{" + ENTRY + "}x",
    "not UTF-8": b'{"\xff":1}',
    "half a surrogate": "{" + ENTRY.replace('"w"', '"\\ud800"') + "}",
    "control character": "{" + ENTRY.replace('"w"', '"\n"') + "}",
    "twice": "{" + ENTRY + "," + ENTRY + "}",
    "twice the metadata": '{"__metadata__":{},' + ENTRY + ',"__metadata__":{}}',
    "twice a text": '{"__metadata__":{"a":"b","a":"c"},' + ENTRY + "}",
    "metadata of numbers": '{"__metadata__":{"a":1},' + ENTRY + "}",
    "metadata of lists": '{"__metadata__":[],' + ENTRY + "}",
    "metadata of nonsense": '{"__metadata__":nul,' + ENTRY + "}",
    "no entry": '{"w":null}',
    "a list": '{"w":[]}',
    "an unknown field": "{" + ENTRY[:-1] + ',"x":1}}',
    "a field twice": "{" + ENTRY[:-1] + ',"dtype":"F32"}}',
    "no shape": '{"w":{"dtype":"F32","data_offsets":[0,8]}}',
    "negative length": "{" + ENTRY.replace("[2]", "[-2]") + "}",
    "two negative lengths": "{" + ENTRY.replace("[2]", "[-2,-1]") + "}",
    "length of a float": "{" + ENTRY.replace("[2]", "[2.0]") + "}",
    "length of a truth value": "{" + ENTRY.replace("[2]", "[2,true]") + "}",
    "huge length": "{" + ENTRY.replace("[2]", "[9223372036854775808,2]") + "}",
    "lengths that overflow": "{" + ENTRY.replace("[2]", "[4294967296,4294967296,0,2]") + "}",
    "wrong size": "{" + ENTRY.replace("[2]", "[3]") + "}",
    "offsets reversed": "{" + ENTRY.replace("[0,8]", "[8,0]") + "}",
    "one offset": "{" + ENTRY.replace("[0,8]", "[8]") + "}",
    "negative offset": "{" + ENTRY.replace("[0,8]", "[-8,0]") + "}",
    "gap at the beginning": "{" + ENTRY.replace("[2]", "[1]").replace("[0,8]", "[4,8]") + "}",
    "gap at the end": "{" + ENTRY.replace("[2]", "[1]").replace("[0,8]", "[0,4]") + "}",
    "beyond the end": "{" + ENTRY.replace("[2]", "[4]").replace("[0,8]", "[0,16]") + "}",
    "overlap": "{" + ENTRY + "," + ENTRY.replace('"w"', '"v"') + "}",
    "many axes": "{" + ENTRY.replace("[2]", "[2" + ",1" * 40 + "]") + "}",
    "deep": '{"w":' + "[" * 100_000 + "}",
    "long entry": '{"w":{"dtype":"' + "x" * 10_000 + '"}}',
    "long number": "{" + ENTRY.replace("[2]", "[" + "1" * 4000 + "]") + "}",
    "NaN": "{" + ENTRY.replace("[2]", "[NaN]") + "}",
}


STRICTER = ("twice", "twice a text", "an unknown field", "many axes")
"""What the package lets pass."""


@pytest.mark.parametrize("case", BAD)
def test_bad_headers_are_refused(tmp_path: Path, case: str) -> None:
    path = made(tmp_path / "w.safetensors", BAD[case], bytes(8))
    with pytest.raises(BadFile) as caught:
        container.read(path)
    assert str(path) in str(caught.value)
    if case not in STRICTER:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.torch.load_file(path)


def test_an_unknown_dtype_is_refused_by_name(tmp_path: Path) -> None:
    path = made(
        tmp_path / "w.safetensors", '{"w":{"dtype":"F4","shape":[16],"data_offsets":[0,8]}}', bytes(8)
    )
    with pytest.raises(UnsupportedSource, match="F4"):
        container.read(path)


def test_headers_that_are_too_long_are_not_read(tmp_path: Path) -> None:
    for length in (100_000_001, 1 << 40, (1 << 64) - 1):
        path = tmp_path / "w.safetensors"
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(BadFile, match="header"):
            container.read(path)


def test_a_header_full_of_brackets_costs_little(tmp_path: Path) -> None:
    import tracemalloc

    path = made(tmp_path / "w.safetensors", '{"w":[' + "[],[]," * 500_000 + "[]]}")
    tracemalloc.start()
    try:
        with pytest.raises(BadFile):
            container.read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * path.stat().st_size


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    values = {"w": Lazy.of(np.arange(5.0)), "v": Lazy.of(np.arange(3, dtype=np.int8))}
    container.write(path, Archive(values, {"a": "b"}))
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(BadFile):
            container.read(path)


def test_probing_never_fails(tmp_path: Path) -> None:
    for data in (b"", b"x", bytes(8), bytes(100), b"\x10" + bytes(7) + b"[", b"\xff" * 20):
        (tmp_path / "f").write_bytes(data)
        assert not container.probe(tmp_path / "f")
    assert not container.probe(tmp_path)
    assert not container.probe(tmp_path / "missing")


# Several files


def sharded(folder: Path, places: dict[str, str] | None = None) -> Path:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2), "b": torch.zeros(3)}, folder / one, {"format": "pt"})
    safetensors.torch.save_file({"c": torch.full((2, 2), 7.0)}, folder / two, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    places = {"c": two, "a": one, "b": one} if places is None else places
    index.write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": places}))
    return index


@pytest.mark.parametrize("whole_folder", [False, True])
def test_several_files_with_an_index(tmp_path: Path, whole_folder: bool) -> None:
    index = sharded(tmp_path)
    path = tmp_path if whole_folder else index
    assert container.probe(path)
    archive = container.read(path)
    assert list(archive.tensors) == ["c", "a", "b"]
    assert archive.tensors["c"].read().tolist() == [[7, 7], [7, 7]]
    assert dict(archive.metadata) == {"format": "pt"}


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "C:x", "missing"]
)
def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(BadFile):
        container.read(sharded(tmp_path / "in", {"a": name}))


@pytest.mark.parametrize(
    "places",
    [
        {"a": "model-00001-of-00002.safetensors"},
        {"a": "model-00002-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"},
        {"d": "model-00002-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"},
        {"c": 5},
    ],
)
def test_an_index_that_contradicts_its_files_is_refused(tmp_path: Path, places: Any) -> None:
    with pytest.raises(BadFile):
        container.read(sharded(tmp_path, places))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map":[]}', '{"weight_map":{"a":1}}', "[" * 100_000]
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(ConversionError):
        container.read(path)


def test_an_index_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    index.write_text(index.read_text().replace('"b"', '"a"'))
    with pytest.raises(BadFile, match="damaged"):
        container.read(index)
