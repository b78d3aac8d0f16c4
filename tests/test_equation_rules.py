"""Rules that hold for every recurrent layer and input, found out with random layers (hypothesis)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lstmconvert.activations import HARD_SIGMOID_KERAS2, LINEAR, RELU, SIGMOID, TANH, Activation
from lstmconvert.canonical import (
    Coupling,
    Equations,
    GruEquations,
    LstmEquations,
    MaskedOutput,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    RnnEquations,
    SequenceBehaviour,
    UpdateKeeps,
    Weights,
)
from lstmconvert.gates import GATES, Cell, Direction, Gate, Part
from lstmconvert.interpreter.running import run_recurrent
from lstmconvert.tensors import Array, Lazy
from tests.support import BIASES, random_layer, random_state

BOTH = ("forward", "reverse")
TOLERANCE = 1e-12
"""The same sums in another order, in float64."""

_bounded = st.sampled_from(
    [SIGMOID, TANH, HARD_SIGMOID_KERAS2, Activation("softsign"), Activation("scaled_tanh", 0.8, 1.3)]
)
_clips = st.none() | st.floats(0.1, 2.0)


@st.composite
def equations(draw: Callable[..., Any], cell: Cell) -> Equations:
    """Any equations whose states stay bounded."""
    constant = MappingProxyType(draw(st.dictionaries(st.sampled_from(GATES[cell]), st.floats(-1, 1))))
    clip = draw(_clips)
    if cell is Cell.LSTM:
        return LstmEquations(
            draw(st.sampled_from([SIGMOID, HARD_SIGMOID_KERAS2])),
            draw(_bounded),
            draw(st.sampled_from([TANH, LINEAR, RELU])),
            constant,
            draw(st.sampled_from(Coupling)),
            clip,
            draw(_clips),
            draw(_clips),
        )
    if cell is Cell.GRU:
        return GruEquations(
            draw(st.sampled_from(ResetPlace)),
            draw(st.sampled_from(UpdateKeeps)),
            draw(st.sampled_from([SIGMOID, HARD_SIGMOID_KERAS2])),
            draw(_bounded),
            constant,
            clip,
        )
    return RnnEquations(draw(_bounded), constant, clip)


@st.composite
def layers(draw: Callable[..., Any], directions: tuple[str, ...] | None = None) -> RecurrentLayer:
    """Any float64 layer of small sizes."""
    cell = draw(st.sampled_from(Cell))
    chosen = draw(st.sampled_from([("forward",), ("reverse",), BOTH])) if directions is None else directions
    lstm = cell is Cell.LSTM
    return random_layer(
        cell,
        seed=draw(st.integers(0, 2**16)),
        input_size=draw(st.integers(1, 4)),
        hidden_size=draw(st.integers(1, 4)),
        directions=chosen,
        biases=draw(st.sampled_from(sorted(BIASES))),
        peephole=lstm and draw(st.booleans()),
        projection=draw(st.none() | st.integers(1, 3)) if lstm else None,
        initial_state=draw(st.booleans()),
        equations=[draw(equations(cell)) for _ in chosen],
        sequence=SequenceBehaviour(
            merge=draw(st.sampled_from(Merge)), masked_output=draw(st.sampled_from(MaskedOutput))
        ),
        dtype=np.float64,
        scale=draw(st.sampled_from([0.3, 1.0, 4.0])),
    )


@st.composite
def problems(
    draw: Callable[..., Any], directions: tuple[str, ...] | None = None
) -> tuple[RecurrentLayer, Array, Array, Any]:
    """A layer, inputs (batch, time, input), a mask and initial states (or none)."""
    layer = draw(layers(directions))
    batch, time = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.standard_normal((batch, time, layer.input_size)) * draw(st.sampled_from([0.5, 3.0]))
    mask = rng.random((batch, time)) < draw(st.sampled_from([0.3, 0.7]))
    state = random_state(layer, seed=draw(st.integers(0, 99)), batch=batch) if draw(st.booleans()) else None
    return layer, x, mask, state


rule = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def _states(state: Any) -> tuple[Array, ...]:
    return () if state is None else state if isinstance(state, tuple) else (state,)


def _part(state: Any, index: Any) -> Any:
    """The same states, of some directions or batch rows only."""
    found = tuple(part[index] for part in _states(state))
    return None if state is None else found if isinstance(state, tuple) else found[0]


def _near(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def _near_states(a: Any, b: Any) -> None:
    for first, second in zip(_states(a), _states(b), strict=True):
        _near(first, second)


@rule
@given(problems())
def test_lengths_are_truncation(problem: tuple[RecurrentLayer, Array, Array, Any]) -> None:
    """Each sequence alone, cut to its length, gives the same outputs and the same final state."""
    layer, x, mask, state = problem
    lengths = mask.sum(axis=1)
    y, final = layer.run(x, lengths=lengths, initial_state=state)
    for row, length in enumerate(lengths):
        alone = np.s_[:, row : row + 1]
        short, short_final = layer.run(x[row : row + 1, :length], initial_state=_part(state, alone))
        _near(y[row : row + 1, :length], short)
        _near_states(_part(final, alone), short_final)
        if layer.sequence.masked_output is MaskedOutput.ZERO:
            assert not y[row, length:].any()


@rule
@given(problems())
def test_a_mask_is_the_valid_steps_alone(problem: tuple[RecurrentLayer, Array, Array, Any]) -> None:
    """Holes anywhere: the valid steps give what they give without the others between them."""
    layer, x, mask, state = problem
    y, final = layer.run(x, mask=mask, initial_state=state)
    for row, valid in enumerate(mask):
        alone = np.s_[:, row : row + 1]
        short, short_final = layer.run(x[row : row + 1, valid], initial_state=_part(state, alone))
        _near(y[row : row + 1, valid], short)
        _near_states(_part(final, alone), short_final)


@rule
@given(problems(("forward",)))
def test_masked_steps_hold_the_state(problem: tuple[RecurrentLayer, Array, Array, Any]) -> None:
    """In the trace the states stay bit for bit; the output is what ``MaskedOutput`` says."""
    layer, x, mask, state = problem
    y, _ = layer.run(x, mask=mask, initial_state=state)
    values = layer.trace(x, mask=mask, initial_state=state).values
    for t in range(1, x.shape[1]):
        masked = ~mask[:, t]
        for name in ("hidden_state", "cell_state"):
            if name in values:
                np.testing.assert_array_equal(values[name][masked, t], values[name][masked, t - 1])
        if layer.sequence.masked_output is MaskedOutput.HOLD:
            np.testing.assert_array_equal(y[masked, t], y[masked, t - 1])
    if layer.sequence.masked_output is MaskedOutput.HOLD_STATE:
        np.testing.assert_array_equal(y, values["hidden_state"])
    if layer.sequence.masked_output is MaskedOutput.HOLD:
        never = ~np.maximum.accumulate(mask, axis=1)
        assert not y[never].any()


@rule
@given(problems(("reverse",)))
def test_reverse_is_forward_on_flipped_time(problem: tuple[RecurrentLayer, Array, Array, Any]) -> None:
    """Input, mask and output flipped; bit for bit."""
    layer, x, mask, state = problem
    (direction,) = layer.directions
    forward = layer.with_directions([replace(direction, direction=Direction.FORWARD)])
    y, final = layer.run(x, mask=mask, initial_state=state)
    flipped, flipped_final = forward.run(x[:, ::-1], mask=mask[:, ::-1], initial_state=state)
    _near(y, flipped[:, ::-1])
    _near_states(final, flipped_final)


@rule
@given(problems(BOTH))
def test_two_directions_are_two_runs_merged(problem: tuple[RecurrentLayer, Array, Array, Any]) -> None:
    """Each direction alone gives its half; the last step is each one's own."""
    layer, x, mask, state = problem
    y, final = layer.run(x, mask=mask, initial_state=state)
    alone = [layer.with_directions([direction]) for direction in layer.directions]
    runs = [
        one.run(x, mask=mask, initial_state=_part(state, np.s_[d : d + 1])) for d, one in enumerate(alone)
    ]
    (first, first_final), (second, second_final) = runs
    merged = {
        Merge.CONCAT: np.concatenate([first, second], axis=-1),
        Merge.SEPARATE: np.concatenate([first, second], axis=-1),
        Merge.SUM: first + second,
        Merge.MULTIPLY: first * second,
        Merge.AVERAGE: (first + second) / 2,
    }[layer.sequence.merge]
    _near(y, merged)
    for d, own in enumerate((first_final, second_final)):
        _near_states(_part(final, np.s_[d : d + 1]), own)
    separate = run_recurrent(
        replace(layer, sequence=replace(layer.sequence, merge=Merge.SEPARATE)),
        x,
        mask=mask,
        states=[part[d] for d in range(2) for part in _states(state)],
    )
    _near(separate[0], first)
    _near(separate[1], second)


