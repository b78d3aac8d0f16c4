"""Whole models of Keras 3 and tf_keras, read and written back; the judges are Keras and tf_keras themselves."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmconvert.errors import NotRepresentable
from tests.frameworks import keras_zoo as zoo
from tests.frameworks.keras_files import assert_close, read, run, write

KERAS3 = [name for name in zoo.MODELS if name not in zoo.ONLY_KERAS2]
KERAS2 = [name for name in zoo.MODELS if name not in zoo.ONLY_KERAS3]
CASES = [("keras", name) for name in KERAS3] + [("tf_keras", name) for name in KERAS2]

# Single layers that a .h5 holds no differently than it holds others.
LIKE_OTHERS = (
    {f"bidirectional_{merge}" for merge in ("sum", "mul", "ave")}
    | {f"bidirectional_gru_last_{merge}" for merge in ("concat", "sum", "mul", "ave")}
    | {"lstm_no_bias", "lstm_backwards_last", "gru_no_bias", "rnn_no_bias_backwards"}
)

# What Keras 3 cannot hold: Keras 2's hard_sigmoid.
REFUSED_BY_KERAS3 = {
    ("tf_keras", name)
    for name in ("lstm_hard_sigmoid", "gru_reset_before", "activation_layers", "convolutional_lstm")
}
# What a whole-model .h5 cannot hold: operators, masks that are handed over, normalisation over several axes,
# and hard_sigmoid, of which the Keras releases that load it make different functions.
REFUSED_BY_H5 = {
    "lstm_hard_sigmoid",
    "gru_reset_before",
    "activation_layers",
    "bidirectional_unlike",
    "stacked_cells",
    "masking_merges",
    "normalisations",
    "operators",
    "transformer",
}


@pytest.mark.parametrize(("package", "name"), CASES)
def test_a_model_computes_the_same_read_and_written_back(package: str, name: str, tmp_path: Path) -> None:
    import keras

    built, inputs = zoo.build(name, importlib.import_module(package))
    wanted = zoo.predict(built, inputs)
    for suffix in ("h5", "keras"):
        built.save(tmp_path / f"source.{suffix}")
        model = read(tmp_path / f"source.{suffix}")
        assert_close(run(model, inputs), wanted, f"{package} {name} .{suffix}")
    for port, output in zip(model.outputs, wanted, strict=True):
        assert len(port.shape) == output.ndim
        assert all(size in (None, n) for size, n in zip(port.shape, output.shape, strict=True))
    target = tmp_path / "target.keras"
    if (package, name) in REFUSED_BY_KERAS3:
        with pytest.raises(NotRepresentable, match="hard_sigmoid"):
            write(model, target, "keras_archive")
        return
    loaded = keras.models.load_model(write(model, target, "keras_archive"))
    assert_close(zoo.predict(loaded, inputs), wanted, f"{package} {name} written to .keras")
    assert_same_weights(built, loaded, name)
    assert_close(run(read(target), inputs), wanted, f"{package} {name} written to .keras and read again")


@pytest.mark.parametrize("name", [name for name in KERAS3 if name not in LIKE_OTHERS])
def test_a_model_computes_the_same_written_to_h5(name: str, tmp_path: Path) -> None:
    import keras

    built, inputs = zoo.build(name, keras)
    built.save(tmp_path / "source.keras")
    model = read(tmp_path / "source.keras")
    target = tmp_path / "target.h5"
    if name in REFUSED_BY_H5:
        with pytest.raises(NotRepresentable, match=r"Write a \.keras file"):
            write(model, target, "hdf5")
        return
    loaded = keras.models.load_model(write(model, target, "hdf5"))
    wanted = zoo.predict(built, inputs)
    assert_close(zoo.predict(loaded, inputs), wanted, f"{name} written to .h5")
    assert_same_weights(built, loaded, name)
    assert_close(run(read(target), inputs), wanted, f"{name} written to .h5 and read again")


def assert_same_weights(built: Any, loaded: Any, name: str) -> None:
    """Every weight arrived bit for bit; as a set, since models inside models were taken apart."""

    def bits(model: Any) -> list[tuple[Any, ...]]:
        found = [
            (array.shape, array.tobytes())
            for layer in model.layers
            if type(layer).__name__ != "Normalization"
            for array in layer.get_weights()
        ]
        return sorted(found, key=lambda item: (str(item[0]), item[1]))

    assert bits(built) == bits(loaded), name


@pytest.mark.parametrize("name", ["two_lstm", "masked_embedding", "nested", "merges", "convolutions"])
def test_tf_keras_loads_the_whole_model_h5(name: str, tmp_path: Path) -> None:
    import keras
    import tf_keras

    built, inputs = zoo.build(name, keras)
    built.save(tmp_path / "source.keras")
    target = write(read(tmp_path / "source.keras"), tmp_path / "target.h5", "hdf5")
    loaded = tf_keras.models.load_model(target)
    assert_close(zoo.predict(loaded, inputs), zoo.predict(built, inputs), name)


@pytest.mark.parametrize("name", ["two_lstm", "nested", "merges", "bidirectional_concat", "stacked_cells"])
def test_weights_load_into_the_same_architecture(name: str, tmp_path: Path) -> None:
    import keras

    built, inputs = zoo.build(name, keras, seed=1)
    built.save(tmp_path / "source.keras")
    model = read(tmp_path / "source.keras")
    target = write(model, tmp_path / "target.weights.h5", "keras_weights")
    whole = write(model, tmp_path / "target.keras", "keras_archive")
    fresh = keras.models.clone_model(keras.models.load_model(whole))
    fresh.load_weights(target)
    assert_close(zoo.predict(fresh, inputs), zoo.predict(built, inputs), name)


def test_the_torch_backend_reads_and_writes_the_same(tmp_path: Path) -> None:
    """Another process: a backend is chosen once."""
    import subprocess
    import sys

    script = """
