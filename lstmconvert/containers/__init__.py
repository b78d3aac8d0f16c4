"""File containers: bytes to and from named arrays, without knowing what the names mean.

Every module here has the same few things: ``NAME``, ``SUFFIXES`` (what a user would call the file),
``probe(path) -> bool`` (by content), ``read(path) -> Archive`` and, where it can be written,
``write(path, archive) -> None`` (streams tensor by tensor into ``path``, which is new).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lstmconvert.tensors import Lazy


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """What a file holds.

    Attributes:
        tensors: the named arrays, in the file's order, read on demand.
        metadata: what else the file says; each container documents its keys.
        companions: text files that belong beside it, suffix to content (``{".py": source}``).
    """

    tensors: Mapping[str, Lazy]
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    companions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
