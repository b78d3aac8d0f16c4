"""The shapes of all values of a model, as far as they are known without running it.

``None`` stands for a size that is free. Sources: the same rules that the interpreter runs; a test
compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from lstmconvert import operations as ops
from lstmconvert.canonical import Merge, RecurrentLayer, Returns
from lstmconvert.errors import BadFile
from lstmconvert.gates import Cell
from lstmconvert.model import LARGEST_AXIS, Model, OperationLayer

Size = int | None
Shape = tuple[Size, ...]
Inputs = Sequence[Shape]


def infer(model: Model) -> dict[str, Shape]:
    """The shape of every value that the model's inputs and calls define.

    Raises:
        ValueError: when the topology is not known, or a layer cannot take what it is given.
    """
    if model.calls is None:
        raise ValueError("the topology of the model is not known")
    shapes: dict[str, Shape] = {port.value: port.shape for port in model.inputs}
    for call in model.calls:
        inputs = [shapes[name] for name in call.inputs]
        layer = model.layers[call.layer]
        try:
            if isinstance(layer, RecurrentLayer):
                found = _recurrent(layer, inputs[0])
            else:
                _check_numbers(layer.operation)
                found = _operation(layer.operation, layer, inputs)
            if any(size is not None and not 0 <= size < LARGEST_AXIS for shape in found for size in shape):
                raise ValueError(f"gives values of the shapes {found}")
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise ValueError(f"layer {call.layer!r} and its inputs {inputs} do not fit: {error}") from error
        shapes.update(zip(call.outputs, found, strict=False))
    return shapes


def infer_read(model: Model) -> dict[str, Shape]:
    """As ``infer``, for a model that was read from a file.

    Raises:
        BadFile: when a layer cannot take what it is given.
    """
    try:
        return infer(model)
    except ValueError as error:
        raise BadFile("the layers do not fit each other", found=str(error)[:300]) from error


_POSITIVE = ("stride", "strides", "dilation", "groups", "size", "factors", "count")


def _check_numbers(operation: ops.Operation) -> None:
    """See that whole numbers are such as there can be.

    Raises:
        ValueError: when one is beyond all bounds, or a stride or the like is not positive.
    """
    for option in fields(operation):
        value = getattr(operation, option.name)
        least = 1 if option.name in _POSITIVE else -LARGEST_AXIS
        for number in _whole(value):
            if not least <= number < LARGEST_AXIS:
                raise ValueError(f"{option.name} is {number:.3g}")


def _whole(value: object) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _whole(each)


def _recurrent(layer: RecurrentLayer, x: Shape) -> list[Shape]:
    batch, time, features = x
    if features not in (None, layer.input_size):
        raise ValueError(f"it takes {layer.input_size} features")
    behaviour = layer.sequence
    separate = len(layer.directions) == 2 and behaviour.merge is Merge.SEPARATE
    width = layer.recurrent_size if separate else layer.width
    output: Shape = (batch, time, width) if behaviour.returns is Returns.SEQUENCE else (batch, width)
    states: list[Shape] = [(batch, layer.recurrent_size)]
    if layer.cell is Cell.LSTM:
        states.append((batch, layer.hidden_size))
    outputs = [output, output] if separate else [output]
    return outputs + states * len(layer.directions) if behaviour.return_state else outputs


def _part(layer: OperationLayer, part: str, axis: int) -> Size:
    block = layer.weights.get(part)
    return None if block is None else block.shape[axis]


def _window(size: Size, window: int, stride: int, dilation: int, padding: ops.Padding) -> Size:
    if size is None:
        return None
    if padding is ops.Padding.VALID:
        return max(0, (size - dilation * (window - 1) - 1) // stride + 1)
    return -(-size // stride)


def _convolved(
    x: Shape,
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: ops.Padding,
    features: Size,
) -> Shape:
    sizes = zip(x[1:-1], window, strides, dilation, strict=True)
    return (x[0], *(_window(size, w, s, d, padding) for size, w, s, d in sizes), features)


def _convolution_1d(
    operation: ops.Convolution1D | ops.DepthwiseConvolution1D | ops.SeparableConvolution1D,
    layer: OperationLayer,
    x: Shape,
) -> Shape:
    if isinstance(operation, ops.Convolution1D):
        window, features = _part(layer, "kernel", 2), _part(layer, "kernel", 0)
    elif isinstance(operation, ops.DepthwiseConvolution1D):
        block = layer.weights["kernel"]
        window, features = block.shape[2], block.shape[0] * block.shape[1]
    else:
        window, features = _part(layer, "depthwise_kernel", 2), _part(layer, "pointwise_kernel", 0)
    return _convolved(x, [window or 1], [operation.stride], [operation.dilation], operation.padding, features)


def _broadcast(shapes: Inputs) -> Shape:
    """Axes of length one go in behind the batch, as Keras's merging layers have it."""
    rank = max(len(shape) for shape in shapes)
    padded = [(*shape[:1], *(1,) * (rank - len(shape)), *shape[1:]) for shape in shapes]
    result: list[Size] = []
    for sizes in zip(*padded, strict=True):
        known = [size for size in sizes if size not in (1, None)]
        result.append(known[0] if known else None if None in sizes else 1)
    return tuple(result)


