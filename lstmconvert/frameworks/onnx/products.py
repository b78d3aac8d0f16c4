"""ONNX operators that multiply two tensors of a model, or one with a matrix of any shape, and sum up.

Source: the operators' documentation at onnx.ai, opset 7 to 22.
"""

from __future__ import annotations

import string

from lstmconvert.frameworks.onnx.arrangement import Axis, Held, is_unit, length
from lstmconvert.frameworks.onnx.neighbour_node import Node
from lstmconvert.frameworks.onnx.topology import NotUnderstood
from lstmconvert.operations import Dot, EinsumDense


def product(node: Node, left: Held, right: Held) -> Held:
    """A product of matrices, one pair for each sequence of the batch."""
    if left.rank != 3 or right.rank != 3:
        raise NotUnderstood("its right operand is not a constant, and it is no product of two matrices")
    batch = left.axes[0]
    if not batch or batch != right.axes[0] or left.logical[0] != batch or right.logical[0] != batch:
        raise NotUnderstood("its operands do not have one batch")
    rows, summed, columns = left.axes[1], left.axes[2], right.axes[2]
    sizes = {length(axis) for axis in (summed, right.axes[1])} - {None}
    if len(sizes) > 1 or is_unit(summed) or is_unit(right.axes[1]):
        raise NotUnderstood("its operands do not fit")
    first, a = _oriented(node, left, batch, rows, summed)
    second, b = _oriented(node, right, batch, columns, right.axes[1])
    value = node.call(Dot((a, b)), [first, second])
    kept = [axis for axis in (rows, columns) if not is_unit(axis)]
    return Held(value, (batch, *(kept or [()])), (batch, rows, columns), left.dtype)


def _oriented(node: Node, held: Held, batch: Axis, kept: Axis, summed: Axis) -> tuple[Held, int]:
    """The operand as a value, and which axis of it is summed over."""
    if is_unit(kept):
        return node.topology.arranged(held, [batch, summed], node.name), 1
    if held.logical == (batch, summed, kept):
        return held, 1
    return node.topology.arranged(held, [batch, kept, summed], node.name), 2


def weighted_sum(node: Node, x: Held, axis: int, *, keep: bool) -> Held | None:
    """A sum over an axis of a product of two tensors, of which one has nothing else; ``None`` of others."""
    factors = node.topology.factors(x)
    summed = x.axes[axis]
    if factors is None or is_unit(summed) or x.rank != 3:
        return None
    batch = x.logical[0]
    for weights, values in (factors, factors[::-1]):
        others = [n for n in range(x.rank) if n != axis and values.axes[n] != batch]
        if len(others) != 1 or any(h.logical[0] != batch or h.rank != x.rank for h in (weights, values)):
            continue
        (place,) = others
        alone = is_unit(weights.axes[place]) and not is_unit(values.axes[place])
        if (
            not alone
            or is_unit(weights.axes[axis])
            or is_unit(values.axes[axis])
            or batch not in weights.axes
            or batch not in values.axes
        ):
            continue
        first = node.topology.arranged(weights, [batch, weights.axes[axis]], node.name)
        second, b = _oriented(node, values, batch, values.axes[place], values.axes[axis])
        value = node.call(Dot((1, b)), [first, second])
        axes = [() if n == axis else a for n, a in enumerate(values.axes) if keep or n != axis]
        return Held(value, (batch, values.axes[place]), tuple(axes), x.dtype)
    return None


def einsum(node: Node) -> list[Held]:
    """A contraction with a constant."""
    node.only("equation")
    equation = str(node.attributes.get("equation", "")).replace(" ", "")
    inputs, arrow, result = equation.partition("->")
    left, _, right = inputs.partition(",")
    x, kernel = node.held(0), node.weights(1, "right operand")
    if "..." in left and result.count("...") == 1:
        spare = [letter for letter in string.ascii_letters if letter not in equation]
        dots = "".join(spare[: x.rank - len(left.replace("...", ""))])
        left, result = left.replace("...", dots), result.replace("...", dots)
    if (
        not arrow
        or "." in left + right + result
        or len(set(left)) != x.rank
        or len(right) != len(kernel.shape)
    ):
        raise NotUnderstood(f"its equation {equation!r} is not one of a layer")
    if x.axes[0] != x.logical[0] or not result.startswith(left[0]) or left[0] in right:
        raise NotUnderstood("it does not leave the batch in front")
    x = node.topology.arranged(x, x.axes, node.name)
    sizes: dict[str, Axis] = {
        letter: node.topology.axis(size) for letter, size in zip(right, kernel.shape, strict=True)
    }
    sizes |= dict(zip(left, x.axes, strict=True))
    axes = tuple(sizes[letter] for letter in result)
    value = node.call(EinsumDense(equation), [x], {"kernel": kernel})
    return [Held.plain(value, axes, x.dtype)]
