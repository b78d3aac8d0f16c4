"""Recurrent nodes of ONNX models as layers, judged by ONNX Runtime and the onnx package's own cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmconvert.activations import Activation
from lstmconvert.canonical import RecurrentLayer, Returns
from lstmconvert.containers import onnx_file
from lstmconvert.errors import BadFile, ConversionError, UnsupportedSource
from lstmconvert.frameworks import onnx as onnx_framework
from lstmconvert.gates import Direction, Gate, Part
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions
from lstmconvert.tensors import Array, same_bits

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
BATCH, TIME, INPUT, HIDDEN = 3, 6, 4, 5


@dataclass
class Case:
    """A model with one recurrent node, its weights different for every gate."""

    op: str = "LSTM"
    direction: str = "forward"
    seed: int = 0
    bias: bool = True
    peephole: bool = False
    lengths: bool = False
    states: bool = False
    scale: float = 1.0
    dtype: Any = np.float32
    opset: int = 14
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def weights(self) -> dict[str, Array]:
        generator = np.random.default_rng(self.seed)
        gates, d = GATES[self.op], self.directions
        spread = np.linspace(0.4, 1.6, gates).repeat(HIDDEN)[:, np.newaxis]
        arrays = {
            "W": generator.standard_normal((d, gates * HIDDEN, INPUT)) * spread * self.scale,
            "R": generator.standard_normal((d, gates * HIDDEN, HIDDEN)) * spread * self.scale,
        }
        if self.bias:
            arrays["B"] = generator.standard_normal((d, 2 * gates * HIDDEN))
        if self.peephole:
            arrays["P"] = generator.standard_normal((d, 3 * HIDDEN))
        return {name: array.astype(self.dtype) for name, array in arrays.items()}

    def feeds(self) -> dict[str, Array]:
        generator = np.random.default_rng(self.seed + 100)
        feeds = {"X": generator.standard_normal((TIME, BATCH, INPUT)).astype(self.dtype)}
        if self.lengths:
            feeds["sequence_lens"] = np.array([TIME, 2, 4], np.int32)
        if self.states:
            feeds["initial_h"] = generator.uniform(-1, 1, (self.directions, BATCH, HIDDEN)).astype(self.dtype)
            if self.op == "LSTM":
                feeds["initial_c"] = generator.uniform(-2, 2, (self.directions, BATCH, HIDDEN)).astype(
                    self.dtype
                )
        return feeds

    def node(self, **attributes: Any) -> onnx.NodeProto:
        here = {*self.weights(), *self.feeds()}
        names = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
        names = names if self.op == "LSTM" else names[:6]
        inputs = [name if name in here else "" for name in names]
        while not inputs[-1]:
            inputs.pop()
        outputs = ["Y", "Y_h", "Y_c"][: 3 if self.op == "LSTM" else 2]
        given = {"hidden_size": HIDDEN, "direction": self.direction, **self.attributes, **attributes}
        return helper.make_node(self.op, inputs, outputs, name="the layer", **given)

    def model(self) -> onnx.ModelProto:
        return model_of([self.node()], self.weights(), self.feeds(), ["Y", "Y_h", "Y_c"], self.opset)


def info(name: str, array: Array | None, dtype: Any = np.float32) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype) if array is None else array.dtype)
    rank = 3 if name in ("Y_h", "Y_c", "last_w") else 4
    return helper.make_tensor_value_info(name, kind, [None] * (rank if array is None else array.ndim))


def model_of(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Array],
    feeds: dict[str, Array],
    outputs: Sequence[str],
    opset: int = 14,
    **more: Any,
) -> onnx.ModelProto:
    made = {name for node in nodes for name in node.output}
    dtype = feeds["X"].dtype
    graph = helper.make_graph(
        list(nodes),
        "g",
        [info(name, array) for name, array in feeds.items()],
        [info(name, None, dtype) for name in outputs if name in made],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), *more.pop("opsets", ())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **more)


def read(model: onnx.ModelProto, tmp_path: Path, layer: str | None = None) -> Model:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    archive = onnx_file.read(path)
    assert onnx_framework.reads(archive, "onnx_file")
    return onnx_framework.read(archive, "onnx_file", ReadOptions(layer=layer))


def only(model: Model) -> RecurrentLayer:
    (layer,) = model.recurrent.values()
    return layer


def judged(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    import onnxruntime

    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def onnx_outputs(layer: RecurrentLayer, feeds: dict[str, Array], dtype: Any = None) -> list[Array]:
    """What the node would give: Y (time, directions, batch, hidden), Y_h and Y_c."""
    x = feeds["X"].swapaxes(0, 1)
    state: Any = feeds.get("initial_h")
    if "initial_c" in feeds:
        state = (feeds["initial_h"], feeds["initial_c"])
    y, final = layer.run(
        x if dtype is None else x.astype(dtype), lengths=feeds.get("sequence_lens"), initial_state=state
    )
    batch, time, _ = y.shape
    y = y.reshape(batch, time, len(layer.directions), layer.hidden_size).transpose(1, 2, 0, 3)
    return [y, *(final if isinstance(final, tuple) else [final])]


def assert_close(ours: Sequence[Array], theirs: Sequence[Array], case: Any, tolerance: float = 2e-5) -> None:
    assert len(ours) == len(theirs)
    for mine, judge in zip(ours, theirs, strict=True):
        assert mine.shape == judge.shape
        scale = max(1.0, float(np.abs(judge).max()))
        gap = np.abs(mine.astype(np.float64) - judge.astype(np.float64)).max() / scale
        assert gap <= tolerance, (case, gap)


# The cases that the onnx package generates for its operators.


def backend_cases() -> list[Any]:
    """The node tests of LSTM, GRU and RNN: (name, node, inputs, outputs)."""
    from onnx.backend.test.case.node import gru, lstm, rnn

    cases: list[Any] = []

    def collect(node: onnx.NodeProto, inputs: list[Array], outputs: list[Array], name: str, **_: Any) -> None:
        cases.append(pytest.param(node, inputs, outputs, id=name))

    for module, class_name in ((lstm, "LSTM"), (gru, "GRU"), (rnn, "RNN")):
        original, module.expect = module.expect, collect
        try:
            exporter = getattr(module, class_name)
            for export in [name for name in vars(exporter) if name.startswith("export")]:
                getattr(exporter, export)()
        finally:
            module.expect = original
    return cases


def test_there_are_eighteen_cases_of_the_onnx_package() -> None:
    nodes = [case.values[0] for case in backend_cases()]
    assert len(nodes) == 18
    assert sum(a.name == "layout" and a.i == 1 for node in nodes for a in node.attribute) == 3


@pytest.mark.parametrize(("node", "inputs", "outputs"), backend_cases())
def test_a_case_of_the_onnx_package(
    node: onnx.NodeProto, inputs: list[Array], outputs: list[Array], tmp_path: Path
) -> None:
    batch_first = any(a.name == "layout" and a.i for a in node.attribute)
    given = dict(zip(filter(None, node.input), inputs, strict=True))
    x = given.pop(node.input[0])
    ports = [helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, x.shape)]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output if name]
    # The cases give weights as inputs; a model file has them inside.
    initializers = [numpy_helper.from_array(array, name) for name, array in given.items()]
    graph = helper.make_graph([node], "case", ports, results, initializers)
    layer = only(read(helper.make_model(graph), tmp_path))
    y, state = layer.run(x if batch_first else x.swapaxes(0, 1))
    whole = y.reshape(*y.shape[:2], len(layer.directions), layer.hidden_size)
    final = state if isinstance(state, tuple) else (state,)
    if batch_first:
        ours = [whole, *(part.swapaxes(0, 1) for part in final)]
    else:
        ours = [whole.transpose(1, 2, 0, 3), *final]
    wanted = [ours[n] for n, name in enumerate(node.output) if name]
    assert_close(wanted, outputs, node.output, 1e-6)


# The layer against ONNX Runtime.


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", list(GATES))
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dynamic", [True, False], ids=["lengths and states", "plain"])
def test_layer_agrees_with_the_runtime(
    op: str, direction: str, bias: bool, dynamic: bool, tmp_path: Path
) -> None:
    case = Case(op, direction, seed=7, bias=bias, lengths=dynamic, states=dynamic)
    layer = only(read(case.model(), tmp_path))
    assert (layer.name, layer.direction) == ("the layer", direction)
    assert (layer.input_size, layer.hidden_size) == (INPUT, HIDDEN)
    assert layer.directions[0].weights.has(Part.BIAS_INPUT) is bias
    assert_close(onnx_outputs(layer, case.feeds()), judged(case.model(), case.feeds()), case)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    "case",
    [
        Case("LSTM", peephole=True, seed=1),
        Case("LSTM", attributes={"clip": 0.7}, seed=2),
        Case("LSTM", peephole=True, attributes={"clip": 0.4}, seed=3),
        Case("LSTM", attributes={"input_forget": 1}, seed=4),
        Case("LSTM", peephole=True, attributes={"input_forget": 1, "clip": 1.5}, seed=5),
        Case("GRU", attributes={"linear_before_reset": 1}, seed=6),
        Case("GRU", attributes={"linear_before_reset": 0}, seed=7),
        Case("GRU", attributes={"linear_before_reset": 1, "clip": 0.5}, seed=8),
        Case("GRU", attributes={"clip": 0.5}, seed=9),
        Case("RNN", attributes={"clip": 0.5}, seed=10),
        Case("LSTM", scale=8.0, seed=11),
        Case("GRU", scale=8.0, attributes={"linear_before_reset": 1}, seed=12),
        Case("LSTM", opset=7, seed=13),
        Case("GRU", opset=7, seed=14),
        Case("LSTM", opset=22, seed=15),
        Case("RNN", opset=22, seed=16),
    ],
    ids=lambda case: f"{case.op}-{case.seed}",
)
def test_options_act_as_in_the_runtime(case: Case, direction: str, tmp_path: Path) -> None:
    case = replace(case, direction=direction, states=True, lengths=True)
    layer = only(read(case.model(), tmp_path))
    assert_close(onnx_outputs(layer, case.feeds()), judged(case.model(), case.feeds()), case)


ACTIVATION_CASES = [
    ("LSTM", ["HardSigmoid", "Softsign", "Relu"], [], []),
    ("LSTM", ["HardSigmoid", "ScaledTanh", "LeakyRelu"], [0.3, 1.3, 0.2], [0.4, 0.6]),
    ("LSTM", ["Sigmoid", "Affine", "Tanh"], [0.5], [0.1]),
    ("LSTM", ["Sigmoid", "ThresholdedRelu", "Elu"], [0.2, 0.8], []),
    ("GRU", ["HardSigmoid", "LeakyRelu"], [0.25], [0.45]),
    ("GRU", ["Sigmoid", "Softplus"], [], []),
    ("GRU", ["HardSigmoid", "HardSigmoid"], [0.3, 0.15], [0.4, 0.1]),
    ("RNN", ["Relu"], [], []),
    ("RNN", ["ScaledTanh"], [0.7], [0.9]),
    ("RNN", ["Elu"], [], []),
]


@pytest.mark.parametrize(("op", "names", "alpha", "beta"), ACTIVATION_CASES, ids=lambda v: str(v))
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_activations_take_their_parameters_in_order(
    op: str, names: list[str], alpha: list[float], beta: list[float], direction: str, tmp_path: Path
) -> None:
    both = direction == "bidirectional"
    attributes: dict[str, Any] = {"activations": names * (2 if both else 1)}
    # The second direction's parameters differ, so a reader that starts again at the front is seen.
    if alpha:
        attributes["activation_alpha"] = alpha + ([a + 0.05 for a in alpha] if both else [])
    if beta:
        attributes["activation_beta"] = beta + ([b + 0.05 for b in beta] if both else [])
    case = Case(op, direction, seed=21, scale=0.5, attributes=attributes)
    layer = only(read(case.model(), tmp_path))
    assert_close(onnx_outputs(layer, case.feeds()), judged(case.model(), case.feeds()), case)


def test_directions_may_have_different_activations(tmp_path: Path) -> None:
    names = ["Sigmoid", "Tanh", "Relu", "HardSigmoid", "Softsign", "Tanh"]
    case = Case("LSTM", "bidirectional", attributes={"activations": names})
    layer = only(read(case.model(), tmp_path))
    assert layer.directions[0].equations != layer.directions[1].equations
    assert_close(onnx_outputs(layer, case.feeds()), judged(case.model(), case.feeds()), case)


@pytest.mark.parametrize(
    ("stored", "meant"),
    [
        ((0.2, 0.5), Activation("hard_sigmoid", 0.2, 0.5)),
        ((1 / 6, 0.5), Activation("hard_sigmoid", 1 / 6, 0.5)),
    ],
)
def test_a_parameter_is_the_number_that_was_meant(
    stored: tuple[float, ...], meant: Activation, tmp_path: Path
) -> None:
    names = ["HardSigmoid", "Tanh", "Tanh"]
    attributes = {"activations": names, "activation_alpha": stored[:1], "activation_beta": stored[1:]}
    layer = only(read(Case(attributes=attributes).model(), tmp_path))
    assert layer.equations.gate_activation == meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HardSigmoid", Activation("hard_sigmoid", 0.2, 0.5)),
        ("LeakyRelu", Activation("leaky_relu", 0.01)),
        ("Elu", Activation("elu", 1.0)),
        ("ThresholdedRelu", Activation("thresholded_relu", 1.0)),
        ("hardSIGMOID", Activation("hard_sigmoid", 0.2, 0.5)),
    ],
)
def test_missing_parameters_are_those_of_the_operator(name: str, meant: Activation, tmp_path: Path) -> None:
    model = read(Case("RNN", attributes={"activations": [name]}).model(), tmp_path)
    assert only(model).equations.hidden_activation == meant
    steps = model.metadata["rewrites"]
    assert steps and all(step["exact"] and step["name"] == "activation_parameters" for step in steps)
    assert any("ONNX Runtime takes 0" in step["description"] for step in steps) is (name == "ThresholdedRelu")


@pytest.mark.parametrize("name", ["Affine", "ScaledTanh"])
def test_missing_parameters_without_a_default_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSource, match="no default") as caught:
        read(Case("RNN", attributes={"activations": [name]}).model(), tmp_path)
    assert caught.value.place == "the layer"
    with pytest.raises(UnsupportedSource, match="no beta"):
        read(Case("RNN", attributes={"activations": [name], "activation_alpha": [0.5]}).model(), tmp_path)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float64, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name
)
@pytest.mark.parametrize("op", list(GATES))
def test_a_dtype_is_kept(op: str, dtype: Any, tmp_path: Path) -> None:
    case = Case(op, dtype=dtype, seed=4)
    weights = only(read(case.model(), tmp_path)).directions[0].weights
    assert weights.dtype == dtype
    gate = {"LSTM": Gate.INPUT, "GRU": Gate.UPDATE, "RNN": Gate.HIDDEN}[op]
    assert same_bits(np.ascontiguousarray(weights.kernel[gate]), case.weights()["W"][0, :HIDDEN])


def test_float16_agrees_with_the_runtime(tmp_path: Path) -> None:
    case = Case("LSTM", dtype=np.float16, seed=4, scale=0.3)
    layer = only(read(case.model(), tmp_path))
    ours = onnx_outputs(layer, case.feeds(), np.float32)
    assert_close(ours, judged(case.model(), case.feeds()), case, 5e-3)


@pytest.mark.parametrize(
    ("op", "order"),
    [
        ("LSTM", [Gate.INPUT, Gate.OUTPUT, Gate.FORGET, Gate.CELL]),
        ("GRU", [Gate.UPDATE, Gate.RESET, Gate.CANDIDATE]),
        ("RNN", [Gate.HIDDEN]),
    ],
)
def test_stored_gates_are_in_the_order_of_the_file(op: str, order: list[Gate], tmp_path: Path) -> None:
    layer = only(read(Case(op).model(), tmp_path))
    assert list(layer.stored_gates) == order
    w = Case(op).weights()["W"][0]
    for n, gate in enumerate(order):
        assert same_bits(
            np.ascontiguousarray(layer.directions[0].weights.kernel[gate]), w[n * HIDDEN : (n + 1) * HIDDEN]
        )


# Weights that the graph computes.


def computed_model(case: Case, opset: int) -> onnx.ModelProto:
    """W sliced and joined from torch's gate order, R transposed and reshaped, B cast and added to zero."""
    w, r, b = (case.weights()[name] for name in "WRB")
    i, o, f, c = np.split(w[0], 4)
    torch_order = np.concatenate([i, f, c, o])
    constants: dict[str, Array] = {
        "w": torch_order,
        "r": np.ascontiguousarray(r[0].T),
        "b": b[0].astype(np.float64),
        "axis": np.array([0]),
        "shape": np.array([1, 0, -1]),
        "zero": np.float32(0),
    }
    nodes = []

    def cut(name: str, start: int, end: int) -> str:
        if opset < 10:
            nodes.append(helper.make_node("Slice", ["w"], [name], axes=[0], starts=[start], ends=[end]))
        else:
            for key, value in ((f"{name}_start", start), (f"{name}_end", end)):
                nodes.append(
                    helper.make_node("Constant", [], [key], value=numpy_helper.from_array(np.array([value])))
                )
            nodes.append(helper.make_node("Slice", ["w", f"{name}_start", f"{name}_end", "axis"], [name]))
        return name

    def unsqueezed(source: str, name: str) -> None:
        if opset < 13:
            nodes.append(helper.make_node("Unsqueeze", [source], [name], axes=[0]))
        else:
            nodes.append(helper.make_node("Unsqueeze", [source, "axis"], [name]))

    h = HIDDEN
    pieces = [cut("w_i", 0, h), cut("w_o", 3 * h, 2**62), cut("w_fc", -3 * h, -h)]
    nodes.append(helper.make_node("Concat", pieces, ["w_joined"], axis=0))
    unsqueezed("w_joined", "W")
    nodes.append(helper.make_node("Transpose", ["r"], ["r_turned"], perm=[1, 0]))
    unsqueezed("r_turned", "r_more")
    nodes.append(helper.make_node("Reshape", ["r_more", "shape"], ["R"]))
    nodes.append(helper.make_node("Cast", ["b"], ["b_single"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Add", ["b_single", "zero"], ["b_sum"]))
    unsqueezed("b_sum", "B")
    return model_of([*nodes, case.node()], constants, case.feeds(), ["Y", "Y_h", "Y_c"], opset)


@pytest.mark.parametrize("opset", [7, 10, 13, 22])
def test_computed_weights_are_worked_out(opset: int, tmp_path: Path) -> None:
    case = Case(seed=9)
    model = computed_model(case, opset)
    layer = only(read(model, tmp_path))
    expected = only(read(case.model(), tmp_path))
    for key, block in expected.directions[0].weights.items():
        assert same_bits(layer.directions[0].weights[key].read(), block.read()), key
    assert_close(onnx_outputs(layer, case.feeds()), judged(model, case.feeds()), case)


def test_half_precision_weights_that_are_cast_are_worked_out(tmp_path: Path) -> None:
    case = Case(seed=3)
    weights = {f"{name}_half": array.astype(np.float16) for name, array in case.weights().items()}
    casts = [
        helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT) for name in case.weights()
    ]
    model = model_of([*casts, case.node()], weights, case.feeds(), ["Y", "Y_h", "Y_c"])
    layer = only(read(model, tmp_path))
    assert layer.dtype == np.float32
    assert_close(onnx_outputs(layer, case.feeds()), judged(model, case.feeds()), case)


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_stored_as_eight_bits_are_worked_out(per_channel: bool, tmp_path: Path) -> None:
    case = Case("GRU", seed=3)
    rows = GATES["GRU"] * HIDDEN
    weights: dict[str, Array] = {"B": case.weights()["B"]}
    nodes = []
    generator = np.random.default_rng(1)
    for name, size in (("W", INPUT), ("R", HIDDEN)):
        scale = generator.uniform(0.005, 0.02, rows if per_channel else ()).astype(np.float32)
        weights |= {
            f"{name}_q": generator.integers(-128, 128, (1, rows, size)).astype(np.int8),
            f"{name}_s": scale,
            f"{name}_z": generator.integers(-9, 9, scale.shape).astype(np.int8),
        }
        inputs = [f"{name}_q", f"{name}_s", f"{name}_z"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], axis=1))
    model = model_of([*nodes, case.node()], weights, case.feeds(), ["Y", "Y_h"])
    assert_close(onnx_outputs(only(read(model, tmp_path)), case.feeds()), judged(model, case.feeds()), case)


