"""torch's files: what torch saves is read bit for bit without it, what is written torch loads, the rest is refused."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from lstmconvert.containers import Archive, torch_archive, zip_reader
from lstmconvert.errors import BadFile, ConversionError, NotRepresentable, UnsupportedSource
from lstmconvert.tensors import Lazy, same_bits

FORMATS = ["zip", "legacy"]


def saved(path: Path, value: Any, form: str = "zip", **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path, _use_new_zipfile_serialization=form == "zip", **options)
    return path


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same bits in NumPy, where torch itself has no conversion for some dtypes."""
    tensor = tensor.detach().contiguous()
    names = {torch.bfloat16: ml_dtypes.bfloat16} | {
        getattr(torch, name): getattr(ml_dtypes, name)
        for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    }
    if tensor.dtype in names:
        width = tensor.element_size()
        bits = tensor.view({1: torch.uint8, 2: torch.int16}[width]).numpy()
        return bits.view(names[tensor.dtype])
    return tensor.numpy()


def check(archive: Archive, expected: dict[str, torch.Tensor]) -> None:
    assert list(archive.tensors) == list(expected)
    for name, tensor in expected.items():
        assert same_bits(archive.tensors[name].read(), as_numpy(tensor)), name


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(7, 3)
            self.rnn = torch.nn.LSTM(3, 5, num_layers=2, bidirectional=True, proj_size=2)
            self.norm = torch.nn.BatchNorm1d(4)
            self.head = torch.nn.Linear(4, 7)

    return Network()


@pytest.mark.parametrize("form", FORMATS)
def test_a_state_dict(tmp_path: Path, form: str) -> None:
    state = network().state_dict()
    path = saved(tmp_path / "weights", state, form)
    assert torch_archive.probe(path)
    archive = torch_archive.read(path)
    check(archive, dict(state))
    assert archive.metadata["form"] == form
    assert archive.metadata["state_dict"] == ""
    assert archive.metadata["ignored"] == {}
    assert archive.metadata["module_versions"]["norm"] == 2


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", FORMATS)
def test_every_pickle_protocol(tmp_path: Path, form: str, protocol: int) -> None:
    state = network().state_dict()
    path = saved(tmp_path / "weights.pt", state, form, pickle_protocol=protocol)
    assert torch_archive.probe(path)
    check(torch_archive.read(path), dict(state))


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


