"""What a model becomes in Keras: layers under valid names, their calls, and masks where Keras has them.

Keras passes masks on by itself. Where what it would pass on is not what the model heeds, the mask is
handed over as an argument, or taken off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

from lstmconvert import operations as ops
from lstmconvert import shapes
from lstmconvert.canonical import RecurrentLayer, Returns
from lstmconvert.errors import NotRepresentable
from lstmconvert.frameworks.keras import neighbour_writing, recurrent_writing
from lstmconvert.frameworks.keras.layer_to_write import OPERATORS, LayerToWrite
from lstmconvert.frameworks.keras.masks import AllOf, AnyOf, Given, Joined, Mask, after, all_of, any_of
from lstmconvert.frameworks.keras.names import clean_name
from lstmconvert.model import Call, Model, OperationLayer, Port
from lstmconvert.shapes import Shape
from lstmconvert.values import dataclass

GENERATION = 3


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output of a call: the layer's name, which of its calls, which output.

    Attributes:
        mask: what Keras hands on with it.
    """

    layer: str
    call: int
    output: int
    shape: Shape
    dtype: str
    mask: Mask | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CallToWrite:
    """A call, with ``Tensor`` where Keras has tensors."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    def tensors(self) -> Iterable[Tensor]:
        """Every tensor, in the order in which Keras visits them."""
        for item in (*self.positional, *(self.named[key] for key in sorted(self.named))):
            yield from (
                part for part in (item if isinstance(item, tuple) else (item,)) if isinstance(part, Tensor)
            )


@dataclass(slots=True, eq=False)
class Entry:
    """A layer and its calls; inputs have none."""

    name: str
    layer: LayerToWrite
    calls: list[CallToWrite] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Plan:
    """The layers to write.

    Attributes:
        model: the model.
        entries: layers under their names in Keras.
        inputs, outputs: of the model.
        dtype: of the weights.
        names: of the model's layers in Keras.
        tensors: the model's values in Keras.
        masks: the model's values that are masks.
        mask_tensors: masks that have been computed by operators.
        mask_makers: of a mask that a layer makes, the value that it comes from and the number that stands
            for a masked step; ``None`` for the zero of an Embedding.
        measured: of a mask that is made of lengths, the values of these and of the sequences.
        shapes, dtypes: of all values.
    """

    model: Model
    dtype: str = "float32"
    entries: dict[str, Entry] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Mask] = field(default_factory=dict)
    mask_tensors: dict[Mask, Tensor] = field(default_factory=dict)
    mask_makers: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    measured: dict[str, tuple[str, str]] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)

    def name(self, wanted: str) -> str:
        """A name that Keras takes and that is free."""
        clean = clean_name(wanted)
        name, number = clean, 1
        while name in self.entries:
            name = f"{clean}_{number}"
            number += 1
        return name


def plan(model: Model) -> Plan:
    """Plan a model whose topology is known.

    Raises:
        NotRepresentable: naming what Keras cannot express.
    """
    calls = _needed(model)
    floats = {str(layer.dtype) for layer in model.recurrent.values()} | {
        str(lazy.dtype)
        for layer in model.layers.values()
        if isinstance(layer, OperationLayer)
        for lazy in layer.weights.values()
    }
    if len(floats) > 1:
        raise NotRepresentable(f"Keras weights of several dtypes in one model: {', '.join(sorted(floats))}")
    result = Plan(model, next(iter(floats), "float32"))
    result.shapes = shapes.infer(model)
    result.dtypes = shapes.dtypes(model)
    for port in model.inputs:
        _add_input(result, port)
    for call in calls:
        _Calling(result, calls, call).add()
    for port in model.outputs:
        tensor = result.tensors.get(port.value)
        if tensor is None:
            raise NotRepresentable("an output of the model is a mask", place=f"output {port.name!r}")
        result.outputs.append(tensor)
    return result


def _needed(model: Model) -> list[Call]:
    """The calls on which an output depends."""
    wanted = {port.value for port in model.outputs}
    needed: list[Call] = []
    for call in reversed(model.calls or ()):
        if wanted & set(call.outputs):
            needed.append(call)
            wanted |= {*call.inputs, *call.initial_state, *([call.mask] if call.mask else [])}
    return needed[::-1]


def _add_input(result: Plan, port: Port) -> None:
    name = result.name(port.name)
    config = {"batch_shape": list(port.shape), "dtype": port.dtype, "sparse": False}
    result.entries[name] = Entry(name, LayerToWrite("InputLayer", config))
    tensor = Tensor(name, 0, 0, port.shape, port.dtype)
    result.tensors[port.value] = tensor
    result.inputs.append(tensor)
    if port.dtype == "bool":
        result.masks[port.value] = Given(port.value)
        result.mask_tensors[Given(port.value)] = tensor


@dataclass(slots=True, eq=False)
class _Calling:
    """One call on its way into the plan."""

    plan: Plan
    calls: Sequence[Call]
    call: Call

    @property
    def place(self) -> str:
        return f"layer {self.call.layer!r}"

    def add(self) -> None:
        layer = self.plan.model.layers[self.call.layer]
        if isinstance(layer, RecurrentLayer):
            self._add_recurrent(layer)
        elif not self._is_about_masks(layer.operation):
            self._add_operation(layer)

    def _is_about_masks(self, operation: ops.Operation) -> bool:
        """Masks joined by the model itself: Keras does that where it needs it."""
        masks = [self.plan.masks.get(name) for name in self.call.inputs]
        given = [mask for mask in masks if mask is not None]
        if len(given) < len(masks):
            return False
        match operation:
            case ops.Combine(ops.Combination.OR):
                made = any_of(given)
            case ops.Combine(ops.Combination.AND):
                made = all_of(given)
            case ops.Concatenate(1):
                made = Joined(tuple(given))
            case _:
                return False
        self.plan.masks[self.call.outputs[0]] = made
        return True

    # Recurrent layers.

    def _add_recurrent(self, layer: RecurrentLayer) -> None:
        call = self.call
        x = self._tensor(call.inputs[0])
        states = tuple(self._tensor(name) for name in call.initial_state)
        wanted = self._wanted(call.mask)
        named: dict[str, Any] = {}
        if states:
            named["initial_state"] = states[0] if len(states) == 1 else states
        # Keras 3 looks for a mask by itself only when there is nothing beside the input.
        implicit = x.mask if not states else None
        x, explicit = self._fitted(x, implicit, wanted)
        if explicit is not None:
            named["mask"] = explicit
        own = [c for c in self.calls if c.layer == call.layer]
        entry = self._entry(
            lambda: recurrent_writing.recurrent(
                layer,
                masked=any(c.mask for c in own),
                stated=any(c.initial_state for c in own),
                dtype=self.plan.dtype,
            )
        )
        kept = (
            (wanted if explicit is not None else x.mask)
            if layer.sequence.returns is Returns.SEQUENCE
            else None
        )
        sequences = len(call.outputs) - (_states(layer) if layer.sequence.return_state else 0)
        masks = [kept] * sequences
        if recurrent_writing.needs_flip(layer):
            self._call(entry, (x,), named, [], masks)
            number = len(entry.calls) - 1
            raw = Tensor(entry.name, number, 0, *self._kind(call.outputs[0]))
            flip = self._operator("Flip", {"axis": 1}, (raw,), f"{entry.name}_flip")
            self.plan.tensors[call.outputs[0]] = flip
            for index, output in enumerate(call.outputs[1:], 1):
                self.plan.tensors[output] = Tensor(entry.name, number, index, *self._kind(output))
            return
        self._call(entry, (x,), named, list(call.outputs), masks)

    # Neighbours.

    def _add_operation(self, layer: OperationLayer) -> None:
        call, operation = self.call, layer.operation
        if isinstance(operation, (ops.Attention, ops.AdditiveAttention, ops.MultiHeadAttention)):
            self._add_attention(layer, operation)
            return
        if isinstance(operation, ops.ValidSteps):
            self.plan.masks[call.outputs[0]] = Given(call.outputs[0])
            self.plan.measured[call.outputs[0]] = (call.inputs[0], call.inputs[1])
            return
        inputs = [self._tensor(name) for name in call.inputs]
        entry = self._entry(
            lambda: neighbour_writing.neighbour(layer, self.plan.shapes[call.outputs[0]], self.plan.dtype)
        )
        named: dict[str, Any] = {}
        class_name = entry.layer.class_name
        if isinstance(operation, ops.GlobalPooling):
            average = operation.kind is ops.Pool.AVERAGE and operation.rank == 1
            wanted = self._wanted(call.mask) if average else None
            inputs[0], explicit = self._fitted(inputs[0], inputs[0].mask if average else None, wanted)
            if explicit is not None:
                named["mask"] = explicit
        elif call.mask is not None:
            raise NotRepresentable("Keras has no mask for this layer", place=self.place)
        elif class_name in ("Softmax", "ConvLSTM1D", "ConvLSTM2D"):
            inputs[0], _ = self._fitted(inputs[0], inputs[0].mask, None)
        elif class_name in _TAKES_MASK and inputs[0].mask is not None:
            named["mask"] = self._mask_tensor(inputs[0].mask)
        positional: tuple[Any, ...] = (tuple(inputs),) if _takes_list(operation) else tuple(inputs)
        if isinstance(operation, ops.Select):
            positional = (*positional, operation.index)
        mask = None
        if not entry.layer.is_operator:
            mask = after(
                class_name,
                [tensor.mask for tensor in inputs],
                generation=GENERATION,
                axis_is_time=isinstance(operation, ops.Concatenate) and operation.axis == 1,
                place=self.place,
            )
        outputs = list(call.outputs)
        if isinstance(operation, (ops.Embedding, ops.Masking)) and len(outputs) == 2:
            made = Given(outputs[1])
            self.plan.masks[outputs[1]] = made
            number = operation.mask_value if isinstance(operation, ops.Masking) else None
            self.plan.mask_makers[outputs[1]] = (call.inputs[0], number)
            outputs, mask = outputs[:1], made
        self._call(entry, positional, named, outputs, [mask])

    def _add_attention(
        self, layer: OperationLayer, operation: ops.Attention | ops.AdditiveAttention | ops.MultiHeadAttention
    ) -> None:
        call = self.call
        count = len(call.inputs) - len(operation.masks)
        inputs = [self._tensor(name) for name in call.inputs[:count]]
        wanted = {
            role: self._wanted(name) for role, name in zip(operation.masks, call.inputs[count:], strict=True)
        }
        named: dict[str, Any] = {}
        several = isinstance(operation, ops.MultiHeadAttention)
        roles = ("query", "value", "key") if several else ("query", "value")
        found = {role: tensor.mask for role, tensor in zip(roles, inputs, strict=False)}
        lacking = [role for role in found if wanted.get(role) not in (None, found[role])]
        if lacking and several:
            raise NotRepresentable(
                f"Keras hands another mask on to the {lacking[0]} of this attention layer", place=self.place
            )
        if lacking:
            handed = [wanted.get(role) for role in roles]
            named["mask"] = tuple(None if mask is None else self._mask_tensor(mask) for mask in handed)
            output_mask = handed[0]
        else:
            for index, role in enumerate(found):
                if wanted.get(role) is None and found[role] is not None:
                    inputs[index] = self._unmasked(inputs[index])
                elif several:
                    inputs[index] = self._own_copy(inputs[index], call.inputs[index])
            output_mask = inputs[0].mask
        if wanted.get("attention") is not None:
            mask = wanted["attention"]
            assert mask is not None
            named["attention_mask"] = self._mask_tensor(mask)
        if operation.return_scores:
            named["return_attention_scores"] = True
        if operation.causal:
            named["use_causal_mask"] = True
        entry = self._entry(
            lambda: neighbour_writing.neighbour(layer, self.plan.shapes[call.outputs[0]], self.plan.dtype)
        )
        positional = tuple(inputs) if several else (tuple(inputs),)
        self._call(entry, positional, named, list(call.outputs), [output_mask])

    # Pieces.

    def _own_copy(self, x: Tensor, value: str) -> Tensor:
        """The same numbers and mask in a tensor of its own, for a MultiHeadAttention: it takes off the mask.

        Only where the tensor is used elsewhere. Rescaling by one changes nothing and hands the mask on.
        """
        if x.mask is None:
            return x
        elsewhere = sum(value in (*call.inputs, *call.initial_state) for call in self.calls) > 1
        if not elsewhere and self.plan.entries[x.layer].layer.class_name not in _HANDS_ON:
            return x
        name = self.plan.name(f"{x.layer}_copy")
        entry = Entry(name, LayerToWrite("Rescaling", {"scale": 1.0, "offset": 0.0}))
        entry.calls.append(CallToWrite((x,), {}))
        self.plan.entries[name] = entry
        return Tensor(name, 0, 0, x.shape, x.dtype, x.mask)

    def _tensor(self, value: str) -> Tensor:
        tensor = self.plan.tensors.get(value)
        if tensor is None:
            raise NotRepresentable(
                "a mask is used as a number, which Keras has no layer for", place=self.place
            )
        return tensor

    def _kind(self, value: str) -> tuple[Shape, str]:
        return self.plan.shapes[value], self.plan.dtypes[value]

    def _wanted(self, value: str | None) -> Mask | None:
        if value is None:
            return None
        mask = self.plan.masks.get(value)
        if mask is None:
            raise NotRepresentable(
                "the mask of this layer is computed in a way that Keras has no layer for", place=self.place
            )
        return mask

    def _fitted(self, x: Tensor, implicit: Mask | None, wanted: Mask | None) -> tuple[Tensor, Tensor | None]:
        """The input and the mask to hand over with it, so that the layer heeds what is wanted."""
        if wanted is not None:
            return x, self._mask_tensor(wanted)
        if implicit is not None:
            return self._unmasked(x), None
        return x, None

    def _unmasked(self, x: Tensor) -> Tensor:
        """The same tensor without its mask: a Reshape to its own shape, which hands no mask on."""
        inner = [-1 if size is None else size for size in x.shape[1:]]
        if inner.count(-1) > 1:
            raise NotRepresentable(
                "the mask of this layer's input cannot be taken off in Keras", place=self.place
            )
        name = self.plan.name(f"{x.layer}_unmasked")
        entry = Entry(name, LayerToWrite("Reshape", {"target_shape": inner}))
        entry.calls.append(CallToWrite((x,), {}))
        self.plan.entries[name] = entry
        return Tensor(name, 0, 0, x.shape, x.dtype)

    def _mask_tensor(self, mask: Mask) -> Tensor:
        """The mask as Keras 3 itself computes it: by operators."""
        known = self.plan.mask_tensors
        if mask not in known:
            known[mask] = self._computed_mask(mask)
        return known[mask]

    def _computed_mask(self, mask: Mask) -> Tensor:
        match mask:
            case Given() if mask.value in self.plan.measured:
                return self._mask_of_lengths(*self.plan.measured[mask.value])
            case Given():
                source, number = self.plan.mask_makers[mask.value]
                x = self._tensor(source)
                differs = self._operator(
                    "NotEqual", {}, (x, 0 if number is None else number), "mask_differs", "bool"
                )
                if number is None:
                    return differs
                return self._operator(
                    "Any", {"axis": -1, "keepdims": False}, (differs,), "mask", "bool", x.shape[:-1]
                )
            case AnyOf() | AllOf():
                operator = "LogicalOr" if isinstance(mask, AnyOf) else "LogicalAnd"
                first, *others = [self._mask_tensor(part) for part in mask.masks]
                for other in others:
                    first = self._operator(operator, {}, (first, other), "mask", "bool")
                return first
            case Joined():
                parts = tuple(self._mask_tensor(part) for part in mask.masks)
                sizes = [part.shape[1] for part in parts]
                time = None if None in sizes else sum(size for size in sizes if size is not None)
                shape = (parts[0].shape[0], time)
                return self._operator("Concatenate", {"axis": 1}, (parts,), "mask", "bool", shape)

    def _mask_of_lengths(self, lengths: str, sequences: str) -> Tensor:
        """True where the number of a step, from one, is not above the length: Keras has no range of steps."""
        x, counts = self._tensor(sequences), self._tensor(lengths)
        ones = self._operator("OnesLike", {}, (x,), "ones")
        for rank in range(len(x.shape) - 1, 1, -1):
            ones = self._operator(
                "Max", {"axis": -1, "keepdims": False}, (ones,), "ones", shape=x.shape[:rank]
            )
        numbers = self._operator("Cumsum", {"axis": 1}, (ones,), "step_numbers")
        column = self._operator("ExpandDims", {"axis": 1}, (counts,), "lengths", shape=(*counts.shape, 1))
        return self._operator("LessEqual", {}, (numbers, column), "mask", "bool")

    def _operator(
        self,
        class_name: str,
        config: Mapping[str, Any],
        arguments: tuple[Any, ...],
        wanted: str,
        dtype: str | None = None,
        shape: Shape | None = None,
    ) -> Tensor:
        name = self.plan.name(wanted)
        entry = Entry(name, LayerToWrite(class_name, config, (), OPERATORS))
        entry.calls.append(CallToWrite(arguments, {}))
        self.plan.entries[name] = entry
        like = next(iter(entry.calls[0].tensors()))
        return Tensor(name, 0, 0, like.shape if shape is None else shape, dtype or like.dtype)

    def _entry(self, make: Any) -> Entry:
        names, layer = self.plan.names, self.call.layer
        if layer not in names:
            name = self.plan.name(layer)
            self.plan.entries[name] = Entry(name, make())
            names[layer] = name
        return self.plan.entries[names[layer]]

    def _call(
        self,
        entry: Entry,
        positional: tuple[Any, ...],
        named: Mapping[str, Any],
        outputs: Sequence[str],
        masks: Sequence[Mask | None],
    ) -> None:
        if entry.layer.is_operator and entry.calls:
            clone = Entry(self.plan.name(entry.name), entry.layer)
            self.plan.entries[clone.name] = clone
            entry = clone
        entry.calls.append(CallToWrite(positional, named))
        number = len(entry.calls) - 1
        for index, output in enumerate(outputs):
            mask = masks[index] if index < len(masks) else None
            self.plan.tensors[output] = Tensor(entry.name, number, index, *self._kind(output), mask)


_TAKES_MASK = frozenset({"BatchNormalization", "TimeDistributed"})
"""Layers that heed no mask and are still called with one, which then stands in Keras's graph."""


_HANDS_ON = frozenset(
    {
        "Activation", "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise",
        "Identity", "SpatialDropout1D", "SpatialDropout2D",
    }
)  # fmt: skip
"""Layers that may give back the very tensor that they were given."""


def _takes_list(operation: ops.Operation) -> bool:
    return isinstance(operation, (ops.Combine, ops.Concatenate, ops.Dot))


def _states(layer: RecurrentLayer) -> int:
    from lstmconvert.gates import Cell

    return len(layer.directions) * (2 if layer.cell is Cell.LSTM else 1)
