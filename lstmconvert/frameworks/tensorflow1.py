"""Cells of TensorFlow 1 (``tf.nn.rnn_cell``, ``tf.contrib.rnn``) in checkpoints, told by their scopes.

A variable is ``<where the cell stands>/<scope of its class>/<name>``. ``cell_<n>`` (MultiRNNCell,
stack_bidirectional_dynamic_rnn) makes a stack, ``fw`` and ``bw`` make two directions; where each direction
is a MultiRNNCell of its own, the directions meet only behind their last cells and stay separate layers.

What a checkpoint does not say is what the class does when it is told nothing: ``forget_bias=1.0``, tanh,
no clips. The user says otherwise by ``forget_bias``, ``activation``, ``cell_clip`` and
``projection_clip``. Slots of optimizers and moving averages have names behind the variable's own and are
left alone; they are among ``metadata["other_tensors"]``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lstmconvert import bias_split, lowering, mapping, provenance
from lstmconvert import layout as layouts
from lstmconvert.activations import KINDS, Activation
from lstmconvert.canonical import (
    BlockKey,
    Equations,
    GruEquations,
    LstmEquations,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    RnnEquations,
    SequenceBehaviour,
    Weights,
)
from lstmconvert.containers import Archive
from lstmconvert.dialect import reasons
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource, Usage
from lstmconvert.frameworks.named_tensors import equations_of
from lstmconvert.gates import Direction, Gate, Part
from lstmconvert.mapping import Layout
from lstmconvert.model import Layer, Model, OperationLayer
from lstmconvert.options import ReadOptions, WriteOptions
from lstmconvert.stacks import STACK
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

NAME = "tensorflow1"
TOLD = ("forget_bias", "cell_clip", "projection_clip")
"""Options of reading that this framework understands and most others do not."""
SCOPE = "tensorflow1_scope"
"""Note of a layer: where its cell stands in the checkpoint, with ``*`` for ``fw`` and ``bw``."""
_ABSENT = "tensorflow1_without_bias"
"""Metadata of a written checkpoint: biases that are zeros because the source has none."""
_CELL = re.compile(r"cell_(\d+)")
_WRAPPER = re.compile(r"(?:multi_rnn_cell|stack_bidirectional_rnn)(?:_\d+)?")
_WAYS = {"fw": Direction.FORWARD, "bw": Direction.REVERSE}
_SPELLED = {direction: way for way, direction in _WAYS.items()}
_MOST_LISTED = 1000


@dataclass(frozen=True, slots=True)
class _Place:
    """A cell: where it stands, and its scope as numbered in the file."""

    layout: Layout
    before: tuple[str, ...]
    scope: str

    @property
    def way(self) -> str | None:
        """``fw`` or ``bw``, or ``None`` where the cell belongs to no pair."""
        return next((part for part in self.before if part in _WAYS), None)

    @property
    def paired(self) -> tuple[str, ...]:
        """Equal for the two directions of one layer, and for nothing else."""
        return (*("*" if part in _WAYS else part for part in self.before), self.scope)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the cell in its stacks, from the outside in."""
        return tuple(int(match[1]) for part in self.before if (match := _CELL.fullmatch(part)))

    @property
    def base(self) -> tuple[str, ...]:
        """The place without direction and stack."""
        first = next((n for n, part in enumerate(self.before) if _CELL.fullmatch(part)), len(self.before))
        outside = [part for part in self.before[:first] if part not in _WAYS]
        return tuple(part for part in outside if not _WRAPPER.fullmatch(part)) or tuple(outside)

    @property
    def each_way_a_stack(self) -> bool:
        """Whether the stack is inside the direction, and not the direction in the stack."""
        way = next((n for n, part in enumerate(self.before) if part in _WAYS), None)
        return way is not None and any(_CELL.fullmatch(part) for part in self.before[way:])


def _scope_of(layout: Layout) -> str:
    return layout.tensors[0].name.split("/")[0]


