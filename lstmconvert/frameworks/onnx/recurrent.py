"""Recurrent layers as one fused LSTM, GRU or RNN node each.

Source: ONNX operators LSTM, GRU, RNN (opset 7 to 22). ONNX Runtime refuses ``layout=1``, so nodes are
time-major: X (time, batch, input), Y (time, direction, batch, hidden), states (direction, batch, hidden).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from lstmconvert import layout, lowering, mapping
from lstmconvert.activations import Activation
from lstmconvert.canonical import (
    Coupling,
    Equations,
    GruEquations,
    LstmEquations,
    MaskedOutput,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    Returns,
    ReverseOutput,
)
from lstmconvert.errors import NotRepresentable
from lstmconvert.frameworks.onnx import masks
from lstmconvert.frameworks.onnx.activations import recurrent_attributes
from lstmconvert.frameworks.onnx.graph import Dimension, Graph, Value
from lstmconvert.frameworks.onnx.masks import TIME_MAJOR, Compaction
from lstmconvert.gates import Cell, Direction, Part
from lstmconvert.onnx_proto import Attribute
from lstmconvert.tensors import Array
from lstmconvert.values import dataclass

_OPERATORS: Mapping[Cell, str] = MappingProxyType({Cell.LSTM: "LSTM", Cell.GRU: "GRU", Cell.RNN: "RNN"})
_OUTPUTS: Mapping[Cell, tuple[str, ...]] = MappingProxyType(
    {Cell.LSTM: ("Y", "Y_h", "Y_c"), Cell.GRU: ("Y", "Y_h"), Cell.RNN: ("Y", "Y_h")}
)
_INITIAL = (Part.INITIAL_HIDDEN, Part.INITIAL_CELL)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a recurrent layer gives.

    Attributes:
        outputs: the values of its call: the sequence or last step, then with ``return_state`` the states.
        states: final h, and c of an LSTM: tensors (direction, batch, size).
    """

    outputs: tuple[Value, ...]
    states: tuple[str, ...]


def state_sizes(layer: RecurrentLayer) -> tuple[int, ...]:
    """Sizes of the states: of h, and for an LSTM of c."""
    return (layer.recurrent_size, layer.hidden_size) if layer.cell is Cell.LSTM else (layer.recurrent_size,)


def write(
    graph: Graph,
    layer: RecurrentLayer,
    x: Value,
    mask: Value | None,
    initial: Sequence[str],
) -> Outcome:
    """Write a layer as a fused node and what stands around it.

    Args:
        graph: where it goes; its scope is the layer's name.
        layer: the layer.
        x: its input (batch, time, features).
        mask: true at valid steps (batch, time), or ``None``.
        initial: initial h, and c of an LSTM, each a tensor (direction, batch, size); empty for the
            trained ones or zeros.

    Raises:
        NotRepresentable: when ONNX's operator does not have the layer's equations.
    """
    return _Writer(graph, layer, x, mask, initial).outcome()


