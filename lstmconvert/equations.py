"""The equations: a NumPy reference of every recurrent cell with every option, traced on request.

Sources: Hochreiter and Schmidhuber 1997, Gers and Schmidhuber 2000 (peepholes), Cho et al. 2014 (GRU),
and the documentation of torch.nn.LSTM / GRU, keras.layers.LSTM / GRU, ONNX LSTM / GRU / RNN and
tf.compat.v1.nn.rnn_cell; tests/test_equations.py runs each option against a runtime that has it.

Shapes: x (batch, time, input), hidden state (batch, recurrent), cell state (batch, hidden).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lstmconvert.canonical import (
    Coupling,
    GruEquations,
    LstmEquations,
    MaskedOutput,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    ReverseOutput,
    RnnEquations,
    UpdateKeeps,
)
from lstmconvert.gates import GATES, Cell, Direction, Gate, Part
from lstmconvert.tensors import Array
from lstmconvert.values import dataclass

State = tuple[Array, ...]
"""(h,) or (h, c)."""

COMPUTED_IN = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
"""The dtypes that a computation can run in; other floating weights run in float32."""

HIDDEN_STATE = "hidden_state"
CELL_STATE = "cell_state"


class Trace(Sequence[Mapping[str, Array]]):
    """What a layer computed at every step.

    ``trace[t][name]`` is (batch, hidden): step ``t`` of the input, ``name`` a gate's name or
    ``hidden_state`` or ``cell_state``. Of a bidirectional layer, names of the reverse direction end in
    ``_reverse``. At masked steps the gates are NaN and the states are held.

    Attributes:
        values: the same, whole: name to (batch, time, hidden).
    """

    def __init__(self, values: Mapping[str, Array]) -> None:
        self.values = values

    def __len__(self) -> int:
        return int(next(iter(self.values.values())).shape[1])

    def __getitem__(self, step: Any) -> Any:
        if isinstance(step, slice):
            return [self[n] for n in range(*step.indices(len(self)))]
        if not -len(self) <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        return {name: value[:, step] for name, value in self.values.items()}

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        return (self[n] for n in range(len(self)))


@dataclass(frozen=True, slots=True, eq=False)
class _Operands:
    """One direction's numbers, in the dtype of the computation, with the input's share precomputed."""

    inputs: Mapping[Gate, Array]  # (batch, time, hidden): kernel x + the biases that nothing multiplies
    recurrent: Mapping[Gate, Array]  # (recurrent, hidden)
    bias_recurrent: Mapping[Gate, Array]  # (hidden,): only where the reset gate multiplies it
    peephole: Mapping[Gate, Array]  # (hidden,)
    projection: Array | None  # (hidden, projected)


def _operands(direction: RecurrentDirection, x: Array) -> _Operands:
    weights, equations, dtype = direction.weights, direction.equations, x.dtype

    def cast(part: Part) -> dict[Gate, Array]:
        return {gate: array.astype(dtype, copy=False) for gate, array in weights.gates(part).items()}

    # One gate at a time: a large kernel is not copied as a whole.
    kernels = weights.gates(Part.KERNEL).items()
    inputs = {gate: x @ array.astype(dtype, copy=False).T for gate, array in kernels}
    for gate, bias in cast(Part.BIAS_INPUT).items():
        inputs[gate] += bias
    for gate, constant in equations.constant.items():
        inputs[gate] += dtype.type(constant)
    bias_recurrent = cast(Part.BIAS_RECURRENT)
    reset_after = isinstance(equations, GruEquations) and equations.reset is ResetPlace.AFTER_PRODUCT
    inside = (
        {Gate.CANDIDATE: bias_recurrent.pop(Gate.CANDIDATE)}
        if reset_after and Gate.CANDIDATE in bias_recurrent
        else {}
    )
    for gate, bias in bias_recurrent.items():
        inputs[gate] += bias
    projection = weights.projection
    return _Operands(
        inputs,
        {gate: array.T for gate, array in cast(Part.RECURRENT).items()},
        inside,
        cast(Part.PEEPHOLE),
        None if projection is None else projection.astype(dtype, copy=False).T,
    )


def _clip(value: Array, bound: float | None) -> Array:
    return value if bound is None else np.clip(value, -bound, bound).astype(value.dtype)


def _lstm_step(
    w: _Operands, equations: LstmEquations, t: int, state: State
) -> tuple[State, dict[Gate, Array]]:
    h, c = state
    sigma, bound = equations.gate_activation, equations.preactivation_clip

    def preactivation(gate: Gate, looks_at: Array) -> Array:
        total = w.inputs[gate][:, t] + h @ w.recurrent[gate]
        if gate in w.peephole:
            total = total + w.peephole[gate] * looks_at
        return _clip(total, bound)

    i = sigma(preactivation(Gate.INPUT, c))
    f = (
        1 - i
        if equations.coupling is Coupling.FORGET_IS_ONE_MINUS_INPUT
        else sigma(preactivation(Gate.FORGET, c))
    )
    g = equations.cell_activation(preactivation(Gate.CELL, c))
    c = _clip(f * c + i * g, equations.cell_clip)
    o = sigma(preactivation(Gate.OUTPUT, c))
    h = o * equations.hidden_activation(c)
    if w.projection is not None:
        h = _clip(h @ w.projection, equations.projection_clip)
    return (h, c), {Gate.INPUT: i, Gate.FORGET: f, Gate.CELL: g, Gate.OUTPUT: o}


def _gru_step(w: _Operands, equations: GruEquations, t: int, state: State) -> tuple[State, dict[Gate, Array]]:
    (h,) = state
    sigma, bound = equations.gate_activation, equations.preactivation_clip
    z = sigma(_clip(w.inputs[Gate.UPDATE][:, t] + h @ w.recurrent[Gate.UPDATE], bound))
    r = sigma(_clip(w.inputs[Gate.RESET][:, t] + h @ w.recurrent[Gate.RESET], bound))
    if equations.reset is ResetPlace.AFTER_PRODUCT:
        product = r * (
            h @ w.recurrent[Gate.CANDIDATE] + w.bias_recurrent.get(Gate.CANDIDATE, h.dtype.type(0))
        )
    else:
        product = (r * h) @ w.recurrent[Gate.CANDIDATE]
    n = equations.candidate_activation(_clip(w.inputs[Gate.CANDIDATE][:, t] + product, bound))
    h = z * h + (1 - z) * n if equations.update_keeps is UpdateKeeps.STATE else (1 - z) * h + z * n
    return (h,), {Gate.UPDATE: z, Gate.RESET: r, Gate.CANDIDATE: n}


def _rnn_step(w: _Operands, equations: RnnEquations, t: int, state: State) -> tuple[State, dict[Gate, Array]]:
    (h,) = state
    total = w.inputs[Gate.HIDDEN][:, t] + h @ w.recurrent[Gate.HIDDEN]
    h = equations.hidden_activation(_clip(total, equations.preactivation_clip))
    return (h,), {Gate.HIDDEN: h}


def _step(
    direction: RecurrentDirection, w: _Operands, t: int, state: State
) -> tuple[State, dict[Gate, Array]]:
    equations = direction.equations
    if isinstance(equations, LstmEquations):
        return _lstm_step(w, equations, t, state)
    if isinstance(equations, GruEquations):
        return _gru_step(w, equations, t, state)
    return _rnn_step(w, equations, t, state)


def _run_direction(
    layer: RecurrentLayer,
    direction: RecurrentDirection,
    x: Array,
    mask: Array | None,
    state: State,
    record: dict[str, Array] | None,
) -> tuple[Array, State]:
    """Outputs in input order (batch, time, recurrent) and the final state."""
    batch, time, _ = x.shape
    w = _operands(direction, x)
    outputs = np.zeros((batch, time, layer.recurrent_size), x.dtype)
    previous = np.zeros((batch, layer.recurrent_size), x.dtype)
    order = range(time) if direction.direction is Direction.FORWARD else range(time - 1, -1, -1)
    for t in order:
        stepped, gates = _step(direction, w, t, state)
        if mask is None:
            state = stepped
            outputs[:, t] = state[0]
        else:
            valid = mask[:, t, np.newaxis]
            state = tuple(np.where(valid, new, old) for new, old in zip(stepped, state, strict=True))
            gates = {gate: np.where(valid, value, np.nan) for gate, value in gates.items()}
            previous = np.where(valid, state[0], previous)
            outputs[:, t] = {
                MaskedOutput.ZERO: np.where(valid, state[0], 0),
                MaskedOutput.HOLD: previous,
                MaskedOutput.HOLD_STATE: state[0],
            }[layer.sequence.masked_output]
        if record is not None:
            _record(record, direction, layer, t, gates, state)
    return outputs, state


def _record(
    record: dict[str, Array],
    direction: RecurrentDirection,
    layer: RecurrentLayer,
    t: int,
    gates: Mapping[Gate, Array],
    state: State,
) -> None:
    suffix = "_reverse" if len(layer.directions) == 2 and direction.direction is Direction.REVERSE else ""
    names = {gate + suffix: gates[gate] for gate in GATES[layer.cell]}
    names |= {name + suffix: value for name, value in zip((HIDDEN_STATE, CELL_STATE), state, strict=False)}
    for name, value in names.items():
        record[name][:, t] = value


def _empty_record(layer: RecurrentLayer, batch: int, time: int, dtype: np.dtype[Any]) -> dict[str, Array]:
    record: dict[str, Array] = {}
    for suffix in ("", "_reverse")[: len(layer.directions)]:
        names = {gate + suffix: layer.hidden_size for gate in GATES[layer.cell]}
        names[HIDDEN_STATE + suffix] = layer.recurrent_size
        if layer.cell is Cell.LSTM:
            names[CELL_STATE + suffix] = layer.hidden_size
        record |= {name: np.zeros((batch, time, size), dtype) for name, size in names.items()}
    return record


def runs_in(x: Array, layer: RecurrentLayer) -> np.dtype[Any]:
    """The dtype in which a layer computes on ``x``: by promotion of both."""
    # bfloat16, float8 and the like run in float32.
    weights = layer.dtype if layer.dtype in COMPUTED_IN else np.dtype(np.float32)
    if x.dtype.kind != "f":
        return weights
    return np.result_type(x.dtype, weights)


def _initial(layer: RecurrentLayer, batch: int, dtype: np.dtype[Any], given: Any) -> list[State]:
    """The initial state of each direction."""
    sizes = [layer.recurrent_size] + ([layer.hidden_size] if layer.cell is Cell.LSTM else [])
    if given is None:
        parts = (Part.INITIAL_HIDDEN, Part.INITIAL_CELL)
        states = []
        for direction in layer.directions:
            trained = [direction.weights.get((part, None)) for part in parts[: len(sizes)]]
            states.append(
                tuple(
                    np.zeros((batch, size), dtype)
                    if block is None
                    else np.broadcast_to(block.read().astype(dtype), (batch, size))
                    for block, size in zip(trained, sizes, strict=True)
                )
            )
        return states
    arrays = given if isinstance(given, (tuple, list)) else (given,)
    arrays = [np.asarray(array, dtype) for array in arrays]
    expected = [(len(layer.directions), batch, size) for size in sizes]
    if [array.shape for array in arrays] != expected:
        raise ValueError(f"initial state has shapes {[a.shape for a in arrays]}, expected {expected}")
    return [tuple(array[d] for array in arrays) for d in range(len(layer.directions))]


def _mask(x: Array, lengths: Any, mask: Any) -> Array | None:
    batch, time, _ = x.shape
    if lengths is not None and mask is not None:
        raise ValueError("give lengths or mask, not both")
    if lengths is not None:
        counts = np.asarray(lengths)
        if counts.shape != (batch,) or counts.dtype.kind not in "iu":
            raise ValueError(f"lengths are {counts.dtype} {counts.shape}, expected whole numbers ({batch},)")
        if counts.size and not (counts.min() >= 0 and counts.max() <= time):
            raise ValueError(f"lengths run from {counts.min()} to {counts.max()}, the input has {time} steps")
        return np.asarray(np.arange(time) < counts[:, np.newaxis])
    if mask is None:
        return None
    valid = np.asarray(mask, bool)
    if valid.shape != (batch, time):
        raise ValueError(f"mask has shape {valid.shape}, expected {(batch, time)}")
    return valid


def _prepare(layer: RecurrentLayer, x: Any) -> Array:
    values: Array = np.asarray(x)
    if values.ndim != 3 or values.shape[2] != layer.input_size:
        raise ValueError(
            f"layer {layer.name!r} takes inputs (batch, time, input={layer.input_size}), not {values.shape}"
        )
    return values.astype(runs_in(values, layer), copy=False)


def merge(layer: RecurrentLayer, outputs: Sequence[Array]) -> Array:
    """The outputs of a layer's directions, each (..., recurrent), as one (..., width)."""
    if len(outputs) == 1:
        return outputs[0]
    first, second = outputs
    match layer.sequence.merge:
        case Merge.SUM:
            return first + second
        case Merge.MULTIPLY:
            return first * second
        case Merge.AVERAGE:
            mean: Array = (first + second) / first.dtype.type(2)
            return mean
        case Merge.CONCAT | Merge.SEPARATE:
            return np.concatenate([first, second], axis=-1)


