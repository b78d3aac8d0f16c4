"""Projections in targets that have none: torch is the judge of files, the interpreter of every way to use a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lstmconvert as lc
from lstmconvert import interpreter, projections, registry
from lstmconvert.canonical import LstmEquations, MaskedOutput, Merge, Returns, SequenceBehaviour
from lstmconvert.errors import NotRepresentable
from lstmconvert.live import read_any
from lstmconvert.model import OperationLayer
from lstmconvert.operations import Dense
from lstmconvert.tensors import Array
from tests.frameworks.pytorch_running import one_layer
from tests.support import random_layer

WAYS = (("forward",), ("reverse",), ("forward", "reverse"))


def folded(model: lc.Model, framework: str = "onnx") -> tuple[lc.Model, Sequence[Any]]:
    return projections.folded(model, registry.mapping_of(framework))


def results(model: lc.Model, inputs: Sequence[Array]) -> list[Array]:
    found = interpreter.run(model, *inputs, dtype=np.float64)
    return list(found) if isinstance(found, tuple) else [found]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    directions=st.sampled_from(WAYS),
    merge=st.sampled_from([Merge.CONCAT, Merge.SEPARATE]),
    returns=st.sampled_from(list(Returns)),
    masked_output=st.sampled_from([None, *MaskedOutput]),
    return_state=st.booleans(),
    peephole=st.booleans(),
)
def test_a_folded_layer_gives_what_it_gave(
    seed: int,
    directions: tuple[str, ...],
    merge: Merge,
    returns: Returns,
    masked_output: MaskedOutput | None,
    return_state: bool,
    peephole: bool,
) -> None:
    sequence = SequenceBehaviour(returns=returns, return_state=return_state)
    if len(directions) == 2:
        sequence = replace(sequence, merge=merge)
    if masked_output is not None:
        sequence = replace(sequence, masked_output=masked_output)
    # Weights in float64 leave nothing to round but the sums themselves.
    layer = random_layer(
        "lstm", seed=seed, hidden_size=6, projection=3, directions=directions, peephole=peephole,
        sequence=sequence, dtype=np.float64,
    )  # fmt: skip
    model = one_layer(layer, mask=masked_output is not None)
    random = np.random.default_rng(seed)
    inputs: list[Array] = [random.normal(size=(3, 5, layer.input_size))]
    if masked_output is not None:
        inputs.append(random.random((3, 5)) < 0.6)
    without, rewrites = folded(model)
    assert [step.name for step in rewrites] == ["fold_projection"]
    assert all(held.projected_size is None for held in without.recurrent.values())
    for got, expected in zip(results(without, inputs), results(model, inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "two"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("suffix", ["onnx", "keras"])
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_state_dict_of_torch(suffix: str, layers: int, bidirectional: bool, tmp_path: Path) -> None:
    torch.manual_seed(7)
    module = torch.nn.LSTM(
        3, 6, proj_size=4, num_layers=layers, bidirectional=bidirectional, batch_first=True
    )
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    source, target = tmp_path / "source.pt", tmp_path / f"target.{suffix}"
    torch.save(module.state_dict(), source)
    result = lc.convert(source, target)
    assert result.proof is not None
    assert result.proof.verdict == "proved"
    steps = [step for step in result.rewrites if step.name == "fold_projection"]
    assert len(steps) == layers
    assert all(0 < step.rounding < 1e-6 and not step.exact for step in steps)
    x = torch.randn(3, 9, 3)
    with torch.no_grad():
        expected = module(x)[0].numpy()
    if suffix == "onnx":
        session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    else:
        import keras

        keras.backend.clear_session()
        got = np.asarray(keras.models.load_model(target)(x.numpy()))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * float(np.max(np.abs(expected))))


def test_a_projection_that_a_target_has_stays() -> None:
    model = one_layer(random_layer("lstm", seed=1, projection=3))
    same, rewrites = folded(model, "pytorch")
    assert same is model
    assert rewrites == ()


@pytest.mark.parametrize(
    ("options", "states"),
    [
        ({}, True),
        ({"initial_state": True}, False),
        ({"sequence": SequenceBehaviour(stateful=True)}, False),
        ({"equations": LstmEquations(projection_clip=0.5)}, False),
        ({"directions": WAYS[2], "sequence": SequenceBehaviour(merge=Merge.SUM)}, False),
    ],
    ids=["states given", "trained states", "stateful", "clip", "summed"],
)
def test_what_cannot_be_folded_is_refused(options: dict[str, Any], states: bool) -> None:
    model = one_layer(random_layer("lstm", seed=1, projection=3, **options), states=states)
    assert folded(model) == (model, ())
    with pytest.raises(NotRepresentable, match="no projection"):
        lc.to_onnx(model)


def test_states_outside_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotRepresentable, match="no projection"):
        lc.write(one_layer(random_layer("lstm", seed=1, projection=3)), tmp_path / "a.onnx", states=True)


def test_the_dense_layer_takes_no_name_that_is_taken() -> None:
    model = one_layer(random_layer("lstm", seed=1, projection=3))
    taken = OperationLayer("lstm_projection", Dense())
    without, _ = folded(replace(model, layers={**model.layers, "lstm_projection": taken}))
    assert without.layers["lstm_projection"] is taken
    assert len(without.layers) == 3


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": (24, 3), "b": (24, 4)}, "other tensors"),
        ({"a": (24, 3), "b": (24, 4), "c": (4, 6), "d": (24, 3)}, "other tensors"),
        ({"a": (24, 3), "b": (24, 4), "c": (5, 6)}, "do not make"),
        ({"a": (24, 3), "b": (24, 4), "c": ()}, "axes|shape"),
        ({"a": (24, 3), "b": (24, 4), "x": None}, "not constants"),
    ],
    ids=["too few", "too many", "another size", "no matrix", "an input"],
)
def test_a_damaged_node_is_refused(tensors: dict[str, Any], reason: str) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    floating = TensorProto.FLOAT
    x = helper.make_tensor_value_info("x", floating, ["time", "batch", 3])
    y = helper.make_tensor_value_info("y", floating, None)
    arrays = {"h": (1, 1, 4), "k": (1, 1, 6), **tensors}
    held = [
        numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in arrays.items()
        if shape is not None
    ]
    node = helper.make_node("LSTM", ["x", "h", "k", *tensors], ["y"], domain="lstmconvert.torch")
    graph = helper.make_graph([node], "damaged", [x], [y], held)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("lstmconvert.torch", 1)]
    model = onnx.ModelProto(ir_version=8, graph=graph, opset_import=imports)
    with pytest.raises(lc.ConversionError, match=reason):
        read_any(model)
