"""Pickles read as data: a machine for the pickle opcodes that runs nothing a pickle names.

A pickle is a program; the usual reader imports and calls whatever it names. This one imports nothing. What
a pickle names becomes either a value from the table that the caller gives, or an inert ``Unknown`` that
only remembers its name, arguments and state. Calls happen only to entries of that table, with values that
the machine itself made, and each entry checks its own arguments.

Sizes that a pickle states are compared with what is left of it before anything is allocated. Only values
that hash in constant time become keys. The machine does not recurse.

Source: the opcode table of ``pickletools`` (Python 3.11), protocols 0 to 5.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from lstmconvert.containers.pickle_objects import (
    Constructor,
    Global,
    Restorable,
    Span,
    Unknown,
    key,
    refuse_code,
    refuse_function,
)
from lstmconvert.errors import BadFile, UnsupportedSource

LARGE_BYTES = 1 << 16
"""Byte strings from this size on are left in the file, where the caller asks for that."""
_COPIES = 2
"""How many values may be copied per byte of a pickle, ..."""
_COPIES_ALLOWED = 1 << 18
"""... and in any case: arguments of calls, attributes of dictionaries."""


def loads(
    data: bytes, table: Mapping[str, object], *, persistent: Callable[[object], object] | None = None
) -> object:
    """``load`` for a pickle in memory."""
    return load(io.BytesIO(data), len(data), table, persistent=persistent)


def load(
    stream: BinaryIO,
    end: int,
    table: Mapping[str, object],
    *,
    persistent: Callable[[object], object] | None = None,
    leave_large_bytes: bool = False,
) -> object:
    """Read one pickle; the stream stands behind its end afterwards.

    Args:
        stream: where it begins.
        end: the offset behind which the stream has nothing; no size in the pickle may exceed what is left.
        table: what names in it stand for: ``"module.name"`` to a value, to a ``Constructor`` that may be
            called, or to nothing (then an ``Unknown``).
        persistent: makes the object of a persistent id; without it such an id is refused.
        leave_large_bytes: give long byte strings as a ``Span`` of the stream instead of reading them.

    Returns:
        The object: plain Python values, what the table's entries made, and ``Global`` and ``Unknown``.

    Raises:
        BadFile: when it is no pickle, is cut short, contradicts itself, or tries something that no
            harmless pickle does.
        UnsupportedSource: when it has an opcode that needs other data than the file.
    """
    return _Machine(stream, end, table, persistent, leave_large_bytes).run()


_MARK = object()
_UINT2, _INT4, _UINT4, _UINT8 = (struct.Struct(code) for code in ("<H", "<i", "<I", "<Q"))
_FLOAT = struct.Struct(">d")


class _Machine:
    """The stack and memory of one pickle."""

    def __init__(
        self,
        stream: BinaryIO,
        end: int,
        table: Mapping[str, object],
        persistent: Callable[[object], object] | None,
        leave_large_bytes: bool,
    ) -> None:
        self.stream = stream
        self.end = end
        self.table = table
        self.persistent = persistent
        self.leave_large_bytes = leave_large_bytes
        self.stack: list[Any] = []
        self.memory: dict[int, object] = {}
        self.copied = 0

    def run(self) -> object:
        """Everything up to the ``STOP``."""
        try:
            while True:
                code = self.stream.read(1)
                if code == b".":
                    return self.pop()
                operation = _OPERATIONS.get(code)
                if operation is None:
                    raise self.bad("this is not a pickle, or it is damaged", found=f"opcode {code!r}")
                operation(self)
        except (ValueError, OverflowError, RecursionError, UnicodeError) as error:
            raise self.bad("the pickle is damaged", found=str(error)[:200]) from error

    def bad(self, message: str, found: object = None) -> BadFile:
        return BadFile(message, place=f"pickle, byte {self.stream.tell()}", found=found)

    # The stream

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        if size < 0 or size > self.end - self.stream.tell():
            raise self.bad("the pickle is cut short", found=f"{size} more bytes stated")
        data = self.stream.read(size)
        if len(data) != size:
            raise self.bad("the pickle is cut short")
        return data

    def number(self, kind: struct.Struct) -> Any:
        return kind.unpack(self.take(kind.size))[0]

    def byte(self) -> int:
        return self.take(1)[0]

    def raw_line(self) -> bytes:
        """Everything up to the end of the line."""
        line = self.stream.readline(max(0, self.end - self.stream.tell()))
        if not line.endswith(b"\n"):
            raise self.bad("the pickle is cut short")
        return line[:-1]

    def line(self) -> str:
        return self.raw_line().decode("utf-8")

    def text(self, size: int) -> str:
        return self.take(size).decode("utf-8", "surrogatepass")

    # The stack

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.bad("the pickle is damaged: it takes more than it has put down")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def since_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise self.bad("the pickle is damaged: a mark is missing")

    # Objects

    def named(self, module: object, name: object) -> object:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.bad("a pickle names a class by something that is no name")
        full = f"{module}.{name}"
        if full in self.table:
            return self.table[full]
        refuse_code(full)
        return Global(full)

    def call(self, function: object, arguments: object) -> object:
        """What a call makes: only entries of the table are called."""
        if not isinstance(arguments, tuple):
            raise self.bad("a pickle calls something with arguments that are no tuple")
        if isinstance(function, Global):
            refuse_function(function.name)
            return Unknown(function.name, arguments)
        if not isinstance(function, Constructor):
            raise self.bad("a pickle calls something that is no function", type(function).__name__)
        for argument in arguments:
            self.count_copy(argument)
        try:
            return function.function(*arguments)
        except TypeError as error:
            raise self.bad("a pickle calls something with the wrong arguments", str(error)[:200]) from error

    def new(self, kind: object, arguments: object) -> object:
        """What ``kind.__new__`` makes: for a class that is not known, an inert object."""
        if isinstance(kind, Global) and isinstance(arguments, tuple):
            return Unknown(kind.name, arguments)
        return self.call(kind, arguments)

    def count_copy(self, value: object) -> None:
        """Keep what is copied in proportion to the size of the pickle: one value can be copied often."""
        if isinstance(value, str | bytes | list | tuple | dict | set):
            self.copied += len(value)
            if self.copied > _COPIES * self.stream.tell() + _COPIES_ALLOWED:
                raise self.bad("a pickle makes far more than it holds")

    def append(self, target: object, values: list[object]) -> None:
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Unknown):
            target.elements.extend(values)
        else:
            raise self.bad("a pickle appends to something that is no list", type(target).__name__)

    def set_items(self, target: object, values: list[object]) -> None:
        if len(values) % 2:
            raise self.bad("a pickle sets a key without a value")
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if isinstance(target, dict):
            for name, value in pairs:
                target[key(name)] = value
        elif isinstance(target, Unknown):
            target.entries.extend(pairs)
        else:
            raise self.bad("a pickle sets items of something that is no dictionary", type(target).__name__)

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Unknown):
            target.state = state
        elif isinstance(target, Restorable):
            self.count_copy(state)
            target.restore(state)
        else:
            raise self.bad("a pickle sets the state of something that has none", type(target).__name__)


# ---------------------------------------------------------------------------------------- the opcodes


def _bytes(machine: _Machine, size: int) -> None:
    if machine.leave_large_bytes and size >= LARGE_BYTES:
        offset = machine.stream.tell()
        if size > machine.end - offset:
            raise machine.bad("the pickle is cut short", found=f"{size} more bytes stated")
        machine.stream.seek(offset + size)
        machine.push(Span(offset, size))
    else:
        machine.push(machine.take(size))


def _old_string(machine: _Machine, size: int) -> None:
    """A string of Python 2: text or bytes, it does not say which."""
    data = machine.take(size)
    try:
        machine.push(data.decode("utf-8"))
    except UnicodeDecodeError:
        machine.push(data)


def _quoted(machine: _Machine) -> None:
    """A string of Python 2 in protocol 0."""
    import codecs
    import warnings

    text = machine.raw_line()
    if len(text) < 2 or text[0] != text[-1] or text[0] not in b"'\"":
        raise machine.bad("a string has no quotes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of escapes that do not exist, which stay as they are.
        data, _ = codecs.escape_decode(text[1:-1])
    try:
        machine.push(data.decode("utf-8"))
    except UnicodeDecodeError:
        machine.push(data)


def _integer_line(machine: _Machine) -> None:
    text = machine.line()
    machine.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text.removesuffix("L")))


def _long(machine: _Machine, size: int) -> None:
    machine.push(int.from_bytes(machine.take(size), "little", signed=True))


def _get(machine: _Machine, index: int) -> None:
    try:
        machine.push(machine.memory[index])
    except KeyError:
        raise machine.bad("a pickle asks for something that it never remembered") from None


def _put(machine: _Machine, index: int) -> None:
    if index < 0:
        raise machine.bad("a pickle remembers something under a negative number")
    machine.memory[index] = machine.top()


def _tuple(machine: _Machine, size: int) -> None:
    parts = [machine.pop() for _ in range(size)]
    machine.push(tuple(reversed(parts)))


def _pop(machine: _Machine) -> None:
    if not machine.stack:
        raise machine.bad("the pickle is damaged: it takes more than it has put down")
    machine.stack.pop()


def _pop_mark(machine: _Machine) -> None:
    machine.since_mark()


def _dictionary(machine: _Machine) -> None:
    values = machine.since_mark()
    made: dict[object, object] = {}
    machine.set_items(made, values)
    machine.push(made)


def _appends(machine: _Machine) -> None:
    values = machine.since_mark()
    machine.append(machine.top(), values)


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.append(machine.top(), [value])


def _set_items(machine: _Machine) -> None:
    values = machine.since_mark()
    machine.set_items(machine.top(), values)


def _set_item(machine: _Machine) -> None:
    value, name = machine.pop(), machine.pop()
    machine.set_items(machine.top(), [name, value])


def _add_items(machine: _Machine) -> None:
    values = machine.since_mark()
    target = machine.top()
    if isinstance(target, set):
        target.update(key(value) for value in values)
    else:
        machine.append(target, values)


def _reduce(machine: _Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, arguments))


def _new_object(machine: _Machine) -> None:
    arguments, kind = machine.pop(), machine.pop()
    machine.push(machine.new(kind, arguments))


def _new_object_with_names(machine: _Machine) -> None:
    named, arguments, function = machine.pop(), machine.pop(), machine.pop()
    if named and not isinstance(function, Global):
        raise machine.bad("a pickle calls something with named arguments that has none")
    machine.push(machine.new(function, arguments))


def _object(machine: _Machine) -> None:
    values = machine.since_mark()
    if not values:
        raise machine.bad("a pickle makes an object without a class")
    machine.push(machine.call(values[0], tuple(values[1:])))


def _instance(machine: _Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.push(machine.call(machine.named(module, name), tuple(machine.since_mark())))


def _global(machine: _Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.push(machine.named(module, name))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(machine.named(module, name))


def _persistent(machine: _Machine) -> None:
    identity = machine.pop()
    if machine.persistent is None:
        raise machine.bad("a pickle refers to objects outside itself")
    machine.push(machine.persistent(identity))


def _persistent_line(machine: _Machine) -> None:
    raise machine.bad("a pickle refers to objects outside itself", found=machine.line()[:80])


def _elsewhere(_machine: _Machine) -> None:
    raise UnsupportedSource(
        "a pickle needs objects that are not in the file (extension codes or buffers out of band)"
    )


def _frame(machine: _Machine) -> None:
    size = machine.number(_UINT8)
    if size > machine.end - machine.stream.tell():
        raise machine.bad("the pickle is cut short", found=f"a frame of {size} bytes")


def _protocol(machine: _Machine) -> None:
    version = machine.byte()
    if version > 5:
        raise machine.bad("a pickle of an unknown protocol", found=version)


def _nothing(machine: _Machine) -> None:
    """READONLY_BUFFER: what was read is never written to."""
    machine.top()


_OPERATIONS: Mapping[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol,
    b"\x95": _frame,
    b"(": lambda m: m.push(_MARK),
    b"0": _pop,
    b"1": _pop_mark,
    b"2": lambda m: m.push(m.top()),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": _integer_line,
    b"L": lambda m: m.push(int(m.line().removesuffix("L"))),
    b"J": lambda m: m.push(m.number(_INT4)),
    b"K": lambda m: m.push(m.byte()),
    b"M": lambda m: m.push(m.number(_UINT2)),
    b"\x8a": lambda m: _long(m, m.byte()),
    b"\x8b": lambda m: _long(m, m.number(_INT4)),
    b"F": lambda m: m.push(float(m.line())),
    b"G": lambda m: m.push(m.number(_FLOAT)),
    b"S": _quoted,
    b"T": lambda m: _old_string(m, m.number(_INT4)),
    b"U": lambda m: _old_string(m, m.byte()),
    b"B": lambda m: _bytes(m, m.number(_UINT4)),
    b"C": lambda m: _bytes(m, m.byte()),
    b"\x8e": lambda m: _bytes(m, m.number(_UINT8)),
    b"\x96": lambda m: _bytes(m, m.number(_UINT8)),
    b"\x97": _elsewhere,
    b"\x98": _nothing,
    b"V": lambda m: m.push(m.raw_line().decode("raw-unicode-escape")),
    b"X": lambda m: m.push(m.text(m.number(_UINT4))),
    b"\x8c": lambda m: m.push(m.text(m.byte())),
    b"\x8d": lambda m: m.push(m.text(m.number(_UINT8))),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.since_mark()),
    b"a": _append,
    b"e": _appends,
    b"}": lambda m: m.push({}),
    b"d": _dictionary,
    b"s": _set_item,
    b"u": _set_items,
    b"\x8f": lambda m: m.push(set()),
    b"\x90": _add_items,
    b"\x91": lambda m: m.push({key(value) for value in m.since_mark()}),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _new_object,
    b"\x92": _new_object_with_names,
    b"o": _object,
    b"i": _instance,
    b"b": lambda m: m.build(),
    b"g": lambda m: _get(m, int(m.line())),
    b"h": lambda m: _get(m, m.byte()),
    b"j": lambda m: _get(m, m.number(_UINT4)),
    b"p": lambda m: _put(m, int(m.line())),
    b"q": lambda m: _put(m, m.byte()),
    b"r": lambda m: _put(m, m.number(_UINT4)),
    b"\x94": lambda m: _put(m, len(m.memory)),
    b"P": _persistent_line,
    b"Q": _persistent,
    b"\x82": _elsewhere,
    b"\x83": _elsewhere,
    b"\x84": _elsewhere,
}