def _concatenated(axis: int, inputs: Inputs) -> Shape:
    result = list(inputs[0])
    if len({len(shape) for shape in inputs}) > 1:
        raise ValueError("they have different numbers of axes")
    sizes = [shape[axis] for shape in inputs]
    result[axis] = None if None in sizes else sum(size for size in sizes if size is not None)
    return tuple(result)


def _reshaped(target: tuple[int, ...], x: Shape) -> Shape:
    total = None if None in x[1:] else math.prod(size for size in x[1:] if size is not None)
    rest = math.prod(size for size in target if size != -1)
    fits = total is None or (total == rest if -1 not in target else rest > 0 and total % rest == 0)
    if target.count(-1) > 1 or not fits:
        raise ValueError(f"they cannot take the shape {target}")
    free = None if total is None else total // max(1, rest)
    return (x[0], *(free if size == -1 else size for size in target))


def _dot(operation: ops.Dot, inputs: Inputs) -> Shape:
    first, second = inputs
    a, b = operation.axes
    left = [size for axis, size in enumerate(first) if axis != a % len(first)]
    right = [size for axis, size in enumerate(second) if axis not in (0, b % len(second))]
    joined = (*left, *right)
    return joined if len(joined) > 1 else (*joined, 1)


def _einsum(equation: str, layer: OperationLayer, x: Shape) -> Shape:
    """Letters of the output, sized by those of the input and the kernel; ``...`` stands for leading axes."""
    inputs, output = equation.replace(" ", "").split("->")
    first, second = inputs.split(",")
    sizes: dict[str, Size] = {}
    kernel = layer.weights["kernel"].shape
    sizes.update(zip(second.replace("...", ""), kernel, strict=False))
    letters = first.replace("...", "")
    lead: Shape = ()
    if "..." in first:
        before = first.split("...")[0]
        extra = len(x) - len(letters)
        lead = x[len(before) : len(before) + extra]
        sizes.update(zip(letters, (*x[: len(before)], *x[len(before) + extra :]), strict=False))
    else:
        sizes.update(zip(letters, x, strict=False))
    result: list[Size] = []
    for piece in (part for part in _pieces(output)):
        result += list(lead) if piece == "..." else [sizes.get(piece)]
    return tuple(result)


def _pieces(text: str) -> list[str]:
    before, dots, after = text.partition("...")
    return [*before, *([dots] if dots else []), *after]


def _convolutional_lstm(operation: ops.ConvolutionalLstm, layer: OperationLayer, x: Shape) -> list[Shape]:
    kernel = layer.weights["kernel"].shape
    filters = kernel[-1] // 4
    step = _convolved(
        (x[0], *x[2:]),
        kernel[: operation.rank],
        operation.strides,
        operation.dilation,
        operation.padding,
        filters,
    )
    output: Shape = (x[0], x[1], *step[1:]) if operation.return_sequences else step
    return [output, step, step] if operation.return_state else [output]


_SAME = (
    ops.BatchNormalization,
    ops.LayerNormalization,
    ops.GroupNormalization,
    ops.Normalization,
    ops.Rescaling,
    ops.Identity,
    ops.Activate,
    ops.ClampedRelu,
    ops.Clip,
    ops.ParametricRelu,
    ops.Reverse,
    ops.Cast,
)


