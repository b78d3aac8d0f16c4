"""Operations that the writer spells out in several nodes, supposed at their last node and compared.

Each function supposes what a tensor might be, and gives it where the nodes that the writer would make of
it are those that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from lstmconvert import layout, mapping
from lstmconvert.activations import Activation
from lstmconvert.frameworks.onnx import masked, operations, suppositions
from lstmconvert.frameworks.onnx.arrangement import Axis, Held, length
from lstmconvert.frameworks.onnx.constants import Scope, node_name
from lstmconvert.frameworks.onnx.graph import Graph, Value, in_order
from lstmconvert.frameworks.onnx.neighbour_node import meant
from lstmconvert.frameworks.onnx.patterns import Flow, Match, Pattern, match
from lstmconvert.frameworks.onnx.spelled_normalization import layer_normalization
from lstmconvert.frameworks.onnx.suppositions import Supposed
from lstmconvert.frameworks.onnx.use import Use
from lstmconvert.operations import Activate, ClampedRelu, Dot, GlobalPooling, Masking, Pool
from lstmconvert.tensors import Lazy

if TYPE_CHECKING:
    import onnx

    from lstmconvert.frameworks.onnx.topology import Topology


class Place:
    """A tensor that might be the result of an operation, and what is around it."""

    def __init__(self, topology: Topology, node: onnx.NodeProto, scope: Scope) -> None:
        self.topology = topology
        self.node = node
        self.name = node_name(node)
        self.tensor = node.output[0]
        self.flow: Flow = topology.flow(scope)
        self.opset = topology.opset

    def held(self, name: str) -> Held | None:
        """A tensor that is an arrangement of a value."""
        found = self.topology.peek(self.flow.source(name))
        return found if isinstance(found, Held) else None

    def above(self, *kinds: str) -> list[onnx.NodeProto] | None:
        """The nodes that lead to the tensor by their first inputs, the last one first, if of these kinds."""
        found, name = [], self.tensor
        for kind in kinds:
            maker = self.flow.maker(name)
            if maker is None or maker[0].op_type != kind:
                return None
            found.append(maker[0])
            name = maker[0].input[0]
        return found


def read(topology: Topology, node: onnx.NodeProto, scope: Scope) -> Held | None:
    """The tensor that a node gives as the last one of several that are an operation; ``None`` of others."""
    place = Place(topology, node, scope)
    for suppose in _SUPPOSED.get(node.op_type, ()):
        found = suppose(place)
        if found is not None:
            return found
    return None


def plain(held: Held, place: Place) -> Held:
    """The tensor as a value whose axes are those of the tensor."""
    return place.topology.arranged(held, held.axes, place.name)


# Masks.


def _index_mask(place: Place) -> Held | None:
    """not (index == 0)."""
    nodes = place.above("Not", "Equal")
    if nodes is None:
        return None
    index, zero = nodes[1].input
    number = place.flow.constant(zero)
    held = place.held(index)
    if held is None or number is None or number.shape != () or number.read() != 0 or held.dtype == "bool":
        return None
    return place.topology.index_mask(held)


@cache
def _masking_pattern(opset: int, rank: int, value: float, dtype: str) -> Pattern:
    graph = Graph(opset, ["x"])
    graph.enter("layer")
    use = Use(graph, "layer", {}, (Value("x", (None,) * rank, dtype, in_order(rank)),))
    return Pattern.of(graph, [given.name for given in operations.write(use, Masking(value))])


def _masking_mask(place: Place) -> Held | None:
    nodes = place.above("Equal", "ReduceMin", "Cast", "Equal")
    return None if nodes is None else _masking(place, nodes[3], 1)


def _masking_value(place: Place) -> Held | None:
    if place.node.op_type != "Where" or len(place.node.input) != 3:
        return None
    maker = place.flow.maker(place.node.input[0])
    for kind in ("Unsqueeze", "Equal", "ReduceMin", "Cast"):
        if maker is None or maker[0].op_type != kind:
            return None
        maker = place.flow.maker(maker[0].input[0])
    return None if maker is None or maker[0].op_type != "Equal" else _masking(place, maker[0], 0)


def _masking(place: Place, equal: onnx.NodeProto, output: int) -> Held | None:
    """x with masked steps set to zero, or the mask: one layer gives both."""
    x, number = place.held(equal.input[0]), place.flow.constant(equal.input[1])
    if x is None or number is None or number.size != 1 or x.rank < 2 or x.axes[-1] != x.logical[-1]:
        return None
    value = float(number.read().reshape(()))
    pattern = _masking_pattern(place.opset, x.rank, value, x.dtype)
    if match(pattern, place.flow, place.tensor, output) is None:
        return None
    key = (x.value, value)
    known = place.topology.maskings.get(key)
    if known is None:
        known = place.topology.call_several(place.name, Masking(value), [x], more=[".mask"])
        place.topology.maskings[key] = known
    if output == 0:
        return replace(x, value=known[0], parts=())
    return Held(known[1], x.logical[:-1], x.axes[:-1], "bool")


def _masked_mean(place: Place) -> Held | None:
    for dtype in ("float32", "float64", "float16"):
        found = masked.masked_mean(place.flow, place.opset, place.tensor, dtype)
        if found is None:
            continue
        tensors, keep = found
        x, mask = (place.held(tensors.tensors[name]) for name in (masked.X, masked.MASK))
        if x is None or mask is None or x.rank != 3 or x.dtype != dtype or mask.axes[:1] != x.axes[:1]:
            return None
        operation = GlobalPooling(Pool.AVERAGE, 1, keep)
        inputs = [plain(x, place)]
        (value,) = place.topology.call_several(place.name, operation, inputs, mask=plain(mask, place))
        axes = (x.axes[0], (), x.axes[2]) if keep else (x.axes[0], x.axes[2])
        return Held.plain(value, axes, dtype)
    return None


# Attention.


def _above_softmax(place: Place) -> bool:
    """Whether the tensor is what attention mixes, or a projection of it."""
    chains = (
        ("MatMul", "Softmax"),
        ("MatMul", "Reshape", "Transpose", "MatMul", "Softmax"),
        ("MatMul", "Reshape", "Transpose", "MatMul", "Where"),
    )
    if any(place.above(*chain) or place.above("Add", *chain) for chain in chains):
        return True
    if place.node.op_type != "Where" or len(place.node.input) != 3:
        return False
    mixed = place.flow.maker(place.node.input[1])
    weights = None if mixed is None else place.flow.maker(mixed[0].input[0])
    return weights is not None and weights[0].op_type == "Softmax"


def _attention(place: Place) -> Held | None:
    if not _above_softmax(place):
        return None
    for dtype in ("float32", "float64", "float16"):
        for supposed in suppositions.attentions(dtype):
            found = _matched(place, supposed)
            if found is not None:
                query, value = found.inputs[:2]
                axes = (*query.axes[:2], value.axes[2])
                return found.called((axes, (*query.axes[:2], value.axes[1])))
    return None


def _head_attention(place: Place) -> Held | None:
    if not _above_softmax(place):
        return None
    ends = place.above("Add", "MatMul", "Reshape", "Transpose", "MatMul") or place.above(
        "MatMul", "Reshape", "Transpose", "MatMul"
    )
    values = None if ends is None else place.flow.maker(ends[-1].input[1])
    split = None if values is None else place.flow.maker(values[0].input[0])
    shape = None if split is None or len(split[0].input) != 2 else place.flow.constant(split[0].input[1])
    if shape is None or shape.shape != (4,):
        return None
    heads = int(shape.read()[2])
    for size in _head_sizes(place):
        for supposed in suppositions.head_attentions("float32", heads, size):
            found = _matched(place, supposed)
            if found is not None:
                query, value = found.inputs[:2]
                width = found.weights["output_kernel"].shape[1]
                axes = (*query.axes[:2], place.topology.axis(width))
                scores = (query.axes[0], place.topology.axis(heads), query.axes[1], value.axes[1])
                return found.called((axes, scores), heads=heads)
    return None


def _head_sizes(place: Place) -> list[int]:
    """The sizes whose roots the numbers above the tensor are one over."""
    sizes: list[int] = []
    names, seen = [place.tensor], set[str]()
    while names:
        maker = place.flow.maker(names.pop())
        if maker is None or maker[0].name in seen or len(seen) > 60:
            continue
        seen.add(maker[0].name or str(id(maker[0])))
        names += maker[0].input
        if maker[0].op_type != "Mul":
            continue
        number = place.flow.constant(maker[0].input[1])
        if number is not None and number.shape == () and 0 < float(number.read()) <= 1:
            sizes.append(round(float(number.read()) ** -2))
    return sizes


def _unit_dot(place: Place) -> Held | None:
    maker = place.above("MatMul") or place.above("Squeeze", "MatMul")
    if maker is None:
        return None
    for supposed in suppositions.unit_dots("float32"):
        found = _matched(place, supposed)
        if found is not None:
            operation = supposed.operation
            assert isinstance(operation, Dot)
            pairs = zip(found.inputs, operation.axes, strict=True)
            kept = [a for x, axis in pairs for n, a in enumerate(x.axes) if n not in (0, axis)]
            return found.called(((found.inputs[0].axes[0], *(kept or [()])),))
    return None


class _Found:
    """An operation that was supposed and is there."""

    def __init__(self, place: Place, supposed: Supposed, found: Match, pattern: Pattern) -> None:
        self.place = place
        self.supposed = supposed
        self.found = found
        self.pattern = pattern
        count = len(supposed.shapes)
        self.names = [found.tensors[f"x{n}"] for n in range(count)]
        held = [place.held(name) for name in self.names]
        self.inputs = [x for x in held if x is not None]
        self.fits = len(self.inputs) == count and all(
            x.rank == len(shape) and x.dtype == dtype
            for x, shape, dtype in zip(self.inputs, supposed.shapes, supposed.dtypes, strict=True)
        )
        self.weights = {
            name.removeprefix("layer/"): tensor
            for name in pattern.weights
            if (tensor := place.flow.constant(found.tensors[name])) is not None
        }

    def called(self, axes: Sequence[tuple[Axis, ...]], *, heads: int | None = None) -> Held:
        """The first result of a layer that computes the operation; ``axes`` are those of its results."""
        place, operation = self.place, self.supposed.operation
        main = self.found.nodes.get("layer")
        name = place.name if main is None else node_name(main)
        inputs = [plain(x, place) for x in self.inputs]
        masks = getattr(operation, "masks", ())
        ahead = len(inputs) - len(masks)
        if ahead == 3 and self.names[1] == self.names[2]:
            del inputs[2]  # the key is the value where none is given
        more = []
        second = self.found.tensors.get(self.pattern.outputs[1]) if len(self.pattern.outputs) > 1 else None
        if second is not None and place.topology.is_used_elsewhere(second):
            more = [".scores"]
        elif len(self.pattern.outputs) > 1:
            operation = replace(operation, return_scores=False)  # type: ignore[call-arg]
        weights = self.weights if heads is None else _unpacked_heads(self.weights, heads)
        origin = [self.found.tensors[name] for name in self.pattern.weights]
        values = place.topology.call_several(name, operation, inputs, weights, origin, more=more)
        dtype = self.inputs[0].dtype
        if more and second is not None:
            place.topology.give(second, Held.plain(values[1], axes[1], dtype))
        return Held.plain(values[0], axes[0], dtype)


def _unpacked_heads(weights: Mapping[str, Lazy], heads: int) -> dict[str, Lazy]:
    return layout.unpack_operation(
        mapping.load("onnx").layouts["multi_head_attention"], weights, {"head": heads}
    )


def _matched(place: Place, supposed: Supposed, *, loose: bool = False) -> _Found | None:
    """The operation at the place; ``None`` where it is not there.

    Args:
        place: where.
        supposed: what.
        loose: whether the number of axes is not part of it.
    """
    operation = supposed.operation
    if hasattr(operation, "return_scores"):
        supposed = replace(supposed, operation=replace(operation, return_scores=True))  # type: ignore[call-arg]
    pattern = suppositions.pattern(supposed, place.opset)
    root = pattern.root(0)
    if root is None or root.op_type != place.node.op_type:
        return None
    found = match(pattern, place.flow, place.tensor)
    if found is None:
        return None
    result = _Found(place, supposed, found, pattern)
    if loose:
        return result if len(result.inputs) == len(supposed.shapes) else None
    return result if result.fits else None


# Single nodes and pairs of them.


def _clamped(place: Place) -> Held | None:
    """x above a threshold, below it a slope times the distance."""
    if place.node.op_type != "Where":
        return None
    passes = place.flow.maker(place.node.input[0])
    if passes is None or passes[0].op_type != "Greater":
        return None
    x, threshold = place.held(passes[0].input[0]), place.flow.constant(passes[0].input[1])
    slope = _slope_below(place)
    if x is None or threshold is None or threshold.size != 1 or slope is None:
        return None
    operation = ClampedRelu(slope, meant(float(threshold.read().reshape(()))))
    found = _matched(place, Supposed(operation, ((None,) * x.rank,), (x.dtype,)))
    if found is None or operation.threshold == 0.0:
        return None
    return replace(x, value=place.topology.call(place.name, operation, [x]), parts=())


def _slope_below(place: Place) -> float | None:
    other = place.flow.constant(place.node.input[2])
    if other is not None:
        return 0.0 if other.size == 1 and not other.read().any() else None
    product = place.flow.maker(place.node.input[2])
    number = None if product is None else place.flow.constant(product[0].input[-1])
    return None if number is None or number.size != 1 else meant(float(number.read().reshape(())))


def _capped(place: Place) -> Held | None:
    """The least of a clamped activation and a number."""
    if place.node.op_type != "Min" or len(place.node.input) != 2:
        return None
    x, number = place.held(place.node.input[0]), place.flow.constant(place.node.input[1])
    if x is None or number is None or number.size != 1:
        return None
    return place.topology.capped(x, meant(float(number.read().reshape(()))))


# Activations and normalisations.


def _activation(place: Place) -> Held | None:
    for activation in suppositions.SPELLED_OUT:
        found = _matched(place, Supposed(Activate(activation), ((None, None),), ("float32",)), loose=True)
        if found is not None:
            return _activated(place, found.inputs[0], activation)
    return None


def _activated(place: Place, x: Held, activation: Activation) -> Held:
    return replace(x, value=place.topology.call(place.name, Activate(activation), [x]), parts=())


def _gelu(place: Place) -> Held | None:
    """x times one half times (1 + erf(x / root of two)), in any order."""
    factors, number = _factors(place, place.tensor)
    if len(factors) != 2 or number != 0.5:
        return None
    for x, other in (factors, factors[::-1]):
        total = place.flow.maker(other)
        if total is None or total[0].op_type != "Add":
            continue
        ends = [(total[0].input[n], total[0].input[1 - n]) for n in (0, 1)]
        for erf, one in ends:
            maker, held = place.flow.maker(erf), place.held(x)
            if maker is None or maker[0].op_type != "Erf" or _number(place, one) != 1.0 or held is None:
                continue
            inner, scale = _factors(place, maker[0].input[0])
            same = [place.flow.source(name) for name in inner] == [place.flow.source(x)]
            if same and abs(scale * 2**0.5 - 1) < 1e-6:
                return _activated(place, held, Activation("gelu"))
    return None


_NESTED = 6
"""Products in products that are looked into: a spelled-out GELU has three, a graph that is wrong no end."""


def _factors(place: Place, name: str, depth: int = _NESTED) -> tuple[list[str], float]:
    """The tensors of which a tensor is the product, and the number in it."""
    maker = place.flow.maker(name)
    if maker is None or maker[0].op_type not in ("Mul", "Div") or not depth:
        return [name], 1.0
    factors, product = [], 1.0
    for place_of, given in enumerate(maker[0].input):
        number = _number(place, given)
        divides = maker[0].op_type == "Div" and place_of == 1
        if number is not None and not (divides and number == 0):
            product *= 1 / number if divides else number
        elif divides:
            return [name], 1.0
        else:
            inner, scale = _factors(place, given, depth - 1)
            factors += inner
            product *= scale
    return factors, product


def _number(place: Place, name: str) -> float | None:
    constant = place.flow.constant(name)
    if constant is None or constant.size != 1 or constant.dtype.kind != "f":
        return None
    return float(constant.read().reshape(()))


def _normalized(place: Place) -> Held | None:
    """A normalisation that takes the mean and the deviation of its input."""
    around = _Around.of(place)
    if not {"Sqrt", "Reciprocal"} <= around.kinds:
        return None
    for name in around.held:
        x = place.held(name)
        if x is None or x.rank < 2 or not x.dtype.startswith("float"):
            continue
        shape = tuple(length(axis) for axis in x.axes)
        for epsilon in around.numbers:
            for supposed in suppositions.normalizations(shape, x.dtype, epsilon, around.pairs):
                found = _matched(place, supposed)
                if found is not None:
                    return found.called((x.axes,))
    return None


class _Around:
    """What leads to a tensor."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.held: dict[str, None] = {}
        self.numbers: dict[float, None] = {}
        self.pairs: dict[tuple[int, ...], None] = {}

    @classmethod
    def of(cls, place: Place) -> _Around:
        """The nodes up to a distance, and the tensors and constants that they take."""
        around = cls()
        names, seen = [place.tensor], set[str]()
        while names and len(seen) < 40:
            name = place.flow.source(names.pop(0))
            if name in seen:
                continue
            seen.add(name)
            constant = place.flow.constant(name)
            if constant is not None:
                around._note(constant)
                continue
            maker = place.flow.maker(name)
            if name != place.tensor and place.held(name) is not None:
                around.held[name] = None
            if maker is not None:
                around.kinds.add(maker[0].op_type)
                names += [given for given in maker[0].input if given]
        return around

    def _note(self, constant: Lazy) -> None:
        if constant.shape == () and constant.dtype.kind == "f":
            self.numbers[meant(float(constant.read()))] = None
        elif constant.shape == (2,) and constant.dtype.kind == "i":
            self.pairs[tuple(int(n) for n in constant.read())] = None


Supposition = Callable[[Place], Held | None]

_SUPPOSED: Mapping[str, Sequence[Supposition]] = MappingProxyType(
    {
        "Not": (_index_mask,),
        "Equal": (_masking_mask,),
        "Where": (_masking_value, _attention, _clamped, _activation),
        "Div": (_masked_mean, _activation, layer_normalization),
        "MatMul": (_attention, _head_attention, _unit_dot),
        "Add": (_head_attention, _activation, _normalized, layer_normalization),
        "Mul": (_gelu, _activation, _normalized, layer_normalization),
        "Reshape": (_normalized, layer_normalization),
        "Clip": (_activation,),
        "Neg": (_activation,),
        "Sub": (_activation,),
        "Squeeze": (_unit_dot,),
        "Min": (_capped,),
    }
)
"""What a node of each kind may be the last one of."""
