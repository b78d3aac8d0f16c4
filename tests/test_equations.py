"""Every option of the equations against a runtime that has it.

Weights differ in every gate, sizes are unequal, states are not zero, and half of the cases saturate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from lstmconvert.activations import (
    HARD_SIGMOID_KERAS2,
    HARD_SIGMOID_KERAS3,
    RELU,
    SIGMOID,
    TANH,
    Activation,
)
from lstmconvert.canonical import (
    Coupling,
    GruEquations,
    LstmEquations,
    MaskedOutput,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    RnnEquations,
    SequenceBehaviour,
    UpdateKeeps,
    Weights,
)
from lstmconvert.equations import Trace
from lstmconvert.gates import GATES, PEEPHOLE_GATES, Cell, Direction, Gate, Part
from lstmconvert.tensors import Array
from scripts import first_case
from tests.support import (
    HIDDEN_SIZE,
    PROJECTED_SIZE,
    assert_close,
    bias_sum,
    joined,
    random_inputs,
    random_layer,
    random_mask,
    random_state,
)

ROOT = Path(__file__).resolve().parent.parent
BOTH = ("forward", "reverse")
LENGTHS = np.array([6, 1, 4, 3])
LSTM_IFCO = (Gate.INPUT, Gate.FORGET, Gate.CELL, Gate.OUTPUT)
GRU_ZRN = (Gate.UPDATE, Gate.RESET, Gate.CANDIDATE)
GRU_RZN = (Gate.RESET, Gate.UPDATE, Gate.CANDIDATE)
RNN_H = (Gate.HIDDEN,)


def _states(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


def _compare(
    layer: RecurrentLayer, expected: Sequence[Any], got: tuple[Array, Any], tolerance: float
) -> None:
    """The sequence and every final state."""
    ours = [got[0], *_states(got[1])]
    for n, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert_close(a, b, tolerance=tolerance, context=f"{layer.name}: {('y', 'h', 'c')[n]}")


# torch: LSTM with projections, GRU, RNN; packed sequences; both dtypes.

_TORCH_GATES = {Cell.LSTM: LSTM_IFCO, Cell.GRU: GRU_RZN, Cell.RNN: RNN_H}
_TORCH_PARTS = {
    Part.KERNEL: "weight_ih",
    Part.RECURRENT: "weight_hh",
    Part.BIAS_INPUT: "bias_ih",
    Part.BIAS_RECURRENT: "bias_hh",
}


def _torch_module(layer: RecurrentLayer, nonlinearity: str) -> Any:
    import torch

    dtype = torch.float64 if layer.dtype == np.float64 else torch.float32
    options: dict[str, Any] = {
        "bias": layer.directions[0].weights.has(Part.BIAS_INPUT),
        "bidirectional": len(layer.directions) == 2,
        "batch_first": True,
        "dtype": dtype,
    }
    if layer.cell is Cell.LSTM and layer.projected_size:
        options["proj_size"] = layer.projected_size
    if layer.cell is Cell.RNN:
        options["nonlinearity"] = nonlinearity
    module = getattr(torch.nn, str(layer.cell).upper())(layer.input_size, layer.hidden_size, **options)
    tensors = {}
    for suffix, direction in zip(("", "_reverse"), layer.directions, strict=False):
        for part, name in _TORCH_PARTS.items():
            if direction.weights.has(part):
                tensors[f"{name}_l0{suffix}"] = joined(direction.weights, part, _TORCH_GATES[layer.cell])
        if direction.weights.projection is not None:
            tensors[f"weight_hr_l0{suffix}"] = direction.weights.projection
    module.load_state_dict({name: torch.tensor(np.array(a)) for name, a in tensors.items()}, strict=True)
    return module.eval()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize("directions", [("forward",), BOTH], ids="_".join)
@pytest.mark.parametrize("form", ["lstm", "lstm_projected", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("biases", ["two", "none"])
def test_torch(biases: str, form: str, directions: tuple[str, ...], scale: float, dtype: Any) -> None:
    """Whole and packed sequences, from non-zero states."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    cell, _, kind = form.partition("_")
    equations = RnnEquations(RELU) if kind == "relu" else None
    layer = random_layer(
        cell,
        seed=len(form) + len(directions),
        directions=directions,
        biases=biases,
        projection=PROJECTED_SIZE if kind == "projected" else None,
        equations=equations,
        dtype=dtype,
        scale=scale if kind != "relu" else min(scale, 1.0),  # an unbounded state grows beyond comparing
    )
    x, state = random_inputs(layer, seed=1), random_state(layer, seed=2)
    module = _torch_module(layer, kind or "tanh")
    start = tuple(torch.tensor(s) for s in _states(state))
    packed = pack_padded_sequence(
        torch.tensor(x), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
    )
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    with torch.no_grad():
        y, final = module(torch.tensor(x), start if len(start) == 2 else start[0])
        expected = [y, *_states(final)]
        _compare(layer, expected, layer.run(x, initial_state=state), tolerance)
        y, final = module(packed, start if len(start) == 2 else start[0])
        padded, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
        expected = [padded, *_states(final)]
        _compare(layer, expected, layer.run(x, lengths=LENGTHS, initial_state=state), tolerance)


