"""Masks that say where an index is not zero: in a model a table that is looked up gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lstmconvert.errors import UnsupportedSource
from lstmconvert.model import Call, Layer, OperationLayer
from lstmconvert.operations import Cast, Embedding
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class IndexMask:
    """The mask of an index.

    Attributes:
        index: the value.
        value: the mask.
    """

    index: str
    value: str


def with_mask(
    mask: IndexMask, calls: Sequence[Call], unused: Sequence[Call], layers: dict[str, Layer]
) -> tuple[list[Call], dict[str, Layer]]:
    """The calls, with a table that is looked up by the index giving the mask as well.

    The call moves in front of those that heed the mask; it needs nothing but the index.

    Args:
        mask: what is needed.
        calls: those of the model, in order.
        unused: further ones that nothing needs.
        layers: all layers.

    Raises:
        UnsupportedSource: where no table is looked up by the index.
    """
    casts = {call.outputs[0]: call.inputs[0] for call in calls if _is(layers[call.layer], Cast)}
    for call in (*calls, *unused):
        layer = layers[call.layer]
        if not isinstance(layer, OperationLayer) or not isinstance(layer.operation, Embedding):
            continue
        (index,) = call.inputs
        if mask.index not in (index, casts.get(index)) or layer.operation.mask_zero:
            continue
        # Numbers that are not whole are cut off by the table itself.
        looked_up = replace(call, inputs=(mask.index,), outputs=(call.outputs[0], mask.value))
        rest = [other for other in calls if other is not call]
        place = next(
            (n for n, other in enumerate(rest) if {mask.value, call.outputs[0]} & set(_taken(other))),
            len(rest),
        )
        rest.insert(place, looked_up)
        used = {name for other in rest for name in _taken(other)}
        # Only the cast that the table took its index from; another may be an output of the model.
        if index != mask.index and index not in used:
            rest = [other for other in rest if index not in other.outputs]
        changed = replace(layer, operation=replace(layer.operation, mask_zero=True))
        return rest, {**layers, layer.name: changed}
    raise UnsupportedSource(
        "the graph is not understood as a whole: a mask says where an index is not zero, "
        "and no table is looked up by that index",
        found=mask.index,
    )


def _taken(call: Call) -> tuple[str, ...]:
    return (*call.inputs, *call.initial_state, *([call.mask] if call.mask else []))


def _is(layer: Layer, kind: type) -> bool:
    return isinstance(layer, OperationLayer) and isinstance(layer.operation, kind)
