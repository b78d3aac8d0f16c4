"""HDF5 files against Keras 3.15 and tf_keras 2.21, which wrote them or load what is written here."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from lstmconvert.containers import Archive, hdf5, hdf5_trial
from lstmconvert.errors import BadFile, ConversionError, NotRepresentable, UnsupportedSource
from lstmconvert.tensors import Array, Lazy, same_bits
from tests.containers.keras_models import (
    FRAMEWORKS,
    KINDS,
    assert_same_model,
    framework,
    legacy_weights,
    model,
    randomize,
    saved,
    v3_weights,
)
from tests.corpus import corpus_file

__all__ = ["saved"]

Saved = dict[str, tuple[Any, Path]]


def assert_same_archive(one: Archive, other: Archive) -> None:
    assert dict(one.metadata) == dict(other.metadata)
    assert list(one.tensors) == list(other.tensors)
    for key, tensor in one.tensors.items():
        assert same_bits(tensor.read(), other.tensors[key].read()), key


# ---------------------------------------------------------------------- what Keras wrote


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_whole_model_has_the_weights_of_every_layer_in_order(saved: Saved, name: str) -> None:
    made, folder = saved[name]
    archive = hdf5.read(folder / KINDS["whole_model"])
    assert archive.metadata["form"] == "whole_model"
    assert archive.metadata["keras_version"] == framework(name).__version__
    assert archive.metadata["backend"] == "tensorflow"
    assert archive.metadata["model_config"]["config"]["name"] == "whole"
    assert list(archive.metadata["layer_weights"]) == [layer.name for layer in made.layers]
    used = []
    for layer in made.layers:
        entries = archive.metadata["layer_weights"][layer.name]
        for (_, key), value in zip(entries, legacy_weights(layer), strict=True):
            assert same_bits(archive.tensors[key].read(), value), key
            used.append(key)
    # All of them, and no optimizer slot.
    assert list(archive.tensors) == used
    assert len(used) == len(made.get_weights())
    assert archive.metadata["top_level_weights"] == ()


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_weights_v3_have_the_weights_at_their_paths(saved: Saved, name: str) -> None:
    made, folder = saved[name]
    archive = hdf5.read(folder / KINDS["weights_v3"])
    assert archive.metadata["form"] == "weights_v3"
    expected = {f"{group}/vars/{n}": w for group, ws in v3_weights(made) for n, w in enumerate(ws)}
    assert set(archive.tensors) == set(expected)
    for key, value in expected.items():
        assert same_bits(archive.tensors[key].read(), value), key


def test_keras_notes_the_names_of_the_user(saved: Saved) -> None:
    names = hdf5.read(saved["keras"][1] / KINDS["weights_v3"]).metadata["variable_names"]
    assert names[""] == "whole"
    assert names["layers/lstm"] == "enc_a"
    assert names["layers/lstm_1"] == "enc_b"
    assert names["layers/bidirectional"] == "bi"
    assert names["layers/bidirectional/forward_layer"] == "forward_inner"
    assert names["layers/rnn/cell/cells/lstm_cell_1"] == "second_cell"
    assert names["layers/sequential/layers/lstm"] == "sub_lstm"


def test_legacy_weights_of_tf_keras(saved: Saved) -> None:
    made, folder = saved["tf_keras"]
    archive = hdf5.read(folder / "legacy.h5")
    assert archive.metadata["form"] == "legacy_weights"
    assert archive.metadata["model_config"] is None
    entries = archive.metadata["layer_weights"]["bi"]
    assert entries[0] == (
        "bi/forward_inner/gru_cell/kernel:0",
        "bi/bi/forward_inner/gru_cell/kernel:0",
    )
    for layer in made.layers:
        entries = archive.metadata["layer_weights"][layer.name]
        for (_, key), value in zip(entries, legacy_weights(layer), strict=True):
            assert same_bits(archive.tensors[key].read(), value), key


def test_layers_come_in_the_order_of_their_counters(tmp_path: Path) -> None:
    path = tmp_path / "many.weights.h5"
    with h5py.File(path, "w") as file:
        for number in reversed(range(12)):
            name = f"layers/lstm_{number}" if number else "layers/lstm"
            file[f"{name}/cell/vars/0"] = np.full(2, number, np.float32)
    archive = hdf5.read(path)
    assert [int(t.read()[0]) for t in archive.tensors.values()] == list(range(12))


def test_optimizer_slots_metrics_and_random_states_are_never_opened(tmp_path: Path) -> None:
    whole, newer = tmp_path / "whole.h5", tmp_path / "newer.weights.h5"
    with h5py.File(whole, "w") as file:
        by_hand(file.create_group("model_weights"), "")
        file.attrs["model_config"] = b'{"class_name": "Sequential", "config": []}'
        file["optimizer_weights"] = h5py.ExternalLink("/nowhere.h5", "/")
    with h5py.File(newer, "w") as file:
        file["layers/lstm/cell/vars/0"] = np.ones(3)
        file["layers/lstm/seed_generator"] = h5py.SoftLink("/nowhere")
        file["optimizer"] = h5py.SoftLink("/nowhere")
        file["metrics"] = h5py.SoftLink("/nowhere")
    assert len(hdf5.read(whole).tensors) == 3
    assert list(hdf5.read(newer).tensors) == ["layers/lstm/cell/vars/0"]


def by_hand(group: h5py.Group, suffix: str) -> dict[str, Array]:
    """One LSTM as Keras 1 and 2 put it there: names as bytes, the order only in the attribute."""
    rng = np.random.default_rng(3)
    group.attrs["layer_names"] = [b"input_1", b"lstm_1"]
    group.create_group("input_1").attrs["weight_names"] = []
    layer = group.create_group("lstm_1")
    names = [f"lstm_1_{part}{suffix}" for part in ("W", "U", "b")]
    layer.attrs["weight_names"] = [name.encode() for name in names]
    values = {name: rng.normal(size=(2, 4)).astype(np.float32) for name in names}
    for name, value in values.items():
        layer[name] = value
    return values


@pytest.mark.parametrize("suffix", ["", ":0"])
@pytest.mark.parametrize("version", [None, b"1.2.2", "2.1.6"])
def test_files_of_keras_1_and_2(tmp_path: Path, suffix: str, version: bytes | str | None) -> None:
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        values = by_hand(group, suffix)
        file.attrs["model_config"] = '{"class_name": "Sequential", "config": [{"class_name": "LSTM"}]}'
        if version is not None:
            group.attrs["keras_version"] = version
    archive = hdf5.read(path)
    assert archive.metadata["keras_version"] == (version.decode() if isinstance(version, bytes) else version)
    assert archive.metadata["backend"] is None
    assert archive.metadata["model_config"]["config"] == [{"class_name": "LSTM"}]
    assert list(archive.metadata["layer_weights"]) == ["input_1", "lstm_1"]
    keys = [key for _, key in archive.metadata["layer_weights"]["lstm_1"]]
    assert keys == list(archive.tensors) == [f"model_weights/lstm_1/{name}" for name in values]
    assert all(same_bits(archive.tensors[f"model_weights/lstm_1/{n}"].read(), v) for n, v in values.items())


def test_names_that_were_cut_into_several_attributes(tmp_path: Path) -> None:
    from keras.src.legacy.saving import legacy_h5_format

    names = [f"layer_{number:04}_{'x' * 60}" for number in range(2000)]
    path = tmp_path / "many.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_attributes_to_hdf5_group(file, "layer_names", [n.encode() for n in names])
        assert "layer_names0" in file.attrs
        for name in names:
            file.create_group(name).attrs["weight_names"] = []
    archive = hdf5.read(path)
    assert list(archive.metadata["layer_weights"]) == names
    ours = tmp_path / "ours.h5"
    hdf5.write(ours, archive)
    assert_same_archive(hdf5.read(ours), archive)
    with h5py.File(ours) as file:
        assert legacy_h5_format.load_attributes_from_hdf5_group(file, "layer_names") == names


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "form", "version", "layers"),
    [
        ("shakkala_simple_gru", "whole_model", "2.0.8", {"gru_1": 3, "dropout_1": 0}),
        ("dgaintel", "whole_model", "2.2.4-tf", {"lstm_4": 3, "max_pooling1d_4": 0}),
        ("chars2vec_eng50", "legacy_weights", "2.2.0", {"lstm_1": 3, "lstm_2": 3}),
    ],
)
def test_trained_models(name: str, form: str, version: str, layers: dict[str, int]) -> None:
    path = corpus_file(name)
    archive = hdf5.read(path)
    assert archive.metadata["form"] == form
    assert archive.metadata["keras_version"] == version
    counts = {layer: len(weights) for layer, weights in archive.metadata["layer_weights"].items()}
    assert layers.items() <= counts.items()
    with h5py.File(path) as file:
        for key, tensor in archive.tensors.items():
            assert same_bits(tensor.read(), file[key][()]), key


# ---------------------------------------------------------------------- what Keras loads


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_written_whole_model_loads(saved: Saved, name: str, tmp_path: Path) -> None:
    made, folder = saved[name]
    archive = hdf5.read(folder / KINDS["whole_model"])
    path = tmp_path / "written.h5"
    hdf5.write(path, archive)
    assert_same_archive(hdf5.read(path), archive)
    assert_same_model(framework(name).models.load_model(path, compile=False), made)


def test_written_weights_load(saved: Saved, tmp_path: Path) -> None:
    made, folder = saved["keras"]
    archive = hdf5.read(folder / KINDS["weights_v3"])
    path = tmp_path / "written.weights.h5"
    hdf5.write(path, archive)
    assert_same_archive(hdf5.read(path), archive)
    other = model("keras")
    randomize(other, seed=8)
    # Without optimizer slots and random states.
    other.load_weights(path)
    assert_same_model(other, made)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_written_legacy_weights_load(saved: Saved, name: str, tmp_path: Path) -> None:
    made, folder = saved[name]
    whole = hdf5.read(folder / KINDS["whole_model"])
    prefix = "model_weights/"
    archive = Archive(
        {key.removeprefix(prefix): tensor for key, tensor in whole.tensors.items()},
        {
            **whole.metadata,
            "form": "legacy_weights",
            "model_config": None,
            "layer_weights": {
                layer: tuple((weight, key.removeprefix(prefix)) for weight, key in weights)
                for layer, weights in whole.metadata["layer_weights"].items()
            },
        },
    )
    path = tmp_path / "written.h5"
    hdf5.write(path, archive)
    assert_same_archive(hdf5.read(path), archive)
    other = model(name)
    randomize(other, seed=8)
    other.load_weights(path)
    assert_same_model(other, made)


def test_bfloat16_survives_and_keras_loads_it(tmp_path: Path) -> None:
    keras = framework("keras")
    made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, dtype="bfloat16")])
    theirs, ours = tmp_path / "theirs.weights.h5", tmp_path / "ours.weights.h5"
    made.save_weights(theirs)
    archive = hdf5.read(theirs)
    kernel = archive.tensors["layers/dense/vars/0"]
    assert kernel.dtype == ml_dtypes.bfloat16
    assert same_bits(kernel.read(), np.asarray(made.layers[0].get_weights()[0]))
    hdf5.write(ours, archive)
    assert_same_archive(hdf5.read(ours), archive)
    before = made.get_weights()
    made.layers[0].set_weights([np.zeros_like(w) for w in before])
    made.load_weights(ours)
    assert all(same_bits(a, b) for a, b in zip(before, made.get_weights(), strict=True))
    with pytest.raises(NotRepresentable, match="bfloat16"):
        hdf5.write(tmp_path / "legacy.h5", legacy(kernel.read()))


def legacy(value: Array, *, layer: str = "a", weight: str = "w") -> Archive:
    """One weight for the legacy form."""
    key = f"{layer}/{weight}"
    return Archive(
        {key: Lazy.of(value)}, {"form": "legacy_weights", "layer_weights": {layer: ((weight, key),)}}
    )


@pytest.mark.parametrize("layer", ["", "a//b", "../a", "a/.", "nul\0", "a\ud800"])
def test_names_that_hdf5_cannot_hold(tmp_path: Path, layer: str) -> None:
    with pytest.raises(NotRepresentable):
        hdf5.write(tmp_path / "x.h5", legacy(np.ones(2), layer=layer))


def test_a_name_cannot_be_group_and_array(tmp_path: Path) -> None:
    one = Lazy.of(np.ones(2))
    with pytest.raises(NotRepresentable, match="both"):
        hdf5.write(tmp_path / "x.h5", Archive({"a": one, "a/b": one}))


@pytest.mark.parametrize("dtype", ["complex64", "float8_e4m3fn", "U3", "O"])
def test_dtypes_that_are_not_written(tmp_path: Path, dtype: str) -> None:
    value = np.zeros(2, getattr(ml_dtypes, dtype, dtype))
    with pytest.raises(NotRepresentable):
        hdf5.write(tmp_path / "x.h5", Archive({"a": Lazy.of(value)}))


def test_writing_is_reproducible_and_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[Array]] = []

    def load() -> Array:
        assert all(each() is None for each in alive), "an earlier tensor is still in memory"
        array = np.full(70_000, len(alive), np.float32)
        alive.append(weakref.ref(array))
        return array

    archive = Archive({f"group/{n}": Lazy((70_000,), np.float32, load) for n in range(5)})
    for path in (tmp_path / "a.h5", tmp_path / "b.h5"):
        alive.clear()
        hdf5.write(path, archive)
        assert len(alive) == 5
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    with pytest.raises(FileExistsError):
        hdf5.write(tmp_path / "a.h5", archive)


def test_a_note_is_kept_in_every_form(saved: Saved, tmp_path: Path) -> None:
    for kind in ("whole_model", "weights_v3"):
        archive = hdf5.read(saved["keras"][1] / KINDS[kind])
        noted = Archive(archive.tensors, {**archive.metadata, "lstmconvert": '{"schema": 1, "ü": "x"}'})
        hdf5.write(tmp_path / f"{kind}.h5", noted)
        assert_same_archive(hdf5.read(tmp_path / f"{kind}.h5"), noted)


# ---------------------------------------------------------------------- arrays of every kind

VALUES = np.random.default_rng(5).normal(size=(31, 17)).astype(np.float32)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (4, 5)},
        {"chunks": (31, 17), "compression": "gzip"},
        {"chunks": (8, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"chunks": (8, 3), "compression": "lzf", "shuffle": True},
        {"chunks": (4, 4), "maxshape": (None, None)},
    ],
    ids=["contiguous", "chunked", "gzip", "gzip-shuffle-fletcher", "lzf", "resizable"],
)
def test_plain_arrays_however_they_are_stored(tmp_path: Path, options: dict[str, Any], libver: str) -> None:
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("group/values", data=VALUES, **options)
        for number in range(12):
            file[f"many/{number}"] = np.arange(number)
    archive = hdf5.read(path)
    assert archive.metadata["form"] == "plain"
    assert same_bits(archive.tensors["group/values"].read(), VALUES)
    assert [t.shape[0] for k, t in archive.tensors.items() if k.startswith("many/")] == list(range(12))
    hdf5.write(tmp_path / "again.h5", archive)
    assert_same_archive(hdf5.read(tmp_path / "again.h5"), archive)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=">f8").reshape(2, 3),
        np.arange(6, dtype=">i4"),
        np.array([np.nan, -0.0, np.inf], ">f4"),
        np.array([True, False]),
        np.float32(3.5),
        np.zeros((0, 3), np.float16),
        np.arange(5, dtype=np.uint8),
        np.arange(5, dtype=np.int64),
    ],
    ids=lambda value: f"{value.dtype.str}{value.shape}",
)
def test_dtypes_come_in_the_byte_order_of_the_machine(tmp_path: Path, value: Array) -> None:
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = value
        file.create_dataset("compact", data=value, dcpl=_compact())
    for tensor in hdf5.read(path).tensors.values():
        assert same_bits(tensor.read(), np.asarray(value).astype(value.dtype.newbyteorder("=")))


def _compact() -> Any:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    return plan


def test_a_user_block_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "block.h5"
    with h5py.File(path, "w", userblock_size=1024) as file:
        file["a"] = VALUES
    assert hdf5.probe(path)
    assert same_bits(hdf5.read(path).tensors["a"].read(), VALUES)


def test_two_names_of_one_array(tmp_path: Path) -> None:
    path = tmp_path / "tied.h5"
    with h5py.File(path, "w") as file:
        file["a"] = VALUES
        file["b"] = file["a"]
    archive = hdf5.read(path)
    assert same_bits(archive.tensors["a"].read(), archive.tensors["b"].read())


def test_probe_goes_by_content(tmp_path: Path) -> None:
    for name, content in (("empty.h5", b""), ("text.h5", b"x" * 5000), ("short.h5", b"\x89HDF")):
        (tmp_path / name).write_bytes(content)
        assert not hdf5.probe(tmp_path / name)
    assert not hdf5.probe(tmp_path / "missing.h5")
    assert not hdf5.probe(tmp_path)


def test_h5py_is_imported_late() -> None:
    code = "import sys, lstmconvert.containers.hdf5; sys.exit('h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------- what is refused


def _dataset(file: h5py.File, **options: Any) -> h5py.Dataset:
    return file.create_dataset("layers/lstm/cell/vars/0", **options)


def _gzip_bomb(file: h5py.File) -> None:
    import zlib

    data = _dataset(file, shape=(64,), dtype="f4", chunks=(64,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(b"\0" * 2**24))


def _cycle(file: h5py.File) -> None:
    group = file.create_group("layers/lstm")
    group["again"] = file["layers"]


def _deep(file: h5py.File) -> None:
    file["/".join(["a"] * 100)] = np.ones(1)


def _custom_float(file: h5py.File) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(31, 20, 11, 0, 20)
    kind.set_ebias(1023)
    h5py.h5d.create(file.id, b"a", kind, h5py.h5s.create_simple((2,)))


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/nowhere.h5", "a", (3,))
    file.create_virtual_dataset("layers/lstm/vars/0", layout)


def _legacy(file: h5py.File) -> h5py.Group:
    by_hand(file, "")
    return file["lstm_1"]


def _config(content: bytes) -> Callable[[h5py.File], None]:
    def make(file: h5py.File) -> None:
        by_hand(file.create_group("model_weights"), "")
        file.attrs["model_config"] = content

    return make


def _removed(file: h5py.File) -> None:
    del _legacy(file)["lstm_1_U"]


def _unordered(file: h5py.File) -> None:
    del _legacy(file).attrs["weight_names"]


REFUSED: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "soft link": (lambda f: f.__setitem__("layers/lstm/vars/0", h5py.SoftLink("/x")), "links .* soft link"),
    "soft link to group": (lambda f: f.__setitem__("layers", h5py.SoftLink("/layers")), "soft link"),
    "external link": (
        lambda f: f.__setitem__("layers/lstm/vars/0", h5py.ExternalLink("/etc/passwd", "/")),
        "external link",
    ),
    "external data": (
        lambda f: _dataset(f, shape=(4,), dtype="f4", external=[("/etc/passwd", 0, 16)]),
        "other files",
    ),
    "virtual": (_virtual, "other files"),
    "reference": (lambda f: _dataset(f, data=np.array([f.ref], h5py.ref_dtype)), "does not hold numbers"),
    "string": (lambda f: _dataset(f, data=["a"], dtype=h5py.string_dtype()), "does not hold numbers"),
    "fixed string": (lambda f: _dataset(f, data=np.array([b"abc"])), "does not hold numbers"),
    "compound": (lambda f: _dataset(f, data=np.zeros(2, "i4,f4")), "does not hold numbers"),
    "complex": (lambda f: _dataset(f, data=np.zeros(2, "c8")), "does not hold numbers"),
    "long double": (lambda f: _dataset(f, data=np.zeros(2, np.longdouble)), "does not hold numbers"),
    "odd float": (_custom_float, "does not hold numbers"),
    "opaque": (lambda f: _dataset(f, data=np.zeros(2, "V2")), "unnamed format"),
    "no shape": (lambda f: _dataset(f, data=h5py.Empty("f4")), "no shape"),
    "huge and chunked": (
        lambda f: _dataset(f, shape=(2**40,), dtype="f4", chunks=(1024,), compression="gzip"),
        "far more than the file stores",
    ),
    "huge and unwritten": (
        lambda f: _dataset(f, shape=(2**40,), dtype="f4"),
        "far more than the file stores",
    ),
    "huge chunk": (
        lambda f: _dataset(f, shape=(2,), dtype="f4", chunks=(2**28,), maxshape=(None,)),
        "far more than the file stores",
    ),
    "unknown filter": (
        lambda f: _dataset(f, data=VALUES, chunks=(4, 4), scaleoffset=2),
        "compressed in a way",
    ),
    "cycle": (_cycle, "on two ways"),
    "depth": (_deep, "too deep"),
    "no such weight": (_removed, "does not have this"),
    "no order": (_unordered, "in which order"),
    "numbers as names": (lambda f: f.attrs.__setitem__("layer_names", [1, 2]), "should hold text"),
    "names not text": (lambda f: f.attrs.__setitem__("layer_names", [b"\xff\xfe"]), "UTF-8"),
    "one name twice": (
        lambda f: _legacy(f).parent.attrs.__setitem__("layer_names", [b"lstm_1", b"lstm_1"]),
        "one name",
    ),
    "weight twice": (
        lambda f: _legacy(f).attrs.__setitem__("weight_names", [b"lstm_1_W", b"lstm_1_W"]),
        "one name",
    ),
    "name upwards": (
        lambda f: _legacy(f).attrs.__setitem__("weight_names", [b"../lstm_1/lstm_1_W"]),
        "not usable",
    ),
    "group for a weight": (
        lambda f: _legacy(f).parent.attrs.__setitem__("layer_names", [b"lstm_1/lstm_1_W"]),
        "dataset stands",
    ),
    "config not JSON": (_config(b"{'a': 1}"), "readable JSON"),
    "config a list": (_config(b"[]"), "not a JSON object"),
    "config endless": (_config(b'{"a":' + b"[" * 50_000), "readable JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsafe_files_are_refused(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    path = tmp_path / "bad.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(BadFile, match=message) as caught:
        hdf5.read(path)
    assert str(path) in str(caught.value)


def test_a_chunk_that_unpacks_to_more_than_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        _gzip_bomb(file)
    (tensor,) = hdf5.read(path).tensors.values()
    with pytest.raises(BadFile, match="more than its chunk"):
        tensor.read()


def test_many_names_of_one_large_array(tmp_path: Path) -> None:
    path = tmp_path / "amplified.h5"
    with h5py.File(path, "w") as file:
        file["a"] = np.zeros(2**17, np.float32)
        for number in range(200):
            file[f"b{number}"] = file["a"]
    with pytest.raises(BadFile, match="together"):
        hdf5.read(path)


def test_datasets_that_share_bytes(tmp_path: Path) -> None:
    path = tmp_path / "overlap.h5"
    with h5py.File(path, "w") as file:
        for name in "ab":
            file[name] = VALUES
        first, second = (file[name].id.get_offset() for name in "ab")
    content = path.read_bytes()
    moved = content.replace(second.to_bytes(8, "little"), (first + 8).to_bytes(8, "little"))
    assert moved != content
    path.write_bytes(moved)
    with pytest.raises(BadFile, match="share bytes"):
        hdf5.read(path)


def test_keras_0_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        group.attrs["nb_layers"] = 1
        group["layer_0/param_0"] = np.ones(2)
    with pytest.raises(UnsupportedSource, match="name its layers"):
        hdf5.read(path)


def test_a_heap_in_which_hdf5_would_search_for_ever(tmp_path: Path) -> None:
    """The strings' heap is made to have free space of size 0; HDF5 1.14 does not come back from it."""
    path = tmp_path / "endless.h5"
    with h5py.File(path, "w") as file:
        _config(b'{"class_name": "Sequential"}')(file)
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")
    content[heap + 16 : heap + 32] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(BadFile, match="heap of strings"):
        hdf5.read(path)


