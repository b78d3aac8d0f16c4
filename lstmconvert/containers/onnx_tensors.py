"""Tensors of an ONNX model as lazy arrays: inline, left out of the parsed model, or in a file beside.

Source: onnx.proto of onnx 1.23, ExternalData.md of the ONNX specification.
"""

from __future__ import annotations

import math
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.containers import byte_ranges, onnx_wire
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import Array, Lazy

if TYPE_CHECKING:
    import onnx

MARKER = "lstmconvert.bytes"
"""Key of an external_data entry that stands for bytes left out of a parsed model."""

DATA_FIELDS: tuple[Any, ...] = (
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
"""The fields of a TensorProto that may hold its elements."""


def drop_data(tensor: onnx.TensorProto) -> None:
    """Leave shape and type only."""
    for name in DATA_FIELDS:
        tensor.ClearField(name)
    del tensor.external_data[:]
    tensor.ClearField("data_location")


class TensorReader:
    """Makes lazy arrays of a file's tensors.

    Args:
        path: the file.
        cuts: the byte strings that were left out of the parsed model.
    """

    def __init__(self, path: Path, cuts: list[onnx_wire.Cut]) -> None:
        self._path = path
        self._cuts: list[onnx_wire.Cut | None] = list(cuts)

    def is_elsewhere(self, tensor: onnx.TensorProto) -> bool:
        """Whether the tensor's bytes are not in the parsed model."""
        return bool(tensor.data_location == tensor.EXTERNAL) or any(
            e.key == MARKER for e in tensor.external_data
        )

    def lazy(self, tensor: onnx.TensorProto) -> Lazy:
        """The tensor's array, its bytes still in the file where they are many; once for each tensor.

        Raises:
            BadFile: when the bytes are not there or do not fit.
        """
        shape = tuple(tensor.dims)
        cut = self._cut(tensor)
        if any(size < 0 for size in shape):
            raise BadFile("a tensor has a negative size", found=list(shape))
        dtype, bits = element_dtype(tensor.data_type)
        nbytes = (math.prod(shape) * bits + 7) // 8
        if cut is not None:
            path, offset, found = self._path, cut.start, cut.end - cut.start
        elif tensor.data_location == tensor.EXTERNAL:
            path, offset, found = _external_range(self._path, tensor, nbytes)
        else:
            return _inline(tensor, shape, dtype, nbytes)
        if found != nbytes:
            raise _misfit(found, nbytes, dtype, shape)
        if bits % 8:
            return _packed(path, offset, nbytes, tensor.data_type, shape, dtype)
        return byte_ranges.lazy(path, offset, shape, dtype)

    def _cut(self, tensor: onnx.TensorProto) -> onnx_wire.Cut | None:
        """The bytes that were left out of this tensor; each are asked for once."""
        for entry in tensor.external_data:
            if entry.key == MARKER:
                number = int(entry.value) if entry.value.isdecimal() else -1
                cut = self._cuts[number] if 0 <= number < len(self._cuts) else None
                if cut is None:
                    raise BadFile(
                        "a tensor has an entry of external data that nobody writes", found=entry.key
                    )
                self._cuts[number] = None
                return cut
        return None


def _misfit(found: int, nbytes: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> BadFile:
    return BadFile(
        "a tensor's data do not fit its shape",
        found=f"{found} bytes",
        expected=f"{nbytes} for {dtype} {list(shape)}",
    )


_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}


def element_dtype(data_type: int) -> tuple[np.dtype[Any], int]:
    """NumPy's dtype of an ONNX element type, and how many bits an element has in a file.

    Raises:
        UnsupportedSource: on strings.
        BadFile: on a type that does not exist.
    """
    from lstmconvert.onnx_proto import TensorProto, dtype_of

    if data_type == TensorProto.STRING:
        raise UnsupportedSource("a tensor of strings cannot be read as numbers")
    if data_type == TensorProto.BFLOAT16:
        return _bfloat16(), 16
    try:
        dtype = dtype_of(data_type)
        name = TensorProto.DataType.Name(data_type)
    except (KeyError, ValueError, TypeError) as error:
        raise BadFile("a tensor has an element type that ONNX does not define", found=data_type) from error
    return dtype, _PACKED_BITS.get(name, dtype.itemsize * 8)


def _bfloat16() -> np.dtype[Any]:
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _inline(tensor: onnx.TensorProto, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> Lazy:
    """A tensor that is in the parsed model, in any of the fields that hold data."""
    from lstmconvert.onnx_proto import TensorProto

    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != nbytes:
            raise _misfit(len(tensor.raw_data), nbytes, dtype, shape)
    elif nbytes and not any(len(getattr(tensor, name)) for name in DATA_FIELDS):
        raise BadFile("a tensor has no data", expected=f"{dtype} {list(shape)}")
    own = TensorProto()
    own.CopyFrom(tensor)
    del own.external_data[:]
    return Lazy(shape, dtype, lambda: _decoded(own, shape, dtype))


def _decoded(tensor: onnx.TensorProto, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    from lstmconvert.onnx_proto import array_of

    try:
        if tensor.data_type == tensor.BFLOAT16:  # releases of onnx differ in what they make of it
            bits = (
                np.frombuffer(tensor.raw_data, "<u2")
                if tensor.raw_data
                else np.array(tensor.int32_data, np.uint16)
            )
            array = bits.astype(np.uint16).view(dtype).reshape(shape)
        else:
            array = array_of(tensor)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadFile(
            "a tensor's data do not fit its shape or type",
            place=f"tensor {tensor.name!r}",
            found=str(error),
            expected=f"{dtype} {list(shape)}",
        ) from error
    return array


def _packed(
    path: Path, offset: int, nbytes: int, data_type: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Lazy:
    """A tensor of several elements a byte."""
    from lstmconvert.onnx_proto import TensorProto

    raw = byte_ranges.lazy(path, offset, (nbytes,), np.dtype(np.uint8))

    def load() -> Array:
        tensor = TensorProto(dims=shape, data_type=data_type, raw_data=raw.read().tobytes())
        return _decoded(tensor, shape, dtype)

    return Lazy(shape, dtype, load)


def _external_range(model_path: Path, tensor: onnx.TensorProto, nbytes: int) -> tuple[Path, int, int]:
    """File, offset and size of external data, after making sure that they are the model's own."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = _beside(model_path, location)
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key, "0" if key == "offset" else str(nbytes))
        if not (text.isascii() and text.isdecimal() and len(text) < 20):
            raise BadFile(f"the {key} of external data is not a number", found=repr(text))
        numbers[key] = int(text)
    available = path.stat().st_size
    if numbers["offset"] + numbers["length"] > available:
        raise BadFile(
            f"external data run past the end of {location!r}",
            found=f"{available} bytes",
            expected=f"at least {numbers['offset'] + numbers['length']}",
        )
    return path, numbers["offset"], numbers["length"]


def _beside(model_path: Path, location: str) -> Path:
    """The file of external data, which has to lie in the model's folder or below it."""
    remedy = "Only files in the model's own folder are read; copy the data there."
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    unsafe = not location or "\0" in location or ".." in parts
    if unsafe or PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor:
        raise BadFile("external data lie outside the model's folder", found=repr(location), remedy=remedy)
    folder = model_path.parent.resolve()
    try:
        path = (folder / location).resolve(strict=True)
        regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, RuntimeError) as error:
        raise BadFile(
            "the file of external data is missing",
            found=repr(location),
            remedy="An ONNX model with external data is only whole together with that file.",
        ) from error
    if not path.is_relative_to(folder):
        raise BadFile(
            "a link to external data leads outside the model's folder", found=repr(location), remedy=remedy
        )
    if not regular:
        raise BadFile("the external data are no regular file", found=repr(location))
    return path
