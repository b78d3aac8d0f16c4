"""Parameters that PaddlePaddle saves and loads; to be called in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def _network() -> Any:
    import paddle

    class Network(paddle.nn.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rnn = paddle.nn.LSTM(3, 4, direction="bidirect")
            self.fc = paddle.nn.Linear(8, 2)

    return Network()


def save(path: Path) -> tuple[Any, Any, list[str]]:
    """Save a network with random weights; an input, what its LSTM makes of it, and the names in the file."""
    import paddle

    rng = np.random.default_rng(5)
    network = _network()
    for parameter in network.parameters():
        parameter.set_value(rng.normal(0, 0.7, parameter.shape).astype(np.float32))
    network.eval()
    paddle.save(network.state_dict(), str(path))
    x = rng.normal(size=(2, 5, 3)).astype(np.float32)
    return x, network.rnn(paddle.to_tensor(x))[0].numpy(), list(network.state_dict())


def load(path: Path, x: Any) -> tuple[list[str], Any]:
    """Load an LSTM's parameters; what is missing, and its output."""
    import paddle

    layer = _network().rnn
    tensors = {n.removeprefix("rnn."): t for n, t in paddle.load(str(path), return_numpy=True).items()}
    missing, _ = layer.set_state_dict(tensors)
    layer.eval()
    return list(missing), layer(paddle.to_tensor(x))[0].numpy()
