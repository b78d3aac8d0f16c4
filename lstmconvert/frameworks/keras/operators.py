"""Operators of ``keras.ops`` that stand in a functional model like layers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lstmconvert import operations
from lstmconvert.activations import RELU, SIGMOID, TANH, Activation
from lstmconvert.frameworks.keras.graph import Value
from lstmconvert.frameworks.keras.neighbours import ARITHMETIC
from lstmconvert.operations import Operation

_ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "Relu": RELU,
        "Sigmoid": SIGMOID,
        "Tanh": TANH,
        "Softplus": Activation("softplus"),
        "Softsign": Activation("softsign"),
        "Silu": Activation("silu"),
        "Exp": Activation("exponential"),
    }
)

KNOWN = ", ".join(
    sorted(
        {*ARITHMETIC, *_ACTIVATIONS, "Concatenate", "Flip", "GetItem", "Softmax", "Sum", "Take", "Transpose"}
    )
)
"""For messages; some of them only with some arguments."""


def read(
    class_name: str, config: Mapping[str, Any], arguments: Sequence[Any]
) -> tuple[Operation, tuple[Value, ...]] | None:
    """What an operator computes, and of which values.

    Args:
        class_name: of the operator.
        config: its options.
        arguments: values, symbols, constants and tuples of them.

    Returns:
        ``None`` where it is not known, or not with these arguments.
    """
    first, *others = arguments or [None]
    if isinstance(first, tuple) and class_name == "Concatenate" and not others:
        values = [item for item in first if isinstance(item, Value)]
        axis = config.get("axis")
        if len(values) == len(first) and isinstance(axis, int):
            return operations.Concatenate(axis), tuple(values)
        return None
    if not isinstance(first, Value):
        return None
    if not others:
        operation = _of_one(class_name, config)
        return None if operation is None else (operation, (first,))
    if len(others) > 1:
        return None
    (second,) = others
    if isinstance(second, Value):
        kind = ARITHMETIC.get(class_name)
        return None if kind is None else (operations.Combine(kind), (first, second))
    operation = _with_constant(class_name, config, second)
    return None if operation is None else (operation, (first,))


def _of_one(class_name: str, config: Mapping[str, Any]) -> Operation | None:
    axis = config.get("axis")
    if class_name in _ACTIVATIONS:
        return operations.Activate(_ACTIVATIONS[class_name])
    if class_name == "Softmax" and isinstance(axis, int):
        return operations.Activate(Activation("softmax"), axis)
    if class_name == "Flip" and isinstance(axis, int):
        return operations.Reverse(axis)
    if class_name == "Sum" and axis in (1, [1, 2]):
        rank = 1 if axis == 1 else 2
        return operations.GlobalPooling(operations.Pool.SUM, rank, bool(config.get("keepdims", False)))
    axes = config.get("axes")
    if class_name == "Transpose" and isinstance(axes, (list, tuple)):
        return operations.Transpose(tuple(int(n) for n in axes))
    return None


def _with_constant(class_name: str, config: Mapping[str, Any], constant: Any) -> Operation | None:
    number = isinstance(constant, (int, float)) and not isinstance(constant, bool)
    axis = config.get("axis")
    if class_name == "Take" and isinstance(axis, int) and isinstance(constant, int):
        return operations.Select(axis, constant)
    if class_name == "GetItem":
        return _item(constant)
    if class_name == "Multiply" and number:
        return operations.Rescaling(float(constant), 0.0)
    if class_name == "Add" and number:
        return operations.Rescaling(1.0, float(constant))
    if class_name == "Subtract" and number:
        return operations.Rescaling(1.0, -float(constant))
    return None


def _item(key: Any) -> Operation | None:
    """One position of one axis, everything of all others: ``x[:, -1]``."""
    items = key if isinstance(key, tuple) else (key,)
    whole = [isinstance(item, Mapping) and not any((item.get("config") or {}).values()) for item in items]
    chosen = [axis for axis, item in enumerate(items) if isinstance(item, int)]
    if len(chosen) != 1 or chosen[0] == 0 or sum(whole) != len(items) - 1:
        return None
    return operations.Select(chosen[0], items[chosen[0]])