def test_newer_structures_are_tried_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = tmp_path / "older.h5", tmp_path / "newer.h5"
    for path, libver in ((older, "earliest"), (newer, "latest")):
        with h5py.File(path, "w", libver=libver) as file:
            file["a"] = VALUES
    tried: list[object] = []
    survive = hdf5_trial.survive
    monkeypatch.setattr(hdf5_trial, "survive", lambda source: (tried.append(source.path), survive(source)))
    hdf5.read(older)
    assert tried == []
    hdf5.read(newer)
    assert tried == [newer]
    # A child that is killed by what it reads.
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(crash))
    with pytest.raises(BadFile, match="does not survive"):
        hdf5.read(newer)


def test_a_file_that_is_cut_short_or_changed_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file["contiguous"] = VALUES
        file.create_dataset("chunked", data=VALUES, chunks=(4, 4), compression="gzip")
    archive = hdf5.read(path)
    path.write_bytes(path.read_bytes()[:2000])
    for tensor in archive.tensors.values():
        with pytest.raises(BadFile):
            tensor.read()
    path.unlink()
    for tensor in archive.tensors.values():
        with pytest.raises(BadFile):
            tensor.read()


@pytest.mark.parametrize("value", [np.ones((8, 8), np.float32), np.ones(VALUES.shape, np.float16)])
def test_another_array_under_the_same_name(tmp_path: Path, value: Array) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=VALUES, chunks=(4, 4))
    archive = hdf5.read(path)
    size = path.stat().st_size
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=value, chunks=(4, 4))
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    with pytest.raises(BadFile, match="changed"):
        archive.tensors["a"].read()


