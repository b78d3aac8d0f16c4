"""Recurrent layers in ONNX: one fused node each, judged by Keras 3 and by the equations in ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from lstmconvert import equations as reference
from lstmconvert.activations import (
    HARD_SIGMOID_KERAS2,
    HARD_SIGMOID_KERAS3,
    LINEAR,
    RELU,
    SIGMOID,
    TANH,
    Activation,
)
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
    RnnEquations,
    SequenceBehaviour,
    UpdateKeeps,
)
from lstmconvert.errors import NotRepresentable, Usage
from lstmconvert.frameworks.onnx import writer
from lstmconvert.gates import Cell, Direction, Part
from lstmconvert.model import Call, Model, OperationLayer, Port
from lstmconvert.operations import Dense, Embedding, Identity, Masking
from lstmconvert.options import WriteOptions
from lstmconvert.tensors import Array, Lazy
from tests.frameworks.onnx_running import (
    FUSED,
    LOOPS,
    assert_close,
    layer_of,
    operators,
    random_weights,
    randomize,
    run,
    written,
)

BATCH, TIME, INPUT, HIDDEN = 6, 7, 3, 5
FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE

MASK = np.array(
    [
        [1, 1, 1, 1, 0, 0, 0],  # right-padded
        [0, 0, 0, 1, 1, 1, 1],  # left-padded
        [1, 0, 1, 1, 0, 0, 1],  # holes
        [0, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],  # nothing valid
        [1, 1, 1, 1, 1, 1, 1],
    ],
    bool,
)

LSTM, GRU_AFTER, GRU_BEFORE, RNN = (
    LstmEquations(),
    GruEquations(ResetPlace.AFTER_PRODUCT),
    GruEquations(ResetPlace.BEFORE_PRODUCT),
    RnnEquations(),
)
CELLS = {"lstm": LSTM, "gru_after": GRU_AFTER, "gru_before": GRU_BEFORE, "rnn": RNN}


def model_of(layer: RecurrentLayer, *, masked: bool = False, initial: bool = False) -> Model:
    """A model of one layer: x, then a mask m, then its initial states s0, s1, ...; outputs o0, o1, ..."""
    kinds = 2 if layer.cell is Cell.LSTM else 1
    states = [f"s{n}" for n in range(kinds * len(layer.directions))]
    separate = len(layer.directions) == 2 and layer.sequence.merge is Merge.SEPARATE
    sequences = 2 if separate else 1
    outputs = [f"o{n}" for n in range(sequences + (len(states) if layer.sequence.return_state else 0))]
    rank = 3 if layer.sequence.returns is Returns.SEQUENCE else 2
    ports = [Port("x", "x", (None, None, layer.input_size), layer.dtype.name)]
    ports += [Port("m", "m", (None, None), "bool")] if masked else []
    ports += [Port(s, s, (None, layer.hidden_size), layer.dtype.name) for s in states] if initial else []
    call = Call(layer.name, ("x",), tuple(outputs), "m" if masked else None, tuple(states) if initial else ())
    shapes: list[tuple[None, ...]] = [(None,) * (rank if n < sequences else 2) for n in range(len(outputs))]
    given = [Port(o, o, shape, layer.dtype.name) for o, shape in zip(outputs, shapes, strict=True)]
    return Model({layer.name: layer}, (call,), tuple(ports), tuple(given))


def random_layer(
    rng: np.random.Generator,
    equations: Equations,
    directions: Sequence[Direction],
    sequence: SequenceBehaviour,
    *,
    peephole: bool = False,
) -> RecurrentLayer:
    made = [
        RecurrentDirection(
            d, equations, random_weights(rng, equations.cell, INPUT, HIDDEN, peephole=peephole)
        )
        for d in directions
    ]
    return RecurrentLayer("rec", tuple(made), sequence)


def expected(layer: RecurrentLayer, x: Array, mask: Array | None, states: Sequence[Array]) -> list[Array]:
    """What the equations give, as the outputs of a call."""
    kinds = 2 if layer.cell is Cell.LSTM else 1
    initial = tuple(np.stack(states[kind::kinds]) for kind in range(kinds)) if states else None
    outputs, finals = reference.run_directions(layer, x, mask=mask, initial_state=initial)
    if layer.sequence.returns is Returns.LAST:
        outputs = [
            output[:, -1 if direction.direction is FORWARD else 0]
            for output, direction in zip(outputs, layer.directions, strict=True)
        ]
    elif layer.sequence.reverse_output is ReverseOutput.VISITED_ORDER:
        outputs = [output[:, ::-1] for output in outputs]
    separate = len(outputs) == 2 and layer.sequence.merge is Merge.SEPARATE
    merged = outputs if separate else [reference.merge(layer, outputs)]
    return [*merged, *(value for final in finals for value in final)]


def check(
    layer: RecurrentLayer, *, masked: bool = False, initial: bool = False, seed: int = 0
) -> onnx.ModelProto:
    """Write a layer, run it, and compare it with the equations."""
    rng = np.random.default_rng(seed)
    layer = replace(layer, sequence=replace(layer.sequence, return_state=True))
    model = written(model_of(layer, masked=masked, initial=initial))
    kinds = 2 if layer.cell is Cell.LSTM else 1
    count = kinds * len(layer.directions) if initial else 0
    states = [rng.standard_normal((BATCH, HIDDEN)).astype(np.float32) for _ in range(count)]
    x = (2 * rng.standard_normal((BATCH, TIME, INPUT))).astype(np.float32)
    feeds = {"x": x, **{f"s{n}": state for n, state in enumerate(states)}}
    if masked:
        feeds["m"] = MASK
    got = run(model, feeds)
    for (name, value), wanted in zip(
        got.items(), expected(layer, x, MASK if masked else None, states), strict=True
    ):
        assert_close(value, wanted, (name, layer.sequence, masked, initial, seed))
    assert sum(operator in FUSED for operator in operators(model)) == 1
    assert not LOOPS.intersection(operators(model))
    return model


ARRANGEMENTS = [
    ((FORWARD,), Merge.CONCAT, ReverseOutput.INPUT_ORDER),
    ((REVERSE,), Merge.CONCAT, ReverseOutput.INPUT_ORDER),
    ((REVERSE,), Merge.CONCAT, ReverseOutput.VISITED_ORDER),
    *(((FORWARD, REVERSE), merge, ReverseOutput.INPUT_ORDER) for merge in Merge),
]


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("returns", Returns)
@pytest.mark.parametrize("masked_output", [None, *MaskedOutput])
@pytest.mark.parametrize("cell", CELLS)
def test_every_arrangement_computes_what_the_equations_compute(
    cell: str, masked_output: MaskedOutput | None, returns: Returns, initial: bool
) -> None:
    for seed, (directions, merge, reverse_output) in enumerate(ARRANGEMENTS):
        sequence = SequenceBehaviour(
            merge=merge,
            returns=returns,
            reverse_output=reverse_output,
            masked_output=masked_output or MaskedOutput.ZERO,
        )
        layer = random_layer(np.random.default_rng(seed + 100), CELLS[cell], directions, sequence)
        check(layer, masked=masked_output is not None, initial=initial, seed=seed)


LSTM_OPTIONS = {
    "hard_sigmoid_keras2": LstmEquations(gate_activation=HARD_SIGMOID_KERAS2),
    "hard_sigmoid_keras3": LstmEquations(gate_activation=HARD_SIGMOID_KERAS3),
    "three_parameters": LstmEquations(
        Activation("affine", 0.05, 0.3), Activation("scaled_tanh", 1.3, 0.7), Activation("leaky_relu", 0.2)
    ),
    "mixed_parameters": LstmEquations(SIGMOID, Activation("elu", 0.7), Activation("hard_sigmoid", 0.25, 0.4)),
    "linear": LstmEquations(SIGMOID, LINEAR, TANH),
    "thresholded": LstmEquations(SIGMOID, TANH, Activation("thresholded_relu", 0.1)),
    "clip": LstmEquations(preactivation_clip=0.5),
    "coupled": LstmEquations(coupling=Coupling.FORGET_IS_ONE_MINUS_INPUT),
    "coupled_clip": LstmEquations(coupling=Coupling.FORGET_IS_ONE_MINUS_INPUT, preactivation_clip=0.7),
}


@pytest.mark.parametrize("directions", [(FORWARD,), (REVERSE,), (FORWARD, REVERSE)], ids=len)
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("option", LSTM_OPTIONS)
def test_every_option_of_an_lstm_acts(option: str, peephole: bool, directions: tuple[Direction, ...]) -> None:
    equations = LSTM_OPTIONS[option]
    layer = random_layer(
        np.random.default_rng(3), equations, directions, SequenceBehaviour(), peephole=peephole
    )
    check(layer, masked=True, initial=True)


@pytest.mark.parametrize("reset", ResetPlace)
@pytest.mark.parametrize(
    "activations",
    [
        (HARD_SIGMOID_KERAS2, TANH),
        (HARD_SIGMOID_KERAS3, RELU),
        (Activation("affine", 0.2, 0.5), Activation("softsign")),
        (SIGMOID, Activation("softplus")),
    ],
    ids=str,
)
def test_every_option_of_a_gru_acts(reset: ResetPlace, activations: tuple[Activation, Activation]) -> None:
    for clip in (None, 0.6):
        equations = GruEquations(
            reset,
            gate_activation=activations[0],
            candidate_activation=activations[1],
            preactivation_clip=clip,
        )
        check(random_layer(np.random.default_rng(4), equations, (FORWARD, REVERSE), SequenceBehaviour()))


@pytest.mark.parametrize(
    "activation", [RELU, LINEAR, Activation("scaled_tanh", 0.9, 1.1), HARD_SIGMOID_KERAS3]
)
def test_every_option_of_an_rnn_acts(activation: Activation) -> None:
    for clip in (None, 0.6):
        equations = RnnEquations(activation, preactivation_clip=clip)
        check(
            random_layer(np.random.default_rng(5), equations, (REVERSE,), SequenceBehaviour()), initial=True
        )


def test_directions_may_have_activations_of_their_own() -> None:
    rng = np.random.default_rng(6)
    pair = (
        RecurrentDirection(
            FORWARD, LstmEquations(HARD_SIGMOID_KERAS2), random_weights(rng, Cell.LSTM, INPUT, HIDDEN)
        ),
        RecurrentDirection(
            REVERSE,
            LstmEquations(SIGMOID, Activation("elu", 0.3)),
            random_weights(rng, Cell.LSTM, INPUT, HIDDEN),
        ),
    )
    model = check(RecurrentLayer("rec", pair))
    (node,) = [node for node in model.graph.node if node.op_type == "LSTM"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["activations"] == [b"HardSigmoid", b"Tanh", b"Tanh", b"Sigmoid", b"Elu", b"Tanh"]
    np.testing.assert_allclose(attributes["activation_alpha"], [0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(attributes["activation_beta"], [0.5], rtol=1e-6)


def test_trained_initial_states_are_the_start() -> None:
    rng = np.random.default_rng(7)
    layer = random_layer(
        rng, LSTM, (FORWARD, REVERSE), SequenceBehaviour(masked_output=MaskedOutput.HOLD_STATE)
    )

    def trained(direction: RecurrentDirection) -> RecurrentDirection:
        blocks = {
            (part, None): Lazy.of(rng.standard_normal(HIDDEN).astype(np.float32))
            for part in (Part.INITIAL_HIDDEN, Part.INITIAL_CELL)
        }
        return replace(direction, weights=direction.weights.with_blocks(blocks))

    layer = layer.mapped(trained)
    check(layer)
    check(layer, masked=True)


@pytest.mark.parametrize(
    ("equations", "reason"),
    [
        (GruEquations(ResetPlace.AFTER_PRODUCT, UpdateKeeps.CANDIDATE), "update gate"),
        (LstmEquations(cell_clip=1.0), "cell clip"),
        (LstmEquations(hidden_activation=Activation("gelu")), "gelu"),
        (RnnEquations(constant={}, hidden_activation=Activation("mish")), "mish"),
    ],
    ids=["update_keeps", "cell_clip", "gelu", "mish"],
)
def test_what_the_operators_lack_is_refused(equations: Equations, reason: str) -> None:
    layer = random_layer(np.random.default_rng(8), equations, (FORWARD,), SequenceBehaviour())
    with pytest.raises(NotRepresentable, match=reason):
        writer.write(model_of(layer), "onnx_file", WriteOptions())


# Real Keras layers.


def _keras_layer(kind: str, **options: Any) -> Any:
    import keras

    made = {
        "lstm": lambda: keras.layers.LSTM(HIDDEN, **options),
        "lstm_hard": lambda: keras.layers.LSTM(HIDDEN, recurrent_activation="hard_sigmoid", **options),
        "gru_after": lambda: keras.layers.GRU(HIDDEN, **options),
        "gru_before": lambda: keras.layers.GRU(HIDDEN, reset_after=False, **options),
        "rnn": lambda: keras.layers.SimpleRNN(HIDDEN, activation="relu", **options),
    }
    return made[kind]()


KERAS_CELLS: dict[str, tuple[Cell, Equations]] = {
    "lstm": (Cell.LSTM, LSTM),
    "lstm_hard": (Cell.LSTM, LSTM_OPTIONS["hard_sigmoid_keras3"]),
    "gru_after": (Cell.GRU, GRU_AFTER),
    "gru_before": (Cell.GRU, GRU_BEFORE),
    "rnn": (Cell.RNN, RnnEquations(RELU)),
}


def _run_keras(layer: Any, x: Array, states: list[Array], mask: Array | None) -> list[Array]:
    given = {"initial_state": states} if states else {}
    results = layer(x, mask=mask, **given)
    flat = results if isinstance(results, (tuple, list)) else [results]
    return [np.asarray(value) for value in flat]


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("kind", KERAS_CELLS)
def test_a_single_keras_layer(kind: str, backwards: bool, masked: bool, sequences: bool) -> None:
    cell, equations = KERAS_CELLS[kind]
    for seed, (zero, initial) in enumerate(itertools.product([False, True], repeat=2)):
        rng = np.random.default_rng(seed)
        keras_layer = _keras_layer(
            kind,
            return_sequences=sequences,
            return_state=True,
            go_backwards=backwards,
            zero_output_for_mask=zero,
        )
        keras_layer.build((None, None, INPUT))
        randomize(rng, keras_layer)
        sequence = SequenceBehaviour(
            returns=Returns.SEQUENCE if sequences else Returns.LAST,
            return_state=True,
            reverse_output=ReverseOutput.VISITED_ORDER if backwards else ReverseOutput.INPUT_ORDER,
            masked_output=MaskedOutput.ZERO if zero else MaskedOutput.HOLD,
        )
        arrays = keras_layer.get_weights()
        layer = layer_of("rec", cell, equations, {REVERSE if backwards else FORWARD: arrays}, sequence)
        model = written(model_of(layer, masked=masked, initial=initial))
        count = (2 if cell is Cell.LSTM else 1) if initial else 0
        states = [rng.standard_normal((BATCH, HIDDEN)).astype(np.float32) for _ in range(count)]
        x = (2 * rng.standard_normal((BATCH, TIME, INPUT))).astype(np.float32)
        feeds = {"x": x, **{f"s{n}": state for n, state in enumerate(states)}}
        feeds |= {"m": MASK} if masked else {}
        wanted = _run_keras(keras_layer, x, states, MASK if masked else None)
        for got, judged in zip(run(model, feeds).values(), wanted, strict=True):
            assert_close(got, judged, (kind, sequence, masked, initial, seed))


MERGES = {
    "concat": Merge.CONCAT,
    "sum": Merge.SUM,
    "mul": Merge.MULTIPLY,
    "ave": Merge.AVERAGE,
    None: Merge.SEPARATE,
}


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KERAS_CELLS)
def test_a_bidirectional_keras_layer(kind: str, masked: bool, sequences: bool) -> None:
    import keras

    cell, equations = KERAS_CELLS[kind]
    for seed, (mode, merge) in enumerate(MERGES.items()):
        initial = seed % 2 == 1
        rng = np.random.default_rng(seed)
        inner = _keras_layer(kind, return_sequences=sequences, return_state=True)
        keras_layer = keras.layers.Bidirectional(inner, merge_mode=mode)
        keras_layer.build((None, None, INPUT))
        randomize(rng, keras_layer)
        sequence = SequenceBehaviour(
            merge=merge,
            returns=Returns.SEQUENCE if sequences else Returns.LAST,
            return_state=True,
            # Bidirectional sets zero_output_for_mask on both halves if they return sequences.
            masked_output=MaskedOutput.ZERO if sequences else MaskedOutput.HOLD,
        )
        arrays = {
            FORWARD: keras_layer.forward_layer.get_weights(),
            REVERSE: keras_layer.backward_layer.get_weights(),
        }
        layer = layer_of("rec", cell, equations, arrays, sequence)
        model = written(model_of(layer, masked=masked, initial=initial))
        count = (4 if cell is Cell.LSTM else 2) if initial else 0
        states = [rng.standard_normal((BATCH, HIDDEN)).astype(np.float32) for _ in range(count)]
        x = rng.standard_normal((BATCH, TIME, INPUT)).astype(np.float32)
        feeds = {"x": x, **{f"s{n}": state for n, state in enumerate(states)}}
        feeds |= {"m": MASK} if masked else {}
        wanted = _run_keras(keras_layer, x, states, MASK if masked else None)
        for got, judged in zip(run(model, feeds).values(), wanted, strict=True):
            assert_close(got, judged, (kind, mode, masked, initial, seed))


def test_a_chain_of_masked_keras_layers_moves_the_steps_once() -> None:
    import keras

    rng = np.random.default_rng(11)
    inputs = keras.Input((None,), dtype="int32", name="tokens")
    embedded = keras.layers.Embedding(9, INPUT, mask_zero=True, name="embedding")(inputs)
    first = keras.layers.Bidirectional(keras.layers.GRU(HIDDEN, return_sequences=True), name="first")(
        embedded
    )
    second = keras.layers.LSTM(HIDDEN, return_sequences=True, name="second")(keras.layers.Dropout(0.5)(first))
    third = keras.layers.LSTM(HIDDEN, name="third")(second)
    judge = keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="dense")(third))
    randomize(rng, judge)
    held = {layer.name: layer.get_weights() for layer in judge.layers}
    halves = judge.get_layer("first")
    both = {FORWARD: halves.forward_layer.get_weights(), REVERSE: halves.backward_layer.get_weights()}
    zero, hold = MaskedOutput.ZERO, MaskedOutput.HOLD
    kernel, bias = held["dense"]
    table = {"embeddings": Lazy.of(held["embedding"][0])}
    layers = {
        "embedding": OperationLayer("embedding", Embedding(mask_zero=True), table),
        "first": layer_of("first", Cell.GRU, GRU_AFTER, both, SequenceBehaviour(masked_output=zero)),
        "dropout": OperationLayer("dropout", Identity()),
        "second": layer_of(
            "second", Cell.LSTM, LSTM, {FORWARD: held["second"]}, SequenceBehaviour(masked_output=hold)
        ),
        "third": layer_of(
            "third", Cell.LSTM, LSTM, {FORWARD: held["third"]},
            SequenceBehaviour(masked_output=hold, returns=Returns.LAST),
        ),
        "dense": OperationLayer(
            "dense", Dense(Activation("softmax")), {"kernel": Lazy.of(kernel.T), "bias": Lazy.of(bias)}
        ),
    }  # fmt: skip
    calls = (
        Call("embedding", ("tokens",), ("e", "mask")),
        Call("first", ("e",), ("f",), "mask"),
        Call("dropout", ("f",), ("d",)),
        Call("second", ("d",), ("s",), "mask"),
        Call("third", ("s",), ("t",), "mask"),
        Call("dense", ("t",), ("y",)),
    )
    model = written(
        Model(layers, calls, (Port("tokens", "tokens", (None, None), "int32"),), (Port("y", "y", (None, 2)),))
    )
    tokens = np.where(MASK, rng.integers(1, 9, MASK.shape), 0).astype(np.int32)
    assert_close(run(model, {"tokens": tokens})["y"], judge(tokens), "chain")
    names = operators(model)
    assert names.count("CumSum") == 1
    assert names.count("Gather") == 2, names  # the embedding and the one move to the front
    assert [node.name for node in model.graph.node if node.op_type in FUSED] == ["first", "second", "third"]
    assert not LOOPS.intersection(names)


def test_masking_feeds_a_recurrent_layer_as_in_keras() -> None:
    import keras

    rng = np.random.default_rng(12)
    judge = keras.Sequential(
        [
            keras.Input((None, INPUT)),
            keras.layers.Masking(-1.0),
            keras.layers.LSTM(HIDDEN, return_sequences=True, name="lstm"),
        ]
    )
    randomize(rng, judge)
    layers = {
        "masking": OperationLayer("masking", Masking(-1.0)),
        "lstm": layer_of(
            "lstm", Cell.LSTM, LSTM, {FORWARD: judge.get_layer("lstm").get_weights()},
            SequenceBehaviour(masked_output=MaskedOutput.HOLD),
        ),
    }  # fmt: skip
    calls = (Call("masking", ("x",), ("k", "mask")), Call("lstm", ("k",), ("y",), "mask"))
    model = Model(
        layers, calls, (Port("x", "x", (None, None, INPUT)),), (Port("y", "y", (None, None, HIDDEN)),)
    )
    x = rng.standard_normal((BATCH, TIME, INPUT)).astype(np.float32)
    x[~MASK] = -1.0
    x[0, 0, 0] = -1.0  # one feature alone masks nothing
    assert_close(run(written(model), {"x": x})["y"], judge(x), "masking")


# States outside.


def test_a_stateful_layer_streams_through_its_state_ports() -> None:
    rng = np.random.default_rng(13)
    sequence = SequenceBehaviour(stateful=True)
    layer = random_layer(rng, LSTM, (FORWARD,), sequence)
    model = written(model_of(layer))
    assert [i.name for i in model.graph.input] == ["x", "rec_initial_h", "rec_initial_c"]
    assert [o.name for o in model.graph.output] == ["o0", "rec_h_n", "rec_c_n"]
    x = rng.standard_normal((2, TIME, INPUT)).astype(np.float32)
    state = [np.zeros((1, 2, HIDDEN), np.float32)] * 2
    pieces = []
    for piece in (x[:, :3], x[:, 3:4], x[:, 4:]):
        y, *state = run(model, {"x": piece, "rec_initial_h": state[0], "rec_initial_c": state[1]}).values()
        pieces.append(y)
    whole, (h, c) = layer.run(x)
    assert_close(np.concatenate(pieces, axis=1), whole, "streamed")
    assert_close(state[0], h, "h_n")
    assert_close(state[1], c, "c_n")


@pytest.mark.parametrize("cell", CELLS)
def test_states_become_ports_when_asked_for(cell: str) -> None:
    rng = np.random.default_rng(14)
    layer = random_layer(rng, CELLS[cell], (FORWARD, REVERSE), SequenceBehaviour())
    model = written(model_of(layer), WriteOptions(states=True))
    kinds = ["h", "c"] if layer.cell is Cell.LSTM else ["h"]
    x = rng.standard_normal((BATCH, TIME, INPUT)).astype(np.float32)
    states = [rng.standard_normal((2, BATCH, HIDDEN)).astype(np.float32) for _ in kinds]
    feeds = {f"rec_initial_{kind}": state for kind, state in zip(kinds, states, strict=True)}
    got = run(model, {"x": x, **feeds})
    y, final = layer.run(x, initial_state=tuple(states) if len(states) == 2 else states[0])
    assert_close(got["o0"], y, "y")
    for kind, wanted in zip(kinds, final if isinstance(final, tuple) else (final,), strict=True):
        assert_close(got[f"rec_{kind}_n"], wanted, kind)


def test_a_second_use_of_a_layer_has_states_of_its_own_and_a_stateful_one_goes_on() -> None:
    rng = np.random.default_rng(15)
    for stateful in (False, True):
        layer = random_layer(rng, GRU_AFTER, (FORWARD,), SequenceBehaviour(stateful=stateful))
        ports = tuple(Port(name, name, (None, None, INPUT)) for name in ("a", "b"))
        calls = (Call("rec", ("a",), ("ya",)), Call("rec", ("b",), ("yb",)))
        outputs = tuple(Port(name, name, (None, None, HIDDEN)) for name in ("ya", "yb"))
        model = written(Model({"rec": layer}, calls, ports, outputs), WriteOptions(states=True))
        a, b = (rng.standard_normal((2, 3, INPUT)).astype(np.float32) for _ in range(2))
        start = {
            i.name: rng.standard_normal((1, 2, HIDDEN)).astype(np.float32)
            for i in model.graph.input
            if i.name not in ("a", "b")
        }
        got = run(model, {"a": a, "b": b, **start})
        assert len(model.graph.initializer) == len({i.name for i in model.graph.initializer})
        assert sum(i.name.endswith("/W") for i in model.graph.initializer) == 1
        ya, ha = layer.run(a, initial_state=start["rec_initial_h"])
        yb, hb = layer.run(b, initial_state=ha if stateful else start["rec_2_initial_h"])
        assert_close(got["ya"], ya, "a")
        assert_close(got["yb"], yb, "b")
        assert_close(got["rec_h_n" if stateful else "rec_2_h_n"], hb, "state")
        assert len(start) == (1 if stateful else 2)


# The graph.


def test_consecutive_layers_share_one_order_of_axes() -> None:
    rng = np.random.default_rng(16)
    first = random_layer(rng, LSTM, (FORWARD, REVERSE), SequenceBehaviour())
    second = RecurrentLayer(
        "two", (RecurrentDirection(FORWARD, GRU_AFTER, random_weights(rng, Cell.GRU, 2 * HIDDEN, HIDDEN)),)
    )
    layers = {"one": replace(first, name="one"), "two": second}
    calls = (Call("one", ("x",), ("m",)), Call("two", ("m",), ("y",)))
    ports = (Port("x", "x", (None, None, INPUT)),), (Port("y", "y", (None, None, HIDDEN)),)
    names = operators(written(Model(layers, calls, *ports)))
    # In, the two directions side by side, out.
    assert names == ["Transpose", "LSTM", "Transpose", "Reshape", "GRU", "Squeeze", "Transpose"]


def test_ports_keep_names_and_free_axes() -> None:
    layer = random_layer(np.random.default_rng(17), LSTM, (FORWARD,), SequenceBehaviour())
    graph = written(model_of(layer)).graph
    shapes = {
        p.name: [d.dim_param or d.dim_value for d in p.type.tensor_type.shape.dim]
        for p in (*graph.input, *graph.output)
    }
    assert shapes == {"x": ["batch", "time", INPUT], "o0": ["batch", "time", HIDDEN]}
    assert [node.name for node in graph.node if node.op_type == "LSTM"] == ["rec"]


@pytest.mark.parametrize("opset", range(14, 23))
def test_every_opset_runs(opset: int) -> None:
    rng = np.random.default_rng(18)
    layer = random_layer(rng, GRU_BEFORE, (FORWARD, REVERSE), SequenceBehaviour(merge=Merge.AVERAGE))
    model = written(model_of(layer, masked=True), WriteOptions(opset=opset))
    assert model.opset_import[0].version == opset
    x = rng.standard_normal((BATCH, TIME, INPUT)).astype(np.float32)
    assert_close(run(model, {"x": x, "m": MASK})["o0"], layer.run(x, mask=MASK)[0], opset)


@pytest.mark.parametrize("opset", [7, 13, 23])
def test_other_opsets_are_refused(opset: int) -> None:
    layer = random_layer(np.random.default_rng(19), LSTM, (FORWARD,), SequenceBehaviour())
    with pytest.raises(Usage, match="opset"):
        writer.write(model_of(layer), "onnx_file", WriteOptions(opset=opset))


def _cast(layer: RecurrentLayer, dtype: Any) -> RecurrentLayer:
    def cast(direction: RecurrentDirection) -> RecurrentDirection:
        weights = direction.weights.mapped(
            lambda _, block: block.map(lambda a: a.astype(dtype), block.shape, dtype)
        )
        return replace(direction, weights=weights)

    return layer.mapped(cast)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float64, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name
)
def test_the_dtype_stays(dtype: Any) -> None:
    rng = np.random.default_rng(20)
    layer = _cast(random_layer(rng, LSTM, (FORWARD, REVERSE), SequenceBehaviour()), dtype)
    model = written(model_of(layer, masked=True))  # passes the checker in every dtype
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ports = [p for p in (*model.graph.input, *model.graph.output) if p.name != "m"]
    assert {p.type.tensor_type.elem_type for p in ports} == {element}
    if dtype is np.float16:  # the only one of them that ONNX Runtime runs
        x = rng.standard_normal((BATCH, TIME, INPUT)).astype(dtype)
        wanted = layer.run(x.astype(np.float32), mask=MASK)[0]
        assert_close(run(model, {"x": x, "m": MASK})["o0"], wanted, dtype, 5e-3)


def test_bfloat16_needs_the_newest_opset() -> None:
    layer = _cast(
        random_layer(np.random.default_rng(21), LSTM, (FORWARD,), SequenceBehaviour()), ml_dtypes.bfloat16
    )
    with pytest.raises(NotRepresentable, match="bfloat16"):
        writer.write(model_of(layer), "onnx_file", WriteOptions(opset=17))


def test_weights_of_another_dtype_than_the_option_are_refused() -> None:
    layer = random_layer(np.random.default_rng(22), LSTM, (FORWARD,), SequenceBehaviour())
    with pytest.raises(Usage, match="float32"):
        writer.write(model_of(layer), "onnx_file", WriteOptions(dtype="float16"))


def test_a_single_stack_without_topology_becomes_a_graph_and_two_are_refused() -> None:
    rng = np.random.default_rng(23)
    layer = random_layer(rng, LSTM, (FORWARD,), SequenceBehaviour())
    x = rng.standard_normal((2, 4, INPUT)).astype(np.float32)
    assert_close(run(written(Model({"rec": layer})), {"x": x})["y"], layer.run(x)[0], "stack")
    with pytest.raises(NotRepresentable, match="2 recurrent stacks"):
        writer.write(Model({"rec": layer, "b": replace(layer, name="b")}), "onnx_file", WriteOptions())


def test_an_empty_batch_and_a_single_step_run() -> None:
    layer = random_layer(np.random.default_rng(24), LSTM, (FORWARD, REVERSE), SequenceBehaviour())
    model = written(model_of(layer, masked=True))
    for batch, time in ((1, 1), (3, 1), (1, 5)):
        x = np.ones((batch, time, INPUT), np.float32)
        mask = np.ones((batch, time), bool)
        assert_close(run(model, {"x": x, "m": mask})["o0"], layer.run(x, mask=mask)[0], (batch, time))
