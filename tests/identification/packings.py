"""Random packings: arrays as somebody may have dumped a layer, made without the package's layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmconvert.activations import HARD_SIGMOID_KERAS2, HARD_SIGMOID_KERAS3, RELU, SIGMOID, TANH
from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    UpdateKeeps,
    Weights,
)
from lstmconvert.gates import GATES, Cell, Direction, Gate, Part
from tests.support import random_weights

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Drawn:
    """A layer and a dump of it."""

    layer: RecurrentLayer
    order: tuple[Gate, ...]
    arrays: dict[str, Array]
    words: str


def drawn_equations(cell: Cell, rng: np.random.Generator) -> Equations:
    """Equations of a cell, every option drawn."""
    gate = (SIGMOID, HARD_SIGMOID_KERAS2, HARD_SIGMOID_KERAS3)[rng.integers(3)]
    inner = (TANH, TANH, RELU)[rng.integers(3)]
    if cell is Cell.LSTM:
        return LstmEquations(gate, inner, inner, constant={Gate.FORGET: 1.0} if rng.random() < 0.4 else {})
    return GruEquations(list(ResetPlace)[rng.integers(2)], list(UpdateKeeps)[rng.integers(2)], gate, inner)


def stacked(blocks: Sequence[Array], packing: str, *, turned: bool) -> list[Array]:
    """Blocks of every gate, (hidden, width) or (hidden,), as one array or one a gate.

    Args:
        blocks: in stored order.
        packing: blocked, interleaved, deep or apart.
        turned: whether matrices are (width, hidden).
    """
    if packing == "apart":
        return [block.T.copy() if turned else block for block in blocks]
    if packing == "deep":
        return [np.stack([block.T if turned else block for block in blocks])]
    joined = (
        np.concatenate(blocks)
        if packing == "blocked"
        else np.stack(blocks, 1).reshape(-1, *blocks[0].shape[1:])
    )
    return [joined.T.copy() if turned else joined]


def draw(seed: int) -> Drawn:
    """A random layer in a random packing."""
    rng = np.random.default_rng(seed)
    cell = (Cell.LSTM, Cell.LSTM, Cell.GRU)[rng.integers(3)]
    sizes = rng.choice(np.arange(2, 8), 2, replace=False)
    order = tuple(Gate(str(gate)) for gate in rng.permutation([str(gate) for gate in GATES[cell]]))
    biases = ["none", "one", "one", "two", "rows"] + (["four"] if cell is Cell.GRU else [])
    bias = biases[rng.integers(len(biases))]
    equations = drawn_equations(cell, rng)
    kept = {"none": "none", "one": "input", "four": "two"}.get(bias, "two")
    weights = random_weights(cell, rng, input_size=int(sizes[0]), hidden_size=int(sizes[1]), biases=kept)
    if bias == "four":
        held = {key: block for key, block in weights.items() if key[0] is not Part.BIAS_RECURRENT}
        held[Part.BIAS_RECURRENT, Gate.CANDIDATE] = weights[Part.BIAS_RECURRENT, Gate.CANDIDATE]
        weights = Weights(cell, held)
    parts = {part: [weights[part, g].read() for g in order] for part in (Part.KERNEL, Part.RECURRENT)}
    turned = [bool(n) for n in rng.integers(0, 2, 2)]
    packing = ("blocked", "blocked", "interleaved", "deep", "apart")[rng.integers(5)]
    joined = rng.random() < 0.25
    if joined:
        input_first = bool(rng.integers(2))
        pairs = list(zip(*parts.values(), strict=True))
        blocks = [np.concatenate([k, r] if input_first else [r, k], 1) for k, r in pairs]
        matrices = stacked(blocks, packing, turned=turned[0])
    else:
        matrices = stacked(parts[Part.KERNEL], packing, turned=turned[0])
        matrices += stacked(parts[Part.RECURRENT], packing, turned=turned[1])
    own = {
        part: [weights[part, gate].read() for gate in order if (part, gate) in weights]
        for part in (Part.BIAS_INPUT, Part.BIAS_RECURRENT)
    }
    flat = packing if packing in ("interleaved", "apart") else "blocked"
    vectors: list[Array] = []
    if bias == "rows":
        first, second = (stacked(own[part], flat, turned=False) for part in own)
        vectors = [np.stack(pair) for pair in zip(first, second, strict=True)]
    elif bias == "four":
        vectors = [np.concatenate([*own[Part.BIAS_INPUT], *own[Part.BIAS_RECURRENT]])]
    elif bias != "none":
        vectors = [v for part in own if own[part] for v in stacked(own[part], flat, turned=False)]
    arrays = [*vectors, *matrices] if rng.random() < 0.3 else [*matrices, *vectors]
    layer = RecurrentLayer("drawn", (RecurrentDirection(Direction.FORWARD, equations, weights),))
    words = f"seed {seed}: {cell} {', '.join(order)}; {packing}, turned {turned}, joined {joined}, bias {bias}; {equations}"
    return Drawn(layer, order, {f"arr_{n}": array for n, array in enumerate(arrays)}, words)


def sample_of(layer: RecurrentLayer, seed: int, *, batch: int = 3, time: int = 6) -> tuple[Array, Array]:
    """Inputs and the sequence of outputs, in float32."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, time, layer.input_size)).astype(np.float32)
    y, _ = layer.run(x)
    return x, y


def same_layer(a: RecurrentLayer, b: RecurrentLayer) -> bool:
    """Whether two layers have the same equations and, but for how two biases split, the same numbers."""
    first, second = a.directions[0], b.directions[0]
    if first.equations != second.equations or a.cell is not b.cell:
        return False
    x = np.random.default_rng(1).standard_normal((2, 7, a.input_size)) * 2
    return a.input_size == b.input_size and bool(np.allclose(a.run(x)[0], b.run(x)[0], rtol=0, atol=1e-9))
