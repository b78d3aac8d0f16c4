"""The tensors of one layer among those of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lstmconvert.tensors import Lazy, Tensors


class Prefixed(Mapping[str, Lazy]):
    """The tensors behind a prefix, by the rest of their names.

    Not a copy: a file of thousands of layers would be gone through for each of them.
    """

    def __init__(self, prefix: str, tensors: Tensors) -> None:
        self._prefix, self._tensors = prefix, tensors

    def __getitem__(self, name: str) -> Lazy:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (n.removeprefix(self._prefix) for n in self._tensors if n.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
