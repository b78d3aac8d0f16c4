"""Operations that compute nothing and move numbers to other places."""

from __future__ import annotations

from lstmconvert.frameworks.pytorch.source import call
from lstmconvert.frameworks.pytorch.use import Use
from lstmconvert.frameworks.pytorch.values import Value
from lstmconvert.operations import (
    Crop,
    Flatten,
    Repeat,
    Reshape,
    Reverse,
    Select,
    Transpose,
    UpSample,
    ZeroPad,
)
from lstmconvert.shapes import Shape


def flatten(use: Use, operation: Flatten, shape: Shape) -> Value:
    """All axes but the batch become one."""
    del operation
    x = use.x.last()
    if x.rank == 2:
        return x
    code = f"{x.operand}.unsqueeze(1)" if x.rank == 1 else f"{x.operand}.flatten(1)"
    return Value(code, shape, x.dtype)


def reshape(use: Use, operation: Reshape, shape: Shape) -> Value:
    """Another shape behind the batch."""
    x = use.named(use.x.last())
    sizes = ", ".join(map(str, operation.shape))
    return Value(f"{x.code}.reshape({x.code}.shape[0], {sizes})", shape, x.dtype)


def transpose(use: Use, operation: Transpose, shape: Shape) -> Value:
    """Axes in another order; where only time and features change places nothing is moved."""
    x = use.x
    if operation.permutation == (0, 2, 1):
        return Value(x.code, shape, x.dtype, not x.channels_first)
    x = x.last()
    if operation.permutation == tuple(range(x.rank)):
        return x
    return Value(f"{x.operand}.permute({', '.join(map(str, operation.permutation))})", shape, x.dtype)


def repeat(use: Use, operation: Repeat, shape: Shape) -> Value:
    """(batch, features) as every one of ``count`` steps."""
    x = use.x.last()
    return Value(f"{x.operand}.unsqueeze(1).repeat(1, {operation.count}, 1)", shape, x.dtype)


def crop(use: Use, operation: Crop, shape: Shape) -> Value:
    """A slice."""
    x = use.x.last()
    cuts = [
        f"{before or ''}:{-after if after else ''}" if before or after else ":"
        for before, after in operation.amounts
    ]
    return Value(f"{x.operand}[:, {', '.join(cuts)}]", shape, x.dtype)


def zero_pad(use: Use, operation: ZeroPad, shape: Shape) -> Value:
    """Zeros before and after; torch names the last axis first."""
    x = use.x
    amounts = [n for pair in reversed(operation.amounts) for n in pair]
    if not x.channels_first:
        amounts = [0, 0, *amounts]
    code = call("F.pad", x.code, f"({', '.join(map(str, amounts))})")
    return Value(code, shape, x.dtype, x.channels_first)


def up_sample(use: Use, operation: UpSample, shape: Shape) -> Value:
    """Every step several times."""
    x = use.x
    code = x.operand
    for axis, factor in enumerate(operation.factors, 1):
        if factor != 1:
            code += f".repeat_interleave({factor}, dim={x.axis(axis)})"
    return Value(code, shape, x.dtype, x.channels_first)


def reverse(use: Use, operation: Reverse, shape: Shape) -> Value:
    """One axis the other way round."""
    x = use.x
    return Value(f"{x.operand}.flip({x.axis(operation.axis)})", shape, x.dtype, x.channels_first)


def select(use: Use, operation: Select, shape: Shape) -> Value:
    """One position of an axis."""
    x = use.x.last()
    axis = operation.axis % x.rank
    place = f"[{', '.join([*[':'] * axis, str(operation.index)])}]"
    return Value(f"{x.operand}{place}", shape, x.dtype)
