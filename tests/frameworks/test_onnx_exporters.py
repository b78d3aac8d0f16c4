"""What other projects' exporters write, read as whole models: ONNX Runtime on the source is the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import lstmconvert as lc
from lstmconvert.errors import NotRepresentable
from lstmconvert.operations import LayerNormalization
from lstmconvert.tensors import Array
from scripts import fuzz_models
from tests.counting import COUNTED
from tests.frameworks import exporter_zoo, keras_zoo
from tests.frameworks.pytorch_running import module_of, run, written
from tests.frameworks.test_onnx_back import same_results

Record = Callable[[str, object], None]

REFUSED: dict[tuple[str, str], str] = {
    ("tf2onnx", "reset_before"): "(Loop)",
    ("tf2onnx", "simple"): "(Loop)",
    ("tf2onnx", "masked"): "(Loop)",
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


class Normalized(torch.nn.Module):
    """An LSTM, a layer normalisation and a head."""

    def __init__(self, *, affine: bool, bias: bool) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(3, 4, batch_first=True)
        self.norm = torch.nn.LayerNorm(4, eps=1e-2, elementwise_affine=affine, bias=bias)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.lstm(x)[0]))


@pytest.mark.parametrize("opset", [11, 13, 16, 17])
@pytest.mark.parametrize(("affine", "bias"), [(True, True), (True, False), (False, False)])
@pytest.mark.filterwarnings("ignore")
def test_layer_normalisation_of_every_opset(
    opset: int, affine: bool, bias: bool, tmp_path: Path, record_property: Record
) -> None:
    module = Normalized(affine=affine, bias=bias).eval()
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    path = tmp_path / "model.onnx"
    axes = {"x": {0: "batch", 1: "time"}}
    x = torch.randn(3, 5, 3)
    torch.onnx.export(
        module, (x,), str(path), dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=opset
    )
    operations = [getattr(layer, "operation", None) for layer in lc.read(path).layers.values()]
    assert sum(isinstance(operation, LayerNormalization) for operation in operations) == 1
    converted("torch", f"normalized in opset {opset}", path, {"x": x.numpy()}, record_property)


@pytest.mark.parametrize("change", ["another count", "another scale", "another shape", "another mean"])
def test_what_only_resembles_a_fused_normalisation_is_none(change: str, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "model.onnx"
    exporter_zoo.export_keras("convolutional", path, generation=2)
    model = onnx.load(path)
    made = {name: node for node in model.graph.node for name in node.output}
    (batch,) = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if change == "another count":
        division = made[batch.input[4]]
        count = onnx.numpy_helper.from_array(np.float32(4), "count")
        model.graph.initializer.append(count)
        division.input[1] = "count"
    elif change == "another scale":
        batch.input[1] = batch.input[3]
    elif change == "another shape":
        shape = made[batch.input[0]].input[1]
        (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == shape]
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([1, -1, 1, 1]), shape))
    else:
        made[made[batch.input[3]].input[0]].input[0] = made[batch.input[0]].input[0]
    onnx.save(model, path)
    assert not any(
        isinstance(getattr(layer, "operation", None), LayerNormalization)
        for layer in lc.read(path).layers.values()
    )


@pytest.mark.parametrize("change", ["another axis", "another root", "another mean"])
@pytest.mark.filterwarnings("ignore")
def test_what_only_resembles_a_normalisation_is_none(change: str, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "model.onnx"
    module = Normalized(affine=True, bias=True).eval()
    torch.onnx.export(module, (torch.randn(3, 5, 3),), str(path), dynamo=False, opset_version=16)
    model = onnx.load(path)
    means = [node for node in model.graph.node if node.op_type == "ReduceMean"]
    (square,) = (node for node in model.graph.node if node.op_type == "Pow")
    if change == "another axis":
        for node in means:
            node.attribute[0].ints[0] = 1
    elif change == "another root":
        square.input[0] = means[0].input[0]
    else:
        means[1].input[0] = means[0].input[0]
    onnx.save(model, path)
    assert lc.read(path).calls is None


LOOPS = {"masked_loop", "rnn_loop", "gru_loop"}


@pytest.mark.parametrize("path", sorted(fuzz_models.EXPORTED.glob("*.onnx")), ids=lambda path: path.stem)
def test_what_was_exported_is_proved(path: Path, tmp_path: Path) -> None:
    if path.stem in LOOPS:
        with pytest.raises(lc.UnsupportedSource, match="there is no recurrent layer in it"):
            lc.convert(path, tmp_path / "model.safetensors")
        return
    result = lc.convert(path, tmp_path / "model.safetensors")
    assert result.proof is not None
    assert result.proof.movement is not None
    assert not result.proof.movement.skipped
