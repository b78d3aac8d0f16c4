"""File containers: bytes to and from named arrays, without knowing what the names mean.

Every module here has the same few things: ``NAME``, ``SUFFIXES`` (what a user would call the file),
``probe(path) -> bool`` (by content), ``read(path) -> Archive`` and, where it can be written,
``write(path, archive) -> None`` (streams tensor by tensor into ``path``, which is new). A module with
``TELLS_LATE`` also writes the ``late`` texts of an archive, which are known when all tensors are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """What a file holds.

    Attributes:
        tensors: the named arrays, in the file's order, read on demand.
        metadata: what else the file says; each container documents its keys.
        companions: text files that belong beside it, suffix to content (``{".py": source}``).
        late: texts of the metadata that are known once every tensor was read; until then ``metadata`` has
            ASCII texts of the same lengths in their places.
    """

    tensors: Mapping[str, Lazy]
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    companions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    late: Mapping[str, Callable[[], str]] = field(default_factory=lambda: MappingProxyType({}))

    def told(self) -> dict[str, str]:
        """The late texts, now that every tensor was read."""
        return {key: text() for key, text in self.late.items()}