# Keras 3 and tf_keras.

_KERAS_GATES = {Cell.LSTM: LSTM_IFCO, Cell.GRU: GRU_ZRN, Cell.RNN: RNN_H}
_KERAS_CLASS = {Cell.LSTM: "LSTM", Cell.GRU: "GRU", Cell.RNN: "SimpleRNN"}


def _keras_arrays(direction: RecurrentDirection) -> list[Array]:
    weights = direction.weights
    order = _KERAS_GATES[weights.cell]
    arrays = [joined(weights, part, order).T for part in (Part.KERNEL, Part.RECURRENT)]
    two = (
        isinstance(direction.equations, GruEquations)
        and direction.equations.reset is ResetPlace.AFTER_PRODUCT
    )
    if weights.has(Part.BIAS_INPUT):
        parts = (Part.BIAS_INPUT, Part.BIAS_RECURRENT) if two else (Part.BIAS_INPUT,)
        biases = [joined(weights, part, order) for part in parts]
        arrays.append(np.stack(biases) if two else biases[0])
    return arrays


def _library(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


def _keras_layer(library: Any, layer: RecurrentLayer, *, merge: str | None = None, **options: Any) -> Any:
    """A built layer in float64 with the weights; Bidirectional for two directions."""
    make = getattr(library.layers, _KERAS_CLASS[layer.cell])
    use_bias = layer.directions[0].weights.has(Part.BIAS_INPUT)
    backwards = layer.direction == "reverse"
    made = make(
        layer.hidden_size,
        use_bias=use_bias,
        return_sequences=True,
        return_state=True,
        go_backwards=backwards,
        dtype="float64",
        **options,
    )
    if len(layer.directions) == 2:
        made = library.layers.Bidirectional(made, merge_mode=merge, dtype="float64")
    made(np.zeros((1, 2, layer.input_size)))
    made.set_weights([a for direction in layer.directions for a in _keras_arrays(direction)])
    return made


def _keras_states(state: Any) -> list[Any]:
    """Direction by direction: h, c, reverse h, reverse c; tensors, which is all that tf_keras takes."""
    import tensorflow as tf

    return [tf.constant(part[d]) for d in range(len(_states(state)[0])) for part in _states(state)]


_KERAS_FORMS = ["lstm", "gru_after", "gru_before", "rnn"]


def _equations(form: str, gate: Activation, activation: Activation) -> Any:
    match form:
        case "lstm":
            return LstmEquations(gate, activation, activation)
        case "rnn":
            return RnnEquations(activation)
    reset = ResetPlace.AFTER_PRODUCT if form == "gru_after" else ResetPlace.BEFORE_PRODUCT
    return GruEquations(reset, gate_activation=gate, candidate_activation=activation)


def _keras_case(form: str, directions: Sequence[str], use_bias: bool, equations: Any, **options: Any) -> Any:
    cell = form.partition("_")[0]
    biases = "none" if not use_bias else "two" if form == "gru_after" else "input"
    return random_layer(
        cell,
        seed=len(form),
        directions=directions,
        biases=biases,
        equations=equations,
        dtype=np.float64,
        **options,
    )


@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("form", _KERAS_FORMS)
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_keras(library: str, form: str, gate: str, direction: str, scale: float) -> None:
    """Both forms of the GRU, both slopes of hard_sigmoid, masks with holes, non-zero states."""
    found = _library(library)
    slope = HARD_SIGMOID_KERAS3 if library == "keras" else HARD_SIGMOID_KERAS2
    use_bias = gate == "sigmoid" or direction == "forward"
    equations = _equations(form, SIGMOID if gate == "sigmoid" else slope, TANH)
    held = SequenceBehaviour(masked_output=MaskedOutput.HOLD)
    layer = _keras_case(form, (direction,), use_bias, equations, sequence=held, scale=scale)
    options: dict[str, Any] = {"reset_after": form == "gru_after"} if form.startswith("gru") else {}
    if form != "rnn":
        options["recurrent_activation"] = gate
    theirs = _keras_layer(found, layer, **options)
    x, state = random_inputs(layer, seed=1), random_state(layer, seed=2)
    for mask in (None, random_mask(seed=3)):
        y, *final = theirs(x, mask=mask, initial_state=_keras_states(state))
        sequence = np.asarray(y)[:, ::-1] if direction == "reverse" else y
        expected = [sequence, *(np.asarray(part)[np.newaxis] for part in final)]
        _compare(layer, expected, layer.run(x, mask=mask, initial_state=state), 1e-10)


@pytest.mark.parametrize("merge", [Merge.CONCAT, Merge.SUM, Merge.MULTIPLY, Merge.AVERAGE])
@pytest.mark.parametrize("form", _KERAS_FORMS)
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_keras_bidirectional(library: str, form: str, merge: Merge) -> None:
    """Merges, with masks: Bidirectional puts zeros at masked steps."""
    found = _library(library)
    equations = _equations(form, SIGMOID, RELU if form == "rnn" else TANH)
    layer = _keras_case(form, BOTH, True, equations, sequence=SequenceBehaviour(merge=merge), scale=0.5)
    mode = {Merge.AVERAGE: "ave", Merge.MULTIPLY: "mul"}.get(merge, str(merge))
    options: dict[str, Any] = {"reset_after": form == "gru_after"} if form.startswith("gru") else {}
    theirs = _keras_layer(found, layer, merge=mode, activation="relu" if form == "rnn" else "tanh", **options)
    x, state = random_inputs(layer, seed=1), random_state(layer, seed=2)
    for mask in (None, random_mask(seed=3)):
        y, *final = theirs(x, mask=mask, initial_state=_keras_states(state))
        kinds = len(final) // 2
        expected = [y, *(np.stack([final[kind], final[kinds + kind]]) for kind in range(kinds))]
        _compare(layer, expected, layer.run(x, mask=mask, initial_state=state), 1e-10)


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_keras_zero_output_for_mask(library: str) -> None:
    """A lone layer that is told to: zeros at masked steps."""
    layer = _keras_case("lstm", ("forward",), True, None, sequence=SequenceBehaviour())
    theirs = _keras_layer(_library(library), layer, zero_output_for_mask=True)
    x, mask = random_inputs(layer, seed=1), random_mask(seed=3)
    y, h, c = theirs(x, mask=mask)
    _compare(layer, [y, np.asarray(h)[np.newaxis], np.asarray(c)[np.newaxis]], layer.run(x, mask=mask), 1e-10)


_JAX = """
import json, sys, numpy as np, keras
assert keras.backend.backend() == "jax"
given = dict(np.load(sys.argv[1]))
layer = keras.layers.LSTM(int(given["units"]), return_sequences=True, return_state=True)
layer(given["x"])
layer.set_weights([given["0"], given["1"], given["2"]])
y, h, c = layer(given["x"], mask=given["mask"], initial_state=[given["h"], given["c"]])
np.savez(sys.argv[2], y=y, h=h, c=c)
"""


def test_keras_on_jax_holds_the_state(tmp_path: Path) -> None:
    """There a masked step gives the held state: before the first valid step the initial one, not zeros."""
    layer = random_layer(
        "lstm", seed=4, biases="input", sequence=SequenceBehaviour(masked_output=MaskedOutput.HOLD_STATE)
    )
    x, mask, (h, c) = random_inputs(layer, seed=1), random_mask(seed=3), random_state(layer, seed=2)
    mask[2, :2] = False
    arrays = dict(zip("012", _keras_arrays(layer.directions[0]), strict=True))
    np.savez(tmp_path / "in.npz", x=x, mask=mask, h=h[0], c=c[0], units=layer.hidden_size, **arrays)
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _JAX, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    found = np.load(tmp_path / "out.npz")
    expected = [found["y"], found["h"][np.newaxis], found["c"][np.newaxis]]
    _compare(layer, expected, layer.run(x, mask=mask, initial_state=(h, c)), 1e-5)


# ONNX Runtime.

_ONNX_GATES = {
    Cell.LSTM: (Gate.INPUT, Gate.OUTPUT, Gate.FORGET, Gate.CELL),
    Cell.GRU: GRU_ZRN,
    Cell.RNN: RNN_H,
}
_ONNX_NAMES = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "hard_sigmoid": "HardSigmoid",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "affine": "Affine",
    "scaled_tanh": "ScaledTanh",
    "softsign": "Softsign",
    "softplus": "Softplus",
    "thresholded_relu": "ThresholdedRelu",
}


