"""Mapping files: TOML that says where a framework keeps each gate and what its equations can express.

``load_file`` turns a file into frozen values or raises one error that lists every fault with its line.
The language is described in docs form at the top of each table below:

``[framework]``
    ``name``, ``title``, ``releases``, ``checked``, ``verified`` (``runtime`` or ``documented``),
    ``documentation``, ``module`` (the Python module that reads names and configuration; left out for
    plain named tensors), ``containers``, ``suffixes``; ``separators`` are the characters that may stand
    for the ``/`` of names in this file, the one that is written first; ``detect = false`` where the names
    are too common to tell the framework, which then has to be named.
``[layout.NAME]``
    One way to store one cell (``cell``, ``gates`` in stored order) or one neighbour (``operation``);
    ``classes`` are the source's names for it; ``reads_only`` layouts are never written. ``scope`` is the
    name that the framework gives such a module by default, ``_1``, ``_2``, ... behind it for further ones:
    without it names as common as ``linear/w`` are not taken for this layout. ``tied`` lists groups of
    gates that share all their numbers: only the first one of a group has tensors.
``[layout.NAME.spelling]``
    How ``gate`` and ``direction`` are spelled inside tensor names. ``direction.alone`` is how a direction
    is spelled that has no other beside it (as ``forward`` if left out). ``side`` is a second way to spell
    the direction, for names in ``also``.
``[layout.NAME.tensors]``
    Canonical part (or ``bias``, the pair of both biases) =
    ``{ name, axes, gates?, slots?, optional?, also? }`` or a list of such. Names may hold ``{gate}``,
    ``{direction}`` (or ``{side}``) and ``{layer}``. ``optional`` names a group of tensors that are present
    or absent together, or is ``"each"``. ``also`` is another name of the same tensor: either is read, both
    are written.
``[layout.NAME.equations]``
    Options that are fixed in this framework.
``[layout.NAME.accepts]``
    Options that it can be told. An option named in neither table cannot be expressed.
``[activations]``
    Named sets of activations for use in ``accepts``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lstmconvert import axes as axis_notation
from lstmconvert import operations, plain_toml
from lstmconvert.activations import KINDS, Activation
from lstmconvert.axes import Axes
from lstmconvert.canonical import Coupling, GruEquations, LstmEquations, ResetPlace, RnnEquations, UpdateKeeps
from lstmconvert.errors import BadFile
from lstmconvert.gates import GATED_PARTS, GATES, PART_AXES, PEEPHOLE_GATES, Cell, Direction, Gate, Part
from lstmconvert.values import dataclass


def _near(text: str, known: Iterable[str]) -> list[str]:
    """The known name that a text resembles most, if it resembles one."""
    import difflib  # only for a mistake: its start-up is felt

    return difflib.get_close_matches(text, list(known), 1)


SCHEMA = 1
BIAS_PAIR = "bias"
EACH = "each"
"""Value of ``optional`` for tensors that are present or absent one by one."""
ANY = "any"
"""Value of an activation in ``accepts`` that stands for every kind with any parameters."""
_ALONE = "alone"
_HOLES = ("gate", "direction", "side", "layer")
_CELL_AXES = ("input", "hidden", "recurrent", "projected", "direction", "gate", "bias", "slot", "layer")
_CLIPS = ("preactivation_clip", "cell_clip", "projection_clip")


@dataclass(frozen=True, slots=True)
class Slot:
    """One entry of an irregular list of blocks: which part of which gate lies there."""

    part: Part
    gate: Gate


@dataclass(frozen=True, slots=True)
class TensorRule:
    """Where one tensor's numbers belong.

    Attributes:
        part: canonical part, or ``"bias"`` for a tensor that holds both biases, or an operation's part.
        name: template of the tensor's name.
        axes: how its axes are made.
        gates: the gates that it holds, in stored order.
        slots: meaning of the positions on the ``slot`` axis.
        optional: group of tensors that are present or absent together, or ``None`` if always there.
        also: template of a second name that the same tensor has in the framework's files.
    """

    part: str
    name: str
    axes: Axes
    gates: tuple[Gate, ...] = ()
    slots: tuple[Slot, ...] = ()
    optional: str | None = None
    also: str | None = None


@dataclass(frozen=True, slots=True)
class ActivationPattern:
    """A set of activations of one kind: with these parameters, or with any."""

    kind: str
    parameters: tuple[float, ...] | None = None

    def matches(self, activation: Activation) -> bool:
        """Whether ``activation`` is in the set."""
        if activation.kind != self.kind:
            return False
        given = tuple(v for v in (activation.alpha, activation.beta) if v is not None)
        return self.parameters is None or self.parameters == given

    def __str__(self) -> str:
        return (
            self.kind
            if self.parameters is None
            else f"{self.kind}({', '.join(f'{p:g}' for p in self.parameters)})"
        )


Accepted = tuple[ActivationPattern, ...] | tuple[str, ...] | bool | Mapping[Gate, float]


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a layout's equations can express.

    Attributes:
        activations: option name to the activations that may stand there.
        choices: ``coupling``, ``reset``, ``update_keeps`` to the values that may stand there.
        clips: the clips that can be told.
        constant: constants that the framework always adds at run time, or ``None`` where it can be told any.
        fixed_clips: clips that the framework always applies.
        directions: ``forward``, ``reverse``, ``bidirectional``.
        same_activation: groups of options that must have equal values.
        per_direction: options that may differ between the two directions.
    """

    activations: Mapping[str, tuple[ActivationPattern, ...]]
    choices: Mapping[str, tuple[str, ...]]
    clips: frozenset[str]
    constant: Mapping[Gate, float] | None
    fixed_clips: Mapping[str, float]
    directions: tuple[str, ...]
    same_activation: tuple[tuple[str, ...], ...] = ()
    per_direction: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """One way in which a framework stores one cell or one neighbour.

    ``cell`` is ``None`` for a neighbour, ``operation`` is ``""`` for a cell. ``alone`` is how a direction is
    spelled that has no other beside it, ``None`` if as always; ``scope`` is the name that such a module has
    by default, ``""`` if its own names tell it; of the gates of a ``tied`` group only the first has tensors.
    """

    name: str
    cell: Cell | None
    operation: str
    classes: tuple[str, ...]
    gates: tuple[Gate, ...]
    gate_spelling: Mapping[Gate, str]
    direction_spelling: Mapping[Direction, str]
    tensors: tuple[TensorRule, ...]
    dialect: Dialect
    reads_only: bool = False
    side_spelling: Mapping[Direction, str] = field(default_factory=lambda: MappingProxyType({}))
    alone: str | None = None
    scope: str = ""
    tied: tuple[tuple[Gate, ...], ...] = ()

    def respelled(self, separator: str) -> Layout:
        """The same layout with another character for the ``/`` in its names."""
        if separator == "/":
            return self

        def spell(text: str) -> str:
            return text.replace("/", separator)

        rules = tuple(
            replace(rule, name=spell(rule.name), also=None if rule.also is None else spell(rule.also))
            for rule in self.tensors
        )
        return replace(
            self,
            tensors=rules,
            direction_spelling=MappingProxyType({d: spell(t) for d, t in self.direction_spelling.items()}),
            alone=None if self.alone is None else spell(self.alone),
        )


