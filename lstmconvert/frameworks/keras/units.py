"""Units: what a layer of a Keras model becomes, before its weights are there and after.

A unit knows its tensors (``slots``), makes its layers from them (``layers``) and is called in a graph
(``call``). There is one kind of unit for operations, one for recurrent layers, one for models inside
models; a shared layer is one unit that is called twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from types import MappingProxyType
from typing import Any, Protocol

from lstmconvert.activations import LINEAR
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.errors import UnsupportedSource
from lstmconvert.frameworks.keras import operators
from lstmconvert.frameworks.keras.arguments import Arguments
from lstmconvert.frameworks.keras.graph import Graph, Symbol, Value
from lstmconvert.frameworks.keras.masks import Given, Mask, after
from lstmconvert.frameworks.keras.neighbours import Neighbour
from lstmconvert.frameworks.keras.slots import Slot
from lstmconvert.model import Layer, OperationLayer
from lstmconvert.operations import (
    Activate,
    AdditiveAttention,
    Attention,
    Concatenate,
    ConvolutionalLstm,
    Embedding,
    GlobalPooling,
    Identity,
    MaskedRow,
    Masking,
    MultiHeadAttention,
    Operation,
    Pool,
    TimeDistributed,
)
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

Tensors = Mapping[str, Lazy]


class Unit(Protocol):
    """A layer of a Keras model."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Its tensors, in the order in which they were made."""
        ...

    def layers(self, name: str, tensors: Tensors, origin: tuple[str, ...]) -> Mapping[str, Layer]:
        """Its layers under their names, from its tensors under the keys of the slots."""
        ...

    def call(self, graph: Graph, name: str, value: str, arguments: Arguments) -> tuple[Value | Symbol, ...]:
        """Call it; ``value`` is what its first output should be called."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class OperationUnit:
    """A layer that is one operation.

    Attributes:
        class_name: Keras's class, for the rules of masks.
        neighbour: what it computes and has.
        generation: of Keras.
        inner_class: of the layer inside a TimeDistributed.
    """

    class_name: str
    neighbour: Neighbour
    generation: int
    inner_class: str = ""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Its tensors."""
        return self.neighbour.slots

    def layers(self, name: str, tensors: Tensors, origin: tuple[str, ...]) -> Mapping[str, Layer]:
        """The one layer."""
        weights = self.neighbour.weights(tensors, f"layer {name!r}")
        return {name: OperationLayer(name, self.neighbour.operation, MappingProxyType(weights), origin)}

    def call(self, graph: Graph, name: str, value: str, arguments: Arguments) -> tuple[Value | Symbol, ...]:
        """One output, and a mask as well where the operation makes one."""
        operation = self.neighbour.operation
        if isinstance(operation, (Attention, AdditiveAttention, MultiHeadAttention)):
            return self._call_attention(graph, name, value, arguments, operation)
        if isinstance(operation, (Embedding, Masking)):
            return self._call_mask_maker(graph, name, value, arguments, operation)
        bound = arguments.bind("inputs", "mask")
        inputs = arguments.values(bound["inputs"])
        masks = [graph.mask_of(item) for item in inputs]
        if "mask" in bound:
            masks = _explicit_masks(graph, bound["mask"], len(inputs), arguments)
        heeded = self._heeded(graph, masks, arguments.place)
        wanted = [value, *_state_names(operation, value)]
        names = graph.call(name, [item.name for item in inputs], wanted, mask=heeded)
        mask = after(
            self.class_name,
            masks,
            generation=self.generation,
            axis_is_time=isinstance(operation, Concatenate) and operation.axis == 1,
            place=arguments.place,
        )
        same = self.generation >= 3 and _hands_on(operation)
        first = Value(names[0], mask, inputs[0].key if same else "")
        return (first, *(Value(extra) for extra in names[1:]))

    def _heeded(self, graph: Graph, masks: Sequence[Mask | None], place: str) -> str | None:
        operation = self.neighbour.operation
        mask = masks[0] if masks else None
        if self.generation >= 3 and self.class_name in _MASKED_ARITHMETIC and any(masks):
            raise UnsupportedSource(
                f"Keras 3 computes {self.class_name} of masked inputs in another way, which is not supported",
                place=place,
            )
        if mask is None:
            return None
        if isinstance(operation, GlobalPooling):
            average = operation.kind is Pool.AVERAGE and operation.rank == 1
            return graph.mask_value(mask) if average else None
        if self.class_name in ("Softmax", "ConvLSTM1D", "ConvLSTM2D") or self._refuses_masks():
            raise UnsupportedSource("a mask reaches this layer, which is not supported here", place=place)
        return None

    def _refuses_masks(self) -> bool:
        return self.class_name == "TimeDistributed" and self.inner_class in (
            "GlobalAveragePooling1D",
            "Softmax",
            "Masking",
            "Embedding",
        )

    def _call_mask_maker(
        self, graph: Graph, name: str, value: str, arguments: Arguments, operation: Embedding | Masking
    ) -> tuple[Value, ...]:
        (source,) = arguments.values(arguments.bind("inputs")["inputs"])
        if isinstance(operation, Embedding) and not operation.mask_zero:
            return (Value(graph.call(name, [source.name], [value])[0]),)
        output, mask = graph.call(name, [source.name], [value, f"{value}.mask"])
        made = Given(mask)
        kind = ("zero", 0.0) if isinstance(operation, Embedding) else ("steps", operation.mask_value)
        graph.mask_origins.setdefault((kind[0], source.name, kind[1]), made)
        return (Value(output, made),)

    def _call_attention(
        self,
        graph: Graph,
        name: str,
        value: str,
        arguments: Arguments,
        operation: Attention | AdditiveAttention | MultiHeadAttention,
    ) -> tuple[Value, ...]:
        several = isinstance(operation, MultiHeadAttention)
        flags = ("return_attention_scores", "use_causal_mask")
        if several:
            bound = arguments.bind("query", "value", "key", *_MULTI_HEAD_MASKS, *flags)
            inputs = [arguments.value(bound[role]) for role in ("query", "value", "key") if role in bound]
        else:
            bound = arguments.bind("inputs", "mask", *flags)
            inputs = arguments.values(bound["inputs"])
        masks = {
            role: graph.mask_of(item) for role, item in zip(("query", "value", "key"), inputs, strict=False)
        }
        if several:
            for role in ("query", "value", "key"):
                if (given := bound.get(f"{role}_mask")) is not None:
                    masks[role] = _explicit_mask(graph, given, arguments)
            if bound.get("attention_mask") is not None:
                masks["attention"] = Given(arguments.value(bound["attention_mask"]).name)
        elif bound.get("mask") is not None:
            explicit = _explicit_masks(graph, bound["mask"], len(inputs), arguments)
            masks.update(zip(("query", "value"), explicit, strict=False))
        roles = _MULTI_HEAD_ROLES if several else ("value", "query")
        heeded = tuple(role for role in roles if masks.get(role) is not None)
        called = replace(
            operation,
            causal=operation.causal or bool(bound.get("use_causal_mask")),
            return_scores=bool(bound.get("return_attention_scores")),
            masks=heeded,
        )
        if isinstance(called, MultiHeadAttention):
            called = replace(called, masked_row=_masked_row(called, self.generation))
        layer = _variant(graph, name, called)
        extra = [graph.mask_value(mask) for role in heeded if (mask := masks[role]) is not None]
        wanted = [value, *([f"{value}.scores"] if called.return_scores else [])]
        names = graph.call(layer, [*(item.name for item in inputs), *extra], wanted)
        if several and self.generation >= 3:
            graph.taken_masks.update(item.key for item in inputs)
        return (Value(names[0], masks.get("query")), *(Value(scores) for scores in names[1:]))


