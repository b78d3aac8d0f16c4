"""What torch puts into its pickles: storages, tensors on them, and the functions that would rebuild them.

Source: ``torch._utils``, ``torch.storage`` and ``torch.serialization`` of torch 1.0 to 2.13; the names that
older releases wrote are here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmconvert.containers.byte_ranges import extent
from lstmconvert.containers.pickle_objects import PLAIN, Constructor, Global, Unknown
from lstmconvert.containers.pickled_arrays import ARRAYS, checked_shape
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.values import dataclass

_DTYPES: Mapping[str, str] = {
    "float64": "float64",
    "double": "float64",
    "float32": "float32",
    "float": "float32",
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "int64": "int64",
    "long": "int64",
    "int32": "int32",
    "int": "int32",
    "int16": "int16",
    "short": "int16",
    "int8": "int8",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "bool": "bool",
    "complex64": "complex64",
    "complex128": "complex128",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e5m2": "float8_e5m2",
    "float8_e4m3fnuz": "float8_e4m3fnuz",
    "float8_e5m2fnuz": "float8_e5m2fnuz",
    "float8_e8m0fnu": "float8_e8m0fnu",
}
"""The dtypes of torch and the names that NumPy or ml_dtypes has for them."""

STORAGES: Mapping[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
"""The storages that have a dtype of their own."""

_QUANTIZED_STORAGES: Mapping[str, str] = {
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}
UNTYPED = "UntypedStorage"


@dataclass(frozen=True, slots=True)
class StorageKind:
    """A class of storages: its name and the dtype of its elements (bytes, where it has none)."""

    name: str
    dtype_name: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype, of ml_dtypes where NumPy has none."""
        return number_dtype(self.dtype_name)


@dataclass(frozen=True, slots=True)
class DtypeName:
    """A dtype of torch, by NumPy's or ml_dtypes' name."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Elements in a row somewhere in the file.

    Attributes:
        kind: its class.
        key: what the file calls it.
        length: how many elements it has.
        begin: how many elements of what the file calls so come before it (views of old releases).
        root_length: how many elements there are under that name in all, ``None`` if that is not said.
    """

    kind: StorageKind
    key: str
    length: int
    begin: int = 0
    root_length: int | None = None


class Tensor:
    """A tensor as the pickle describes it: where in which storage.

    Attributes:
        storage: where its elements are.
        offset: its first element in the storage.
        shape, strides: in elements.
        dtype_name: its dtype, by NumPy's or ml_dtypes' name.
        quantizer: scheme and parameters, when its elements are quantised; else ``None``.
    """

    __slots__ = ("dtype_name", "offset", "quantizer", "shape", "storage", "strides")

    def __init__(
        self,
        storage: Storage,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype_name: str,
        quantizer: object = None,
    ) -> None:
        self.storage = storage
        self.offset = offset
        self.shape = shape
        self.strides = strides
        self.dtype_name = dtype_name
        self.quantizer = quantizer

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype, of ml_dtypes where NumPy has none."""
        return number_dtype(self.dtype_name)

    @property
    def is_row_major(self) -> bool:
        """Whether its elements lie one after another in the order of its indices."""
        step = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != step:
                return False
            step *= length
        return True

    @property
    def nbytes(self) -> int:
        """Size in bytes once read."""
        return math.prod(self.shape) * self.dtype.itemsize


def number_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a name, native byte order."""
    if name.startswith(("bfloat16", "float8")):
        import ml_dtypes

        number: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return number
    return np.dtype(name)


def storage_of(identity: object) -> Storage:
    """The storage that a persistent id stands for.

    Such an id is ``("storage", class, key, device, number of elements)``; older files add where the storage
    is a part of another one.

    Raises:
        BadFile: when it is no such id.
        UnsupportedSource: when the class is not known.
    """
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise BadFile("a pickle refers to objects outside itself that are no storages")
    _, kind, key, device, length, *view = identity
    if isinstance(kind, Global):
        raise UnsupportedSource("a storage is of a class that is not known", found=kind.name[:200])
    sound = isinstance(kind, StorageKind) and isinstance(key, str) and isinstance(device, str)
    if not sound or not _is_length(length):
        raise BadFile("a pickle describes a storage that cannot be", found=repr(identity)[:120])
    if not view or view[0] is None:
        return Storage(kind, key, length)
    if not isinstance(view[0], tuple) or len(view[0]) != 3:
        raise BadFile("a pickle describes a part of a storage that cannot be", found=repr(view)[:120])
    _, begin, part = view[0]
    if not _is_length(begin) or not _is_length(part) or begin + part > length:
        raise BadFile("a pickle describes a part of a storage that cannot be", found=repr(view)[:120])
    return Storage(kind, key, part, begin, length)


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


# ------------------------------------------------------------------------------------------ rebuilding


