"""The ONNX container: what it reads is what the onnx package reads, and it writes what that package loads."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmconvert.containers import Archive, onnx_file, onnx_wire
from lstmconvert.errors import BadFile, ConversionError
from lstmconvert.pieces import PIECE
from lstmconvert.tensors import Array, Lazy, same_bits

BIG = (200, 100)  # 80 kB of float32: more than stays in the model
SMALL = (3, 2)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def model_of(initializers: list[TensorProto], nodes: list[Any] | None = None) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph(
        nodes or [helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y], initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


def saved(tmp_path: Path, model: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def numbers(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    return rng().standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("shape", [SMALL, BIG, (), (0, 4)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool"])
def test_an_initializer_keeps_its_bits(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = (numbers(shape, np.float64) * 50).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    archive = onnx_file.read(saved(tmp_path, model_of([numpy_helper.from_array(array, "a")])))
    assert list(archive.tensors) == ["a"]
    assert archive.tensors["a"].shape == shape
    assert same_bits(archive.tensors["a"].read(), array)


@pytest.mark.parametrize("shape", [SMALL, BIG], ids=str)
@pytest.mark.parametrize(
    ("data_type", "dtype"),
    [
        (TensorProto.FLOAT, "float32"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.INT64, "int64"),
        (TensorProto.INT8, "int8"),
        (TensorProto.UINT64, "uint64"),
    ],
)
def test_a_typed_data_field_is_read(
    tmp_path: Path, shape: tuple[int, ...], data_type: int, dtype: str
) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    array = np.abs(numbers(shape, np.float64) * 20).astype(kind)
    values = array.astype(np.float32) if dtype == "bfloat16" else array
    tensor = helper.make_tensor("a", data_type, shape, values.reshape(-1).tolist())
    assert not tensor.raw_data
    archive = onnx_file.read(saved(tmp_path, model_of([tensor])))
    assert same_bits(archive.tensors["a"].read(), array)


@pytest.mark.parametrize("size", [5, 150_001])
def test_four_bit_numbers_are_unpacked(tmp_path: Path, size: int) -> None:
    array = rng().integers(-8, 8, size).astype(ml_dtypes.int4)
    archive = onnx_file.read(saved(tmp_path, model_of([numpy_helper.from_array(array, "a")])))
    assert archive.tensors["a"].read().astype(int).tolist() == array.astype(int).tolist()


def nested_model() -> onnx.ModelProto:
    def branch(name: str, seed: int) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, list(BIG))
        value = numpy_helper.from_array(np.full(BIG, seed, np.float32), "weights")
        return helper.make_graph(
            [helper.make_node("Identity", ["weights"], [f"{name}_out"])], name, [], [out], [value]
        )

    big = numpy_helper.from_array(numbers(BIG), "in a node")
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["c"], ["z"], "choice", then_branch=branch("t", 1), else_branch=branch("e", 2)
        ),
        helper.make_node("Constant", [], ["k"], "big constant", value=big),
        helper.make_node("Constant", [], ["l"], value=numpy_helper.from_array(numbers(SMALL))),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    return model_of([numpy_helper.from_array(np.float32([7]), "choice/then_branch/weights")], nodes)


def test_tensors_of_inner_graphs_and_nodes_have_keys_of_their_own(tmp_path: Path) -> None:
    archive = onnx_file.read(saved(tmp_path, nested_model()))
    held = {name: lazy.read().reshape(-1)[0] for name, lazy in archive.tensors.items()}
    assert held == {
        "choice/then_branch/weights": 7,
        "choice/then_branch/weights#2": 1,
        "choice/else_branch/weights": 2,
        "big constant/value": numbers(BIG)[0, 0],
    }


def test_the_model_in_the_archive_is_small_and_points_at_the_tensors(tmp_path: Path) -> None:
    archive = onnx_file.read(saved(tmp_path, nested_model()))
    model = archive.metadata["model"]
    assert len(model.SerializeToString()) < 2000
    (tensor,) = model.graph.initializer
    assert tensor.data_location == TensorProto.EXTERNAL
    assert [(e.key, e.value) for e in tensor.external_data] == [("location", tensor.name)]


def test_reading_and_writing_gives_an_equal_model(tmp_path: Path) -> None:
    path = saved(tmp_path, nested_model())
    archive = onnx_file.read(path)
    back = tmp_path / "back.onnx"
    onnx_file.write(back, archive)
    onnx.checker.check_model(onnx.load(back), full_check=True)
    assert onnx.load(back) == onnx.load(path)


def test_texts_of_the_metadata_are_read_and_written(tmp_path: Path) -> None:
    model = model_of([])
    model.metadata_props.add(key="lstmconvert", value="{}")
    archive = onnx_file.read(saved(tmp_path, model))
    assert archive.metadata["lstmconvert"] == "{}"
    changed = Archive(archive.tensors, {**archive.metadata, "lstmconvert": "new", "more": "text"})
    onnx_file.write(tmp_path / "back.onnx", changed)
    props = {e.key: e.value for e in onnx.load(tmp_path / "back.onnx").metadata_props}
    assert props == {"lstmconvert": "new", "more": "text"}


def test_write_streams_the_arrays_of_a_model_that_has_none(tmp_path: Path) -> None:
    arrays = {"a": numbers(BIG), "b": numbers((100, 200)).T, "c": numbers((3,), ml_dtypes.bfloat16)}
    types = {"a": TensorProto.FLOAT, "b": TensorProto.FLOAT, "c": TensorProto.BFLOAT16}
    model = model_of([TensorProto(name=n, dims=a.shape, data_type=types[n]) for n, a in arrays.items()])
    onnx_file.write(
        tmp_path / "out.onnx", Archive({n: Lazy.of(a) for n, a in arrays.items()}, {"model": model})
    )
    loaded = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(loaded, full_check=True)
    for tensor in loaded.graph.initializer:
        assert tensor.raw_data == np.ascontiguousarray(arrays[tensor.name]).tobytes()


def test_write_refuses_an_array_that_is_not_what_the_model_says(tmp_path: Path) -> None:
    model = model_of([TensorProto(name="a", dims=[2], data_type=TensorProto.FLOAT)])
    with pytest.raises(ValueError, match="'a' is float32 \\(3,\\)"):
        onnx_file.write(tmp_path / "out.onnx", Archive({"a": Lazy.of(numbers((3,)))}, {"model": model}))


def test_large_models_are_written_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST_SINGLE_FILE", 100_000)
    archive = onnx_file.read(saved(tmp_path, nested_model()))
    out = tmp_path / "large.onnx"
    onnx_file.write(out, archive)
    assert out.stat().st_size < 5000
    onnx.checker.check_model(str(out), full_check=True)
    constant = next(node for node in onnx.load(out).graph.node if node.name == "big constant")
    assert constant.attribute[0].t.raw_data == numbers(BIG).tobytes()
    again = onnx_file.read(out)
    assert all(same_bits(again.tensors[n].read(), t.read()) for n, t in archive.tensors.items())


def test_neither_reading_nor_writing_holds_the_model(tmp_path: Path) -> None:
    one = 16 << 20
    generator = rng()
    arrays = {f"w{n}": generator.standard_normal(one // 8) for n in range(4)}
    path = saved(tmp_path, model_of([numpy_helper.from_array(a, n) for n, a in arrays.items()]))
    onnx_file.read(path)  # whatever is imported for the first time
    tracemalloc.start()
    try:
        archive = onnx_file.read(path)
        reading = tracemalloc.get_traced_memory()[1]
        onnx_file.write(tmp_path / "back.onnx", archive)
        writing = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reading < one / 4, reading
    assert PIECE <= writing < 0.75 * one, writing
    assert (tmp_path / "back.onnx").read_bytes().count(arrays["w3"].tobytes()) == 1


# External data.


def external_model(tmp_path: Path, array: Array, **entries: str) -> Path:
    tensor = TensorProto(name="a", dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return saved(tmp_path, model_of([tensor]))


@pytest.mark.parametrize("folder", ["", "sub/"])
@pytest.mark.parametrize("stated", [True, False])
def test_external_data_are_read(tmp_path: Path, folder: str, stated: bool) -> None:
    array = numbers(SMALL)
    (tmp_path / "sub").mkdir()
    (tmp_path / folder / "weights.bin").write_bytes(b"12345678" + array.tobytes() + b"more")
    length = {"length": str(array.nbytes)} if stated else {}
    path = external_model(tmp_path, array, location=f"{folder}weights.bin", offset="8", **length)
    assert same_bits(onnx_file.read(path).tensors["a"].read(), array)


def test_external_data_of_the_onnx_package_are_read(tmp_path: Path) -> None:
    array = numbers(BIG)
    model = model_of([numpy_helper.from_array(array, "a"), numpy_helper.from_array(array[:3], "b")])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    tensors = onnx_file.read(tmp_path / "m.onnx").tensors
    assert same_bits(tensors["a"].read(), array)
    assert same_bits(tensors["b"].read(), array[:3])


@pytest.mark.parametrize(
    "location",
    [
        "../outside.bin",
        "sub/../../outside.bin",
        "{root}/outside.bin",
        "C:\\outside.bin",
        "..\\outside.bin",
        "",
    ],
)
def test_external_data_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    array = numbers(SMALL)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.bin").write_bytes(array.tobytes())
    path = external_model(folder, array, location=location.format(root=tmp_path))
    with pytest.raises(BadFile, match="outside the model's folder") as caught:
        onnx_file.read(path)
    assert caught.value.place == "tensor 'a'"
    assert caught.value.file == str(path)


def test_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    array = numbers(SMALL)
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(array.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(BadFile, match="leads outside"):
        onnx_file.read(external_model(folder, array, location="link.bin"))
    (folder / "inside.bin").write_bytes(array.tobytes())
    (folder / "good.bin").symlink_to(folder / "inside.bin")
    read = onnx_file.read(external_model(folder, array, location="good.bin"))
    assert same_bits(read.tensors["a"].read(), array)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "missing.bin"}, "is missing"),
        ({"location": "."}, "no regular file"),
        ({"location": "w.bin", "offset": "1"}, "run past the end"),
        ({"location": "w.bin", "offset": "-4"}, "not a number"),
        ({"location": "w.bin", "length": "many"}, "not a number"),
        ({"location": "w.bin", "length": "4"}, "do not fit its shape"),
        ({"location": "w.bin", "length": "9" * 19}, "run past the end"),
    ],
)
def test_external_data_that_are_not_there_are_refused(
    tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    (tmp_path / "w.bin").write_bytes(numbers(SMALL).tobytes())
    with pytest.raises(BadFile, match=message):
        onnx_file.read(external_model(tmp_path, numbers(SMALL), **entries))


# Files that are damaged or something else.


def test_probe_goes_by_content(tmp_path: Path) -> None:
    path = saved(tmp_path, nested_model())
    renamed = path.rename(tmp_path / "model.bin")
    assert onnx_file.probe(renamed)
    assert not onnx_file.probe(tmp_path / "missing.onnx")
    assert not onnx_file.probe(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"\x08",
            b"PK\x03\x04" + bytes(100),
            b"\x89HDF\r\n\x1a\n" + bytes(100),
            b"\x80\x02}q\x00.",
            b"{}",
        ),
        b"\x08\x08" * 600,  # a version again and again
        b"\x40\x00\x00\x00\x00\x00\x00\x00{" + b" " * 63,  # safetensors
        b"\x08\x01\x12\x04abcd",  # a TensorFlow SavedModel begins like this
        b"plain text\n" * 9,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_other_files_are_not_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    assert not onnx_file.probe(path)
    with pytest.raises(BadFile) as caught:
        onnx_file.read(path)
    assert caught.value.file == str(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such file"):
        onnx_file.read(tmp_path / "missing.onnx")
    with pytest.raises(BadFile, match="not a file"):
        onnx_file.read(tmp_path)


def test_a_truncated_model_is_recognised_and_refused(tmp_path: Path) -> None:
    whole = nested_model().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: len(whole) // 2])
    assert onnx_file.probe(path)
    with pytest.raises(BadFile, match="truncated"):
        onnx_file.read(path)


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, model_of([numpy_helper.from_array(numbers(BIG), "a")]))
    tensor = onnx_file.read(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(BadFile, match="ends inside"):
        tensor.read()


def test_damage_never_ends_in_another_error(tmp_path: Path) -> None:
    generator = rng()
    array = numbers((4, 3))
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(array)),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    whole = model_of(
        [numpy_helper.from_array(array, "a"), numpy_helper.from_array(array[0], "b")], nodes
    ).SerializeToString()
    path = tmp_path / "damaged.onnx"
    outcomes = set()
    for trial in range(400):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(0, 256)
        path.write_bytes(bytes(data[: generator.integers(1, len(data))] if trial % 2 else data))
        onnx_file.probe(path)
        try:
            for lazy in onnx_file.read(path).tensors.values():
                if lazy.nbytes < 1 << 20:
                    lazy.read()
            outcomes.add("read")
        except ConversionError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("shape", [SMALL, BIG], ids=str)
def test_data_that_do_not_fit_their_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensor = numpy_helper.from_array(numbers(shape), "a")
    tensor.dims[0] += 1
    with pytest.raises(BadFile, match="do not fit its shape") as caught:
        onnx_file.read(saved(tmp_path, model_of([tensor])))
    assert caught.value.place == "tensor 'a'"


def test_numbers_packed_in_two_pieces_are_read(tmp_path: Path) -> None:
    """Protobuf allows a repeated field to come in several pieces, each large enough to be left out."""
    array = numbers((2, *BIG))
    tensor = TensorProto(name="a", dims=array.shape, data_type=TensorProto.FLOAT).SerializeToString()
    for half in array:
        tensor += onnx_wire.delimited(4, half.nbytes) + half.tobytes()
    graph = onnx_wire.delimited(5, len(tensor)) + tensor
    path = tmp_path / "pieces.onnx"
    path.write_bytes(b"\x08\x08" + onnx_wire.delimited(7, len(graph)) + graph)
    assert same_bits(onnx_file.read(path).tensors["a"].read(), array)


def test_a_tensor_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="has no data"):
        onnx_file.read(
            saved(tmp_path, model_of([TensorProto(name="a", dims=[2], data_type=TensorProto.FLOAT)]))
        )


def test_two_initializers_of_one_name_are_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(numbers(SMALL), "a")
    with pytest.raises(BadFile, match="appears twice"):
        onnx_file.read(saved(tmp_path, model_of([tensor, tensor])))


def test_an_element_type_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="element type"):
        onnx_file.read(
            saved(tmp_path, model_of([TensorProto(name="a", dims=[1], data_type=99, raw_data=b"1234")]))
        )


def test_a_file_cannot_name_the_bytes_of_another_tensor(tmp_path: Path) -> None:
    """The entry that stands for bytes left out is ours; a file that brings one is refused."""
    forged = TensorProto(name="b", dims=BIG, data_type=TensorProto.FLOAT)
    forged.external_data.add(key="lstmconvert.bytes", value="0")
    for tensors in ([numpy_helper.from_array(numbers(BIG), "a"), forged], [forged]):
        with pytest.raises(BadFile, match="nobody writes"):
            onnx_file.read(saved(tmp_path, model_of(tensors)))


def test_a_graph_without_bound_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, nested_model())
    with onnx_wire.FileSource(path) as source, pytest.raises(ConversionError, match="too large"):
        onnx_wire.without_large_tensors(source, [], "marker", 100)


def test_messages_nested_beyond_measure_are_refused(tmp_path: Path) -> None:
    inner = b""
    for _ in range(80):  # graph > node > attribute > graph
        for number in (6, 5, 1):
            inner = onnx_wire.delimited(number, len(inner)) + inner
    body = onnx_wire.delimited(7, len(inner)) + inner
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x08" + body)
    with pytest.raises(BadFile):
        onnx_file.read(path)
