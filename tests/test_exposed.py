"""States outside: the proof feeds what the source starts from, and then states that are not zero."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import lstmconvert as lc
from lstmconvert import exposed, whole
from lstmconvert.canonical import (
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    SequenceBehaviour,
)
from lstmconvert.errors import ConversionError
from lstmconvert.gates import Cell, Direction, Part
from lstmconvert.model import Call, Model, Port
from lstmconvert.tensors import Lazy
from tests.frameworks.onnx_running import random_weights

TRAINED = "from states that are not zero"


def source(*, trained: bool, stateful: bool = False) -> Model:
    """An LSTM of two directions and a GRU, which may start from trained states."""
    rng = np.random.default_rng(5)
    layers: dict[str, RecurrentLayer] = {}
    for name, cell, size, width, directions in (
        ("first", Cell.LSTM, 4, 3, (Direction.FORWARD, Direction.REVERSE)),
        ("second", Cell.GRU, 6, 5, (Direction.FORWARD,)),
    ):
        equations = LstmEquations() if cell is Cell.LSTM else GruEquations(ResetPlace.AFTER_PRODUCT)
        parts = []
        for direction in directions:
            weights = random_weights(rng, cell, size, width)
            if trained:
                kinds = (Part.INITIAL_HIDDEN, Part.INITIAL_CELL)[: 2 if cell is Cell.LSTM else 1]
                states = {(k, None): Lazy.of(rng.uniform(-1, 1, width).astype(np.float32)) for k in kinds}
                weights = weights.with_blocks(states)
            parts.append(RecurrentDirection(direction, equations, weights))
        layers[name] = RecurrentLayer(name, tuple(parts), SequenceBehaviour(stateful=stateful))
    calls = (Call("first", ("x",), ("a",)), Call("second", ("a",), ("y",)))
    return Model(layers, calls, (Port("x", "x", (None, None, 4)),), (Port("y", "y", (None, None, 5)),))


@pytest.mark.parametrize("trained", [True, False])
def test_states_outside_are_fed_and_compared(trained: bool, tmp_path: Path) -> None:
    model = source(trained=trained)
    lc.write(model, tmp_path / "model.onnx", states=True)
    back = lc.read(tmp_path / "model.onnx")
    proofs, skipped = whole.prove(model, back, tmp_path / "model.onnx", None)
    assert [proof.proved for proof in proofs] == [True] * 3, proofs
    assert TRAINED in proofs[-1].runtime
    assert not skipped


def test_states_that_are_exchanged_are_found(tmp_path: Path) -> None:
    """From zeros both are the same; from other states they are not."""
    model = source(trained=False)
    path = tmp_path / "model.onnx"
    lc.write(model, path, states=True)
    broken = onnx.load(path)
    (node,) = [n for n in broken.graph.node if n.op_type == "LSTM"]
    node.input[5], node.input[6] = node.input[6], node.input[5]
    path.write_bytes(broken.SerializeToString())
    proofs, _ = whole.prove(model, lc.read(path), path, None)
    assert [proof.proved for proof in proofs] == [True, True, False]


def test_stateful_layers_are_fed_too(tmp_path: Path) -> None:
    model = source(trained=False, stateful=True)
    lc.write(model, tmp_path / "model.onnx")
    proofs, _ = whole.prove(model, lc.read(tmp_path / "model.onnx"), tmp_path / "model.onnx", None)
    assert all(proof.proved for proof in proofs) and TRAINED in proofs[-1].runtime


def test_a_layer_that_goes_on_where_it_ended_has_no_states_of_its_own() -> None:
    model = source(trained=False, stateful=True)
    calls = (*(model.calls or ()), Call("first", ("x",), ("b",)))
    twice = Model(model.layers, calls, model.inputs, model.outputs)
    found = exposed.uses(twice, 3)
    assert found is not None and [call.layer for call in found] == ["first", "second"]
    assert exposed.with_states(twice, found) is None


def test_keras_has_no_place_for_states_outside(tmp_path: Path) -> None:
    lc.write(source(trained=False), tmp_path / "model.onnx")
    with pytest.raises(ConversionError, match="states"):
        lc.convert(tmp_path / "model.onnx", tmp_path / "model.keras", states=True)
    assert not (tmp_path / "model.keras").exists()
