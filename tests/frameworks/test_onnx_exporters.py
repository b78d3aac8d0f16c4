"""What other projects' exporters write, read as whole models: ONNX Runtime on the source is the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert.errors import NotRepresentable
from lstmconvert.tensors import Array
from tests.counting import COUNTED
from tests.frameworks import exporter_zoo, keras_zoo
from tests.frameworks.pytorch_running import module_of, run, written
from tests.frameworks.test_onnx_back import same_results

Record = Callable[[str, object], None]

REFUSED: dict[tuple[str, str], str] = {
    ("tf2onnx", "convolutional"): "(BatchNormalization)",
    ("tf2onnx", "reset_before"): "(Loop)",
    ("tf2onnx", "simple"): "(Loop)",
    ("tf2onnx", "masked"): "(Loop)",
    ("torch", "packed"): "(Gather)",
    ("torch dynamo", "rnn_last"): "(Add)",
    ("torch dynamo", "gated"): "(Add)",
    ("torch", "heads"): "(Reshape)",
}
"""What is not read as a whole, and the node that the reason names."""

NOT_EXPORTED = {"torch": {"projected"}, "torch dynamo": {"projected", "packed"}}
"""What the exporter itself refuses."""


def judged(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, dict(feeds))]


def converted(exporter: str, name: str, path: Path, feeds: Mapping[str, Array], record: Record) -> None:
    """Read a file, write it for torch and Keras, and compare what they compute."""
    model = lc.read(path)
    if (exporter, name) in REFUSED:
        assert model.calls is None
        assert REFUSED[exporter, name] in model.metadata["topology"]
        record(COUNTED, f"{exporter} -> onnx -> whole model: refused")
        return
    assert model.calls is not None, model.metadata["topology"]
    expected = judged(path, feeds)
    arrays = [feeds[port.name] for port in model.inputs]
    same_results(run(module_of(written(model)), arrays), expected, f"{name} by torch")
    record(COUNTED, f"{exporter} -> onnx -> torch: agreed")
    import keras

    target = path.with_suffix(".keras")
    try:
        lc.write(model, target)
    except NotRepresentable as error:
        raise AssertionError(f"{name}: {error}") from error
    keras.backend.clear_session()
    loaded = keras.models.load_model(target)
    same_results(keras_zoo.predict(loaded, arrays), expected, f"{name} by keras")
    record(COUNTED, f"{exporter} -> onnx -> keras: agreed")


@pytest.mark.parametrize("name", [n for n in exporter_zoo.TORCH if n not in NOT_EXPORTED["torch"]])
def test_what_torch_exports(name: str, tmp_path: Path, record_property: Record) -> None:
    path = tmp_path / "model.onnx"
    feeds = exporter_zoo.export_torch(name, path, dynamo=False)
    converted("torch", name, path, feeds, record_property)


DYNAMO = ("lstm_last", "rnn_last", "tagger", "final_states", "crnn", "additive_pooling", "pools", "gated")


@pytest.mark.parametrize("name", DYNAMO)
def test_what_torch_exports_by_dynamo(name: str, tmp_path: Path, record_property: Record) -> None:
    path = tmp_path / "model.onnx"
    feeds = exporter_zoo.export_torch(name, path, dynamo=True)
    converted("torch dynamo", name, path, feeds, record_property)


@pytest.mark.parametrize("name", exporter_zoo.KERAS)
def test_what_tf2onnx_exports(name: str, tmp_path: Path, record_property: Record) -> None:
    path = tmp_path / "model.onnx"
    feeds = exporter_zoo.export_keras(name, path, generation=2)
    converted("tf2onnx", name, path, feeds, record_property)
