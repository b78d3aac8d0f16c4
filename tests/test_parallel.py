"""Work shared between cores covers everything once, and an error in any part of it is the caller's."""

from __future__ import annotations

import time
from collections import Counter
from threading import Thread, current_thread, main_thread
from threading import enumerate as enumerate_threads

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmconvert import parallel


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_cores", lambda: 4)


@given(length=st.integers(0, 1000), step=st.integers(1, 300))
def test_ranges_follow_each_other_and_cover_everything(length: int, step: int) -> None:
    ranges = parallel.shared(lambda start, stop: (start, stop), length, step)
    assert [n for start, stop in ranges for n in range(start, stop)] == list(range(length))
    assert all(start % step == 0 for start, _ in ranges)
    assert len(ranges) == max(1, min(4, -(-length // step)))


def test_parts_run_on_threads_of_their_own() -> None:
    assert len(set(parallel.shared(lambda _start, _stop: current_thread(), 40))) == 4


def test_an_error_reaches_the_caller_when_all_parts_have_ended() -> None:
    ended = []

    def work(start: int, _stop: int) -> None:
        ended.append(start)
        if start in (20, 30):
            raise ValueError(start)

    with pytest.raises(ValueError, match="20"):
        parallel.shared(work, 40)
    assert sorted(ended) == [0, 10, 20, 30]


def test_without_threads_the_work_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_self: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", refused)
    assert parallel.shared(lambda start, _stop: start, 40) == [0, 10, 20, 30]


@given(count=st.integers(0, 200), cores=st.integers(1, 4))
def test_what_is_made_ahead_comes_once_and_in_order(count: int, cores: int) -> None:
    made: list[int] = []

    def make(number: int) -> int | None:
        made.append(number)
        return None if number % 5 == 0 else number

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_cores", lambda: cores)
        assert list(parallel.ahead(make, count)) == [None if n % 5 == 0 else n for n in range(count)]
    assert sorted(made) == list(range(count))


def test_others_make_the_next_ones_meanwhile_but_not_many() -> None:
    made: list[int] = []
    before = set(enumerate_threads())

    def make(number: int) -> int:
        made.append(number)
        return number

    results = parallel.ahead(make, 1000)
    assert next(results) == 0
    deadline = time.monotonic() + 10
    while len(made) < 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert 6 <= len(made) <= 10
    results.close()
    assert set(enumerate_threads()) <= before


def test_the_caller_does_not_wait_while_there_is_something_to_make() -> None:
    makers: Counter[Thread] = Counter()

    def make(number: int) -> int:
        makers[current_thread()] += 1
        time.sleep(0.001)
        return number

    assert list(parallel.ahead(make, 200)) == list(range(200))
    assert len(makers) == 4
    assert makers[current_thread()] > 5


def test_an_interruption_is_not_kept_for_its_turn() -> None:
    def make(number: int) -> int:
        if current_thread() is main_thread() and number > 0:
            raise KeyboardInterrupt
        time.sleep(0.001)
        return number

    found = []
    with pytest.raises(KeyboardInterrupt):
        for number in parallel.ahead(make, 1000):
            found.append(number)
            if number == 900:
                break
    assert len(found) < 100


def test_an_error_comes_in_its_place_and_ends_everything() -> None:
    def make(number: int) -> int:
        if number >= 3:
            raise ValueError(number)
        return number

    found = []
    before = set(enumerate_threads())
    with pytest.raises(ValueError, match=r"^3$"):
        for number in parallel.ahead(make, 100):
            found.append(number)
    assert found == [0, 1, 2]
    assert set(enumerate_threads()) <= before


def test_without_threads_the_caller_makes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_self: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", refused)
    assert list(parallel.ahead(lambda n: n * n, 10)) == [n * n for n in range(10)]
