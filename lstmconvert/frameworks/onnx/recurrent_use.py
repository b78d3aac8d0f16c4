"""A use of a recurrent node as a call: which of its outputs are needed decides what its layer gives on."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import field, replace

from lstmconvert.canonical import MaskedOutput, Merge, RecurrentLayer, Returns, ReverseOutput
from lstmconvert.errors import UnsupportedSource
from lstmconvert.frameworks.onnx.masked import Spreading
from lstmconvert.gates import Cell, Part
from lstmconvert.model import Call, Layer, OperationLayer
from lstmconvert.operations import Concatenate
from lstmconvert.values import dataclass

MERGES = (Merge.SUM, Merge.AVERAGE, Merge.MULTIPLY)
"""The merge modes that are a reduction over the axis of the directions."""

RAW = "~"
"""Behind a final state of a masked node that starts elsewhere than at zero: as the runtime gives it."""
LAST = "@last"
"""Behind a final state: as the output of the last step, zero where no step is valid."""
ANY = "@any"
"""Behind a sequence that another masked node takes: what stands at masked steps does not matter to it."""


_KIND = re.compile(
    r"(y(/[01])?|last(/[01])?|[hc](_reverse|_both)?)(_(sum|average|multiply))?(~|@(any|last|(zero|hold)(/visited)?))?"
)


@dataclass(slots=True)
class RecurrentUse:
    """A use of a recurrent layer, before it is known which of its outputs are needed.

    Attributes:
        layer: the layer.
        value: what it takes.
        initial_state: its initial states, one by one.
        mask: the mask that it heeds, or ``None``.
        compacted: whether its node is fed the valid steps only, so that its sequence has to be moved back.
    """

    layer: RecurrentLayer
    value: str
    initial_state: tuple[str, ...] = ()
    mask: str | None = None
    compacted: bool = False

    def output(self, kind: str) -> str:
        """The name of one of its outputs."""
        return f"{self.layer.name}.{kind}"

    def kind_of(self, value: str) -> str | None:
        """Which of its outputs a value is; ``None`` of a value of another layer."""
        kind = value.removeprefix(self.output(""))
        return kind if kind != value and _KIND.fullmatch(kind) else None

    @property
    def state_kinds(self) -> tuple[str, ...]:
        """The kinds of states."""
        return ("h", "c") if self.layer.cell is Cell.LSTM else ("h",)

    @property
    def both(self) -> bool:
        """Whether it has two directions."""
        return len(self.layer.directions) == 2

    @property
    def states(self) -> tuple[str, ...]:
        """Its final states in the order of a call."""
        ends = ("", "_reverse")[: 1 + self.both]
        return tuple(self.output(kind + end) for end in ends for kind in self.state_kinds)

    @property
    def starts_elsewhere(self) -> bool:
        """Whether its initial state is not zero."""
        trained = any(
            direction.weights.has(part)
            for direction in self.layer.directions
            for part in (Part.INITIAL_HIDDEN, Part.INITIAL_CELL)
        )
        return trained or bool(self.initial_state)


def spread_as(spreading: Spreading) -> str:
    """What stands behind the name of a sequence that was moved back."""
    return f"@{spreading.kind}{'/visited' if spreading.visited else ''}"


@dataclass(frozen=True, slots=True)
class Finished:
    """A use as calls.

    Attributes:
        layers: the layer, with what it gives on, and those that join its outputs.
        calls: of these layers, in order.
        renamed: values that are other names of what the calls give.
    """

    layers: Mapping[str, Layer]
    calls: tuple[Call, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)


def finished(use: RecurrentUse, needed: Collection[str]) -> Finished | None:
    """The use with the outputs that are needed; ``None`` where none is.

    Raises:
        UnsupportedSource: when one layer cannot give them all.
    """
    if use.compacted:
        return _Masked(use, set(needed)).finished()
    return _plain(use, set(needed))


def _refused(use: RecurrentUse, reason: str) -> UnsupportedSource:
    return UnsupportedSource(
        f"the graph is not understood as a whole: {reason}", place=f"layer {use.layer.name!r}"
    )


def _call(use: RecurrentUse, outputs: tuple[str, ...]) -> Call:
    return Call(use.layer.name, (use.value,), outputs, mask=use.mask, initial_state=use.initial_state)


def _plain(use: RecurrentUse, needed: set[str]) -> Finished | None:
    layer, states = use.layer, use.states
    last = use.output("h_both" if use.both else "h")
    merged = [
        (kind, merge)
        for kind in ("y", "h_both")
        for merge in MERGES
        if use.output(f"{kind}_{merge}") in needed
    ]
    if merged:
        return _merged(use, merged, needed)
    apart = [use.output(f"y/{n}") for n in range(2)]
    if not needed.isdisjoint(apart):
        return _apart(use, apart, needed)
    sequence = use.output("y") in needed
    joined = [kind for kind in use.state_kinds if use.both and use.output(f"{kind}_both") in needed]
    if not sequence and not joined and needed.isdisjoint(states):
        return None
    if not sequence and needed.isdisjoint({*states, use.output("c_both")} - {last}):
        outputs: tuple[str, ...] = (last,)
        joined = []
    else:
        first = last if use.both and last in needed else use.output("last")
        joined = [kind for kind in joined if sequence or kind != "h"]
        with_states = bool(joined) or not needed.isdisjoint(states)
        outputs = (use.output("y") if sequence else first, *(states if with_states else ()))
    behaviour = replace(
        layer.sequence,
        returns=Returns.SEQUENCE if sequence else Returns.LAST,
        return_state=len(outputs) > 1,
        # Values are batch first, whatever the node's own layout was.
        time_major=False,
    )
    if use.mask is not None:
        # A node with lengths gives zeros behind them, and as the last output the last valid one.
        held = MaskedOutput.ZERO if sequence else MaskedOutput.HOLD
        behaviour = replace(behaviour, masked_output=held)
    calls, extra = _joined(use, joined)
    layers = {layer.name: replace(layer, sequence=behaviour), **extra}
    return Finished(layers, (_call(use, outputs), *calls))


def _apart(use: RecurrentUse, firsts: list[str], needed: set[str]) -> Finished:
    """The use of a layer whose directions are needed one by one; side by side as well, if need be."""
    kinds = [kind for kind in use.state_kinds if use.output(f"{kind}_both") in needed]
    with_states = bool(kinds) or not needed.isdisjoint(use.states)
    calls, layers = _joined(use, kinds)
    if use.output("y") in needed:
        name = f"{use.layer.name}/both"
        layers[name] = OperationLayer(name, Concatenate(-1))
        calls.append(Call(name, tuple(firsts), (use.output("y"),)))
    behaviour = replace(
        use.layer.sequence,
        merge=Merge.SEPARATE,
        returns=Returns.SEQUENCE,
        return_state=with_states,
        time_major=False,
    )
    if use.mask is not None:
        behaviour = replace(behaviour, masked_output=MaskedOutput.ZERO)
    layers[use.layer.name] = replace(use.layer, sequence=behaviour)
    outputs = (*firsts, *(use.states if with_states else ()))
    return Finished(layers, (_call(use, outputs), *calls))


def _joined(use: RecurrentUse, kinds: Collection[str]) -> tuple[list[Call], dict[str, Layer]]:
    """What puts the states of both directions side by side."""
    calls, layers = [], {}
    for kind in kinds:
        name = f"{use.layer.name}/{kind}_both"
        layers[name] = OperationLayer(name, Concatenate(-1))
        ends = (use.output(kind), use.output(f"{kind}_reverse"))
        calls.append(Call(name, ends, (use.output(f"{kind}_both"),)))
    return calls, dict(layers)


def _merged(use: RecurrentUse, merged: list[tuple[str, Merge]], needed: set[str]) -> Finished:
    """The use of a layer whose directions are merged by something else than concatenation."""
    (kind, merge), *others = merged
    apart = needed.intersection(use.output(k) for k in ("y", "last", "h_both", "c_both"))
    if others or apart:
        raise _refused(use, "the directions of a layer are merged in several ways")
    with_states = not needed.isdisjoint(use.states)
    behaviour = replace(
        use.layer.sequence,
        merge=merge,
        returns=Returns.SEQUENCE if kind == "y" else Returns.LAST,
        return_state=with_states,
        time_major=False,
    )
    if use.mask is not None:
        held = MaskedOutput.ZERO if kind == "y" else MaskedOutput.HOLD
        behaviour = replace(behaviour, masked_output=held)
    outputs = (use.output(f"{kind}_{merge}"), *(use.states if with_states else ()))
    return Finished({use.layer.name: replace(use.layer, sequence=behaviour)}, (_call(use, outputs),))


class _Masked:
    """A use of a node that is fed the valid steps only, with the outputs that are needed."""

    def __init__(self, use: RecurrentUse, needed: set[str]) -> None:
        self.use = use
        self.needed = needed
        self.own = {kind for name in needed if (kind := use.kind_of(name)) is not None}

    def finished(self) -> Finished | None:
        use = self.use
        if not self.own:
            return None
        if any(name.endswith(RAW) for name in self.own):
            raise _refused(use, "what a final state is where no step is valid is left to the runtime")
        spread = {name for name in self.own if name.startswith("y")}
        if any("@" not in name for name in spread):
            raise _refused(use, "its valid steps are used without being moved back to their places")
        return self._sequence(spread) if spread else self._last()

    def _merge_of(self, bases: set[str], whole: str) -> Merge:
        """The merge mode that gives what is needed; ``whole`` is the name of both side by side."""
        if not self.use.both:
            return self.use.layer.sequence.merge
        if bases == {whole}:
            return Merge.CONCAT
        found = [merge for merge in MERGES if bases == {f"{whole}_{merge}"}]
        if found:
            return found[0]
        if all("/" in base for base in bases):
            return Merge.SEPARATE
        raise _refused(self.use, "the directions of a layer are merged in several ways")

    def _with_states(self) -> tuple[tuple[str, ...], list[str]]:
        """The states, if any is needed, and the kinds that are needed side by side."""
        use = self.use
        joined = [kind for kind in use.state_kinds if use.both and f"{kind}_both" in self.own]
        needed = bool(joined) or not self.needed.isdisjoint(use.states)
        merged = {f"{kind}_both_{merge}" for kind in use.state_kinds for merge in MERGES}
        if not merged.isdisjoint(self.own):
            raise _refused(use, "the final states of both directions are merged")
        return (use.states if needed else ()), joined

    def _finish(
        self,
        firsts: tuple[str, ...],
        behaviour: dict[str, object],
        renamed: Mapping[str, str],
        states: tuple[str, ...],
        joined: list[str],
    ) -> Finished:
        use = self.use
        sequence = replace(
            use.layer.sequence,
            return_state=bool(states),
            time_major=False,
            **behaviour,  # type: ignore[arg-type]
        )
        calls, extra = _joined(use, joined)
        layers = {use.layer.name: replace(use.layer, sequence=sequence), **extra}
        return Finished(layers, (_call(use, (*firsts, *states)), *calls), renamed)

    def _sequence(self, spread: set[str]) -> Finished:
        """The sequence, moved back to the steps of the input."""
        use = self.use
        if any(LAST in name for name in self.own):
            raise _refused(use, "its last output is needed beside its sequence")
        kinds = {name.partition("@")[2] for name in spread} - {ANY[1:]}
        if len(kinds) > 1:
            raise _refused(use, "masked steps are filled in several ways")
        kind, _, visited = (kinds.pop() if kinds else str(MaskedOutput.ZERO)).partition("/")
        bases = {name.partition("@")[0] for name in spread}
        merge = self._merge_of(bases, "y")
        if visited and any(name.endswith(ANY) for name in spread):
            raise _refused(use, "its steps are used in two orders")
        ordered = [f"y/{n}" for n in range(2)] if merge is Merge.SEPARATE else sorted(bases)
        firsts = tuple(use.output(base) for base in ordered)
        renamed = {use.output(name): use.output(name.partition("@")[0]) for name in spread}
        order = ReverseOutput.VISITED_ORDER if visited else use.layer.sequence.reverse_output
        behaviour: dict[str, object] = {
            "returns": Returns.SEQUENCE,
            "masked_output": MaskedOutput(kind),
            "merge": merge,
            "reverse_output": order,
        }
        return self._finish(firsts, behaviour, renamed, *self._with_states())

    def _last(self) -> Finished:
        """The last output, or final states alone."""
        use = self.use
        zero = {name for name in self.own if name.startswith("last/")}
        lasts = {name for name in self.own if name.endswith(LAST)}
        renamed = {}
        if zero and lasts:
            raise _refused(use, "its last output is needed in two ways")
        if zero:
            merge = Merge.SEPARATE if use.both else use.layer.sequence.merge
            firsts = tuple(use.output(f"last/{n}") for n in range(1 + use.both))
            held = MaskedOutput.ZERO
        else:
            held = MaskedOutput.HOLD
            whole = "h_both" if use.both else "h"
            given = {name.removesuffix(LAST) for name in lasts}
            states = set(self.own) - lasts
            if not lasts:
                given = {name for name in states if name.startswith(whole)}
                if use.starts_elsewhere:
                    held = MaskedOutput.HOLD_STATE
            if given and (not use.both or all(name.startswith(whole) for name in given)):
                merge = self._merge_of(given, whole)
                firsts = (use.output(next(iter(given))),)
                if not lasts:
                    self.own -= given
                    self.needed -= set(firsts)
                else:
                    firsts = (firsts[0] + LAST,)
            elif given:
                raise _refused(use, "the last outputs of its directions are needed one by one")
            else:
                merge, firsts = use.layer.sequence.merge, (use.output("last"),)
        behaviour: dict[str, object] = {"returns": Returns.LAST, "masked_output": held, "merge": merge}
        more, joined = self._with_states()
        if firsts[0] in more:
            # The last output and the state are one value under two names.
            renamed[firsts[0]] = firsts[0]
            firsts = (use.output("last"),)
        return self._finish(firsts, behaviour, {k: v for k, v in renamed.items() if k != v}, more, joined)
