"""Masks as Keras passes them on: which layers keep, join or drop them, release by release.

A mask is a description until a layer that heeds one asks for its value. Sources: ``compute_mask`` and
``supports_masking`` of the layers of Keras 3.15 and tf_keras 2.21; tests/frameworks/keras judges them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from lstmconvert.errors import UnsupportedSource
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class Given:
    """A mask that is a value of the graph (batch, time)."""

    value: str


@dataclass(frozen=True, slots=True)
class AllOf:
    """True where every one of these is."""

    masks: tuple[Mask, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """True where one of these is."""

    masks: tuple[Mask, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """One after the other in time."""

    masks: tuple[Mask, ...]


Mask: TypeAlias = Given | AllOf | AnyOf | Joined

# Layers that hand their input's mask on as it is.
_PASSES = frozenset(
    {
        "Activation", "ActivityRegularization", "AlphaDropout", "BatchNormalization", "Dense", "Dropout",
        "ELU", "GaussianDropout", "GaussianNoise", "GroupNormalization", "LayerNormalization", "LeakyReLU",
        "PReLU", "ReLU", "Softmax", "SpatialDropout1D", "SpatialDropout2D", "ThresholdedReLU",
        "TimeDistributed",
    }
)  # fmt: skip
_PASSES_IN_KERAS3 = frozenset({"Identity", "Normalization", "Rescaling"})
_MERGES = frozenset({"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"})
ATTENTION = frozenset({"Attention", "AdditiveAttention", "MultiHeadAttention"})
"""Layers that take a mask for each of their inputs; their output has the query's."""


def after(
    class_name: str,
    masks: Sequence[Mask | None],
    *,
    generation: int,
    axis_is_time: bool = False,
    place: str = "",
) -> Mask | None:
    """The mask of a layer's (first) output.

    Args:
        class_name: the layer's class; recurrent layers and those that make a mask are not asked here.
        masks: of its inputs.
        generation: of Keras.
        axis_is_time: for Concatenate, whether it joins along time (and not features).
        place: for messages.

    Returns:
        ``None`` also where the layer drops the mask.
    """
    if all(mask is None for mask in masks):
        return None
    if class_name in _PASSES or class_name in ATTENTION:
        return masks[0]
    if class_name in _PASSES_IN_KERAS3 and generation >= 3:
        return masks[0]
    if class_name in _MERGES:
        return _merged(masks, generation)
    if class_name == "Concatenate":
        return _concatenated(masks, generation, axis_is_time=axis_is_time, place=place)
    return None


def _merged(masks: Sequence[Mask | None], generation: int) -> Mask | None:
    given = [mask for mask in masks if mask is not None]
    if generation >= 3:
        return any_of(given) if len(given) == len(masks) else None
    return all_of(given)


def _concatenated(
    masks: Sequence[Mask | None], generation: int, *, axis_is_time: bool, place: str
) -> Mask | None:
    given = [mask for mask in masks if mask is not None]
    if axis_is_time:
        if len(given) < len(masks):
            raise UnsupportedSource(
                "joining masked and unmasked sequences along time is not supported", place=place
            )
        return Joined(tuple(given))
    if generation >= 3:
        # An input without a mask counts as one that is true everywhere.
        return any_of(given) if len(given) == len(masks) else None
    return all_of(given)


def any_of(masks: Sequence[Mask]) -> Mask:
    """True where one of them is; equal ones count once."""
    distinct = tuple(dict.fromkeys(masks))
    return distinct[0] if len(distinct) == 1 else AnyOf(distinct)


def all_of(masks: Sequence[Mask]) -> Mask:
    """True where every one of them is; equal ones count once."""
    distinct = tuple(dict.fromkeys(masks))
    return distinct[0] if len(distinct) == 1 else AllOf(distinct)
