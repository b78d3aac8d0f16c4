"""Layer normalisation as exporters spell it out, scale and offset included.

``torch.onnx`` does so below opset 17, which has an operator for it; tf2onnx always.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lstmconvert.frameworks.onnx import fused_normalization
from lstmconvert.frameworks.onnx.arrangement import Held, length
from lstmconvert.frameworks.onnx.fused_normalization import made_by
from lstmconvert.frameworks.onnx.neighbour_node import meant
from lstmconvert.frameworks.onnx.patterns import attributes_of
from lstmconvert.operations import LayerNormalization
from lstmconvert.tensors import Lazy

if TYPE_CHECKING:
    import onnx

    from lstmconvert.frameworks.onnx.supposed import Place


def layer_normalization(place: Place) -> Held | None:
    """(x - mean) / sqrt(variance + epsilon) over the last axis, with a scale and an offset or without."""
    name = place.tensor
    weights: dict[str, Lazy] = {}
    origin: list[str] = []
    for operator, part in (("Add", "offset"), ("Mul", "scale")):
        node = made_by(place, name, operator)
        if node is not None:
            split = _with_constant(place, node)
            if split is None:
                return None
            name, tensor, weights[part] = split
            origin.append(tensor)
    found = _normalized(place, name) or fused_normalization.normalized(place, name)
    if found is None:
        return None
    x, epsilon = found
    if any(tensor.shape != (length(x.axes[-1]),) for tensor in weights.values()):
        return None
    x = place.topology.with_last(x, x.rank - 1, place.name)
    operation = LayerNormalization((-1,), epsilon)
    return replace(x, value=place.topology.call(place.name, operation, [x], weights, origin), parts=())


def _normalized(place: Place, name: str) -> tuple[Held, float] | None:
    """x and epsilon, of a tensor that is x normalised over its last axis; ``None`` of any other."""
    division = made_by(place, name, "Div")
    if division is None:
        return None
    centred = place.flow.source(division.input[0])
    x = _centred(place, centred)
    if x is None or x.rank < 2:
        return None
    epsilon = _epsilon(place, division.input[1], centred, x.rank)
    return None if epsilon is None else (x, epsilon)


def _with_constant(place: Place, node: onnx.NodeProto) -> tuple[str, str, Lazy] | None:
    """What a node of two inputs takes beside a constant, and the constant."""
    for one, other in (tuple(node.input), tuple(node.input)[::-1]):
        constant = place.flow.constant(other)
        if constant is not None:
            return one, other, constant
    return None


def _centred(place: Place, name: str) -> Held | None:
    """x, of x less its mean over the last axis."""
    node = made_by(place, name, "Sub")
    if node is None:
        return None
    x = place.held(node.input[0])
    if x is None or not _is_mean_of(place, node.input[1], node.input[0], x.rank):
        return None
    return x


def _epsilon(place: Place, name: str, centred: str, rank: int) -> float | None:
    """What is added to the variance below the root, to the mean of the squares of ``centred``."""
    root = made_by(place, name, "Sqrt")
    total = None if root is None else made_by(place, root.input[0], "Add")
    split = None if total is None else _with_constant(place, total)
    if split is None or split[2].size != 1:
        return None
    mean = made_by(place, split[0], "ReduceMean")
    power = None if mean is None else place.flow.maker(mean.input[0])
    if mean is None or power is None or not _is_square(place, power[0], centred):
        return None
    if not _is_mean_of(place, split[0], mean.input[0], rank):
        return None
    return meant(float(split[2].read().reshape(())))


def _is_square(place: Place, node: onnx.NodeProto, name: str) -> bool:
    sources = [place.flow.source(given) for given in node.input]
    if node.op_type == "Mul":
        return sources == [name, name]
    if node.op_type != "Pow" or sources[0] != name:
        return False
    exponent = place.flow.constant(node.input[1])
    return exponent is not None and exponent.size == 1 and float(exponent.read().reshape(())) == 2.0


def _is_mean_of(place: Place, name: str, of: str, rank: int) -> bool:
    """Whether a tensor is the mean of another over its last axis, which stays."""
    node = made_by(place, name, "ReduceMean")
    if node is None or place.flow.source(node.input[0]) != place.flow.source(of):
        return False
    said = attributes_of(node)
    axes = said.get("axes")
    if axes is None and len(node.input) > 1:
        given = place.flow.constant(node.input[1])
        axes = None if given is None else given.read().reshape(-1).tolist()
    last = isinstance(axes, list | tuple) and len(axes) == 1 and axes[0] % rank == rank - 1
    return last and bool(said.get("keepdims", 1))
