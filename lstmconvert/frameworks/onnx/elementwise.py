"""ONNX operators that act element by element: arithmetic and activations.

Source: the operators' documentation at onnx.ai, opset 7 to 22.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.activations import Activation
from lstmconvert.frameworks.onnx.arrangement import Axis, Held, length
from lstmconvert.frameworks.onnx.neighbour_node import (
    Node,
    Reader,
    axis_places,
    batch_first_order,
    meant,
    pattern,
)
from lstmconvert.frameworks.onnx.topology import NotUnderstood
from lstmconvert.model import OperationLayer
from lstmconvert.operations import (
    Activate,
    ClampedRelu,
    Clip,
    Combination,
    Combine,
    Operation,
    ParametricRelu,
    Rescaling,
)
from lstmconvert.reading_notes import note
from lstmconvert.tensors import Lazy


def _combine(kind: Combination) -> Callable[[Node], list[Held]]:
    def reader(node: Node) -> list[Held]:
        node.only()  # before opset 7 the axes were told by attributes
        if any(node.constant(n) is not None for n in range(len(node.inputs))):
            return [_with_constant(node, kind)]
        return [_combined(node, kind, [node.held(n) for n in range(len(node.inputs))])]

    return reader


def _of_masks(kind: Combination) -> Callable[[Node], list[Held]]:
    def reader(node: Node) -> list[Held]:
        parts = [node.held(n) for n in range(len(node.inputs))]
        if any(part.dtype != "bool" for part in parts):
            raise NotUnderstood("it takes something else than masks")
        return [_combined(node, kind, parts)]

    return reader


def _combined(node: Node, kind: Combination, parts: Sequence[Held]) -> Held:
    first = parts[0]
    if len(parts) == 1:
        return first
    alike = [(pattern(part), [length(axis) for axis in part.axes]) for part in parts]
    if all(one == alike[0] for one in alike):
        result = replace(first, value=node.call(Combine(kind), list(parts)), parts=())
        return node.topology.noted_factors(result, kind, parts)
    if len({part.rank for part in parts}) > 1:
        raise NotUnderstood("its inputs have different numbers of axes")
    order = batch_first_order(first)
    turned = [node.topology.arranged(part, [part.axes[n] for n in order], node.name) for part in parts]
    value = node.call(Combine(kind), turned)
    axes = [_widest([part.axes[n] for part in parts]) for n in range(first.rank)]
    result = Held(value, tuple(axes[n] for n in order), tuple(axes), first.dtype)
    return node.topology.noted_factors(result, kind, parts)


def _widest(axes: Sequence[Axis]) -> Axis:
    """Of axes that are broadcast against each other, the one that is not of length one."""
    return next((axis for axis in axes if length(axis) != 1), axes[0])


def _with_constant(node: Node, kind: Combination) -> Held:
    """Arithmetic with a constant: a bias, a scale, an offset."""
    if len(node.inputs) != 2:
        raise NotUnderstood("it combines several tensors with a constant")
    constant_first = node.constant(0) is not None
    known = node.weights(0 if constant_first else 1, "operand")
    return _scaled(node, kind, node.held(1 if constant_first else 0), known, constant_first=constant_first)


def _scaled(node: Node, kind: Combination, x: Held, known: Lazy, *, constant_first: bool) -> Held:
    if known.dtype.kind != "f" and known.dtype.name != "bfloat16":
        raise NotUnderstood("it computes with integers")
    ahead = len(known.shape) - x.rank
    if ahead > 0 and all(size == 1 for size in known.shape[:ahead]):
        shape = known.shape[ahead:]
        return _scaled(
            node,
            kind,
            x.arranged((*[()] * ahead, *x.axes)),
            known.map(lambda a: a.reshape(shape), shape),
            constant_first=constant_first,
        )
    if ahead > 0:
        raise NotUnderstood("its constant has more axes than its input")
    long = [n for n, size in enumerate(known.shape) if size != 1]
    if len(long) > 1:
        raise NotUnderstood("its constant differs along several axes")
    if not long:
        number = float(known.read().reshape(()))
        return node.same(_rescaled(kind, number, constant_first=constant_first), x)
    axis = long[0] - len(known.shape)
    if length(x.axes[axis]) != known.shape[axis]:
        raise NotUnderstood("its constant repeats an axis of its input")
    vector = known.map(lambda a: a.reshape(-1), (known.size,))
    if kind is Combination.ADD and x.logical[-1] == x.axes[axis]:
        layer = node.topology.unfinished(x)
        if layer is not None and _may_have_bias(layer, vector):
            origin = (*layer.origin, node.inputs[0 if constant_first else 1])
            weights = {**layer.weights, "bias": vector}
            node.topology.finish_layer(replace(layer, weights=weights, origin=origin))
            return x
    x = node.topology.with_last(x, axis, node.name)
    numbers = tuple(float(n) for n in vector.read().astype(np.float64))
    return node.same(_rescaled(kind, numbers, constant_first=constant_first), x)


def _may_have_bias(layer: OperationLayer, bias: Lazy) -> bool:
    return "bias" not in layer.weights and bias.dtype == layer.weights["kernel"].dtype


def _rescaled(kind: Combination, number: float | tuple[float, ...], *, constant_first: bool) -> Operation:
    negative: Any = tuple(-n for n in number) if isinstance(number, tuple) else -number
    match kind:
        case Combination.ADD:
            return Rescaling(1.0, number)
        case Combination.SUBTRACT:
            return Rescaling(-1.0, number) if constant_first else Rescaling(1.0, negative)
        case Combination.MULTIPLY:
            return Rescaling(number, 0.0)
    raise NotUnderstood(f"{kind} with a constant is no operation of a layer")


def _divide(node: Node) -> list[Held]:
    node.only()
    divisor = node.constant(1)
    if divisor is None or divisor.dtype.kind != "f":
        raise NotUnderstood("it divides by something else than numbers")
    x = node.held(0)
    if divisor.size == 1:
        mean = node.topology.averaged(x, float(divisor.read().reshape(())))
        if mean is not None:
            return [mean]
    values = divisor.read()
    with np.errstate(divide="ignore", over="ignore"):
        reciprocal = np.asarray(1 / values.astype(np.float64), values.dtype)
    if not np.isfinite(reciprocal).all():
        raise NotUnderstood("it divides by zero")
    exact = bool((np.abs(np.frexp(values.astype(np.float64))[0]) == 0.5).all())
    if not exact:
        change = float(np.abs(reciprocal.astype(np.float64) - 1 / values.astype(np.float64)).max())
        text = "a division became a multiplication by the reciprocal"
        node.topology.rewrites.append(note(node.name, "reciprocal", text, rounding=change))
    return [_scaled(node, Combination.MULTIPLY, x, Lazy.of(reciprocal), constant_first=False)]


def _power(node: Node) -> list[Held]:
    node.only()
    exponent = node.constant(1)
    if exponent is None or exponent.size != 1 or float(exponent.read().reshape(())) != 2:
        raise NotUnderstood("it takes another power than the second")
    x = node.held(0)
    return [replace(x, value=node.call(Combine(Combination.MULTIPLY), [x, x]), parts=())]


def _activation(make: Callable[[Node], Activation]) -> Callable[[Node], list[Held]]:
    def reader(node: Node) -> list[Held]:
        return [_activated(node, node.held(0), make(node))]

    return reader


_USUAL: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"leaky_relu": (0.2,), "elu": (1.0,), "celu": (1.0,), "thresholded_relu": ()}
)
"""Parameters with which an activation has a name of its own in layers; with others it is a layer itself."""


def _activated(node: Node, x: Held, activation: Activation) -> Held:
    layer = (
        node.topology.unfinished(x)
        if activation.alpha in _USUAL.get(activation.kind, (activation.alpha,))
        else None
    )
    if layer is not None:
        operation: Any = layer.operation
        node.topology.finish_layer(replace(layer, operation=replace(operation, activation=activation)))
        return x
    return node.same(Activate(activation), x)


def _with(kind: str, *parameters: tuple[str, float]) -> Callable[[Node], list[Held]]:
    def make(node: Node) -> Activation:
        node.only(*(name for name, _ in parameters))
        return Activation(kind, *(meant(node.attributes.get(name, default)) for name, default in parameters))

    return _activation(make)


def _softmax(kind: str) -> Callable[[Node], list[Held]]:
    def reader(node: Node) -> list[Held]:
        x = node.held(0)
        axis = axis_places([node.attributes.get("axis", 1 if node.opset < 13 else -1)], x.rank)[0]
        if node.opset < 13 and axis != x.rank - 1:
            raise NotUnderstood("before opset 13 it normalises over several axes at once")
        return [_activated(node, node.topology.with_last(x, axis, node.name), Activation(kind))]

    return reader


def _gelu(node: Node) -> list[Held]:
    kinds = {"none": "gelu", "tanh": "gelu_tanh"}
    form = node.attributes.get("approximate", "none")
    if form not in kinds:
        raise NotUnderstood(f"its approximation {form!r} is not known")
    return [_activated(node, node.held(0), Activation(kinds[form]))]


def _shrink(node: Node) -> list[Held]:
    node.only("lambd", "bias")
    width, bias = (
        meant(node.attributes.get(name, default)) for name, default in (("lambd", 0.5), ("bias", 0.0))
    )
    if bias not in (0.0, width):
        raise NotUnderstood("its bias is neither zero nor its width")
    return [_activated(node, node.held(0), Activation("soft_shrink" if bias else "hard_shrink", width))]


def _clip(node: Node) -> list[Held]:
    node.only("min", "max")
    bounds: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        if name in node.attributes:
            bounds.append(meant(node.attributes[name]))
        elif node.is_given(index):
            bounds.append(meant(float(node.weights(index, name).read().reshape(()))))
        else:
            bounds.append(None)
    x = node.held(0)
    match bounds:
        case [0.0, None]:
            return [_activated(node, x, Activation("relu"))]
        case [0.0, float(maximum)]:
            return [node.same(ClampedRelu(maximum=maximum), x)]
        case [-1.0, 1.0]:
            return [_activated(node, x, Activation("hard_tanh"))]
    if None not in bounds and (bounds[0] or 0.0) > (bounds[1] or 0.0):
        raise NotUnderstood(f"it clips between {bounds[0]} and {bounds[1]}")
    return [node.same(Clip(*bounds), x)]


def _parametric_relu(node: Node) -> list[Held]:
    slope = node.weights(1, "slope")
    x = node.held(0)
    if slope.size == 1:
        return [_activated(node, x, Activation("leaky_relu", float(slope.read().reshape(()))))]
    long = [n for n, size in enumerate(slope.shape) if size != 1]
    if len(long) != 1 and len(slope.shape) < x.rank:
        plain = node.topology.arranged(x, x.axes, node.name)
        return [node.same(ParametricRelu(), plain, {"slope": slope})]
    if len(long) != 1 or len(slope.shape) > x.rank:
        raise NotUnderstood("its slope differs along several axes")
    axis = long[0] - len(slope.shape)
    x = node.topology.with_last(x, axis, node.name)
    shape = (*[1] * (len(x.logical) - 2), slope.size)
    return [node.same(ParametricRelu(), x, {"slope": slope.map(lambda a: a.reshape(shape), shape)})]


ELEMENTWISE: Mapping[str, Reader] = MappingProxyType(
    {
        "Add": _combine(Combination.ADD),
        "Sum": _combine(Combination.ADD),
        "Sub": _combine(Combination.SUBTRACT),
        "Mul": _combine(Combination.MULTIPLY),
        "Mean": _combine(Combination.AVERAGE),
        "Max": _combine(Combination.MAXIMUM),
        "Min": _combine(Combination.MINIMUM),
        "And": _of_masks(Combination.AND),
        "Or": _of_masks(Combination.OR),
        "Div": _divide,
        "Pow": _power,
        "Relu": _with("relu"),
        "Sigmoid": _with("sigmoid"),
        "Tanh": _with("tanh"),
        "LeakyRelu": _with("leaky_relu", ("alpha", 0.01)),
        "Elu": _with("elu", ("alpha", 1.0)),
        "Celu": _with("celu", ("alpha", 1.0)),
        "Selu": _with("selu", ("alpha", 1.6732632), ("gamma", 1.0507009)),
        "HardSigmoid": _with("hard_sigmoid", ("alpha", 0.2), ("beta", 0.5)),
        "ThresholdedRelu": _with("thresholded_relu", ("alpha", 1.0)),
        "Softplus": _with("softplus"),
        "Softsign": _with("softsign"),
        "Mish": _with("mish"),
        "HardSwish": _activation(lambda _: Activation("hard_silu", 1 / 6, 0.5)),
        "Exp": _with("exponential"),
        "Gelu": _gelu,
        "Clip": _clip,
        "Shrink": _shrink,
        "PRelu": _parametric_relu,
        "Softmax": _softmax("softmax"),
        "LogSoftmax": _softmax("log_softmax"),
    }
)
"""The operators of this module."""
