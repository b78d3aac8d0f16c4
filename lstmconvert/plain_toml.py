"""TOML as the mapping files of this package are written, read in a tenth of the time.

``tomllib`` takes a fifth of a small conversion for them. They need little of the language: tables, dotted
keys, and values that are JSON's but for the keys of inline tables. What is written otherwise is left to
``tomllib``, and the tests hold every file of the package against it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

_KEY = re.compile(r"([\w-]+)\s*=")


def loads(text: str) -> dict[str, Any]:
    """What ``tomllib.loads`` gives for a file that has no fault.

    Raises:
        ValueError: when something is not as plain as this; it may still be TOML.
    """
    top: dict[str, Any] = {}
    table = top
    lines = iter(text.split("\n"))
    for line in lines:
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            table = _inner(top, _names(line[1:-1]))
            continue
        key, _, value = line.partition("=")
        value = value.strip()
        if value == "[":
            value = _list(lines)
        *way, name = _names(key.strip())
        holder = _inner(table, way)
        if name in holder:
            raise ValueError(f"{key} is there twice")
        holder[name] = _value(value)
    return top


def _names(dotted: str) -> list[str]:
    names = [dotted] if dotted.isidentifier() else dotted.split(".")
    if not all(name.replace("-", "_").isidentifier() for name in names):
        raise ValueError(f"{dotted!r} is no plain key")
    return names


def _inner(table: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ValueError(f"{name!r} is a table and a value")
    return table


def _list(lines: Iterator[str]) -> str:
    """A list that goes over several lines, as one."""
    items: list[str] = []
    for line in lines:
        if line == "]":
            return f"[{''.join(items).removesuffix(',')}]"
        items.append(line)
    raise ValueError("a list has no end")


def _value(text: str) -> Any:
    if "\\" in text:
        raise ValueError(f"{text!r} has an escape")
    if text.count('"') == 2 and text[0] == text[-1] == '"' and text.isprintable():
        return text[1:-1]
    if "=" in text:
        # Every second piece is what stands between quotes.
        pieces = text.split('"')
        pieces[::2] = [_KEY.sub(_quoted, piece) if "=" in piece else piece for piece in pieces[::2]]
        text = '"'.join(pieces)
    return json.loads(text)


def _quoted(key: re.Match[str]) -> str:
    return f'"{key[1]}":'
