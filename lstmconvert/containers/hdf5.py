"""HDF5 files: the ``.h5`` and ``.weights.h5`` that Keras writes, and plain dumps of arrays.

``read`` gives, and ``write`` takes, an ``Archive`` whose tensors are keyed by their full path in the
file (``model_weights/lstm/lstm/lstm_cell/kernel:0``) and whose metadata has these keys:

``form``
    ``"whole_model"``: Keras's legacy ``model.save("x.h5")``, configuration and weights.
    ``"legacy_weights"``: Keras's legacy ``save_weights("x.h5")``, layers by the user's names.
    ``"weights_v3"``: ``save_weights("x.weights.h5")``, also inside a ``.keras`` archive.
    ``"plain"``: any other HDF5 file.
``model_config``
    The parsed JSON of the architecture (``whole_model``), else ``None``.
``keras_version``, ``backend``
    As the file says (``"2.2.4"``, ``"tensorflow"``), or ``None``.
``lstmconvert``
    What a conversion remembers about the source, a text in an attribute of the root, if there is one.
``layer_weights`` (``whole_model``, ``legacy_weights``)
    Layer name to a tuple of ``(weight name, tensor key)``, both in the order in which the model has
    them; layers without weights have an empty tuple. The order is the only reliable link between
    weights and layers: HDF5 lists members by name.
``top_level_weights`` (``whole_model``, ``legacy_weights``)
    The same tuple for variables that belong to the model itself; they come last among the tensors.
``variable_names`` (``weights_v3``)
    Path of a group (``layers/lstm``, ``layers/lstm/cell``; ``""`` is the model) to the name that its
    object had, as far as the file says: Keras 3 notes them, tf_keras does not. The groups themselves
    are named after classes, with a counter (``lstm``, ``lstm_1``).

Tensors of ``weights_v3`` come in natural order of their paths (``lstm_2`` before ``lstm_10``), which
within one group is the order of the variables; the order of layers is not in such a file. What is
never read: optimizer slots, metrics, ``training_config``, and the states of random generators
(``seed_generator``); Keras loads files without them.

For writing the metadata needs: ``form``; for the two legacy forms ``layer_weights``, in which every
key is ``model_weights/LAYER/WEIGHT`` (``whole_model``) or ``LAYER/WEIGHT`` (``legacy_weights``), and
``top_level_weights`` if there are any (``LAYER`` is then ``top_level_model_weights``); for
``whole_model`` also ``model_config``. ``keras_version`` and ``backend`` are written where given: a
loader without them takes the file for one of Keras 1. For ``weights_v3`` every key ends in
``/vars/NAME``, and ``variable_names`` is optional. Reading what was written gives the same archive.
Keras 3 and tf_keras load both legacy forms; ``weights_v3`` is for Keras 3, since tf_keras insists on
empty groups that Keras 3 does not need.

Sources: ``legacy_h5_format.py`` and ``saving_lib.py`` of Keras 3.15, ``hdf5_format.py`` of tf_keras
2.21; files of both are compared with the models that they came from in the tests.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lstmconvert.containers import Archive
from lstmconvert.containers.hdf5_bytes import SIGNATURE, FileBytes, Guard, Source, damage_is_bad_file
from lstmconvert.containers.hdf5_datasets import Stored, check_together, stored
from lstmconvert.containers.hdf5_objects import dataset_at, natural_order, subgroup, text, texts, walk
from lstmconvert.errors import BadFile, UnsupportedSource

if TYPE_CHECKING:
    import h5py

NAME = "hdf5"
SUFFIXES = (".h5", ".hdf5", ".weights.h5")
TELLS_LATE = True

# The attribute of the root in which a conversion leaves its note.
NOTE = "lstmconvert"

MODEL_WEIGHTS = "model_weights"
TOP_LEVEL = "top_level_model_weights"

# Beside the layers in a weights_v3 file, and no part of what the model computes.
_NO_WEIGHTS = frozenset({"optimizer", "metrics"})
_RANDOM_STATE = "seed_generator"
_OPTIMIZER_WEIGHTS = "optimizer_weights"
_VARIABLES = "vars"


def probe(path: Path) -> bool:
    """Whether the file is HDF5: its signature stands at 0, or behind a user block at 512, 1024, ..."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            place = 0
            while place + len(SIGNATURE) <= size:
                file.seek(place)
                if file.read(len(SIGNATURE)) == SIGNATURE:
                    return True
                place = 2 * place or 512
    except OSError:
        return False
    return False


