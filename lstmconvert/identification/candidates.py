"""Candidates: which gate may stand where, and which equations may run on the blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from types import MappingProxyType

from lstmconvert.activations import (
    HARD_SIGMOID_KERAS2,
    HARD_SIGMOID_KERAS3,
    LINEAR,
    RELU,
    SIGMOID,
    TANH,
    Activation,
)
from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    ResetPlace,
    RnnEquations,
    UpdateKeeps,
)
from lstmconvert.gates import GATES, Cell, Gate

GATE_ACTIVATIONS = (SIGMOID, HARD_SIGMOID_KERAS2, HARD_SIGMOID_KERAS3)
INNER_ACTIVATIONS = (TANH, RELU)
HEAD_ACTIVATIONS = (LINEAR, SIGMOID, TANH, RELU, Activation("softmax"))
STATE_ORDERS = (("hidden", "cell"), ("cell", "hidden"))
_FORGET_BIASES = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a cell computes with its blocks.

    Attributes:
        gates: the gate at every position.
        equations: what is computed.
    """

    gates: tuple[Gate, ...]
    equations: Equations

    def position(self, gate: Gate) -> int:
        """Where a gate stands."""
        return self.gates.index(gate)


@cache
def orders(cell: Cell) -> tuple[tuple[Gate, ...], ...]:
    """Every order of a cell's gates, the canonical one first."""
    return tuple(permutations(GATES[cell]))


@cache
def equations(cell: Cell) -> tuple[Equations, ...]:
    """Every set of equations that is tried for a cell."""
    match cell:
        case Cell.LSTM:
            return tuple(
                LstmEquations(
                    gate_activation=gate,
                    cell_activation=inner,
                    hidden_activation=inner,
                    constant=MappingProxyType({Gate.FORGET: constant} if constant else {}),
                )
                for gate in GATE_ACTIVATIONS
                for inner in INNER_ACTIVATIONS
                for constant in _FORGET_BIASES
            )
        case Cell.GRU:
            return tuple(
                GruEquations(reset, keeps, gate, inner)
                for gate in GATE_ACTIVATIONS
                for inner in INNER_ACTIVATIONS
                for reset in (ResetPlace.AFTER_PRODUCT, ResetPlace.BEFORE_PRODUCT)
                for keeps in (UpdateKeeps.STATE, UpdateKeeps.CANDIDATE)
            )
        case Cell.RNN:
            return tuple(RnnEquations(inner) for inner in (TANH, RELU, SIGMOID, LINEAR))
