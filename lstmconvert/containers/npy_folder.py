"""A folder of ``.npy`` files: an array each, named after its path in the folder without the suffix."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from lstmconvert.containers import Archive, npz
from lstmconvert.errors import BadFile
from lstmconvert.tensors import Lazy

NAME = "npy_folder"
SUFFIXES = ()

_MOST_FILES = 100_000


def probe(path: Path) -> bool:
    """Whether the path is a folder with a ``.npy`` file in it, or in a folder in it."""
    return path.is_dir() and any(True for pattern in ("*.npy", "*/*.npy") for _ in path.glob(pattern))


def read(path: Path) -> Archive:
    """The arrays of all ``.npy`` files in and below the folder; links out of it are not followed.

    Raises:
        BadFile: when one is damaged, or there are too many.
        UnsupportedSource: when one holds pickled objects.
    """
    tensors: dict[str, Lazy] = {}
    root = path.resolve()
    for file in sorted(path.rglob("*.npy")):
        if len(tensors) > _MOST_FILES:
            raise BadFile("the folder has more files than any dump of weights", file=path)
        if not file.is_file() or not file.resolve().is_relative_to(root):
            continue
        (tensor,) = npz.read(file).tensors.values()
        tensors[file.relative_to(path).with_suffix("").as_posix()] = tensor
    return Archive(MappingProxyType(tensors))