def _tensor(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    dtype_name: str | None = None,
    quantizer: object = None,
) -> Tensor:
    if not isinstance(storage, Storage):
        raise BadFile("a tensor has no storage")
    if dtype_name is None:
        if storage.kind.name == UNTYPED:
            raise BadFile("a tensor on bytes has no dtype")
        dtype_name = storage.kind.dtype_name
    lengths, steps = checked_shape(shape), checked_shape(strides)
    if len(lengths) != len(steps) or not _is_length(offset):
        raise BadFile("a tensor has strides that do not fit its shape", found=f"{lengths}, {steps}")
    assert isinstance(offset, int)
    made = Tensor(storage, offset, lengths, steps, dtype_name, quantizer)
    width = made.dtype.itemsize
    held = storage.length * storage.kind.dtype.itemsize
    if (offset + extent(lengths, steps)) * width > held:
        raise BadFile(
            "a tensor reaches beyond its storage",
            found=f"shape {list(lengths)}, strides {list(steps)} from element {offset}",
            expected=f"at most {held} bytes",
        )
    return made


def _rebuild_tensor(storage: object, offset: object, shape: object, strides: object) -> Tensor:
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v2(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object = False,
    _hooks: object = None,
    metadata: object = None,
) -> Tensor:
    _check_flags(metadata)
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    dtype: object,
    metadata: object = None,
) -> Tensor:
    _check_flags(metadata)
    if isinstance(dtype, Global):
        raise UnsupportedSource("a tensor has a dtype that is not known", found=dtype.name[:200])
    if not isinstance(dtype, DtypeName):
        raise BadFile("a tensor has no dtype")
    return _tensor(storage, offset, shape, strides, dtype.name)


def _check_flags(metadata: object) -> None:
    """Flags that change what the numbers mean: conjugated or negated views."""
    if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
        raise UnsupportedSource(
            "a tensor is a conjugated or negated view of its storage",
            remedy="Save it after tensor.resolve_conj().resolve_neg().",
        )


def _rebuild_parameter(data: object, _requires_grad: object, _hooks: object, _state: object = None) -> object:
    if not isinstance(data, Tensor | Unknown):
        raise BadFile("a parameter is made of something that is no tensor")
    return data


def _rebuild_quantized(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    quantizer: object,
    _requires_grad: object = False,
    _hooks: object = None,
) -> Tensor:
    return _tensor(storage, offset, shape, strides, quantizer=quantizer)


def _rebuild_from_type(function: object, kind: object, arguments: object, _state: object) -> object:
    """Tensors that carry attributes, and parameters of subclasses that add nothing to the numbers."""
    plain = isinstance(kind, Global) and kind.name in ("torch.Tensor", "torch.nn.parameter.Parameter")
    known = function in _PLAIN_REBUILDERS if isinstance(function, Constructor) else False
    if not plain or not known or not isinstance(arguments, tuple):
        name = kind.name if isinstance(kind, Global) else "something"
        return Unknown(f"torch._tensor._rebuild_from_type_v2 of {name}")
    assert isinstance(function, Constructor)
    return function.function(*arguments)


_REBUILD = {
    "_rebuild_tensor": Constructor(_rebuild_tensor),
    "_rebuild_tensor_v2": Constructor(_rebuild_tensor_v2),
    "_rebuild_tensor_v3": Constructor(_rebuild_tensor_v3),
    "_rebuild_parameter": Constructor(_rebuild_parameter),
    "_rebuild_parameter_with_state": Constructor(_rebuild_parameter),
    "_rebuild_qtensor": Constructor(_rebuild_quantized),
}
_PLAIN_REBUILDERS = tuple(_REBUILD.values())


def _size(lengths: object = ()) -> tuple[int, ...]:
    return checked_shape(lengths)


def _tagged(value: object, _kind: object) -> object:
    """TorchScript: a container with the type of its elements."""
    return value


def _elements(values: object) -> object:
    """TorchScript: a list of one kind of elements."""
    if not isinstance(values, list | tuple):
        raise BadFile("a list is made of something else")
    return list(values)


def _table() -> dict[str, object]:
    table: dict[str, object] = {**PLAIN, **ARRAYS}
    for module in ("torch", "torch.cuda", "torch.storage"):
        for name, dtype in {
            **STORAGES,
            **_QUANTIZED_STORAGES,
            UNTYPED: "uint8",
            "_UntypedStorage": "uint8",
        }.items():
            table[f"{module}.{name}"] = StorageKind(
                UNTYPED if dtype == "uint8" and "Untyped" in name else name, dtype
            )
    table.update({f"torch.{name}": DtypeName(dtype) for name, dtype in _DTYPES.items()})
    table.update({f"torch._utils.{name}": function for name, function in _REBUILD.items()})
    table["torch._tensor._rebuild_from_type_v2"] = Constructor(_rebuild_from_type)
    table["torch.Size"] = Constructor(_size)
    table["torch.jit._pickle.restore_type_tag"] = Constructor(_tagged)
    for kind in ("int", "tensor", "double", "bool"):
        table[f"torch.jit._pickle.build_{kind}list"] = Constructor(_elements)
    return table


TABLE: Mapping[str, object] = _table()
"""Everything that a torch pickle may name and get something for."""


def is_quantized(tensor: Tensor) -> bool:
    """Whether the elements need their quantizer to mean something."""
    return tensor.quantizer is not None or tensor.storage.kind.name in _QUANTIZED_STORAGES
