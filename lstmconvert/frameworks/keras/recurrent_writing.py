"""A recurrent layer of a model as a layer of Keras 3, inside a Bidirectional where it has two directions."""

from __future__ import annotations

from typing import Any

from lstmconvert import layout as layouts
from lstmconvert import lowering, mapping
from lstmconvert.canonical import (
    GruEquations,
    LstmEquations,
    MaskedOutput,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    Returns,
    ReverseOutput,
    RnnEquations,
)
from lstmconvert.frameworks.keras.layer_to_write import LayerToWrite, TensorToWrite, activation_name, refuse
from lstmconvert.frameworks.keras.recurrent import snake
from lstmconvert.gates import Cell, Direction, Part

_CLASSES = {Cell.LSTM: "LSTM", Cell.GRU: "GRU", Cell.RNN: "SimpleRNN"}
_MERGES = {
    Merge.CONCAT: "concat",
    Merge.SUM: "sum",
    Merge.MULTIPLY: "mul",
    Merge.AVERAGE: "ave",
    Merge.SEPARATE: None,
}


def recurrent(layer: RecurrentLayer, *, masked: bool, stated: bool, dtype: str) -> LayerToWrite:
    """A recurrent layer, inside a Bidirectional where it has two directions.

    Args:
        layer: it; fitted to Keras by lowering.
        masked: whether a call of it heeds a mask.
        stated: whether a call of it has an initial state.
        dtype: of the weights.

    Raises:
        NotRepresentable: naming what Keras lacks.
    """
    _check_recurrent(layer, masked=masked, stated=stated)
    layout = lowering.layout_for(mapping.load("keras"), layer)
    class_name = _CLASSES[layer.cell]
    cell = f"{snake(class_name)}_cell"

    def tensors(direction: RecurrentDirection, path: str, name: str) -> list[TensorToWrite]:
        packed = layouts.pack(layout, {Direction.FORWARD: direction.weights})
        return [TensorToWrite(path, f"{name}{cell}/{local}", lazy) for local, lazy in packed.items()]

    if len(layer.directions) == 1:
        (direction,) = layer.directions
        config = _recurrent_config(layer, direction, masked=masked)
        return LayerToWrite(class_name, config, tuple(tensors(direction, "cell", "")))
    inner = []
    written: list[TensorToWrite] = []
    for side, direction in zip(("forward", "backward"), layer.directions, strict=True):
        name = f"{side}_{snake(class_name)}"
        config = {
            "name": name,
            "trainable": True,
            "dtype": dtype,
            **_recurrent_config(layer, direction, masked=masked),
        }
        inner.append(
            {"module": "keras.layers", "class_name": class_name, "config": config, "registered_name": None}
        )
        written += tensors(direction, f"{side}_layer/cell", f"{name}/")
    config = {"layer": inner[0], "backward_layer": inner[1], "merge_mode": _MERGES[layer.sequence.merge]}
    return LayerToWrite("Bidirectional", config, tuple(written))


def _check_recurrent(layer: RecurrentLayer, *, masked: bool, stated: bool) -> None:
    sequence = layer.sequence
    against = []
    for direction in layer.directions:
        if direction.weights.has(Part.INITIAL_HIDDEN) or direction.weights.has(Part.INITIAL_CELL):
            against.append("no trained initial state")
    if masked and len(layer.directions) == 2:
        zero = sequence.masked_output is MaskedOutput.ZERO
        if sequence.returns is Returns.SEQUENCE and not zero:
            against.append("the outputs of a Bidirectional at masked steps are zero")
        if sequence.returns is Returns.LAST and zero:
            against.append("the last output of a Bidirectional is that of the last valid step")
    if masked and stated and sequence.masked_output is MaskedOutput.HOLD_STATE:
        against.append("outputs before the first valid step are zero, not the initial state")
    if against:
        raise refuse(layer.name, *dict.fromkeys(against))


def needs_flip(layer: RecurrentLayer) -> bool:
    """Whether the output has to be turned around: a lone go_backwards layer of Keras gives it as visited."""
    return (
        layer.direction == Direction.REVERSE
        and layer.sequence.returns is Returns.SEQUENCE
        and layer.sequence.reverse_output is ReverseOutput.INPUT_ORDER
    )


def _recurrent_config(
    layer: RecurrentLayer, direction: RecurrentDirection, *, masked: bool
) -> dict[str, Any]:
    equations, weights, sequence = direction.equations, direction.weights, layer.sequence
    config: dict[str, Any] = {"units": weights.hidden_size}
    match equations:
        case LstmEquations():
            config["activation"] = activation_name(equations.hidden_activation, layer.name)
            config["recurrent_activation"] = activation_name(equations.gate_activation, layer.name)
        case GruEquations():
            config["activation"] = activation_name(equations.candidate_activation, layer.name)
            config["recurrent_activation"] = activation_name(equations.gate_activation, layer.name)
            config["reset_after"] = equations.reset is ResetPlace.AFTER_PRODUCT
        case RnnEquations():
            config["activation"] = activation_name(equations.hidden_activation, layer.name)
    config["use_bias"] = weights.has(Part.BIAS_INPUT) or weights.has(Part.BIAS_RECURRENT)
    if isinstance(equations, LstmEquations):
        config["unit_forget_bias"] = True
    config["dropout"] = sequence.dropout
    config["recurrent_dropout"] = sequence.recurrent_dropout
    config["return_sequences"] = sequence.returns is Returns.SEQUENCE
    config["return_state"] = sequence.return_state
    config["go_backwards"] = direction.direction is Direction.REVERSE
    config["stateful"] = sequence.stateful
    if sequence.masked_output is MaskedOutput.ZERO and masked and len(layer.directions) == 1:
        config["zero_output_for_mask"] = True
    return config
