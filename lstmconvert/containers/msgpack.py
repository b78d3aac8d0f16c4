"""MessagePack files of arrays, as ``flax.serialization`` writes them.

Read and written by a small reader of our own: the format is a dozen tags, and a general one would read every
array before it could say what there is. A tensor's name is the keys that lead to it, joined by ``/``. What is
no array of numbers is left out. The file has no room for metadata: Flax insists that its tree is the model's.

Source: the MessagePack specification; ``flax/serialization.py`` of flax 0.12 (extension type 1 is an array,
3 a NumPy scalar: shape, name of the dtype, bytes; arrays of more than 1 GiB come in pieces).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from lstmconvert.containers import Archive, byte_ranges, nested
from lstmconvert.errors import BadFile, NotRepresentable
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

NAME = "msgpack"
SUFFIXES = (".msgpack",)

_ARRAY, _SCALAR = 1, 3
_PIECES = "__msgpack_chunked_array__"
_LARGEST_PIECE = 1 << 30
_LONGEST_TEXT = 1 << 20
_MOST_AXES = 32
_DEEPEST = 64
_ML_DTYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_NAMES = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)")
_MAPS = bytes([*range(0x80, 0x90), 0xDE, 0xDF])


def probe(path: Path) -> bool:
    """Whether the whole file is one map with at least one array in it."""
    try:
        with path.open("rb") as file:
            if file.read(1) not in [bytes([tag]) for tag in _MAPS]:
                return False
        return bool(_arrays(path))
    except (OSError, BadFile):
        return False


def read(path: Path) -> Archive:
    """The arrays of a file; see the module.

    Raises:
        BadFile: when it is cut short, damaged, or contradicts itself.
    """
    return Archive(MappingProxyType(_arrays(path)))


def _arrays(path: Path) -> dict[str, Lazy]:
    with path.open("rb") as file:
        reader = _Reader(path, file, byte_ranges.file_size(path))
        tree = reader.value(0)
        if reader.file.tell() != reader.size:
            raise reader.bad("there is more in the file than one value")
    return {
        name: lazy for name, leaf in nested.leaves(tree, _children) if (lazy := _lazy(path, leaf)) is not None
    }


@dataclass(frozen=True, slots=True)
class _Stored:
    """An array where it lies in the file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


def _children(node: object) -> Iterable[tuple[object, object]] | None:
    if isinstance(node, dict) and node.get(_PIECES) is True:
        return None
    return nested.plain(node)


def _lazy(path: Path, leaf: object) -> Lazy | None:
    if isinstance(leaf, _Stored):
        return byte_ranges.lazy(path, leaf.offset, leaf.shape, leaf.dtype)
    return _joined(path, leaf) if isinstance(leaf, dict) else None


def _joined(path: Path, leaf: Mapping[object, object]) -> Lazy:
    """An array that comes in pieces."""
    axes, pieces = leaf.get("shape"), leaf.get("chunks")
    if not isinstance(axes, dict) or not isinstance(pieces, dict):
        raise BadFile("an array in pieces has no shape or no pieces", file=path)
    lengths = [axes.get(str(n)) for n in range(len(axes))]
    held = [pieces.get(str(n)) for n in range(len(pieces))]
    shape = tuple(n for n in lengths if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62)
    stored = [piece for piece in held if isinstance(piece, _Stored)]
    size = sum(math.prod(piece.shape) for piece in stored)
    if len(shape) != len(lengths) or len(stored) != len(held) or not stored or size != math.prod(shape):
        raise BadFile("the pieces of an array do not make its shape", file=path, found=str(shape)[:80])
    dtype = stored[0].dtype
    if any(piece.dtype != dtype for piece in stored):
        raise BadFile("the pieces of an array have several dtypes", file=path)
    lazies = [byte_ranges.lazy(path, piece.offset, piece.shape, piece.dtype) for piece in stored]

    def load() -> Array:
        whole: Array = np.empty(size, dtype.newbyteorder("="))
        at = 0
        for lazy in lazies:
            whole[at : at + lazy.size] = lazy.read().reshape(-1)
            at += lazy.size
        return whole.reshape(shape)

    return Lazy(shape, dtype.newbyteorder("="), load)


