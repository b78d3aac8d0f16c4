"""The conformance suite finds what is known of the runtimes, without being told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import lstmconvert as lc
from lstmconvert import conformance
from lstmconvert.conformance import Case, Verdict, as_onnx, cases
from lstmconvert.conformance.export import export
from lstmconvert.tensors import Array

RESULTS = Path(__file__).resolve().parent.parent / "scripts" / "results" / "conformance.json"


def verdicts(runtime: str, words: str) -> Counter[tuple[str, Verdict]]:
    """Verdicts by feature over the cases whose name has one of the words."""
    chosen = [case for case in cases() if any(word in case.name for word in words.split())]
    return Counter((o.case.feature, o.verdict) for o in conformance.run(runtime, chosen))


def test_there_are_several_hundred_and_no_two_gates_are_alike() -> None:
    every = cases()
    assert len(every) > 400
    for case in every[::7]:
        for weights in case.weights():
            kernels = list(weights.kernel.values())
            assert all(not np.array_equal(a, b) for n, a in enumerate(kernels) for b in kernels[:n])


def test_onnxruntime_refuses_layout_and_float64_and_zeroes_affine() -> None:
    found = verdicts("onnxruntime", "layout_1 float64 Affine ScaledTanh lstm_forward")
    assert {v for f, v in found if f in ("layout=1", "float64")} == {Verdict.REFUSED}
    for name in ("Affine", "ScaledTanh"):
        assert {v for f, v in found if f == f"{name} without alpha and beta"} == {Verdict.WRONG}
        assert {v for f, v in found if f == name} == {Verdict.RIGHT}
    assert {v for f, v in found if f in ("plain", "sequence_lens", "clip", "peepholes")} == {Verdict.RIGHT}


def test_onnx_reference_ignores_clip_and_lengths() -> None:
    found = verdicts("onnx.reference", "lstm_forward")
    assert {v for f, v in found if f in ("clip", "sequence_lens")} == {Verdict.WRONG}
    assert {v for f, v in found if f == "plain"} == {Verdict.RIGHT}


def test_openvino_refuses_activations_and_takes_lengths() -> None:
    found = verdicts("openvino", "lstm_forward_lengths lstm_forward_clip lstm_activation_0_HardSigmoid")
    assert {v for f, v in found if f in ("sequence_lens", "clip")} == {Verdict.RIGHT}
    assert {v for f, v in found if f == "HardSigmoid"} == {Verdict.REFUSED}


def test_torch_is_right_where_it_has_the_option() -> None:
    found = verdicts("torch", "lstm_forward gru_forward rnn_forward bidirectional")
    assert not [f for f, v in found if v is Verdict.WRONG]
    assert found["sequence_lens", Verdict.RIGHT]
    assert found["clip", Verdict.REFUSED] and not found["clip", Verdict.RIGHT]


@pytest.mark.parametrize("package", ["keras"])
def test_keras_holds_at_padding(package: str) -> None:
    found = verdicts(
        package, "gru_forward_lengths gru_forward_linear_before_reset_lengths gru_forward_states"
    )
    assert {v for f, v in found if f == "sequence_lens"} == {Verdict.WRONG}
    assert {v for f, v in found if f == "initial state"} == {Verdict.RIGHT}


@pytest.mark.parametrize("runtime", conformance.RUNTIMES)
def test_the_table_in_the_readme_is_what_the_runtimes_do(runtime: str) -> None:
    """Every sixth case of the suite, run again; what a runtime leaves uninitialised is not compared."""
    held = json.loads(RESULTS.read_text(encoding="utf-8"))[runtime]
    assert held["version"] == version(runtime.partition(".")[0]).partition("+")[0], "run scripts/conformance"
    assert list(held["verdicts"]) == [case.name for case in cases()], "run scripts/conformance"
    chosen = [case for case in cases()[::6] if not case.feature.endswith("without alpha and beta")]
    found = {outcome.case.name: str(outcome.verdict) for outcome in conformance.run(runtime, chosen)}
    assert found == {name: held["verdicts"][name] for name in found}


def test_a_runtime_of_ones_own_and_its_faults() -> None:
    """Any callable can be judged: one that is right, one that swaps gates, one that raises."""

    def right(case: Case) -> Mapping[str, Array]:
        return as_onnx.tensors(case)[1]

    def swapped(case: Case) -> Mapping[str, Array]:
        found = dict(as_onnx.tensors(case)[1])
        found["Y"] = found["Y"][..., ::-1]
        return found

    def raising(case: Case) -> Mapping[str, Array]:
        raise RuntimeError(case.name)

    chosen = [case for case in cases() if case.sizes[1] > 1 and "tiny" not in case.name][:40]
    for runner, verdict in ((right, Verdict.RIGHT), (swapped, Verdict.WRONG), (raising, Verdict.REFUSED)):
        assert {o.verdict for o in conformance.run(runner, chosen)} == {verdict}
    with pytest.raises(lc.Usage, match="onnxruntime"):
        conformance.run("nothing")


def test_the_exported_folders_are_node_tests(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    chosen = [
        case for case in cases() if case.name in ("lstm_forward_states", "gru_reverse", "rnn_bidirectional")
    ]
    assert export(tmp_path / "out", chosen) == 3
    for case in chosen:
        folder = tmp_path / "out" / f"test_{case.name}"
        model = onnx.load(folder / "model.onnx")
        onnx.checker.check_model(model, full_check=True)
        data = folder / "test_data_set_0"

        def loaded(name: str, data: Path = data) -> Array:
            tensor = onnx.TensorProto()
            tensor.ParseFromString((data / name).read_bytes())
            array: Array = numpy_helper.to_array(tensor)
            return array

        feeds = {p.name: loaded(f"input_{n}.pb") for n, p in enumerate(model.graph.input)}
        got = ReferenceEvaluator(model).run(None, feeds)
        for n, array in enumerate(got):
            np.testing.assert_allclose(array, loaded(f"output_{n}.pb"), atol=2e-6)
        with np.load(folder / "case.npz") as held:
            assert held["expected_Y"].dtype == np.float64
    with pytest.raises(lc.Usage, match="empty"):
        export(tmp_path / "out", chosen)
