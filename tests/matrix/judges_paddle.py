"""PaddlePaddle as a judge; to be run in a process of its own: it does not bear TensorFlow in the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.matrix.judges import HIDDEN, INPUT, Case, Sample, draw, inputs

Array = np.ndarray[Any, Any]
Tree = dict[str, Any]


def merged(forward: Array, backward: Array, case: Case) -> Array:
    """Two directions as one output; the backward one in input order."""
    match case.option:
        case "sum":
            return forward + backward
        case "ave":
            return (forward + backward) / 2
        case "mul":
            return forward * backward
    return np.concatenate([forward, backward], axis=-1)


def _paddle_stack(case: Case, width: int, layers: int, *, bidirectional: bool, bias: bool) -> Any:
    import paddle

    arguments: dict[str, Any] = {"num_layers": layers}
    if bidirectional:
        arguments["direction"] = "bidirect"
    if not bias:
        arguments |= {"bias_ih_attr": False, "bias_hh_attr": False}
    if case.option == "projection":
        arguments["proj_size"] = 2
    if case.cell == "rnn":
        arguments["activation"] = "relu" if case.option == "relu" else "tanh"
    kind = {"lstm": paddle.nn.LSTM, "gru": paddle.nn.GRU, "rnn": paddle.nn.SimpleRNN}[case.cell]
    return kind(width, HIDDEN, **arguments)


def _run(state: Tree, case: Case, x: Array) -> Array:
    """A stack runs; one without biases as one whose biases are zeros: paddle 3.3.1 crashes on its own."""
    import paddle

    layers = len({name.split(".")[0] for name in state if ".cell" in name})
    both = any("cell_bw" in name for name in state)
    width = next(t for n, t in state.items() if n.startswith("0.") and n.endswith("weight_ih")).shape[1]
    stack = _paddle_stack(case, width, layers, bidirectional=both, bias=True)
    zeros = {n: np.zeros(t.shape, np.float32) for n, t in stack.state_dict().items() if "bias" in n}
    if not any("bias_ih_l" in name for name in state):
        held = {n: t for n, t in state.items() if "bias" not in n}
        assert not any(np.any(np.asarray(t)) for n, t in state.items() if "bias" in n)
        state = {**zeros, **held}
    missing, unexpected = stack.set_state_dict(state)
    assert not missing, missing
    assert not unexpected, unexpected
    stack.eval()
    return np.asarray(stack(paddle.to_tensor(x))[0].numpy())


def make(case: Case, folder: Path) -> Sample:
    import paddle

    rng = np.random.default_rng(case.seed)
    # Without biases paddle 3.3.1 makes no stack of two directions: what it would save is put together here.
    bias = case.bias or case.bidirectional
    stack = _paddle_stack(case, INPUT, case.layers, bidirectional=case.bidirectional, bias=bias)
    for parameter in stack.parameters():
        if not parameter.stop_gradient:
            parameter.set_value(draw(rng, tuple(parameter.shape)))
    state = stack.state_dict()
    if not case.bias:
        state = {
            n: paddle.zeros_like(t) if "bias" in n else t
            for n, t in state.items()
            if "bias_ih_l" not in n and "bias_hh_l" not in n
        }
    path = folder / "source.pdparams"
    paddle.save(state, str(path))
    x = inputs(case)
    return Sample(path, x, _run(paddle.load(str(path), return_numpy=True), case, x))


def run(path: Path, x: Array, case: Case) -> Array:
    import paddle

    tensors = paddle.load(str(path), return_numpy=True)
    prefixes = {name.split(".cell", 1)[0].rpartition(".")[0] for name in tensors if ".cell" in name}
    for prefix in sorted(prefixes):
        at = f"{prefix}." if prefix else ""
        x = _run({n.removeprefix(at): t for n, t in tensors.items() if n.startswith(at)}, case, x)
    if case.option in ("sum", "ave", "mul"):
        half = x.shape[-1] // 2
        assert case.layers == 1, "how the layers follow each other is not in the file"
        return merged(x[..., :half], x[..., half:], case)
    return x


def weights(path: Path) -> list[Array]:
    import paddle

    # Each once: its other name has the same numbers, where it has one.
    tensors = paddle.load(str(path), return_numpy=True)
    return [np.asarray(tensors[name]) for name in sorted(tensors) if ".cell" in name]
