"""Reads the recurrent layers of Core ML's networks and programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lstmconvert import layout as layouts
from lstmconvert import mapping, stacks
from lstmconvert.activations import HARD_SIGMOID_KERAS2, LINEAR, RELU, SIGMOID, TANH, Activation
from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    RnnEquations,
    SequenceBehaviour,
)
from lstmconvert.containers import Archive
from lstmconvert.errors import AmbiguousSource, BadFile, UnsupportedSource
from lstmconvert.frameworks.coreml.forms import DEFAULT_CLIP, LAYOUTS, NAME, NO_CLIP
from lstmconvert.gates import Cell, Direction, Gate, Part
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions
from lstmconvert.reading_notes import Note, dequantised, note
from lstmconvert.tensors import shortest_decimal

_SCALED_TANH = Activation("scaled_tanh", 1.7159, 2 / 3)
"""The only one that recurrent layers support; coremltools writes it without its numbers."""
_PLAIN = MappingProxyType({"linear": LINEAR, "relu": RELU, "ReLU": RELU, "tanh": TANH, "sigmoid": SIGMOID})
_WITH_PARAMETERS = MappingProxyType({"sigmoidHard": "hard_sigmoid", "scaledTanh": "scaled_tanh"})


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - one container
    """The recurrent layers; what is around them is named, and not read.

    Raises:
        BadFile: when a layer contradicts itself.
        AmbiguousSource: when a hard sigmoid has no slope, or a program has a GRU.
        UnsupportedSource: when there is no recurrent layer, the documentation leaves open what one
            computes, or one begins with numbers other than zero.
    """
    layers: dict[str, RecurrentLayer] = {}
    notes: list[Note] = []
    for entry in archive.metadata["layers"]:
        if entry["name"] in layers:
            raise BadFile("two layers have one name", place=f"layer {entry['name']!r}")
        if options.layer in (None, entry["name"]):
            layers[entry["name"]] = _layer(entry, archive, options, notes)
    for name, first in _stacks(archive.metadata).items():
        if name in layers:
            told = MappingProxyType({**layers[name].notes, stacks.STACK: first})
            layers[name] = replace(layers[name], notes=told)
    others = archive.metadata["others"]
    if not layers:
        raise UnsupportedSource("the model has no recurrent layer", found=", ".join(others[:8]) or "nothing")
    around = f": {', '.join(dict.fromkeys(others))}" if others else ""
    topology = f"what is around the layers of a Core ML model is not read{around}"
    return Model(layers, framework=NAME, metadata={"rewrites": notes, "topology": topology[:500]})


def _stacks(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Layers that follow each other on whole sequences, and the first of those that each belongs to."""
    entries = metadata["layers"]
    uses = Counter(entry["takes"] for entry in entries)
    given = {
        entry["gives"]: entry["name"]
        for entry in entries
        if entry["gives"] and uses[entry["gives"]] == 1 and _gives_all_steps(entry, metadata["form"])
    }
    found: dict[str, str] = {}
    for entry in entries:
        before = given.get(entry["takes"])
        if before is not None and before != entry["name"]:
            found[entry["name"]] = found.setdefault(before, before)
    return found


