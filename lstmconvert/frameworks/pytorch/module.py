"""The module while it is being written: attributes, lines of ``forward``, tensors, helpers."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from lstmconvert.frameworks.pytorch import helpers
from lstmconvert.frameworks.pytorch.names import (
    RESERVED_ATTRIBUTES,
    RESERVED_VARIABLES,
    Names,
    identifier,
)
from lstmconvert.frameworks.pytorch.source import indented, rendered, too_long, without_brackets
from lstmconvert.frameworks.pytorch.values import Value
from lstmconvert.model import Call, Model
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    from lstmconvert.frameworks.pytorch.cells import Recipe

CLASS = "Model"
_STATE = "_state"


def local_name(text: str) -> str:
    """A text as the name of a variable that is no state."""
    name = identifier(text, otherwise="value")
    return f"{name}_value" if re.search(rf"{_STATE}(_\d+)?$", name) else name


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter of ``forward``; those with an annotation are optional states."""

    name: str
    annotation: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.annotation} | None = None" if self.annotation else self.name


@dataclass(slots=True, eq=False)
class Module:
    """What has been written so far.

    Attributes:
        model: what is written.
        tensors: the state_dict.
        init: lines of ``__init__`` after the first.
        forward: lines of ``forward``.
        values: every value of the model that has been computed, under its name.
        whole_states: names of the final states of a call to the variables that hold all of them.
        arguments: of ``forward``.
        returned_states: variables that ``forward`` gives back after its results.
        carried: attributes of recurrent layers to the variables of their states.
    """

    model: Model
    tensors: dict[str, Lazy] = field(default_factory=dict)
    init: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    whole_states: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    arguments: list[Argument] = field(default_factory=list)
    returned_states: list[str] = field(default_factory=list)
    carried: dict[str, str] = field(default_factory=dict)
    _attributes: Names = field(default_factory=lambda: Names(RESERVED_ATTRIBUTES))
    _helpers: list[str] = field(default_factory=list)
    _classes: dict[str, list[str]] = field(default_factory=dict)
    _recipes: dict[tuple[object, ...], str] = field(default_factory=dict)
    _kept: set[str] = field(default_factory=set)
    _busy: set[str] = field(default_factory=set)
    _dying: set[str] = field(default_factory=set)
    _temporary: set[str] = field(default_factory=set)
    _left: Counter[str] = field(default_factory=Counter)
    _open: dict[str, frozenset[str]] = field(default_factory=dict)
    _opened: int = 0

    # Attributes.

    def attribute(self, layer: str, part: str = "") -> str:
        """A new attribute, named after a layer of the source."""
        return self._attributes.take(identifier(f"{layer}_{part}" if part else layer))

    def submodule(self, layer: str, constructor: str, tensors: Mapping[str, Lazy]) -> str:
        """Make a layer of torch an attribute; ``tensors`` are its state_dict. Returns the attribute."""
        name = self.attribute(layer)
        self.init.append(f"self.{name} = {constructor}")
        self.tensors.update({f"{name}.{local}": lazy for local, lazy in tensors.items()})
        return name

    def parameter(self, layer: str, part: str, lazy: Lazy, *, trained: bool = True) -> str:
        """Make an array an attribute: a parameter, or a buffer. Returns the attribute."""
        name = self.attribute(layer, part)
        shape = ", ".join(map(str, lazy.shape)) or "()"
        empty = f"torch.empty({shape})"
        self.init.append(
            f"self.{name} = nn.Parameter({empty})" if trained else f'self.register_buffer("{name}", {empty})'
        )
        self.tensors[name] = lazy
        return name

    # What else the file needs.

    def helper(self, name: str) -> str:
        """Have a function or class of ``helpers`` in the file, after those that it uses. Returns its name."""
        for needed in helpers.NEEDED.get(name, ()):
            self.helper(needed)
        if name not in self._helpers:
            self._helpers.append(name)
        return name

    def own_class(
        self, key: tuple[object, ...], title: str, make: Recipe | None, lines: Sequence[str] = ()
    ) -> str:
        """Have a class in the file, from a recipe or lines; equal keys share one. Returns its name."""
        if key not in self._recipes:
            number = 1 + sum(1 for name in self._recipes.values() if re.fullmatch(rf"{title}\d*", name))
            name = title if number == 1 else f"{title}{number}"
            self._recipes[key] = name
            if make is None:
                self._classes[name] = [line.replace("CLASS", name) for line in lines]
            else:
                from lstmconvert.frameworks.pytorch import cells  # felt where torch's own layers do

                self._classes[name] = cells.source(name, make)
        return self._recipes[key]

    # Values and variables.

    def start(self, uses: Counter[str]) -> None:
        """State how often each value will be used."""
        self._left = uses

    def begin(self, call: Call) -> None:
        """Begin to write a call: what it uses for the last time may be written over by its result."""
        before = self._alive()
        for name in used_by(call):
            self._left[name] -= 1
        after = self._alive()
        self._busy = before | after
        self._dying = before - after
        self._temporary = set()

    def _alive(self) -> set[str]:
        """The variables that are still needed; a value that has been used for the last time is let go of."""
        for name in itertools.islice(reversed(self.values), len(self.values) - self._opened):
            self._open[name] = self.values[name].variables
        self._opened = len(self.values)
        self._open = {name: variables for name, variables in self._open.items() if self._left[name] > 0}
        return self._kept.union(*self._open.values())

    def keep(self, wanted: str) -> str:
        """A variable that is handed on to the caller: a state. No other variable has such a name."""
        name = Names(self._kept).take(f"{wanted}{_STATE}")
        self._kept.add(name)
        return name

    def variable(self, wanted: str) -> str:
        """A variable for use inside the call that is being written."""
        name = Names(RESERVED_VARIABLES | self._busy | set(helpers.TEXTS)).take(local_name(wanted))
        self._busy.add(name)
        self._temporary.add(name)
        return name

    def result_variable(self, wanted: str, over: Iterable[str]) -> str:
        """A variable for a result: ``x`` where that is free, or may be written over, else ``wanted``.

        Args:
            wanted: what to call it otherwise.
            over: the variables that nothing after this statement reads.
        """
        free = (self._dying | self._temporary) & set(over)
        for name in ("x", local_name(wanted)):
            if name in free or (name == "x" and name not in self._busy):
                self._busy.add(name)
                self._temporary.add(name)
                return name
        return self.variable(wanted)

    def is_used(self, name: str) -> bool:
        """Whether anything will use a value."""
        return self._left[name] > 0

    def line(self, code: str) -> None:
        """Add a line to ``forward``; one that is too long is taken apart first."""
        while (found := too_long(code, depth=2)) is not None:
            start, end = found
            name = self.variable("part")
            self.line(f"{name} = {without_brackets(code[start:end])}")
            code = code[:start] + name + code[end:]
        self.forward.append(code)

    def assigned(self, wanted: str, code: str) -> str:
        """Add a line that gives an expression a name for use inside the call. Returns the variable."""
        name = self.variable(wanted)
        self.line(f"{name} = {code}")
        return name

    def bind(self, names: Sequence[str], results: Sequence[Value], wanted: str) -> None:
        """Give the results of a call to the values of the model; what nobody uses is not computed."""
        needed = [(name, value) for name, value in zip(names, results, strict=False) if self.is_used(name)]
        needed.reverse()  # the first result comes last, as it may be written over what the others read
        for index, (name, value) in enumerate(needed):
            if value.is_atom:
                self.values[name] = value
                continue
            if name == names[0]:
                read_later = {v for _, other in needed[index + 1 :] for v in other.variables}
                held = {v for other, _ in needed[:index] for v in self.values[other].variables}
                atoms = {v for _, other in needed if other.is_atom for v in other.variables}
                over = (self._dying | self._temporary) - read_later - held - atoms
                variable = self.result_variable(wanted, over)
            else:
                variable = self.variable(
                    "mask" if value.dtype == "bool" else f"{wanted}_{names.index(name) + 1}"
                )
            self.line(f"{variable} = {value.code}")
            self.values[name] = value.named(variable)

    # The file.

    def text(self, title: str, load: Sequence[str], imports: Sequence[str]) -> str:
        """The whole source."""
        body = [line for name in self._helpers for line in ["", "", *helpers.lines(name)]]
        body += [line for lines in self._classes.values() for line in ["", "", *lines]]
        body += ["", "", *self._model_class(load)]
        code = "\n".join(body)
        lines = [f'"""{title}"""', "", *_imports(code, imports), *body]
        return "\n".join(rendered(lines)) + "\n"

    def _model_class(self, load: Sequence[str]) -> list[str]:
        arguments = ", ".join(["self", *map(str, self.arguments)])
        return [
            f"class {CLASS}(nn.Module):",
            *indented(["def __init__(self):", *indented(["super().__init__()", *self.init]), ""]),
            *indented([f"def forward({arguments}):", *indented(self.forward), ""]),
            *indented(load),
        ]


def used_by(call: Call) -> tuple[str, ...]:
    """The values that a call reads, each as often as it does."""
    return (*call.inputs, *call.initial_state, *([call.mask] if call.mask else []))


def _imports(code: str, extra: Sequence[str]) -> list[str]:
    """The imports that the code needs, in isort's order."""
    lines = ["import torch"] if re.search(r"\btorch\.", code) else []
    if re.search(r"\bF\.", code):
        lines.append("import torch.nn.functional as F")
    lines += sorted(extra)
    lines.append("from torch import Tensor, nn" if re.search(r"\bTensor\b", code) else "from torch import nn")
    if "pack_padded_sequence" in code:
        lines.append("from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence")
    return lines
