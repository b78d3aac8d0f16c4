"""Numbers that are none: NaN and infinities among weights."""

from __future__ import annotations

import numpy as np

from lstmconvert.parallel import ahead
from lstmconvert.pieces import cuts
from lstmconvert.tensors import Array, Lazy


def not_finite(array: Array) -> int:
    """How many elements are NaN or infinite."""
    if not array.size or not (array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))):
        return 0
    with np.errstate(all="ignore"):
        # One pass without a copy: neither NaN nor an infinity ever leaves a sum.
        if np.isfinite(np.add.reduce(array, axis=None)):
            return 0
        return int(array.size - np.count_nonzero(np.isfinite(array)))


def count(tensor: Lazy) -> int:
    """``not_finite`` of an array, which is read in pieces where it can be."""
    give = tensor.ranges()
    if give is None:
        return not_finite(np.asarray(tensor.read()))
    ends = cuts(tensor)
    return sum(ahead(lambda n: not_finite(give(*ends[n])), len(ends)))
