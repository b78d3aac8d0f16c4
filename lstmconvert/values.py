"""``dataclass`` for values, as in the standard library, at a tenth of the price when it is imported.

The standard decorator writes and compiles six methods for each class; a hundred and fifty of them took
longer than a small conversion. Here ``__init__`` is compiled when the first value of a class is made, and the
others are shared. Type checkers see the standard decorator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(
        *, frozen: bool = False, slots: bool = False, eq: bool = True
    ) -> Callable[[type[Any]], type[Any]]:
        """As ``dataclasses.dataclass``; a class that inherits from another has to be made by this one too.

        Args:
            frozen: an attribute is set once, by ``__init__``; only with ``slots``, where nothing else has
                its name.
            slots: make room for the fields and nothing else.
            eq: compare, and where frozen hash, by class and fields; else by identity.
        """

        if frozen and not slots:
            raise TypeError("a frozen value needs slots")

        def decorate(cls: type[Any]) -> type[Any]:
            shared: dict[str, Any] = {"__repr__": _repr}
            if eq:
                shared |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
            if frozen:
                shared |= {"__setattr__": _set_once, "__delattr__": _never}
            for name, method in shared.items():
                if name not in cls.__dict__:
                    setattr(cls, name, method)
            made = dataclasses.dataclass(cls, init=False, repr=False, eq=False, slots=slots)
            made.__init__ = _first_init(made)
            return made

        return decorate


def _first_init(cls: type[Any]) -> Callable[..., None]:
    """An ``__init__`` that puts the compiled one into its place."""

    def initialize(self: Any, *values: Any, **named: Any) -> None:
        compiled = _compiled_init(cls)
        setattr(cls, "__init__", compiled)  # noqa: B010 - mypy takes it for an assignment to a method
        compiled(self, *values, **named)

    return initialize


def _compiled_init(cls: type[Any]) -> Callable[..., None]:
    parameters, lines = ["self"], []
    known: dict[str, Any] = {"_set": object.__setattr__, "_unset": dataclasses.MISSING}
    for number, field in enumerate(dataclasses.fields(cls)):
        value = field.name
        if field.default is not dataclasses.MISSING:
            known[f"_default_{number}"] = field.default
            parameters.append(f"{field.name}=_default_{number}")
        elif field.default_factory is not dataclasses.MISSING:
            known[f"_make_{number}"] = field.default_factory
            parameters.append(f"{field.name}=_unset")
            value = f"_make_{number}() if {field.name} is _unset else {field.name}"
        else:
            parameters.append(field.name)
        lines.append(f" _set(self, {field.name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    exec(  # noqa: S102 - names of fields are identifiers
        f"def __init__({', '.join(parameters)}):\n" + "\n".join(lines or [" pass"]), known
    )
    compiled: Callable[..., None] = known["__init__"]
    compiled.__qualname__ = f"{cls.__qualname__}.__init__"
    return compiled


def _contents(value: Any) -> tuple[Any, ...]:
    return tuple([getattr(value, name) for name in value.__match_args__])


def _repr(self: Any) -> str:
    shown = (f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: object) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self is other or _contents(self) == _contents(other)


def _hash(self: Any) -> int:
    return hash(_contents(self))


def _set_once(self: Any, name: str, value: object) -> None:
    if hasattr(self, name):
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)


def _never(_self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
