"""The runtimes that the suite can run by itself; each is imported only when it is named.

What a runtime has no way to say (a clip in torch, a peephole in Keras) counts as refused, by a reason
given here; everything else it decides itself.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lstmconvert.conformance import as_onnx
from lstmconvert.conformance.cases import Case
from lstmconvert.gates import Cell, Direction, Gate
from lstmconvert.tensors import Array


class Refused(Exception):
    """The runtime cannot be told this."""


def _feeds(case: Case, proto: Any) -> dict[str, Array]:
    given, _ = as_onnx.tensors(case)
    return {i.name: given[i.name] for i in proto.graph.input}


def _onnxruntime() -> Callable[[Case], Mapping[str, Array]]:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4

    def run(case: Case) -> Mapping[str, Array]:
        proto = as_onnx.model(case)
        session = runtime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, _feeds(case, proto)), strict=True))

    return run


def _reference() -> Callable[[Case], Mapping[str, Array]]:
    reference: Any = importlib.import_module("onnx.reference")

    def run(case: Case) -> Mapping[str, Array]:
        proto = as_onnx.model(case)
        with np.errstate(all="ignore"):
            results = reference.ReferenceEvaluator(proto).run(None, _feeds(case, proto))
        return dict(zip([o.name for o in proto.graph.output], results, strict=True))

    return run


def _openvino() -> Callable[[Case], Mapping[str, Array]]:
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()

    def run(case: Case) -> Mapping[str, Array]:
        proto = as_onnx.model(case)
        read = core.read_model(proto.SerializeToString(), b"")
        # Without the hint some CPUs compute in bfloat16.
        compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = compiled(_feeds(case, proto))
        return {o.name: np.asarray(results[n]) for n, o in enumerate(proto.graph.output)}

    return run


def _only(case: Case) -> None:
    """Refuse what a framework's layers have no argument for."""
    facts = {"clip": case.clip, "input_forget": case.input_forget, "peephole": case.peephole}
    for name, value in facts.items():
        if value:
            raise Refused(f"its layers have no {name}")


def _torch() -> Callable[[Case], Mapping[str, Array]]:
    torch: Any = importlib.import_module("torch")
    order = {
        Cell.LSTM: (Gate.INPUT, Gate.FORGET, Gate.CELL, Gate.OUTPUT),
        Cell.GRU: (Gate.RESET, Gate.UPDATE, Gate.CANDIDATE),
        Cell.RNN: (Gate.HIDDEN,),
    }

    def run(case: Case) -> Mapping[str, Array]:
        _only(case)
        if case.direction == "reverse":
            raise Refused("its layers cannot run in reverse alone")
        if case.cell is Cell.GRU and not case.linear_before_reset:
            raise Refused("its GRU resets after the product only")
        if case.activations and case.cell is not Cell.RNN:
            raise Refused("its activations are fixed")
        named = {spelled[0] for spelled in case.activations}
        if len(named) > 1 or named - {"Tanh", "Relu"}:
            raise Refused("its RNN has tanh and relu only, the same for both directions")
        extra = {"nonlinearity": "relu" if named == {"Relu"} else "tanh"} if case.cell is Cell.RNN else {}
        kind = {Cell.LSTM: torch.nn.LSTM, Cell.GRU: torch.nn.GRU, Cell.RNN: torch.nn.RNN}[case.cell]
        module = kind(
            *case.sizes, batch_first=bool(case.layout), bias=case.bias,
            bidirectional=case.direction == "bidirectional", dtype=getattr(torch, case.dtype), **extra,
        )  # fmt: skip
        state = {}
        for weights, suffix in zip(case.weights(), ("", "_reverse"), strict=False):
            parts = {"weight_ih": weights.kernel, "weight_hh": weights.recurrent}
            if case.bias:
                parts |= {"bias_ih": weights.bias_input, "bias_hh": weights.bias_recurrent}
            for name, blocks in parts.items():
                joined = np.concatenate([blocks[g] for g in order[case.cell]]).astype(case.dtype)
                state[f"{name}_l0{suffix}"] = torch.from_numpy(joined)
        module.load_state_dict(state)
        given, _ = as_onnx.tensors(case)
        x: Any = torch.from_numpy(given["X"])
        # torch takes states (directions, batch, hidden) in either layout.
        states = [torch.from_numpy(np.ascontiguousarray(s.astype(case.dtype))) for s in case.inputs()[1]]
        initial: Any = (tuple(states) if len(states) == 2 else states[0]) if states else None
        if case.lengths:
            x = torch.nn.utils.rnn.pack_padded_sequence(x, list(case.lengths), enforce_sorted=False)
        with torch.no_grad():
            y, final = module(x, initial)
        if case.lengths:
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=case.time)
        hidden = case.sizes[1]
        split = y.numpy().reshape(*y.shape[:2], -1, hidden)
        finals = [f.numpy() for f in (final if isinstance(final, tuple) else (final,))]
        if case.layout:
            return {"Y": split, **_named([f.transpose(1, 0, 2) for f in finals])}
        return {"Y": split.transpose(0, 2, 1, 3), **_named(finals)}

    return run


def _named(finals: list[Array]) -> dict[str, Array]:
    return dict(zip(("Y_h", "Y_c"), finals, strict=False))


