"""safetensors: a JSON header and bytes; single files, and models in several files with an index.

``metadata`` is the file's own ``__metadata__``, texts by key. Of a model in several files, the index file
or the folder is read; ``metadata`` is then that of all files together.

Source: the format description of safetensors 0.4 to 0.8, which the reader enforces in full: the header is
at most 100 MB, the tensors cover the bytes behind it without gap or overlap.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from json import JSONDecodeError
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource
from lstmconvert.pieces import pieces
from lstmconvert.tensors import Lazy

NAME = "safetensors"
SUFFIXES = (".safetensors", ".safetensors.index.json")
TELLS_LATE = True

_LARGEST_HEADER = 100_000_000
_LARGEST_INDEX = 100_000_000
_LARGEST_ENTRY = 4096
_INDEX = ".safetensors.index.json"
_MOST_AXES = 32
_METADATA = "__metadata__"

_DTYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ML_DTYPES = ("bfloat16", "float8")


def probe(path: Path) -> bool:
    """Whether the file has a safetensors header, or is the index of several such files, or their folder."""
    try:
        if path.is_dir():
            return _index_in(path) is not None
        with path.open("rb") as file:
            head = file.read(9)
            if path.name.endswith(".json"):
                return b'"weight_map"' in head + file.read(1 << 20)
        (size,) = struct.unpack_from("<Q", head)
        return head[8:9] == b"{" and size <= _LARGEST_HEADER
    except (OSError, struct.error):
        return False


def read(path: Path) -> Archive:
    """The tensors of a file, or of all files that an index names; see the module.

    Raises:
        BadFile: when a file is damaged, or the index contradicts its files or leaves their folder.
        UnsupportedSource: when a tensor has a dtype that is not known.
    """
    path = Path(path)
    if path.is_dir():
        index = _index_in(path)
        if index is None:
            raise BadFile("the folder has no index of safetensors files", file=path)
        return _read_several(index)
    if path.name.endswith(".json"):
        return _read_several(path)
    return _read_single(path)


def write(path: Path, archive: Archive) -> None:
    """Write all tensors to the new file ``path``; ``metadata`` has to be texts.

    Raises:
        NotRepresentable: when a tensor has a dtype or a name that the format does not have.
    """
    # Wide numbers first, so that all of them lie on a multiple of their width.
    order = sorted(archive.tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {}
    if archive.metadata:
        for key, text in archive.metadata.items():
            if not isinstance(text, str):
                raise TypeError(f"the metadata {key!r} is no text")
        header[_METADATA] = dict(archive.metadata)
    end = 0
    for name, tensor in order:
        if name == _METADATA or tensor.dtype.name not in _NAMES:
            raise NotRepresentable(
                f"safetensors has no tensors of the dtype {tensor.dtype}"
                if name != _METADATA
                else "safetensors keeps this name for itself",
                place=name,
                remedy="Choose a dtype that it has with --dtype." if name != _METADATA else None,
            )
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    with path.open("xb") as file:
        length = file.write(_packed(header))
        for _, tensor in order:
            file.writelines(pieces(tensor))
        if archive.late:
            header[_METADATA] |= archive.told()
            file.seek(0)
            if file.write(_packed(header)) != length:
                raise AssertionError("a late text has another length than what held its place")


def _packed(header: Mapping[str, Any]) -> bytes:
    """The header with its length before it."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > _LARGEST_HEADER:
        raise NotRepresentable("the names and metadata are larger than a safetensors header may be")
    return struct.pack("<Q", len(text)) + text


# ----------------------------------------------------------------------------------------- single files


def _read_single(path: Path) -> Archive:
    size = byte_ranges.file_size(path)
    if size < 8:
        raise BadFile("the file is too short for a safetensors file", file=path, found=f"{size} bytes")
    (length,) = struct.unpack("<Q", byte_ranges.read_range(path, 0, 8))
    if length > _LARGEST_HEADER or 8 + length > size:
        raise BadFile(
            "the header of the safetensors file is cut short, or far too long",
            file=path,
            found=f"{length} bytes in a file of {size}",
        )
    begin = 8 + length
    try:
        text = byte_ranges.read_range(path, 8, length).decode("utf-8")
        entries, metadata = _Header(text).read()
    except (ValueError, RecursionError) as error:
        raise BadFile("the header of the safetensors file is damaged", file=path, found=str(error)) from error
    except BadFile as error:
        raise error.located(file=path) from error.__cause__
    tensors: dict[str, Lazy] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        shape, dtype, first, last = _entry(name, entry, path)
        ranges.append((first, last, name))
        if begin + last > size:
            raise BadFile("a tensor lies outside the file; it was cut short", file=path, place=name)
        tensors[name] = byte_ranges.lazy(path, begin + first, shape, dtype, place=name)
    end = 0
    for first, last, name in sorted(ranges):
        if first != end:
            raise BadFile("a tensor does not begin where the one before it ends", file=path, place=name)
        end = last
    if begin + end != size:
        raise BadFile("the tensors do not cover the file", file=path, found=f"{end} bytes of {size - begin}")
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


