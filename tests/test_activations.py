"""Every kind of activation against the runtimes that have it, over all sizes of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmconvert.activations import KINDS, Activation
from lstmconvert.tensors import Array

SELU = (1.6732632423543772, 1.0507009873554805)
SIXTH = 1 / 6

# Kind and parameters, and what computes the same in torch (given torch.nn.functional) and in Keras 3
# (given keras.activations); None where that runtime has no such function.
CASES: list[tuple[Activation, Any, Any]] = [
    (Activation("linear"), lambda F: lambda x: x, lambda K: K.linear),
    (Activation("sigmoid"), lambda F: F.sigmoid, lambda K: K.sigmoid),
    (Activation("tanh"), lambda F: F.tanh, lambda K: K.tanh),
    (Activation("relu"), lambda F: F.relu, lambda K: K.relu),
    (Activation("hard_sigmoid", SIXTH, 0.5), lambda F: F.hardsigmoid, lambda K: K.hard_sigmoid),
    (Activation("leaky_relu", 0.3), lambda F: lambda x: F.leaky_relu(x, 0.3), lambda K: lambda x: K.leaky_relu(x, 0.3)),
    (Activation("thresholded_relu", 0.5), lambda F: lambda x: F.threshold(x, 0.5, 0.0),
     lambda K: lambda x: K.threshold(x, 0.5, 0.0)),
    (Activation("clipped_relu", 6.0), lambda F: F.relu6, lambda K: K.relu6),
    (Activation("clipped_relu", 0.7), lambda F: lambda x: F.hardtanh(x, 0.0, 0.7), None),
    (Activation("elu", 0.7), lambda F: lambda x: F.elu(x, 0.7), lambda K: lambda x: K.elu(x, 0.7)),
    (Activation("celu", 0.7), lambda F: lambda x: F.celu(x, 0.7), lambda K: lambda x: K.celu(x, 0.7)),
    (Activation("selu", *SELU), lambda F: F.selu, lambda K: K.selu),
    (Activation("softplus"), lambda F: F.softplus, lambda K: K.softplus),
    (Activation("softsign"), lambda F: F.softsign, lambda K: K.softsign),
    (Activation("exponential"), None, lambda K: K.exponential),
    (Activation("silu"), lambda F: F.silu, lambda K: K.silu),
    (Activation("hard_silu", SIXTH, 0.5), lambda F: F.hardswish, lambda K: K.hard_silu),
    (Activation("hard_tanh"), lambda F: F.hardtanh, lambda K: K.hard_tanh),
    (Activation("gelu"), lambda F: F.gelu, lambda K: lambda x: K.gelu(x, approximate=False)),
    (Activation("gelu_tanh"), lambda F: lambda x: F.gelu(x, approximate="tanh"),
     lambda K: lambda x: K.gelu(x, approximate=True)),
    (Activation("mish"), lambda F: F.mish, lambda K: K.mish),
    (Activation("softmax"), lambda F: lambda x: F.softmax(x, -1), lambda K: K.softmax),
    (Activation("log_softmax"), lambda F: lambda x: F.log_softmax(x, -1), lambda K: K.log_softmax),
    (Activation("log_sigmoid"), lambda F: F.logsigmoid, lambda K: K.log_sigmoid),
    (Activation("soft_shrink", 0.5), lambda F: F.softshrink, lambda K: K.soft_shrink),
    (Activation("hard_shrink", 0.5), lambda F: F.hardshrink, lambda K: K.hard_shrink),
    (Activation("tanh_shrink"), lambda F: F.tanhshrink, lambda K: K.tanh_shrink),
    (Activation("squareplus", 4.0), None, lambda K: K.squareplus),
    (Activation("sparse_plus"), None, lambda K: K.sparse_plus),
    (Activation("sparse_sigmoid"), None, lambda K: K.sparse_sigmoid),
]  # fmt: skip

# Kinds that ONNX alone has, with their operators.
ONNX_CASES = [
    (Activation("hard_sigmoid", 0.2, 0.5), "HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
    (Activation("hard_sigmoid", 0.3, 0.1), "HardSigmoid", {"alpha": 0.3, "beta": 0.1}),
    (Activation("thresholded_relu", 0.5), "ThresholdedRelu", {"alpha": 0.5}),
    (Activation("elu", 0.7), "Elu", {"alpha": 0.7}),
    (Activation("celu", 0.7), "Celu", {"alpha": 0.7}),
    (Activation("selu", 1.5, 1.2), "Selu", {"alpha": 1.5, "gamma": 1.2}),
    (Activation("hard_silu", SIXTH, 0.5), "HardSwish", {}),
    (Activation("leaky_relu", 0.1), "LeakyRelu", {"alpha": 0.1}),
    (Activation("softsign"), "Softsign", {}),
    (Activation("softplus"), "Softplus", {}),
    (Activation("mish"), "Mish", {}),
]

_IDS = [str(activation) for activation, _, _ in CASES]


def _numbers(dtype: Any) -> Array:
    """Small, usual and saturating numbers, both zeros, and the places where functions have corners."""
    rng = np.random.default_rng(1)
    corners = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0, 0.7, 2.5, -2.5]
    large = [20.0, -20.0, 60.0, -60.0, 600.0, -600.0, 3e4, -3e4]
    small = [1e-4, -1e-4, 6e-8, -6e-8]
    usual = rng.standard_normal(60) * 3
    return np.array([*corners, *large, *small, *usual]).astype(dtype).reshape(7, 12)


def _agree(ours: Array, theirs: Any, dtype: Any, *, slack: float = 8) -> None:
    wanted = np.asarray(theirs).astype(np.float64)
    assert ours.dtype == dtype
    info = np.finfo(dtype)
    got = ours.astype(np.float64)
    finite = np.isfinite(wanted)
    # Where the runtime overflows we may be at the largest number, and the other way round.
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    near = float(info.max) * 0.99
    assert np.all((np.abs(got[~finite & ~np.isnan(wanted)])) >= near)
    error = np.abs(np.where(finite, got, 0) - np.where(finite, wanted, 0))
    allowed = slack * float(info.eps) * np.maximum(np.abs(np.where(finite, wanted, 0)), 1)
    worst = np.argmax(error - allowed)
    assert np.all(error <= allowed), f"{got.flat[worst]} where {wanted.flat[worst]} was expected"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("activation", "in_torch", "in_keras"), CASES, ids=_IDS)
def test_an_activation_is_what_torch_and_keras_compute(
    activation: Activation,
    in_torch: Callable[[Any], Any] | None,
    in_keras: Callable[[Any], Any] | None,
    dtype: Any,
) -> None:
    """Within a few units of the dtype's precision, relative to the larger of one and the value."""
    import keras
    import torch

    x = _numbers(dtype)
    ours = activation(x)
    if in_torch is not None:
        theirs = in_torch(torch.nn.functional)(torch.tensor(x))
        _agree(ours, theirs.numpy(), dtype, slack=8)
    # Keras keeps parameters in float32, so float64 is left to it only where torch has no such function.
    if in_keras is not None and (dtype == np.float32 or (dtype == np.float64 and in_torch is None)):
        theirs = in_keras(keras.activations)(keras.ops.convert_to_tensor(x))
        _agree(ours, keras.ops.convert_to_numpy(theirs), dtype, slack=16)


