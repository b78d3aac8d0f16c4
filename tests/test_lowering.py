"""Lowering: an exact rewrite changes no result, a rounding one says by how much, the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from lstmconvert import bias_split, lowering, mapping
from lstmconvert.activations import HARD_SIGMOID_KERAS2, HARD_SIGMOID_KERAS3, RELU, SIGMOID, Activation
from lstmconvert.canonical import (
    Coupling,
    Equations,
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    RnnEquations,
    UpdateKeeps,
    Weights,
)
from lstmconvert.errors import NotRepresentable
from lstmconvert.gates import GATES, PEEPHOLE_GATES, Direction, Gate, Part
from lstmconvert.mapping import MappingFile
from lstmconvert.tensors import Lazy, same_bits

HIDDEN, INPUT = 5, 3
BEFORE, AFTER = ResetPlace.BEFORE_PRODUCT, ResetPlace.AFTER_PRODUCT


def layer(
    equations: Equations,
    *,
    biases: int = 1,
    peephole: bool = False,
    directions: tuple[Direction, ...] = (Direction.FORWARD,),
    dtype: Any = np.float32,
    seed: int = 7,
) -> RecurrentLayer:
    """A layer whose gates all differ."""
    rng = np.random.default_rng(seed)
    gates = GATES[equations.cell]

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape).astype(dtype)

    def one() -> Weights:
        return Weights.of(
            equations.cell,
            kernel={g: draw(HIDDEN, INPUT) for g in gates},
            recurrent={g: draw(HIDDEN, HIDDEN) for g in gates},
            bias_input={g: draw(HIDDEN) for g in gates} if biases else None,
            bias_recurrent={g: draw(HIDDEN) for g in gates} if biases > 1 else None,
            peephole={g: draw(HIDDEN) for g in PEEPHOLE_GATES} if peephole else None,
        )

    return RecurrentLayer("layer", tuple(RecurrentDirection(d, equations, one()) for d in directions))


def results(found: RecurrentLayer) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(11)
    x = rng.standard_normal((3, 6, INPUT)) * 2
    states = [rng.uniform(-1, 1, (len(found.directions), 3, HIDDEN)) for _ in range(2)]
    initial = tuple(states) if found.cell == "lstm" else states[0]
    y, state = found.run(x, lengths=np.array([6, 2, 4]), initial_state=initial)
    return [y, *(state if isinstance(state, tuple) else (state,))]


def same_results(a: RecurrentLayer, b: RecurrentLayer, tolerance: float) -> None:
    for first, second in zip(results(a), results(b), strict=True):
        assert np.max(np.abs(first - second)) <= tolerance


def target(name: str, **changes: Any) -> MappingFile:
    """A built-in mapping file with some facts of its dialects changed, to have a target of any kind."""
    found = mapping.load(name)
    if not changes:
        return found
    layouts = {n: replace(la, dialect=replace(la.dialect, **changes)) for n, la in found.layouts.items()}
    return replace(found, layouts=MappingProxyType(layouts))


def test_a_layer_that_fits_is_left_alone() -> None:
    given = layer(LstmEquations(), biases=2)
    lowered, layout, rewrites = lowering.lower_layer(given, target("pytorch"))
    assert lowered is given
    assert layout.name == "lstm"
    assert rewrites == ()


def test_two_biases_are_summed_and_the_rounding_is_reported() -> None:
    given = layer(LstmEquations(), biases=2)
    lowered, _, (rewrite,) = lowering.lower_layer(given, target("keras"))
    assert rewrite.name == "sum_biases"
    assert not rewrite.exact
    assert 0 < rewrite.rounding < 1e-6
    assert not lowered.directions[0].weights.has(Part.BIAS_RECURRENT)
    same_results(given, lowered, 1e-5)
    first, second = given.directions[0].weights, lowered.directions[0].weights
    for gate in GATES[given.cell]:
        assert np.array_equal(second.bias_input[gate], first.bias_input[gate] + first.bias_recurrent[gate])


def test_a_remembered_split_comes_back_bit_for_bit() -> None:
    given = layer(LstmEquations(), biases=2, directions=(Direction.FORWARD, Direction.REVERSE))
    lowered, _, _ = lowering.lower_layer(given, target("keras"))
    back = bias_split.restore(lowered)
    for a, b in zip(given.directions, back.directions, strict=True):
        assert set(a.weights) == set(b.weights)
        assert all(same_bits(a.weights[key].read(), b.weights[key].read()) for key in a.weights)
    assert bias_split.NOTE not in back.notes


def test_a_stale_split_is_not_restored() -> None:
    """After training the sum is another one: the old halves must not come back."""
    lowered, _, _ = lowering.lower_layer(layer(LstmEquations(), biases=2), target("keras"))

    def trained(direction: RecurrentDirection) -> RecurrentDirection:
        new = {
            key: Lazy.of(block.read() + np.float32(0.25))
            for key, block in direction.weights.items()
            if key[0] is Part.BIAS_INPUT
        }
        return replace(direction, weights=direction.weights.with_blocks(new))

    changed = lowered.mapped(trained)
    back = bias_split.restore(changed)
    assert not back.directions[0].weights.has(Part.BIAS_RECURRENT)
    same_results(changed, back, 0.0)


@pytest.mark.parametrize(
    "note", ["", "[]", "{", '{"forward": {"input": "x"}}', '{"forward": {"nogate": "a:b"}}', "3"]
)
def test_a_note_that_makes_no_sense_is_let_go(note: str) -> None:
    given = layer(LstmEquations())
    back = bias_split.restore(replace(given, notes=MappingProxyType({bias_split.NOTE: note})))
    same_results(given, back, 0.0)


def test_a_forged_split_that_does_not_sum_is_not_restored() -> None:
    lowered, _, _ = lowering.lower_layer(layer(LstmEquations(), biases=2), target("keras"))
    split = json.loads(lowered.notes[bias_split.NOTE])
    digest, _, data = split["forward"]["input"].partition(":")
    split["forward"]["input"] = f"{digest}:{data[:4]}AAAA{data[8:]}"
    forged = replace(lowered, notes=MappingProxyType({bias_split.NOTE: json.dumps(split)}))
    back = bias_split.restore(forged)
    assert (Part.BIAS_RECURRENT, Gate.INPUT) not in back.directions[0].weights
    assert (Part.BIAS_RECURRENT, Gate.FORGET) in back.directions[0].weights


def test_a_zero_recurrent_bias_is_dropped_exactly() -> None:
    given = layer(LstmEquations(), biases=2)
    zero = {(Part.BIAS_RECURRENT, gate): Lazy.of(np.zeros(HIDDEN, np.float32)) for gate in GATES[given.cell]}
    given = given.mapped(lambda d: replace(d, weights=d.weights.with_blocks(zero)))
    lowered, _, (rewrite,) = lowering.lower_layer(given, target("keras"))
    assert rewrite.exact
    for gate in GATES[given.cell]:
        assert same_bits(
            lowered.directions[0].weights.bias_input[gate], given.directions[0].weights.bias_input[gate]
        )


def test_a_gru_with_reset_after_never_sums_the_candidate_biases() -> None:
    given = layer(GruEquations(reset=AFTER), biases=2)
    keras = target("keras")
    lowered, layout, rewrites = lowering.lower_layer(given, keras)
    assert layout.name == "gru_reset_after"
    assert rewrites == ()
    assert lowered is given
    one_bias = replace(
        keras.layouts["gru_reset_before"],
        dialect=replace(
            keras.layouts["gru_reset_before"].dialect,
            choices={"reset": (str(AFTER),), "update_keeps": ("state",)},
        ),
    )
    only = replace(keras, layouts=MappingProxyType({"gru": one_bias}))
    with pytest.raises(NotRepresentable, match="no recurrent bias of the candidate gate"):
        lowering.lower_layer(given, only)


@pytest.mark.parametrize("activation", [SIGMOID, HARD_SIGMOID_KERAS2, HARD_SIGMOID_KERAS3])
@pytest.mark.parametrize("reset", [BEFORE, AFTER])
def test_an_inverted_update_gate_is_turned_exactly(activation: Activation, reset: ResetPlace) -> None:
    given = layer(
        GruEquations(reset=reset, update_keeps=UpdateKeeps.CANDIDATE, gate_activation=activation), biases=2
    )
    lowered, _, rewrites = lowering.lower_layer(given, target("onnx"))
    assert [r.name for r in rewrites] == ["negate_update_gate"]
    assert rewrites[0].exact
    same_results(given, lowered, 1e-14)
    kernel = given.directions[0].weights.kernel
    assert same_bits(lowered.directions[0].weights.kernel[Gate.UPDATE], -kernel[Gate.UPDATE])
    assert same_bits(lowered.directions[0].weights.kernel[Gate.RESET], kernel[Gate.RESET])


def test_an_inverted_update_gate_with_an_asymmetric_activation_is_refused() -> None:
    lopsided = Activation("hard_sigmoid", 0.2, 0.4)
    given = layer(GruEquations(reset=AFTER, update_keeps=UpdateKeeps.CANDIDATE, gate_activation=lopsided))
    with pytest.raises(NotRepresentable, match="keeps the candidate"):
        lowering.lower_layer(given, target("onnx"))


@pytest.mark.parametrize("peephole", [False, True])
def test_a_coupled_forget_gate_is_written_out_exactly(peephole: bool) -> None:
    equations = LstmEquations(
        coupling=Coupling.FORGET_IS_ONE_MINUS_INPUT,
        constant=MappingProxyType({Gate.INPUT: 0.5, Gate.FORGET: 9.0}),
    )
    given = layer(equations, biases=2, peephole=peephole)
    wanted = target("onnx", choices={"coupling": ("none",)}, constant=None)
    lowered, _, rewrites = lowering.lower_layer(given, wanted)
    assert [r.name for r in rewrites] == ["uncouple_forget_gate"]
    same_results(given, lowered, 1e-14)


@pytest.mark.parametrize(("have", "want"), [({Gate.FORGET: 1.0}, {}), ({}, {Gate.FORGET: 1.0})])
@pytest.mark.parametrize("biases", [0, 1, 2])
def test_a_constant_moves_into_and_out_of_the_bias(
    have: Mapping[Gate, float], want: Mapping[Gate, float], biases: int
) -> None:
    given = layer(LstmEquations(constant=MappingProxyType(dict(have))), biases=biases)
    lowered, _, rewrites = lowering.lower_layer(
        given, target("pytorch", constant=MappingProxyType(dict(want)))
    )
    assert rewrites[0].name == "move_constant_into_bias"
    assert rewrites[0].exact == (rewrites[0].rounding == 0.0)
    assert dict(lowered.directions[0].equations.constant) == dict(want)
    same_results(given, lowered, 1e-6)
    if biases == 0 and not want:
        assert rewrites[0].exact


def test_zero_peepholes_and_infinite_clips_are_dropped() -> None:
    given = layer(LstmEquations(cell_clip=float("inf")), peephole=True)
    zero = {(Part.PEEPHOLE, gate): Lazy.of(np.zeros(HIDDEN, np.float32)) for gate in PEEPHOLE_GATES}
    given = given.mapped(lambda d: replace(d, weights=d.weights.with_blocks(zero)))
    lowered, _, rewrites = lowering.lower_layer(given, target("keras"))
    assert {r.name for r in rewrites} == {"drop_infinite_clip", "drop_zero_peepholes"}
    same_results(given, lowered, 0.0)


@pytest.mark.parametrize(
    ("given", "to", "pieces", "able"),
    [
        (layer(GruEquations(reset=BEFORE)), "pytorch", ["reset_after=False"], {"ONNX", "Keras"}),
        (layer(LstmEquations(gate_activation=HARD_SIGMOID_KERAS2)), "pytorch", ["hard_sigmoid(0.2, 0.5)"], {"ONNX"}),
        (layer(LstmEquations(), peephole=True), "keras", ["no peephole"], {"ONNX"}),
        (layer(LstmEquations(gate_activation=HARD_SIGMOID_KERAS2)), "keras", ["hard_sigmoid(0.2, 0.5)"], {"ONNX"}),
        (layer(LstmEquations(preactivation_clip=3.0)), "pytorch", ["no preactivation clip"], {"ONNX"}),
        (layer(LstmEquations(cell_clip=3.0)), "onnx", ["no cell clip"], {"NumPy"}),
        (layer(RnnEquations(hidden_activation=Activation("softplus"))), "pytorch", ["softplus"], {"ONNX", "Keras"}),
        (
            layer(LstmEquations(cell_activation=RELU)), "keras",
            ["cell activation and hidden activation must be the same"], {"ONNX"},
        ),
        (layer(LstmEquations(), directions=(Direction.REVERSE,)), "pytorch", ["no reverse layers"], {"ONNX", "Keras"}),
    ],
)  # fmt: skip
def test_what_cannot_be_held_is_refused_with_reason_and_alternatives(
    given: RecurrentLayer, to: str, pieces: list[str], able: set[str]
) -> None:
    with pytest.raises(NotRepresentable) as caught:
        lowering.lower_layer(given, target(to))
    message = str(caught.value)
    assert "layer 'layer'" in message
    for piece in pieces:
        assert piece in message, message
    assert able <= set(caught.value.alternatives), message
    assert target(to).title not in caught.value.alternatives
    assert caught.value.exit_status == 3


def test_options_that_differ_between_directions_need_a_target_that_takes_them() -> None:
    both = layer(LstmEquations(), directions=(Direction.FORWARD, Direction.REVERSE))
    first, second = both.directions
    mixed = both.with_directions([first, replace(second, equations=LstmEquations(cell_activation=RELU))])
    assert lowering.lower_layer(mixed, target("onnx"))[2] == ()
    with pytest.raises(NotRepresentable, match="same in both directions"):
        lowering.lower_layer(mixed, target("onnx", per_direction=()))


def test_casting_reports_the_rounding_of_every_layer() -> None:
    from lstmconvert.model import Model

    given = layer(LstmEquations(), biases=2)
    model, (rewrite,) = lowering.cast(Model({"layer": given}), np.dtype(np.float16))
    assert not rewrite.exact
    assert 1e-5 < rewrite.rounding < 1e-2
    assert model.recurrent["layer"].dtype == np.float16
    wide, (exact,) = lowering.cast(Model({"layer": given}), np.dtype(np.float64))
    assert exact.exact
    assert wide.recurrent["layer"].dtype == np.float64