class _Writer:
    """One use of one layer on its way into a graph."""

    def __init__(
        self, graph: Graph, layer: RecurrentLayer, x: Value, mask: Value | None, initial: Sequence[str]
    ) -> None:
        self.graph = graph
        self.layer = layer
        self.dtype = layer.dtype.name
        self.count = len(layer.directions)
        self.x = self._features(graph.cast(x, self.dtype))
        self.steps = None if mask is None else masks.compaction(graph, mask)
        self.initial = tuple(initial) or self._trained()
        self.batch, self.time = x.shape[0], x.shape[1]

    def _features(self, x: Value) -> Value:
        if x.rank != 3:
            raise NotRepresentable(
                f"a recurrent layer takes (batch, time, features), its input has {x.rank} axes",
                place=f"layer {self.layer.name!r}",
            )
        return replace(x, shape=(*x.shape[:2], self.layer.input_size))

    def _trained(self) -> tuple[str, ...]:
        """The trained initial states, repeated for the batch; nothing where there are none."""
        graph, states = self.graph, []
        for part, size, name in zip(_INITIAL, state_sizes(self.layer), ("h", "c"), strict=False):
            blocks = [direction.weights.get((part, None)) for direction in self.layer.directions]
            if not any(blocks):
                states.append("")
                continue
            rows = [
                graph.number(0, self.dtype)
                if block is None
                else graph.weight(self.layer.name, f"initial_{name}_{n}", block.map(_as_row, (1, 1, size)))
                for n, block in enumerate(blocks)
            ]
            one = graph.integers(1)
            full = graph.add(
                "Concat", [one, graph.size(*self._batch_axis()), graph.integers(size)], {"axis": 0}
            )
            whole = [graph.add("Expand", [row, full]) for row in rows]
            states.append(whole[0] if len(whole) == 1 else graph.add("Concat", whole, {"axis": 0}))
        return tuple(states) if any(states) else ()

    def _batch_axis(self) -> tuple[str, int]:
        return self.x.name, self.x.axis(0)

    def _state(self, index: int) -> str:
        """Initial h (0) or c (1), or nothing."""
        return self.initial[index] if index < len(self.initial) else ""

    # The node.

    def _node(self) -> tuple[str, ...]:
        """The fused node; its outputs."""
        graph, layer = self.graph, self.layer
        plain = layer.mapped(_without_initial)
        chosen = lowering.layout_for(mapping.load("onnx"), plain)
        packed = layout.pack(chosen, {d.direction: d.weights for d in plain.directions})
        held = {name: graph.weight(layer.name, name, tensor) for name, tensor in packed.items()}
        x, lengths = self._input()
        inputs = [x, held["W"], held["R"], held.get("B", ""), lengths, self._state(0)]
        if layer.cell is Cell.LSTM:
            inputs += [self._state(1), held.get("P", "")]
        while not inputs[-1]:
            inputs.pop()
        attributes: dict[str, Attribute] = {
            "hidden_size": layer.hidden_size,
            "direction": layer.direction,
            **recurrent_attributes([a for d in layer.directions for a in _activations(d.equations)]),
            **_options(layer.equations),
        }
        return graph.add_main(_OPERATORS[layer.cell], inputs, attributes, _OUTPUTS[layer.cell])

    def _input(self) -> tuple[str, str]:
        """The time-major input, and the lengths."""
        if self.steps is None:
            return self.graph.ordered(self.x, TIME_MAJOR), ""
        return (
            masks.compacted(self.graph, self.steps, self.x),
            masks.sequence_lens(self.graph, self.steps),
        )

    # What comes out.

    def outcome(self) -> Outcome:
        y, *finals = self._node()
        states = tuple(self._held(final, self._state(n)) for n, final in enumerate(finals))
        if self.layer.sequence.returns is Returns.LAST:
            outputs = self._last(finals[0], states[0])
        elif self.steps is None:
            outputs = self._sequence(y)
        else:
            outputs = self._masked_sequence(y, self.steps)
        if self.layer.sequence.return_state:
            outputs += tuple(
                self._value(self._pick(state, direction, 0), (self.batch, size), (0, 1))
                for direction in range(self.count)
                for state, size in zip(states, state_sizes(self.layer), strict=True)
            )
        return Outcome(outputs, states)

    def _value(self, name: str, shape: tuple[Dimension, ...], order: tuple[int, ...]) -> Value:
        return Value(name, shape, self.dtype, order)

    def _pick(self, tensor: str, direction: int, axis: int) -> str:
        """One direction of a tensor that has an axis for them."""
        if self.count == 1:
            return self.graph.add("Squeeze", [tensor, self.graph.integers(axis)])
        return self.graph.add("Gather", [tensor, self.graph.integer(direction)], {"axis": axis})

    def _no_steps(self) -> str:
        """Whether a sequence has no valid step (batch, 1)."""
        assert self.steps is not None
        return self.graph.add("Equal", [self.steps.lengths, self.graph.integers(0)])

    def _held(self, final: str, initial: str) -> str:
        """The final state: of a sequence without a valid step the initial one, not ONNX Runtime's zero."""
        if self.steps is None or not initial:
            return final
        return self.graph.add("Where", [self._no_steps(), initial, final])

    # Two directions into one output.

    def _merged(self, tensor: str, axis: int, rank: int) -> tuple[tuple[str, int], ...]:
        """The directions, side by side on ``axis`` of ``rank``, as the layer gives them, with widths."""
        graph, size, merge = self.graph, self.layer.recurrent_size, self.layer.sequence.merge
        if self.count == 1 or merge is Merge.SEPARATE:
            return tuple((self._pick(tensor, n, axis), size) for n in range(self.count))
        if merge is Merge.CONCAT:
            others = [n for n in range(rank - 1) if n != axis]
            moved = graph.transpose(tensor, (*others, axis, rank - 1))
            shape = graph.integers(*[0] * len(others), 2 * size)
            return ((graph.add("Reshape", [moved, shape]), 2 * size),)
        operator = {Merge.SUM: "ReduceSum", Merge.AVERAGE: "ReduceMean", Merge.MULTIPLY: "ReduceProd"}[merge]
        return ((graph.reduce(operator, tensor, [axis], keep_axes=False), size),)

    def _merged_apart(self, parts: Sequence[Value]) -> tuple[Value, ...]:
        """Directions that are values of their own, as the layer gives them."""
        graph, merge = self.graph, self.layer.sequence.merge
        if len(parts) == 1 or merge is Merge.SEPARATE:
            return tuple(parts)
        names, first = [part.name for part in parts], parts[0]
        if merge is Merge.CONCAT:
            joined = graph.add("Concat", names, {"axis": -1})
            return (replace(first, name=joined, shape=(*first.shape[:-1], self.layer.width)),)
        if merge is Merge.AVERAGE:
            return (first.named(graph.add("Div", [graph.add("Add", names), graph.number(2, self.dtype)])),)
        return (first.named(graph.add("Add" if merge is Merge.SUM else "Mul", names)),)

    def _last(self, final: str, state: str) -> tuple[Value, ...]:
        """The output at the last step that is visited: the final state, or zero where none is valid.

        ONNX Runtime's final state is that zero already; the operators' documentation does not say so.
        """
        masked_output = self.layer.sequence.masked_output
        if self.steps is not None and masked_output is MaskedOutput.ZERO:
            return self._merged_apart([self._last_or_zero(self.steps, final, n) for n in range(self.count)])
        if self.steps is None or masked_output is MaskedOutput.HOLD_STATE:
            final = state
        elif self._state(0):
            final = self.graph.add("Where", [self._no_steps(), self.graph.number(0, self.dtype), final])
        return tuple(
            self._value(name, (self.batch, width), (0, 1)) for name, width in self._merged(final, 0, 3)
        )

    def _last_or_zero(self, steps: Compaction, final: str, number: int) -> Value:
        """One direction's output at the last step that it visits: zero where that is masked."""
        forward = self.layer.directions[number].direction is Direction.FORWARD
        valid = self.graph.add("Gather", [steps.mask, self.graph.integers(-1 if forward else 0)], {"axis": 1})
        zero = self.graph.number(0, self.dtype)
        output = self.graph.add("Where", [valid, self._pick(final, number, 0), zero])
        return self._value(output, (self.batch, self.layer.recurrent_size), (0, 1))

    def _sequences(self, tensors: Sequence[tuple[str, int]]) -> tuple[Value, ...]:
        return tuple(self._value(name, (self.batch, self.time, width), TIME_MAJOR) for name, width in tensors)

    def _as_visited(self) -> bool:
        visited = self.layer.sequence.reverse_output is ReverseOutput.VISITED_ORDER
        return visited and self.layer.direction == Direction.REVERSE

    def _sequence(self, y: str) -> tuple[Value, ...]:
        """The output at every step."""
        if self._as_visited():
            y = self.graph.flipped(y, 0)
        return self._sequences(self._merged(y, 1, 4))

    def _masked_sequence(self, y: str, steps: Compaction) -> tuple[Value, ...]:
        """The output at every step, of a node that was fed the valid steps only."""
        if self.layer.sequence.masked_output is MaskedOutput.ZERO or self.count == 1:
            whole = self._sequences(self._merged(y, 1, 4))
            return tuple(self._spread(value, steps, 0) for value in whole)
        apart = self._sequences([(self._pick(y, n, 1), self.layer.recurrent_size) for n in range(self.count)])
        return self._merged_apart([self._spread(value, steps, n) for n, value in enumerate(apart)])

    def _spread(self, value: Value, steps: Compaction, number: int) -> Value:
        """A compacted output at the steps of the input, held as direction ``number`` visits them."""
        graph, sequence = self.graph, self.layer.sequence
        direction = self.layer.directions[number].direction
        where = masks.places(graph, steps, sequence.masked_output, direction)
        before = masks.nothing_before(graph, steps, direction)
        if self._as_visited():
            where, before = graph.flipped(where, 1), graph.flipped(before, 1)
        result = masks.spread(graph, steps, value, where)
        if sequence.masked_output is MaskedOutput.HOLD_STATE and self._state(0):
            initial = graph.add("Slice", [self._state(0), *map(graph.integers, (number, number + 1, 0))])
            column = graph.add("Unsqueeze", [graph.transpose(before, (1, 0)), graph.integers(2)])
            return result.named(graph.add("Where", [column, initial, result.name]))
        if not self._as_visited():
            masks.offer_compacted(graph, steps, result, value.name)
        return result


