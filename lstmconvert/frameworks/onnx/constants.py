"""What an ONNX graph computes from constants alone, without reading it before somebody needs it.

Exporters cut, reorder and join weights by operators in the graph. ``walk`` goes through a model's
nodes in order, inner graphs included, works out whatever depends on constants only, and hands on the
rest. Movements of numbers stay lazy; an ``If`` whose condition is constant is replaced by its branch.

Source: the operators' documentation at onnx.ai, opset 1 to 22.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from lstmconvert import onnx_proto
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.onnx import folds
from lstmconvert.frameworks.onnx.known import UNKNOWN_SHAPE, Known, Operator, Partial, Size
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    import onnx

_MOST_NODES = 1_000_000
_STANDARD = ("", "ai.onnx")


@dataclass(slots=True)
class Scope:
    """The names that can be seen at one place of a graph.

    Attributes:
        constants: what is known of the values of this graph.
        defined: the names that this graph defines, which hide those of the graphs around it.
        path: the nodes and attributes that lead to this graph.
        outer: the graph around it.
    """

    constants: dict[str, Known] = field(default_factory=dict)
    defined: set[str] = field(default_factory=set)
    path: str = ""
    outer: Scope | None = None

    def known(self, name: str) -> Known | None:
        """What is known of a value, or ``None``."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.constants:
                return scope.constants[name]
            if name in scope.defined:
                return None
            scope = scope.outer
        return None

    def state_shape(self, name: str, sizes: tuple[int | Size | None, ...]) -> None:
        """Let the nodes that follow know the shape of a value that is not constant."""
        scope = self
        while scope.outer is not None and scope.outer.path == scope.path:  # a branch that was put in place
            scope = scope.outer
        known = scope.constants.get(_shape_key(name))
        stated = known.values if isinstance(known, Partial) and len(known.values) == len(sizes) else sizes
        pairs = zip(sizes, stated, strict=True)
        scope.constants[_shape_key(name)] = Partial(tuple(b if isinstance(b, int) else a for a, b in pairs))

    def constant(self, name: str) -> Lazy | None:
        """The array that a value always is, or ``None``."""
        known = self.known(name)
        return known if isinstance(known, Lazy) else None


@dataclass(frozen=True, slots=True)
class Graphs:
    """A model whose graphs can be walked.

    Attributes:
        model: the model, functions inlined; tensors whose bytes are elsewhere are external.
        tensors: the arrays by external location.
        opsets: version of each operator set.
        choices: every ``If`` so far whose condition is constant, and the branch that was put in its place.
    """

    model: onnx.ModelProto
    tensors: Mapping[str, Lazy]
    opsets: Mapping[str, int]
    choices: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, model: onnx.ModelProto, tensors: Mapping[str, Lazy]) -> Graphs:
        """The graphs of a model; its functions are put in the places where they are called."""
        model = _without_functions(model)
        opsets = {
            "" if entry.domain in _STANDARD else entry.domain: entry.version for entry in model.opset_import
        }
        return cls(model, tensors, opsets)

    def tensor(self, proto: onnx.TensorProto) -> Lazy | None:
        """The array of a tensor of the model; ``None`` for strings."""
        if proto.data_location == proto.EXTERNAL:
            return self.tensors[next(e.value for e in proto.external_data if e.key == "location")]
        if proto.data_type == proto.STRING:
            return None
        try:
            return Lazy.of(onnx_proto.array_of(proto))
        except (ValueError, TypeError, KeyError) as error:
            raise BadFile(
                "a tensor's data do not fit its shape or type", place=proto.name, found=error
            ) from error

    def walk(self, scope: Scope | None = None) -> Iterator[tuple[onnx.NodeProto, Scope]]:
        """Every node that constants do not explain, in order, with what can be seen there.

        The nodes of inner graphs come before the node that holds them; of a constant ``If`` only the
        branch that is taken, followed by an ``Identity`` for each of its outputs.

        Args:
            scope: what is known of the model's inputs.
        """
        yield from self._graph(self.model.graph, scope or Scope())

    def _graph(self, graph: onnx.GraphProto, scope: Scope) -> Iterator[tuple[onnx.NodeProto, Scope]]:
        self._enter(graph, scope)
        for node in graph.node:
            scope.defined.update(filter(None, node.output))
            branch = self._taken_branch(node, scope)
            if branch is not None:
                yield from self._inlined(node, branch, scope)
                continue
            for name, inner in _inner_graphs(node):
                inside = Scope(path=f"{scope.path}{node_name(node)}/{name}/", outer=scope)
                yield from self._graph(inner, inside)
            if not self._fold(node, scope):
                yield node, scope

    def _enter(self, graph: onnx.GraphProto, scope: Scope) -> None:
        shapes = {info.name: _shape(info) for info in (*graph.value_info, *graph.output, *graph.input)}
        for name, shape in shapes.items():
            if shape is not None:
                scope.constants.setdefault(_shape_key(name), Partial(shape))
        scope.defined.update(info.name for info in graph.input)
        for tensor in graph.initializer:
            array = self.tensor(tensor)
            scope.defined.add(tensor.name)
            if array is not None:
                scope.constants[tensor.name] = array

    def _taken_branch(self, node: onnx.NodeProto, scope: Scope) -> onnx.GraphProto | None:
        if node.op_type != "If" or node.domain not in _STANDARD or not node.input:
            return None
        condition = scope.constant(node.input[0])
        if condition is None or condition.size != 1:
            return None
        wanted = "then_branch" if condition.read().item() else "else_branch"
        self.choices.append((node_name(node), wanted))
        return next((a.g for a in node.attribute if a.name == wanted), None)

    def _inlined(
        self, node: onnx.NodeProto, branch: onnx.GraphProto, scope: Scope
    ) -> Iterator[tuple[onnx.NodeProto, Scope]]:
        inside = Scope(path=scope.path, outer=scope)
        yield from self._graph(branch, inside)
        if len(branch.output) < len(node.output):
            raise BadFile("a branch has fewer outputs than its If", place=node_name(node))
        for value, name in zip(branch.output, node.output, strict=False):
            known = inside.known(value.name)
            if known is not None:
                scope.constants[name] = known
            elif name:
                yield onnx_proto.node("Identity", [value.name], [name], name=node.name), scope

    def _fold(self, node: onnx.NodeProto, scope: Scope) -> bool:
        """Work out the node's outputs; whether all of them are known."""
        domain = "" if node.domain in _STANDARD else node.domain
        fold = folds.FOLDS.get((domain, node.op_type))
        if fold is None:
            return False
        inputs = [scope.known(name) if name else None for name in node.input]
        if not inputs and node.op_type in ("Shape", "Size"):
            return False
        if node.op_type in ("Shape", "Size") and not isinstance(inputs[0], Lazy):
            inputs = [self._shape_of(inputs[0], node.input[0], scope)]
        elif node.op_type not in folds.TAKES_UNKNOWN and any(
            known is None and name for known, name in zip(inputs, node.input, strict=True)
        ):
            return False
        operator = Operator(
            node.op_type,
            tuple(inputs),
            tuple(bool(name) for name in node.input),
            self.attributes(node),
            self.opsets.get(domain, 1),
            len(node.output),
        )
        try:
            results = fold(operator)
        except (ValueError, IndexError, TypeError, KeyError, ArithmeticError) as error:
            raise BadFile(
                f"{node.op_type} cannot act on its constant inputs",
                place=f"node {node_name(node)!r}",
                found=error,
            ) from error
        if results is None:
            return False
        for name, known in zip(node.output, results, strict=False):
            if name and known is not None:
                scope.constants[name] = known
        return all(name in scope.constants for name in node.output if name)

    def _shape_of(self, known: Known | None, name: str, scope: Scope) -> Known:
        """What is known of the shape of a value that is no constant."""
        if isinstance(known, Partial):
            return Partial(() if known.scalar else (len(known.values),))
        stated = scope.known(_shape_key(name))
        return UNKNOWN_SHAPE if stated is None else stated

    def attributes(self, node: onnx.NodeProto) -> dict[str, Any]:
        """The node's attributes by name; tensors as lazy arrays, graphs as ``None``."""
        return {a.name: self.tensor(a.t) if a.HasField("t") else attribute_value(a) for a in node.attribute}