def _masked_row(operation: MultiHeadAttention, generation: int) -> MaskedRow:
    """What a row is that is masked as a whole.

    Keras 2 takes a large number off the scores. Keras 3 does the like in its fused kernel, and zeroes such
    rows where it computes the scores itself: with dropout, or when they are wanted.
    """
    computed = operation.dropout > 0 or operation.return_scores
    return MaskedRow.ZERO if generation >= 3 and computed else MaskedRow.UNIFORM


_MULTI_HEAD_MASKS = ("query_mask", "value_mask", "key_mask", "attention_mask")
_MULTI_HEAD_ROLES = ("query", "value", "key", "attention")


def _variant(graph: Graph, name: str, operation: Operation) -> str:
    """The layer ``name`` with the options of this call; another layer where it has others already."""
    original = graph.layers[name]
    assert isinstance(original, OperationLayer)
    called = {call.layer for call in graph.calls}
    for number in count(1):
        wanted = name if number == 1 else f"{name}_call{number}"
        present = graph.layers.get(wanted)
        if wanted not in called or (isinstance(present, OperationLayer) and present.operation == operation):
            graph.layers[wanted] = replace(original, name=wanted, operation=operation)
            return wanted
    raise AssertionError


_MASKED_ARITHMETIC = frozenset({"Multiply", "Maximum", "Minimum"})
"""Layers in which Keras 3 puts other numbers in place of masked steps."""


def _hands_on(operation: Operation) -> bool:
    """Whether Keras 3 gives back the very tensor that it was given."""
    return isinstance(operation, Identity) or (
        isinstance(operation, Activate) and operation.activation == LINEAR
    )


def _state_names(operation: Operation, value: str) -> list[str]:
    if isinstance(operation, ConvolutionalLstm) and operation.return_state:
        return [f"{value}.h", f"{value}.c"]
    return []


def _explicit_masks(graph: Graph, given: Any, count: int, arguments: Arguments) -> list[Mask | None]:
    items = given if isinstance(given, tuple) else (given,)
    masks = [None if item is None else _explicit_mask(graph, item, arguments) for item in items]
    return [*masks, *([None] * (count - len(masks)))]


