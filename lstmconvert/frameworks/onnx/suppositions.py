"""Operations of several inputs or with weights, as the writer spells them out from placeholders.

The inputs are called ``x0``, ``x1`` and so on, of unknown sizes; the weights are of any length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from lstmconvert.activations import Activation
from lstmconvert.frameworks.onnx import operations
from lstmconvert.frameworks.onnx.graph import Dimension, Graph, Value, in_order, numpy_dtype
from lstmconvert.frameworks.onnx.patterns import Pattern
from lstmconvert.frameworks.onnx.use import Use
from lstmconvert.operations import (
    AdditiveAttention,
    Attention,
    Dot,
    GroupNormalization,
    LayerNormalization,
    MaskedRow,
    MultiHeadAttention,
    Operation,
)
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

Shape = tuple[Dimension, ...]


@dataclass(frozen=True, slots=True)
class Supposed:
    """An operation that might stand at a place.

    Attributes:
        operation: what it computes.
        shapes: of its inputs; sizes that do not matter are ``None``.
        dtypes: of its inputs.
        weights: the shape of each weight, zero for any length.
    """

    operation: Operation
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    weights: tuple[tuple[str, tuple[int, ...]], ...] = ()


@lru_cache(maxsize=4096)
def pattern(supposed: Supposed, opset: int) -> Pattern:
    """What the writer makes of it; the weights are called as the writer calls them, after ``layer``."""
    names = [f"x{n}" for n in range(len(supposed.shapes))]
    graph = Graph(opset, names)
    graph.enter("layer")
    inputs = tuple(
        Value(name, shape, dtype, in_order(len(shape)))
        for name, shape, dtype in zip(names, supposed.shapes, supposed.dtypes, strict=True)
    )
    dtype = next((d for d in supposed.dtypes if "float" in d), "float32")
    weights = {part: Lazy(shape, numpy_dtype(dtype), _no_numbers) for part, shape in supposed.weights}
    use = Use(graph, "layer", weights, inputs)
    return Pattern.of(graph, [value.name for value in operations.write(use, supposed.operation)])


def _no_numbers() -> Array:
    raise AssertionError("a placeholder has no numbers")


_THREE: Shape = (None, None, None)
_MASK: Shape = (None, None)


def _roles(causal_too: bool) -> Iterator[tuple[bool, tuple[str, ...]]]:
    for causal in (False, True) if causal_too else (False,):
        for roles in ((), ("value",), ("query",), ("query", "value"), ("value", "query")):
            yield causal, roles


def _shapes(count: int, masks: Sequence[str], dtype: str) -> tuple[tuple[Shape, ...], tuple[str, ...]]:
    shapes = tuple(_THREE if role == "attention" else _MASK for role in masks)
    return (_THREE,) * count + shapes, (dtype,) * count + ("bool",) * len(masks)


def attentions(dtype: str) -> Iterator[Supposed]:
    """Attention over query, value and key, with every set of masks."""
    for causal, roles in _roles(causal_too=True):
        shapes, dtypes = _shapes(3, roles, dtype)
        for scale in ((), (("scale", ()),)):
            yield Supposed(Attention(causal=causal, masks=roles), shapes, dtypes, scale)
            concat = (*scale, ("concat_score_weight", ()))
            yield Supposed(Attention(concat=True, causal=causal, masks=roles), shapes, dtypes, concat)
        for features in ((), (("scale", (0,)),)):
            yield Supposed(AdditiveAttention(causal=causal, masks=roles), shapes, dtypes, features)


_ROLES = ("query", "value", "key", "attention")


def head_attentions(dtype: str, heads: int, size: int) -> Iterator[Supposed]:
    """Attention in so many heads of a size, with every set of masks."""
    kernels = {"query": size, "key": size, "value": 0}
    for bits in range(16):
        roles = tuple(role for n, role in enumerate(_ROLES) if bits >> n & 1)
        shapes, dtypes = _shapes(3, roles, dtype)
        for causal in (False, True):
            rows = tuple(MaskedRow) if roles or causal else (MaskedRow.UNIFORM,)
            for row in rows:
                for bias in (True, False):
                    weights: list[tuple[str, tuple[int, ...]]] = []
                    for part, width in kernels.items():
                        weights.append((f"{part}_kernel", (heads, width, 0)))
                        if bias:
                            weights.append((f"{part}_bias", (heads, width)))
                    weights.append(("output_kernel", (0, heads, 0)))
                    if bias:
                        weights.append(("output_bias", (0,)))
                    operation = MultiHeadAttention(causal=causal, masks=roles, masked_row=row)
                    yield Supposed(operation, shapes, dtypes, tuple(weights))


def unit_dots(dtype: str) -> Iterator[Supposed]:
    """Products of vectors that are put to unit length first."""
    for ranks in ((3, 3), (2, 3), (3, 2), (2, 2)):
        shapes = tuple((None,) * rank for rank in ranks)
        for a in range(1, ranks[0]):
            for b in range(1, ranks[1]):
                yield Supposed(Dot((a, b), normalize=True), shapes, (dtype, dtype))


SPELLED_OUT = (
    *(Activation(kind) for kind in ("silu", "gelu", "gelu_tanh", "mish", "log_sigmoid", "tanh_shrink")),
    *(Activation(kind) for kind in ("sparse_plus", "sparse_sigmoid")),
    Activation("squareplus", 4.0),
    Activation("celu", 1.0),
    Activation("hard_silu", 1 / 6, 0.5),
)
"""Activations that are several nodes; of those with a parameter, with the one that Keras gives them."""


_MOST_FACTORS = 1 << 18
"""Of a normalisation without factors; where the operator takes them anyway, each pattern has as many ones."""


def normalizations(
    shape: Shape, dtype: str, epsilon: float, groups: Iterable[tuple[int, ...]]
) -> Iterator[Supposed]:
    """Normalisations of a tensor by its own mean and deviation."""
    rank = len(shape)
    for axis in range(1, rank):
        features = shape[axis]
        for count, each in groups:
            if isinstance(features, int) and count * each == features:
                own = -1 if axis == rank - 1 else axis
                for parts in _parts((features,)):
                    yield Supposed(GroupNormalization(count, own, epsilon), (shape,), (dtype,), parts)
    for first in range(1, rank):
        for last in range(first, rank):
            axes = tuple(range(first, last + 1))
            sizes = tuple(shape[axis] for axis in axes)
            if any(not isinstance(size, int) for size in sizes):
                continue
            fixed = tuple(size for size in sizes if isinstance(size, int))
            named = (-1,) if axes == (rank - 1,) else axes
            for rms in (False, True):
                for parts in _parts(fixed):
                    if "scale" not in dict(parts) and math.prod(fixed) > _MOST_FACTORS:
                        continue
                    operation = LayerNormalization(named, epsilon, rms)
                    yield Supposed(operation, (shape,), (dtype,), parts)


def _parts(shape: tuple[int, ...]) -> Iterator[tuple[tuple[str, tuple[int, ...]], ...]]:
    yield (("scale", shape), ("offset", shape))
    yield (("scale", shape),)
    yield (("offset", shape),)
    yield ()
