"""Orbax checkpoints, the folders that ``StandardCheckpointer`` writes: read only.

The tensors lie in an OCDBT key-value store of compressed Zarr chunks, for which there is no reader but
TensorStore: reading needs the package ``tensorstore`` (``pip install 'lstmconvert[orbax]'``), which is no
framework. Names are the keys that lead to an array, joined by ``/``. Every leaf of a ``flax.nnx`` state is a
``value`` of a variable: that is left out at the end of a name, where names stay different without it.

Source: the folders that orbax-checkpoint 0.11 and 0.12 write (``_METADATA``, ``ocdbt.process_*``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.tensors import Array, Lazy

NAME = "orbax"
SUFFIXES = ()

_METADATA = "_METADATA"
_LARGEST_METADATA = 256 << 20
_VALUE = "/value"


def probe(path: Path) -> bool:
    """Whether the path is the folder of a checkpoint, or of a step with one item."""
    return path.is_dir() and _root(path) is not None


def _root(path: Path) -> Path | None:
    if (path / _METADATA).is_file():
        return path
    inside = [child for child in path.iterdir() if (child / _METADATA).is_file()]
    return inside[0] if len(inside) == 1 else None


def read(path: Path) -> Archive:
    """The arrays of a checkpoint; see the module.

    Raises:
        UnsupportedSource: when TensorStore is not installed.
        BadFile: when the checkpoint is damaged.
    """
    root = _root(path)
    if root is None:
        raise BadFile("this is no checkpoint of Orbax", file=path, expected=f"a file {_METADATA} in it")
    names = _names(root)
    try:
        import tensorstore
    except ImportError as error:
        raise UnsupportedSource(
            "reading an Orbax checkpoint needs TensorStore",
            file=path,
            remedy="Install it (pip install 'lstmconvert[orbax]'), or save the parameters with "
            "flax.serialization.to_bytes to a .msgpack file.",
        ) from error
    tensors = {name: _lazy(tensorstore, root, keys, driver) for name, (keys, driver) in names.items()}
    short = {name: name.removesuffix(_VALUE) for name in tensors}
    if len(set(short.values())) == len(short):
        tensors = {short[name]: tensor for name, tensor in tensors.items()}
    return Archive(MappingProxyType(tensors))


def _names(root: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    """The keys of every array, and the format that its chunks have."""
    file = root / _METADATA
    try:
        if file.stat().st_size > _LARGEST_METADATA:
            raise BadFile("the metadata is far too large", file=file)
        said = json.loads(file.read_text(encoding="utf-8"))
        driver = "zarr3" if said.get("use_zarr3") else "zarr"
        found: dict[str, tuple[tuple[str, ...], str]] = {}
        for entry in said["tree_metadata"].values():
            value = entry["value_metadata"]
            if value.get("skip_deserialize") or value["value_type"] not in ("jax.Array", "np.ndarray"):
                continue
            keys = tuple(str(key["key"]) for key in entry["key_metadata"])
            found["/".join(keys)] = (keys, driver)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadFile("the metadata of the checkpoint is damaged", file=file) from error
    return found


def _lazy(tensorstore: Any, root: Path, keys: tuple[str, ...], driver: str) -> Lazy:
    name = ".".join(keys)
    base = {"driver": "file", "path": f"{root.resolve()}/"}
    if (root / "manifest.ocdbt").is_file():
        store: Mapping[str, Any] = {"driver": "ocdbt", "base": base, "path": name}
    else:
        store = {**base, "path": f"{root.resolve()}/{name}/"}
    try:
        opened = tensorstore.open({"driver": driver, "kvstore": store}, read=True, open=True).result()
    except ValueError as error:
        raise BadFile(
            "an array of the checkpoint cannot be opened", file=root, place=name, found=str(error)[:200]
        ) from error

    def load() -> Array:
        try:
            array: Array = np.asarray(opened.read().result())
        except ValueError as error:
            raise BadFile(
                "an array of the checkpoint cannot be read", file=root, place=name, found=str(error)[:200]
            ) from error
        return array

    return Lazy(tuple(opened.shape), opened.dtype.numpy_dtype, load)
