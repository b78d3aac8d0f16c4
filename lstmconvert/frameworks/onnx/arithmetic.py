"""Arithmetic of known values: done when the result is read, in the dtype that the graph states.

Source: the operators' documentation at onnx.ai, opset 1 to 22.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import onnx_proto
from lstmconvert.frameworks.onnx.known import (
    Known,
    Operator,
    Partial,
    Results,
    Size,
    Spread,
    UnknownShape,
    bounded,
    normal_axes,
    partial,
    reshaped,
    whole,
)
from lstmconvert.tensors import Array, Lazy

Fold = Callable[[Operator], Results]


def _cast(operator: Operator) -> Results:
    known = operator.input(0)
    dtype = onnx_proto.dtype_of(operator.attributes["to"])
    if isinstance(known, Partial | UnknownShape):
        return [known] if dtype.kind in "iu" else None
    return _mapped(known, lambda a: _converted(a, dtype), dtype)


def _converted(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)


def _mapped(known: Known | None, function: Callable[[Array], Array], dtype: Any = None) -> Results:
    """A function of each element by itself."""
    if isinstance(known, Lazy):
        return [known.map(function, known.shape, dtype)]
    if isinstance(known, Spread):
        return [Spread(known.base.map(function, known.base.shape, dtype))]
    return None


def _unary(function: Callable[[Array], Array], dtype: Any = None) -> Callable[[Operator], Results]:
    def fold(operator: Operator) -> Results:
        def apply(array: Array) -> Array:
            with np.errstate(all="ignore"):
                return np.asarray(function(array)).astype(array.dtype if dtype is None else dtype, copy=False)

        return _mapped(operator.input(0), apply, dtype)

    return fold


def _elementwise(function: Callable[..., Array], dtype: Any = None) -> Callable[[Operator], Results]:
    """A function of the elements of two or more inputs that are broadcast against each other."""

    def fold(operator: Operator) -> Results:
        inputs = operator.inputs
        if not inputs or any(known is None for known in inputs):
            return None
        if operator.opset < 7 and operator.attributes.get("axis") is not None:
            return None
        if any(isinstance(known, Partial) for known in inputs):
            return _elementwise_partial(function, inputs)
        bases = [known.base if isinstance(known, Spread) else known for known in inputs]
        arrays = [known for known in bases if isinstance(known, Lazy)]
        if len(arrays) < len(inputs):
            return None
        spread = any(isinstance(known, Spread) for known in inputs)
        if spread and any(array.size != 1 for array in arrays):
            return None
        result = _applied(function, arrays, dtype)
        return [Spread(result) if spread and result is not None else result]

    return fold


def _applied(function: Callable[..., Array], arrays: Sequence[Lazy], dtype: Any) -> Lazy | None:
    shape = np.broadcast_shapes(*(array.shape for array in arrays))
    # Of Where, the condition comes first and the result has the dtype of the others.
    kind = arrays[-1 if function is np.where else 0].dtype if dtype is None else np.dtype(dtype)

    def load() -> Array:
        with np.errstate(all="ignore"):
            result = function(*(array.read() for array in arrays))
        return np.asarray(np.broadcast_to(result, shape)).astype(kind, copy=False)

    return bounded(Lazy(shape, kind, load))


def _elementwise_partial(function: Callable[..., Array], inputs: Sequence[Known | None]) -> Results:
    """Shape arithmetic: an element is known where all that it comes from is."""
    vectors = [_partial_or_flags(known) for known in inputs]
    if any(v is None for v in vectors):
        return None
    parts = [v for v in vectors if v is not None]
    length = max(len(v.values) for v in parts)
    if any(len(v.values) not in (1, length) for v in parts):
        raise ValueError(f"shapes of {[len(v.values) for v in parts]} elements")
    columns = ([v.values[n if len(v.values) > 1 else 0] for v in parts] for n in range(length))
    values = tuple(_of_sizes(function, column) for column in columns)
    return [whole(Partial(values, scalar=all(v.scalar for v in parts)))]


def _of_sizes(function: Callable[..., Array], elements: Sequence[int | Size | None]) -> int | Size | None:
    """A function of lengths of which some are symbols or not known."""
    numbers = [e for e in elements if isinstance(e, int)]
    if function is np.where and isinstance(elements[0], int):
        return elements[1] if elements[0] else elements[2]
    if len(numbers) == len(elements):
        return int(function(*(np.int64(n) for n in numbers)))
    sizes = [e for e in elements if isinstance(e, Size)]
    if len(numbers) + len(sizes) < len(elements):
        return None
    if function is np.multiply and all(n == 1 for n in numbers):
        return Size(tuple(factor for size in sizes for factor in size.factors))
    if function is np.equal and any(n < 0 for n in numbers):
        return 0  # a length is never negative: "where the wanted size is -1, keep the old one"
    return None


def _partial_or_flags(known: Known | None) -> Partial | None:
    if isinstance(known, Lazy) and known.dtype.kind == "b":
        known = known.map(lambda a: a.astype(np.int64), known.shape, np.int64)
    return partial(known)


def _compared(function: Callable[..., Array]) -> Callable[[Operator], Results]:
    fold = _elementwise(function, np.bool_)

    def compare(operator: Operator) -> Results:
        results = fold(operator)
        if results is not None and any(isinstance(known, Partial) for known in operator.inputs):
            # Integers stand for truth values only where some are not known.
            return [
                known.map(lambda a: a.astype(np.bool_), known.shape, np.bool_)
                if isinstance(known, Lazy)
                else known
                for known in results
            ]
        return results

    return compare


def _divide(a: Array, b: Array) -> Array:
    if np.asarray(a).dtype.kind in "iu":
        if np.any(b == 0):
            raise ValueError("an integer is divided by zero")
        return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))  # ONNX rounds towards zero
    return np.asarray(a / b)


def _joined(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def over(*arrays: Array) -> Array:
        result = arrays[0]
        for array in arrays[1:]:
            result = function(result, array)
        return result

    return over


def _reduced(function: Callable[..., Any]) -> Callable[[Operator], Results]:
    def fold(operator: Operator) -> Results:
        known = operator.array(0)
        axes = operator.option("axes", 1)
        if known is None or (axes is None and operator.is_given(1)):
            return None
        if not axes and operator.attributes.get("noop_with_empty_axes", 0):
            return [known]
        places = tuple(normal_axes(axes, len(known.shape)) if axes else range(len(known.shape)))
        keep = bool(operator.attributes.get("keepdims", 1))
        shape = tuple(
            1 if n in places else size for n, size in enumerate(known.shape) if keep or n not in places
        )
        dtype = known.dtype
        return [known.map(lambda a: np.asarray(function(a, axis=places)).reshape(shape).astype(dtype), shape)]

    return fold


def _dequantize(operator: Operator) -> Results:
    """(x - zero_point) * scale, per tensor or along an axis."""
    values, scale, zero = operator.array(0), operator.array(1), operator.array(2)
    if values is None or scale is None or (operator.is_given(2) and zero is None):
        return None
    if operator.attributes.get("block_size", 0):
        return None
    shape = [1] * len(values.shape)
    if scale.size > 1:
        shape[normal_axes([operator.attributes.get("axis", 1)], len(shape))[0]] = scale.size
    return [
        dequantized(
            values, reshaped(scale, tuple(shape)), None if zero is None else reshaped(zero, tuple(shape))
        )
    ]


def dequantized(values: Lazy, scale: Lazy, zero_point: Lazy | None) -> Lazy:
    """(values - zero_point) * scale in the dtype of ``scale``; the two broadcast against ``values``."""

    def load() -> Array:
        # int32 holds every difference of 8 and 16 bit numbers exactly.
        offset = np.int32(0) if zero_point is None else zero_point.read().astype(np.int32)
        return np.asarray((values.read().astype(np.int32) - offset).astype(scale.dtype) * scale.read())

    return Lazy(values.shape, scale.dtype, load)


def _mod(operator: Operator) -> Results:
    """The remainder with the sign of the divisor, or with ``fmod`` of the dividend."""
    function = np.fmod if operator.attributes.get("fmod", 0) else np.mod

    def remainder(a: Array, b: Array) -> Array:
        if np.asarray(a).dtype.kind in "iu" and np.any(b == 0):
            raise ValueError("an integer is divided by zero")
        return np.asarray(function(a, b))

    return _elementwise(remainder)(operator)


ARITHMETIC: Mapping[str, Fold] = MappingProxyType(
    {
        "Add": _elementwise(np.add),
        "Sub": _elementwise(np.subtract),
        "Mul": _elementwise(np.multiply),
        "Div": _elementwise(_divide),
        "Mod": _mod,
        "Pow": _elementwise(np.power),
        "Max": _elementwise(_joined(np.maximum)),
        "Min": _elementwise(_joined(np.minimum)),
        "Sum": _elementwise(_joined(np.add)),
        "Where": _elementwise(np.where),
        "Equal": _compared(np.equal),
        "Less": _compared(np.less),
        "Greater": _compared(np.greater),
        "LessOrEqual": _compared(np.less_equal),
        "GreaterOrEqual": _compared(np.greater_equal),
        "And": _elementwise(np.logical_and, np.bool_),
        "Or": _elementwise(np.logical_or, np.bool_),
        "Xor": _elementwise(np.logical_xor, np.bool_),
        "Not": _unary(np.logical_not, np.bool_),
        "Neg": _unary(np.negative),
        "Abs": _unary(np.abs),
        "Sqrt": _unary(np.sqrt),
        "Reciprocal": _unary(np.reciprocal),
        "Exp": _unary(np.exp),
        "Log": _unary(np.log),
        "Floor": _unary(np.floor),
        "Ceil": _unary(np.ceil),
        "Tanh": _unary(np.tanh),
        "Cast": _cast,
        "DequantizeLinear": _dequantize,
        "ReduceSum": _reduced(np.sum),
        "ReduceProd": _reduced(np.prod),
        "ReduceMean": _reduced(np.mean),
        "ReduceMax": _reduced(np.max),
        "ReduceMin": _reduced(np.min),
        "ReduceL2": _reduced(lambda a, axis: np.sqrt(np.sum(a * a, axis=axis))),
    }
)
"""The operators of this module by name."""
