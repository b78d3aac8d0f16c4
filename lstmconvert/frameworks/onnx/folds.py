"""ONNX operators on known values, worked out without reading them.

Each function takes an ``Operator`` and gives what is known of its outputs, or ``None`` where that is
nothing. Those here make constants and move numbers; ``arithmetic`` has the others.

Source: the operators' documentation at onnx.ai, opset 1 to 22.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.frameworks.onnx.arithmetic import ARITHMETIC, Fold
from lstmconvert.frameworks.onnx.known import (
    UNKNOWN_SHAPE,
    Known,
    Operator,
    Partial,
    Results,
    Spread,
    bounded,
    normal_axes,
    partial,
    reshaped,
    uniform,
    whole,
)
from lstmconvert.tensors import Array, Lazy, same_bits

# Constants.


def _constant(operator: Operator) -> Results:
    (name, value), *others = operator.attributes.items()
    if others or value is None:
        return None
    if name == "value":
        return [value]
    kinds: dict[str, Any] = {"value_float": np.float32, "value_floats": np.float32}
    kinds |= {"value_int": np.int64, "value_ints": np.int64}
    return [Lazy.of(np.array(value, kinds[name]))] if name in kinds else None


def _constant_of_shape(operator: Operator) -> Results:
    given = operator.attributes.get("value")
    value = Lazy.of(np.zeros(1, np.float32)) if given is None else given
    if not isinstance(value, Lazy):
        raise ValueError("its value is no tensor")
    if value.size != 1:
        raise ValueError(f"its value has the shape {value.shape}, not one element")
    scalar = value.map(lambda a: a.reshape(()), ())
    shape = operator.integers(0)
    if shape is None:
        return [Spread(scalar)]
    if any(n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    return [bounded(scalar.map(lambda a: np.broadcast_to(a, shape), shape))]


def _shape(operator: Operator) -> Results:
    known = operator.input(0)
    start, end = operator.attributes.get("start", 0), operator.attributes.get("end")
    if isinstance(known, Lazy):
        return [Lazy.of(np.array(known.shape[start:end], np.int64))]
    # The walk puts what is known of the shape in the place of the value.
    if isinstance(known, Partial) and not known.scalar:
        return [whole(Partial(known.values[start:end]))]
    return [UNKNOWN_SHAPE] if known is UNKNOWN_SHAPE and start == 0 and end is None else None


def _size(operator: Operator) -> Results:
    known = operator.input(0)
    if isinstance(known, Lazy):
        return [Lazy.of(np.array(known.size, np.int64))]
    if not isinstance(known, Partial) or known.scalar:
        return None
    sizes = [n for n in known.values if isinstance(n, int)]
    return [Lazy.of(np.array(math.prod(sizes), np.int64))] if len(sizes) == len(known.values) else None


# Movements.


def _identity(operator: Operator) -> Results:
    return [operator.input(0)]


def _unsqueeze(operator: Operator) -> Results:
    known, axes = operator.input(0), operator.option("axes", 1)
    if axes is None:
        return None
    if isinstance(known, Partial):
        return [Partial(known.values)] if known.scalar and axes in ((0,), (-1,)) else None
    if not isinstance(known, Lazy):
        return [known] if uniform(known) is not None else None
    rank = len(known.shape) + len(axes)
    places = normal_axes(axes, rank)
    sizes = iter(known.shape)
    return [reshaped(known, tuple(1 if axis in places else next(sizes) for axis in range(rank)))]


def _squeeze(operator: Operator) -> Results:
    known, axes = operator.input(0), operator.option("axes", 1)
    if axes is None and operator.is_given(1):
        return None
    if isinstance(known, Partial):
        return [Partial(known.values, scalar=True)] if len(known.values) == 1 and not known.scalar else None
    if not isinstance(known, Lazy):
        return [known] if uniform(known) is not None else None
    shape = known.shape
    places = (
        [n for n, size in enumerate(shape) if size == 1] if axes is None else normal_axes(axes, len(shape))
    )
    if any(shape[axis] != 1 for axis in places):
        raise ValueError(f"squeezes axes {places} of shape {shape}")
    return [reshaped(known, tuple(size for axis, size in enumerate(shape) if axis not in places))]


def _reshape(operator: Operator) -> Results:
    known, target = operator.input(0), operator.option("shape", 1)
    if uniform(known) is not None:
        return [known]
    if isinstance(known, Partial):
        if target in ((-1,), (len(known.values),)):
            return [Partial(known.values)]
        return [Partial(known.values, scalar=True)] if target == () and len(known.values) == 1 else None
    if target is None or not isinstance(known, Lazy):
        return None
    keeps_zero = operator.attributes.get("allowzero", 0)
    shape = [known.shape[n] if size == 0 and not keeps_zero else size for n, size in enumerate(target)]
    if -1 in shape:
        rest = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = known.size // rest if rest else 0
    if any(size < 0 for size in shape) or math.prod(shape) != known.size:
        raise ValueError(f"reshapes {known.shape} to {target}")
    return [reshaped(known, tuple(shape))]


def _flatten(operator: Operator) -> Results:
    known = operator.input(0)
    if not isinstance(known, Lazy):
        return [known] if uniform(known) is not None else None
    axis = operator.attributes.get("axis", 1)
    if not -len(known.shape) <= axis <= len(known.shape):
        raise ValueError(f"axis {axis}")
    axis = axis + len(known.shape) if axis < 0 else axis
    return [reshaped(known, (math.prod(known.shape[:axis]), math.prod(known.shape[axis:])))]


def _transpose(operator: Operator) -> Results:
    known = operator.input(0)
    if not isinstance(known, Lazy):
        return [known] if uniform(known) is not None else None
    order = tuple(operator.attributes.get("perm", range(len(known.shape))[::-1]))
    if sorted(order) != list(range(len(known.shape))):
        raise ValueError(f"order {order} of shape {known.shape}")
    return [known.map(lambda a: a.transpose(order), tuple(known.shape[n] for n in order))]


def _concat(operator: Operator) -> Results:
    parts = operator.inputs
    values = [uniform(part) for part in parts]
    first = values[0] if values else None
    if first is not None and all(value is not None and same_bits(value, first) for value in values):
        return [parts[0]]
    if any(isinstance(part, Partial) for part in parts):
        vectors = [partial(part) for part in parts]
        if any(v is None or v.scalar for v in vectors):
            return None
        return [whole(Partial(tuple(n for v in vectors if v is not None for n in v.values)))]
    arrays = [part for part in parts if isinstance(part, Lazy)]
    if len(arrays) < len(parts) or not arrays:
        return None
    rank = len(arrays[0].shape)
    (axis,) = normal_axes([operator.attributes.get("axis", 1)], rank)
    rests = {(*a.shape[:axis], *a.shape[axis + 1 :]) for a in arrays}
    if len(rests) != 1 or any(len(a.shape) != rank or a.dtype != arrays[0].dtype for a in arrays):
        raise ValueError(f"joins {', '.join(map(str, arrays))} on axis {axis}")
    shape = list(arrays[0].shape)
    shape[axis] = sum(a.shape[axis] for a in arrays)

    def load() -> Array:
        joined = np.empty(shape, arrays[0].dtype)
        at = 0
        for array in arrays:
            to = at + array.shape[axis]
            joined[(slice(None),) * axis + (slice(at, to),)] = array.read()
            at = to
        return joined

    return [bounded(Lazy(tuple(shape), arrays[0].dtype, load))]


def _slice(operator: Operator) -> Results:
    known = operator.input(0)
    if uniform(known) is not None:
        return [known]
    starts, ends = operator.option("starts", 1), operator.option("ends", 2)
    if starts is None or ends is None:
        return None
    axes = operator.option("axes", 3) or tuple(range(len(starts)))
    steps = operator.integers(4) or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise ValueError(f"starts {starts}, ends {ends}, axes {axes}, steps {steps}")
    if (operator.is_given(3) and operator.integers(3) is None) or (
        operator.is_given(4) and operator.integers(4) is None
    ):
        return None
    if isinstance(known, Partial) or known is UNKNOWN_SHAPE:
        return _slice_of_shape(known, starts, ends, axes, steps)
    if not isinstance(known, Lazy):
        return None
    cuts = [slice(None)] * len(known.shape)
    shape = list(known.shape)
    for start, end, axis, step in zip(starts, ends, normal_axes(axes, len(shape)), steps, strict=True):
        cuts[axis] = _python_slice(start, end, step, shape[axis])
        shape[axis] = len(range(*cuts[axis].indices(shape[axis])))
    index = tuple(cuts)
    return [known.map(lambda a: a[index], tuple(shape))]


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    """ONNX clamps where Python would take a very negative end of a backward slice as a position."""
    if step > 0:
        return slice(start, end, step)
    end = end + size if end < 0 else end
    return slice(start, None if end < 0 else end, step)


def _slice_of_shape(
    known: Known | None, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> Results:
    if len(starts) != 1 or axes[0] not in (0, -1):
        return None
    if isinstance(known, Partial):
        if known.scalar:
            return None
        return [whole(Partial(known.values[_python_slice(starts[0], ends[0], steps[0], len(known.values))]))]
    if ends[0] == starts[0] + 1 and steps[0] == 1:
        return [Partial((None,))]
    return None


def _split(operator: Operator) -> Results:
    known = operator.input(0)
    if uniform(known) is not None:
        return [known] * operator.outputs
    if not isinstance(known, Lazy) or (operator.is_given(1) and operator.integers(1) is None):
        return None
    (axis,) = normal_axes([operator.attributes.get("axis", 0)], len(known.shape))
    sizes = operator.option("split", 1)
    if sizes is None:
        count = operator.attributes.get("num_outputs", operator.outputs)
        each = -(-known.shape[axis] // count)
        sizes = tuple(min(each, max(known.shape[axis] - n * each, 0)) for n in range(count))
    if sum(sizes) != known.shape[axis] or min(sizes, default=0) < 0:
        raise ValueError(f"splits axis {axis} of {known.shape} into {sizes}")
    parts: list[Known] = []
    at = 0
    for size in sizes:
        cut = (slice(None),) * axis + (slice(at, at + size),)
        shape = (*known.shape[:axis], size, *known.shape[axis + 1 :])
        parts.append(known.map(lambda a, cut=cut: a[cut], shape))  # type: ignore[misc]
        at += size
    return parts


def _gather(operator: Operator) -> Results:
    known, indices = operator.input(0), operator.array(1)
    if uniform(known) is not None:
        return [known]
    if indices is None or indices.dtype.kind not in "iu":
        return None
    axis = operator.attributes.get("axis", 0)
    if isinstance(known, Partial) or known is UNKNOWN_SHAPE:
        chosen = operator.integers(1)
        if chosen is None or axis not in (0, -1) or len(indices.shape) > 1:
            return None
        values = tuple(known.values[n] if isinstance(known, Partial) else None for n in chosen)
        return [whole(Partial(values, scalar=not indices.shape))]
    if not isinstance(known, Lazy):
        return None
    (axis,) = normal_axes([axis], len(known.shape))
    size = known.shape[axis]
    index = indices.read()
    if index.size and (index.min() < -size or index.max() >= size):
        raise ValueError(f"indices {index.min()} to {index.max()} of axis {axis} of {known.shape}")
    shape = (*known.shape[:axis], *index.shape, *known.shape[axis + 1 :])
    if index.size == 1:
        cut = (slice(None),) * axis + (int(index.reshape(-1)[0]),)
        return [known.map(lambda a: a[cut].reshape(shape), shape)]
    return [bounded(known.map(lambda a: np.take(a, index, axis=axis), shape))]


def _expand(operator: Operator) -> Results:
    known, target = operator.input(0), operator.integers(1)
    if isinstance(known, Spread):
        return [known]
    if not isinstance(known, Lazy):
        return None
    if target is None:
        return [Spread(known)]
    shape = np.broadcast_shapes(known.shape, target)
    return [bounded(known.map(lambda a: np.broadcast_to(a, shape), shape))]


def _tile(operator: Operator) -> Results:
    known = operator.input(0)
    if uniform(known) is not None:
        return [known]
    if not isinstance(known, Lazy):
        return None
    repeats = partial(operator.input(1))
    if repeats is None or repeats.scalar:
        return [Spread(known)] if known.size == 1 else None
    if len(repeats.values) != len(known.shape):
        raise ValueError(f"repeats {repeats.values} of shape {known.shape}")
    counts = tuple(n if isinstance(n, int) else 1 for n in repeats.values)
    if min(counts, default=1) < 0:
        raise ValueError(f"repeats {counts}")
    shape = tuple(size * n for size, n in zip(known.shape, counts, strict=True))
    tiled = bounded(known.map(lambda a: np.tile(a, counts), shape))
    holes = [size for size, n in zip(known.shape, repeats.values, strict=True) if not isinstance(n, int)]
    if not holes or tiled is None:
        return [tiled]
    return [Spread(tiled)] if set(holes) == {1} else None


_MOVEMENTS: Mapping[str, Fold] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Size": _size,
    "Identity": _identity,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
}

FOLDS: Mapping[tuple[str, str], Fold] = MappingProxyType(
    {("", name): fold for name, fold in {**_MOVEMENTS, **ARITHMETIC}.items()}
    | {("com.microsoft", "DequantizeLinear"): ARITHMETIC["DequantizeLinear"]}
)
"""The operators that are worked out, by domain and name."""

TAKES_UNKNOWN = frozenset({"ConstantOfShape", "Expand", "Tile", "Concat"})
"""The operators whose result may be known although an input is not."""
