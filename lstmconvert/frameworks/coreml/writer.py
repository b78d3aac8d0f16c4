"""Writes stacks of recurrent layers as Core ML's networks and programs."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import dialect, lowering, mapping, single_stack
from lstmconvert import layout as layouts
from lstmconvert.activations import HARD_SIGMOID_KERAS2, SIGMOID, TANH, Activation
from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    RecurrentLayer,
    RnnEquations,
)
from lstmconvert.containers import Archive
from lstmconvert.errors import NotRepresentable, Usage
from lstmconvert.frameworks.coreml.forms import FORMS, LAYOUTS, NAME, NO_CLIP, WRITTEN_FOR_NONE
from lstmconvert.gates import Cell, Part
from lstmconvert.mapping import Layout
from lstmconvert.model import Model
from lstmconvert.options import WriteOptions
from lstmconvert.tensors import Lazy

_KINDS_WRITTEN = MappingProxyType({SIGMOID: "sigmoid", TANH: "tanh", HARD_SIGMOID_KERAS2: "sigmoidHard"})


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """One stack of recurrent layers, as a neural network (``.mlmodel``) or as a program (``.mlpackage``).

    Raises:
        NotRepresentable: where the model is something else, or the form does not hold a layer.
        Usage: when an option cannot be heeded.
    """
    if container not in FORMS:
        raise Usage("Core ML models are written to .mlmodel and .mlpackage", found=container)
    if options.opset is not None or options.states:
        raise Usage(
            "Core ML models have no opset, and their states are inputs as it is",
            remedy="Leave --opset and --states out.",
        )
    form = FORMS[container]
    described = mapping.load(NAME)
    _, layers = single_stack.layers_of(model, "Core ML")
    entries: list[dict[str, Any]] = []
    tensors: dict[str, Lazy] = {}
    for layer in layers:
        lowering.refuse_initial_states(layer, described)
        name = _new_name(layer.name, form, {entry["name"] for entry in entries})
        kind = _kind(layer, form)
        layout = described.layouts[LAYOUTS[form, kind]]
        _refuse(layer, layout, form)
        weights = {direction.direction: direction.weights for direction in layer.directions}
        tensors |= {f"{name}/{key}": tensor for key, tensor in layouts.pack(layout, weights).items()}
        said = _options_of_network(layer) if form == "network" else _options_of_program(layer)
        entries.append({"type": kind, "name": name, "options": said})
    return Archive(MappingProxyType(tensors), MappingProxyType({"form": form, "layers": entries}))


def _new_name(name: str, form: str, taken: set[str]) -> str:
    """A name that the form can hold and no other layer has."""
    allowed = r"[^A-Za-z0-9_]" if form == "program" else "/"
    name = re.sub(allowed, "_", name) or "_"
    if form == "program" and name[0].isdigit():
        name = f"_{name}"
    while name in taken:
        name += "_"
    return name


def _kind(layer: RecurrentLayer, form: str) -> str:
    if layer.cell is Cell.LSTM and form == "network":
        return "uniDirectionalLSTM" if len(layer.directions) == 1 else "biDirectionalLSTM"
    if layer.cell is Cell.RNN and form == "network":
        return "simpleRecurrent"
    return str(layer.cell)


def _refuse(layer: RecurrentLayer, layout: Layout, form: str) -> None:
    against = dialect.reasons(layout, layer)
    remedy = "Write a neural network (.mlmodel), or ONNX."
    if form == "network":
        remedy = "Convert to ONNX or PyTorch."
        clips = [getattr(d.equations, "cell_clip", None) for d in layer.directions]
        against += [
            f"a cell clip of {clip:g}: it stands for none" for clip in clips if clip and clip >= NO_CLIP
        ]
    elif layer.cell is Cell.GRU:
        against = ["Core ML's documents contradict each other about what the gru of a program computes"]
    if layer.dtype != np.float32:
        against, remedy = [f"weights of {layer.dtype}"], "Choose --dtype float32."
    if against:
        raise NotRepresentable(
            f"a {form} of Core ML cannot hold this layer",
            reasons=against,
            place=f"layer {layer.name!r}",
            remedy=remedy,
        )


def _options_of_network(layer: RecurrentLayer) -> dict[str, Any]:
    rows = [
        [{_KINDS_WRITTEN[one]: _numbers(one)} for one in _activations(d.equations)] for d in layer.directions
    ]
    biased = any(part is Part.BIAS_INPUT for part, _ in layer.directions[0].weights)
    flags = {"sequenceOutput": 1, "hasBiasVectors": int(biased)}
    options: dict[str, Any] = {
        "inputVectorSize": layer.input_size,
        "outputVectorSize": layer.hidden_size,
        "activations": rows[0],
    }
    if layer.cell is not Cell.LSTM:
        return {**options, **flags}
    if len(rows) == 2:
        options["activationsBackward"] = rows[1]
    equations = layer.directions[0].equations
    assert isinstance(equations, LstmEquations)
    flags["hasPeepholeVectors"] = int(any(part is Part.PEEPHOLE for part, _ in layer.directions[0].weights))
    clip = WRITTEN_FOR_NONE if equations.cell_clip is None else equations.cell_clip
    return {**options, "params": {**flags, "cellClipThreshold": clip}}


def _activations(equations: Equations) -> tuple[Activation, ...]:
    if isinstance(equations, LstmEquations):
        return equations.gate_activation, equations.cell_activation, equations.hidden_activation
    if isinstance(equations, GruEquations):
        return equations.gate_activation, equations.candidate_activation
    assert isinstance(equations, RnnEquations)
    return (equations.hidden_activation,)


def _numbers(activation: Activation) -> dict[str, float | None]:
    if activation == HARD_SIGMOID_KERAS2:
        return {"alpha": activation.alpha, "beta": activation.beta}
    return {}


def _options_of_program(layer: RecurrentLayer) -> dict[str, Any]:
    both = len(layer.directions) == 2
    options = {"direction": "bidirectional" if both else "forward", "output_sequence": True}
    names = [_KINDS_WRITTEN[one] for one in _activations(layer.directions[0].equations)]
    keys = {
        Cell.LSTM: ("recurrent_activation", "cell_activation", "activation"),
        Cell.RNN: ("activation",),
    }[layer.cell]
    return {**options, **dict(zip(keys, names, strict=True))}
