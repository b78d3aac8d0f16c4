"""Recurrent layers in the generated module, run by torch against the NumPy reference: every option there is."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from lstmconvert import interpreter
from lstmconvert.activations import (
    HARD_SIGMOID_KERAS2,
    HARD_SIGMOID_KERAS3,
    KINDS,
    RELU,
    SIGMOID,
    Activation,
)
from lstmconvert.canonical import (
    Coupling,
    Equations,
    GruEquations,
    LstmEquations,
    MaskedOutput,
    Merge,
    RecurrentLayer,
    ResetPlace,
    Returns,
    ReverseOutput,
    RnnEquations,
    SequenceBehaviour,
    UpdateKeeps,
)
from lstmconvert.containers import Archive
from lstmconvert.errors import UnsupportedSource
from lstmconvert.frameworks import pytorch_live
from lstmconvert.frameworks.pytorch import cells
from lstmconvert.frameworks.pytorch.source import rendered
from lstmconvert.gates import Gate
from lstmconvert.model import Call, Model, Port
from lstmconvert.stacks import STACK
from tests.frameworks.pytorch_running import (
    assert_formatted,
    fitted,
    module_of,
    one_layer,
    read_back,
    run,
    source_of,
    written,
)
from tests.support import assert_close, assert_same_weights, random_layer, random_mask

BEFORE, AFTER = ResetPlace.BEFORE_PRODUCT, ResetPlace.AFTER_PRODUCT
B, T = 4, 6


def agrees(model: Model, *, seed: int, states: bool = False) -> str:
    """Torch's result is the interpreter's, and what is read back is what was written; gives the source."""
    archive = written(model, states=states)
    rng = np.random.default_rng(seed)
    fed = {}
    for port in model.inputs:
        if port.dtype == "bool":
            fed[port.name] = random_mask(seed=seed, batch=B, time=T)
        else:
            shape = [B, *(T if n is None else n for n in port.shape[1:])]
            fed[port.name] = rng.standard_normal(shape).astype(np.float32)
    expected = interpreter.run(model, **fed)
    got = run(module_of(archive), list(fed.values()))
    for name, a, b in zip(
        [p.name for p in model.outputs],
        got,
        expected if isinstance(expected, tuple) else (expected,),
        strict=False,
    ):
        assert_close(a, b, context=f"{name}, seed {seed}\n{source_of(archive)}")
    back = read_back(archive)
    assert list(back.layers) == list(model.layers)
    for name, layer in fitted(model).recurrent.items():
        other = back.recurrent[name]
        assert other.sequence == layer.sequence
        for mine, theirs in zip(layer.directions, other.directions, strict=True):
            assert mine.direction == theirs.direction
            assert mine.equations == theirs.equations
            assert_same_weights(mine.weights, theirs.weights)
    assert back.calls == model.calls
    return source_of(archive)


CELLS: dict[str, tuple[Equations, dict[str, object]]] = {
    "lstm": (LstmEquations(), {}),
    "lstm_projected": (LstmEquations(), {"projection": 2}),
    "lstm_spelled_out": (LstmEquations(gate_activation=HARD_SIGMOID_KERAS3), {}),
    "gru": (GruEquations(AFTER), {}),
    "gru_spelled_out": (GruEquations(BEFORE), {}),
    "rnn": (RnnEquations(), {}),
    "rnn_spelled_out": (RnnEquations(Activation("softsign")), {}),
}
SHAPES = [
    (("forward",), Merge.CONCAT, ReverseOutput.INPUT_ORDER),
    (("reverse",), Merge.CONCAT, ReverseOutput.INPUT_ORDER),
    (("reverse",), Merge.CONCAT, ReverseOutput.VISITED_ORDER),
    *((("forward", "reverse"), merge, ReverseOutput.INPUT_ORDER) for merge in Merge),
]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("directions", "merge", "order"), SHAPES, ids=lambda v: "-".join(v) if isinstance(v, tuple) else str(v)
)
@pytest.mark.parametrize("returns", Returns)
@pytest.mark.parametrize("given", ["plain", "mask", "states", "mask_states"])
def test_every_behaviour(
    cell: str, directions: tuple[str, ...], merge: Merge, order: ReverseOutput, returns: Returns, given: str
) -> None:
    equations, options = CELLS[cell]
    held = list(MaskedOutput) if "mask" in given else [MaskedOutput.ZERO]
    for number, (masked, return_state) in enumerate(product(held, [True, False])):
        seed = sum(map(ord, f"{cell}{directions}{merge}{order}{returns}{given}{number}"))
        behaviour = SequenceBehaviour(
            merge=merge,
            returns=returns,
            return_state=return_state,
            reverse_output=order,
            masked_output=masked,
        )
        layer = random_layer(
            equations.cell,
            seed=seed,
            directions=directions,
            equations=equations,
            sequence=behaviour,
            **options,  # type: ignore[arg-type]
        )
        source = agrees(one_layer(layer, mask="mask" in given, states="states" in given), seed=seed)
        assert ("SpelledOut" in source) == ("spelled_out" in cell)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("biases", ["two", "input", "recurrent", "none"])
@pytest.mark.parametrize("directions", [("forward",), ("forward", "reverse")])
def test_every_set_of_biases(cell: str, biases: str, directions: tuple[str, ...]) -> None:
    layer = random_layer(cell, seed=11, biases=biases, directions=directions)
    model = one_layer(layer)
    archive = written(model)
    assert ("bias=False" in source_of(archive)) == (biases == "none")
    x = np.random.default_rng(11).standard_normal((B, T, layer.input_size)).astype(np.float32)
    (got,) = run(module_of(archive), [x])
    assert_close(got, layer.run(x)[0])
    (back,) = read_back(archive).recurrent.values()
    assert_same_weights(back.directions[0].weights, layer.directions[0].weights)


EQUATIONS = {
    "keras2": LstmEquations(gate_activation=HARD_SIGMOID_KERAS2),
    "activations": LstmEquations(SIGMOID, RELU, Activation("mish")),
    "formulas": LstmEquations(
        Activation("affine", 0.3, 0.4), Activation("scaled_tanh", 0.7, 0.9), Activation("squareplus", 0.5)
    ),
    "constants": LstmEquations(
        gate_activation=HARD_SIGMOID_KERAS3, constant={Gate.FORGET: 1.0, Gate.OUTPUT: -0.5}
    ),
    "coupled": LstmEquations(
        gate_activation=Activation("affine", 0.2, 0.3), coupling=Coupling.FORGET_IS_ONE_MINUS_INPUT
    ),
    "clips": LstmEquations(preactivation_clip=0.8, cell_clip=0.5, projection_clip=0.3),
    "gru_candidate": GruEquations(BEFORE, UpdateKeeps.CANDIDATE),
    "gru_candidate_after": GruEquations(AFTER, UpdateKeeps.CANDIDATE, HARD_SIGMOID_KERAS2),
    "gru_rich": GruEquations(
        AFTER, UpdateKeeps.STATE, HARD_SIGMOID_KERAS2, RELU, {Gate.UPDATE: 0.5}, preactivation_clip=0.9
    ),
    "gru_formula": GruEquations(BEFORE, UpdateKeeps.STATE, SIGMOID, Activation("hard_silu", 0.2, 0.5)),
    "rnn_clip": RnnEquations(RELU, {Gate.HIDDEN: 0.25}, preactivation_clip=0.6),
    "rnn_formula": RnnEquations(Activation("sparse_plus")),
}


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("directions", [("forward",), ("reverse",), ("forward", "reverse")])
@pytest.mark.parametrize("mask", [False, True])
def test_every_equation(name: str, peephole: bool, directions: tuple[str, ...], mask: bool) -> None:
    equations = EQUATIONS[name]
    if peephole and not isinstance(equations, LstmEquations):
        return
    projection = 2 if name == "clips" else None
    for biases, initial in (("two", False), ("input", True), ("recurrent", False), ("none", True)):
        layer = random_layer(
            equations.cell, seed=5, equations=equations, peephole=peephole, directions=directions,
            projection=projection, biases=biases, initial_state=initial,
            sequence=SequenceBehaviour(return_state=True),
        )  # fmt: skip
        agrees(one_layer(layer, mask=mask), seed=5)


def test_every_activation() -> None:
    for kind in KINDS:
        if kind in ("exponential", "softmax", "log_softmax"):
            continue  # the state grows without bound, or depends on the other units
        parameters = {"alpha": 0.7, "beta": 0.4}
        for names in ((), ("alpha",), ("alpha", "beta")):
            try:
                activation = Activation(kind, **{name: parameters[name] for name in names})
            except ValueError:
                continue
            layer = random_layer("rnn", seed=9, equations=RnnEquations(activation))
            agrees(one_layer(layer), seed=9)


def test_directions_with_equations_of_their_own() -> None:
    both = [GruEquations(BEFORE), GruEquations(AFTER, gate_activation=HARD_SIGMOID_KERAS3)]
    layer = random_layer("gru", seed=3, directions=("forward", "reverse"), equations=both)
    source = agrees(one_layer(layer), seed=3)
    assert "class SpelledOutGRU(" in source
    assert "class SpelledOutGRU2(" in source


def test_equal_recipes_share_one_class() -> None:
    layer = random_layer("gru", seed=3, directions=("forward", "reverse"), equations=GruEquations(BEFORE))
    source = agrees(one_layer(layer), seed=3)
    assert source.count("class SpelledOut") == 1


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("directions", [("forward",), ("reverse",), ("forward", "reverse")])
@pytest.mark.parametrize("masked", MaskedOutput)
def test_trained_initial_states(cell: str, directions: tuple[str, ...], masked: MaskedOutput) -> None:
    for mask, returns in product((False, True), Returns):
        behaviour = SequenceBehaviour(returns=returns, masked_output=masked)
        layer = random_layer(cell, seed=21, directions=directions, initial_state=True, sequence=behaviour)
        source = agrees(one_layer(layer, mask=mask), seed=21)
        assert "SpelledOut" not in source


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_spelled_out"])
@pytest.mark.parametrize("directions", [("forward",), ("reverse",), ("forward", "reverse")])
@pytest.mark.parametrize("outside", ["stateful", "option"])
@pytest.mark.parametrize("initial", [False, True])
def test_states_outside_carry_a_sequence_on(
    cell: str, directions: tuple[str, ...], outside: str, initial: bool
) -> None:
    equations, _ = CELLS[cell]
    behaviour = SequenceBehaviour(stateful=outside == "stateful", returns=Returns.SEQUENCE)
    layer = random_layer(
        equations.cell,
        seed=2,
        directions=directions,
        equations=equations,
        sequence=behaviour,
        initial_state=initial,
    )
    module = module_of(written(one_layer(layer), states=outside == "option"))
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((B, T, 3)).astype(np.float32))
    with torch.no_grad():
        first, *states = module(x)
        second, *_ = module(x, *states)
    y, state = layer.run(x.numpy())
    assert_close(first, y)
    assert_close(second, layer.run(x.numpy(), initial_state=state)[0])


def test_a_stateful_layer_goes_on_in_its_second_use() -> None:
    layer = random_layer("lstm", seed=4, sequence=SequenceBehaviour(stateful=True))
    calls = (Call("lstm", ("x",), ("y",)), Call("lstm", ("x",), ("z",)))
    ports = (Port("y", "y", (None, None, 5)), Port("z", "z", (None, None, 5)))
    model = Model({"lstm": layer}, calls, (Port("x", "x", (None, None, 3)),), ports)
    x = np.random.default_rng(4).standard_normal((B, T, 3)).astype(np.float32)
    y, z, h, _ = run(module_of(written(model)), [x])
    expected, state = layer.run(x)
    after, final = layer.run(x, initial_state=state)
    assert_close(y, expected)
    assert_close(z, after)
    assert_close(h, final[0])


def chain(layers: list[RecurrentLayer]) -> Model:
    """Layers one after the other."""
    calls, value = [], "x"
    for layer in layers:
        calls.append(Call(layer.name, (value,), (f"{layer.name}.y",)))
        value = f"{layer.name}.y"
    return Model(
        {layer.name: layer for layer in layers}, tuple(calls),
        (Port("x", "x", (None, None, layers[0].input_size)),), (Port("y", value, (None, None, layers[-1].width)),),
    )  # fmt: skip


@pytest.mark.parametrize("directions", [("forward",), ("forward", "reverse")])
@pytest.mark.parametrize("returns", Returns)
def test_a_stack_of_the_source_is_one_module_again(directions: tuple[str, ...], returns: Returns) -> None:
    width, layers = 3, []
    for number in range(3):
        layer = random_layer(
            "gru", seed=number, input_size=width, directions=directions, name=f"rnn.{number}"
        )
        last = SequenceBehaviour(returns=returns, return_state=True) if number == 2 else SequenceBehaviour()
        layers.append(replace(layer, notes={STACK: "encoder.rnn"}, sequence=last))
        width = layer.width
    model = chain(layers)
    finals = tuple(f"f{d}" for d in range(len(directions)))
    calls = (*model.calls[:-1], replace(model.calls[-1], outputs=(*model.calls[-1].outputs, *finals)))  # type: ignore[index]
    model = replace(model, calls=calls, outputs=(*model.outputs, *(Port(f, f, (None, 5)) for f in finals)))
    source = agrees(model, seed=1)
    assert source.count("nn.GRU(") == 1
    assert "num_layers=3" in source
    assert "self.encoder_rnn = " in source


def test_equal_layers_that_were_no_stack_stay_apart() -> None:
    layers = [random_layer("lstm", seed=n, input_size=5, name=f"lstm_{n}") for n in range(2)]
    source = agrees(chain(layers), seed=1)
    assert source.count("nn.LSTM(") == 2


def test_a_state_handed_to_the_next_layer_is_handed_on_whole() -> None:
    encoder = random_layer("lstm", seed=1, name="encoder", sequence=SequenceBehaviour(return_state=True))
    decoder = random_layer("lstm", seed=2, name="decoder")
    calls = (
        Call("encoder", ("a",), ("e", "h", "c")),
        Call("decoder", ("b",), ("y",), None, ("h", "c")),
    )
    ports = (Port("a", "a", (None, None, 3)), Port("b", "b", (None, None, 3)))
    model = Model({"encoder": encoder, "decoder": decoder}, calls, ports, (Port("y", "y", (None, None, 5)),))
    source = agrees(model, seed=8)
    assert "_, (h, c) = self.encoder(a)\n" in source
    assert "x, _ = self.decoder(b, (h, c))\n        return x" in source


def test_spelled_out_classes_can_be_scripted(tmp_path: Path) -> None:
    cases = [(equations, {}) for equations in EQUATIONS.values()]
    cases += [(LstmEquations(), {"peephole": True}), (LstmEquations(), {"projection": 2})]
    for number, ((equations, options), masked) in enumerate(product(cases, (False, True))):
        layer = random_layer(
            equations.cell,
            seed=number,
            equations=equations,
            initial_state=number % 3 == 0,
            **options,  # type: ignore[arg-type]
        )
        (direction,) = layer.directions
        lines = rendered(cells.source("Cell", cells.recipe_of(direction, masked=masked)))
        head = ["import torch", "import torch.nn.functional as F", "from torch import Tensor, nn", "", ""]
        text = "\n".join([*head, *lines]) + "\n"
        (tmp_path / f"cell_{number}.py").write_text(text)
        namespace = pytorch_live.load_source(text)
        cell = eval(cells.constructor("Cell", direction), vars(namespace))  # noqa: S307 - it is our own
        cell.load_state_dict(
            {name: pytorch_live.tensor_of(lazy.read()) for name, lazy in cells.tensors(direction).items()}
        )
        x = torch.from_numpy(np.random.default_rng(number).standard_normal((B, T, 3)).astype(np.float32))
        mask = [torch.from_numpy(random_mask(seed=number, batch=B, time=T))] if masked else []
        with torch.no_grad():
            y, _ = torch.jit.script(cell)(x, *mask)
        expected, _ = layer.run(x.numpy(), mask=mask[0].numpy() if masked else None)
        assert_close(y, expected, context=text)
    assert_formatted(tmp_path)


def test_without_the_record_spelled_out_layers_are_refused_and_not_guessed() -> None:
    layer = random_layer("gru", seed=3, equations=GruEquations(BEFORE))
    bare = Archive(written(one_layer(layer)).tensors)
    with pytest.raises(UnsupportedSource, match="no longer says which"):
        read_back(bare)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("cell", ["lstm", "gru_spelled_out"])
def test_dtypes_are_kept(dtype: str, cell: str) -> None:
    equations, _ = CELLS[cell]
    layer = random_layer(equations.cell, seed=1, equations=equations, dtype=dtype)
    model = one_layer(layer)
    model = replace(
        model,
        inputs=(replace(model.inputs[0], dtype=dtype),),
        outputs=(replace(model.outputs[0], dtype=dtype),),
    )
    archive = written(model)
    assert {str(t.dtype) for t in archive.tensors.values()} == {dtype}
    x = np.random.default_rng(1).standard_normal((B, T, 3)).astype(dtype)
    (got,) = run(module_of(archive), [x])
    assert got.dtype == dtype
    assert_close(got, layer.run(x)[0], tolerance=5e-3 if dtype == "float16" else 1e-12)


def test_a_stack_whose_middle_is_used_elsewhere_stays_apart() -> None:
    layers = [random_layer("gru", seed=n, input_size=5, name=f"rnn.{n}") for n in range(2)]
    model = chain([replace(layer, notes={STACK: "rnn"}) for layer in layers])
    model = replace(model, outputs=(*model.outputs, Port("middle", "rnn.0.y", (None, None, 5))))
    assert agrees(model, seed=1).count("nn.GRU(") == 2
