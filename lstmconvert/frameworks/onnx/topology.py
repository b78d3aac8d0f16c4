"""The wiring of an ONNX graph: nodes become calls of layers, transpositions become arrangements.

A node that is not understood does no harm as long as no output of the model depends on it: what it gives is
``Unknown``, with the reason, and so is whatever is computed from that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from lstmconvert import onnx_proto
from lstmconvert.activations import LINEAR, RELU
from lstmconvert.canonical import Merge, RecurrentLayer
from lstmconvert.errors import UnsupportedSource
from lstmconvert.frameworks.onnx import masked, tables
from lstmconvert.frameworks.onnx.arrangement import (
    Atom,
    Axis,
    CannotArrange,
    Held,
    Moved,
    Unknown,
    length,
    pieces,
    steps,
)
from lstmconvert.frameworks.onnx.constants import Graphs, Scope, node_name
from lstmconvert.frameworks.onnx.masked_layers import Directed, MaskedLayers
from lstmconvert.frameworks.onnx.patterns import Flow, Maker, makers_of
from lstmconvert.frameworks.onnx.recurrent_node import Recurrent
from lstmconvert.frameworks.onnx.recurrent_use import RAW, RecurrentUse, finished
from lstmconvert.frameworks.onnx.tables import IndexMask
from lstmconvert.gates import Cell
from lstmconvert.model import Call, Layer, OperationLayer, Port
from lstmconvert.operations import (
    Activate,
    ClampedRelu,
    Combination,
    Combine,
    Convolution1D,
    Convolution2D,
    Dense,
    EinsumDense,
    Flatten,
    Operation,
    Reshape,
    Select,
    TimeDistributed,
    Transpose,
    ValidSteps,
)
from lstmconvert.reading_notes import Note
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    import onnx

STACK = "stack"
"""Note of a layer that takes the sequence of another one and nothing else: the first of them."""


_MOST_AXES = 16
"""Patterns are looked for among all axes; no layer has more."""


class NotUnderstood(Exception):
    """A node is not understood; the text says what about it."""


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
        self.opset = graphs.opsets.get("", 1)
        self.maskings: dict[tuple[str, float], tuple[str, ...]] = {}
        self._lengths_masks: dict[tuple[str, Axis, Axis], str] = {}
        self._sorted: dict[tuple[str, Axis], Axis] = {}
        self._tensors: dict[str, Held | Unknown] = {}
        self._layers: dict[str, Layer] = {}
        self._calls: list[Call | RecurrentUse | IndexMask] = []
        self._producers: dict[str, str] = {}
        self._shared: set[str] = set()
        self._whole_numbers: dict[str, Held] = {}
        self._rows: dict[str, int] = {}
        self._values: set[str] = set()
        self.rewrites: list[Note] = []
        self._factors: dict[str, tuple[Held, Held]] = {}
        self._steps: tuple[Axis, Axis] | None = None
        self._directed: dict[str, Directed] = {}
        self._makers: dict[str, Maker] = {}
        self._masked = MaskedLayers(self.opset, self._tensors, self._directed, self._values)
        self._uses = Counter(_names_used(self._graph))
        self._ports = self._input_ports()

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
            if any(self.order_of(axis) for axis in held.axes):
                raise UnsupportedSource(
                    f"the graph is not understood as a whole: output {info.name!r} has its sequences in the "
                    "order of their lengths"
                )
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
        return tensor if self._steps is None else _stepwise(tensor, self._steps)

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
        return self.call_several(name, operation, inputs, weights, origin)[0]

    def call_several(
        self,
        name: str,
        operation: Operation,
        inputs: Sequence[Held],
        weights: Mapping[str, Lazy] | None = None,
        origin: Iterable[str] = (),
        *,
        more: Sequence[str] = (),
        mask: Held | None = None,
    ) -> tuple[str, ...]:
        """Use a new layer on values; the names of what it gives.

        Args:
            name: of the layer, made unique.
            operation: what it computes.
            inputs: what it takes, as it is; ``arranged`` comes first.
            weights, origin: its weights, and the names of their tensors.
            more: what stands behind its name for its outputs after the first.
            mask: what it heeds.
        """
        if any(not held.value for held in inputs):
            raise NotUnderstood("it takes a piece of a tensor that is only known by its parts")
        layer = _unique(name, self._layers)
        values = []
        for after in ("", *more):
            values.append(_unique(f"{layer}{after}", self._values))
            self._values.add(values[-1])
        if self._steps is not None:
            operation = _every_step(operation, len(inputs))
        parts = MappingProxyType(dict(weights or {}))
        self._layers[layer] = OperationLayer(layer, operation, parts, tuple(origin))
        heeded = None if mask is None else mask.value
        self._calls.append(Call(layer, tuple(held.value for held in inputs), tuple(values), heeded))
        self._producers[values[0]] = layer
        return tuple(values)

    def index_mask(self, index: Held) -> Held:
        """The mask that is true where an index is not zero, which a table that is looked up gives."""
        value = f"{index.value}.mask"
        if value not in self._values:
            self._values.add(value)
            self._calls.append(IndexMask(index.value, value))
        return replace(index, value=value, dtype="bool", parts=())

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
        if not isinstance(operation, Dense | Convolution1D | Convolution2D | EinsumDense):
            return None
        return layer if operation.activation == LINEAR else None

    def averaged(self, held: Held, count: float) -> Held | None:
        """A sum of so many values that nothing else takes, as their mean; ``None`` of anything else."""
        terms = self._terms(held.value)
        layer = self._layers.get(self._producers.get(held.value, ""))
        if len(terms) != count or count < 2 or not isinstance(layer, OperationLayer):
            return None
        places = {call.outputs[0]: n for n, call in enumerate(self._calls) if isinstance(call, Call)}
        self._layers[layer.name] = replace(layer, operation=Combine(Combination.AVERAGE))
        self._calls[places[held.value]] = Call(layer.name, tuple(terms), (held.value,))
        return held

    def _terms(self, value: str) -> list[str]:
        """The values of which a value is the sum, in order; itself where it is none."""
        layer = self._layers.get(self._producers.get(value, ""))
        if (
            value in self._shared
            or not isinstance(layer, OperationLayer)
            or layer.operation != Combine(Combination.ADD)
        ):
            return [value]
        call = next(c for c in self._calls if isinstance(c, Call) and c.outputs[0] == value)
        return [*self._terms(call.inputs[0]), *call.inputs[1:]]

    def noted_factors(self, held: Held, kind: Combination, parts: Sequence[Held]) -> Held:
        """A combination, remembered if it is a product of two."""
        if kind is Combination.MULTIPLY and len(parts) == 2:
            self._factors[held.value] = parts[0], parts[1]
        return held

    def factors(self, held: Held) -> tuple[Held, Held] | None:
        """The two tensors of which a tensor is the product."""
        return self._factors.get(held.value)

    def axis(self, size: int) -> Axis:
        """A new axis."""
        return (Atom(size),) if size != 1 else ()

    def sorted_axis(self, order: str, batch: Axis) -> Axis:
        """The axis of a batch whose sequences are in an order, by the name of the tensor that says it."""
        if (order, batch) not in self._sorted:
            self._sorted[order, batch] = tuple(Atom(atom.size) for atom in batch)
        return self._sorted[order, batch]

    def first_axis(self, order: str, given: Axis) -> Axis | None:
        """The axis of a batch that was put in an order; ``None`` of an axis in any other."""
        return next(
            (batch for (name, batch), own in self._sorted.items() if (name, own) == (order, given)), None
        )

    def order_of(self, axis: Axis) -> str | None:
        """The order in which the sequences of an axis are; ``None`` if they are as they were given."""
        return next((name for (name, _), own in self._sorted.items() if not set(own).isdisjoint(axis)), None)

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

    # Steps as a longer batch.

    def steps_of(self, names: Iterable[str]) -> tuple[Axis, Axis] | None:
        """Batch and time of the first tensor that has them joined as its first axis."""
        for name in names:
            held = self._tensors.get(name)
            if isinstance(held, Held) and held.rank > 1 and len(held.logical) > 2:
                batch, time = held.logical[:2]
                if batch and time and held.axes[0] == (*batch, *time):
                    return batch, time
        return None

    def every_step(
        self, steps: tuple[Axis, Axis], read: Callable[[], Sequence[Held | Unknown]]
    ) -> list[Held | Unknown]:
        """What a node makes whose batch are the steps of all sequences: layers that act on every step."""
        self._steps = steps
        try:
            results = read()
        finally:
            self._steps = None
        together = (*steps[0], *steps[1])
        return [
            replace(held, logical=(*steps, *held.logical[1:]))
            if isinstance(held, Held) and held.logical[0] == together
            else held
            for held in results
        ]

    # Nodes.

    def neighbour(self, node: onnx.NodeProto, scope: Scope, graphs: Graphs) -> None:
        """Take in a node that is not recurrent."""
        from lstmconvert.frameworks.onnx import neighbours

        if scope.path:
            return
        name = node_name(node)
        place = f"node {name!r} ({node.op_type})"
        try:
            piece = self._piece(node, scope)
            if piece is not None:
                self._give(node.output[0], piece, scope)
                return
            results: Sequence[Held | Unknown] = neighbours.read(self, node, scope, graphs)
        except _Passed as passed:
            self._give_up(node.output, str(passed))
            return
        except (NotUnderstood, CannotArrange) as error:
            self._give_up(node.output, f"{place}: {error}")
            return
        except (ValueError, IndexError, KeyError, TypeError, ArithmeticError) as error:
            self._give_up(node.output, f"{place}: its inputs or attributes contradict each other ({error})")
            return
        for output, held in zip(node.output, results, strict=False):
            if isinstance(held, Held) and held.rank > _MOST_AXES:
                self._give_up([output], f"{place}: its output has {held.rank} axes")
            else:
                self._give(output, held, scope)
        self._give_up(node.output[len(results) :], f"{place}: its output is not known")

    def _piece(self, node: onnx.NodeProto, scope: Scope) -> Held | None:
        """What a node gives that is one of several of which a layer is made; ``None`` of any other."""
        from lstmconvert.frameworks.onnx import supposed

        if len(node.output) != 1:
            return None
        return self._masked.piece(self.flow(scope), node.output[0]) or supposed.read(self, node, scope)

    def is_used_elsewhere(self, name: str) -> bool:
        """Whether more than one node, or an output of the model, takes a tensor."""
        return self._uses[name] > 1

    def give(self, name: str, held: Held) -> None:
        """Say what a tensor is that was not understood before."""
        self._tensors[name] = held

    def capped(self, held: Held, maximum: float) -> Held | None:
        """A rectified value with a largest number, where a layer of it holds that; ``None`` of any other."""
        layer = self._layers.get(self._producers.get(held.value, ""))
        if not isinstance(layer, OperationLayer) or held.value in self._shared:
            return None
        operation = layer.operation
        if operation == Activate(RELU):
            operation = ClampedRelu()
        elif isinstance(operation, Activate) and operation.activation.kind == "leaky_relu":
            operation = ClampedRelu(operation.activation.alpha or 0.0)
        if not isinstance(operation, ClampedRelu) or operation.maximum is not None:
            return None
        self._layers[layer.name] = replace(layer, operation=replace(operation, maximum=maximum))
        return held

    def _give(self, name: str, held: Held | Unknown, scope: Scope) -> None:
        if name:
            self._tensors[name] = held
        if name and isinstance(held, Held):
            scope.state_shape(name, held.sizes)

    def state_inputs(self, scope: Scope) -> None:
        """Let shape arithmetic know the free sizes of the inputs as symbols, before the first node."""
        for port in self._ports:
            tensor = self._tensors[port.name]
            if isinstance(tensor, Held):
                scope.state_shape(port.name, tensor.sizes)

    def _give_up(self, names: Iterable[str], reason: str) -> None:
        for name in names:
            if name:
                self._tensors[name] = Unknown(reason)

    def recurrent(self, node: Recurrent, layer: RecurrentLayer, scope: Scope) -> None:
        """Take in a recurrent node."""
        self._layers[layer.name] = layer
        if scope.path:
            return
        try:
            self._recurrent(node, layer, scope)
        except _Passed as passed:
            self._give_up(node.outputs, str(passed))
        except (NotUnderstood, CannotArrange) as error:
            self._give_up(node.outputs, f"layer {node.name!r}: {error}")

    def _recurrent(self, node: Recurrent, layer: RecurrentLayer, scope: Scope) -> None:
        use = RecurrentUse(layer, "")
        mask = None
        if "sequence_lens" in node.inputs and (given := self._padded_input(node, layer)) is not None:
            x, use.mask = given
        elif "sequence_lens" in node.inputs:
            x, mask = self._masked_input(node, layer, scope)
            use.mask, use.compacted = mask.value, True
        else:
            x = self.get(node.inputs["X"])
        if x.rank != 3:
            raise NotUnderstood(f"its input has {x.rank} axes")
        first, second, features = x.axes
        batch, time = (first, second) if node.batch_first else (second, first)
        x = self.arranged(x, [batch, time, features], layer.name)
        use.value, use.initial_state = x.value, self._initial_state(node, layer, scope, batch)
        self._calls.append(use)
        if mask is not None:
            compact = Atom(None)
            self._masked.note(compact, use, mask)
            time = (compact,)
        held = self._recurrent_outputs(node, use, batch, time)
        for key, tensor in zip(("initial_h", "initial_c"), held[1:], strict=False):
            if key in node.inputs:
                self._masked.note_initial(tensor.value, self.flow(scope).source(node.inputs[key]))
        for name, tensor in zip(node.outputs, held, strict=False):
            self._give(name, tensor, scope)

    def _recurrent_outputs(self, node: Recurrent, use: RecurrentUse, batch: Axis, time: Axis) -> list[Held]:
        """Y, Y_h and Y_c as arrangements of values."""
        layer = use.layer
        width = Atom(layer.recurrent_size)
        directions = Atom(len(layer.directions))
        many = (directions,) if use.both else ()
        # A state of a masked node is the initial one where no step is valid; what the runtime gives is not.
        raw = RAW if use.compacted and use.starts_elsewhere else ""

        def placed(*axes: Axis) -> tuple[Axis, ...]:
            """Axes (batch, time, directions, hidden), time left out in a state, in the order of the node."""
            if node.batch_first:
                return axes
            return (axes[1], axes[2], axes[0], axes[3]) if len(axes) == 4 else (axes[1], axes[0], axes[2])

        dtype = str(layer.dtype)
        axes = placed(batch, time, many, (width,))
        apart = tuple(
            Held.plain(use.output(f"y/{n}"), (batch, time, (width,)), dtype) for n in range(1 + use.both)
        )
        parts = ((directions, apart),) if many else ()
        held = [Held(use.output("y"), (batch, time, (*many, width)), axes, dtype, parts)]
        cells = width if layer.projected_size is None else Atom(layer.hidden_size)
        for kind, size in zip(use.state_kinds, (width, cells), strict=False):
            axes = placed(batch, many, (size,))
            ends = [Held.plain(use.output(f"{kind}{raw}"), (batch, (size,)), dtype)]
            if many:
                ends.append(Held.plain(use.output(f"{kind}_reverse{raw}"), (batch, (size,)), dtype))
                both = use.output(f"{kind}_both{raw}")
                held.append(Held(both, (batch, (*many, size)), axes, dtype, ((directions, tuple(ends)),)))
            else:
                held.append(ends[0].arranged(axes))
        self._values.update(h.value for h in held)
        if many:
            self._directed[held[0].value] = Directed(use, "y", directions, (batch, time, (width,)))
            self._directed[held[1].value] = Directed(use, f"h_both{raw}", directions, (batch, (width,)))
        return held

    # Masked nodes.

    def flow(self, scope: Scope) -> Flow:
        """The graph, for those who look for patterns in it."""
        if not self._makers:
            self._makers = makers_of(self._graph.node)
        return Flow(self._makers, scope.constant)

    def _padded_input(self, node: Recurrent, layer: RecurrentLayer) -> tuple[Held, str] | None:
        """The sequences and the mask of their lengths, where these are whole numbers that the model is given.

        ``None`` where they are something else, such as the count of a mask.
        """
        lengths = self.before_cast(self.peek(node.inputs["sequence_lens"]))
        if lengths is None or lengths.rank != 1:
            return None
        lengths = self._whole_numbers.get(lengths.value, lengths)  # nodes take int32, whatever was given
        x = self.get(node.inputs["X"])
        if x.rank != 3:
            raise NotUnderstood(f"its input has {x.rank} axes")
        batch, time = (x.axes[0], x.axes[1]) if node.batch_first else (x.axes[1], x.axes[0])
        sizes = {length(lengths.axes[0]), length(batch)} - {None}
        if len(sizes) > 1 or self.order_of(lengths.axes[0]) != self.order_of(batch):
            raise NotUnderstood("its lengths are not one for each sequence")
        sequences = self.arranged(x, [batch, time, x.axes[2]], layer.name)
        known = self._lengths_masks.get((lengths.value, batch, time))
        if known is None:
            known = self.call(f"{layer.name}/mask", ValidSteps(), [lengths, sequences])
            self._lengths_masks[lengths.value, batch, time] = known
        return replace(sequences, axes=x.axes), known

    def _masked_input(self, node: Recurrent, layer: RecurrentLayer, scope: Scope) -> tuple[Held, Held]:
        """All the steps of the sequences, as the node's X would be, and the mask."""
        flow = self.flow(scope)
        name = masked.mask_of(flow, self.opset, node.inputs["sequence_lens"])
        if name is None:
            raise NotUnderstood("its sequence lengths are an input of their own")
        mask = self.get(name)
        if node.batch_first or mask.rank != 2 or mask.dtype != "bool":
            raise NotUnderstood("its sequence lengths are not those of a mask (batch, time)")
        mask = self.arranged(mask, mask.axes, f"{layer.name}/mask")
        given = self.peek(node.inputs["X"])
        if isinstance(given, Held) and (whole := self._masked.any_spread(given, mask)) is not None:
            return whole, mask
        fed = masked.fed(flow, self.opset, name, node.inputs["X"], layer.input_size)
        if not fed.x:
            raise NotUnderstood("it is fed something else than the valid steps of its mask")
        x = self.get(fed.x)
        if x.rank != 3:
            raise NotUnderstood(f"its input has {x.rank} axes")
        return (x if fed.time_major else x.arranged((x.axes[1], x.axes[0], x.axes[2]))), mask

    def merged(self, x: Held, place: int, merge: Merge) -> Held | None:
        """Both directions of a recurrent layer as one; ``None`` where the axis is not that of directions."""
        found = self._directed.get(x.value)
        if found is None or x.axes[place] != (found.directions,):
            return None
        kind, mark, rest = found.kind.partition("@") if "@" in found.kind else found.kind.partition(RAW)
        value = found.call.output(f"{kind}_{merge}{mark}{rest}")
        self._values.add(value)
        return Held.plain(value, found.axes, x.dtype).arranged(a for n, a in enumerate(x.axes) if n != place)

    def joined_directions(self, parts: Sequence[Held], axis: int) -> Held | None:
        """Both directions of a sequence side by side again; ``None`` of any other tensors."""
        for found in self._directed.values():
            values = [found.call.output(f"y/{n}") for n in (0, 1)]
            if found.kind != "y" or [part.value for part in parts] != values:
                continue
            first, second = parts
            batch, time, width = first.logical
            same = [a for n, a in enumerate(first.axes) if n != axis]
            if first.axes[axis] != width or first.logical != second.logical or first.axes != second.axes:
                return None
            both = (found.directions, *width)
            axes = (*same[:axis], both, *same[axis:])
            return Held(found.call.output("y"), (batch, time, both), axes, first.dtype)
        return None

    def _initial_state(
        self, node: Recurrent, layer: RecurrentLayer, scope: Scope, batch: Axis
    ) -> tuple[str, ...]:
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
                if self.order_of(state.axes[0 if node.batch_first else 1]) != self.order_of(batch):
                    raise NotUnderstood("its initial state has its sequences in another order")
                row = self.select(state, 1 if node.batch_first else 0, number, place)
                values.append(self.arranged(row, row.axes, place).value)
        return tuple(values)

    # The end.

    def finish(self) -> Wiring:
        """The whole graph as calls.

        Raises:
            UnsupportedSource: naming the first node that is not understood, or where there are no outputs.
        """
        if not self._graph.output:
            raise UnsupportedSource("the graph has no outputs")
        outputs = self._output_ports()
        for port in self._graph.input:
            tensor = self._tensors.get(port.name)
            if isinstance(tensor, Unknown):
                raise UnsupportedSource(f"the graph is not understood as a whole: {tensor.reason}")
        needed = {port.value for port in outputs}
        kept: list[list[Call]] = []
        layers = dict(self._layers)
        renamed: dict[str, str] = {}
        asked: list[IndexMask] = []
        unused: list[Call] = []
        for call in reversed(self._calls):
            if isinstance(call, RecurrentUse):
                used = finished(call, needed)
                if used is None:
                    continue
                layers |= used.layers
                renamed |= used.renamed
                calls = list(used.calls)
            elif isinstance(call, IndexMask):
                if call.value in needed:
                    asked.append(call)
                continue
            elif needed.isdisjoint(call.outputs):
                unused.append(call)
                continue
            else:
                calls = [call]
            for one in calls:
                needed.update(one.inputs, one.initial_state, [one.mask] if one.mask else [])
            kept.append(calls)
        ordered = [_renamed(call, renamed) for calls in reversed(kept) for call in calls]
        for mask in reversed(asked):
            ordered, layers = tables.with_mask(mask, ordered, unused, layers)
        for call in unused:
            if all(call.layer != other.layer for other in ordered):
                del layers[call.layer]
        outputs = tuple(replace(port, value=renamed.get(port.value, port.value)) for port in outputs)
        names = dict.fromkeys([*(call.layer for call in ordered), *layers])
        return Wiring({name: layers[name] for name in names}, tuple(ordered), self._ports, outputs)

    def stacks(self) -> dict[str, str]:
        """The recurrent layers that follow one on another, each with the first of its stack."""
        calls = {call.output("y"): call for call in self._calls if isinstance(call, RecurrentUse)}
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


def _stepwise(held: Held, steps: tuple[Axis, Axis]) -> Held:
    """The tensor as one whose batch are the steps."""
    if held.logical[:2] != steps or held.parts:
        raise NotUnderstood("its inputs do not have the same steps")
    return replace(held, logical=((*steps[0], *steps[1]), *held.logical[2:]))


def _every_step(operation: Operation, inputs: int) -> Operation:
    """The operation on every step of sequences."""
    if inputs != 1:
        raise NotUnderstood("it combines several tensors step by step")
    if isinstance(operation, Transpose) and operation.permutation[0] == 0:
        return Transpose((0, *(n + 1 for n in operation.permutation)))
    return TimeDistributed(operation)


def _renamed(call: Call, names: Mapping[str, str]) -> Call:
    """The call with values under their other names."""
    return replace(
        call,
        inputs=tuple(names.get(name, name) for name in call.inputs),
        initial_state=tuple(names.get(name, name) for name in call.initial_state),
        mask=None if call.mask is None else names.get(call.mask, call.mask),
    )


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
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.elem_type:
        return None, None
    try:
        dtype = onnx_proto.dtype_of(tensor.elem_type)
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
