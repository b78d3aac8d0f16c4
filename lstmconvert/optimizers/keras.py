"""Optimizers of Keras: in ``.keras`` archives by position, in ``.h5`` files by the names of the weights.

Source: ``optimizers/adam.py``, ``rmsprop.py``, ``sgd.py`` and ``saving_lib.py`` of Keras 3.15, the new and
the legacy optimizers of tf_keras 2.21; files of both are read and trained on in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import operations
from lstmconvert.containers import Archive, hdf5, keras_archive
from lstmconvert.errors import BadFile, NotRepresentable, UnsupportedSource
from lstmconvert.model import Model, OperationLayer
from lstmconvert.optimizers.state import SLOTS, Epsilon, Kind, OptimizerState, Slot
from lstmconvert.tensors import Lazy

_KINDS = {"adam": Kind.ADAM, "adamw": Kind.ADAM, "rmsprop": Kind.RMSPROP, "sgd": Kind.SGD}
_EPSILON = {Kind.ADAM: Epsilon.UNCORRECTED, Kind.RMSPROP: Epsilon.INSIDE, Kind.SGD: Epsilon.CORRECTED}
_NUMBERS = {
    Kind.ADAM: {"beta_1": "beta_1", "beta_2": "beta_2", "epsilon": "epsilon"},
    Kind.RMSPROP: {"rho": "decay", "momentum": "momentum", "epsilon": "epsilon"},
    Kind.SGD: {"momentum": "momentum", "nesterov": "nesterov"},
}
_DEFAULTS: Mapping[Kind, Mapping[str, float | bool]] = {
    Kind.ADAM: {"learning_rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7},
    Kind.RMSPROP: {"learning_rate": 0.001, "decay": 0.9, "momentum": 0.0, "epsilon": 1e-7},
    Kind.SGD: {"learning_rate": 0.01, "momentum": 0.0, "nesterov": False},
}
_WITHOUT = ("clipnorm", "global_clipnorm", "clipvalue", "loss_scale_factor", "gradient_accumulation_steps")
_WORDS = {
    Kind.ADAM: {
        "momentum": Slot.FIRST_MOMENT, "velocity": Slot.SECOND_MOMENT,
        "m": Slot.FIRST_MOMENT, "v": Slot.SECOND_MOMENT,
    },
    Kind.RMSPROP: {"velocity": Slot.MEAN_SQUARE, "momentum": Slot.MOMENTUM, "rms": Slot.MEAN_SQUARE},
    Kind.SGD: {"momentum": Slot.MOMENTUM, "m": Slot.MOMENTUM},
}  # fmt: skip
_CLASS = {Kind.ADAM: "Adam", Kind.RMSPROP: "RMSprop", Kind.SGD: "SGD"}


def read(path: Path, archive: Archive, model: Model) -> OptimizerState | None:
    """The optimizer's state in a Keras file, or ``None`` if it has none.

    Raises:
        UnsupportedSource: for an optimizer, or a setting of one, that is not known.
        BadFile: when its slots do not fit the weights.
    """
    is_archive = archive.metadata.get("form") == "keras_archive"
    held = (keras_archive if is_archive else hdf5).read_optimizer(path)
    if held is None:
        return None
    configuration = (
        (archive.metadata["config"].get("compile_config") or {}).get("optimizer")
        if is_archive
        else (held.metadata.get("training_config") or {}).get("optimizer_config")
    )
    kind, settings = _settings(configuration)
    names = trainable(model, archive)
    slots = (
        _by_position(held, kind, settings, names, archive)
        if is_archive
        else _by_name(held, kind, names, archive)
    )
    counters = [t for n, t in held.tensors.items() if not t.shape and t.dtype.kind in "iu"]
    rates = [t for t in held.tensors.values() if not t.shape and t.dtype.kind == "f"]
    step = int(counters[0].read()) if counters else None
    if rates:
        settings["learning_rate"] = float(rates[0].read())
    unit = _unit(kind, float(settings["learning_rate"])) if Slot.MOMENTUM in slots else 1.0
    return OptimizerState(
        kind, MappingProxyType(settings), step, MappingProxyType(slots), unit, _EPSILON[kind]
    )


def attach(state: OptimizerState, archive: Archive, model: Model) -> Archive:
    """The archive of a model with an optimizer in it; ``keras.models.load_model`` gives it compiled.

    Args:
        state: over the archive's names, in this framework's unit; see ``fitted``.
        archive: a ``.keras`` archive.
        model: what the archive is read as.

    Raises:
        NotRepresentable: for other files of Keras, and where not all trainable weights have slots.
    """
    if archive.metadata.get("form") != "keras_archive":
        raise NotRepresentable(
            "only a .keras archive is written with an optimizer",
            remedy="Name the target with the suffix .keras.",
        )
    names = trainable(model, archive)
    missing = [name for name in names if name not in state.weights]
    if missing:
        raise NotRepresentable(
            "the optimizer has no state for a weight that Keras would train",
            place=missing[0],
            reasons=(f"there is state for {len(state.weights)} of {len(names)} weights",),
            remedy="Leave out --with-optimizer.",
        )
    settings = {**_DEFAULTS[state.kind], **state.settings}
    slots = [slot for slot in SLOTS[state.kind] if slot in state.slots]
    values = [
        Lazy.of(np.asarray(state.step or 0, np.int64)),
        Lazy.of(np.asarray(settings["learning_rate"], np.float32)),
    ]
    if state.kind is Kind.ADAM:
        values += [state.slots[slot][name] for name in names for slot in slots]
    else:
        values += [state.slots[slot][name] for slot in slots for name in names]
    decoupled = float(settings.get("weight_decay", 0.0)) or None
    configuration: dict[str, Any] = {
        "learning_rate": float(settings["learning_rate"]),
        "weight_decay": decoupled,
        **{ours: settings[name] for ours, name in _NUMBERS[state.kind].items()},
    }
    name = "AdamW" if state.kind is Kind.ADAM and decoupled else _CLASS[state.kind]
    optimizer = {
        "module": "keras.optimizers", "class_name": name, "config": configuration, "registered_name": None,
    }  # fmt: skip
    config = {**archive.metadata["config"], "compile_config": {"optimizer": optimizer, "loss": None}}
    tensors = {**archive.tensors, **{f"optimizer/vars/{n}": value for n, value in enumerate(values)}}
    return replace(
        archive,
        tensors=MappingProxyType(tensors),
        metadata=MappingProxyType({**archive.metadata, "config": config}),
    )


def form(state: OptimizerState) -> tuple[float | None, Epsilon]:
    """The unit of the momentum, which depends on the learning rate, and the place of epsilon."""
    if Slot.MOMENTUM not in state.slots:
        return 1.0, _EPSILON[state.kind]
    rate = state.settings.get("learning_rate")
    return None if rate is None else _unit(state.kind, float(rate)), _EPSILON[state.kind]


def _unit(kind: Kind, rate: float) -> float:
    """The momentum of SGD is what is added to a weight, that of RMSprop what is taken from it."""
    return -rate if kind is Kind.SGD else rate


def trainable(model: Model, archive: Archive) -> list[str]:
    """The names of the weights that Keras trains, in the order of ``model.trainable_variables``.

    Raises:
        UnsupportedSource: when the order of a layer's weights cannot be told.
    """
    config = archive.metadata.get("config") or archive.metadata.get("model_config")
    if not isinstance(config, dict):
        raise UnsupportedSource(
            "without the architecture the order of the optimizer's state cannot be told",
            remedy="Save the whole model, or leave out --with-optimizer.",
        )
    names: list[str] = []
    seen = set()
    for layer_name in _layers(config):
        layer = model.layers.get(layer_name)
        if layer is None or not layer.origin:
            continue
        seen.add(layer_name)
        origin: Sequence[str] = layer.origin
        if isinstance(layer, OperationLayer):
            if isinstance(layer.operation, operations.MultiHeadAttention | operations.Normalization):
                raise UnsupportedSource(
                    f"the order of the weights of a {type(layer.operation).__name__} cannot be told",
                    place=f"layer {layer_name!r}",
                    remedy="Leave out --with-optimizer.",
                )
            if isinstance(layer.operation, operations.BatchNormalization):
                origin = origin[:-2]  # the moving averages
        names += origin
    left = [name for name, layer in model.layers.items() if layer.origin and name not in seen]
    if left:
        raise UnsupportedSource(
            "the order of the weights in the optimizer cannot be told", place=f"layer {left[0]!r}",
            remedy="Leave out --with-optimizer.",
        )  # fmt: skip
    return names


def _layers(config: Mapping[str, Any]) -> Iterator[str]:
    """The names of all layers in the order of ``model.layers``; those that are not trained are refused."""
    inner = config.get("config", {})
    for layer in (inner.get("layers", []) if isinstance(inner, dict) else inner) or []:
        about = layer.get("config", {})
        if isinstance(about, dict) and "layers" in about:
            raise UnsupportedSource(
                "the optimizer of a model with models in it is not read", place=str(about.get("name")),
                remedy="Leave out --with-optimizer.",
            )  # fmt: skip
        if isinstance(about, dict) and about.get("trainable") is False:
            raise UnsupportedSource(
                "the layer is not trained, and the optimizer has no state for it",
                place=f"layer {about.get('name')!r}",
                remedy="Leave out --with-optimizer.",
            )
        yield str(about.get("name") or layer.get("name"))


def _settings(configuration: object) -> tuple[Kind, dict[str, float | bool]]:
    """Kind and settings of an optimizer's configuration, which is only its name where all are defaults."""
    name = configuration if isinstance(configuration, str) else None
    told: Mapping[str, Any] = {}
    if isinstance(configuration, dict):
        name = str(configuration.get("class_name", ""))
        told = configuration.get("config") or {}
    kind = _KINDS.get((name or "").rpartition(">")[2].lower())
    if kind is None:
        raise UnsupportedSource(
            "the optimizer is not one whose state travels",
            found=repr(name),
            expected=", ".join(sorted(_KINDS)),
            remedy="Leave out --with-optimizer.",
        )
    wrong = [key for key in (*_WITHOUT, "amsgrad", "centered", "use_ema") if told.get(key)]
    if wrong:
        raise UnsupportedSource(
            f"the optimizer has {wrong[0]}, which does not travel", found=repr(told[wrong[0]]),
            remedy="Leave out --with-optimizer.",
        )  # fmt: skip
    settings = dict(_DEFAULTS[kind])
    for key, ours in {**_NUMBERS[kind], "learning_rate": "learning_rate"}.items():
        value = told.get(key, told.get("lr") if key == "learning_rate" else None)
        if isinstance(value, bool | int | float):
            settings[ours] = value
        elif value is not None:
            raise UnsupportedSource(
                f"the {key} of the optimizer is not a number", found=type(value).__name__,
                remedy="Compile the model with a number, or leave out --with-optimizer.",
            )  # fmt: skip
    if (decay := told.get("weight_decay")) is not None:
        settings["weight_decay"] = float(decay)
    return kind, settings