def _places(names: Iterable[str]) -> list[_Place]:
    """The cells of a checkpoint: by the scopes of the classes and complete sets of names."""
    held = dict.fromkeys(names)
    folders: dict[tuple[str, ...], None] = {}
    for name in held:
        parts = tuple(name.split("/"))
        for n in range(1, len(parts)):
            folders[parts[:n]] = None
    found = []
    for layout in mapping.load(NAME).layouts.values():
        if layout.cell is None:
            continue
        scope = re.compile(re.escape(_scope_of(layout)) + r"(?:_\d+)?")
        wanted = {rule.name.partition("/")[2] for rule in layout.tensors if rule.optional is None}
        for folder in folders:
            if not scope.fullmatch(folder[-1]):
                continue
            path = "/".join(folder)
            # A Keras layer of the same scope keeps its two kernels apart.
            if all(f"{path}/{w}" in held for w in wanted) and f"{path}/recurrent_kernel" not in held:
                found.append(_Place(layout, folder[:-1], folder[-1]))
    return found


def reads(archive: Archive, container: str) -> bool:  # noqa: ARG001 - the names say it
    """Whether there are cells of TensorFlow 1 among the names."""
    return bool(_places(archive.tensors))


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - one form
    """The cells as layers without wiring; see the module.

    Raises:
        UnsupportedSource: when no scope is that of a class that is known.
        BadFile: when the tensors of a cell contradict each other.
        Usage: when an option says what the class cannot be.
    """
    places = _places(archive.tensors)
    if not places:
        raise UnsupportedSource(
            "no variable has the scope of a cell of TensorFlow 1",
            found=", ".join(list(archive.tensors)[:8]) or "no tensors",
            expected="a scope of " + ", ".join(dict.fromkeys(_scopes())),
            remedy="Describe other names with a mapping file of your own (--mapping FILE).",
        )
    memory = provenance.loads(archive.metadata.get(provenance.KEY))
    remembered = {record.name: record for record in memory.layers} if memory is not None else {}
    absent = _absent(archive.metadata.get(_ABSENT))
    layers: dict[str, RecurrentLayer] = {}
    for name, pair, stack in _named(places):
        directions = []
        origin: list[str] = []
        for place in pair:
            path = "/".join((*place.before, place.scope))
            weights, used = _weights(place, path, archive.tensors, absent.get(path, ()))
            record = remembered.get(name)
            known = record.equations[0] if record is not None and record.equations else None
            equations = _equations(place.layout, options, name, known)
            directions.append(RecurrentDirection(_direction(place), equations, weights))
            origin += used
        notes = {SCOPE: "/".join(pair[0].paired)}
        if stack is not None:
            notes[STACK] = stack
        try:
            layers[name] = RecurrentLayer(
                name,
                tuple(directions),
                SequenceBehaviour(),
                tuple(origin),
                pair[0].layout.gates,
                MappingProxyType(notes),
            )
        except ValueError as error:
            raise BadFile(f"the two directions do not make one layer: {error}", place=origin[0]) from error
    if set(remembered) == set(layers):
        layers = {name: layers[name] for name in remembered}
    used_names = {name for layer in layers.values() for name in layer.origin}
    others = {name: list(t.shape) for name, t in archive.tensors.items() if name not in used_names}
    metadata: dict[str, Any] = {"other_tensors": dict(list(others.items())[:_MOST_LISTED])}
    return Model(MappingProxyType(_chained(layers)), framework=NAME, metadata=MappingProxyType(metadata))


def _scopes() -> list[str]:
    return [_scope_of(la) for la in mapping.load(NAME).layouts.values() if la.cell is not None]


def _absent(text: object) -> Mapping[str, tuple[str, ...]]:
    try:
        said = json.loads(text) if isinstance(text, str) else {}
        return {str(k): tuple(map(str, v)) for k, v in said.items()}
    except (ValueError, AttributeError, TypeError):
        return {}


def _direction(place: _Place) -> Direction:
    return Direction.FORWARD if place.way is None else _WAYS[place.way]