def bits(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of random bits."""
    if dtype == torch.bool:
        return torch.rand(shape) > 0.5
    width = torch.empty(0, dtype=dtype).element_size()
    data = torch.randint(0, 256, (*shape[:-1], shape[-1] * width), dtype=torch.uint8)
    return data.view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
def test_every_dtype_bit_for_bit(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    state = {"a": bits(dtype, (3, 5)), "scalar": bits(dtype, (1,))[0], "none": torch.empty(0, 4, dtype=dtype)}
    check(torch_archive.read(saved(tmp_path / "weights.pt", state, form)), state)


@pytest.mark.parametrize("form", FORMATS)
def test_views_of_one_storage(tmp_path: Path, form: str) -> None:
    torch.manual_seed(1)
    flat = torch.randn(120)
    whole = flat[10:70].view(6, 10)
    state = {
        "whole": whole,
        "transposed": whole.t(),
        "columns": whole[:, 2:7:2],
        "row": whole[3],
        "one": whole[3, 4],
        "again": whole,
        "expanded": whole[:1].expand(4, 10),
        "permuted": flat[:60].view(3, 4, 5).permute(2, 0, 1),
        "nothing": whole[:, :0],
    }
    path = saved(tmp_path / "weights.pt", state, form)
    archive = torch_archive.read(path)
    check(archive, state)
    assert archive.metadata["shared"] == (("whole", "again"),)


@pytest.mark.parametrize("form", FORMATS)
def test_parameters_and_tied_weights(tmp_path: Path, form: str) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    net[1].weight = net[0].weight
    state = dict(net.named_parameters(remove_duplicate=False))
    tagged = torch.nn.Parameter(torch.randn(3))
    tagged.note = "an attribute"  # type: ignore[attr-defined]
    state["tagged"] = tagged
    archive = torch_archive.read(saved(tmp_path / "weights.pt", state, form))
    check(archive, state)
    assert archive.metadata["shared"] == (("0.weight", "1.weight"),)


class LabelEncoder:
    """Stands for a class that is not installed where the file is read."""

    def __init__(self) -> None:
        self.classes_ = np.array(["a", "b"])
        self.tensor = torch.ones(3)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model_state", "model", "net", "anything"])
def test_a_checkpoint_around_the_state_dict(tmp_path: Path, form: str, key: str) -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    state = net.state_dict()
    checkpoint = {
        "epoch": 12,
        "optimizer": optimizer.state_dict(),
        key: state,
        "vocabulary": {"word": 1, "other": 2},
        "labels": LabelEncoder(),
        "args": argparse.Namespace(hidden=5),
        "rng_state": {"torch": torch.get_rng_state()},
        "loss": np.float64(0.5),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
    }
    archive = torch_archive.read(saved(tmp_path / "checkpoint", checkpoint, form))
    check(archive, dict(state))
    assert archive.metadata["state_dict"] == key
    assert list(archive.metadata["ignored"]) == [name for name in checkpoint if name != key]
    assert archive.metadata["ignored"]["epoch"] == "12"
    assert "LabelEncoder (not loaded)" in archive.metadata["ignored"]["labels"]


def test_the_named_state_dict_is_preferred_to_its_neighbours(tmp_path: Path) -> None:
    state, average = network(0).state_dict(), network(1).state_dict()
    checkpoint = {"ema": average, "mean": torch.ones(2), "state_dict": state}
    archive = torch_archive.read(saved(tmp_path / "c.pt", {"checkpoint": checkpoint}))
    check(archive, dict(state))
    assert archive.metadata["state_dict"] == "checkpoint.state_dict"
    assert set(archive.metadata["ignored"]) == {"checkpoint.ema", "checkpoint.mean"}


def test_several_models_keep_their_names(tmp_path: Path) -> None:
    encoder, decoder = torch.nn.GRU(3, 4).state_dict(), torch.nn.GRU(4, 2).state_dict()
    checkpoint = {"encoder": encoder, "decoder": decoder, "scale": torch.tensor(2.0), "epoch": 1}
    archive = torch_archive.read(saved(tmp_path / "c.pt", checkpoint))
    check(
        archive,
        {f"encoder.{k}": v for k, v in encoder.items()}
        | {f"decoder.{k}": v for k, v in decoder.items()}
        | {"scale": checkpoint["scale"]},
    )
    assert archive.metadata["ignored"] == {"epoch": "1"}


def test_names_of_a_parallel_module_are_kept(tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in network().state_dict().items()}
    check(torch_archive.read(saved(tmp_path / "w.pth", {"epoch": 1, "state_dict": state})), state)


def test_arrays_of_numpy_in_a_state_dict(tmp_path: Path) -> None:
    state = {"w": np.arange(6, dtype=">f4").reshape(2, 3), "v": torch.ones(2)}
    archive = torch_archive.read(saved(tmp_path / "w.pt", state))
    assert same_bits(archive.tensors["w"].read(), np.arange(6, dtype=np.float32).reshape(2, 3))


def test_a_state_dict_in_a_list_with_an_optimizer(tmp_path: Path) -> None:
    net = torch.nn.LSTM(2, 3)
    pair = (net.state_dict(), torch.optim.SGD(net.parameters()).state_dict())
    check(torch_archive.read(saved(tmp_path / "w.pt", pair)), dict(net.state_dict()))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("device", ["cuda:0", "cuda:3", "mps:0", "xla:1"])
def test_storages_of_other_devices(tmp_path: Path, form: str, device: str) -> None:
    state = torch.nn.LSTM(2, 3).state_dict()
    path = saved(tmp_path / "w.pt", state, form)
    short, long = b"X\x03\x00\x00\x00cpu", b"X" + struct.pack("<I", len(device)) + device.encode()
    if form == "legacy":
        assert short in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(short, long))
    else:
        rewritten(path, {"data.pkl": lambda data: data.replace(short, long)})
    check(torch_archive.read(path), dict(state))


def rewritten(
    path: Path,
    changes: dict[str, Callable[[bytes], bytes | None]],
    method: int = zipfile.ZIP_STORED,
    root: str | None = None,
) -> Path:
    """The same archive with some members changed; ``None`` leaves one out."""
    with zipfile.ZipFile(path) as source:
        contents = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", method) as target:
        for name, data in contents.items():
            inner = name.partition("/")[2]
            new = changes.get(inner, lambda data: data)(data)
            if new is not None:
                target.writestr(name if root is None else root + inner, new)
    return path


@pytest.mark.parametrize("root", ["", "a/", "weights of ü/", "a/b/c/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_packed_again(tmp_path: Path, root: str, method: int) -> None:
    torch.manual_seed(0)
    state = {"w": torch.randn(30, 20), "t": torch.randn(8, 9).t()}
    path = rewritten(saved(tmp_path / "w.pt", state), {}, method, root)
    check(torch_archive.read(path), state)


def test_an_archive_without_checksums(tmp_path: Path) -> None:
    state = torch.nn.LSTM(2, 3).state_dict()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "w.pt", state)
    finally:
        torch.serialization.set_crc32_options(True)
    check(torch_archive.read(path), dict(state))


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path: Path) -> None:
    state = torch.nn.LSTM(2, 3).state_dict()
    path = saved(tmp_path / "w.pt", state)
    data = bytearray(path.read_bytes())
    data[data.index(as_numpy(state["weight_ih_l0"]).tobytes()) + 5] ^= 1
    path.write_bytes(data)
    archive = torch_archive.read(path)
    with pytest.raises(BadFile, match="checksum"):
        archive.tensors["weight_ih_l0"].read()


def test_a_big_endian_archive(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"f": torch.randn(3, 4), "d": torch.randn(5, dtype=torch.float64), "i": torch.arange(7)}
    path = saved(tmp_path / "w.pt", state)
    widths = {"data/0": 4, "data/1": 8, "data/2": 8}

    def swap(width: int) -> Callable[[bytes], bytes]:
        return lambda data: np.frombuffer(data, f"u{width}").byteswap().tobytes()

    rewritten(path, {name: swap(width) for name, width in widths.items()} | {"byteorder": lambda _: b"big"})
    check({name: torch.load(path)[name] for name in state} and torch_archive.read(path), state)
    rewritten(path, {"byteorder": lambda _: b"middle"})
    with pytest.raises(BadFile, match="byte order"):
        torch_archive.read(path)


# TorchScript


def script(net: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net).save(str(path))
    return path


class Scripted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.RNN(3, 4, nonlinearity="relu", batch_first=True)
        self.cell = torch.nn.LSTMCell(4, 2)
        self.stack = torch.nn.ModuleList([torch.nn.GRU(2, 2), torch.nn.GRU(2, 2)])
        self.register_buffer("scale", torch.ones(2))
        self.factor = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.first(x)
        h, _ = self.cell(y[:, 0])
        z = h.unsqueeze(0)
        for layer in self.stack:
            z, _ = layer(z)
        return z * self.scale * self.factor


def test_torchscript_by_path_of_attributes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Scripted()
    path = script(net, tmp_path / "script")
    assert torch_archive.probe(path)
    archive = torch_archive.read(path)
    state = net.state_dict()
    assert set(archive.tensors) == set(state)
    for name, tensor in state.items():
        assert same_bits(archive.tensors[name].read(), as_numpy(tensor))
    modules = archive.metadata["modules"]
    assert modules["first"].name == "torch.nn.modules.rnn.RNN"
    assert modules["first"].settings["mode"] == "RNN_RELU"
    assert modules["first"].settings["batch_first"] is True
    assert modules["first"].settings["hidden_size"] == 4
    assert modules["first"].parameters[0] == "weight_ih_l0"
    assert modules["stack.1"].name == "torch.nn.modules.rnn.GRU"
    assert modules["cell"].name == "torch.nn.modules.rnn.LSTMCell"
    assert modules[""].settings["factor"] == 3
    assert modules[""].buffers == ("scale",)


def test_torchscript_of_a_trace(tmp_path: Path) -> None:
    net = torch.nn.LSTM(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, torch.randn(5, 1, 3)).save(str(tmp_path / "t.pt"))
    archive = torch_archive.read(tmp_path / "t.pt")
    for name, tensor in net.state_dict().items():
        assert same_bits(archive.tensors[name].read(), as_numpy(tensor))


def test_a_frozen_torchscript_module_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.freeze(torch.jit.script(torch.nn.Linear(3, 4).eval())).save(str(tmp_path / "f.pt"))
    with pytest.raises(UnsupportedSource, match="frozen"):
        torch_archive.read(tmp_path / "f.pt")


def test_an_exported_program_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),)), path)
    assert torch_archive.probe(path)
    with pytest.raises(UnsupportedSource, match=r"torch\.export"):
        torch_archive.read(path)


# What is refused


class Home(torch.nn.Module):
    """A user's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(2, 3)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("make", [lambda: torch.nn.LSTM(2, 3), Home, lambda: torch.nn.Sequential(Home())])
def test_a_whole_module_is_refused_with_what_to_do(tmp_path: Path, form: str, make: Any) -> None:
    net = make()
    for value in (net, {"epoch": 3, "model": net}):
        path = saved(tmp_path / "w.pt", value, form)
        with pytest.raises(UnsupportedSource) as caught:
            torch_archive.read(path)
        assert type(net).__name__ in str(caught.value)
        assert "pickled module" in str(caught.value)
        assert "model.state_dict()" in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [5, "text", {}, {"epoch": 1}, [1, 2], None, {1: torch.ones(2)}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UnsupportedSource):
        torch_archive.read(saved(tmp_path / "w.pt", value))


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    plain = torch.randn(3, 3)
    others = {
        "sparse": plain.to_sparse(),
        "csr": plain.to_sparse_csr(),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    }
    for name, tensor in others.items():
        path = saved(tmp_path / "w.pt", {"lstm.weight": plain, f"lstm.{name}": tensor})
        with pytest.raises(UnsupportedSource) as caught:
            torch_archive.read(path)
        assert name == "conjugate" or f"lstm.{name}" in str(caught.value), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32])
