"""ncnn: stacks of recurrent layers in ``.param`` and ``.bin`` files.

A layer takes one sequence (time, features) without a batch. Source: ncnn's wiki page "operators"; what the
layers compute was found by running release 20261020 on the CPU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import layout as layouts
from lstmconvert import lowering, mapping, single_stack
from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    RnnEquations,
)
from lstmconvert.containers import Archive
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource, Usage
from lstmconvert.gates import Cell, Direction
from lstmconvert.model import Call, Model, Port
from lstmconvert.options import ReadOptions, WriteOptions
from lstmconvert.reading_notes import Note, dequantised
from lstmconvert.tensors import Array, Lazy

NAME = "ncnn"
NEEDS_TOPOLOGY = True
"""The files are a graph: weights alone cannot be written."""

_CELLS = {str(cell).upper(): cell for cell in Cell}
_EQUATIONS: Mapping[Cell, Equations] = {
    Cell.LSTM: LstmEquations(),
    Cell.GRU: GruEquations(ResetPlace.AFTER_PRODUCT),
    Cell.RNN: RnnEquations(),
}
_DIRECTIONS = {
    "0": (Direction.FORWARD,),
    "1": (Direction.REVERSE,),
    "2": (Direction.FORWARD, Direction.REVERSE),
}
_NUMBERS = {"forward": "0", "reverse": "1", "bidirectional": "2"}
_PASSES_ON = ("Dropout", "Noop")


def reads(archive: Archive, container: str) -> bool:
    """Whether the archive is one of ncnn's."""
    return container == "ncnn_files" and "graph" in archive.metadata


def read(archive: Archive, container: str, options: ReadOptions) -> Model:  # noqa: ARG001 - one container
    """The recurrent layers and, where they are one stack and nothing else, its wiring.

    Raises:
        BadFile: when a layer contradicts itself.
        UnsupportedSource: when there is no recurrent layer, or its weights could not be placed.
    """
    layers: dict[str, RecurrentLayer] = {}
    rewrites: list[Note] = []
    for entry in archive.metadata["graph"]:
        if entry["type"] in _CELLS and options.layer in (None, entry["name"]):
            layers[entry["name"]] = _layer(entry, archive, rewrites)
    if not layers:
        raise UnsupportedSource("the graph has no recurrent layer")
    metadata = {"rewrites": rewrites}
    if options.layer is not None:
        return Model(layers, framework=NAME, metadata=metadata)
    calls, reason = _wiring(archive.metadata["graph"], layers)
    if reason:
        return Model(layers, framework=NAME, metadata={**metadata, "topology": reason})
    first, last = layers[calls[0].layer], layers[calls[-1].layer]
    graph = archive.metadata["graph"]
    source = next(entry for entry in graph if entry["type"] == "Input")["outputs"][0]
    target = graph[-1]["outputs"][0]
    inputs = (Port(source, "x", (None, None, first.input_size)),)
    outputs = (Port(target, calls[-1].outputs[0], (None, None, last.width)),)
    return Model(layers, calls, inputs, outputs, NAME, metadata)


def _layer(entry: Mapping[str, Any], archive: Archive, rewrites: list[Note]) -> RecurrentLayer:
    name, cell = entry["name"], _CELLS[entry["type"]]
    prefix = f"{name}/"
    own = {n.removeprefix(prefix): t for n, t in archive.tensors.items() if n.startswith(prefix)}
    if "weight_xc" not in own:
        raise UnsupportedSource(
            "the weights of a layer could not be placed",
            place=f"layer {name!r}",
            found=archive.metadata["unread"],
        )
    directions = _DIRECTIONS.get(entry["params"].get(2, "0"))
    if directions is None:
        raise BadFile("unknown direction", place=f"layer {name!r}", found=entry["params"][2])
    tensors = {key: _widened(key, own, name, rewrites) for key in own if not key.endswith("_scales")}
    described = mapping.load(NAME).layouts[str(cell)]
    weights = layouts.read_weights(cell, described, tensors)
    built = tuple(
        RecurrentDirection(direction, _EQUATIONS[cell], found)
        for direction, found in zip(directions, weights.values(), strict=True)
    )
    return RecurrentLayer(
        name, built, origin=tuple(prefix + key for key in tensors), stored_gates=described.gates
    )