@rule
@given(problems())
def test_batch_rows_are_independent(problem: tuple[RecurrentLayer, Array, Array, Any]) -> None:
    """A permuted batch gives the permuted results; a NaN stays in its row."""
    layer, x, mask, state = problem
    y, final = layer.run(x, mask=mask, initial_state=state)
    order = np.roll(np.arange(len(x)), 1)
    rolled, rolled_final = layer.run(x[order], mask=mask[order], initial_state=_part(state, np.s_[:, order]))
    _near(rolled, y[order])
    _near_states(rolled_final, _part(final, np.s_[:, order]))
    spoilt = x.copy()
    spoilt[0] = np.nan
    with np.errstate(invalid="ignore"):
        others, _ = layer.run(spoilt, mask=mask, initial_state=state)
    _near(others[1:], y[1:])


@rule
@given(problems())
def test_float32_is_float64_rounded(problem: tuple[RecurrentLayer, Array, Array, Any]) -> None:
    """The same layer in float32, in its dtype and close: five steps amplify rounding a little."""
    layer, x, mask, state = problem

    def narrow(direction: RecurrentDirection) -> RecurrentDirection:
        weights = direction.weights.mapped(lambda _key, block: Lazy.of(block.read().astype(np.float32)))
        return replace(direction, weights=weights)

    single = layer.mapped(narrow)
    # The rounded numbers are the problem; only the arithmetic differs.
    exact = single.run(x.astype(np.float32).astype(np.float64), mask=mask, initial_state=state)
    got = single.run(x.astype(np.float32), mask=mask, initial_state=state)
    assert got[0].dtype == np.float32 and exact[0].dtype == np.float64
    assert all(part.dtype == np.float32 for part in _states(got[1]))
    scale = max(1.0, float(np.abs(exact[0]).max(initial=0)))
    np.testing.assert_allclose(got[0], exact[0], rtol=0, atol=2e-3 * scale)