def _onnx_activations(equations: Any) -> list[Activation]:
    if isinstance(equations, LstmEquations):
        return [equations.gate_activation, equations.cell_activation, equations.hidden_activation]
    if isinstance(equations, GruEquations):
        return [equations.gate_activation, equations.candidate_activation]
    return [equations.hidden_activation]


def _onnx_run(layer: RecurrentLayer, x: Array, lengths: Array | None, state: Any) -> list[Array]:
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    order = _ONNX_GATES[layer.cell]
    equations = layer.equations
    activations = [a for direction in layer.directions for a in _onnx_activations(direction.equations)]
    attributes: dict[str, Any] = {
        "hidden_size": layer.hidden_size,
        "direction": layer.direction,
        "activations": [_ONNX_NAMES[a.kind] for a in activations],
    }
    for name in ("alpha", "beta"):
        values = [getattr(a, name) for a in activations if getattr(a, name) is not None]
        if values:
            attributes[f"activation_{name}"] = values
    if equations.preactivation_clip is not None:
        attributes["clip"] = equations.preactivation_clip
    if isinstance(equations, LstmEquations) and equations.coupling is not Coupling.NONE:
        attributes["input_forget"] = 1
    if isinstance(equations, GruEquations):
        attributes["linear_before_reset"] = int(equations.reset is ResetPlace.AFTER_PRODUCT)
    each = [direction.weights for direction in layer.directions]
    inputs: dict[str, Array] = {
        "X": x.transpose(1, 0, 2),
        "W": np.stack([joined(w, Part.KERNEL, order) for w in each]),
        "R": np.stack([joined(w, Part.RECURRENT, order) for w in each]),
        "B": np.stack(
            [
                np.concatenate([joined(w, p, order) for p in (Part.BIAS_INPUT, Part.BIAS_RECURRENT)])
                for w in each
            ]
        ),
    }
    if lengths is not None:
        inputs["sequence_lens"] = lengths.astype(np.int32)
    inputs.update(zip(("initial_h", "initial_c"), _states(state), strict=False))
    if each[0].has(Part.PEEPHOLE):
        peephole_order = (Gate.INPUT, Gate.OUTPUT, Gate.FORGET)
        inputs["P"] = np.stack([joined(w, Part.PEEPHOLE, peephole_order) for w in each])
    slots = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    names = [name if name in inputs else "" for name in slots]
    while not names[-1]:
        names.pop()
    outputs = ["Y", "Y_h", "Y_c"][: 3 if layer.cell is Cell.LSTM else 2]
    node = helper.make_node(str(layer.cell).upper(), names, outputs, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [],
        [helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in inputs.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, *final = session.run(None, {})
    time, directions, batch, width = y.shape
    return [y.transpose(2, 0, 1, 3).reshape(batch, time, directions * width), *final]


_ONNX_EQUATIONS: Mapping[str, Any] = {
    "lstm": LstmEquations(),
    "lstm_clip": LstmEquations(preactivation_clip=0.7),
    "lstm_input_forget": LstmEquations(coupling=Coupling.FORGET_IS_ONE_MINUS_INPUT),
    "lstm_peephole": LstmEquations(),
    "lstm_peephole_clip": LstmEquations(preactivation_clip=0.7),
    "lstm_peephole_input_forget": LstmEquations(coupling=Coupling.FORGET_IS_ONE_MINUS_INPUT),
    "lstm_keras2": LstmEquations(HARD_SIGMOID_KERAS2),
    "lstm_parameters": LstmEquations(
        Activation("hard_sigmoid", 0.3, 0.4),
        Activation("leaky_relu", 0.1),
        Activation("scaled_tanh", 1.5, 0.5),
    ),
    "lstm_relu_softsign": LstmEquations(SIGMOID, Activation("softsign"), RELU),
    "lstm_each": (
        LstmEquations(SIGMOID, Activation("affine", 0.5, 0.1), TANH),
        LstmEquations(HARD_SIGMOID_KERAS2, RELU, Activation("softplus")),
    ),
    "gru_after": GruEquations(ResetPlace.AFTER_PRODUCT),
    "gru_before": GruEquations(ResetPlace.BEFORE_PRODUCT),
    "gru_after_clip": GruEquations(ResetPlace.AFTER_PRODUCT, preactivation_clip=0.7),
    "gru_before_clip": GruEquations(ResetPlace.BEFORE_PRODUCT, preactivation_clip=0.7),
    "gru_parameters": GruEquations(
        ResetPlace.AFTER_PRODUCT,
        gate_activation=Activation("hard_sigmoid", 0.3, 0.4),
        candidate_activation=Activation("elu", 0.6),
    ),
    "gru_each": (
        GruEquations(ResetPlace.BEFORE_PRODUCT, candidate_activation=Activation("softsign")),
        GruEquations(
            ResetPlace.BEFORE_PRODUCT, gate_activation=HARD_SIGMOID_KERAS2, candidate_activation=RELU
        ),
    ),
    "rnn": RnnEquations(),
    "rnn_clip": RnnEquations(preactivation_clip=0.7),
    "rnn_thresholded": RnnEquations(Activation("thresholded_relu", 0.2)),
    "rnn_affine": RnnEquations(Activation("affine", 0.4, 0.2)),
}


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("directions", [("forward",), ("reverse",), BOTH], ids="_".join)
@pytest.mark.parametrize("name", _ONNX_EQUATIONS)
def test_onnxruntime(name: str, directions: tuple[str, ...], lengths: Array | None) -> None:
    """Activations with parameters, per direction too; peepholes, clip, input_forget, lengths, states."""
    given = _ONNX_EQUATIONS[name]
    # Different functions in each direction exist only where there are two.
    equations = [
        given[n if len(directions) == 2 else 0] if isinstance(given, tuple) else given
        for n in range(len(directions))
    ]
    layer = random_layer(
        name.partition("_")[0],
        seed=len(name),
        directions=directions,
        peephole="peephole" in name,
        equations=equations,
    )
    x, state = random_inputs(layer, seed=1), random_state(layer, seed=2)
    expected = _onnx_run(layer, x, lengths, state)
    _compare(layer, expected, layer.run(x, lengths=lengths, initial_state=state), 1e-5)


# TensorFlow 1.

_TF1: Mapping[str, tuple[str, Mapping[str, Any], LstmEquations | GruEquations | RnnEquations]] = {
    "basic_lstm": (
        "BasicLSTMCell",
        {"forget_bias": 1.0},
        LstmEquations(constant=MappingProxyType({Gate.FORGET: 1.0})),
    ),
    "lstm": (
        "LSTMCell",
        {"forget_bias": 0.7},
        LstmEquations(constant=MappingProxyType({Gate.FORGET: 0.7})),
    ),
    "lstm_peephole_cell_clip": (
        "LSTMCell",
        {"forget_bias": 1.0, "use_peepholes": True, "cell_clip": 0.3},
        LstmEquations(constant=MappingProxyType({Gate.FORGET: 1.0}), cell_clip=0.3),
    ),
    "lstm_projection_clip": (
        "LSTMCell",
        {"forget_bias": 0.0, "num_proj": PROJECTED_SIZE, "proj_clip": 0.2},
        LstmEquations(projection_clip=0.2),
    ),
    "lstm_everything": (
        "LSTMCell",
        {
            "forget_bias": 1.0,
            "use_peepholes": True,
            "cell_clip": 0.4,
            "num_proj": PROJECTED_SIZE,
            "proj_clip": 0.3,
        },
        LstmEquations(constant=MappingProxyType({Gate.FORGET: 1.0}), cell_clip=0.4, projection_clip=0.3),
    ),
    "gru": ("GRUCell", {}, GruEquations(ResetPlace.BEFORE_PRODUCT)),
    "rnn": ("BasicRNNCell", {}, RnnEquations()),
}


def _tf1_layer(name: str) -> RecurrentLayer:
    _, arguments, equations = _TF1[name]
    return random_layer(
        equations.cell,
        seed=len(name),
        biases="input",
        peephole=bool(arguments.get("use_peepholes")),
        projection=arguments.get("num_proj"),
        equations=equations,
    )


def _tf1_variables(layer: RecurrentLayer) -> dict[str, Array]:
    weights = layer.directions[0].weights

    def rows(order: Sequence[Gate]) -> Array:
        return np.concatenate([joined(weights, p, order) for p in (Part.KERNEL, Part.RECURRENT)], axis=1).T

    def bias(order: Sequence[Gate]) -> Array:
        return joined(weights, Part.BIAS_INPUT, order)

    if layer.cell is Cell.GRU:
        gates, candidate = (Gate.RESET, Gate.UPDATE), (Gate.CANDIDATE,)
        return {
            "gates/kernel": rows(gates),
            "gates/bias": bias(gates),
            "candidate/kernel": rows(candidate),
            "candidate/bias": bias(candidate),
        }
    order = (Gate.INPUT, Gate.CELL, Gate.FORGET, Gate.OUTPUT) if layer.cell is Cell.LSTM else RNN_H
    variables = {"kernel": rows(order), "bias": bias(order)}
    for gate in PEEPHOLE_GATES if weights.has(Part.PEEPHOLE) else ():
        variables[f"w_{gate[0]}_diag"] = weights.peephole[gate]
    if weights.projection is not None:
        variables["projection/kernel"] = weights.projection.T
    return variables


@pytest.fixture(scope="module")
def tf1_results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Array]:
    """All cells, run in one process that has Keras 2."""
    folder = tmp_path_factory.mktemp("tf1")
    arrays: dict[str, Any] = {}
    for name, (kind, arguments, _) in _TF1.items():
        layer = _tf1_layer(name)
        states = _states(random_state(layer, seed=2))
        config = {"class": kind, "arguments": {"num_units": HIDDEN_SIZE, **arguments}, "states": len(states)}
        arrays |= {f"{name}/config": json.dumps(config), f"{name}/x": random_inputs(layer, seed=1)}
        arrays |= {f"{name}/lengths": LENGTHS.astype(np.int32)}
        arrays |= {f"{name}/state/{n}": state[0] for n, state in enumerate(states)}
        arrays |= {f"{name}/variable/{k}": v for k, v in _tf1_variables(layer).items()}
    np.savez(folder / "in.npz", **arrays)
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "tf1_cells.py"), "in.npz", "out.npz"]
    subprocess.run(command, check=True, env=environment, cwd=folder, capture_output=True)
    return dict(np.load(folder / "out.npz"))


