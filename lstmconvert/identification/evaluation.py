"""Many candidates run at once: the product with the weights is made once, gates are picked out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from lstmconvert.activations import Activation
from lstmconvert.canonical import GruEquations, LstmEquations, ResetPlace, RnnEquations, UpdateKeeps
from lstmconvert.gates import GATES, Cell, Gate, Part
from lstmconvert.identification.candidates import (
    HEAD_ACTIVATIONS,
    STATE_ORDERS,
    Choice,
    equations,
    orders,
)
from lstmconvert.identification.forms import CANDIDATE, Form
from lstmconvert.identification.readings import Reading
from lstmconvert.identification.structures import Structure
from lstmconvert.tensors import Array

_MOST_VALUES = 1 << 23


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """One layer's numbers by gate position, ready for products.

    Attributes:
        kernel: (input, gate * hidden).
        recurrent: (recurrent, gate, hidden).
        bias: (gate, hidden): what is added in any case, both biases together but for a GRU.
        bias_recurrent: (gate, hidden), of a GRU.
        bias_candidate: (hidden,), recurrent bias of a GRU's candidate, wherever that stands.
    """

    kernel: Array
    recurrent: Array
    bias: Array
    bias_recurrent: Array
    bias_candidate: Array


Store = dict[object, Array]
"""Matrices ready for products, kept for the forms that share them."""


def numbers(form: Form, arrays: Mapping[str, Array], dtype: Any, store: Store) -> Numbers:
    """A layer's numbers in the dtype of the computation."""
    blocks = form.blocks(arrays)
    gates, hidden = len(GATES[form.cell]), form.hidden_size
    biases = {part: np.zeros((gates, hidden), dtype) for part in (Part.BIAS_INPUT, Part.BIAS_RECURRENT)}
    candidate = np.zeros(hidden, dtype)
    for (part, position), block in blocks.items():
        if position == CANDIDATE:
            candidate = block.astype(dtype)
        elif part in biases:
            biases[part][position] = block

    def matrices(part: Part) -> Array:
        key = (str(dtype), part, tuple(rule for rule in form.rules if rule.part == part))
        if key not in store:
            store[key] = np.stack([blocks[part, n].T for n in range(gates)], 1).astype(dtype)
        return store[key]

    kernel, recurrent = matrices(Part.KERNEL), matrices(Part.RECURRENT)
    bias, other = biases[Part.BIAS_INPUT], biases[Part.BIAS_RECURRENT]
    if form.cell is not Cell.GRU:
        bias, other = bias + other, np.zeros_like(other)
    return Numbers(kernel.reshape(kernel.shape[0], -1), recurrent, bias, other, candidate)


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """Candidates as columns: for every layer the index of its equations and of its order of gates.

    ``states`` is the index of the order in which initial and final states are given, ``head`` that of the
    activations of the dense layers.
    """

    equations: tuple[Array, ...]
    orders: tuple[Array, ...]
    head: Array
    states: Array

    def __len__(self) -> int:
        return len(self.head)

    def take(self, rows: Any) -> Population:
        """Some of the candidates."""
        return Population(
            tuple(column[rows] for column in self.equations),
            tuple(column[rows] for column in self.orders),
            self.head[rows],
            self.states[rows],
        )


def head_activations(structure: Structure) -> list[tuple[Activation, ...]]:
    """Every set of activations of the dense layers that is tried."""
    return list(product(HEAD_ACTIVATIONS, repeat=len(structure.head)))


@cache
def _combinations(cells: tuple[Cell, ...]) -> Array:
    """Equations and order of gates of every cell (candidate, 2 * cell), their gates with one activation."""
    rows: list[tuple[int, ...]] = []
    pairs = [list(product(range(len(equations(c))), range(len(orders(c))))) for c in cells]
    for chosen in product(*pairs):
        kinds = {_gate_activation(equations(c)[e]) for c, (e, _) in zip(cells, chosen, strict=True)} - {None}
        if len(kinds) <= 1:
            rows.append(tuple(n for pair in chosen for n in pair))
    return np.array(rows, np.intp)


