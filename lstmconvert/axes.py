"""The axis notation of mapping files: ``"(gate hidden) input"`` says how a tensor's axes are made.

A pattern is one item per axis of the tensor. ``(a b)`` is one axis that runs over ``a`` slowly and over
``b`` quickly; ``(a + b)`` is one axis that holds ``a`` and then ``b``; ``()`` has length one. The notation
is einops' with ``+`` added (einops refuses it).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

from lstmconvert.tensors import Array
from lstmconvert.values import dataclass

Term = tuple[str, ...]
"""Axis names whose product is a length, the slowest first."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One axis of a tensor: terms that follow each other; almost always there is just one."""

    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Axes:
    """A parsed pattern."""

    text: str
    dimensions: tuple[Dimension, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every axis name, in order."""
        return tuple(name for d in self.dimensions for term in d.terms for name in term)


_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z_0-9]*|[()+]|\S)")


def parse(text: str, known: Collection[str]) -> Axes:
    """Parse a pattern.

    Args:
        text: the pattern.
        known: the axis names that may appear in it.

    Raises:
        ValueError: quoting the offending text: an unknown name, a name twice, or unbalanced parentheses.
    """
    dimensions: list[Dimension] = []
    group: list[list[str]] | None = None
    seen: set[str] = set()
    for token in _TOKEN.findall(text):
        if token == "(":
            if group is not None:
                raise ValueError(f"{text!r}: parentheses inside parentheses")
            group = [[]]
        elif token == ")":
            if group is None:
                raise ValueError(f"{text!r}: ')' without '('")
            if len(group) > 1 and not all(group):
                raise ValueError(f"{text!r}: '+' needs a name on both sides")
            dimensions.append(Dimension(tuple(tuple(term) for term in group)))
            group = None
        elif token == "+":
            if group is None:
                raise ValueError(f"{text!r}: '+' belongs inside parentheses")
            group.append([])
        elif not token.isidentifier():
            raise ValueError(f"{text!r}: unexpected {token!r}")
        elif token not in known:
            raise ValueError(f"{text!r}: unknown axis {token!r}; known: {', '.join(sorted(known))}")
        elif token in seen:
            raise ValueError(f"{text!r}: axis {token!r} appears twice")
        else:
            seen.add(token)
            if group is None:
                dimensions.append(Dimension(((token,),)))
            else:
                group[-1].append(token)
    if group is not None:
        raise ValueError(f"{text!r}: '(' without ')'")
    return Axes(text, tuple(dimensions))


def solve(axes: Axes, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Add to ``sizes`` what ``shape`` tells about the axis lengths; whether something was added.

    Raises:
        ValueError: when the shape contradicts the pattern or the sizes known so far.
    """
    if len(shape) != len(axes.dimensions):
        raise ValueError(f"shape {shape} has {len(shape)} axes, {axes.text!r} has {len(axes.dimensions)}")
    added = False
    for length, dimension in zip(shape, axes.dimensions, strict=True):
        unknown = [name for term in dimension.terms for name in term if name not in sizes]
        if len(unknown) > 1:
            continue
        if not unknown:
            total = sum(_length(term, sizes) for term in dimension.terms)
            if total != length:
                raise ValueError(f"shape {shape} does not fit {axes.text!r} with {_spell(axes, sizes)}")
            continue
        name = unknown[0]
        rest, factor = length, 1
        for term in dimension.terms:
            known = math.prod(sizes[n] for n in term if n != name)
            if name in term:
                factor = known
            else:
                rest -= known
        if factor < 1 or rest < 0 or rest % factor:
            raise ValueError(
                f"shape {shape} does not fit {axes.text!r} with {_spell(axes, sizes)}: "
                f"{rest} is not a multiple of {factor}"
            )
        sizes[name] = rest // factor
        added = True
    return added


def shape(axes: Axes, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor of this pattern."""
    return tuple(sum(_length(term, sizes) for term in d.terms) for d in axes.dimensions)


def view(
    array: Array, axes: Axes, sizes: Mapping[str, int], at: Mapping[str, int], order: tuple[str, ...]
) -> Array:
    """The part of ``array`` at the given positions, as a view with its axes in ``order``.

    Args:
        array: a tensor of the pattern.
        axes: the pattern.
        sizes: the length of every axis.
        at: position on the axes that do not remain (``{"gate": 2}``).
        order: the axes that remain. Of a sum, the term that has a remaining axis is taken.

    Returns:
        A view; writing to it writes to ``array``.
    """
    expanded: list[int] = []
    names: list[str] = []
    cuts: list[slice] = []
    for dimension in axes.dimensions:
        if len(dimension.terms) == 1:
            (chosen,) = dimension.terms
            cuts.append(slice(None))
        else:
            offset, chosen = _chosen(dimension, sizes, order)
            cuts.append(slice(offset, offset + _length(chosen, sizes)))
        expanded += [sizes[name] for name in chosen]
        names += chosen
    # Splitting axes never copies, so the result is a view whatever the strides are.
    split = array[tuple(cuts)].reshape(expanded)
    part = split[tuple(at[name] if name in at else slice(None) for name in names)]
    remaining = [name for name in names if name not in at]
    return part.transpose([remaining.index(name) for name in order])


def _chosen(dimension: Dimension, sizes: Mapping[str, int], order: tuple[str, ...]) -> tuple[int, Term]:
    offset = 0
    for term in dimension.terms:
        if any(name in order for name in term):
            return offset, term
        offset += _length(term, sizes)
    raise ValueError(f"none of {dimension.terms} has one of the axes {order}")


def _length(term: Term, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[name] for name in term)


def _spell(axes: Axes, sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={sizes[name]}" for name in axes.names if name in sizes) or "nothing known"