@pytest.mark.parametrize("name", _TF1)
def test_tensorflow_1(name: str, tf1_results: Mapping[str, Array]) -> None:
    """forget_bias, peepholes, both clips, projection; GRU and RNN; outputs are zero beyond a length."""
    layer = _tf1_layer(name)
    kinds = 2 if layer.cell is Cell.LSTM else 1
    finals = [tf1_results[f"{name}/state/{n}"][np.newaxis] for n in range(kinds)]
    got = layer.run(random_inputs(layer, seed=1), lengths=LENGTHS, initial_state=random_state(layer, seed=2))
    _compare(layer, [tf1_results[f"{name}/y"], *finals], got, 1e-5)


# Haiku: the update gate that multiplies the candidate, and a constant on the forget gate.


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_haiku(cell: str) -> None:
    """hk.LSTM adds 1 to the forget gate; hk.GRU computes (1 - z) h + z a with r * h before the product."""
    import haiku
    import jax

    constant = MappingProxyType({Gate.FORGET: 1.0})
    equations = {
        "lstm": LstmEquations(constant=constant),
        "gru": GruEquations(ResetPlace.BEFORE_PRODUCT, UpdateKeeps.CANDIDATE),
        "rnn": RnnEquations(RELU),
    }[cell]
    layer = random_layer(
        cell, seed=3, biases="two" if cell == "rnn" else "input", equations=equations, scale=0.7
    )
    weights = layer.directions[0].weights
    x, state = random_inputs(layer, seed=1), random_state(layer, seed=2)

    def rows(part: Part, order: Sequence[Gate]) -> Array:
        return joined(weights, part, order).T

    if cell == "lstm":
        order = (Gate.INPUT, Gate.CELL, Gate.FORGET, Gate.OUTPUT)
        kernel = np.concatenate([rows(Part.KERNEL, order), rows(Part.RECURRENT, order)])
        parameters: Any = {"lstm/linear": {"w": kernel, "b": joined(weights, Part.BIAS_INPUT, order)}}
        start: Any = haiku.LSTMState(state[0][0], state[1][0])
    elif cell == "gru":
        parameters = {
            "gru": {
                "w_i": rows(Part.KERNEL, GRU_ZRN),
                "w_h": rows(Part.RECURRENT, GRU_ZRN),
                "b": joined(weights, Part.BIAS_INPUT, GRU_ZRN),
            }
        }
        start = state[0]
    else:
        parameters = {
            f"vanilla_rnn/{name}": {"w": rows(part, RNN_H), "b": joined(weights, bias, RNN_H)}
            for name, part, bias in (
                ("linear", Part.KERNEL, Part.BIAS_INPUT),
                ("linear_1", Part.RECURRENT, Part.BIAS_RECURRENT),
            )
        }
        start = state[0]

    def unroll(sequence: Any, initial: Any) -> Any:
        core = {"lstm": haiku.LSTM, "gru": haiku.GRU, "rnn": haiku.VanillaRNN}[cell](HIDDEN_SIZE)
        return haiku.dynamic_unroll(core, sequence, initial, time_major=False)

    network = haiku.without_apply_rng(haiku.transform(unroll))
    shapes = jax.tree_util.tree_map(np.shape, network.init(jax.random.PRNGKey(0), x, start))
    assert shapes == jax.tree_util.tree_map(np.shape, parameters)
    y, final = network.apply(parameters, x, start)
    finals = (final.hidden, final.cell) if cell == "lstm" else (final,)
    expected = [y, *(np.asarray(part)[np.newaxis] for part in finals)]
    _compare(layer, expected, layer.run(x, initial_state=state), 1e-5)