def everyone(structure: Structure, reading: Reading) -> Population:
    """All candidates of a structure; layers of one cell are alike in equations and order of gates."""
    cells = structure.cells
    table = _combinations(cells)
    with_states = bool(reading.initial or reading.final) and structure.layers[0].cell is Cell.LSTM
    counts = (len(table), len(head_activations(structure)), len(STATE_ORDERS) if with_states else 1)
    at, head, states = (axis.ravel() for axis in np.meshgrid(*map(np.arange, counts), indexing="ij"))
    number = [cells.index(form.cell) for form in structure.layers]
    return Population(
        tuple(table[at, 2 * n] for n in number), tuple(table[at, 2 * n + 1] for n in number), head, states
    )


def _gate_activation(chosen: Any) -> Activation | None:
    return None if isinstance(chosen, RnnEquations) else chosen.gate_activation


def choices(structure: Structure, population: Population, row: int) -> tuple[Choice, ...]:
    """What a candidate says of every layer."""
    return tuple(
        Choice(orders(form.cell)[int(o[row])], equations(form.cell)[int(e[row])])
        for form, e, o in zip(structure.layers, population.equations, population.orders, strict=True)
    )


def _applied(values: Array, which: Array, functions: Sequence[Activation]) -> Array:
    """``functions[which[n]]`` of ``values[n]``, for each candidate n."""
    used = np.unique(which)
    if len(used) == 1:
        return functions[int(used[0])](values)
    result = np.empty_like(values)
    for n in used:
        rows = which == n
        result[rows] = functions[int(n)](values[rows])
    return result


class _Options:
    """One option of the equations, for every candidate: an index into its different values."""

    def __init__(self, values: Sequence[Activation], index: Array) -> None:
        self.values: list[Activation] = list(dict.fromkeys(values))
        self.which = np.array([self.values.index(v) for v in values], np.intp)[index]

    def __call__(self, values: Array) -> Array:
        return _applied(values, self.which, self.values)


def _run(
    form: Form,
    own: Numbers,
    which: Array,
    order: Array,
    x: Array,
    initial: Sequence[Array],
) -> tuple[Array, tuple[Array, ...]]:
    """Outputs (candidate, batch, time, hidden) and final states (candidate, batch, hidden).

    Args:
        form: the layer.
        own: its numbers.
        which: index of each candidate's equations.
        order: index of each candidate's order of gates.
        x: inputs (candidate or 1, batch, time, input).
        initial: states (batch, hidden), none for zeros.
    """
    count, (_, batch, time, _) = len(which), x.shape
    gates, hidden = own.bias.shape
    inputs = (x @ own.kernel).reshape(*x.shape[:3], gates, hidden) + own.bias
    position = np.array([[o.index(gate) for gate in GATES[form.cell]] for o in orders(form.cell)])[order]
    shape = (count, batch, hidden)
    state = tuple(np.broadcast_to(s.astype(x.dtype), shape) for s in initial)
    step = {Cell.LSTM: _lstm, Cell.GRU: _gru, Cell.RNN: _rnn}[form.cell](form, own, which, position, x.dtype)
    if not state:
        state = tuple(np.zeros(shape, x.dtype) for _ in range(2 if form.cell is Cell.LSTM else 1))
    outputs = np.empty((count, batch, time, hidden), x.dtype)
    for t in range(time):
        at = np.broadcast_to(inputs[:, :, t], (count, batch, gates, hidden))
        state = step(at, state, t > 0 or bool(initial))
        outputs[:, :, t] = state[0]
    return outputs, state


def _product(h: Array, recurrent: Array) -> Array:
    """(candidate, batch, recurrent) times (recurrent, gate, hidden)."""
    size, gates, hidden = recurrent.shape
    flat = h.reshape(-1, size) @ recurrent.reshape(size, gates * hidden)
    result: Array = flat.reshape(*h.shape[:2], gates, hidden)
    return result


