"""Configurations that were made to hurt: one plain error each, soon and in little memory, or a safe result."""

from __future__ import annotations

import ast
import io
import json
import random
import resource
import runpy
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import lstmconvert
from lstmconvert.errors import BadFile
from lstmconvert.finite import not_finite
from lstmconvert.model import OperationLayer
from lstmconvert.options import ReadOptions
from lstmconvert.tensors import Lazy
from scripts import first_case, fuzz_models
from tests.loading import script

ROOT = Path(__file__).resolve().parent.parent.parent
FUZZ = sorted((ROOT / "tests" / "data" / "fuzz").glob("*.bin"))
RUN = """
import sys
from lstmconvert import cli
status = cli.main(sys.argv[1:])
# Not ru_maxrss: that begins with the memory of the process that started this one.
print("peak", next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""


def hostile(folder: Path, config: Any) -> Path:
    """The first case's file with another configuration."""
    path = first_case.write_model(folder / "model.h5", "sigmoid")
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
        if len(text) < 60_000:
            file.attrs["model_config"] = np.bytes_(text)
        else:  # HDF5 holds large attributes outside the header
            file.attrs["model_config"] = text.decode()
    return path


def layer(name: str = "lstm_1", **other: object) -> dict[str, object]:
    config = {"name": name, "units": 3, "activation": "tanh", "recurrent_activation": "sigmoid", **other}
    return {"class_name": "LSTM", "config": {"batch_input_shape": [None, 3, 1], **config}}


def sequential(*layers: object) -> dict[str, object]:
    return {"class_name": "Sequential", "config": {"name": "s", "layers": list(layers)}}


def behind(class_name: str, **config: object) -> dict[str, object]:
    """A layer behind one that gives three steps of three features."""
    other = {"class_name": class_name, "config": {"name": "other", **config}}
    return sequential(layer(return_sequences=True), other)


def node(class_name: str, name: str, *inputs: str, **config: object) -> dict[str, object]:
    """A layer that is called once."""
    calls = [[[other, 0, 0, {}] for other in inputs]] if inputs else []
    return {
        "class_name": class_name,
        "name": name,
        "config": {"name": name, **config},
        "inbound_nodes": calls,
    }


def wired(steps: int, last: dict[str, object], *others: dict[str, object]) -> dict[str, object]:
    """An input of one feature, an LSTM that gives all steps, and what is behind it."""
    source = node("InputLayer", "x", batch_input_shape=[None, steps, 1])
    lstm = {**layer(return_sequences=True), "name": "lstm_1", "inbound_nodes": [[["x", 0, 0, {}]]]}
    config = {"name": "m", "layers": [source, lstm, *others, last]}
    ports = {"input_layers": [["x", 0, 0]], "output_layers": [[last["name"], 0, 0]]}
    return {"class_name": "Model", "config": {**config, **ports}}


def without_outputs() -> dict[str, object]:
    """Layers that nothing comes of."""
    model = wired(3, node("Flatten", "f", "lstm_1"))
    return {**model, "config": {**model["config"], "output_layers": []}}  # type: ignore[dict-item]