def _named(places: list[_Place]) -> list[tuple[str, list[_Place], str | None]]:
    """Name, directions and stack of every layer, in the order of file and stack."""
    pairs: dict[tuple[str, ...], list[_Place]] = {}
    for place in places:
        alone = (
            place.each_way_a_stack
            and sum(
                other.each_way_a_stack and other.base == place.base and other.way == place.way
                for other in places
            )
            > 1
        )
        pairs.setdefault((*place.paired, place.way or "") if alone else place.paired, []).append(place)
    bases: dict[str, list[list[_Place]]] = {}
    for pair in pairs.values():
        pair.sort(key=lambda place: place.way == "bw")
        first = pair[0]
        base = ".".join(first.base) or first.scope
        if len(pair) == 1 and first.way is not None:
            base = f"{base}.{first.way}"
        bases.setdefault(base, []).append(pair)
    result: list[tuple[str, list[_Place], str | None]] = []
    for base, held in bases.items():
        held.sort(key=lambda pair: pair[0].numbers)
        numbers = [pair[0].numbers for pair in held]
        stacked = len(held) > 1 and all(numbers) and len(set(numbers)) == len(numbers)
        for index, pair in enumerate(held):
            name = f"{base}.{index}" if stacked else base
            if not stacked and len(held) > 1:
                name = ".".join((base, *map(str, pair[0].numbers), pair[0].scope))
            result.append((name, pair, base if stacked else None))
    return result


def _chained(layers: Mapping[str, RecurrentLayer]) -> dict[str, Layer]:
    """The layers; those of a stack whose cells do not feed each other (an attention between) are no stack."""
    broken = set()
    before: dict[str, RecurrentLayer] = {}
    for layer in layers.values():
        stack = layer.notes.get(STACK)
        if stack is None:
            continue
        if stack in before and before[stack].width != layer.input_size:
            broken.add(stack)
        before[stack] = layer

    def freed(layer: RecurrentLayer) -> RecurrentLayer:
        if layer.notes.get(STACK) not in broken:
            return layer
        return replace(
            layer, notes=MappingProxyType({k: text for k, text in layer.notes.items() if k != STACK})
        )

    return {name: freed(layer) for name, layer in layers.items()}


def _weights(
    place: _Place, path: str, tensors: Mapping[str, Lazy], absent: tuple[str, ...]
) -> tuple[Weights, list[str]]:
    """The blocks of a cell, without the biases that are only there because the class has one."""
    layout = place.layout
    assert layout.cell is not None
    scope = _scope_of(layout)
    local = {
        f"{scope}/{name.removeprefix(path + '/')}": tensor
        for name, tensor in tensors.items()
        if name.startswith(path + "/")
    }
    try:
        weights = layouts.read_weights(layout.cell, layout, local)[Direction.FORWARD]
    except BadFile as error:
        where = error.place or ""
        error.place = where.replace(f"{scope}/", f"{path}/")
        raise

    def kept(key: BlockKey, block: Lazy) -> Lazy | None:
        return None if _spell(key) in absent and bias_split.is_zero(block) else block

    names = layouts.tensor_names(layout, (Direction.FORWARD,))
    used = [f"{path}/{name.partition('/')[2]}" for name in names if name in local]
    return weights.mapped(kept), used


def _spell(key: BlockKey) -> str:
    return f"{key[0]}.{key[1]}"


def _equations(layout: Layout, options: ReadOptions, name: str, known: Equations | None) -> Equations:
    """What the class computes, changed by what the user says; what is noted in the file says more."""
    if known is not None and known.cell is layout.cell:
        return known
    base = equations_of(layout, ReadOptions(), name)
    _refuse_other_forms(base, options, layout, name)
    said = options.activation
    if said is not None and said not in KINDS:
        raise Usage(f"no activation is called {said!r}", place=f"layer {name!r}", expected=", ".join(KINDS))
    match base:
        case LstmEquations():
            if said is not None:
                base = replace(base, cell_activation=Activation(said), hidden_activation=Activation(said))
            if options.forget_bias is not None:
                held = {Gate.FORGET: options.forget_bias} if options.forget_bias else {}
                base = replace(base, constant=MappingProxyType(held))
            return replace(base, cell_clip=options.cell_clip, projection_clip=options.projection_clip)
        case GruEquations():
            return base if said is None else replace(base, candidate_activation=Activation(said))
        case RnnEquations():
            return base if said is None else replace(base, hidden_activation=Activation(said))


