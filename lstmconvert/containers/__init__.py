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

from lstmconvert.errors import UnsupportedSource
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

MOST_TENSORS = 8192
"""The most tensors of a file that is read as a model: of each, reading and proof take their time."""


def check_number(found: int, what: str = "tensors", place: str | None = None) -> None:
    """See that there are not more tensors (or groups, or names of them) than a model has.

    Raises:
        UnsupportedSource: when there are.
    """
    if found > MOST_TENSORS:
        raise UnsupportedSource(
            "the file holds more than a model with recurrent layers has",
            place=place,
            found=f"{found} {what}",
            expected=f"at most {MOST_TENSORS}",
            remedy="Save the recurrent layers in a file of their own.",
        )


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
