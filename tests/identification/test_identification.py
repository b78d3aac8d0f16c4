"""identify: the right layout and equations for samples of real runtimes and drawn dumps, and no false certainty."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert.cli import main
from lstmconvert.tensors import same_bits
from scripts import first_case
from tests.counting import COUNTED
from tests.identification.packings import draw, same_layer, sample_of

KERAS_ORDER = ("input", "forget", "cell", "output")


def first_case_dump(folder: Path) -> Path:
    np.savez(folder / "dump.npz", *first_case.arrays().values())
    return folder / "dump.npz"


def keras_sample(folder: Path, reading: str) -> tuple[Path, Path]:
    """An input and what Keras 2 makes of it."""
    import tf_keras

    judge = tf_keras.models.load_model(first_case.write_model(folder / "model.h5", reading))
    x = np.array(first_case.INPUT, np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", judge.predict(x, verbose=0))
    return folder / "x.npy", folder / "y.npy"


@pytest.mark.parametrize(
    ("reading", "activation"), [("sigmoid", "sigmoid"), ("hard_sigmoid", "hard_sigmoid(0.2, 0.5)")]
)
def test_the_first_case_is_certain_and_becomes_convertible(
    reading: str, activation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = first_case_dump(tmp_path)
    x, y = keras_sample(tmp_path, reading)
    command = ["identify", str(dump), "--input", str(x), "--output", str(y)]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cell"], tuple(found["gates"]), found["certain"]) == ("lstm", KERAS_ORDER, True)
    assert found["mapping"] == "keras"
    assert found["layers"][0]["activations"]["gate"] == activation
    assert found["error"] < 1e-6 < 1e-4 < found["runner_up_error"]
    alone = {e["claim"]: e["certain"] for e in found["layers"][0]["evidence"]}
    assert alone["block 2 of 4 is the forget gate"] is True
    assert alone["the cell is an LSTM"] is True

    described, target = tmp_path / "dump.toml", tmp_path / "out.onnx"
    assert main([*command, "--write-mapping", str(described)]) == 0
    text = capsys.readouterr().out
    assert "certain: LSTM with its gates in the order input, forget, cell, output" in text
    assert f"lstmconvert convert {dump} -o OUT.onnx --mapping {described}" in text
    assert main(["convert", str(dump), "-o", str(target), "--mapping", str(described), "--quiet"]) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (sequence, *_) = session.run(None, {session.get_inputs()[0].name: np.load(x)})
    np.testing.assert_allclose(sequence.reshape(3, -1)[-1], np.load(y)[0], rtol=0, atol=1e-6)


def test_without_a_sample_there_is_only_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump = first_case_dump(tmp_path)
    assert main(["identify", str(dump), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["certain"], found["error"], found["runner_up_error"]) == (False, None, None)
    assert (found["cell"], tuple(found["gates"]), found["mapping"]) == ("lstm", KERAS_ORDER, "keras")
    assert {"claim": "block 2 of 4 is the forget gate", "certain": True}.items() <= next(
        e for e in found["layers"][0]["evidence"] if "forget" in e["claim"]
    ).items()
    assert found["doubts"]
    assert main(["identify", str(dump), "--write-mapping", str(tmp_path / "m.toml")]) == 2
    assert "--input" in capsys.readouterr().err
    assert not (tmp_path / "m.toml").exists()


def test_a_forget_block_elsewhere_changes_the_guess() -> None:
    kernel, recurrent, bias = first_case.arrays().values()
    moved = lc.identify([kernel, recurrent, np.roll(bias, 3)])
    assert moved.gates[2] == "forget"
    assert not moved.certain


@pytest.mark.parametrize("part", range(4))
def test_drawn_packings_are_found_and_never_falsely_certain(
    part: int, record_property: pytest.RecordProperty
) -> None:
    found = certain = 0
    for seed in range(50 * part, 50 * (part + 1)):
        drawn = draw(seed)
        x, y = sample_of(drawn.layer, seed)
        result = lc.identify(drawn.arrays, x, y[:, -1] if seed % 3 == 0 else y)
        right = same_layer(result.layers[0].layer, drawn.layer)
        found += right
        certain += result.certain
        assert right or not result.certain, f"wrong and called certain: {drawn.words}"
        record_property(
            COUNTED, f"drawn packings {'found' if right else 'missed'}{', certain' if result.certain else ''}"
        )
    assert found >= 49.5
    assert certain >= 47


@pytest.mark.parametrize("seed", range(12))
def test_a_mapping_file_that_was_written_reads_the_dump_bit_for_bit(seed: int, tmp_path: Path) -> None:
    drawn = draw(1000 + seed)
    np.savez(tmp_path / "dump.npz", **drawn.arrays)
    x, y = sample_of(drawn.layer, seed)
    described = tmp_path / "dump.toml"
    found = lc.identify(tmp_path / "dump.npz", x, y, write_mapping=described)
    assert found.certain, drawn.words
    assert found.mapping == str(described)
    (layer,) = lc.read(tmp_path / "dump.npz", mapping=described).recurrent.values()
    own, read = drawn.layer.directions[0], layer.directions[0]
    assert read.equations == own.equations, drawn.words
    for key, block in own.weights.items():
        if "bias" not in key[0]:
            assert same_bits(read.weights[key].read().copy(), block.read().copy()), f"{key} {drawn.words}"
    np.testing.assert_allclose(layer.run(x)[0], y, rtol=0, atol=1e-6)


# What a sample cannot tell is said.


def test_one_step_says_nothing_of_the_recurrent_kernel() -> None:
    drawn = draw(3)
    x, y = sample_of(drawn.layer, 3, batch=8, time=1)
    found = lc.identify(drawn.arrays, x, y)
    assert found.fits
    assert not found.certain
    assert any("cannot tell apart" in doubt for doubt in found.doubts)


def test_a_sample_of_something_else_fits_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = draw(4)
    x, y = sample_of(drawn.layer, 4)
    np.savez(tmp_path / "dump.npz", **drawn.arrays)
    np.save(tmp_path / "x.npy", x)
    np.save(
        tmp_path / "y.npy",
        y + np.float32(0.01) * np.sin(np.arange(y.size, dtype=np.float32)).reshape(y.shape),
    )
    command = ["identify", str(tmp_path / "dump.npz"), "--input", str(tmp_path / "x.npy")]
    command += ["--output", str(tmp_path / "y.npy"), "--json"]
    assert main(command) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["certain"]
    assert found["mapping"] is None
    assert "nothing that was tried explains the sample" in found["doubts"][0]


def test_a_few_numbers_are_not_enough() -> None:
    drawn = draw(2)
    x, y = sample_of(drawn.layer, 2, batch=1, time=4)
    found = lc.identify(drawn.arrays, x, np.round(y[:, -1], 2))
    assert not found.certain


def test_time_major_samples_are_read() -> None:
    drawn = draw(5)
    x, y = sample_of(drawn.layer, 5)
    found = lc.identify(drawn.arrays, x.transpose(1, 0, 2), y.transpose(1, 0, 2))
    assert found.certain
    assert "(time, batch, features)" in (found.sample or "")
    alone = lc.identify(drawn.arrays, x[0], y[0])
    assert same_layer(alone.layers[0].layer, drawn.layer)


@pytest.mark.parametrize("first", ["hidden", "cell"])
def test_the_order_of_given_states_is_found(first: str) -> None:
    drawn = next(d for d in map(draw, range(20, 60)) if d.layer.cell == "lstm")
    layer = drawn.layer
    rng = np.random.default_rng(8)
    x = rng.standard_normal((3, 4, layer.input_size)).astype(np.float32)
    h, c = (rng.uniform(-1, 1, (3, layer.hidden_size)).astype(np.float32) for _ in range(2))
    y, (h_n, c_n) = layer.run(x, initial_state=(h[np.newaxis], c[np.newaxis]))
    ends = (h_n, c_n[0])
    if first == "hidden":
        found = lc.identify(drawn.arrays, (x, h, c), (y, *ends))
    else:
        found = lc.identify(drawn.arrays, (x, c, h), (y, *reversed(ends)))
    assert found.certain, found.doubts
    assert found.states[0] == first
    assert same_layer(found.layers[0].layer, layer)


# Errors for people.


def test_wrong_samples_and_arrays_are_refused() -> None:
    drawn = draw(6)
    x, y = sample_of(drawn.layer, 6)
    with pytest.raises(lc.Usage, match="inputs and outputs together"):
        lc.identify(drawn.arrays, x)
    with pytest.raises(lc.Usage, match="do not fit each other"):
        lc.identify(drawn.arrays, x, y[:, :-1])
    with pytest.raises(lc.Usage, match="takes the sample's input to its output"):
        lc.identify(drawn.arrays, np.zeros((2, 3, 50), np.float32), np.ones((2, 3, 60), np.float32))
    with pytest.raises(lc.Usage, match="NaN"):
        lc.identify(drawn.arrays, x * np.float32(np.nan), y)
    with pytest.raises(lc.UnsupportedSource, match="make a recurrent layer"):
        lc.identify([np.zeros(7, np.float32), np.zeros(5, np.float32)])
    with pytest.raises(lc.UnsupportedSource, match="floating point"):
        lc.identify([np.zeros(3, np.int64)])


def test_files_that_are_none_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dump.npz").write_bytes(b"no archive at all")
    assert main(["identify", str(tmp_path / "dump.npz")]) == 4
    assert "not a file that lstmconvert can read" in capsys.readouterr().err
    assert main(["identify", str(tmp_path / "missing.npz")]) == 4
    dump = first_case_dump(tmp_path)
    (tmp_path / "x.npy").write_bytes(b"nothing")
    assert (
        main(["identify", str(dump), "--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "x.npy")])
        == 4
    )
