"""Any to any, judged by the runtimes: what A computes, B computes from the converted file; and back, bit for bit.

What a target cannot hold must be refused, never written; both are counted and printed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import lstmconvert as lc
from tests.counting import COUNTED
from tests.matrix import (
    judges,
    judges_coreml,
    judges_named,
    judges_ncnn,
    judges_openvino,
    judges_tensorflow,
    judges_tensorflowjs,
    judges_tflite,
)
from tests.matrix.judges import Case, Judge, Sample, cases, few

JUDGES = (
    *judges.JUDGES,
    *judges_tensorflow.JUDGES,
    *judges_named.JUDGES,
    *judges_openvino.JUDGES,
    *judges_ncnn.JUDGES,
    *judges_tflite.JUDGES,
    *judges_tensorflowjs.JUDGES,
    *judges_coreml.JUDGES,
)
FEW = {judge.name for judge in JUDGES} - {"keras", "pytorch", "onnx", "tensorflow1"}
PAIRS = [
    (a, b, case)
    for a in JUDGES
    for b in JUDGES
    if a is not b
    for case in (few(a) if {a.name, b.name} & FEW else cases(a))
]
Record = Callable[[str, object], None]
FOLDS_PROJECTIONS = ("onnx", "keras", "tensorflowjs")
HOLDS_CELL_CLIP = ("pytorch", "tflite", "coreml")


# What each target cannot hold. Everything else must convert.
REFUSED = {
    "pytorch": lambda case, source: False,  # its module spells out what its layers cannot hold
    "onnx": lambda case, source: False,  # a projection is folded
    "keras": lambda case, source: (
        case.option in ("peephole", "clip")
        or (case.option == "hard_sigmoid" and source in ("onnx", "coreml"))
    ),
    "tensorflow1": judges_tensorflow.refused,
    "openvino": judges_openvino.refused,
    "ncnn": judges_ncnn.refused,
    "tflite": judges_tflite.refused,
    "tensorflowjs": judges_tensorflowjs.refused,
    "coreml": judges_coreml.refused,
    **judges_named.REFUSED,
}


@pytest.fixture(scope="session")
def sample_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Case], Sample]:
    """The file of a case, made once by its framework's judge for all targets."""

    @cache
    def made(name: str, case: Case) -> Sample:
        judge = next(judge for judge in JUDGES if judge.name == name)
        return judge.make(case, tmp_path_factory.mktemp(name))

    return made


@pytest.mark.parametrize(("a", "b", "case"), PAIRS, ids=[f"{a.name}2{b.name}-{c}" for a, b, c in PAIRS])
def test_b_computes_what_a_computes(
    a: Judge,
    b: Judge,
    case: Case,
    sample_of: Callable[[str, Case], Sample],
    tmp_path: Path,
    record_property: Record,
) -> None:
    pair = f"{a.name} to {b.name}"
    sample = sample_of(a.name, case)
    target = tmp_path / f"target{b.suffix}"
    if REFUSED[b.name](case, a.name) or (case.option == "cell_clip" and b.name not in HOLDS_CELL_CLIP):
        with pytest.raises(lc.NotRepresentable):
            lc.convert(sample.path, target, to=b.name, **a.read_options(case))
        assert not target.exists()
        record_property(COUNTED, f"{pair} refused")
        return
    result = lc.convert(sample.path, target, to=b.name, **a.read_options(case))
    assert result.proof is not None
    assert result.proof.proved
    y = b.run(target, sample.x, case)
    assert y.shape == sample.y.shape
    error = np.max(np.abs(y - sample.y)) / np.max(np.abs(sample.y))
    assert error <= 1e-5, f"relative error {error:.3g}, seed {case.seed}"
    record_property(COUNTED, f"{pair} agreed")
    if case.option == "projection" and b.name in FOLDS_PROJECTIONS:
        assert [step.name for step in result.rewrites].count("fold_projection") == case.layers
        return  # its product with the recurrent kernels is there, and it is a layer of its own
    if case.option == "input_forget":
        return  # a coupled gate was written out: the forget block, which nothing used, is gone
    if b.weights_only and case.layers > 1 and case.option in ("sum", "ave", "mul"):
        return  # how the layers follow each other is the graph's, and not in the file
    if not b.remembers and case.option in ("cell", "mgu"):
        return  # which of two forms of one cell it was is not in the file
    if not b.remembers and (case.layers > 1 or not result.proof.exact):
        return  # neither the order of the layers nor what was rounded away is in the file
    back = tmp_path / f"back{a.suffix}"
    lc.convert(target, back, to=a.name, **b.read_options(case))
    original, returned = a.weights(sample.path), a.weights(back)
    if not case.bias and not b.remembers and b.always_bias:
        # That there were no biases is not in the file either.
        original, returned = ([w for w in found if np.any(w)] for found in (original, returned))
    assert [w.shape for w in returned] == [w.shape for w in original]
    assert all(x.tobytes() == y.tobytes() for x, y in zip(original, returned, strict=True))
    record_property(COUNTED, f"{pair} and back, bit for bit")
