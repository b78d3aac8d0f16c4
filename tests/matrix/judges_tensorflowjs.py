"""TensorFlow.js in node as a judge: models that it saved itself, and models that it loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests import tensorflowjs_judge as node
from tests.matrix.judges import HIDDEN, INPUT, Case, Judge, Sample, inputs, resets_before

Array = np.ndarray[Any, Any]
CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}


def layer(case: Case, number: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": f"rnn_{number}", "units": HIDDEN, "return_sequences": True, "use_bias": case.bias,
    }  # fmt: skip
    if case.cell != "rnn":
        config["recurrent_activation"] = "sigmoid"
    if case.option == "relu":
        config["activation"] = "relu"
    own = {"class_name": CLASSES[case.cell], "config": config}
    if case.bidirectional:
        own = {
            "class_name": "Bidirectional",
            "config": {"name": f"both_{number}", "layer": own, "merge_mode": "concat"},
        }
    if number == 0:
        own["config"]["batch_input_shape"] = [None, None, INPUT]
    return own


def make_tensorflowjs(case: Case, folder: Path) -> Sample:
    layers = [layer(case, number) for number in range(case.layers)]
    path = node.saved(
        {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}, folder / "source"
    )
    x = inputs(case)
    return Sample(path, x, run_tensorflowjs(path, x, case))


def run_tensorflowjs(path: Path, x: Array, case: Case) -> Array:
    return node.ran(path, x)[0]


def weights_tensorflowjs(path: Path) -> list[Array]:
    """Every weight, in the order of the manifest."""
    found = []
    for group in json.loads(path.read_text())["weightsManifest"]:
        data, at = b"".join((path.parent / name).read_bytes() for name in group["paths"]), 0
        for entry in group["weights"]:
            count = int(np.prod(entry["shape"]))
            found.append(np.frombuffer(data, "<f4", count, at).reshape(entry["shape"]))
            at += 4 * count
    return found


def refused(case: Case, source: str) -> bool:
    """What TensorFlow.js cannot load."""
    if case.option in ("peephole", "clip", "hard_sigmoid"):
        return True
    if case.option == "reverse" and source != "keras":
        return True  # only Keras has the output in the order of the visits, as TensorFlow.js has
    return case.cell == "gru" and not resets_before(case, source)


JUDGES = (
    Judge(
        "tensorflowjs", ".json",
        {"lstm": ("plain", "relu"), "gru": ("reset_before",), "rnn": ("plain", "relu")},
        make_tensorflowjs, run_tensorflowjs, weights_tensorflowjs,
    ),
)  # fmt: skip
