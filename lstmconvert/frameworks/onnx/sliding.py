"""ONNX operators that slide a window: convolutions and pooling.

tf2onnx writes a window over time as one over an image of height one; such axes are left out here.

Source: the operators' documentation at onnx.ai, opset 7 to 22.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from lstmconvert.activations import LINEAR
from lstmconvert.frameworks.onnx.arrangement import Atom, Axis, Held, length
from lstmconvert.frameworks.onnx.neighbour_node import Node, Reader, unpacked
from lstmconvert.frameworks.onnx.topology import NotUnderstood
from lstmconvert.operations import (
    Convolution1D,
    Convolution2D,
    Operation,
    Padding,
    Pool,
    Pooling,
    ZeroPad,
)
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class _Window:
    """A window over the axes that matter, numbers in their order.

    Attributes:
        places: the axes of the tensor (batch, channels, ...) that it slides over.
        amounts: zeros before and after; ``None`` where ``mode`` says it.
        mode: ``auto_pad``.
    """

    places: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    amounts: tuple[tuple[int, int], ...]
    mode: str

    @classmethod
    def of(cls, node: Node, x: Held, size: Sequence[int]) -> _Window:
        """The window of a node; axes of length one over which nothing slides are left out."""
        rank = len(size)
        if x.rank != rank + 2:
            raise NotUnderstood(f"its window has {rank} axes, its input {x.rank}")
        strides, dilation = _numbers(node, "strides", rank, 1), _numbers(node, "dilations", rank, 1)
        pads = _numbers(node, "pads", 2 * rank, 0)
        if any(n < 0 for n in pads):
            raise NotUnderstood("it pads by a negative number")
        amounts = tuple(zip(pads[:rank], pads[rank:], strict=True))
        kept = [n for n in range(rank) if x.axes[n + 2] or size[n] != 1 or amounts[n] != (0, 0)]
        if len(kept) not in (1, 2):
            raise NotUnderstood(f"it slides over {len(kept)} axes")

        def chosen(values: Sequence[int]) -> tuple[int, ...]:
            return tuple(values[n] for n in kept)

        mode = str(node.attributes.get("auto_pad", "NOTSET"))
        if mode not in ("NOTSET", "VALID", "SAME_UPPER"):
            raise NotUnderstood(f"its padding {mode} is not known")
        return cls(
            tuple(n + 2 for n in kept),
            chosen(size),
            chosen(strides),
            chosen(dilation),
            tuple(amounts[n] for n in kept) if mode == "NOTSET" else ((0, 0),) * len(kept),
            mode,
        )

    @property
    def span(self) -> tuple[int, ...]:
        """How far the window reaches beyond its first position."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.size, strict=True))

    @property
    def is_padded(self) -> bool:
        """Whether zeros are put on by number."""
        return any(amount != (0, 0) for amount in self.amounts)


def _numbers(node: Node, name: str, count: int, default: int) -> tuple[int, ...]:
    values = tuple(int(n) for n in node.attributes.get(name) or (default,) * count)
    if len(values) != count:
        raise NotUnderstood(f"its {name} has {len(values)} numbers, not {count}")
    return values


def _channels_last(node: Node, x: Held, window: _Window) -> Held:
    """The tensor as a value (batch, axes of the window, channels)."""
    return node.topology.arranged(x, [x.axes[0], *(x.axes[n] for n in window.places), x.axes[1]], node.name)


def _slid(before: Held, x: Held, value: str, window: _Window, padding: Padding, channels: Axis) -> Held:
    """What a window leaves of a channels-last value ``x``, arranged as the tensor ``before`` was."""
    new: list[Axis] = []
    for axis, reach, stride in zip(x.logical[1:-1], window.span, window.strides, strict=True):
        size = length(axis)
        if size is not None:
            size = (size - reach - 1) // stride + 1 if padding is Padding.VALID else -(-size // stride)
        new.append((Atom(size),))
    axes = [x.logical[0], channels, *before.axes[2:]]
    for place, axis in zip(window.places, new, strict=True):
        axes[place] = axis
    return Held(value, (x.logical[0], *new, channels), tuple(axes), x.dtype)


def _padded(node: Node, x: Held, window: _Window) -> tuple[Held, Padding]:
    """The padding as a mode where there is one, else the value with zeros put on."""
    if window.mode == "SAME_UPPER":
        return x, Padding.SAME
    if not window.is_padded:
        return x, Padding.VALID
    if all(stride == 1 for stride in window.strides):
        if window.amounts == tuple((reach // 2, reach - reach // 2) for reach in window.span):
            return x, Padding.SAME
        if window.amounts == ((window.span[0], 0),):
            return x, Padding.CAUSAL
    value = node.topology.call(f"{node.name}/pad", ZeroPad(window.amounts), [x])
    new: list[Axis] = []
    for axis, amount in zip(x.logical[1:-1], window.amounts, strict=True):
        size = length(axis)
        new.append((Atom(None if size is None else size + sum(amount)),))
    return Held.plain(value, (x.logical[0], *new, x.logical[-1]), x.dtype), Padding.VALID


def _conv(node: Node) -> list[Held]:
    node.only("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    kernel = node.weights(1, "kernel")
    before = node.held(0)
    window = _Window.of(node, before, kernel.shape[2:])
    shape = (*kernel.shape[:2], *window.size)
    x, padding = _padded(node, _channels_last(node, before, window), window)
    tensors = {"kernel": kernel.map(lambda a: a.reshape(shape), shape)}
    if node.is_given(2):
        tensors["bias"] = node.weights(2, "bias")
    groups = int(node.attributes.get("group", 1))
    if length(x.logical[-1]) not in (None, groups * kernel.shape[1]):
        raise NotUnderstood(f"{length(x.logical[-1])} channels meet a kernel for {groups * kernel.shape[1]}")
    operation: Operation
    if len(window.size) == 1:
        operation = Convolution1D(window.strides[0], padding, window.dilation[0], groups, LINEAR)
    else:
        operation = Convolution2D(_pair(window.strides), padding, _pair(window.dilation), groups, LINEAR)
    value = node.call(operation, [x], unpacked(f"convolution_{len(window.size)}d", tensors))
    return [_slid(before, x, value, window, padding, (Atom(kernel.shape[0]),))]


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]


_POOL_ATTRIBUTES = (
    *("auto_pad", "ceil_mode", "count_include_pad", "dilations"),
    *("kernel_shape", "pads", "storage_order", "strides"),
)


def _pool(kind: Pool) -> Callable[[Node], list[Held]]:
    def reader(node: Node) -> list[Held]:
        node.only(*_POOL_ATTRIBUTES)
        before = node.held(0)
        window = _Window.of(node, before, _numbers(node, "kernel_shape", before.rank - 2, 1))
        if node.attributes.get("ceil_mode", 0) or any(d != 1 for d in window.dilation):
            raise NotUnderstood("its windows are not plain ones")
        if window.is_padded:
            raise NotUnderstood("its windows reach over the ends")
        same = window.mode == "SAME_UPPER"
        if same and kind is Pool.AVERAGE and node.attributes.get("count_include_pad", 0):
            raise NotUnderstood("its averages count the padding")
        padding = Padding.SAME if same else Padding.VALID
        x = _channels_last(node, before, window)
        value = node.call(Pooling(kind, window.size, window.strides, padding), [x])
        return [_slid(before, x, value, window, padding, x.logical[-1])]

    return reader


SLIDING: Mapping[str, Reader] = MappingProxyType(
    {"Conv": _conv, "MaxPool": _pool(Pool.MAX), "AveragePool": _pool(Pool.AVERAGE)}
)
"""The operators of this module."""