def test_quantised_tensors_have_the_bits_that_torch_gives_them(
    tmp_path: Path, form: str, dtype: torch.dtype
) -> None:
    plain = torch.randn(5, 3, generator=torch.Generator().manual_seed(4))
    scales, zeros = torch.rand(3, dtype=torch.float64) * 0.03 + 0.01, torch.tensor([0, 3, 7])
    given = {
        "whole": torch.quantize_per_tensor(plain, 0.0137, 5, dtype),
        "rows": torch.quantize_per_channel(plain.T.contiguous(), scales, zeros, 0, dtype),
        "columns": torch.quantize_per_channel(plain, scales, zeros, 1, dtype),
    }
    archive = torch_archive.read(saved(tmp_path / "w.pt", given, form))
    for name, tensor in given.items():
        assert archive.tensors[name].dtype == np.float32
        assert same_bits(archive.tensors[name].read(), tensor.dequantize().numpy()), name
    granularity = {name: said for name, (_, said) in archive.metadata["quantised"].items()}
    assert granularity == {
        "whole": "one scale for the tensor",
        "rows": "one scale a row",
        "columns": "one scale for each index of axis 1",
    }


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("place", ["top", "beside", "inside", "nested", "as a storage", "as a hook"])
def test_code_in_a_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.nn.LSTM(2, 3).state_dict()
    if place in ("as a storage", "as a hook"):
        if form == "legacy":
            return
        evil = pickle.dumps(Evil(), 2)[2:-1]
        path = saved(tmp_path / "w.pt", state)
        original = b"cpu" if place == "as a storage" else b"ccollections\nOrderedDict\nq"

        def change(data: bytes) -> bytes:
            at = (
                data.index(b"X\x03\x00\x00\x00cpu")
                if place == "as a storage"
                else data.index(b"\x89h\x00)R") + 1
            )
            length = 8 if place == "as a storage" else 4
            assert original
            return data[:at] + evil + data[at + length :]

        rewritten(path, {"data.pkl": change})
    else:
        value: Any = {
            "top": Evil(),
            "beside": {"state_dict": state, "args": Evil()},
            "inside": {**state, "evil": Evil()},
            "nested": {"state_dict": state, "args": argparse.Namespace(a=[Evil()])},
        }[place]
        path = saved(tmp_path / "w.pt", value, form)
    with pytest.raises(UnsupportedSource, match="system"):
        torch_archive.read(path)
    assert [each.name for each in tmp_path.iterdir()] == ["w.pt"]


