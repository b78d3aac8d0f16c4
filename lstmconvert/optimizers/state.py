"""What an optimizer remembers, in one form for all frameworks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from lstmconvert.tensors import Lazy


class Kind(StrEnum):
    """The rule by which weights are updated."""

    ADAM = "adam"
    RMSPROP = "rmsprop"
    SGD = "sgd"


class Slot(StrEnum):
    """What is remembered of each weight."""

    FIRST_MOMENT = "first_moment"
    SECOND_MOMENT = "second_moment"
    MEAN_SQUARE = "mean_square"
    MOMENTUM = "momentum"


SLOTS: Mapping[Kind, tuple[Slot, ...]] = MappingProxyType(
    {
        Kind.ADAM: (Slot.FIRST_MOMENT, Slot.SECOND_MOMENT),
        Kind.RMSPROP: (Slot.MEAN_SQUARE, Slot.MOMENTUM),
        Kind.SGD: (Slot.MOMENTUM,),
    }
)
"""Which slots a kind may have; the momentum of RMSprop is optional, and so is that of SGD."""

SQUARED = frozenset({Slot.SECOND_MOMENT, Slot.MEAN_SQUARE})
"""Slots that do not change their sign with the gradient."""


class Epsilon(StrEnum):
    """Where an optimizer adds the small number that keeps it from dividing by nothing.

    With v the second moment and c its correction for the start (1 - beta_2 ** step): ``CORRECTED`` is
    ``sqrt(v / c) + epsilon`` (torch), ``UNCORRECTED`` ``(sqrt(v) + epsilon) / sqrt(c)`` (Keras, TensorFlow
    1), ``INSIDE`` ``sqrt(v + epsilon)`` (RMSprop of Keras and TensorFlow 1).
    """

    CORRECTED = "corrected"
    UNCORRECTED = "uncorrected"
    INSIDE = "inside"


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """The state of an optimizer over the weights of one file.

    Attributes:
        kind: the rule.
        settings: ``learning_rate``, ``beta_1``, ``beta_2``, ``epsilon``, ``decay`` (of the mean square),
            ``momentum``, ``weight_decay`` (decoupled), ``nesterov``; what the file does not say is not there.
        step: how many updates were made, if the file says it.
        slots: slot to (name of a weight in its file to the slot's array, of the weight's shape).
        unit: what the momentum is a multiple of: 1 for sums of gradients (torch), the learning rate where
            steps are summed, its negative where what is added to the weight is.
        epsilon: where ``epsilon`` is added.
        notes: what was taken for granted because the file does not say it.
    """

    kind: Kind
    settings: Mapping[str, float | bool]
    step: int | None
    slots: Mapping[Slot, Mapping[str, Lazy]]
    unit: float = 1.0
    epsilon: Epsilon = Epsilon.CORRECTED
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that it trains, in the order of the file."""
        return tuple(dict.fromkeys(name for held in self.slots.values() for name in held))
