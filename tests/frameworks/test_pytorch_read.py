"""state_dicts of real torch modules: what is read computes what torch computes, bit for bit the same weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lstmconvert import lowering, mapping
from lstmconvert.canonical import RecurrentLayer, RnnEquations
from lstmconvert.containers import Archive, npz, safetensors, torch_archive
from lstmconvert.errors import AmbiguousSource, BadFile, Usage
from lstmconvert.frameworks import pytorch, pytorch_live
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions, WriteOptions
from lstmconvert.tensors import Lazy
from tests.support import assert_close

INPUT, H, P, B, T = 3, 5, 2, 4, 6
KINDS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter another number, around a mean of its own for every gate."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        rows = torch.randn(parameter.shape[0], *[1] * (parameter.ndim - 1), generator=generator) * 0.3
        values = torch.randn(parameter.shape, generator=generator) * 0.5 + rows
        parameter.data = values.to(parameter.dtype)
    return module.eval()


def archive_of(state: dict[str, torch.Tensor]) -> Archive:
    return Archive({name: pytorch_live.lazy_of(tensor) for name, tensor in state.items()})


def read(state: dict[str, torch.Tensor], **options: Any) -> Model:
    return pytorch.read(archive_of(state), "safetensors", ReadOptions(**options))


def run_stack(
    layers: list[RecurrentLayer], x: np.ndarray, lengths: Any, states: Any
) -> tuple[Any, list[Any]]:
    """A stack of canonical layers as torch runs it: outputs, and every layer's final state."""
    finals = []
    for number, layer in enumerate(layers):
        initial = None
        if states is not None:
            count = len(layer.directions)
            rows = slice(number * count, (number + 1) * count)
            initial = tuple(s[rows] for s in states) if isinstance(states, tuple) else states[rows]
        x, final = layer.run(x, lengths=lengths, initial_state=initial)
        finals.append(final)
    return x, finals


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "rnn_relu", "lstm_projected"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", ["plain", "lengths", "states"])
def test_what_is_read_computes_what_torch_computes(
    kind: str, layers: int, bidirectional: bool, bias: bool, given: str
) -> None:
    seed = sum(map(ord, f"{kind}{layers}{bidirectional}{bias}{given}"))
    extra: dict[str, Any] = {"nonlinearity": "relu"} if kind == "rnn_relu" else {}
    if kind == "lstm_projected":
        extra["proj_size"] = P
    module = KINDS[kind.split("_")[0]](
        INPUT, H, layers, bias=bias, batch_first=True, bidirectional=bidirectional, **extra
    )
    randomise(module, seed)
    activation = {"rnn": "tanh", "rnn_relu": "relu"}.get(kind)
    model = read({f"encoder.rnn.{k}": v for k, v in module.state_dict().items()}, activation=activation)
    names = [f"encoder.rnn.{n}" for n in range(layers)] if layers > 1 else ["encoder.rnn"]
    assert list(model.recurrent) == names
    assert model.calls is None

    rng = np.random.default_rng(seed)
    x = rng.standard_normal((B, T, INPUT)).astype(np.float32) * 2
    count = layers * (2 if bidirectional else 1)
    width = P if "proj_size" in extra else H
    lengths = np.array([6, 1, 4, 3]) if given == "lengths" else None
    state: Any = None
    if given == "states":
        h = rng.uniform(-1, 1, (count, B, width)).astype(np.float32)
        state = (h, rng.uniform(-1, 1, (count, B, H)).astype(np.float32)) if kind.startswith("lstm") else h
    fed: Any = torch.from_numpy(x)
    if lengths is not None:
        fed = torch.nn.utils.rnn.pack_padded_sequence(
            fed, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
        )
    to_torch = tuple(map(torch.from_numpy, state)) if isinstance(state, tuple) else state
    with torch.no_grad():
        y, final = module(fed, torch.from_numpy(state) if isinstance(state, np.ndarray) else to_torch)
        if lengths is not None:
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=T)
    got, finals = run_stack(list(model.recurrent.values()), x, lengths, state)
    assert_close(got, y, context=f"seed {seed}")
    for kind_index, wanted in enumerate(final if isinstance(final, tuple) else (final,)):
        parts = [f[kind_index] if isinstance(final, tuple) else f for f in finals]
        assert_close(np.concatenate(parts), wanted, context=f"state {kind_index}, seed {seed}")


