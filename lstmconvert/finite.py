"""Numbers that are none: NaN and infinities among weights."""

from __future__ import annotations

import numpy as np

from lstmconvert.tensors import Array


def not_finite(array: Array) -> int:
    """How many elements are NaN or infinite."""
    if not array.size or not (array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))):
        return 0
    with np.errstate(all="ignore"):
        # One pass without a copy: neither NaN nor an infinity ever leaves a sum.
        if np.isfinite(np.add.reduce(array, axis=None)):
            return 0
        return int(array.size - np.count_nonzero(np.isfinite(array)))
