"""``.keras`` archives against Keras 3.15 and tf_keras 2.21."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lstmconvert.containers import Archive, keras_archive
from lstmconvert.errors import BadFile, ConversionError, NotRepresentable, UnsupportedSource
from lstmconvert.tensors import same_bits
from tests.containers.keras_models import (
    FRAMEWORKS,
    KINDS,
    assert_same_model,
    framework,
    saved,
    v3_weights,
)
from tests.containers.test_hdf5 import Saved, assert_same_archive

__all__ = ["saved"]

WEIGHTS = "model.weights.h5"


def repacked(source: Path, target: Path, **options: Any) -> Path:
    """The same members in another zip; ``changes`` replaces or, with ``None``, drops some."""
    changes = options.pop("changes", {})
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:
        members = {name: old.read(name) for name in old.namelist()} | changes
        for name, content in members.items():
            if content is not None:
                new.writestr(name, content)
    return target


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_archive_has_the_weights_at_their_paths(saved: Saved, tmp_path: Path, name: str, method: int) -> None:
    made, folder = saved[name]
    path = folder / KINDS["keras_archive"]
    if method == zipfile.ZIP_DEFLATED:
        path = repacked(path, tmp_path / "packed.keras", compression=method)
    assert keras_archive.probe(path)
    archive = keras_archive.read(path)
    assert archive.metadata["form"] == "keras_archive"
    assert archive.metadata["keras_version"] == framework(name).__version__
    assert archive.metadata["assets"] == ()
    with zipfile.ZipFile(path) as file:
        assert archive.metadata["config"] == json.loads(file.read("config.json"))
    expected = {f"{group}/vars/{n}": w for group, ws in v3_weights(made) for n, w in enumerate(ws)}
    assert set(archive.tensors) == set(expected)
    for key, value in expected.items():
        assert same_bits(archive.tensors[key].read(), value), key
    if name == "keras":
        assert archive.metadata["variable_names"]["layers/lstm_1"] == "enc_b"


def test_a_written_archive_loads(saved: Saved, tmp_path: Path) -> None:
    made, folder = saved["keras"]
    archive = keras_archive.read(folder / KINDS["keras_archive"])
    path = tmp_path / "written.keras"
    keras_archive.write(path, archive)
    assert_same_archive(keras_archive.read(path), archive)
    assert_same_model(framework("keras").models.load_model(path), made)


def test_writing_is_reproducible(saved: Saved, tmp_path: Path) -> None:
    archive = keras_archive.read(saved["keras"][1] / KINDS["keras_archive"])
    noted = Archive(archive.tensors, {**archive.metadata, "lstmconvert": '{"schema": 1}'})
    for name in ("a.keras", "b.keras"):
        keras_archive.write(tmp_path / name, noted)
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()
    assert_same_archive(keras_archive.read(tmp_path / "a.keras"), noted)
    with zipfile.ZipFile(tmp_path / "a.keras") as file:
        assert file.namelist() == ["config.json", WEIGHTS, "metadata.json"]
        assert {member.date_time for member in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with pytest.raises(FileExistsError):
        keras_archive.write(tmp_path / "a.keras", noted)


def test_assets_are_named_and_not_written(saved: Saved, tmp_path: Path) -> None:
    source = saved["keras"][1] / KINDS["keras_archive"]
    path = repacked(source, tmp_path / "a.keras", changes={"assets/layers/lookup/vocabulary.txt": b"a\nb"})
    archive = keras_archive.read(path)
    assert archive.metadata["assets"] == ("assets/layers/lookup/vocabulary.txt",)
    with pytest.raises(NotRepresentable, match="vocabulary"):
        keras_archive.write(tmp_path / "b.keras", archive)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({WEIGHTS: None, "model.weights.npz": b"x"}, UnsupportedSource, "npz"),
        (
            {WEIGHTS: None, "model.weights.json": b"{}", "model_00000.weights.h5": b"x"},
            UnsupportedSource,
            "shards",
        ),
        ({WEIGHTS: None}, BadFile, "no weights"),
        ({WEIGHTS: b""}, BadFile, "damaged"),
        ({WEIGHTS: b"x" * 100}, BadFile, "damaged"),
        ({"config.json": None}, BadFile, "config.json"),
        ({"config.json": b"[" * 50_000}, BadFile, "JSON"),
        ({"config.json": b"[1]"}, BadFile, "not a JSON object"),
        ({"config.json": b"\xff{}"}, BadFile, "JSON"),
        ({"metadata.json": b'{"keras_version": 3}'}, BadFile, "metadata"),
        ({"../escape": b"x"}, BadFile, "outside the archive"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_broken_archives(
    saved: Saved, tmp_path: Path, changes: dict[str, bytes | None], error: type[ConversionError], message: str
) -> None:
    source = saved["keras"][1] / KINDS["keras_archive"]
    path = repacked(source, tmp_path / "bad.keras", changes=changes)
    with pytest.raises(error, match=message) as caught:
        keras_archive.read(path)
    assert str(path) in str(caught.value)


def test_a_plain_hdf5_file_is_no_weights(saved: Saved, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["a"] = np.ones(2)
    changes = {WEIGHTS: (tmp_path / "plain.h5").read_bytes()}
    path = repacked(saved["keras"][1] / KINDS["keras_archive"], tmp_path / "bad.keras", changes=changes)
    with pytest.raises(BadFile, match="not in the form"):
        keras_archive.read(path)


def test_a_flipped_bit_in_a_weight_is_noticed(saved: Saved, tmp_path: Path) -> None:
    made, folder = saved["keras"]
    content = bytearray((folder / KINDS["keras_archive"]).read_bytes())
    place = content.index(made.get_weights()[0].tobytes())
    content[place] ^= 1
    (tmp_path / "flipped.keras").write_bytes(content)
    with pytest.raises(BadFile, match="checksum"):
        keras_archive.read(tmp_path / "flipped.keras")


def test_newer_structures_inside_a_zip(saved: Saved, tmp_path: Path) -> None:
    weights = tmp_path / "new.h5"
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    with h5py.File(weights, "w", libver="latest") as file:
        file["layers/dense/vars/0"] = value
    source = saved["keras"][1] / KINDS["keras_archive"]
    changes = {WEIGHTS: weights.read_bytes()}
    stored = repacked(source, tmp_path / "stored.keras", changes=changes)
    (tensor,) = keras_archive.read(stored).tensors.values()
    assert same_bits(tensor.read(), value)
    packed = repacked(source, tmp_path / "packed.keras", changes=changes, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadFile, match="zip -0"):
        keras_archive.read(packed)


def test_probe_goes_by_content(saved: Saved, tmp_path: Path) -> None:
    other = tmp_path / "other.keras"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("data.pkl", b"")
    assert not keras_archive.probe(other)
    (tmp_path / "cut.keras").write_bytes(b"PK\x03\x04")
    assert not keras_archive.probe(tmp_path / "cut.keras")
    assert not keras_archive.probe(tmp_path / "missing.keras")
    assert not keras_archive.probe(saved["keras"][1] / KINDS["whole_model"])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("seed", range(3))
def test_damaged_archives_end_in_our_errors(saved: Saved, tmp_path: Path, method: int, seed: int) -> None:
    source = saved["keras"][1] / KINDS["keras_archive"]
    content = repacked(source, tmp_path / "source.keras", compression=method).read_bytes()
    rng = np.random.default_rng(seed)
    path = tmp_path / "damaged.keras"
    refused = 0
    for number in range(60):
        damaged = bytearray(content)
        if number % 3 == 0:
            damaged = damaged[: rng.integers(len(damaged))]
        else:
            # The member table is at the end.
            for place in rng.exponential(2000, size=rng.integers(1, 4)).astype(int):
                damaged[-1 - min(place, len(content) - 1)] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            for tensor in keras_archive.read(path).tensors.values():
                tensor.read()
        except ConversionError:
            refused += 1
    assert refused >= 20, "a cut file should be refused at least"