def _keras(package: str) -> Callable[[], Callable[[Case], Mapping[str, Array]]]:
    def made() -> Callable[[Case], Mapping[str, Array]]:
        os.environ.setdefault("KERAS_BACKEND", "tensorflow")
        keras: Any = importlib.import_module(package)

        def run(case: Case) -> Mapping[str, Array]:
            return _run_keras(keras, case, hard_slope=1 / 6 if package == "keras" else 0.2)

        return run

    return made


_KERAS_ORDER = {
    Cell.LSTM: (Gate.INPUT, Gate.FORGET, Gate.CELL, Gate.OUTPUT),
    Cell.GRU: (Gate.UPDATE, Gate.RESET, Gate.CANDIDATE),
    Cell.RNN: (Gate.HIDDEN,),
}
_KERAS_ACTIVATIONS = {
    "Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu", "Softplus": "softplus", "Softsign": "softsign",
}  # fmt: skip


def _keras_arguments(case: Case, hard_slope: float) -> dict[str, Any]:
    _only(case)
    if case.direction == "bidirectional" and case.activations:
        raise Refused("both directions of its Bidirectional share their activations")
    usual = {Cell.LSTM: ("Sigmoid", "Tanh", "Tanh"), Cell.GRU: ("Sigmoid", "Tanh"), Cell.RNN: ("Tanh",)}[
        case.cell
    ]
    spelled = case.activations or tuple((name, None, None) for name in usual)
    names = []
    for name, alpha, beta in spelled:
        if name in _KERAS_ACTIVATIONS:
            names.append(_KERAS_ACTIVATIONS[name])
        elif (
            name == "HardSigmoid"
            and abs((0.2 if alpha is None else alpha) - hard_slope) < 1e-9
            and beta in (None, 0.5)
        ):
            names.append("hard_sigmoid")
        else:
            raise Refused(f"its activations have no {name} with these parameters")
    arguments: dict[str, Any] = {"activation": names[-1], "use_bias": case.bias, "dtype": case.dtype}
    if case.cell is Cell.LSTM and names[1] != names[2]:
        raise Refused("its LSTM has one activation for the cell gate and the hidden state")
    if case.cell is not Cell.RNN:
        arguments["recurrent_activation"] = names[0]
    if case.cell is Cell.GRU:
        arguments["reset_after"] = case.linear_before_reset
    return arguments


def _run_keras(keras: Any, case: Case, hard_slope: float) -> Mapping[str, Array]:
    arguments = _keras_arguments(case, hard_slope)
    kind = {Cell.LSTM: keras.layers.LSTM, Cell.GRU: keras.layers.GRU, Cell.RNN: keras.layers.SimpleRNN}[
        case.cell
    ]
    # tf_keras takes states as tensors only.
    tensor = keras.ops.convert_to_tensor if hasattr(keras, "ops") else keras.backend.constant
    given, _ = as_onnx.tensors(case)
    x = given["X"] if case.layout else given["X"].transpose(1, 0, 2)
    mask = np.arange(case.time) < np.array(case.lengths)[:, np.newaxis] if case.lengths else None
    outputs, finals = [], []
    states = [s.astype(case.dtype) for s in case.inputs()[1]]
    for n, (direction, weights) in enumerate(zip(case.directions, case.weights(), strict=True)):
        backwards = direction is Direction.REVERSE
        layer = kind(
            case.sizes[1], return_sequences=True, return_state=True, go_backwards=backwards, **arguments
        )
        layer.build(x.shape)
        order = _KERAS_ORDER[case.cell]

        def joined(blocks: Mapping[Gate, Array], order: tuple[Gate, ...] = order) -> Array:
            return np.concatenate([blocks[g] for g in order]).T.astype(case.dtype)

        arrays = [joined(weights.kernel), joined(weights.recurrent)]
        if case.bias:
            one, two = joined(weights.bias_input), joined(weights.bias_recurrent)
            both = case.cell is Cell.GRU and case.linear_before_reset
            total = weights_sum(weights.bias_input, weights.bias_recurrent, order).astype(case.dtype)
            arrays.append(np.stack([one, two]) if both else total)
        layer.set_weights(arrays)
        told: dict[str, Any] = (
            {"initial_state": [tensor(s[n], dtype=case.dtype) for s in states]} if states else {}
        )
        if mask is not None:
            told["mask"] = mask
        y, *final = layer(x, **told)
        array = np.asarray(y)
        outputs.append(array[:, ::-1] if backwards else array)
        finals.append([np.asarray(f) for f in final])
    y = np.stack(outputs, axis=2)  # (batch, time, directions, hidden)
    if case.layout:
        held = [np.stack([f[k] for f in finals], axis=1) for k in range(len(finals[0]))]
        return {"Y": y, **_named(held)}
    held = [np.stack([f[k] for f in finals]) for k in range(len(finals[0]))]
    return {"Y": y.transpose(1, 2, 0, 3), **_named(held)}


def weights_sum(one: Mapping[Gate, Array], two: Mapping[Gate, Array], order: tuple[Gate, ...]) -> Array:
    """Both biases of every gate added, in float64."""
    total: Array = np.concatenate([one[g] + two[g] for g in order])
    return total


RUNTIMES: Mapping[str, Callable[[], Callable[[Case], Mapping[str, Array]]]] = {
    "onnxruntime": _onnxruntime,
    "onnx.reference": _reference,
    "openvino": _openvino,
    "torch": _torch,
    "keras": _keras("keras"),
    "tf_keras": _keras("tf_keras"),
}
"""Every runtime by the name of its package."""
