"""Core ML as a judge: coremltools makes and reads the files, the documented equations compute them.

Core ML's own runtime is part of macOS. The equations are those of NeuralNetwork.proto (LSTMParams,
GRULayerParams, SimpleRecurrentLayerParams) and of the MIL operations lstm and rnn (iOS15).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.matrix.judges import HIDDEN, INPUT, Case, Judge, Sample, draw, inputs, resets_before

Array = np.ndarray[Any, Any]
Layer = Callable[[Array], Array]
LSTM_GATES = ("inputGate", "forgetGate", "blockInput", "outputGate")
GRU_GATES = ("updateGate", "resetGate", "outputGate")
NO_CLIP = 50000.0


def sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def function(said: Any) -> Callable[[Array], Array]:
    """An activation of a network, by its message."""
    kind = said.WhichOneof("NonlinearityType")
    if kind == "sigmoidHard":
        return lambda v: np.clip(said.sigmoidHard.alpha * v + said.sigmoidHard.beta, 0, 1)
    return {"sigmoid": sigmoid, "tanh": np.tanh}[kind]


def lstm(
    w: list[Array], r: list[Array], b: list[Array], p: list[Array], clip: float, functions: Any
) -> Layer:
    """An LSTM of one sequence; i, f, block input, o, and peepholes i, f, o."""
    gate, inner, outer = functions

    def run(x: Array) -> Array:
        h, c, found = np.zeros(HIDDEN), np.zeros(HIDDEN), []
        for step in x:
            i, f, z, o = (w[n] @ step + r[n] @ h + b[n] for n in range(4))
            kept = gate(f + p[1] * c) * c
            c = np.clip(kept + gate(i + p[0] * c) * inner(z), -clip, clip)
            h = gate(o + p[2] * c) * outer(c)
            found.append(h)
        return np.array(found)

    return run


def gru(w: list[Array], r: list[Array], b: list[Array], functions: Any) -> Layer:
    """A GRU of one sequence; update, reset, candidate: c_t of GRULayerParams takes y_{t-1} times the reset gate."""
    gate, inner = functions

    def run(x: Array) -> Array:
        h, found = np.zeros(HIDDEN), []
        for step in x:
            z, reset = (gate(w[n] @ step + r[n] @ h + b[n]) for n in range(2))
            h = (1 - z) * inner(w[2] @ step + r[2] @ (reset * h) + b[2]) + z * h
            found.append(h)
        return np.array(found)

    return run


def rnn(w: Array, r: Array, b: Array, inner: Any) -> Layer:
    def run(x: Array) -> Array:
        h, found = np.zeros(HIDDEN), []
        for step in x:
            h = inner(w @ step + r @ h + b)
            found.append(h)
        return np.array(found)

    return run


def both(forward: Layer, backward: Layer) -> Layer:
    return lambda x: np.concatenate([forward(x), backward(x[::-1])[::-1]], -1)


def matrices(held: Any, gates: tuple[str, ...], part: str, shape: tuple[int, ...]) -> list[Array]:
    """The weights of all gates; zeros of those that the file does not have."""
    found = []
    for gate in gates:
        values = np.array(getattr(held, f"{gate}{part}").floatValue, np.float32)
        found.append(values.reshape(shape) if values.size else np.zeros(shape, np.float32))
    return found


def network_weights(layer: Any) -> Iterator[list[list[Array]]]:
    """Kernels, recurrent kernels, biases and peepholes of every direction of a layer of a network."""
    kind = layer.WhichOneof("layer")
    held = getattr(layer, kind)
    shape, square, row = (held.outputVectorSize, held.inputVectorSize), (HIDDEN, HIDDEN), (HIDDEN,)
    if kind == "simpleRecurrent":
        names = ("weightMatrix", "recursionMatrix", "biasVector")
        arrays = (np.array(getattr(held, name).floatValue, np.float32) for name in names)
        yield [
            [a.reshape(s) if a.size else np.zeros(s, np.float32)]
            for a, s in zip(arrays, (shape, square, row), strict=True)
        ]
        return
    gates = GRU_GATES if kind == "gru" else LSTM_GATES
    every = {"gru": [held], "uniDirectionalLSTM": [getattr(held, "weightParams", None)]}
    for one in every.get(kind, held.weightParams if kind == "biDirectionalLSTM" else []):
        parts = [("WeightMatrix", shape), ("RecursionMatrix", square), ("BiasVector", row)]
        found = [matrices(one, gates, part, size) for part, size in parts]
        if kind != "gru":
            found.append(matrices(one, ("inputGate", "forgetGate", "outputGate"), "PeepholeVector", row))
        yield found


def network_layer(layer: Any) -> Layer:
    kind = layer.WhichOneof("layer")
    held = getattr(layer, kind)
    weights = list(network_weights(layer))
    first = {"simpleRecurrent": "activation", "biDirectionalLSTM": "activationsForwardLSTM"}
    said = getattr(held, first.get(kind, "activations"))
    functions = [function(one) for one in ([said] if kind == "simpleRecurrent" else said)]
    if kind == "simpleRecurrent":
        assert held.sequenceOutput and not held.reverseInput
        (w,), (r,), (b,) = weights[0]
        return rnn(w, r, b, functions[0])
    if kind == "gru":
        assert held.sequenceOutput and not held.reverseInput
        return gru(*weights[0], functions)
    params = held.params
    assert params.sequenceOutput and not params.forgetBias and not params.coupledInputAndForgetGate
    directions = [lstm(*weights[0], params.cellClipThreshold, functions)]
    if kind == "biDirectionalLSTM":
        backward = [function(one) for one in held.activationsBackwardLSTM]
        directions.append(lstm(*weights[1], params.cellClipThreshold, backward))
        return both(*directions)
    assert not held.reverseInput
    return directions[0]


def program_of(path: Path) -> Any:
    """A program as coremltools reads it back."""
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.models.utils import load_spec

    place = path / "Data" / "com.apple.CoreML"
    spec = load_spec(str(place / "model.mlmodel"))
    return load(spec, spec.specificationVersion, str(place / "weights"))


def program_weights(operation: Any) -> Iterator[list[list[Array]]]:
    """The same of an operation of a program: i, f, o, z there."""
    width = operation.inputs["weight_hh"].val.shape[0]
    count = width // HIDDEN
    order = (0, 1, 3, 2) if count == 4 else (0,)
    for way in ("", "_back") if operation.inputs.get("weight_ih_back") is not None else ("",):
        parts = []
        for name in ("weight_ih", "weight_hh", "bias", "peephole"):
            value = operation.inputs.get(f"{name}{way}")
            if name == "peephole":
                split = np.zeros((3, HIDDEN), np.float32) if value is None else value.val.reshape(3, HIDDEN)
                parts.append(list(split))
            elif value is None:
                parts.append([np.zeros(HIDDEN, np.float32)] * count)
            else:
                blocks = np.split(value.val, count)
                parts.append([blocks[n] for n in order])
        yield parts if operation.op_type == "lstm" else parts[:3]


def program_layer(operation: Any) -> Layer:
    functions = {"sigmoid": sigmoid, "tanh": np.tanh}
    weights = list(program_weights(operation))
    assert operation.inputs["output_sequence"].val
    if operation.op_type == "rnn":
        assert operation.inputs["direction"].val == "forward"
        (w,), (r,), (b,) = weights[0]
        return rnn(w, r, b, functions[operation.inputs["activation"].val])
    assert operation.op_type == "lstm"
    named = ("recurrent_activation", "cell_activation", "activation")
    used = [functions[operation.inputs[name].val] for name in named]
    made = [lstm(*one, np.inf, used) for one in weights]
    return made[0] if operation.inputs["direction"].val == "forward" else both(*made)


def operations(path: Path) -> list[Any]:
    return [op for op in program_of(path).functions["main"].operations if op.op_type != "const"]


def run_coreml(path: Path, x: Array, case: Case) -> Array:
    if path.is_dir():
        layers = [program_layer(operation) for operation in operations(path)]
    else:
        layers = [network_layer(layer) for layer in spec_of(path).neuralNetwork.layers]
    rows = []
    for row in x.astype(np.float64):
        value = row
        for layer in layers:
            value = layer(value)
        rows.append(value)
    return np.stack(rows)


def spec_of(path: Path) -> Any:
    from coremltools.models.utils import load_spec

    return load_spec(str(path))


def weights_coreml(path: Path) -> list[Array]:
    if path.is_dir():
        every = [program_weights(operation) for operation in operations(path)]
    else:
        every = [network_weights(layer) for layer in spec_of(path).neuralNetwork.layers]
    return [array for layer in every for way in layer for part in way for array in part]


def make_coreml(case: Case, folder: Path) -> Sample:
    rng = np.random.default_rng(case.seed)
    program = case.option == "program" or (case.option == "peephole" and not case.bias)
    path = make_program(case, folder, rng) if program else make_network(case, folder, rng)
    x = inputs(case)
    return Sample(path, x, run_coreml(path, x, case))


def make_network(case: Case, folder: Path, rng: np.random.Generator) -> Path:
    from coremltools.models.datatypes import Array as Shape
    from coremltools.models.neural_network import NeuralNetworkBuilder
    from coremltools.models.utils import save_spec

    ways = 2 if case.bidirectional else 1
    builder = NeuralNetworkBuilder([("x", Shape(INPUT))], [("y", Shape(HIDDEN * ways))])
    value, width = "x", INPUT
    for number in range(case.layers):
        name = f"rnn{number}"
        given = "y" if number == case.layers - 1 else f"{name}_y"
        add_layer(builder, case, rng, name, value, given, width)
        value, width = given, HIDDEN * ways
    if case.option == "hard_sigmoid":
        for layer in builder.spec.neuralNetwork.layers:
            held = getattr(layer, layer.WhichOneof("layer"))
            names = ("activations", "activationsForwardLSTM", "activationsBackwardLSTM")
            for said in [one for name in names for one in getattr(held, name, ())]:
                if said.WhichOneof("NonlinearityType") == "sigmoidHard":  # coremltools writes no numbers
                    said.sigmoidHard.alpha, said.sigmoidHard.beta = 0.2, 0.5
    path = folder / "source.mlmodel"
    save_spec(builder.spec, str(path))
    return path


def add_layer(
    builder: Any, case: Case, rng: np.random.Generator, name: str, value: str, given: str, width: int
) -> None:
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[case.cell]

    def several(*shape: int, count: int = gates) -> list[Array]:
        return [draw(rng, shape) for _ in range(count)]

    inner = "SIGMOID_HARD" if case.option == "hard_sigmoid" else "SIGMOID"
    told: dict[str, Any] = {"name": name, "hidden_size": HIDDEN, "input_size": width, "output_all": True}
    states = ["h", "c"] if case.cell == "lstm" else ["h"]
    if case.bidirectional:
        states += ["h_rev", "c_rev"]
    told["input_names"] = [value, *(f"{name}_{state}_in" for state in states)]
    told["output_names"] = [given, *(f"{name}_{state}_out" for state in states)]
    if case.cell == "rnn":
        bias = draw(rng, (HIDDEN,)) if case.bias else None
        kernel, recurrent = draw(rng, (HIDDEN, width)), draw(rng, (HIDDEN, HIDDEN))
        builder.add_simple_rnn(W_h=recurrent, W_x=kernel, b=bias, activation="TANH", **told)
        return
    told |= {"W_x": several(HIDDEN, width), "W_h": several(HIDDEN, HIDDEN)}
    told |= {"b": several(HIDDEN) if case.bias else None, "inner_activation": inner}
    if case.cell == "gru":
        builder.add_gru(**told)
        return
    peephole = case.option == "peephole"
    told["peep"] = several(HIDDEN, count=3) if peephole else None
    told["cell_clip_threshold"] = 0.8 if case.option == "cell_clip" else NO_CLIP
    if not case.bidirectional:
        builder.add_unilstm(**told)
        return
    told |= {"W_x_back": several(HIDDEN, width), "W_h_back": several(HIDDEN, HIDDEN)}
    told |= {"b_back": several(HIDDEN) if case.bias else None}
    told["peep_back"] = several(HIDDEN, count=3) if peephole else None
    builder.add_bidirlstm(**told)


def make_program(case: Case, folder: Path, rng: np.random.Generator) -> Path:
    import coremltools
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import get_new_symbol

    gates, ways = {"lstm": 4, "rnn": 1}[case.cell], 2 if case.bidirectional else 1
    x = Builder.TensorSpec(shape=(get_new_symbol(), 1, INPUT))

    @Builder.program(input_specs=[x], opset_version=coremltools.target.iOS15)
    def made(x: Any) -> Any:
        value, width = x, INPUT
        zeros = np.zeros((1, HIDDEN * ways), np.float32)
        for _ in range(case.layers):
            told: dict[str, Any] = {"x": value, "initial_h": zeros, "output_sequence": True}
            for way in ("", "_back")[:ways]:
                told[f"weight_ih{way}"] = draw(rng, (gates * HIDDEN, width))
                told[f"weight_hh{way}"] = draw(rng, (gates * HIDDEN, HIDDEN))
                if case.bias:
                    told[f"bias{way}"] = draw(rng, (gates * HIDDEN,))
                if case.option == "peephole":
                    told[f"peephole{way}"] = draw(rng, (3 * HIDDEN,))
            if case.cell == "lstm":
                told["direction"] = "bidirectional" if ways == 2 else "forward"
                value = Builder.lstm(initial_c=zeros, **told)[0]
            else:
                value = Builder.rnn(**told)[0]
            width = HIDDEN * ways
        return value

    model = coremltools.convert(
        made,
        convert_to="mlprogram",
        compute_precision=coremltools.precision.FLOAT32,
        source="milinternal",
    )
    path = folder / "source.mlpackage"
    model.save(str(path))
    return path


def refused(case: Case, source: str) -> bool:
    """What its networks cannot hold."""
    if case.option in ("projection", "clip", "relu", "reverse", "sum", "ave", "mul"):
        return True
    if case.option == "hard_sigmoid" and source in ("keras", "onnx"):
        return True  # another slope
    if case.bidirectional and case.cell != "lstm":
        return True
    return case.cell == "gru" and not resets_before(case, source)


JUDGES = (
    Judge(
        "coreml", ".mlmodel",
        {
            "lstm": ("plain", "peephole", "cell_clip", "hard_sigmoid", "program"),
            "gru": ("reset_before", "hard_sigmoid"),
            "rnn": ("plain", "program"),
        },
        make_coreml, run_coreml, weights_coreml,
        one_way=("gru", "rnn"),
    ),
)  # fmt: skip