def _refuse_other_forms(base: Equations, options: ReadOptions, layout: Layout, name: str) -> None:
    """An option that says what the class cannot be is a mistake."""
    wrong: tuple[str, object] | None = None
    fixed = layout.classes[0]
    if options.recurrent_activation not in (None, "sigmoid") and not isinstance(base, RnnEquations):
        wrong = "recurrent activation but sigmoid", options.recurrent_activation
    elif isinstance(base, GruEquations) and options.reset_after is not None:
        if options.reset_after != (base.reset is ResetPlace.AFTER_PRODUCT):
            wrong = "place of the reset gate", f"reset_after={options.reset_after}"
    elif isinstance(base, LstmEquations) and not base.constant and options.forget_bias not in (None, 0):
        wrong = "forget bias but 0", options.forget_bias
    if wrong is not None:
        raise Usage(f"{fixed} has no other {wrong[0]}", place=f"layer {name!r}", found=wrong[1])


# Writing.


def write(model: Model, container: str, options: WriteOptions) -> Archive:  # noqa: ARG001 - one form
    """The variables of the recurrent layers, of Dense and of Embedding layers.

    A checkpoint has no wiring: that is the graph's, which the user builds with cells of these scopes.

    Raises:
        NotRepresentable: when another layer has weights, or a layer has a trained initial state.
    """
    tensors: dict[str, Lazy] = {}
    absent: dict[str, list[str]] = {}
    scopes = _written_scopes(model)
    for layer in model.layers.values():
        if isinstance(layer, OperationLayer):
            tensors |= _neighbour(layer)
            continue
        layout = _layout(layer)
        for direction in layer.directions:
            path = scopes[layer.name].replace("*", _SPELLED[direction.direction])
            _refuse_initial_states(layer, direction.weights)
            local = layouts.pack(layout, {Direction.FORWARD: direction.weights})
            for name, tensor in local.items():
                tensors[f"{path}/{name.partition('/')[2]}"] = tensor
            lacking = [_spell(key) for key in sorted(_bias_keys(layout)) if key not in direction.weights]
            if lacking:
                absent[path] = lacking
    metadata = {_ABSENT: json.dumps(absent)} if absent else {}
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def _bias_keys(layout: Layout) -> set[BlockKey]:
    held = {place.key for place in layouts.places(layout, (Direction.FORWARD,))}
    return {key for key in held if key[0] in (Part.BIAS_INPUT, Part.BIAS_RECURRENT)}


def _refuse_initial_states(layer: RecurrentLayer, weights: Weights) -> None:
    if weights.has(Part.INITIAL_HIDDEN) or weights.has(Part.INITIAL_CELL):
        raise NotRepresentable(
            "a cell of TensorFlow 1 has no trained initial state: it is an argument of dynamic_rnn",
            place=f"layer {layer.name!r}",
        )


def _layout(layer: RecurrentLayer) -> Layout:
    """The layout that holds a lowered layer: that of its own scope in the source where it still fits."""
    described = mapping.load(NAME)
    first = lowering.layout_for(described, layer)
    said = re.sub(r"_\d+$", "", layer.notes.get(SCOPE, "").rpartition("/")[2])
    for layout in described.of_cell(layer.cell):
        if not layout.reads_only and _scope_of(layout) == said and not reasons(layout, layer):
            return layout
    return first