@rule
@given(problems())
def test_a_run_can_be_continued(problem: tuple[RecurrentLayer, Array, Array, Any]) -> None:
    """The final state of the first steps is the initial state of the rest."""
    layer, x, mask, state = problem
    cut = x.shape[1] // 2
    forward = layer.directions[0].direction is Direction.FORWARD
    one = layer.with_directions(layer.directions[:1])
    start = _part(state, np.s_[:1])
    y, final = one.run(x, mask=mask, initial_state=start)
    parts = (np.s_[:, :cut], np.s_[:, cut:]) if forward else (np.s_[:, cut:], np.s_[:, :cut])
    for part in parts:
        got, start = one.run(x[part], mask=mask[part], initial_state=start)
        _near(got[mask[part]], y[part][mask[part]])
    _near_states(start, final)


@rule
@given(problems())
def test_biases_add_up(problem: tuple[RecurrentLayer, Array, Array, Any]) -> None:
    """Two biases and constants act as their sum, except what a reset gate multiplies."""
    layer, x, mask, state = problem

    def summed(direction: RecurrentDirection) -> RecurrentDirection:
        reset_after = getattr(direction.equations, "reset", None) is ResetPlace.AFTER_PRODUCT
        weights, constant = direction.weights, direction.equations.constant
        biases: dict[Gate, Array] = {}
        for gate in GATES[weights.cell]:
            total = np.full(weights.hidden_size, constant.get(gate, 0.0))
            for part in (Part.BIAS_INPUT, Part.BIAS_RECURRENT):
                inside = reset_after and gate is Gate.CANDIDATE and part is Part.BIAS_RECURRENT
                if (part, gate) in weights and not inside:
                    total = total + weights[part, gate].read()
            biases[gate] = total
        kept = weights.mapped(
            lambda key, block: (
                None
                if key[0] is Part.BIAS_INPUT
                or (key[0] is Part.BIAS_RECURRENT and not (reset_after and key[1] is Gate.CANDIDATE))
                else block
            )
        )
        made = kept.with_blocks({(Part.BIAS_INPUT, gate): Lazy.of(bias) for gate, bias in biases.items()})
        assert isinstance(made, Weights)
        return replace(
            direction, weights=made, equations=replace(direction.equations, constant=MappingProxyType({}))
        )

    y, final = layer.run(x, mask=mask, initial_state=state)
    other, other_final = layer.mapped(summed).run(x, mask=mask, initial_state=state)
    np.testing.assert_allclose(y, other, rtol=1e-9, atol=1e-9)
    for a, b in zip(_states(final), _states(other_final), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
