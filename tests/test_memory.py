"""Memory that is used again: never while somebody still sees it."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmconvert import memory
from lstmconvert.tensors import Array, Lazy


@pytest.fixture(autouse=True)
def small_arrays_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_KEPT_FROM", 1 << 13)
    monkeypatch.setattr(memory, "_SPARE", memory._Spare())


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


@given(size=st.integers(1 << 12, 1 << 15), place=st.integers(0, 1 << 40))
def test_it_begins_as_the_place_does_and_at_a_multiple_of_sixteen(size: int, place: int) -> None:
    array = memory.room(size, place)
    assert array.shape == (size,)
    assert (place - address(array)) % 64 == place % 16
    assert array.flags.writeable


@given(st.lists(st.tuples(st.integers(1 << 12, 1 << 15), st.booleans(), st.integers(0, 5)), max_size=30))
def test_what_is_still_seen_is_not_given_to_others(steps: list[tuple[int, bool, int]]) -> None:
    seen: list[Array] = []
    for number, (size, is_view, dropped) in enumerate(steps):
        array = memory.room(size)
        array[:] = number
        seen.append(array[7:].view(np.uint8)[::2] if is_view else array)
        del array
        if dropped < len(seen):
            del seen[dropped]
        for each in seen:
            assert (each == each[0]).all()
    assert len({int(each[0]) for each in seen}) == len(seen)


def test_memory_is_used_again_once_the_last_view_is_gone() -> None:
    array = memory.room(1 << 14)
    place, view = address(array), array[5:]
    del array
    other = memory.room(1 << 14)
    assert address(other) != place
    del view
    assert address(memory.room(1 << 14)) == place
    assert address(memory.room(1 << 13)) == place


def test_one_array_is_kept_and_no_more() -> None:
    first, second = memory.room(1 << 14), memory.room(1 << 14)
    owners = [weakref.ref(each.base) for each in (first, second)]
    del first, second
    assert [owner() for owner in owners] == [None, None]
    assert len(memory._SPARE._blocks) == 1


def test_a_tensor_whose_memory_went_to_another_is_read_again() -> None:
    def load() -> Array:
        array = memory.room(1 << 14)
        array[:] = 1
        return array

    tensor = Lazy((1 << 14,), np.uint8, load)
    assert tensor.read().all()
    other = memory.room(1 << 14)
    other[:] = 0
    assert tensor.read().all()
    assert not other.any()
