"""Models that are not float32 keep their dtype from end to end, or what becomes of it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert.frameworks import pytorch_live
from tests.architectures import randomise

Array = np.ndarray[Any, Any]
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}
X = np.random.default_rng(2).standard_normal((3, 6, 3)).astype(np.float32)


def built(policy: str) -> Any:
    """A whole model under a dtype policy, with random weights."""
    import keras

    L = keras.layers
    plain = {"recurrent_initializer": "glorot_uniform"}  # an orthogonal one cannot be drawn in bfloat16
    keras.config.set_dtype_policy(policy)
    try:
        x = keras.Input((6, 3), name="x")
        y = L.LSTM(4, return_sequences=True, name="lstm", **plain)(x)
        y = L.Bidirectional(L.GRU(3, **plain), name="gru")(y)
        model = keras.Model(x, L.Dense(2, name="head")(y))
    finally:
        keras.config.set_dtype_policy("float32")
    randomise(model, np.random.default_rng(1))
    return model


def wide(tensor: Any) -> Array:
    import keras

    return np.asarray(keras.ops.cast(tensor, "float64"))


def given(dtype: str) -> Array:
    return X.astype(np.float64) if dtype == "float64" else X


def run_torch(path: Path, dtype: str) -> Array:
    import torch

    module = pytorch_live.load_source(path.with_suffix(".py").read_text(encoding="utf-8")).Model.load(path)
    kind = getattr(torch, dtype)
    assert {tensor.dtype for tensor in module.state_dict().values()} == {kind}
    with torch.no_grad():
        return np.asarray(module(torch.from_numpy(X).to(kind)).double())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_torch_and_keras_keep_the_dtype(dtype: str, tmp_path: Path) -> None:
    import keras

    model = built(dtype)
    model.save(tmp_path / "source.keras")
    wanted = wide(model(given(dtype)))
    tolerance = 16 * EPSILON[dtype] * max(1.0, float(np.abs(wanted).max()))
    for name in ("first.safetensors", "second.pt"):
        result = lc.convert(tmp_path / "source.keras", tmp_path / name)
        assert result.proof is not None
        assert all(layer.bit_equal for layer in result.proof.layers)
        assert str(lc.read(tmp_path / name).recurrent["lstm"].dtype) == dtype
        np.testing.assert_allclose(run_torch(tmp_path / name, dtype), wanted, atol=tolerance)
    lc.convert(tmp_path / "first.safetensors", tmp_path / "again.keras")
    assert str(lc.read(tmp_path / "again.keras").recurrent["gru"].dtype) == dtype
    if dtype != "bfloat16":  # Keras cannot draw the orthogonal matrix that it makes before it loads
        again = keras.models.load_model(tmp_path / "again.keras")
        assert {str(variable.dtype) for variable in again.weights} == {dtype}
        np.testing.assert_allclose(wide(again(given(dtype))), wanted, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_onnx_keeps_the_dtype(dtype: str, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    model = built(dtype)
    model.save(tmp_path / "source.keras")
    wanted = wide(model(given(dtype)))
    result = lc.convert(tmp_path / "source.keras", tmp_path / "model.onnx")
    assert result.proof is not None
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    assert {str(layer.dtype) for layer in lc.read(tmp_path / "model.onnx").recurrent.values()} == {dtype}
    if dtype == "float16":
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
        (got,) = session.run(None, {"x": X})
        assert got.dtype == np.float16
        tolerance = 16 * EPSILON[dtype] * max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(got.astype(np.float64), wanted, atol=tolerance)
    else:  # its LSTM knows float32 and float16 only, and the proof says that it did not run
        assert any("refuses it" in reason for reason in result.proof.skipped)
        lc.convert(tmp_path / "source.keras", tmp_path / "cast.onnx", dtype="float32")
        (got,) = onnxruntime.InferenceSession(str(tmp_path / "cast.onnx")).run(None, {"x": X})
        np.testing.assert_allclose(
            got, wanted, atol=16 * EPSILON["bfloat16"] if dtype == "bfloat16" else 1e-5
        )


def test_a_cast_says_by_how_much_it_rounds(tmp_path: Path) -> None:
    model = built("float64")
    model.save(tmp_path / "source.keras")
    result = lc.convert(
        tmp_path / "source.keras", tmp_path / "model.safetensors", dtype="bfloat16", tolerance=0.2
    )
    cast = [step for step in result.rewrites if step.name == "cast"]
    assert {step.layer for step in cast} >= {"lstm", "gru"}
    assert all(not step.exact and 0 < step.rounding < 0.02 for step in cast if step.layer in ("lstm", "gru"))
    exact = lc.read(tmp_path / "source.keras").recurrent["lstm"].directions[0].weights
    stored = lc.read(tmp_path / "model.safetensors").recurrent["lstm"].directions[0].weights
    worst = 0.0
    for key, block in stored.items():
        assert block.dtype == ml_dtypes.bfloat16
        if key in exact:
            worst = max(worst, float(np.abs(block.read().astype(np.float64) - exact[key].read()).max()))
    (said,) = (step.rounding for step in cast if step.layer == "lstm")
    assert worst <= said


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("target", ["model.onnx", "model.safetensors", "again.keras"])
def test_a_mixed_policy_is_computed_in_the_dtype_of_its_variables_and_said_to_be(
    policy: str, target: str, tmp_path: Path
) -> None:
    import keras
    import onnxruntime

    model = built(policy)
    model.save(tmp_path / "source.keras")
    narrow = policy.removeprefix("mixed_")
    wanted = wide(model(X))
    result = lc.convert(tmp_path / "source.keras", tmp_path / target)
    assert result.proof is not None
    assert not result.proof.exact
    (said,) = (step for step in result.rewrites if step.name == "compute_in_variable_dtype")
    assert narrow in said.description
    if target.endswith(".onnx"):
        (got,) = onnxruntime.InferenceSession(str(tmp_path / target)).run(None, {"x": X})
    elif target.endswith(".keras"):
        got = wide(keras.models.load_model(tmp_path / target)(X))
    else:
        got = run_torch(tmp_path / target, "float32")
    full = built("float32")
    full.set_weights(model.get_weights())
    np.testing.assert_allclose(got, wide(full(X)), atol=1e-5)
    np.testing.assert_allclose(got, wanted, atol=16 * EPSILON[narrow] * max(1.0, float(np.abs(wanted).max())))
