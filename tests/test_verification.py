"""verify: files, live objects, gradients, runtimes, reports, and the proof that a written file carries."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert import report
from lstmconvert.cli import main
from lstmconvert.model import Model
from lstmconvert.proof import ulps
from tests.support import random_layer

BOTH = ("forward", "reverse")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    layer = random_layer("lstm", seed=1, directions=BOTH)
    lc.write(Model({layer.name: layer}), tmp_path / "source.npz", to="numpy")
    return tmp_path / "source.npz"


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
@pytest.mark.parametrize("target", ["out.onnx", "out.keras", "out.safetensors", "out.pt"])
def test_every_element_is_followed_through_a_conversion(target: str, dtype: str, tmp_path: Path) -> None:
    import ml_dtypes

    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    # More elements than float16 has bit patterns, so that their numbers need two digits.
    layer = random_layer("gru", seed=1, input_size=70, hidden_size=130, dtype=kind, scale=0.02)
    lc.write(Model({layer.name: layer}), tmp_path / "source.safetensors", to="pytorch")
    result = lc.convert(tmp_path / "source.safetensors", tmp_path / target)
    assert result.proof is not None
    moved = result.proof.movement
    assert moved is not None and moved.proved and not moved.skipped
    count = 3 * (130 * 70 + 130 * 130 + 130 + 130)
    assert (moved.source, moved.target) == (count, count)
    assert result.report["data_movement"]["verdict"] == "proved"


def test_a_layout_that_reads_one_block_twice_fails_the_conversion(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lstmconvert import axes

    honest = axes.view

    def off_by_one(array: Any, *rest: Any) -> Any:
        found = honest(array, *rest)
        at = rest[2]
        return found[::-1] if at.get("gate") == 2 and found.ndim == 2 else found

    monkeypatch.setattr(axes, "view", off_by_one)
    # The mistake undoes itself on the way back: values agree, and so do indices; only the source can tell.
    with pytest.raises(lc.ConversionError):
        lc.convert(source, tmp_path / "out.onnx")
        monkeypatch.undo()
        proof = lc.verify(source, tmp_path / "out.onnx")
        if not proof.proved:
            raise lc.VerificationFailed("caught")


def test_ulps_are_counted() -> None:
    a = np.array([1.0, -2.0, 0.0], np.float32)
    assert ulps(a, a) == 0
    assert ulps(a, np.nextafter(a, np.float32(9), dtype=np.float32)) == 1
    assert ulps(np.array([-0.0], np.float32), np.array([0.0], np.float32)) == 0
    assert ulps(a, np.array([np.nan, 0, 0], np.float32)) is None


def test_verify_says_by_how_many_ulps_a_tensor_differs(source: Path, tmp_path: Path) -> None:
    model = lc.read(source).in_memory()
    (layer,) = model.recurrent.values()

    def nudge(key: Any, block: Any) -> Any:
        from lstmconvert.tensors import Lazy

        if str(key[0]) != "kernel" or str(key[1]) != "forget":
            return block
        return Lazy.of(np.nextafter(np.nextafter(block.read(), np.float32(9)), np.float32(9)))

    changed = layer.mapped(lambda d: type(d)(d.direction, d.equations, d.weights.mapped(nudge)))
    proof = lc.verify(model, Model({changed.name: changed}))
    assert {(name, k) for name, _, k in proof.layers[0].differing} == {
        ("forward kernel forget", 2),
        ("reverse kernel forget", 2),
    }
    assert [b["ulps"] for b in report.proof(proof)["layers"][0]["differing"]] == [2, 2]


def test_live_torch_and_keras_agree_with_their_gradients() -> None:
    import torch

    module = torch.nn.GRU(3, 4, batch_first=True, bidirectional=True)
    live = lc.to_keras(module)
    proof = lc.verify(module, live, gradients=True)
    assert proof.proved
    assert "gradients" in [w.runtime for w in proof.whole]
    with torch.no_grad():
        module.weight_hh_l0[1, 1] += 0.01
    assert not lc.verify(module, live, gradients=True).proved


def test_gradients_differ_where_equations_do() -> None:
    import keras

    from lstmconvert import gradients, live

    one = keras.Sequential([keras.layers.Input((None, 3)), keras.layers.LSTM(4)])
    two = keras.Sequential(
        [keras.layers.Input((None, 3)), keras.layers.LSTM(4, recurrent_activation="hard_sigmoid")]
    )
    two.set_weights(one.get_weights())
    assert gradients.prove(one, one, live.read_any(one)).proved
    assert not gradients.prove(one, two, live.read_any(one)).proved


def test_gradients_of_every_parameter_of_a_whole_model() -> None:
    """The same numbers forwards, and no way back through the LSTM, or through the Dense layer's bias alone."""
    import keras

    from lstmconvert import gradients, live

    layers = keras.layers
    model = keras.Sequential([
        layers.Input((None,), dtype="int32"), layers.Embedding(9, 5), layers.Bidirectional(layers.LSTM(4), name="both"),
        layers.Dense(6, activation="tanh", name="inner"), layers.LayerNormalization(), layers.Dense(2),
    ])  # fmt: skip
    rng = np.random.default_rng(8)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    read = live.read_any(model)
    module = lc.to_torch(model)
    whole = gradients.prove(model, module, read)
    assert whole.first_difference is None, whole

    handle = module.both.register_forward_hook(
        lambda _, inputs, output: (output[0].detach(), tuple(state.detach() for state in output[1]))
    )
    cut = gradients.prove(model, module, read)
    assert cut.first_difference is not None
    assert "recurrent layer" in cut.first_difference or "Embedding" in cut.first_difference
    handle.remove()
    module.inner.register_forward_hook(lambda layer, inputs, y: y - layer.bias + layer.bias.detach())
    bent = gradients.prove(model, module, read)
    assert bent.first_difference == "Dense 0: bias"


