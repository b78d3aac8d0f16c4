"""ONNX operators with weights, or over whole axes: matrices, normalisations, reductions.

Source: the operators' documentation at onnx.ai, opset 7 to 22.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from lstmconvert.canonical import Merge
from lstmconvert.frameworks.onnx.arrangement import Atom, Axis, Held, length
from lstmconvert.frameworks.onnx.neighbour_node import (
    Node,
    Reader,
    axis_places,
    meant,
    unpacked,
)
from lstmconvert.frameworks.onnx.products import einsum, product, weighted_sum
from lstmconvert.frameworks.onnx.topology import NotUnderstood
from lstmconvert.operations import (
    BatchNormalization,
    Dense,
    GlobalPooling,
    LayerNormalization,
    Pool,
)
from lstmconvert.tensors import Lazy


def _matmul(node: Node) -> list[Held]:
    kernel = node.constant(1)
    if kernel is None:
        return [product(node, node.held(0), node.held(1))]
    if len(kernel.shape) != 2:
        raise NotUnderstood(f"its matrix has {len(kernel.shape)} axes")
    return [_dense(node, node.held(0), kernel, None)]


def _dense(node: Node, x: Held, kernel: Lazy, bias: Lazy | None) -> Held:
    x = node.topology.with_last(x, -1, node.name)
    if length(x.axes[-1]) not in (None, kernel.shape[0]):
        raise NotUnderstood(
            f"its matrix takes {kernel.shape[0]} features, its input has {length(x.axes[-1])}"
        )
    tensors = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
    value = node.call(Dense(), [x], unpacked("dense", tensors))
    out: Axis = (Atom(kernel.shape[1]),)
    return Held(value, (*x.logical[:-1], out), (*x.axes[:-1], out), x.dtype)


def _gemm(node: Node) -> list[Held]:
    node.only("alpha", "beta", "transA", "transB")
    kernel = node.weights(1, "matrix")
    x = node.held(0)
    if node.attributes.get("alpha", 1.0) != 1.0 or len(kernel.shape) != 2 or x.rank != 2:
        raise NotUnderstood("it is no plain product of matrices")
    if node.attributes.get("transA", 0):
        x = x.arranged(x.axes[::-1])
    if node.attributes.get("transB", 0):
        kernel = kernel.map(lambda a: a.T, kernel.shape[::-1])
    bias = None
    if node.is_given(2):
        bias = node.weights(2, "bias")
        if node.attributes.get("beta", 1.0) != 1.0 or bias.size != kernel.shape[1]:
            raise NotUnderstood("its bias is not one number for each output")
        bias = bias.map(lambda a: a.reshape(-1), (bias.size,))
    return [_dense(node, x, kernel, bias)]


def _global_pool(kind: Pool) -> Callable[[Node], list[Held]]:
    def reader(node: Node) -> list[Held]:
        x = node.held(0)
        return [_pooled_over(node, kind, x, list(range(2, x.rank)), keep=True)]

    return reader


_MERGES = {Pool.AVERAGE: Merge.AVERAGE, Pool.SUM: Merge.SUM}
"""A reduction over the two directions of a recurrent layer is its merge mode."""


def _reduce(kind: Pool) -> Callable[[Node], list[Held]]:
    def reader(node: Node) -> list[Held]:
        merged = _merge(node, _MERGES[kind]) if kind in _MERGES else None
        if merged is None and kind is Pool.SUM:
            merged = _weighted_sum(node)
        if merged is not None:
            return [merged]
        x = node.held(0)
        axes = node.integers("axes", 1)
        if not axes:
            raise NotUnderstood("it reduces all axes to one number")
        places = axis_places(axes, x.rank)
        return [_pooled_over(node, kind, x, places, keep=bool(node.attributes.get("keepdims", 1)))]

    return reader


def _reduced_product(node: Node) -> list[Held]:
    merged = _merge(node, Merge.MULTIPLY)
    if merged is None:
        raise NotUnderstood("it reduces something else than the directions of a recurrent layer")
    return [merged]


def _weighted_sum(node: Node) -> Held | None:
    x = node.held(0)
    axes = node.integers("axes", 1)
    if not axes or len(axes) != 1:
        return None
    keep = bool(node.attributes.get("keepdims", 1))
    return weighted_sum(node, x, axis_places(axes, x.rank)[0], keep=keep)


def _merge(node: Node, merge: Merge) -> Held | None:
    x = node.held(0)
    axes = node.integers("axes", 1)
    if not axes or len(axes) != 1 or node.attributes.get("keepdims", 1):
        return None
    return node.topology.merged(x, axis_places(axes, x.rank)[0], merge)


def _pooled_over(node: Node, kind: Pool, x: Held, places: list[int], *, keep: bool) -> Held:
    """Largest or mean value, or the sum, over the axes between batch and features."""
    dropped = [x.axes[n] for n in places if length(x.axes[n]) != 1]
    kept = [axis for n, axis in enumerate(x.axes) if n not in places and length(axis) != 1]
    result = [() if n in places else axis for n, axis in enumerate(x.axes) if keep or n not in places]
    if not dropped:
        return x.arranged(result)
    if len(dropped) > 2:
        raise NotUnderstood("it reduces more than two axes")
    if x.logical[0] in dropped:
        raise NotUnderstood("it reduces the batch")
    others = [axis for axis in kept if axis != x.logical[0]]
    if len(others) != 1:
        raise NotUnderstood("it does not leave a batch of features")
    x = node.topology.arranged(x, [x.logical[0], *dropped, others[0]], node.name)
    value = node.call(GlobalPooling(kind, len(dropped)), [x])
    return Held(value, (x.logical[0], others[0]), tuple(result), x.dtype)


def _batch_normalization(node: Node) -> list[Held]:
    node.only("epsilon", "momentum", "spatial", "training_mode", "is_test")
    if node.attributes.get("training_mode", 0) or not node.attributes.get("spatial", 1):
        raise NotUnderstood("it normalises in another way than at inference")
    names = ("scale", "offset", "mean", "variance")
    tensors = {name: node.weights(n + 1, name) for n, name in enumerate(names)}
    x = node.held(0)
    x = node.topology.with_last(x, 1 if x.rank > 1 else 0, node.name)
    momentum = meant(node.attributes.get("momentum", 0.9))
    operation = BatchNormalization(meant(node.attributes.get("epsilon", 1e-5)), -1, momentum)
    return [node.same(operation, x, unpacked("batch_normalization", tensors))]


def _layer_normalization(node: Node) -> list[Held]:
    x = node.held(0)
    first = axis_places([node.attributes.get("axis", -1)], x.rank)[0]
    sizes = tuple(length(axis) for axis in x.axes[first:])
    weights = {"scale": node.weights(1, "scale")}
    if node.is_given(2):
        weights["offset"] = node.weights(2, "offset")
    if any(weight.shape != sizes for weight in weights.values()):
        raise NotUnderstood("its scale is not one number for each feature")
    axes = (-1,) if first == x.rank - 1 else tuple(range(first, x.rank))
    if len(axes) == 1:
        x = node.topology.with_last(x, -1, node.name)
    else:
        x = node.topology.arranged(x, x.axes, node.name)
    epsilon = meant(node.attributes.get("epsilon", 1e-5))
    return [node.same(LayerNormalization(axes, epsilon), x, weights)]


WEIGHTED: Mapping[str, Reader] = MappingProxyType(
    {
        "MatMul": _matmul,
        "Einsum": einsum,
        "Gemm": _gemm,
        "GlobalMaxPool": _global_pool(Pool.MAX),
        "GlobalAveragePool": _global_pool(Pool.AVERAGE),
        "ReduceMean": _reduce(Pool.AVERAGE),
        "ReduceMax": _reduce(Pool.MAX),
        "ReduceSum": _reduce(Pool.SUM),
        "ReduceProd": _reduced_product,
        "BatchNormalization": _batch_normalization,
        "LayerNormalization": _layer_normalization,
    }
)
"""The operators of this module."""
