"""Readings: what a sample's arrays may be: batch-major or time-major, the sequence or its last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lstmconvert.errors import Usage
from lstmconvert.tensors import Array


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One way to read a sample.

    Attributes:
        x: inputs (batch, time, features).
        y: outputs (batch, time, features), or (batch, features) of the last step.
        whole: whether ``y`` is the sequence.
        initial: given initial states, each (batch, size), in their order; empty for zeros.
        final: given final states, each (batch, size), in their order.
        words: how the sample was read, for people.
    """

    x: Array
    y: Array
    whole: bool
    initial: tuple[Array, ...] = ()
    final: tuple[Array, ...] = ()
    words: str = ""

    @property
    def scale(self) -> float:
        """Largest output."""
        return float(np.max(np.abs(self.y), initial=0.0))

    def part(self, rows: int, steps: int) -> Reading:
        """The first sequences, up to a step; only where the whole sequence is known may steps be left out."""
        steps = steps if self.whole else self.x.shape[1]
        ended = steps >= self.x.shape[1]
        return Reading(
            self.x[:rows, :steps],
            self.y[:rows, :steps] if self.whole else self.y[:rows],
            self.whole,
            tuple(state[:rows] for state in self.initial),
            tuple(state[:rows] for state in self.final) if ended else (),
            self.words,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Inputs and outputs as given: the array itself first, states behind it."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    names: Mapping[str, str] = field(default_factory=dict)


def sample(inputs: Any, outputs: Any) -> Sample:
    """A sample from arrays.

    Args:
        inputs: x, or (x, initial states...).
        outputs: y, or (y, final states...).

    Raises:
        Usage: when they are not arrays of numbers, or hold NaN or infinities, or nothing.
    """
    given = []
    for words, value in (("input", inputs), ("output", outputs)):
        several = isinstance(value, (tuple, list)) and all(isinstance(v, np.ndarray) for v in value)
        arrays = [np.asarray(v) for v in value] if several and len(value) else [np.asarray(value)]
        for array in arrays:
            if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
                raise Usage(
                    f"the sample {words} is not an array of numbers", found=f"{array.dtype} {array.shape}"
                )
            if not array.size:
                raise Usage(f"the sample {words} is empty", found=f"shape {array.shape}")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise Usage(
                    f"the sample {words} holds NaN or infinities, which say nothing of the weights",
                    remedy="Give a sample that is finite throughout.",
                )
        given.append(tuple(arrays))
    return Sample(given[0], given[1])


def _inputs(x: Array) -> Iterator[tuple[Array, bool, str]]:
    """x as (batch, time, features), whether time came first, and how that is said."""
    if x.ndim == 3:
        yield x, False, "(batch, time, features)"
        if x.shape[0] != 1:
            yield x.transpose(1, 0, 2), True, "(time, batch, features)"
    elif x.ndim == 2:
        yield x[np.newaxis], False, "(time, features)"
        yield x[:, :, np.newaxis], False, "(batch, time) of one feature"
    elif x.ndim == 1:
        yield x[np.newaxis, :, np.newaxis], False, "(time,) of one feature"
        yield x[np.newaxis, np.newaxis], False, "(features,) of one step"


def _outputs(y: Array, batch: int, time: int, *, time_first: bool) -> Iterator[tuple[Array, bool, str]]:
    """y as the sequence (batch, time, features) or the last step (batch, features)."""
    whole = (time, batch) if time_first else (batch, time)
    if y.ndim == 3 and y.shape[:2] == whole:
        words = "(time, batch, features)" if time_first else "(batch, time, features)"
        yield (y.transpose(1, 0, 2) if time_first else y), True, f"the sequence {words}"
    if y.ndim == 3 and 1 in y.shape[:2] and y.shape[0] * y.shape[1] == batch and time > 1:
        yield y.reshape(batch, y.shape[2]), False, "the last step"
    if y.ndim == 2:
        if y.shape[0] == batch:
            yield y, False, "the last step (batch, features)"
        if batch == 1 and y.shape[0] == time:
            yield y[np.newaxis], True, "the sequence (time, features)"
        if y.shape == whole:
            yield (y.T if time_first else y)[:, :, np.newaxis], True, "the sequence of one feature"
    if y.ndim == 1:
        if batch == 1:
            yield y[np.newaxis], False, "the last step (features,)"
            if len(y) == time:
                yield y[np.newaxis, :, np.newaxis], True, "the sequence of one feature"
        if len(y) == batch:
            yield y[:, np.newaxis], False, "the last step of one feature"


def _states(arrays: Sequence[Array], batch: int) -> tuple[Array, ...] | None:
    """States as (batch, size), or ``None`` where they do not fit the batch."""
    result = []
    for array in arrays:
        flat = array.reshape(array.shape[-2:]) if array.ndim == 3 and array.shape[0] == 1 else array
        flat = flat[np.newaxis] if flat.ndim == 1 and batch == 1 else flat
        if flat.ndim != 2 or flat.shape[0] != batch:
            return None
        result.append(flat)
    return tuple(result)


def readings(given: Sample) -> list[Reading]:
    """Every way to read a sample.

    Raises:
        Usage: when inputs and outputs do not fit each other in any way.
    """
    found = []
    for x, time_first, words in _inputs(given.inputs[0]):
        batch, time, _ = x.shape
        initial, final = _states(given.inputs[1:], batch), _states(given.outputs[1:], batch)
        if initial is None or final is None:
            continue
        for y, whole, said in _outputs(given.outputs[0], batch, time, time_first=time_first):
            found.append(Reading(x, y, whole, initial, final, f"input {words}, output {said}"))
    if not found:
        raise Usage(
            "input and output of the sample do not fit each other",
            found=f"input {given.inputs[0].shape}, output {given.outputs[0].shape}"
            + "".join(f", state {s.shape}" for s in (*given.inputs[1:], *given.outputs[1:])),
            expected="(batch, time, features) or (time, batch, features), and the sequence or its last step",
        )
    return found