def test_weights_that_are_inputs_are_refused(tmp_path: Path) -> None:
    case = Case()
    weights = case.weights()
    feeds = {**case.feeds(), "R": weights.pop("R")}
    with pytest.raises(UnsupportedSource, match="R are not constants") as caught:
        read(model_of([case.node()], weights, feeds, ["Y"]), tmp_path)
    assert caught.value.place == "node 'the layer', input 'R'"


# Inner graphs and functions.


def branch(case: Case, name: str, weights: dict[str, Array]) -> onnx.GraphProto:
    """A graph without inputs that runs the case's node on the outer X."""
    node = case.node()
    node.name = f"{name} layer"
    for n, key in enumerate(node.input):
        node.input[n] = f"{name}_{key}" if key in weights else key
    for n, key in enumerate(node.output):
        node.output[n] = f"{name}_{key}"
    initializers = [numpy_helper.from_array(array, f"{name}_{key}") for key, array in weights.items()]
    return helper.make_graph([node], name, [], [info(f"{name}_Y", None)], initializers)


def choice_model(first: Case, second: Case, condition: Array | None) -> onnx.ModelProto:
    weights = {} if condition is None else {"condition": condition}
    feeds = first.feeds() | ({"condition": np.array(True)} if condition is None else {})
    branches = {
        "then_branch": branch(first, "then", first.weights()),
        "else_branch": branch(second, "else", second.weights()),
    }
    node = helper.make_node("If", ["condition"], ["Y"], "choice", **branches)
    return model_of([node], weights, feeds, ["Y"])


