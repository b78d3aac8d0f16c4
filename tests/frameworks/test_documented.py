"""Frameworks known from their documentation: its equations, written down a second time, against what is read.

Sources are named with each; no runtime was asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

import lstmconvert as lc
from lstmconvert import cli

I, H = 3, 4  # noqa: E741 - as the documentation calls them
Array = np.ndarray[Any, Any]
Weights = dict[str, Array]


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def lstm(i: Array, f: Array, g: Array, o: Array, c: Array) -> tuple[Array, Array]:
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def dynet(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """dynet/lstm.cc: pick_range i, f, o, g of bi + x2i x + h2i h; logistic(f + forget_bias)."""
    i, f, o, g = np.split(w["0_bi"] + w["0_x2i"] @ x + w["0_h2i"] @ h, 4)
    return lstm(i, f + 1.0, g, o, c)


def dl4j(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """KerasLSTM.java: the columns are c, f, o, i."""
    g, f, o, i = np.split((x @ w["0_W"] + h @ w["0_RW"] + w["0_b"])[0], 4)
    return lstm(i, f, g, o, c)


def flux_lstm(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """Flux src/layers/recurrent.jl: input, forget, cell, output = chunk(Wi x + Wh h + b, 4)."""
    i, f, g, o = np.split(w["Wi"] @ x + w["Wh"] @ h + w["bias"], 4)
    return lstm(i, f, g, o, c)


def flux_gru(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """Flux src/layers/recurrent.jl: r, z; candidate tanh(gx_n + r * gh_n + b_n); (1 - z) n + z h."""
    gx, gh, b = (np.split(a, 3) for a in (w["Wi"] @ x, w["Wh"] @ h, w["bias"]))
    r, z = sigmoid(gx[0] + gh[0] + b[0]), sigmoid(gx[1] + gh[1] + b[1])
    n = np.tanh(gx[2] + r * gh[2] + b[2])
    return (1 - z) * n + z * h, c


def matlab_lstm(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """lstmLayer: InputWeights and RecurrentWeights are i, f, g, o one upon the other."""
    i, f, g, o = np.split(w["InputWeights"] @ x + w["RecurrentWeights"] @ h + w["Bias"][:, 0], 4)
    return lstm(i, f, g, o, c)


def matlab_gru(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """gruLayer, recurrent-bias-after-multiplication: r, z, h~ one upon the other, two biases."""
    wx, rh = np.split(w["InputWeights"] @ x, 3), np.split(w["RecurrentWeights"] @ h, 3)
    bw, br = (np.split(b, 3) for b in np.split(w["Bias"][:, 0], 2))
    r, z = (sigmoid(wx[n] + bw[n] + rh[n] + br[n]) for n in (0, 1))
    candidate = np.tanh(wx[2] + bw[2] + r * (rh[2] + br[2]))
    return (1 - z) * candidate + z * h, c


def trax_lstm(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """trax/layers/rnn.py LSTMCell: i, j, f, o = split of [x, h] w + b."""
    i, g, f, o = np.split(np.concatenate([x, h]) @ w["w"] + w["b"], 4)
    return lstm(i, f, g, o, c)


def trax_gru(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """trax/layers/rnn.py GRUCell: u, r = split of sigmoid([x, h] w1 + b1); u h + (1 - u) tanh([x, r h] w2 + b2)."""
    u, r = np.split(sigmoid(np.concatenate([x, h]) @ w["w1"] + w["b1"]), 2)
    return u * h + (1 - u) * np.tanh(np.concatenate([x, r * h]) @ w["w2"] + w["b2"]), c


CASES: dict[str, tuple[str, Callable[..., tuple[Array, Array]], dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "dynet lstm": ("dynet", dynet, {"0_x2i": (4 * H, I), "0_h2i": (4 * H, H), "0_bi": (4 * H,)}, {}),
    "dl4j lstm": ("dl4j", dl4j, {"0_W": (I, 4 * H), "0_RW": (H, 4 * H), "0_b": (1, 4 * H)}, {}),
    "flux lstm": ("flux", flux_lstm, {"Wi": (4 * H, I), "Wh": (4 * H, H), "bias": (4 * H,)}, {}),
    "flux gru": ("flux", flux_gru, {"Wi": (3 * H, I), "Wh": (3 * H, H), "bias": (3 * H,)}, {}),
    "matlab lstm": (
        "matlab", matlab_lstm,
        {"InputWeights": (4 * H, I), "RecurrentWeights": (4 * H, H), "Bias": (4 * H, 1)},
        {"recurrent_activation": "sigmoid", "activation": "tanh"},
    ),
    "matlab gru": (
        "matlab", matlab_gru,
        {"InputWeights": (3 * H, I), "RecurrentWeights": (3 * H, H), "Bias": (6 * H, 1)},
        {"recurrent_activation": "sigmoid", "activation": "tanh"},
    ),
    "trax lstm": ("trax", trax_lstm, {"w": (I + H, 4 * H), "b": (4 * H,)}, {}),
    "trax gru": (
        "trax", trax_gru, {"w1": (I + H, 2 * H), "b1": (2 * H,), "w2": (I + H, H), "b2": (H,)}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_computes_what_is_documented(tmp_path: Path, case: str) -> None:
    framework, step, shapes, told = CASES[case]
    rng = np.random.default_rng(len(case))
    weights = {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}
    path = tmp_path / ("dump.mat" if framework == "matlab" else "dump.npz")
    if framework == "matlab":
        scipy.io.savemat(path, {"layer": weights})
    else:
        np.savez(path, **weights)
    x = rng.normal(0, 1.2, (5, I))
    h, c = np.zeros(H), np.zeros(H)
    expected = []
    for value in x:
        h, c = step(weights, value, h, c)
        expected.append(h)
    model = lc.read(path, framework=framework, **told)
    (layer,) = model.recurrent.values()
    assert set(layer.origin) == {f"layer/{n}" if framework == "matlab" else n for n in shapes}
    np.testing.assert_allclose(layer.run(x[None])[0][0], expected, atol=1e-7)
    result = lc.convert(path, tmp_path / "out.safetensors", framework=framework, **told)
    assert result.proof is not None
    assert result.proof.proved
    back = lc.convert(tmp_path / "out.safetensors", tmp_path / "back.npz", to=framework)
    assert back.proof is not None
    assert back.proof.proved


def test_a_listing_says_what_was_verified_and_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["frameworks", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    documented = {framework for framework, *_ in CASES.values()} | {"coreml"}  # has tests of its own
    assert {name for name, entry in listed.items() if entry["verified"] == "documented"} == documented
    assert all(
        "source" in listed[n]["checked"] or "documentation" in listed[n]["checked"] or n == "trax"
        for n in documented
    )
    assert {"mlx", "paddle", "sonnet", "chainer"} <= {
        n for n, e in listed.items() if e["verified"] == "runtime"
    }
    assert listed["sonnet"]["writes"] == [".npz"]
    assert listed["tensorflow2"]["writes"] == []
    assert cli.main(["frameworks"]) == 0
    text = capsys.readouterr().out
    assert "DyNet (dynet): dynet 2.0 and 2.1; from its documentation" in text
    assert "MLX (mlx): mlx 0.10 and later; verified by its runtime" in text
