"""Frameworks whose files are nothing but named tensors: a mapping file says it all.

Serves home-made weight dumps with a mapping file of the user's own, and every framework that needs no
code of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from types import MappingProxyType

from lstmconvert import layout as layouts
from lstmconvert import lowering, mapping, provenance
from lstmconvert.activations import (
    HARD_SIGMOID_KERAS2,
    HARD_SIGMOID_KERAS3,
    Activation,
)
from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    RnnEquations,
    SequenceBehaviour,
    Weights,
)
from lstmconvert.containers import Archive
from lstmconvert.dialect import reasons
from lstmconvert.errors import AmbiguousSource, BadFile, NotRepresentable, UnsupportedSource, Usage
from lstmconvert.gates import Cell, Direction
from lstmconvert.layout import Found
from lstmconvert.mapping import ActivationPattern, Layout, MappingFile
from lstmconvert.model import Layer, Model, OperationLayer
from lstmconvert.options import ReadOptions, WriteOptions
from lstmconvert.prefixed import Prefixed
from lstmconvert.provenance import LayerRecord, Provenance
from lstmconvert.stacks import STACK
from lstmconvert.tensors import Lazy

NAME = "named_tensors"
_INNER = ("cell_activation", "hidden_activation", "candidate_activation")
_MOST_LISTED = 1000
_BESIDE = re.compile(r"(?:^|[/.])(?:opt_state|optimizer(?:_state(?:_dict)?)?|optim)[/.]")
"""Slots of an optimizer have the names of the weights behind its own."""


def reads(archive: Archive, container: str) -> bool:  # noqa: ARG001 - the interface of a framework
    """Never by itself: without a mapping file names mean nothing."""
    return False


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - names say it all
    """The recurrent layers that a mapping file finds among the tensors.

    Raises:
        UnsupportedSource: when nothing in the file has the names of the mapping file.
        AmbiguousSource: when the mapping file leaves an option open that nothing else says.
    """
    described = _mapping(options)
    tensors = {name: t for name, t in archive.tensors.items() if not _BESIDE.search(name)}
    found = _found(described, tensors)
    if not found:
        raise UnsupportedSource(
            f"no tensor has a name of the mapping file {described.path.name}",
            found=", ".join(list(tensors)[:8]) or "no tensors",
            expected=", ".join(rule.name for la in described.layouts.values() for rule in la.tensors)[:200],
        )
    memory = provenance.loads(archive.metadata.get(provenance.KEY))
    names = _names(found)
    records = _records(memory, names)
    layers: dict[str, RecurrentLayer] = {}
    for (name, stack), one, record in zip(names, found, records, strict=True):
        notes = {_prefix_note(described): one.prefix, lowering.layout_note(described): one.layout.name}
        if stack is not None:
            notes[STACK] = stack
        told = _told(one.layout, options, [other.layout for other in found])
        layer = _read_layer(one, tensors, told, record, name)
        layers[name] = replace(layer, notes=MappingProxyType(notes))
    if memory is not None and {record.name for record in memory.layers} == set(layers):
        layers = {record.name: layers[record.name] for record in memory.layers}  # in the order of writing
    used = {name for layer in layers.values() for name in layer.origin}
    others = {name: list(t.shape) for name, t in archive.tensors.items() if name not in used}
    metadata = {"other_tensors": dict(list(others.items())[:_MOST_LISTED])}
    return Model(MappingProxyType(dict(layers)), metadata=MappingProxyType(metadata))


def _mapping(options: ReadOptions) -> MappingFile:
    if options.mapping is None:
        raise Usage("named tensors need a mapping file", remedy="Give one with --mapping FILE.")
    return mapping.load_file(options.mapping)


def _prefix_note(described: MappingFile) -> str:
    """Key of the note that keeps what stood before a layer's names in files of this framework."""
    return f"{described.name}_prefix"