CASES: dict[str, Any] = {
    "a stride beyond all bounds": behind("MaxPooling1D", pool_size=2, strides=1e308),
    "a stride of nothing": behind("AveragePooling1D", pool_size=2, strides=0),
    "2^62 times as long": behind("UpSampling1D", size=1 << 62),
    "axes that there are not": behind("Permute", dims=[1, 5]),
    "a shape of other numbers": behind("Reshape", target_shape=[7, 7]),
    "more cut off than there is": behind("Cropping1D", cropping=[9, 9]),
    "side by side with other axes": wired(
        3, node("Concatenate", "c", "lstm_1", "f", axis=-1), node("Flatten", "f", "lstm_1")
    ),
    "no outputs": without_outputs(),
    "deep lists": b'{"class_name": "Sequential", "config": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "deep objects": b'{"class_name": "Sequential", "config": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_000 + b"}",
    "a number of 5000 digits": b'{"class_name": "Sequential", "config": ' + b"9" * 5_000 + b"}",
    "2^62 units": sequential(layer(units=1 << 62)),
    "negative units": sequential(layer(units=-3)),
    "units in words": sequential(layer(units="three")),
    "a layer in itself": sequential({"class_name": "Bidirectional", "config": {"name": "b", "layer": sequential(layer())}}),
    "a Lambda layer": sequential({"class_name": "Lambda", "config": {"name": "l", "function": ["4wEAAAA=", None, None]}}),
    "a class of a module": sequential({"class_name": "system", "module": "os", "config": {"name": "rm"}}),
    "an infinite activation": sequential(layer(activation={"class_name": "LeakyReLU", "config": {"alpha": 1e999}})),
    "a shape of 2^60": sequential(layer(batch_input_shape=[None, 1 << 60, 1 << 60])),
    "no layers": sequential(),
    "layers that are no list": {"class_name": "Sequential", "config": {"layers": {"a": 1}}},
    "null": b"null",
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", ["out.onnx", "out.safetensors"])
def test_a_hostile_configuration_is_one_plain_error(tmp_path: Path, case: str, target: str) -> None:
    source = hostile(tmp_path, CASES[case])
    outcome = run(source, tmp_path / target)
    assert outcome.status in (3, 4) or (case == "an infinite activation" and outcome.status == 0), outcome
    if outcome.status:
        assert outcome.error.startswith("lstmconvert: ")
        assert not (tmp_path / target).exists()


def test_layers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"model\.h5: the layers do not fit each other; found layer 'c'"):
        lstmconvert.read(hostile(tmp_path, CASES["side by side with other axes"]))


def test_a_model_without_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"model\.h5: the model has no outputs; found layers .*lstm_1"):
        lstmconvert.read(hostile(tmp_path, CASES["no outputs"]))