def test_both_branches_of_a_choice_are_read(tmp_path: Path) -> None:
    first, second = Case(seed=1), Case("GRU", seed=2)
    model = choice_model(first, second, None)
    layers = read(model, tmp_path).recurrent
    assert list(layers) == ["else layer", "then layer"] or list(layers) == ["then layer", "else layer"]
    assert layers["then layer"].notes["graph"] == "choice/then_branch"
    for name, case, taken in (("then layer", first, True), ("else layer", second, False)):
        feeds = first.feeds()
        expected = judged(model, {**feeds, "condition": np.array(taken)})
        assert_close(onnx_outputs(layers[name], feeds)[:1], expected, case)


@pytest.mark.parametrize("taken", [True, False])
def test_of_a_constant_choice_only_the_branch_that_is_taken_is_read(taken: bool, tmp_path: Path) -> None:
    first, second = Case(seed=1), Case("GRU", seed=2)
    model = choice_model(first, second, np.array(taken))
    layer = only(read(model, tmp_path))
    assert layer.name == ("then layer" if taken else "else layer")
    assert_close(onnx_outputs(layer, first.feeds())[:1], judged(model, first.feeds()), first)


def test_weights_that_a_constant_choice_gives_are_worked_out(tmp_path: Path) -> None:
    case = Case(seed=1)
    weights = case.weights()
    values = {"then": weights.pop("W"), "else": np.zeros((1, 2), np.float32)}
    graphs = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Identity", [f"{name}_w"], [f"{name}_out"])],
            name,
            [],
            [info(f"{name}_out", array)],
            [numpy_helper.from_array(array, f"{name}_w")],
        )
        for name, array in values.items()
    }
    weights["condition"] = np.array(True)
    node = helper.make_node("If", ["condition"], ["W"], **graphs)
    model = model_of([node, case.node()], weights, case.feeds(), ["Y", "Y_h", "Y_c"])
    assert_close(onnx_outputs(only(read(model, tmp_path)), case.feeds()), judged(model, case.feeds()), case)