def _told(layout: Layout, options: ReadOptions, every: Sequence[Layout]) -> ReadOptions:
    """What the user says of activations, without what is meant for other layouts, which leave them open."""

    def leaves_open(one: Layout, names: Sequence[str]) -> bool:
        return any(len(one.dialect.activations.get(name, ())) > 1 for name in names)

    def elsewhere(names: Sequence[str]) -> bool:
        return not leaves_open(layout, names) and any(leaves_open(one, names) for one in every)

    if elsewhere(_INNER):
        options = replace(options, activation=None)
    if elsewhere(("gate_activation",)):
        options = replace(options, recurrent_activation=None)
    return options


def fits(described: MappingFile, tensors: Mapping[str, Lazy]) -> bool:
    """Whether a mapping file finds layers among the tensors, each complete and of fitting shapes.

    A tensor beside those of a layer, of which the mapping file says nothing, speaks against it: it could be
    a bias that would be lost.
    """
    if not described.detect:
        return False
    tensors = {name: t for name, t in tensors.items() if not _BESIDE.search(name)}
    try:
        found = _found(described, tensors)
        used: set[str] = set()
        for one in found:
            local = _local(one, tensors)
            directions = layouts.unpack(one.layout, local, one.layer)
            used |= {one.prefix + n for n in layouts.tensor_names(one.layout, tuple(directions), one.layer)}
    except (BadFile, AmbiguousSource):
        return False
    folders = {one.prefix for one in found}
    beside = [n for n in tensors if n not in used and re.sub(r"[^/.]*$", "", n) in folders]
    return bool(found) and not beside


def _found(described: MappingFile, tensors: Mapping[str, Lazy]) -> list[Found]:
    """Where layers stand, in the order of the file; of several layouts with equal names, one that fits.

    An LSTM, a GRU and a simple RNN may have the same names: the gate axis tells them apart.
    """
    candidates: dict[tuple[str, str], list[Found]] = {}
    for layout in described.layouts.values():
        if layout.cell is not None:
            for separator in described.separators or ("/",):
                for one in layouts.find(layout.respelled(separator), tensors):
                    if one.prefix and described.separators and not one.prefix.endswith(described.separators):
                        continue  # the end of a longer name
                    group = candidates.setdefault((one.prefix, one.layer), [])
                    if all(one.layout.name != other.layout.name for other in group):
                        group.append(one)
    order = list(described.layouts)
    positions = {name: n for n, name in enumerate(tensors)}
    claimed: set[str] = set()
    best: list[tuple[int, Found]] = []
    every = [one for group in candidates.values() for one in _apart(group, tensors)]
    for one in sorted(every, key=lambda one: (not _fits(one, tensors), order.index(one.layout.name))):
        # What a layout that fits, or an earlier one, describes as a whole has no layers of its own inside.
        held = layouts.kernels(one) & tensors.keys()
        if not held <= claimed:
            claimed |= held
            best.append((min(positions[name] for name in held), one))
    return [one for _, one in sorted(best, key=lambda pair: pair[0])]


def _apart(group: list[Found], tensors: Mapping[str, Lazy]) -> list[Found]:
    """The best of layouts in one place, and those that fit tensors which it has nothing to do with."""
    chosen = [_best(group, tensors)]
    used = _held(chosen[0], tensors)
    while rest := [one for one in group if _fits(one, tensors) and not _held(one, tensors) & used]:
        chosen.append(_best(rest, tensors))
        used |= _held(chosen[-1], tensors)
    return chosen


def _held(one: Found, tensors: Mapping[str, Lazy]) -> frozenset[str]:
    """The tensors that a layout may take where it was found."""
    local = _local(one, tensors)
    both = (Direction.FORWARD, Direction.REVERSE)
    names = {n for ways in (both[:1], both) for n in layouts.tensor_names(one.layout, ways, one.layer)}
    return frozenset(name for name in names if name in local)


def _fits(one: Found, tensors: Mapping[str, Lazy]) -> bool:
    """Whether the tensors of a found layer are complete and of fitting shapes."""
    try:
        for blocks in layouts.unpack(one.layout, _local(one, tensors), one.layer).values():
            Weights(one.layout.cell or Cell.RNN, blocks)
    except (BadFile, ValueError):
        return False
    return True


