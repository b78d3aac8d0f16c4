"""Which recurrent layer of a target is which of its source, where names and order may have changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from lstmconvert.canonical import RecurrentLayer
from lstmconvert.tensors import same_bits


def twins(
    source: Mapping[str, RecurrentLayer], target: Mapping[str, RecurrentLayer], *, wired: bool
) -> dict[str, str]:
    """For every layer of the target the layer of the source that it is.

    Without wiring, names or else the order are all that there is. A wired target may order its layers by
    its own rules, respell their names, and hold a layer that is used twice as two: there the numbers tell
    what names leave open. That they then stand in the right places is for the proof of the whole model.

    Args:
        source, target: the recurrent layers by name, in order.
        wired: whether the target says how its layers are wired.

    Returns:
        Names of the target to names of the source; a layer without a twin is not in it.
    """
    if set(source) == set(target):
        return {name: name for name in target}

    def like(a: str, b: str) -> bool:
        return _signature(source[a]) == _signature(target[b])

    def equal(a: str, b: str) -> bool:
        return like(a, b) and _same_bits(source[a], target[b])

    named = (
        lambda a, b: a == b and like(a, b),
        lambda a, b: spelled(a) == spelled(b) and like(a, b),
    )
    found = pair(list(source), list(target), *named)
    if not wired and len(found) < len(source):
        return dict(zip(target, source, strict=False))
    if wired:
        found = pair(list(source), list(target), *named, equal, like)
    for b in target:
        if b not in found and any(equal(a, b) for a in source):
            found[b] = next(a for a in source if equal(a, b))
    left = [a for a in source if a not in found.values()]
    found |= zip((b for b in target if b not in found), left, strict=False)
    return found


def pair(first: Sequence[str], second: Sequence[str], *tests: Callable[[str, str], bool]) -> dict[str, str]:
    """Names of the second to names of the first: each test in turn pairs what those before it left."""
    found: dict[str, str] = {}
    left = list(first)
    for test in tests:
        for b in second:
            if b in found:
                continue
            a = next((a for a in left if test(a, b)), None)
            if a is not None:
                found[b] = a
                left.remove(a)
    return found


def spelled(name: str) -> str:
    """A name as every framework can spell it."""
    return re.sub(r"\W", "_", name)


def _signature(layer: RecurrentLayer) -> tuple[object, ...]:
    return layer.cell, layer.direction, layer.input_size, layer.hidden_size, layer.recurrent_size


def _same_bits(a: RecurrentLayer, b: RecurrentLayer) -> bool:
    """Whether all blocks that both have are equal bit for bit."""
    return all(
        same_bits(x.weights[key].read(), y.weights[key].read())
        for x, y in zip(a.directions, b.directions, strict=True)
        for key in x.weights
        if key in y.weights
    )
