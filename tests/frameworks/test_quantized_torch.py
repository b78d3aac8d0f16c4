"""Modules that torch quantised dynamically: their packed weights are dequantised, and reported as such."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lstmconvert as lc

KINDS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
FORMS = {"two layers": (2, False), "two directions": (1, True), "two of both": (2, True), "one": (1, False)}


class Network(torch.nn.Module):
    """A recurrent layer and its head."""

    def __init__(self, kind: Any, layers: int = 1, bidirectional: bool = False, inputs: int = 3) -> None:
        super().__init__()
        self.rnn = kind(inputs, 4, layers, batch_first=True, bidirectional=bidirectional)
        self.head = torch.nn.Linear(8 if bidirectional else 4, 2)
        with torch.no_grad():
            for name, tensor in self.rnn.named_parameters():
                if "weight" in name:  # another range for each gate, so that exchanged gates show
                    for number, block in enumerate(tensor.split(4)):
                        block.mul_(0.6 + 0.4 * number)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


def quantized(network: Any, *kinds: Any, dtype: torch.dtype = torch.qint8) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(network.eval(), set(kinds), dtype=dtype)


def run(network: Any, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = network(torch.from_numpy(x)).numpy()
    return found


def save(network: Any, path: Path, form: str, x: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "torchscript":
            torch.jit.save(torch.jit.trace(network, torch.from_numpy(x)), path)
        else:
            torch.save(network.state_dict(), path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize("form", ["zip", "legacy", "torchscript"])
@pytest.mark.parametrize("shape", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_dequantised_and_reported(
    tmp_path: Path, kind: str, shape: str, form: str
) -> None:
    torch.manual_seed(7)
    layers, bidirectional = FORMS[shape]
    network = Network(KINDS[kind], layers, bidirectional)
    packed = quantized(network, KINDS[kind])
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    save(packed, path := tmp_path / "model.pt", form, x)
    result = lc.convert(path, target := tmp_path / "out.onnx")
    told = [
        step
        for step in result.rewrites
        if "was dequantised from int8, one scale for the tensor" in step.description
    ]
    assert len(told) == layers * (2 if bidirectional else 1) * 2
    assert not any(step.exact for step in told)
    # torch says what it packed; the float module with the dequantised numbers is the judge.
    judge = Network(KINDS[kind], layers, bidirectional)
    with torch.no_grad():
        for name, weight in packed.rnn.get_weight().items():
            getattr(judge.rnn, name).copy_(weight.dequantize())
        for name, bias in packed.rnn.get_bias().items():
            getattr(judge.rnn, name).copy_(bias)
    import onnxruntime

    session = onnxruntime.InferenceSession(target)
    found = session.run(None, {session.get_inputs()[0].name: x})[0]
    with torch.no_grad():
        expected = judge.rnn(torch.from_numpy(x))[0].numpy()
        rounded = packed.rnn(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # The runtime itself rounds its inputs to 8 bits as well.
    assert np.max(np.abs(found - rounded)) <= 0.03


def test_weights_of_half_precision_are_read(tmp_path: Path) -> None:
    torch.manual_seed(3)
    packed = quantized(Network(torch.nn.LSTM, 2, True), torch.nn.LSTM, torch.nn.Linear, dtype=torch.float16)
    x = np.random.default_rng(2).normal(size=(2, 5, 3)).astype(np.float32)
    save(packed, path := tmp_path / "model.pt", "zip", x)
    model = lc.read(path)
    y = x.astype(np.float64)
    for layer in model.recurrent.values():
        y = layer.run(y)[0]
    with torch.no_grad():
        expected = packed.rnn(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert {"head.weight", "head.bias"} <= set(model.metadata["other_tensors"])


def test_cells_are_read(tmp_path: Path) -> None:
    torch.manual_seed(4)
    packed = quantized(torch.nn.Sequential(torch.nn.LSTMCell(3, 4)), torch.nn.LSTMCell)
    save(packed, path := tmp_path / "model.pt", "zip", np.zeros((1, 3), np.float32))
    (layer,) = lc.read(path).recurrent.values()
    x = np.random.default_rng(5).normal(size=(2, 1, 3)).astype(np.float32)
    with torch.no_grad():
        expected = packed[0](torch.from_numpy(x[:, 0]))[0].numpy()
    assert np.max(np.abs(layer.run(x)[0][:, 0] - expected)) <= 0.02


def test_a_head_is_put_on_by_a_description(tmp_path: Path) -> None:
    torch.manual_seed(6)
    network = Network(torch.nn.LSTM)
    packed = quantized(network, torch.nn.LSTM, torch.nn.Linear)
    x = np.random.default_rng(3).normal(size=(2, 5, 3)).astype(np.float32)
    save(packed, path := tmp_path / "model.pt", "zip", x)
    (tmp_path / "arch.toml").write_text(
        '[[step]]\nmodule = "rnn"\nkind = "lstm"\n[[step]]\nmodule = "head"\nkind = "linear"\n'
    )
    lc.convert(path, target := tmp_path / "out.onnx", arch=tmp_path / "arch.toml")
    import onnxruntime

    session = onnxruntime.InferenceSession(target)
    found = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert np.max(np.abs(found - run(packed, x))) <= 0.03


def test_sizes_that_fit_layers_and_directions_are_refused(tmp_path: Path) -> None:
    packed = quantized(Network(torch.nn.LSTM, 2, inputs=4), torch.nn.LSTM)
    x = np.zeros((1, 2, 4), np.float32)
    save(packed, path := tmp_path / "model.pt", "zip", x)
    with pytest.raises(lc.UnsupportedSource, match="two layers as well as two directions") as error:
        lc.read(path)
    assert "TorchScript" in str(error.value)
    save(packed, path, "torchscript", x)
    assert [len(layer.directions) for layer in lc.read(path).recurrent.values()] == [1, 1]


def test_a_recurrent_layer_beside_a_quantized_linear_is_read(tmp_path: Path) -> None:
    network = Network(torch.nn.LSTM).eval()
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network.rnn(torch.from_numpy(x))[0].numpy()
    path = tmp_path / "model.pt"
    torch.save(quantized(network, torch.nn.Linear).state_dict(), path)
    (layer,) = lc.read(path).recurrent.values()
    np.testing.assert_allclose(layer.run(x)[0], expected, atol=2e-6)
