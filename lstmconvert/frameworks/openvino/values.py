"""What is known of the values in an IR before it runs: constants, worked out, and where axes went.

Source: operations Const, Convert, Add, Subtract, Multiply, Reshape, Squeeze, Unsqueeze, Transpose, Concat,
Split, VariadicSplit, Broadcast, ShapeOf, Gather, ReduceSum, ReduceMean, ReduceProd and ReverseSequence in
OpenVINO's operation sets 1 to 15.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstmconvert.errors import BadFile
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

BATCH, TIME, FEATURES, DIRECTION, HIDDEN = "batch", "time", "features", "direction", "hidden"


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A constant. ``quantised`` is the integer dtype that it was stored in, ``scale`` what scaled it.

    ``zero`` says that it is known to be all zero, whatever numbers are put into the tensor to follow them.
    """

    tensor: Lazy
    quantised: str = ""
    scale: str = ""
    zero: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """Data of the model: its axes, the value that it is, and what was done to that.

    Attributes:
        axes: its axes in order; of a length of 1 that means nothing, ``"1"``.
        value: the input of the model or the layer that it comes from.
        role: ``input``, ``y``, or ``h`` or ``c`` for a final state.
        width: its features, once directions are joined side by side.
        merge: how directions were joined: ``""``, ``concat``, ``sum``, ``average`` or ``multiply``.
        flipped: whether its time was turned around.
    """

    axes: tuple[str, ...]
    value: str
    role: str
    width: int
    merge: str = ""
    flipped: bool = False


