"""A small layer in the place of a large one shows how a model is wired, and every way to wire it wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lstmconvert import whole
from lstmconvert.canonical import MaskedOutput, Merge, RecurrentLayer, Returns
from lstmconvert.gates import Cell
from lstmconvert.model import Call, Model, OperationLayer, Port
from lstmconvert.operations import Masking
from tests.support import random_layer

SAME = {"first": "first", "second": "second", "third": "third"}


def wired(cell: Cell, *, seed: int) -> Model:
    """Two layers side by side on masked steps, one of them started from the other's states; one behind both."""
    first, second = (
        replace(random_layer(cell, seed=seed + n, input_size=5, hidden_size=5), name=name)
        for n, name in enumerate(("first", "second"))
    )
    third = replace(
        random_layer(cell, seed=seed + 2, directions=("forward", "reverse"), input_size=5, hidden_size=3),
        name="third",
    )
    layers = {
        "masking": OperationLayer("masking", Masking(0.0)),
        "first": replace(first, sequence=replace(first.sequence, return_state=True)),
        "second": second,
        "third": replace(third, sequence=replace(third.sequence, returns=Returns.LAST)),
    }
    states = ("h", "c") if cell is Cell.LSTM else ("h",)
    return Model(
        layers,
        (
            Call("masking", ("x",), ("masked", "mask")),
            Call("first", ("masked",), ("a", *states), mask="mask"),
            Call("second", ("a",), ("b",), mask="mask", initial_state=states),
            Call("third", ("b",), ("y",), mask="mask"),
        ),
        (Port("x", "x", (None, None, 5)),),
        (Port("y", "y", (None, 6)),),
    )


def with_call(model: Model, index: int, **changes: object) -> Model:
    calls = list(model.calls or ())
    calls[index] = replace(calls[index], **changes)  # type: ignore[arg-type]
    return replace(model, calls=tuple(calls))


def with_behaviour(model: Model, name: str, **changes: object) -> Model:
    layer = model.layers[name]
    assert isinstance(layer, RecurrentLayer)
    sequence = replace(layer.sequence, **changes)  # type: ignore[arg-type]
    return replace(model, layers={**model.layers, name: replace(layer, sequence=sequence)})


WRONG: dict[str, Callable[[Model], Model]] = {
    "another input": lambda m: with_call(m, 2, inputs=("masked",)),
    "the layers in another order": lambda m: with_call(with_call(m, 1, layer="second"), 2, layer="first"),
    "no mask": lambda m: with_call(m, 3, mask=None),
    "no initial state": lambda m: with_call(m, 2, initial_state=()),
    "another merge": lambda m: with_behaviour(m, "third", merge=Merge.SUM),
    "something else at masked steps": lambda m: with_behaviour(m, "third", masked_output=MaskedOutput.HOLD),
}


@pytest.mark.parametrize("cell", Cell)
def test_the_same_wiring_is_proved(cell: Cell) -> None:
    model = wired(cell, seed=1)
    other = wired(cell, seed=2)  # The numbers of the layers are not looked at.
    for target in (model, other):
        found = whole._prove_large(model, target, SAME)
        assert found is not None
        assert found[0][0].max_abs_error == 0
        assert "3 layers" in found[1][0]
    assert whole._prove_large(model, other, {}) is None


@pytest.mark.parametrize("cell", Cell)
@pytest.mark.parametrize("fault", WRONG)
def test_another_wiring_is_not(cell: Cell, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def masked_inputs(model: Model, shapes: object) -> list[dict[str, np.ndarray]]:  # type: ignore[type-arg]
        x = np.random.default_rng(3).standard_normal((2, 5, 5))
        x[1, 2:] = 0
        return [{"x": x}]

    monkeypatch.setattr(whole, "random_inputs", masked_inputs)
    model = wired(cell, seed=1)
    assert whole._prove_large(model, model, SAME) is not None
    target = WRONG[fault](model)
    if fault == "the layers in another order":
        target = with_behaviour(
            with_behaviour(target, "first", return_state=False), "second", return_state=True
        )
    assert whole._prove_large(model, target, SAME) is None
