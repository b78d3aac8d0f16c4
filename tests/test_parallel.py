"""Work shared between cores covers everything once, and an error in any part of it is the caller's."""

from __future__ import annotations

from threading import Thread, current_thread

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


@pytest.mark.parametrize("cores", [1, 2])
def test_two_functions_run_at_the_same_time(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_cores", lambda: cores)
    threads = parallel.both(current_thread, lambda: (current_thread(), "second"))
    assert threads[1][1] == "second"
    assert (threads[0] is threads[1][0]) == (cores == 1)