def _operation(operation: ops.Operation, layer: OperationLayer, inputs: Inputs) -> list[Shape]:
    x = inputs[0]
    if isinstance(operation, ops.GroupNormalization) and (x[operation.axis] or 0) % operation.groups:
        raise ValueError(f"{x[operation.axis]} features are no {operation.groups} groups")
    if isinstance(operation, _SAME):
        return [x]
    match operation:
        case ops.Dense():
            if x[-1] not in (None, _part(layer, "kernel", 1)):
                raise ValueError(f"it takes {_part(layer, 'kernel', 1)} features")
            return [(*x[:-1], _part(layer, "kernel", 0))]
        case ops.EinsumDense():
            return [_einsum(operation.equation, layer, x)]
        case ops.Embedding():
            return [(*x, _part(layer, "embeddings", 1)), x]
        case ops.Masking():
            return [x, x[:-1]]
        case ops.ValidSteps():
            return [inputs[1][:2]]
        case ops.Convolution1D() | ops.DepthwiseConvolution1D() | ops.SeparableConvolution1D():
            return [_convolution_1d(operation, layer, x)]
        case ops.Convolution2D():
            kernel = layer.weights["kernel"].shape
            window, padding = kernel[2:], operation.padding
            return [_convolved(x, window, operation.strides, operation.dilation, padding, kernel[0])]
        case ops.ConvolutionalLstm():
            return _convolutional_lstm(operation, layer, x)
        case ops.Pooling():
            ones = (1,) * len(operation.size)
            return [_convolved(x, operation.size, operation.strides, ones, operation.padding, x[-1])]
        case ops.GlobalPooling():
            return [(x[0], *((1,) * operation.rank if operation.keep_axes else ()), x[-1])]
        case ops.Combine():
            return [_broadcast(inputs)]
        case ops.Concatenate():
            return [_concatenated(operation.axis, inputs)]
        case ops.Dot():
            return [_dot(operation, inputs)]
        case ops.TimeDistributed():
            found = _operation(operation.inner, layer, [(shape[0], *shape[2:]) for shape in inputs])
            return [(shape[0], x[1], *shape[1:]) for shape in found]
        case ops.Attention() | ops.AdditiveAttention() | ops.MultiHeadAttention():
            return _attention(operation, layer, inputs)
        case _:
            return [_moved(operation, x)]


def _moved(operation: ops.Operation, x: Shape) -> Shape:
    match operation:
        case ops.Flatten():
            return _reshaped((-1,), x)
        case ops.Reshape():
            return _reshaped(operation.shape, x)
        case ops.Transpose():
            if sorted(operation.permutation) != list(range(len(x))):
                raise ValueError(f"{operation.permutation} is no permutation of its axes")
            return tuple(x[axis] for axis in operation.permutation)
        case ops.Repeat():
            return (x[0], operation.count, *x[1:])
        case ops.Select():
            axis, size = operation.axis % len(x), x[operation.axis]
            if size is not None and not -size <= operation.index < size:
                raise ValueError(f"there is no place {operation.index} on the axis")
            return (*x[:axis], *x[axis + 1 :])
        case ops.Crop():
            return _each(x, operation.amounts, lambda size, pair: size - pair[0] - pair[1])
        case ops.ZeroPad():
            return _each(x, operation.amounts, lambda size, pair: size + pair[0] + pair[1])
        case ops.UpSample():
            return _each(x, operation.factors, lambda size, factor: size * factor)
        case _:
            raise ValueError(f"the shape of {type(operation).__name__} is not known")


def _each(x: Shape, amounts: Sequence[Any], function: Callable[[int, Any], int]) -> Shape:
    inner = zip(x[1 : 1 + len(amounts)], amounts, strict=True)
    changed = (None if size is None else function(size, amount) for size, amount in inner)
    return (x[0], *changed, *x[1 + len(amounts) :])


def _attention(
    operation: ops.Attention | ops.AdditiveAttention | ops.MultiHeadAttention,
    layer: OperationLayer,
    inputs: Inputs,
) -> list[Shape]:
    query, value = inputs[0], inputs[1]
    if isinstance(operation, ops.MultiHeadAttention):
        width, heads = _part(layer, "output_kernel", 0), _part(layer, "query_kernel", 0)
        scores: Shape = (query[0], heads, query[1], value[1])
    else:
        width, scores = value[-1], (*query[:-1], value[-2])
    output: Shape = (*query[:-1], width)
    return [output, scores] if operation.return_scores else [output]


def dtypes(model: Model) -> Mapping[str, str]:
    """NumPy's name of the dtype of every value: masks are ``bool``, the rest as the weights or inputs are."""
    found: dict[str, str] = {port.value: port.dtype for port in model.inputs}
    floating = {str(lazy.dtype) for layer in model.layers.values() if isinstance(layer, OperationLayer)
                for lazy in layer.weights.values()}  # fmt: skip
    floating |= {str(layer.dtype) for layer in model.recurrent.values()}
    usual = next(iter(floating)) if len(floating) == 1 else "float32"
    for call in model.calls or ():
        layer = model.layers[call.layer]
        operation = layer.operation if isinstance(layer, OperationLayer) else None
        kinds = {found[name] for name in call.inputs}
        for index, name in enumerate(call.outputs):
            if isinstance(operation, ops.Cast):
                found[name] = operation.dtype
            elif _gives_mask(operation, index) or kinds == {"bool"}:
                found[name] = "bool"
            else:
                found[name] = usual
    return found


def _gives_mask(operation: ops.Operation | None, index: int) -> bool:
    """Whether a result of an operation is a mask that it makes."""
    if isinstance(operation, ops.ValidSteps):
        return True
    return isinstance(operation, (ops.Embedding, ops.Masking)) and index == 1
