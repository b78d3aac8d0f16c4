"""A state in the terms of another framework's optimizer."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np

from lstmconvert.errors import NotRepresentable
from lstmconvert.lowering import Rewrite
from lstmconvert.optimizers.state import Epsilon, Kind, OptimizerState, Slot
from lstmconvert.tensors import Array, Lazy


def fit(
    state: OptimizerState, unit: float | None, epsilon: Epsilon
) -> tuple[OptimizerState, tuple[Rewrite, ...]]:
    """The state with its momentum in another unit.

    Args:
        state: in the unit of its source.
        unit, epsilon: what the target has; see ``OptimizerState``.

    Raises:
        NotRepresentable: when the learning rate is needed for it and the source does not say it.
    """
    steps = [_step(note, exact=False) for note in state.notes]
    if "learning_rate" not in state.settings:
        steps.append(
            _step("the file does not say the learning rate and other settings: set them anew", exact=False)
        )
    if epsilon is not state.epsilon and state.kind is not Kind.SGD:
        value = state.settings.get("epsilon")
        told = "" if value is None else f" ({value:g})"
        what = f"epsilon{told} is added elsewhere ({epsilon}, not {state.epsilon})"
        steps.append(_step(f"{what}: steps of weights whose gradients are near it differ", exact=False))
    if Slot.MOMENTUM in state.slots and unit != state.unit:
        if unit is None:
            raise NotRepresentable(
                "the momentum is a multiple of the learning rate, which the file does not say",
                remedy="Leave out --with-optimizer.",
            )
        factor = unit / state.unit
        held = {name: _scaled(t, factor) for name, t in state.slots[Slot.MOMENTUM].items()}
        slots = {**state.slots, Slot.MOMENTUM: MappingProxyType(held)}
        state = replace(state, slots=MappingProxyType(slots), unit=unit)
        steps.append(
            _step(
                f"the momentum is kept in another unit: multiplied by {factor:g}, one rounding", exact=False
            )
        )
    return replace(state, epsilon=epsilon), tuple(steps)


def _step(description: str, *, exact: bool) -> Rewrite:
    return Rewrite("", "optimizer", description, exact, 0.0)


def _scaled(tensor: Lazy, factor: float) -> Lazy:
    def load() -> Array:
        product: Array = (tensor.read().astype(np.float64) * factor).astype(tensor.dtype)
        return product

    return Lazy(tensor.shape, tensor.dtype, load)
