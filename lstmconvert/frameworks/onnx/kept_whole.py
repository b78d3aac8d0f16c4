"""Nodes of ``lstmconvert.torch``: modules of torch that were traced as a whole.

Inputs of ``MultiheadAttention``: query, key, value (batch, steps, features); the kernels of query, key and
value (head size, features); their biases one after the other; the output's kernel (features, head size) and
bias; whether it is causal. Outputs: (batch, steps, features), and the weights of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from lstmconvert.frameworks.onnx.arrangement import Atom, Held, Unknown
from lstmconvert.frameworks.onnx.neighbour_node import Node
from lstmconvert.frameworks.onnx.topology import NotUnderstood
from lstmconvert.operations import MultiHeadAttention
from lstmconvert.tensors import Lazy

DOMAIN = "lstmconvert.torch"


def _cut(array: Lazy, begin: int, shape: tuple[int, ...]) -> Lazy:
    """The elements from ``begin`` on, in another shape."""
    size = math.prod(shape)
    return array.map(lambda a: a.reshape(-1)[begin : begin + size].reshape(shape), shape)


def _attention(node: Node) -> list[Held | Unknown]:
    node.only("num_heads")
    heads = int(node.attributes["num_heads"])
    query, key, value = (
        node.topology.arranged(held, held.axes, node.name) for held in map(node.held, range(3))
    )
    kernels = [node.weights(n, "kernel") for n in (3, 4, 5)]
    biases, output, output_bias = (
        node.weights(n, what) for n, what in ((6, "biases"), (7, "output kernel"), (8, "output bias"))
    )
    width = kernels[0].shape[0]
    if width % heads or any(kernel.shape[0] != width for kernel in kernels) or output.shape != (width, width):
        raise NotUnderstood("its kernels do not fit its heads")
    size = width // heads
    weights: dict[str, Lazy] = {}
    for number, (part, kernel) in enumerate(zip(("query", "key", "value"), kernels, strict=True)):
        weights[f"{part}_kernel"] = _cut(kernel, 0, (heads, size, kernel.shape[1]))
        if biases.size:
            weights[f"{part}_bias"] = _cut(biases, number * width, (heads, size))
    weights["output_kernel"] = _cut(output, 0, (width, heads, size))
    if output_bias.size:
        weights["output_bias"] = output_bias
    causal = bool(node.weights(9, "causality").read())
    # Keras takes the value before the key.
    result = node.call(MultiHeadAttention(causal=causal), [query, value, key], weights)
    axes = (*query.axes[:2], (Atom(width),))
    return [Held.plain(result, axes, query.dtype), Unknown("the weights of attention are not converted")]


KEPT_WHOLE: Mapping[str, Callable[[Node], Sequence[Held | Unknown]]] = MappingProxyType(
    {"MultiheadAttention": _attention}
)
"""The operators of this module."""
