"""The open corpus: every trained model is converted and held against its own runtime, or refused as it should be."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert.cli import main
from lstmconvert.tensors import same_bits
from tests.corpus import corpus_file

pytestmark = pytest.mark.corpus
Array = np.ndarray[Any, Any]


def run_onnx(path: Path, *inputs: Array) -> list[Array]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    feeds = {i.name: x.astype(dtypes[i.type]) for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return list(session.run(None, feeds))


def run_torch(path: Path, *inputs: Array) -> Any:
    import torch

    spec = importlib.util.spec_from_file_location(f"converted_{path.stem}", path.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        return module.Model.load(path)(*(torch.from_numpy(x) for x in inputs))


def run_keras(path: Path, x: Array) -> Array:
    import keras

    return np.asarray(keras.models.load_model(path)(x))


def close(got: Array, expected: Array, tolerance: float = 1e-5) -> None:
    assert got.shape == expected.shape
    error = np.max(np.abs(got - expected)) / np.max(np.abs(expected))
    assert error <= tolerance, f"relative error {error:.3g}"


def tokens(vocabulary: int, steps: int) -> Array:
    return np.random.default_rng(17).integers(0, vocabulary, (4, steps))


# Keras 2.


def dgaintel() -> tuple[Array, Array]:
    import tf_keras

    x = tokens(39, 82)
    return x, tf_keras.models.load_model(corpus_file("dgaintel"), compile=False).predict(x, verbose=0)


def shakkala() -> tuple[Array, Array]:
    """The file is older than every Keras that runs here: its network is built by hand around its numbers."""
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Embedding(149, 256, input_length=495),
            layers.GRU(256, recurrent_activation="hard_sigmoid", reset_after=False, return_sequences=True),
            layers.Dense(256),
            layers.Dense(28),
        ]
    )
    x = tokens(149, 495)
    model(x)
    with h5py.File(corpus_file("shakkala_simple_gru")) as file:
        config = file.attrs["model_config"]
        root = file["model_weights"]
        arrays = [
            np.asarray(root[name][weight])
            for name in root.attrs["layer_names"]
            for weight in root[name].attrs["weight_names"]
        ]
    model.set_weights(arrays)
    text = config.decode() if isinstance(config, bytes) else config
    (first, second) = (
        entry["config"] for entry in json.loads(text)["config"] if entry["class_name"] == "Dense"
    )
    for layer, entry in zip(model.layers[2:], (first, second), strict=True):
        layer.activation = tf_keras.activations.get(entry["activation"])
    return x, model.predict(x, verbose=0)


@pytest.mark.parametrize("name", ["dgaintel", "shakkala_simple_gru"])
def test_whole_keras_2_models_go_to_onnx_and_torch(name: str, tmp_path: Path) -> None:
    x, expected = {"dgaintel": dgaintel, "shakkala_simple_gru": shakkala}[name]()
    source = corpus_file(name)
    assert main(["keras2onnx", str(source), "-o", str(tmp_path / "m.onnx"), "--quiet"]) == 0
    close(run_onnx(tmp_path / "m.onnx", x)[0], expected)
    assert main(["keras2torch", str(source), "-o", str(tmp_path / "m.safetensors"), "--quiet"]) == 0
    close(run_torch(tmp_path / "m.safetensors", x).numpy(), expected)


def test_a_keras_2_model_becomes_a_live_torch_module_in_three_lines() -> None:
    import torch

    x, expected = dgaintel()
    module = lc.to_torch(corpus_file("dgaintel"))
    with torch.no_grad():
        close(module(torch.from_numpy(x)).numpy(), expected)


def test_chars2vec_does_not_say_its_activation_and_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(corpus_file("chars2vec_eng50"))
    for command in ("keras2onnx", "keras2torch"):
        assert main([command, source, "-o", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err
        assert "--recurrent-activation" in message
        assert "hard_sigmoid" in message
        assert not list(tmp_path.iterdir())


def chars2vec_layer(name: str, x: Array) -> Array:
    import tf_keras

    layer = tf_keras.layers.LSTM(50, recurrent_activation="hard_sigmoid", return_sequences=True)
    layer(x)
    with h5py.File(corpus_file("chars2vec_eng50")) as file:
        layer.set_weights([np.asarray(file[name][w]) for w in file[name].attrs["weight_names"]])
    return np.asarray(layer(x))


@pytest.mark.parametrize(("name", "width"), [("lstm_1", 59), ("lstm_2", 50)])
def test_chars2vec_converts_once_the_activation_is_given(name: str, width: int, tmp_path: Path) -> None:
    source = str(corpus_file("chars2vec_eng50"))
    x = np.random.default_rng(3).normal(size=(2, 9, width)).astype(np.float32)
    expected = chars2vec_layer(name, x)
    said = ["--keras-version", "2.2", "--quiet"]
    assert main(["keras2onnx", source, "-o", str(tmp_path / "all"), *said]) == 0
    close(run_onnx(tmp_path / "all" / f"{name}.onnx", x)[0], expected)
    assert main(["keras2torch", source, "-o", str(tmp_path / "one.safetensors"), "--layer", name, *said]) == 0
    close(run_torch(tmp_path / "one.safetensors", x).numpy(), expected)
    assert main(["keras2torch", source, "-o", str(tmp_path / "both.safetensors"), *said]) == 0


# torch.


def beatnet(x: Array) -> Array:
    import torch

    state = torch.load(corpus_file("beatnet"), map_location="cpu", weights_only=True)
    lstm = torch.nn.LSTM(150, 150, 2, batch_first=True)
    lstm.load_state_dict({k.removeprefix("lstm."): v for k, v in state.items() if k.startswith("lstm.")})
    with torch.no_grad():
        return lstm(torch.from_numpy(x))[0].numpy()


def test_beatnet_goes_to_onnx_and_keras(tmp_path: Path) -> None:
    x = np.random.default_rng(5).normal(size=(3, 20, 150)).astype(np.float32)
    expected = beatnet(x)
    source = str(corpus_file("beatnet"))
    assert main(["torch2onnx", source, "-o", str(tmp_path / "b.onnx"), "--quiet"]) == 0
    close(run_onnx(tmp_path / "b.onnx", x)[0], expected)
    assert main(["torch2keras", source, "-o", str(tmp_path / "b.keras"), "--quiet"]) == 0
    close(run_keras(tmp_path / "b.keras", x), expected)


def test_a_pickled_module_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(corpus_file("beatnet_module"))
    assert main(["torch2onnx", source, "-o", str(tmp_path / "b.onnx")]) == 4
    assert "state_dict()" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ONNX.


def test_nsnet2_goes_to_torch_and_keras_as_a_whole(tmp_path: Path) -> None:
    source = corpus_file("nsnet2_gru")
    x = np.random.default_rng(7).normal(size=(1, 12, 161)).astype(np.float32)
    expected = run_onnx(source, x)[0]
    assert main(["onnx2torch", str(source), "-o", str(tmp_path / "n.safetensors"), "--quiet"]) == 0
    close(run_torch(tmp_path / "n.safetensors", x).numpy(), expected)
    assert main(["onnx2keras", str(source), "-o", str(tmp_path / "n.keras"), "--quiet"]) == 0
    close(run_keras(tmp_path / "n.keras", x), expected)


def silero_cell(x: Array) -> Array:
    """The 16 kHz cell as TorchScript holds it, run over a sequence by torch."""
    import torch

    module = torch.jit.load(str(corpus_file("silero_vad_jit")), map_location="cpu")
    cell = torch.nn.LSTMCell(128, 128)
    prefix = "_model.decoder.rnn."
    cell.load_state_dict(
        {k.removeprefix(prefix): v for k, v in module.state_dict().items() if k.startswith(prefix)}
    )
    state = None
    outputs = []
    with torch.no_grad():
        for step in torch.from_numpy(x).unbind(1):
            state = cell(step, state)
            outputs.append(state[0])
        return torch.stack(outputs, 1).numpy()


@pytest.mark.parametrize("name", ["silero_vad_op15", "silero_vad_sequence", "silero_vad_onnx"])
def test_sileros_cell_goes_to_torch_and_keras(name: str, tmp_path: Path) -> None:
    source = corpus_file(name)
    x = np.random.default_rng(9).normal(size=(2, 15, 128)).astype(np.float32)
    expected = silero_cell(x)
    reference = next(iter(lc.read(corpus_file("silero_vad_jit")).recurrent.values()))
    same = [
        layer.name
        for layer in lc.read(source).recurrent.values()
        if all(
            same_bits(block.read(), layer.directions[0].weights[key].read())
            for key, block in reference.directions[0].weights.items()
        )
    ]
    (layer,) = same  # exactly one of its cells is the 16 kHz one, bit for bit
    chosen = ["--layer", layer, "--quiet"]
    assert main(["onnx2keras", str(source), "-o", str(tmp_path / "s.keras"), *chosen]) == 0
    close(run_keras(tmp_path / "s.keras", x), expected)
    assert main(["onnx2torch", str(source), "-o", str(tmp_path / "s.safetensors"), *chosen]) == 0
    (back,) = lc.read(tmp_path / "s.safetensors").recurrent.values()
    y, _ = back.run(x)
    close(y, expected)


@pytest.mark.parametrize(
    "name", ["silero_vad_half", "silero_vad_ifless", "silero_vad_safetensors", "silero_vad_jit"]
)
def test_every_other_silero_file_gives_its_cells(name: str, tmp_path: Path) -> None:
    source = corpus_file(name)
    layers = lc.read(source).recurrent
    assert layers
    for number, (key, layer) in enumerate(layers.items()):
        assert (layer.cell, layer.input_size, layer.hidden_size) == ("lstm", 128, 128)
        result = lc.convert(source, tmp_path / f"{number}.onnx", layer=key)
        assert result.proof is not None
        assert result.proof.proved


# NumPy.


@pytest.mark.parametrize("name", ["enc", "dec"])
def test_g2p_en_converts_with_a_mapping_file_of_the_users_own(name: str, tmp_path: Path) -> None:
    import torch

    source = corpus_file("g2p_en")
    described = Path(__file__).parent / "data" / "g2p_en.toml"
    held = np.load(source)
    gru = torch.nn.GRU(256, 256, batch_first=True)
    own = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
    gru.load_state_dict({theirs: torch.from_numpy(held[f"{name}_{ours}"]) for theirs, ours in own.items()})
    x = np.random.default_rng(11).normal(size=(2, 8, 256)).astype(np.float32)
    with torch.no_grad():
        expected = gru(torch.from_numpy(x))[0].numpy()
    target = tmp_path / "g.onnx"
    assert (
        main(
            [
                "convert",
                str(source),
                "-o",
                str(target),
                "--mapping",
                str(described),
                "--layer",
                name,
                "--quiet",
            ]
        )
        == 0
    )
    close(run_onnx(target, x)[0], expected)


def test_g2p_en_without_a_mapping_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(corpus_file("g2p_en")), "-o", str(tmp_path / "g.onnx")]) != 0
    assert "--mapping" in capsys.readouterr().err