# The trace.


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("directions", [("forward",), ("reverse",), BOTH], ids="_".join)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_trace_is_what_run_computes(cell: str, directions: tuple[str, ...], masked: bool) -> None:
    """Hidden states are the outputs, and each step follows from its gates and the state before."""
    layer = random_layer(cell, seed=6, directions=directions, dtype=np.float64)
    x, state = random_inputs(layer, seed=1), random_state(layer, seed=2)
    mask = random_mask(seed=3) if masked else None
    y, final = layer.run(x, mask=mask, initial_state=state)
    trace = layer.trace(x, mask=mask, initial_state=state)
    assert len(trace) == x.shape[1]
    suffixes = ("", "_reverse")[: len(directions)]
    hidden = np.concatenate([trace.values[f"hidden_state{s}"] for s in suffixes], axis=-1)
    valid = np.ones(x.shape[:2], bool) if mask is None else mask
    np.testing.assert_array_equal(np.where(valid[..., np.newaxis], hidden, 0), y)
    for d, (suffix, direction) in enumerate(zip(suffixes, directions, strict=True)):
        _check_steps(trace, suffix, direction, Cell(cell), valid, [part[d] for part in _states(state)])
        last = -1 if direction == "forward" else 0
        np.testing.assert_array_equal(trace.values[f"hidden_state{suffix}"][:, last], _states(final)[0][d])