def _widened(key: str, own: Mapping[str, Lazy], name: str, rewrites: list[Note]) -> Lazy:
    """A tensor as the float32 that the runtime makes of it."""
    tensor = own[key]
    if tensor.dtype == np.float32:
        return tensor
    if tensor.dtype == np.int8:
        scales = own.get(f"{key}_scales")
        if scales is None:
            raise UnsupportedSource(f"{key} is of 8 bits and has no scales", place=f"layer {name!r}")
        rewrites.append(dequantised(name, key, "int8", "one scale a row"))

        def divided(array: Array) -> Array:
            values: Array = array.astype(np.float32) / scales.read()[..., None]
            return values

        return tensor.map(divided, tensor.shape, np.float32)
    return tensor.map(lambda array: array.astype(np.float32), tensor.shape, np.float32)


def _wiring(
    graph: list[dict[str, Any]], layers: Mapping[str, RecurrentLayer]
) -> tuple[tuple[Call, ...], str]:
    """The calls of a graph that is one stack, or why it is none."""
    uses = Counter(blob for entry in graph for blob in entry["inputs"])
    if [entry["type"] for entry in graph].count("Input") != 1:
        return (), "the graph has not exactly one input"
    value, held = "", ""
    calls: list[Call] = []
    for entry in graph:
        kind, name = entry["type"], entry["name"]
        if kind == "Input" and not calls and not held and len(entry["outputs"]) == 1:
            value, held = "x", entry["outputs"][0]
            continue
        if kind not in _CELLS and kind not in _PASSES_ON:
            return (), f"{name!r}: {kind} is not read beside recurrent layers"
        if entry["inputs"] != (held,) or len(entry["outputs"]) != 1 or uses[held] != 1:
            return (), f"{name!r} takes or gives states, or more than one layer takes what it takes"
        if kind in _CELLS:
            taken, value = value, f"{name}.y"
            calls.append(Call(name, (taken,), (value,)))
        held = entry["outputs"][0]
    if len(calls) != len(layers):
        return (), "not every recurrent layer is in the stack"
    return tuple(calls), ""


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """The files of one stack of recurrent layers.

    Raises:
        NotRepresentable: where the model is something else.
        Usage: when an option cannot be heeded.
    """
    if container != "ncnn_files":
        raise Usage("ncnn models are written to .param files only", found=container, expected="ncnn_files")
    if options.opset is not None or options.states:
        raise Usage("ncnn files have neither an opset nor states as inputs", remedy="Leave the option out.")
    model, layers = single_stack.layers_of(model, "ncnn")
    described = mapping.load(NAME)
    start, end = _word(model.inputs[0].name), _word(model.outputs[0].name)
    if start == end:
        end += "_out"
    graph: list[dict[str, Any]] = [_entry("Input", start, (), (start,), {})]
    tensors: dict[str, Lazy] = {}
    blob, names = start, {start}
    for number, layer in enumerate(layers):
        _check(layer)
        lowering.refuse_initial_states(layer, described)
        name = _word(layer.name)
        while name in names:
            name += "_"
        names.add(name)
        packed = layouts.pack(
            lowering.layout_for(described, layer), {d.direction: d.weights for d in layer.directions}
        )
        order = [key for key in ("weight_xc", "bias_c", "weight_hc", "weight_hr") if key in packed]
        tensors |= {f"{name}/{key}": packed[key] for key in order}
        params = {
            0: str(layer.recurrent_size),
            1: str(packed["weight_xc"].size),
            2: _NUMBERS[layer.direction],
        }
        if layer.projected_size is not None:
            params[3] = str(layer.hidden_size)
        given = end if number == len(layers) - 1 else f"{name}_y"
        graph.append(_entry(layer.cell.upper(), name, (blob,), (given,), params))
        blob = given
    return Archive(MappingProxyType(tensors), MappingProxyType({"graph": graph}))


def _entry(
    kind: str, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], params: dict[int, str]
) -> dict[str, Any]:
    return {"type": kind, "name": name, "inputs": inputs, "outputs": outputs, "params": params}


def _word(name: str) -> str:
    """A name without white space, of which the text files have none."""
    return re.sub(r"\s|=", "_", name) or "_"


def _check(layer: RecurrentLayer) -> None:
    place = f"layer {layer.name!r}"
    if layer.dtype != np.float32:
        raise NotRepresentable(
            f"weights of {layer.dtype} are not written for ncnn",
            place=place,
            remedy="Choose --dtype float32.",
        )
    if layer.projected_size == layer.hidden_size:
        raise NotRepresentable(
            "ncnn cannot tell a projection as wide as the layer from none",
            place=place,
            remedy="Convert to ONNX or PyTorch.",
        )