@pytest.mark.parametrize("kind", ["whole_model", "weights_v3", "legacy.h5", "compressed"])
@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_end_in_our_errors(saved: Saved, tmp_path: Path, kind: str, seed: int) -> None:
    source = saved["tf_keras"][1] / KINDS.get(kind, kind)
    if kind == "compressed":
        source = tmp_path / "source.h5"
        with h5py.File(source, "w") as file:
            file.create_dataset("a/b", data=VALUES, chunks=(4, 4), compression="gzip", fletcher32=True)
            file.create_dataset("a/c", data=VALUES, chunks=(9, 9), shuffle=True)
            file.attrs["keras_version"] = "3"
    content = source.read_bytes()
    rng = np.random.default_rng(seed)
    path = tmp_path / "damaged.h5"
    refused = 0
    for number in range(60):
        damaged = bytearray(content)
        if number % 3 == 0:
            damaged = damaged[: rng.integers(len(damaged))]
        else:
            # Structure lies mostly at the front.
            for place in rng.exponential(len(content) / 8, size=rng.integers(1, 6)).astype(int):
                damaged[min(place, len(content) - 1)] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            for tensor in hdf5.read(path).tensors.values():
                tensor.read()
        except ConversionError:
            refused += 1
    assert refused >= 20, "a cut file should be refused at least"


def test_json_of_the_configuration_survives(saved: Saved) -> None:
    path = saved["keras"][1] / KINDS["whole_model"]
    with h5py.File(path) as file:
        assert hdf5.read(path).metadata["model_config"] == json.loads(file.attrs["model_config"])
