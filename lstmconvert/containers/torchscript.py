"""TorchScript archives: the attributes of a module object and what its source says of its classes.

The code in such an archive is never run; of it, only lines that state a constant or list the parameters
of a class are read.

Source: files that ``torch.jit.save`` of torch 1.8 to 2.13 writes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping

from lstmconvert.containers import torch_packed
from lstmconvert.containers.pickle_objects import Unknown
from lstmconvert.containers.torch_pickle import Tensor
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.values import dataclass

_DEEPEST = 100
_MOST_MODULES = 100_000
_CLASS = re.compile(r"^class (\w+)\(\w+\):\s*$")
_CONSTANT = re.compile(r"^  (\w+) : Final\[\w+\] = (.{1,200})$")
_NAMES = re.compile(r"^  __(parameters|buffers)__ = (\[.*\])\s*$")


@dataclass(frozen=True, slots=True)
class Module:
    """A module of a TorchScript archive.

    Attributes:
        name: its class, such as ``torch.nn.modules.rnn.LSTM``.
        settings: its constants and plain attributes (``hidden_size``, ``mode``, ``batch_first``, ...).
        parameters, buffers: the names of its own tensors that its class lists as such.
    """

    name: str
    settings: Mapping[str, object]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """What a TorchScript archive holds.

    Attributes:
        tensors: parameters, buffers and other attributes that are tensors or packed weights, by path of
            attributes.
        modules: every module by path; the whole is the empty path.
    """

    tensors: Mapping[str, object]
    modules: Mapping[str, Module]

    def is_bidirectional(self, prefix: str) -> bool | None:
        """Whether the module of a prefix (with its dot) says that it has two directions."""
        module = self.modules.get(prefix.rstrip("."))
        said = None if module is None else module.settings.get("bidirectional")
        return said if isinstance(said, bool) else None


def read(root: object, source: Callable[[str], str | None]) -> Script:
    """The modules below a module object.

    Args:
        root: the object of ``data.pkl``.
        source: gives the text of a member of ``code/``, or ``None`` when there is none.

    Raises:
        BadFile: when the objects are not a tree of modules.
        UnsupportedSource: when the object is no module of TorchScript.
    """
    if not isinstance(root, Unknown) or not root.name.startswith("__torch__."):
        raise UnsupportedSource("the archive has no TorchScript module in it")
    classes = _Classes(source)
    tensors: dict[str, object] = {}
    modules: dict[str, Module] = {}
    pending = [("", root, 0)]
    while pending:
        path, module, depth = pending.pop()
        if depth > _DEEPEST or len(modules) > _MOST_MODULES:
            raise BadFile("the modules of the archive contain one another without end")
        state = module.state if isinstance(module.state, dict) else {}
        said = classes.of(module.name)
        settings = dict(said.constants)
        inner: list[tuple[str, Unknown, int]] = []
        for name, value in state.items():
            place = f"{path}.{name}" if path else str(name)
            if isinstance(value, Tensor) or torch_packed.is_packed_object(value):
                tensors[place] = value
            elif isinstance(value, Unknown) and value.name.startswith("__torch__."):
                inner.append((place, value, depth + 1))
            elif isinstance(value, bool | int | float | str) or value is None:
                settings[str(name)] = value
        modules[path] = Module(_plain(module.name), settings, said.parameters, said.buffers)
        pending.extend(reversed(inner))
    return Script(tensors, modules)


def _plain(name: str) -> str:
    """The name of a class without what TorchScript adds to tell its copies apart."""
    return re.sub(r"___torch_mangle_\d+\.", "", name.removeprefix("__torch__."))


@dataclass(frozen=True, slots=True)
class _Class:
    constants: Mapping[str, object]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


class _Classes:
    """What the members of ``code/`` say of classes, read as they are asked for."""

    def __init__(self, source: Callable[[str], str | None]) -> None:
        self._source = source
        self._known: dict[str, dict[str, _Class]] = {}

    def of(self, name: str) -> _Class:
        module, _, last = name.rpartition(".")
        if module not in self._known:
            text = self._source(module.replace(".", "/") + ".py")
            self._known[module] = dict(_parsed(text or ""))
        return self._known[module].get(last, _Class({}, (), ()))


def _parsed(text: str) -> Iterator[tuple[str, _Class]]:
    name = ""
    constants: dict[str, object] = {}
    lists: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        if match := _CLASS.match(line):
            if name:
                yield name, _made(constants, lists)
            name, constants, lists = match[1], {}, {}
        elif match := _CONSTANT.match(line):
            value = _literal(match[2])
            if isinstance(value, bool | int | float | str):
                constants[match[1]] = value
        elif match := _NAMES.match(line):
            lists[match[1]] = tuple(re.findall(r'"(\w+)"', match[2]))
    if name:
        yield name, _made(constants, lists)


def _made(constants: Mapping[str, object], lists: Mapping[str, tuple[str, ...]]) -> _Class:
    return _Class(constants, lists.get("parameters", ()), lists.get("buffers", ()))


def _literal(text: str) -> object:
    """A number, text or truth value; ``None`` for anything else."""
    if not re.fullmatch(r'True|False|-?[\d.][\d.e+-]*|"[^"\\]*"', text):
        return None
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return value