def hand_made(path: Path, pickled: bytes, storages: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("archive/data.pkl", pickled)
        target.writestr("archive/version", "3\n")
        for key, data in storages.items():
            target.writestr(f"archive/data/{key}", data)
    return path


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor_of(
    length: int,
    offset: int,
    shape: list[int],
    strides: list[int],
    key: str = "0",
    kind: str = "torch\nFloatStorage",
) -> bytes:
    """A pickle of ``{"w": tensor}``."""
    storage = (
        b"(" + text("storage") + f"c{kind}\n".encode() + text(key) + text("cpu") + number(length) + b"tQ"
    )
    numbers = [b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides)]
    arguments = b"(" + storage + number(offset) + numbers[0] + numbers[1] + b"\x89}t"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def test_the_hand_made_file_itself_is_read(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32)
    path = hand_made(tmp_path / "w.pt", tensor_of(12, 1, [3, 3], [3, 1]), {"0": values.tobytes()})
    assert same_bits(torch_archive.read(path).tensors["w"].read(), values[1:10].reshape(3, 3))
    assert torch.load(path)["w"].tolist() == values[1:10].reshape(3, 3).tolist()


@pytest.mark.parametrize(
    ("length", "offset", "shape", "strides"),
    [
        (12, 0, [13], [1]),
        (12, 1, [12], [1]),
        (12, 12, [1], [1]),
        (12, 0, [4, 4], [3, 1]),
        (12, 0, [2, 2], [11, 1]),
        (12, -1, [3], [1]),
        (12, 0, [-3], [1]),
        (12, 2, [3], [-1]),
        (12, 0, [3], [1, 1]),
        (12, 0, [1 << 40, 1 << 40], [0, 0]),
        (12, 0, [1 << 63], [0]),
        (12, 0, [1 << 30], [0]),
        (12, 0, [3] * 100, [0] * 100),
        (13, 0, [3], [1]),
        (11, 0, [3], [1]),
        (-12, 0, [3], [1]),
        (1 << 62, 0, [1 << 61], [1]),
    ],
)
def test_a_tensor_that_leaves_its_storage_is_refused(
    tmp_path: Path, length: int, offset: int, shape: list[int], strides: list[int]
) -> None:
    path = hand_made(tmp_path / "w.pt", tensor_of(length, offset, shape, strides), {"0": bytes(48)})
    with pytest.raises(BadFile):
        torch_archive.read(path)


