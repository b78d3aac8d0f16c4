"""Random layers and inputs that many tests share: different numbers for every gate, unequal sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    RnnEquations,
    SequenceBehaviour,
    Weights,
)
from lstmconvert.gates import GATES, PEEPHOLE_GATES, Cell, Direction, Gate, Part
from lstmconvert.tensors import Array, Lazy, same_bits

INPUT_SIZE, HIDDEN_SIZE, PROJECTED_SIZE = 3, 5, 2
"""Sizes that differ from each other, so that no transposed matrix fits by accident."""

BIASES: Mapping[str, tuple[Part, ...]] = {
    "two": (Part.BIAS_INPUT, Part.BIAS_RECURRENT),
    "input": (Part.BIAS_INPUT,),
    "recurrent": (Part.BIAS_RECURRENT,),
    "none": (),
}


def default_equations(cell: Cell | str) -> Equations:
    """The usual equations: sigmoid and tanh, and the reset gate after the product."""
    match Cell(cell):
        case Cell.LSTM:
            return LstmEquations()
        case Cell.GRU:
            return GruEquations(ResetPlace.AFTER_PRODUCT)
        case Cell.RNN:
            return RnnEquations()


def random_weights(
    cell: Cell | str,
    rng: np.random.Generator,
    *,
    input_size: int = INPUT_SIZE,
    hidden_size: int = HIDDEN_SIZE,
    biases: str = "two",
    peephole: bool = False,
    projection: int | None = None,
    initial_state: bool = False,
    gates: Iterable[Gate] | None = None,
    dtype: Any = np.float32,
    scale: float = 1.0,
) -> Weights:
    """Weights of one direction, every block drawn on its own around a mean of its own.

    Args:
        cell: which cell.
        rng: where the numbers come from.
        input_size, hidden_size: as in ``RecurrentLayer``.
        biases: a key of ``BIASES``.
        peephole: whether an LSTM's gates look at the cell state.
        projection: width of an LSTM's projection, or none.
        initial_state: whether there are trained initial states.
        gates: the gates that have biases and peepholes; all if not given.
        dtype: of every block.
        scale: of the numbers; 4 saturates most gates.
    """
    kind = Cell(cell)
    recurrent_size = hidden_size if projection is None else projection
    parts = [Part.KERNEL, Part.RECURRENT, *BIASES[biases], *([Part.PEEPHOLE] if peephole else [])]
    shapes = {Part.KERNEL: (hidden_size, input_size), Part.RECURRENT: (hidden_size, recurrent_size)}

    def block(shape: tuple[int, ...]) -> Lazy:
        mean = rng.uniform(-0.3, 0.3)
        return Lazy.of(((rng.standard_normal(shape) * 0.5 + mean) * scale).astype(dtype))

    blocks: dict[tuple[Part, Gate | None], Lazy] = {}
    for part in parts:
        for gate in PEEPHOLE_GATES if part is Part.PEEPHOLE else GATES[kind]:
            if gates is None or part in shapes or gate in set(gates):
                blocks[part, gate] = block(shapes.get(part, (hidden_size,)))
    if projection is not None:
        blocks[Part.PROJECTION, None] = block((projection, hidden_size))
    if initial_state:
        blocks[Part.INITIAL_HIDDEN, None] = block((recurrent_size,))
        if kind is Cell.LSTM:
            blocks[Part.INITIAL_CELL, None] = block((hidden_size,))
    return Weights(kind, blocks)


def random_layer(
    cell: Cell | str,
    *,
    seed: int,
    input_size: int = INPUT_SIZE,
    hidden_size: int = HIDDEN_SIZE,
    directions: Sequence[str] = ("forward",),
    biases: str = "two",
    peephole: bool = False,
    projection: int | None = None,
    initial_state: bool = False,
    equations: Equations | Sequence[Equations] | None = None,
    sequence: SequenceBehaviour | None = None,
    name: str | None = None,
    dtype: Any = np.float32,
    scale: float = 1.0,
) -> RecurrentLayer:
    """A layer with random weights; see ``random_weights``.

    Args:
        cell: which cell.
        seed: of the numbers.
        directions: ``("forward",)``, ``("reverse",)`` or both.
        equations: of every direction, or one for each; ``default_equations`` if not given.
        sequence: its behaviour; the whole sequence if not given.
        name: the cell's name if not given.
    """
    rng = np.random.default_rng(seed)
    if equations is None:
        equations = default_equations(cell)
    each = [equations] * len(directions) if isinstance(equations, Equations) else list(equations)
    made = [
        RecurrentDirection(
            Direction(direction),
            own,
            random_weights(
                cell,
                rng,
                input_size=input_size,
                hidden_size=hidden_size,
                biases=biases,
                peephole=peephole,
                projection=projection,
                initial_state=initial_state,
                dtype=dtype,
                scale=scale,
            ),
        )
        for direction, own in zip(directions, each, strict=True)
    ]
    return RecurrentLayer(str(cell) if name is None else name, tuple(made), sequence or SequenceBehaviour())


def random_inputs(
    layer: RecurrentLayer, *, seed: int, batch: int = 4, time: int = 6, dtype: Any = None, scale: float = 1.0
) -> Array:
    """Inputs (batch, time, input) in the layer's dtype, or another."""
    rng = np.random.default_rng(seed)
    values: Array = rng.standard_normal((batch, time, layer.input_size)) * scale
    return values.astype(layer.dtype if dtype is None else dtype)