def _check_steps(
    trace: Trace, suffix: str, direction: str, cell: Cell, valid: Array, state: list[Array]
) -> None:
    order = range(len(trace)) if direction == "forward" else reversed(range(len(trace)))
    for t in order:
        step = {
            name.removesuffix("_reverse"): v
            for name, v in trace[t].items()
            if name.endswith("_reverse") == bool(suffix)
        }
        row = valid[:, t, np.newaxis]
        gates = {gate: step[gate] for gate in GATES[cell]}
        for gate, value in gates.items():
            np.testing.assert_array_equal(np.isnan(value), ~np.broadcast_to(row, value.shape), err_msg=gate)
        if cell is Cell.LSTM:
            c = gates[Gate.FORGET] * state[1] + gates[Gate.INPUT] * gates[Gate.CELL]
            wanted = [gates[Gate.OUTPUT] * np.tanh(c), c]
        elif cell is Cell.GRU:
            z = gates[Gate.UPDATE]
            wanted = [z * state[0] + (1 - z) * gates[Gate.CANDIDATE]]
        else:
            wanted = [gates[Gate.HIDDEN]]
        names = ("hidden_state", "cell_state")
        for n, new in enumerate(wanted):
            state[n] = np.where(row, new, state[n])
            np.testing.assert_allclose(step[names[n]], state[n], rtol=0, atol=1e-14)


