"""MLX's two kinds of files, judged by mlx."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn
import numpy as np
import pytest

import lstmconvert as lc


class Network(mlx.nn.Module):
    """Layers as users name them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = mlx.nn.Embedding(7, 3)
        self.layers = [mlx.nn.LSTM(3, 4), mlx.nn.GRU(4, 5)]
        self.head = mlx.nn.Linear(5, 2)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_both_kinds_of_files_there_and_back(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(8)
    with mx.stream(mx.cpu):
        network = Network()
        shapes = [(name, tuple(p.shape)) for name, p in mlx.utils.tree_flatten(network.parameters())]
        network.load_weights([(n, mx.array(rng.normal(0, 0.7, s).astype(np.float32))) for n, s in shapes])
        path = tmp_path / f"a{suffix}"
        network.save_weights(str(path))
        x = rng.normal(size=(2, 5, 3)).astype(np.float32)
        expected = network.layers[1](network.layers[0](mx.array(x))[0])
        model = lc.read(path)
        value = x
        for name in ("layers.0", "layers.1"):
            value = model.recurrent[name].run(value)[0]
        np.testing.assert_allclose(value, np.array(expected), atol=5e-6)
        assert set(model.metadata["other_tensors"]) == {"embedding.weight", "head.weight", "head.bias"}
        lc.convert(path, tmp_path / "gru.onnx", layer="layers.1")
        lc.convert(tmp_path / "gru.onnx", tmp_path / f"gru{suffix}", to="mlx")
        written = mx.load(str(tmp_path / f"gru{suffix}"))
        held = dict(mlx.utils.tree_flatten(network.layers[1].parameters()))
        assert held.keys() <= {name.removeprefix("layers.1.") for name in written}
        for own, array in held.items():
            assert np.array_equal(np.array(written.get(f"layers.1.{own}", written.get(own))), np.array(array))
