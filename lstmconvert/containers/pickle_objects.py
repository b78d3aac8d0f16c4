"""What a pickle that is read as data is made of, and what it may name.

The objects are inert. The table ``PLAIN`` says which names stand for plain containers; a name that is in no
table becomes a ``Global`` or ``Unknown``, unless it could only be there to run something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Protocol, runtime_checkable

from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.values import dataclass

_LARGEST_KEY = 64
_LONGEST_PART = 256


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names, never looked up: ``module.name``."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(slots=True, eq=False)
class Unknown:
    """Stands for an object of a class that is not known; inert.

    Attributes:
        name: the class or function that would have made it.
        arguments: what it would have been called with.
        state: what it would have restored itself from.
        elements: what would have been appended or added to it.
        entries: what would have been set in it, pairs of key and value.
    """

    name: str
    arguments: tuple[object, ...] = ()
    state: object = None
    elements: list[object] = field(default_factory=list)
    entries: list[tuple[object, object]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Unknown({self.name!r})"


class Ordered(dict[object, object]):
    """An ordered (or counting, or defaulting) dictionary, with the attributes that were set on it."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: dict[object, object] = {}

    def restore(self, state: object) -> None:
        """Take the attributes."""
        if isinstance(state, dict):
            self.attributes.update(state)


