"""Functions that run in a process of their own, for libraries that do not bear another one beside them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def apart(function: Callable[P, R]) -> Callable[P, R]:
    """The same function of a module, called in one process for all of them; values travel as pickles."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return _process().submit(function, *args, **kwargs).result()

    return call
