"""Work on large arrays, shared between the cores of the machine.

NumPy, files and digests let go of the interpreter while they work, so plain threads are enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar, cast

LARGE = 1 << 22
"""Bytes from which on work is worth a thread of its own."""
_MOST = 4

Result = TypeVar("Result")
Other = TypeVar("Other")


def shared(work: Callable[[int, int], Result], length: int, step: int = 1) -> list[Result]:
    """What ``work(start, stop)`` gives for ranges that follow each other and cover ``range(length)``.

    There is a range for each core, as far as there are ``step`` elements for it. All have ended when this
    returns or raises.

    Args:
        work: called with a range, on several threads at once; the ranges do not overlap.
        length: how much there is to do.
        step: every range but the last is a multiple of it.

    Raises:
        What ``work`` raises for the first of the ranges for which it does.
    """
    steps = -(-length // step)
    parts = max(1, min(_cores(), steps))
    ends = [min(length, step * (steps * n // parts)) for n in range(parts + 1)]
    ranges = list(pairwise(ends))
    if parts == 1:
        return [work(0, length)]
    from threading import Thread

    found: dict[int, Result] = {}
    failed: dict[int, BaseException] = {}

    def run(number: int) -> None:
        try:
            found[number] = work(*ranges[number])
        except BaseException as error:
            failed[number] = error

    threads = []
    here = [0]
    for number in range(1, parts):
        thread = Thread(target=run, args=(number,))
        try:
            thread.start()
        except RuntimeError:  # as many threads as the system allows are running
            here.append(number)
        else:
            threads.append(thread)
    for number in here:
        run(number)
    for thread in threads:
        thread.join()
    if failed:
        raise failed[min(failed)]
    return [found[number] for number in range(parts)]


def both(first: Callable[[], Result], second: Callable[[], Other]) -> tuple[Result, Other]:
    """What two functions give that run at the same time.

    Raises:
        What one of them raises, when both have ended.
    """
    found: dict[int, Result | Other] = {}

    def work(start: int, stop: int) -> None:
        for number in range(start, stop):
            found[number] = (first, second)[number]()

    shared(work, 2)
    return cast("Result", found[0]), cast("Other", found[1])


def _cores() -> int:
    try:
        present = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        present = os.cpu_count() or 1
    return min(_MOST, present)
