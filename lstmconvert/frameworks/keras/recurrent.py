"""Recurrent layers of Keras: their configs as canonical equations, their tensors as canonical weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmconvert import layout as layouts
from lstmconvert import mapping
from lstmconvert.activations import SIGMOID, TANH, Activation
from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    MaskedOutput,
    ResetPlace,
    Returns,
    RnnEquations,
    SequenceBehaviour,
    Weights,
)
from lstmconvert.errors import AmbiguousSource, BadFile, UnsupportedSource, Usage
from lstmconvert.frameworks.keras import activation_names
from lstmconvert.frameworks.keras.config import LayerSpec, read_layer
from lstmconvert.frameworks.keras.layer_options import LayerOptions
from lstmconvert.frameworks.keras.slots import Slot
from lstmconvert.frameworks.keras.version import Release
from lstmconvert.gates import GATES, Cell, Direction, Gate
from lstmconvert.mapping import Layout
from lstmconvert.options import ReadOptions
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

CELLS: Mapping[str, Cell] = {
    "LSTM": Cell.LSTM,
    "GRU": Cell.GRU,
    "SimpleRNN": Cell.RNN,
    "CuDNNLSTM": Cell.LSTM,
    "CuDNNGRU": Cell.GRU,
    "LSTMCell": Cell.LSTM,
    "GRUCell": Cell.GRU,
    "SimpleRNNCell": Cell.RNN,
}
"""The classes that are one cell."""

RECURRENT = frozenset({"LSTM", "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU", "RNN"})
"""The layers that loop over time."""


@dataclass(frozen=True, slots=True)
class Context:
    """What reading a config needs besides the config.

    Attributes:
        release: of Keras.
        options: what the user said.
    """

    release: Release
    options: ReadOptions


@dataclass(frozen=True, slots=True, eq=False)
class CellSpec:
    """One cell: its equations, size, and where its tensors are.

    Attributes:
        class_name: Keras's class.
        path: of its tensors inside the layer, in a ``.weights.h5``.
    """

    class_name: str
    equations: Equations
    units: int
    use_bias: bool
    path: str
    place: str

    @property
    def is_cudnn(self) -> bool:
        """Whether the tensors have cuDNN's packing."""
        return self.class_name.startswith("CuDNN")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Its tensors."""
        parts = ["kernel", "recurrent_kernel", *(["bias"] if self.use_bias else [])]
        return tuple(Slot(part, self.path, (part,)) for part in parts)

    def weights(self, tensors: Mapping[str, Lazy]) -> tuple[Weights, tuple[Gate, ...]]:
        """Canonical weights from the tensors under their keys, and the gates in stored order.

        Raises:
            BadFile: when shapes contradict each other or the config.
        """
        prefix = f"{self.path}/" if self.path else ""
        own: Mapping[str, Lazy] = {
            key.removeprefix(prefix): lazy for key, lazy in tensors.items() if key.startswith(prefix)
        }
        own = {key: lazy for key, lazy in own.items() if "/" not in key}
        chosen = self._layout(own)
        if self.is_cudnn:
            own = _unpack_cudnn(own, len(GATES[self.equations.cell]), self.place)
        try:
            weights = layouts.read_weights(self.equations.cell, chosen, own)[Direction.FORWARD]
        except BadFile as error:
            raise error.located(place=self.place) from None
        if weights.hidden_size != self.units:
            raise BadFile(
                "the weights have another number of units than the config",
                place=self.place,
                found=weights.hidden_size,
                expected=self.units,
            )
        return weights, chosen.gates

    def _layout(self, tensors: Mapping[str, Lazy]) -> Layout:
        known = mapping.load("keras").layouts
        if any(name.startswith(("W_", "U_", "b_")) for name in tensors) or "W" in tensors:
            return known[f"{self.equations.cell}_v1"]
        if isinstance(self.equations, LstmEquations):
            return known["cudnn_lstm" if self.is_cudnn else "lstm"]
        if isinstance(self.equations, RnnEquations):
            return known["rnn"]
        if self.is_cudnn:
            return known["cudnn_gru"]
        return known[
            "gru_reset_after" if self.equations.reset is ResetPlace.AFTER_PRODUCT else "gru_reset_before"
        ]


def _unpack_cudnn(tensors: Mapping[str, Lazy], gates: int, place: str) -> Mapping[str, Lazy]:
    """cuDNN's kernels as (gate hidden, input): each gate's block of columns is a flat (hidden, input) buffer.

    Source: ``preprocess_weights_for_loading`` of Keras 2, which transposes each block that way.
    """

    def unpacked(name: str, lazy: Lazy) -> Lazy:
        if name not in ("kernel", "recurrent_kernel"):
            return lazy
        if len(lazy.shape) != 2 or lazy.shape[1] % gates:
            raise BadFile(f"{name} has an unexpected shape", place=place, found=lazy.shape)
        rows, columns = lazy.shape
        units = columns // gates

        def move(array: Array) -> Array:
            blocks = [block.reshape(units, rows) for block in np.split(array, gates, axis=1)]
            return np.concatenate(blocks, axis=0)

        return lazy.map(move, (columns, rows))

    return {name: unpacked(name, lazy) for name, lazy in tensors.items()}


def read_cell(spec: LayerSpec, options: LayerOptions, context: Context, path: str) -> CellSpec:
    """The cell of a layer (or a cell on its own) from its options.

    Raises:
        UnsupportedSource: on a cell that is not one of Keras's own.
        AmbiguousSource: where the file does not say what the layer computes.
    """
    cell = CELLS.get(spec.class_name)
    if cell is None:
        raise UnsupportedSource(
            f"the cell {spec.class_name!r} is not one of Keras's own",
            place=options.place,
            expected=", ".join(CELLS),
        )
    units = options.whole("units")
    use_bias = options.flag("use_bias", True)
    if spec.class_name.startswith("CuDNN"):
        equations: Equations = (
            LstmEquations() if cell is Cell.LSTM else GruEquations(reset=ResetPlace.AFTER_PRODUCT)
        )
        return CellSpec(spec.class_name, equations, units, use_bias, "", options.place)
    hidden = _activation(options, context, "activation", "tanh", context.options.activation)
    if cell is Cell.RNN:
        return CellSpec(spec.class_name, RnnEquations(hidden), units, use_bias, path, options.place)
    gate = _activation(
        options,
        context,
        "recurrent_activation",
        _default_recurrent_activation(options, context),
        context.options.recurrent_activation,
    )
    if cell is Cell.LSTM:
        return CellSpec(
            spec.class_name, LstmEquations(gate, hidden, hidden), units, use_bias, path, options.place
        )
    reset_after = options.flag("reset_after", False)
    _check_option("--reset-after", context.options.reset_after, reset_after, options.place)
    reset = ResetPlace.AFTER_PRODUCT if reset_after else ResetPlace.BEFORE_PRODUCT
    equations = GruEquations(reset, gate_activation=gate, candidate_activation=hidden)
    return CellSpec(spec.class_name, equations, units, use_bias, path, options.place)


def _default_recurrent_activation(options: LayerOptions, context: Context) -> str:
    if "recurrent_activation" in options.spec.config or context.options.recurrent_activation is None:
        return context.release.default_recurrent_activation
    return context.options.recurrent_activation


def _activation(
    options: LayerOptions, context: Context, name: str, default: str, stated: str | None
) -> Activation:
    value = options.take(name, default)
    if stated is not None and isinstance(value, str):
        _check_option(f"--{name.replace('_', '-')}", stated, value, options.place)
    return activation_names.read(value, context.release.generation, options.place)


def _check_option(option: str, stated: Any, found: Any, place: str) -> None:
    if stated is not None and stated != found:
        raise Usage(
            f"{option} contradicts the file",
            place=place,
            found=stated,
            expected=f"{found}, as the file says",
            remedy=f"Leave {option} out.",
        )


@dataclass(frozen=True, slots=True, eq=False)
class LoopSpec:
    """A layer that loops over time: one cell, or a stack of them that run within each step.

    Attributes:
        cells: from the input on.
        backwards: whether it visits the last step first.
        sequence: its behaviour, with the outputs as a lone layer has them.
        time_major: whether it takes (time, batch, features).
    """

    cells: tuple[CellSpec, ...]
    backwards: bool
    sequence: SequenceBehaviour
    time_major: bool
    place: str

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Tensors of all cells, in order."""
        return tuple(slot for cell in self.cells for slot in cell.slots)