def test_a_trace_is_a_sequence() -> None:
    """Indexing, slicing, iteration; a step that is not there is an IndexError."""
    layer = random_layer("gru", seed=1)
    trace = layer.trace(random_inputs(layer, seed=1))
    assert len(list(trace)) == len(trace) == 6
    np.testing.assert_array_equal(trace[-1]["reset"], trace[5]["reset"])
    assert [step["update"].shape for step in trace[1:3]] == [(4, 5), (4, 5)]
    with pytest.raises(IndexError):
        trace[6]


# The first case: whose numbers are which.


def _first_layer(activation: Activation) -> RecurrentLayer:
    kernel, recurrent, bias = (
        np.split(np.array(values), 4, axis=-1)
        for values in (first_case.KERNEL, first_case.RECURRENT_KERNEL, first_case.BIAS)
    )
    weights = Weights.of(
        Cell.LSTM,
        kernel={gate: block.T for gate, block in zip(LSTM_IFCO, kernel, strict=True)},
        recurrent={gate: block.T for gate, block in zip(LSTM_IFCO, recurrent, strict=True)},
        bias_input=dict(zip(LSTM_IFCO, bias, strict=True)),
    )
    return RecurrentLayer(
        "lstm_1", (RecurrentDirection(Direction.FORWARD, LstmEquations(activation), weights),)
    )


_READINGS = {"sigmoid": SIGMOID, "hard_sigmoid": HARD_SIGMOID_KERAS2}