def _lstm(form: Form, own: Numbers, which: Array, position: Array, dtype: Any) -> Any:
    every = [e for e in equations(form.cell) if isinstance(e, LstmEquations)]
    gate = _Options([e.gate_activation for e in every], which)
    cell = _Options([e.cell_activation for e in every], which)
    hidden = _Options([e.hidden_activation for e in every], which)
    constant = np.array([e.constant.get(Gate.FORGET, 0.0) for e in every], dtype)[which][:, None, None]
    rows = np.arange(len(which))

    def step(inputs: Array, state: tuple[Array, ...], moved: bool) -> tuple[Array, ...]:
        h, c = state
        z = inputs + _product(h, own.recurrent) if moved else inputs
        i, f, g, o = (z[rows, :, position[:, n]] for n in range(4))
        c = gate(i) * cell(g) + (gate(f + constant) * c if moved else 0)
        return gate(o) * hidden(c), c

    return step


def _gru(form: Form, own: Numbers, which: Array, position: Array, dtype: Any) -> Any:
    every = [e for e in equations(form.cell) if isinstance(e, GruEquations)]
    gate = _Options([e.gate_activation for e in every], which)
    inner = _Options([e.candidate_activation for e in every], which)
    after = np.array([e.reset is ResetPlace.AFTER_PRODUCT for e in every])[which]
    keeps = np.array([e.update_keeps is UpdateKeeps.STATE for e in every])[which][:, None, None]
    rows = np.arange(len(which))
    # The candidate's recurrent bias lies inside the reset gate's product, or simply beside the other one.
    inside = own.bias_recurrent[position[:, 2]] + own.bias_candidate
    before = ~after

    def step(inputs: Array, state: tuple[Array, ...], moved: bool) -> tuple[Array, ...]:
        (h,) = state
        product = _product(h, own.recurrent) if moved else np.zeros_like(inputs)
        z, r = (
            gate(inputs[rows, :, position[:, n]] + product[rows, :, position[:, n]] + bias[:, None])
            for n, bias in ((n, own.bias_recurrent[position[:, n]]) for n in (0, 1))
        )
        share = product[rows, :, position[:, 2]] + inside[:, None]
        share[after] *= r[after]
        if moved and before.any():
            reset = r * h
            for n in np.unique(position[before, 2]):
                own_rows = before & (position[:, 2] == n)
                share[own_rows] = reset[own_rows] @ own.recurrent[:, n] + inside[own_rows][:, None]
        n = inner(inputs[rows, :, position[:, 2]] + share)
        kept = np.where(keeps, z, 1 - z)
        return (kept * h + (1 - kept) * n,)

    del dtype
    return step


def _rnn(form: Form, own: Numbers, which: Array, position: Array, dtype: Any) -> Any:
    inner = _Options(
        [e.hidden_activation for e in equations(form.cell) if isinstance(e, RnnEquations)], which
    )
    del position, dtype

    def step(inputs: Array, state: tuple[Array, ...], moved: bool) -> tuple[Array, ...]:
        z = inputs + _product(state[0], own.recurrent) if moved else inputs
        return (inner(z[:, :, 0]),)

    return step