class _Header:
    """The JSON object at the beginning of a file, read entry by entry.

    The JSON of the standard library would first build whatever the text describes, a hundred million
    brackets included.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> tuple[dict[str, object], dict[str, str]]:
        """The entries of the tensors, and the metadata."""
        entries: dict[str, object] = {}
        metadata: dict[str, str] | None = None
        for name in self._names():
            if name == _METADATA and metadata is None:
                metadata = self._texts()
            elif name == _METADATA or name in entries:
                raise BadFile("the header names a tensor twice", place=name[:80])
            else:
                entries[name] = self._value()
        if self._text[self._at :].strip(" "):
            raise BadFile("the header has something behind its end")
        return entries, metadata or {}

    def _names(self) -> Iterator[str]:
        """The keys of the object that begins here; the caller takes each value."""
        self._take("{")
        if self._next() == "}":
            self._at += 1
            return
        while True:
            name = self._string()
            self._take(":")
            yield name
            if self._next() == "}":
                self._at += 1
                return
            self._take(",")

    def _texts(self) -> dict[str, str]:
        if self._next() == "n":
            if self._text[self._at : self._at + 4] != "null":
                raise JSONDecodeError("neither an object nor null", self._text, self._at)
            self._at += 4
            return {}
        texts: dict[str, str] = {}
        for key in self._names():
            if key in texts:
                raise BadFile("the metadata names something twice", place=key[:80])
            texts[key] = self._string()
        return texts

    def _string(self) -> str:
        self._take('"')
        text: str
        text, self._at = scanstring(self._text, self._at, True)
        text.encode("utf-8")  # Raises for half a pair of surrogates.
        return text

    def _value(self) -> object:
        self._next()
        value, length = _DECODER.raw_decode(self._text[self._at : self._at + _LARGEST_ENTRY])
        self._at += length
        return value

    def _next(self) -> str:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise JSONDecodeError(f"expecting {character}", self._text, self._at)
        self._at += 1


_SPACE = re.compile(r"[ \t\r\n]*")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _entry(name: str, entry: object, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int, int]:
    """Shape, dtype, begin and end of a tensor, as its entry in the header says."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadFile(
            "the header does not describe a tensor", file=path, place=name[:80], found=repr(entry)[:80]
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if (
        not _whole_numbers(shape)
        or len(shape) > _MOST_AXES
        or not _whole_numbers(offsets)
        or len(offsets) != 2
    ):
        raise BadFile(
            "the header does not describe a tensor", file=path, place=name[:80], found=repr(entry)[:80]
        )
    dtype = _dtype(entry["dtype"], path, name)
    first, last = offsets
    needed = math.prod(shape) * dtype.itemsize
    if last - first != needed:
        raise BadFile(
            "a tensor has not as many bytes as its shape needs",
            file=path,
            place=name[:80],
            found=f"{last - first} bytes",
            expected=f"{needed} for {entry['dtype']} {shape}",
        )
    return tuple(shape), dtype, first, last


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)


def _dtype(code: object, path: Path, name: str) -> np.dtype[Any]:
    known = _DTYPES.get(code) if isinstance(code, str) else None
    if known is None:
        raise UnsupportedSource(
            "a tensor has a dtype that is not known",
            file=path,
            place=name[:80],
            found=repr(code)[:80],
            expected=", ".join(_DTYPES),
        )
    if known.startswith(_ML_DTYPES):
        import ml_dtypes

        number: np.dtype[Any] = np.dtype(getattr(ml_dtypes, known))
        return number
    return np.dtype(known).newbyteorder("<")


# ---------------------------------------------------------------------------------------- several files


def _index_in(folder: Path) -> Path | None:
    """The one index file of a folder."""
    found = sorted(each for each in folder.iterdir() if each.name.endswith(_INDEX))
    return found[0] if len(found) == 1 else None


def _read_several(path: Path) -> Archive:
    places = _weight_map(path)
    files: dict[str, Archive] = {}
    for file in dict.fromkeys(places.values()):
        # The names that Windows would split are a superset of those that others would.
        if file != PureWindowsPath(file).name or file in ("", ".", ".."):
            raise BadFile("the index names a file outside its folder", file=path, found=repr(file)[:80])
        files[file] = _read_single(path.with_name(file))
    for name, file in places.items():
        if name not in files[file].tensors:
            raise BadFile(
                "a tensor is not in the file that the index names", file=path, place=name, found=file
            )
    for file, archive in files.items():
        for name in archive.tensors:
            if places.get(name) != file:
                raise BadFile(
                    "a file has a tensor that the index does not name", file=path, place=name, found=file
                )
    metadata: dict[str, str] = {}
    for archive in files.values():
        metadata.update(archive.metadata)
    return Archive(
        MappingProxyType({name: files[file].tensors[name] for name, file in places.items()}),
        MappingProxyType(metadata),
    )


def _weight_map(path: Path) -> dict[str, str]:
    size = byte_ranges.file_size(path)
    if size > _LARGEST_INDEX:
        raise BadFile("the index is far too long", file=path, found=f"{size} bytes")
    try:
        text = byte_ranges.read_range(path, 0, size).decode("utf-8")
        said = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadFile("the index is damaged", file=path, found=str(error)) from error
    places = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise BadFile("the index has no weight_map", file=path)
    return places
