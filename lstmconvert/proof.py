"""The proof: two models compute the same, shown on their numbers and on what they give.

Weights are compared bit by bit after both are read to canonical form. Then both run in float64 on
random inputs, states and lengths, scaled so that gates saturate and do not. The tolerance is not a
constant: it is what float32 rounding alone does to the first model on the same inputs, so a difference
that is larger is no rounding of the target's runtime but a fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from lstmconvert import pieces
from lstmconvert.canonical import Equations, RecurrentLayer, SequenceBehaviour
from lstmconvert.finite import not_finite
from lstmconvert.gates import Cell
from lstmconvert.lowering import Rewrite
from lstmconvert.movement import Movement
from lstmconvert.sampling import Sampler
from lstmconvert.tensors import Array, same_bits
from lstmconvert.values import dataclass

SLACK = 8.0
"""How many times float32's own rounding error two models may differ."""
_SCALES = (0.3, 1.0, 4.0)
_BATCH, _TIME = 3, 7
_SEED = 20261123
LARGE = 1 << 21
"""Number of weights from which on a proof must not take long, unless all is asked for."""


@dataclass(frozen=True, slots=True)
class LayerProof:
    """What was found for one recurrent layer.

    Attributes:
        name: its name in the source.
        target: its name in the target.
        bit_equal: whether all weights have the same bits in canonical form.
        max_abs_error: largest difference of outputs and states, in float64.
        max_rel_error: the same, relative to the largest output.
        tolerance: the difference that float32 rounding explains.
        time_errors: largest difference of the outputs at every step.
        differing: blocks whose bits differ, with the largest difference, and that in units in the last
            place; ``None`` where no number of them says it (NaN, infinities, another dtype).
        not_finite: blocks of the source that hold NaN or infinities, and how many.
    """

    name: str
    target: str
    bit_equal: bool
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    time_errors: tuple[float, ...] = ()
    differing: tuple[tuple[str, float, int | None], ...] = ()
    not_finite: tuple[tuple[str, int], ...] = ()

    @property
    def not_run(self) -> bool:
        """Whether the bits and equations are the same, and so large that this was proof enough."""
        return self.bit_equal and not self.time_errors

    @property
    def proved(self) -> bool:
        """Whether the difference is within the tolerance (never, when it is not a number)."""
        return bool(self.max_abs_error <= self.tolerance)


@dataclass(frozen=True, slots=True)
class WholeProof:
    """What was found for a whole model, or for a file run in its own runtime.

    Attributes:
        runtime: what ran the target: ``interpreter`` or the name and release of a runtime.
        max_abs_error, max_rel_error, tolerance: as for a layer, over all outputs.
        first_difference: the first layer whose result differs, if one does.
    """

    runtime: str
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    first_difference: str | None = None

    @property
    def proved(self) -> bool:
        """Whether the difference is within the tolerance."""
        return bool(self.max_abs_error <= self.tolerance)