@pytest.mark.parametrize("reading", _READINGS)
def test_the_first_case(reading: str) -> None:
    """Columns are i, f, c, o; the final hidden states to eight digits, and in both Kerases."""
    layer = _first_layer(_READINGS[reading])
    x = np.array(first_case.INPUT)
    y, (h, _) = layer.run(x)
    expected = first_case.FINAL_HIDDEN_STATE[reading]
    assert np.round(h[0, 0], 8).tolist() == list(expected)
    np.testing.assert_array_equal(layer.trace(x)[-1]["hidden_state"][0], y[0, -1])
    weights = [np.array(a) for a in (first_case.KERNEL, first_case.RECURRENT_KERNEL, first_case.BIAS)]
    keras, tf_keras = _library("keras"), _library("tf_keras")

    def keras2_hard_sigmoid(values: Any) -> Any:
        return keras.ops.clip(0.2 * values + 0.5, 0.0, 1.0)

    readings = {
        "keras": keras2_hard_sigmoid if reading == "hard_sigmoid" else "sigmoid",
        "tf_keras": reading,
    }
    for library in (keras, tf_keras):
        theirs = library.layers.LSTM(3, recurrent_activation=readings[library.__name__], dtype="float64")
        theirs(x)
        theirs.set_weights(weights)
        np.testing.assert_allclose(np.asarray(theirs(x))[0], expected, rtol=0, atol=6e-9)


def test_the_first_case_is_told_apart() -> None:
    """Another gate order, or the other slope, gives other numbers: the check above can fail."""
    x = np.array(first_case.INPUT)
    sigmoid = _first_layer(SIGMOID)
    wrong = {Gate.INPUT: Gate.INPUT, Gate.FORGET: Gate.CELL, Gate.CELL: Gate.FORGET, Gate.OUTPUT: Gate.OUTPUT}
    direction = sigmoid.directions[0]
    swapped = Weights(
        Cell.LSTM,
        {(part, wrong[gate]): block for (part, gate), block in direction.weights.items() if gate is not None},
    )
    for other in (
        sigmoid.with_directions([replace(direction, weights=swapped)]),
        _first_layer(HARD_SIGMOID_KERAS2),
        _first_layer(HARD_SIGMOID_KERAS3),
    ):
        h = other.run(x)[1][0]
        assert np.abs(h[0, 0] - first_case.FINAL_HIDDEN_STATE["sigmoid"]).max() > 1e-4


# What a call may not be.


def test_wrong_arguments_are_refused() -> None:
    """Shapes, lengths and masks that do not fit."""
    layer = random_layer("lstm", seed=1)
    x = random_inputs(layer, seed=1)
    for options, message in (
        ({"lengths": [7, 1, 1, 1]}, "the input has 6 steps"),
        ({"lengths": [1, 1]}, r"expected whole numbers \(4,\)"),
        ({"lengths": [1.0] * 4}, "whole numbers"),
        ({"mask": np.ones((4, 5), bool)}, r"expected \(4, 6\)"),
        ({"lengths": LENGTHS, "mask": np.ones((4, 6), bool)}, "not both"),
        ({"initial_state": np.zeros((1, 4, 5))}, "initial state"),
        ({"initial_state": (np.zeros((1, 4, 5)), np.zeros((1, 4, 4)))}, "initial state"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.run(x, **options)
    for wrong in (x[0], x[:, :, :2]):
        with pytest.raises(ValueError, match="takes inputs"):
            layer.run(wrong)


def test_trained_initial_states_are_the_start() -> None:
    """They act where no initial state is given, and give way to one."""
    layer = random_layer("lstm", seed=1, initial_state=True, directions=BOTH)
    x = random_inputs(layer, seed=1)
    states = [
        np.stack([np.tile(d.weights[part, None].read(), (4, 1)) for d in layer.directions])
        for part in (Part.INITIAL_HIDDEN, Part.INITIAL_CELL)
    ]
    np.testing.assert_array_equal(layer.run(x)[0], layer.run(x, initial_state=tuple(states))[0])
    zeros = tuple(np.zeros_like(s) for s in states)
    assert np.abs(layer.run(x)[0] - layer.run(x, initial_state=zeros)[0]).max() > 1e-3


def test_biases_of_one_gate_only() -> None:
    """A bias that is absent is not there; the others count."""
    layer = random_layer("lstm", seed=1)
    direction = layer.directions[0]
    kept = direction.weights.mapped(
        lambda key, block: None if key[0] is Part.BIAS_RECURRENT and key[1] is not Gate.CELL else block
    )
    summed = {gate: bias_sum(kept, gate) for gate in LSTM_IFCO}
    one = Weights.of(Cell.LSTM, kernel=kept.kernel, recurrent=kept.recurrent, bias_input=summed)
    x = random_inputs(layer, seed=1)
    a = layer.with_directions([replace(direction, weights=kept)]).run(x)[0]
    b = layer.with_directions([replace(direction, weights=one)]).run(x)[0]
    assert_close(a, b, tolerance=1e-6)
