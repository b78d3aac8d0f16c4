"""The axis notation: einops is the oracle where it can read the pattern."""

from __future__ import annotations

import einops
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmconvert import axes

KNOWN = ("input", "hidden", "recurrent", "projected", "direction", "gate", "bias", "slot")


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("(gate hidden", "'(' without ')'"),
        ("gate) hidden", "')' without '('"),
        ("((gate) hidden)", "parentheses inside parentheses"),
        ("gate + hidden", "'+' belongs inside parentheses"),
        ("(gate +) hidden", "'+' needs a name on both sides"),
        ("gates hidden", "unknown axis 'gates'"),
        ("hidden hidden", "axis 'hidden' appears twice"),
        ("hidden * 4", "unexpected '*'"),
    ],
)
def test_a_bad_pattern_is_refused_with_the_rule_it_broke(text: str, piece: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        axes.parse(text, KNOWN)
    assert piece in str(caught.value)
    assert repr(text) in str(caught.value)


@st.composite
def patterns(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A pattern without '+' and the length of every axis in it."""
    names = draw(st.permutations(["hidden", "input", "gate", "bias"]))
    names = names[: draw(st.integers(1, 4))]
    sizes = {name: draw(st.integers(1, 5)) for name in names}
    pieces, rest = [], list(names)
    while rest:
        count = draw(st.integers(1, len(rest)))
        taken, rest = rest[:count], rest[count:]
        pieces.append(f"({' '.join(taken)})" if count > 1 or draw(st.booleans()) else taken[0])
    return " ".join(pieces), sizes


@given(patterns(), st.data())
def test_view_agrees_with_einops(pattern: tuple[str, dict[str, int]], data: st.DataObject) -> None:
    text, sizes = pattern
    parsed = axes.parse(text, KNOWN)
    shape = axes.shape(parsed, sizes)
    array = np.arange(int(np.prod(shape))).reshape(shape)
    order = tuple(data.draw(st.permutations(list(sizes))))
    expected = einops.rearrange(array, f"{text} -> {' '.join(order)}", **sizes)
    got = axes.view(array, parsed, sizes, {}, order)
    assert np.array_equal(got, expected)
    assert np.shares_memory(got, array)


@given(patterns())
def test_solve_finds_every_length_that_one_shape_determines(pattern: tuple[str, dict[str, int]]) -> None:
    text, sizes = pattern
    parsed = axes.parse(text, KNOWN)
    left_out = parsed.names[0]
    known = {name: size for name, size in sizes.items() if name != left_out}
    axes.solve(parsed, axes.shape(parsed, sizes), known)
    assert known == sizes


def test_a_sum_is_taken_apart() -> None:
    kernel = np.arange(5 * 8).reshape(5, 8)
    parsed = axes.parse("(input + recurrent) (gate hidden)", KNOWN)
    sizes = {"recurrent": 2, "gate": 4}
    assert axes.solve(parsed, (5, 8), sizes)
    assert sizes == {"input": 3, "recurrent": 2, "gate": 4, "hidden": 2}
    own = axes.view(kernel, parsed, sizes, {"gate": 1}, ("hidden", "input"))
    other = axes.view(kernel, parsed, sizes, {"gate": 1}, ("hidden", "recurrent"))
    assert np.array_equal(own, kernel[:3, 2:4].T)
    assert np.array_equal(other, kernel[3:, 2:4].T)


@pytest.mark.parametrize(
    ("shape", "known", "piece"),
    [
        ((9, 3), {"gate": 4}, "not a multiple of 4"),
        ((8,), {"gate": 4}, "has 1 axes"),
        ((8, 3), {"gate": 4, "input": 2}, "input=2"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_with_the_bindings(
    shape: tuple[int, ...], known: dict[str, int], piece: str
) -> None:
    parsed = axes.parse("(gate hidden) input", KNOWN)
    with pytest.raises(ValueError, match=r".") as caught:
        axes.solve(parsed, shape, known)
    assert piece in str(caught.value)
