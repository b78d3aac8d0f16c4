"""The wiring of an ONNX graph: nodes become calls of layers, transpositions become arrangements.

A node that is not understood does no harm as long as no output of the model depends on it: what it gives is
``Unknown``, with the reason, and so is whatever is computed from that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from lstmconvert.activations import LINEAR
from lstmconvert.canonical import Merge, RecurrentLayer, Returns
from lstmconvert.errors import UnsupportedSource
from lstmconvert.frameworks.onnx.arrangement import (
    Atom,
    Axis,
    CannotArrange,
    Held,
    Moved,
    length,
    pieces,
    steps,
)
from lstmconvert.frameworks.onnx.constants import Graphs, Scope, node_name
from lstmconvert.frameworks.onnx.recurrent_node import Recurrent
from lstmconvert.gates import Cell
from lstmconvert.model import Call, Layer, OperationLayer, Port
from lstmconvert.operations import (
    Concatenate,
    Convolution1D,
    Convolution2D,
    Dense,
    Flatten,
    Operation,
    Reshape,
    Select,
    Transpose,
)
from lstmconvert.tensors import Lazy

if TYPE_CHECKING:
    import onnx

STACK = "stack"
"""Note of a layer that takes the sequence of another one and nothing else: the first of them."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A tensor that the model cannot express, and why."""

    reason: str


class NotUnderstood(Exception):
    """A node is not understood; the text says what about it."""


@dataclass(slots=True)
class _RecurrentCall:
    """A use of a recurrent layer, before it is known which of its outputs are needed."""

    layer: RecurrentLayer
    value: str
    initial_state: tuple[str, ...]

    def output(self, kind: str) -> str:
        return f"{self.layer.name}.{kind}"


@dataclass(frozen=True, slots=True)
class _Directed:
    """An output of a recurrent layer of two directions.

    Attributes:
        call: the layer's use.
        kind: which of its outputs.
        directions: the factor that runs over the directions.
        axes: the axes of the output without it.
    """

    call: _RecurrentCall
    kind: str
    directions: Atom
    axes: tuple[Axis, ...]