def _as_row(array: Array) -> Array:
    return array.reshape(1, 1, -1)


def _without_initial(direction: RecurrentDirection) -> RecurrentDirection:
    """Initial states are inputs of the node and have no place in its layout."""
    weights = direction.weights.mapped(lambda key, block: None if key[0] in _INITIAL else block)
    return replace(direction, weights=weights)


def _activations(equations: Equations) -> tuple[Activation, ...]:
    """The activations of one direction in the operator's order: f, g, h."""
    match equations:
        case LstmEquations():
            return equations.gate_activation, equations.cell_activation, equations.hidden_activation
        case GruEquations():
            return equations.gate_activation, equations.candidate_activation
        case _:
            return (equations.hidden_activation,)


def _options(equations: Equations) -> dict[str, Attribute]:
    """The attributes that both directions share."""
    options: dict[str, Attribute] = {}
    if equations.preactivation_clip is not None and not math.isinf(equations.preactivation_clip):
        options["clip"] = equations.preactivation_clip
    if isinstance(equations, LstmEquations):
        options["input_forget"] = int(equations.coupling is Coupling.FORGET_IS_ONE_MINUS_INPUT)
    if isinstance(equations, GruEquations):
        options["linear_before_reset"] = int(equations.reset is ResetPlace.AFTER_PRODUCT)
    return options
