"""Pickled arrays and PaddlePaddle's parameters: the ones that real libraries make, and the ones that attack."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import haiku
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert import cli
from lstmconvert.containers import Archive
from lstmconvert.containers import pickle as container
from lstmconvert.errors import BadFile, ConversionError, UnsupportedSource
from lstmconvert.tensors import Lazy, same_bits
from tests import paddle_files
from tests.apart import apart


def pickled(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_that_numpy_and_jax_pickle(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(2)
    arrays = {
        "f4": rng.normal(size=(3, 4)).astype(np.float32),
        "big": rng.normal(size=2000).astype(">f8"),
        "columns": np.asfortranarray(rng.normal(size=(30, 40))),
        "bf16": np.arange(4).astype(ml_dtypes.bfloat16),
        "scalar": np.array(-0.0),
        "none": np.zeros((0, 2)),
    }
    value = {
        "a": arrays,
        "list": [jnp.arange(3.0)],
        "ordered": OrderedDict(x=np.ones(2)),
        "epoch": 3,
        "name": "x",
    }
    found = container.read(pickled(tmp_path / "a.pkl", value, protocol)).tensors
    assert found.keys() == {*(f"a/{name}" for name in arrays), "list/0", "ordered/x"}
    for name, array in arrays.items():
        native = np.array(array, array.dtype.newbyteorder("="), order="C")
        assert same_bits(found[f"a/{name}"].read(), native), name


def test_haikus_own_dictionaries(tmp_path: Path) -> None:
    tree = haiku.data_structures.to_haiku_dict({"lstm/linear": {"w": np.ones((2, 3)), "b": np.zeros(3)}})
    mapping = haiku.data_structures.to_immutable_dict(tree)
    found = container.read(pickled(tmp_path / "a.pkl", mapping)).tensors
    assert found.keys() == {"lstm/linear/w", "lstm/linear/b"}


def test_python_reads_what_is_written(tmp_path: Path) -> None:
    arrays = {
        "net/lstm/w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(3, ">i2"),
        "z": np.zeros((0, 3)),
    }
    path = tmp_path / "a.pkl"
    container.write(path, Archive({n: Lazy.of(a) for n, a in arrays.items()}, {"lstmconvert": "kept"}))
    found = pickle.loads(path.read_bytes())
    assert same_bits(found["net/lstm"]["w"], arrays["net/lstm/w"])
    assert found["b"].tolist() == [1, 1, 1]
    assert found["z"].shape == (0, 3)
    back = container.read(path)
    assert back.metadata["lstmconvert"] == "kept"
    assert all(
        same_bits(back.tensors[n].read(), a.astype(a.dtype.newbyteorder("="))) for n, a in arrays.items()
    )


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.given = (function, arguments)

    def __reduce__(self) -> Any:
        return self.given


ATTACKS = {
    "a command": Attack(os.system, "touch pwned"),
    "text as code": Attack(eval, "open('pwned', 'w')"),
    "numpy's own reader": Attack(np.load, "pwned"),
    "a file": Attack(open, "pwned", "w"),
    "an import": Attack(__import__, "antigravity"),
    "an attribute": Attack(getattr, "text", "upper"),
}


@pytest.mark.parametrize("suffix", [".pkl", ".pdparams"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_pickle_is_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    attack: str,
    suffix: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for hidden in (
        ATTACKS[attack],
        {"w": np.ones((2, 2)), "x": ATTACKS[attack]},
        {"w": [1, ATTACKS[attack]]},
    ):
        path = pickled(tmp_path / f"a{suffix}", hidden)
        assert cli.main(["convert", str(path), "-o", "out.npz", "--to", "numpy"]) in (2, 3, 4)
        assert "Traceback" not in capsys.readouterr().err
        assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_an_array_of_objects_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = {"w": np.array([ATTACKS["a command"], 1], object), "b": np.ones(3)}
    try:
        assert list(container.read(pickled(tmp_path / "a.pkl", value)).tensors) == ["b"]
    except ConversionError as error:
        assert "a.pkl" in str(error)
    assert not (tmp_path / "pwned").exists()


def test_a_pickle_without_arrays_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSource, match="str"):
        container.read(pickled(tmp_path / "a.pkl", {"a": "text"}))


def test_a_lying_array_is_refused(tmp_path: Path) -> None:
    good = pickle.dumps({"w": np.arange(6.0).reshape(2, 3)}, 2)
    path = tmp_path / "a.pkl"
    shape = b"K\x02K\x03\x86"
    assert shape in good
    for wrong in (
        b"K\x02K\x04\x86",
        b"J\xff\xff\xff\xffK\x03\x86",
        b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86",
    ):
        path.write_bytes(good.replace(shape, wrong))
        with pytest.raises(BadFile):
            container.read(path)


# PaddlePaddle, which runs in a process of its own.


def test_paddles_doubled_names_are_one_layer(tmp_path: Path) -> None:
    path = tmp_path / "a.pdparams"
    x, y, names = apart(paddle_files.save)(path)
    assert {"rnn.weight_ih_l0", "rnn.0.cell_fw.weight_ih", "fc.weight"} <= set(names)
    model = lc.read(path)
    (layer,) = model.recurrent.values()
    assert all(".cell" in name for name in layer.origin)
    np.testing.assert_allclose(layer.run(x)[0], y, atol=2e-6)
    assert set(model.metadata["other_tensors"]) == {"fc.weight", "fc.bias", *(n for n in names if "_l0" in n)}


def test_doubled_names_with_different_numbers_are_refused(tmp_path: Path) -> None:
    """They are one parameter: which of two different arrays was meant, nobody can say."""
    path = tmp_path / "a.pdparams"
    apart(paddle_files.save)(path)
    tree = pickle.loads(path.read_bytes())
    changed = {
        name: (np.array(value) if isinstance(value, np.ndarray) else value) for name, value in tree.items()
    }
    changed["rnn.weight_ih_l0"][0, 0] += 1
    with pytest.raises(BadFile, match="different numbers"):
        lc.convert(pickled(path, changed), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_paddle_loads_what_is_written(tmp_path: Path) -> None:
    path, out = tmp_path / "a.pdparams", tmp_path / "b.pdparams"
    x, y, _ = apart(paddle_files.save)(path)
    lc.convert(path, tmp_path / "a.safetensors")
    lc.convert(tmp_path / "a.safetensors", out, to="paddle")
    missing, given = apart(paddle_files.load)(out, x)
    assert not missing
    np.testing.assert_array_equal(given, y)


def test_two_pickles_of_which_the_second_attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered stands in a second pickle: it is read as restricted as the first."""
    monkeypatch.chdir(tmp_path)
    stream = io.BytesIO()
    pickle.dump({"w": np.ones(3)}, stream, 4)
    pickle.dump({"lstmconvert-metadata": ATTACKS["a command"]}, stream, 4)
    path = tmp_path / "a.pkl"
    path.write_bytes(stream.getvalue())
    assert list(container.read(path).tensors) == ["w"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize(
    "fault", [lambda a: a[:-1], lambda a: a.astype(np.int32)], ids=["short", "whole numbers"]
)
def test_a_damaged_bias_is_not_left_out(tmp_path: Path, fault: Any, doubled: bool) -> None:
    """A layout without biases fits as well, and would convert a model that has lost one."""
    rng = np.random.default_rng(1)
    shapes = {"weight_ih": (12, 2), "weight_hh": (12, 3), "bias_ih": (12,), "bias_hh": (12,)}
    tree = {f"0.cell.{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if doubled:
        tree |= {f"{name}_l0": tree[f"0.cell.{name}"] for name in shapes}
    path = pickled(tmp_path / "a.pdparams", tree)
    assert lc.read(path, framework="paddle").weights == 84
    pickled(path, {**tree, "0.cell.bias_ih": fault(tree["0.cell.bias_ih"])})
    with pytest.raises(BadFile, match=r"bias_ih"):
        lc.read(path, framework="paddle")
    with pytest.raises(lc.ConversionError):
        lc.convert(path, tmp_path / "out.safetensors")
