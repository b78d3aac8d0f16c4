"""Pickles of dictionaries of arrays, read as data: Haiku's parameters, PaddlePaddle's, home-made dumps.

Nothing that a pickle names is run; see ``restricted_pickle``. A tensor's name is the keys that lead to it,
joined by ``/``. ``metadata``:

- ``ignored``: what is no array of numbers, name to description;
- every text that ``write`` added, such as the provenance, under its own key. They stand in a second pickle
  behind the first, which no reader looks at.

Where the file says that several names are of one parameter (PaddlePaddle does), reading one of them makes
sure that the others have the same bits.

Source: pickles of NumPy 1.26 and 2, jax 0.4 to 0.10, dm-haiku 0.0.17, flax 0.12 and paddlepaddle 3.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from lstmconvert.containers import Archive, byte_ranges, nested, restricted_pickle
from lstmconvert.containers.pickle_objects import PLAIN, Constructor, Unknown
from lstmconvert.containers.pickled_arrays import ARRAYS, PickledArray
from lstmconvert.errors import BadFile, ConversionError, NotRepresentable, UnsupportedSource
from lstmconvert.tensors import Array, Lazy, same_bits

NAME = "pickle"
SUFFIXES = (".pkl", ".pickle", ".pdparams")

_PADDLE_NAMES = "StructuredToParameterName@@"
_NOTE = "lstmconvert-metadata"
_MOST_IGNORED = 1000


def probe(path: Path) -> bool:
    """Whether the file begins like a pickle of protocol 2 or later."""
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError:
        return False
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def read(path: Path) -> Archive:
    """The arrays of a pickle; see the module.

    Raises:
        BadFile: when it is damaged or does what no harmless pickle does.
        UnsupportedSource: when it names code, or holds no array.
    """
    size = byte_ranges.file_size(path)
    try:
        with path.open("rb") as file:
            tree = restricted_pickle.load(file, size, _TABLE, leave_large_bytes=True)
            texts = _second(file, size)
        return _archive(path, tree, texts)
    except ConversionError as error:
        raise error.located(file=path) from error.__cause__


def _archive(path: Path, tree: object, texts: Mapping[str, str]) -> Archive:
    one_parameter: object = None
    if isinstance(tree, dict) and _PADDLE_NAMES in tree:
        one_parameter = tree[_PADDLE_NAMES]
        tree = {key: value for key, value in tree.items() if key != _PADDLE_NAMES}
    tensors: dict[str, Lazy] = {}
    ignored: dict[str, str] = {}
    for name, leaf in nested.leaves(tree, _children):
        held = _named_array(leaf)
        lazy = held.lazy(path) if held is not None else None
        if name in tensors:
            raise BadFile("two arrays have one name", place=name[:80])
        if lazy is not None:
            tensors[name or path.stem] = lazy
        elif len(ignored) < _MOST_IGNORED:
            ignored[name] = type(leaf).__name__ if held is None else "an array of other things than numbers"
    if not tensors:
        raise UnsupportedSource(
            "the pickle holds no array of numbers",
            found=", ".join(dict.fromkeys(ignored.values())) or "nothing",
            remedy="Save the weights alone, as a dictionary of NumPy arrays.",
        )
    if isinstance(one_parameter, dict):
        tensors = _checked_against_each_other(tensors, one_parameter)
    return Archive(MappingProxyType(tensors), MappingProxyType({"ignored": ignored, **texts}))


def _second(file: BinaryIO, size: int) -> dict[str, str]:
    """The texts in a second pickle, if ``write`` left one."""
    if size - file.tell() < 2:
        return {}
    try:
        found = restricted_pickle.load(file, size, {})
    except ConversionError:
        return {}
    said = found.get(_NOTE) if isinstance(found, dict) else None
    return {str(key): str(text) for key, text in said.items()} if isinstance(said, dict) else {}


# What is in it.


class _JaxArray:
    """An array of jax, which is one of NumPy inside."""

    def __init__(self, array: PickledArray) -> None:
        self.array = array


def _jax_array(make: object, _arguments: object, state: object, _kind: object = None) -> _JaxArray:
    if make is not ARRAYS["numpy._core.multiarray._reconstruct"] and make is not _OLD_RECONSTRUCT:
        raise BadFile("a pickled array of jax is not one of NumPy inside")
    array = PickledArray()
    array.restore(state)
    return _JaxArray(array)


_OLD_RECONSTRUCT = ARRAYS["numpy.core.multiarray._reconstruct"]
_TABLE: Mapping[str, object] = {
    **PLAIN,
    **ARRAYS,
    "jax._src.array._reconstruct_array": Constructor(_jax_array),
    "jax._src.device_array.reconstruct_device_array": Constructor(_jax_array),
}
_DICTIONARIES = (
    "flax.core.frozen_dict.FrozenDict",
    "haiku._src.data_structures.FlatMapping",
    "haiku._src.data_structures.FlatMap",
)


def _children(node: object) -> Iterable[tuple[object, object]] | None:
    if isinstance(node, Unknown) and node.name in _DICTIONARIES and len(node.arguments) == 1:
        node = node.arguments[0]
    return None if _named_array(node) is not None else nested.plain(node)


def _named_array(leaf: object) -> PickledArray | None:
    """The array that a leaf is; PaddlePaddle's tensors are pairs of a name and an array."""
    if isinstance(leaf, _JaxArray):
        return leaf.array
    if isinstance(leaf, tuple) and len(leaf) == 2 and isinstance(leaf[0], str):
        leaf = leaf[1]
    return leaf if isinstance(leaf, PickledArray) else None