def _written_scopes(model: Model) -> dict[str, str]:
    """The scope of every recurrent layer, with ``*`` for the direction; all distinct."""
    stacks = _stacks(model)
    scopes: dict[str, str] = {}
    for name, layer in model.recurrent.items():
        scope = _scope_of(_layout(layer))
        ways = "*/" if len(layer.directions) == 2 else ""
        noted = layer.notes.get(SCOPE, "")
        stack, held = next(((key, names) for key, names in stacks.items() if name in names), (name, [name]))
        if _usable(noted, scope, both=bool(ways)) and noted not in scopes.values():
            scopes[name] = noted
            continue
        if len(held) > 1:
            base, number = _clean(stack), held.index(name)
            inside = (
                f"stack_bidirectional_rnn/cell_{number}/bidirectional_rnn"
                if ways
                else f"multi_rnn_cell/cell_{number}"
            )
            path = f"{base}/{inside}/{ways}{scope}"
        else:
            path = f"{_clean(name)}/{ways}{scope}"
        while path in scopes.values():
            path = f"{path.partition('/')[0]}_/{path.partition('/')[2]}"
        scopes[name] = path
    return scopes


def _stacks(model: Model) -> dict[str, list[str]]:
    """Layers that only feed each other, the outputs of two directions side by side: one stack of cells."""
    layers = model.recurrent
    followers: dict[str, str] = {}
    if model.calls is None:
        last: dict[str, str] = {}
        for name, layer in layers.items():
            stack = layer.notes.get(STACK)
            if stack is not None:
                followers[last.get(stack, "")] = name
                last[stack] = name
        followers.pop("", None)
        titles = {name: layers[name].notes[STACK] for name in followers}
    else:
        uses = Counter(value for call in model.calls for value in call.inputs)
        makers = {call.outputs[0]: call.layer for call in model.calls if call.layer in layers}
        for call in model.calls:
            before = makers.get(call.inputs[0]) if call.inputs else None
            if call.layer in layers and before is not None and uses[call.inputs[0]] == 1:
                followers[before] = call.layer
        titles = {}
    stacks: dict[str, list[str]] = {}
    fed = set(followers.values())
    for name in layers:
        if name in fed:
            continue
        chain = [name]
        while chain[-1] in followers and followers[chain[-1]] not in chain:
            chain.append(followers[chain[-1]])
        held = [layers[each] for each in chain]
        alike = len({len(layer.directions) for layer in held}) == 1
        if len(chain) > 1 and alike and all(layer.sequence.merge is Merge.CONCAT for layer in held):
            stacks[titles.get(name, name)] = chain
    return stacks


def _usable(noted: str, scope: str, *, both: bool) -> bool:
    """Whether the scope that a layer had in a checkpoint can be its scope again."""
    parts = noted.split("/")
    return (
        re.fullmatch(r"(?:[A-Za-z0-9_.\-]+/|\*/)*[A-Za-z0-9_.\-]+", noted) is not None
        and re.fullmatch(re.escape(scope) + r"(?:_\d+)?", parts[-1]) is not None
        and parts.count("*") == int(both)
    )


def _clean(name: str) -> str:
    """A name as a scope: TensorFlow allows letters, digits and a few signs, and no sign at the beginning."""
    cleaned = re.sub(r"[^A-Za-z0-9_.\-]", "_", name)
    return cleaned if re.match(r"[A-Za-z0-9.]", cleaned) else f"layer_{cleaned}"


def _neighbour(layer: OperationLayer) -> dict[str, Lazy]:
    if not layer.weights:
        return {}
    for layout in mapping.load(NAME).layouts.values():
        if layout.operation and mapping.operation_class(layout.operation) is type(layer.operation):
            packed = layouts.pack_operation(layout, layer.weights)
            return {f"{_clean(layer.name)}/{name}": tensor for name, tensor in packed.items()}
    raise NotRepresentable(
        f"a checkpoint of TensorFlow 1 has no names for the weights of a {type(layer.operation).__name__}",
        place=f"layer {layer.name!r}",
        remedy="Take only the recurrent layers, one by one, with --layer.",
    )