MERGES = (Merge.SUM, Merge.AVERAGE, Merge.MULTIPLY)
"""The merge modes that are a reduction over the axis of the directions."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """A graph as calls.

    Attributes:
        layers: every layer, the recurrent ones with what they give on.
        calls, inputs, outputs: as in a model.
    """

    layers: Mapping[str, Layer]
    calls: tuple[Call, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class Topology:
    """The wiring while the graph is walked.

    Args:
        graphs: the graph.
    """

    def __init__(self, graphs: Graphs) -> None:
        self._graph = graphs.model.graph
        self._tensors: dict[str, Held | Unknown] = {}
        self._layers: dict[str, Layer] = {}
        self._calls: list[Call | _RecurrentCall] = []
        self._producers: dict[str, str] = {}
        self._shared: set[str] = set()
        self._whole_numbers: dict[str, Held] = {}
        self._rows: dict[str, int] = {}
        self._values: set[str] = set()
        self._directed: dict[str, _Directed] = {}
        self._uses = Counter(_names_used(self._graph))
        self._ports = self._input_ports()
        self._unstated = [port.name for port in self._ports]

    # Ports.

    def _input_ports(self) -> tuple[Port, ...]:
        ports = []
        constants = {tensor.name for tensor in self._graph.initializer}
        named: dict[str, Atom] = {}
        for info in self._graph.input:
            if info.name in constants:
                continue
            dtype, axes = _described(info, named)
            if dtype is None or axes is None:
                self._tensors[info.name] = Unknown(f"input {info.name!r} is no tensor of numbers")
                continue
            self._values.add(info.name)
            self._tensors[info.name] = Held.plain(info.name, axes, dtype)
            ports.append(Port(info.name, info.name, tuple(length(axis) for axis in axes), dtype))
        return tuple(ports)

    def _output_ports(self) -> tuple[Port, ...]:
        ports = []
        for info in self._graph.output:
            tensor = self._tensors.get(info.name, Unknown(f"output {info.name!r} is a constant"))
            if isinstance(tensor, Unknown):
                raise UnsupportedSource(f"the graph is not understood as a whole: {tensor.reason}")
            try:
                held = self.arranged(tensor, tensor.axes, info.name)
            except CannotArrange as error:
                raise UnsupportedSource(
                    f"the graph is not understood as a whole: output {info.name!r}: {error}"
                ) from error
            dtype, _ = _described(info, {})
            shape = tuple(length(axis) for axis in held.axes)
            ports.append(Port(info.name, held.value, shape, dtype or held.dtype))
        return tuple(ports)

    # What the readers of nodes use.

    def get(self, name: str) -> Held:
        """A tensor that depends on the model's inputs.

        Raises:
            NotUnderstood: when it is not known as an arrangement of a value.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise NotUnderstood(f"its input {name!r} is a constant, a size, or made inside another graph")
        if isinstance(tensor, Unknown):
            raise _Passed(tensor.reason)
        if self._uses[name] > 1:
            self._shared.add(tensor.value)
        return tensor

    def peek(self, name: str) -> Held | Unknown | None:
        """What is known of a tensor; ``None`` of a constant."""
        return self._tensors.get(name)

    def before_cast(self, tensor: Held | Unknown | None) -> Held | None:
        """The whole numbers of which a tensor is a cast, or which it is."""
        if not isinstance(tensor, Held):
            return None
        if tensor.dtype.startswith(("int", "uint")):
            return tensor
        return self._whole_numbers.get(tensor.value)

    def note_cast(self, before: Held, after: Held) -> None:
        """Remember of what a tensor is a cast."""
        if before.dtype.startswith(("int", "uint")):
            self._whole_numbers[after.value] = before

    def counts_from_end(self, index: Held, size: int) -> None:
        """Remember that negative numbers of a value count from the end of ``size`` rows."""
        self._rows[index.value] = size

    def rows(self, index: Held) -> int | None:
        """From the end of how many rows negative numbers of a value count, if that is said."""
        return self._rows.get(index.value)

    def call(
        self,
        name: str,
        operation: Operation,
        inputs: Sequence[Held],
        weights: Mapping[str, Lazy] | None = None,
        origin: Iterable[str] = (),
    ) -> str:
        """Use a new layer on values; the name of what it gives.

        The values are taken as they are; ``arranged`` comes first.
        """
        if any(not held.value for held in inputs):
            raise NotUnderstood("it takes a piece of a tensor that is only known by its parts")
        layer = _unique(name, self._layers)
        value = _unique(layer, self._values)
        self._values.add(value)
        parts = MappingProxyType(dict(weights or {}))
        self._layers[layer] = OperationLayer(layer, operation, parts, tuple(origin))
        self._calls.append(Call(layer, tuple(held.value for held in inputs), (value,)))
        self._producers[value] = layer
        return value

    def arranged(self, held: Held, wanted: Sequence[Axis], name: str) -> Held:
        """The tensor as a value whose axes are ``wanted``.

        Raises:
            CannotArrange: when that takes more than transpositions and reshapes behind the batch.
        """
        current = held
        for step in steps(held.logical, wanted):
            if isinstance(step, Moved):
                operation: Operation = Transpose(step.permutation)
                axes = tuple(current.logical[n] for n in step.permutation)
                value = self.call(f"{name}/transpose", operation, [current])
            else:
                axes = step.axes
                operation = Flatten() if len(step.shape) == 1 else Reshape(step.shape)
                value = self.call(f"{name}/reshape", operation, [current])
            current = Held.plain(value, axes, held.dtype)
        return replace(current, axes=held.axes)

    def with_last(self, held: Held, axis: int, name: str) -> Held:
        """The tensor as a value whose last axis is one of the tensor's axes."""
        last = held.axes[axis]
        if held.logical[-1] == last and last:
            return held
        if not last:
            raise NotUnderstood("it acts on an axis of length one")
        if last in held.logical[1:]:
            return self.arranged(held, [*(a for a in held.logical if a != last), last], name)
        others = [a for n, a in enumerate(held.axes) if n != axis % held.rank]
        return self.arranged(held, [*batch_first(held, others), last], name)

    def unfinished(self, held: Held) -> OperationLayer | None:
        """The layer that made a value, if it has no activation yet and nothing else takes the value."""
        layer = self._layers.get(self._producers.get(held.value, ""))
        if held.value in self._shared or not isinstance(layer, OperationLayer):
            return None
        operation = layer.operation
        if not isinstance(operation, Dense | Convolution1D | Convolution2D):
            return None
        return layer if operation.activation == LINEAR else None

    def finish_layer(self, layer: OperationLayer) -> None:
        """Put a layer in the place of that of the same name."""
        self._layers[layer.name] = layer

    def select(self, held: Held, axis: int, index: int, name: str) -> Held:
        """One position of an axis of the tensor; the axis disappears."""
        axis %= held.rank
        taken = held.axes[axis]
        rest = tuple(a for n, a in enumerate(held.axes) if n != axis)
        parts = pieces(held, axis)
        if taken and parts is not None:
            return parts[index]
        if length(taken) == 1 and index in (0, -1):
            return held.arranged(rest)
        if taken not in held.logical:
            held = self.arranged(held, batch_first(held, held.axes), name)
        place = held.logical.index(taken)
        if place == 0:
            if len(held.logical) < 2:
                raise NotUnderstood("it takes one position of the only axis")
            turned = [held.logical[1], taken, *held.logical[2:]]
            held, place = self.arranged(held, turned, name), 1
        value = self.call(f"{name}/select" if name in self._layers else name, Select(place, index), [held])
        logical = tuple(a for n, a in enumerate(held.logical) if n != place)
        return Held(value, logical, rest, held.dtype)

    # Nodes.

    def neighbour(self, node: onnx.NodeProto, scope: Scope, graphs: Graphs) -> None:
        """Take in a node that is not recurrent."""
        from lstmconvert.frameworks.onnx import neighbours

        if scope.path:
            return
        self._state_inputs(scope)
        name = node_name(node)
        place = f"node {name!r} ({node.op_type})"
        try:
            results: Sequence[Held | Unknown] = neighbours.read(self, node, scope, graphs)
        except _Passed as passed:
            self._give_up(node.output, str(passed))
            return
        except (NotUnderstood, CannotArrange) as error:
            self._give_up(node.output, f"{place}: {error}")
            return
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            self._give_up(node.output, f"{place}: its inputs or attributes contradict each other ({error})")
            return
        for output, held in zip(node.output, results, strict=False):
            self._give(output, held, scope)
        self._give_up(node.output[len(results) :], f"{place}: its output is not known")

    def _give(self, name: str, held: Held | Unknown, scope: Scope) -> None:
        if name:
            self._tensors[name] = held
        if name and isinstance(held, Held):
            scope.state_shape(name, held.sizes)

    def _state_inputs(self, scope: Scope) -> None:
        """Let shape arithmetic know the free sizes of the inputs as symbols, before the first node."""
        while self._unstated:
            name = self._unstated.pop()
            tensor = self._tensors[name]
            if isinstance(tensor, Held):
                scope.state_shape(name, tensor.sizes)

    def _give_up(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            if name:
                self._tensors[name] = Unknown(reason)

    def recurrent(self, node: Recurrent, layer: RecurrentLayer, scope: Scope) -> None:
        """Take in a recurrent node."""
        self._layers[layer.name] = layer
        if scope.path:
            return
        self._state_inputs(scope)
        try:
            self._recurrent(node, layer, scope)
        except _Passed as passed:
            self._give_up(node.outputs, str(passed))
        except (NotUnderstood, CannotArrange) as error:
            self._give_up(node.outputs, f"layer {node.name!r}: {error}")

    def _recurrent(self, node: Recurrent, layer: RecurrentLayer, scope: Scope) -> None:
        if "sequence_lens" in node.inputs:
            raise NotUnderstood("its sequence lengths are an input of their own")
        x = self.get(node.inputs["X"])
        if x.rank != 3:
            raise NotUnderstood(f"its input has {x.rank} axes")
        first, second, features = x.axes
        batch, time = (first, second) if node.batch_first else (second, first)
        x = self.arranged(x, [batch, time, features], layer.name)
        call = _RecurrentCall(layer, x.value, self._initial_state(node, layer, scope))
        self._calls.append(call)
        width = Atom(layer.hidden_size)
        directions = Atom(len(layer.directions))
        many = (directions,) if len(layer.directions) == 2 else ()

        def placed(*axes: Axis) -> tuple[Axis, ...]:
            """Axes (batch, time, directions, hidden), time left out in a state, in the order of the node."""
            if node.batch_first:
                return axes
            return (axes[1], axes[2], axes[0], axes[3]) if len(axes) == 4 else (axes[1], axes[0], axes[2])

        dtype = str(layer.dtype)
        held = [
            Held(call.output("y"), (batch, time, (*many, width)), placed(batch, time, many, (width,)), dtype)
        ]
        for kind in ("h", "c") if layer.cell is Cell.LSTM else ("h",):
            axes = placed(batch, many, (width,))
            parts = [Held.plain(call.output(kind), (batch, (width,)), dtype)]
            if many:
                parts.append(Held.plain(call.output(f"{kind}_reverse"), (batch, (width,)), dtype))
                both = call.output(f"{kind}_both")
                held.append(Held(both, (batch, (*many, width)), axes, dtype, ((directions, tuple(parts)),)))
            else:
                held.append(parts[0].arranged(axes))
        self._values.update(h.value for h in held)
        if many:
            self._directed[held[0].value] = _Directed(call, "y", directions, (batch, time, (width,)))
            self._directed[held[1].value] = _Directed(call, "h_both", directions, (batch, (width,)))
        for name, tensor in zip(node.outputs, held, strict=False):
            self._give(name, tensor, scope)

    def merged(self, x: Held, place: int, merge: Merge) -> Held | None:
        """Both directions of a recurrent layer as one; ``None`` where the axis is not that of directions."""
        found = self._directed.get(x.value)
        if found is None or x.axes[place] != (found.directions,):
            return None
        value = found.call.output(f"{found.kind}_{merge}")
        self._values.add(value)
        return Held.plain(value, found.axes, x.dtype).arranged(a for n, a in enumerate(x.axes) if n != place)

    def _initial_state(self, node: Recurrent, layer: RecurrentLayer, scope: Scope) -> tuple[str, ...]:
        keys = ("initial_h", "initial_c") if layer.cell is Cell.LSTM else ("initial_h",)
        given = [node.inputs.get(key) for key in keys]
        dynamic = [name is not None and scope.known(name) is None for name in given]
        if not any(dynamic):
            return ()
        if not all(dynamic):
            raise NotUnderstood("one of its initial states is an input, the other is not")
        values = []
        for number in range(len(layer.directions)):
            for name in given:
                state = self.get(name or "")
                if state.rank != 3:
                    raise NotUnderstood(f"its initial state has {state.rank} axes")
                place = f"{layer.name}/{name}"
                row = self.select(state, 1 if node.batch_first else 0, number, place)
                values.append(self.arranged(row, row.axes, place).value)
        return tuple(values)

    # The end.

    def finish(self) -> Wiring:
        """The whole graph as calls.

        Raises:
            UnsupportedSource: naming the first node that is not understood.
        """
        outputs = self._output_ports()
        for port in self._graph.input:
            tensor = self._tensors.get(port.name)
            if isinstance(tensor, Unknown):
                raise UnsupportedSource(f"the graph is not understood as a whole: {tensor.reason}")
        needed = {port.value for port in outputs}
        kept: list[list[Call]] = []
        layers = dict(self._layers)
        for call in reversed(self._calls):
            if isinstance(call, _RecurrentCall):
                used = _finished(call, needed)
                if used is None:
                    continue
                layer, extra, calls = used
                layers[layer.name] = layer
                layers |= extra
            elif needed.isdisjoint(call.outputs):
                del layers[call.layer]
                continue
            else:
                calls = [call]
            for one in calls:
                needed.update(one.inputs, one.initial_state)
            kept.append(calls)
        ordered = [call for calls in reversed(kept) for call in calls]
        names = dict.fromkeys([*(call.layer for call in ordered), *layers])
        return Wiring({name: layers[name] for name in names}, tuple(ordered), self._ports, outputs)

    def stacks(self) -> dict[str, str]:
        """The recurrent layers that follow one on another, each with the first of its stack."""
        calls = {call.output("y"): call for call in self._calls if isinstance(call, _RecurrentCall)}
        takers = Counter(call.value for call in calls.values())
        result: dict[str, str] = {}
        for call in calls.values():
            before = calls.get(call.value)
            if before is None or takers[call.value] > 1 or call.initial_state or before.initial_state:
                continue
            first = result.setdefault(before.layer.name, before.layer.name)
            result[call.layer.name] = first
        return result


class _Passed(Exception):
    """A node takes a tensor that is not understood already; the text is that reason."""


def _finished(
    call: _RecurrentCall, needed: set[str]
) -> tuple[RecurrentLayer, dict[str, Layer], list[Call]] | None:
    """The call with the outputs that are needed; ``None`` where none is."""
    layer, both = call.layer, len(call.layer.directions) == 2
    kinds = ("h", "c") if layer.cell is Cell.LSTM else ("h",)
    states = [call.output(kind + end) for end in ("", "_reverse")[: 1 + both] for kind in kinds]
    last = call.output("h_both" if both else "h")
    merged = [
        (kind, merge)
        for kind in ("y", "h_both")
        for merge in MERGES
        if call.output(f"{kind}_{merge}") in needed
    ]
    if merged:
        return _merged(call, merged, needed)
    sequence = call.output("y") in needed
    joined = [kind for kind in kinds if both and call.output(f"{kind}_both") in needed]
    if not sequence and not joined and needed.isdisjoint(states):
        return None
    if not sequence and needed.isdisjoint({*states, call.output("c_both")} - {last}):
        outputs: tuple[str, ...] = (last,)
        joined = []
    else:
        first = last if both and last in needed else call.output("last")
        joined = [kind for kind in joined if sequence or kind != "h"]
        with_states = bool(joined) or not needed.isdisjoint(states)
        outputs = (call.output("y") if sequence else first, *(states if with_states else ()))
    returns = Returns.SEQUENCE if sequence else Returns.LAST
    # Values are batch first, whatever the node's own layout was.
    behaviour = replace(layer.sequence, returns=returns, return_state=len(outputs) > 1, time_major=False)
    calls = [Call(layer.name, (call.value,), outputs, initial_state=call.initial_state)]
    extra: dict[str, Layer] = {}
    for kind in joined:
        name = f"{layer.name}/{kind}_both"
        extra[name] = OperationLayer(name, Concatenate(-1))
        ends = (call.output(kind), call.output(f"{kind}_reverse"))
        calls.append(Call(name, ends, (call.output(f"{kind}_both"),)))
    return replace(layer, sequence=behaviour), extra, calls


def _merged(
    call: _RecurrentCall, merged: Sequence[tuple[str, Merge]], needed: set[str]
) -> tuple[RecurrentLayer, dict[str, Layer], list[Call]]:
    """The call of a layer whose directions are merged by something else than concatenation."""
    (kind, merge), *others = merged
    own = call.output(f"{kind}_{merge}")
    apart = needed.intersection(call.output(k) for k in ("y", "last", "h_both", "c_both"))
    kinds = ("h", "c") if call.layer.cell is Cell.LSTM else ("h",)
    states = [call.output(state + end) for end in ("", "_reverse") for state in kinds]
    if others or apart:
        raise UnsupportedSource(
            "the graph is not understood as a whole: the directions of a layer are merged in several ways",
            place=f"layer {call.layer.name!r}",
        )
    with_states = not needed.isdisjoint(states)
    behaviour = replace(
        call.layer.sequence,
        merge=merge,
        returns=Returns.SEQUENCE if kind == "y" else Returns.LAST,
        return_state=with_states,
        time_major=False,
    )
    outputs = (own, *(states if with_states else ()))
    calls = [Call(call.layer.name, (call.value,), outputs, initial_state=call.initial_state)]
    return replace(call.layer, sequence=behaviour), {}, calls


def batch_first(held: Held, axes: Sequence[Axis]) -> list[Axis]:
    """Axes of the tensor, that which is the value's first axis in front."""
    front = [axis for axis in axes if axis == held.logical[0]]
    return [*front, *(axis for axis in axes if axis != held.logical[0])] if front else list(axes)


def _unique(name: str, taken: Iterable[str]) -> str:
    candidate, number = name, 1
    held = taken if isinstance(taken, set | dict) else set(taken)
    while candidate in held:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _names_used(graph: onnx.GraphProto) -> Iterable[str]:
    """Every mention of a tensor as an input or an output of the model, inner graphs included."""
    yield from (info.name for info in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _names_used(attribute.g)
            for inner in attribute.graphs:
                yield from _names_used(inner)


def _described(
    info: onnx.ValueInfoProto, named: dict[str, Atom]
) -> tuple[str | None, tuple[Axis, ...] | None]:
    """Dtype and axes of a port; axes of free size that have one name are one."""
    from onnx import helper

    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.elem_type:
        return None, None
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except (KeyError, TypeError, ValueError):
        return None, None
    if dtype.kind not in "fiubV":
        return None, None
    if not tensor.HasField("shape"):
        return dtype.name, None
    axes: list[Axis] = []
    for dimension in tensor.shape.dim:
        if dimension.HasField("dim_value") and dimension.dim_value > 0:
            axes.append((Atom(dimension.dim_value),))
        elif dimension.dim_param:
            axes.append((named.setdefault(dimension.dim_param, Atom(None)),))
        else:
            axes.append((Atom(None),))
    return dtype.name, tuple(axes)
