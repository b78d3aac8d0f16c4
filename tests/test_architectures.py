"""Random whole models in all six directions, judged by Keras, ONNX Runtime and torch; the numbers are printed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lstmconvert as lc
from lstmconvert import whole
from tests import architecture_judging as judging
from tests.architectures import grow, predict
from tests.counting import COUNTED
from tests.frameworks.pytorch_running import assert_formatted

KERAS3 = range(1000, 1056)
KERAS2 = range(2000, 2012)
"""Seeds of graphs made with tf_keras, in whole-model .h5 files."""


@pytest.mark.parametrize(
    ("package", "seed"),
    [*(("keras", seed) for seed in KERAS3), *(("tf_keras", seed) for seed in KERAS2)],
)
def test_all_directions_agree_or_are_refused(
    package: str, seed: int, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    import keras

    architecture = grow(seed, importlib.import_module(package))
    suffix = ".keras" if package == "keras" else ".h5"
    outcomes = judging.directions(architecture, tmp_path, keras, suffix=suffix)
    assert outcomes
    for outcome in outcomes:
        record_property(COUNTED, outcome.text)
    assert_formatted(tmp_path)


@settings(max_examples=6, derandomize=True)
@given(st.integers(0, 1 << 32))
def test_any_seed_is_read_as_keras_computes_it(seed: int) -> None:
    import keras

    from lstmconvert.frameworks import keras_live

    architecture = grow(seed, keras)
    try:
        model = keras_live.read_live(architecture.model)
    except lc.UnsupportedSource:
        return
    for case in architecture.cases:
        got = whole.outputs(model, whole.given_inputs(model, case), np.float64)
        error = judging.difference(got, predict(architecture.model, case))
        assert error <= 1e-4, f"seed {seed}: {error:.3g}"