def _checked_against_each_other(
    tensors: Mapping[str, Lazy], parameters: Mapping[object, object]
) -> dict[str, Lazy]:
    groups: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        if isinstance(name, str) and isinstance(parameter, str) and name in tensors:
            groups.setdefault(parameter, []).append(name)
    result = dict(tensors)
    for names in groups.values():
        first = tensors[names[0]]
        for name in names[1:]:
            if (tensors[name].shape, tensors[name].dtype) != (first.shape, first.dtype):
                raise BadFile("two names of one parameter have different arrays", place=f"{names[0]}, {name}")
        for name in names if len(names) > 1 else ():
            result[name] = _checked(name, tensors[name], {n: tensors[n] for n in names if n != name})
    return result


def _checked(name: str, tensor: Lazy, others: Mapping[str, Lazy]) -> Lazy:
    def load() -> Array:
        array = tensor.read()
        for other, twin in others.items():
            if not same_bits(array, twin.read()):
                raise BadFile("two names of one parameter have different numbers", place=f"{name}, {other}")
        return array

    return Lazy(tensor.shape, tensor.dtype, load)


# Writing.


def write(path: Path, archive: Archive) -> None:
    """Write all tensors to the new file ``path``: a dictionary, or one of dictionaries.

    A tensor ``net/lstm/w`` is ``["net/lstm"]["w"]``, as in Haiku's parameters; one without ``/`` lies in the
    outer dictionary.

    Raises:
        NotRepresentable: when a tensor has a dtype that NumPy does not have.
    """
    for name, tensor in archive.tensors.items():
        if tensor.dtype.kind not in "biufc":
            raise NotRepresentable(
                f"NumPy has no dtype {tensor.dtype}", place=name, remedy="Choose another with --dtype."
            )
    texts = {key: text for key, text in archive.metadata.items() if isinstance(text, str)}
    with path.open("xb") as file:
        file.write(b"\x80\x04")
        _write_tree(file, nested.grown(archive.tensors, deepest=2))
        file.write(b".")
        if texts:
            file.write(b"\x80\x04")
            _write_tree(file, {_NOTE: texts})
            file.write(b".")


def _write_tree(file: BinaryIO, tree: Mapping[str, Any]) -> None:
    """``EMPTY_DICT MARK key value ... SETITEMS``, each array as NumPy's own pickles have it."""
    file.write(b"}(")
    for key, value in tree.items():
        file.write(_text(key))
        if isinstance(value, Lazy):
            _write_array(file, value)
        elif isinstance(value, str):
            file.write(_text(value))
        else:
            _write_tree(file, value)
    file.write(b"u")


def _write_array(file: BinaryIO, tensor: Lazy) -> None:
    little = tensor.dtype.newbyteorder("<")
    raw = np.ascontiguousarray(tensor.read().astype(little, copy=False)).reshape(-1).view(np.uint8)
    order = b"<" if tensor.dtype.itemsize > 1 else b"|"
    shape = b"(" + b"".join(_integer(length) for length in tensor.shape) + b"t"
    # The names of NumPy 1, under which NumPy 2 still has both.
    file.write(
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01"
        + shape
        + b"cnumpy\ndtype\n("
        + _text(tensor.dtype.str[1:])
        + b"\x89\x88tR(K\x03"
        + _text(order.decode())
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"\x8e"
        + struct.pack("<Q", raw.size)
    )
    file.write(raw.data)
    file.write(b"tb")


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)
