"""The canonical representation: what a recurrent layer is, apart from any framework.

A layer is one or two directions; a direction is its equations and its blocks of numbers, one block
for every gate of every part. Whatever changes a result is a field with a value, never a convention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.activations import SIGMOID, TANH, Activation
from lstmconvert.gates import GATED_PARTS, GATES, PART_AXES, PEEPHOLE_GATES, Cell, Direction, Gate, Part
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    from lstmconvert.equations import Trace

BlockKey = tuple[Part, Gate | None]
"""Which block: a part, and the gate for the parts that have one block a gate."""


class Coupling(StrEnum):
    """Whether an LSTM's forget gate is computed or derived."""

    NONE = "none"
    FORGET_IS_ONE_MINUS_INPUT = "forget_is_one_minus_input"


class ResetPlace(StrEnum):
    """Where a GRU's reset gate acts on the candidate's recurrent product."""

    BEFORE_PRODUCT = "before_product"
    """R (r * h): the original paper; Keras reset_after=False; ONNX linear_before_reset=0."""
    AFTER_PRODUCT = "after_product"
    """r * (R h + b): cuDNN, PyTorch; Keras reset_after=True; ONNX linear_before_reset=1."""


class UpdateKeeps(StrEnum):
    """What a GRU's update gate z multiplies."""

    STATE = "state"
    """h' = z h + (1 - z) n: Keras, PyTorch, ONNX."""
    CANDIDATE = "candidate"
    """h' = (1 - z) h + z n: Haiku, Sonnet, the original paper."""


class Merge(StrEnum):
    """How the outputs of two directions become one."""

    CONCAT = "concat"
    SUM = "sum"
    MULTIPLY = "multiply"
    AVERAGE = "average"
    SEPARATE = "separate"


class Returns(StrEnum):
    """Which steps a layer gives on."""

    SEQUENCE = "sequence"
    LAST = "last"
    """The output at the step that each direction visits last: step -1 forward, step 0 in reverse.

    ``MaskedOutput`` says what it is if that step is masked.
    """


class ReverseOutput(StrEnum):
    """The order of the outputs of a reverse direction."""

    INPUT_ORDER = "input_order"
    """Re-flipped: output t belongs to input t (PyTorch, ONNX, Keras Bidirectional)."""
    VISITED_ORDER = "visited_order"
    """As computed, last input first (a single Keras layer with go_backwards)."""


class MaskedOutput(StrEnum):
    """What stands in the output at a masked step; the state is held there in every case."""

    ZERO = "zero"
    """PyTorch packed sequences, ONNX sequence_lens, Keras zero_output_for_mask and Bidirectional."""
    HOLD = "hold"
    """The previous output, zeros before the first valid step (Keras on TensorFlow and torch)."""
    HOLD_STATE = "hold_state"
    """The held hidden state, the initial one before the first valid step (Keras on JAX)."""


def _frozen_constants() -> Mapping[Gate, float]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class LstmEquations:
    """What an LSTM computes, apart from its numbers.

    Attributes:
        gate_activation: of the input, forget and output gates.
        cell_activation: of the cell gate.
        hidden_activation: applied to the cell state on its way to the hidden state.
        constant: added to a gate's pre-activation at run time and not in the weights (TensorFlow 1
            and Haiku add 1 to the forget gate).
        coupling: whether the forget gate is one minus the input gate.
        preactivation_clip: bound on every gate's pre-activation, after the peephole term (ONNX
            ``clip``), or none.
        cell_clip: bound on the new cell state, before the output gate's peephole sees it (TF1).
        projection_clip: bound on the projected hidden state (TF1 ``proj_clip``).
    """

    gate_activation: Activation = SIGMOID
    cell_activation: Activation = TANH
    hidden_activation: Activation = TANH
    constant: Mapping[Gate, float] = field(default_factory=_frozen_constants)
    coupling: Coupling = Coupling.NONE
    preactivation_clip: float | None = None
    cell_clip: float | None = None
    projection_clip: float | None = None

    @property
    def cell(self) -> Cell:
        """The cell whose equations these are."""
        return Cell.LSTM


@dataclass(frozen=True, slots=True)
class GruEquations:
    """What a GRU computes, apart from its numbers.

    Attributes:
        gate_activation: of the update and reset gates.
        candidate_activation: of the candidate.
        reset: where the reset gate acts.
        update_keeps: what the update gate multiplies.
        constant: added to a gate's pre-activation at run time and not in the weights.
        preactivation_clip: bound on every pre-activation (ONNX ``clip``), or none.
    """

    reset: ResetPlace
    update_keeps: UpdateKeeps = UpdateKeeps.STATE
    gate_activation: Activation = SIGMOID
    candidate_activation: Activation = TANH
    constant: Mapping[Gate, float] = field(default_factory=_frozen_constants)
    preactivation_clip: float | None = None

    @property
    def cell(self) -> Cell:
        """The cell whose equations these are."""
        return Cell.GRU


