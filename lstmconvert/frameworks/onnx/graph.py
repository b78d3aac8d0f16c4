"""A graph of ONNX nodes while it is being built.

Names are made unique, equal helper nodes become one, and every value knows in which order its axes lie,
so that a transposition is written only where an operator needs another order than the value has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstmconvert import onnx_proto
from lstmconvert.onnx_proto import Attribute, GraphProto, NodeProto, TensorProto, ValueInfoProto
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

Dimension = int | str | None
"""A fixed size, the name of a free one, or ``None`` for a free size without a name."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph.

    Attributes:
        name: the tensor.
        shape: its logical shape: batch first, features last.
        dtype: NumPy's name of its dtype.
        order: which logical axis each axis of the tensor is; (1, 0, 2) is time-major.
    """

    name: str
    shape: tuple[Dimension, ...]
    dtype: str
    order: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def axis(self, logical: int) -> int:
        """The tensor's axis that is the logical axis (negative ones count from the end)."""
        return self.order.index(logical % self.rank)

    @property
    def features_last(self) -> bool:
        """Whether the features are the tensor's last axis."""
        return self.order[-1] == self.rank - 1

    def named(self, name: str) -> Value:
        """A value of the same shape, dtype and order in another tensor."""
        return replace(self, name=name)


def in_order(rank: int) -> tuple[int, ...]:
    """The logical order."""
    return tuple(range(rank))


def element_type(dtype: str) -> int:
    """ONNX's number of a dtype.

    Raises:
        ValueError: where ONNX has no such type.
    """
    if dtype == "bfloat16":
        return int(TensorProto.BFLOAT16)
    return onnx_proto.element_type_of(np.dtype(dtype))


def is_floating(dtype: str) -> bool:
    """Whether a dtype, by NumPy's name, is a floating one."""
    return "float" in dtype


