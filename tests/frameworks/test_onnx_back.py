"""ONNX graphs that lstmconvert wrote, read as whole models: torch and Keras compute what the first Keras did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import lstmconvert as lc
from lstmconvert.errors import NotRepresentable
from lstmconvert.frameworks import keras_live
from lstmconvert.model import Model
from lstmconvert.tensors import Array, same_bits
from scripts import fuzz_models
from tests.counting import COUNTED
from tests.frameworks import keras_zoo, onnx_running
from tests.frameworks.pytorch_running import module_of, run, written
from tests.support import assert_close

Record = Callable[[str, object], None]
ZOO = [name for name in keras_zoo.MODELS if name not in keras_zoo.ONLY_KERAS2]

REFUSED: dict[str, str] = {}
"""Models whose graphs are not read as a whole, and what the reason says."""

REFUSED_BY_KERAS: dict[str, str] = {}
"""Models that are read as a whole and that Keras cannot hold, and what the reason says."""


def assert_same_bits(back: Model, model: Model) -> None:
    """Every block of the recurrent layers, in their order; ONNX has two biases, of which one may be zero."""
    for a in back.recurrent.values():
        # A layer that is used twice becomes two nodes, and those two layers.
        name = max((n for n in model.recurrent if a.name.startswith(n)), key=len)
        b = model.recurrent[name]
        for found, wanted in zip(a.directions, b.directions, strict=True):
            assert found.direction == wanted.direction
            for key, block in found.weights.items():
                twin = wanted.weights.get(key)
                values = block.read()
                assert not values.any() if twin is None else same_bits(values, twin.read()), (a.name, key)
            assert found.weights.keys() >= wanted.weights.keys()
    assert len(back.recurrent) >= len(model.recurrent)


@pytest.mark.parametrize("name", ZOO)
def test_a_written_graph_is_a_whole_model_again(name: str, tmp_path: Path, record_property: Record) -> None:
    import keras

    built, inputs = keras_zoo.build(name, keras)
    model = keras_live.read_live(built)
    lc.write(model, tmp_path / "model.onnx")
    back = lc.read(tmp_path / "model.onnx")
    if name in REFUSED:
        assert back.calls is None
        assert REFUSED[name] in back.metadata["topology"]
        record_property(COUNTED, "keras -> onnx -> whole model: refused")
        return
    assert back.calls is not None, back.metadata["topology"]
    assert_same_bits(back, model)
    expected = keras_zoo.predict(built, inputs)
    states = [
        np.zeros([len(inputs[0]) if size is None else size for size in port.shape], port.dtype)
        for port in back.inputs[len(inputs) :]
    ]
    same_results(run(module_of(written(back)), [*inputs, *states]), expected, f"{name} by torch")
    record_property(COUNTED, "keras -> onnx -> torch: agreed")
    try:
        lc.write(back, tmp_path / "back.keras")
    except NotRepresentable as error:
        assert name in REFUSED_BY_KERAS, error
        assert REFUSED_BY_KERAS[name] in str(error)
        record_property(COUNTED, "keras -> onnx -> keras: refused")
        return
    assert name not in REFUSED_BY_KERAS
    keras.backend.clear_session()
    loaded = keras.models.load_model(tmp_path / "back.keras")
    same_results(keras_zoo.predict(loaded, [*inputs, *states]), expected, f"{name} by keras")
    record_property(COUNTED, "keras -> onnx -> keras: agreed")


def same_results(got: list[Array], expected: list[Array], what: str) -> None:
    for index, (a, b) in enumerate(zip(got, expected, strict=False)):
        assert a.shape == b.shape, (what, index)
        assert_close(a, b, context=f"{what}, output {index}")
    assert len(got) >= len(expected)


def changed(node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The node with its first two inputs exchanged, or another operator; ``None`` where neither can be."""
    other = onnx.NodeProto()
    other.CopyFrom(node)
    swapped = {"Sub": "Add", "Add": "Sub", "Equal": "Less", "GreaterOrEqual": "Less", "And": "Or"}
    if node.op_type in swapped:
        other.op_type = swapped[node.op_type]
        return other
    if node.op_type == "Where":
        other.input[1], other.input[2] = node.input[2], node.input[1]
        return other
    if node.op_type == "ReduceMin":
        other.op_type = "ReduceMax"
        return other
    return None


@pytest.mark.parametrize("name", ["masked_embedding", "masked_states", "zero_output", "all_padding"])
def test_a_graph_that_differs_in_a_node_is_not_taken_for_what_it_is_not(name: str, tmp_path: Path) -> None:
    import keras

    built, inputs = keras_zoo.build(name, keras)
    path = tmp_path / "model.onnx"
    lc.write(keras_live.read_live(built), path)
    model = onnx.load(path)
    refused = 0
    for place, node in enumerate(list(model.graph.node)):
        other = changed(node)
        if other is None:
            continue
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        broken.graph.node[place].CopyFrom(other)
        path.write_bytes(broken.SerializeToString())
        back = lc.read(path)
        if back.calls is None:
            refused += 1
            continue
        feeds = {port.name: array for port, array in zip(back.inputs, inputs, strict=True)}
        try:
            expected = onnx_running.run(broken, feeds)
        except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument:
            continue  # the change makes an index that is out of bounds
        given = back.run(*inputs)
        for port, got in zip(back.outputs, given if isinstance(given, tuple) else (given,), strict=True):
            assert_close(got, expected[port.name], context=f"{node.op_type} {node.name}")
    assert refused > 5


def test_a_cast_that_is_an_output_stays_where_a_table_gives_a_mask(tmp_path: Path) -> None:
    model = fuzz_models.models()["masked"]
    model = replace(model, outputs=(replace(model.outputs[0], dtype="float16"),))
    lc.write(model, tmp_path / "model.onnx")
    back = lc.read(tmp_path / "model.onnx")
    assert back.calls is not None, back.metadata["topology"]
    assert back.outputs[0].dtype == "float16"
