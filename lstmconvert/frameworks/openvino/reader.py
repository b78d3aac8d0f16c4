"""IR graphs to models: recurrent layers, and the wiring where it is that of a stack.

Source: the operations LSTMSequence-5, GRUSequence-5, RNNSequence-5, LSTMCell-1 and -4, GRUCell-3 and
RNNCell-1 in OpenVINO's documentation; what they compute was found by running release 2026.4 on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstmconvert import layout as layouts
from lstmconvert import mapping
from lstmconvert.activations import Activation
from lstmconvert.canonical import (
    BlockKey,
    Equations,
    GruEquations,
    LstmEquations,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    ReverseOutput,
    RnnEquations,
    SequenceBehaviour,
    Weights,
)
from lstmconvert.containers import Archive
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.openvino import values
from lstmconvert.frameworks.openvino.values import Filled, Flow, Known, Rows, Sizes, Value
from lstmconvert.gates import Cell, Direction, Part
from lstmconvert.model import Call, Model, Port
from lstmconvert.options import ReadOptions
from lstmconvert.reading_notes import Note, dequantised
from lstmconvert.stacks import STACK
from lstmconvert.tensors import Lazy, shortest_decimal

_CELLS: Mapping[str, Cell] = {f"{cell.upper()}{form}": cell for cell in Cell for form in ("Sequence", "Cell")}
_STATES = {Cell.LSTM: 2, Cell.GRU: 1, Cell.RNN: 1}
_DIRECTIONS = {
    "forward": (Direction.FORWARD,),
    "reverse": (Direction.REVERSE,),
    "bidirectional": (Direction.FORWARD, Direction.REVERSE),
}
_DEFAULTS = {Cell.LSTM: ("sigmoid", "tanh", "tanh"), Cell.GRU: ("sigmoid", "tanh"), Cell.RNN: ("tanh",)}
_KINDS = ("sigmoid", "tanh", "relu", "hardsigmoid")
_ATTRIBUTES = frozenset(
    {
        *("hidden_size", "activations", "activations_alpha", "activations_beta", "clip", "direction"),
        *("linear_before_reset", "weights_format", "input_forget", "originalLayersNames"),
    }
)


def read(archive: Archive, options: ReadOptions) -> Model:
    """The recurrent layers of an IR and, where the graph is a stack of them and nothing else, its wiring.

    Elsewhere the model has no calls, ``metadata["topology"]`` says why, and layers of which one feeds the
    next are noted as a stack.

    Raises:
        BadFile: when a layer contradicts itself or its operation.
        UnsupportedSource: when weights are not constants, or a layer has what is not known here.
    """
    reader = _Reader(archive, options)
    reader.walk()
    return reader.model()


class _Reader:
    def __init__(self, archive: Archive, options: ReadOptions) -> None:
        self.archive = archive
        self.wanted = options.layer
        self.graph: Sequence[dict[str, Any]] = archive.metadata["graph"]
        self.values: dict[tuple[int, int], Value] = {}
        self.layers: dict[str, RecurrentLayer] = {}
        self.calls: list[Call] = []
        self.inputs: list[Port] = []
        self.outputs: list[tuple[str, Flow]] = []
        self.feeds: dict[str, str] = {}
        self.uses: dict[str, set[tuple[str, str, bool]]] = {}
        self.against = ""
        self.rewrites: list[Note] = []

    def walk(self) -> None:
        """Visit every layer after what it needs."""
        done: set[int] = set()
        busy: set[int] = set()
        for first in range(len(self.graph)):
            stack = [first]
            while stack:
                number = stack[-1]
                waiting = [s for s, _ in self.graph[number]["inputs"] if s not in done]
                if number in done or not waiting:
                    stack.pop()
                    busy.discard(number)
                    if number not in done:
                        done.add(number)
                        self._visit(number)
                    continue
                if number in busy:
                    raise BadFile("the graph goes round in a circle", place=self.graph[number]["name"])
                busy.add(number)
                stack += waiting

    def _visit(self, number: int) -> None:
        layer = self.graph[number]
        given = [self.values.get(source) for source in layer["inputs"]]
        kind = layer["type"]
        if kind == "Const":
            tensor = self.archive.tensors.get(layer["name"])
            self.values[number, 0] = None if tensor is None else Known(tensor, zero=layer.get("zero", False))
        elif kind == "Parameter":
            self._parameter(number, layer)
        elif kind == "Result":
            value = given[0] if given else None
            if not isinstance(value, Flow):
                self._give_up(f"the output {layer['name']!r} is not that of a recurrent layer")
            else:
                self._used(value)
                self.outputs.append((self._port_name(layer), value))
        elif kind in _CELLS:
            self._recurrent(number, layer, given)
        else:
            lengths = self.graph[layer["inputs"][0][0]]["outputs"][layer["inputs"][0][1]][1] if given else ()
            found = values.results({**layer, "incoming": lengths}, given)
            for output, value in enumerate(found):
                self.values[number, output] = value
            if any(isinstance(v, Flow) for v in given) and not any(
                isinstance(v, Flow | Sizes) for v in found
            ):
                self._give_up(f"{layer['name']!r}: {kind} is not read beside recurrent layers")

    def _give_up(self, reason: str) -> None:
        self.against = self.against or reason

    def _port_name(self, result: Mapping[str, Any]) -> str:
        name: str = result["name"]
        return name.removesuffix("/sink_port_0").removesuffix("/result")

    def _parameter(self, number: int, layer: Mapping[str, Any]) -> None:
        shape: tuple[int | None, ...] = layer["outputs"][0][1] if layer["outputs"] else ()
        dtype = {"f32": "float32", "f16": "float16", "f64": "float64"}.get(
            layer["data"].get("element_type", "")
        )
        if len(shape) != 3 or dtype is None or shape[2] is None:
            return
        name = layer["name"]
        self.inputs.append(Port(name, name, tuple(shape), dtype))
        self.values[number, 0] = Flow((values.BATCH, values.TIME, values.FEATURES), name, "input", shape[2])

    # Recurrent layers.

    def _recurrent(self, number: int, layer: Mapping[str, Any], given: list[Value]) -> None:
        cell = _CELLS[layer["type"]]
        name = layer["name"]
        if self.wanted not in (None, name):
            return
        sequence = layer["type"].endswith("Sequence")
        states = _STATES[cell]
        first = 1 + states + (1 if sequence else 0)
        expected = first + 3
        if len(given) == first + 2 and not sequence:
            given = [*given, None]
        if len(given) != expected:
            raise BadFile(
                f"{layer['type']} has an unexpected number of inputs",
                place=name,
                found=len(given),
                expected=f"{expected}; peepholes and inputs of older operations are not read",
            )
        _check_attributes(layer)
        directions = _DIRECTIONS.get(layer["data"].get("direction", "forward").lower())
        if directions is None:
            raise BadFile("unknown direction", place=name, found=layer["data"].get("direction"))
        weights = self._weights(layer, cell, given[first:], directions, sequence=sequence)
        equations = _equations(layer, cell)
        trained, wired = self._initial(layer, given[1 : 1 + states], weights, sequence=sequence)
        built = tuple(
            RecurrentDirection(d, equations, weights[d].with_blocks(blocks))
            for d, blocks in zip(directions, trained, strict=True)
        )
        made = RecurrentLayer(name, built, SequenceBehaviour(), (name,), _layout(layer, cell).gates)
        known = next((key for key, other in self.layers.items() if not sequence and _same(other, made)), None)
        if known is not None:
            return  # the next step of a loop that was written out
        self.layers[name] = made
        if wired:
            self._give_up(f"{name!r}: its initial state is worked out by the graph")
        if not sequence:
            self._give_up(f"{name!r} is one step; the loop around it is not read")
            return
        self._wire(number, layer, given, len(directions), made)

    def _wire(
        self, number: int, layer: Mapping[str, Any], given: list[Value], count: int, made: RecurrentLayer
    ) -> None:
        x, lengths, name = given[0], given[1 + _STATES[made.cell]], made.name
        width = made.hidden_size * count
        ways, inner = (values.DIRECTION, values.HIDDEN) if count == 2 else ("1", values.FEATURES)
        self.values[number, 0] = Flow((values.BATCH, ways, values.TIME, inner), name, "y", width)
        for output, role in enumerate(("h", "c")[: _STATES[made.cell]], 1):
            self.values[number, output] = Flow((values.BATCH, ways, inner), name, role, width)
        if not isinstance(x, Flow) or x.axes != (values.BATCH, values.TIME, values.FEATURES):
            self._give_up(f"what {name!r} takes is not understood")
            return
        if not self._whole(layer, lengths):
            self._give_up(f"{name!r}: its sequence lengths are given from outside")
        self._used(x)
        self.feeds[name] = x.value

    def _whole(self, layer: Mapping[str, Any], lengths: Value) -> bool:
        """Whether every sequence is as long as the input."""
        source, output = layer["inputs"][0]
        time = self.graph[source]["outputs"][output][1][1]
        if isinstance(lengths, Known) and lengths.tensor.size <= 1 << 20:
            found = set(lengths.tensor.read().ravel().tolist())
            return time is not None and found == {time}
        if isinstance(lengths, Filled):
            return lengths.of == values.TIME or (time is not None and lengths.of == time)
        return False

    def _used(self, flow: Flow) -> None:
        if flow.role != "input":
            self.uses.setdefault(flow.value, set()).add((flow.role, flow.merge, flow.flipped))

    def _weights(
        self,
        layer: Mapping[str, Any],
        cell: Cell,
        given: list[Value],
        directions: tuple[Direction, ...],
        *,
        sequence: bool,
    ) -> dict[Direction, Weights]:
        name = layer["name"]
        tensors: dict[str, Lazy] = {}
        for key, value in zip(("W", "R", "B"), given, strict=True):
            if value is None and key == "B" and not sequence and len(layer["inputs"]) == 3 + _STATES[cell]:
                rows = tensors["W"].shape[1] + (int(layer["data"]["hidden_size"]) if _linear(layer) else 0)
                tensors[key] = Lazy.of(np.zeros((1, rows), tensors["W"].dtype))
                continue
            if not isinstance(value, Known):
                raise UnsupportedSource(
                    f"the weights {key} are not constants, or of a type that is not read",
                    place=f"layer {name!r}",
                    remedy="Save the model again with its weights as constants of 8 bits or more.",
                )
            if value.tensor.dtype.kind not in "f" and value.tensor.dtype.name != "bfloat16":
                raise BadFile(f"the weights {key} are not floating", place=name, found=value.tensor.dtype)
            tensor = value.tensor
            if value.quantised:
                how = value.scale or "no scale"
                self.rewrites.append(dequantised(name, key, value.quantised, how))
            tensors[key] = tensor if sequence else tensor.map(lambda a: a[None], (1, *tensor.shape))
        size = layer["data"].get("hidden_size", "")
        found = tensors["R"].shape[-1] if tensors["R"].shape else 0
        if size != str(found):
            raise BadFile("hidden_size is not that of the weights", place=name, found=size, expected=found)
        try:
            weights = layouts.read_weights(cell, _layout(layer, cell), tensors)
        except BadFile as error:
            raise BadFile(error.message, place=f"layer {name!r}", found=error.found) from error
        if len(weights) != len(directions):
            raise BadFile("the weights are of another number of directions", place=name, found=len(weights))
        return dict(zip(directions, weights.values(), strict=True))

    def _initial(
        self,
        layer: Mapping[str, Any],
        given: list[Value],
        weights: Mapping[Direction, Weights],
        *,
        sequence: bool,
    ) -> tuple[list[dict[BlockKey, Lazy]], bool]:
        """The trained initial states of each direction, and whether a state is worked out by the graph."""
        blocks: list[dict[BlockKey, Lazy]] = [{} for _ in weights]
        wired = False
        if not sequence:
            return blocks, wired
        expected = next(iter(weights.values())).hidden_size
        for part, value in zip((Part.INITIAL_HIDDEN, Part.INITIAL_CELL), given, strict=False):
            size = _state_size(value)
            if size not in (None, expected):
                raise BadFile(
                    "an initial state is not of the layer's size",
                    place=layer["name"],
                    found=size,
                    expected=expected,
                )
            rows = _rows(value)
            if rows is None:
                wired = True
                continue
            if not rows.size:
                continue
            if rows.shape[0] != len(weights):
                raise BadFile("an initial state is of another number of directions", place=layer["name"])
            for n, found in enumerate(blocks):
                found[part, None] = Lazy.of(np.ascontiguousarray(rows[n]))
        return blocks, wired

    # The model.

    def model(self) -> Model:
        """What was found."""
        metadata: dict[str, Any] = {"name": self.archive.metadata["network"], "rewrites": self.rewrites}
        if self.wanted is not None:
            return Model(self.layers, framework="openvino", metadata=metadata)
        if not self.layers:
            raise UnsupportedSource("the graph has no recurrent layer")
        if not self.against:
            self._resolve()
        if not self.against:
            return self._wired(metadata)
        stacked = {name: self._noted(layer) for name, layer in self.layers.items()}
        return Model(stacked, framework="openvino", metadata={**metadata, "topology": self.against})

    def _resolve(self) -> None:
        """Each layer's merge, order and outputs, from how its outputs are used."""
        for name, layer in self.layers.items():
            used = self.uses.get(name, set())
            sequences = {(merge, flipped) for role, merge, flipped in used if role == "y"}
            if len(sequences) != 1 or len(used) != 1:
                self._give_up(f"the outputs of {name!r} are used in a way that is not read")
                return
            ((merge, flipped),) = sequences
            if (len(layer.directions) == 2) == (merge == "") or (
                flipped and layer.direction != Direction.REVERSE
            ):
                self._give_up(f"the outputs of {name!r} are joined in a way that is not read")
                return
            order = ReverseOutput.VISITED_ORDER if flipped else ReverseOutput.INPUT_ORDER
            behaviour = replace(layer.sequence, merge=Merge(merge or "concat"), reverse_output=order)
            self.layers[name] = replace(layer, sequence=behaviour)
        for title, flow in self.outputs:
            if flow.axes != (values.BATCH, values.TIME, values.FEATURES) or flow.role != "y":
                self._give_up(f"the output {title!r} is not a sequence (batch, time, features)")
        if set(self.feeds) != set(self.layers):
            self._give_up("not every recurrent layer is wired")

    def _wired(self, metadata: dict[str, Any]) -> Model:
        taken = {port.value for port in self.inputs}
        named = {name: f"{name}.y" for name in self.layers}
        while taken & set(named.values()):
            named = {name: f"{value}_" for name, value in named.items()}
        calls = tuple(
            Call(name, (named.get(self.feeds[name], self.feeds[name]),), (named[name],))
            for name in self.layers
        )
        outputs = tuple(
            Port(title, named[flow.value], (*self._free(), flow.width), str(self.layers[flow.value].dtype))
            for title, flow in self.outputs
        )
        used = {call.inputs[0] for call in calls}
        inputs = tuple(port for port in self.inputs if port.value in used)
        return Model(self.layers, calls, inputs, outputs, "openvino", metadata)

    def _free(self) -> tuple[int | None, int | None]:
        shape = self.inputs[0].shape
        return shape[0], shape[1]

    def _noted(self, layer: RecurrentLayer) -> RecurrentLayer:
        """A layer that knows the stack that it is in, where each feeds only the next."""
        followers = [name for name, source in self.feeds.items() if source == layer.name]
        first = layer.name
        while self.feeds.get(first) in self.layers:
            first = self.feeds[first]
        if first == layer.name and not followers:
            return layer
        chain = [name for name, source in self.feeds.items() if source in self.layers]
        if len({self.feeds[name] for name in chain}) != len(chain):
            return layer
        return replace(layer, notes={**layer.notes, STACK: first})


