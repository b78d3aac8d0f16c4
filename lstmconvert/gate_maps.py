"""Gate maps: where each gate lies on both sides of a conversion, for reports."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lstmconvert import opening
from lstmconvert.opening import Source
from lstmconvert.options import ReadOptions
from lstmconvert.tensors import Array


def gate_maps(
    first: Source, second: Source, options: tuple[ReadOptions, ReadOptions] = (ReadOptions(), ReadOptions())
) -> list[dict[str, Any]]:
    """Which block of which source tensor became which block of which target tensor.

    Found by following indices. One entry for every canonical block: ``layer``, ``target_layer``, ``block``,
    ``source`` and ``target`` (``tensor``, its ``shape``, the positions of the block's ``first`` and ``last``
    element; ``None`` where the block is absent or computed), and ``weights`` (``mean``, ``deviation``,
    ``least``, ``largest``) of the source's block.
    """
    places = [opening.block_places(f, o) for f, o in zip((first, second), options, strict=True)]
    rows: list[dict[str, Any]] = []
    for (name, held), other in zip(first.model.recurrent.items(), second.model.recurrent, strict=False):
        one, two = places[0].get(name, {}), places[1].get(other, {})
        for direction in held.directions:
            for (part, gate), block in direction.weights.items():
                key = f"{direction.direction} {part} {gate or ''}".strip()
                rows.append(
                    {
                        "layer": name,
                        "target_layer": other,
                        "block": key,
                        "source": asdict(one[key]) if key in one else None,
                        "target": asdict(two[key]) if key in two else None,
                        "weights": _statistics(block.read()),
                    }
                )
    return rows


def _statistics(array: Array) -> dict[str, float]:
    wide = array.astype("float64")
    return {
        "mean": float(wide.mean()),
        "deviation": float(wide.std()),
        "least": float(wide.min()),
        "largest": float(wide.max()),
    }
