"""SavedModels and checkpoints of tf.keras, saved by tf_keras itself, read without TensorFlow."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert.gates import Gate

ROOT = Path(__file__).resolve().parents[1]
SAID: dict[str, Any] = {"recurrent_activation": "sigmoid", "activation": "tanh"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tf_keras")
    subprocess.run([sys.executable, ROOT / "tf_keras_models.py", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def reference(saved: Path) -> dict[str, Any]:
    with np.load(saved / "reference.npz") as found:
        return dict(found)


def test_a_saved_model_is_a_whole_model(saved: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    model = lc.read(saved / "saved")
    np.testing.assert_allclose(model.run(reference["x"]), reference["y"], atol=1e-5)
    result = lc.convert(saved / "saved", tmp_path / "model.onnx")
    assert result.framework_from == "tensorflow2"
    assert result.proof is not None
    assert result.proof.proved


@pytest.mark.parametrize("name", ["weights", "weights.index", "named"])
def test_checkpoints_give_their_recurrent_layers(saved: Path, reference: dict[str, Any], name: str) -> None:
    layers = lc.read(saved / name, **SAID).recurrent
    assert sorted(layers) == ["both", "gru", "simple"]
    both = layers["both"].directions
    for direction, way in zip(both, ("forward", "backward"), strict=True):
        kernel = next(
            a for n, a in reference.items() if f"both/{way}_lstm" in n and n.endswith("cell/kernel")
        )
        assert np.array_equal(direction.weights.kernel[Gate.CELL], kernel[:, 8:12].T)
    bias = next(a for n, a in reference.items() if n.startswith("weight/gru/") and n.endswith("/bias"))
    assert np.array_equal(layers["gru"].directions[0].weights.bias_recurrent[Gate.CANDIDATE], bias[1, 10:])


@pytest.mark.parametrize("name", ["weights", "named"])
def test_what_a_checkpoint_does_not_say_is_asked_for(saved: Path, name: str) -> None:
    with pytest.raises(lc.ConversionError, match="--recurrent-activation") as error:
        lc.read(saved / name)
    assert error.value.exit_status == 2


def test_damaged_notes_of_keras_are_bad_files(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "saved"
    shutil.copytree(saved / "saved", copy)
    notes = copy / "keras_metadata.pb"
    whole = notes.read_bytes()
    for length in range(1, len(whole), len(whole) // 40):
        notes.write_bytes(whole[:length])
        with pytest.raises(lc.BadFile):
            lc.read(copy)
    notes.write_bytes(whole.replace(b'"units": 5', b'"units": 6'))
    with pytest.raises(lc.BadFile):
        lc.read(copy)


def test_it_is_not_written(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(lc.ConversionError):
        lc.convert(saved / "saved", tmp_path / "model.index", to="tensorflow2")
    assert not (tmp_path / "model.index").exists()
