"""Dumps that nobody else has the names of, with a mapping file of the user's own; judged by NumPy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

import lstmconvert as lc
from lstmconvert import cli

MAPPING = """
schema = 1

[framework]
name = "mine"
title = "My dump"
separators = ["/", "."]

[layout.gru]
cell = "gru"
gates = ["candidate", "update", "reset"]

[layout.gru.tensors]
kernel         = { name = "enc/W", axes = "(hidden gate) input" }
recurrent      = { name = "enc/U", axes = "recurrent (gate hidden)" }
bias_input     = { name = "enc/b", axes = "gate hidden" }

[layout.gru.equations]
gate_activation = "sigmoid"
candidate_activation = "tanh"
reset = "before_product"
update_keeps = "candidate"
"""
I, H = 3, 4  # noqa: E741
Array = np.ndarray[Any, Any]


def weights() -> dict[str, Array]:
    rng = np.random.default_rng(21)
    shapes = {"W": (3 * H, I), "U": (H, 3 * H), "b": (3, H)}
    return {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}


def computed(w: dict[str, Array], x: Array) -> Array:
    def sigmoid(a: Array) -> Array:
        return 1 / (1 + np.exp(-a))

    kernel = {gate: w["W"][n::3] for n, gate in enumerate("nzr")}
    recurrent = {gate: w["U"][:, n * H : (n + 1) * H] for n, gate in enumerate("nzr")}
    bias = dict(zip("nzr", w["b"], strict=True))
    h, rows = np.zeros(H), []
    for value in x:
        z, r = (sigmoid(kernel[g] @ value + h @ recurrent[g] + bias[g]) for g in "zr")
        n = np.tanh(kernel["n"] @ value + (r * h) @ recurrent["n"] + bias["n"])
        h = z * n + (1 - z) * h
        rows.append(h)
    return np.array(rows)


def folder(path: Path, held: dict[str, Array]) -> Path:
    (path / "enc").mkdir(parents=True)
    for name, array in held.items():
        np.save(path / "enc" / f"{name}.npy", array)
    return path


def archive(path: Path, held: dict[str, Array]) -> Path:
    np.savez(path.with_suffix(".npz"), **{f"enc/{name}": array for name, array in held.items()})
    return path.with_suffix(".npz")


def nested_pickle(path: Path, held: dict[str, Array]) -> Path:
    path.with_suffix(".pkl").write_bytes(pickle.dumps({"epoch": 7, "enc": held}))
    return path.with_suffix(".pkl")


def matlab(path: Path, held: dict[str, Array]) -> Path:
    scipy.io.savemat(path.with_suffix(".mat"), {"enc": held})
    return path.with_suffix(".mat")


FORMS: dict[str, Callable[[Path, dict[str, Array]], Path]] = {
    "folder of .npy": folder, "npz": archive, "pickle": nested_pickle, "mat": matlab,
}  # fmt: skip


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MAPPING)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_any_dump_converts_with_a_mapping_file(tmp_path: Path, mine: Path, form: str) -> None:
    source = FORMS[form](tmp_path / "dump", weights())
    x = np.random.default_rng(1).normal(0, 1.2, (6, I))
    (layer,) = lc.read(source, mapping=mine).recurrent.values()
    np.testing.assert_allclose(layer.run(x[None])[0][0], computed(weights(), x), atol=1e-7)
    result = lc.convert(source, tmp_path / "out.onnx", mapping=mine)
    assert result.proof is not None
    assert result.proof.proved
    (back,) = lc.read(tmp_path / "out.onnx").recurrent.values()
    np.testing.assert_allclose(back.run(x[None])[0][0], computed(weights(), x), atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {n: a for n, a in w.items() if n != "U"}, "enc/U"),
        (lambda w: {**w, "W": w["W"][:-1]}, "enc/W"),
        (lambda w: {**w, "b": w["b"][:2]}, "enc/b"),
        (lambda w: {**w, "U": w["U"].T}, "enc/"),
        (lambda w: {"other": w["W"]}, "no tensor has a name of the mapping file"),
    ],
    ids=["missing", "a row less", "a gate less", "turned", "other names"],
)
def test_what_does_not_fit_is_said_and_where(
    tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture[str],
    form: str, change: Callable[[dict[str, Array]], dict[str, Array]], said: str,
) -> None:  # fmt: skip
    source = FORMS[form](tmp_path / "dump", change(weights()))
    out = tmp_path / "out.onnx"
    assert cli.main(["convert", str(source), "-o", str(out), "--mapping", str(mine)]) == 4
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not out.exists()


@pytest.mark.parametrize("form", FORMS)
def test_without_a_mapping_file_its_way_out_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    source = FORMS[form](tmp_path / "dump", weights())
    assert cli.main(["inspect", str(source)]) == 4
    assert "--mapping" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "line", "said"),
    [
        ('gates = ["candidate", "update"]', 'gates = ["candidate", "update", "reset"]', "reset"),
        ('axes = "(hidden gates) input"', 'axes = "(hidden gate) input"', "gates"),
        ('reset = "sometimes"', 'reset = "before_product"', "sometimes"),
        ("kernal = ", "kernel         = ", "kernal"),
    ],
)
def test_a_wrong_mapping_file_is_told_by_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, line: str, said: str
) -> None:
    assert line in MAPPING
    path = tmp_path / "mine.toml"
    path.write_text(MAPPING.replace(line, wrong))
    source = archive(tmp_path / "dump", weights())
    assert cli.main(["inspect", str(source), "--mapping", str(path)]) == 4
    error = capsys.readouterr().err
    assert said in error
    assert "mine.toml" in error
