"""Whole models from file to file, where layers change their names, order and number on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

import lstmconvert as lc
from lstmconvert import verification
from lstmconvert.activations import Activation
from lstmconvert.canonical import RnnEquations
from lstmconvert.model import Model
from lstmconvert.pairing import twins
from tests.architectures import randomise
from tests.support import random_layer

Array = np.ndarray[Any, Any]


def saved(model: Any, path: Path, seed: int = 5) -> Path:
    """A Keras model with random weights in a file."""
    randomise(model, np.random.default_rng(seed))
    model.save(path)
    return path


def run_onnx(path: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def proved(source: Path, target: Path, **options: Any) -> lc.Result:
    """A conversion that is proved, and that still is when the file is asked for its proof."""
    result = lc.convert(source, target, **options)
    assert result.proof is not None
    assert result.proof.verdict == "proved"
    assert verification.carried_proof(target)["verdict"] == "intact"
    return result


def test_layers_that_the_target_orders_by_its_own_rules_are_told_apart(tmp_path: Path) -> None:
    import keras

    L = keras.layers
    x, z = keras.Input((6, 3), name="x"), keras.Input((6, 5), name="z")
    unlike = L.Bidirectional(
        L.LSTM(4, return_sequences=True), backward_layer=L.SimpleRNN(4, return_sequences=True, go_backwards=True), name="unlike"
    )  # fmt: skip
    stack = L.RNN([L.LSTMCell(4), L.GRUCell(3), L.LSTMCell(4)], return_sequences=True, name="stack")
    ends = [L.LSTM(4, name="late")(unlike(x)), stack(z), L.GRU(2, name="early")(x)]
    source = saved(keras.Model([x, z], ends), tmp_path / "source.keras")
    rng = np.random.default_rng(1)
    given = [rng.standard_normal((3, 6, n)).astype(np.float32) for n in (3, 5)]
    wanted = [np.asarray(y) for y in keras.models.load_model(source)(given)]
    proved(source, tmp_path / "model.safetensors")
    proved(tmp_path / "model.safetensors", tmp_path / "again.keras")
    got = keras.models.load_model(tmp_path / "again.keras")(given)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_names_decide_before_numbers_and_numbers_before_order() -> None:
    layers = [random_layer("lstm", seed=n, name=name) for n, name in enumerate(("a/b", "c", "d"))]
    source = {layer.name: layer for layer in layers}
    target = {"d": layers[2], "x": layers[1], "a_b": layers[0], "y": layers[1]}
    assert twins(source, target, wired=True) == {"d": "d", "x": "c", "a_b": "a/b", "y": "c"}
    # Without wiring nothing would notice that the numbers stand in the wrong places.
    assert twins(source, {k: target[k] for k in ("d", "x", "a_b")}, wired=False) == {
        "d": "a/b", "x": "c", "a_b": "d",
    }  # fmt: skip


def test_a_shared_layer_and_one_that_nothing_uses(tmp_path: Path) -> None:
    import keras

    L = keras.layers
    i = keras.Input((6, 4))
    two = keras.Model(i, [L.LSTM(4, name="wanted")(i), L.GRU(3, name="unwanted")(i)], name="two")
    x = keras.Input((6, 4), name="x")
    shared = L.LSTM(4, return_sequences=True, name="shared")
    y, _ = two(shared(shared(x)))
    source = saved(keras.Model(x, L.Dense(2, name="head")(y)), tmp_path / "source.keras")
    given = np.random.default_rng(2).standard_normal((3, 6, 4)).astype(np.float32)
    wanted = np.asarray(keras.models.load_model(source)(given))
    result = proved(source, tmp_path / "model.onnx")
    left_out = [step for step in result.rewrites if step.name == "leave_out_unused"]
    assert [step.layer for step in left_out] == ["two/unwanted"]
    (got,) = run_onnx(tmp_path / "model.onnx", {"x": given}).values()
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    proved(source, tmp_path / "model.safetensors")
    proved(tmp_path / "model.safetensors", tmp_path / "again.keras")


def test_explicit_states_follow_the_outputs_and_stream(tmp_path: Path) -> None:
    import keras

    L = keras.layers
    x = keras.Input(batch_shape=(2, 5, 3), name="x")
    y = L.LSTM(4, stateful=True, return_sequences=True, name="lstm")(x)
    y = L.GRU(3, stateful=True, reset_after=False, name="gru")(y)
    model = keras.Model(x, [L.Dense(2, name="head")(y), y])
    source = saved(model, tmp_path / "source.keras")
    proved(source, tmp_path / "model.onnx")
    rng = np.random.default_rng(3)
    states: dict[str, Array] = {}
    for _ in range(3):
        given = rng.standard_normal((2, 5, 3)).astype(np.float32)
        wanted = [np.asarray(array) for array in model(given)]
        if not states:
            session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
            states = {p.name: np.zeros([n if isinstance(n, int) else 2 for n in p.shape], np.float32)
                      for p in session.get_inputs()[1:]}  # fmt: skip
        got = run_onnx(tmp_path / "model.onnx", {"x": given, **states})
        results = list(got.values())
        for a, b in zip(results, wanted, strict=False):
            np.testing.assert_allclose(a, b, atol=1e-6)
        states = dict(zip(states, results[2:], strict=True))


def test_an_activation_that_one_layer_has_is_not_said_of_all(tmp_path: Path) -> None:
    import keras

    L = keras.layers
    x = keras.Input((6, 3), name="x")
    y = L.SimpleRNN(4, return_sequences=True, name="rnn")(x)
    y = L.GRU(3, activation="relu", name="gru")(y)
    source = saved(keras.Model(x, y), tmp_path / "source.keras")
    proved(source, tmp_path / "again.keras")
    found = lc.verify(source, tmp_path / "again.keras")
    assert found.proved


def test_a_graph_that_is_not_understood_is_not_passed_off_as_converted(tmp_path: Path) -> None:
    proved_source = tmp_path / "layer.npz"
    lc.write(Model({"rnn": random_layer("gru", seed=1, name="rnn")}), proved_source, to="numpy")
    lc.convert(proved_source, tmp_path / "one.onnx")
    model = onnx.load(str(tmp_path / "one.onnx"))
    output = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Det", [output], ["unusual"], name="unusual"))
    model.graph.output[0].name = "unusual"
    onnx.save(model, str(tmp_path / "graph.onnx"))
    result = lc.convert(tmp_path / "graph.onnx", tmp_path / "graph.safetensors")
    assert result.proof is not None
    (said,) = (text for text in result.proof.skipped if "only the recurrent layers" in text)
    assert "unusual" in said


def test_a_copy_counts_as_another_use_only_with_the_bits_of_its_layer() -> None:
    layers = {name: random_layer("lstm", seed=n, name=name) for n, name in enumerate(("a", "b"))}
    other = {**layers, "c": random_layer("lstm", seed=9, name="c")}
    assert "c" not in twins(layers, other, wired=True)


def test_what_a_file_remembers_is_found_by_name(tmp_path: Path) -> None:
    """Tensors in a file may be sorted; the first layer remembered is not the first one there."""
    kinds = {"b": "relu", "a": "tanh"}
    layers = {
        name: random_layer("rnn", seed=n, name=name, equations=RnnEquations(Activation(kind)))
        for n, (name, kind) in enumerate(kinds.items())
    }
    lc.write(Model(layers), tmp_path / "two.safetensors")
    found = lc.read(tmp_path / "two.safetensors").recurrent
    assert {n: d.directions[0].equations.hidden_activation.kind for n, d in found.items()} == kinds


def test_windows_that_are_longer_than_the_usual_samples(tmp_path: Path) -> None:
    import keras

    L = keras.layers
    layers = [keras.Input((None, 3)), L.Conv1D(4, 20, name="wide"), L.MaxPooling1D(3), L.LSTM(3, name="lstm")]
    source = saved(keras.Sequential(layers), tmp_path / "source.keras")
    proved(source, tmp_path / "model.onnx")
    proved(source, tmp_path / "model.safetensors")
