"""The cases: every attribute and option of ONNX's LSTM, GRU and RNN, alone and in combination.

Weights are drawn anew for every gate and direction, sizes are unequal, so that no gate can pass for
another and no transposed matrix fits. What is expected is computed by ``lstmconvert.equations`` in
float64; the numbers that go in are those that the dtype of the case can hold.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from lstmconvert.activations import Activation
from lstmconvert.canonical import (
    BlockKey,
    Coupling,
    Equations,
    GruEquations,
    LstmEquations,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    RnnEquations,
    Weights,
)
from lstmconvert.gates import GATES, PEEPHOLE_GATES, Cell, Direction, Part
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

INPUT, HIDDEN, BATCH, TIME = 3, 4, 3, 6
LENGTHS = (6, 2, 4)

Spelled = tuple[str, float | None, float | None]
"""An activation as ONNX spells it: name, and alpha and beta where they are written out."""

_DEFAULTS: Mapping[str, tuple[float | None, float | None]] = {
    # ONNX operator documentation: "default values are the same as of corresponding ONNX operators". Affine
    # and ScaledTanh have been withdrawn as operators; 1 and 0, and 1 and 1, are what leaves the input alone.
    "Affine": (1.0, 0.0),
    "ScaledTanh": (1.0, 1.0),
    "LeakyRelu": (0.01, None),
    "ThresholdedRelu": (1.0, None),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, None),
}
_KINDS = {
    "Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu", "HardSigmoid": "hard_sigmoid", "Affine": "affine",
    "ScaledTanh": "scaled_tanh", "LeakyRelu": "leaky_relu", "ThresholdedRelu": "thresholded_relu",
    "Elu": "elu",
    "Softplus": "softplus", "Softsign": "softsign",
}  # fmt: skip
_WRITTEN: Mapping[str, tuple[float | None, float | None]] = {
    "Affine": (0.8, 0.1),
    "ScaledTanh": (1.4, 0.6),
    "LeakyRelu": (0.2, None),
    "ThresholdedRelu": (0.3, None),
    "HardSigmoid": (0.3, 0.4),
    "Elu": (0.7, None),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        name: unlike any other's.
        feature: the one thing that it is about; verdicts are counted by it.
        cell: LSTM, GRU or RNN.
        direction: ``forward``, ``reverse`` or ``bidirectional``.
        activations: of each direction in ONNX's order, or none for the defaults.
        dtype: of everything but lengths.
        bias, peephole, lengths, states: which optional inputs are there.
        layout: 1 for batch first.
        clip: bound on every pre-activation.
        input_forget: whether the forget gate is one minus the input gate.
        linear_before_reset: of a GRU.
        scale: of the weights; large ones saturate every gate.
        input_scale: of the input.
        time, batch: steps and sequences.
        sizes: of the input and of the hidden state.
    """

    name: str
    feature: str
    cell: Cell
    direction: str = "forward"
    activations: tuple[Spelled, ...] = ()
    dtype: str = "float32"
    bias: bool = True
    peephole: bool = False
    lengths: tuple[int, ...] = ()
    states: bool = False
    layout: int = 0
    clip: float | None = None
    input_forget: bool = False
    linear_before_reset: bool = False
    scale: float = 0.7
    input_scale: float = 1.0
    time: int = TIME
    batch: int = BATCH
    sizes: tuple[int, int] = (INPUT, HIDDEN)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions in ONNX's order."""
        if self.direction == "bidirectional":
            return (Direction.FORWARD, Direction.REVERSE)
        return (Direction(self.direction),)

    @property
    def seed(self) -> int:
        """A seed of its own for every name."""
        return zlib.crc32(self.name.encode())

    def weights(self) -> tuple[Weights, ...]:
        """The weights of each direction in float64, rounded to what the case's dtype holds."""
        rng = np.random.default_rng(self.seed)
        inputs, hidden = self.sizes

        def draw(*shape: int) -> Lazy:
            array = rng.standard_normal(shape) * self.scale + rng.uniform(-0.2, 0.2)
            return Lazy.of(array.astype(self.dtype).astype(np.float64))

        found = []
        for _ in self.directions:
            blocks: dict[BlockKey, Lazy] = {}
            for gate in GATES[self.cell]:
                blocks[Part.KERNEL, gate] = draw(hidden, inputs)
                blocks[Part.RECURRENT, gate] = draw(hidden, hidden)
                if self.bias:
                    blocks[Part.BIAS_INPUT, gate] = draw(hidden)
                    blocks[Part.BIAS_RECURRENT, gate] = draw(hidden)
            if self.peephole:
                for gate in PEEPHOLE_GATES:
                    blocks[Part.PEEPHOLE, gate] = draw(hidden)
            found.append(Weights(self.cell, blocks))
        return tuple(found)

    def inputs(self) -> tuple[Array, tuple[Array, ...]]:
        """x (batch, time, input) and the initial states (directions, batch, hidden), in float64."""
        rng = np.random.default_rng(self.seed + 1)

        def held(array: Array) -> Array:
            return array.astype(self.dtype).astype(np.float64)

        x = held(rng.standard_normal((self.batch, self.time, self.sizes[0])) * self.input_scale)
        count = 2 if self.cell is Cell.LSTM else 1
        shape = (len(self.directions), self.batch, self.sizes[1])
        return x, tuple(held(rng.uniform(-1, 1, shape)) for _ in range(count)) if self.states else ()

    def layers(self) -> tuple[RecurrentLayer, ...]:
        """One canonical layer for each direction."""
        per = len(_usual(self.cell))
        result = []
        for n, (direction, weights) in enumerate(zip(self.directions, self.weights(), strict=True)):
            spelled = self.activations[n * per : (n + 1) * per] or _usual(self.cell)
            equations = self._equations([_activation(one) for one in spelled])
            result.append(
                RecurrentLayer(str(direction), (RecurrentDirection(direction, equations, weights),))
            )
        return tuple(result)

    def _equations(self, found: Sequence[Activation]) -> Equations:
        match self.cell:
            case Cell.LSTM:
                coupling = Coupling.FORGET_IS_ONE_MINUS_INPUT if self.input_forget else Coupling.NONE
                return LstmEquations(
                    found[0], found[1], found[2], coupling=coupling, preactivation_clip=self.clip
                )
            case Cell.GRU:
                reset = ResetPlace.AFTER_PRODUCT if self.linear_before_reset else ResetPlace.BEFORE_PRODUCT
                return GruEquations(
                    reset,
                    gate_activation=found[0],
                    candidate_activation=found[1],
                    preactivation_clip=self.clip,
                )
            case Cell.RNN:
                return RnnEquations(found[0], preactivation_clip=self.clip)

    def expected(self, dtype: Any = np.float64) -> tuple[Array, ...]:
        """Y (time, directions, batch, hidden), Y_h and for an LSTM Y_c (directions, batch, hidden)."""
        x, states = self.inputs()
        outputs, finals = [], []
        for n, layer in enumerate(self.layers()):
            held = layer.mapped(
                lambda d: RecurrentDirection(
                    d.direction,
                    d.equations,
                    d.weights.mapped(lambda _k, b: Lazy.of(b.read().astype(dtype))),
                )
            )
            initial: Any = tuple(s[n : n + 1].astype(dtype) for s in states) or None
            if initial is not None and len(initial) == 1:
                initial = initial[0]
            with np.errstate(over="ignore", invalid="ignore"):
                y, state = held.run(
                    x.astype(dtype),
                    lengths=np.array(self.lengths) if self.lengths else None,
                    initial_state=initial,
                )
            outputs.append(y.transpose(1, 0, 2))
            finals.append(state if isinstance(state, tuple) else (state,))
        stacked = [np.stack(outputs, axis=1)]
        stacked += [np.concatenate([f[k] for f in finals]) for k in range(len(finals[0]))]
        return tuple(stacked)