def test_a_tensor_does_not_reach_into_the_next_storage(tmp_path: Path) -> None:
    """In the format before zip the storages follow one another in one file."""
    path = saved(tmp_path / "w.pt", {"a": torch.zeros(6), "b": torch.ones(6)}, "legacy")
    shape = b"K\x06\x85"
    assert path.read_bytes().count(shape) >= 1
    path.write_bytes(path.read_bytes().replace(shape, b"K\x07\x85", 1))
    with pytest.raises(BadFile, match="beyond its storage"):
        torch_archive.read(path)


def test_an_expanded_tensor_that_grows_is_refused(tmp_path: Path) -> None:
    size = 1 << 19
    pickled = tensor_of(size, 0, [50, size], [0, 1])
    path = hand_made(tmp_path / "w.pt", pickled, {"0": bytes(4 * size)})
    with pytest.raises(BadFile, match="the tensor is far larger"):
        torch_archive.read(path)


def test_an_optimizer_under_another_name_is_not_the_model(tmp_path: Path) -> None:
    state = torch.nn.LSTM(2, 3).state_dict()
    solver = {"param_groups": [], "momentum": {"weight": torch.ones(3)}}
    archive = torch_archive.read(saved(tmp_path / "w.pt", {"recogniser": state, "solver": solver}))
    check(archive, dict(state))
    assert archive.metadata["state_dict"] == "recogniser"