def test_files_have_no_gradients_and_live_models_no_runtime(source: Path) -> None:
    with pytest.raises(lc.Usage, match="gradients"):
        lc.verify(source, source, gradients=True)
    with pytest.raises(lc.Usage, match="two files"):
        lc.verify(lc.read(source), source, runtime=True)


def test_each_file_runs_in_its_own_runtime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import keras

    model = keras.Sequential([keras.layers.Input((None, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])
    model.save(tmp_path / "a.keras")
    lc.convert(tmp_path / "a.keras", tmp_path / "a.onnx")
    assert main(["verify", str(tmp_path / "a.onnx"), str(tmp_path / "a.keras"), "--runtime", "--json"]) == 0
    ran = [run["runtime"] for run in json.loads(capsys.readouterr().out)["whole"]]
    assert any(name.startswith("keras ") for name in ran), ran
    assert any(name.startswith("onnxruntime ") for name in ran), ran


@pytest.mark.parametrize("target", ["out.onnx", "out.keras", "out.safetensors", "out.pt", "out.h5"])
def test_a_written_file_carries_its_proof_and_notices_changes(
    source: Path, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lstmconvert import registry
    from lstmconvert.containers import Archive
    from lstmconvert.tensors import Lazy

    path = tmp_path / target
    lc.convert(source, path)
    assert main(["verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "intact"
    module = registry.container_module(registry.container_of(path).name)
    held: Archive = module.read(path)
    name = max(held.tensors, key=lambda n: held.tensors[n].size)
    spoiled = held.tensors[name].read().copy()
    spoiled.flat[5] = np.nextafter(spoiled.flat[5], 9)
    told = {k: v for k, v in held.metadata.items() if isinstance(v, str) or not target.endswith(".pt")}
    changed = type(held)({**held.tensors, name: Lazy.of(spoiled)}, told)
    if target != "out.h5":  # the reader's metadata of HDF5 are not what its writer takes
        module.write(tmp_path / f"changed_{target}", changed)
        assert main(["verify", str(tmp_path / f"changed_{target}"), "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["verdict"] == "changed"
    lc.convert(source, path, overwrite=True, proof=False)
    assert main(["verify", str(path)]) == 1


def test_reports_are_json_or_one_page_without_outside_resources(source: Path, tmp_path: Path) -> None:
    out, page, data = tmp_path / "out.onnx", tmp_path / "r.html", tmp_path / "r.json"
    assert main(["convert", str(source), "-o", str(out), "--report", str(page), "--quiet"]) == 0
    assert main(["verify", str(source), str(out), "--report", str(data), "--quiet"]) == 0
    value = json.loads(data.read_text())
    assert value["schema"] == 1
    keys = set(re.findall(r"``(\w+)``", report.__doc__ or ""))
    assert set(value) <= keys, set(value) - keys
    forget = next(r for r in value["gate_maps"] if r["block"] == "reverse kernel forget")
    # ONNX keeps the forget gate's rows third (i, o, f, c) in the second direction.
    assert forget["target"]["first"] == [1, 10, 0] and forget["target"]["last"] == [1, 14, 2]
    text = page.read_text()
    assert text.count("<svg") >= 4 and "proved" in text
    assert not re.findall(r"(?:src|href)=|https?://|@import|url\(", text)