def _usual(cell: Cell) -> tuple[Spelled, ...]:
    sigmoid, tanh = ("Sigmoid", None, None), ("Tanh", None, None)
    return {Cell.LSTM: (sigmoid, tanh, tanh), Cell.GRU: (sigmoid, tanh), Cell.RNN: (tanh,)}[cell]


def _activation(spelled: Spelled) -> Activation:
    name, alpha, beta = spelled
    default = _DEFAULTS.get(name, (None, None))
    return Activation(
        _KINDS[name], default[0] if alpha is None else alpha, default[1] if beta is None else beta
    )


def cases() -> tuple[Case, ...]:
    """All cases, in a fixed order."""
    found = tuple(_cases())
    assert len({case.name for case in found}) == len(found)
    return found


def _cases() -> Iterator[Case]:
    for cell in Cell:
        resets = (False, True) if cell is Cell.GRU else (False,)
        for direction, reset in product(("forward", "reverse", "bidirectional"), resets):
            base = f"{cell}_{direction}" + ("_linear_before_reset" if reset else "")
            same: dict[str, Any] = {"cell": cell, "direction": direction, "linear_before_reset": reset}
            plain = "linear_before_reset" if reset else "plain"
            for bias, states, lengths in product((True, False), (False, True), ((), LENGTHS)):
                told = "".join(
                    f"_{word}"
                    for word, there in (("nobias", not bias), ("states", states), ("lengths", lengths))
                    if there
                )
                feature = "sequence_lens" if lengths else "initial state" if states else plain
                yield Case(base + told, feature, **same, bias=bias, states=states, lengths=lengths)
            for clip, lengths in product((0.1, 0.5, 2.0), ((), LENGTHS)):
                told = f"_clip_{clip}" + ("_lengths" if lengths else "")
                yield Case(base + told, "clip", **same, clip=clip, lengths=lengths, states=clip == 0.5)
            for layout_states in (False, True):
                told = "_layout_1" + ("_states" if layout_states else "")
                yield Case(base + told, "layout=1", **same, layout=1, states=layout_states)
            for dtype in ("float16", "float64"):
                yield Case(f"{base}_{dtype}", dtype, **same, dtype=dtype, states=True)
            yield Case(f"{base}_saturated", "extreme values", **same, scale=8.0, states=True)
            yield Case(f"{base}_huge_inputs", "extreme values", **same, input_scale=1e4)
            yield Case(f"{base}_tiny", "extreme values", **same, scale=1e-20, input_scale=1e-20)
            yield Case(f"{base}_zero_length", "length 0", **same, lengths=(0, 6, 3))
            yield Case(f"{base}_zero_length_states", "length 0", **same, lengths=(0, 6, 3), states=True)
            yield Case(f"{base}_one_step", plain, **same, time=1, states=True)
            yield Case(f"{base}_one_unit", plain, **same, sizes=(2, 1))
            yield Case(f"{base}_wide", plain, **same, sizes=(5, 33), scale=0.2)
            yield Case(f"{base}_one_sequence", plain, **same, batch=1, states=True)
            yield Case(f"{base}_long", plain, **same, time=100)
        yield from _activation_cases(cell)
    yield from _lstm_cases()