@pytest.mark.parametrize(
    ("kind", "bias"), [("LSTM", True), ("LSTM", False), ("GRU", True), ("GRU", False), ("RNN", True)]
)
def test_cells_are_layers_of_one_direction(kind: str, bias: bool) -> None:
    cell = randomise(getattr(torch.nn, f"{kind}Cell")(INPUT, H, bias=bias), 7)
    model = read(
        {f"decoder.{k}": v for k, v in cell.state_dict().items()},
        activation="tanh" if kind == "RNN" else None,
    )
    (layer,) = model.recurrent.values()
    assert layer.name == "decoder"
    x = np.random.default_rng(7).standard_normal((B, T, INPUT)).astype(np.float32)
    state = None
    with torch.no_grad():
        for t in range(T):
            state = cell(torch.from_numpy(x[:, t]), state)
    _, final = layer.run(x)
    for got, wanted in zip(
        final if kind == "LSTM" else (final,), state if kind == "LSTM" else (state,), strict=True
    ):
        assert_close(got[0], wanted)


def test_the_nonlinearity_of_an_rnn_has_to_be_said() -> None:
    state = torch.nn.RNN(INPUT, H).state_dict()
    with pytest.raises(AmbiguousSource, match="--activation tanh or --activation relu"):
        read(state)
    with pytest.raises(Usage, match="no nonlinearity 'sigmoid'"):
        read(state, activation="sigmoid")


@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {"recurrent_activation": "hard_sigmoid"}), ("GRU", {"reset_after": False})],
)
def test_an_option_that_contradicts_torch_is_refused(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(Usage):
        read(getattr(torch.nn, kind)(INPUT, H).state_dict(), **options)


def test_names() -> None:
    lstm, gru = torch.nn.LSTM(INPUT, H, 2), torch.nn.GRU(INPUT, H)
    assert list(read(lstm.state_dict()).layers) == ["lstm.0", "lstm.1"]
    assert list(read(gru.state_dict()).layers) == ["gru"]
    both = {f"module.a.{k}": v for k, v in lstm.state_dict().items()}
    both |= {f"module.b.rnn.{k}": v for k, v in gru.state_dict().items()}
    both |= {"module.head.weight": torch.zeros(2, 5), "module.head.bias": torch.zeros(2)}
    model = read(both)
    assert list(model.layers) == ["module.a.0", "module.a.1", "module.b.rnn"]
    assert model.metadata["other_tensors"] == {"module.head.weight": [2, 5], "module.head.bias": [2]}
    assert model.recurrent["module.a.1"].origin == tuple(
        f"module.a.{n}_l1" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )


def test_two_modules_in_a_list_are_no_stack() -> None:
    state = {f"rnns.{n}.{k}": v for n in (0, 1) for k, v in torch.nn.GRU(INPUT, H).state_dict().items()}
    model = read(state)
    assert list(model.layers) == ["rnns.0", "rnns.1"]
    assert all("stack" not in layer.notes for layer in model.recurrent.values())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"weight_hh_l0": None}, "missing"),
        ({"weight_hh_l0": (7, 5)}, "no whole number of gates"),
        ({"weight_hh_l0": (10, 5)}, "no whole number of gates"),
        ({"bias_hh_l0": None}, "some are there and some are missing"),
        ({"bias_hh_l0": (19,)}, "unexpected shape"),
        ({"weight_ih_l1": None}, "missing"),
        ({"weight_ih_l1": (20, 4)}, "does not take what the one before gives"),
    ],
)
def test_tensors_that_contradict_each_other_are_named(broken: dict[str, Any], message: str) -> None:
    state = dict(torch.nn.LSTM(INPUT, H, 2).state_dict())
    for name, shape in broken.items():
        if shape is None:
            if name == "weight_ih_l1":
                state = {k: v for k, v in state.items() if not k.endswith("_l0")}
            else:
                del state[name]
        else:
            state[name] = torch.zeros(shape)
    with pytest.raises(BadFile, match=message) as raised:
        read(state)
    assert raised.value.place is None or "l" in raised.value.place