@pytest.mark.parametrize(
    ("activation", "operator", "attributes"), ONNX_CASES, ids=[f"{a}" for a, _, _ in ONNX_CASES]
)
def test_an_activation_is_what_onnx_computes(
    activation: Activation, operator: str, attributes: dict[str, float]
) -> None:
    """Operators of that name in ONNX Runtime."""
    import onnx
    import onnxruntime
    from onnx import helper

    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = _numbers(np.float32)
    (theirs,) = session.run(None, {"x": x})
    # Its exponentials are approximations of a few ulp of one.
    _agree(activation(x), theirs, np.float32, slack=24)


def test_keras_2_has_the_other_hard_sigmoid() -> None:
    """0.2 x + 0.5, not x / 6 + 0.5."""
    import tf_keras

    x = _numbers(np.float64)
    theirs = np.asarray(tf_keras.activations.hard_sigmoid(tf_keras.backend.constant(x, "float64")))
    _agree(Activation("hard_sigmoid", 0.2, 0.5)(x), theirs, np.float64)
    assert np.abs(Activation("hard_sigmoid", SIXTH, 0.5)(x) - theirs).max() > 0.01


def test_affine_and_scaled_tanh_are_their_formulas() -> None:
    """Functions that only recurrent nodes of ONNX have; tests/test_equations.py judges them there."""
    x = _numbers(np.float64)
    np.testing.assert_array_equal(Activation("affine", 0.5, 0.1)(x), 0.5 * x + 0.1)
    np.testing.assert_array_equal(Activation("scaled_tanh", 1.5, 0.5)(x), 1.5 * np.tanh(0.5 * x))


def test_every_kind_is_judged() -> None:
    """No kind without a case above."""
    assert {a.kind for a, _, _ in CASES} | {a.kind for a, _, _ in ONNX_CASES} | {
        "affine",
        "scaled_tanh",
    } == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_nan(kind: str) -> None:
    """No clipping or comparison swallows it; the neighbours on other rows are untouched."""
    takes = {a.kind: a for a, _, _ in CASES} | {"affine": Activation("affine", 0.5, 0.1)}
    activation = takes.get(kind, Activation(kind, 1.5, 0.5) if kind == "scaled_tanh" else takes["linear"])
    assert activation.kind == kind
    x = np.array([[np.nan, 1.0], [0.25, 1.0]])
    result = activation(x)
    assert np.isnan(result[0, 0])
    np.testing.assert_array_equal(result[1], activation(x[1:])[0])


def test_gelu_keeps_its_small_values() -> None:
    """Far below zero the difference of 1 and erf would leave nothing."""
    from math import erfc, sqrt

    x = np.array([-8.0, -6.0, -4.0])
    np.testing.assert_allclose(Activation("gelu")(x), [v * 0.5 * erfc(-v / sqrt(2)) for v in x], rtol=1e-13)


def test_sigmoid_is_symmetric() -> None:
    """f(-x) = 1 - f(x), on which turning a gate around rests."""
    x = np.linspace(0, 30, 1000)
    for activation in (Activation("sigmoid"), Activation("hard_sigmoid", 0.2, 0.5)):
        assert activation.odd_about_half
        np.testing.assert_allclose(activation(-x), 1 - activation(x), rtol=0, atol=1e-16)
    assert not Activation("hard_sigmoid", 0.2, 0.4).odd_about_half
    assert not Activation("tanh").odd_about_half


def test_parameters_are_checked() -> None:
    """Missing, unknown and superfluous ones."""
    for arguments, message in (
        (("hard_sigmoid", 0.2), "needs a value for beta"),
        (("tanh", 0.2), "takes no alpha"),
        (("swoosh",), "unknown activation"),
    ):
        with pytest.raises(ValueError, match=message):
            Activation(*arguments)
