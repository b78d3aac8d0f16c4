"""Source of recurrent layers with their equations spelled out, for what torch's own layers cannot hold.

A class serves one direction and has the interface of ``nn.LSTM(batch_first=True)``; the equations are
those of ``lstmconvert.equations``, and only what a layer has is written. ``torch.jit.script`` takes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from lstmconvert import layout, mapping
from lstmconvert.activations import Activation
from lstmconvert.canonical import (
    Coupling,
    Equations,
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    ResetPlace,
    RnnEquations,
    UpdateKeeps,
)
from lstmconvert.frameworks.pytorch.expressions import activated, wraps
from lstmconvert.frameworks.pytorch.source import bracketed, indented, number
from lstmconvert.gates import Cell, Direction, Gate, Part
from lstmconvert.mapping import Layout
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

_LETTERS = {
    Gate.INPUT: "i", Gate.FORGET: "f", Gate.CELL: "g", Gate.OUTPUT: "o",
    Gate.UPDATE: "z", Gate.RESET: "r", Gate.CANDIDATE: "n", Gate.HIDDEN: "h",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a class depends on: equal recipes share one class.

    Attributes:
        equations: what it computes.
        parts: which parts it has.
        masked: whether it takes a mask.
    """

    equations: Equations
    parts: frozenset[Part]
    masked: bool

    @property
    def key(self) -> tuple[str, frozenset[Part], bool]:
        """What tells recipes apart; equations hold mappings and have no hash."""
        options = [(o.name, str(getattr(self.equations, o.name))) for o in fields(self.equations)]
        return f"{self.equations.cell} {options}", self.parts, self.masked

    @property
    def title(self) -> str:
        """The wanted name of the class."""
        return f"SpelledOut{self.equations.cell.upper()}"


def recipe_of(direction: RecurrentDirection, *, masked: bool) -> Recipe:
    """The recipe of a direction."""
    return Recipe(direction.equations, frozenset(part for part, _ in direction.weights), masked)


def layout_of(cell: Cell) -> Layout:
    """Where the class keeps each gate."""
    return mapping.load("pytorch").layouts[f"{cell}_spelled_out"]


def tensors(direction: RecurrentDirection) -> dict[str, Lazy]:
    """The tensors of a layer, under their names in the class."""
    return layout.pack(layout_of(direction.equations.cell), {Direction.FORWARD: direction.weights})


def constructor(name: str, direction: RecurrentDirection) -> str:
    """The call that makes the layer."""
    weights = direction.weights
    sizes = [weights.input_size, weights.hidden_size]
    if weights.projected_size is not None:
        sizes.append(weights.projected_size)
    return f"{name}({', '.join(map(str, sizes))})"


def source(name: str, recipe: Recipe) -> list[str]:
    """The lines of the class."""
    return _Class(name, recipe).lines()