def test_a_storage_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for key in ("1", "../0", "/etc/passwd", ""):
        path = hand_made(tmp_path / "w.pt", tensor_of(12, 0, [3], [1], key), {"0": bytes(48)})
        with pytest.raises(BadFile, match="lacks a storage"):
            torch_archive.read(path)
    path = hand_made(tmp_path / "w.pt", tensor_of(12, 0, [3], [1], kind="evil\nStorage"), {"0": bytes(48)})
    with pytest.raises(UnsupportedSource, match=r"evil\.Storage"):
        torch_archive.read(path)


def test_many_names_for_one_storage_are_refused_when_they_grow(tmp_path: Path) -> None:
    size = 1 << 20
    one = tensor_of(size, 0, [size], [1])
    body = one[one.index(b"ctorch._utils") : -2]
    names = b"".join(text(f"w{n}") + b"h\x00s" for n in range(200))
    pickled = b"\x80\x02}" + text("w") + body + b"q\x00s" + names + b"."
    path = hand_made(tmp_path / "w.pt", pickled, {"0": bytes(4 * size)})
    with pytest.raises(BadFile, match="far larger than the file"):
        torch_archive.read(path)


@pytest.mark.parametrize(
    "pickled",
    [
        b"}q\x00" + text("model") + b"h\x00s.",
        b"}q\x00" + text("state_dict") + b"h\x00s" + text("a") + b"h\x00s.",
        b"}q\x00" + b"".join(text(f"k{n}") + b"h\x00s" for n in range(400)) + b".",
    ],
)
def test_dictionaries_in_themselves_do_not_stall(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(UnsupportedSource, match="no state_dict"):
        torch_archive.read(hand_made(tmp_path / "w.pt", pickled, {}))
    one = tensor_of(3, 0, [3], [1])
    tensor = text("w") + one[one.index(b"ctorch._utils") : -2] + b"s"
    with (
        pytest.raises(BadFile, match="without end")
        if pickled.count(b"h\x00s") > 2
        else warnings.catch_warnings()
    ):
        torch_archive.read(hand_made(tmp_path / "w.pt", pickled[:-1] + tensor + b".", {"0": bytes(12)}))


def test_other_zip_archives_are_not_torch_files(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("a.txt", "text")
    assert not torch_archive.probe(path)
    with pytest.raises(BadFile, match="not one of torch's"):
        torch_archive.read(path)


# Damage


@pytest.mark.parametrize("form", [*FORMATS, "script"])
def test_truncations_are_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "w.pt"
    if form == "script":
        script(torch.nn.GRU(2, 3), path)
    else:
        saved(path, {"epoch": 1, "state_dict": torch.nn.GRU(2, 3).state_dict()}, form)
    data = path.read_bytes()
    points = {*range(0, len(data), 97), *range(len(data) - 40, len(data)), *range(30)}
    for length in sorted(points):
        path.write_bytes(data[:length])
        with pytest.raises(BadFile):
            torch_archive.read(path)


# Writing


WRITABLE = [
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.int64,
    np.int32,
    np.int16,
    np.int8,
    np.uint8,
]
WRITABLE += [np.bool_, np.complex64, np.complex128, np.uint16, np.uint32, np.uint64]
WRITABLE += [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


def test_what_is_written_torch_loads(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    arrays = {
        "layer.ü 'x'": rng.normal(size=(3, 4)).astype(np.float32),
        "f": np.asfortranarray(rng.normal(size=(5, 6))),
    }
    arrays |= {f"{np.dtype(d).name}": rng.integers(0, 2, (2, 3)).astype(d) for d in WRITABLE}
    arrays |= {"scalar": np.array(1.5, np.float32), "none": np.zeros((0, 3), np.float32)}
    arrays["nan"] = np.array([0x7FC00001, 0x80000000, 0x7F800001], np.uint32).view(np.float32)
    path = tmp_path / "w.pt"
    torch_archive.write(path, Archive({k: Lazy.of(v) for k, v in arrays.items()}, {"lstmconvert": "note ü"}))
    loaded = torch.load(path, weights_only=True)
    assert type(loaded) is collections.OrderedDict
    assert list(loaded) == list(arrays)
    for name, values in arrays.items():
        assert loaded[name].is_contiguous()
        assert same_bits(as_numpy(loaded[name]), np.array(values, order="C")), name
    assert same_bits(as_numpy(torch.load(path, mmap=True)["f"]), np.array(arrays["f"], order="C"))
    for name, member in zip_reader.members(path).items():
        assert not member.compressed
        assert member.offset % 64 == 0 or not name.startswith("archive/data/")
    archive = torch_archive.read(path)
    assert archive.metadata["lstmconvert"] == "note ü"
    assert list(archive.tensors) == list(arrays)
    for name, values in arrays.items():
        assert same_bits(archive.tensors[name].read(), np.array(values, order="C"))


def test_many_tensors_are_written_and_read(tmp_path: Path) -> None:
    arrays = {f"layer.{n}.weight": np.full((2, 2), n, np.float32) for n in range(3000)}
    path = tmp_path / "w.pt"
    torch_archive.write(path, Archive({k: Lazy.of(v) for k, v in arrays.items()}))
    loaded = torch.load(path)
    archive = torch_archive.read(path)
    for name, values in arrays.items():
        assert same_bits(loaded[name].numpy(), values)
        assert same_bits(archive.tensors[name].read(), values)


def test_a_dtype_that_torch_lacks_is_refused(tmp_path: Path) -> None:
    lazy = Lazy.of(np.zeros(3, ml_dtypes.float8_e3m4))
    with pytest.raises(NotRepresentable, match="float8_e3m4"):
        torch_archive.write(tmp_path / "w.pt", Archive({"w": lazy}))


def test_only_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    held: list[int] = []

    def load(index: int) -> np.ndarray:
        import weakref

        array = np.full(1000, index, np.float32)
        held.append(index)
        weakref.finalize(array, held.remove, index)
        assert len(held) <= 2
        return array

    tensors = {f"w{n}": Lazy((1000,), np.float32, lambda n=n: load(n)) for n in range(20)}
    torch_archive.write(tmp_path / "w.pt", Archive(tensors))
    assert torch.load(tmp_path / "w.pt")["w7"][0] == 7


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    import subprocess

    path = saved(tmp_path / "w.pt", {"model": torch.nn.LSTM(2, 3).state_dict(), "labels": LabelEncoder()})
    code = (
        "import sys; from pathlib import Path; from lstmconvert.containers import torch_archive;"
        f"a = torch_archive.read(Path({str(path)!r})); [t.read() for t in a.tensors.values()];"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_are_always_ours(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    for data in (
        b"",
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        b"\x80",
    ):
        path.write_bytes(data)
        with pytest.raises(ConversionError):
            torch_archive.read(path)
    stream = io.BytesIO()
    torch.save({}, stream)
    path.write_bytes(stream.getvalue())
    with pytest.raises(UnsupportedSource):
        torch_archive.read(path)
