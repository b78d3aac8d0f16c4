"""Copies and comparisons of arrays, however they lie in memory and however many cores share them."""

from __future__ import annotations

import numpy as np
import pytest

from lstmconvert import parallel, tensors

SHAPES = {
    "small": (3, 5),
    "a vector": (2_000_001,),
    "large": (1091, 1037),
    "few rows": (2, 600_003),
    "three axes": (2, 1100, 503),
    "no axes": (),
    "no rows": (0, 7),
}
WAYS = ("rows", "columns", "every other column", "backwards")


def laid_out(array: np.ndarray, way: str) -> np.ndarray:
    """An array of the same numbers that lies otherwise in memory."""
    match way:
        case "rows":
            return array.copy(order="C")
        case "columns":
            return array.copy(order="F")
        case "every other column":
            wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]) if array.ndim else (2,), array.dtype)
            view = wide[..., ::2] if array.ndim else wide[0:1].reshape(())
            view[...] = array
            return view
        case _:
            return array[::-1].copy(order="C")[::-1] if array.ndim else array.copy()


@pytest.fixture(params=[1, 3], ids=["one core", "three cores"], autouse=True)
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_cores", lambda: request.param)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_copy_has_the_bits_of_what_was_copied(shape: str, way: str, dtype: str) -> None:
    print("seed 20261123")
    numbers = np.random.default_rng(20261123).standard_normal(SHAPES[shape]).astype(dtype)
    for other in WAYS:
        source, target = laid_out(numbers, way), laid_out(np.zeros_like(numbers), other)
        tensors.copy_into(target, source)
        assert target.tobytes() == numbers.tobytes()
        assert tensors.same_bits(source, target)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", ["a vector", "large", "few rows", "three axes"])
def test_one_element_that_differs_is_seen_wherever_it_is(shape: str, way: str) -> None:
    random = np.random.default_rng(20261123)
    print("seed 20261123")
    numbers = random.standard_normal(SHAPES[shape]).astype(np.float32)
    places = [0, numbers.size - 1, *(int(n) for n in random.integers(0, numbers.size, 5))]
    other = laid_out(numbers, way)
    for place in places:
        at = np.unravel_index(place, numbers.shape)
        kept = other[at]
        other[at] = np.nextafter(kept, np.float32(np.inf))
        assert not tensors.same_bits(numbers, other), at
        other[at] = kept
    assert tensors.same_bits(numbers, other)


def test_bits_count_and_not_values() -> None:
    zeros = np.zeros((2048, 1024), np.float32)
    assert not tensors.same_bits(zeros, -zeros)
    nans = np.full((2048, 1024), np.nan, np.float32)
    assert tensors.same_bits(nans, np.asfortranarray(nans))
    payload = nans.view(np.uint32) + np.uint32(1)
    assert not tensors.same_bits(nans, payload.view(np.float32))
