"""The inputs of the recurrent kernels by position, their options' numbers, and constants as floating numbers.

Source: the lists of input tensors in LiteRT's kernels (lstm_shared.h, bidirectional_sequence_lstm.cc,
unidirectional_sequence_rnn.cc, bidirectional_sequence_rnn.cc) and schema.fbs, release 2.3.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.activations import LINEAR, TANH, Activation
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

ACTIVATIONS: Mapping[int, Activation] = MappingProxyType(
    {
        0: LINEAR, 1: Activation("relu"), 2: Activation("hard_tanh"), 3: Activation("clipped_relu", 6.0),
        4: TANH,
    }
)  # fmt: skip

_TO = tuple(
    f"{source}_to_{gate}"
    for source in ("input", "recurrent", "cell")
    for gate in ("input", "forget", "cell", "output")
    if (source, gate) != ("cell", "cell")
)
_WEIGHTS = (
    *(f"{name}_weights" for name in _TO),
    *(f"{gate}_gate_bias" for gate in ("input", "forget", "cell", "output")),
    "projection_weights",
    "projection_bias",
)
_AUXILIARY = tuple(f"{way}aux_{name}_weights" for way in ("fw_", "bw_") for name in _TO[:4])
_RNN = ("weights", "recurrent_weights", "bias", "state")

INPUTS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "UNIDIRECTIONAL_SEQUENCE_LSTM": (
            "input", *_WEIGHTS, "state", "cell_state",
            *(f"{gate}_layer_norm_coefficients" for gate in ("input", "forget", "cell", "output")),
        ),
        "BIDIRECTIONAL_SEQUENCE_LSTM": (
            "input", *(f"{way}{name}" for way in ("fw_", "bw_") for name in _WEIGHTS),
            "fw_state", "fw_cell_state", "bw_state", "bw_cell_state", "aux_input", *_AUXILIARY,
        ),
        "UNIDIRECTIONAL_SEQUENCE_RNN": ("input", *_RNN),
        "BIDIRECTIONAL_SEQUENCE_RNN": (
            "input", *(f"{way}{name}" for way in ("fw_", "bw_") for name in _RNN),
            "aux_input", "fw_aux_weights", "bw_aux_weights",
        ),
    }
)  # fmt: skip
"""What stands at each position; optional ones at the end may be left out."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A constant; ``quantised`` is the dtype of whole numbers it was stored in, ``scale`` what scaled it."""

    tensor: Lazy
    quantised: str = ""
    scale: str = ""


def constant(entry: Mapping[str, Any], tensor: Lazy) -> Known:
    """A constant of the graph; whole numbers that have scales are multiplied by them when they are read.

    Raises:
        BadFile: when the scales do not fit the tensor.
    """
    if "scale" not in entry or tensor.dtype.kind not in "iu":
        return Known(tensor)
    scales = np.array(entry["scale"], np.float32)
    zeros = np.array(entry["zero_point"], np.int64)
    axis = entry["axis"]
    if zeros.shape != scales.shape:
        raise BadFile("there are not as many zero points as scales", place=entry["name"])
    if scales.size > 1 and not (0 <= axis < len(tensor.shape) and tensor.shape[axis] == scales.size):
        raise BadFile(
            "the scales do not fit the tensor",
            place=entry["name"],
            found=f"{scales.size} scales along axis {axis} of {tensor.shape}",
        )
    if not np.all(np.isfinite(scales)) or np.any(scales <= 0):
        raise BadFile("a scale is not a positive number", place=entry["name"])
    if scales.size > 1:
        along = [1] * len(tensor.shape)
        along[axis] = scales.size
        scales, zeros = scales.reshape(along), zeros.reshape(along)

    def widened(array: Array) -> Array:
        if np.any(zeros):
            return (array.astype(np.int64) - zeros).astype(np.float32) * scales
        product: Array = array.astype(np.float32) * scales
        return product

    how = "one scale for the tensor"
    if scales.size > 1:
        how = "one scale a row" if axis == 0 else f"one scale for each index of axis {axis}"
    return Known(tensor.map(widened, tensor.shape, np.float32), tensor.dtype.name, how)


def activation(number: int, place: str) -> Activation:
    """The fused activation of a number.

    Raises:
        UnsupportedSource: when it is none that is known.
    """
    found = ACTIVATIONS.get(number)
    if found is None:
        raise UnsupportedSource("unknown fused activation", place=place, found=number)
    return found