import sys
from pathlib import Path
import keras
from tests.frameworks import keras_zoo as zoo
from tests.frameworks.keras_files import assert_close, read, run, write
assert keras.backend.backend() == "torch"
folder = Path(sys.argv[1])
for name in ("two_lstm", "masked_embedding", "gru_reset_after", "attention"):
    built, inputs = zoo.build(name, keras)
    wanted = zoo.predict(built, inputs)
    built.save(folder / "source.keras")
    model = read(folder / "source.keras")
    assert_close(run(model, inputs), wanted, name)
    loaded = keras.models.load_model(write(model, folder / f"{name}.keras", "keras_archive"))
    assert_close(zoo.predict(loaded, inputs), wanted, name)
"""
    import os

    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_masked_product_is_refused_where_keras3_computes_it_in_another_way(tmp_path: Path) -> None:
    import keras

    from lstmconvert.errors import UnsupportedSource

    L = keras.layers
    x = keras.Input((5, 4))
    m = L.Masking()(x)
    keras.Model(x, L.Multiply(name="product")([m, m])).save(tmp_path / "source.keras")
    with pytest.raises(UnsupportedSource, match=r"product.*masked inputs"):
        read(tmp_path / "source.keras")


@pytest.mark.parametrize("container", ["keras_archive", "hdf5", "keras_weights"])
def test_signs_and_payloads_survive(container: str, tmp_path: Path) -> None:
    """NaN with a payload, minus zero, subnormal numbers: weights are moved, never computed."""
    import keras

    from lstmconvert.tensors import same_bits

    built, _ = zoo.build("two_lstm", keras)
    special = np.array([0x7FC00123, 0x80000000, 0x00000001, 0x7F800000], np.uint32).view(np.float32)
    weights = built.get_weights()
    weights[0].flat[:4] = special
    built.set_weights(weights)
    built.save(tmp_path / "source.keras")
    model = read(tmp_path / "source.keras")
    suffix = {"keras_archive": "keras", "hdf5": "h5", "keras_weights": "weights.h5"}[container]
    target = write(model, tmp_path / f"target.{suffix}", container)
    again = read(target, recurrent_activation="sigmoid")
    for before, after in zip(model.recurrent.values(), again.recurrent.values(), strict=True):
        for a, b in zip(before.directions, after.directions, strict=True):
            assert all(same_bits(a.weights[key].read(), b.weights[key].read()) for key in a.weights)
