"""LiteRT's files: what the official schema's classes write is read, what is written they read, damage is told."""

from __future__ import annotations

import struct
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from lstmconvert import registry
from lstmconvert.containers import Archive, flatbuffer, tflite_file
from lstmconvert.errors import BadFile, NotRepresentable
from lstmconvert.tensors import Lazy
from tests.matrix import judges_tflite
from tests.matrix.judges import Case

CASE = Case("lstm", 1, True, True)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return judges_tflite.make_tflite(CASE, tmp_path).path


def test_constants_are_those_of_the_schema(saved: Path) -> None:
    archive = tflite_file.read(saved)
    assert registry.container_of(saved).name == tflite_file.NAME
    graph = archive.metadata["graph"]
    operator = graph["operators"][0]
    assert operator["type"] == "BIDIRECTIONAL_SEQUENCE_LSTM"
    assert operator["options"]["time_major"] is False
    names = [graph["tensors"][n]["name"] for n in operator["inputs"][1:] if n >= 0]
    found = [archive.tensors[name].read() for name in names if name in archive.tensors]
    expected = judges_tflite.weights_tflite(saved)
    assert [w.tobytes() for w in found] == [w.tobytes() for w in expected]
    assert len(found) == 24


def test_what_is_written_is_read_back_by_the_schema_and_here(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bytes": np.arange(-3, 4, dtype=np.int8),
        "half": np.array([1.5, -0.0], np.float16),
        "number": np.array(7, np.int32),
    }
    entries = [
        {"name": name, "shape": a.shape, "dtype": a.dtype.name, "constant": True}
        for name, a in arrays.items()
    ]
    entries[1] |= {"scale": [0.5], "zero_point": [3], "axis": 0}
    entries.append({"name": "x", "shape": (None, 3), "dtype": "float32"})
    entries.append({"name": "y", "shape": (None, 3), "dtype": "float32", "variable": True})
    add = {"type": "ADD", "inputs": [4, 0], "outputs": [5], "options_type": 11, "options": {"activation": 1}}
    graph = {"tensors": entries, "operators": [add], "inputs": [("given", 4)], "outputs": [("back", 5)]}
    archive = Archive(
        {name: Lazy.of(a) for name, a in arrays.items()},
        MappingProxyType({"graph": graph, "description": "d", "note": "text \u00e4"}),
    )
    path = tmp_path / "written.tflite"
    tflite_file.write(path, archive)

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (made,) = model.subgraphs
    assert [tensor.name.decode() for tensor in made.tensors] == [*arrays, "x", "y"]
    for tensor, a in zip(made.tensors, arrays.values(), strict=False):
        assert np.array(model.buffers[tensor.buffer].data, np.uint8).tobytes() == a.tobytes()
    assert made.tensors[4].shapeSignature.tolist() == [-1, 3]
    assert made.tensors[5].isVariable
    assert model.signatureDefs[0].outputs[0].name == b"back"
    assert made.operators[0].builtinOptions.fusedActivationFunction == 1

    again = tflite_file.read(path)
    assert again.metadata["note"] == "text \u00e4"
    assert {n: t.read().tobytes() for n, t in again.tensors.items()} == {
        n: a.tobytes() for n, a in arrays.items()
    }
    found = again.metadata["graph"]
    assert found["inputs"] == [("given", 4)]
    assert found["outputs"] == [("back", 5)]
    assert found["tensors"][1]["scale"] == (0.5,)
    assert found["tensors"][1]["zero_point"] == (3,)
    assert found["tensors"][4]["shape"] == (None, 3)
    assert found["tensors"][5]["variable"]


def test_the_content_of_tensors_is_aligned(saved: Path) -> None:
    target = saved.with_name("again.tflite")
    archive = tflite_file.read(saved)
    tflite_file.write(target, Archive(archive.tensors, {**archive.metadata, "graph": _plain(archive)}))
    data = target.read_bytes()
    for tensor in tflite_file.read(target).tensors.values():
        assert data.find(tensor.read().tobytes()) % 16 == 0


def _plain(archive: Archive) -> dict[str, object]:
    graph = archive.metadata["graph"]
    return {**graph, "operators": []}


