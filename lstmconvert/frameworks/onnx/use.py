"""One use of a neighbour of the recurrent layers, as those who write it see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from lstmconvert import layout, mapping
from lstmconvert.activations import Activation
from lstmconvert.errors import NotRepresentable
from lstmconvert.frameworks.onnx import activations
from lstmconvert.frameworks.onnx.graph import Dimension, Graph, Value, in_order, is_floating, numpy_dtype
from lstmconvert.mapping import Layout
from lstmconvert.operations import Operation
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A call of an operation on its way into a graph.

    Attributes:
        graph: where it goes; its scope is the layer's name.
        layer: the layer's key.
        weights: its canonical parts.
        inputs: what goes in.
        mask: true at valid steps (batch, time), where the call heeds a mask.
    """

    graph: Graph
    layer: str
    weights: Mapping[str, Lazy]
    inputs: tuple[Value, ...]
    mask: Value | None = None

    @property
    def x(self) -> Value:
        """The only input.

        Raises:
            NotRepresentable: where there are more.
        """
        if len(self.inputs) != 1:
            raise self.refused(f"it takes one input, not {len(self.inputs)}")
        return self.inputs[0]

    @property
    def dtype(self) -> str:
        """Dtype of the computation: the weights', else the one that the inputs have in common."""
        floating: list[str] = [w.dtype.name for w in self.weights.values() if is_floating(w.dtype.name)]
        if floating:
            return floating[0]
        found = {value.dtype for value in self.inputs}
        if len(found) == 1 and is_floating(self.inputs[0].dtype):
            return self.inputs[0].dtype
        floating = [dtype for dtype in found if is_floating(dtype)] or ["float32"]
        common: str = np.result_type(*map(numpy_dtype, floating)).name
        return common

    def floats(self) -> tuple[Value, ...]:
        """The inputs in the dtype of the computation."""
        dtype = self.dtype
        return tuple(self.graph.cast(value, dtype) for value in self.inputs)

    def refused(self, reason: str) -> NotRepresentable:
        """The error that this use cannot be written."""
        return NotRepresentable(
            "ONNX cannot express this layer", reasons=[reason], place=f"layer {self.layer!r}"
        )

    def tensors(self, operation: Operation) -> dict[str, str]:
        """The weights as the operators take them: names in the graph under the names of the mapping file."""
        chosen = _layouts().get(type(operation))
        parts = dict(self.weights)
        packed = parts if chosen is None else layout.pack_operation(chosen, parts)
        return {name: self.graph.weight(self.layer, name, tensor) for name, tensor in packed.items()}

    def activated(self, value: Value, activation: Activation, axis: int = -1) -> Value:
        """What an activation makes of a value; softmax acts on the logical ``axis``."""
        result = activations.apply(self.graph, activation, value.name, value.dtype, value.axis(axis))
        return value.named(result)

    def number(self, value: float) -> str:
        """A number in the dtype of the computation."""
        return self.graph.number(value, self.dtype)

    def add(self, operator: str, *inputs: str) -> str:
        """A helper node without attributes."""
        return self.graph.add(operator, inputs)

    def value(self, name: str, shape: tuple[Dimension, ...], dtype: str | None = None) -> Value:
        """A value batch first and features last."""
        return Value(name, shape, self.dtype if dtype is None else dtype, in_order(len(shape)))

    def logical(self, value: Value) -> Value:
        """A value batch first and features last, in the dtype of the computation."""
        return self.graph.in_logical_order(self.graph.cast(value, self.dtype))

    def along(self, vector: str, value: Value, axis: int = -1) -> str:
        """A vector reshaped so that it broadcasts along one logical axis of ``value``."""
        behind = value.rank - 1 - value.axis(axis)
        if behind == 0:
            return vector
        return self.graph.add("Unsqueeze", [vector, self.graph.integers(*range(1, behind + 1))])

    def inner(self, x: Value) -> Use:
        """The same layer applied to another value."""
        return replace(self, inputs=(x,))


@cache
def _layouts() -> Mapping[type[Operation], Layout]:
    """The layouts of neighbours in ONNX's mapping file."""
    found = mapping.load("onnx").layouts.values()
    return {mapping.operation_class(chosen.operation): chosen for chosen in found if chosen.operation}


def known(size: Dimension) -> int | None:
    """A size that is fixed, or ``None``."""
    return size if isinstance(size, int) else None


def fixed(use: Use, size: Dimension, what: str) -> int:
    """A size that has to be fixed.

    Raises:
        NotRepresentable: where it is not.
    """
    if not isinstance(size, int):
        raise use.refused(f"the size of {what} has to be fixed")
    return size
