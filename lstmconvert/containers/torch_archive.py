"""torch's own files: state_dicts and checkpoints (zip, or the format before 1.6), and TorchScript archives.

Read without torch, and without running anything: see ``restricted_pickle``. The tensors keep the names of
the state_dict, or of a TorchScript module's attributes. Keys of ``metadata``:

- ``form``: ``"zip"``, ``"legacy"`` or ``"torchscript"``;
- ``state_dict``: the keys that lead to the state_dict, joined by dots; empty when it is the whole file;
- ``ignored``: what else the file holds (optimizer state, vocabularies, ...), key to description;
- ``shared``: groups of names whose tensors are the same elements;
- ``module_versions``: names of modules to the version of their state_dict, where the file has them;
- ``modules``: of TorchScript, path to ``torchscript.Module`` (class, settings, names of its tensors);
- ``constants``: of TorchScript, how many tensors its code uses that belong to no module;
- ``quantised``: names of tensors that were dequantised to float32, to the dtype of the stored elements and
  what has a scale of its own;
- every text that ``write`` added, such as the provenance, under its own key.

Source: torch's ``torch/serialization.py``, ``torch/csrc/jit/serialization`` and ``caffe2/serialize``, and
the files that torch 1.0 to 2.13 writes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal

import numpy as np

from lstmconvert.containers import (
    Archive,
    byte_ranges,
    restricted_pickle,
    state_dicts,
    torch_packed,
    torch_pickle,
    torch_quantised,
    torchscript,
    zip_reader,
)
from lstmconvert.containers.pickle_objects import Global, Unknown
from lstmconvert.containers.pickled_arrays import PickledArray
from lstmconvert.containers.torch_pickle import Storage, Tensor
from lstmconvert.containers.zip_reader import Member
from lstmconvert.errors import BadFile, ConversionError, UnsupportedSource
from lstmconvert.tensors import Lazy

NAME = "torch_archive"
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".jit")
TELLS_LATE = True

_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""The opcode of the long integer 0x1950a86a20f9469cfc6c, which the format before zip begins with."""
_LEGACY_PROTOCOL = 1001
_LARGEST_PICKLE = 1 << 30
_LARGEST_CODE = 16 << 20
_LARGEST_TEXT = 64 << 20
_EXTRA = "extra/"
_ALIGNMENT = 64
_GROWTH, _ALWAYS_ALLOWED = 64, 64 << 20
"""How many times the bytes of its storages the tensors of a file may have together, and in any case."""

Place = Callable[[int, tuple[int, ...], "np.dtype[Any]", tuple[int, ...] | None], Lazy]
"""Makes the array of a storage: from offset in bytes, shape, dtype and strides."""


def probe(path: Path) -> bool:
    """Whether the file is one of torch's, or a zip archive too damaged to say what it is."""
    try:
        with path.open("rb") as file:
            if _LEGACY_MAGIC in file.read(32):
                return True
        if not zip_reader.is_zip(path):
            return False
        names = zip_reader.members(path)
    except OSError:
        return False
    except (BadFile, UnsupportedSource):
        return True
    return any(name.rpartition("/")[2] in ("data.pkl", "archive_format") for name in names)


def read(path: Path) -> Archive:
    """The tensors of a file; see the module.

    Raises:
        BadFile: when it is damaged or unsafe.
        UnsupportedSource: when it is a whole pickled module, has no state_dict, or names code in its pickle.
    """
    path = Path(path)
    try:
        return _read_zip(path) if zip_reader.is_zip(path) else _read_legacy(path)
    except ConversionError as error:
        raise error.located(file=path) from error.__cause__


def read_optimizer(path: Path) -> Archive | None:
    """The state_dict of the optimizer in a checkpoint, or ``None`` if there is none.

    The tensors are named ``0/exp_avg`` and so on, by the number of the parameter. The metadata has
    ``param_groups``, as they are in the file, and ``numbers``: what was kept as a number by such a name.

    Raises:
        BadFile: when the file is damaged or unsafe.
        UnsupportedSource: in the format before torch 1.6.
    """
    path = Path(path)
    try:
        if not zip_reader.is_zip(path):
            raise UnsupportedSource(
                "optimizer state in torch's format before 1.6 is not read",
                remedy="Load the file with torch and save it again.",
            )
        made, storages = _made(zip_reader.members(path))
        found = state_dicts.optimizer(made)
        if found is None:
            return None
        values: dict[str, object] = {}
        numbers: dict[str, float] = {}
        for index, slots in found["state"].items():
            for slot, value in slots.items() if isinstance(slots, dict) else ():
                if isinstance(value, bool | int | float):
                    numbers[f"{index}/{slot}"] = value
                elif value is not None:
                    values[f"{index}/{slot}"] = value
        tensors, _ = _lazies(values.items(), storages.place, storages.total)
    except ConversionError as error:
        raise error.located(file=path) from error.__cause__
    return Archive(tensors, {"param_groups": found["param_groups"], "numbers": numbers})