def _same(one: RecurrentLayer, other: RecurrentLayer) -> bool:
    a, b = one.directions[0], other.directions[0]
    return a.equations == b.equations and all(
        key in b.weights and np.array_equal(block.read(), b.weights[key].read())
        for key, block in a.weights.items()
    )


def _state_size(value: Value) -> int | None:
    """The last axis of an initial state that is known, told without its numbers."""
    if isinstance(value, Rows):
        return value.rows.shape[-1]
    return value.tensor.shape[-1] if isinstance(value, Known) and len(value.tensor.shape) == 3 else None


def _rows(value: Value) -> Any:
    """An initial state (direction, size) that is the same for every sequence, empty where it is zero.

    ``None`` where it is not known.
    """
    if isinstance(value, Rows | Known) and value.zero:
        return np.zeros(0)
    if isinstance(value, Rows):
        rows = value.rows.read()
        return rows if np.any(rows) else rows[:0]
    if isinstance(value, Known) and len(value.tensor.shape) == 3:
        array = value.tensor.read()
        if array.shape[0] and np.array_equal(array, np.broadcast_to(array[:1], array.shape)):
            return array[0] if np.any(array) else array[:0]
    return None


def _linear(layer: Mapping[str, Any]) -> bool:
    return layer["data"].get("linear_before_reset", "false").lower() in ("true", "1")


