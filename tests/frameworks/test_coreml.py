"""Core ML: files that coremltools made, judged by torch where it converted torch, else by the documented equations.

Core ML's own runtime is part of macOS. The equations are those of NeuralNetwork.proto and MIL's operations,
written out here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lstmconvert as lc
from lstmconvert.errors import ConversionError

pytestmark = pytest.mark.filterwarnings("ignore")

INPUT, H, T = 3, 4, 5
Array = np.ndarray[Any, Any]


def draw(rng: np.random.Generator, *shape: int) -> Array:
    """Numbers of another range in every block of the first axis, so that exchanged gates show."""
    values = rng.normal(0, 0.4, shape).astype(np.float32)
    for number, block in enumerate(np.array_split(values, max(1, shape[0] // H))):
        block *= 0.5 + 0.5 * number
    return values


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def network(add: Callable[[Any], None], path: Path, width: int = H) -> Path:
    import coremltools as ct
    from coremltools.models.neural_network import NeuralNetworkBuilder

    array = ct.models.datatypes.Array
    builder = NeuralNetworkBuilder([("x", array(INPUT))], [("y", array(width))])
    add(builder)
    ct.models.utils.save_spec(builder.spec, str(path))
    return path


def gru_network(path: Path, w: Array, r: Array, b: Array) -> Path:
    """A network of a GRU; kernel, recurrent kernel and bias of update gate, reset gate and candidate."""

    def add(builder: Any) -> None:
        builder.add_gru(
            name="rnn", W_h=np.split(r, 3), W_x=np.split(w, 3), b=np.split(b, 3), hidden_size=H, input_size=INPUT,
            input_names=["x", "h"], output_names=["y", "hh"], output_all=True, inner_activation="SIGMOID",
        )  # fmt: skip

    return network(add, path)


class Recurrent(torch.nn.Module):
    """A recurrent layer of torch and a head."""

    def __init__(self, *, bidirectional: bool) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(INPUT, H, batch_first=True, bidirectional=bidirectional)
        self.head = torch.nn.Linear(H * (2 if bidirectional else 1), 2)
        with torch.no_grad():
            for tensor in self.rnn.parameters():
                for number, block in enumerate(tensor.split(H)):
                    block.mul_(0.6 + 0.4 * number)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("form", ["neuralnetwork", "mlprogram"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_torch_layers_converted_by_coremltools(
    form: str, precision: str, bidirectional: bool, tmp_path: Path
) -> None:
    import coremltools as ct

    torch.manual_seed(5)
    module = Recurrent(bidirectional=bidirectional).eval()
    x = torch.randn(2, T, INPUT)
    options: dict[str, Any] = {"convert_to": form}
    if form == "mlprogram":
        half = precision == "float16"
        options["compute_precision"] = ct.precision.FLOAT16 if half else ct.precision.FLOAT32
        options["minimum_deployment_target"] = ct.target.iOS17 if half else ct.target.iOS15
    made = ct.convert(torch.jit.trace(module, x), inputs=[ct.TensorType(shape=x.shape, name="x")], **options)
    if form == "neuralnetwork" and precision == "float16":
        from coremltools.models.neural_network import quantization_utils

        spec = quantization_utils._quantize_spec_weights(made.get_spec(), 16, "_linear_quantization")
        path = tmp_path / "m.mlmodel"
        ct.models.utils.save_spec(spec, str(path))
    else:
        path = tmp_path / ("m.mlpackage" if form == "mlprogram" else "m.mlmodel")
        made.save(str(path))
    (layer,) = lc.read(path).recurrent.values()
    with torch.no_grad():
        expected = module.rnn(x)[0].numpy()
    tolerance = 1e-5 if precision == "float32" else 5e-3
    np.testing.assert_allclose(layer.run(x.double().numpy())[0], expected, atol=tolerance)
    lc.convert(path, tmp_path / "out.onnx", layer=layer.name)


def run_lstm(x: Array, w: Array, r: Array, b: Array, p: Array, gate: Any = sigmoid) -> Array:
    """NeuralNetwork.proto, LSTMParams; gates i, f, block input, o, peepholes i, f, o."""
    h, c, found = np.zeros(H), np.zeros(H), []
    for step in x:
        i, f, z, o = np.split(w @ step + r @ h + b, 4)
        i, f = gate(i + p[:H] * c), gate(f + p[H : 2 * H] * c)
        c = f * c + i * np.tanh(z)
        h = gate(o + p[2 * H :] * c) * np.tanh(c)
        found.append(h)
    return np.array(found)


@pytest.mark.parametrize("forget_bias", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_an_lstm_of_a_network(forget_bias: bool, hard: bool, backwards: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    w, r, b, p = draw(rng, 4 * H, INPUT), draw(rng, 4 * H, H), draw(rng, 4 * H), draw(rng, 3 * H)

    def add(builder: Any) -> None:
        # coremltools takes i, f, o, block input.
        order = np.r_[0 : 2 * H, 3 * H : 4 * H, 2 * H : 3 * H]
        split = [[np.split(m[order], 4)[n] for n in range(4)] for m in (w, r)]
        builder.add_unilstm(
            name="rnn", W_h=split[1], W_x=split[0], b=np.split(b[order], 4), hidden_size=H, input_size=INPUT,
            input_names=["x", "h", "c"], output_names=["y", "hh", "cc"], peep=list(np.split(p, 3)),
            output_all=True, forget_bias=forget_bias, cell_clip_threshold=50000.0, reverse_input=backwards,
            inner_activation="SIGMOID_HARD" if hard else "SIGMOID",
        )  # fmt: skip

    path = network(add, tmp_path / "m.mlmodel")
    if hard:  # coremltools writes no slope
        with pytest.raises(lc.AmbiguousSource, match="slope"):
            lc.read(path)
    told = "hard_sigmoid" if hard else None
    (layer,) = lc.read(path, recurrent_activation=told).recurrent.values()
    x = rng.normal(size=(2, T, INPUT))
    biased = b + (np.repeat([0, 1, 0, 0], H) if forget_bias else 0)
    ways = x[:, ::-1] if backwards else x
    gate = (lambda v: np.clip(0.2 * v + 0.5, 0, 1)) if hard else sigmoid
    expected = np.array([run_lstm(one, w, r, biased, p, gate) for one in ways])
    found = layer.run(x)[0]
    np.testing.assert_allclose(found[:, ::-1] if backwards else found, expected, atol=1e-6)


def test_a_gru_and_a_simple_layer_of_a_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    w, r, b = draw(rng, 3 * H, INPUT), draw(rng, 3 * H, H), draw(rng, 3 * H)

    (layer,) = lc.read(gru_network(tmp_path / "gru.mlmodel", w, r, b)).recurrent.values()
    x = rng.normal(size=(1, T, INPUT))
    h, expected = np.zeros(H), []
    for step in x[0]:
        wz, wr, wo = np.split(w @ step + b, 3)
        z, reset = sigmoid(wz + r[:H] @ h), sigmoid(wr + r[H : 2 * H] @ h)
        h = (1 - z) * np.tanh(wo + r[2 * H :] @ (reset * h)) + z * h  # c_t of GRULayerParams
        expected.append(h)
    np.testing.assert_allclose(layer.run(x)[0][0], expected, atol=1e-6)
    (told,) = lc.read(tmp_path / "gru.mlmodel", reset_after=True).recurrent.values()
    assert np.max(np.abs(told.run(x)[0][0] - expected)) > 1e-3

    def add_simple(builder: Any) -> None:
        builder.add_simple_rnn(
            name="rnn", W_h=r[:H], W_x=w[:H], b=b[:H], hidden_size=H, input_size=INPUT, activation="RELU",
            input_names=["x", "h"], output_names=["y", "hh"], output_all=True,
        )  # fmt: skip

    (layer,) = lc.read(network(add_simple, tmp_path / "rnn.mlmodel")).recurrent.values()
    h, expected = np.zeros(H), []
    for step in x[0]:
        h = np.maximum(w[:H] @ step + r[:H] @ h + b[:H], 0)
        expected.append(h)
    np.testing.assert_allclose(layer.run(x)[0][0], expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["_linear_quantization", "_lookup_table_quantization_linear"])
def test_weights_of_8_bits_are_dequantised_and_reported(mode: str, tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.models.neural_network import quantization_utils

    rng = np.random.default_rng(6)
    w, r, b = draw(rng, 3 * H, INPUT), draw(rng, 3 * H, H), draw(rng, 3 * H)

    plain = gru_network(tmp_path / "plain.mlmodel", w, r, b)
    spec = ct.models.utils.load_spec(str(plain))
    spec = quantization_utils._quantize_spec_weights(spec, 8, mode)
    ct.models.utils.save_spec(spec, str(tmp_path / "eight.mlmodel"))
    result = lc.convert(tmp_path / "eight.mlmodel", tmp_path / "out.onnx")
    told = [step.description for step in result.rewrites if step.name == "dequantize"]
    assert told and all("was dequantised from" in text for text in told)
    quantization_utils._dequantize_nn_spec(spec.neuralNetwork)  # coremltools' own
    ct.models.utils.save_spec(spec, str(tmp_path / "judge.mlmodel"))
    (judge,) = lc.read(tmp_path / "judge.mlmodel").recurrent.values()
    (found,) = lc.read(tmp_path / "eight.mlmodel").recurrent.values()
    for key, block in judge.directions[0].weights.items():
        np.testing.assert_allclose(found.directions[0].weights[key].read(), block.read(), atol=1e-6)
    (before,) = lc.read(plain).recurrent.values()
    x = rng.normal(size=(2, T, INPUT))
    assert 0 < np.max(np.abs(before.run(x)[0] - found.run(x)[0])) <= 0.05


def program(build: Callable[[Any, Any], Any], path: Path, batch: int = 2) -> Path:
    import coremltools as ct
    from coremltools.converters.mil import Builder

    @Builder.program(input_specs=[Builder.TensorSpec(shape=(T, batch, INPUT))], opset_version=ct.target.iOS15)
    def made(x: Any) -> Any:
        return build(Builder, x)

    model = ct.convert(
        made, convert_to="mlprogram", compute_precision=ct.precision.FLOAT32, source="milinternal"
    )
    model.save(str(path))
    return path


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_operations_of_a_program(direction: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    w, r, b, p = draw(rng, 4 * H, INPUT), draw(rng, 4 * H, H), draw(rng, 4 * H), draw(rng, 3 * H)
    zeros = np.zeros((2, H), np.float32)
    x = rng.normal(size=(2, T, INPUT))
    ways = x[:, ::-1] if direction == "reverse" else x

    def check(path: Path, expected: Array, reset_after: bool | None = None) -> None:
        (layer,) = lc.read(path, reset_after=reset_after).recurrent.values()
        found = layer.run(x)[0]
        np.testing.assert_allclose(found[:, ::-1] if direction == "reverse" else found, expected, atol=1e-6)

    def lstm(mb: Any, given: Any) -> Any:
        return mb.lstm(
            x=given, initial_h=zeros, initial_c=zeros, weight_ih=w, weight_hh=r, bias=b, peephole=p,
            direction=direction, output_sequence=True,
        )[0]  # fmt: skip

    order = np.r_[0 : 2 * H, 3 * H : 4 * H, 2 * H : 3 * H]  # i, f, o, z to i, f, z, o
    expected = np.array([run_lstm(one, w[order], r[order], b[order], p) for one in ways])
    check(program(lstm, tmp_path / "lstm.mlpackage"), expected)

    def gru(mb: Any, given: Any) -> Any:
        return mb.gru(
            x=given, initial_h=zeros, weight_ih=w[: 3 * H], weight_hh=r[: 3 * H], bias=b[: 3 * H],
            direction=direction, output_sequence=True,
        )[0]  # fmt: skip

    rows = []
    for one in ways:
        h, row = np.zeros(H), []
        for step in one:
            wr, wo, wz = np.split(w[: 3 * H] @ step + b[: 3 * H], 3)
            rr, ro, rz = np.split(r[: 3 * H] @ h, 3)
            z = sigmoid(wz + rz)
            h = (1 - z) * np.tanh(wo + sigmoid(wr + rr) * ro) + z * h
            row.append(h)
        rows.append(row)
    path = program(gru, tmp_path / "gru.mlpackage")
    with pytest.raises(lc.AmbiguousSource, match="contradict"):
        lc.read(path)
    check(path, np.array(rows), reset_after=True)


@pytest.mark.parametrize("state", ["initial_h", "initial_c"])
def test_states_other_than_zero_are_not_lost(state: str, tmp_path: Path) -> None:
    zeros, ones = np.zeros((2, H), np.float32), np.ones((2, H), np.float32)

    def lstm(mb: Any, given: Any) -> Any:
        begins = {"initial_h": zeros, "initial_c": zeros, state: ones}
        return mb.lstm(
            x=given, weight_ih=np.ones((4 * H, INPUT), np.float32), weight_hh=np.ones((4 * H, H), np.float32),
            output_sequence=True, **begins,
        )[0]  # fmt: skip

    with pytest.raises(lc.UnsupportedSource, match=f"other than zero.*found {state}"):
        lc.read(program(lstm, tmp_path / "lstm.mlpackage"))


def lstm_spec(path: Path, change: Callable[[Any], None]) -> Path:
    """A network with one LSTM, which ``change`` alters."""
    rng = np.random.default_rng(11)

    def add(builder: Any) -> None:
        four = lambda *shape: [draw(rng, *shape) for _ in range(4)]  # noqa: E731
        builder.add_unilstm(
            name="rnn", W_h=four(H, H), W_x=four(H, INPUT), b=four(H), hidden_size=H, input_size=INPUT,
            input_names=["x", "h", "c"], output_names=["y", "hh", "cc"], peep=four(H)[:3], output_all=True,
        )  # fmt: skip
        change(builder.spec.neuralNetwork.layers[0].uniDirectionalLSTM)

    return network(add, path)


@pytest.mark.parametrize("flag", ["hasBiasVectors", "hasPeepholeVectors"])
def test_a_flag_that_contradicts_the_weights_is_refused(flag: str, tmp_path: Path) -> None:
    with pytest.raises(lc.BadFile, match=f"{flag} is false"):
        lc.read(lstm_spec(tmp_path / "m.mlmodel", lambda layer: setattr(layer.params, flag, False)))


def test_what_the_specification_says_of_numbers_left_out(tmp_path: Path) -> None:
    def scaled(layer: Any) -> None:
        layer.activations[1].scaledTanh.MergeFromString(b"")
        layer.params.cellClipThreshold = 0

    path = lstm_spec(tmp_path / "m.mlmodel", scaled)
    (direction,) = lc.read(path).recurrent["rnn"].directions
    equations = direction.equations
    assert (equations.cell_activation.alpha, equations.cell_activation.beta) == (1.7159, 2 / 3)
    assert equations.cell_clip == 50.0


def test_two_layers_of_one_name_and_last_steps(tmp_path: Path) -> None:
    from coremltools.proto import Model_pb2

    zeros = np.zeros((2, H), np.float32)
    weights = {"weight_ih": np.ones((H, INPUT), np.float32), "weight_hh": np.ones((H, H), np.float32)}

    def two(mb: Any, given: Any) -> Any:
        first = mb.rnn(x=given, initial_h=zeros, output_sequence=False, name="one", **weights)[0]
        second = mb.rnn(x=given, initial_h=zeros, output_sequence=True, name="two", **weights)[0]
        return mb.concat(values=[first, second], axis=0)

    path = program(two, tmp_path / "rnn.mlpackage")
    steps = lc.read(path).metadata["rewrites"]
    assert [(step["layer"], step["name"]) for step in steps] == [("one", "all_steps")]
    file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model_pb2.Model.FromString(file.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    for operation in block.operations:
        if operation.type == "rnn":
            operation.attributes["name"].immediateValue.tensor.strings.values[0] = "same"
    file.write_bytes(spec.SerializeToString())
    with pytest.raises(lc.BadFile, match="one name"):
        lc.read(path)


def test_damaged_files_are_plain_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    w, r = draw(rng, H, INPUT), draw(rng, H, H)

    def add(builder: Any) -> None:
        builder.add_simple_rnn(
            name="rnn", W_h=r, W_x=w, b=None, hidden_size=H, input_size=INPUT, activation="TANH",
            input_names=["x", "h"], output_names=["y", "hh"], output_all=True,
        )  # fmt: skip

    data = network(add, tmp_path / "whole.mlmodel").read_bytes()
    path = tmp_path / "cut.mlmodel"
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(ConversionError):
            lc.read(path)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            for layer in lc.read(path).recurrent.values():
                layer.run(np.zeros((1, 2, layer.input_size)))
        except ConversionError:
            pass


def test_weights_outside_the_package_are_refused(tmp_path: Path) -> None:
    def rnn(mb: Any, given: Any) -> Any:
        return mb.rnn(
            x=given, initial_h=np.zeros((2, H), np.float32), weight_ih=np.ones((H, INPUT), np.float32),
            weight_hh=np.ones((H, H), np.float32), output_sequence=True,
        )[0]  # fmt: skip

    path = program(rnn, tmp_path / "rnn.mlpackage")
    assert len(lc.read(path).recurrent) == 1
    weights = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    shutil.move(weights, tmp_path / "weight.bin")
    weights.symlink_to(tmp_path / "weight.bin")
    with pytest.raises(lc.BadFile, match="not in the package"):
        lc.read(path)
    manifest = path / "Manifest.json"
    manifest.write_text(manifest.read_text().replace("com.apple.CoreML/model.mlmodel", "../../x.mlmodel"))
    with pytest.raises(lc.BadFile, match="not in the package"):
        lc.read(path)


# Writing.


def torch_weights(path: Path, module: torch.nn.Module) -> Path:
    rng = np.random.default_rng(12)
    torch.save({name: torch.from_numpy(draw(rng, *t.shape)) for name, t in module.state_dict().items()}, path)
    return path


def test_a_network_is_what_coremltools_builds(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.models.neural_network import NeuralNetworkBuilder

    source = torch_weights(tmp_path / "rnn.pt", torch.nn.LSTM(INPUT, H, bias=False))
    lc.convert(source, tmp_path / "out.mlmodel")
    made = ct.models.utils.load_spec(str(tmp_path / "out.mlmodel"))
    name = made.neuralNetwork.layers[0].name
    weights = torch.load(source)
    order = np.r_[0 : 2 * H, 3 * H : 4 * H, 2 * H : 3 * H]  # i, f, o, block input for the builder
    kernel, recurrent = (np.split(weights[f"weight_{part}_l0"].numpy()[order], 4) for part in ("ih", "hh"))
    array = ct.models.datatypes.Array
    builder = NeuralNetworkBuilder([("x", array(INPUT))], [("y", array(H))])
    states = [f"{name}_{state}" for state in ("h_in", "c_in", "h_out", "c_out")]
    builder.add_unilstm(
        name=name, W_h=recurrent, W_x=kernel, b=None, hidden_size=H, input_size=INPUT,
        input_names=["x", *states[:2]], output_names=["y", *states[2:]], output_all=True,
    )  # fmt: skip
    builder.add_optionals([(s, H) for s in states[:2]], [(s, H) for s in states[2:]])
    made.description.metadata.userDefined.clear()
    made.description.ClearField("metadata")
    assert made == builder.spec


def test_a_program_is_what_coremltools_converts(tmp_path: Path) -> None:
    from coremltools.models.utils import load_spec

    source = torch_weights(tmp_path / "rnn.pt", torch.nn.LSTM(INPUT, H, bidirectional=True))
    result = lc.convert(source, tmp_path / "out.mlpackage")
    assert result.proof is not None
    assert result.proof.proved
    (layer,) = lc.read(tmp_path / "out.mlpackage").recurrent.values()
    told = {}
    for direction, way in zip(layer.directions, ("", "_back"), strict=True):
        blocks = direction.weights
        for part, key in (("kernel", "weight_ih"), ("recurrent", "weight_hh"), ("bias_input", "bias")):
            held = {str(gate): block.read() for (own, gate), block in blocks.items() if str(own) == part}
            gates = [held[gate] for gate in ("input", "forget", "output", "cell")]
            told[f"{key}{way}"] = np.concatenate(gates)
    zeros = np.zeros((1, 2 * H), np.float32)

    def lstm(mb: Any, given: Any) -> Any:
        return mb.lstm(
            x=given, initial_h=zeros, initial_c=zeros, direction="bidirectional", output_sequence=True, **told
        )[0]

    judge = program(lstm, tmp_path / "judge.mlpackage", batch=1)
    place = Path("Data") / "com.apple.CoreML" / "model.mlmodel"
    mine, theirs = (load_spec(str(path / place)) for path in (tmp_path / "out.mlpackage", judge))
    assert mine.specificationVersion == theirs.specificationVersion

    def operation(spec: Any) -> Any:
        (block,) = spec.mlProgram.functions["main"].block_specializations.values()
        (found,) = (op for op in block.operations if op.type == "lstm")
        return found

    assert sorted(operation(mine).inputs) == sorted(operation(theirs).inputs)
    assert [o.type.tensorType.rank for o in operation(mine).outputs] == [3, 2, 2]
    mine_feature = mine.description.input[0].type.multiArrayType
    assert [(r.lowerBound, r.upperBound) for r in mine_feature.shapeRange.sizeRanges] == [
        (1, -1),
        (1, 1),
        (3, 3),
    ]


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    source = torch_weights(tmp_path / "rnn.pt", torch.nn.LSTM(INPUT, H, 2))
    for suffix in (".mlmodel", ".mlpackage"):
        found = []
        for name in ("a", "b"):
            path = lc.convert(source, tmp_path / f"{name}{suffix}").target
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            found.append([file.read_bytes() for file in files])
        assert found[0] == found[1]
        assert len(found[0]) == (1 if suffix == ".mlmodel" else 3)


REFUSALS: dict[str, tuple[torch.nn.Module, str, str]] = {
    "a GRU in a program": (torch.nn.GRU(INPUT, H), ".mlpackage", "reset gate after"),
    "a GRU of torch in a network": (torch.nn.GRU(INPUT, H), ".mlmodel", "reset gate after"),
    "a bidirectional RNN": (torch.nn.RNN(INPUT, H, bidirectional=True), ".mlmodel", "bidirectional"),
    "a projection": (torch.nn.LSTM(INPUT, H, proj_size=2), ".mlpackage", "projection"),
    "half precision": (torch.nn.LSTM(INPUT, H).half(), ".mlmodel", "float16"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_held_is_refused(name: str, tmp_path: Path) -> None:
    module, suffix, reason = REFUSALS[name]
    torch.save(module.state_dict(), tmp_path / "rnn.pt")
    with pytest.raises(lc.NotRepresentable, match=reason):
        lc.convert(tmp_path / "rnn.pt", tmp_path / f"out{suffix}", activation="tanh")
    assert [path.name for path in tmp_path.iterdir()] == ["rnn.pt"]


def test_the_gru_of_a_program_is_never_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    weights = draw(rng, 3 * H, INPUT), draw(rng, 3 * H, H), draw(rng, 3 * H)
    source = gru_network(tmp_path / "gru.mlmodel", *weights)
    lc.convert(source, tmp_path / "again.mlmodel")
    with pytest.raises(lc.NotRepresentable, match="contradict"):
        lc.convert(source, tmp_path / "out.mlpackage")


@pytest.mark.parametrize("clip", [0.8, 49.0, 600.0])
def test_a_clip_arrives_or_is_refused(clip: float, tmp_path: Path) -> None:
    source = lstm_spec(tmp_path / "m.mlmodel", lambda layer: setattr(layer.params, "cellClipThreshold", clip))
    if clip > 500:
        assert lc.read(source).recurrent["rnn"].directions[0].equations.cell_clip is None
        return
    lc.convert(source, tmp_path / "out.mlmodel")
    assert lc.read(tmp_path / "out.mlmodel").recurrent["rnn"].directions[0].equations.cell_clip == clip
    with pytest.raises(lc.NotRepresentable, match="clip"):
        lc.convert(source, tmp_path / "out.mlpackage")


def test_a_package_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    source = torch_weights(tmp_path / "rnn.pt", torch.nn.LSTM(INPUT, H))
    target = lc.convert(source, tmp_path / "out.mlpackage").target
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    for overwrite in (False, True):
        with pytest.raises(lc.Usage, match=r"the output is a folder(.|\n)*remove it first"):
            lc.convert(source, target, overwrite=overwrite)
    assert before == {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mlpackage", "rnn.pt"]


def test_layers_that_follow_each_other_come_back_as_one_stack(tmp_path: Path) -> None:
    source = torch_weights(tmp_path / "rnn.pt", torch.nn.LSTM(INPUT, H, 3))
    x = np.random.default_rng(2).normal(size=(2, T, INPUT)).astype(np.float32)
    module = torch.nn.LSTM(INPUT, H, 3, batch_first=True)
    module.load_state_dict(torch.load(source))
    with torch.no_grad():
        expected = module(torch.from_numpy(x))[0].numpy()
    for suffix in (".mlmodel", ".mlpackage"):
        lc.convert(source, tmp_path / f"out{suffix}")
        back = lc.convert(tmp_path / f"out{suffix}", tmp_path / f"back{suffix}.onnx").target
        import onnxruntime

        session = onnxruntime.InferenceSession(str(back))
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_allclose(found, expected, atol=1e-5)