def read(path: Path) -> Archive:
    """The named arrays of an HDF5 file and what Keras noted beside them; see the module.

    Raises:
        BadFile: missing, truncated or damaged; links, virtual or external data; anything that is not
            an array of numbers; sizes out of proportion to the file.
        UnsupportedSource: a form of Keras 0 without names of weights.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadFile("the file cannot be opened", file=path, found=error.strerror) from error
    return read_source(FileBytes(path, 0, size))


def read_source(source: Source) -> Archive:
    """``read`` for HDF5 bytes that lie elsewhere, such as in a zip archive."""
    guard = Guard(allows_newer=False)
    try:
        tensors, metadata = structure(source, guard)
    except BadFile:
        if not guard.met_newer:
            raise
    if guard.met_newer:
        from lstmconvert.containers import hdf5_trial

        hdf5_trial.survive(source)
        tensors, metadata = structure(source, Guard(allows_newer=True))
    return Archive(
        MappingProxyType({key: each.tensor for key, each in tensors.items()}), MappingProxyType(metadata)
    )


def read_optimizer(path: Path) -> Archive | None:
    """The state of the optimizer in a file of Keras, or ``None`` if there is none.

    The tensors come in the optimizer's own order, by its names (``.h5``) or as ``0``, ``1``, ... (a tree of
    ``vars``). The metadata has ``training_config``, parsed, or ``None``.

    Raises:
        BadFile: as ``read`` does.
        UnsupportedSource: in a file of HDF5's newer structure, which Keras does not write.
    """
    path = Path(path)
    return read_optimizer_source(FileBytes(path, 0, path.stat().st_size))


def read_optimizer_source(source: Source) -> Archive | None:
    """``read_optimizer`` for HDF5 bytes that lie elsewhere."""
    guard = Guard(allows_newer=False)
    try:
        with damage_is_bad_file(source.name), source.opened(guard) as file:
            if _OPTIMIZER_WEIGHTS in file:
                group = subgroup(file, _OPTIMIZER_WEIGHTS)
                names = texts(group, "weight_names") or ()
            elif f"optimizer/{_VARIABLES}" in file:
                group = subgroup(file, f"optimizer/{_VARIABLES}")
                names = tuple(sorted(group, key=natural_order))
            else:
                return None
            tensors = {
                name: stored(source, dataset_at(group, name), f"{group.name}/{name}") for name in names
            }
            check_together(tensors.values(), source.length)
            config = text(file, "training_config")
    except BadFile as error:
        if guard.met_newer:
            raise UnsupportedSource(
                "the optimizer's state is in a newer form of HDF5 than Keras writes",
                file=source.name,
                remedy="Leave out --with-optimizer.",
            ) from error
        raise
    metadata = {"training_config": None if config is None else parsed_json(config, "training_config")}
    return Archive({name: each.tensor for name, each in tensors.items()}, metadata)


def structure(source: Source, guard: Guard) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Everything but the numbers: the datasets and the metadata, in one attempt."""
    with damage_is_bad_file(source.name), source.opened(guard) as file:
        if MODEL_WEIGHTS in file or text(file, "model_config") is not None:
            tensors, metadata = _read_whole_model(source, file)
        elif texts(file, "layer_names") is not None:
            tensors, metadata = _read_layers(source, file, "")
            metadata = {"form": "legacy_weights", "model_config": None, **metadata}
        else:
            tensors, metadata = _read_tree(source, file)
        if (note := text(file, NOTE)) is not None:
            metadata[NOTE] = note
        check_together(tensors.values(), source.length)
        return tensors, metadata


def _read_whole_model(source: Source, file: h5py.File) -> tuple[dict[str, Stored], dict[str, Any]]:
    tensors, metadata = _read_layers(source, subgroup(file, MODEL_WEIGHTS), f"{MODEL_WEIGHTS}/")
    for key in ("keras_version", "backend"):
        metadata[key] = text(file, key) or metadata[key]
    config = text(file, "model_config")
    metadata["model_config"] = None if config is None else parsed_json(config, "model_config")
    # Weights under model_weights without an architecture are still weights.
    metadata["form"] = "legacy_weights" if config is None else "whole_model"
    return tensors, metadata


