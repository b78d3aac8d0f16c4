"""Keras's names of activations, and the functions that each release computes under them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lstmconvert.activations import (
    HARD_SIGMOID_KERAS2,
    HARD_SIGMOID_KERAS3,
    LINEAR,
    RELU,
    SIGMOID,
    TANH,
    Activation,
)
from lstmconvert.errors import UnsupportedSource

HARD_SIGMOID = "hard_sigmoid"

_NAMES: Mapping[str, Activation] = MappingProxyType(
    {
        "linear": LINEAR,
        "sigmoid": SIGMOID,
        "tanh": TANH,
        "relu": RELU,
        "softmax": Activation("softmax"),
        "log_softmax": Activation("log_softmax"),
        "softplus": Activation("softplus"),
        "softsign": Activation("softsign"),
        "exponential": Activation("exponential"),
        "elu": Activation("elu", 1.0),
        "selu": Activation("selu", 1.6732632423543772, 1.0507009873554805),
        "silu": Activation("silu"),
        "gelu": Activation("gelu"),
        "mish": Activation("mish"),
        "leaky_relu": Activation("leaky_relu", 0.2),
        "relu6": Activation("clipped_relu", 6.0),
        "log_sigmoid": Activation("log_sigmoid"),
        "hard_silu": Activation("hard_silu", 1 / 6, 0.5),
        "hard_tanh": Activation("hard_tanh"),
        "hard_shrink": Activation("hard_shrink", 0.5),
        "soft_shrink": Activation("soft_shrink", 0.5),
        "tanh_shrink": Activation("tanh_shrink"),
        "celu": Activation("celu", 1.0),
        "squareplus": Activation("squareplus", 4.0),
        "sparse_plus": Activation("sparse_plus"),
        "sparse_sigmoid": Activation("sparse_sigmoid"),
    }
)
"""Equal in every release that has them (Keras 3.15 and tf_keras 2.21 documentation of activations)."""

_OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {"swish": "silu", "hard_swish": "hard_silu", "softmax_v2": "softmax", "swish_activation": "silu"}
)


def hard_sigmoid(generation: int) -> Activation:
    """clip(x / 6 + 0.5, 0, 1) since Keras 3, clip(0.2 x + 0.5, 0, 1) before."""
    return HARD_SIGMOID_KERAS3 if generation >= 3 else HARD_SIGMOID_KERAS2


def read(value: Any, generation: int, place: str) -> Activation:
    """The activation that a config names: ``None``, a name, or a serialised function or layer.

    Raises:
        UnsupportedSource: on a function that is not one of Keras's own.
    """
    if value is None:
        return LINEAR
    if isinstance(value, Mapping):
        return _read_object(value, generation, place)
    name = str(value)
    name = _OTHER_NAMES.get(name, name)
    if name == HARD_SIGMOID:
        return hard_sigmoid(generation)
    if name in _NAMES:
        return _NAMES[name]
    raise UnsupportedSource(
        f"the activation {value!r} is not one of Keras's built-in ones that lstmconvert knows",
        place=place,
        expected=", ".join(sorted([*_NAMES, HARD_SIGMOID])),
    )


def _read_object(value: Mapping[str, Any], generation: int, place: str) -> Activation:
    kind, config = value.get("class_name"), value.get("config")
    if kind == "function" or (isinstance(config, str) and value.get("module", "").endswith("activations")):
        return read(config, generation, place)
    if isinstance(config, Mapping):
        plain = activation_layer(str(kind), config)
        if plain is not None:
            return plain
    raise UnsupportedSource(f"the activation {kind!r} is not one that lstmconvert knows", place=place)


def activation_layer(class_name: str, config: Mapping[str, Any]) -> Activation | None:
    """The activation of a layer that is nothing but one with a parameter, or ``None``."""
    if class_name == "LeakyReLU":
        slope = config.get("negative_slope", config.get("alpha", 0.3))
        return Activation("leaky_relu", number(slope))
    if class_name == "ELU":
        return Activation("elu", number(config.get("alpha", 1.0)))
    if class_name == "ThresholdedReLU":
        return Activation("thresholded_relu", number(config.get("theta", 1.0)))
    return None


def number(value: Any) -> float:
    """A number of a config; old Keras wrote some of them as NumPy scalars."""
    if isinstance(value, Mapping):  # {"type": "ndarray", "value": 0.3}, or {"class_name": "__numpy__", ...}
        inner = value.get("config", value)
        value = inner.get("value") if isinstance(inner, Mapping) else inner
    return float(value)


def write(activation: Activation) -> str | None:
    """Keras 3's name of an activation, or ``None`` where it has none.

    >>> write(HARD_SIGMOID_KERAS3), write(HARD_SIGMOID_KERAS2)
    ('hard_sigmoid', None)
    """
    if activation == HARD_SIGMOID_KERAS3:
        return HARD_SIGMOID
    for name, known in _NAMES.items():
        if known == activation:
            return name
    return None