class Graph:
    """Nodes, constants and weights of a graph under construction.

    Args:
        opset: version of ONNX's operators.
        reserved: names that tensors of the graph must not take.
    """

    def __init__(self, opset: int, reserved: Iterable[str]) -> None:
        self.opset = opset
        self.weights: dict[str, Lazy] = {}
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}
        self._scope = ""
        self._node_names: set[str] = set()
        self._tensor_names = set(reserved)
        self._known: dict[tuple[object, ...], tuple[str, ...]] = {}
        self._forms: dict[tuple[str, tuple[object, ...]], Callable[[], str]] = {}

    # Names.

    def enter(self, scope: str) -> None:
        """Name the coming nodes after this layer."""
        number, self._scope = 1, scope
        while self._scope in self._node_names:
            number += 1
            self._scope = f"{scope}_{number}"

    @property
    def scope(self) -> str:
        """Name of the layer that is being written; of a layer's second use with a number."""
        return self._scope

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """The nodes so far."""
        return self._nodes

    @property
    def constants(self) -> Mapping[str, TensorProto]:
        """The small constants so far."""
        return self._constants

    @staticmethod
    def _unique(wanted: str, taken: set[str]) -> str:
        name, number = wanted, 1
        while name in taken:
            number += 1
            name = f"{wanted}_{number}"
        taken.add(name)
        return name

    # Nodes.

    def add(
        self, operator: str, inputs: Sequence[str], attributes: Mapping[str, Attribute] | None = None
    ) -> str:
        """Add a helper node with one output, or find the one that does the same; its output."""
        key = (operator, *inputs, *sorted((name, _frozen(v)) for name, v in (attributes or {}).items()))
        if key not in self._known:
            node = self._unique(f"{self._scope}/{operator}", self._node_names)
            self._known[key] = self._append(operator, inputs, attributes or {}, node, (f"{node}/output",))
        return self._known[key][0]

    def add_main(
        self,
        operator: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Attribute] | None = None,
        outputs: Sequence[str] = ("output",),
    ) -> tuple[str, ...]:
        """Add the node that stands for the layer and bears its name; its outputs ``layer/output``."""
        if self._scope in self._node_names:
            node = self._unique(f"{self._scope}/{operator}", self._node_names)
        else:
            node = self._unique(self._scope, self._node_names)
        return self._append(operator, inputs, attributes or {}, node, [f"{self._scope}/{o}" for o in outputs])

    def _append(
        self,
        operator: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Attribute],
        name: str,
        outputs: Sequence[str],
    ) -> tuple[str, ...]:
        names = tuple(self._unique(output, self._tensor_names) for output in outputs)
        self._nodes.append(onnx_proto.node(operator, inputs, names, attributes, name=name))
        return names

    # Constants and weights.

    def constant(self, array: Array) -> str:
        """A small constant, kept in the graph; equal ones are one."""
        key = ("", array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = self._unique(f"constant_{len(self._constants)}", self._tensor_names)
            self._constants[name] = onnx_proto.tensor_of(array, name)
            self._known[key] = (name,)
        return self._known[key][0]

    def integers(self, *values: int) -> str:
        """A list of whole numbers: axes, a shape, where to cut."""
        return self.constant(np.asarray(values, np.int64))

    def integer(self, value: int) -> str:
        """One whole number without axes."""
        return self.constant(np.asarray(value, np.int64))

    def number(self, value: float, dtype: str) -> str:
        """One number without axes."""
        return self.constant(np.asarray(value, numpy_dtype(dtype)))

    def weight(self, layer: str, part: str, tensor: Lazy) -> str:
        """A tensor of a layer, named after both; the same for every use of the layer."""
        key = ("weight", layer, part, tensor.shape)
        if key not in self._known:
            name = self._unique(f"{layer}/{part}", self._tensor_names)
            self.weights[name] = tensor
            self._known[key] = (name,)
        return self._known[key][0]

    # Shapes and orders.

    def size(self, tensor: str, axis: int) -> str:
        """Length of a tensor's axis, a list of one whole number."""
        if self.opset >= 15:
            return self.add("Shape", [tensor], {"start": axis, "end": axis + 1})
        return self.add("Gather", [self.add("Shape", [tensor]), self.integers(axis)])

    def transpose(self, tensor: str, permutation: Sequence[int]) -> str:
        """The tensor with its axes moved, or itself where none moves."""
        if tuple(permutation) == in_order(len(permutation)):
            return tensor
        return self.add("Transpose", [tensor], {"perm": list(permutation)})

    def reduce(self, operator: str, tensor: str, axes: Sequence[int], *, keep_axes: bool) -> str:
        """``ReduceSum``, ``ReduceMean`` and their like: their axes became an input at different opsets."""
        keep = {"keepdims": int(keep_axes)}
        if self.opset >= 18 or operator == "ReduceSum":
            return self.add(operator, [tensor, self.integers(*axes)], keep)
        return self.add(operator, [tensor], {"axes": list(axes), **keep})

    def flipped(self, tensor: str, axis: int) -> str:
        """The tensor with one axis turned around."""
        start, end = self.integers(-1), self.integers(np.iinfo(np.int64).min)
        return self.add("Slice", [tensor, start, end, self.integers(axis), self.integers(-1)])

    def ordered(self, value: Value, order: Sequence[int] | None = None) -> str:
        """The value's tensor with its axes in ``order``: batch first, features last if not given."""
        wanted = in_order(value.rank) if order is None else tuple(order)
        if wanted == value.order:
            return value.name
        form = self.offered(value, wanted)
        if form is not None:
            return form
        return self.transpose(value.name, [value.order.index(axis) for axis in wanted])

    def offer(self, value: Value, form: tuple[object, ...], make: Callable[[], str]) -> None:
        """State a cheap way to get ``value`` in another form: another order of its axes, for example."""
        self._forms[value.name, form] = make

    def offered(self, value: Value, form: tuple[object, ...]) -> str | None:
        """The value in another form, where a cheap way to it is known."""
        make = self._forms.get((value.name, form))
        return None if make is None else make()

    def in_logical_order(self, value: Value) -> Value:
        """The same value, batch first and features last."""
        return Value(self.ordered(value), value.shape, value.dtype, in_order(value.rank))

    def cast(self, value: Value, dtype: str) -> Value:
        """The value in another dtype, or itself."""
        if value.dtype == dtype:
            return value
        return replace(value, name=self.add("Cast", [value.name], {"to": element_type(dtype)}), dtype=dtype)

    # The finished graph.

    def finish(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Mapping[str, tuple[str, ValueInfoProto]]
    ) -> GraphProto:
        """The graph, without the nodes, weights and constants that no output needs.

        Args:
            name: its name.
            inputs: its inputs.
            outputs: for every name of an output the tensor that it is, and its description.
        """
        renamed: dict[str, str] = {}
        given = {value.name for value in inputs}
        made = {output for node in self._nodes for output in node.output}
        for output, (tensor, _) in outputs.items():
            if tensor in made and tensor not in renamed:
                renamed[tensor] = output
            elif output not in given:
                node = self._unique(f"{output}/Identity", self._node_names)
                self._nodes.append(onnx_proto.node("Identity", [tensor], [output], name=node))
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, old in enumerate(names):
                    names[index] = renamed.get(old, old)
        nodes, used = self._needed(set(outputs))
        self.weights = {name: tensor for name, tensor in self.weights.items() if name in used}
        tensors = [
            TensorProto(name=name, dims=tensor.shape, data_type=element_type(tensor.dtype.name))
            for name, tensor in self.weights.items()
        ]
        constants = [tensor for name, tensor in self._constants.items() if name in used]
        descriptions = [description for _, description in outputs.values()]
        return GraphProto(
            name=name, node=nodes, input=inputs, output=descriptions, initializer=[*tensors, *constants]
        )

    def _needed(self, wanted: set[str]) -> tuple[list[NodeProto], set[str]]:
        """The nodes that the wanted tensors need, and every tensor that they use."""
        used, kept = set(wanted), []
        for node in reversed(self._nodes):
            if not used.intersection(node.output):
                continue
            outputs = [output if output in used else "" for output in node.output]
            while not outputs[-1]:
                outputs.pop()
            node.output[:] = outputs
            kept.append(node)
            used.update(name for name in node.input if name)
        return kept[::-1], used


def _frozen(value: Attribute) -> object:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The dtype of a name; NumPy itself does not know bfloat16."""
    if dtype == "bfloat16":
        import ml_dtypes

        known: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    else:
        known = np.dtype(dtype)
    return known