def read_loop(spec: LayerSpec, context: Context) -> LoopSpec:
    """A recurrent layer from its config.

    Raises:
        UnsupportedSource: naming the option or cell that cannot be read.
    """
    options = LayerOptions(spec)
    returns = Returns.SEQUENCE if options.flag("return_sequences") else Returns.LAST
    zero_output = options.flag("zero_output_for_mask")
    hold = MaskedOutput.HOLD_STATE if context.release.backend == "jax" else MaskedOutput.HOLD
    return_state = options.flag("return_state")
    sequence = SequenceBehaviour(
        returns=returns,
        return_state=return_state,
        masked_output=MaskedOutput.ZERO if zero_output else hold,
        stateful=options.flag("stateful"),
        dropout=activation_names.number(options.take("dropout", 0.0) or 0.0),
        recurrent_dropout=activation_names.number(options.take("recurrent_dropout", 0.0) or 0.0),
    )
    backwards = options.flag("go_backwards")
    time_major = options.flag("time_major")
    if options.flag("return_runtime"):
        raise UnsupportedSource("return_runtime is not supported", place=options.place)
    if options.take("num_constants", None):
        raise UnsupportedSource("constants given to the cell are not supported", place=options.place)
    if spec.class_name == "RNN":
        cells = _read_inner_cells(options.take("cell"), options, context)
    else:
        path = "" if spec.class_name.startswith("CuDNN") else "cell"
        cells = (read_cell(spec, options, context, path),)
    options.finish()
    return LoopSpec(cells, backwards, sequence, time_major, options.place)


