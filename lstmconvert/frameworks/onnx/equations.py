"""The equations of ONNX's recurrent operators: activations with their parameters, clips and forms.

Source: the documentation of the operators LSTM, GRU and RNN (onnx.ai, opset 1 to 22).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from lstmconvert.activations import SIGMOID, TANH, Activation
from lstmconvert.canonical import Coupling, Equations, GruEquations, LstmEquations, ResetPlace, RnnEquations
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.onnx.recurrent_node import Recurrent
from lstmconvert.gates import Cell
from lstmconvert.reading_notes import Note, note


def equations(node: Recurrent) -> tuple[list[Equations], list[Note]]:
    """The equations of each direction, and what was assumed."""
    count = len(node.directions)
    activations, assumed = _activations(node, count)
    clip = node.attributes.get("clip")
    if clip is not None and not clip > 0:
        raise BadFile("clip is not a positive number", place=node.name, found=clip)
    bound = None if clip is None else _written(clip)
    return [_equations_of(node, group, bound) for group in activations], assumed


def _equations_of(node: Recurrent, functions: tuple[Activation, ...], clip: float | None) -> Equations:
    for option, cell in (("input_forget", Cell.LSTM), ("linear_before_reset", Cell.GRU)):
        value = node.attributes.get(option, 0)
        if value not in (0, 1) or (value and node.cell is not cell):
            raise BadFile(f"{option} = {value} means nothing for {node.cell.upper()}", place=node.name)
    match node.cell:
        case Cell.LSTM:
            coupled = node.attributes.get("input_forget", 0)
            return LstmEquations(
                functions[0],
                functions[1],
                functions[2],
                coupling=Coupling.FORGET_IS_ONE_MINUS_INPUT if coupled else Coupling.NONE,
                preactivation_clip=clip,
            )
        case Cell.GRU:
            after = node.attributes.get("linear_before_reset", 0)
            return GruEquations(
                ResetPlace.AFTER_PRODUCT if after else ResetPlace.BEFORE_PRODUCT,
                gate_activation=functions[0],
                candidate_activation=functions[1],
                preactivation_clip=clip,
            )
        case Cell.RNN:
            return RnnEquations(functions[0], preactivation_clip=clip)


_DEFAULTS: Mapping[Cell, tuple[Activation, ...]] = MappingProxyType(
    {Cell.LSTM: (SIGMOID, TANH, TANH), Cell.GRU: (SIGMOID, TANH), Cell.RNN: (TANH,)}
)

_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "sigmoid": "sigmoid",
        "tanh": "tanh",
        "relu": "relu",
        "hardsigmoid": "hard_sigmoid",
        "affine": "affine",
        "scaledtanh": "scaled_tanh",
        "leakyrelu": "leaky_relu",
        "thresholdedrelu": "thresholded_relu",
        "elu": "elu",
        "softplus": "softplus",
        "softsign": "softsign",
    }
)

# "Default values are the same as of corresponding ONNX operators"; of Affine and ScaledTanh there are none.
_PARAMETERS: Mapping[str, tuple[float | None, ...]] = MappingProxyType(
    {
        "hard_sigmoid": (0.2, 0.5),
        "leaky_relu": (0.01,),
        "thresholded_relu": (1.0,),
        "elu": (1.0,),
        "affine": (None, None),
        "scaled_tanh": (None, None),
    }
)


def _activations(node: Recurrent, directions: int) -> tuple[list[tuple[Activation, ...]], list[Note]]:
    """The activations of each direction in the order of the specification."""
    defaults = _DEFAULTS[node.cell]
    names = node.attributes.get("activations")
    if not names:
        return [defaults] * directions, []
    if len(names) != len(defaults) * directions:
        raise BadFile(
            "unexpected number of activations",
            place=node.name,
            found=", ".join(names),
            expected=f"{len(defaults)} for each of {directions} direction(s)",
        )
    parameters = [iter(node.attributes.get(key) or ()) for key in ("activation_alpha", "activation_beta")]
    assumed: list[Note] = []
    functions = [_activation(node, name, parameters, assumed) for name in names]
    return [tuple(functions[n : n + len(defaults)]) for n in range(0, len(functions), len(defaults))], assumed


def _activation(
    node: Recurrent, name: str, parameters: list[Iterator[float]], assumed: list[Note]
) -> Activation:
    """One activation, taking its parameters from the front of what is left of the lists."""
    kind = _NAMES.get(name.lower())
    if kind is None:
        raise UnsupportedSource(
            "unknown activation", place=node.name, found=name, expected=f"one of {', '.join(_NAMES)}"
        )
    values = []
    for default, given, key in zip(_PARAMETERS.get(kind, ()), parameters, ("alpha", "beta"), strict=False):
        stated = next(given, None)
        value = default if stated is None else stated
        if value is None:
            raise UnsupportedSource(
                f"the activation {name} has no {key}, and ONNX defines no default",
                place=node.name,
                expected=f"activation_{key} in the node",
                remedy="Runtimes disagree (ONNX Runtime takes 0): write the value into the model.",
            )
        if kind == "thresholded_relu" and not node.attributes.get("activation_alpha"):
            text = "ThresholdedRelu without alpha was read with ONNX's default of 1; ONNX Runtime takes 0"
            assumed.append(note(node.name, "activation_parameters", text))
        elif stated is None:
            text = f"{key} of {name} is left out: the operator's default {value} is written out"
            assumed.append(note(node.name, "activation_parameters", text))
        values.append(_written(value))
    return Activation(kind, *values)


def _written(value: float) -> float:
    """The number that was meant by a float32: 0.2 is stored as 0.200000003, 1/6 as 0.166666672."""
    single = np.float32(value)
    if single == np.float32(1 / 6):
        return 1 / 6
    return float(str(single))
