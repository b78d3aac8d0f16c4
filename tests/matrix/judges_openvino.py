"""OpenVINO as a judge: models that its own Python operations make and save, run on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.matrix.judges import HIDDEN, INPUT, Case, Judge, Sample, draw, inputs

# Its import would fork to send telemetry, which JAX's threads do not bear; without the package it does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

Array = np.ndarray[Any, Any]
_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def compiled(model: Any) -> Any:
    """A model compiled for the CPU, in float32 throughout."""
    import openvino

    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def sequence(case: Case, x: Any, rng: np.random.Generator, width: int) -> Any:
    """One recurrent operation on ``x``, and its directions side by side."""
    import openvino.opset13 as ops

    count = 2 if case.bidirectional else 1
    gates = _GATES[case.cell]
    direction = "bidirectional" if count == 2 else ("reverse" if case.option == "reverse" else "forward")
    after = case.option == "reset_after"
    shapes = (
        (count, gates * HIDDEN, width),
        (count, gates * HIDDEN, HIDDEN),
        (count, (gates + after) * HIDDEN),
    )
    weights = [ops.constant(draw(rng, shape)) for shape in shapes]
    sizes = ops.shape_of(x)
    batch, time = (ops.gather(sizes, ops.constant([n]), ops.constant(0)) for n in (0, 1))
    state = ops.broadcast(ops.constant(np.float32(0)), ops.concat([batch, ops.constant([count, HIDDEN])], 0))
    lengths = ops.broadcast(time, batch)
    arguments: dict[str, Any] = {"clip": 0.8 if case.option == "clip" else 0.0}
    if case.option == "relu":
        names = {"lstm": ["sigmoid", "relu", "relu"], "gru": ["sigmoid", "relu"], "rnn": ["relu"]}
        arguments["activations"] = names[case.cell]
    if case.cell == "lstm":
        node = ops.lstm_sequence(x, state, state, lengths, *weights, HIDDEN, direction, **arguments)
    elif case.cell == "gru":
        arguments["linear_before_reset"] = after
        node = ops.gru_sequence(x, state, lengths, *weights, HIDDEN, direction, **arguments)
    else:
        node = ops.rnn_sequence(x, state, lengths, *weights, HIDDEN, direction, **arguments)
    moved = ops.transpose(node.output(0), ops.constant([0, 2, 1, 3]))
    return ops.reshape(moved, ops.constant([0, 0, count * HIDDEN]), special_zero=True)


def make_openvino(case: Case, folder: Path) -> Sample:
    import openvino
    import openvino.opset13 as ops

    rng = np.random.default_rng(case.seed)
    x = ops.parameter([-1, -1, INPUT], np.float32, name="x")
    value, width = x, INPUT
    for _ in range(case.layers):
        value = sequence(case, value, rng, width)
        width = HIDDEN * (2 if case.bidirectional else 1)
    path = folder / "source.xml"
    openvino.save_model(openvino.Model([value], [x], "stack"), path, compress_to_fp16=False)
    given = inputs(case)
    return Sample(path, given, run_openvino(path, given, case))


def run_openvino(path: Path, x: Array, case: Case) -> Array:
    import openvino

    model = openvino.Core().read_model(path)
    return np.asarray(compiled(model)([x])[0]).copy()


def weights_openvino(path: Path) -> list[Array]:
    import openvino

    model = openvino.Core().read_model(path)
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name().endswith("Sequence") and node.get_type_name() != "ReverseSequence":
            count = node.get_input_size()
            found += [node.input_value(n).get_node().data.copy() for n in range(count - 3, count)]
    return found


def refused(case: Case, source: str) -> bool:
    """What its operations cannot hold."""
    return case.option in ("projection", "peephole", "hard_sigmoid")


JUDGES = (
    Judge(
        "openvino", ".xml",
        {
            "lstm": ("plain", "relu", "clip", "reverse"),
            "gru": ("plain", "reset_after", "clip"),
            "rnn": ("plain", "relu", "clip"),
        },
        make_openvino, run_openvino, weights_openvino,
        always_bias=True,
    ),
)  # fmt: skip