def write_optimizer(path: Path, archive: Archive) -> None:
    """Write the state_dict of an optimizer, as ``read_optimizer`` gives it, for ``torch.load``."""
    from lstmconvert.containers import torch_pickle_writing
    from lstmconvert.containers.zip_writer import ZipWriter

    pickle = torch_pickle_writing.optimizer(archive.tensors, archive.metadata["param_groups"])
    with ZipWriter(path, alignment=_ALIGNMENT) as target:
        target.add("archive/data.pkl", pickle)
        target.add("archive/byteorder", b"little")
        for index, tensor in enumerate(archive.tensors.values()):
            target.add_array(f"archive/data/{index}", tensor)
        target.add("archive/version", b"3\n")


def write(path: Path, archive: Archive) -> None:
    """Write all tensors to the new file ``path`` as an ordered dictionary that ``torch.load`` reads.

    Texts of the metadata go to members of their own.

    Raises:
        NotRepresentable: when torch has no dtype for a tensor.
    """
    from lstmconvert.containers import torch_pickle_writing
    from lstmconvert.containers.zip_writer import ZipWriter

    pickle = torch_pickle_writing.state_dict(archive.tensors)
    root = "archive/"
    with ZipWriter(path, alignment=_ALIGNMENT) as target:
        target.add(f"{root}data.pkl", pickle)
        target.add(f"{root}.format_version", b"1")
        target.add(f"{root}.storage_alignment", str(_ALIGNMENT).encode())
        target.add(f"{root}byteorder", b"little")
        for index, tensor in enumerate(archive.tensors.values()):
            target.add_array(f"{root}data/{index}", tensor)
        target.add(f"{root}version", b"3\n")
        for key, text in {**archive.metadata, **archive.told()}.items():
            if not isinstance(text, str) or not re.fullmatch(r"[\w.-]*\w[\w.-]*", key):
                raise TypeError(f"the metadata {key!r} is no text")
            target.add(f"{root}{_EXTRA}{key}", text.encode())


# ---------------------------------------------------------------------------------------- zip archives


def _read_zip(path: Path) -> Archive:
    members = zip_reader.members(path)
    root = _root(members)
    made, storages = _made(members)
    extra = _texts(members, root)
    if f"{root}constants.pkl" in members:
        return _read_script(made, members, root, storages, extra)
    return _checkpoint(made, storages.place, extra, "zip", storages.total)


def _made(members: Mapping[str, Member]) -> tuple[object, _ZipStorages]:
    """What the pickle of a zip archive makes, and where its storages are."""
    root = _root(members)
    order = _byte_order(members.get(f"{root}byteorder"))
    data = zip_reader.read_member(members[f"{root}data.pkl"], limit=_LARGEST_PICKLE)
    made = restricted_pickle.loads(data, torch_pickle.TABLE, persistent=torch_pickle.storage_of)
    return made, _ZipStorages(members, f"{root}data/", order)


def _root(members: Mapping[str, Member]) -> str:
    """The folder that everything is in, ``/`` at its end."""
    if any(name.rpartition("/")[2] == "archive_format" for name in members):
        raise UnsupportedSource(
            "the file is a program that torch.export wrote; these are not read yet",
            remedy="Save the weights alone: torch.save(model.state_dict(), PATH).",
        )
    found = sorted((name for name in members if name.rpartition("/")[2] == "data.pkl"), key=_depth)
    if not found or (len(found) > 1 and _depth(found[0]) == _depth(found[1])):
        raise BadFile(
            "the zip archive is not one of torch's",
            found=f"{len(found)} members named data.pkl",
            expected="one",
        )
    return found[0].removesuffix("data.pkl")


def _depth(name: str) -> int:
    return name.count("/")


def _byte_order(member: Member | None) -> Literal["<", ">"]:
    if member is None:
        return "<"
    said = zip_reader.read_member(member, limit=64)
    if said not in (b"little", b"big"):
        raise BadFile("the archive has a byte order that is not known", found=repr(said))
    return "<" if said == b"little" else ">"


