"""Wrong mapping files of frameworks that cannot run here: documented equations and frozen results notice every fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io

import lstmconvert as lc
from tests.frameworks import test_documented as documented
from tests.frameworks import test_frozen_fixtures as frozen
from tests.matrix.test_mapping_mutations import all_are_noticed

Record = Callable[[str, object], None]
Probe = Callable[[], bool]
NAMES = sorted(
    {framework for framework, *_ in documented.CASES.values()} | {name for name, _ in frozen.fixtures()}
)


def documented_probes(framework: str, folder: Path) -> list[Probe]:
    found: list[Probe] = []
    for case, (name, step, shapes, told) in documented.CASES.items():
        if name != framework:
            continue
        rng = np.random.default_rng(len(case))
        weights = {key: rng.normal(0, 0.7, shape).astype(np.float32) for key, shape in shapes.items()}
        path = folder / f"{case.replace(' ', '_')}{'.mat' if name == 'matlab' else '.npz'}"
        if name == "matlab":
            scipy.io.savemat(path, {"layer": weights})
        else:
            np.savez(path, **weights)
        x = rng.normal(0, 1.2, (5, documented.I))
        h, c = np.zeros(documented.H), np.zeros(documented.H)
        expected = []
        for value in x:
            h, c = step(weights, value, h, c)
            expected.append(h)

        def holds(
            path: Path = path, told: dict[str, object] = told, x: object = x, y: object = expected
        ) -> bool:
            (layer,) = lc.read(path, framework=framework, **told).recurrent.values()  # type: ignore[arg-type]
            return bool(np.allclose(layer.run(np.asarray(x)[None])[0][0], y, atol=1e-7))

        found.append(holds)
    return found


def frozen_probes(framework: str, folder: Path) -> list[Probe]:
    found: list[Probe] = []
    for name, cell in frozen.fixtures():
        if name != framework:
            continue
        weights, x, y = frozen.parts(framework, cell)
        path = folder / f"{cell}.npz"
        np.savez(path, **weights)

        def holds(cell: str = cell, path: Path = path, x: np.ndarray = x, y: np.ndarray = y) -> bool:
            state = None
            if (framework, cell) == ("chainer", "gru"):
                x, state, y = x[:, 1:], y[:, 0][None], y[:, 1:]
            layers = lc.read(path, framework=framework, **frozen.told(framework, cell)).recurrent.values()
            for layer in layers:
                x = layer.run(x, initial_state=state)[0]
            return x.shape == y.shape and bool(np.allclose(x, y, atol=2e-6))

        found.append(holds)
    return found


def projected(folder: Path) -> Probe:
    """MXNet's LSTM with a projection, of which there is no frozen result; gluon/rnn/rnn_layer.py, gates i f c o."""
    hidden, size, inputs = 5, 2, 3
    rng = np.random.default_rng(9)
    shapes = {
        "l0_i2h_weight": (4 * hidden, inputs), "l0_h2h_weight": (4 * hidden, size), "l0_h2r_weight": (size, hidden),
        "l0_i2h_bias": (4 * hidden,), "l0_h2h_bias": (4 * hidden,),
    }  # fmt: skip
    w = {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(folder / "projected.npz", **w)
    x = rng.normal(0, 1.2, (5, inputs))
    r, c, expected = np.zeros(size), np.zeros(hidden), []
    for step in x:
        summed = w["l0_i2h_weight"] @ step + w["l0_i2h_bias"] + w["l0_h2h_weight"] @ r + w["l0_h2h_bias"]
        i, f, z, o = np.split(summed, 4)
        c = documented.sigmoid(f) * c + documented.sigmoid(i) * np.tanh(z)
        r = w["l0_h2r_weight"] @ (documented.sigmoid(o) * np.tanh(c))
        expected.append(r)

    def holds() -> bool:
        (layer,) = lc.read(folder / "projected.npz", framework="mxnet").recurrent.values()
        return bool(np.allclose(layer.run(x[None])[0][0], expected, atol=1e-6))

    return holds


def noticed(probes: Sequence[Probe]) -> bool:
    for probe in probes:
        try:
            if not probe():
                return True
        except (lc.ConversionError, ValueError, KeyError):
            return True
    return False


@pytest.mark.parametrize("framework", NAMES)
def test_a_wrong_mapping_file_is_noticed(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    probes = [*documented_probes(framework, tmp_path), *frozen_probes(framework, tmp_path)]
    if framework == "mxnet":
        probes.append(projected(tmp_path))
    assert probes and not noticed(probes)
    all_are_noticed(framework, lambda _layout: noticed(probes), tmp_path, monkeypatch, record_property)