def test_every_cut_is_told(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(len(whole)):
        if length % 7 and length > 64:
            continue
        saved.write_bytes(whole[:length])
        with pytest.raises(BadFile) as caught:
            for tensor in tflite_file.read(saved).tensors.values():
                tensor.read()
        assert str(saved) in str(caught.value)


def test_offsets_that_lie_are_told(saved: Path) -> None:
    whole = saved.read_bytes()
    root = struct.unpack_from("<I", whole)[0]
    for at, value in ((0, 0xFFFFFFF0), (0, 2), (root, 0x7FFFFFFF), (root, 0x80000001)):
        saved.write_bytes(whole[:at] + struct.pack("<I", value) + whole[at + 4 :])
        with pytest.raises(BadFile):
            tflite_file.read(saved)


def test_a_vector_that_leads_out_of_the_file_is_told(tmp_path: Path) -> None:
    schema = flatbuffer.Schema(
        {"Root": {"data": (0, "range"), "numbers": (1, "[int64]"), "texts": (2, "[string]")}}
    )
    value = {"data": flatbuffer.Blob("d", 5), "numbers": [1, -2], "texts": ["a", "bc"]}
    laid = flatbuffer.lay_out(schema, "Root", value, b"TEST")
    whole = b"".join(
        data + (b"" if blob is None else bytes(range(blob.size))) for data, blob in flatbuffer.pieces(laid)
    )
    assert len(whole) == laid.size
    path = tmp_path / "file"
    path.write_bytes(whole)
    found = flatbuffer.read(path, schema, "Root")
    ((_, start),) = laid.blobs
    assert found == {"data": flatbuffer.Range(start, 5), "numbers": (1, -2), "texts": ("a", "bc")}
    assert start % 16 == 0
    path.write_bytes(whole[:-1])
    with pytest.raises(BadFile, match="a vector leads out of the file"):
        flatbuffer.read(path, schema, "Root")


def test_tables_shared_without_end_are_told(tmp_path: Path) -> None:
    """A thousand subgraphs that are one subgraph of a thousand tensors that are one tensor."""
    count = 4000

    def table(fields: dict[int, int], at: int) -> bytes:
        length = 4 + 2 * (max(fields) + 1)
        places = [0] * (max(fields) + 1)
        inline = b""
        for number, target in fields.items():
            places[number] = 4 + len(inline)
            inline += struct.pack("<I", target - (at + length + 4 + len(inline)))
        described = struct.pack("<HH", length, 4 + len(inline)) + struct.pack(f"<{len(places)}H", *places)
        return described + struct.pack("<i", length) + inline

    def vector(target: int, at: int) -> bytes:
        offsets = (target - (at + 4 + 4 * n) for n in range(count))
        return struct.pack("<I", count) + struct.pack(f"<{count}I", *offsets)

    size = 4 + 4 * count
    graphs, graph = 64, 64 + size
    tensors = graph + 64
    tensor = tensors + size
    data = bytearray(tensor + 64)
    data[4:8] = tflite_file.IDENTIFIER
    model = table({2: graphs}, 8)
    struct.pack_into("<I", data, 0, 8 + 10)
    data[8 : 8 + len(model)] = model
    data[graphs : graphs + size] = vector(graph + 6, graphs)
    made = table({0: tensors}, graph)
    data[graph : graph + len(made)] = made
    data[tensors : tensors + size] = vector(tensor + 4, tensors)
    data[tensor : tensor + 8] = struct.pack("<HHi", 4, 4, 4)
    path = tmp_path / "shared.tflite"
    path.write_bytes(data)
    with pytest.raises(BadFile, match="without end"):
        tflite_file.read(path)


def test_too_much_for_the_format_is_refused(tmp_path: Path) -> None:
    huge = Lazy((1 << 29, 2), np.float32, lambda: np.zeros(0, np.float32))
    entry = {"name": "w", "shape": huge.shape, "dtype": "float32", "constant": True}
    graph = {"tensors": [entry], "operators": [], "inputs": [], "outputs": []}
    with pytest.raises(NotRepresentable, match="2 GiB"):
        tflite_file.write(tmp_path / "huge.tflite", Archive({"w": huge}, {"graph": graph}))
    with pytest.raises(NotRepresentable, match="complex64"):
        entry = {"name": "w", "shape": (1,), "dtype": "complex64"}
        tflite_file.write(tmp_path / "other.tflite", Archive({}, {"graph": {**graph, "tensors": [entry]}}))
