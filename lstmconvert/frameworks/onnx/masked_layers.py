"""The masked layers of a graph while it is walked: their outputs are moved back to where they belong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lstmconvert.canonical import MaskedOutput
from lstmconvert.frameworks.onnx import masked
from lstmconvert.frameworks.onnx.arrangement import Atom, Axis, Held, Unknown, length
from lstmconvert.frameworks.onnx.patterns import Flow
from lstmconvert.frameworks.onnx.recurrent_use import ANY, LAST, RAW, RecurrentUse, spread_as
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class Directed:
    """An output of a recurrent layer of two directions.

    Attributes:
        call: the layer's use.
        kind: which of its outputs.
        directions: the factor that runs over the directions.
        axes: the axes of the output without it.
    """

    call: RecurrentUse
    kind: str
    directions: Atom
    axes: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Compacted:
    """The axis over which the valid steps of masked sequences run.

    Attributes:
        use: the layer that gives them.
        mask: the mask (batch, time).
    """

    use: RecurrentUse
    mask: Held


class MaskedLayers:
    """What is known of the recurrent nodes that are fed valid steps only.

    Args:
        opset: version of the operators.
        tensors: what is known of each tensor.
        directed: the outputs of layers of two directions.
        values: the names that are taken.
    """

    def __init__(
        self,
        opset: int,
        tensors: Mapping[str, Held | Unknown],
        directed: dict[str, Directed],
        values: set[str],
    ) -> None:
        self._opset = opset
        self._tensors = tensors
        self._directed = directed
        self._values = values
        self._compacted: dict[Atom, Compacted] = {}
        self._initial_names: dict[str, str] = {}

    def note(self, steps: Atom, use: RecurrentUse, mask: Held) -> None:
        """Remember a layer by the axis over which its outputs run."""
        self._compacted[steps] = Compacted(use, mask)

    def note_initial(self, final: str, initial: str) -> None:
        """Remember the tensor of the initial state that belongs to a final one."""
        self._initial_names[final] = initial

    def any_spread(self, held: Held, mask: Held) -> Held | None:
        """The sequence of which a tensor has the valid steps of a mask in front; ``None`` of any other."""
        if held.rank != 3 or len(held.axes[0]) != 1:
            return None
        found = self._compacted.get(held.axes[0][0])
        if found is None or found.mask.value != mask.value:
            return None
        return _steps_back(held, held.axes[0], mask.axes[1], f"{held.value}{ANY}")

    def piece(self, flow: Flow, name: str) -> Held | None:
        """A tensor that a node in the surroundings of a masked layer gives; ``None`` of any other."""
        maker = flow.maker(name)
        if maker is None or not self._compacted:
            return None
        if maker[0].op_type == "Gather":
            return self._moved_back(flow, name)
        if maker[0].op_type == "Where":
            return self._state_or_other(flow, name)
        return None

    def _moved_back(self, flow: Flow, name: str) -> Held | None:
        """A compacted sequence moved back to the steps of its input."""
        table = flow.maker(flow.makers[name][0].input[0])
        y = None if table is None else self._tensors.get(flow.source(table[0].input[0]))
        if not isinstance(y, Held) or y.rank != 3 or len(y.axes[0]) != 1:
            return None
        compact, width = self._compacted.get(y.axes[0][0]), length(y.axes[2])
        if compact is None or width is None:
            return None
        found = masked.spread(flow, self._opset, name, width)
        if found is None:
            return None
        spreading, match = found
        mask = self._tensors.get(match.tensors[masked.MASK])
        held = spreading.kind is MaskedOutput.HOLD
        directions = compact.use.layer.directions
        if held and compact.use.both:
            place = y.value.rpartition("/")[2]
            directions = directions[int(place) : int(place) + 1] if place in ("0", "1") else directions
        if (
            not isinstance(mask, Held)
            or (mask.value, mask.axes) != (compact.mask.value, compact.mask.axes)
            or (held and [d.direction for d in directions] != [spreading.direction])
            or (held and compact.use.starts_elsewhere and self._holds_initial(flow, name))
        ):
            return None
        self._values.add(f"{y.value}{spread_as(spreading)}")
        moved = _steps_back(y, y.axes[0], mask.axes[1], f"{y.value}{spread_as(spreading)}")
        if spreading.batch_major:
            moved = moved.arranged((moved.axes[1], moved.axes[0], moved.axes[2]))
        return moved

    def _holds_initial(self, flow: Flow, name: str) -> bool:
        """Whether nothing but a choice takes a tensor: an initial state is held before the first step."""
        takers = [node for node, _ in flow.makers.values() if name in node.input]
        return bool(takers) and all(node.op_type == "Where" for node in takers)

    def _state_or_other(self, flow: Flow, name: str) -> Held | None:
        """A final state, replaced where no step, or not the last one, is valid."""
        dtype = next(iter(self._compacted.values())).use.layer.dtype.name
        last = masked.last_or_zero(flow, self._opset, name, dtype)
        if last is not None:
            found, direction = last
            final = self._tensors.get(found.tensors[masked.FINAL])
            compact = self._compact_of(final, found.tensors[masked.MASK])
            if not isinstance(final, Held) or compact is None:
                return None
            kind = (compact.use.kind_of(final.value) or "").removesuffix(RAW)
            number = {"h": 0, "h_reverse": 1}.get(kind)
            if number is None or compact.use.layer.directions[number].direction is not direction:
                return None
            other = compact.use.output(f"last/{number}")
            return _named(final, lambda _: other)
        held = masked.held_final(flow, self._opset, name, dtype)
        if held is None:
            return None
        found, or_zero = held
        final = self._tensors.get(found.tensors[masked.FINAL])
        compact = self._compact_of(final, found.tensors[masked.MASK])
        if not isinstance(final, Held) or compact is None or RAW not in final.value:
            return None
        if not or_zero and self._initial_names.get(final.value) != found.tensors[masked.INITIAL]:
            return None
        after = LAST if or_zero else ""
        if or_zero and not (compact.use.kind_of(final.value) or "").startswith("h"):
            return None
        result = _named(final, lambda value: value.replace(RAW, "") + after)
        self._values.add(result.value)
        if final.value in self._directed:
            known = self._directed[final.value]
            self._directed[result.value] = replace(known, kind=f"h_both{after}")
        return result

    def _compact_of(self, final: Held | Unknown | None, mask: str) -> Compacted | None:
        """The masked layer whose final state a tensor is, if it heeds the mask."""
        heeded = self._tensors.get(mask)
        if not isinstance(final, Held) or not isinstance(heeded, Held):
            return None
        for compact in self._compacted.values():
            own = compact.use.kind_of(final.value) is not None
            if own and (heeded.value, heeded.axes) == (compact.mask.value, compact.mask.axes):
                return compact
        return None


def _steps_back(held: Held, compact: Axis, time: Axis, value: str) -> Held:
    """The same arrangement of a value that has the steps of the input in the place of the valid ones."""

    def back(axes: Sequence[Axis]) -> tuple[Axis, ...]:
        return tuple(time if axis == compact else axis for axis in axes)

    return Held(value, back(held.logical), back(held.axes), held.dtype)


def _named(held: Held, name: Callable[[str], str]) -> Held:
    """The same arrangement of another value, and of other values at its positions."""
    parts = tuple((atom, tuple(_named(part, name) for part in positions)) for atom, positions in held.parts)
    return replace(held, value=name(held.value), parts=parts)
