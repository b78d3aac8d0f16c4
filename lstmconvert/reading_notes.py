"""What reading a source changed, as JSON values that a conversion reports beside the target's rewrites."""

from __future__ import annotations

from collections.abc import Mapping

Note = Mapping[str, str | bool | float]
"""The fields of a rewrite: ``layer``, ``name``, ``description``, ``exact``, ``rounding``."""


def dequantised(layer: str, tensor: str, dtype: object, granularity: str, *, rounding: float = 0.0) -> Note:
    """A tensor of whole numbers that was multiplied by its scales; never called exact.

    Args:
        layer: name of the layer.
        tensor: its tensor.
        dtype: what the source stores.
        granularity: what has a scale of its own: "one scale a row", "one scale for all".
        rounding: how far a product may lie from the number that the runtime computes with.
    """
    text = (
        f"{tensor} was dequantised from {dtype}, {granularity}; "
        "that a runtime may round the inputs as well is left out"
    )
    return {**note(layer, "dequantize", text, rounding=rounding), "exact": False}


def note(layer: str, name: str, description: str, *, rounding: float = 0.0) -> Note:
    """A step; one without rounding is exact."""
    return {
        "layer": layer,
        "name": name,
        "description": description,
        "exact": rounding == 0.0,
        "rounding": rounding,
    }