# Sizes that a few bytes of a file say: the proof must not run them all.
LONG: dict[str, Any] = {
    "a million steps": sequential(layer(batch_input_shape=[None, 1_000_000, 1])),
    "ten million repetitions": sequential(
        layer(), {"class_name": "RepeatVector", "config": {"name": "r", "n": 10_000_000}}
    ),
    "attention among all steps": wired(
        8000, node("AdditiveAttention", "a", "lstm_1", "lstm_1", use_scale=False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LONG)
def test_a_size_that_a_file_claims_is_not_run(tmp_path: Path, case: str) -> None:
    result = lstmconvert.convert(hostile(tmp_path, LONG[case]), tmp_path / "out.safetensors")
    assert result.proof is not None
    assert result.proof.proved
    assert any("the whole model was not run: its" in reason for reason in result.proof.skipped)
    outcome = run(tmp_path / "model.h5", tmp_path / "again.safetensors")
    assert outcome.status == 0, outcome
    assert outcome.cpu < 5, outcome


class Outcome:
    """How a conversion ended."""

    def __init__(self, status: int, error: str, peak: int, cpu: float) -> None:
        self.status, self.error, self.peak, self.cpu = status, error, peak, cpu

    def __repr__(self) -> str:
        return f"status {self.status}, {self.peak} MB, {self.cpu:.1f} s: {self.error[:400]}"


def run(source: Path, target: Path) -> Outcome:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [sys.executable, "-c", RUN, "convert", str(source), "-o", str(target)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Traceback" not in process.stderr, process.stderr
    assert "internal error" not in process.stderr, process.stderr
    peak = int(process.stdout.rpartition("peak")[2])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    outcome = Outcome(process.returncode, process.stderr, peak, cpu)
    assert peak < 200 + source.stat().st_size / 1e6, outcome
    return outcome


def test_a_thousand_layers_are_no_trouble(tmp_path: Path) -> None:
    layers = [layer()] + [
        {"class_name": "Dropout", "config": {"name": f"dropout_{n}", "rate": 0.1}} for n in range(1_000)
    ]
    outcome = run(hostile(tmp_path, sequential(*layers)), tmp_path / "out.safetensors")
    assert outcome.status in (0, 3, 4), outcome
    assert outcome.cpu < 20, outcome


MANY = 10_000


def many_in_safetensors(path: Path) -> None:
    import safetensors.numpy

    kernel = np.ones((8, 2), np.float32)
    names = [f"lstm.weight_{part}_l{n}" for n in range(MANY) for part in ("ih", "hh")]
    safetensors.numpy.save_file(dict.fromkeys(names, kernel), path)


def many_in_npz(path: Path) -> None:
    np.savez(path, **{f"layer_{n}": np.ones((8, 2), np.float32) for n in range(MANY)})


def many_in_torch(path: Path) -> None:
    import torch

    kernel = torch.ones(8, 2)
    torch.save({f"lstm.weight_{p}_l{n}": kernel.clone() for n in range(MANY) for p in ("ih", "hh")}, path)


def many_in_weights(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for n in range(MANY):
            group = file.create_group(f"layers/lstm_{n}/cell/vars")
            group["0"] = group["1"] = np.ones((2, 8), np.float32)


def many_in_a_legacy_file(path: Path) -> None:
    names = np.array([b"lstm_%d" % n for n in range(MANY)])
    with h5py.File(path, "w") as file:
        for number, part in enumerate(np.array_split(names, 4)):
            file.attrs[f"layer_names{number}"] = part
        file.attrs["keras_version"] = b"2.15.0"


def many_in_onnx(path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    nodes, held, value = [], [numpy_helper.from_array(np.array([1]), "axes")], "x"
    for n in range(MANY):
        for part in "WR":
            held.append(numpy_helper.from_array(np.ones((1, 8, 2), np.float32), f"{part}{n}"))
        nodes.append(helper.make_node("LSTM", [value, f"W{n}", f"R{n}"], [f"y{n}"], hidden_size=2))
        nodes.append(helper.make_node("Squeeze", [f"y{n}", "axes"], [value := f"s{n}"]))
    ports = [helper.make_tensor_value_info(name, 1, ["t", "b", 2]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "many", ports[:1], ports[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


TEN_THOUSAND = {
    "x.safetensors": many_in_safetensors,
    "x.npz": many_in_npz,
    "x.pt": many_in_torch,
    "x.weights.h5": many_in_weights,
    "x.h5": many_in_a_legacy_file,
    "x.onnx": many_in_onnx,
}


@pytest.mark.parametrize("name", TEN_THOUSAND)
def test_ten_thousand_layers_are_refused_at_once(tmp_path: Path, name: str) -> None:
    TEN_THOUSAND[name](tmp_path / name)
    outcome = run(tmp_path / name, tmp_path / "out.keras")
    assert outcome.status == 4, outcome
    assert "expected at most 8192" in outcome.error, outcome
    assert outcome.cpu < 10, outcome


STRANGE = np.array([0x7FC12345, 0xFFA00001, 0xFF800000, 0x7F800000, 0x80000000], np.uint32)
"""NaN with two payloads, one of them signalling, both infinities and a negative zero."""


def numbers_in(path: Path) -> np.ndarray[Any, Any]:
    """The bits of all float32 numbers in a file, by libraries of others."""
    if path.suffix in (".safetensors", ".npz"):
        if path.suffix == ".npz":
            arrays = list(np.load(path).values())
        else:
            from safetensors.numpy import load_file

            arrays = list(load_file(path).values())
    elif path.suffix == ".onnx":
        import onnx

        arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    elif path.suffix == ".pt":
        import torch

        arrays = [tensor.numpy() for tensor in torch.load(path).values()]
    else:
        arrays = []
        content = (
            zipfile.ZipFile(path).read("model.weights.h5") if path.suffix == ".keras" else path.read_bytes()
        )
        with h5py.File(io.BytesIO(content)) as file:
            file.visititems(
                lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None
            )
    flat = [np.ascontiguousarray(a).view(np.uint32).ravel() for a in arrays if a.dtype == np.float32]
    return np.concatenate(flat)


@pytest.mark.parametrize(
    "target", ["out.safetensors", "out.pt", "out.onnx", "out.keras", "out.h5", "out.weights.h5", "out.npz"]
)
def test_nan_and_infinities_arrive_bit_for_bit_and_are_reported(tmp_path: Path, target: str) -> None:
    source = hostile(tmp_path, sequential(layer()))
    with h5py.File(source, "r+") as file:
        data = file["model_weights/lstm_1/lstm_1/recurrent_kernel:0"]
        data[0, :5] = STRANGE.view(np.float32)
    result = lstmconvert.convert(source, tmp_path / target)
    arrived = numbers_in(tmp_path / target)
    assert all(np.count_nonzero(arrived == bits) == 1 for bits in STRANGE)
    assert result.proof is not None
    (sentence,) = [s for s in result.proof.skipped if "NaN or infinite weights" in s]
    assert "4 in layer 'lstm_1': recurrent input, recurrent forget" in sentence
    assert result.report["layers"][0]["not_finite"] == [
        {"block": "recurrent input", "count": 3}, {"block": "recurrent forget", "count": 1},
    ]  # fmt: skip
    verified = lstmconvert.verify(
        source, tmp_path / target, options=ReadOptions(activation="tanh", recurrent_activation="sigmoid")
    )
    assert sentence in verified.skipped


def test_nan_in_a_neighbour_is_reported(tmp_path: Path) -> None:
    model = fuzz_models.models()["attention"]
    norm = model.layers["norm"]
    assert isinstance(norm, OperationLayer)
    spoilt = replace(norm, weights={**norm.weights, "scale": Lazy.of(np.full(4, np.inf, np.float32))})
    lstmconvert.write(replace(model, layers={**model.layers, "norm": spoilt}), tmp_path / "model.keras")
    result = lstmconvert.convert(tmp_path / "model.keras", tmp_path / "model.onnx")
    assert result.proof is not None
    assert any("4 in layer 'norm': scale" in sentence for sentence in result.proof.skipped)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "bfloat16", "float8_e5m2", "float8_e4m3fn"]
)
def test_nan_is_counted_in_every_dtype(dtype: str) -> None:
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    largest = np.full((3, 4), float(ml_dtypes.finfo(kind).max)).astype(kind)
    assert not_finite(largest) == 0  # though the sum is infinite
    largest[1, 2] = np.nan
    assert not_finite(largest) == 1
    assert not_finite(largest.T[2:]) == 1
    assert not_finite(largest[:0]) == not_finite(np.zeros(3, np.int8)) == 0


NAMES = (
    '"); import os; os.system("touch pwned"); ("', "'''", '"""', "a\nimport os", "a\\", "#", "{0}", "%s", "class", "None",
    "__init__", "forward", "self", "load_state_dict", "import", "\u202edrow", "\uff4c\uff53\uff54\uff4d", "\u217clstm", "1", " ", "a/b/c",
    "a.b", "x" * 5000, "\0", "\ud7ff", "lambda: 0", "training",
)  # fmt: skip
ALLOWED = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef, ast.Expr, ast.Assign, ast.AnnAssign)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_gets_into_generated_source(tmp_path: Path, name: str) -> None:
    model = lstmconvert.read(first_case.write_model(tmp_path / "model.h5", "sigmoid"))
    old = next(iter(model.recurrent))
    layers = {
        name if key == old else key: replace(value, name=name) if key == old else value
        for key, value in model.layers.items()
    }
    calls = tuple(replace(call, layer=name) if call.layer == old else call for call in model.calls or ())
    renamed = replace(model, layers=layers, calls=calls)
    lstmconvert.write(renamed, tmp_path / "out.safetensors")
    source = (tmp_path / "out.py").read_text(encoding="utf-8")
    plain = lstmconvert.write(model, tmp_path / "plain.safetensors")
    assert source.isascii() or not name.isascii()
    kinds = [type(node).__name__ for node in ast.walk(ast.parse(source))]
    expected = [type(node).__name__ for node in ast.walk(ast.parse(plain[1].read_text(encoding="utf-8")))]
    assert sorted(kinds) == sorted(expected), source
    imports = {
        n.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for n in node.names
    }
    assert "os" not in imports


def test_names_that_become_the_same_stay_apart(tmp_path: Path) -> None:
    """Spaces, dots, keywords and look-alike letters: what is left of the names is equal."""
    import torch

    model = fuzz_models.models()["attention"]
    names = dict(
        zip(model.layers, ("a b", "a_b", "a.b", "\uff41_b", "class", "Class", "class_"), strict=True)
    )
    renamed = replace(
        model,
        layers={names[key]: replace(layer, name=names[key]) for key, layer in model.layers.items()},
        calls=tuple(replace(call, layer=names[call.layer]) for call in model.calls or ()),
    )
    for target in ("out.onnx", "out.keras", "out.safetensors"):
        lstmconvert.write(renamed, tmp_path / target)
        assert lstmconvert.verify(renamed, tmp_path / target).proved
    built = runpy.run_path(str(tmp_path / "out.py"))["Model"].load(tmp_path / "out.safetensors")
    x = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(built(torch.from_numpy(x)).detach().numpy(), model.run(x), atol=1e-6)


def test_the_fuzzer_finds_nothing_in_a_short_run(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / "fuzz", "--count", "400", "--minutes", "3", "--findings", tmp_path / "findings"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "findings: 0" in result.stdout


def test_the_fuzzer_sees_what_should_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = script("fuzz")
    watch = fuzz.Watch()
    from lstmconvert import cli

    def broken(arguments: list[str]) -> int:
        raise KeyError("x")

    monkeypatch.setattr(cli, "main", broken)
    case = fuzz.FuzzCase("x", "x.h5", {"x.h5": b"x"}, "x.h5", ("inspect",))
    assert fuzz.run_case(tmp_path / "a", case, watch) == ("traceback", "KeyError: 'x'")

    def careless(arguments: list[str]) -> int:
        subprocess.run([sys.executable, "-c", ""], check=True)
        (Path(arguments[1]).parent.parent / "left").write_bytes(b"")
        return 4

    monkeypatch.setattr(cli, "main", careless)
    _, wrong = fuzz.run_case(tmp_path / "b", case, watch)
    assert "subprocess.Popen" in wrong
    assert "left left behind" in wrong
    assert "without a message" in wrong

    def inventing(arguments: list[str]) -> int:
        with np.load(arguments[1]) as given:
            changed = {name: array + 1 for name, array in given.items()}
        np.savez(arguments[3], **changed)
        return 0

    monkeypatch.setattr(cli, "main", inventing)
    np.savez(tmp_path / "x.npz", kernel=np.eye(3, dtype=np.float32))
    files = {"x.npz": (tmp_path / "x.npz").read_bytes()}
    case = fuzz.FuzzCase("x", "x.npz", files, "x.npz", ("convert", "-o", "out.npz"))
    _, wrong = fuzz.run_case(tmp_path / "c", case, watch)
    assert wrong == "proved 1 weights that the source does not have, such as 2.0"


def test_a_case_of_a_seed_is_always_the_same() -> None:
    fuzz = script("fuzz")
    contents = {"a.npz": b"PK" + bytes(range(200)), "b.h5": bytes(100)}
    known = {name: fuzz.Seed(name, {name: data}, "numpy") for name, data in contents.items()}
    assert [fuzz.make_case(known, 5, n) for n in range(50)] == [
        fuzz.make_case(known, 5, n) for n in range(50)
    ]


def test_graphs_are_damaged_in_every_way() -> None:
    """Also those whose names are no text any more; a mutator that fails would stop the whole run."""
    fuzz = script("fuzz")
    data = (fuzz_models.EXPORTED / "rnn_loop.onnx").read_bytes()
    changed = {fuzz._graph(data, random.Random(number)) for number in range(200)}
    assert len(changed) > 150
    spoilt = data.replace(b"sequential", b"seq\xe1ential")
    assert len({fuzz._graph(spoilt, random.Random(number)) for number in range(200)}) > 1


@pytest.mark.parametrize("path", FUZZ, ids=lambda path: path.stem)
def test_what_the_fuzzers_found_is_mended(tmp_path: Path, path: Path) -> None:
    source = tmp_path / path.stem
    source.write_bytes(path.read_bytes())
    outcome = run(source, tmp_path / "out.onnx")
    # Two recurrent layers without a wiring that is understood: the user has to choose one.
    several = ("dozens_of_axes.onnx", "features_without_end.onnx")
    assert outcome.status in ((2,) if path.stem in several else (0, 3, 4)), outcome
    assert outcome.cpu < 5, outcome
    assert outcome.peak < 300, outcome


def test_a_state_that_claims_another_size_is_refused_before_it_is_made(tmp_path: Path) -> None:
    found = run(
        ROOT / "tests" / "data" / "fuzz" / "state_of_another_size" / "model.xml", tmp_path / "out.onnx"
    )
    assert found.status == 4
    assert "an initial state is not of the layer's size; found 134217731, expected 3" in found.error
    assert found.peak < 300
