"""TensorFlow 1 as a judge: its cells, in a process of their own (``tests/tensorflow1_runtime.py``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.matrix.judges import HIDDEN, Case, Judge, Sample, inputs
from tests.tensorflow1_runtime import RUNTIME

_CELLS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("lstm", "plain"): ("BasicLSTMCell", {}),
    ("lstm", "no_forget_bias"): ("LSTMCell", {"forget_bias": 0.0, "name": "cudnn_compatible_lstm_cell"}),
    ("lstm", "peephole"): ("LSTMCell", {"use_peepholes": True}),
    ("lstm", "projection"): ("LSTMCell", {"num_proj": 2}),
    ("gru", "plain"): ("GRUCell", {}),
    ("gru", "reset_after"): ("CudnnCompatibleGRUCell", {}),
    ("rnn", "plain"): ("BasicRNNCell", {}),
    ("rnn", "relu"): ("BasicRNNCell", {"activation": "relu", "name": "relu_rnn_cell"}),
}


def make_tensorflow1(case: Case, folder: Path) -> Sample:
    """A checkpoint of MultiRNNCell, or of bidirectional_dynamic_rnn as stack_bidirectional_dynamic_rnn calls it."""
    name, arguments = _CELLS[case.cell, case.option]
    cell = {"class": name, "arguments": {"num_units": HIDDEN, **arguments}}
    several = case.layers > 1
    if case.bidirectional:
        way, scope = ("stack_both", "stack_bidirectional_rnn") if several else ("both", "bidirectional_rnn")
    else:
        way, scope = ("multi" if several else "plain"), "rnn"
    x = inputs(case)
    prefix = folder / "source"
    y = RUNTIME.make(prefix, [{"scope": scope, "way": way, "cells": [cell] * case.layers}], x, case.seed)
    return Sample(folder / "source.index", x, y)


def run_tensorflow1(path: Path, x: np.ndarray[Any, Any], case: Case) -> np.ndarray[Any, Any]:
    """The output of the cells that the scopes stand for; the graph that merges directions is the user's."""
    merge = case.option if case.option in ("sum", "ave", "mul") else "concat"
    y: np.ndarray[Any, Any] = RUNTIME.run(path.with_suffix(""), x, merge)
    return y


def weights_tensorflow1(path: Path) -> list[np.ndarray[Any, Any]]:
    """Every variable, by name."""
    found = RUNTIME.variables(path.with_suffix(""))
    return [found[name] for name in sorted(found)]


def refused(case: Case, source: str) -> bool:
    """What a checkpoint of TensorFlow 1 cannot hold: clips, other activations of gates, one reverse direction."""
    if source in ("onnx", "openvino", "tflite", "tensorflowjs") and case.option == "relu":
        return case.cell != "rnn"
    return case.option in ("hard_sigmoid", "reverse", "clip")


JUDGES = (
    Judge(
        "tensorflow1", ".index",
        {
            "lstm": ("plain", "no_forget_bias", "peephole", "projection"),
            "gru": ("plain", "reset_after"),
            "rnn": ("plain", "relu"),
        },
        make_tensorflow1, run_tensorflow1, weights_tensorflow1,
        lambda case: {"activation": "relu"} if case.option == "relu" and case.cell == "rnn" else {},
        always_bias=True,
        weights_only=True,
    ),
)  # fmt: skip
