"""Dialects: whether a layout's equations and tensors can hold a layer, and if not, why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from lstmconvert.activations import Activation
from lstmconvert.canonical import BlockKey, RecurrentDirection, RecurrentLayer, Weights
from lstmconvert.gates import Direction, Gate, Part
from lstmconvert.layout import places, untied
from lstmconvert.mapping import Dialect, Layout


def reasons(layout: Layout, layer: RecurrentLayer) -> list[str]:
    """Why ``layer``, as it is, does not fit ``layout``; empty when it fits."""
    dialect = layout.dialect
    found: list[str] = []
    if layer.direction not in dialect.directions:
        found.append(f"no {layer.direction} layers")
    for direction in layer.directions:
        found += _equation_reasons(dialect, direction)
        found += _block_reasons(layout, direction.weights)
    if len(layer.directions) == 2:
        first, second = layer.directions
        for option in fields(first.equations):
            a, b = getattr(first.equations, option.name), getattr(second.equations, option.name)
            if a != b and option.name not in dialect.per_direction:
                found.append(f"{_words(option.name)} must be the same in both directions, not {a} and {b}")
    return list(dict.fromkeys(found)) or _tie_reasons(layout, layer)


def _tie_reasons(layout: Layout, layer: RecurrentLayer) -> list[str]:
    """Gates that share their numbers in the layout; read only where nothing else speaks against it."""
    for direction in layer.directions:
        if (gates := untied(layout, direction.weights)) is not None:
            return [f"its {gates[0]} and {gates[1]} gate are one"]
    return []


def _equation_reasons(dialect: Dialect, direction: RecurrentDirection) -> list[str]:
    equations = direction.equations
    found = []
    for option in fields(equations):
        name, value = option.name, getattr(equations, option.name)
        if isinstance(value, Activation):
            accepted = dialect.activations.get(name, ())
            if not any(pattern.matches(value) for pattern in accepted):
                allowed = ", ".join(map(str, accepted)) if len(accepted) <= 4 else f"{len(accepted)} others"
                found.append(f"{_words(name)} {value} (it has {allowed})")
        elif name.endswith("_clip"):
            if value is None and name in dialect.fixed_clips:
                found.append(f"it always has a {_words(name)} of {dialect.fixed_clips[name]:g}")
            elif value is not None and name not in dialect.clips and dialect.fixed_clips.get(name) != value:
                found.append(f"no {_words(name)}")
        elif name == "constant":
            if dialect.constant is not None and dict(value) != dict(dialect.constant):
                found.append(f"constants added at run time {spell(value)}, it has {spell(dialect.constant)}")
        elif str(value) not in dialect.choices.get(name, ()):
            found.append(_choice_words(name, str(value)))
    for group in dialect.same_activation:
        values = {str(getattr(equations, name)) for name in group}
        if len(values) > 1:
            found.append(
                f"{' and '.join(map(_words, group))} must be the same, not {' and '.join(sorted(values))}"
            )
    return found


def _block_reasons(layout: Layout, weights: Weights) -> list[str]:
    held = block_keys(layout)
    found = []
    for part, gate in weights:
        if (part, gate) in held:
            continue
        if part in (Part.INITIAL_HIDDEN, Part.INITIAL_CELL):
            continue  # a trained initial state belongs to the model around the layer
        found.append(
            f"no {_words(part)}" + (f" of the {gate} gate" if part is not Part.PEEPHOLE and gate else "")
        )
    return found


def block_keys(layout: Layout) -> frozenset[BlockKey]:
    """The blocks for which a layout has a place."""
    own = {place.key for place in places(layout, (Direction.FORWARD,))}
    tied = {(part, g) for group in layout.tied for part, first in own if first == group[0] for g in group}
    return frozenset(own | tied)


def _words(name: str) -> str:
    return (
        name.replace("_", " ").replace("bias recurrent", "recurrent bias").replace("bias input", "input bias")
    )


def spell(constant: Mapping[Gate, float]) -> str:
    """Constants for people: ``forget +1``."""
    return ", ".join(f"{gate} {value:+g}" for gate, value in constant.items()) or "none"


def _choice_words(name: str, value: str) -> str:
    return {
        ("reset", "before_product"): "reset gate before the recurrent product (reset_after=False)",
        ("reset", "after_product"): "reset gate after the recurrent product (reset_after=True)",
        ("update_keeps", "candidate"): "update gate that keeps the candidate",
        ("coupling", "forget_is_one_minus_input"): "forget gate coupled to the input gate",
    }.get((name, value), f"{_words(name)} {value}")
