"""The graph of a model while it is being read: layers and calls are added, then it is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from lstmconvert.errors import BadFile
from lstmconvert.frameworks.keras.masks import AllOf, AnyOf, Given, Joined, Mask
from lstmconvert.model import Call, Layer, OperationLayer
from lstmconvert.operations import Combination, Combine, Concatenate, Operation
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class Value:
    """An output of a layer as later layers see it.

    Attributes:
        name: of the value in the graph.
        mask: that Keras has put on it.
        tensor: name of the value whose tensor it is: layers that do nothing in inference hand on the very
            tensor that they were given.
    """

    name: str
    mask: Mask | None = None
    tensor: str = ""

    @property
    def key(self) -> str:
        """What identifies the tensor."""
        return self.tensor or self.name


@dataclass(frozen=True, slots=True, eq=False)
class Symbol:
    """The result of an operator of ``keras.ops`` that is no value: Keras 3's arithmetic on masks.

    Attributes:
        operator: its class.
        arguments: values, symbols and constants.
        axis: of the operator, where it has one.
    """

    operator: str
    arguments: tuple[object, ...]
    axis: int | None = None


@dataclass(slots=True, eq=False)
class Graph:
    """What has been read so far.

    Attributes:
        layers: under their names.
        calls: in an order in which they can be run.
        mask_origins: the masks that layers make, by what makes them: the input's value and the number
            that stands for a masked step, ``"zero"`` for an Embedding.
        taken_masks: tensors whose mask is gone: the MultiHeadAttention of Keras 3 takes it off its inputs
            when it runs, and every later layer that has not noted the mask in its call sees none.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    mask_origins: dict[tuple[str, str, float], Mask] = field(default_factory=dict)
    taken_masks: set[str] = field(default_factory=set)
    _names: set[str] = field(default_factory=set)
    _masks: dict[Mask, str] = field(default_factory=dict)

    def mask_of(self, value: Value) -> Mask | None:
        """The mask that a layer finds on its input when it runs."""
        return None if value.key in self.taken_masks else value.mask

    def value_name(self, wanted: str) -> str:
        """``wanted``, with a number behind it where it is taken."""
        name, number = wanted, 1
        while name in self._names:
            name = f"{wanted}:{number}"
            number += 1
        self._names.add(name)
        return name

    def add_layer(self, name: str, layer: Layer) -> None:
        """Add a layer of a name that is not taken.

        Raises:
            BadFile: when it is.
        """
        if name in self.layers:
            raise BadFile("two layers have the same name", place=f"layer {name!r}")
        self.layers[name] = layer

    def add_helper(self, wanted: str, operation: Operation) -> str:
        """Add an operation that is no layer of the source; returns its name."""
        name, number = wanted, 1
        while name in self.layers:
            name = f"{wanted}_{number}"
            number += 1
        self.layers[name] = OperationLayer(name, operation)
        return name

    def call(
        self,
        layer: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        mask: str | None = None,
        initial_state: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """Add a call; ``outputs`` are wanted names, the names that it got are returned."""
        names = tuple(self.value_name(output) for output in outputs)
        self.calls.append(Call(layer, tuple(inputs), names, mask, tuple(initial_state)))
        return names

    def apply(self, wanted: str, operation: Operation, inputs: Sequence[str]) -> str:
        """Add and call an operation that is no layer of the source."""
        name = self.add_helper(wanted, operation)
        return self.call(name, inputs, [name])[0]

    def mask_value(self, mask: Mask) -> str:
        """The value of a mask, computed once."""
        if isinstance(mask, Given):
            return mask.value
        if mask not in self._masks:
            parts = [self.mask_value(part) for part in mask.masks]
            match mask:
                case AllOf():
                    value = self.apply("mask_and", Combine(Combination.AND), parts)
                case AnyOf():
                    value = self.apply("mask_or", Combine(Combination.OR), parts)
                case Joined():
                    value = self.apply("mask_join", Concatenate(1), parts)
            self._masks[mask] = value
        return self._masks[mask]
