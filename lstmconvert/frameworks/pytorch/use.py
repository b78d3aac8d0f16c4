"""One use of a neighbour of the recurrent layers, as those who write it see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace

import numpy as np

from lstmconvert import layout, mapping
from lstmconvert.activations import Activation
from lstmconvert.errors import NotRepresentable
from lstmconvert.frameworks.pytorch.expressions import activated, wraps
from lstmconvert.frameworks.pytorch.module import Module
from lstmconvert.frameworks.pytorch.values import Value, is_floating
from lstmconvert.mapping import Layout
from lstmconvert.shapes import Shape
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass


@dataclass(slots=True)
class Held:
    """Where a layer's weights are in the state_dict.

    Attributes:
        layout: name of the layout of a sublayer's tensors, or ``""`` where each tensor is a part.
        prefix: what stands before the names of the layout.
        tensors: part to the tensor's name and the order of the part's axes in it, where there is no layout.
        attributes: what the parts, or the sublayer under ``""``, are in the module.
    """

    layout: str = ""
    prefix: str = ""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A call of an operation on its way into the module.

    Attributes:
        module: where it goes.
        layer: the layer's key.
        weights: its canonical parts.
        inputs: what goes in.
        mask: true at valid steps, where the call heeds a mask.
        held: where the weights are; filled by the first use.
    """

    module: Module
    layer: str
    weights: Mapping[str, Lazy]
    inputs: tuple[Value, ...]
    mask: Value | None
    held: Held

    def refused(self, reason: str) -> NotRepresentable:
        """The error that this use cannot be written."""
        return NotRepresentable(
            "the generated module cannot express this layer", reasons=[reason], place=f"layer {self.layer!r}"
        )

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
        """Dtype of the computation: the weights', else what the floating inputs have in common."""
        floating: list[str] = [w.dtype.name for w in self.weights.values() if is_floating(w.dtype.name)]
        if floating:
            return floating[0]
        found = list(dict.fromkeys(v.dtype for v in self.inputs if is_floating(v.dtype)))
        if len(found) > 1 and "bfloat16" not in found:
            return str(np.result_type(*found))
        return found[0] if len(found) == 1 else "float32"

    def floats(self) -> tuple[Value, ...]:
        """The inputs in the dtype of the computation."""
        return tuple(value.in_dtype(self.dtype) for value in self.inputs)

    def last(self) -> Value:
        """The only input, floating, features last."""
        return self.x.in_dtype(self.dtype).last()

    def first(self) -> Value:
        """The only input, floating, features on axis 1."""
        return self.x.in_dtype(self.dtype).first()

    def named(self, value: Value, wanted: str = "x") -> Value:
        """The value as a variable, so that its expression can stand more than once."""
        if value.is_atom:
            return value
        return value.named(self.module.assigned(wanted, value.code))

    def value(self, code: str, shape: Shape, dtype: str | None = None) -> Value:
        """A value features last."""
        return Value(code, shape, self.dtype if dtype is None else dtype)

    def activated(self, value: Value, activation: Activation, axis: int = -1) -> Value:
        """What an activation makes of a value; softmax acts on the logical ``axis``."""
        if activation.kind == "linear":
            return value
        if not wraps(activation):
            value = self.named(value)
        at = value.axis(axis)
        return value.named(activated(activation, value.code, axis=-1 if at == value.rank - 1 else at))

    def inner(self, x: Value) -> Use:
        """The same layer applied to another value."""
        return replace(self, inputs=(x,))

    # Weights.

    def sublayer(
        self,
        constructor: str,
        layout_name: str,
        *,
        fill: Mapping[str, float] | None = None,
        extra: Mapping[str, Lazy] | None = None,
    ) -> str:
        """The layer of torch that holds the weights, made at the first use; returns ``self.NAME``.

        Args:
            constructor: the call that makes it.
            layout_name: of its tensors in the mapping file.
            fill: parts that it has in any case, and the number that stands for a missing one.
            extra: further tensors of its state_dict.
        """
        if "" not in self.held.attributes:
            parts = dict(self.weights)
            some = next(iter(parts.values()))
            for part, number in (fill or {}).items():
                parts.setdefault(part, _filled(number, (some.shape[0],), some))
            tensors = layout.pack_operation(layout_named(layout_name), parts)
            name = self.module.submodule(self.layer, constructor, {**tensors, **(extra or {})})
            self.held.layout, self.held.prefix = layout_name, f"{name}."
            self.held.attributes[""] = name
        return f"self.{self.held.attributes['']}"

    def plain(self, constructor: str) -> str:
        """A layer of torch without tensors, made at the first use; returns ``self.NAME``."""
        if "" not in self.held.attributes:
            self.held.attributes[""] = self.module.submodule(self.layer, constructor, {})
        return f"self.{self.held.attributes['']}"

    def owner(self, constructor: str, tensors: Mapping[str, tuple[str, Lazy, tuple[int, ...]]]) -> str:
        """A module whose tensors are parts; ``tensors`` gives part to local name, array and order of axes."""
        if "" not in self.held.attributes:
            local = {name: lazy for name, lazy, _ in tensors.values()}
            name = self.module.submodule(self.layer, constructor, local)
            self.held.attributes[""] = name
            for part, (own, _, order) in tensors.items():
                self.held.tensors[part] = (f"{name}.{own}", order)
        return f"self.{self.held.attributes['']}"

    def parameter(self, part: str, *, trained: bool = True) -> str:
        """A part as an attribute of the model, made at the first use; returns ``self.NAME``."""
        if part not in self.held.attributes:
            lazy = self.weights[part]
            name = self.module.parameter(self.layer, part, lazy, trained=trained)
            self.held.attributes[part] = name
            self.held.tensors[part] = (name, tuple(range(len(lazy.shape))))
        return f"self.{self.held.attributes[part]}"


def _filled(number: float, shape: tuple[int, ...], like: Lazy) -> Lazy:
    def load() -> Array:
        return np.full(shape, number, like.dtype)

    return Lazy(shape, like.dtype, load)


def layout_named(name: str) -> Layout:
    """A layout of torch's mapping file."""
    return mapping.load("pytorch").layouts[name]