def _read_inner_cells(data: Any, outer: LayerOptions, context: Context) -> tuple[CellSpec, ...]:
    spec = read_layer(data, inside=outer.place)
    if spec.class_name != "StackedRNNCells":
        return (_read_lone_cell(spec, context, "cell"),)
    options = LayerOptions(spec)
    inner = [read_layer(item, inside=options.place) for item in options.take("cells")]
    if options.flag("reverse_state_order"):
        raise UnsupportedSource("reverse_state_order is not supported", place=options.place)
    options.finish()
    counts: dict[str, int] = {}
    cells = []
    for cell in inner:
        base = snake(cell.class_name)
        number = counts.get(base, 0)
        counts[base] = number + 1
        cells.append(_read_lone_cell(cell, context, f"cell/cells/{base}{f'_{number}' if number else ''}"))
    return tuple(cells)


def _read_lone_cell(spec: LayerSpec, context: Context, path: str) -> CellSpec:
    options = LayerOptions(spec)
    for training_only in ("dropout", "recurrent_dropout"):
        options.take(training_only, 0.0)
    cell = read_cell(spec, options, context, path)
    options.finish()
    return cell


def snake(class_name: str) -> str:
    """Keras's own way from ``LSTMCell`` to ``lstm_cell``: what it calls objects in a ``.weights.h5``.

    Source: ``to_snake_case`` of Keras 3 (naming.py), which tf_keras shares.
    """
    import re

    name = re.sub(r"\W+", "", class_name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def plain_equations(
    cell: Cell, activation: Activation = TANH, gate: Activation = SIGMOID, reset: ResetPlace | None = None
) -> Equations:
    """Equations of a cell whose options came from elsewhere than a config."""
    if cell is Cell.LSTM:
        return LstmEquations(gate, activation, activation)
    if cell is Cell.RNN:
        return RnnEquations(activation)
    if reset is None:
        raise AmbiguousSource("the form of the GRU is not known")
    return GruEquations(reset, gate_activation=gate, candidate_activation=activation)