def _layout(layer: Mapping[str, Any], cell: Cell) -> mapping.Layout:
    name = "gru_linear_before_reset" if cell is Cell.GRU and _linear(layer) else str(cell)
    return mapping.load("openvino").layouts[name]


def _check_attributes(layer: Mapping[str, Any]) -> None:
    data, name = layer["data"], layer["name"]
    if unknown := sorted(data.keys() - _ATTRIBUTES):
        raise UnsupportedSource(
            f"{layer['type']} has an attribute that is not known", place=name, found=unknown[0]
        )
    if data.get("weights_format", "fico") != "fico" or data.get("input_forget", "false") != "false":
        raise UnsupportedSource(
            "gates in another order, or a coupled forget gate, are not read",
            place=name,
            remedy="Save the model again with openvino 2022.1 or later.",
        )


def _equations(layer: Mapping[str, Any], cell: Cell) -> Equations:
    functions = _activations(layer, cell)
    clip = _number(layer["data"].get("clip", "0") or "0", layer)
    if clip < 0 or np.isnan(clip):
        raise BadFile("clip is not a bound", place=layer["name"], found=clip)
    bound = None if clip == 0 or np.isinf(clip) else clip
    match cell:
        case Cell.LSTM:
            gate, candidate, hidden = functions
            return LstmEquations(gate, candidate, hidden, preactivation_clip=bound)
        case Cell.GRU:
            reset = ResetPlace.AFTER_PRODUCT if _linear(layer) else ResetPlace.BEFORE_PRODUCT
            return GruEquations(
                reset,
                gate_activation=functions[0],
                candidate_activation=functions[1],
                preactivation_clip=bound,
            )
        case Cell.RNN:
            return RnnEquations(functions[0], preactivation_clip=bound)


