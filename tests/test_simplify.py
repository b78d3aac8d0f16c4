"""Folding flips of time into recurrent layers: no result changes, and the flips are gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lstmconvert import simplify
from lstmconvert.canonical import Merge, Returns, ReverseOutput, SequenceBehaviour
from lstmconvert.gates import Direction
from lstmconvert.model import Call, Layer, Model, OperationLayer, Port
from lstmconvert.operations import Combination, Combine, Concatenate, Reverse, Select
from tests.support import random_layer

FLIP = OperationLayer("flip", Reverse(1))


def chain(*layers: Layer) -> Model:
    """A model of layers one after the other; equal names are made distinct."""
    named = {f"{n}_{layer.name}": replace(layer, name=f"{n}_{layer.name}") for n, layer in enumerate(layers)}
    values = ["x", *(f"v{n}" for n in range(len(layers)))]
    calls = tuple(Call(name, (values[n],), (values[n + 1],)) for n, name in enumerate(named))
    return Model(named, calls, (Port("x", "x", (None, None, 3)),), (Port("y", values[-1], (None, None, 5)),))


def flips(model: Model) -> int:
    return sum(isinstance(layer, OperationLayer) for layer in model.layers.values())


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("order", list(ReverseOutput))
@pytest.mark.parametrize("returns", list(Returns))
@pytest.mark.parametrize(("before", "after"), [(1, 0), (0, 1), (1, 1), (2, 1)])
def test_no_result_changes(
    cell: str, direction: str, order: ReverseOutput, returns: Returns, before: int, after: int
) -> None:
    if direction == "forward" and order is ReverseOutput.VISITED_ORDER:
        return
    if after and returns is Returns.LAST:
        return
    layer = random_layer(cell, seed=3, input_size=3, directions=(Direction(direction),))
    layer = replace(layer, sequence=SequenceBehaviour(returns=returns, reverse_output=order))
    model = chain(*[FLIP] * before, layer, *[FLIP] * after)
    folded = simplify.fold_reversals(model)
    x = np.random.default_rng(5).normal(size=(2, 6, 3))
    assert np.array_equal(np.asarray(model.run(x)), np.asarray(folded.run(x)))
    assert flips(folded) < flips(model) or (direction == "reverse" and not after) or not before


def test_a_flip_that_something_else_needs_stays() -> None:
    layer = random_layer("gru", seed=3, input_size=5, hidden_size=5)
    model = Model(
        {"flip": FLIP, "gru": replace(layer, name="gru"), "add": OperationLayer("add", Combine())},
        (Call("flip", ("x",), ("f",)), Call("gru", ("f",), ("g",)), Call("add", ("f", "g"), ("y",))),
        (Port("x", "x", (None, None, 5)),),
        (Port("y", "y", (None, None, 5)),),
    )
    assert simplify.fold_reversals(model) is model


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("order", list(ReverseOutput))
@pytest.mark.parametrize("index", [0, -1, 2])
def test_a_last_step_goes_into_the_layer_and_no_other_step(
    direction: str, order: ReverseOutput, index: int
) -> None:
    if direction == "forward" and order is ReverseOutput.VISITED_ORDER:
        return
    layer = random_layer("gru", seed=3, input_size=3, directions=(Direction(direction),))
    layer = replace(layer, sequence=SequenceBehaviour(reverse_output=order))
    model = chain(layer, OperationLayer("pick", Select(1, index)))
    folded = simplify.fold_last_steps(model)
    x = np.random.default_rng(5).normal(size=(2, 6, 3))
    assert np.array_equal(np.asarray(model.run(x)), np.asarray(folded.run(x)))
    last = 0 if direction == "reverse" and order is ReverseOutput.INPUT_ORDER else -1
    assert flips(folded) == (index != last)


def branched(join: OperationLayer, order: ReverseOutput, returns: Returns, *, swapped: bool) -> Model:
    """A forward and a reverse layer of one input, and what joins them."""
    ways = []
    for seed, direction in enumerate((Direction.FORWARD, Direction.REVERSE)):
        layer = random_layer("lstm", seed=seed, input_size=3, hidden_size=4, directions=(direction,))
        kept = order if direction is Direction.REVERSE else ReverseOutput.INPUT_ORDER
        behaviour = SequenceBehaviour(returns=returns, reverse_output=kept)
        ways.append(replace(layer, name=str(direction), sequence=behaviour))
    calls = [Call(layer.name, ("x",), (f"v{n}",)) for n, layer in enumerate(ways)]
    calls.append(Call("join", ("v1", "v0") if swapped else ("v0", "v1"), ("y",)))
    return Model(
        {**{layer.name: layer for layer in ways}, "join": join},
        tuple(calls),
        (Port("x", "x", (None, None, 3)),),
        (Port("y", "y", (None, None, 8)),),
    )


@pytest.mark.parametrize("returns", list(Returns))
@pytest.mark.parametrize("order", list(ReverseOutput))
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("operation", "merge"),
    [
        (Concatenate(-1), Merge.CONCAT),
        (Combine(Combination.ADD), Merge.SUM),
        (Combine(Combination.AVERAGE), Merge.AVERAGE),
        (Combine(Combination.MULTIPLY), Merge.MULTIPLY),
        (Combine(Combination.MAXIMUM), None),
    ],
    ids=str,
)
def test_two_directions_that_are_joined_become_one_layer(
    operation: Combine | Concatenate,
    merge: Merge | None,
    *,
    swapped: bool,
    order: ReverseOutput,
    returns: Returns,
) -> None:
    model = branched(OperationLayer("join", operation), order, returns, swapped=swapped)
    folded = simplify.pair_directions(model)
    x = np.random.default_rng(5).normal(size=(2, 6, 3))
    assert np.array_equal(np.asarray(model.run(x)), np.asarray(folded.run(x)))
    if merge is None or swapped or order is ReverseOutput.VISITED_ORDER:
        assert folded is model
    else:
        (layer,) = folded.recurrent.values()
        assert (layer.name, layer.direction, layer.sequence.merge) == ("join", "bidirectional", merge)
