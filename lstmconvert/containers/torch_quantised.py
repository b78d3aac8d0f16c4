"""Quantised tensors of torch: what their elements mean, and the numbers that they stand for.

Source: ``torch._utils._rebuild_qtensor`` and ``torch.Tensor.dequantize`` of torch 1.13 to 2.13.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lstmconvert.containers.pickle_objects import Global
from lstmconvert.containers.torch_pickle import Tensor
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

_LARGEST_SCALE = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Quantizer:
    """What the elements of a quantised tensor mean: ``(element - zero_point) * scale``.

    Attributes:
        scale, zero_point: a number for the whole tensor, or a vector with one number for each index of
            ``axis``.
        axis: ``None`` where there is one scale for all.
    """

    scale: float | Tensor
    zero_point: int | Tensor
    axis: int | None

    @property
    def granularity(self) -> str:
        """What has a scale of its own, in words."""
        if self.axis is None:
            return "one scale for the tensor"
        return "one scale a row" if self.axis == 0 else f"one scale for each index of axis {self.axis}"


def quantizer_of(tensor: Tensor) -> Quantizer:
    """The quantizer of a quantised tensor.

    Raises:
        BadFile: when it does not fit the tensor.
        UnsupportedSource: when its scheme is not known.
    """
    said = tensor.quantizer
    scheme = said[0] if isinstance(said, tuple) and said else None
    name = scheme.name if isinstance(scheme, Global) else ""
    if isinstance(said, tuple) and name == "torch.per_tensor_affine" and len(said) == 3:
        _, scale, zero_point = said
        sound = isinstance(scale, float) and isinstance(zero_point, int)
        if sound and 0 <= scale <= _LARGEST_SCALE and abs(zero_point) < 1 << 31:
            return Quantizer(scale, zero_point, None)
    elif isinstance(said, tuple) and name == "torch.per_channel_affine" and len(said) == 4:
        _, scales, zeros, axis = said
        rank = len(tensor.shape)
        if (
            isinstance(scales, Tensor)
            and isinstance(zeros, Tensor)
            and isinstance(axis, int)
            and axis in range(rank)
        ):
            wanted = (tensor.shape[axis],)
            if scales.shape == zeros.shape == wanted and zeros.quantizer is scales.quantizer is None:
                return Quantizer(scales, zeros, axis)
    else:
        raise UnsupportedSource(
            "the tensor is quantised by a scheme that is not read",
            found=name or "no scheme",
            expected="per_tensor_affine or per_channel_affine",
            remedy="Save the model before quantisation, or tensor.dequantize() in its place.",
        )
    raise BadFile("a tensor has scales that do not fit it", found=f"shape {list(tensor.shape)}")


def dequantised(elements: Lazy, quantizer: Quantizer, read: Callable[[Tensor], Lazy]) -> Lazy:
    """(elements - zero point) * scale in float32, with the bits of ``torch.Tensor.dequantize``.

    Args:
        elements: the whole numbers.
        quantizer: what they mean.
        read: gives the numbers of a tensor, for scales that are one.
    """
    column = [1] * len(elements.shape)
    if quantizer.axis is not None:
        column[quantizer.axis] = elements.shape[quantizer.axis]

    def numbers(value: float | Tensor, dtype: type[np.generic]) -> Callable[[], Array]:
        if isinstance(value, Tensor):
            lazy = read(value)
            return lambda: lazy.read().reshape(column).astype(dtype)
        return lambda: np.full(column, value, dtype)

    # One scale is rounded to float32 before it multiplies, several are not.
    scale = numbers(quantizer.scale, np.float32 if quantizer.axis is None else np.float64)
    zero_point = numbers(quantizer.zero_point, np.int64)

    def load() -> Array:
        offset = elements.read().astype(np.int64) - zero_point()
        with np.errstate(all="ignore"):  # scales that are no numbers give elements that are none
            return np.asarray((offset.astype(np.float32) * scale()).astype(np.float32))

    return Lazy(elements.shape, np.dtype(np.float32), load)