def node_name(node: onnx.NodeProto) -> str:
    """The node's name, else that of its first output, else its operator."""
    return str(node.name or next(filter(None, node.output), node.op_type))


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """A number, text, or list of them; ``None`` for the other kinds."""
    match attribute.type:
        case attribute.FLOAT:
            return attribute.f
        case attribute.INT:
            return attribute.i
        case attribute.STRING:
            return attribute.s.decode(errors="replace")
        case attribute.FLOATS:
            return tuple(attribute.floats)
        case attribute.INTS:
            return tuple(attribute.ints)
        case attribute.STRINGS:
            return tuple(text.decode(errors="replace") for text in attribute.strings)
    # The type is absent in files of the first IR version.
    for name in ("floats", "ints"):
        if len(getattr(attribute, name)):
            return tuple(getattr(attribute, name))
    if len(attribute.strings):
        return tuple(text.decode(errors="replace") for text in attribute.strings)
    for name in ("f", "i"):
        if attribute.HasField(name):
            return getattr(attribute, name)
    return attribute.s.decode(errors="replace") if attribute.HasField("s") else None


def _inner_graphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for number, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}/{number}", graph


def _shape_key(name: str) -> str:
    return f"shape of\0{name}"


def _shape(info: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    """The sizes that the file states of a value; ``None`` where it does not."""
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim
    )


def _without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    if not model.functions:
        return model
    _check_functions(model)
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # the C++ inliner raises types of its own
        raise UnsupportedSource("the model's functions cannot be put in their places", found=error) from error


def _check_functions(model: onnx.ModelProto) -> None:
    """Functions must not call themselves, nor multiply beyond measure: the inliner does not look."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    open_calls: set[tuple[str, str, str]] = set()

    def size_of(nodes: Any) -> int:
        total = 0
        for node in nodes:
            total += 1
            key = (node.domain, node.op_type, node.overload)
            if key in functions:
                total += size(key)
            total += sum(size_of(graph.node) for _, graph in _inner_graphs(node))
        return total

    def size(key: tuple[str, str, str]) -> int:
        if key in open_calls or len(open_calls) > 100:
            raise BadFile("a function of the model calls itself", place=f"function {key[0]}::{key[1]}")
        if key not in sizes:
            open_calls.add(key)
            sizes[key] = size_of(functions[key].node)
            open_calls.remove(key)
        return sizes[key]

    if size_of(model.graph.node) > _MOST_NODES:
        raise BadFile(
            "the model's functions expand to more nodes than can be meant", expected=f"at most {_MOST_NODES}"
        )