@dataclass(frozen=True, slots=True)
class Span:
    """A long byte string that was left where it is: its offset in the stream and its size."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Constructor:
    """An entry of the table that a pickle may call; raises ``BadFile`` for arguments that do not fit."""

    function: Callable[..., object]


@runtime_checkable
class Restorable(Protocol):
    """What an entry of the table makes and a pickle may then give a state."""

    def restore(self, state: object) -> None:
        """Take the state; raises ``BadFile`` when it does not fit."""


def key(value: object) -> object:
    """What stands for ``value`` as a key: itself, if it hashes in constant time and unlike all others.

    Numbers of more than 60 bits, complex numbers and tuples of other things than text can be made to hash
    alike by the thousand; text stands for them.

    Raises:
        BadFile: when it cannot be a key, or is too large for one.
    """
    if isinstance(value, tuple):
        if _parts(value, _LARGEST_KEY) < 0:
            raise BadFile("a pickle uses a tuple as a key that is too large for one")
        return value if all(isinstance(part, str) for part in value) else repr(value)
    if isinstance(value, int | complex) and not (isinstance(value, int) and abs(value) < 1 << 60):
        return repr(value)
    if type(value).__hash__ is None:
        raise BadFile("a pickle uses a value as a key that cannot be one", found=type(value).__name__)
    return value


def _parts(value: object, budget: int) -> int:
    """What is left of ``budget`` after the parts of a key were counted; negative when it does not do."""
    if isinstance(value, tuple):
        for part in value:
            budget = _parts(part, budget - 1)
            if budget < 0:
                break
        return budget
    if isinstance(value, str | bytes):
        return budget if len(value) < _LONGEST_PART else -1
    if isinstance(value, int):
        return budget if abs(value) < 1 << 64 else -1
    return budget if isinstance(value, float | Global | Unknown) or value is None else -1


def _ordered(*arguments: object) -> Ordered:
    made = Ordered()
    for argument in arguments:
        if isinstance(argument, dict):
            made.update(argument)
        elif isinstance(argument, list):
            for pair in argument:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise BadFile("an ordered dictionary is not made of pairs")
                made[key(pair[0])] = pair[1]
    return made


def _set(elements: object = ()) -> set[object]:
    if not isinstance(elements, list | tuple | set):
        raise BadFile("a set is not made of a list")
    return {key(element) for element in elements}


def _list(elements: object = ()) -> list[object]:
    if not isinstance(elements, list | tuple | set):
        raise BadFile("a list is not made of one")
    return list(elements)


def _complex(real: object = 0, imaginary: object = 0) -> complex:
    if not isinstance(real, int | float) or not isinstance(imaginary, int | float):
        raise BadFile("a complex number is not made of two numbers")
    return complex(real, imaginary)


def _encode(text: object, encoding: object = "utf-8") -> bytes:
    """How protocols before 3 write bytes: ``_codecs.encode(text, "latin1")``."""
    if isinstance(text, str) and encoding in ("latin1", "latin-1", "utf-8"):
        try:
            return text.encode(str(encoding))
        except UnicodeEncodeError as error:
            raise BadFile("a byte string is not one", found=str(error)) from error
    raise BadFile("a byte string is not one")


def _no_bytes(*arguments: object) -> bytes:
    """How protocols before 3 write an empty byte string, or a longer one by ``_encode``."""
    if not arguments:
        return b""
    return _encode(*arguments)


def _bytearray(data: object = b"", encoding: object = "latin-1") -> bytes:
    return data if isinstance(data, bytes) else _encode(data, encoding)


_PLAIN_TYPES = (
    "object",
    "int",
    "float",
    "str",
    "bool",
    "tuple",
    "dict",
    "slice",
    "range",
    "type",
    "NoneType",
    "long",
    "unicode",
    "xrange",
)


def _builtins(module: str) -> dict[str, object]:
    return {
        f"{module}.set": Constructor(_set),
        f"{module}.frozenset": Constructor(_set),
        f"{module}.list": Constructor(_list),
        f"{module}.complex": Constructor(_complex),
        f"{module}.bytes": Constructor(_no_bytes),
        f"{module}.bytearray": Constructor(_bytearray),
    }


PLAIN: Mapping[str, object] = {
    "collections.OrderedDict": Constructor(_ordered),
    "collections.defaultdict": Constructor(_ordered),
    "collections.Counter": Constructor(_ordered),
    "_codecs.encode": Constructor(_encode),
    **_builtins("builtins"),
    **_builtins("__builtin__"),
}
"""The table for plain containers, which every caller wants."""


_CODE = frozenset(
    """
    os posix nt sys subprocess commands popen2 shutil socket ssl select importlib imp pkgutil runpy
    code codeop codecs pty ctypes _ctypes cffi pickle _pickle cPickle cloudpickle dill joblib
    marshal shelve multiprocessing threading _thread asyncio concurrent webbrowser platform pdb bdb
    profile cProfile timeit trace pydoc doctest unittest pip setuptools distutils inspect gc signal
    io _io tempfile urllib http ftplib smtplib telnetlib requests types operator _operator ast dis
    sqlite3 zipimport idlelib lib2to3 builtins __builtin__
    """.split()  # noqa: SIM905 -- one name a line would be eighty lines
)
"""Modules that can run code, reach files or the network; nothing that is saved with weights needs them."""
_HARMLESS = frozenset(
    [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN_TYPES]
    + ["types.SimpleNamespace", "copyreg._reconstructor", "copy_reg._reconstructor", "functools.partial"]
    + ["collections.deque", "re._compile", "torch.device", "torch.serialization._get_layout"]
    + [f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")]
    + [f"numpy.random._pickle.__{name}_ctor" for name in ("randomstate", "generator", "bit_generator")]
)
"""What may be named, or called, all the same; each becomes an ``Unknown`` and nothing is called."""
_HARMLESS_BEGINNINGS = ("torch._utils._rebuild_", "torch._tensor._rebuild_", "torch.jit._pickle.")


def refuse_code(name: str) -> None:
    """Refuse a name that no weights need and that can run code.

    Raises:
        UnsupportedSource: naming it.
    """
    if name.split(".")[0] in _CODE and name not in _HARMLESS:
        raise UnsupportedSource(
            "a pickle names something that can run code; nothing of it was run",
            found=name[:200],
            remedy=_REMEDY,
        )


def refuse_function(name: str) -> None:
    """Refuse the call of a function that is not known. A class may be called: its objects are inert.

    Raises:
        UnsupportedSource: naming it.
    """
    last = name.rpartition(".")[2].lstrip("_")
    if last[:1].isupper() or name in _HARMLESS or name.startswith(_HARMLESS_BEGINNINGS):
        return
    raise UnsupportedSource(
        "a pickle calls a function that is not known; nothing of it was run",
        found=name[:200],
        remedy=_REMEDY,
    )


_REMEDY = "Save the weights alone: torch.save(model.state_dict(), PATH), or safetensors."