def random_state(layer: RecurrentLayer, *, seed: int, batch: int = 4, dtype: Any = None) -> Any:
    """Initial states as ``run`` takes them: h or (h, c), each (directions, batch, size), never zero."""
    rng = np.random.default_rng(seed)
    sizes = [layer.recurrent_size] + ([layer.hidden_size] if layer.cell is Cell.LSTM else [])
    arrays = [
        rng.uniform(-1, 1, (len(layer.directions), batch, size)).astype(
            layer.dtype if dtype is None else dtype
        )
        for size in sizes
    ]
    return tuple(arrays) if len(arrays) == 2 else arrays[0]


def random_mask(*, seed: int, batch: int = 4, time: int = 6, holes: bool = True) -> Array:
    """A mask (batch, time): one row all true, one all false, with holes or right-padded in between."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, time, batch)
    mask: Array = rng.random((batch, time)) < 0.6 if holes else np.arange(time) < lengths[:, np.newaxis]
    mask[0] = True
    if batch > 2:
        mask[1] = False
    return mask


def joined(weights: Weights, part: Part, order: Sequence[Gate], *, axis: int = 0) -> Array:
    """The blocks of one part side by side in the given order of gates."""
    return np.concatenate([weights[part, gate].read() for gate in order], axis=axis)


def bias_sum(weights: Weights, gate: Gate) -> Array:
    """Both biases of a gate added (hidden,); zeros where there are none."""
    total = np.zeros(weights.hidden_size, weights.dtype)
    for part in (Part.BIAS_INPUT, Part.BIAS_RECURRENT):
        if (part, gate) in weights:
            total = total + weights[part, gate].read()
    return total


def assert_same_weights(a: Weights, b: Weights) -> None:
    """Equal blocks, bit by bit."""
    assert list(a) == list(b)
    for key in a:
        assert same_bits(a[key].read(), b[key].read()), f"{key} differs"


def assert_close(actual: Any, expected: Any, *, tolerance: float = 1e-5, context: object = "") -> None:
    """Close relative to the scale of what was expected; NaN fails unless both have it."""
    got, wanted = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert got.shape == wanted.shape, f"shape {got.shape}, expected {wanted.shape} {context}"
    scale = max(1.0, float(np.max(np.abs(wanted), initial=0.0)))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * scale, err_msg=str(context))


__all__ = [
    "BIASES",
    "HIDDEN_SIZE",
    "INPUT_SIZE",
    "PROJECTED_SIZE",
    "assert_close",
    "assert_same_weights",
    "bias_sum",
    "default_equations",
    "joined",
    "random_inputs",
    "random_layer",
    "random_mask",
    "random_state",
    "random_weights",
]