@dataclass(frozen=True, slots=True)
class RnnEquations:
    """What a simple recurrent layer computes, apart from its numbers.

    Attributes:
        hidden_activation: of the new hidden state.
        constant: added to the pre-activation at run time and not in the weights.
        preactivation_clip: bound on the pre-activation (ONNX ``clip``), or none.
    """

    hidden_activation: Activation = TANH
    constant: Mapping[Gate, float] = field(default_factory=_frozen_constants)
    preactivation_clip: float | None = None

    @property
    def cell(self) -> Cell:
        """The cell whose equations these are."""
        return Cell.RNN


Equations = LstmEquations | GruEquations | RnnEquations


class Weights(Mapping[BlockKey, Lazy]):
    """The blocks of one direction, each the canonical axes of its part and read on demand.

    A block that is absent is not there; it is never zeros. Shapes, with the axis names of
    ``gates.PART_AXES``: kernel (hidden, input), recurrent (hidden, recurrent), bias_input,
    bias_recurrent and peephole (hidden,), projection (projected, hidden), initial_hidden
    (recurrent,), initial_cell (hidden,). ``recurrent`` is ``projected`` where there is a
    projection, else ``hidden``.

    Args:
        blocks: every block under its part and gate.

    Raises:
        ValueError: when a gate is missing or not one of the cell's, or shapes disagree.
    """

    __slots__ = ("_blocks", "cell", "hidden_size", "input_size", "recurrent_size")

    def __init__(self, cell: Cell, blocks: Mapping[BlockKey, Lazy]) -> None:
        self.cell = cell
        order = {key: n for n, key in enumerate(_block_order(cell))}
        unknown = [key for key in blocks if key not in order]
        if unknown:
            raise ValueError(f"{cell.upper()} has no block {_spell(unknown[0])}")
        self._blocks = MappingProxyType({key: blocks[key] for key in sorted(blocks, key=lambda k: order[k])})
        sizes = self._check()
        self.hidden_size = sizes["hidden"]
        self.input_size = sizes["input"]
        self.recurrent_size = sizes["recurrent"]

    @classmethod
    def of(
        cls,
        cell: Cell,
        *,
        kernel: Mapping[Gate, Array],
        recurrent: Mapping[Gate, Array],
        bias_input: Mapping[Gate, Array] | None = None,
        bias_recurrent: Mapping[Gate, Array] | None = None,
        peephole: Mapping[Gate, Array] | None = None,
        projection: Array | None = None,
    ) -> Weights:
        """Weights from arrays in memory; see the class for shapes."""
        blocks: dict[BlockKey, Lazy] = {}
        gated = (kernel, recurrent, bias_input, bias_recurrent, peephole)
        for part, arrays in zip(GATED_PARTS, gated, strict=True):
            for gate, array in (arrays or {}).items():
                blocks[part, gate] = Lazy.of(np.asarray(array))
        if projection is not None:
            blocks[Part.PROJECTION, None] = Lazy.of(np.asarray(projection))
        return cls(cell, blocks)

    def _check(self) -> dict[str, int]:
        for part in (Part.KERNEL, Part.RECURRENT):
            missing = [gate for gate in GATES[self.cell] if (part, gate) not in self._blocks]
            if missing:
                raise ValueError(f"{part} of the {missing[0]} gate is missing")
        sizes: dict[str, int] = {}
        bound_by: dict[str, str] = {}
        dtype = self._blocks[Part.KERNEL, GATES[self.cell][0]].dtype
        for key, block in self._blocks.items():
            axes = PART_AXES[key[0]]
            if len(block.shape) != len(axes):
                raise ValueError(f"{_spell(key)} has shape {block.shape}, expected axes ({', '.join(axes)})")
            if block.dtype != dtype:
                raise ValueError(f"{_spell(key)} is {block.dtype}, the first kernel is {dtype}")
            for axis, size in zip(axes, block.shape, strict=True):
                if sizes.setdefault(axis, size) != size:
                    raise ValueError(
                        f"{_spell(key)} has {axis}={size}, but {bound_by[axis]} has {axis}={sizes[axis]}"
                    )
                bound_by.setdefault(axis, _spell(key))
        width = sizes.get("projected", sizes["hidden"])
        if sizes["recurrent"] != width:
            raise ValueError(
                f"recurrent kernels take {sizes['recurrent']} values, the hidden state has {width}"
            )
        if min(sizes.values()) < 1:
            raise ValueError(f"an axis is empty: {sizes}")
        return sizes

    def __getitem__(self, key: BlockKey) -> Lazy:
        return self._blocks[key]

    def __iter__(self) -> Any:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of every block."""
        dtype: np.dtype[Any] = self._blocks[Part.KERNEL, GATES[self.cell][0]].dtype
        return dtype

    @property
    def projected_size(self) -> int | None:
        """Length of the projected hidden state, or ``None`` without a projection."""
        return self.recurrent_size if (Part.PROJECTION, None) in self._blocks else None

    def has(self, part: Part) -> bool:
        """Whether any gate has a block of this part."""
        return any(key[0] is part for key in self._blocks)

    def gates(self, part: Part) -> Mapping[Gate, Array]:
        """The arrays of one part by gate, read now; empty where the part is absent."""
        return {
            gate: block.read() for (p, gate), block in self._blocks.items() if p is part and gate is not None
        }

    @property
    def kernel(self) -> Mapping[Gate, Array]:
        """Input weights of every gate, each (hidden, input)."""
        return self.gates(Part.KERNEL)

    @property
    def recurrent(self) -> Mapping[Gate, Array]:
        """Recurrent weights of every gate, each (hidden, recurrent)."""
        return self.gates(Part.RECURRENT)

    @property
    def bias_input(self) -> Mapping[Gate, Array]:
        """Input biases (hidden,) of the gates that have one."""
        return self.gates(Part.BIAS_INPUT)

    @property
    def bias_recurrent(self) -> Mapping[Gate, Array]:
        """Recurrent biases (hidden,) of the gates that have one."""
        return self.gates(Part.BIAS_RECURRENT)

    @property
    def peephole(self) -> Mapping[Gate, Array]:
        """Peephole weights (hidden,) of the gates that have one."""
        return self.gates(Part.PEEPHOLE)

    @property
    def projection(self) -> Array | None:
        """The projection (projected, hidden), or ``None``."""
        block = self._blocks.get((Part.PROJECTION, None))
        return None if block is None else block.read()

    def mapped(self, function: Callable[[BlockKey, Lazy], Lazy | None]) -> Weights:
        """New weights with ``function(key, block)`` in place of every block; ``None`` drops it."""
        changed = ((key, function(key, block)) for key, block in self._blocks.items())
        return Weights(self.cell, {key: block for key, block in changed if block is not None})

    def with_blocks(self, blocks: Mapping[BlockKey, Lazy]) -> Weights:
        """New weights with these blocks added or put in place of the old ones."""
        return Weights(self.cell, {**self._blocks, **blocks})


def _block_order(cell: Cell) -> list[BlockKey]:
    order: list[BlockKey] = [(part, gate) for part in GATED_PARTS[:4] for gate in GATES[cell]]
    if cell is Cell.LSTM:
        order += [(Part.PEEPHOLE, gate) for gate in PEEPHOLE_GATES]
        order += [(Part.PROJECTION, None)]
    order += [(Part.INITIAL_HIDDEN, None)]
    if cell is Cell.LSTM:
        order += [(Part.INITIAL_CELL, None)]
    return order


def _spell(key: BlockKey) -> str:
    part, gate = key
    return str(part) if gate is None else f"{part} of the {gate} gate"


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentDirection:
    """One direction of a layer: what it computes, with which numbers, in which order of time."""

    direction: Direction
    equations: Equations
    weights: Weights

    def __post_init__(self) -> None:
        if self.equations.cell is not self.weights.cell:
            raise ValueError(f"{self.equations.cell} equations with the weights of a {self.weights.cell}")


@dataclass(frozen=True, slots=True)
class SequenceBehaviour:
    """How the loop over time is run, apart from what a step computes.

    Attributes:
        merge: how two directions become one output; without meaning for one direction.
        returns: the whole sequence or the step that is visited last.
        return_state: whether the layer also gives its final state.
        reverse_output: order of the outputs of a single reverse direction; two directions are
            always in input order.
        masked_output: what stands at masked steps.
        time_major: whether the framework's layer takes (time, batch, features). ``run`` and
            ``trace`` are batch-major in any case.
        stateful: whether the state of one batch is carried into the next.
        dropout, recurrent_dropout: recorded for training; never applied here.
    """

    merge: Merge = Merge.CONCAT
    returns: Returns = Returns.SEQUENCE
    return_state: bool = False
    reverse_output: ReverseOutput = ReverseOutput.INPUT_ORDER
    masked_output: MaskedOutput = MaskedOutput.ZERO
    time_major: bool = False
    stateful: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentLayer:
    """A recurrent layer of one or two directions.

    Attributes:
        name: its name in the source.
        directions: one or two, distinct, of equal cell, sizes and dtype; forward comes first.
        sequence: how the loop over time is run.
        origin: names of the source's tensors, for messages.
        stored_gates: the gates in the order in which the source stores them.
        notes: what a framework needs to write the layer back as it was (a remembered split of two
            biases, the index of a layer in its stack); text only, never needed for the result.

    Raises:
        ValueError: when the directions contradict each other.
    """

    name: str
    directions: tuple[RecurrentDirection, ...]
    sequence: SequenceBehaviour = SequenceBehaviour()
    origin: tuple[str, ...] = ()
    stored_gates: tuple[Gate, ...] = ()
    notes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if not 1 <= len(self.directions) <= 2:
            raise ValueError(f"a layer has one or two directions, not {len(self.directions)}")
        if len(self.directions) == 2:
            first, second = self.directions
            if (first.direction, second.direction) != (Direction.FORWARD, Direction.REVERSE):
                raise ValueError("two directions are forward, then reverse")
            for name in ("cell", "input_size", "hidden_size", "recurrent_size", "dtype"):
                a, b = getattr(first.weights, name), getattr(second.weights, name)
                if a != b:
                    raise ValueError(f"the directions differ in {name}: {a} and {b}")
            if self.sequence.reverse_output is not ReverseOutput.INPUT_ORDER:
                raise ValueError("two directions give their outputs in input order")

    @property
    def cell(self) -> Cell:
        """LSTM, GRU or RNN."""
        return self.directions[0].weights.cell

    @property
    def input_size(self) -> int:
        """Features of one input step."""
        return self.directions[0].weights.input_size

    @property
    def hidden_size(self) -> int:
        """Units of one direction."""
        return self.directions[0].weights.hidden_size

    @property
    def recurrent_size(self) -> int:
        """Length of one direction's hidden state: the projection's width, else ``hidden_size``."""
        return self.directions[0].weights.recurrent_size

    @property
    def projected_size(self) -> int | None:
        """Width of the projection, or ``None`` without one."""
        return self.directions[0].weights.projected_size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the weights."""
        return self.directions[0].weights.dtype

    @property
    def width(self) -> int:
        """Features of one output step after merging."""
        joined = len(self.directions) == 2 and self.sequence.merge in (Merge.CONCAT, Merge.SEPARATE)
        return self.recurrent_size * (2 if joined else 1)

    @property
    def direction(self) -> str:
        """``forward``, ``reverse`` or ``bidirectional``."""
        return "bidirectional" if len(self.directions) == 2 else str(self.directions[0].direction)

    @property
    def equations(self) -> Equations:
        """The equations of the first direction (usually of both)."""
        return self.directions[0].equations

    def run(
        self,
        x: Any,
        *,
        lengths: Any = None,
        mask: Any = None,
        initial_state: Any = None,
    ) -> tuple[Array, Array | tuple[Array, Array]]:
        """The NumPy reference forward pass.

        Args:
            x: inputs (batch, time, input). The computation runs in the dtype that NumPy's
                promotion gives for ``x`` and the weights: float64 inputs give a float64 result.
            lengths: valid steps of each sequence (batch,), right-padded; or ``mask``.
            mask: true at valid steps (batch, time).
            initial_state: h, or (h, c) for an LSTM, each (directions, batch, size); zeros, or the
                trained initial state, if not given.

        Returns:
            The sequence (batch, time, width) and the final state: h, or (h, c) for an LSTM, each
            (directions, batch, size). With ``Merge.SEPARATE`` the outputs are side by side.

        Raises:
            ValueError: on shapes that do not fit.
        """
        from lstmconvert import equations

        return equations.run(self, x, lengths=lengths, mask=mask, initial_state=initial_state)

    def trace(self, x: Any, *, lengths: Any = None, mask: Any = None, initial_state: Any = None) -> Trace:
        """Every gate and state at every step; arguments as for ``run``."""
        from lstmconvert import equations

        return equations.trace(self, x, lengths=lengths, mask=mask, initial_state=initial_state)

    def with_directions(self, directions: Sequence[RecurrentDirection]) -> RecurrentLayer:
        """The same layer with other directions."""
        return replace(self, directions=tuple(directions))

    def mapped(self, function: Callable[[RecurrentDirection], RecurrentDirection]) -> RecurrentLayer:
        """The same layer with ``function`` applied to each direction."""
        return self.with_directions([function(direction) for direction in self.directions])

    def in_dtype(self, dtype: Any) -> RecurrentLayer:
        """The same layer with its weights in another dtype, cast when they are read."""

        def cast(_key: BlockKey, block: Lazy) -> Lazy:
            same = block.dtype == dtype
            return block if same else block.map(lambda array: array.astype(dtype), block.shape, dtype)

        return self.mapped(lambda direction: replace(direction, weights=direction.weights.mapped(cast)))
