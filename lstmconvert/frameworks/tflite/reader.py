"""Graphs to models: the fused recurrent operators, and plain operators beside them.

Every operator that an output depends on is read, or the model has no calls and ``metadata["topology"]`` says
which one is not. The batch is free whatever length the file gives it: LiteRT resizes it.

The states of a recurrent operator are variables that an interpreter keeps from one run to the next until it
is told to reset them; a layer is read as one that begins at zero, and that is noted. Where the graph itself
sets them to zero, it does.

TensorFlow's converter gives every LSTM a cell clip of 10. A cell state grows by at most one a step: where
the sequence has a known length that is no longer, the clip does nothing, and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstmconvert import simplify
from lstmconvert.activations import TANH
from lstmconvert.canonical import LstmEquations, Merge, RecurrentLayer
from lstmconvert.containers import Archive
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.tflite import kernels, neighbours, recurrent
from lstmconvert.frameworks.tflite.kernels import Known
from lstmconvert.frameworks.tflite.use import UNKNOWN, Flow, NotRead
from lstmconvert.model import Call, Layer, Model, OperationLayer, Port
from lstmconvert.operations import Operation, Transpose
from lstmconvert.options import ReadOptions
from lstmconvert.reading_notes import Note, note
from lstmconvert.tensors import Lazy

_TIME_FIRST = (1, 0, 2)
_LOOPS = ("WHILE", "CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "IF")
_MOST_FOLDING = 1 << 17
_SINGLE = ("LSTM", "RNN", "SVDF")


def read(archive: Archive, options: ReadOptions) -> Model:
    """The recurrent layers of a graph and, where all operators are known, its wiring.

    Raises:
        BadFile: when an operator contradicts itself or its kernel.
        UnsupportedSource: when there is no fused recurrent operator, or one has what is not known here.
    """
    return Reader(archive, options).model()


class Reader:
    """One graph on its way to a model: what is known of each of its tensors, and what was read so far."""

    def __init__(self, archive: Archive, options: ReadOptions) -> None:
        graph = archive.metadata["graph"]
        self.archive = archive
        self.options = options
        self.entries: Sequence[Mapping[str, Any]] = graph["tensors"]
        self.operators: Sequence[Mapping[str, Any]] = graph["operators"]
        self.makers = {n: operator for operator in self.operators for n in operator["outputs"]}
        self.ports: Mapping[str, Sequence[tuple[str, int]]] = graph
        self.values: dict[int, Known | Flow] = {}
        self.layers: dict[str, Layer] = {}
        self.calls: list[Call] = []
        self.inputs: list[Port] = []
        self.notes: list[Note] = []
        self.steps: dict[str, int] = {}
        self.states: set[int] = set()
        self.failed: dict[str | None, UnsupportedSource] = {}
        self.against = ""
        self.defined: dict[str, int] = {}
        self.named: dict[str, int] = {}

    def model(self) -> Model:
        """What the graph is."""
        for number, entry in enumerate(self.entries):
            if entry["constant"] and not entry["unread"] and not entry["variable"]:
                tensor = self.archive.tensors[entry["name"]]
                self.values[number] = kernels.constant(entry, tensor)
        for name, number in self.ports["inputs"]:
            self._input(name, number)
        for operator in self._needed():
            self._visit(operator)
        metadata: dict[str, Any] = {
            "name": self.archive.metadata.get("description") or "model",
            "rewrites": self.notes,
        }
        found = {name: layer for name, layer in self.layers.items() if isinstance(layer, RecurrentLayer)}
        wanted = self.options.layer
        if wanted in self.failed:
            raise self.failed[wanted]
        if not found:
            raise self._nothing()
        outputs = self._outputs()
        if self.against:
            metadata["rewrites"] = [told for told in self.notes if told["layer"] in found]
            alone = {name: _joined(layer) for name, layer in found.items()}
            return Model(alone, framework="tflite", metadata={**metadata, "topology": self.against})
        if wanted is None:  # alone it takes sequences of any length
            self._leave_out_clips()
        used = {value for call in self.calls for value in (*call.inputs, *call.initial_state)}
        inputs = tuple(port for port in self.inputs if port.value in used)
        model = Model(self.layers, tuple(self.calls), inputs, outputs, "tflite", metadata)
        if len(found) * len(self.calls) > _MOST_FOLDING:
            return model  # every fold looks at the whole graph again
        return simplify.pair_directions(simplify.fold_last_steps(simplify.fold_reversals(model)))

    def _leave_out_clips(self) -> None:
        """Of cell states that begin at zero and cannot reach the clip within the steps that there are."""
        for name, steps in self.steps.items():
            layer = self.layers[name]
            if not isinstance(layer, RecurrentLayer) or not isinstance(layer.equations, LstmEquations):
                continue
            equations = layer.equations
            if (
                equations.cell_clip is None
                or equations.cell_activation != TANH
                or steps > equations.cell_clip
            ):
                continue
            text = f"the cell clip of {equations.cell_clip:g} was left out: {steps} steps cannot reach it"
            self.notes.append(note(name, "cell_clip", text))
            free = replace(equations, cell_clip=None)
            ways = [replace(direction, equations=free) for direction in layer.directions]
            self.layers[name] = layer.with_directions(ways)

    def _nothing(self) -> UnsupportedSource:
        kinds = {operator["type"] for operator in self.operators}
        loops = [kind for kind in _LOOPS if kind in kinds]
        single = [kind for kind in _SINGLE if kind in kinds]
        if loops:
            return UnsupportedSource(
                f"the graph runs its layers as a loop ({loops[0]}): only fused recurrent operators are read",
                expected=", ".join(recurrent.CELLS),
                remedy="Convert the model that this file was made from (Keras, SavedModel); of GRU and "
                "SimpleRNN layers TensorFlow's converter makes loops, there is no fused operator for them.",
            )
        if single:
            return UnsupportedSource(
                f"the graph has {single[0]}, one step of a layer: only operators over sequences are read",
                expected=", ".join(recurrent.CELLS),
                remedy="Convert the model that this file was made from.",
            )
        return UnsupportedSource("the graph has no fused recurrent operator")

    def _needed(self) -> list[Mapping[str, Any]]:
        """The operators that outputs or recurrent layers depend on, but for what sets a state to zero."""
        wanted = {number for _, number in self.ports["outputs"]}
        found: list[Mapping[str, Any]] = []
        for operator in reversed(self.operators):
            kind = operator["type"]
            if kind not in recurrent.CELLS and wanted.isdisjoint(operator["outputs"]):
                continue
            found.append(operator)
            if kind in recurrent.CELLS:
                operands = recurrent.operands(operator)
                states = recurrent.state_names(list(operands))
                wanted.update(number for key, number in operands.items() if key not in states)
            else:
                wanted.update(operator["inputs"])
        return found[::-1]

    def _give_up(self, reason: str) -> None:
        self.against = self.against or reason

    def _input(self, name: str, number: int) -> None:
        entry = self.entries[number]
        if not entry["shape"] or not entry["dtype"]:
            return
        if "scale" in entry and entry["dtype"] not in ("float32", "float16"):
            self._give_up(f"the input {name!r} is quantised")
            return
        shape = (None, *entry["shape"][1:])
        value = self._value(name)
        self.inputs.append(Port(name, value, shape, entry["dtype"]))
        self.values[number] = Flow(value, shape)

    def _outputs(self) -> tuple[Port, ...]:
        found = []
        for name, number in self.ports["outputs"]:
            value = self.values.get(number)
            if not isinstance(value, Flow):
                self._give_up(f"the output {name!r} is not worked out from the input by known operators")
                continue
            entry = self.entries[number]
            value = self.arranged(value, name)
            shape = (None, *entry["shape"][1:]) if len(entry["shape"]) == len(value.shape) else value.shape
            found.append(Port(name, value.name, shape, entry["dtype"]))
        return tuple(found)

    def _value(self, wanted: str) -> str:
        return _unused(wanted, self.defined)

    def _layer_name(self, wanted: str) -> str:
        return _unused(wanted, self.named)

    def emit(
        self,
        operation: Operation,
        given: Sequence[Flow],
        title: str,
        shape: tuple[int | None, ...],
        weights: Mapping[str, Lazy] | None = None,
    ) -> Flow:
        """One more layer, and the value that it gives."""
        name = self._layer_name(title)
        self.layers[name] = OperationLayer(name, operation, dict(weights or {}), (title,))
        value = self._value(f"{name}.y")
        self.calls.append(Call(name, tuple(flow.name for flow in given), (value,)))
        return Flow(value, shape)

    def arranged(self, flow: Flow, title: str) -> Flow:
        """A value in the order of axes that the graph has it in."""
        if not flow.turned:
            return flow
        batch, time, features = flow.shape
        return self.emit(
            Transpose(_TIME_FIRST), [Flow(flow.name, flow.shape)], title, (time, batch, features)
        )

    def _visit(self, operator: Mapping[str, Any]) -> None:
        kind = operator["type"]
        if not operator["outputs"]:
            return
        if kind in recurrent.CELLS:
            name = self._layer_name(self.title_of(operator))
            try:
                self._recurrent(name, operator)
            except UnsupportedSource as error:
                if self.options.layer is None:
                    raise
                self.failed[name] = error
                self._give_up(f"{name!r} is not read")
            return
        given = [None if n < 0 else self.values.get(n, UNKNOWN) for n in operator["inputs"]]
        result = operator["outputs"][0]
        if given and all(isinstance(value, Known) for value in given):
            folded = neighbours.folded(kind, [v for v in given if isinstance(v, Known)])
            if folded is not None and not self.entries[result]["variable"]:
                self.values[result] = folded
                return
        if any(isinstance(value, Flow) for value in given) and not self.against:
            try:
                self.values[result] = neighbours.result(self, operator, given, self.entries[result])
            except NotRead as reason:
                self._give_up(f"{self.entries[result]['name']!r}: {reason}")

    def title_of(self, operator: Mapping[str, Any]) -> str:
        """A name for the layer of an operator: that of its output, if it has one of its own."""
        name: str = self.entries[operator["outputs"][0]]["name"]
        plain = name.split(":")[0].split(";")[0].strip("/")
        if not plain or "PartitionedCall" in plain or "Identity" in plain or plain.startswith("tfl."):
            kind: str = operator["type"].lower().removeprefix("unidirectional_sequence_")
            plain = kind.removeprefix("bidirectional_sequence_")
        return plain

    # Recurrent layers.

    def _recurrent(self, name: str, operator: Mapping[str, Any]) -> None:
        operands = recurrent.operands(operator)
        states = recurrent.state_names(list(operands))
        x = operands.pop("input")
        if self.entries[x]["dtype"] != "float32":
            raise UnsupportedSource(
                "a layer that computes in whole numbers throughout is not read",
                place=f"layer {name!r}",
                found=f"its input is of {self.entries[x]['dtype'] or 'an unknown dtype'}",
                remedy="Convert the model again with float32 or with dynamic range (8 bit weights only).",
            )
        given: dict[str, Known | None] = {}
        for key, number in operands.items():
            if key not in states:
                value = self.values.get(number)
                given[key] = value if isinstance(value, Known) else None
        layer = recurrent.layer_of(name, operator, given, self.options, self.notes)
        self.layers[name] = layer
        if len(operator["outputs"]) != recurrent.output_count(operator):
            raise BadFile("unexpected number of outputs", place=f"layer {name!r}")
        self._check_states(name, [operands[state] for state in states])
        self._wire(operator, layer, x)

    def _check_states(self, name: str, states: Sequence[int]) -> None:
        persistent = False
        for number in states:
            if number in self.states:
                self._give_up(f"{name!r} goes on from the state that another layer ends with")
            self.states.add(number)
            maker = self.makers.get(number)
            kind = "" if maker is None else maker["type"]
            if kind == "ZEROS_LIKE":
                continue
            persistent = True
            start = None if maker is None or kind != "DEQUANTIZE" else self.values.get(maker["inputs"][0])
            zero = isinstance(start, Known) and not np.any(start.tensor.read())
            variable = self.entries[number]["variable"] and not self.entries[number]["constant"]
            if not zero and (maker is not None or not variable):
                self._give_up(f"{name!r}: its initial state is worked out by the graph")
        if persistent:
            text = (
                "an interpreter keeps the states of this layer between runs until they are reset; "
                "here every run begins at zero"
            )
            self.notes.append(note(name, "states_begin_at_zero", text))

    def _wire(self, operator: Mapping[str, Any], layer: RecurrentLayer, x: int) -> None:
        name, flow = layer.name, self.values.get(x)
        if not isinstance(flow, Flow) or len(flow.shape) != 3:
            self._give_up(f"what {name!r} takes is not understood")
            return
        if recurrent.is_time_major(operator) != flow.turned:
            if not flow.turned:
                self._give_up(f"{name!r} takes (time, batch, features), and so does the model")
                return
            flow = self.arranged(flow, name)
        batch, time, _ = flow.shape
        if time is not None:
            self.steps[name] = time
        outputs = operator["outputs"]
        values = tuple(self._value(f"{name}.y") for _ in outputs)
        self.calls.append(Call(name, (flow.name,), values))
        if len(outputs) == 2:
            self.layers[name] = replace(layer, sequence=replace(layer.sequence, merge=Merge.SEPARATE))
        width = layer.width // len(outputs)
        for number, value in zip(outputs, values, strict=True):
            self.values[number] = Flow(value, (batch, time, width), turned=flow.turned)


def _joined(layer: RecurrentLayer) -> RecurrentLayer:
    """A layer without the graph around it gives its directions side by side."""
    return replace(layer, sequence=replace(layer.sequence, merge=Merge.CONCAT))


def _unused(wanted: str, taken: dict[str, int]) -> str:
    """A name that was not given before; ``taken`` counts how often each was wanted."""
    name = wanted
    while name in taken:
        taken[wanted] += 1
        name = f"{wanted}_{taken[wanted]}"
    taken[name] = 1
    return name
