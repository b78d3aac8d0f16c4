"""Random numbers for proofs: the same ones everywhere, without importing a random module for them.

SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), which passes the
usual tests of statistics; nothing here is a secret.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lstmconvert.tensors import Array

_STEP = 0x9E3779B97F4A7C15


class Sampler:
    """A sequence of random numbers that its seed decides."""

    def __init__(self, seed: int) -> None:
        self._state = seed * _STEP % (1 << 64)

    def _bits(self, count: int) -> Array:
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP) + np.uint64(self._state)
        self._state = (self._state + count * _STEP) % (1 << 64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Array = z ^ (z >> np.uint64(31))
        return mixed

    def _unit(self, count: int) -> Array:
        """Above 0 and at most 1."""
        found: Array = ((self._bits(count) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
        return found

    def uniform(self, low: float, high: float, shape: Sequence[int]) -> Array:
        """Evenly between two bounds, float64."""
        found: Array = (low + (high - low) * self._unit(math.prod(shape))).reshape(shape)
        return found

    def normal(self, shape: Sequence[int]) -> Array:
        """From the standard normal distribution, float64 (Box and Muller, 1958)."""
        count = math.prod(shape)
        radius = np.sqrt(-2 * np.log(self._unit(count)))
        found: Array = (radius * np.cos(2 * np.pi * self._unit(count))).reshape(shape)
        return found

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Array:
        """Whole numbers from ``low`` up to and without ``high``, int64."""
        found: Array = low + (self._bits(math.prod(shape)) % np.uint64(high - low)).astype(np.int64)
        return found.reshape(shape)
