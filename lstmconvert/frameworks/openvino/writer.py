"""Stacks of recurrent layers as IR graphs: one LSTMSequence, GRUSequence or RNNSequence each.

Batch and time stay free where the model leaves them free. The operations take x (batch, time, input), states
(batch, direction, hidden) and lengths (batch,), and give Y (batch, direction, time, hidden) and final states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import layout, lowering, mapping, simplify, stacks
from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    Returns,
    ReverseOutput,
)
from lstmconvert.containers import Archive
from lstmconvert.errors import NotRepresentable, Usage
from lstmconvert.gates import Cell, Direction, Part
from lstmconvert.model import Call, Model, Port
from lstmconvert.options import WriteOptions
from lstmconvert.tensors import Lazy

_OPSETS = {"Gather": "opset8", "Broadcast": "opset3", "ShapeOf": "opset3"}
_REDUCTIONS = {Merge.SUM: "ReduceSum", Merge.AVERAGE: "ReduceMean", Merge.MULTIPLY: "ReduceProd"}
_INITIAL = (Part.INITIAL_HIDDEN, Part.INITIAL_CELL)

Source = tuple[int, int]
Lengths = tuple[int | None, ...]


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """The IR of a model of recurrent layers.

    Raises:
        NotRepresentable: where the model has other layers, or a recurrent layer what is not written here.
        Usage: when an option cannot be heeded.
    """
    if container != "openvino_ir":
        raise Usage("OpenVINO models are written to IR files only", found=container, expected="openvino_ir")
    if options.opset is not None:
        raise Usage("an IR has no ONNX opset", remedy="Leave out --opset.")
    if options.states:
        raise Usage("states are not made inputs and outputs of an IR", remedy="Leave out --states.")
    if model.calls is None:
        found = stacks.split(model)
        if len(found) != 1:
            raise NotRepresentable(
                "the source holds weights without the graph around them, and an IR is a graph",
                reasons=[f"it has {len(found)} recurrent stacks"],
                remedy="Name one layer (--layer), or write to a folder (-o DIR).",
            )
        model = next(iter(found.values()))
    return _Writer(simplify.fold_reversals(model)).archive()


class _Writer:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.graph: list[dict[str, Any]] = []
        self.tensors: dict[str, Lazy] = {}
        self.names: set[str] = set()
        self.held: dict[str, tuple[Source, Lengths]] = {}
        self.reserved = {port.name for port in (*model.inputs, *model.outputs)} | set(model.layers)

    def archive(self) -> Archive:
        for port in self.model.inputs:
            self._input(port)
        for call in self.model.calls or ():
            self._call(call)
        for port in self.model.outputs:
            source, lengths = self.held[port.value]
            self._name_output(source, port.name)
            self._add("Result", [source], [], name=self._own(f"{port.name}/result"))
            del lengths
        network = str(self.model.metadata.get("name") or "model")
        metadata = {"graph": self.graph, "network": network}
        return Archive(MappingProxyType(self.tensors), MappingProxyType(metadata))

    def _own(self, wanted: str) -> str:
        name = wanted
        count = 1
        while name in self.names or (name in self.reserved and wanted not in self.reserved):
            count += 1
            name = f"{wanted}_{count}"
        self.names.add(name)
        return name

    def _add(
        self,
        kind: str,
        inputs: Sequence[Source],
        outputs: Sequence[tuple[str, Lengths]],
        data: Mapping[str, str] | None = None,
        *,
        name: str | None = None,
        version: str = "",
    ) -> Source:
        self.graph.append(
            {
                "name": name or self._own(f"{kind}_{len(self.graph)}"),
                "type": kind,
                "version": version or _OPSETS.get(kind, "opset1"),
                "data": dict(data or {}),
                "inputs": list(inputs),
                "outputs": list(outputs),
            }
        )
        return len(self.graph) - 1, 0

    def _name_output(self, source: Source, title: str) -> None:
        """Give a value the name of an output; a second name is joined to the first by a comma."""
        layer = self.graph[source[0]]
        names = layer.setdefault("names", [""] * len(layer["outputs"]))
        escaped = title.replace(",", "\\,")
        names[source[1]] = f"{names[source[1]]},{escaped}" if names[source[1]] else escaped

    def _input(self, port: Port) -> None:
        if len(port.shape) != 3 or port.dtype != "float32":
            raise NotRepresentable(
                "only inputs (batch, time, features) of float32 are written to an IR",
                place=f"input {port.name!r}",
                remedy="Convert to ONNX, which OpenVINO reads; or take one layer with --layer.",
            )
        shape = ",".join("?" if n is None else str(n) for n in port.shape)
        outputs = [("FP32", port.shape)]
        data = {"shape": shape, "element_type": "f32"}
        source = self._add("Parameter", [], outputs, data, name=self._own(port.name))
        self._name_output(source, port.name)
        self.held[port.value] = source, port.shape

    def _constant(self, name: str, tensor: Lazy) -> Source:
        own = self._own(name)
        self.tensors[own] = tensor
        precision = "FP32" if tensor.dtype.kind == "f" else "I64"
        return self._add("Const", [], [(precision, tensor.shape)], name=own)

    def _numbers(self, name: str, *numbers: int) -> Source:
        return self._constant(name, Lazy.of(np.array(numbers, np.int64)))

    def _number(self, name: str, number: int) -> Source:
        return self._constant(name, Lazy.of(np.array(number, np.int64)))

    # One recurrent layer.

    def _call(self, call: Call) -> None:
        layer = self.model.layers[call.layer]
        if not isinstance(layer, RecurrentLayer):
            raise NotRepresentable(
                f"{type(layer.operation).__name__} is not written to an IR: only recurrent layers are",
                place=f"layer {call.layer!r}",
                remedy="Convert to ONNX, which OpenVINO reads; or take one layer with --layer.",
            )
        _check(layer, call)
        x, lengths = self.held[call.inputs[0]]
        if len(lengths) != 3:
            raise NotRepresentable("a recurrent layer takes a sequence", place=f"layer {call.layer!r}")
        self._layer(layer, call, x, (lengths[0], lengths[1], layer.input_size))

    def _layer(self, layer: RecurrentLayer, call: Call, x: Source, shape: Lengths) -> None:
        name, (batch, time, _) = call.layer, shape
        count, size = len(layer.directions), layer.hidden_size
        plain = layer.mapped(_without_initial)
        chosen = lowering.layout_for(mapping.load("openvino"), plain)
        packed = layout.pack(chosen, {d.direction: d.weights for d in plain.directions})
        sizes = self._add("ShapeOf", [x], [("I64", (3,))], {"output_type": "i64"})
        zero = self._number(f"{name}/axis", 0)
        rows, steps = (
            self._add(
                "Gather",
                [sizes, self._numbers(f"{name}/{title}", n), zero],
                [("I64", (1,))],
                {"batch_dims": "0"},
            )
            for n, title in enumerate(("batch", "time"))
        )
        whole = self._add("Broadcast", [steps, rows], [("I64", (batch,))], {"mode": "numpy"})
        tail = self._numbers(f"{name}/states", count, size)
        state_shape = self._add("Concat", [rows, tail], [("I64", (3,))], {"axis": "0"})
        states = [
            self._add("Broadcast", [start, state_shape], [("FP32", (batch, count, size))], {"mode": "numpy"})
            for start in self._starts(layer)
        ]
        weights = [self._constant(f"{name}/{key}", packed[key]) for key in ("W", "R", "B")]
        finals = [("FP32", (batch, count, size))] * len(states)
        outputs = [("FP32", (batch, count, time, size)), *finals]
        kind = f"{layer.cell.upper()}Sequence"
        own = self._own(name)
        sequence, _ = self._add(
            kind, [x, *states, whole, *weights], outputs, _attributes(layer), name=own, version="opset5"
        )
        behaviour = layer.sequence
        values: list[tuple[Source, Lengths]] = []
        if behaviour.returns is Returns.LAST:
            values.append(self._merged(layer, (sequence, 1), (batch,)))
        else:
            y = (sequence, 0)
            if (
                behaviour.reverse_output is ReverseOutput.VISITED_ORDER
                and layer.direction == Direction.REVERSE
            ):
                data = {"batch_axis": "0", "seq_axis": "2"}
                y = self._add("ReverseSequence", [y, whole], [("FP32", (batch, count, time, size))], data)
            values.append(self._merged(layer, y, (batch, time)))
        for value, (source, lengths) in zip(call.outputs, values, strict=True):
            self.held[value] = source, lengths

    def _starts(self, layer: RecurrentLayer) -> list[Source]:
        """The initial states before they are repeated for the batch: trained ones, or zero."""
        found = []
        parts = _INITIAL if layer.cell is Cell.LSTM else _INITIAL[:1]
        for part, title in zip(parts, ("h", "c"), strict=False):
            blocks = [d.weights.get((part, None)) for d in layer.directions]
            if any(block is not None for block in blocks):
                empty = np.zeros(layer.hidden_size, np.float32)
                rows = [empty if block is None else block.read() for block in blocks]
                found.append(self._constant(f"{layer.name}/initial_{title}", Lazy.of(np.stack(rows)[None])))
            else:
                zero = self._constant(f"{layer.name}/initial_{title}", Lazy.of(np.zeros((), np.float32)))
                self.graph[zero[0]]["zero"] = True
                found.append(zero)
        return found

    def _merged(self, layer: RecurrentLayer, source: Source, outer: Lengths) -> tuple[Source, Lengths]:
        """Directions, on axis 1 of what an operation gives, as one output; ``outer`` are batch and time."""
        name, size, count = layer.name, layer.hidden_size, len(layer.directions)
        rank = len(outer) + 2
        if count == 1:
            axis = self._numbers(f"{name}/direction", 1)
            lengths = (*outer, size)
            return self._add("Squeeze", [source, axis], [("FP32", lengths)]), lengths
        if layer.sequence.merge is Merge.CONCAT:
            if rank == 4:
                order = self._numbers(f"{name}/order", 0, 2, 1, 3)
                source = self._add("Transpose", [source, order], [("FP32", (*outer, count, size))])
            target = self._numbers(f"{name}/joined", *[0] * len(outer), count * size)
            lengths = (*outer, count * size)
            data = {"special_zero": "true"}
            return self._add("Reshape", [source, target], [("FP32", lengths)], data), lengths
        axis = self._numbers(f"{name}/direction", 1)
        lengths = (*outer, size)
        kind = _REDUCTIONS[layer.sequence.merge]
        return self._add(kind, [source, axis], [("FP32", lengths)], {"keep_dims": "false"}), lengths


def _without_initial(direction: RecurrentDirection) -> RecurrentDirection:
    """Initial states are inputs of the operation and have no place in its layout."""
    weights = direction.weights.mapped(lambda key, block: None if key[0] in _INITIAL else block)
    return replace(direction, weights=weights)


def _check(layer: RecurrentLayer, call: Call) -> None:
    against = []
    if call.mask is not None:
        against.append("a mask")
    if call.initial_state:
        against.append("an initial state that the model works out")
    if layer.sequence.stateful:
        against.append("a state that is carried from one batch to the next")
    if layer.sequence.return_state:
        against.append("final states as outputs")
    if layer.sequence.merge is Merge.SEPARATE and len(layer.directions) == 2:
        against.append("directions as outputs of their own")
    if against:
        raise NotRepresentable(
            "this use of a recurrent layer is not written to an IR",
            reasons=against,
            place=f"layer {call.layer!r}",
            remedy="Convert to ONNX, which OpenVINO reads.",
        )
    if layer.dtype != np.float32:
        raise NotRepresentable(
            f"weights of {layer.dtype} are not written to an IR: its CPU runs float32",
            place=f"layer {call.layer!r}",
            remedy="Choose --dtype float32.",
        )


def _attributes(layer: RecurrentLayer) -> dict[str, str]:
    equations = layer.equations
    clip = equations.preactivation_clip
    data = {
        "direction": layer.direction,
        "hidden_size": str(layer.hidden_size),
        "activations": ", ".join(_activations(equations)),
        "activations_alpha": "",
        "activations_beta": "",
        "clip": "0" if clip is None or np.isinf(clip) else repr(float(clip)),
    }
    if isinstance(equations, GruEquations):
        data["linear_before_reset"] = str(equations.reset is ResetPlace.AFTER_PRODUCT).lower()
    return data


def _activations(equations: Equations) -> list[str]:
    """The activations in the operation's order: f, g, h; none that is accepted has parameters."""
    match equations:
        case LstmEquations():
            found = [equations.gate_activation, equations.cell_activation, equations.hidden_activation]
        case GruEquations():
            found = [equations.gate_activation, equations.candidate_activation]
        case _:
            found = [equations.hidden_activation]
    return [activation.kind for activation in found]