class Bench:
    """A structure with its numbers at hand, to measure candidates on readings of the sample."""

    def __init__(
        self,
        structure: Structure,
        arrays: Mapping[str, Array],
        dtype: Any = np.float32,
        store: Store | None = None,
    ) -> None:
        kept: Store = {} if store is None else store
        self.structure = structure
        self.dtype = np.dtype(dtype)
        self.numbers = [numbers(form, arrays, self.dtype, kept) for form in structure.layers]
        self.head = [
            (
                (kernel if dense.input_first else kernel.T).astype(dtype),
                np.zeros(dense.output_size, dtype)
                if dense.bias is None
                else arrays[dense.bias].ravel().astype(dtype),
            )
            for dense in structure.head
            for kernel in [arrays[dense.kernel]]
        ]

    def errors(self, population: Population, reading: Reading) -> Array:
        """The largest difference of each candidate from the sample (candidate,); infinite where it is NaN."""
        steps, rows = reading.x.shape[1], reading.x.shape[0]
        widest = max(f.hidden_size * max(len(GATES[f.cell]), steps) for f in self.structure.layers)
        size = max(1, _MOST_VALUES // max(1, rows * widest))
        pieces = []
        columns = (*population.equations, *population.orders, population.states)
        keys = np.stack(columns, 1)
        unique, inverse = np.unique(keys, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        for start in range(0, len(unique), size):
            wanted = (inverse >= start) & (inverse < start + size)
            pieces.append((np.flatnonzero(wanted), unique[start : start + size], inverse[wanted] - start))
        result = np.empty(len(population))
        layers = len(self.structure.layers)
        with np.errstate(all="ignore"):
            for at, table, place in pieces:
                outputs, finals = self._outputs(table, layers, reading)
                result[at] = self._measured(
                    outputs, finals, table[:, -1], place, population.head[at], reading
                )
        return result

    def _outputs(self, table: Array, layers: int, reading: Reading) -> tuple[Array, tuple[Array, ...]]:
        x = reading.x.astype(self.dtype)[np.newaxis]
        finals: tuple[Array, ...] = ()
        if len(reading.initial) < 2:
            groups = [(slice(None), reading.initial)]
        else:
            groups = [
                (table[:, -1] == n, reading.initial[:: 1 if n == 0 else -1]) for n in range(len(STATE_ORDERS))
            ]
        if layers == 1 and len(groups) > 1:
            form = self.structure.layers[0]
            outputs = np.empty((len(table), *x.shape[1:3], form.hidden_size), self.dtype)
            ends = [np.empty((len(table), x.shape[1], form.hidden_size), self.dtype) for _ in range(2)]
            for rows, initial in groups:
                chosen = table[rows]
                if len(chosen):
                    y, state = _run(form, self.numbers[0], chosen[:, 0], chosen[:, 1], x, initial)
                    outputs[rows] = y
                    for end, value in zip(ends, state, strict=True):
                        end[rows] = value
            return outputs, tuple(ends)
        for n, (form, own) in enumerate(zip(self.structure.layers, self.numbers, strict=True)):
            initial = reading.initial if n == 0 else ()
            x, finals = _run(form, own, table[:, n], table[:, layers + n], x, initial)
        return x, finals

    def _measured(
        self,
        outputs: Array,
        finals: tuple[Array, ...],
        states: Array,
        place: Array,
        head: Array,
        reading: Reading,
    ) -> Array:
        expected = reading.y.astype(np.float64)
        given = outputs if reading.whole else outputs[:, :, -1]
        activations = head_activations(self.structure)
        per_head = np.full((len(outputs), len(activations)), np.inf)
        for n in np.unique(head):
            y = given
            for (kernel, bias), activation in zip(self.head, activations[int(n)], strict=True):
                y = activation(y @ kernel + bias)
            per_head[:, n] = _worst(y, expected)
        result: Array = per_head[place, head]
        if reading.final:
            ends = np.zeros(len(outputs))
            for n, state in enumerate(reading.final):
                for order in range(len(STATE_ORDERS) if len(finals) > 1 else 1):
                    rows = states == order
                    if rows.any():
                        own = finals[n if order == 0 else len(finals) - 1 - n][rows]
                        ends[rows] = np.maximum(ends[rows], _worst(own, state.astype(np.float64)))
            result = np.maximum(result, ends[place])
        return result

    def outputs(self, population: Population, reading: Reading) -> Array:
        """The outputs (batch, [time,] features) of the one candidate of a population."""
        columns = (*population.equations, *population.orders, population.states)
        with np.errstate(all="ignore"):
            y, _ = self._outputs(np.stack(columns, 1), len(self.structure.layers), reading)
            y = y if reading.whole else y[:, :, -1]
            for (kernel, bias), activation in zip(
                self.head, head_activations(self.structure)[int(population.head[0])], strict=True
            ):
                y = activation(y @ kernel + bias)
        result: Array = y[0]
        return result


def _worst(values: Array, expected: Array) -> Array:
    """Largest difference of each candidate (candidate,); infinite where there is none."""
    gaps = np.abs(values - expected).reshape(len(values), -1).max(axis=1)
    return np.where(np.isnan(gaps), np.inf, gaps)
