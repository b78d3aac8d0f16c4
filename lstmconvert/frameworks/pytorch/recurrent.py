"""Calls of recurrent layers in the generated ``forward``: what goes in, what comes out, masks and states."""

from __future__ import annotations

from collections.abc import Sequence

from lstmconvert.canonical import MaskedOutput, Merge, RecurrentLayer, Returns, ReverseOutput
from lstmconvert.errors import NotRepresentable
from lstmconvert.frameworks.pytorch.declared import Declared, Run, has, state_sizes
from lstmconvert.frameworks.pytorch.module import Argument, Module
from lstmconvert.frameworks.pytorch.source import call as call_code
from lstmconvert.frameworks.pytorch.values import Value
from lstmconvert.gates import Direction, Part
from lstmconvert.model import Call
from lstmconvert.values import dataclass


def write(
    module: Module,
    declared: Declared,
    layer: RecurrentLayer,
    call: Call,
    x: Value,
    mask: Value | None,
    *,
    states: bool,
) -> list[Value]:
    """Write a call of a layer; what it gives, in the order of ``Call.outputs``.

    Args:
        module: where it goes.
        declared: the layer.
        layer: the last of its stack, which says how the loop is run.
        call: its outputs are those of the last of the stack.
        x: the input.
        mask: true at valid steps, or ``None``.
        states: whether initial and final states are arguments and results of ``forward``.
    """
    return _Writer(module, declared, layer, call, x, mask, states=states).values()


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a run gives: its output in input order, and its states.

    Attributes:
        output: the variable, or ``""`` where nobody wants it.
        states: expressions of h, and of c, of all its directions.
    """

    output: str
    states: tuple[str, ...]


class _Writer:
    """A call on its way into text."""

    def __init__(
        self,
        module: Module,
        declared: Declared,
        layer: RecurrentLayer,
        call: Call,
        x: Value,
        mask: Value | None,
        *,
        states: bool,
    ) -> None:
        self.module = module
        self.runs = declared.runs
        self.stacked = len(declared.places) > 1
        self.layer = layer
        self.call = call
        self.outside = states
        self.count = len(layer.directions)
        self.kinds = len(state_sizes(layer))
        self.separate = self.count == 2 and layer.sequence.merge is Merge.SEPARATE
        self.sequence = layer.sequence
        self.dtype = layer.dtype.name
        self.x = x.in_dtype(self.dtype).last()
        self.mask = None if mask is None else mask.in_dtype("bool")
        if self.x.rank != 3:
            raise self._refused(f"it takes (batch, time, features), its input has {self.x.rank} axes")
        if not self.x.is_atom and (len(self.runs) > 1 or self.mask is not None):
            self.x = self.x.named(module.assigned("steps", self.x.code))
        if self.mask is not None and not self.mask.is_atom:
            self.mask = self.mask.named(module.assigned("mask", self.mask.code))

    def _refused(self, reason: str) -> NotRepresentable:
        return NotRepresentable(
            "the generated module cannot express this layer",
            reasons=[reason],
            place=f"layer {self.layer.name!r}",
        )

    # Which of its outputs are wanted.

    @property
    def _last(self) -> bool:
        return self.sequence.returns is Returns.LAST

    def _main(self) -> tuple[str, ...]:
        return self.call.outputs[: 2 if self.separate else 1]

    def _wants_main(self) -> bool:
        return any(self.module.is_used(name) for name in self._main())

    def _finals(self) -> tuple[str, ...]:
        """Names of the final states, direction by direction."""
        return self.call.outputs[len(self._main()) :]

    def _wants_state(self, run: Run, kind: int) -> bool:
        finals = self._finals()
        returned = any(
            self.module.is_used(finals[d * self.kinds + kind])
            for d in run.directions
            if d * self.kinds + kind < len(finals)
        )
        return returned or (kind == 0 and self._last and self._wants_main())

    # Initial states.

    def _initial(self, run: Run) -> str:
        """The expression of a run's initial state; empty for zeros, or for those of its own."""
        given = self.call.initial_state
        if given:
            whole = self.module.whole_states.get(given)
            if whole is not None and len(run.directions) == self.count:
                return _joined(whole)
            return _joined([self._given(run, kind) for kind in range(self.kinds)])
        if not run.initial:
            return ""
        rows = [
            f"self.{name}.repeat(1, {self.x.code}.shape[0], 1)"
            if name
            else f"{self.x.code}.new_zeros({len(run.directions)}, {self.x.code}.shape[0], {size})"
            for name, size in zip(run.initial, state_sizes(self.layer), strict=True)
        ]
        return _joined([self.module.assigned(kind, row) for kind, row in zip("hc", rows, strict=False)])

    def _given(self, run: Run, kind: int) -> str:
        values = [self.module.values[name] for name in self.call.initial_state]
        rows = [values[d * self.kinds + kind].in_dtype(self.dtype) for d in run.directions]
        if len(rows) == 1:
            return f"{rows[0].operand}.unsqueeze(0)"
        return f"torch.stack([{', '.join(row.code for row in rows)}])"

    # A run.

    def _run(self, run: Run, *, alone: bool) -> _Outcome:
        module = self.module
        wants = [self._wants_state(run, kind) for kind in range(self.kinds)]
        wants_output = self._wants_main() and not self._last
        state = self._state_argument(run) if self.outside else self._initial(run)
        code = self._applied(run, state)
        if not wants_output:
            output = "_"
        elif alone:
            output = module.result_variable(self.call.layer, self._over())
        else:
            output = module.variable(str(self.layer.directions[run.directions[0]].direction))
        if self.outside:
            whole = state
            parts = tuple(f"{whole}[{kind}]" for kind in range(self.kinds)) if self.kinds == 2 else (whole,)
        else:
            names = [module.variable(name) if want else "_" for name, want in zip("hc", wants, strict=False)]
            whole = (f"({', '.join(names)})" if self.kinds == 2 else names[0]) if any(wants) else "_"
            parts = tuple(names)
        if output == "_" and whole == "_":
            return _Outcome("", parts)
        module.line(f"{output}, {whole} = {code}")
        return _Outcome(output if wants_output else "", parts)

    def _over(self) -> frozenset[str]:
        """The variables that the output may be written over: the input's, if nothing reads it later."""
        kept = set() if self.mask is None else set(self.mask.variables)
        for name in self.call.initial_state:
            kept |= self.module.values[name].variables
        return frozenset(self.x.variables - kept)

    def _applied(self, run: Run, state: str) -> str:
        x = f"{self.x.operand}.flip(1)" if run.flipped else self.x.code
        arguments = [x]
        if self.mask is not None:
            arguments.append(f"{self.mask.code}.flip(1)" if run.flipped else self.mask.code)
        elif run.masked:
            arguments.append(f"torch.ones_like({self.x.code}[..., 0], dtype=torch.bool)")
        if state:
            arguments.append(state)
        if self.mask is not None and not run.masked:
            return call_code(self.module.helper("run_masked"), f"self.{run.attribute}", *arguments)
        return call_code(f"self.{run.attribute}", *arguments)

    def _state_argument(self, run: Run) -> str:
        """The variable of a state that comes from outside and goes there again."""
        module = self.module
        if self.sequence.masked_output is MaskedOutput.HOLD_STATE and self.mask is not None:
            raise self._refused("states outside, with outputs that hold the initial state at masked steps")
        if self.sequence.stateful and run.attribute in module.carried:
            return module.carried[run.attribute]
        name = module.carried[run.attribute] = module.keep(run.attribute)
        if self.call.initial_state:
            module.line(f"{name} = {self._initial(run)}")
        else:
            module.arguments.append(Argument(name, "tuple[Tensor, Tensor]" if self.kinds == 2 else "Tensor"))
            if run.initial:
                module.line(f"if {name} is None:")
                start = [
                    f"self.{attribute}.repeat(1, {self.x.code}.shape[0], 1)" for attribute in run.initial
                ]
                module.line(f"    {name} = {_joined(start)}")
        module.returned_states.append(name)
        return name

    # What comes out.

    def values(self) -> list[Value]:
        outcomes = [self._run(run, alone=len(self.runs) == 1) for run in self.runs]
        results: list[Value]
        if not self._wants_main():
            results = [Value("None", (), self.dtype)] * len(self._main())
        elif self._last:
            results = self._last_values(outcomes)
        else:
            results = self._sequence_values(outcomes)
        finals = []
        for d in range(self.count):
            for kind, size in enumerate(state_sizes(self.layer)):
                finals.append(Value(self._state(outcomes, d, kind), (self.x.shape[0], size), self.dtype))
        if self._finals() and len(self.runs) == 1 and not self.outside:
            names = outcomes[0].states
            if "_" not in names and not self.stacked:
                self.module.whole_states[self._finals()] = names
        return [*results, *finals]

    def _state(self, outcomes: Sequence[_Outcome], direction: int, kind: int) -> str:
        """The final state of a direction, each (batch, size): the last rows, a stack's last layer."""
        for run, outcome in zip(self.runs, outcomes, strict=True):
            if direction in run.directions:
                row = run.directions.index(direction) - len(run.directions)
                return f"{outcome.states[kind]}[{row}]"
        raise AssertionError

    def _shape(self, width: int) -> tuple[int | None, ...]:
        return (self.x.shape[0], width) if self._last else (*self.x.shape[:2], width)

    def _merged(self, codes: Sequence[str]) -> list[Value]:
        size = self.layer.recurrent_size
        if len(codes) == 1 or self.separate:
            return [Value(code, self._shape(size), self.dtype) for code in codes]
        a, b = codes
        code = {
            Merge.CONCAT: f"torch.cat([{a}, {b}], dim=-1)",
            Merge.SUM: f"{a} + {b}",
            Merge.MULTIPLY: f"{a} * {b}",
            Merge.AVERAGE: f"({a} + {b}) / 2",
        }[self.sequence.merge]
        return [Value(code, self._shape(self.layer.width), self.dtype)]

    def _last_values(self, outcomes: Sequence[_Outcome]) -> list[Value]:
        """The output at the step that each direction visits last: its final state, mostly."""
        codes = []
        for d, direction in enumerate(self.layer.directions):
            code = self._state(outcomes, d, 0)
            held = self.sequence.masked_output
            if self.mask is not None and held is MaskedOutput.ZERO:
                step = "-1:" if direction.direction is Direction.FORWARD else ":1"
                code = f"{code}.masked_fill(~{self.mask.code}[:, {step}], 0.0)"
            elif self.mask is not None and held is MaskedOutput.HOLD and self._starts_elsewhere():
                code = f"{code}.masked_fill(~{self.mask.code}.any(dim=1, keepdim=True), 0.0)"
            codes.append(code)
        return self._merged(codes)

    def _starts_elsewhere(self) -> bool:
        """Whether the initial state may be other than zero."""
        trained = any(has(direction, Part.INITIAL_HIDDEN) for direction in self.layer.directions)
        return bool(self.call.initial_state) or self.outside or trained

    def _sequence_values(self, outcomes: Sequence[_Outcome]) -> list[Value]:
        holds = self.mask is not None and self.sequence.masked_output is not MaskedOutput.ZERO
        if len(self.runs) == 1 and self.count == 2:
            output = outcomes[0].output
            if self.sequence.merge is Merge.CONCAT and not holds:
                return [Value(output, self._shape(self.layer.width), self.dtype)]
            forward, reverse = (self.module.variable(name) for name in ("forward", "reverse"))
            self.module.line(f"{forward}, {reverse} = {output}.chunk(2, dim=-1)")
            codes = [forward, f"{reverse}.flip(1)" if holds else reverse]
            if holds:
                codes = [self._held(code, d) for d, code in enumerate(codes)]
                codes[1] += ".flip(1)"
            return self._merged(codes)
        codes = []
        for d, (run, outcome) in enumerate(zip(self.runs, outcomes, strict=True)):
            code = self._held(outcome.output, d) if holds else outcome.output
            as_visited = self.sequence.reverse_output is ReverseOutput.VISITED_ORDER
            codes.append(f"{code}.flip(1)" if run.flipped and not as_visited else code)
        return self._merged(codes)

    def _held(self, code: str, direction: int) -> str:
        """An output, as visited, with that of the valid step before at masked steps."""
        assert self.mask is not None
        reverse = self.layer.directions[direction].direction is Direction.REVERSE
        arguments = [code, f"{self.mask.code}.flip(1)" if reverse else self.mask.code]
        if self.sequence.masked_output is MaskedOutput.HOLD_STATE:
            start = self._start(direction)
            arguments += [start] if start else []
        return call_code(self.module.helper("hold"), *arguments)

    def _start(self, direction: int) -> str:
        """The initial hidden state of a direction (batch, 1, size); empty for zeros."""
        if self.call.initial_state:
            value = self.module.values[self.call.initial_state[direction * self.kinds]]
            return f"{value.in_dtype(self.dtype).operand}.unsqueeze(1)"
        if not has(self.layer.directions[direction], Part.INITIAL_HIDDEN):
            return ""
        run = next(run for run in self.runs if direction in run.directions)
        if run.initial:
            return f"self.{run.initial[0]}[{run.directions.index(direction)}]"
        return f"self.{run.attribute}.initial_hidden"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"