class _ZipStorages:
    """The storages of a zip archive, one member each."""

    def __init__(self, members: Mapping[str, Member], folder: str, order: Literal["<", ">"]) -> None:
        self._members = members
        self._folder = folder
        self._order = order
        self.total = sum(member.size for name, member in members.items() if name.startswith(folder))

    def place(self, storage: Storage) -> Place:
        """What makes arrays of a storage."""
        member = self._members.get(f"{self._folder}{storage.key}")
        if member is None:
            raise BadFile(
                "the file lacks a storage that its pickle names", place=f"{self._folder}{storage.key}"
            )
        width = storage.kind.dtype.itemsize
        length = storage.length if storage.root_length is None else storage.root_length
        if member.size != length * width:
            raise BadFile(
                "a storage is not as large as the pickle says",
                place=member.name,
                found=f"{member.size} bytes",
                expected=f"{length * width}",
            )
        begin = storage.begin * width

        def place(
            offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...] | None
        ) -> Lazy:
            return zip_reader.lazy(
                member, begin + offset, shape, dtype.newbyteorder(self._order), strides=strides
            )

        return place


def _texts(members: Mapping[str, Member], root: str) -> dict[str, Any]:
    """The members that hold text for others than torch."""
    texts: dict[str, Any] = {}
    for name, member in members.items():
        if name.startswith(root + _EXTRA) and member.size <= _LARGEST_TEXT:
            data = zip_reader.read_member(member, limit=_LARGEST_TEXT)
            texts[name.removeprefix(root + _EXTRA)] = data.decode("utf-8", "replace")
    return texts


def _read_script(
    made: object, members: Mapping[str, Member], root: str, storages: _ZipStorages, metadata: dict[str, Any]
) -> Archive:
    def source(name: str) -> str | None:
        member = members.get(f"{root}code/{name}")
        if member is None:
            return None
        return zip_reader.read_member(member, limit=_LARGEST_CODE).decode("utf-8", "replace")

    script = torchscript.read(made, source)
    if not script.tensors and any(name.startswith(f"{root}constants/") for name in members):
        raise UnsupportedSource(
            "the TorchScript module is frozen: its parameters are constants without names",
            remedy="Save it before torch.jit.freeze or optimize_for_inference, or save its state_dict.",
        )
    named = torch_packed.unpacked(script.tensors, script.is_bidirectional)
    tensors, shared = _lazies(named.items(), storages.place, storages.total)
    metadata |= {
        "form": "torchscript",
        "quantised": _quantised(named.items()),
        "state_dict": "",
        "ignored": {},
        "shared": shared,
        "module_versions": {},
        "modules": script.modules,
        "constants": sum(name.startswith(f"{root}constants/") for name in members),
    }
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


# ------------------------------------------------------------------------------- the format before zip


def _read_legacy(path: Path) -> Archive:
    size = byte_ranges.file_size(path)
    with path.open("rb") as file:
        _expect_legacy(file, size)
        storages: dict[str, Storage] = {}

        def persistent(identity: object) -> object:
            if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
                return identity[1] if isinstance(identity[1], Global) else Unknown("module")
            storage = torch_pickle.storage_of(identity)
            known = storages.setdefault(storage.key, storage)
            if known.kind != storage.kind or _whole(known) != _whole(storage):
                raise BadFile("two storages have one name", place=f"storage {storage.key[:80]}")
            return storage

        made = restricted_pickle.load(file, size, torch_pickle.TABLE, persistent=persistent)
        keys = restricted_pickle.load(file, size, {})
        places = _legacy_places(file, size, keys, storages)

    def place_of(storage: Storage) -> Place:
        if storage.key not in places:
            raise BadFile(
                "the file lacks a storage that its pickle names", place=f"storage {storage.key[:80]}"
            )
        begin = places[storage.key] + storage.begin * storage.kind.dtype.itemsize

        def place(
            offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...] | None
        ) -> Lazy:
            return byte_ranges.lazy(path, begin + offset, shape, dtype.newbyteorder("<"), strides=strides)

        return place

    return _checkpoint(made, place_of, {}, "legacy", size)


def _expect_legacy(file: BinaryIO, size: int) -> None:
    """The three small pickles that the file begins with."""
    if _LEGACY_MAGIC not in file.read(32):
        raise BadFile("this is not a torch file", found="neither a zip archive nor the format before it")
    file.seek(0)
    restricted_pickle.load(file, size, {})
    protocol = restricted_pickle.load(file, size, {})
    if protocol != _LEGACY_PROTOCOL:
        raise UnsupportedSource(
            "the file is of a protocol that is not known",
            found=repr(protocol)[:40],
            expected=_LEGACY_PROTOCOL,
        )
    if not isinstance(restricted_pickle.load(file, size, {}), dict):
        raise BadFile("the file does not say what system wrote it")


def _whole(storage: Storage) -> int:
    return storage.length if storage.root_length is None else storage.root_length