def _layer(
    entry: Mapping[str, Any], archive: Archive, told: ReadOptions, notes: list[Note]
) -> RecurrentLayer:
    name = entry["name"]
    form = archive.metadata["form"]
    described = mapping.load(NAME).layouts[LAYOUTS[form, entry["type"]]]
    assert described.cell is not None
    prefix = f"{name}/"
    own = {n.removeprefix(prefix): t for n, t in archive.tensors.items() if n.startswith(prefix)}
    try:
        weights = layouts.read_weights(described.cell, described, own)
    except BadFile as error:
        raise error.located(place=f"layer {name!r}") from error.__cause__
    ways = _directions(entry, form)
    if len(ways) != len(weights):
        raise BadFile("the weights are of another number of directions", place=f"layer {name!r}")
    if form == "network":
        _refuse_contradictions(entry, {part for one in weights.values() for part, _ in one})
    if entry.get("states"):
        raise UnsupportedSource(
            "the layer begins with numbers other than zero, which would be lost",
            place=f"layer {name!r}",
            found=", ".join(entry["states"]),
            remedy="Make the first states inputs of the program.",
        )
    if not _gives_all_steps(entry, form):
        text = "the source gives on the last step only; here the layer gives all of them"
        notes.append(note(name, "all_steps", text))
    equations = _equations(described.cell, entry, form, told, notes)
    if len(equations) != len(ways):
        raise BadFile("the activations are of another number of directions", place=f"layer {name!r}")
    for tensor, how in archive.metadata["quantised"].items():
        if tensor.startswith(prefix):
            notes.append(dequantised(name, tensor, *how))
    directions = tuple(
        RecurrentDirection(way, one, blocks)
        for way, one, blocks in zip(ways, equations, weights.values(), strict=True)
    )
    origin = tuple(prefix + key for key in own)
    return RecurrentLayer(name, directions, SequenceBehaviour(), origin, described.gates)


def _gives_all_steps(entry: Mapping[str, Any], form: str) -> bool:
    options = entry["options"]
    if form == "program":
        return bool(options.get("output_sequence"))
    return bool(options.get("params", options).get("sequenceOutput"))


def _refuse_contradictions(entry: Mapping[str, Any], parts: set[Part]) -> None:
    """Flags say whether there are biases and peepholes; Core ML leaves out what a flag does not name."""
    said = entry["options"].get("params", entry["options"])
    for flag, part in (("hasBiasVectors", Part.BIAS_INPUT), ("hasPeepholeVectors", Part.PEEPHOLE)):
        if bool(said.get(flag)) != (part in parts):
            raise BadFile(
                "a flag and the weights contradict each other",
                place=f"layer {entry['name']!r}",
                found=f"{flag} is {str(bool(said.get(flag))).lower()}",
                expected=f"{'weights' if part not in parts else 'no weights'} of that kind",
            )


def _directions(entry: Mapping[str, Any], form: str) -> tuple[Direction, ...]:
    options = entry["options"]
    if form == "network":
        if entry["type"] == "biDirectionalLSTM":
            return Direction.FORWARD, Direction.REVERSE
        return (Direction.REVERSE,) if options.get("reverseInput") else (Direction.FORWARD,)
    said = options.get("direction", "forward")
    known = {
        "forward": (Direction.FORWARD,),
        "reverse": (Direction.REVERSE,),
        "bidirectional": (Direction.FORWARD, Direction.REVERSE),
    }
    if said not in known:
        raise BadFile("unknown direction", place=f"layer {entry['name']!r}", found=said)
    return known[said]


def _equations(
    cell: Cell, entry: Mapping[str, Any], form: str, told: ReadOptions, notes: list[Note]
) -> list[Equations]:
    """What each direction computes."""
    name, options = entry["name"], entry["options"]
    if form == "program":
        return [_of_program(cell, name, options, told)] * len(_directions(entry, form))
    rows = [options.get("activations", [])]
    if entry["type"] == "biDirectionalLSTM":
        rows.append(options.get("activationsBackward", []))
    said = [[_activation(one, name, told) for one in row] for row in rows]
    wanted = {Cell.LSTM: 3, Cell.GRU: 2, Cell.RNN: 1}[cell]
    if any(len(row) != wanted for row in said):
        raise BadFile("a layer has another number of activations", place=f"layer {name!r}", expected=wanted)
    if any(one in (RELU, LINEAR) for row in said for one in row):
        text = f"Core ML bounds what goes into the activations by {DEFAULT_CLIP:g}, which was left out"
        notes.append({**note(name, "leave_out_clip", text), "exact": False})
    if cell is Cell.RNN:
        return [RnnEquations(row[0]) for row in said]
    if cell is Cell.GRU:
        reset = ResetPlace.AFTER_PRODUCT if told.reset_after else ResetPlace.BEFORE_PRODUCT
        return [
            GruEquations(reset, gate_activation=gates, candidate_activation=candidate)
            for gates, candidate in said
        ]
    how = options.get("params", {})
    if how.get("coupledInputAndForgetGate"):
        raise UnsupportedSource("LSTMs with coupled gates are not read", place=f"layer {name!r}")
    clip = shortest_decimal(how.get("cellClipThreshold", 0.0)) or DEFAULT_CLIP
    if not clip > 0:
        raise BadFile("a clip is not a bound", place=f"layer {name!r}", found=clip)
    if clip >= NO_CLIP:
        text = f"a clip of the cell state at {clip:g}, which coremltools writes for none, was left out"
        notes.append({**note(name, "leave_out_clip", text), "exact": False})
    return [
        LstmEquations(
            gates,
            cell_input,
            hidden,
            constant=MappingProxyType({Gate.FORGET: 1.0} if how.get("forgetBias") else {}),
            cell_clip=clip if clip < NO_CLIP else None,
        )
        for gates, cell_input, hidden in said
    ]