def run_directions(
    layer: RecurrentLayer,
    x: Any,
    *,
    lengths: Any = None,
    mask: Any = None,
    initial_state: Any = None,
    record: dict[str, Array] | None = None,
) -> tuple[list[Array], list[State]]:
    """Each direction's outputs in input order (batch, time, recurrent), unmerged, and final state."""
    values = _prepare(layer, x)
    valid = _mask(values, lengths, mask)
    states = _initial(layer, values.shape[0], values.dtype, initial_state)
    if record is not None:
        record.update(_empty_record(layer, values.shape[0], values.shape[1], values.dtype))
    # NaN and infinities go through as they are; whoever wants to know of them looks at the result.
    with np.errstate(all="ignore"):
        results = [
            _run_direction(layer, direction, values, valid, state, record)
            for direction, state in zip(layer.directions, states, strict=True)
        ]
    return [outputs for outputs, _ in results], [state for _, state in results]


def run(
    layer: RecurrentLayer, x: Any, *, lengths: Any = None, mask: Any = None, initial_state: Any = None
) -> tuple[Array, Array | tuple[Array, Array]]:
    """The reference forward pass; see ``RecurrentLayer.run``."""
    outputs, states = run_directions(layer, x, lengths=lengths, mask=mask, initial_state=initial_state)
    y = merge(layer, outputs)
    if layer.sequence.reverse_output is ReverseOutput.VISITED_ORDER:
        y = y[:, ::-1]
    h = np.stack([state[0] for state in states])
    return (y, (h, np.stack([state[1] for state in states]))) if layer.cell is Cell.LSTM else (y, h)


def trace(
    layer: RecurrentLayer, x: Any, *, lengths: Any = None, mask: Any = None, initial_state: Any = None
) -> Trace:
    """Every gate and state at every step; see ``RecurrentLayer.trace``."""
    record: dict[str, Array] = {}
    run_directions(layer, x, lengths=lengths, mask=mask, initial_state=initial_state, record=record)
    return Trace(record)
