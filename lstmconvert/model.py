"""A whole model: layers hold the weights, calls hold the wiring.

The same split that all targets have: torch ``__init__`` and ``forward``, Keras layers and inbound
nodes, ONNX initializers and nodes. A shared layer is one layer and two calls. A file that holds
weights only is layers without calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from types import MappingProxyType
from typing import Any

from lstmconvert.canonical import RecurrentLayer
from lstmconvert.operations import Operation
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


DIRECTION_UNSAID = "direction_unsaid"
"""Key of a model's metadata: its file does not say whether a layer of one direction runs backwards."""


@dataclass(frozen=True, slots=True, eq=False)
class OperationLayer:
    """A neighbour of the recurrent layers, with its weights.

    Attributes:
        name: its name in the source.
        operation: what it computes.
        weights: its parts (see ``operation.PARTS``); an absent part is not there.
        origin: names of the source's tensors, for messages.
    """

    name: str
    operation: Operation
    weights: Mapping[str, Lazy] = field(default_factory=_empty)
    origin: tuple[str, ...] = ()


Layer = RecurrentLayer | OperationLayer


@dataclass(frozen=True, slots=True)
class Call:
    """One use of a layer.

    Attributes:
        layer: the layer's key in ``Model.layers``.
        inputs: names of the values that go in.
        outputs: names of the values that it defines, each once in a model. A recurrent layer gives
            its sequence or last step (two of them with ``Merge.SEPARATE``), then with
            ``return_state`` its final states, each (batch, size), direction by direction: h, c,
            reverse h, reverse c. An operation that produces a mask gives it as its last output.
        mask: name of the mask value (batch, time) that it heeds, if any.
        initial_state: names of the initial states, each (batch, size), ordered as the final states.
    """

    layer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    mask: str | None = None
    initial_state: tuple[str, ...] = ()


LARGEST_AXIS = 1 << 31
"""Sizes of arrays are below this."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a model.

    Attributes:
        name: its name for the outside.
        value: the value inside that it is.
        shape: its shape, batch first; ``None`` where the size is free.
        dtype: NumPy's name of its dtype.
    """

    name: str
    value: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Layers and, where the source knows it, how they are wired.

    Attributes:
        layers: every layer under its name, in the order of the source.
        calls: the uses of the layers, each after what it needs; ``None`` where the source holds
            weights only.
        inputs, outputs: the ports; empty without calls.
        framework: the framework that the source came from.
        metadata: facts about the source, JSON-able; nothing in it changes a result.

    Raises:
        ValueError: when a call uses a value before it is defined, or a layer that is not there.
    """

    layers: Mapping[str, Layer]
    calls: tuple[Call, ...] | None = None
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    framework: str = ""
    metadata: Mapping[str, Any] = field(default_factory=_empty)

    def __post_init__(self) -> None:
        defined = {port.value for port in self.inputs}
        for call in self.calls or ():
            if call.layer not in self.layers:
                raise ValueError(f"a call uses the layer {call.layer!r}, which is not in the model")
            used = [*call.inputs, *call.initial_state, *([] if call.mask is None else [call.mask])]
            for value in used:
                if value not in defined:
                    raise ValueError(f"layer {call.layer!r} uses {value!r} before it is defined")
            for value in call.outputs:
                if value in defined:
                    raise ValueError(f"layer {call.layer!r} defines {value!r} a second time")
                defined.add(value)
        for port in self.outputs:
            if port.value not in defined:
                raise ValueError(f"output {port.name!r} is {port.value!r}, which nothing defines")

    @property
    def recurrent(self) -> Mapping[str, RecurrentLayer]:
        """The recurrent layers under their names, in order."""
        return {name: layer for name, layer in self.layers.items() if isinstance(layer, RecurrentLayer)}

    @property
    def weights(self) -> int:
        """Number of weights of all layers."""
        return sum(
            block.size
            for layer in self.layers.values()
            for part in (
                [d.weights for d in layer.directions]
                if isinstance(layer, RecurrentLayer)
                else [layer.weights]
            )
            for block in part.values()
        )

    def run(self, *inputs: Any, **named: Any) -> Array | tuple[Array, ...]:
        """Run the whole model in NumPy.

        Args:
            inputs: one array for each input port, in order; or by name.

        Returns:
            The output, or a tuple of them where there are several.

        Raises:
            UnsupportedSource: when the topology is not known.
        """
        from lstmconvert import interpreter

        return interpreter.run(self, *inputs, **named)

    def map_layers(self, function: Callable[[Layer], Layer]) -> Model:
        """The same model with ``function`` applied to every layer; names must not change."""
        return replace(self, layers={name: function(layer) for name, layer in self.layers.items()})

    def in_memory(self) -> Model:
        """The same model with every array read now, for a source that will not stay."""

        def hold(layer: Layer) -> Layer:
            if isinstance(layer, RecurrentLayer):
                return layer.mapped(
                    lambda d: replace(d, weights=d.weights.mapped(lambda _key, block: Lazy.of(block.read())))
                )
            return replace(
                layer, weights={part: Lazy.of(block.read()) for part, block in layer.weights.items()}
            )

        return self.map_layers(hold)
