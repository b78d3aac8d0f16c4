"""Recurrent layers in the graph: one canonical layer where there is one, else a chain and its merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lstmconvert.canonical import (
    MaskedOutput,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    Returns,
    ReverseOutput,
    SequenceBehaviour,
)
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.keras.arguments import Arguments
from lstmconvert.frameworks.keras.config import LayerSpec, read_layer
from lstmconvert.frameworks.keras.graph import Graph, Symbol, Value
from lstmconvert.frameworks.keras.layer_options import LayerOptions
from lstmconvert.frameworks.keras.masks import Given, Mask
from lstmconvert.frameworks.keras.recurrent import RECURRENT, CellSpec, Context, LoopSpec, read_loop
from lstmconvert.frameworks.keras.slots import Slot
from lstmconvert.frameworks.keras.symbols import mask_of
from lstmconvert.gates import Cell, Direction
from lstmconvert.model import Layer
from lstmconvert.operations import Combination, Combine, Concatenate, Transpose
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

_MERGES: Mapping[str | None, Merge] = {
    "concat": Merge.CONCAT,
    "sum": Merge.SUM,
    "mul": Merge.MULTIPLY,
    "ave": Merge.AVERAGE,
    None: Merge.SEPARATE,
}
_MERGE_OPERATIONS = {
    Merge.CONCAT: Concatenate(-1),
    Merge.SUM: Combine(Combination.ADD),
    Merge.MULTIPLY: Combine(Combination.MULTIPLY),
    Merge.AVERAGE: Combine(Combination.AVERAGE),
}
_FORWARD, _BACKWARD = "forward_layer", "backward_layer"


@dataclass(frozen=True, slots=True, eq=False)
class _Chain:
    """The cells of one direction; each is a recurrent layer that feeds the next."""

    loop: LoopSpec
    direction: Direction
    path: str
    suffixes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentUnit:
    """A recurrent layer, or a Bidirectional around two of them.

    Attributes:
        forward: the layer, or the forward one.
        backward: of a Bidirectional.
        merge: of a Bidirectional.
        generation: of Keras.
    """

    forward: LoopSpec
    backward: LoopSpec | None
    merge: Merge
    generation: int

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Forward, then backward."""
        if self.backward is None:
            return self.forward.slots
        return (
            *(slot.under(_FORWARD) for slot in self.forward.slots),
            *(slot.under(_BACKWARD) for slot in self.backward.slots),
        )

    @property
    def _joined(self) -> bool:
        """Whether both directions are one canonical layer."""
        if self.backward is None:
            return False
        first, second = self.forward.cells, self.backward.cells
        return (
            len(first) == len(second) == 1
            and type(first[0].equations) is type(second[0].equations)
            and first[0].units == second[0].units
        )

    @property
    def _chains(self) -> tuple[_Chain, ...]:
        if self.backward is None:
            direction = Direction.REVERSE if self.forward.backwards else Direction.FORWARD
            return (_Chain(self.forward, direction, "", _suffixes("", self.forward)),)
        return (
            _Chain(self.forward, Direction.FORWARD, _FORWARD, _suffixes("/forward", self.forward)),
            _Chain(self.backward, Direction.REVERSE, _BACKWARD, _suffixes("/backward", self.backward)),
        )

    def layers(self, name: str, tensors: Mapping[str, Lazy], origin: tuple[str, ...]) -> Mapping[str, Layer]:
        """One canonical layer, or one for each cell of each direction."""
        if self.backward is not None and self._joined:
            return {name: self._joined_layer(name, tensors, origin)}
        result: dict[str, Layer] = {}
        for chain in self._chains:
            own = _under(chain.path, tensors)
            for index in range(len(chain.loop.cells)):
                layer_name = f"{name}{chain.suffixes[index]}"
                result[layer_name] = self._lone_layer(layer_name, chain, index, own, origin)
        return result

    def _joined_layer(
        self, name: str, tensors: Mapping[str, Lazy], origin: tuple[str, ...]
    ) -> RecurrentLayer:
        directions = []
        stored: tuple[Any, ...] = ()
        for chain in self._chains:
            cell = chain.loop.cells[0]
            weights, stored = cell.weights(_under(chain.path, tensors))
            directions.append(RecurrentDirection(chain.direction, cell.equations, weights))
        sequence = replace(_in_both_directions(self.forward.sequence), merge=self.merge)
        try:
            return RecurrentLayer(name, tuple(directions), sequence, origin, stored)
        except ValueError as error:
            raise BadFile(f"the directions do not fit: {error}", place=f"layer {name!r}") from error

    def _lone_layer(
        self, name: str, chain: _Chain, index: int, tensors: Mapping[str, Lazy], origin: tuple[str, ...]
    ) -> RecurrentLayer:
        loop = chain.loop
        last = index == len(loop.cells) - 1
        cell = loop.cells[index]
        weights, stored = cell.weights(tensors)
        visited = (
            last and self.backward is None and loop.backwards and loop.sequence.returns is Returns.SEQUENCE
        )
        sequence = replace(
            loop.sequence,
            returns=loop.sequence.returns if last else Returns.SEQUENCE,
            reverse_output=ReverseOutput.VISITED_ORDER if visited else ReverseOutput.INPUT_ORDER,
        )
        if self.backward is not None:
            sequence = _in_both_directions(sequence)
        direction = RecurrentDirection(chain.direction, cell.equations, weights)
        return RecurrentLayer(name, (direction,), sequence, origin, stored)

    def call(self, graph: Graph, name: str, value: str, arguments: Arguments) -> tuple[Value | Symbol, ...]:
        """The sequence or last step (two of them when they stay separate), then the states."""
        bound = arguments.bind("sequences", "initial_state", "mask")
        first = bound["sequences"]
        source, *beside = arguments.values(first)
        states = [item.name for item in (*beside, *arguments.values(bound.get("initial_state", ())))]
        mask: Mask | None = graph.mask_of(source)
        if "mask" in bound:
            mask = _explicit(graph, bound["mask"], arguments)
        self._check_states(states, arguments.place)
        # Keras 3 fills the mask in by itself only for layers that are called with one tensor.
        heeds = self.generation < 3 or "mask" in bound or not states
        heeded = graph.mask_value(mask) if mask is not None and heeds else None
        self._check_mask(heeded, arguments.place)
        x = source.name
        if self.forward.time_major:
            x = graph.apply(f"{name}/batch_major", Transpose((1, 0, 2)), [x])
        if self._joined:
            outputs, finals = self._call_joined(graph, name, value, x, heeded, states)
        else:
            outputs, finals = self._call_chains(graph, name, value, x, heeded, states)
        if self.forward.time_major and self.forward.sequence.returns is Returns.SEQUENCE:
            outputs = [
                graph.apply(f"{name}/time_major", Transpose((1, 0, 2)), [output]) for output in outputs
            ]
        kept = mask if self.forward.sequence.returns is Returns.SEQUENCE else None
        return (*(Value(output, kept) for output in outputs), *(Value(final) for final in finals))

    def _check_states(self, states: Sequence[str], place: str) -> None:
        loops = [self.forward, *([self.backward] if self.backward else [])]
        expected = sum(_state_count(cell) for loop in loops for cell in loop.cells)
        if states and len(states) != expected:
            raise BadFile(
                "the layer is called with another number of initial states than it has",
                place=place,
                found=len(states),
                expected=expected,
            )

    def _check_mask(self, mask: str | None, place: str) -> None:
        loops = [self.forward, *([self.backward] if self.backward else [])]
        if mask is None:
            return
        if self.forward.time_major:
            raise UnsupportedSource("a mask on a time-major layer is not supported", place=place)
        if any(cell.is_cudnn for loop in loops for cell in loop.cells):
            raise UnsupportedSource("a mask reaches a CuDNN layer, which Keras itself refuses", place=place)

    def _call_joined(
        self, graph: Graph, name: str, value: str, x: str, mask: str | None, states: Sequence[str]
    ) -> tuple[list[str], list[str]]:
        outputs = [value, f"{value}.reverse"] if self.merge is Merge.SEPARATE else [value]
        finals: list[str] = []
        if self.forward.sequence.return_state:
            kinds = ["h", "c"][: _state_count(self.forward.cells[0])]
            finals = [f"{value}.{side}{kind}" for side in ("", "reverse_") for kind in kinds]
        names = graph.call(name, [x], [*outputs, *finals], mask=mask, initial_state=states)
        return list(names[: len(outputs)]), list(names[len(outputs) :])

    def _call_chains(
        self, graph: Graph, name: str, value: str, x: str, mask: str | None, states: Sequence[str]
    ) -> tuple[list[str], list[str]]:
        outputs: list[str] = []
        finals: list[str] = []
        left = list(states)
        for chain in self._chains:
            current = x
            for index, cell in enumerate(chain.loop.cells):
                count = _state_count(cell)
                own, left = left[:count], left[count:]
                last = index == len(chain.loop.cells) - 1
                alone = last and self.backward is None
                base = value if alone else f"{value}{chain.suffixes[index]}"
                kinds = ["h", "c"][:count] if chain.loop.sequence.return_state else []
                wanted = [base, *(f"{base}.{kind}" for kind in kinds)]
                layer = f"{name}{chain.suffixes[index]}"
                current, *made = graph.call(layer, [current], wanted, mask=mask, initial_state=own)
                finals += made
            outputs.append(current)
        if self.backward is None or self.merge is Merge.SEPARATE:
            return outputs, finals
        layer = graph.add_helper(f"{name}/merge", _MERGE_OPERATIONS[self.merge])
        return list(graph.call(layer, outputs, [value])), finals