@dataclass(frozen=True, slots=True)
class MappingFile:
    """A framework as its mapping file describes it.

    ``detect`` says whether its names alone tell it; ``separators`` are what may stand for ``/`` in them.
    """

    name: str
    title: str
    releases: str
    checked: str
    verified: str
    documentation: str
    module: str
    containers: tuple[str, ...]
    suffixes: tuple[str, ...]
    layouts: Mapping[str, Layout]
    path: Path
    separators: tuple[str, ...] = ()
    detect: bool = True

    def of_class(self, class_name: str) -> tuple[Layout, ...]:
        """The layouts of a class or operator of the framework."""
        return tuple(layout for layout in self.layouts.values() if class_name in layout.classes)

    def of_cell(self, cell: Cell) -> tuple[Layout, ...]:
        """The layouts of a cell, in the order of the file."""
        named = self.layouts.naming(cell) if isinstance(self.layouts, _Layouts) else self.layouts
        return tuple(layout for name in named if (layout := self.layouts[name]).cell is cell)


class _Layouts(Mapping[str, Layout]):
    """The layouts of a built-in file, each read when it is first asked for: most conversions need few.

    Args:
        texts: the part of the file that belongs to each.
        read: reads one.
    """

    def __init__(self, texts: Mapping[str, str], read: Callable[[str, str], Layout]) -> None:
        self._texts = texts
        self._read = read
        self._found: dict[str, Layout] = {}

    def __getitem__(self, name: str) -> Layout:
        if name not in self._found:
            self._found[name] = self._read(name, self._texts[name])
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, name: object) -> bool:
        return name in self._texts

    def naming(self, word: str) -> list[str]:
        """The layouts in whose text a word stands between quotes; the others cannot mean it."""
        return [name for name, text in self._texts.items() if f'"{word}"' in text]


