"""The pickle of a state_dict, written opcode by opcode, as torch itself would write it.

Source: the pickles that ``torch.save`` of torch 2.13 writes for an ordered dictionary of tensors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from lstmconvert.containers.torch_pickle import STORAGES
from lstmconvert.errors import NotRepresentable
from lstmconvert.tensors import Lazy

_KINDS = {dtype: storage for storage, dtype in STORAGES.items()}
_UNTYPED = (
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
)
"""Dtypes that torch has no storages of their own for; their tensors lie on bytes."""


def state_dict(tensors: Mapping[str, Lazy]) -> bytes:
    """An ordered dictionary of row-major tensors, the storage of each called by its number.

    Raises:
        NotRepresentable: when torch has no dtype for a tensor.
    """
    parts = [b"\x80\x02", _name("collections", "OrderedDict"), b")R("]
    for index, (name, tensor) in enumerate(tensors.items()):
        try:
            parts.append(_text(name))
        except UnicodeEncodeError as error:
            raise NotRepresentable("the name of a tensor is no text", place=repr(name)) from error
        parts.append(_tensor(name, str(index), tensor))
    parts.append(b"u.")
    return b"".join(parts)


def optimizer(tensors: Mapping[str, Lazy], groups: Sequence[Mapping[str, object]]) -> bytes:
    """The state_dict of an optimizer: tensors named ``0/exp_avg`` by the number of their parameter.

    Raises:
        NotRepresentable: when torch has no dtype for a tensor.
    """
    state: dict[int, list[bytes]] = {}
    for key, (name, tensor) in enumerate(tensors.items()):
        index, _, slot = name.partition("/")
        state.setdefault(int(index), []).append(_text(slot) + _tensor(name, str(key), tensor))
    slots = b"".join(_number(index) + b"}(" + b"".join(held) + b"u" for index, held in state.items())
    parts = [b"\x80\x02}(", _text("state"), b"}(", slots, b"u", _text("param_groups"), _plain(groups), b"u."]
    return b"".join(parts)


def _plain(value: object) -> bytes:
    """A value of numbers, texts, lists, tuples and dictionaries."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return _number(value)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return _text(value)
        case tuple():
            return b"(" + b"".join(map(_plain, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_plain, value)) + b"e"
        case Mapping():
            return b"}(" + b"".join(_plain(k) + _plain(v) for k, v in value.items()) + b"u"
    raise TypeError(f"a {type(value).__name__} is not written")


def _tensor(name: str, key: str, tensor: Lazy) -> bytes:
    dtype = tensor.dtype.name
    if dtype in _KINDS:
        function, kind, length, last = "_rebuild_tensor_v2", ("torch", _KINDS[dtype]), tensor.size, b""
    elif dtype in _UNTYPED:
        function, kind, length = "_rebuild_tensor_v3", ("torch.storage", "UntypedStorage"), tensor.nbytes
        last = _name("torch", dtype)
    else:
        raise NotRepresentable(
            f"torch has no tensors of the dtype {tensor.dtype}",
            place=name,
            remedy="Choose a dtype that it has with --dtype.",
        )
    storage = b"(" + _text("storage") + _name(*kind) + _text(key) + _text("cpu") + _number(length) + b"tQ"
    steps = []
    step = 1
    for size in reversed(tensor.shape):
        steps.append(step)
        step *= max(size, 1)
    return b"".join(
        [
            _name("torch._utils", function),
            b"(" + storage + _number(0),
            _numbers(tensor.shape) + _numbers(reversed(steps)),
            b"\x89" + _name("collections", "OrderedDict") + b")R" + last + b"tR",
        ]
    )


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(_number(value) for value in values) + b"t"