def _suffixes(base: str, loop: LoopSpec) -> tuple[str, ...]:
    if len(loop.cells) == 1:
        return (base,)
    return tuple(f"{base}/{index}" for index in range(len(loop.cells)))


def _under(path: str, tensors: Mapping[str, Lazy]) -> Mapping[str, Lazy]:
    if not path:
        return tensors
    return {key.removeprefix(f"{path}/"): lazy for key, lazy in tensors.items() if key.startswith(f"{path}/")}


def _state_count(cell: CellSpec) -> int:
    return 2 if cell.equations.cell is Cell.LSTM else 1


def _explicit(graph: Graph, given: Any, arguments: Arguments) -> Mask | None:
    if isinstance(given, tuple):
        given = given[0] if given else None
    if given is None:
        return None
    if isinstance(given, Symbol):
        return mask_of(graph, given, arguments.place)
    return Given(arguments.value(given).name)


def read_recurrent(spec: LayerSpec, context: Context) -> RecurrentUnit | None:
    """The unit of a recurrent layer or Bidirectional; ``None`` for other classes.

    Raises:
        UnsupportedSource: naming what cannot be read.
    """
    generation = context.release.generation
    if spec.class_name in RECURRENT:
        return RecurrentUnit(read_loop(spec, context), None, Merge.CONCAT, generation)
    if spec.class_name != "Bidirectional":
        return None
    options = LayerOptions(spec)
    merge = options.take("merge_mode", "concat")
    if merge not in _MERGES:
        raise UnsupportedSource(f"merge_mode={merge!r} is not supported", place=options.place)
    forward = _read_direction(options.take("layer"), options, context)
    given = options.take("backward_layer", None)
    if given is None:
        backward = replace(forward, backwards=not forward.backwards)
    else:
        backward = _read_direction(given, options, context)
    for name in ("return_sequences", "return_state", "stateful", "go_backwards", "num_constants"):
        options.take(name, None)
    options.finish()
    if forward.backwards or not backward.backwards:
        raise UnsupportedSource(
            "a Bidirectional whose forward layer has go_backwards=True is not supported", place=options.place
        )
    a, b = forward.sequence, backward.sequence
    if (a.returns, a.return_state) != (b.returns, b.return_state):
        raise BadFile("the two directions return different things", place=options.place)
    if forward.time_major or backward.time_major:
        raise UnsupportedSource("time_major inside Bidirectional is not supported", place=options.place)
    return RecurrentUnit(forward, backward, _MERGES[merge], generation)


def _read_direction(data: Any, outer: LayerOptions, context: Context) -> LoopSpec:
    spec = read_layer(data, inside=outer.place)
    if spec.class_name not in RECURRENT:
        raise UnsupportedSource(
            f"a Bidirectional around the class {spec.class_name!r} is not supported",
            place=outer.place,
            expected=", ".join(sorted(RECURRENT)),
        )
    return read_loop(spec, context)


def _in_both_directions(sequence: SequenceBehaviour) -> SequenceBehaviour:
    """What Bidirectional makes of its layers: they zero masked steps if and only if they return sequences."""
    if sequence.returns is Returns.SEQUENCE:
        return replace(sequence, masked_output=MaskedOutput.ZERO)
    if sequence.masked_output is MaskedOutput.ZERO:
        return replace(sequence, masked_output=MaskedOutput.HOLD)
    return sequence
