"""Files of Keras that hold weights and no configuration: their recurrent layers, told by names and shapes.

What a file of this kind cannot say (the activation of the gates, the form of a GRU without biases) is
asked for, never assumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lstmconvert import provenance
from lstmconvert.activations import TANH, Activation
from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    MaskedOutput,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    Returns,
    RnnEquations,
    SequenceBehaviour,
)
from lstmconvert.errors import AmbiguousSource, BadFile, UnsupportedSource
from lstmconvert.frameworks.keras import activation_names
from lstmconvert.frameworks.keras.names import clean_name
from lstmconvert.frameworks.keras.recurrent import CellSpec, plain_equations
from lstmconvert.frameworks.keras.version import Release
from lstmconvert.gates import Cell, Direction
from lstmconvert.model import DIRECTION_UNSAID, Model
from lstmconvert.provenance import LayerRecord
from lstmconvert.tensors import Lazy, Tensors
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    from lstmconvert.containers import Archive
    from lstmconvert.options import ReadOptions

_PARTS = ("kernel", "recurrent_kernel", "bias")
_KERAS1 = re.compile(r"^(?:.*_)?([WUb])_([ifcozrh])$")


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """The tensors of one direction of one layer.

    Attributes:
        layer: the layer's name.
        direction: forward or reverse.
        tensors: ``kernel``, ``recurrent_kernel``, ``bias`` (or Keras 1's one for each gate).
        origin: their keys in the file.
    """

    layer: str
    direction: Direction
    tensors: Mapping[str, Lazy]
    origin: tuple[str, ...]


def read(archive: Archive, release: Release | None, options: ReadOptions) -> Model:
    """A model without topology.

    Raises:
        UnsupportedSource: when there are no recurrent layers in the file.
        AmbiguousSource: naming the option that says what the file does not.
    """
    groups = list(_groups(archive))
    if not groups:
        raise UnsupportedSource(
            "there are no recurrent layers among the weights, and the file holds no configuration",
            found=", ".join(list(archive.tensors)[:6]) or "no tensors",
            remedy="Convert a file that was written with model.save(...).",
        )
    by_layer: dict[str, list[_Group]] = {}
    for group in groups:
        by_layer.setdefault(group.layer, []).append(group)
    remembered = _remembered(archive)
    order = {name: number for number, name in enumerate(remembered)}
    layers = {
        name: _layer(name, by_layer[name], release, options, remembered.get(name))
        for name in sorted(by_layer, key=lambda name: order.get(name, len(order)))
    }
    used = {key for group in groups for key in group.origin}
    metadata: dict[str, Any] = {
        DIRECTION_UNSAID: True,
        "keras_version": release.text if release else None,
        "other_tensors": [key for key in archive.tensors if key not in used],
    }
    return Model(MappingProxyType(layers), framework="keras", metadata=MappingProxyType(metadata))


def _remembered(archive: Archive) -> Mapping[str, LayerRecord]:
    """What a file that lstmconvert wrote says about its layers, under their names in it."""
    memory = provenance.loads(archive.metadata.get(provenance.KEY))
    return {clean_name(record.name): record for record in memory.layers} if memory is not None else {}


# Which tensors belong together.


def _groups(archive: Archive) -> Iterator[_Group]:
    stored = archive.metadata.get("layer_weights")
    if stored is None:
        yield from _groups_by_path(archive.tensors, archive.metadata.get("variable_names") or {})
        return
    for layer, weights in stored.items():
        yield from _groups_by_name(layer, weights, archive.tensors)


def _groups_by_name(layer: str, weights: tuple[tuple[str, str], ...], tensors: Tensors) -> Iterator[_Group]:
    """Tensors of a legacy file, by what stands before their last name."""
    folders: dict[str, dict[str, str]] = {}
    for name, key in weights:
        clean = re.sub(r":\d+$", "", name)
        folder, _, local = clean.rpartition("/")
        if match := _KERAS1.match(local):
            folder, local = clean[: match.start(1)], f"{match[1]}_{match[2]}"
        else:
            local = re.sub(r"_\d+$", "", local)
        folders.setdefault(folder, {})[local] = key
    found = {folder: keys for folder, keys in folders.items() if _is_recurrent(keys)}
    for folder, keys in found.items():
        yield _Group(
            _layer_name(layer, folder, found),
            _direction(folder, found),
            {local: tensors[key] for local, key in keys.items()},
            tuple(keys.values()),
        )


def _is_recurrent(keys: Mapping[str, str]) -> bool:
    return (
        {"kernel", "recurrent_kernel"} <= set(keys)
        or {"W_i", "U_i"} <= set(keys)
        or {"W_z", "U_z"} <= set(keys)
    )


def _direction(folder: str, folders: Mapping[str, object]) -> Direction:
    backward = re.search(r"(?:^|/)backward_", folder) is not None
    paired = any(re.search(r"(?:^|/)forward_", other) for other in folders)
    return Direction.REVERSE if backward and paired else Direction.FORWARD


def _layer_name(layer: str, folder: str, folders: Mapping[str, object]) -> str:
    """The layer's own name; where a layer is a model or a stack of cells, the way inside behind it."""
    ways = {re.sub(r"(^|/)(?:forward|backward)_", r"\1", other) for other in folders}
    if len(ways) == 1:
        return layer
    inside = re.sub(r"(^|/)(?:forward|backward)_", r"\1", folder)
    inside = re.sub(r"/(?:lstm|gru|simple_rnn)_cell(?:_\d+)?$", "", inside).strip("/_")
    return f"{layer}/{inside}" if inside != layer else layer


_VARIABLE = re.compile(r"^(?P<object>.*)/vars/(?P<number>\d+)$")


def _groups_by_path(tensors: Tensors, names: Mapping[str, str]) -> Iterator[_Group]:
    """Tensors of a ``.weights.h5``: an object called ``cell`` has them under the numbers 0, 1 and 2."""
    objects: dict[str, dict[int, str]] = {}
    for key in tensors:
        if match := _VARIABLE.match(key):
            objects.setdefault(match["object"], {})[int(match["number"])] = key
    for path, keys in objects.items():
        last = path.rsplit("/", 1)[-1]
        is_cell = last == "cell" or re.search(r"/cells/\w+$", path) is not None
        is_cudnn = re.fullmatch(r"cu_dnn\w+|cudnn\w+", last.lower()) is not None
        if not (is_cell or is_cudnn) or max(keys) >= len(_PARTS):
            continue
        own = {_PARTS[number]: tensors[key] for number, key in sorted(keys.items())}
        if not {"kernel", "recurrent_kernel"} <= set(own):
            continue
        if any(len(own[part].shape) != 2 for part in ("kernel", "recurrent_kernel")):
            continue  # a convolutional LSTM
        owner = re.sub(r"/cell(?:/cells/\w+)?$", "", path)
        direction = Direction.REVERSE if owner.endswith("/backward_layer") else Direction.FORWARD
        owner = re.sub(r"/(?:forward|backward)_layer$", "", owner)
        name = names.get(owner) or owner.removeprefix("layers/").replace("/layers/", "/")
        inside = re.search(r"/cells/(\w+)$", path)
        yield _Group(f"{name}/{inside[1]}" if inside else name, direction, own, tuple(keys.values()))


# What they are.


def _layer(
    name: str,
    groups: list[_Group],
    release: Release | None,
    options: ReadOptions,
    record: LayerRecord | None,
) -> RecurrentLayer:
    place = f"layer {name!r}"
    directions = []
    stored = None
    for group in sorted(groups, key=lambda g: g.direction is Direction.REVERSE):
        cell = _cell(group, release, options, place, record)
        weights, stored = cell.weights(group.tensors)
        directions.append(RecurrentDirection(group.direction, cell.equations, weights))
    jax = release is not None and release.backend == "jax"
    hold = MaskedOutput.HOLD_STATE if jax else MaskedOutput.HOLD
    masked = MaskedOutput.ZERO if len(directions) == 2 else hold
    sequence = SequenceBehaviour(returns=Returns.SEQUENCE, masked_output=masked)
    origin = tuple(key for group in groups for key in group.origin)
    try:
        return RecurrentLayer(name, tuple(directions), sequence, origin, stored or ())
    except ValueError as error:
        raise BadFile(f"the weights do not make one layer: {error}", place=place) from error


def _cell(
    group: _Group, release: Release | None, options: ReadOptions, place: str, record: LayerRecord | None
) -> CellSpec:
    tensors = group.tensors
    said = record.equations[0] if record is not None and record.equations else None
    if "W_i" in tensors or "W_z" in tensors:
        kind, units = (
            (Cell.LSTM, tensors["U_i"].shape[-1])
            if "W_i" in tensors
            else (Cell.GRU, tensors["U_z"].shape[-1])
        )
        activation, gate = _activations(kind, release, options, place, said)
        equations = plain_equations(kind, activation, gate, ResetPlace.BEFORE_PRODUCT)
        return CellSpec(kind.upper(), equations, units, True, "", place)
    shape = tensors["recurrent_kernel"].shape
    if len(shape) != 2 or shape[0] < 1 or shape[1] % shape[0] or shape[1] // shape[0] not in (1, 3, 4):
        raise BadFile(
            "the recurrent kernel has not the shape of a LSTM, GRU or SimpleRNN",
            place=place,
            found=shape,
            expected="(H, 4H), (H, 3H) or (H, H)",
        )
    units, gates = shape[0], shape[1] // shape[0]
    kind = {1: Cell.RNN, 3: Cell.GRU, 4: Cell.LSTM}[gates]
    bias = tensors["bias"].shape if "bias" in tensors else None
    if kind is not Cell.RNN and bias == (2 * gates * units,):
        equations = plain_equations(kind, reset=ResetPlace.AFTER_PRODUCT)
        return CellSpec(f"CuDNN{kind.upper()}", equations, units, True, "", place)
    reset = _reset(bias, units, options, place, said) if kind is Cell.GRU else None
    activation, gate = _activations(kind, release, options, place, said)
    return CellSpec(
        kind.upper(), plain_equations(kind, activation, gate, reset), units, bias is not None, "", place
    )


def _reset(
    bias: tuple[int, ...] | None, units: int, options: ReadOptions, place: str, said: Equations | None
) -> ResetPlace:
    """The shape of the bias says the form; without a bias the user has to."""
    from_file = {(2, 3 * units): True, (3 * units,): False}.get(bias) if bias is not None else None
    if bias is not None and from_file is None:
        raise BadFile(
            "the bias has not the shape of one of a GRU",
            place=place,
            found=bias,
            expected=f"{(3 * units,)} or {(2, 3 * units)}",
        )
    if from_file is None and options.reset_after is None and isinstance(said, GruEquations):
        return said.reset
    after = options.reset_after if from_file is None else from_file
    if after is None:
        raise AmbiguousSource(
            "the file does not say where the reset gate of this GRU acts, and there is no bias to show it",
            place=place,
            expected="reset_after is true or false",
            remedy="Say it with --reset-after true (the default of tf.keras 2 and Keras 3) or "
            "--reset-after false.",
        )
    if options.reset_after is not None and options.reset_after != after:
        raise BadFile(
            "--reset-after contradicts the file",
            place=place,
            found=f"a bias of shape {bias}",
            expected=f"reset_after={after}",
            remedy="Leave --reset-after out.",
        )
    return ResetPlace.AFTER_PRODUCT if after else ResetPlace.BEFORE_PRODUCT


def _activations(
    kind: Cell, release: Release | None, options: ReadOptions, place: str, said: Equations | None
) -> tuple[Activation, Activation]:
    """Of the state and of the gates; a release that the user names stands for its defaults."""
    if said is not None and said.cell is kind:  # what is noted for this very layer says more than an option
        match said:
            case LstmEquations():
                return said.hidden_activation, said.gate_activation
            case GruEquations():
                return said.candidate_activation, said.gate_activation
            case RnnEquations():
                return said.hidden_activation, TANH
    generation = release.generation if release is not None else None
    activation = _named(options.activation, generation, "--activation", place)
    if kind is Cell.RNN:
        if activation is None and options.keras_version is None:
            raise AmbiguousSource(
                "the file does not say the activation of this SimpleRNN",
                place=place,
                expected="tanh (the default), relu, or another one",
                remedy="Say it with --activation tanh or --activation relu.",
            )
        return activation or TANH, TANH
    gate = _named(options.recurrent_activation, generation, "--recurrent-activation", place)
    if gate is None:
        if options.keras_version is None or release is None:
            default = (
                f"; the default of Keras {release.text} was {release.default_recurrent_activation}"
                if release
                else ""
            )
            raise AmbiguousSource(
                f"the file does not say the recurrent activation of this {kind.upper()}{default}",
                place=place,
                expected="sigmoid or hard_sigmoid",
                remedy="Say it with --recurrent-activation sigmoid or --recurrent-activation hard_sigmoid, "
                "or name the release that trained it with --keras-version (such as 2.2) to take its default.",
            )
        gate = activation_names.read(release.default_recurrent_activation, release.generation, place)
    return activation or TANH, gate


def _named(name: str | None, generation: int | None, option: str, place: str) -> Activation | None:
    if name is None:
        return None
    if name == activation_names.HARD_SIGMOID and generation is None:
        raise AmbiguousSource(
            f"{option} hard_sigmoid is 0.2 x + 0.5 in Keras 1 and 2 and x / 6 + 0.5 in Keras 3, "
            "and the file does not say which release trained it",
            place=place,
            expected="--keras-version 2 or --keras-version 3",
            remedy="Add --keras-version.",
        )
    return activation_names.read(name, generation or 3, place)