@dataclass(frozen=True, slots=True)
class Proof:
    """The verdict on two models.

    Attributes:
        layers: one entry per recurrent layer.
        whole: one entry per way in which the whole model was run.
        problems: what is wrong apart from numbers (a layer that is missing).
        rewrites: what lowering did on the way.
        skipped: what could not be shown, and why; never silently.
        seconds: how long the conversion took, proof included.
        movement: where every single element went; ``None`` where nothing was moved.
    """

    layers: tuple[LayerProof, ...]
    whole: tuple[WholeProof, ...] = ()
    problems: tuple[str, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0
    movement: Movement | None = None

    @property
    def proved(self) -> bool:
        """Whether every part of the proof holds."""
        return (
            not self.problems
            and (self.movement is None or self.movement.proved)
            and bool(self.layers or self.whole)
            and all(p.proved for p in self.layers)
            and all(p.proved for p in self.whole)
        )

    @property
    def verdict(self) -> str:
        """``proved`` or ``failed``."""
        return "proved" if self.proved else "failed"

    @property
    def exact(self) -> bool:
        """Whether every weight arrived bit for bit and every rewrite was exact."""
        return all(p.bit_equal for p in self.layers) and all(step.exact for step in self.rewrites)

    @property
    def max_abs_error(self) -> float:
        """Largest absolute difference anywhere."""
        return max((p.max_abs_error for p in self._all()), default=0.0)

    @property
    def max_rel_error(self) -> float:
        """Largest relative difference anywhere."""
        return max((p.max_rel_error for p in self._all()), default=0.0)

    @property
    def tolerance(self) -> float:
        """Largest tolerance that was applied."""
        return max((p.tolerance for p in self._all()), default=0.0)

    def _all(self) -> list[LayerProof | WholeProof]:
        return [*self.layers, *self.whole]


def excite(layer: RecurrentLayer, seed: int) -> tuple[Array, Array, list[Array]]:
    """Inputs that make every gate move, small and large ones in one batch: x, lengths, states; float64.

    Shapes: x (batch, time, input), lengths (batch,), states (directions, batch, size). The sequences of
    the first size have all steps.
    """
    random = Sampler(seed)
    sizes = [layer.recurrent_size] + ([layer.hidden_size] if layer.cell is Cell.LSTM else [])
    batch = _BATCH * len(_SCALES)
    x = random.normal((batch, _TIME, layer.input_size))
    x *= np.repeat(_SCALES, _BATCH)[:, np.newaxis, np.newaxis]
    lengths = random.integers(1, _TIME, (batch,))
    lengths[: _BATCH + 1] = _TIME
    return x, lengths, [random.uniform(-1, 1, (len(layer.directions), batch, size)) for size in sizes]


def _neutral(layer: RecurrentLayer) -> RecurrentLayer:
    """The layer's step equations alone: how the loop is run belongs to the proof of the whole model."""
    return replace(layer, sequence=SequenceBehaviour())


def _flat(result: tuple[Array, Any]) -> list[Array]:
    y, state = result
    return [y, *(state if isinstance(state, tuple) else (state,))]


def gap(a: Sequence[Array], b: Sequence[Array]) -> float:
    """Largest difference; equal infinities and two NaNs at one place count as equal."""
    worst = 0.0
    for first, second in zip(a, b, strict=True):
        wide, other = first.astype(np.float64), second.astype(np.float64)
        same = (wide == other) | (np.isnan(wide) & np.isnan(other))
        with np.errstate(invalid="ignore"):
            gap = np.where(same, 0.0, np.abs(wide - other))
        worst = max(worst, float(np.max(np.where(np.isnan(gap), np.inf, gap), initial=0.0)))
    return worst


def scale(arrays: Sequence[Array]) -> float:
    """Largest finite magnitude."""
    return max((float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0)) for a in arrays), default=0.0)


def rounding(values: Sequence[Array], exact: Sequence[Array]) -> float:
    """The tolerance that the observed rounding of a run in low precision stands for."""
    eps = float(np.finfo(np.float32).eps)
    return SLACK * (gap(values, exact) + eps * scale(exact))


def prove_layer(
    source: RecurrentLayer, target: RecurrentLayer, *, tolerance: float | None = None, full: bool = False
) -> LayerProof:
    """Compare two layers in bits and in what they compute.

    Args:
        source, target: layers of the same cell and sizes.
        tolerance: largest accepted absolute difference; worked out from float32 rounding if not given.
        full: run a large layer although its bits and equations are the same.

    Raises:
        ValueError: when cell, sizes or directions differ.
    """
    for name in ("cell", "direction", "input_size", "hidden_size", "recurrent_size"):
        a, b = getattr(source, name), getattr(target, name)
        if a != b:
            raise ValueError(f"{name.replace('_', ' ')} is {a} in the source and {b} in the target")
    differing, strange = _differing(source, target)
    bit_equal = not differing and _same_equations(source, target)
    if bit_equal and not full and _weights(source) > LARGE:
        # The same bits in the same equations: a run could show nothing more, and float64 copies of
        # a large layer would cost more than the conversion.
        return LayerProof(source.name, target.name, True, 0.0, 0.0, 0.0, not_finite=tuple(strange))
    first, second = _neutral(source), _neutral(target)
    narrow = first.in_dtype(np.float32)
    x, lengths, state = excite(source, _SEED)

    def results(layer: RecurrentLayer, dtype: type[np.floating[Any]]) -> list[Array]:
        initial = tuple(s.astype(dtype) for s in state)
        given: Any = initial if len(initial) == 2 else initial[0]
        return _flat(layer.run(x.astype(dtype), lengths=lengths, initial_state=given))

    with np.errstate(all="ignore"):  # Overflow gives infinities and NaNs here as it does in the frameworks.
        exact, other = results(first, np.float64), results(second, np.float64)
        worst = gap(exact, other)
        same = (exact[0] == other[0]) | (np.isnan(exact[0]) & np.isnan(other[0]))
        steps = np.where(same, 0, np.abs(exact[0] - other[0]))
        steps = np.where(np.isnan(steps), np.inf, steps).max(axis=(0, 2))
        allowed = rounding(results(narrow, np.float32), exact) if tolerance is None else tolerance
    return LayerProof(
        source.name,
        target.name,
        not differing,
        worst,
        worst / max(scale(exact), 1e-30) if worst else 0.0,
        allowed,
        tuple(float(s) for s in steps),
        tuple(differing),
        tuple(strange),
    )