def _read_layers(source: Source, group: h5py.Group, prefix: str) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The legacy form: layers and their weights as the attributes of the groups list them."""
    layer_names = texts(group, "layer_names")
    if layer_names is None:
        raise UnsupportedSource(
            "the file does not name its layers",
            place=str(group.name),
            expected="the attribute layer_names, which Keras writes since release 1.0",
            remedy="Load it with the release that wrote it and save it again.",
        )
    tensors: dict[str, Stored] = {}
    layer_weights: dict[str, tuple[tuple[str, str], ...]] = {}
    for name in layer_names:
        if name in layer_weights:
            raise BadFile("two layers have one name", place=prefix + name)
        layer_weights[name] = _read_weights(source, group, name, prefix, tensors)
    top_level: tuple[tuple[str, str], ...] = ()
    if TOP_LEVEL in group and TOP_LEVEL not in layer_weights:
        top_level = _read_weights(source, group, TOP_LEVEL, prefix, tensors)
    metadata = {
        "keras_version": text(group, "keras_version"),
        "backend": text(group, "backend"),
        "layer_weights": MappingProxyType(layer_weights),
        "top_level_weights": top_level,
    }
    return tensors, metadata


def _read_weights(
    source: Source, group: h5py.Group, layer: str, prefix: str, tensors: dict[str, Stored]
) -> tuple[tuple[str, str], ...]:
    layer_group = subgroup(group, layer)
    weight_names = texts(layer_group, "weight_names")
    if weight_names is None:
        if len(layer_group):
            raise BadFile(
                "the layer does not say in which order its weights stand",
                place=prefix + layer,
                expected="the attribute weight_names",
            )
        weight_names = ()
    weights = []
    for weight in weight_names:
        key = f"{prefix}{layer}/{weight}"
        if key in tensors:
            raise BadFile("two weights have one name", place=key)
        tensors[key] = stored(source, dataset_at(layer_group, weight), key)
        weights.append((weight, key))
    return tuple(weights)


def _read_tree(source: Source, file: h5py.File) -> tuple[dict[str, Stored], dict[str, Any]]:
    """A file without lists of names: Keras's newer weights, or just arrays."""
    import h5py

    def is_weight(path: str) -> bool:
        components = path.split("/")
        return components[0] not in _NO_WEIGHTS and components[-1] != _RANDOM_STATE

    members = list(walk(file, enter=is_weight))
    datasets = [(path, each) for path, each in members if isinstance(each, h5py.Dataset)]
    groups = [(path, each) for path, each in members if isinstance(each, h5py.Group)]
    if any(path.split("/")[-1] == _VARIABLES for path, _ in groups) and all(
        _VARIABLES in path.split("/")[-2:-1] for path, _ in datasets
    ):
        names = {}
        for path, group in groups:
            owner, _, last = path.rpartition("/")
            if last == _VARIABLES and (name := text(group, "name")) is not None:
                names[owner] = name
        metadata: dict[str, Any] = {"form": "weights_v3", "variable_names": MappingProxyType(names)}
    else:
        datasets = [(path, each) for path, each in walk(file) if isinstance(each, h5py.Dataset)]
        metadata = {"form": "plain"}
    metadata |= {
        "model_config": None,
        "keras_version": text(file, "keras_version"),
        "backend": text(file, "backend"),
    }
    return {path: stored(source, each, path) for path, each in datasets}, metadata


def parsed_json(content: str | bytes, place: str) -> dict[str, Any]:
    """A configuration, which is always an object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadFile("the configuration is not readable JSON", place=place, found=error) from error
    if not isinstance(value, dict):
        raise BadFile("the configuration is not a JSON object", place=place, found=type(value).__name__)
    return value


def write(path: Path, archive: Archive) -> None:
    """Write ``archive`` to the new file ``path`` in the form that its metadata names; see the module.

    One tensor is in memory at a time.

    Raises:
        NotRepresentable: a name that HDF5 cannot hold, or a dtype that the form cannot hold.
    """
    from lstmconvert.containers import hdf5_writing

    with Path(path).open("xb") as file:
        written = hdf5_writing.write(archive, file.write, file_name=path)
        for key, text in archive.told().items():
            held = str(archive.metadata[key]).encode()
            if len(held) != len(text.encode()):
                raise AssertionError("a late text has another length than what held its place")
            file.seek(written.find(held))
            file.write(text.encode())