def folder() -> Path:
    """The folder of the built-in mapping files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "mappings"
    return inside if inside.is_dir() else package.parent / "mappings"


@cache
def load(name: str) -> MappingFile:
    """The built-in mapping file of a framework.

    Raises:
        BadFile: when there is none of that name.
    """
    path = folder() / f"{name}.toml"
    if not path.is_file():
        known = sorted(p.stem for p in folder().glob("*.toml"))
        raise BadFile(f"no framework is called {name!r}", expected=f"one of {', '.join(known)}")
    text = _text(path)
    rest, parts = _apart(text)
    data = _parsed(rest, path)
    around = _Reader(text)
    sets = around.activation_sets(data)

    def read(layout: str, part: str) -> Layout:
        reader = _Reader(text)
        found = reader.layout(layout, _parsed(part, path)["layout"][layout], sets)
        reader.check(path)
        assert found is not None  # else there is a fault
        return found

    result = around.mapping(data, path, _Layouts(parts, read))
    around.check(path)
    return result


def _apart(text: str) -> tuple[str, dict[str, str]]:
    """The text of a built-in file without its layouts, and that of each layout."""
    rest: list[str] = []
    parts: dict[str, list[str]] = {}
    lines = rest
    for line in text.split("\n"):
        if line.startswith("["):
            table, _, below = line.strip("[]").partition(".")
            lines = parts.setdefault(below.partition(".")[0], []) if table == "layout" else rest
        lines.append(line)
    return "\n".join(rest), {name: "\n".join(part) for name, part in parts.items()}


def load_file(path: Path) -> MappingFile:
    """Read and check a mapping file.

    Raises:
        BadFile: listing every fault as ``line N: table.key: what is wrong``.
    """
    text = _text(path)
    data = _of_tomllib(text, path)
    reader = _Reader(text)
    result = reader.mapping(data, path)
    reader.check(path)
    return result


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile("the mapping file cannot be read", file=path, found=error) from error


def _parsed(text: str, path: Path) -> dict[str, Any]:
    """The TOML of a built-in file, or of a part of it."""
    try:
        return plain_toml.loads(text)
    except ValueError:
        return _of_tomllib(text, path)


def _of_tomllib(text: str, path: Path) -> dict[str, Any]:
    import tomllib  # only for files of others: its start-up is felt

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadFile(f"the mapping file is not valid TOML: {error}", file=path) from error


def framework_head(path: Path) -> Mapping[str, Any]:
    """Only the ``[framework]`` table of a mapping file: cheap enough to do for all of them."""
    head = path.read_text(encoding="utf-8").split("\n[layout", 1)[0]
    table: Mapping[str, Any] = _parsed(head, path).get("framework", {})
    return table


class _Reader:
    """Turns parsed TOML into values and collects every fault on the way."""

    def __init__(self, text: str) -> None:
        self._whole = text
        self.faults: list[str] = []

    def check(self, path: Path) -> None:
        """See that there were no faults.

        Raises:
            BadFile: listing them.
        """
        if self.faults:
            raise BadFile("the mapping file has faults:\n  " + "\n  ".join(self.faults), file=path)

    def fault(self, path: str, problem: str) -> None:
        line = self._line(path)
        self.faults.append(f"line {line}: {path}: {problem}" if line else f"{path}: {problem}")

    def _line(self, path: str) -> int | None:
        """The line on which a dotted key stands, or the nearest table around it."""
        parts = path.split(".")
        best: int | None = None
        best_depth = 0
        table: list[str] = []
        for number, line in enumerate(self._whole.splitlines(), 1):
            header = re.match(r"\s*\[+([^\]]+)\]+", line)
            key = re.match(r"\s*([\w.-]+)\s*=", line)
            if header:
                table = [part.strip() for part in header[1].split(".")]
                here = table
            elif key:
                here = [*table, *key[1].split(".")]
            else:
                continue
            if here == parts[: len(here)] and len(here) > best_depth:
                best, best_depth = number, len(here)
        return best

    def keys(
        self, table: Any, path: str, known: Sequence[str], required: Sequence[str] = ()
    ) -> Mapping[str, Any]:
        """The table with unknown keys reported and dropped."""
        if not isinstance(table, dict):
            self.fault(path, f"found {type(table).__name__}, expected a table")
            return {}
        for key in table:
            if key not in known:
                near = _near(key, known)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
                self.fault(f"{path}.{key}" if path else key, f"unknown key{hint}")
        for key in required:
            if key not in table:
                self.fault(path or "file", f"the key {str(key)!r} is missing")
        return {key: value for key, value in table.items() if key in known}

    def text(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            self.fault(path, f"found {value!r}, expected text")
            return ""
        return value

    def texts(self, value: Any, path: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fault(path, f"found {value!r}, expected a list of text")
            return ()
        return tuple(value)

    def flag(self, value: Any, path: str) -> bool:
        if not isinstance(value, bool):
            self.fault(path, f"found {value!r}, expected true or false")
        return value is True

    def choice(self, value: Any, path: str, known: Sequence[str]) -> str | None:
        if value not in known:
            near = _near(str(value), known)
            self.fault(
                path,
                f"found {value!r}, expected one of {', '.join(known)}"
                + (f"; did you mean {near[0]!r}?" if near else ""),
            )
            return None
        return str(value)

    # The file, table by table.

    def mapping(
        self, data: Mapping[str, Any], path: Path, apart: Mapping[str, Layout] | None = None
    ) -> MappingFile:
        """The file; where its layouts are read ``apart``, ``data`` is what stands around them."""
        top = self.keys(data, "", ("schema", "framework", "layout", "activations"), ("schema", "framework"))
        if top.get("schema") != SCHEMA:
            self.fault("schema", f"found {top.get('schema')!r}, this version reads schema {SCHEMA}")
        known = (
            "name",
            "title",
            "releases",
            "checked",
            "verified",
            "documentation",
            "module",
            "containers",
            "suffixes",
            "separators",
            "detect",
        )
        head = self.keys(top.get("framework", {}), "framework", known, ("name",))
        values = {key: self.text(head[key], f"framework.{key}") for key in known[:7] if key in head}
        lists = {key: self.texts(head[key], f"framework.{key}") for key in known[7:10] if key in head}
        separators = lists.get("separators", ())
        if any(len(item) != 1 or item.isalnum() for item in separators):
            self.fault("framework.separators", f"found {list(separators)!r}, expected signs of one character")
            separators = ()
        if (verified := values.get("verified")) is not None:
            self.choice(verified, "framework.verified", ("runtime", "documented", "user"))
        if apart is None:
            sets = self.activation_sets(top)
            layouts: Mapping[str, Layout] = MappingProxyType(
                {
                    name: layout
                    for name, table in (top.get("layout") or {}).items()
                    if (layout := self.layout(name, table, sets)) is not None
                }
            )
        else:
            layouts = apart
        return MappingFile(
            name=values.get("name", ""),
            title=values.get("title", values.get("name", "")),
            releases=values.get("releases", ""),
            checked=values.get("checked", ""),
            verified=values.get("verified", "user"),
            documentation=values.get("documentation", ""),
            module=values.get("module", ""),
            containers=lists.get("containers", ()),
            suffixes=lists.get("suffixes", ()),
            layouts=layouts,
            path=path,
            separators=separators,
            detect=self.flag(head.get("detect", True), "framework.detect"),
        )

    def activation_sets(self, top: Mapping[str, Any]) -> Mapping[str, tuple[ActivationPattern, ...]]:
        """The table ``[activations]``."""
        return {
            name: tuple(
                p
                for item in self.texts(items, f"activations.{name}")
                for p in self.pattern(item, f"activations.{name}")
            )
            for name, items in self.keys(
                top.get("activations", {}), "activations", tuple(top.get("activations", {}))
            ).items()
        }

    def layout(
        self, name: str, table: Any, sets: Mapping[str, tuple[ActivationPattern, ...]]
    ) -> Layout | None:
        path = f"layout.{name}"
        known = (
            "cell",
            "operation",
            "classes",
            "gates",
            "spelling",
            "tensors",
            "equations",
            "accepts",
            "reads_only",
            "scope",
            "tied",
        )
        values = self.keys(table, path, known, ("tensors",))
        if ("cell" in values) == ("operation" in values):
            self.fault(path, "needs either 'cell' or 'operation'")
            return None
        classes = self.texts(values.get("classes", []), f"{path}.classes")
        reads_only = self.flag(values.get("reads_only", False), f"{path}.reads_only")
        if "operation" in values:
            return self.operation_layout(name, path, values, classes, reads_only)
        chosen = self.choice(values["cell"], f"{path}.cell", [str(c) for c in Cell])
        if chosen is None:
            return None
        cell = Cell(chosen)
        gates = self.gates(values.get("gates", [str(g) for g in GATES[cell]]), f"{path}.gates", GATES[cell])
        if sorted(gates) != sorted(GATES[cell]):
            self.fault(
                f"{path}.gates",
                f"found {', '.join(gates)}, expected every gate of {cell}: {', '.join(GATES[cell])}",
            )
        spelling = self.keys(values.get("spelling", {}), f"{path}.spelling", ("gate", "direction", "side"))
        gate_spelling = {
            Gate(k): self.text(v, f"{path}.spelling.gate.{k}")
            for k, v in self.keys(
                spelling.get("gate", {}), f"{path}.spelling.gate", tuple(str(g) for g in GATES[cell])
            ).items()
        }
        ways = tuple(str(d) for d in Direction)
        at = f"{path}.spelling.direction"
        said = self.keys(spelling.get("direction", {}), at, (*ways, _ALONE))
        spelled = {k: self.text(v, f"{at}.{k}") for k, v in said.items()}
        alone = spelled.pop(_ALONE, None)
        direction_spelling = {Direction(k): v for k, v in spelled.items()}
        at = f"{path}.spelling.side"
        side_spelling = {
            Direction(k): self.text(v, f"{at}.{k}")
            for k, v in self.keys(spelling.get("side", {}), at, ways).items()
        }
        rules = self.rules(values.get("tensors", {}), f"{path}.tensors", cell, gates)
        for rule in rules:
            at = f"{path}.tensors.{rule.part}"
            for template in (rule.name, rule.also or ""):
                self.holes(template, rule, at, gate_spelling, direction_spelling, side_spelling)
        tied = self.tied(values.get("tied", []), f"{path}.tied", GATES[cell], rules)
        return Layout(
            name, cell, "", classes, gates,
            MappingProxyType(gate_spelling), MappingProxyType(direction_spelling),
            rules, self.dialect(values, path, cell, sets), reads_only,
            MappingProxyType(side_spelling), alone, self.text(values.get("scope", ""), f"{path}.scope"), tied,
        )  # fmt: skip

    def tied(
        self, value: Any, path: str, known: Sequence[Gate], rules: Sequence[TensorRule]
    ) -> tuple[tuple[Gate, ...], ...]:
        """Groups of gates that share their numbers; only the first gate of each has tensors."""
        groups = tuple(self.gates(group, path, known) for group in (value if isinstance(value, list) else []))
        if not isinstance(value, list) or any(len(group) < 2 for group in groups):
            self.fault(path, f"found {value!r}, expected a list of lists of two or more gates")
        followers = {gate for group in groups for gate in group[1:]}
        for rule in rules:
            if own := [gate for gate in rule.gates if gate in followers]:
                self.fault(path, f"{own[0]} shares the numbers of another gate, but {rule.name!r} is its own")
        return groups

    def operation_layout(
        self, name: str, path: str, values: Mapping[str, Any], classes: tuple[str, ...], reads_only: bool
    ) -> Layout | None:
        self.keys(values, path, ("operation", "classes", "tensors", "reads_only"))
        known = _operation_classes()
        chosen = self.choice(values["operation"], f"{path}.operation", sorted(known))
        if chosen is None:
            return None
        parts = known[chosen].PARTS
        rules = []
        for part, entry in self.keys(values.get("tensors", {}), f"{path}.tensors", tuple(parts)).items():
            at = f"{path}.tensors.{part}"
            entry = self.keys(entry, at, ("name", "axes", "optional"), ("name", "axes"))
            axes = self.axes(entry.get("axes"), at, parts[part])
            if axes is not None:
                if sorted(axes.names) != sorted(parts[part]):
                    self.fault(at, f"axes {axes.text!r}, expected exactly {', '.join(parts[part])}")
                rules.append(
                    TensorRule(
                        part, self.text(entry.get("name", ""), at), axes, optional=self.optional(entry, at)
                    )
                )
        empty: Mapping[Any, Any] = MappingProxyType({})
        dialect = Dialect(empty, empty, frozenset(), empty, empty, ())
        return Layout(name, None, chosen, classes, (), empty, empty, tuple(rules), dialect, reads_only)

    def gates(self, value: Any, path: str, known: Sequence[Gate]) -> tuple[Gate, ...]:
        names = [self.choice(item, path, [str(g) for g in known]) for item in self.texts(value, path)]
        found = tuple(Gate(name) for name in names if name is not None)
        if len(set(found)) != len(found):
            self.fault(path, f"a gate appears twice in {', '.join(found)}")
        return found

    def axes(self, value: Any, path: str, known: Sequence[str]) -> Axes | None:
        if not isinstance(value, str):
            self.fault(path, f"axes are {value!r}, expected text")
            return None
        try:
            return _parsed_axes(value, tuple(known))
        except ValueError as error:
            self.fault(path, f"axes {error}")
            return None

    def optional(self, entry: Mapping[str, Any], path: str) -> str | None:
        value = entry.get("optional")
        if value is None:
            return None
        if value is True:
            return path
        return self.text(value, path) or None

    def rules(self, table: Any, path: str, cell: Cell, gates: tuple[Gate, ...]) -> tuple[TensorRule, ...]:
        known = (*(str(p) for p in Part), BIAS_PAIR)
        rules: list[TensorRule] = []
        values = self.keys(table, path, known, (Part.KERNEL, Part.RECURRENT))
        for part, entries in values.items():
            for entry in entries if isinstance(entries, list) else [entries]:
                rule = self.rule(part, entry, f"{path}.{part}", cell, gates)
                if rule is not None:
                    rules.append(rule)
        return tuple(rules)

    def rule(
        self, part: str, entry: Any, path: str, cell: Cell, gates: tuple[Gate, ...]
    ) -> TensorRule | None:
        known = ("name", "axes", "gates", "slots", "optional", "also")
        entry = self.keys(entry, path, known, ("name", "axes"))
        axes = self.axes(entry.get("axes"), path, _CELL_AXES)
        if axes is None:
            return None
        allowed = PEEPHOLE_GATES if part == Part.PEEPHOLE else GATES[cell]
        held = tuple(g for g in gates if g in allowed)
        if "gates" in entry:
            held = self.gates(entry["gates"], path, allowed)
        slots = []
        for item in self.texts(entry.get("slots", []), path):
            slot_part, _, gate = item.partition(".")
            if slot_part in (Part.BIAS_INPUT, Part.BIAS_RECURRENT) and gate in GATES[cell]:
                slots.append(Slot(Part(slot_part), Gate(gate)))
            else:
                self.fault(path, f"slot {item!r}, expected bias_input.GATE or bias_recurrent.GATE")
        if len(set(slots)) != len(slots):
            self.fault(path, "a slot appears twice")
        name = self.text(entry.get("name", ""), path)
        self.check_axes(part, axes, name, tuple(slots), path)
        gated = part == BIAS_PAIR or part in GATED_PARTS
        also = self.text(entry["also"], path) if "also" in entry else None
        held = held if gated else ()
        return TensorRule(part, name, axes, held, tuple(slots), self.optional(entry, path), also)

    def check_axes(self, part: str, axes: Axes, name: str, slots: tuple[Slot, ...], path: str) -> None:
        """A tensor has exactly the axes of its part; gate, bias and slot are on an axis or in the name."""
        names = list(axes.names)
        own = list(PART_AXES[Part.BIAS_INPUT] if part == BIAS_PAIR else PART_AXES[Part(part)])
        present = [n for n in names if n in ("input", "hidden", "recurrent", "projected")]
        in_sum = {n for d in axes.dimensions if len(d.terms) > 1 for t in d.terms for n in t}
        if sorted(n for n in present if n in own or n not in in_sum) != sorted(own):
            self.fault(
                path,
                f"axes {axes.text!r}, expected exactly {', '.join(own)} (and direction, gate, bias, slot)",
            )
        gated = part == BIAS_PAIR or part in GATED_PARTS
        says_gate = ("gate" in names) + ("{gate}" in name) + ("slot" in names)
        if gated and says_gate > 1:
            self.fault(path, "the gate is on an axis and in the name, or on two axes")
        if not gated and says_gate:
            self.fault(path, f"{part} belongs to no gate")
        if (part == BIAS_PAIR) != ("bias" in names or "slot" in names):
            self.fault(
                path,
                "a pair of biases is called 'bias' and has an axis 'bias' or 'slot'; other parts have none",
            )
        if ("slot" in names) != bool(slots):
            self.fault(path, "an axis 'slot' needs a list 'slots', and the other way round")

    def holes(
        self,
        template: str,
        rule: TensorRule,
        path: str,
        gates: Mapping[Gate, str],
        directions: Mapping[Direction, str],
        sides: Mapping[Direction, str],
    ) -> None:
        for hole in re.findall(r"\{([^}]*)\}", template):
            if hole not in _HOLES:
                self.fault(
                    path, f"name {template!r} has the hole {{{hole}}}, expected one of {', '.join(_HOLES)}"
                )
            if hole == "gate" and (missing := [g for g in rule.gates if g not in gates]):
                self.fault(path, f"spelling.gate does not say how {missing[0]!r} is spelled")
            if hole == "direction" and len(directions) != len(Direction):
                self.fault(path, "spelling.direction must say how forward and reverse are spelled")
            if hole == "side" and len(sides) != len(Direction):
                self.fault(path, "spelling.side must say how forward and reverse are spelled")

    # What the equations can express.

    def pattern(self, text: str, path: str) -> tuple[ActivationPattern, ...]:
        match = re.fullmatch(r"(\w+)(?:\(([^)]*)\))?", text)
        if match is None or match[1] not in KINDS:
            near = _near(text, KINDS)
            self.fault(
                path, f"unknown activation {text!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
            return ()
        try:
            parameters = None if match[2] is None else tuple(float(p) for p in match[2].split(","))
        except ValueError:
            self.fault(path, f"the parameters of {text!r} are not numbers")
            return ()
        return (ActivationPattern(match[1], parameters),)

    def patterns(
        self, value: Any, path: str, sets: Mapping[str, tuple[ActivationPattern, ...]]
    ) -> tuple[ActivationPattern, ...]:
        if isinstance(value, list):
            return tuple(p for item in self.texts(value, path) for p in self.pattern(item, path))
        if value == ANY:
            return _any_activation()
        if value in sets:
            return sets[value]
        return self.pattern(self.text(value, path), path)

    def dialect(
        self,
        values: Mapping[str, Any],
        path: str,
        cell: Cell,
        sets: Mapping[str, tuple[ActivationPattern, ...]],
    ) -> Dialect:
        options = option_names(cell)
        lists = ("directions", "same_activation", "per_direction")
        fixed = self.keys(values.get("equations", {}), f"{path}.equations", options)
        told = self.keys(values.get("accepts", {}), f"{path}.accepts", (*options, *lists))
        for option in fixed:
            if option in told:
                self.fault(f"{path}.accepts.{option}", "is fixed in 'equations' as well")
        activations: dict[str, tuple[ActivationPattern, ...]] = {}
        choices: dict[str, tuple[str, ...]] = {}
        clips: set[str] = set()
        fixed_clips: dict[str, float] = {}
        constant: Mapping[Gate, float] | None = MappingProxyType({})
        for table, kind in ((fixed, "equations"), (told, "accepts")):
            for option, value in table.items():
                at = f"{path}.{kind}.{option}"
                if option.endswith("_activation") and option not in lists:
                    activations[option] = self.patterns(value, at, sets)
                elif option in _CHOICES:
                    items = value if isinstance(value, list) else [value]
                    choices[option] = tuple(
                        c for item in items if (c := self.choice(item, at, _CHOICES[option]))
                    )
                elif option in _CLIPS:
                    if kind == "accepts" and value is True:
                        clips.add(option)
                    elif kind == "equations" and isinstance(value, int | float) and value is not True:
                        fixed_clips[option] = float(value)
                    else:
                        self.fault(
                            at, f"found {value!r}, expected true in 'accepts' or a number in 'equations'"
                        )
                elif option == "constant":
                    constant = None if value is True else self.constants(value, at, cell)
        for option in options:
            if option.endswith("_activation") and option not in activations:
                self.fault(path, f"neither 'equations' nor 'accepts' mentions {option}")
            if option in ("reset", "update_keeps") and option not in choices:
                self.fault(path, f"neither 'equations' nor 'accepts' mentions {option}")
        choices.setdefault("coupling", ("none",))
        directions = self.texts(told.get("directions", ["forward"]), f"{path}.accepts.directions")
        for direction in directions:
            self.choice(direction, f"{path}.accepts.directions", ("forward", "reverse", "bidirectional"))
        same = told.get("same_activation", [])
        return Dialect(
            MappingProxyType(activations),
            MappingProxyType(choices),
            frozenset(clips),
            constant,
            MappingProxyType(fixed_clips),
            directions,
            tuple(self.texts(group, f"{path}.accepts.same_activation") for group in same),
            self.texts(told.get("per_direction", []), f"{path}.accepts.per_direction"),
        )

    def constants(self, value: Any, path: str, cell: Cell) -> Mapping[Gate, float]:
        table = self.keys(value, path, tuple(str(g) for g in GATES[cell]))
        bad = [k for k, v in table.items() if not isinstance(v, int | float)]
        for key in bad:
            self.fault(f"{path}.{key}", f"found {table[key]!r}, expected a number")
        return MappingProxyType({Gate(k): float(v) for k, v in table.items() if k not in bad})


_CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "coupling": tuple(str(c) for c in Coupling),
        "reset": tuple(str(r) for r in ResetPlace),
        "update_keeps": tuple(str(u) for u in UpdateKeeps),
    }
)


def option_names(cell: Cell) -> tuple[str, ...]:
    """The options of a cell's equations, as mapping files name them: the fields of its dataclass."""
    kind: Any = {Cell.LSTM: LstmEquations, Cell.GRU: GruEquations, Cell.RNN: RnnEquations}[cell]
    names: tuple[str, ...] = kind.__match_args__
    return names


@cache
def _any_activation() -> tuple[ActivationPattern, ...]:
    return tuple(ActivationPattern(kind) for kind in KINDS)


@cache
def _parsed_axes(text: str, known: tuple[str, ...]) -> Axes:
    """``axes.parse``; most tensors have the axes of another."""
    return axis_notation.parse(text, known)


@cache
def _operation_classes() -> Mapping[str, type[operations.Operation]]:
    return MappingProxyType({_snake(kind.__name__): kind for kind in operations.Operation.__subclasses__()})


def operation_class(name: str) -> type[operations.Operation]:
    """The operation that a mapping file calls ``name`` (``convolution_1d``)."""
    return _operation_classes()[name]


def _snake(name: str) -> str:
    """``BatchNormalization`` to ``batch_normalization``, ``Convolution1D`` to ``convolution_1d``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[a-z])(?=\d)", "_", name)
    return re.sub(r"(\d)_([A-Z])\b", r"\1\2", spaced).lower()