@dataclass(frozen=True, slots=True)
class Sizes:
    """A vector of lengths: numbers, or the names of axes."""

    items: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """A vector over the batch, filled with the length of an axis or with a number."""

    of: int | str


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A constant repeated over the batch: ``rows`` (direction, size); ``zero`` as of ``Known``."""

    rows: Lazy
    zero: bool = False


Value = Known | Flow | Sizes | Filled | Rows | None


def results(layer: Mapping[str, Any], inputs: Sequence[Value]) -> list[Value]:
    """The values of all outputs of a layer that is not recurrent; ``None`` where nothing is known."""
    nothing: list[Value] = [None] * max(1, len(layer["outputs"]))
    if not inputs or any(value is None for value in inputs):
        return nothing
    try:
        if all(isinstance(value, Known) for value in inputs):
            fold = _FOLDS.get(layer["type"])
            return nothing if fold is None else fold(layer, [v for v in inputs if isinstance(v, Known)])
        move = _MOVES.get(layer["type"])
        return nothing if move is None else [move(layer, inputs)]
    except (ValueError, IndexError, KeyError, TypeError, np.exceptions.AxisError) as error:
        raise BadFile(f"{layer['type']} does not fit its inputs: {error}", place=layer["name"]) from error


# Constants.


def _folded(inputs: Sequence[Known], function: Callable[..., Array]) -> Known:
    """What a function of constants gives, worked out when it is asked for; shapes are worked out at once."""
    shape, dtype = _shape_of(function, inputs)
    tensors = [known.tensor for known in inputs]
    first = inputs[0]
    return Known(
        Lazy(shape, dtype, lambda: np.ascontiguousarray(function(*[t.read() for t in tensors]))),
        first.quantised,
        first.scale,
        len(inputs) == 1 and first.zero,
    )


def _shape_of(function: Callable[..., Array], inputs: Sequence[Known]) -> tuple[tuple[int, ...], Any]:
    # Arrays without memory of their own have the shapes of the real ones.
    hollow = [np.broadcast_to(np.ones((), k.tensor.dtype), k.tensor.shape) for k in inputs]
    with np.errstate(all="ignore"):
        result = function(*hollow)
    return result.shape, result.dtype


def _convert(layer: Mapping[str, Any], inputs: Sequence[Known]) -> list[Value]:
    names = {"f32": "float32", "f16": "float16", "f64": "float64", "i64": "int64", "i32": "int32"}
    dtype = names.get(layer["data"].get("destination_type", ""))
    if dtype is None:
        return [None]
    known = _folded(inputs, lambda a: a.astype(dtype))
    source = inputs[0].tensor.dtype
    if source.kind in "iu" and np.dtype(dtype).kind == "f":
        return [Known(known.tensor, source.name)]
    return [known]


def _arithmetic(
    function: Callable[..., Array],
) -> Callable[[Mapping[str, Any], Sequence[Known]], list[Value]]:
    def fold(layer: Mapping[str, Any], inputs: Sequence[Known]) -> list[Value]:  # noqa: ARG001 - all take it
        first, second = inputs
        if not second.quantised:
            scaled = function is np.multiply and bool(first.quantised)
            known = _folded(inputs, function)
            return [
                Known(known.tensor, first.quantised, _granularity(second.tensor) if scaled else first.scale)
            ]
        known = _folded(inputs, function)
        return [Known(known.tensor, first.quantised or second.quantised, first.scale or second.scale)]

    return fold


def _granularity(scale: Lazy) -> str:
    longer = [n for n in scale.shape if n > 1]
    if not longer:
        return "one scale for the tensor"
    return "one scale a row" if len(longer) == 1 else f"scales of shape {scale.shape}"


def _integers(known: Value) -> list[int]:
    if not isinstance(known, Known) or known.tensor.dtype.kind not in "iu" or known.tensor.size > 64:
        raise ValueError("a shape or an axis is not a few integers")
    return [int(n) for n in known.tensor.read().ravel()]


def _target_shape(shape: tuple[int, ...], wanted: list[int], *, special_zero: bool) -> list[int]:
    return [shape[n] if special_zero and size == 0 else size for n, size in enumerate(wanted)]


def _reshape(layer: Mapping[str, Any], inputs: Sequence[Known]) -> list[Value]:
    special = layer["data"].get("special_zero") == "true"
    wanted = _target_shape(inputs[0].tensor.shape, _integers(inputs[1]), special_zero=special)
    return [_folded(inputs[:1], lambda a: a.reshape(wanted))]


def _squeeze(layer: Mapping[str, Any], inputs: Sequence[Known]) -> list[Value]:  # noqa: ARG001 - all take it
    axes = tuple(_integers(inputs[1])) if len(inputs) > 1 else None
    return [_folded(inputs[:1], lambda a: np.squeeze(a, axes))]


def _unsqueeze(layer: Mapping[str, Any], inputs: Sequence[Known]) -> list[Value]:  # noqa: ARG001 - all take it
    axes = tuple(_integers(inputs[1]))
    return [_folded(inputs[:1], lambda a: np.expand_dims(a, axes))]


def _transpose(layer: Mapping[str, Any], inputs: Sequence[Known]) -> list[Value]:  # noqa: ARG001 - all take it
    order = _integers(inputs[1]) or None
    return [_folded(inputs[:1], lambda a: np.transpose(a, order))]


def _concat(layer: Mapping[str, Any], inputs: Sequence[Known]) -> list[Value]:
    axis = int(layer["data"]["axis"])
    return [_folded(inputs, lambda *a: np.concatenate(a, axis))]


def _split(layer: Mapping[str, Any], inputs: Sequence[Known]) -> list[Value]:
    (axis,) = _integers(inputs[1])
    size = inputs[0].tensor.shape[axis]
    if layer["type"] == "Split":
        count = int(layer["data"]["num_splits"])
        if count < 1 or size % count:
            raise ValueError(f"{size} is not {count} equal parts")
        lengths = [size // count] * count
    else:
        lengths = _integers(inputs[2])
        lengths = [size - sum(n for n in lengths if n > 0) if n == -1 else n for n in lengths]
    if sum(lengths) != size or min(lengths) < 0 or len(lengths) > 4096:
        raise ValueError("the parts are not the whole")
    found: list[Value] = []
    start = 0
    for length in lengths:
        found.append(_folded(inputs[:1], _cut(start, length, axis)))
        start += length
    return found


def _cut(start: int, length: int, axis: int) -> Callable[[Array], Array]:
    return lambda a: np.take(a, range(start, start + length), axis)


def _broadcast(layer: Mapping[str, Any], inputs: Sequence[Known]) -> list[Value]:
    shape = _integers(inputs[1])
    if len(inputs) > 2 or layer["data"].get("mode") not in ("numpy", "bidirectional"):
        return [None]
    if any(n < 0 or n > 1 << 24 for n in shape):
        raise ValueError(f"impossible shape {shape}")
    return [_folded(inputs[:1], lambda a: np.broadcast_to(a, np.broadcast_shapes(a.shape, tuple(shape))))]


_FOLDS: Mapping[str, Callable[[Mapping[str, Any], Sequence[Known]], list[Value]]] = {
    "Convert": _convert,
    "Add": _arithmetic(np.add),
    "Subtract": _arithmetic(np.subtract),
    "Multiply": _arithmetic(np.multiply),
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "VariadicSplit": _split,
    "Broadcast": _broadcast,
}


# Where axes go.


def _moved(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:  # noqa: ARG001 - all take it
    flow = inputs[0]
    if not isinstance(flow, Flow):
        return None
    order = _integers(inputs[1])
    if sorted(order) != list(range(len(flow.axes))):
        raise ValueError(f"order {order} of {len(flow.axes)} axes")
    return _with_axes(flow, [flow.axes[n] for n in order])


def _with_axes(flow: Flow, axes: Sequence[str]) -> Flow:
    return replace(flow, axes=tuple(axes))


def _without(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:  # noqa: ARG001 - all take it
    flow = inputs[0]
    if isinstance(flow, Sizes):
        return flow
    if not isinstance(flow, Flow):
        return None
    if len(inputs) < 2:
        return None
    gone = {n % len(flow.axes) for n in _integers(inputs[1])}
    if any(flow.axes[n] != "1" for n in gone):
        return None
    return _with_axes(flow, [axis for n, axis in enumerate(flow.axes) if n not in gone])


def _with_one(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:  # noqa: ARG001 - all take it
    flow = inputs[0]
    if isinstance(flow, Sizes):
        return flow
    if not isinstance(flow, Flow):
        return None
    axes = list(flow.axes)
    new = [n % (len(axes) + len(_integers(inputs[1]))) for n in _integers(inputs[1])]
    for n in sorted(new):
        axes.insert(n, "1")
    return _with_axes(flow, axes)


def _regrouped(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:
    """A reshape that only drops an axis of one element, or joins direction and hidden."""
    flow = inputs[0]
    if isinstance(flow, Sizes):
        return flow
    if not isinstance(flow, Flow):
        return None
    before = [n for n in flow.axes if n != "1"]
    if before[-2:] == [DIRECTION, HIDDEN] and not flow.merge:
        merged = replace(flow, axes=(*before[:-2], FEATURES), merge="concat")
    else:
        merged = replace(flow, axes=tuple(before))
    return merged if _fits(layer, flow, merged, inputs[1]) else None


def _fits(layer: Mapping[str, Any], flow: Flow, merged: Flow, wanted: Value) -> bool:
    """Whether the lengths that a reshape asks for are those of the axes; one may be left to be worked out."""
    items = wanted.items if isinstance(wanted, Sizes) else _integers(wanted)
    if len(items) != len(merged.axes):
        return False
    lengths = dict(zip(flow.axes, layer["incoming"], strict=True))
    lengths[FEATURES] = flow.width
    open_ends = 0
    for n, (item, axis) in enumerate(zip(items, merged.axes, strict=True)):
        kept = item == 0 and layer["data"].get("special_zero") == "true"
        if item == axis or (kept and n < len(flow.axes) and flow.axes[n] == axis):
            continue
        if isinstance(item, int) and item > 0 and lengths[axis] == item:
            continue
        if item != -1:
            return False
        open_ends += 1
    return open_ends <= 1


def _reduced(merge: str) -> Callable[[Mapping[str, Any], Sequence[Value]], Value]:
    def move(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:
        flow = inputs[0]
        if not isinstance(flow, Flow) or flow.merge or layer["data"].get("keep_dims") == "true":
            return None
        axes = [n % len(flow.axes) for n in _integers(inputs[1])]
        if [flow.axes[n] for n in axes] != [DIRECTION]:
            return None
        rest = [FEATURES if axis == HIDDEN else axis for n, axis in enumerate(flow.axes) if n not in axes]
        return replace(flow, axes=tuple(rest), merge=merge, width=flow.width // 2)

    return move


def _turned(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:
    flow, lengths = inputs
    if not isinstance(flow, Flow) or not isinstance(lengths, Filled) or lengths.of != TIME:
        return None
    places = [int(layer["data"][key]) % len(flow.axes) for key in ("batch_axis", "seq_axis")]
    if [flow.axes[n] for n in places] != [BATCH, TIME]:
        return None
    return replace(flow, flipped=not flow.flipped)


def _sizes(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:  # noqa: ARG001 - all take it
    flow = inputs[0]
    return Sizes(tuple(1 if axis == "1" else axis for axis in flow.axes)) if isinstance(flow, Flow) else None


def _picked(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:
    sizes, places = inputs[0], inputs[1]
    if not isinstance(sizes, Sizes) or layer["data"].get("batch_dims", "0") != "0":
        return None
    return Sizes(tuple(sizes.items[n] for n in _integers(places)))


def _joined(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:  # noqa: ARG001 - all take it
    items: list[int | str] = []
    for value in inputs:
        if isinstance(value, Flow | Filled | Rows) or value is None:
            return None
        items += value.items if isinstance(value, Sizes) else _integers(value)
    return Sizes(tuple(items))


def _kept(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:  # noqa: ARG001 - all take it
    value = inputs[0]
    return value if isinstance(value, Sizes | Filled) else None


def _spread(layer: Mapping[str, Any], inputs: Sequence[Value]) -> Value:  # noqa: ARG001 - all take it
    source, shape = inputs[0], inputs[1]
    if len(inputs) > 2 or not isinstance(shape, Sizes):
        return None
    if isinstance(source, Sizes) and len(source.items) == 1 and shape.items == (BATCH,):
        return Filled(source.items[0])
    if not isinstance(source, Known):
        return None
    if source.tensor.dtype.kind in "iu" and source.tensor.size == 1 and shape.items == (BATCH,):
        return Filled(_integers(source)[0])
    if len(shape.items) == 3 and shape.items[0] == BATCH and source.tensor.dtype.kind == "f":
        rows = tuple(n for n in shape.items[1:] if isinstance(n, int))
        whole = (1, *rows)
        if len(rows) == 2 and np.broadcast_shapes(source.tensor.shape, whole) == whole:
            known = _folded([source], lambda a: np.broadcast_to(a, whole).reshape(rows))
            return Rows(known.tensor, source.zero)
    return None


_MOVES: Mapping[str, Callable[[Mapping[str, Any], Sequence[Value]], Value]] = {
    "Transpose": _moved,
    "Squeeze": _without,
    "Unsqueeze": _with_one,
    "Reshape": _regrouped,
    "ReduceSum": _reduced("sum"),
    "ReduceMean": _reduced("average"),
    "ReduceProd": _reduced("multiply"),
    "ReverseSequence": _turned,
    "ShapeOf": _sizes,
    "Gather": _picked,
    "Concat": _joined,
    "Convert": _kept,
    "Broadcast": _spread,
}
