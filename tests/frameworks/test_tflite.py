"""LiteRT models that the matrix does not have: coupled gates, scales, states, merges, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert.canonical import Returns
from lstmconvert.frameworks.tflite import kernels
from lstmconvert.tensors import Lazy
from tests.matrix import judges
from tests.matrix.judges import HIDDEN, INPUT, Case, draw, inputs
from tests.matrix.judges_tflite import GATES, Builder, interpreter_of, layer, ran

Array = np.ndarray[Any, Any]


def close(y: Array, expected: Array) -> bool:
    return y.shape == expected.shape and bool(np.max(np.abs(y - expected)) <= 1e-5 * np.max(np.abs(expected)))


def lstm_file(folder: Path, case: Case, batch: int = 2, **told: Any) -> Path:
    """One fused LSTM; ``told`` are its options."""
    made = Builder()
    x = made.tensor((batch, -1, INPUT), name="x")
    y = layer(made, np.random.default_rng(case.seed), case, x, INPUT, batch)
    for key, value in told.items():
        setattr(made.graph.operators[0].builtinOptions, key, value)
    return made.save(folder / "source.tflite", [x], [y])


def test_a_written_model_begins_every_run_at_zero_at_any_batch(tmp_path: Path) -> None:
    case = Case("lstm", 2, True, True)
    source = judges.make_onnx(case, tmp_path)
    target = tmp_path / "target.tflite"
    lc.convert(source.path, target)
    rng = np.random.default_rng(case.seed)
    for batch, time in ((3, 5), (1, 2), (5, 9)):
        interpreter = interpreter_of(target, (batch, time, INPUT))
        (given,), (back,) = interpreter.get_input_details(), interpreter.get_output_details()
        for run in range(3):
            x = rng.normal(0, 1.2, (batch, time, INPUT)).astype(np.float32)
            if run == 1:
                x[0, 0, 0] = np.nan  # what is set to zero looks at no number
            interpreter.set_tensor(given["index"], x)
            interpreter.invoke()
            expected = judges.run_onnx(source.path, x, case)
            rows = slice(1, None) if run == 1 else slice(None)
            if batch > 1 or run != 1:
                assert close(interpreter.get_tensor(back["index"])[rows], expected[rows])


def test_that_an_interpreter_keeps_states_is_told(tmp_path: Path) -> None:
    path = lstm_file(tmp_path, Case("lstm", 1, False, True))
    result = lc.convert(path, tmp_path / "out.onnx")
    assert any("keeps the states" in step.description for step in result.rewrites)
    lc.convert(tmp_path / "out.onnx", tmp_path / "again.tflite")
    result = lc.convert(tmp_path / "again.tflite", tmp_path / "back.onnx")
    assert not any("keeps the states" in step.description for step in result.rewrites)


@pytest.mark.parametrize("option", ["plain", "peephole"])
def test_without_an_input_gate_it_is_one_minus_the_forget_gate(option: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    made = Builder()
    x = made.tensor((2, -1, INPUT), name="x")

    def gates(shape: tuple[int, ...]) -> list[int]:
        return [-1, *(made.tensor(shape, draw(rng, shape)) for _ in GATES[1:])]

    operands = [x, *gates((HIDDEN, INPUT)), *gates((HIDDEN, HIDDEN))]
    peepholes = [made.tensor((HIDDEN,), draw(rng, (HIDDEN,))) for _ in range(2)]
    operands += [-1, *peepholes] if option == "peephole" else [-1] * 3
    operands += [*gates((HIDDEN,)), -1, -1]
    operands += [made.tensor((2, HIDDEN), variable=True) for _ in range(2)]
    y = made.tensor((2, -1, HIDDEN))
    made.add(
        "UNIDIRECTIONAL_SEQUENCE_LSTM", operands, [y], "UnidirectionalSequenceLSTMOptions",
        fusedActivationFunction=4,
    )  # fmt: skip
    path = made.save(tmp_path / "coupled.tflite", [x], [y])
    given = inputs(Case("lstm", 1, False, True))
    (expected,) = ran(path, given)
    lc.convert(path, tmp_path / "out.onnx")
    assert close(judges.run_onnx(tmp_path / "out.onnx", given, Case("lstm", 1, False, True)), expected)


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize("number", range(5))
def test_every_fused_activation(cell: str, number: int, tmp_path: Path) -> None:
    path = lstm_file(tmp_path, Case(cell, 1, False, True), fusedActivationFunction=number)
    if (cell, number) == ("lstm", 0):
        with pytest.raises(lc.UnsupportedSource, match="without a fused activation"):
            lc.read(path)
        return
    given = inputs(Case(cell, 1, False, True)) / 4
    (expected,) = ran(path, given)
    assert close(lc.read(path).run(given.astype(np.float64)), expected)
    if number != 2:  # a hyperbolic tangent with corners, which the kernels run and no converter writes
        lc.convert(path, tmp_path / "out.tflite", to="tflite")
        assert close(ran(tmp_path / "out.tflite", given)[0], expected)


def test_clips_of_cell_and_projection(tmp_path: Path) -> None:
    case = Case("lstm", 1, False, True, "projection")
    path = lstm_file(tmp_path, case, projClip=0.3, cellClip=0.7)
    given = inputs(case)
    (expected,) = ran(path, given)
    assert np.max(np.abs(expected)) <= np.float32(0.3)
    lc.convert(path, tmp_path / "out.tflite", to="tflite")
    assert close(ran(tmp_path / "out.tflite", given)[0], expected)
    lc.convert(path, tmp_path / "out.safetensors")
    assert close(judges.run_torch(tmp_path / "out.safetensors", given, case), expected)


def test_a_cell_clip_that_is_not_wanted(tmp_path: Path) -> None:
    case = Case("lstm", 1, False, True)
    path = lstm_file(tmp_path, case, cellClip=10.0)
    with pytest.raises(lc.NotRepresentable, match="--cell-clip inf"):
        lc.convert(path, tmp_path / "out.onnx")
    result = lc.convert(path, tmp_path / "out.onnx", cell_clip=float("inf"))
    assert any("bounds the cell state by 10" in step.description for step in result.rewrites)
    given = inputs(case)
    assert close(judges.run_onnx(tmp_path / "out.onnx", given, case), ran(path, given)[0])


@pytest.mark.parametrize("time_major", [False, True])
def test_a_bidirectional_operator_that_joins_its_outputs(*, time_major: bool, tmp_path: Path) -> None:
    case = Case("lstm", 1, True, True)
    rng = np.random.default_rng(case.seed)
    batch = 2 if time_major else 1  # with more, the kernel is not to be relied on
    made = Builder()
    x = made.tensor((batch, -1, INPUT), name="x")
    first = x
    order = made.tensor((3,), np.array([1, 0, 2], np.int32))
    if time_major:
        first = made.tensor((-1, batch, INPUT))
        made.add("TRANSPOSE", [x, order], [first])
    layer(made, rng, case, first, INPUT, batch)
    made.graph.operators.pop()  # the CONCATENATION
    operator = made.graph.operators[-1]
    joined = made.tensor((-1, batch, 2 * HIDDEN) if time_major else (batch, -1, 2 * HIDDEN))
    operator.outputs = [joined]
    operator.builtinOptions.mergeOutputs, operator.builtinOptions.timeMajor = True, time_major
    y = joined
    if time_major:
        y = made.tensor((batch, -1, 2 * HIDDEN))
        made.add("TRANSPOSE", [joined, order], [y])
    path = made.save(tmp_path / "joined.tflite", [x], [y])
    given = inputs(case)[:batch]
    (expected,) = ran(path, given)
    assert close(lc.read(path).run(given), expected)
    lc.convert(path, tmp_path / "out.onnx")
    assert close(judges.run_onnx(tmp_path / "out.onnx", given, case), expected)


def test_a_gru_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    source = judges.make_onnx(Case("gru", 1, False, True), tmp_path)
    with pytest.raises(lc.NotRepresentable, match="has no GRU") as caught:
        lc.convert(source.path, tmp_path / "out.tflite")
    assert caught.value.exit_status == 3
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("kind", "options"), [("LSTM", "LSTMOptions"), ("WHILE", "WhileOptions"), ("RELU", "")]
)
def test_a_graph_without_fused_layers_says_what_it_has(kind: str, options: str, tmp_path: Path) -> None:
    made = Builder()
    x, y = made.tensor((1, INPUT)), made.tensor((1, INPUT))
    made.add(kind, [x], [y], options)
    path = made.save(tmp_path / "other.tflite", [x], [y])
    with pytest.raises(lc.UnsupportedSource, match="fused|one step" if kind != "WHILE" else "loop") as caught:
        lc.read(path)
    assert caught.value.exit_status == 4


def test_layer_normalization_is_refused(tmp_path: Path) -> None:
    made = Builder()
    rng = np.random.default_rng(1)
    case = Case("lstm", 1, False, True)
    x = made.tensor((2, -1, INPUT), name="x")
    y = layer(made, rng, case, x, INPUT, 2)
    made.graph.operators[0].inputs += [made.tensor((HIDDEN,), draw(rng, (HIDDEN,))) for _ in range(4)]
    path = made.save(tmp_path / "normal.tflite", [x], [y])
    with pytest.raises(lc.UnsupportedSource, match="layer normalization"):
        lc.read(path)


def test_a_state_that_goes_from_one_layer_to_another_is_not_taken_for_two(tmp_path: Path) -> None:
    made = Builder()
    case = Case("lstm", 1, False, True)
    x = made.tensor((2, -1, HIDDEN), name="x")
    rng = np.random.default_rng(1)
    y = layer(made, rng, case, x, HIDDEN, 2)
    z = layer(made, rng, case, y, HIDDEN, 2)
    first, second = made.graph.operators
    second.inputs = [*second.inputs[:18], *first.inputs[18:20]]
    model = lc.read(made.save(tmp_path / "shared.tflite", [x], [z]))
    assert model.calls is None
    assert "goes on from the state" in model.metadata["topology"]


def test_a_bias_that_is_worked_out_is_not_taken_for_none(tmp_path: Path) -> None:
    made = Builder()
    case = Case("lstm", 1, False, True)
    x = made.tensor((2, -1, INPUT), name="x")
    rng = np.random.default_rng(1)
    y = layer(made, rng, case, x, INPUT, 2)
    kernel, source = made.tensor((3, HIDDEN), draw(rng, (3, HIDDEN))), made.tensor((3,), draw(rng, (3,)))
    bias, z = made.tensor((3,)), made.tensor((2, -1, 3))
    made.add("SIN", [source], [bias])
    made.add("FULLY_CONNECTED", [y, kernel, bias], [z], "FullyConnectedOptions", keepNumDims=True)
    model = lc.read(made.save(tmp_path / "biased.tflite", [x], [z]))
    assert model.calls is None
    assert "not a constant" in model.metadata["topology"]


def test_an_operator_of_whole_numbers_is_not_taken_for_one_of_floats(tmp_path: Path) -> None:
    made = Builder()
    case = Case("lstm", 1, False, True)
    x = made.tensor((2, -1, INPUT), name="x")
    y = layer(made, np.random.default_rng(1), case, x, INPUT, 2)
    z = made.tensor((2, -1, HIDDEN), scale=[0.1])
    made.graph.tensors[z].type = made.schema.TensorType.INT8
    made.add("TANH", [y], [z])
    model = lc.read(made.save(tmp_path / "rounded.tflite", [x], [z]))
    assert model.calls is None
    assert "TANH rounds what it gives to int8" in model.metadata["topology"]


def test_a_state_is_not_taken_for_the_constant_that_it_begins_with(tmp_path: Path) -> None:
    made = Builder()
    case = Case("lstm", 1, False, True)
    x = made.tensor((1, -1, INPUT), name="x")
    start = made.tensor((1, HIDDEN), np.zeros((1, HIDDEN), np.float16))
    y = layer(made, np.random.default_rng(1), case, x, INPUT, 1)
    (operator,) = made.graph.operators
    state = operator.inputs[18]
    made.graph.operators.clear()
    made.add("DEQUANTIZE", [start], [state])
    made.graph.operators.append(operator)
    operator.opcodeIndex = 0
    last, z = made.tensor((1, HIDDEN)), made.tensor((1, HIDDEN))
    places = [made.tensor((3,), np.array(n, np.int32)) for n in ([0, -1, 0], [0, 0, 0], [1, 1, 1])]
    masks = {"beginMask": 5, "endMask": 5, "shrinkAxisMask": 2}
    made.add("STRIDED_SLICE", [y, *places], [last], "StridedSliceOptions", **masks)
    made.add("ADD", [last, state], [z], "AddOptions")
    path = made.save(tmp_path / "state.tflite", [x], [z])
    model = lc.read(path)
    assert model.calls is None
    assert "ADD" in model.metadata["topology"]


def test_doubles_are_refused_with_a_way_out(tmp_path: Path) -> None:
    import torch

    torch.save(torch.nn.LSTM(3, 4).double().state_dict(), tmp_path / "double.pt")
    with pytest.raises(lc.NotRepresentable, match="--dtype float32"):
        lc.convert(tmp_path / "double.pt", tmp_path / "out.tflite")
    result = lc.convert(tmp_path / "double.pt", tmp_path / "out.tflite", dtype="float32")
    assert result.proof is not None
    assert result.proof.proved


def test_a_thousand_layers_are_not_folded_one_by_one(tmp_path: Path) -> None:
    made = Builder()
    case = Case("rnn", 1, False, True)
    rng = np.random.default_rng(1)
    x = made.tensor((1, -1, INPUT), name="x")
    layer(made, rng, case, x, INPUT, 1)
    operands = list(made.graph.operators.pop().inputs)
    places = [made.tensor((3,), np.array(n, np.int32)) for n in ([0, -1, 0], [0, 0, 0], [1, 1, 1])]
    lasts = []
    for _ in range(1000):
        y, last = made.tensor((1, -1, HIDDEN)), made.tensor((1, HIDDEN))
        options = {"fusedActivationFunction": 4}
        operands[-1] = made.tensor((1, HIDDEN), variable=True)
        made.add("UNIDIRECTIONAL_SEQUENCE_RNN", list(operands), [y], "SequenceRNNOptions", **options)
        masks = {"beginMask": 5, "endMask": 5, "shrinkAxisMask": 2}
        made.add("STRIDED_SLICE", [y, *places], [last], "StridedSliceOptions", **masks)
        lasts.append(last)
    path = made.save(tmp_path / "wide.tflite", [x], lasts)
    model = lc.read(path)
    assert {layer.sequence.returns for layer in model.recurrent.values()} == {Returns.SEQUENCE}
    assert len(model.layers) == 2000
    found = model.run(inputs(case)[:1])
    assert len(found) == 1000
    assert close(np.asarray(found[-1]), ran(path, inputs(case)[:1])[-1])


@pytest.mark.parametrize("zero", [True, False])
def test_a_projection_with_a_bias_is_refused(*, zero: bool, tmp_path: Path) -> None:
    made = Builder()
    case = Case("lstm", 1, False, True, "projection")
    x = made.tensor((2, -1, INPUT), name="x")
    y = layer(made, np.random.default_rng(1), case, x, INPUT, 2)
    made.graph.operators[0].inputs[17] = made.tensor((2,), np.full(2, 0.0 if zero else 0.5, np.float32))
    path = made.save(tmp_path / "biased.tflite", [x], [y])
    if zero:
        assert close(lc.read(path).run(inputs(case)), ran(path, inputs(case))[0])
        return
    with pytest.raises(lc.UnsupportedSource, match="projection with a bias"):
        lc.read(path)


def test_batch_and_time_joined_are_not_taken_for_a_sequence(tmp_path: Path) -> None:
    made = Builder()
    case = Case("lstm", 1, False, True)
    x = made.tensor((2, -1, INPUT), name="x")
    y = layer(made, np.random.default_rng(1), case, x, INPUT, 2)
    kernel = made.tensor((3, HIDDEN), draw(np.random.default_rng(2), (3, HIDDEN)))
    z = made.tensor((-1, 3))
    made.add("FULLY_CONNECTED", [y, kernel, -1], [z], "FullyConnectedOptions")
    model = lc.read(made.save(tmp_path / "joined.tflite", [x], [z]))
    assert model.calls is None
    assert "joins batch and time" in model.metadata["topology"]


def test_an_operator_with_an_input_too_many_is_told(tmp_path: Path) -> None:
    made = Builder()
    case = Case("lstm", 1, False, True)
    x = made.tensor((2, -1, INPUT), name="x")
    y = layer(made, np.random.default_rng(1), case, x, INPUT, 2)
    z = made.tensor((2, -1, HIDDEN))
    made.add("ADD", [y, y, y], [z], "AddOptions")
    with pytest.raises(lc.BadFile, match="ADD does not fit its inputs"):
        lc.read(made.save(tmp_path / "odd.tflite", [x], [z]))


def test_an_operator_that_is_not_read_leaves_the_layers(tmp_path: Path) -> None:
    made = Builder()
    case = Case("lstm", 1, False, True)
    x = made.tensor((2, -1, INPUT), name="x")
    y = layer(made, np.random.default_rng(1), case, x, INPUT, 2)
    z = made.tensor((2, -1, HIDDEN))
    made.add("SIN", [y], [z])
    model = lc.read(made.save(tmp_path / "odd.tflite", [x], [z]))
    assert model.calls is None
    assert "SIN is not read" in model.metadata["topology"]
    assert len(model.recurrent) == 1


def test_directions_of_a_layer_without_its_graph_are_side_by_side(tmp_path: Path) -> None:
    made = Builder()
    case = Case("lstm", 1, True, True)
    x = made.tensor((2, -1, INPUT), name="x")
    y = layer(made, np.random.default_rng(1), case, x, INPUT, 2)
    path = made.save(tmp_path / "plain.tflite", [x], [y])
    given = inputs(case)
    (expected,) = ran(path, given)
    z = made.tensor((2, -1, 2 * HIDDEN))
    made.add("SIN", [y], [z])
    odd = made.save(tmp_path / "odd.tflite", [x], [z])
    assert lc.read(odd).calls is None
    lc.convert(odd, tmp_path / "out.onnx")
    assert close(judges.run_onnx(tmp_path / "out.onnx", given, case), expected)


def entry(scale: list[float], zero_point: list[int], axis: int = 0) -> dict[str, Any]:
    return {"name": "w", "scale": tuple(scale), "zero_point": tuple(zero_point), "axis": axis}


def test_whole_numbers_are_multiplied_by_their_scales() -> None:
    whole = np.array([[-128, 0, 5], [1, 2, 127]], np.int8)
    lazy = Lazy.of(whole)
    one = kernels.constant(entry([0.5], [0]), lazy)
    assert (one.quantised, one.scale) == ("int8", "one scale for the tensor")
    assert one.tensor.read().tolist() == (whole * np.float32(0.5)).tolist()
    rows = kernels.constant(entry([0.5, 0.25], [0, 2]), lazy)
    assert rows.scale == "one scale a row"
    assert rows.tensor.read().tolist() == [[-64.0, 0.0, 2.5], [-0.25, 0.0, 31.25]]
    columns = kernels.constant(entry([1.0, 2.0, 4.0], [0, 0, 0], 1), Lazy.of(whole.astype(np.uint8)))
    assert (columns.quantised, columns.scale) == ("uint8", "one scale for each index of axis 1")
    assert columns.tensor.read().tolist() == [[128.0, 0.0, 20.0], [1.0, 4.0, 508.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        entry([0.5, 0.5, 0.5], [0, 0, 0]),
        entry([0.5, 0.5], [0, 0], 2),
        entry([0.5], [0, 0]),
        entry([-0.5], [0]),
        entry([float("nan")], [0]),
        entry([float("inf")], [0]),
    ],
    ids=str,
)
def test_scales_that_do_not_fit_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(lc.BadFile, match="w"):
        kernels.constant(wrong, Lazy.of(np.zeros((2, 3), np.int8)))


def test_a_layer_of_whole_numbers_throughout_is_refused(tmp_path: Path) -> None:
    made = Builder()
    case = Case("lstm", 1, False, True)
    x = made.tensor((2, -1, INPUT), name="x", scale=[0.1])
    made.graph.tensors[x].type = made.schema.TensorType.INT8
    y = layer(made, np.random.default_rng(1), case, x, INPUT, 2)
    with pytest.raises(lc.UnsupportedSource, match="whole numbers throughout"):
        lc.read(made.save(tmp_path / "whole.tflite", [x], [y]))


def test_one_layer_is_picked_by_name(tmp_path: Path) -> None:
    source = judges.make_onnx(Case("lstm", 2, True, True), tmp_path)
    lc.convert(source.path, tmp_path / "both.tflite")
    names = list(lc.read(tmp_path / "both.tflite").recurrent)
    assert names == list(lc.read(source.path).recurrent)
    lc.convert(tmp_path / "both.tflite", tmp_path / "one.onnx", layer=names[1])
    one, both = (
        next(iter(lc.read(tmp_path / name).recurrent.values())) for name in ("one.onnx", "both.tflite")
    )
    assert one.input_size == 2 * HIDDEN != both.input_size
