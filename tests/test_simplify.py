"""Folding flips of time into recurrent layers: no result changes, and the flips are gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lstmconvert import simplify
from lstmconvert.canonical import Returns, ReverseOutput, SequenceBehaviour
from lstmconvert.gates import Direction
from lstmconvert.model import Call, Layer, Model, OperationLayer, Port
from lstmconvert.operations import Combine, Reverse
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