def _weights(layer: RecurrentLayer) -> int:
    return sum(block.size for direction in layer.directions for block in direction.weights.values())


def _same_equations(source: RecurrentLayer, target: RecurrentLayer) -> bool:
    pairs = zip(source.directions, target.directions, strict=True)
    return all(_plain(a.equations) == _plain(b.equations) for a, b in pairs)


def _plain(value: Equations) -> tuple[Any, ...]:
    from dataclasses import fields

    items = ((f.name, getattr(value, f.name)) for f in fields(value))
    return tuple((name, dict(v) if isinstance(v, Mapping) else v) for name, v in items)


def _differing(
    source: RecurrentLayer, target: RecurrentLayer
) -> tuple[list[tuple[str, float, int | None]], list[tuple[str, int]]]:
    """Blocks whose bits differ, and those of the source with NaN or infinities.

    An absent bias against a bias of zeros is no difference in bits that act.
    """
    found, strange = [], []
    for a, b in zip(source.directions, target.directions, strict=True):
        prefix = f"{a.direction} " if len(source.directions) == 2 else ""
        # A part at a time, whose gates often lie in one tensor: that is read once, and then let go of.
        for part, group in groupby({**a.weights, **b.weights}, key=itemgetter(0)):
            keys = list(group)
            both = [key for key in keys if key in a.weights and key in b.weights]
            equal, counts = dict.fromkeys(both, True), dict.fromkeys(keys, 0)
            pairs = [(a.weights[key], b.weights[key]) for key in both]
            for number, (same, count) in pieces.of_pairs(pairs, _looked_at):
                equal[both[number]] &= same
                counts[both[number]] += count
            for key in keys:
                name = f"{prefix}{part} {key[1] or ''}".strip()
                if key not in equal:
                    values = (a if key in a.weights else b).weights[key].read()
                    counts[key] = not_finite(values) if key in a.weights else 0
                    if np.any(values):
                        found.append(_difference(name, values, np.zeros(values.shape, values.dtype)))
                elif not equal[key]:
                    found.append(_difference(name, a.weights[key].read(), b.weights[key].read()))
                if counts[key]:
                    strange.append((name, counts[key]))
    return found, strange


def _looked_at(x: Array, y: Array) -> tuple[bool, int]:
    """Whether two arrays have the same bits, and how many numbers of the first are none."""
    equal = same_bits(x, y)
    return equal, not_finite(y if equal and y.flags.c_contiguous else x)


def _difference(name: str, x: Array, y: Array) -> tuple[str, float, int | None]:
    return name, gap([x], [y]), ulps(x, y)


def ulps(a: Array, b: Array) -> int | None:
    """Largest difference in units in the last place; ``None`` where it cannot be said."""
    if a.dtype != b.dtype or a.shape != b.shape or a.dtype.itemsize > 8:
        return None
    with np.errstate(invalid="ignore"):
        if not (np.isfinite(a.astype(np.float64)).all() and np.isfinite(b.astype(np.float64)).all()):
            return None
    width = a.dtype.itemsize

    def line(array: Array) -> Array:
        # Floats lie on the number line in the order of their bits, negative ones turned around.
        bits = np.ascontiguousarray(array).view(np.dtype(f"i{width}")).astype(np.int64)
        lowest = -(1 << (8 * width - 1))
        result: Array = np.where(bits < 0, lowest - bits, bits)
        return result

    difference = line(a).astype(np.longdouble) - line(b).astype(np.longdouble)
    return int(np.max(np.abs(difference), initial=0))


def prove_layers(
    source: Mapping[str, RecurrentLayer],
    target: Mapping[str, RecurrentLayer],
    *,
    tolerance: float | None = None,
    full: bool = False,
) -> tuple[list[LayerProof], list[str]]:
    """Compare the recurrent layers of two models in their order; also what speaks against them otherwise."""
    problems = []
    if len(source) != len(target):
        problems.append(
            f"the source has {len(source)} recurrent layers ({', '.join(source)}), "
            f"the target {len(target)} ({', '.join(target)})"
        )
    proofs = []
    for a, b in zip(source.values(), target.values(), strict=False):
        try:
            proofs.append(prove_layer(a, b, tolerance=tolerance, full=full))
        except ValueError as error:
            problems.append(f"layer {a.name!r} against {b.name!r}: {error}")
    return proofs, problems
