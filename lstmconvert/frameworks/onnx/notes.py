"""What reading a graph changed, as JSON values that a conversion reports beside the target's rewrites."""

from __future__ import annotations

from collections.abc import Mapping

Note = Mapping[str, str | bool | float]
"""The fields of a rewrite: ``layer``, ``name``, ``description``, ``exact``, ``rounding``."""


def note(layer: str, name: str, description: str, *, rounding: float = 0.0) -> Note:
    """A step; one without rounding is exact."""
    return {
        "layer": layer,
        "name": name,
        "description": description,
        "exact": rounding == 0.0,
        "rounding": rounding,
    }
