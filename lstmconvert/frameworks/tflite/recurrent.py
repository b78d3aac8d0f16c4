"""The fused recurrent operators as layers.

What they compute was found by running LiteRT: the gates are sigmoids, the fused activation is that of the
cell gate and of the hidden state, the cell is clipped before the output gate's peephole sees it, and without
an input gate that gate is one minus the forget gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstmconvert import layout as layouts
from lstmconvert import mapping
from lstmconvert.activations import LINEAR
from lstmconvert.canonical import Equations, LstmEquations, RecurrentDirection, RecurrentLayer, RnnEquations
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.tflite import kernels
from lstmconvert.frameworks.tflite.kernels import Known
from lstmconvert.gates import Cell
from lstmconvert.options import ReadOptions
from lstmconvert.reading_notes import Note, dequantised, note
from lstmconvert.tensors import Lazy

CELLS: Mapping[str, Cell] = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": Cell.LSTM,
    "BIDIRECTIONAL_SEQUENCE_LSTM": Cell.LSTM,
    "UNIDIRECTIONAL_SEQUENCE_RNN": Cell.RNN,
    "BIDIRECTIONAL_SEQUENCE_RNN": Cell.RNN,
}
STATES = ("state", "cell_state")


def operands(operator: Mapping[str, Any]) -> dict[str, int]:
    """The inputs of a recurrent operator that are there, by what they are.

    Raises:
        BadFile: when it has more inputs than its kernel.
    """
    names = kernels.INPUTS[operator["type"]]
    if len(operator["inputs"]) > len(names) or not operator["inputs"] or operator["inputs"][0] < 0:
        raise BadFile("unexpected number of inputs", place=operator["type"], found=len(operator["inputs"]))
    return {
        name: position for name, position in zip(names, operator["inputs"], strict=False) if position >= 0
    }


def layer_of(
    name: str,
    operator: Mapping[str, Any],
    given: Mapping[str, Known | None],
    options: ReadOptions,
    notes: list[Note],
) -> RecurrentLayer:
    """The layer of an operator; ``given`` are its operands that are not the input or states.

    Raises:
        BadFile: when its tensors do not fit together.
        UnsupportedSource: when it has what is not known here, or weights that are no constants.
    """
    place = f"layer {name!r}"
    cell = CELLS[operator["type"]]
    _check(operator, given, place)
    tensors: dict[str, Lazy] = {}
    for key, value in given.items():
        if value is None:
            raise UnsupportedSource(
                f"{key} is not a constant, or of a type that is not read",
                place=place,
                remedy="Convert the model again with its weights as float32, float16 or 8 bits.",
            )
        if value.quantised:
            notes.append(dequantised(name, key, value.quantised, value.scale))
        if value.tensor.dtype != np.float32:
            raise UnsupportedSource(f"{key} is not of float32", place=place, found=value.tensor.dtype)
        tensors[key] = value.tensor
    ways = ("fw_", "bw_") if operator["type"].startswith("BIDIRECTIONAL") else ("",)
    for way in ways:
        bias = tensors.pop(f"{way}projection_bias", None)
        if bias is not None and np.any(bias.read()):
            raise UnsupportedSource("a projection with a bias is not read", place=place)
        if cell is Cell.LSTM:
            _uncouple(way, tensors, name, notes)
    described = mapping.load("tflite").layouts[str(cell)]
    try:
        weights = layouts.read_weights(cell, described, tensors)
    except BadFile as error:
        raise BadFile(error.message, place=f"{place}, {error.place}", found=error.found) from error
    if len(weights) != len(ways):
        raise BadFile("the weights are of another number of directions", place=place, found=len(weights))
    projected = any(key.endswith("projection_weights") for key in tensors)
    equations = _equations(operator["options"], cell, options, name, notes, projected=projected)
    return RecurrentLayer(
        name,
        tuple(RecurrentDirection(direction, equations, found) for direction, found in weights.items()),
        origin=(name,),
        stored_gates=described.gates,
    )


def _check(operator: Mapping[str, Any], given: Mapping[str, Any], place: str) -> None:
    for key in given:
        if "layer_norm" in key:
            raise UnsupportedSource(
                "an LSTM with layer normalization inside its gates is not read", place=place
            )
        if "aux" in key:
            raise UnsupportedSource("a second input of a bidirectional layer is not read", place=place)
    if operator["options"].get("diagonal_recurrent_tensors"):
        raise UnsupportedSource("recurrent weights that are diagonals are not read", place=place)


def _uncouple(way: str, tensors: dict[str, Lazy], name: str, notes: list[Note]) -> None:
    """Without an input gate it is one minus the forget gate: sigma(-a) of that gate's a."""
    parts = ("input_to_{}_weights", "recurrent_to_{}_weights", "cell_to_{}_weights", "{}_gate_bias")
    if way + parts[0].format("input") in tensors:
        return
    for part in parts:
        own, forget = way + part.format("input"), tensors.get(way + part.format("forget"))
        if own in tensors:
            raise BadFile("of the input gate some tensors are there and some are missing", place=name)
        if forget is not None:
            tensors[own] = forget.map(np.negative, forget.shape)
    notes.append(
        note(name, "write_out_input_gate", "the input gate is one minus the forget gate, and was written out")
    )


def _equations(
    told: Mapping[str, Any],
    cell: Cell,
    options: ReadOptions,
    name: str,
    notes: list[Note],
    *,
    projected: bool,
) -> Equations:
    place = f"layer {name!r}"
    function = kernels.activation(told.get("activation", 0), place)
    if cell is Cell.RNN:
        return RnnEquations(function)
    if function == LINEAR:
        raise UnsupportedSource(
            "an LSTM without a fused activation is not read",
            place=place,
            found="LiteRT does not make its cell linear, but takes what lies in a buffer",
            expected="TANH, RELU or RELU6",
        )
    clips = [told.get("cell_clip", 0.0), told.get("proj_clip", 0.0) if projected else 0.0]
    if not all(np.isfinite(clip) and clip >= 0 for clip in clips):
        raise BadFile("a clip is not a bound", place=place, found=clips)
    bounds = [clip or None for clip in clips]
    if options.cell_clip is not None and bounds[0] is not None:
        text = (
            f"the file bounds the cell state by {bounds[0]:g}; {options.cell_clip:g} stands for it as asked"
        )
        notes.append({**note(name, "cell_clip", text), "exact": False})
        bounds[0] = None if np.isinf(options.cell_clip) else options.cell_clip
    return LstmEquations(
        cell_activation=function,
        hidden_activation=function,
        cell_clip=bounds[0],
        projection_clip=bounds[1],
    )


def output_count(operator: Mapping[str, Any]) -> int:
    """How many outputs an operator has to have."""
    both = operator["type"].startswith("BIDIRECTIONAL")
    return 2 if both and not operator["options"].get("merge_outputs") else 1


def is_time_major(operator: Mapping[str, Any]) -> bool:
    """Whether it takes (time, batch, features)."""
    default = operator["type"] == "BIDIRECTIONAL_SEQUENCE_LSTM"
    return bool(operator["options"].get("time_major", default))


def state_names(names: Sequence[str]) -> list[str]:
    """Those of an operator's operands that are states."""
    return [name for name in names if name.removeprefix("fw_").removeprefix("bw_") in STATES]
