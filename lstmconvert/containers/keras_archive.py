"""The ``.keras`` archive of Keras 3 (and of tf_keras since 2.12): a zip of configuration and weights.

Members: ``metadata.json`` (version), ``config.json`` (architecture), ``model.weights.h5`` (an HDF5 file
of the form ``weights_v3``). Tensors are keyed by their path in the last one
(``layers/lstm/cell/vars/0``). Metadata of the archive that ``read`` gives and ``write`` takes:

``form``
    ``"keras_archive"``.
``config``
    The parsed ``config.json``: ``{"module", "class_name", "config", ...}`` of the model.
``keras_version``
    The release that wrote the file, or ``None``.
``variable_names``
    As for ``weights_v3`` in ``lstmconvert.containers.hdf5``.
``assets``
    Names of the files under ``assets/`` (vocabularies and the like); they are not read and cannot be
    written.
``lstmconvert``
    What a conversion remembers about the source, a text in ``metadata.json``, if there is one.

The weights are read where they lie in the zip: Keras stores them uncompressed. Where somebody packed
the archive again, the member is unpacked into memory (up to 2 GiB). Sharded
weights and ``.npz`` weights are refused; Keras's own ``load_model`` reads no sharded archive either.

Source: ``saving_lib.py`` of Keras 3.15; files of Keras and tf_keras are compared with their models in
the tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lstmconvert.containers import Archive, byte_ranges, hdf5, zip_reader
from lstmconvert.containers.hdf5_bytes import FileBytes, HeldBytes, Source
from lstmconvert.containers.zip_reader import Member
from lstmconvert.errors import BadFile, ConversionError, NotRepresentable, UnsupportedSource

NAME = "keras_archive"
SUFFIXES = (".keras",)
TELLS_LATE = True

_METADATA = "metadata.json"
_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_ASSETS = "assets/"

# That of the members of the zip: the bytes depend on the model alone.
_DATE_TEXT = "1980-01-01@00:00:00"

_LARGEST_TEXT = 256 * 2**20
# Compressed weights are unpacked into memory.
_LARGEST_UNPACKED = 2**31


def probe(path: Path) -> bool:
    """Whether the file is a zip with a configuration and weights of Keras in it."""
    if not zip_reader.is_zip(path):
        return False
    try:
        names = zip_reader.members(path)
    except ConversionError:
        return False
    return _CONFIG in names and any(name.startswith("model.weights") for name in names)


def read(path: Path) -> Archive:
    """The tensors and the configuration of a ``.keras`` archive; see the module.

    The checksum of the weights is checked at once: it covers the member as a whole.

    Raises:
        BadFile: not a sound zip, a member missing or damaged, and whatever
            ``lstmconvert.containers.hdf5.read`` refuses.
        UnsupportedSource: weights in shards or as ``.npz``.
    """
    path = Path(path)
    members = zip_reader.members(path)
    _refuse_other_weights(members, path)
    config = _json(members, _CONFIG, path)
    about = _json(members, _METADATA, path) if _METADATA in members else {}
    try:
        weights = hdf5.read_source(_source(members[_WEIGHTS]))
    except ConversionError as error:
        raise error.located(file=path, place=_WEIGHTS) from error.__cause__
    if weights.tensors and weights.metadata["form"] != "weights_v3":
        raise BadFile(
            "the weights are not in the form of a Keras archive",
            file=path,
            place=_WEIGHTS,
            found=weights.metadata["form"],
            expected="groups called vars",
        )
    metadata: dict[str, Any] = {
        "form": "keras_archive",
        "config": config,
        "keras_version": _text(about, "keras_version", path),
        "variable_names": weights.metadata.get("variable_names", MappingProxyType({})),
        "assets": tuple(name for name in members if name.startswith(_ASSETS)),
    }
    if (note := _text(about, hdf5.NOTE, path)) is not None:
        metadata[hdf5.NOTE] = note
    return Archive(weights.tensors, MappingProxyType(metadata))


def read_optimizer(path: Path) -> Archive | None:
    """The state of the optimizer, or ``None`` if there is none; see ``hdf5.read_optimizer``."""
    members = zip_reader.members(Path(path))
    try:
        return hdf5.read_optimizer_source(_source(members[_WEIGHTS]))
    except ConversionError as error:
        raise error.located(file=path, place=_WEIGHTS) from error.__cause__


def write(path: Path, archive: Archive) -> None:
    """Write a ``.keras`` archive that ``keras.models.load_model`` of Keras 3 loads.

    One pass, one tensor in memory at a time, and the same bytes for the same model.

    Raises:
        NotRepresentable: assets, or a tensor that HDF5 cannot hold.
    """
    metadata = archive.metadata
    if metadata.get("form") != "keras_archive":
        raise AssertionError(f"no Keras archive has the form {metadata.get('form')!r}")
    if metadata.get("assets"):
        raise NotRepresentable(
            "files beside the weights are not written", file=path, reasons=tuple(metadata["assets"])
        )
    about = {"keras_version": metadata.get("keras_version"), "date_saved": _DATE_TEXT}
    names = metadata.get("variable_names", {})
    weights = Archive(archive.tensors, {"form": "weights_v3", "variable_names": names})

    from lstmconvert.containers import hdf5_writing
    from lstmconvert.containers.zip_writer import ZipWriter

    with ZipWriter(Path(path)) as target:
        target.add(_CONFIG, json.dumps(metadata["config"]).encode())
        with target.open(_WEIGHTS) as sink:
            hdf5_writing.write(weights, sink, file_name=path)
        note = {**metadata, **archive.told()}.get(hdf5.NOTE)
        about |= {} if note is None else {hdf5.NOTE: str(note)}
        target.add(_METADATA, json.dumps(about).encode())


def _source(member: Member) -> Source:
    """Where the HDF5 bytes are, checked against the checksum of the archive."""
    if member.compressed:
        data = zip_reader.read_member(member, limit=_LARGEST_UNPACKED)
        return HeldBytes(data, member.path)
    content = byte_ranges.lazy(member.path, member.offset, (member.size,), "u1", place=member.name)
    from lstmconvert.containers import crc32

    if member.crc is not None and crc32.of_tensor(content) != member.crc:
        raise BadFile(
            "the weights do not have the checksum that the archive states",
            file=member.path,
            place=member.name,
            remedy="The file was damaged; fetch or save it again.",
        )
    return FileBytes(member.path, member.offset, member.size)


def _refuse_other_weights(names: Iterable[str], path: Path) -> None:
    if _WEIGHTS in names:
        return
    others = [name for name in names if name.startswith("model") and ".weights." in name]
    if others:
        raise UnsupportedSource(
            "weights in shards or as .npz inside a .keras file are not read",
            file=path,
            found=", ".join(others[:3]),
            expected=_WEIGHTS,
            remedy="Load the model with Keras and save it again with model.save('model.keras').",
        )
    raise BadFile("the archive has no weights", file=path, expected=_WEIGHTS)


def _json(members: Mapping[str, Member], name: str, path: Path) -> dict[str, Any]:
    if name not in members:
        raise BadFile("the archive lacks a member", file=path, expected=name)
    content = zip_reader.read_member(members[name], limit=_LARGEST_TEXT)
    try:
        return hdf5.parsed_json(content, name)
    except ConversionError as error:
        raise error.located(file=path) from error.__cause__


def _text(about: dict[str, Any], key: str, path: Path) -> str | None:
    value = about.get(key)
    if value is not None and not isinstance(value, str):
        raise BadFile("the archive's metadata is not as Keras writes it", file=path, place=key, found=value)
    return value
