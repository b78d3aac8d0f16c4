"""Models as graphs: one UNIDIRECTIONAL_SEQUENCE_LSTM or _RNN for each direction of a recurrent layer.

The operators take x (batch, time, input) and keep their states in variables, which an interpreter would carry
from one run to the next. So the graph sets them to zero itself, with ZEROS_LIKE, in every run: a run then
depends on its inputs alone, and the variables have the batch of the input whatever it is resized to.
A reverse direction stands between two REVERSE_V2, as TensorFlow's converter writes it. The bidirectional
operators are not written: where BIDIRECTIONAL_SEQUENCE_LSTM joins its outputs, is batch-major and has more
than one sequence, LiteRT 2.3.0 gives other numbers in every run.

The files are for LiteRT's Interpreter, on any of its CPU kernels: its CompiledModel (2.3.0) takes no model
with variables, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import layout, lowering, mapping, simplify, stacks
from lstmconvert.canonical import (
    LstmEquations,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    Returns,
    ReverseOutput,
    RnnEquations,
)
from lstmconvert.containers import Archive
from lstmconvert.errors import NotRepresentable, Usage
from lstmconvert.frameworks.tflite import kernels, operators
from lstmconvert.frameworks.tflite.operators import REMEDY
from lstmconvert.gates import Cell, Direction
from lstmconvert.model import Call, Model, Port
from lstmconvert.options import WriteOptions
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

# The numbers of the options' tables, and of the activations.
_OPTIONS: Mapping[str, int] = MappingProxyType(
    {
        "ADD": 11, "MUL": 21, "CONCATENATION": 10, "STRIDED_SLICE": 32, "REVERSE_V2": 81,
        "UNIDIRECTIONAL_SEQUENCE_LSTM": 71, "UNIDIRECTIONAL_SEQUENCE_RNN": 31, "FULLY_CONNECTED": 8,
        "SOFTMAX": 9, "RESHAPE": 17, "GATHER": 23, "TRANSPOSE": 26, "MEAN": 27, "REDUCE_MAX": 27, "SUB": 28,
        "CAST": 37, "LEAKY_RELU": 75,
    }
)  # fmt: skip
_NUMBERS = {function: number for number, function in kernels.ACTIVATIONS.items()}
_TYPE_NUMBERS = {"float32": 0, "int32": 2, "int64": 4}

Lengths = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph: its position and shape."""

    position: int
    shape: Lengths
    dtype: str = "float32"


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """The graph of a model.

    Raises:
        NotRepresentable: where the model has layers, or a recurrent layer what is not written here.
        Usage: when an option cannot be heeded.
    """
    if container != "tflite_file":
        raise Usage("TFLite models are written to .tflite files only", found=container)
    if options.opset is not None:
        raise Usage("a .tflite file has no ONNX opset", remedy="Leave out --opset.")
    if options.states:
        raise Usage("states are not made inputs and outputs of a .tflite file", remedy="Leave out --states.")
    if model.calls is None:
        found = stacks.split(model)
        if len(found) != 1:
            raise NotRepresentable(
                "the source holds weights without the graph around them, and a .tflite file is a graph",
                reasons=[f"it has {len(found)} recurrent stacks"],
                remedy="Name one layer (--layer), or write to a folder (-o DIR).",
            )
        model = next(iter(found.values()))
    return Graph(simplify.fold_reversals(model)).archive()


