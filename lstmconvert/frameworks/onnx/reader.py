"""ONNX models read: every recurrent node becomes a canonical layer.

Source: the documentation of the operators LSTM, GRU and RNN (onnx.ai, opset 1 to 22) and of
com.microsoft DynamicQuantizeLSTM (ONNX Runtime, docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from lstmconvert import layout, mapping, simplify
from lstmconvert.canonical import (
    BlockKey,
    RecurrentDirection,
    RecurrentLayer,
    Returns,
    SequenceBehaviour,
    Weights,
)
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.onnx import cells, projected
from lstmconvert.frameworks.onnx.arithmetic import dequantized
from lstmconvert.frameworks.onnx.constants import Graphs, Scope, node_name
from lstmconvert.frameworks.onnx.equations import equations
from lstmconvert.frameworks.onnx.known import Spread
from lstmconvert.frameworks.onnx.recurrent_node import Recurrent, recurrent_layout
from lstmconvert.frameworks.onnx.topology import STACK, Topology
from lstmconvert.gates import Part
from lstmconvert.model import Model
from lstmconvert.reading_notes import Note, dequantised, note
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    import onnx

    from lstmconvert.containers import Archive
    from lstmconvert.options import ReadOptions

_DTYPES = ("float32", "float64", "float16", "bfloat16")


def read(archive: Archive, options: ReadOptions) -> Model:
    """An ONNX model: its recurrent layers and, where every node is understood, the whole graph.

    Where the graph is not understood as a whole, the model has no calls, and ``metadata["topology"]`` says
    why. A layer's trained initial state is a block of its weights; one that is an input of the model, or
    the name of its sequence lengths, is in its notes.

    Args:
        archive: of the container ``onnx_file``.
        options: of these only ``layer`` matters: an ONNX file says the rest itself.

    Raises:
        BadFile: when a node contradicts itself or the specification.
        UnsupportedSource: when weights depend on the model's inputs.
    """
    graphs = Graphs.of(archive.metadata["model"], archive.tensors)
    topology = Topology(graphs)
    layers: dict[str, RecurrentLayer] = {}
    rewrites: list[Note] = []
    computed = _computed(graphs.model.graph)
    seen: dict[str, int] = {}
    written_out: dict[str, tuple[Scope, list[onnx.NodeProto]]] = {}
    inputs = Scope()
    topology.state_inputs(inputs)
    for node, scope in graphs.walk(inputs):
        if projected.is_projected(node):
            name = unique(node_name(node), seen)
            view, layers[name] = projected.read(node, scope, name)
            topology.recurrent(view, layers[name], scope)
            continue
        if recurrent_layout(node) is None:
            topology.neighbour(node, scope, graphs)
            written_out.setdefault(scope.path, (scope, []))[1].append(node)
            continue
        name = unique(node_name(node), seen)
        if options.layer not in (None, name):
            continue
        view = Recurrent.of(node, scope, name)
        result = recurrent_layer(view)
        layers[name] = result.layer
        rewrites += result.rewrites
        folded = [key for key in ("W", "R", "B", "P") if view.inputs.get(key) in computed]
        if folded:
            text = f"{', '.join(folded)}: worked out from constants by operators of the graph"
            rewrites.append(note(name, "fold_weights", text))
        topology.recurrent(view, result.layer, scope)
    for scope, nodes in written_out.values():
        for layer in cells.find(nodes, scope):
            name = unique(layer.name, seen)
            if options.layer in (None, name):
                layers[name] = replace(layer, name=name)
    model = graphs.model
    metadata = {
        "name": model.graph.name,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opsets": {domain or "ai.onnx": version for domain, version in graphs.opsets.items()},
        "ir_version": model.ir_version,
        "rewrites": rewrites,
    }
    if options.layer is not None:
        return Model(layers, framework="onnx", metadata=metadata)
    rewrites += topology.rewrites
    rewrites += [
        note(name, "resolve_choice", f"its condition is constant: replaced by its {branch}")
        for name, branch in graphs.choices
    ]
    spelled_out = [name for name, layer in layers.items() if cells.WRITTEN_OUT in layer.notes]
    try:
        if spelled_out:
            raise UnsupportedSource(
                "the graph is not taken as a whole: a recurrent cell is spelled out operator by operator",
                place=f"layer {spelled_out[0]!r}",
            )
        wiring = topology.finish()
    except UnsupportedSource as error:
        stacked = {name: _stacked(layer, topology.stacks()) for name, layer in layers.items()}
        return Model(stacked, framework="onnx", metadata={**metadata, "topology": str(error)})
    whole = Model(wiring.layers, wiring.calls, wiring.inputs, wiring.outputs, "onnx", metadata)
    return simplify.fold_reversals(whole)


def _computed(graph: onnx.GraphProto) -> set[str]:
    """The tensors that operators make, constants excepted."""
    return {name for node in graph.node if node.op_type != "Constant" for name in node.output if name}


def _stacked(layer: RecurrentLayer, stacks: Mapping[str, str]) -> RecurrentLayer:
    if layer.name not in stacks:
        return layer
    return replace(layer, notes=MappingProxyType({**layer.notes, STACK: stacks[layer.name]}))


def unique(name: str, seen: dict[str, int]) -> str:
    """``name``, or ``name_2`` and so on where it is taken; ``seen`` remembers."""
    candidate = name
    while candidate in seen:
        seen[name] += 1
        candidate = f"{name}_{seen[name]}"
    seen[candidate] = 1
    return candidate


@dataclass(frozen=True, slots=True)
class ReadLayer:
    """A layer, and what was changed on the way."""

    layer: RecurrentLayer
    rewrites: tuple[Note, ...]


def recurrent_layer(node: Recurrent) -> ReadLayer:
    """The canonical layer of a recurrent node.

    Raises:
        BadFile: when shapes or attributes contradict each other.
        UnsupportedSource: when weights are not constant.
    """
    file = mapping.load("onnx")
    places = file.layouts[node.layout]
    tensors, rewrites = _tensors(node)
    directions = node.directions
    try:
        weights = layout.read_weights(node.cell, places, tensors)
    except BadFile as error:
        raise BadFile(
            error.message,
            place=f"node {node.name!r}, {error.place}",
            found=error.found,
            expected=error.expected,
        ) from error
    dtype = next(iter(weights.values())).dtype
    if dtype.name not in _DTYPES:
        raise BadFile(
            "weights of an unexpected dtype",
            place=f"node {node.name!r}",
            found=dtype,
            expected=", ".join(_DTYPES),
        )
    if len(weights) != len(directions):
        raise BadFile(
            "the weights do not have as many directions as the node",
            place=f"node {node.name!r}",
            found=f"{len(weights)} in W",
            expected=f"{len(directions)} for {node.attributes.get('direction', 'forward')}",
        )
    rules, assumed = equations(node)
    states = _initial_states(node, next(iter(weights.values())))
    parts = [
        RecurrentDirection(direction, rule, held.with_blocks(state))
        for direction, rule, held, state in zip(directions, rules, weights.values(), states, strict=True)
    ]
    _check_hidden_size(node, parts[0].weights.hidden_size)
    gives_sequence, gives_state = node.outputs_used()
    layer = RecurrentLayer(
        node.name,
        tuple(parts),
        SequenceBehaviour(
            returns=Returns.SEQUENCE if gives_sequence or not gives_state else Returns.LAST,
            return_state=gives_state,
            time_major=not node.batch_first,
        ),
        origin=tuple(node.inputs[key] for key in ("W", "R", "B", "P") if key in node.inputs),
        stored_gates=places.gates,
        notes=MappingProxyType(_notes(node)),
    )
    if node.batch_first:
        text = "layout=1 (batch first) became layout=0"
        rewrites.append(note(node.name, "layout", text))
    return ReadLayer(layer, (*rewrites, *assumed))


def _tensors(node: Recurrent) -> tuple[dict[str, Lazy], list[Note]]:
    """W, R, B and P as numbers that the layout understands."""
    tensors = {key: array for key in ("W", "R", "B", "P") if (array := node.constant(key)) is not None}
    if node.layout != "dynamic_quantize_lstm":
        return tensors, []
    notes: list[Note] = []
    for key in ("W", "R"):
        scale, zero_point = node.constant(f"{key}_scale"), node.constant(f"{key}_zero_point")
        if scale is None:
            raise BadFile("a quantised matrix has no scale", place=f"node {node.name!r}, input {key}_scale")
        stored = tensors[key]
        try:
            tensors[key] = _dequantized_matrix(tensors[key], scale, zero_point)
        except ValueError as error:
            raise BadFile(
                "a scale does not fit its matrix", place=f"node {node.name!r}, input {key}_scale", found=error
            ) from error
        largest = float(np.abs(scale.read()).max(initial=0.0))
        granularity = "one scale a direction" if len(scale.shape) < 2 else "one scale a row of a gate"
        notes.append(
            dequantised(node.name, key, stored.dtype, granularity, rounding=largest * 255 * 2.0**-24)
        )
    return tensors, notes


def _dequantized_matrix(values: Lazy, scale: Lazy, zero_point: Lazy | None) -> Lazy:
    """(values - zero_point) * scale of a matrix (direction, input, gate hidden).

    A scale is (direction,), or (direction, gate hidden) where every column has its own.
    """
    if len(values.shape) != 3:
        raise ValueError(f"matrix {values.shape}")
    allowed = (values.shape[:1], (values.shape[0], values.shape[2]))
    for given in (scale, zero_point):
        if given is not None and given.shape not in (*allowed, ()):
            raise ValueError(f"{given.shape}, expected {allowed[0]} or {allowed[1]}")

    def column(array: Lazy) -> Lazy:
        shape = (*array.shape[:1], 1, *array.shape[1:], *([1] * (2 - len(array.shape))))
        return array.map(lambda a: a.reshape(shape), shape)

    return dequantized(values, column(scale), None if zero_point is None else column(zero_point))


def _check_hidden_size(node: Recurrent, found: int) -> None:
    stated = node.attributes.get("hidden_size")
    if stated is not None and stated != found:
        raise BadFile(
            "hidden_size is not the size of the weights", place=node.name, found=found, expected=stated
        )


def _notes(node: Recurrent) -> dict[str, str]:
    notes = {}
    if node.scope.path:
        notes["graph"] = node.scope.path.rstrip("/")
    if "sequence_lens" in node.inputs:
        notes["sequence_lens"] = node.inputs["sequence_lens"]
    given = [node.inputs[key] for key in ("initial_h", "initial_c") if key in node.inputs]
    dynamic = [name for name in given if node.scope.known(name) is None]
    if dynamic:
        notes["initial_state"] = " ".join(dynamic)
    return notes


# Initial states.


def _initial_states(node: Recurrent, weights: Weights) -> list[dict[BlockKey, Lazy]]:
    """For each direction the initial states that are constant and not zero."""
    states: list[dict[BlockKey, Lazy]] = [{} for _ in node.directions]
    keys = {"initial_h": Part.INITIAL_HIDDEN, "initial_c": Part.INITIAL_CELL}
    for key, part in keys.items():
        rows = _state_rows(node, key, weights) if key in node.inputs else None
        for direction, row in enumerate(rows or ()):
            states[direction][part, None] = row
    return states


def _state_rows(node: Recurrent, key: str, weights: Weights) -> list[Lazy] | None:
    """The state (hidden,) of each direction; ``None`` when it is not constant or all zero."""
    known = node.scope.known(node.inputs[key])
    base = known.base if isinstance(known, Spread) else known
    if not isinstance(base, Lazy):
        return None
    count, size = len(node.directions), weights.hidden_size
    place = f"node {node.name!r}, {key}"
    array = base.read()
    if isinstance(known, Spread):
        if not any(array.tobytes()):
            return None
        try:  # broadcast along the batch, of which nothing is known; it has to be the same for all of it
            shape = (1, count, size) if node.batch_first else (count, 1, size)
            array = np.broadcast_to(array, shape)
        except ValueError as error:
            raise BadFile("unexpected shape", place=place, found=array.shape, expected=shape) from error
    if array.ndim != 3:
        raise BadFile("unexpected shape", place=place, found=array.shape, expected="three axes")
    ordered = array.swapaxes(0, 1) if node.batch_first else array
    if (ordered.shape[0], ordered.shape[2]) != (count, size) or ordered.shape[1] < 1:
        raise BadFile(
            "unexpected shape", place=place, found=array.shape, expected=f"{count} x batch x {size}"
        )
    first = np.ascontiguousarray(ordered[:, 0])
    if any(ordered[:, n].tobytes() != first.tobytes() for n in range(1, ordered.shape[1])):
        raise UnsupportedSource(
            "the constant initial state differs from one sequence of the batch to the next",
            place=place,
            remedy="Make the initial state an input of the model, or give it one row for the whole batch.",
        )
    if not any(first.tobytes()):
        return None
    if first.dtype != weights.dtype:
        raise BadFile("unexpected dtype", place=place, found=first.dtype, expected=weights.dtype)
    return [Lazy.of(first[n]) for n in range(count)]
