"""Modules that torch quantised dynamically: packed weights are refused by name, what stays float is read."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lstmconvert as lc


class Network(torch.nn.Module):
    """A recurrent layer and its head."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True)
        self.head = torch.nn.Linear(4, 2)


def quantized(network: Any, *kinds: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(network.eval(), set(kinds), dtype=torch.qint8)


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU])
def test_packed_weights_are_refused_with_the_way_out(tmp_path: Path, kind: Any) -> None:
    network = quantized(Network(kind), kind)
    path = tmp_path / "model.pt"
    torch.save(network.state_dict(), path)
    out = tmp_path / "out.onnx"
    if kind is torch.nn.GRU and "rnn.weight_ih_l0" in network.state_dict():
        lc.convert(path, out, layer="rnn")  # this release of torch leaves a GRU as it is
        return
    with pytest.raises(lc.UnsupportedSource, match="quantised") as error:
        lc.convert(path, out)
    assert "before quantisation" in str(error.value)
    assert not out.exists()


def test_a_recurrent_layer_beside_a_quantized_linear_is_read(tmp_path: Path) -> None:
    network = Network(torch.nn.LSTM).eval()
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network.rnn(torch.from_numpy(x))[0].numpy()
    path = tmp_path / "model.pt"
    torch.save(quantized(network, torch.nn.Linear).state_dict(), path)
    (layer,) = lc.read(path).recurrent.values()
    np.testing.assert_allclose(layer.run(x)[0], expected, atol=2e-6)