class Graph:
    """A graph that grows operator by operator."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.entries: list[dict[str, Any]] = []
        self.operators: list[dict[str, Any]] = []
        self.tensors: dict[str, Lazy] = {}
        self.names: set[str] = set()
        self.reserved = {call.layer for call in model.calls or ()}
        self.held: dict[str, Value] = {}
        self.shared: dict[tuple[int, ...], Value] = {}

    def archive(self) -> Archive:
        """The whole graph."""
        inputs = [(port.name, self._input(port).position) for port in self.model.inputs]
        for call in self.model.calls or ():
            self._call(call)
        outputs = [(port.name, self.value(port.value, port.name).position) for port in self.model.outputs]
        if len({position for _, position in outputs}) != len(outputs) or {p for _, p in inputs} & {
            p for _, p in outputs
        }:
            raise NotRepresentable("an input or output of the model is given twice", remedy=REMEDY)
        graph = {
            "tensors": self.entries,
            "operators": self.operators,
            "inputs": inputs,
            "outputs": outputs,
        }
        description = str(self.model.metadata.get("name") or "model")
        return Archive(
            MappingProxyType(self.tensors), MappingProxyType({"graph": graph, "description": description})
        )

    def _own(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.names or (count > 1 and name in self.reserved):
            count += 1
            name = f"{wanted}_{count}"
        self.names.add(name)
        return name

    def _input(self, port: Port) -> Value:
        if port.dtype not in _TYPE_NUMBERS or not port.shape:
            raise NotRepresentable(
                f"only inputs of float32, int32 and int64 are written to a .tflite file, not {port.dtype}",
                place=f"input {port.name!r}",
                remedy="Choose --dtype float32." if port.dtype.startswith("float") else REMEDY,
            )
        name = port.name if port.name not in self.reserved else f"{port.name}/input"
        value = self.tensor(name, (None, *port.shape[1:]), dtype=port.dtype)
        self.held[port.value] = value
        return value

    def value(self, name: str, user: str) -> Value:
        """A value of the model that a layer takes.

        Raises:
            NotRepresentable: when it is a mask.
        """
        if name not in self.held:
            raise NotRepresentable(
                "masks are not written to a .tflite file", place=f"layer {user!r}", remedy=REMEDY
            )
        return self.held[name]

    def type_number(self, dtype: str) -> int:
        """The number of a dtype."""
        return _TYPE_NUMBERS[dtype]

    def tensor(self, name: str, shape: Lengths, *, variable: bool = False, dtype: str = "float32") -> Value:
        """A tensor that an operator gives, or an input."""
        self.entries.append({"name": self._own(name), "shape": shape, "dtype": dtype, "variable": variable})
        return Value(len(self.entries) - 1, shape, dtype)

    def constant(self, name: str, tensor: Lazy) -> Value:
        """A tensor with content."""
        own = self._own(name)
        self.tensors[own] = tensor
        entry = {"name": own, "shape": tensor.shape, "dtype": tensor.dtype.name, "constant": True}
        self.entries.append(entry)
        return Value(len(self.entries) - 1, tensor.shape)

    def integers(self, *numbers: int) -> Value:
        """A vector of a few integers; the same one wherever it is used."""
        if numbers not in self.shared:
            name = f"integers_{'_'.join(map(str, numbers))}"
            self.shared[numbers] = self.constant(name, Lazy.of(np.array(numbers, np.int32)))
        return self.shared[numbers]

    def add(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        output: Value,
        options: Mapping[str, Any] | None = None,
    ) -> Value:
        """One more operator, and what it gives."""
        self.operators.append(
            {
                "type": kind,
                "inputs": [-1 if value is None else value.position for value in inputs],
                "outputs": [output.position],
                "options_type": _OPTIONS.get(kind, 0),
                "options": dict(options or {}),
            }
        )
        return output

    # One recurrent layer.

    def _call(self, call: Call) -> None:
        layer = self.model.layers[call.layer]
        if not isinstance(layer, RecurrentLayer):
            if call.mask is not None:
                raise NotRepresentable(
                    "masks are not written to a .tflite file", place=f"layer {call.layer!r}", remedy=REMEDY
                )
            # A second output is the mask of an embedding; who takes it is refused.
            self.held[call.outputs[0]] = operators.written(self, call, layer)
            return
        _check(layer, call)
        lowering.refuse_initial_states(layer, mapping.load("tflite"))
        x = self.value(call.inputs[0], call.layer)
        if len(x.shape) != 3:
            raise NotRepresentable("a recurrent layer takes a sequence", place=f"layer {call.layer!r}")
        last = layer.sequence.returns is Returns.LAST
        ways = [self._direction(layer, direction, x, last=last) for direction in layer.directions]
        self.held[call.outputs[0]] = ways[0] if len(ways) == 1 else self._merged(layer, ways)

    def _direction(
        self, layer: RecurrentLayer, direction: RecurrentDirection, x: Value, *, last: bool
    ) -> Value:
        both = len(layer.directions) == 2
        backward = direction.direction is Direction.REVERSE
        name = f"{layer.name}/{direction.direction}" if both else layer.name
        batch, time, _ = x.shape
        if backward:
            x = self.add(
                "REVERSE_V2",
                [x, self.integers(1)],
                self.tensor(f"{name}/reversed", (batch, time, layer.input_size)),
            )
        packed = layout.pack(
            lowering.layout_for(mapping.load("tflite"), layer), {Direction.FORWARD: direction.weights}
        )
        kind = f"UNIDIRECTIONAL_SEQUENCE_{layer.cell.upper()}"
        inputs: list[Value | None] = []
        for key in kernels.INPUTS[kind]:
            if key == "input":
                inputs.append(x)
            elif key in ("state", "cell_state"):
                width = layer.recurrent_size if key == "state" else layer.hidden_size
                inputs.append(self._zero_state(f"{name}/{key}", x, width))
            elif "layer_norm" not in key:
                inputs.append(self.constant(f"{name}/{key}", packed[key]) if key in packed else None)
        width = layer.recurrent_size
        y = self.add(kind, inputs, self.tensor(name, (batch, time, width)), _options(direction))
        if last:
            return self.picked(f"{name}/last", y, 1, -1)
        keeps = layer.sequence.reverse_output is ReverseOutput.INPUT_ORDER
        if backward and keeps:
            y = self.add("REVERSE_V2", [y, self.integers(1)], self.tensor(f"{name}/in_order", y.shape))
        return y

    def _zero_state(self, name: str, x: Value, width: int) -> Value:
        """A variable (batch, width) that is set to zero in every run; ZEROS_LIKE looks at no number."""
        begin, end, ones = self.integers(0, 0, 0), self.integers(0, 1, 1), self.integers(1, 1, 1)
        masks = {"begin_mask": 1, "end_mask": 1, "shrink_axis_mask": 2}
        column = self.add(
            "STRIDED_SLICE", [x, begin, end, ones], self.tensor(f"{name}/column", (x.shape[0], 1)), masks
        )
        row = self.constant(f"{name}/row", Lazy.of(np.zeros((1, width), np.float32)))
        like = self.add("ADD", [column, row], self.tensor(f"{name}/like", (x.shape[0], width)))
        return self.add("ZEROS_LIKE", [like], self.tensor(name, (x.shape[0], width), variable=True))

    def picked(self, name: str, x: Value, axis: int, index: int) -> Value:
        """One position of one axis, which disappears."""
        rank = len(x.shape)
        others = (1 << rank) - 1 - (1 << axis)
        masks = {"begin_mask": others, "end_mask": others, "shrink_axis_mask": 1 << axis}
        begin = [index if n == axis else 0 for n in range(rank)]
        end = [index + 1 if n == axis else 0 for n in range(rank)]
        inputs = [x, self.integers(*begin), self.integers(*end), self.integers(*[1] * rank)]
        shape = tuple(n for k, n in enumerate(x.shape) if k != axis)
        return self.add("STRIDED_SLICE", inputs, self.tensor(name, shape), masks)

    def _merged(self, layer: RecurrentLayer, ways: Sequence[Value]) -> Value:
        name, shape, merge = layer.name, ways[0].shape, layer.sequence.merge
        if merge is Merge.CONCAT:
            joined = self.tensor(name, (*shape[:-1], layer.width))
            return self.add("CONCATENATION", ways, joined, {"axis": len(shape) - 1})
        if merge is Merge.MULTIPLY:
            return self.add("MUL", ways, self.tensor(name, shape))
        total = self.add("ADD", ways, self.tensor(name, shape))
        if merge is Merge.SUM:
            return total
        half = self.constant(f"{name}/half", Lazy.of(np.array(0.5, np.float32)))
        return self.add("MUL", [total, half], self.tensor(f"{name}/average", shape))


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
            "this use of a recurrent layer is not written to a .tflite file",
            reasons=against,
            place=f"layer {call.layer!r}",
            remedy=REMEDY,
        )
    if layer.dtype != np.float32:
        raise NotRepresentable(
            f"weights of {layer.dtype} are not written to a .tflite file: its kernels run float32",
            place=f"layer {call.layer!r}",
            remedy="Choose --dtype float32.",
        )


def _options(direction: RecurrentDirection) -> dict[str, Any]:
    equations = direction.equations
    assert isinstance(equations, LstmEquations | RnnEquations)
    found: dict[str, Any] = {"activation": _NUMBERS[equations.hidden_activation], "time_major": False}
    if equations.cell is Cell.LSTM:
        assert isinstance(equations, LstmEquations)
        found["cell_clip"] = _bound(equations.cell_clip)
        found["proj_clip"] = _bound(equations.projection_clip)
    return found


def _bound(clip: float | None) -> float:
    """Zero stands for no bound."""
    return 0.0 if clip is None or np.isinf(clip) else float(clip)