def _by_position(
    held: Archive, kind: Kind, settings: Mapping[str, float | bool], names: Sequence[str], archive: Archive
) -> dict[Slot, Mapping[str, Lazy]]:
    """Slots of a ``.keras`` archive: of Adam both of a weight together, else one slot after the other."""
    wanted = [slot for slot in SLOTS[kind] if slot is not Slot.MOMENTUM or settings.get("momentum")]
    scalars = len(held.tensors) - len(wanted) * len(names)
    arrays = list(held.tensors.values())[scalars:] if 0 <= scalars <= 2 else []
    if scalars not in (1, 2) or any(t.shape for t in list(held.tensors.values())[:scalars]):
        raise BadFile(
            "the optimizer's state does not fit the weights",
            found=f"{len(held.tensors)} arrays",
            expected=f"{len(wanted)} for each of {len(names)} weights",
        )
    found: dict[Slot, dict[str, Lazy]] = {slot: {} for slot in wanted}
    for index, array in enumerate(arrays):
        if kind is Kind.ADAM:
            slot, name = wanted[index % len(wanted)], names[index // len(wanted)]
        else:
            slot, name = wanted[index // len(names)], names[index % len(names)]
        found[slot][name] = _fitting(array, name, archive)
    return dict(found)


def _by_name(
    held: Archive, kind: Kind, names: Sequence[str], archive: Archive
) -> dict[Slot, Mapping[str, Lazy]]:
    """Slots of an ``.h5`` file, whose names contain those of the weights."""
    spelled = {
        key: weight.partition(":")[0]
        for weights in archive.metadata["layer_weights"].values()
        for weight, key in weights
    }
    found: dict[Slot, dict[str, Lazy]] = {}
    for name, array in held.tensors.items():
        plain = name.partition(":")[0]
        if not array.shape and re.search(r"iter|rate|decay|momentum$|rho|beta", plain):
            continue
        matches = [
            (slot, key)
            for word, slot in _WORDS[kind].items()
            for key in names
            if f"/{plain}".endswith((
                f"/{spelled[key].replace('/', '_')}_{word}",
                f"/{word}/{spelled[key]}",
                f"/{spelled[key]}/{word}",
            ))
        ]  # fmt: skip
        if len(matches) != 1:
            raise UnsupportedSource(
                "it cannot be told to which weight a part of the optimizer's state belongs",
                place=name,
                remedy="Save the model as .keras, or leave out --with-optimizer.",
            )
        ((slot, key),) = matches
        found.setdefault(slot, {})[key] = _fitting(array, key, archive)
    return {slot: {name: held[name] for name in names if name in held} for slot, held in found.items()}


def _fitting(array: Lazy, name: str, archive: Archive) -> Lazy:
    expected = archive.tensors[name].shape
    if array.shape != expected:
        raise BadFile(
            "the optimizer's state does not have the shape of its weight",
            place=name,
            found=array.shape,
            expected=expected,
        )
    return array
