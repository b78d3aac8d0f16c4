"""Activations as ONNX has them: attributes of a recurrent node, and nodes of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lstmconvert.activations import Activation
from lstmconvert.frameworks.onnx.graph import Graph
from lstmconvert.onnx_proto import Attribute

_RECURRENT: Mapping[str, str] = MappingProxyType(
    {
        "sigmoid": "Sigmoid",
        "tanh": "Tanh",
        "relu": "Relu",
        "hard_sigmoid": "HardSigmoid",
        "affine": "Affine",
        "linear": "Affine",
        "scaled_tanh": "ScaledTanh",
        "leaky_relu": "LeakyRelu",
        "thresholded_relu": "ThresholdedRelu",
        "elu": "Elu",
        "softplus": "Softplus",
        "softsign": "Softsign",
    }
)
"""Names in the ``activations`` of LSTM, GRU and RNN (ONNX operator documentation, opset 14)."""


def recurrent_attributes(activations: Sequence[Activation]) -> dict[str, Attribute]:
    """``activations``, ``activation_alpha`` and ``activation_beta`` of a recurrent node.

    Both lists are consumed in turn by those activations that take the parameter. They are always
    written out: a runtime's default is not the operator's (ONNX Runtime takes an Affine without
    alpha for zero).
    """
    alphas: list[float] = []
    betas: list[float] = []
    for activation in activations:
        alpha, beta = activation.alpha, activation.beta
        if activation.kind == "linear":
            alpha, beta = 1.0, 0.0
        alphas += [] if alpha is None else [alpha]
        betas += [] if beta is None else [beta]
    attributes: dict[str, Attribute] = {"activations": [_RECURRENT[a.kind] for a in activations]}
    if alphas:
        attributes["activation_alpha"] = alphas
    if betas:
        attributes["activation_beta"] = betas
    return attributes


_PLAIN: Mapping[str, str] = MappingProxyType(
    {
        "sigmoid": "Sigmoid",
        "tanh": "Tanh",
        "relu": "Relu",
        "hard_sigmoid": "HardSigmoid",
        "leaky_relu": "LeakyRelu",
        "thresholded_relu": "ThresholdedRelu",
        "elu": "Elu",
        "softplus": "Softplus",
        "softsign": "Softsign",
        "exponential": "Exp",
    }
)
"""Kinds that are one operator with parameters of the same names."""


def apply(graph: Graph, activation: Activation, x: str, dtype: str, axis: int = -1) -> str:
    """Nodes that compute ``activation``.

    Args:
        graph: where they go.
        activation: what to compute.
        x: the tensor.
        dtype: its dtype.
        axis: the tensor's axis on which softmax and log_softmax act.
    """
    kind = activation.kind
    if kind == "linear":
        return x
    if kind in ("softmax", "log_softmax"):
        return graph.add("Softmax" if kind == "softmax" else "LogSoftmax", [x], {"axis": axis})
    if kind in _PLAIN:
        given = (("alpha", activation.alpha), ("beta", activation.beta))
        return graph.add(_PLAIN[kind], [x], {name: value for name, value in given if value is not None})
    return _composed(_Formula(graph, dtype), activation, x)


class _Formula:
    """Arithmetic on tensors and numbers of one dtype."""

    def __init__(self, graph: Graph, dtype: str) -> None:
        self._graph = graph
        self._dtype = dtype

    def __call__(self, operator: str, *operands: str | float) -> str:
        """A node; numbers among the operands become constants."""
        return self._graph.add(operator, [self._operand(operand) for operand in operands])

    def _operand(self, operand: str | float) -> str:
        return operand if isinstance(operand, str) else self._graph.number(operand, self._dtype)

    def told(self, operator: str, x: str, **attributes: float) -> str:
        """A node of one operand with attributes."""
        return self._graph.add(operator, [x], attributes)


def _composed(f: _Formula, activation: Activation, x: str) -> str:
    """The kinds that are no operator of opset 14; formulas as in ``lstmconvert.activations``."""
    alpha, beta = activation.alpha or 0.0, activation.beta or 0.0
    match activation.kind:
        case "affine":
            return f("Add", f("Mul", x, alpha), beta)
        case "scaled_tanh":
            return f("Mul", f("Tanh", f("Mul", x, beta)), alpha)
        case "clipped_relu":
            return f("Clip", x, 0.0, alpha)
        case "celu":
            negative = f("Mul", f.told("Elu", f("Div", f("Min", x, 0.0), alpha), alpha=1.0), alpha)
            return f("Add", f("Max", x, 0.0), negative)
        case "selu":
            return f.told("Selu", x, alpha=alpha, gamma=beta)
        case "silu":
            return f("Mul", x, f("Sigmoid", x))
        case "hard_silu":
            return f("Mul", x, f.told("HardSigmoid", x, alpha=alpha, beta=beta))
        case "hard_tanh":
            return f("Clip", x, -1.0, 1.0)
        case "gelu":
            return f("Mul", f("Mul", x, 0.5), f("Add", f("Erf", f("Div", x, math.sqrt(2.0))), 1.0))
        case "gelu_tanh":
            cube = f("Mul", f("Mul", f("Mul", x, x), x), 0.044715)
            inner = f("Mul", f("Add", x, cube), math.sqrt(2.0 / math.pi))
            return f("Mul", f("Mul", x, 0.5), f("Add", f("Tanh", inner), 1.0))
        case "mish":
            return f("Mul", x, f("Tanh", f("Softplus", x)))
        case "log_sigmoid":
            return f("Neg", f("Softplus", f("Neg", x)))
        case "soft_shrink":
            return f.told("Shrink", x, lambd=alpha, bias=alpha)
        case "hard_shrink":
            return f.told("Shrink", x, lambd=alpha, bias=0.0)
        case "tanh_shrink":
            return f("Sub", x, f("Tanh", x))
        case "squareplus":
            return f("Div", f("Add", x, f("Sqrt", f("Add", f("Mul", x, x), alpha))), 2.0)
        case "sparse_plus":
            shifted = f("Add", x, 1.0)
            middle = f("Div", f("Mul", shifted, shifted), 4.0)
            below_one = f("Where", f("Less", x, 1.0), middle, x)
            return f("Where", f("LessOrEqual", x, -1.0), 0.0, below_one)
        case "sparse_sigmoid":
            return f("Clip", f("Mul", f("Add", x, 1.0), 0.5), 0.0, 1.0)
    raise AssertionError(f"no formula for {activation}")
