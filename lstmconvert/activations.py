"""Activation functions as values: a kind and its parameters, never a bare name.

``hard_sigmoid`` is why: Keras 2 computes clip(0.2 x + 0.5, 0, 1), Keras 3 clip(x / 6 + 0.5, 0, 1),
and both call it ``hard_sigmoid``. Here the slope and the offset are always spelled out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.values import dataclass

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = np.ndarray


def _sigmoid(x: Array, alpha: float, beta: float) -> Array:
    # tanh form: no overflow for large negative x, and exactly symmetric about 0.
    half = x.dtype.type(0.5)
    result: Array = half * np.tanh(half * x) + half
    return result


def _softmax(x: Array, alpha: float, beta: float) -> Array:
    shifted: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    total: Array = shifted.sum(axis=-1, keepdims=True)
    result: Array = np.divide(shifted, total)
    return result


def _log_softmax(x: Array, alpha: float, beta: float) -> Array:
    shifted: Array = x - x.max(axis=-1, keepdims=True)
    total: Array = np.exp(shifted).sum(axis=-1, keepdims=True)
    return np.subtract(shifted, np.log(total))


def _gelu(x: Array, alpha: float, beta: float) -> Array:
    # erfc, since 1 - erf has no digits left far below zero; NumPy has neither.
    wide = np.asarray(x, np.float64)
    scaled = (wide / -math.sqrt(2.0)).ravel().tolist()
    tails = np.fromiter(map(math.erfc, scaled), np.float64, wide.size).reshape(wide.shape)
    result: Array = 0.5 * wide * tails
    return result


def _gelu_tanh(x: Array, alpha: float, beta: float) -> Array:
    result: Array = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return result


def _softplus(x: Array, alpha: float, beta: float) -> Array:
    return np.logaddexp(x, np.zeros((), x.dtype))


def _selu(x: Array, alpha: float, beta: float) -> Array:
    return beta * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


_FUNCTIONS: Mapping[str, Callable[[Array, float, float], Array]] = MappingProxyType(
    {
        "linear": lambda x, a, b: x,
        "sigmoid": _sigmoid,
        "tanh": lambda x, a, b: np.tanh(x),
        "relu": lambda x, a, b: np.maximum(x, 0),
        "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
        "affine": lambda x, a, b: a * x + b,
        "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
        "leaky_relu": lambda x, a, b: np.where(x >= 0, x, a * x),
        "thresholded_relu": lambda x, a, b: np.where(x <= a, 0, x),
        "clipped_relu": lambda x, a, b: np.clip(x, 0, a),
        "elu": lambda x, a, b: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
        "celu": lambda x, a, b: np.maximum(x, 0) + np.minimum(0, a * np.expm1(np.minimum(x, 0) / a)),
        "selu": _selu,
        "softplus": _softplus,
        "softsign": lambda x, a, b: x / (1 + np.abs(x)),
        "exponential": lambda x, a, b: np.exp(x),
        "silu": lambda x, a, b: x * _sigmoid(x, a, b),
        "hard_silu": lambda x, a, b: x * np.clip(a * x + b, 0, 1),
        "hard_tanh": lambda x, a, b: np.clip(x, -1, 1),
        "gelu": _gelu,
        "gelu_tanh": _gelu_tanh,
        "mish": lambda x, a, b: x * np.tanh(_softplus(x, a, b)),
        "softmax": _softmax,
        "log_softmax": _log_softmax,
        "log_sigmoid": lambda x, a, b: -_softplus(-x, a, b),
        "soft_shrink": lambda x, a, b: np.sign(x) * np.maximum(np.abs(x) - a, 0),
        "hard_shrink": lambda x, a, b: np.where(np.abs(x) <= a, 0, x),
        "tanh_shrink": lambda x, a, b: x - np.tanh(x),
        "squareplus": lambda x, a, b: (x + np.sqrt(x * x + a)) / 2,
        "sparse_plus": lambda x, a, b: np.where(x <= -1, 0, np.where(x < 1, (x + 1) ** 2 / 4, x)),
        "sparse_sigmoid": lambda x, a, b: np.where(x <= -1, 0, np.where(x >= 1, 1, 0.5 * (x + 1))),
    }
)

_PARAMETERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "hard_sigmoid": ("alpha", "beta"),
        "affine": ("alpha", "beta"),
        "scaled_tanh": ("alpha", "beta"),
        "leaky_relu": ("alpha",),
        "thresholded_relu": ("alpha",),
        "clipped_relu": ("alpha",),
        "elu": ("alpha",),
        "celu": ("alpha",),
        "selu": ("alpha", "beta"),
        "hard_silu": ("alpha", "beta"),
        "soft_shrink": ("alpha",),
        "hard_shrink": ("alpha",),
        "squareplus": ("alpha",),
    }
)

KINDS = tuple(_FUNCTIONS)
"""Every kind of activation that can be named."""


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation function with its parameters filled in.

    Attributes:
        kind: one of ``KINDS``.
        alpha: first parameter (slope, scale or threshold); ``None`` where the kind has none.
        beta: second parameter (offset or inner scale); ``None`` where the kind has none.

    Raises:
        ValueError: on an unknown kind, or parameters that the kind lacks or does not take.
    """

    kind: str
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FUNCTIONS:
            raise ValueError(f"unknown activation {self.kind!r}; known: {', '.join(KINDS)}")
        takes = _PARAMETERS.get(self.kind, ())
        for name in ("alpha", "beta"):
            given = getattr(self, name) is not None
            if given != (name in takes):
                problem = "takes no" if given else "needs a value for"
                raise ValueError(f"activation {self.kind!r} {problem} {name}")

    def __call__(self, x: Array) -> Array:
        """Apply to ``x`` (any shape; floating); the result has the shape and dtype of ``x``.

        ``softmax`` and ``log_softmax`` act on the last axis.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            result = _FUNCTIONS[self.kind](x, self.alpha or 0.0, self.beta or 0.0)
        return np.asarray(result, dtype=x.dtype)

    @property
    def odd_about_half(self) -> bool:
        """Whether f(-x) = 1 - f(x): the gates whose sign can be turned around exactly."""
        return self.kind == "sigmoid" or (self.kind == "hard_sigmoid" and self.beta == 0.5)

    def __str__(self) -> str:
        values = [f"{v:g}" for v in (self.alpha, self.beta) if v is not None]
        return f"{self.kind}({', '.join(values)})" if values else self.kind


SIGMOID = Activation("sigmoid")
TANH = Activation("tanh")
RELU = Activation("relu")
LINEAR = Activation("linear")
HARD_SIGMOID_KERAS2 = Activation("hard_sigmoid", 0.2, 0.5)
"""Keras 1 and 2, tf_keras, TensorFlow.js, Theano, and ONNX HardSigmoid's default."""
HARD_SIGMOID_KERAS3 = Activation("hard_sigmoid", 1 / 6, 0.5)
"""Keras 3 and torch.nn.Hardsigmoid."""