def _best(group: list[Found], tensors: Mapping[str, Lazy]) -> Found:
    """The one that fits and leaves the fewest tensors out; if none fits, the one that comes closest."""

    def held(one: Found) -> int:
        return len(_held(one, tensors))

    fitting = [one for one in group if _fits(one, tensors)]
    if not fitting:
        return max(group, key=held)
    most = max(map(held, fitting))
    fitting = [one for one in fitting if held(one) == most]
    if len({one.layout.cell for one in fitting}) > 1:
        names = ", ".join(one.layout.name for one in fitting)
        raise AmbiguousSource(
            f"the tensors {group[0].prefix}... fit several layouts",
            expected=f"one of {names}",
            remedy="Give a mapping file with only the right one (--mapping FILE).",
        )
    # A layout that fits because it does not know the bias that is damaged would lose it: the other one says
    # what is wrong with it.
    damaged = [
        one
        for one in group
        if one.layout.cell is fitting[0].layout.cell and _held(one, tensors) > _held(fitting[0], tensors)
    ]
    return max(damaged, key=held) if damaged else fitting[0]


def _local(found: Found, tensors: Mapping[str, Lazy]) -> Mapping[str, Lazy]:
    return Prefixed(found.prefix, tensors)


def _names(found: Sequence[Found]) -> list[tuple[str, str | None]]:
    """The name of every layer and the stack that it is one of: those of one prefix with numbers from 0 on."""
    counts = Counter(one.prefix for one in found)
    numbers: dict[str, set[str]] = {}
    for one in found:
        numbers.setdefault(one.prefix, set()).add(one.layer)
    result: list[tuple[str, str | None]] = []
    taken: set[str] = set()
    for one in found:
        base = re.sub(r"[/:]", ".", one.prefix).strip("._~") or one.layout.name
        count = counts[one.prefix]
        stacked = count > 1 and numbers[one.prefix] == {str(n) for n in range(count)}
        name = f"{base}.{one.layer}" if stacked else base
        while name in taken:
            name += "_"
        taken.add(name)
        result.append((name, base if stacked else None))
    return result


def _records(memory: Provenance | None, names: Sequence[tuple[str, str | None]]) -> list[LayerRecord | None]:
    """What the file remembers of each layer: by name, or by position where no name is known."""
    if memory is None:
        return [None] * len(names)
    by_name = {record.name: record for record in memory.layers}
    known = [by_name.get(name) for name, _ in names]
    if not any(known) and len(memory.layers) == len(names):
        return list(memory.layers)
    return known


def _read_layer(
    found: Found, tensors: Mapping[str, Lazy], options: ReadOptions, record: LayerRecord | None, name: str
) -> RecurrentLayer:
    """One layer where ``layout.find`` found it."""
    layout = found.layout
    cell = layout.cell
    assert cell is not None
    local = _local(found, tensors)
    weights = layouts.read_weights(cell, layout, local, found.layer)
    names = layouts.names_read(layout, tuple(weights), local, found.layer)

    def with_equations(equations: Sequence[Equations]) -> RecurrentLayer:
        return RecurrentLayer(
            name,
            tuple(RecurrentDirection(d, e, w) for (d, w), e in zip(weights.items(), equations, strict=True)),
            SequenceBehaviour(),
            origin=tuple(found.prefix + n for n in names),
            stored_gates=layout.gates,
        )

    if record is not None and [e.cell for e in record.equations] == [cell] * len(weights):
        remembered = with_equations(record.equations)
        if not reasons(layout, remembered):
            return remembered
    return with_equations([equations_of(layout, options, name)] * len(weights))


_KINDS: Mapping[Cell, type[Equations]] = {
    Cell.LSTM: LstmEquations,
    Cell.GRU: GruEquations,
    Cell.RNN: RnnEquations,
}
_OPTION_OF = {
    "gate_activation": ("recurrent_activation", "--recurrent-activation"),
    "cell_activation": ("activation", "--activation"),
    "hidden_activation": ("activation", "--activation"),
    "candidate_activation": ("activation", "--activation"),
}


