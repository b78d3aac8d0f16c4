"""A node beside the recurrent ones, with what its reader needs to make it part of the wiring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstmconvert import layout, mapping
from lstmconvert.frameworks.onnx.arrangement import Held
from lstmconvert.frameworks.onnx.constants import Scope
from lstmconvert.frameworks.onnx.topology import NotUnderstood, Topology
from lstmconvert.operations import Operation
from lstmconvert.tensors import Lazy, shortest_decimal
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """A node, what is known of its constant inputs, and the wiring that it becomes part of."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    scope: Scope
    topology: Topology
    opset: int
    outputs: int

    def is_given(self, index: int) -> bool:
        """Whether an input is there."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def constant(self, index: int) -> Lazy | None:
        """A constant input; ``None`` where it is none, or not there."""
        return self.scope.constant(self.inputs[index]) if self.is_given(index) else None

    def held(self, index: int) -> Held:
        """An input that depends on the model's inputs."""
        if not self.is_given(index):
            raise NotUnderstood(f"it has no input {index}")
        return self.topology.get(self.inputs[index])

    def weights(self, index: int, what: str) -> Lazy:
        """A constant input that has to be one."""
        found = self.constant(index)
        if found is None:
            raise NotUnderstood(f"its {what} is not a constant")
        return found

    def integers(self, attribute: str, index: int) -> tuple[int, ...] | None:
        """Integers that are an attribute in older opsets and an input in newer ones; ``None`` if left out."""
        if attribute in self.attributes:
            value = self.attributes[attribute]
            return tuple(value) if isinstance(value, tuple) else (int(value),)
        if not self.is_given(index):
            return None
        return tuple(int(n) for n in self.weights(index, attribute).read().reshape(-1))

    def only(self, *allowed: str) -> None:
        """No other attributes than these act here."""
        if other := sorted(self.attributes.keys() - set(allowed)):
            raise NotUnderstood(f"its attribute {other[0]!r} is not known")

    def call(
        self, operation: Operation, inputs: Sequence[Held], weights: Mapping[str, Lazy] | None = None
    ) -> str:
        """Use a layer that bears the node's name."""
        return self.topology.call(self.name, operation, inputs, weights, self.inputs if weights else ())

    def same(self, operation: Operation, held: Held, weights: Mapping[str, Lazy] | None = None) -> Held:
        """An operation that leaves all axes as they are."""
        return replace(held, value=self.call(operation, [held], weights), parts=())


def axis_places(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the front, in order."""
    if any(not -rank <= axis < rank for axis in axes):
        raise NotUnderstood(f"it has no axes {tuple(axes)}")
    return sorted(axis % rank for axis in axes)


def pattern(held: Held) -> tuple[Any, ...]:
    """Which factor of the value each axis of the tensor is made of, and how long those are."""
    places = {atom: (n, k) for n, axis in enumerate(held.logical) for k, atom in enumerate(axis)}
    return (
        len(held.logical),
        tuple(len(axis) for axis in held.logical),
        tuple(tuple(places[atom] for atom in axis) for axis in held.axes),
    )


def batch_first_order(held: Held) -> list[int]:
    """The tensor's axes with that which is the value's first one in front."""
    front = next((n for n, axis in enumerate(held.axes) if axis and axis == held.logical[0]), None)
    if front is None:
        raise NotUnderstood("the batch is not one of its axes")
    return [front, *(n for n in range(held.rank) if n != front)]


_KNOWN = (1 / 6, 1.6732632423543772, 1.0507009873554805)
"""Numbers of more digits than a float32 has: the slope of Keras 3's hard_sigmoid, and those of selu."""


def meant(value: float) -> float:
    """The number that was meant by a float32."""
    single = np.float32(value)
    return next((known for known in _KNOWN if np.float32(known) == single), shortest_decimal(value))


def unpacked(name: str, tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """The parts of a layer from its ONNX tensors, as the mapping file says."""
    return layout.unpack_operation(mapping.load("onnx").layouts[name], tensors)


Reader = Callable[[Node], Sequence[Held]]
"""What gives the tensors that a node makes."""
