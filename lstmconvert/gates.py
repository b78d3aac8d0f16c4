"""The vocabulary: cells, their gates in canonical order, directions, and the parts of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Cell(StrEnum):
    """The recurrent cells."""

    LSTM = "lstm"
    GRU = "gru"
    RNN = "rnn"


class Gate(StrEnum):
    """One of the functions that a cell computes at every step.

    LSTM's ``CELL`` is what papers call g or c~; a GRU's is ``CANDIDATE`` (n or h~).
    """

    INPUT = "input"
    FORGET = "forget"
    CELL = "cell"
    OUTPUT = "output"
    UPDATE = "update"
    RESET = "reset"
    CANDIDATE = "candidate"
    HIDDEN = "hidden"


GATES: Mapping[Cell, tuple[Gate, ...]] = MappingProxyType(
    {
        Cell.LSTM: (Gate.INPUT, Gate.FORGET, Gate.CELL, Gate.OUTPUT),
        Cell.GRU: (Gate.UPDATE, Gate.RESET, Gate.CANDIDATE),
        Cell.RNN: (Gate.HIDDEN,),
    }
)
"""The canonical order of each cell's gates."""

PEEPHOLE_GATES = (Gate.INPUT, Gate.FORGET, Gate.OUTPUT)
"""The LSTM gates that may look at the cell state."""


class Direction(StrEnum):
    """The order in which a direction visits the time steps."""

    FORWARD = "forward"
    REVERSE = "reverse"


class Part(StrEnum):
    """What a block of numbers is in a direction of a layer."""

    KERNEL = "kernel"
    RECURRENT = "recurrent"
    BIAS_INPUT = "bias_input"
    BIAS_RECURRENT = "bias_recurrent"
    PEEPHOLE = "peephole"
    PROJECTION = "projection"
    INITIAL_HIDDEN = "initial_hidden"
    INITIAL_CELL = "initial_cell"


GATED_PARTS = (Part.KERNEL, Part.RECURRENT, Part.BIAS_INPUT, Part.BIAS_RECURRENT, Part.PEEPHOLE)
"""Parts of which every gate has its own block; the others belong to the direction as a whole."""

PART_AXES: Mapping[Part, tuple[str, ...]] = MappingProxyType(
    {
        Part.KERNEL: ("hidden", "input"),
        Part.RECURRENT: ("hidden", "recurrent"),
        Part.BIAS_INPUT: ("hidden",),
        Part.BIAS_RECURRENT: ("hidden",),
        Part.PEEPHOLE: ("hidden",),
        Part.PROJECTION: ("projected", "hidden"),
        Part.INITIAL_HIDDEN: ("recurrent",),
        Part.INITIAL_CELL: ("hidden",),
    }
)
"""The axes of one canonical block of each part."""