def equations_of(layout: Layout, options: ReadOptions, name: str) -> Equations:
    """The equations that a layout fixes, completed by what the user says.

    Raises:
        AmbiguousSource: when an option is open and the user says nothing.
    """
    assert layout.cell is not None
    kind = _KINDS[layout.cell]
    dialect = layout.dialect
    values: dict[str, object] = {}
    for option in fields(kind):
        if option.name.endswith("_activation"):
            field, flag = _OPTION_OF[option.name]
            values[option.name] = _activation(
                dialect.activations[option.name], getattr(options, field), flag, name
            )
        elif option.name in dialect.choices:
            values[option.name] = _choice(option.name, dialect.choices[option.name], options, name)
        elif option.name in dialect.fixed_clips:
            values[option.name] = dialect.fixed_clips[option.name]
        elif option.name == "constant" and dialect.constant is not None:
            values[option.name] = dialect.constant
    return kind(**values)  # type: ignore[arg-type]


def _activation(
    accepted: tuple[ActivationPattern, ...], said: str | None, flag: str, name: str
) -> Activation:
    fitting = [p for p in accepted if said is None or p.kind == said]
    if said is not None and not fitting:
        raise Usage(
            f"the layer {name!r} cannot have the activation {said!r}", expected=", ".join(map(str, accepted))
        )
    if len(fitting) != 1:
        raise AmbiguousSource(
            f"the file does not say which activation the layer {name!r} has",
            expected=f"one of {', '.join(map(str, accepted))}",
            remedy=f"Say it with {flag}.",
        )
    pattern = fitting[0]
    if pattern.parameters is not None:
        return Activation(pattern.kind, *pattern.parameters)
    if pattern.kind == "hard_sigmoid":
        raise AmbiguousSource(
            "hard_sigmoid has no slope of its own",
            place=f"layer {name!r}",
            expected=f"{HARD_SIGMOID_KERAS2} or {HARD_SIGMOID_KERAS3} in the mapping file",
        )
    return Activation(pattern.kind)


def _choice(option: str, allowed: tuple[str, ...], options: ReadOptions, name: str) -> object:
    from lstmconvert.canonical import Coupling, ResetPlace, UpdateKeeps

    kinds = {"coupling": Coupling, "reset": ResetPlace, "update_keeps": UpdateKeeps}
    if option == "reset" and options.reset_after is not None:
        wanted = ResetPlace.AFTER_PRODUCT if options.reset_after else ResetPlace.BEFORE_PRODUCT
        if wanted not in allowed:
            raise Usage(
                f"the layer {name!r} cannot have its {wanted.replace('_', ' ')}", expected=", ".join(allowed)
            )
        return wanted
    if len(allowed) != 1:
        remedy = (
            "Say it with --reset-after or --no-reset-after."
            if option == "reset"
            else "Fix it in the mapping file."
        )
        raise AmbiguousSource(
            f"the file does not say the {option.replace('_', ' ')} of layer {name!r}",
            expected=f"one of {', '.join(allowed)}",
            remedy=remedy,
        )
    return kinds[option](allowed[0])


def write(model: Model, container: str, options: WriteOptions) -> Archive:  # noqa: ARG001 - any will do
    """The layers of a model under the names of a mapping file, each behind its own prefix.

    Raises:
        Usage: without a mapping file.
        NotRepresentable: when the mapping file has no layout for a layer.
    """
    if options.mapping is None:
        raise Usage("named tensors need a mapping file", remedy="Choose a framework with --to.")
    described = mapping.load_file(options.mapping)
    tensors: dict[str, Lazy] = {}
    for name, (layout, prefix, number) in _written_places(model, described).items():
        layer = model.layers[name]
        if isinstance(layer, OperationLayer):
            local = layouts.pack_operation(layout, layer.weights)
        else:
            lowering.refuse_initial_states(layer, described)
            directions = {d.direction: d.weights for d in layer.directions}
            local = layouts.pack(layout, directions, number)
        for own, tensor in local.items():
            if prefix + own in tensors:
                raise NotRepresentable(
                    "two tensors would have one name", place=prefix + own, remedy="Rename a layer."
                )
            tensors[prefix + own] = tensor
    return Archive(MappingProxyType(tensors))


