"""Arguments of a layer's call, by the names that Keras gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lstmconvert.errors import UnsupportedSource
from lstmconvert.frameworks.keras.graph import Symbol, Value
from lstmconvert.values import dataclass

# Arguments that say nothing about inference.
_WITHOUT_EFFECT = frozenset({"training", "name"})


@dataclass(frozen=True, slots=True, eq=False)
class Arguments:
    """What a layer is called with: values, symbols, constants and tuples of them.

    Attributes:
        positional, named: as in Python.
        place: the layer, for messages.
    """

    positional: tuple[Any, ...]
    named: Mapping[str, Any]
    place: str

    def bind(self, *names: str) -> dict[str, Any]:
        """The arguments under ``names``, in the order of the layer's ``call``; absent and ``None`` are alike.

        Raises:
            UnsupportedSource: on an argument that has another name and is not empty.
        """
        bound = dict(zip(names, self.positional, strict=False))
        if len(self.positional) > len(names):
            raise UnsupportedSource(
                "the layer is called with more arguments than are supported", place=self.place
            )
        for name, value in self.named.items():
            if name in names:
                bound[name] = value
            elif name not in _WITHOUT_EFFECT and value is not None and value is not False:
                raise UnsupportedSource(
                    f"the call argument {name!r} is not supported", place=self.place, found=_words(value)
                )
        return {name: value for name, value in bound.items() if value is not None}

    def value(self, item: Any) -> Value:
        """``item``, which has to be a value of the graph.

        Raises:
            UnsupportedSource: when it is a constant or the result of an operator.
        """
        if isinstance(item, tuple) and len(item) == 1:
            item = item[0]
        if isinstance(item, Value):
            return item
        if isinstance(item, Symbol):
            from lstmconvert.frameworks.keras import operators

            raise UnsupportedSource(
                f"the operator {item.operator!r} of keras.ops is not supported",
                place=self.place,
                expected=f"a layer that does the same, or one of {operators.KNOWN}",
            )
        raise UnsupportedSource(
            "the layer is called with something that is no tensor", place=self.place, found=_words(item)
        )

    def values(self, item: Any) -> list[Value]:
        """``item`` as a list of values, also where it is a single one."""
        items = item if isinstance(item, (tuple, list)) else (item,)
        return [self.value(part) for part in _flat(items)]


def _flat(items: Any) -> list[Any]:
    found: list[Any] = []
    for item in items:
        found += _flat(item) if isinstance(item, (tuple, list)) else [item]
    return found


def _words(value: Any) -> str:
    if isinstance(value, Value):
        return f"the tensor {value.name!r}"
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
