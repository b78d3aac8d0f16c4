"""The first case: which number is which gate, and what each gate computes (scripts/first_case.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lstmconvert as lc
from scripts import first_case

READINGS = {"sigmoid": {"recurrent_activation": "sigmoid"}, "hard_sigmoid": {"keras_version": "2.2"}}


@pytest.mark.parametrize("reading", READINGS)
def test_the_final_hidden_state(reading: str, tmp_path: Path) -> None:
    model = lc.read(first_case.write_weights(tmp_path / "weights.h5"), **READINGS[reading])
    y, (h, _) = model.recurrent[first_case.LAYER].run(np.array(first_case.INPUT, np.float64))
    expected = first_case.FINAL_HIDDEN_STATE[reading]
    np.testing.assert_allclose(h[0, 0], expected, rtol=0, atol=5e-8)
    np.testing.assert_array_equal(y[0, -1], h[0, 0])


@pytest.mark.parametrize("reading", READINGS)
def test_keras_2_agrees(reading: str, tmp_path: Path) -> None:
    import tf_keras

    judge = tf_keras.models.load_model(first_case.write_model(tmp_path / "model.h5", reading))
    x = np.array(first_case.INPUT, np.float32)
    expected = first_case.FINAL_HIDDEN_STATE[reading]
    np.testing.assert_allclose(judge.predict(x, verbose=0)[0], expected, rtol=0, atol=1e-6)


def test_the_two_readings_differ() -> None:
    sigmoid, hard_sigmoid = first_case.FINAL_HIDDEN_STATE.values()
    assert np.abs(np.subtract(sigmoid, hard_sigmoid)).max() > 1e-3


def test_a_file_that_does_not_say_is_not_guessed(tmp_path: Path) -> None:
    path = first_case.write_weights(tmp_path / "weights.h5")
    with pytest.raises(lc.AmbiguousSource, match="--recurrent-activation"):
        lc.read(path)


def test_the_trace_shows_every_gate_of_every_step(tmp_path: Path) -> None:
    model = lc.read(first_case.write_weights(tmp_path / "weights.h5"), recurrent_activation="sigmoid")
    x = np.array(first_case.INPUT, np.float64)
    trace = model.recurrent[first_case.LAYER].trace(x)
    # Written out by hand from the arrays: columns 0-2 input, 3-5 forget, 6-8 cell, 9-11 output.
    kernel, recurrent, bias = (array.astype(np.float64) for array in first_case.arrays().values())
    h, c = np.zeros(3), np.zeros(3)
    for step in range(3):
        i, f, g, o = np.split(x[0, step] @ kernel + h @ recurrent + bias, 4)
        i, f, g, o = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f)), np.tanh(g), 1 / (1 + np.exp(-o))
        c = f * c + i * g
        h = o * np.tanh(c)
        expected = {"input": i, "forget": f, "cell": g, "output": o, "cell_state": c, "hidden_state": h}
        assert trace[step].keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(trace[step][name][0], value, rtol=0, atol=1e-12, err_msg=name)