def _legacy_places(
    file: BinaryIO, size: int, keys: object, storages: Mapping[str, Storage]
) -> dict[str, int]:
    """Where the elements of each storage begin; each follows its length, eight bytes little-endian."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BadFile("the file does not say in which order its storages come")
    places: dict[str, int] = {}
    at = file.tell()
    for key in keys:
        storage = storages.get(key)
        if storage is None or key in places:
            raise BadFile("the file has a storage that its pickle does not name", place=f"storage {key[:80]}")
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            raise BadFile("the file is cut short", place=f"storage {key[:80]}")
        (length,) = struct.unpack("<q", head)
        nbytes = _whole(storage) * storage.kind.dtype.itemsize
        if length != _whole(storage):
            raise BadFile(
                "a storage is not as long as the pickle says",
                place=f"storage {key[:80]}",
                found=f"{length} elements",
                expected=f"{_whole(storage)}",
            )
        places[key] = at + 8
        at += 8 + nbytes
        if at > size:
            raise BadFile("the file is cut short", place=f"storage {key[:80]}")
    return places


# ------------------------------------------------------------------------------------------ both forms


def _checkpoint(
    made: object,
    place_of: Callable[[Storage], Place],
    metadata: dict[str, Any],
    form: str,
    stored: int,
) -> Archive:
    torch_packed.unpack_dictionaries(made)
    found = state_dicts.find(made)
    tensors, shared = _lazies(found.values.items(), place_of, stored)
    metadata |= {
        "form": form,
        "state_dict": found.path,
        "ignored": found.beside,
        "shared": shared,
        "quantised": _quantised(found.values.items()),
        "module_versions": _versions(found.attributes.get("_metadata")),
    }
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def _lazies(
    values: Iterable[tuple[str, object]], place_of: Callable[[Storage], Place], stored: int
) -> tuple[dict[str, Lazy], tuple[tuple[str, ...], ...]]:
    """The arrays of tensors by name, and the groups of names that are the same elements."""
    tensors: dict[str, Lazy] = {}
    total = 0
    same: dict[object, list[str]] = {}
    for name, value in values:
        try:
            tensors[name] = _lazy(value, place_of, stored)
        except ConversionError as error:
            raise error.located(place=name[:200]) from error.__cause__
        total += tensors[name].nbytes
        if isinstance(value, Tensor) and tensors[name].size:
            identity = value.storage.key, value.storage.begin, value.offset, value.shape, value.strides
            same.setdefault(identity, []).append(name)
    if total > _GROWTH * stored + _ALWAYS_ALLOWED:
        raise BadFile("the tensors are far larger than the file", found=f"{total} bytes of {stored}")
    return tensors, tuple(tuple(names) for names in same.values() if len(names) > 1)


def _lazy(value: object, place_of: Callable[[Storage], Place], stored: int) -> Lazy:
    if isinstance(value, PickledArray):
        array = value.lazy()
        assert array is not None
        return array
    if not isinstance(value, Tensor):
        kind = state_dicts.class_name(value) if isinstance(value, Unknown) else type(value).__name__
        if kind == "torch.ScriptObject":
            raise UnsupportedSource(
                "the module is quantised, and its weights are packed in a form that is not read",
                remedy="Save the state_dict of the module before quantisation.",
            )
        raise UnsupportedSource(
            "the state_dict holds a tensor of a kind that is not read",
            found=kind,
            remedy="Turn it into a plain dense tensor before saving.",
        )
    if value.nbytes > stored + _ALWAYS_ALLOWED:
        raise BadFile("the tensor is far larger than the file", found=f"{value.nbytes} bytes of {stored}")
    place = place_of(value.storage)
    strides = None if value.is_row_major else value.strides
    stored_elements = place(value.offset * value.dtype.itemsize, value.shape, value.dtype, strides)
    if torch_pickle.is_quantized(value):
        return torch_quantised.dequantised(
            stored_elements, torch_quantised.quantizer_of(value), lambda t: _lazy(t, place_of, stored)
        )
    return stored_elements


def _quantised(values: Iterable[tuple[str, object]]) -> dict[str, tuple[str, str]]:
    """The tensors that are dequantised: stored dtype and granularity of the scales."""
    return {
        name: (value.dtype_name, torch_quantised.quantizer_of(value).granularity)
        for name, value in values
        if isinstance(value, Tensor) and torch_pickle.is_quantized(value)
    }


def _versions(metadata: object) -> dict[str, int]:
    """Names of modules to the version of their part of the state_dict."""
    versions: dict[str, int] = {}
    if isinstance(metadata, dict):
        for name, said in metadata.items():
            version = said.get("version") if isinstance(said, dict) else None
            if isinstance(name, str) and isinstance(version, int):
                versions[name] = version
    return versions
