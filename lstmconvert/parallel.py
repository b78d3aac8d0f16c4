"""Work on large arrays, shared between the cores of the machine.

NumPy, files and digests let go of the interpreter while they work, so plain threads are enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Generic, TypeVar

from lstmconvert.values import dataclass

LARGE = 1 << 22
"""Bytes from which on work is worth a thread of its own."""
_MOST = 4
_MOST_AHEAD = 3
"""How many results more than threads that make them may wait for the caller."""

Result = TypeVar("Result")


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


def ahead(make: Callable[[int], Result], count: int) -> Iterator[Result]:
    """What ``make(n)`` gives for each ``n`` below ``count``, in order.

    While the caller is busy with one, the other cores make the next few; where none is ready, the caller's
    thread makes it. All threads have ended when the iteration has, or is closed.

    Args:
        make: called with each number once, on several threads at once.
        count: how many there are.

    Raises:
        What ``make`` raises, in the place of what it should have given.
    """
    helpers = min(_cores(), count) - 1
    if helpers < 1:
        yield from map(make, range(count))
        return
    from threading import Thread

    queue = _Queue(make, count, helpers + _MOST_AHEAD)
    threads = [Thread(target=queue.help) for _ in range(helpers)]
    try:
        for thread in threads:
            with suppress(RuntimeError):  # as many threads as the system allows are running
                thread.start()
        for number in range(count):
            yield queue.take(number)
    finally:
        queue.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


class _Queue(Generic[Result]):
    """The numbers that are to be made, in order, and what was made of them before its turn."""

    def __init__(self, make: Callable[[int], Result], count: int, most_ahead: int) -> None:
        from threading import Condition

        self._make = make
        self._count = count
        self._most_ahead = most_ahead
        self._next = 0
        self._taken = 0
        self._made: dict[int, Result | _Failure] = {}
        self._changed = Condition()

    def help(self) -> None:
        """Make what comes next until there is nothing left."""
        while True:
            with self._changed:
                self._changed.wait_for(self._may_go_on)
                if self._next >= self._count:
                    return
                number = self._claimed()
            self._put(number)

    def take(self, number: int) -> Result:
        """What was made of a number; until it is there, the caller makes what comes next as the others do."""
        with self._changed:
            self._taken = number
            self._changed.notify_all()
        while True:
            with self._changed:
                if number not in self._made and not (self._may_go_on() and self._next < self._count):
                    self._changed.wait_for(lambda: number in self._made)
                if number in self._made:
                    made = self._made.pop(number)
                    break
                following = self._claimed()
            self._put(following)
        if isinstance(made, _Failure):
            raise made.error
        return made

    def _may_go_on(self) -> bool:
        return self._next >= self._count or self._next <= self._taken + self._most_ahead

    def _claimed(self) -> int:
        self._next += 1
        return self._next - 1

    def _put(self, number: int) -> None:
        made: Result | _Failure
        try:
            made = self._make(number)
        except BaseException as error:
            made = _Failure(error)
        with self._changed:
            self._made[number] = made
            self._changed.notify_all()
        if isinstance(made, _Failure) and isinstance(made.error, KeyboardInterrupt):
            raise made.error  # meant for the caller, and now

    def stop(self) -> None:
        """Have nothing more made."""
        with self._changed:
            self._count = 0
            self._made.clear()
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Failure:
    """What was raised where a result should be."""

    error: BaseException


def _cores() -> int:
    try:
        present = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        present = os.cpu_count() or 1
    return min(_MOST, present)