def test_a_layer_inside_a_loop_takes_weights_from_outside(tmp_path: Path) -> None:
    case = Case("GRU", seed=3)
    node = case.node()
    node.input[0] = "x_in"
    node.output[0] = ""
    node.output[1] = "state"
    body = helper.make_graph(
        [
            node,
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["x_in"], ["x_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            info("x_in", case.feeds()["X"]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            info("x_out", case.feeds()["X"]),
            info("state", case.feeds()["X"]),
        ],
    )
    loop = helper.make_node("Loop", ["count", "", "X"], ["last_x", "states"], "loop", body=body)
    constants = {**case.weights(), "count": np.array(2)}
    model = model_of([loop], constants, case.feeds(), ["states"])
    layer = only(read(model, tmp_path))
    assert (layer.name, layer.notes["graph"]) == ("the layer", "loop/body")
    assert layer.sequence.returns is Returns.LAST
    states = judged(model, case.feeds())[0]
    assert_close([onnx_outputs(layer, case.feeds())[1]], [states[1]], case)


def test_a_value_of_the_body_hides_a_constant_outside(tmp_path: Path) -> None:
    """The body's own input is called as an initializer outside; it is not that constant."""
    case = Case("GRU", seed=3)
    body = helper.make_graph(
        [
            case.node(),
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["W"], ["w_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            info("W", case.weights()["W"]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            info("w_out", case.weights()["W"]),
        ],
    )
    loop = helper.make_node("Loop", ["count", "", "W"], ["last_w"], "loop", body=body)
    model = model_of([loop], {**case.weights(), "count": np.array(2)}, case.feeds(), ["last_w"])
    with pytest.raises(UnsupportedSource, match="W are not constants"):
        read(model, tmp_path)


def function_model(case: Case, *, calls: int = 1) -> onnx.ModelProto:
    node = case.node()
    body = helper.make_function(
        "custom", "Encoder", ["X", "W", "R", "B"], ["Y"], [node], [helper.make_opsetid("", 14)]
    )
    nodes = [
        helper.make_node("Encoder", ["X", "W", "R", "B"], [f"Y{n}"], f"call {n}", domain="custom")
        for n in range(calls)
    ]
    return model_of(
        nodes,
        case.weights(),
        case.feeds(),
        [f"Y{n}" for n in range(calls)],
        functions=[body],
        opsets=[helper.make_opsetid("custom", 1)],
    )


def test_a_layer_inside_a_function_is_read_at_every_call(tmp_path: Path) -> None:
    case = Case(seed=5)
    model = function_model(case, calls=2)
    layers = read(model, tmp_path).recurrent
    assert len(layers) == 2
    for layer, expected in zip(layers.values(), judged(model, case.feeds()), strict=True):
        assert_close(onnx_outputs(layer, case.feeds())[:1], [expected], case)


def test_functions_without_end_are_refused(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("custom", 1)]

    def calls(name: str, *others: str) -> onnx.FunctionProto:
        nodes = [helper.make_node(other, ["X"], [f"v{n}"], domain="custom") for n, other in enumerate(others)]
        return helper.make_function("custom", name, ["X"], ["v0"], nodes, opsets)

    node = helper.make_node("F0", ["X"], ["Y"], domain="custom")
    circle = model_of(
        [node], {}, Case().feeds(), ["Y"], functions=[calls("F0", "F1"), calls("F1", "F0")], opsets=opsets
    )
    with pytest.raises(BadFile, match="calls itself"):
        read(circle, tmp_path)
    doubling = [calls(f"F{n}", *[f"F{n + 1}"] * 2) for n in range(40)] + [calls("F40", "Identity")]
    with pytest.raises(BadFile, match="expand to more nodes"):
        read(model_of([node], {}, Case().feeds(), ["Y"], functions=doubling, opsets=opsets), tmp_path)


# Initial states.


def with_constant_states(
    case: Case, states: dict[str, Array], nodes: Sequence[onnx.NodeProto] = ()
) -> onnx.ModelProto:
    feeds = {"X": case.feeds()["X"]}
    return model_of([*nodes, case.node()], {**case.weights(), **states}, feeds, ["Y", "Y_h", "Y_c"])


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_a_constant_initial_state_belongs_to_the_layer(op: str, direction: str, tmp_path: Path) -> None:
    case = Case(op, direction, seed=2, states=True)
    rows = {
        key: array[:, :1].repeat(BATCH, 1) for key, array in case.feeds().items() if key.startswith("initial")
    }
    model = with_constant_states(case, rows)
    layer = only(read(model, tmp_path))
    x = {"X": case.feeds()["X"]}
    assert_close(onnx_outputs(layer, x), judged(model, x), case)
    second = layer.directions[-1].weights[Part.INITIAL_HIDDEN, None].read()
    assert same_bits(second, np.ascontiguousarray(rows["initial_h"][-1, 0]))


def test_a_state_that_is_expanded_to_the_batch_belongs_to_the_layer(tmp_path: Path) -> None:
    """torch's ``h0.expand(-1, batch, -1)`` and ``h0.repeat(1, batch, 1)``: a size of the input."""
    case = Case("LSTM", seed=2, states=True)
    generator = np.random.default_rng(8)
    states = {
        "h0": generator.standard_normal((1, 1, HIDDEN)).astype(np.float32),
        "c0": generator.standard_normal((1, 1, HIDDEN)).astype(np.float32),
        "one": np.array([1]),
        "index": np.array([1]),
        "size": np.array([HIDDEN]),
    }
    nodes = [
        helper.make_node("Shape", ["X"], ["shape"]),
        helper.make_node("Gather", ["shape", "index"], ["batch"]),
        helper.make_node("Concat", ["one", "batch", "size"], ["target"], axis=0),
        helper.make_node("Expand", ["h0", "target"], ["initial_h"]),
        helper.make_node("Concat", ["one", "batch", "one"], ["repeats"], axis=0),
        helper.make_node("Tile", ["c0", "repeats"], ["initial_c"]),
    ]
    model = with_constant_states(case, states, nodes)
    layer = only(read(model, tmp_path))
    x = {"X": case.feeds()["X"]}
    assert_close(onnx_outputs(layer, x), judged(model, x), case)
    assert "initial_state" not in layer.notes


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_state_filled_with_one_number_belongs_to_the_layer(value: float, tmp_path: Path) -> None:
    case = Case("GRU", seed=2, states=True)
    fill = helper.make_tensor("fill", TensorProto.FLOAT, [1], [value])
    states = {"one": np.array([1]), "index": np.array(1), "size": np.array([HIDDEN]), "axes": np.array([0])}
    nodes = [
        helper.make_node("Shape", ["X"], ["shape"]),
        helper.make_node("Gather", ["shape", "index"], ["batch_number"]),
        helper.make_node("Unsqueeze", ["batch_number", "axes"], ["batch"]),
        helper.make_node("Concat", ["one", "batch", "size"], ["target"], axis=0),
        helper.make_node("ConstantOfShape", ["target"], ["filled"], value=fill),
        helper.make_node("Slice", ["filled", "axes", "one", "axes"], ["initial_h"]),
    ]
    model = with_constant_states(case, states, nodes)
    layer = only(read(model, tmp_path))
    x = {"X": case.feeds()["X"]}
    assert layer.directions[0].weights.has(Part.INITIAL_HIDDEN) is bool(value)
    assert_close(onnx_outputs(layer, x), judged(model, x), case)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_constant_state_of_a_batch_major_node(batch: int, tmp_path: Path) -> None:
    """With layout=1 the state is (batch, directions, hidden); layout=0 is the judge."""
    case = Case("GRU", "bidirectional", seed=2, states=True)
    state = case.feeds()["initial_h"][:, :1].repeat(batch, 1)
    expected = only(read(with_constant_states(case, {"initial_h": state}), tmp_path))
    turned = replace(case, attributes={"layout": 1})
    layer = only(read(with_constant_states(turned, {"initial_h": state.swapaxes(0, 1)}), tmp_path))
    for one, other in zip(layer.directions, expected.directions, strict=True):
        key = (Part.INITIAL_HIDDEN, None)
        assert same_bits(one.weights[key].read(), other.weights[key].read())


def test_a_state_that_differs_within_the_batch_is_refused(tmp_path: Path) -> None:
    case = Case("GRU", states=True)
    rows = {"initial_h": case.feeds()["initial_h"]}
    with pytest.raises(UnsupportedSource, match="differs from one sequence"):
        read(with_constant_states(case, rows), tmp_path)


def test_a_state_that_is_an_input_is_noted(tmp_path: Path) -> None:
    layer = only(read(Case(states=True, lengths=True).model(), tmp_path))
    assert layer.notes["initial_state"] == "initial_h initial_c"
    assert layer.notes["sequence_lens"] == "sequence_lens"
    assert not layer.directions[0].weights.has(Part.INITIAL_HIDDEN)


# DynamicQuantizeLSTM.


def quantized_model(case: Case, tmp_path: Path, *, per_channel: bool) -> onnx.ModelProto:
    """The runtime's own tool makes the operator."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    (tmp_path / "float.onnx").write_bytes(case.model().SerializeToString())
    quantize_dynamic(
        tmp_path / "float.onnx",
        tmp_path / "quantized.onnx",
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # without it ONNX Runtime's sums overflow on processors without VNNI
    )
    model = onnx.load(tmp_path / "quantized.onnx")
    assert [node.op_type for node in model.graph.node] == ["DynamicQuantizeLSTM"]
    return model


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_quantised_layer_is_read_as_what_it_approximates(
    direction: str, per_channel: bool, tmp_path: Path
) -> None:
    case = Case("LSTM", direction, seed=6, peephole=True)
    model = quantized_model(case, tmp_path, per_channel=per_channel)
    result = read(model, tmp_path)
    layer = only(result)
    assert layer.dtype == np.float32
    steps = result.metadata["rewrites"]
    how = "one scale a row of a gate" if per_channel else "one scale a direction"
    assert [
        f"{key} was dequantised from int8, {how}" in step["description"]
        for key, step in zip("WR", steps, strict=True)
    ]
    assert all(not step["exact"] and 0 < step["rounding"] < 1e-5 for step in steps)
    exact = only(read(case.model(), tmp_path))
    for key, block in exact.directions[-1].weights.items():
        step = np.abs(case.weights()["W" if key[0] is Part.KERNEL else "R"]).max() / 63  # 7 bits
        gap = np.abs(layer.directions[-1].weights[key].read() - block.read()).max()
        assert gap <= step, key
    # The runtime rounds its inputs too, so it agrees only roughly.
    assert_close(onnx_outputs(layer, case.feeds()), judged(model, case.feeds()), case, 5e-2)


# Names, and what is refused.


def test_names_are_made_unique(tmp_path: Path) -> None:
    case = Case("RNN")
    nodes = []
    for n in range(3):
        node = case.node()
        node.name = "same" if n < 2 else ""
        node.output[0], node.output[1] = f"Y{n}", f"H{n}"
        nodes.append(node)
    model = model_of(nodes, case.weights(), case.feeds(), [f"Y{n}" for n in range(3)])
    layers = read(model, tmp_path).recurrent
    assert list(layers) == ["same", "same_2", "Y2"]
    assert [layer.name for layer in layers.values()] == list(layers)


def test_one_layer_can_be_asked_for_where_another_cannot_be_read(tmp_path: Path) -> None:
    case = Case("RNN")
    good, bad = case.node(), case.node()
    bad.name, bad.input[2] = "bad", "X"
    bad.output[0], bad.output[1] = "Y2", "H2"
    model = model_of([bad, good], case.weights(), case.feeds(), ["Y"])
    with pytest.raises(UnsupportedSource):
        read(model, tmp_path)
    assert list(read(model, tmp_path, "the layer").recurrent) == ["the layer"]


def refused(tmp_path: Path, change: Any, case: Case | None = None) -> ConversionError:
    case = Case() if case is None else case
    weights, node = case.weights(), case.node()
    change(node, weights)
    with pytest.raises(ConversionError) as caught:
        read(model_of([node], weights, case.feeds(), ["Y"]), tmp_path)
    assert "the layer" in str(caught.value)
    return caught.value


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_size", 6, "hidden_size is not the size"),
        ("direction", "sideways", "unknown direction"),
        ("direction", "bidirectional", "as many directions"),
        ("activations", ["Sigmoid", "Tanh"], "number of activations"),
        ("activations", ["Sigmoid", "Tanh", "Gelu"], "unknown activation"),
        ("clip", -1.0, "clip is not a positive number"),
        ("clip", float("nan"), "clip is not a positive number"),
        ("layout", 2, "unknown layout"),
        ("linear_before_reset", 1, "means nothing for LSTM"),
        ("input_forget", 3, "input_forget = 3"),
        ("mystery", 1, "does not know"),
    ],
)
def test_an_attribute_that_makes_no_sense_is_refused(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    error = refused(tmp_path, lambda node, _: set_attribute(node, name, value))
    assert message in str(error)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("W", (1, 19, INPUT)),
        ("R", (1, 20, 6)),
        ("B", (1, 20)),
        ("P", (1, 20)),
        ("W", (20, INPUT)),
        ("W", (3, 20, INPUT)),
    ],
)
def test_weights_of_a_wrong_shape_are_refused(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    def change(_: onnx.NodeProto, weights: dict[str, Array]) -> None:
        weights[name] = np.zeros(shape, np.float32)

    error = refused(tmp_path, change, Case(peephole=True))
    assert isinstance(error, BadFile)
    assert name in str(error)


def test_weights_of_different_dtypes_are_refused(tmp_path: Path) -> None:
    def change(_: onnx.NodeProto, weights: dict[str, Array]) -> None:
        weights["R"] = weights["R"].astype(np.float64)

    assert "float64" in str(refused(tmp_path, change))


def test_weights_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    def change(_: onnx.NodeProto, weights: dict[str, Array]) -> None:
        weights.update({name: array.astype(np.int32) for name, array in weights.items()})

    assert "unexpected dtype" in str(refused(tmp_path, change))


def test_reverse_is_the_reverse_direction(tmp_path: Path) -> None:
    layer = only(read(Case(direction="reverse").model(), tmp_path))
    assert [d.direction for d in layer.directions] == [Direction.REVERSE]


def test_a_state_output_that_is_left_out_is_not_given(tmp_path: Path) -> None:
    case = Case("LSTM")
    node = case.node()
    del node.output[1:]
    layer = only(read(model_of([node], case.weights(), case.feeds(), ["Y"]), tmp_path))
    assert (layer.sequence.returns, layer.sequence.return_state) == (Returns.SEQUENCE, False)


@pytest.mark.parametrize(
    ("node", "inputs", "outputs"),
    [case for case in backend_cases() if any(a.name == "layout" and a.i for a in case.values[0].attribute)],
)
def test_a_batch_major_case_runs_in_the_runtime_after_conversion(
    node: onnx.NodeProto, inputs: list[Array], outputs: list[Array], tmp_path: Path
) -> None:
    """ONNX Runtime refuses layout=1; converted from ONNX to ONNX the same outputs come out of it."""
    import onnxruntime

    import lstmconvert as lc

    given = dict(zip(filter(None, node.input), inputs, strict=True))
    x = given.pop(node.input[0])
    ports = [helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, x.shape)]
    names = [name for name in node.output if name]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    initializers = [numpy_helper.from_array(array, name) for name, array in given.items()]
    model = helper.make_model(helper.make_graph([node], "case", ports, results, initializers))
    onnx.save(model, tmp_path / "batch_major.onnx")
    with pytest.raises(Exception, match=r"(?i)layout|not implemented|batchwise"):
        onnxruntime.InferenceSession(str(tmp_path / "batch_major.onnx"), providers=["CPUExecutionProvider"])
    result = lc.convert(tmp_path / "batch_major.onnx", tmp_path / "time_major.onnx")
    assert result.proof is not None
    assert result.proof.proved
    session = onnxruntime.InferenceSession(
        str(tmp_path / "time_major.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [output.name for output in session.get_outputs()] == names
    assert_close(session.run(None, {node.input[0]: x}), outputs, names, 1e-6)
