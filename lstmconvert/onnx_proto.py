"""The messages of onnx.proto, and arrays in them, without the rest of the onnx package.

What converts a file needs the messages alone; ``import onnx`` loads a checker, shape inference and converters
between versions as well, and takes three times as long. So the module that protoc generated for the onnx
package is executed by itself. Whoever imports onnx before or later has the same classes, for protobuf makes
one class for a message. The less common dtypes and forms of data are left to ``onnx.helper`` and
``onnx.numpy_helper``.

Source: onnx.proto, ``onnx.helper`` and ``onnx.numpy_helper`` of onnx 1.23.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.tensors import Array, little_endian

__all__ = [
    "Attribute",
    "AttributeProto",
    "GraphProto",
    "ModelProto",
    "NodeProto",
    "OperatorSetIdProto",
    "TensorProto",
    "ValueInfoProto",
    "array_of",
    "dtype_of",
    "element_type_of",
    "node",
    "tensor_of",
    "value_info",
]

Attribute = int | float | str | Sequence[int] | Sequence[float] | Sequence[str]
"""What an attribute of a node may be given as; a sequence has one element at least."""

_GENERATED = "onnx_ml_pb2"


def _messages() -> ModuleType:
    """The generated module, of whatever release of onnx is installed."""
    package = None if "onnx" in sys.modules else PathFinder.find_spec("onnx")
    folders = None if package is None else package.submodule_search_locations
    found = None if folders is None else PathFinder.find_spec(_GENERATED, list(folders))
    if found is None or found.loader is None:
        return import_module("onnx")
    module = ModuleType(_GENERATED)
    found.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from onnx import (
        AttributeProto,
        GraphProto,
        ModelProto,
        NodeProto,
        OperatorSetIdProto,
        TensorProto,
        TensorShapeProto,
        TypeProto,
        ValueInfoProto,
    )
else:
    _loaded = _messages()
    AttributeProto = _loaded.AttributeProto
    GraphProto = _loaded.GraphProto
    ModelProto = _loaded.ModelProto
    NodeProto = _loaded.NodeProto
    OperatorSetIdProto = _loaded.OperatorSetIdProto
    TensorProto = _loaded.TensorProto
    TensorShapeProto = _loaded.TensorShapeProto
    TypeProto = _loaded.TypeProto
    ValueInfoProto = _loaded.ValueInfoProto

_NUMPY_NAMES: Mapping[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BOOL: "bool",
}
"""The element types that NumPy has itself, whose bytes in ``raw_data`` are those in memory."""
_ELEMENT_TYPES = {np.dtype(name): number for number, name in _NUMPY_NAMES.items()}


def dtype_of(element_type: int) -> np.dtype[np.generic]:
    """The dtype of an element type (``TensorProto.DataType``).

    Raises:
        KeyError: where ONNX has no such type.
    """
    name = _NUMPY_NAMES.get(element_type)
    if name is None:
        from onnx import helper

        name = helper.tensor_dtype_to_np_dtype(element_type)
    dtype: np.dtype[np.generic] = np.dtype(name)
    return dtype


def element_type_of(dtype: np.dtype[np.generic]) -> int:
    """The element type of a dtype.

    Raises:
        ValueError: where ONNX has no such type.
    """
    number = _ELEMENT_TYPES.get(dtype)
    if number is not None:
        return int(number)
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(dtype))


def array_of(tensor: TensorProto) -> Array:
    """The elements of a tensor whose data are in the message.

    Raises:
        ValueError, TypeError, KeyError: when the data do not fit shape or type.
    """
    name = _NUMPY_NAMES.get(tensor.data_type)
    plain = tensor.HasField("raw_data") and tensor.data_location != TensorProto.EXTERNAL
    if name is not None and plain and not tensor.HasField("segment"):
        stored = np.frombuffer(tensor.raw_data, np.dtype(name).newbyteorder("<"))
        return stored.astype(np.dtype(name), copy=False).reshape(tuple(tensor.dims))
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor))


def tensor_of(array: Array, name: str = "") -> TensorProto:
    """A tensor with the elements of an array in it.

    Raises:
        ValueError: where ONNX has no such type.
    """
    number = _ELEMENT_TYPES.get(array.dtype)
    if number is None:
        from onnx import numpy_helper

        return numpy_helper.from_array(array, name)
    raw = little_endian(array).tobytes()
    return TensorProto(dims=array.shape, data_type=number, name=name or None, raw_data=raw)


def node(
    operator: str,
    inputs: Iterable[str],
    outputs: Iterable[str],
    attributes: Mapping[str, Attribute] | None = None,
    *,
    name: str = "",
) -> NodeProto:
    """A node of a standard operator, its attributes in the order of their names.

    Raises:
        ValueError: on an attribute that is a sequence without elements: its kind is not known.
    """
    given = [_attribute(key, value) for key, value in sorted((attributes or {}).items())]
    return NodeProto(op_type=operator, input=inputs, output=outputs, name=name or None, attribute=given)


def _attribute(name: str, value: Attribute) -> AttributeProto:
    """An attribute; its kind is that of the value, and of a sequence that of its elements."""
    if isinstance(value, int | numbers.Integral):
        return AttributeProto(name=name, type=AttributeProto.INT, i=int(value))
    if isinstance(value, float | numbers.Real):
        return AttributeProto(name=name, type=AttributeProto.FLOAT, f=float(value))
    if isinstance(value, str):
        return AttributeProto(name=name, type=AttributeProto.STRING, s=value.encode())
    elements: Sequence[Any] = list(value)
    if not elements:
        raise ValueError(f"attribute {name!r} has no elements")
    if all(isinstance(element, numbers.Integral) for element in elements):
        return AttributeProto(name=name, type=AttributeProto.INTS, ints=elements)
    if all(isinstance(element, str) for element in elements):
        texts = [element.encode() for element in elements]
        return AttributeProto(name=name, type=AttributeProto.STRINGS, strings=texts)
    return AttributeProto(name=name, type=AttributeProto.FLOATS, floats=elements)


def value_info(name: str, element_type: int, shape: Iterable[int | str | None]) -> ValueInfoProto:
    """What a graph says of a tensor: its type and its shape, in which text names a free size."""
    dimensions = [_dimension(size) for size in shape]
    tensor = TypeProto.Tensor(elem_type=element_type, shape=TensorShapeProto(dim=dimensions))
    return ValueInfoProto(name=name, type=TypeProto(tensor_type=tensor))


def _dimension(size: int | str | None) -> TensorShapeProto.Dimension:
    if isinstance(size, str):
        return TensorShapeProto.Dimension(dim_param=size)
    return TensorShapeProto.Dimension(dim_value=size)
