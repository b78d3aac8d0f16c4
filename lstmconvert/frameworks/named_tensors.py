"""Frameworks whose files are nothing but named tensors: a mapping file says it all.

Serves home-made weight dumps with a mapping file of the user's own, and every framework that needs no
code of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

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
    RecurrentDirection,
    RecurrentLayer,
    RnnEquations,
    SequenceBehaviour,
    Weights,
)
from lstmconvert.containers import Archive
from lstmconvert.errors import AmbiguousSource, BadFile, UnsupportedSource, Usage
from lstmconvert.gates import Cell
from lstmconvert.layout import Found
from lstmconvert.mapping import ActivationPattern, Layout, MappingFile
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions, WriteOptions
from lstmconvert.provenance import LayerRecord
from lstmconvert.tensors import Lazy

NAME = "named_tensors"


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
    memory = provenance.loads(archive.metadata.get(provenance.KEY))
    remembered = {record.name: record for record in memory.layers} if memory is not None else {}
    layers: dict[str, RecurrentLayer] = {}
    for found in _found(described, archive.tensors):
        layer = _read_layer(found, archive.tensors, options, remembered, layers)
        layers[layer.name] = layer
    if not layers:
        names = list(archive.tensors)
        raise UnsupportedSource(
            f"no tensor has a name of the mapping file {described.path.name}",
            found=", ".join(names[:8]) or "no tensors",
            expected=", ".join(rule.name for la in described.layouts.values() for rule in la.tensors)[:200],
        )
    if set(remembered) == set(layers):  # in the order in which they were written
        layers = {name: layers[name] for name in remembered}
    return Model(dict(layers))


def _mapping(options: ReadOptions) -> MappingFile:
    if options.mapping is None:
        raise Usage("named tensors need a mapping file", remedy="Give one with --mapping FILE.")
    return mapping.load_file(options.mapping)


def fits(described: MappingFile, tensors: Mapping[str, Lazy]) -> bool:
    """Whether a mapping file finds layers among the tensors, each complete and of fitting shapes."""
    try:
        found = _found(described, tensors)
        for one in found:
            layouts.unpack(one.layout, _local(one, tensors), one.layer)
    except BadFile:
        return False
    return bool(found)


def _found(described: MappingFile, tensors: Mapping[str, Lazy]) -> list[Found]:
    """Where layers stand, in the order of the file; of several layouts with equal names, one that fits.

    An LSTM, a GRU and a simple RNN may have the same names: the gate axis tells them apart.
    """
    candidates: dict[tuple[str, str], list[Found]] = {}
    for layout in described.layouts.values():
        if layout.cell is not None:
            for one in layouts.find(layout, tensors):
                candidates.setdefault((one.prefix, one.layer), []).append(one)
    return [_best(group, tensors) for group in candidates.values()]


def _best(group: list[Found], tensors: Mapping[str, Lazy]) -> Found:
    fitting = []
    for one in group:
        try:
            for blocks in layouts.unpack(one.layout, _local(one, tensors), one.layer).values():
                Weights(one.layout.cell or Cell.RNN, blocks)
        except (BadFile, ValueError):
            continue
        fitting.append(one)
    if len({one.layout.cell for one in fitting}) > 1:
        names = ", ".join(one.layout.name for one in fitting)
        raise AmbiguousSource(
            f"the tensors {group[0].prefix}... fit several layouts",
            expected=f"one of {names}",
            remedy="Give a mapping file with only the right one (--mapping FILE).",
        )
    return fitting[0] if fitting else group[0]


def _local(found: Found, tensors: Mapping[str, Lazy]) -> dict[str, Lazy]:
    return {
        name.removeprefix(found.prefix): t for name, t in tensors.items() if name.startswith(found.prefix)
    }


def _read_layer(
    found: Found,
    tensors: Mapping[str, Lazy],
    options: ReadOptions,
    remembered: Mapping[str, LayerRecord],
    taken: Mapping[str, RecurrentLayer],
) -> RecurrentLayer:
    """One layer where ``layout.find`` found it."""
    layout = found.layout
    cell = layout.cell
    assert cell is not None
    local = _local(found, tensors)
    weights = layouts.read_weights(cell, layout, local, found.layer)
    names = layouts.tensor_names(layout, tuple(weights), found.layer)
    name = found.prefix.strip("._/") or layout.name
    while name in taken:
        name += "_"
    record = remembered.get(name) or (next(iter(remembered.values())) if len(remembered) == 1 else None)
    if record is not None and [e.cell for e in record.equations] == [cell] * len(weights):
        equations = record.equations
    else:
        equations = (equations_of(layout, options, name),) * len(weights)
    return RecurrentLayer(
        name,
        tuple(RecurrentDirection(d, e, w) for (d, w), e in zip(weights.items(), equations, strict=True)),
        SequenceBehaviour(),
        origin=tuple(found.prefix + n for n in names if n in local),
        stored_gates=layout.gates,
    )


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
    """The recurrent layers of a model under the names of a mapping file, each behind its own prefix.

    Raises:
        Usage: without a mapping file.
        NotRepresentable: when the mapping file has no layout for a layer.
    """
    if options.mapping is None:
        raise Usage("named tensors need a mapping file", remedy="Choose a framework with --to.")
    described = mapping.load_file(options.mapping)
    tensors: dict[str, Lazy] = {}
    for layer in model.recurrent.values():
        layout = lowering.layout_for(described, layer)
        directions = {d.direction: d.weights for d in layer.directions}
        prefix = f"{layer.name}." if len(model.recurrent) > 1 else ""
        for name, tensor in layouts.pack(layout, directions).items():
            tensors[prefix + name] = tensor
    return Archive(tensors)
