"""The pipeline: what it promises about files, whatever the frameworks are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert import destinations, registry, report
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.cli import main
from lstmconvert.lowering import Rewrite
from lstmconvert.model import Model
from lstmconvert.tensors import Array, Lazy, same_bits
from tests.support import random_layer

BOTH = ("forward", "reverse")


def stored(path: Path, *layers: RecurrentLayer) -> Path:
    """Layers in the one format that holds every option."""
    lc.write(Model({layer.name: layer for layer in layers}), path, to="numpy")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return stored(tmp_path / "source.npz", random_layer("lstm", seed=1, directions=BOTH))


def same_layers(a: RecurrentLayer, b: RecurrentLayer) -> bool:
    return all(
        x.equations == y.equations
        and set(x.weights) == set(y.weights)
        and all(same_bits(x.weights[key].read(), y.weights[key].read()) for key in x.weights)
        for x, y in zip(a.directions, b.directions, strict=True)
    )


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("biases", ["two", "input", "recurrent", "none"])
@pytest.mark.parametrize("directions", [("forward",), ("reverse",), BOTH])
def test_the_numpy_dump_holds_everything(
    cell: str, biases: str, directions: tuple[str, ...], tmp_path: Path
) -> None:
    extra: dict[str, Any] = {"peephole": True, "projection": 2} if cell == "lstm" else {}
    layer = random_layer(cell, seed=2, biases=biases, directions=directions, **extra)
    (back,) = lc.read(stored(tmp_path / "x.npz", layer)).recurrent.values()
    assert same_layers(layer, back)


@pytest.mark.parametrize(
    "target", ["out.onnx", "out.keras", "out.safetensors", "out.pt", "out.h5", "out.npz"]
)
def test_a_conversion_is_proved_and_leaves_the_source_alone(
    source: Path, tmp_path: Path, target: str
) -> None:
    before = source.read_bytes()
    to = "numpy" if target.endswith(".npz") else None
    result = lc.convert(source, tmp_path / target, to=to)
    assert source.read_bytes() == before
    assert result.proof is not None
    assert result.proof.verdict == "proved"
    for side, path in (("source", source), ("target", tmp_path / target)):
        assert result.report[side]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {p.name for p in tmp_path.iterdir()} == {"source.npz", *(p.name for p in result.written)}


def test_a_wrong_weight_in_the_written_file_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof reads the file, not the memory: one changed number on the way to disk must fail it."""
    module = registry.container_module("onnx_file")
    honest = module.write

    def dishonest(path: Path, archive: Any) -> None:
        name = next(n for n, t in archive.tensors.items() if t.shape and t.size > 10)
        old = archive.tensors[name]

        def changed(array: Array) -> Array:
            new = array.copy()
            new.flat[3] += 0.5
            return new

        honest(path, type(archive)({**archive.tensors, name: old.map(changed, old.shape)}, archive.metadata))

    monkeypatch.setattr(module, "write", dishonest)
    with pytest.raises(lc.VerificationFailed, match="not proved"):
        lc.convert(source, tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source.npz"]


def test_swapped_gates_in_the_plan_are_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that swaps two gates writes and reads back its own mistake: only the source can tell."""
    from lstmconvert import lowering
    from lstmconvert.gates import Gate

    swap = {Gate.INPUT: Gate.FORGET, Gate.FORGET: Gate.INPUT}

    def swapped(model: Model, mapping: Any, keep: Any = None) -> tuple[Model, tuple[Rewrite, ...]]:
        def turn(layer: Any) -> Any:
            return layer.mapped(
                lambda d: type(d)(
                    d.direction,
                    d.equations,
                    type(d.weights)(
                        d.weights.cell, {(p, swap.get(g, g)): block for (p, g), block in d.weights.items()}
                    ),
                )
            )

        return model.map_layers(turn), ()

    monkeypatch.setattr(lowering, "lower", swapped)
    with pytest.raises(lc.VerificationFailed, match=r"layer .* differs by"):
        lc.convert(source, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_an_existing_target_is_replaced_only_on_request(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"precious")
    with pytest.raises(lc.Usage, match="overwrite"):
        lc.convert(source, target)
    assert target.read_bytes() == b"precious"
    lc.convert(source, target, overwrite=True)
    assert target.read_bytes() != b"precious"


def test_the_source_is_never_the_target(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(lc.Usage):
        lc.convert(source, source, to="numpy", overwrite=True)
    assert source.read_bytes() == before


def test_several_stacks_go_into_a_folder_or_one_is_chosen(tmp_path: Path) -> None:
    layers = [random_layer("lstm", seed=n, name=f"rnn_{n}") for n in (1, 2)]
    source = stored(tmp_path / "two.npz", *layers)
    with pytest.raises(lc.Usage, match="--layer"):
        lc.convert(source, tmp_path / "out.onnx")
    folder = lc.convert(source, tmp_path / "out", to="onnx")
    assert sorted(p.name for p in folder.written) == ["rnn_1.onnx", "rnn_2.onnx"]
    single = lc.convert(source, tmp_path / "second.onnx", layer="rnn_2")
    assert single.proof is not None
    assert [p.name for p in single.proof.layers] == ["rnn_2"]
    torch = lc.convert(source, tmp_path / "both.safetensors")
    assert len(torch.written) == 1


def test_two_biases_survive_a_target_with_one(tmp_path: Path) -> None:
    source = stored(tmp_path / "x.npz", random_layer("lstm", seed=4, biases="two"))
    result = lc.convert(source, tmp_path / "x.keras")
    assert [r.name for r in result.rewrites] == ["sum_biases"]
    assert result.proof is not None
    assert not result.proof.exact
    assert 0 < result.rewrites[0].rounding < 1e-6
    lc.convert(tmp_path / "x.keras", tmp_path / "back.npz", to="numpy")
    (a,), (b,) = (lc.read(p).recurrent.values() for p in (source, tmp_path / "back.npz"))
    assert same_layers(a, b)


def test_another_dtype_is_cast_and_reported(source: Path, tmp_path: Path) -> None:
    result = lc.convert(source, tmp_path / "half.safetensors", dtype="float16", tolerance=0.1)
    assert any(r.name == "cast" and not r.exact for r in result.rewrites)
    (layer,) = lc.read(tmp_path / "half.safetensors").recurrent.values()
    assert layer.dtype == np.float16


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.0])
def test_unusual_numbers_arrive_bit_for_bit(tmp_path: Path, value: float) -> None:
    def odd(direction: Any) -> Any:
        key = next(iter(direction.weights))
        array = direction.weights[key].read().copy()
        array.flat[0] = value
        return type(direction)(
            direction.direction, direction.equations, direction.weights.with_blocks({key: Lazy.of(array)})
        )

    source = stored(tmp_path / "x.npz", random_layer("gru", seed=9).mapped(odd))
    result = lc.convert(source, tmp_path / "x.onnx")
    assert result.proof is not None
    assert all(layer.bit_equal for layer in result.proof.layers)
    lc.convert(tmp_path / "x.onnx", tmp_path / "back.npz", to="numpy")
    (a,), (b,) = (lc.read(p).recurrent.values() for p in (source, tmp_path / "back.npz"))
    assert same_layers(a, b)


# The command line.


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    """Exit status, the JSON object on stdout, and stderr."""
    status = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out), captured.err


def test_json_of_a_conversion_has_the_promised_fields(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, value, _ = run(
        capsys, "convert", source, "-o", tmp_path / "o.onnx", "--report", tmp_path / "r.json"
    )
    assert status == 0
    assert value["verdict"] == "proved"
    assert {"exact", "max_abs_error", "max_rel_error", "tolerance", "layers", "rewrites", "seconds"} <= set(
        value
    )
    written = json.loads((tmp_path / "r.json").read_text())
    assert written.pop("gate_maps")
    assert written == value
    assert value["versions"]["numpy"] == np.__version__


def test_json_of_inspect_has_the_promised_fields(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, value, _ = run(capsys, "inspect", source)
    assert status == 0
    (layer,) = value["layers"]
    assert {"framework", "container", "layers", "topology"} <= set(value)
    assert layer["gates"] == ["input", "forget", "cell", "output"]
    assert (layer["input_size"], layer["hidden_size"], layer["direction"]) == (3, 5, "bidirectional")


def test_verify_tells_equal_from_different(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lc.convert(source, tmp_path / "o.onnx")
    other = stored(tmp_path / "other.npz", random_layer("lstm", seed=99, directions=BOTH))
    assert run(capsys, "verify", source, tmp_path / "o.onnx")[0] == 0
    status, value, _ = run(capsys, "verify", other, tmp_path / "o.onnx")
    assert status == 1
    assert value["verdict"] == "failed"


def test_frameworks_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    status, value, _ = run(capsys, "frameworks")
    assert status == 0
    assert {"keras", "pytorch", "onnx", "numpy"} <= {entry["name"] for entry in value}
    assert all({"name", "reads", "writes", "cells", "verified"} <= set(entry) for entry in value)


@pytest.mark.parametrize(
    ("arguments", "status", "piece"),
    [
        (["keras2onnx", "missing.h5"], 4, "no such file"),
        (["keras2onnx", "."], 4, "folder"),
        (["convert", "{source}", "-o", "x.unknown"], 2, "--to"),
        (
            ["convert", "{source}", "-o", "x.onnx", "--layer", "nothing"],
            2,
            "no recurrent layer called 'nothing'",
        ),
        (["convert", "{source}", "-o", "x.onnx", "--opset", "many"], 2, "--opset"),
        (["keras2onnx", "{source}"], 4, ""),
        (["nonsense"], 2, "invalid choice"),
        (["inspect", "{source}", "--mapping", "missing.toml"], 4, "mapping file"),
        (["convert", "{peephole}", "-o", "x.keras"], 3, "no peephole"),
    ],
)
def test_errors_are_plain_lines_with_their_status(
    source: Path,
    tmp_path: Path,
    arguments: list[str],
    status: int,
    piece: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    peephole = stored(tmp_path / "peephole.npz", random_layer("lstm", seed=5, peephole=True))
    before = sorted(tmp_path.iterdir())
    given = [a.format(source=source, peephole=peephole) for a in arguments]
    assert main(given) == status
    captured = capsys.readouterr()
    assert piece in captured.err
    assert captured.err.startswith("lstmconvert: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    got, value, _ = run(capsys, *given)
    assert (got, value["exit_status"]) == (status, status)
    assert {"error", "message"} <= set(value)
    assert sorted(tmp_path.iterdir()) == before


def test_the_default_target_is_named_after_the_source() -> None:
    assert destinations.default_target(Path("a/model.weights.h5"), ".onnx") == Path("a/model.onnx")
    assert destinations.default_target(Path("a/model.h5"), ".safetensors") == Path("a/model.safetensors")
    assert destinations.default_target(Path("checkpoint"), ".onnx") == Path("checkpoint.onnx")


@pytest.mark.parametrize("turned", [False, True])
def test_weights_alone_of_a_layer_that_runs_backwards(tmp_path: Path, turned: bool) -> None:
    import keras

    network = keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4, go_backwards=turned)])
    network.save(source := tmp_path / "source.keras")
    proof = lc.convert(source, tmp_path / "target.weights.h5").proof
    assert proof is not None and proof.proved
    assert any("runs backwards" in reason for reason in proof.skipped) is turned
    before = network.get_weights()
    network.set_weights([np.zeros_like(w) for w in before])
    network.load_weights(tmp_path / "target.weights.h5")
    assert all(np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True))


@pytest.mark.parametrize("more", [0, 9])
def test_tensors_that_are_not_converted_are_named(tmp_path: Path, more: int) -> None:
    import torch
    from safetensors.torch import save_file

    state = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(3, 4), "head": torch.nn.Linear(4, 2)}).state_dict()
    state |= {f"more.{n}": torch.ones(2) for n in range(more)}
    save_file(state, source := tmp_path / "source.safetensors")
    result = lc.convert(source, tmp_path / "target.onnx")
    (said,) = (text for text in report.conversion(result)["skipped"] if "left out" in text)
    assert "head.bias, head.weight" in said and "lstm." not in said
    assert said.endswith("and more (see inspect)") is bool(more)
