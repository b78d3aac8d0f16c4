"""Whole conversions with a fault put into what was written: the proof stops them and names the layer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import lstmconvert as lc
from lstmconvert import registry
from lstmconvert.tensors import Array
from tests.architectures import randomise


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import keras

    L = keras.layers
    x = keras.Input((None, 3), name="x")
    y = L.Dense(4, activation="tanh", name="before")(x)
    y = L.LSTM(5, return_sequences=True, name="first")(y)
    y = L.LSTM(5, return_sequences=True, name="second")(y)
    y = L.Dense(2, name="after")(y)
    model = keras.Model(x, y)
    randomise(model, np.random.default_rng(4))
    path = tmp_path_factory.mktemp("source") / "source.keras"
    model.save(path)
    return path


def plant(monkeypatch: pytest.MonkeyPatch, framework: str, fault: Callable[[str, Array], Array]) -> None:
    """Make a framework's writer change what it writes; the archive that is proved is wrong already."""
    module = registry.module_of(registry.mapping_of(framework))
    honest = module.write

    def dishonest(model: Any, container: str, options: Any) -> Any:
        archive = honest(model, container, options)
        tensors = {
            name: lazy.map(lambda a, name=name: fault(name, a), lazy.shape)
            for name, lazy in archive.tensors.items()
        }
        return replace(archive, tensors=tensors)

    monkeypatch.setattr(module, "write", dishonest)


@pytest.mark.parametrize("layer", ["before", "second", "after"])
@pytest.mark.parametrize(
    ("framework", "target"),
    [("onnx", "model.onnx"), ("pytorch", "model.safetensors"), ("keras", "again.keras")],
)
def test_the_first_layer_that_differs_is_named(
    layer: str, framework: str, target: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(name: str, array: Array) -> Array:
        # A .keras file names weights by class and number.
        named = {"before": "/dense/", "second": "/lstm_1/", "after": "/dense_1/"}[layer]
        if (layer not in name and named not in name) or array.ndim < 2:
            return array
        wrong = array.copy()
        wrong[..., 0] += np.float32(0.5)
        return wrong

    plant(monkeypatch, framework, fault)
    with pytest.raises(lc.VerificationFailed, match=f"first at '{layer}'"):
        lc.convert(source, tmp_path / target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["model.onnx", "model.safetensors", "again.keras"])
def test_a_file_that_was_changed_later_fails_in_its_runtime(
    target: str, source: Path, tmp_path: Path
) -> None:
    """What the file's own numbers say is unchanged; what runs beside them is not."""
    path = tmp_path / target
    lc.convert(source, path)
    honest = lc.verify(source, path, runtime=True)
    assert honest.proved
    assert any(name in whole.runtime for whole in honest.whole for name in ("onnxruntime", "torch", "keras"))
    if target == "model.safetensors":
        text = path.with_suffix(".py").read_text()
        assert text.count("torch.tanh(") == 1
        path.with_suffix(".py").write_text(text.replace("torch.tanh(", "torch.sin("))
    else:
        tampered(path)
    found = lc.verify(source, path, runtime=True)
    assert not found.proved


def tampered(path: Path) -> None:
    """Change one weight of the last layer of an ONNX or Keras file."""
    if path.suffix == ".onnx":
        model = onnx.load(str(path))
        (tensor,) = (t for t in model.graph.initializer if "after" in t.name and len(t.dims) == 2)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[0, 0] += 0.5
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, str(path))
        return
    keras: Any = importlib.import_module("keras")
    model = keras.models.load_model(path)
    kernel = model.get_layer("after").kernel
    kernel.assign(np.asarray(kernel) + 0.5)
    model.save(path)


@pytest.mark.parametrize("target", ["model.onnx", "again.keras", "model.safetensors"])
def test_a_runtime_that_computes_something_else_is_noticed(
    target: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is right and read right; only its runtime goes wrong."""
    from lstmconvert import runtimes

    path = tmp_path / target
    lc.convert(source, path)
    honest = runtimes.flat

    def shifted(value: Any) -> list[Array]:
        return [array + np.float32(0.01) for array in honest(value)]

    if target == "model.onnx":
        from lstmconvert import whole

        run = whole.run_onnx
        monkeypatch.setattr(whole, "run_onnx", lambda *a: [array + np.float32(0.01) for array in run(*a)])
    else:
        monkeypatch.setattr(runtimes, "flat", shifted)
    found = lc.verify(source, path, runtime=True)
    assert not found.proved
    assert [w.proved for w in found.whole if w.runtime == "interpreter"] == [True]