class _Reader:
    """Goes through the tags of a file and past the bytes of its arrays."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size

    def bad(self, message: str, found: object = None) -> BadFile:
        return BadFile(message, file=self.path, place=f"byte {self.file.tell()}", found=found)

    def take(self, count: int) -> bytes:
        if count < 0 or count > self.size - self.file.tell():
            raise self.bad("the file is cut short", found=f"{count} more bytes stated")
        data = self.file.read(count)
        if len(data) != count:
            raise self.bad("the file is cut short")
        return data

    def skip(self, count: int) -> int:
        """Go past bytes; gives where they begin."""
        begin = self.file.tell()
        if count < 0 or count > self.size - begin:
            raise self.bad("the file is cut short", found=f"{count} more bytes stated")
        self.file.seek(begin + count)
        return begin

    def number(self, code: str) -> Any:
        return struct.unpack(f">{code}", self.take(struct.calcsize(code)))[0]

    def value(self, depth: int) -> object:
        """The next value: a dictionary, list, text, number or ``_Stored``."""
        if depth > _DEEPEST:
            raise self.bad("values are nested deeper than any tree of weights")
        tag = self.take(1)[0]
        if tag < 0x80 or tag >= 0xE0:
            return tag if tag < 0x80 else tag - 0x100
        if tag < 0x90 or tag in (0xDE, 0xDF):
            return self.map(tag & 0x0F if tag < 0x90 else self.number("H" if tag == 0xDE else "I"), depth)
        if tag < 0xA0 or tag in (0xDC, 0xDD):
            count = tag & 0x0F if tag < 0xA0 else self.number("H" if tag == 0xDC else "I")
            self.check_count(count)
            return [self.value(depth + 1) for _ in range(count)]
        if tag < 0xC0:
            return self.text(tag & 0x1F)
        if tag in _TEXTS:
            return self.text(self.number(_TEXTS[tag]))
        if tag in _BYTES:
            self.skip(self.number(_BYTES[tag]))
            return None
        if tag in _NUMBERS:
            return self.number(_NUMBERS[tag])
        if tag in _EXTENSIONS:
            code = _EXTENSIONS[tag]
            return self.extension(self.number(code) if isinstance(code, str) else code)
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        raise self.bad("the file is damaged", found=f"tag {tag:#x}")

    def check_count(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise self.bad("the file is cut short", found=f"{count} more values stated")

    def map(self, count: int, depth: int) -> dict[object, object]:
        self.check_count(2 * count)
        made: dict[object, object] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int):
                raise self.bad("a key is neither text nor number")
            if key in made:
                raise self.bad("a key is there twice", found=str(key)[:80])
            made[key] = self.value(depth + 1)
        return made

    def text(self, size: int) -> str:
        if size > _LONGEST_TEXT:
            raise self.bad("a text is far too long", found=f"{size} bytes")
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.bad("a text is not UTF-8") from error

    def extension(self, size: int) -> _Stored | None:
        kind = self.take(1)[0]
        if kind not in (_ARRAY, _SCALAR):
            self.skip(size)
            return None
        end = self.file.tell() + size
        if end > self.size:
            raise self.bad("the file is cut short", found=f"{size} more bytes stated")
        if self.take(1) != b"\x93":
            raise self.bad("an array does not say its shape, dtype and bytes")
        shape = self.value(0)
        dtype = self.dtype()
        tag = self.take(1)[0]
        if tag not in _BYTES and tag not in _TEXTS and not 0xA0 <= tag < 0xC0:
            raise self.bad("an array has no bytes")
        length = tag & 0x1F if tag < 0xC0 else self.number({**_BYTES, **_TEXTS}[tag])
        offset = self.skip(length)
        said = shape if isinstance(shape, list) else [None]
        axes = tuple(n for n in said if type(n) is int and 0 <= n < 1 << 62)
        if len(axes) != len(said) or len(axes) > _MOST_AXES:
            raise self.bad("the shape of an array is none", found=repr(shape)[:80])
        if self.file.tell() != end:
            raise self.bad("an array does not end where it says")
        if dtype is None:
            return None
        if length != math.prod(axes) * dtype.itemsize:
            raise self.bad("an array has not as many bytes as its shape needs", found=f"{length} bytes")
        return _Stored(axes, dtype, offset)

    def dtype(self) -> np.dtype[Any] | None:
        """The dtype that a name stands for; ``None`` for what is no number."""
        tag = self.take(1)[0]
        size = tag & 0x1F if 0xA0 <= tag < 0xC0 else None
        if size is None and tag in (0xC4, 0xD9):
            size = self.number("B")
        if size is None:
            raise self.bad("an array has no dtype")
        name = self.take(size).decode("latin-1")
        if name in _ML_DTYPES:
            import ml_dtypes

            special: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
            return special
        # NumPy would take a whole language for the name of a dtype.
        return np.dtype(name).newbyteorder("<") if _NAMES.fullmatch(name) else None


_TEXTS: Mapping[int, str] = {0xD9: "B", 0xDA: "H", 0xDB: "I"}
_BYTES: Mapping[int, str] = {0xC4: "B", 0xC5: "H", 0xC6: "I"}
_NUMBERS: Mapping[int, str] = {
    0xCA: "f", 0xCB: "d", 0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q",
    0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q",
}  # fmt: skip
_EXTENSIONS: Mapping[int, int | str] = {
    0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16, 0xC7: "B", 0xC8: "H", 0xC9: "I",
}  # fmt: skip


# Writing.


def write(path: Path, archive: Archive) -> None:
    """Write all tensors to the new file ``path`` as the tree that their names stand for.

    Metadata is not written: there is no room for it.

    Raises:
        NotRepresentable: when a dtype has no name, or a name is that of a tensor and of a folder.
    """
    for name, tensor in archive.tensors.items():
        if tensor.dtype.kind not in "biufc" and tensor.dtype.name not in _ML_DTYPES:
            raise NotRepresentable(f"Flax has no name for the dtype {tensor.dtype}", place=name)
    with path.open("xb") as file:
        _write_tree(file, nested.grown(archive.tensors))


def _write_tree(file: BinaryIO, tree: Mapping[str, Any]) -> None:
    file.write(_map(len(tree)))
    for key, value in tree.items():
        file.write(_text(key))
        if isinstance(value, Lazy):
            _write_array(file, value)
        else:
            _write_tree(file, value)


def _write_array(file: BinaryIO, tensor: Lazy) -> None:
    flat = np.ascontiguousarray(tensor.read().astype(tensor.dtype.newbyteorder("<"), copy=False)).reshape(-1)
    if flat.nbytes <= _LARGEST_PIECE:
        _write_piece(file, flat, tensor.shape)
        return
    step = max(1, _LARGEST_PIECE // flat.itemsize)
    pieces = [flat[at : at + step] for at in range(0, flat.size, step)]
    file.write(_map(3) + _text(_PIECES) + b"\xc3" + _text("shape") + _map(len(tensor.shape)))
    for n, length in enumerate(tensor.shape):
        file.write(_text(str(n)) + _integer(length))
    file.write(_text("chunks") + _map(len(pieces)))
    for n, piece in enumerate(pieces):
        file.write(_text(str(n)))
        _write_piece(file, piece, piece.shape)


def _write_piece(file: BinaryIO, flat: Array, shape: tuple[int, ...]) -> None:
    axes = bytes([0x90 | len(shape)]) if len(shape) < 16 else b"\xdc" + struct.pack(">H", len(shape))
    head = b"\x93" + axes + b"".join(map(_integer, shape)) + _text(flat.dtype.name)
    head += _sized(flat.nbytes, b"\xc4\xc5\xc6")
    file.write(_sized(len(head) + flat.nbytes, b"\xc7\xc8\xc9") + bytes([_ARRAY]) + head)
    file.write(flat.view(np.uint8).data)


def _sized(size: int, tags: bytes) -> bytes:
    for tag, code, most in zip(tags, "BHI", (1 << 8, 1 << 16, 1 << 32), strict=True):
        if size < most:
            return bytes([tag]) + struct.pack(f">{code}", size)
    raise AssertionError(f"a piece of {size} bytes")


def _map(count: int) -> bytes:
    if count < 16:
        return bytes([0x80 | count])
    return b"\xde" + struct.pack(">H", count) if count < 1 << 16 else b"\xdf" + struct.pack(">I", count)


def _text(text: str) -> bytes:
    data = text.encode("utf-8")
    return (bytes([0xA0 | len(data)]) if len(data) < 32 else _sized(len(data), b"\xd9\xda\xdb")) + data


def _integer(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    for tag, code, most in ((0xCC, "B", 1 << 8), (0xCD, "H", 1 << 16), (0xCE, "I", 1 << 32)):
        if value < most:
            return bytes([tag]) + struct.pack(f">{code}", value)
    return b"\xcf" + struct.pack(">Q", value)