def _of_program(cell: Cell, name: str, options: Mapping[str, Any], told: ReadOptions) -> Equations:
    def named(key: str, default: str) -> Activation:
        said = str(options.get(key, default)).lower()
        if said not in _PLAIN:
            raise UnsupportedSource(
                "the parameters of this activation are not documented",
                place=f"layer {name!r}, {key}",
                found=said,
                expected="linear, relu, sigmoid or tanh",
            )
        return _PLAIN[said]

    if cell is Cell.RNN:
        return RnnEquations(named("activation", "tanh"))
    gates = named("recurrent_activation", "sigmoid")
    if cell is Cell.GRU:
        if options.get("reset_after") or "input_bias" in options:
            raise UnsupportedSource(
                "what reset_after and input_bias of a gru compute is documented in two ways",
                place=f"layer {name!r}",
                remedy="Convert the model from which this one was made.",
            )
        if told.reset_after is None:
            raise AmbiguousSource(
                "Core ML's documents contradict each other about this gru: after the product in programs, "
                "before it in the neural networks to which coremltools turns the same weights",
                place=f"layer {name!r}",
                remedy="Say --reset-after or --no-reset-after, whichever the model was trained with.",
            )
        return GruEquations(
            ResetPlace.AFTER_PRODUCT if told.reset_after else ResetPlace.BEFORE_PRODUCT,
            gate_activation=gates,
            candidate_activation=named("activation", "tanh"),
        )
    clip = options.get("clip")
    if clip is not None:
        raise UnsupportedSource(
            "what exactly an lstm's clip bounds is not documented", place=f"layer {name!r}", found=clip
        )
    return LstmEquations(gates, named("cell_activation", "tanh"), named("activation", "tanh"))


def _activation(said: Mapping[str, Mapping[str, float]], name: str, told: ReadOptions) -> Activation:
    kinds: Sequence[str] = [key for key in said if key != "other"]
    kind = kinds[0] if len(kinds) == 1 else "none"
    parameters = said.get(kind, {})
    alpha, beta = (shortest_decimal(parameters.get(key, 0.0)) for key in ("alpha", "beta"))
    if kind == "sigmoidHard" and alpha == beta == 0:
        if told.recurrent_activation != "hard_sigmoid":
            raise AmbiguousSource(
                "the file gives no slope of its hard sigmoid; coremltools writes 0.2 x + 0.5 of Keras so",
                place=f"layer {name!r}",
                remedy="Say --recurrent-activation hard_sigmoid if that is what it was made from.",
            )
        return HARD_SIGMOID_KERAS2
    if kind == "scaledTanh" and alpha == beta == 0:
        return _SCALED_TANH
    if kind in _WITH_PARAMETERS:
        return Activation(_WITH_PARAMETERS[kind], alpha, beta)
    if kind in _PLAIN and (kind != "linear" or (alpha, beta) == (1.0, 0.0)):
        return _PLAIN[kind]
    raise UnsupportedSource("this activation is not read", place=f"layer {name!r}", found=kind)
