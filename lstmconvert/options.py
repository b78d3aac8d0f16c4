"""What a user may say about a source or a target, as values that travel as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lstmconvert.values import dataclass

CustomLayer = Callable[[dict[str, Any], dict[str, Any]], Any]
"""Makes a layer or operation of an unknown class from its configuration and weights."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the source itself may not say.

    Attributes:
        framework: name of the framework that wrote the source, or ``None`` to find out.
        mapping: a mapping file of the user's own.
        keras_version: release of Keras that trained the model, such as ``"2.2"``.
        recurrent_activation: activation of the LSTM and GRU gates (``"sigmoid"``, ``"hard_sigmoid"``).
        activation: activation of the cell and hidden state, or of a simple RNN (``"tanh"``, ``"relu"``).
        reset_after: the GRU form: ``True``, ``False``, or ``None`` when the source says it.
        layer: name of the one recurrent layer that is wanted.
        custom_layers: for layers of the source's own classes: class name to a function that takes the
            layer's configuration and its weights (name to ``Lazy``) and returns an ``Operation``, an
            ``OperationLayer`` or a ``RecurrentLayer``.
        forget_bias: what an LSTM adds to its forget gate at run time, where the file does not say it.
        cell_clip, projection_clip: bounds on cell state and projection, where the file does not say them, or
            in place of those that its converter put there.
        architecture: a description of how the modules of a state_dict follow each other.
    """

    framework: str | None = None
    mapping: Path | None = None
    keras_version: str | None = None
    recurrent_activation: str | None = None
    activation: str | None = None
    reset_after: bool | None = None
    layer: str | None = None
    custom_layers: Mapping[str, CustomLayer] = field(default_factory=lambda: MappingProxyType({}))
    forget_bias: float | None = None
    cell_clip: float | None = None
    projection_clip: float | None = None
    architecture: Path | None = None


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How the target is to be written.

    Attributes:
        opset: ONNX opset version, or ``None`` for the default.
        states: initial and final states become inputs and outputs.
        dtype: NumPy name of the dtype of the written weights, or ``None`` to keep the source's.
        weights_only: leave out the generated module.
        mapping: the mapping file of a target that is nothing but named tensors.
    """

    opset: int | None = None
    states: bool = False
    dtype: str | None = None
    weights_only: bool = False
    mapping: Path | None = None
