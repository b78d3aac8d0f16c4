"""Activations as expressions of torch; formulas as in ``lstmconvert.activations``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from lstmconvert.activations import HARD_SIGMOID_KERAS3, Activation
from lstmconvert.frameworks.pytorch.source import number

_TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "linear": "X",
        "sigmoid": "torch.sigmoid(X)",
        "tanh": "torch.tanh(X)",
        "relu": "torch.relu(X)",
        "hard_sigmoid": "(ALPHA * X + BETA).clamp(0.0, 1.0)",
        "affine": "ALPHA * X + BETA",
        "scaled_tanh": "ALPHA * torch.tanh(BETA * X)",
        "leaky_relu": "F.leaky_relu(X, ALPHA)",
        "thresholded_relu": "F.threshold(X, ALPHA, 0.0)",
        "clipped_relu": "X.clamp(0.0, ALPHA)",
        "elu": "F.elu(X, ALPHA)",
        "celu": "F.celu(X, ALPHA)",
        "selu": "BETA * F.elu(X, ALPHA)",
        "softplus": "F.softplus(X)",
        "softsign": "F.softsign(X)",
        "exponential": "torch.exp(X)",
        "silu": "F.silu(X)",
        "hard_silu": "X * (ALPHA * X + BETA).clamp(0.0, 1.0)",
        "hard_tanh": "F.hardtanh(X)",
        "gelu": "F.gelu(X)",
        "gelu_tanh": 'F.gelu(X, approximate="tanh")',
        "mish": "F.mish(X)",
        "softmax": "torch.softmax(X, dim=-1)",
        "log_softmax": "torch.log_softmax(X, dim=-1)",
        "log_sigmoid": "F.logsigmoid(X)",
        "soft_shrink": "F.softshrink(X, ALPHA)",
        "hard_shrink": "F.hardshrink(X, ALPHA)",
        "tanh_shrink": "F.tanhshrink(X)",
        "squareplus": "(X + torch.sqrt(X * X + ALPHA)) / 2.0",
        "sparse_plus": "torch.where(X < 1.0, 0.25 * (X + 1.0).clamp(min=0.0) ** 2, X)",
        "sparse_sigmoid": "(0.5 * X + 0.5).clamp(0.0, 1.0)",
    }
)
_SIXTH = HARD_SIGMOID_KERAS3.alpha
_SHORTER: Mapping[Activation, str] = MappingProxyType(
    {
        Activation("hard_sigmoid", _SIXTH, 0.5): "F.hardsigmoid(X)",
        Activation("hard_silu", _SIXTH, 0.5): "F.hardswish(X)",
        Activation("elu", 1.0): "F.elu(X)",
        Activation("celu", 1.0): "F.celu(X)",
        Activation("selu", 1.6732632423543772, 1.0507009873554805): "F.selu(X)",
    }
)
"""What torch has a function without parameters for."""


def _template(activation: Activation) -> str:
    return _SHORTER.get(activation) or _TEMPLATES[activation.kind]


def activated(activation: Activation, x: str, *, axis: int = -1) -> str:
    """The expression that applies ``activation`` to the expression ``x``.

    ``x`` is a name, and may be any expression where ``wraps`` says so.
    """
    template = _template(activation).replace("dim=-1", f"dim={axis}")
    holes = {"X": x, "ALPHA": number(activation.alpha or 0.0), "BETA": number(activation.beta or 0.0)}
    return re.sub(r"\b(X|ALPHA|BETA)\b", lambda hole: holes[hole[1]], template)


def wraps(activation: Activation) -> bool:
    """Whether the expression is a call around its operand, which may then be any expression."""
    return re.fullmatch(r"(torch|F)\.\w+\(X(, [^X]*)?\)", _template(activation)) is not None