def _written_places(model: Model, described: MappingFile) -> dict[str, tuple[Layout, str, str]]:
    """The layout, prefix and number of every layer that has weights."""
    separators = described.separators or ("/",)
    joint = described.separators[0] if described.separators else "."
    weighted = {name: layer for name, layer in model.layers.items() if _has_weights(layer)}
    stacks = _numbered(model, described)
    taken: set[str] = set()
    result: dict[str, tuple[Layout, str, str]] = {}
    for name, layer in weighted.items():
        layout = _layout(layer, described)
        stack, number = stacks.get(name, (name, "0"))
        first = number == "0"
        noted = layer.notes.get(_prefix_note(described)) if isinstance(layer, RecurrentLayer) else None
        if noted is not None and described.separators:
            noted = re.sub(f"[{re.escape(''.join(separators))}]", joint, noted)
        if not first:
            prefix = result[_first_of(stacks, stack)][1]
        elif noted is not None and noted not in taken:
            prefix = noted
        elif layout.scope:
            count = 0
            while (prefix := f"{layout.scope}{f'_{count}' if count else ''}{joint}") in taken:
                count += 1
        elif len(weighted) == 1 or len(weighted) == sum(other[0] == stack for other in stacks.values()):
            prefix = ""
        else:
            prefix = stack.replace(".", joint) + joint if joint in separators else f"{stack}{joint}"
        taken.add(prefix)
        result[name] = (layout.respelled(separators[0]), prefix, number)
    return result


def _layout(layer: Layer, described: MappingFile) -> Layout:
    """The layout that holds a lowered layer: the one that it had in this framework, where that still fits."""
    if isinstance(layer, OperationLayer):
        return _neighbour(layer, described)
    return lowering.noted_layout(described, layer) or lowering.layout_for(described, layer)


def _has_weights(layer: Layer) -> bool:
    return isinstance(layer, RecurrentLayer) or bool(layer.weights)


def _first_of(stacks: Mapping[str, tuple[str, str]], stack: str) -> str:
    return next(name for name, place in stacks.items() if place == (stack, "0"))


def _numbered(model: Model, described: MappingFile) -> dict[str, tuple[str, str]]:
    """Layers that become one module with numbered layers: the stack's name and the number of each."""
    groups: dict[str, list[RecurrentLayer]] = {}
    for layer in model.recurrent.values():
        if (stack := layer.notes.get(STACK)) is not None:
            groups.setdefault(stack, []).append(layer)
    result: dict[str, tuple[str, str]] = {}
    for stack, layers in groups.items():
        found = [lowering.layout_for(described, layer) for layer in layers]
        fitting = all(
            found[0].name == layout.name
            and len(one.directions) == len(layers[0].directions)
            and (one.hidden_size, one.projected_size) == (layers[0].hidden_size, layers[0].projected_size)
            and one.sequence.merge is Merge.CONCAT
            for layout, one in zip(found, layers, strict=True)
        )
        fed = all(a.width == b.input_size for a, b in pairwise(layers))
        if len(layers) > 1 and fitting and fed and any("{layer}" in rule.name for rule in found[0].tensors):
            result |= {layer.name: (stack, str(n)) for n, layer in enumerate(layers)}
    return result


def _neighbour(layer: OperationLayer, described: MappingFile) -> Layout:
    for layout in described.layouts.values():
        if layout.operation and mapping.operation_class(layout.operation) is type(layer.operation):
            return layout
    raise NotRepresentable(
        f"{described.title} has no names for the weights of a {type(layer.operation).__name__}",
        place=f"layer {layer.name!r}",
        remedy="Take only the recurrent layers, one by one, with --layer.",
    )
