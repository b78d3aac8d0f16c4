"""Trees of dictionaries, lists and arrays as named arrays: the keys that lead to each, joined by ``/``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from lstmconvert.errors import BadFile, NotRepresentable
from lstmconvert.tensors import Lazy

SEPARATOR = "/"
_DEEPEST = 64
_MOST = 1_000_000


def leaves(
    tree: object, children: Callable[[object], Iterable[tuple[object, object]] | None]
) -> Iterator[tuple[str, object]]:
    """Every leaf of a tree under its path.

    Args:
        tree: the tree.
        children: the keys and values of a node; ``None`` for a leaf.

    Raises:
        BadFile: when the tree is deeper or larger than any tree of weights.
    """
    count = 0
    stack: list[tuple[str, object, int]] = [("", tree, 0)]
    while stack:
        path, node, depth = stack.pop()
        below = children(node)
        if below is None:
            yield path, node
            continue
        if depth > _DEEPEST:
            raise BadFile("the tree is deeper than any tree of weights", place=path[:80])
        added = []
        for key, value in below:
            count += 1
            if count > _MOST:
                raise BadFile("the tree has more branches than any tree of weights")
            added.append((f"{path}{SEPARATOR}{key}" if path else str(key), value, depth + 1))
        stack += reversed(added)


def plain(node: object) -> Iterable[tuple[object, object]] | None:
    """The keys and values of dictionaries, lists and tuples, for ``leaves``."""
    if isinstance(node, dict):
        return node.items()
    return enumerate(node) if isinstance(node, list | tuple) else None


def grown(tensors: Mapping[str, Lazy], *, deepest: int | None = None) -> dict[str, Any]:
    """The tree whose leaves have these paths.

    Args:
        tensors: arrays by path.
        deepest: how many levels the tree may have; more parts of a path then stay together in the first.

    Raises:
        NotRepresentable: when a path leads through an array.
    """
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        parts = name.split(SEPARATOR)
        if deepest is not None and len(parts) > deepest:
            first = len(parts) - deepest + 1
            parts = [SEPARATOR.join(parts[:first]), *parts[first:]]
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise NotRepresentable("one name is that of a tensor and of a folder of tensors", place=name)
        if parts[-1] in node:
            raise NotRepresentable("one name is that of a tensor and of a folder of tensors", place=name)
        node[parts[-1]] = tensor
    return tree