def _activations(layer: Mapping[str, Any], cell: Cell) -> tuple[Activation, ...]:
    data, name = layer["data"], layer["name"]

    def listed(key: str) -> list[str]:
        return [text.strip() for text in data.get(key, "").split(",") if text.strip()]

    kinds = [kind.lower() for kind in listed("activations")] or list(_DEFAULTS[cell])
    half = kinds[: len(_DEFAULTS[cell])]
    if kinds == half * 2 and not listed("activations_alpha") and not listed("activations_beta"):
        kinds = half  # OpenVINO's reader of ONNX lists them for both directions, its runtime takes one list
    if len(kinds) != len(_DEFAULTS[cell]):
        raise BadFile(
            "unexpected number of activations",
            place=name,
            found=", ".join(kinds),
            expected=len(_DEFAULTS[cell]),
        )
    alphas, betas = iter(listed("activations_alpha")), iter(listed("activations_beta"))
    found = []
    for kind in kinds:
        if kind not in _KINDS:
            raise UnsupportedSource("unknown activation", place=name, found=kind, expected=", ".join(_KINDS))
        if kind == "hardsigmoid":
            alpha, beta = _number(next(alphas, "0.2"), layer), _number(next(betas, "0.5"), layer)
            found.append(Activation("hard_sigmoid", alpha, beta))
        else:
            found.append(Activation(kind))
    return tuple(found)


def _number(text: str, layer: Mapping[str, Any]) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise BadFile("an attribute is not a number", place=layer["name"], found=text) from error
    return shortest_decimal(value)
