"""``dataclass`` for values, as in the standard library, at a tenth of the price when it is imported.

The standard decorator works out every field and compiles six methods for each class; a hundred and fifty of
them took longer than a small conversion. Here the methods are shared, but for an ``__init__`` that is
compiled for classes of which many values are made, and the fields are worked out by the standard decorator
when ``fields``, ``replace`` or another function first asks for them. Type checkers see the
standard decorator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, slots: bool, frozen: bool = False, eq: bool = True) -> Callable[[type[Any]], type[Any]]:
        """As ``dataclasses.dataclass``; a class that inherits from another has to be made by this one too.

        Of ``field`` only ``default`` and ``default_factory`` act.

        Args:
            slots: make room for the fields and nothing else; it has to be so, since values are told from
                what is not set yet by what their slots hold.
            frozen: an attribute is set once, by ``__init__``.
            eq: compare, and where frozen hash, by class and fields; else by identity.
        """

        if not slots:
            raise TypeError("a value needs slots")

        def decorate(cls: type[Any]) -> type[Any]:
            inherited: dict[str, Any] = getattr(cls, _DESCRIBED, {})
            own = {
                name: (annotation, cls.__dict__.get(name, dataclasses.MISSING))
                for name, annotation in cls.__annotations__.items()
                if not str(annotation).startswith(("ClassVar", "typing.ClassVar"))
            }
            every = inherited | own
            namespace: dict[str, Any] = {"__repr__": _repr, "__replace__": _replace}
            if eq:
                namespace |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
            if frozen:
                namespace |= {"__setattr__": _set_once, "__delattr__": _never}
            namespace |= {name: value for name, value in cls.__dict__.items() if name not in own}
            # These two belong to the class as it was without slots.
            namespace.pop("__dict__", None)
            namespace.pop("__weakref__", None)
            namespace |= {
                "__slots__": tuple(name for name in own if name not in inherited),
                "__match_args__": tuple(every),
                "__qualname__": cls.__qualname__,
                _DESCRIBED: every,
                _FIELDS.name: _FIELDS,
                _PARAMETERS.name: _PARAMETERS,
            }
            made = type(cls)(cls.__name__, cls.__bases__, namespace)
            made.__init__ = _first_init(made)
            return made

        return decorate


_DESCRIBED = "__value_fields__"
"""Where a class keeps annotation and default of its fields, as they are written."""
_FEW = 20
"""Values of one class that are made before it is worth to compile its ``__init__``."""


class _WorkedOut:
    """What the functions of ``dataclasses`` ask a class for, there from the first time on that they do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, _value: object, cls: type[Any]) -> Any:
        owner = next(base for base in cls.__mro__ if self.name in base.__dict__)
        described = owner.__dict__[_DESCRIBED]
        namespace = {name: default for name, (_, default) in described.items() if _is_given(default)}
        # What annotations written as text mean is looked at word by word; here they are fields, all of them.
        namespace["__annotations__"] = dict.fromkeys(described, object)
        namespace["__module__"] = owner.__module__
        namespace["__doc__"] = owner.__doc__ or ""  # Without one it would compose one, which takes its time.
        standard: Any = dataclasses.dataclass(init=False, repr=False, eq=False)(
            type(owner.__name__, (), namespace)
        )
        for field in dataclasses.fields(standard):
            field.type = described[field.name][0]
        for name in (_FIELDS.name, _PARAMETERS.name):
            setattr(owner, name, getattr(standard, name))
        return getattr(owner, self.name)


_FIELDS = _WorkedOut("__dataclass_fields__")
_PARAMETERS = _WorkedOut("__dataclass_params__")


def _is_given(default: object) -> bool:
    return default is not dataclasses.MISSING


def _default_of(default: Any) -> tuple[Any, Callable[[], Any] | None]:
    """What stands for a field that is not given, and what makes it where it is made anew every time."""
    if not isinstance(default, dataclasses.Field):
        return default, None
    make: Any = default.default_factory
    return default.default, make if _is_given(make) else None


def _first_init(cls: type[Any]) -> Callable[..., None]:
    """An ``__init__`` for the first values, which puts a compiled one into its place after these."""
    names = cls.__match_args__
    described = getattr(cls, _DESCRIBED)
    left = _FEW

    def initialize(self: Any, *values: Any, **named: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            setattr(cls, "__init__", _compiled_init(cls))  # noqa: B010 - mypy takes it for a method's name
            cls.__init__(self, *values, **named)
            return
        found = dict(zip(names, values, strict=False)) | named
        fits = len(found) == len(values) + len(named)
        for name in names[len(values) :]:
            if name not in named:
                default, make = _default_of(described[name][1])
                found[name] = default if make is None else make()
                fits = fits and _is_given(found[name])
        if not fits or len(found) != len(names):
            # The compiled one says what is wrong as all functions do.
            _compiled_init(cls)(self, *values, **named)
            return
        for name, value in found.items():
            object.__setattr__(self, name, value)
        if hasattr(cls, "__post_init__"):
            self.__post_init__()

    return initialize


def _compiled_init(cls: type[Any]) -> Callable[..., None]:
    parameters, lines = ["self"], []
    known: dict[str, Any] = {"_set": object.__setattr__, "_unset": dataclasses.MISSING}
    for number, (name, (_, described)) in enumerate(getattr(cls, _DESCRIBED).items()):
        value = name
        default, make = _default_of(described)
        if make is not None:
            known[f"_make_{number}"] = make
            parameters.append(f"{name}=_unset")
            value = f"_make_{number}() if {name} is _unset else {name}"
        elif _is_given(default):
            known[f"_default_{number}"] = default
            parameters.append(f"{name}=_default_{number}")
        else:
            parameters.append(name)
        lines.append(f" _set(self, {name!r}, {value})")
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


def _replace(self: Any, /, **changes: Any) -> Any:
    return dataclasses.replace(self, **changes)


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
