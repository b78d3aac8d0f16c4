"""Files of TensorFlow's own converter: float32, float16 and 8 bit weights, loops; judged by LiteRT."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert import runtimes
from tests.matrix import judges
from tests.matrix.judges import Case, draw
from tests.matrix.judges_tflite import ran

Array = np.ndarray[Any, Any]
PLAIN = Case("lstm", 1, False, True)


@cache
def networks(name: str) -> tuple[Any, Any, list[int]]:
    """A tf_keras model, its function and the shape of its input."""
    import tensorflow as tf
    import tf_keras

    layers = tf_keras.layers
    rng = np.random.default_rng(sum(map(ord, name)))
    shape, dtype = {
        "words": ([1, 8], "int32"),
        "long": ([1, 12, 3], "float32"),
        "wide": ([1, 6, 40], "float32"),
        "convolved": ([1, 9, 4], "float32"),
        "gru": ([1, 6, 3], "float32"),
    }[name]
    x = tf_keras.Input(shape[1:], batch_size=1, dtype=dtype)
    if name == "words":
        y = layers.Embedding(20, 3)(x)
        y = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(y)
        y = layers.Dropout(0.5)(layers.Dense(6, activation="relu")(y))
        y = layers.Bidirectional(layers.LSTM(5), merge_mode="sum")(y)
        y = layers.Dense(3, activation="softmax")(y)
    elif name == "long":
        y = layers.LSTM(4)(layers.LSTM(5, return_sequences=True, go_backwards=True)(x))
    elif name == "convolved":
        y = layers.Conv1D(8, 3, activation="relu", padding="same")(x)
        y = layers.Conv1D(6, 2, strides=2)(layers.MaxPooling1D(2)(y))
        y = layers.LSTM(5, return_sequences=True)(layers.BatchNormalization()(y))
        y = layers.GlobalAveragePooling1D()(layers.AveragePooling1D(2, padding="same")(y))
    elif name == "wide":
        y = layers.LSTM(64, return_sequences=True)(x)
    else:
        y = layers.GRU(4)(x)
    model = tf_keras.Model(x, y)
    # A variance of BatchNormalization is positive.
    model.set_weights(
        [abs(draw(rng, w.shape)) if "variance" in w.name else draw(rng, w.shape) for w in model.weights]
    )
    given = tf.TensorSpec(shape, dtype, name="given")
    return model, tf.function(lambda value: model(value)).get_concrete_function(given), shape


@cache
def converted(name: str, kind: str) -> bytes:
    import tensorflow as tf

    model, function, _ = networks(name)
    holder = tf.Module()
    holder.variables_of_the_model = model.variables
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function], None if kind == "loop" else holder
    )
    if kind in ("float16", "int8"):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return bytes(converter.convert())


def saved(folder: Path, name: str, kind: str) -> Path:
    path = folder / f"{name}_{kind}.tflite"
    path.write_bytes(converted(name, kind))
    return path


def close(y: Array, expected: Array, bound: float = 1e-5) -> bool:
    return y.shape == expected.shape and bool(
        np.max(np.abs(y - expected)) <= bound * np.max(np.abs(expected))
    )


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_whole_network_in_other_frameworks(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path, "words", kind)
    words = np.random.default_rng(2).integers(0, 20, (1, 8)).astype(np.int32)
    (expected,) = ran(path, words)
    model = lc.read(path)
    assert [layer.direction for layer in model.recurrent.values()] == ["bidirectional"] * 2
    assert close(np.asarray(model.run(words)), expected)
    for suffix, run in (
        (".onnx", judges.run_onnx),
        (".keras", judges.run_keras),
        (".safetensors", judges.run_torch),
    ):
        target = tmp_path / f"out{suffix}"
        result = lc.convert(path, target)
        assert result.proof is not None
        assert result.proof.proved
        assert any("8 steps cannot reach it" in step.description for step in result.rewrites)
        assert close(run(target, words, PLAIN), expected), suffix


@pytest.mark.parametrize("kind", ["float32", "written"])
def test_files_are_run_in_their_own_runtime(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path, "words", "float32")
    if kind == "written":
        lc.convert(path, tmp_path / "written.tflite", to="tflite")
        path = tmp_path / "written.tflite"
    proofs, skipped = runtimes.prove(lc.read(path), path, 1e-5)
    assert not skipped
    assert [proof.proved for proof in proofs] == [True]


def test_convolutions_and_poolings(tmp_path: Path) -> None:
    path = saved(tmp_path, "convolved", "float32")
    x = np.random.default_rng(5).normal(0, 1, (1, 9, 4)).astype(np.float32)
    (expected,) = ran(path, x)
    lc.convert(path, tmp_path / "out.onnx")
    assert close(judges.run_onnx(tmp_path / "out.onnx", x, PLAIN), expected)


def test_the_converters_cell_clip(tmp_path: Path) -> None:
    path = saved(tmp_path, "long", "float32")
    x = np.random.default_rng(3).normal(0, 1.2, (1, 12, 3)).astype(np.float32)
    (expected,) = ran(path, x)
    assert [layer.equations.cell_clip for layer in lc.read(path).recurrent.values()] == [10.0, 10.0]
    with pytest.raises(lc.NotRepresentable, match="--cell-clip inf"):
        lc.convert(path, tmp_path / "out.keras")
    lc.convert(path, tmp_path / "out.safetensors")
    assert close(judges.run_torch(tmp_path / "out.safetensors", x, PLAIN), expected)
    lc.convert(path, tmp_path / "out.keras", cell_clip=float("inf"))
    assert close(judges.run_keras(tmp_path / "out.keras", x, PLAIN), expected)


def test_weights_of_8_bits_are_dequantised_and_reported(tmp_path: Path) -> None:
    path = saved(tmp_path, "wide", "int8")
    x = np.random.default_rng(4).normal(0, 1, (1, 6, 40)).astype(np.float32)
    result = lc.convert(path, tmp_path / "out.onnx")
    told = [step.description for step in result.rewrites]
    for name in ("input_to_input_weights", "recurrent_to_cell_weights"):
        assert any(f"{name} was dequantised from int8, one scale for the tensor" in text for text in told)
    assert not any(step.exact for step in result.rewrites if "dequantised" in step.description)
    y = judges.run_onnx(tmp_path / "out.onnx", x, PLAIN)
    # LiteRT rounds the inputs of every step to 8 bits as well, so that it is close to its own numbers only.
    assert close(y, ran(path, x)[0], 0.1)
    assert not close(y, ran(path, x)[0], 1e-4)
    lc.convert(path, tmp_path / "wide.tflite", to="tflite")
    assert close(y, ran(tmp_path / "wide.tflite", x)[0])
    original, _, _ = networks("wide")
    (layer,) = lc.read(path).recurrent.values()
    kernel = np.concatenate(list(layer.directions[0].weights.kernel.values())).T
    (trained,) = (w for w in original.get_weights() if w.shape == (40, 256))
    assert np.max(np.abs(kernel - trained)) <= np.max(np.abs(trained)) / 127


@pytest.mark.parametrize(("name", "kind"), [("gru", "float32"), ("long", "loop")])
def test_loops_are_refused_with_a_way_out(name: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(lc.UnsupportedSource, match="WHILE") as caught:
        lc.convert(saved(tmp_path, name, kind), tmp_path / "out.onnx")
    assert "Convert the model that this file was made from" in str(caught.value)
