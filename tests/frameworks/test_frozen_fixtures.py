"""Frameworks that cannot live beside the others: what they computed once, against our equations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc

DATA = Path(__file__).resolve().parents[1] / "data"
RNN = {"rnn": {"activation": "relu"}, "rnn_tanh": {"activation": "tanh"}, "rnn_relu": {"activation": "relu"}}
# Sonnet's VanillaRNN applies tanh; its file does not say so.
SAID = {("sonnet", "rnn"): {"activation": "tanh"}}


def fixtures() -> list[tuple[str, str]]:
    found = []
    for path in sorted(DATA.glob("*.npz")):
        with np.load(path) as held:
            found += [(path.stem, name.removesuffix("/y")) for name in held.files if name.endswith("/y")]
    return found


def parts(framework: str, cell: str) -> tuple[dict[str, Any], Any, Any]:
    with np.load(DATA / f"{framework}.npz") as held:
        prefix = f"{cell}/weights/"
        weights = {n.removeprefix(prefix): held[n] for n in held.files if n.startswith(prefix)}
        return weights, held["x"], held[f"{cell}/y"]


def told(framework: str, cell: str) -> Mapping[str, Any]:
    return SAID.get((framework, cell), RNN.get(cell, {}))


@pytest.mark.parametrize(("framework", "cell"), fixtures(), ids=lambda text: text)
def test_our_equations_give_what_the_runtime_gave(tmp_path: Path, framework: str, cell: str) -> None:
    weights, x, y = parts(framework, cell)
    path = tmp_path / "dump.npz"
    np.savez(path, **weights)
    value = x
    state = None
    if (framework, cell) == ("chainer", "gru"):
        # StatefulGRU leaves out the recurrent biases while it has no state: a GRU from its second step on.
        value, state, y = x[:, 1:], y[:, 0][None], y[:, 1:]
    layers = lc.read(path, framework=framework, **told(framework, cell)).recurrent.values()
    for layer in layers:
        value = layer.run(value, initial_state=state)[0]
    assert {name for layer in layers for name in layer.origin} == set(weights)
    np.testing.assert_allclose(value, y, atol=2e-6)


@pytest.mark.parametrize(("framework", "cell"), fixtures(), ids=lambda text: text)
def test_there_and_back_is_bit_for_bit(tmp_path: Path, framework: str, cell: str) -> None:
    """A dump of the framework to PyTorch and back; Chainer's numbered forms are only read, not written."""
    weights, _, _ = parts(framework, cell)
    path, middle, back = (tmp_path / name for name in ("dump.npz", "middle.safetensors", "back.npz"))
    np.savez(path, **weights)
    there = lc.convert(path, middle, framework=framework, **told(framework, cell))
    assert there.proof is not None
    assert there.proof.proved
    if cell == "n_step_gru":  # no other GRU of Chainer's has its reset gate after the product
        with pytest.raises(lc.NotRepresentable):
            lc.convert(middle, back, to=framework)
        return
    lc.convert(middle, back, to=framework, **told(framework, cell))
    if cell == "n_step_lstm":  # comes back as Chainer's LSTM
        assert lc.verify(middle, back).proved
        return
    with np.load(back) as found:
        returned = {name: found[name] for name in weights}
    assert all(returned[name].tobytes() == array.tobytes() for name, array in weights.items())


def test_every_framework_that_a_runtime_verified_has_one_here_or_in_the_matrix() -> None:
    """Which frameworks are said to be verified by a runtime is said nowhere without one."""
    from lstmconvert import registry
    from tests.matrix.test_matrix import JUDGES

    judged = {judge.name for judge in JUDGES} | {framework for framework, _ in fixtures()}
    judged.remove("coreml")  # its judge is coremltools and the documented equations, not its runtime
    elsewhere = {"tensorflow2", "numpy"}  # tests/frameworks/test_tensorflow2.py; NumPy itself
    for name in registry.frameworks():
        verified = registry.mapping_of(name).verified
        assert verified in ("runtime", "documented")
        if name in judged | elsewhere:
            assert verified == "runtime", name
