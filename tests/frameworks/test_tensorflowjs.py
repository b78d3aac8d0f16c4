"""TensorFlow.js: the networks of the Keras zoo in node, and models that TensorFlow.js saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import lstmconvert as lc
from lstmconvert.errors import ConversionError
from tests import tensorflowjs_judge as judge
from tests.counting import COUNTED
from tests.frameworks import keras_zoo

ZOO = [name for name in keras_zoo.MODELS if name not in keras_zoo.ONLY_KERAS2]


def close(found: Any, expected: Any) -> None:
    for one, two in zip(found, expected, strict=True):
        assert one.shape == two.shape
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5 * max(1.0, float(np.max(np.abs(two)))))


@pytest.mark.parametrize("name", ZOO)
def test_node_computes_what_keras_computes(
    name: str, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    import keras

    built, inputs = keras_zoo.build(name, keras)
    built.save(tmp_path / "source.keras")
    try:
        lc.convert(tmp_path / "source.keras", target := tmp_path / "model.json")
    except lc.NotRepresentable as error:
        assert error.reasons or error.remedy or error.place
        record_property(COUNTED, "keras zoo to tensorflowjs: refused")
        return
    given = [np.asarray(x) for x in (inputs if isinstance(inputs, list | tuple) else [inputs])]
    expected = keras_zoo.predict(built, inputs)
    close(judge.ran(target, *given), [np.asarray(y) for y in expected])
    lc.convert(target, tmp_path / "back.keras")
    back = keras.models.load_model(tmp_path / "back.keras")
    close([np.asarray(y) for y in keras_zoo.predict(back, inputs)], [np.asarray(y) for y in expected])
    record_property(COUNTED, "keras zoo to tensorflowjs: agreed")


def layer(kind: str, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": config}


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    for number, one in enumerate(layers):
        one["config"].setdefault("name", f"{one['class_name'].lower()}_{number}")
    return {"class_name": "Sequential", "config": {"name": "s", "layers": list(layers)}}


SEQUENCE = {"batch_input_shape": [None, 5, 3]}
SAVED: dict[str, dict[str, Any]] = {
    "lstm with defaults": sequential(layer("LSTM", units=4, **SEQUENCE)),
    "lstm with sigmoid": sequential(layer("LSTM", units=4, recurrent_activation="sigmoid", **SEQUENCE)),
    "gru with defaults": sequential(layer("GRU", units=4, **SEQUENCE)),
    "two layers": sequential(
        layer("SimpleRNN", units=4, return_sequences=True, **SEQUENCE),
        layer("LSTM", units=3),
        layer("Dense", units=2),
    ),
    "both directions": sequential(
        layer("Bidirectional", layer=layer("LSTM", name="inner", units=4), merge_mode="concat", **SEQUENCE),
        layer("Dense", units=2, activation="softmax"),
    ),
    "masked": sequential(
        layer("Embedding", input_dim=7, output_dim=3, mask_zero=True, batch_input_shape=[None, 5]),
        layer("GRU", units=4, recurrent_activation="sigmoid", return_sequences=True),
        layer("TimeDistributed", layer=layer("Dense", name="head", units=2)),
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_what_it_saves_is_read(name: str, tmp_path: Path) -> None:
    path = judge.saved(SAVED[name], tmp_path / "saved")
    rng = np.random.default_rng(4)
    x = rng.integers(1, 7, (2, 5)) if name == "masked" else rng.normal(size=(2, 5, 3)).astype(np.float32)
    if name == "masked":
        x[1, 3:] = 0
    expected = judge.ran(path, x)
    lc.convert(path, target := tmp_path / "out.onnx")
    session = onnxruntime.InferenceSession(target)
    (port,) = session.get_inputs()
    kind = (
        np.float32
        if port.type == "tensor(float)"
        else {"tensor(int32)": np.int32, "tensor(int64)": np.int64}[port.type]
    )
    close(session.run(None, {port.name: x.astype(kind)}), expected)
    lc.convert(path, tmp_path / "out.safetensors")


def test_gates_that_it_does_not_have_are_refused(tmp_path: Path) -> None:
    import keras

    built = keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4)])
    built.save(tmp_path / "source.keras")
    with pytest.raises(lc.NotRepresentable, match="reset"):
        lc.convert(tmp_path / "source.keras", tmp_path / "model.json")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
def test_quantised_weights_are_dequantised_and_reported(dtype: str, tmp_path: Path) -> None:
    path = judge.saved(SAVED["lstm with sigmoid"], tmp_path / "saved")
    whole = lc.read(path)
    data = json.loads(path.read_text())
    (group,) = data["weightsManifest"]
    raw = b"".join((path.parent / name).read_bytes() for name in group["paths"])
    pieces, at = [], 0
    for entry in group["weights"]:
        count = int(np.prod(entry["shape"]))
        values = np.frombuffer(raw, "<f4", count, at)
        at += 4 * count
        if dtype == "float16":
            pieces.append(values.astype("<f2").tobytes())
            entry["quantization"] = {"dtype": dtype}
            continue
        most = 255 if dtype == "uint8" else 65535
        scale, least = float(values.max() - values.min()) / most or 1.0, float(values.min())
        pieces.append(
            np.round((values - least) / scale).astype(f"<u{1 if dtype == 'uint8' else 2}").tobytes()
        )
        entry["quantization"] = {"dtype": dtype, "scale": scale, "min": least}
    group["paths"] = ["q.bin"]
    (path.parent / "q.bin").write_bytes(b"".join(pieces))
    path.write_text(json.dumps(data))
    x = np.random.default_rng(2).normal(size=(2, 5, 3)).astype(np.float32)
    result = lc.convert(path, target := tmp_path / "out.onnx")
    assert any(
        f"dequantised from {dtype}, one scale for the tensor" in s.description for s in result.rewrites
    )
    session = onnxruntime.InferenceSession(target)
    close(session.run(None, {session.get_inputs()[0].name: x}), judge.ran(path, x))
    before, after = (next(iter(m.recurrent.values())).run(x)[0] for m in (whole, lc.read(path)))
    assert 0 < np.max(np.abs(before - after)) <= 0.05


def test_damaged_models_are_plain_errors(tmp_path: Path) -> None:
    path = judge.saved(SAVED["lstm with sigmoid"], tmp_path / "saved")
    text = path.read_text()
    for end in range(0, len(text), 37):
        path.write_text(text[:end])
        with pytest.raises(ConversionError):
            lc.read(path)
    outside = tmp_path / "a.bin"
    outside.write_bytes((path.parent / "a.bin").read_bytes())
    for wrong in ("../a.bin", str(outside), "", "missing.bin"):
        path.write_text(text.replace('"a.bin"', json.dumps(wrong)))
        with pytest.raises(lc.BadFile, match="beside"):
            lc.read(path)
    for old, new in (
        ('"shape":[3,16]', '"shape":[3,17]'),
        ('"shape":[3,16]', '"shape":[-3,16]'),
        ('"dtype":"float32"', '"dtype":"string"'),
    ):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ConversionError):
            lc.read(path)
    path.write_text(json.dumps({**json.loads(text), "format": "graph-model"}))
    with pytest.raises(lc.UnsupportedSource, match="graph model"):
        lc.read(path)


@pytest.mark.parametrize(
    "wrong", [None, 3, 0.5, "x", True, [], {}, [None], {"class_name": "LSTM", "config": 3}]
)
@pytest.mark.parametrize("place", ["topology", "config", "layers", "layer", "weights", "metadata"])
def test_a_topology_of_other_kinds_is_a_plain_error(wrong: Any, place: str, tmp_path: Path) -> None:
    path = judge.saved(SAVED["lstm with sigmoid"], tmp_path / "saved")
    data = json.loads(path.read_text())
    topology = data["modelTopology"]
    match place:
        case "topology":
            data["modelTopology"] = wrong
        case "config":
            topology["config"] = wrong
        case "layers":
            topology["config"]["layers"] = wrong
        case "layer":
            topology["config"]["layers"] = [wrong]
        case "weights":
            data["weightsManifest"] = wrong
        case "metadata":
            data["userDefinedMetadata"] = wrong
    path.write_text(json.dumps(data))
    if place == "metadata" and (not wrong or isinstance(wrong, dict)):
        assert lc.read(path).recurrent
        return
    with pytest.raises(ConversionError):
        lc.read(path)