class _Class:
    """A class on its way into text."""

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.name = name
        self.recipe = recipe
        self.equations = recipe.equations
        self.cell = recipe.equations.cell
        self.gates = layout_of(self.cell).gates
        self.new = "new_" if recipe.masked else ""

    def has(self, part: Part) -> bool:
        return part in self.recipe.parts

    @property
    def is_lstm(self) -> bool:
        return self.cell is Cell.LSTM

    def lines(self) -> list[str]:
        return [
            f"class {self.name}(nn.Module):",
            *indented(self._docstring()),
            "",
            *indented(self._init()),
            "",
            *indented(self._forward()),
        ]

    # What it says of itself.

    def _docstring(self) -> list[str]:
        article = "A" if self.cell is Cell.GRU else "An"
        first = f"{article} {self.cell.upper()} with equations that torch's own cannot express."
        facts = [f"{fact[0].upper()}{fact[1:]}." for fact in self._facts()]
        return [f'"""{first}', "", *facts, '"""'] if facts else [f'"""{first}"""']

    def _facts(self) -> Iterator[str]:
        equations = self.equations
        if len(self.gates) > 1:
            yield f"the weights have the gates {', '.join(self.gates)} below each other"
        if isinstance(equations, GruEquations):
            place = "before" if equations.reset is ResetPlace.BEFORE_PRODUCT else "after"
            yield f"the reset gate acts {place} the recurrent product"
        if isinstance(equations, LstmEquations) and equations.coupling is not Coupling.NONE:
            yield "the forget gate is one minus the input gate"
        if self.recipe.masked:
            yield "where the mask is false the state is held and the output is zero"

    # What it has.

    def _init(self) -> list[str]:
        state = "projected_size" if self.has(Part.PROJECTION) else "hidden_size"
        sizes = ["input_size", "hidden_size", *([state] if self.has(Part.PROJECTION) else [])]
        rows = "hidden_size" if len(self.gates) == 1 else f"{len(self.gates)} * hidden_size"
        shapes = {
            Part.KERNEL: ("input_weight", f"{rows}, input_size"),
            Part.RECURRENT: ("recurrent_weight", f"{rows}, {state}"),
            Part.BIAS_INPUT: ("input_bias", rows),
            Part.BIAS_RECURRENT: ("recurrent_bias", rows),
            Part.PEEPHOLE: ("peephole_weight", "3 * hidden_size"),
            Part.PROJECTION: ("projection_weight", f"{state}, hidden_size"),
            Part.INITIAL_HIDDEN: ("initial_hidden", state),
            Part.INITIAL_CELL: ("initial_cell", "hidden_size"),
        }
        kept = dict.fromkeys([] if self.has(Part.INITIAL_HIDDEN) else [state])
        if self._splits_rows or (self.is_lstm and not self.has(Part.INITIAL_CELL)):
            kept["hidden_size"] = None
        parameters = [
            f"self.{attribute} = nn.Parameter(torch.empty({shape}))"
            for part, (attribute, shape) in shapes.items()
            if self.has(part)
        ]
        return [
            f"def __init__(self, {', '.join(f'{size}: int' for size in sizes)}):",
            *indented(["super().__init__()", *(f"self.{size} = {size}" for size in kept), *parameters]),
        ]

    @property
    def _splits_rows(self) -> bool:
        """Whether the candidate's recurrent product is apart from the gates'."""
        equations = self.equations
        return isinstance(equations, GruEquations) and equations.reset is ResetPlace.BEFORE_PRODUCT

    # What it computes.

    def _forward(self) -> list[str]:
        state = "tuple[Tensor, Tensor]" if self.is_lstm else "Tensor"
        mask = "mask: Tensor, " if self.recipe.masked else ""
        bias = ", self.input_bias" if self.has(Part.BIAS_INPUT) else ""
        final = "(h.unsqueeze(0), c.unsqueeze(0))" if self.is_lstm else "h.unsqueeze(0)"
        body = [
            *self._initial(),
            *self._taken_apart(),
            f"inputs = F.linear(x, self.input_weight{bias})",
            "outputs: list[Tensor] = []",
            "for t in range(x.shape[1]):",
            *indented([*self._step(), *self._output()]),
            f"return torch.stack(outputs, dim=1), {final}",
        ]
        return [
            f"def forward(self, x: Tensor, {mask}state: {state} | None = None) -> tuple[Tensor, {state}]:",
            *indented(body),
        ]

    def _initial(self) -> list[str]:
        width = "projected_size" if self.has(Part.PROJECTION) else "hidden_size"
        lines = ["if state is None:", f"    h = {self._start(Part.INITIAL_HIDDEN, width)}"]
        if not self.is_lstm:
            return [*lines, "else:", "    h = state[0]"]
        lines.append(f"    c = {self._start(Part.INITIAL_CELL, 'hidden_size')}")
        return [*lines, "else:", "    h, c = state[0][0], state[1][0]"]

    def _start(self, part: Part, size: str) -> str:
        if self.has(part):
            return f"self.{part}.expand(x.shape[0], -1)"
        return f"x.new_zeros(x.shape[0], self.{size})"

    def _taken_apart(self) -> list[str]:
        """Weights of which parts are used on their own."""
        lines = []
        if self.has(Part.PEEPHOLE):
            rule = next(r for r in layout_of(self.cell).tensors if r.part == Part.PEEPHOLE)
            names = ", ".join(self._peephole(gate) for gate in rule.gates)
            lines.append(f"{names} = self.peephole_weight.chunk(3)")
        if self._splits_rows:
            assert self.gates[-1] is Gate.CANDIDATE
            rows = "[2 * self.hidden_size, self.hidden_size]"
            lines += [f"rows = {rows}", "gates_weight, candidate_weight = self.recurrent_weight.split(rows)"]
            if self.has(Part.BIAS_RECURRENT):
                lines.append("gates_bias, candidate_bias = self.recurrent_bias.split(rows)")
        return lines

    def _output(self) -> list[str]:
        if not self.recipe.masked:
            return ["outputs.append(h)"]
        return [
            "valid = mask[:, t].unsqueeze(1)",
            "h = torch.where(valid, new_h, h)",
            *(["c = torch.where(valid, new_c, c)"] if self.is_lstm else []),
            "outputs.append(h.masked_fill(~valid, 0.0))",
        ]

    def _step(self) -> list[str]:
        match self.equations:
            case LstmEquations():
                return self._lstm_step(self.equations)
            case GruEquations():
                return self._gru_step(self.equations)
            case RnnEquations():
                return self._rnn_step(self.equations)

    def _gate(self, gate: Gate, activation: Activation, value: str, name: str = "") -> list[str]:
        """The lines that make ``name`` what the gate gives for a pre-activation."""
        name = name or _LETTERS[gate]
        constant = self.equations.constant.get(gate, 0.0)
        if constant:
            value = f"{value} + {number(constant)}"
        bound = self.equations.preactivation_clip
        if bound is not None:
            value = f"{bracketed(value)}.clamp({number(-bound)}, {number(bound)})"
        if wraps(activation) or value == name:
            lines, result = [], activated(activation, value)
        else:
            lines, result = [f"{name} = {value}"], activated(activation, name)
        return lines if result == name else [*lines, f"{name} = {result}"]

    def _recurrent(self) -> str:
        bias = ", self.recurrent_bias" if self.has(Part.BIAS_RECURRENT) else ""
        return f"F.linear(h, self.recurrent_weight{bias})"

    def _coupled(self, gate: Gate) -> bool:
        """Whether a gate is derived from another."""
        equations = self.equations
        return (
            gate is Gate.FORGET
            and isinstance(equations, LstmEquations)
            and equations.coupling is Coupling.FORGET_IS_ONE_MINUS_INPUT
        )

    def _peephole(self, gate: Gate) -> str:
        return "_" if self._coupled(gate) else f"peep_{_LETTERS[gate]}"

    def _lstm_step(self, e: LstmEquations) -> list[str]:
        def preactivation(gate: Gate, looks_at: str) -> str:
            letter = _LETTERS[gate]
            return f"{letter} + {self._peephole(gate)} * {looks_at}" if self.has(Part.PEEPHOLE) else letter

        new_h, new_c = f"{self.new}h", f"{self.new}c"
        letters = ", ".join("_" if self._coupled(gate) else _LETTERS[gate] for gate in self.gates)
        lines = [
            f"recurrent = {self._recurrent()}",
            f"{letters} = (inputs[:, t] + recurrent).chunk(4, dim=1)",
            *self._gate(Gate.INPUT, e.gate_activation, preactivation(Gate.INPUT, "c")),
        ]
        forget = "(1.0 - i)"
        if not self._coupled(Gate.FORGET):
            forget = "f"
            lines += self._gate(Gate.FORGET, e.gate_activation, preactivation(Gate.FORGET, "c"))
        lines += self._gate(Gate.CELL, e.cell_activation, "g")
        lines.append(f"{new_c} = {_clipped(f'{forget} * c + i * g', e.cell_clip)}")
        lines += self._gate(Gate.OUTPUT, e.gate_activation, preactivation(Gate.OUTPUT, new_c))
        lines.append(f"{new_h} = o * {bracketed(activated(e.hidden_activation, new_c))}")
        if self.has(Part.PROJECTION):
            projected = f"F.linear({new_h}, self.projection_weight)"
            lines.append(f"{new_h} = {_clipped(projected, e.projection_clip)}")
        return lines

    def _gru_step(self, e: GruEquations) -> list[str]:
        gates = [gate for gate in self.gates if gate is not Gate.CANDIDATE]
        lines = [f"{', '.join(f'x{_LETTERS[gate]}' for gate in self.gates)} = inputs[:, t].chunk(3, dim=1)"]
        if self._splits_rows:
            bias = ("", ", gates_bias", ", candidate_bias") if self.has(Part.BIAS_RECURRENT) else ("", "", "")
            products = ", ".join(f"h{_LETTERS[gate]}" for gate in gates)
            lines.append(f"{products} = F.linear(h, gates_weight{bias[1]}).chunk(2, dim=1)")
            candidate = f"F.linear(r * h, candidate_weight{bias[2]})"
        else:
            products = ", ".join(f"h{_LETTERS[gate]}" for gate in self.gates)
            lines += [f"recurrent = {self._recurrent()}", f"{products} = recurrent.chunk(3, dim=1)"]
            candidate = "r * hn"
        for gate in gates:
            lines += self._gate(gate, e.gate_activation, f"x{_LETTERS[gate]} + h{_LETTERS[gate]}")
        lines += self._gate(Gate.CANDIDATE, e.candidate_activation, f"xn + {candidate}")
        keeps_state = e.update_keeps is UpdateKeeps.STATE
        mixed = "z * h + (1.0 - z) * n" if keeps_state else "(1.0 - z) * h + z * n"
        return [*lines, f"{self.new}h = {mixed}"]

    def _rnn_step(self, e: RnnEquations) -> list[str]:
        lines = self._gate(Gate.HIDDEN, e.hidden_activation, "inputs[:, t] + recurrent", f"{self.new}h")
        return [f"recurrent = {self._recurrent()}", *lines]


def _clipped(value: str, bound: float | None) -> str:
    return value if bound is None else f"{bracketed(value)}.clamp({number(-bound)}, {number(bound)})"