CONTAINERS = {
    "torch_archive": (torch_archive, ".pt"),
    "safetensors": (safetensors, ".safetensors"),
    "npz": (npz, ".npz"),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_bits_survive_the_way_through_every_container(
    container: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    if container == "npz" and dtype is torch.bfloat16:
        return  # NumPy's files have no bfloat16
    module = randomise(torch.nn.LSTM(INPUT, H, 2, bidirectional=True, proj_size=P, dtype=dtype), 3)
    state = {f"m.rnn.{k}": v for k, v in module.state_dict().items()}
    state["m.rnn.weight_ih_l0"].data[0, :3] = torch.tensor([-0.0, float("nan"), float("inf")])
    source, target = tmp_path / f"a{CONTAINERS[container][1]}", tmp_path / f"b{CONTAINERS[container][1]}"
    made, suffix = CONTAINERS[container]
    if container == "torch_archive":
        torch.save(state, source)
    elif container == "safetensors":
        from safetensors.torch import save_file

        save_file(state, source)
    else:
        np.savez(source, **{k: v.numpy() for k, v in state.items()})
    archive = made.read(source)
    assert pytorch.reads(archive, container)
    model = pytorch.read(archive, container, ReadOptions())
    assert [str(layer.dtype) for layer in model.recurrent.values()] == [str(dtype).removeprefix("torch.")] * 2
    made.write(target, pytorch.write(model, container, WriteOptions()))
    back = made.read(target).tensors
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert back[name].read().tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes(), name
    if suffix == ".pt":
        loaded = torch.load(target, weights_only=True)
        again = torch.nn.LSTM(INPUT, H, 2, bidirectional=True, proj_size=P, dtype=dtype)
        again.load_state_dict({k.removeprefix("m.rnn."): v for k, v in loaded.items()}, strict=True)


def test_torchscript_says_the_nonlinearity(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.RNN(INPUT, H, nonlinearity="relu")

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.rnn(x)[0]

    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(Net().eval()), path)
    model = pytorch.read(torch_archive.read(path), "torch_archive", ReadOptions())
    (layer,) = model.recurrent.values()
    assert isinstance(layer.equations, RnnEquations)
    assert layer.equations.hidden_activation.kind == "relu"


def test_other_files_are_not_taken_for_torch() -> None:
    for names in (["rnn.Wx", "rnn.Wh"], ["lstm/kernel"], ["ih"], []):
        assert not pytorch.reads(Archive({name: Lazy.of(np.zeros((4, 4))) for name in names}), "safetensors")


def test_weights_alone_come_back_under_their_names_after_lowering() -> None:
    module = randomise(torch.nn.GRU(INPUT, H, 2, bidirectional=True), 5)
    model = read(module.state_dict())
    lowered, rewrites = lowering.lower(model, mapping.load("pytorch"))
    assert rewrites == ()
    archive = pytorch.write(lowered, "safetensors", WriteOptions())
    assert list(archive.tensors) == list(module.state_dict())
    assert not archive.companions
    buffer = io.BytesIO()
    torch.save({k: pytorch_live.tensor_of(v.read()) for k, v in archive.tensors.items()}, buffer)
    assert buffer.tell() > 0