def _explicit_mask(graph: Graph, given: Any, arguments: Arguments) -> Mask | None:
    """A mask that stands among the arguments: a value, or Keras 3's arithmetic on masks.

    Raises:
        UnsupportedSource: when that arithmetic is not what Keras makes of the masks of its layers.
    """
    if isinstance(given, Symbol):
        from lstmconvert.frameworks.keras.symbols import mask_of

        return mask_of(graph, given, arguments.place)
    return Given(arguments.value(given).name)


@dataclass(frozen=True, slots=True, eq=False)
class OperatorUnit:
    """One of ``keras.ops`` in a functional model: an operation where it is one, else a symbol.

    Attributes:
        class_name: of the operator.
        config: its options.
    """

    class_name: str
    config: Mapping[str, Any]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """None."""
        return ()

    def layers(self, name: str, tensors: Tensors, origin: tuple[str, ...]) -> Mapping[str, Layer]:
        """None before it is called: its arguments say what it does."""
        del name, tensors, origin
        return {}

    def call(self, graph: Graph, name: str, value: str, arguments: Arguments) -> tuple[Value | Symbol, ...]:
        """A value where it is an operation on values, else a symbol."""
        named = {key: item for key, item in arguments.named.items() if item is not None}
        found = None if named else operators.read(self.class_name, self.config, arguments.positional)
        if found is None:
            axis = self.config.get("axis")
            return (Symbol(self.class_name, arguments.positional, axis if isinstance(axis, int) else None),)
        operation, inputs = found
        layer = graph.add_helper(name, operation)
        return (Value(graph.call(layer, [item.name for item in inputs], [value])[0]),)


@dataclass(frozen=True, slots=True, eq=False)
class CustomUnit:
    """A layer of a class that the user supplies.

    Attributes:
        make: the user's function: config and weights to an operation or a layer.
        config: of the layer.
    """

    make: Any
    config: Mapping[str, Any]
    class_name: str

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Not known: it is given all tensors that the file has for it."""
        return ()

    def layers(self, name: str, tensors: Tensors, origin: tuple[str, ...]) -> Mapping[str, Layer]:
        """What the user's function makes of it.

        Raises:
            UnsupportedSource: when that is neither an operation nor a layer.
        """
        made = self.make(dict(self.config), dict(tensors))
        if isinstance(made, Operation):
            return {name: OperationLayer(name, made, MappingProxyType({}), origin)}
        if isinstance(made, (OperationLayer, RecurrentLayer)):
            return {name: replace(made, name=name, origin=origin)}
        raise UnsupportedSource(
            f"the function given for custom layers {self.class_name!r} returned a {type(made).__name__}",
            place=f"layer {name!r}",
            expected="an Operation, an OperationLayer or a RecurrentLayer",
        )

    def call(self, graph: Graph, name: str, value: str, arguments: Arguments) -> tuple[Value | Symbol, ...]:
        """One output without a mask."""
        bound = arguments.bind("inputs", "mask")
        inputs = [item.name for item in arguments.values(bound["inputs"])]
        return (Value(graph.call(name, inputs, [value])[0]),)


@dataclass(frozen=True, slots=True, eq=False)
class ChainUnit:
    """TimeDistributed over a Sequential: one TimeDistributed operation after the other.

    Attributes:
        inner: names inside and units, in order.
        paths: of each inside the Sequential.
    """

    inner: tuple[tuple[str, OperationUnit], ...]
    paths: tuple[str, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Of all of them."""
        return tuple(
            slot.under(path)
            for (_, unit), path in zip(self.inner, self.paths, strict=True)
            for slot in unit.slots
        )

    def layers(self, name: str, tensors: Tensors, origin: tuple[str, ...]) -> Mapping[str, Layer]:
        """One layer for each, named ``outer/inner``."""
        result: dict[str, Layer] = {}
        for (inner, unit), path in zip(self.inner, self.paths, strict=True):
            own = {
                key.removeprefix(f"{path}/"): lazy
                for key, lazy in tensors.items()
                if key.startswith(f"{path}/")
            }
            result.update(unit.layers(f"{name}/{inner}", own, origin))
        return result

    def call(self, graph: Graph, name: str, value: str, arguments: Arguments) -> tuple[Value | Symbol, ...]:
        """One after the other."""
        bound = arguments.bind("inputs", "mask")
        current: Value = arguments.value(bound["inputs"])
        for inner, unit in self.inner:
            step = Arguments((current,), MappingProxyType({}), arguments.place)
            (result,) = unit.call(graph, f"{name}/{inner}", f"{value}/{inner}", step)
            assert isinstance(result, Value)
            current = result
        return (current,)


def time_distributed(unit: OperationUnit, path: str = "layer") -> OperationUnit:
    """The unit of a TimeDistributed around the layer of another unit.

    Args:
        unit: of the layer inside.
        path: that leads to it in a ``.weights.h5``.
    """
    inner = unit.neighbour
    wrapped = replace(
        inner,
        operation=TimeDistributed(inner.operation),
        slots=tuple(slot.under(path) for slot in inner.slots) if path else inner.slots,
    )
    return OperationUnit("TimeDistributed", wrapped, unit.generation, unit.class_name)