def _activation_cases(cell: Cell) -> Iterator[Case]:
    usual = _usual(cell)
    for name in _KINDS:
        for place in range(len(usual)):
            written = (name, *_WRITTEN.get(name, (None, None)))
            chosen = (*usual[:place], written, *usual[place + 1 :])
            yield Case(f"{cell}_activation_{place}_{name}", f"{name}", cell, activations=chosen, states=True)
            if name in _DEFAULTS:
                bare = (*usual[:place], (name, None, None), *usual[place + 1 :])
                yield Case(
                    f"{cell}_activation_{place}_{name}_default",
                    f"{name} without alpha and beta",
                    cell,
                    activations=bare,
                    states=True,
                )
    # Parameters are consumed in turn by the activations that take them, direction after direction.
    first = tuple(
        (n, *_WRITTEN.get(n, (None, None))) for n in ("HardSigmoid", "Tanh", "ScaledTanh")[: len(usual)]
    )
    second = tuple((n, *_WRITTEN.get(n, (None, None))) for n in ("Sigmoid", "LeakyRelu", "Elu")[: len(usual)])
    yield Case(
        f"{cell}_activations_per_direction",
        "activations per direction",
        cell,
        "bidirectional",
        activations=(*first, *second),
        states=True,
    )


def _lstm_cases() -> Iterator[Case]:
    for direction, lengths, clip in product(
        ("forward", "reverse", "bidirectional"), ((), LENGTHS), (None, 0.4)
    ):
        told = ("_lengths" if lengths else "") + (f"_clip_{clip}" if clip else "")
        for peephole, coupled in ((True, False), (False, True), (True, True)):
            words = ("_peephole" if peephole else "") + ("_input_forget" if coupled else "")
            yield Case(
                f"lstm_{direction}{words}{told}",
                "input_forget" if coupled else "peepholes",
                Cell.LSTM,
                direction,
                peephole=peephole,
                input_forget=coupled,
                lengths=lengths,
                clip=clip,
                states=True,
            )
