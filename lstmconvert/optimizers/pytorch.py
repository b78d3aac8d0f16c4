"""Optimizers of torch: ``optimizer.state_dict()``, in the checkpoint itself or in a file beside the weights.

Source: ``torch/optim/adam.py``, ``adamw.py``, ``rmsprop.py``, ``sgd.py`` and ``optimizer.py`` of torch 2.13.
The state is numbered; the names of the parameters are in the file if the optimizer was given
``model.named_parameters()`` (torch 2.6 and later), else it is taken over all parameters in their order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, torch_archive, zip_reader
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.model import Model
from lstmconvert.optimizers.state import SLOTS, Epsilon, Kind, OptimizerState, Slot
from lstmconvert.tensors import Lazy

BESIDE = ".optimizer.pt"
"""Ends the name of the file with the optimizer's state, which has the stem of that with the weights."""
_SPELLED = {
    Kind.ADAM: {"exp_avg": Slot.FIRST_MOMENT, "exp_avg_sq": Slot.SECOND_MOMENT},
    Kind.RMSPROP: {"square_avg": Slot.MEAN_SQUARE, "momentum_buffer": Slot.MOMENTUM},
    Kind.SGD: {"momentum_buffer": Slot.MOMENTUM},
}
_NOT_TRAINED = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_DEFAULTS: Mapping[Kind, Mapping[str, Any]] = {
    Kind.ADAM: {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False},
    Kind.RMSPROP: {
        "lr": 0.01,
        "momentum": 0,
        "alpha": 0.99,
        "eps": 1e-8,
        "centered": False,
        "weight_decay": 0,
    },
    Kind.SGD: {"lr": 0.001, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False},
}
_NUMBERS = {
    "lr": "learning_rate",
    "eps": "epsilon",
    "alpha": "decay",
    "momentum": "momentum",
    "nesterov": "nesterov",
    "weight_decay": "weight_decay",
}
_COMMON = {"maximize": False, "foreach": None, "capturable": False, "differentiable": False}


def read(path: Path, archive: Archive, model: Model) -> OptimizerState | None:  # noqa: ARG001 - the order is the file's
    """The optimizer's state in a checkpoint or beside it, or ``None`` if there is none.

    Raises:
        UnsupportedSource: for an optimizer, or a setting of one, that is not known.
        BadFile: when its state does not fit the parameters.
    """
    held = torch_archive.read_optimizer(path) if zip_reader.is_zip(path) else None
    other = beside(path)
    if held is None and other.is_file() and other != path:
        held = torch_archive.read_optimizer(other)
    if held is None:
        return None
    groups = held.metadata["param_groups"]
    numbers = [index for group in groups for index in group.get("params", ())]
    names = [name for group in groups for name in group.get("param_names", ())] or _parameters(archive)
    if len(names) != len(numbers) or any(name not in archive.tensors for name in names):
        raise BadFile(
            "the optimizer's parameters are not those of the file",
            found=f"{len(numbers)} parameters" if len(names) != len(numbers) else ", ".join(names)[:200],
            expected=f"those of {', '.join(archive.tensors)[:200]}",
            remedy="Give the optimizer model.named_parameters(), so that its state has their names.",
        )
    name_of = dict(zip((str(number) for number in numbers), names, strict=True))
    kind = _kind(held)
    slots: dict[Slot, dict[str, Lazy]] = {}
    steps = {value for name, value in held.metadata["numbers"].items() if name.endswith("/step")}
    for key, tensor in held.tensors.items():
        index, _, slot = key.partition("/")
        if slot == "step":
            steps.add(float(tensor.read()))
            continue
        if slot not in _SPELLED[kind] or index not in name_of:
            raise UnsupportedSource("the optimizer remembers what does not travel", found=key)
        if tensor.shape != archive.tensors[name_of[index]].shape:
            raise BadFile(
                "the optimizer's state does not have the shape of its parameter",
                place=name_of[index],
                found=tensor.shape,
                expected=archive.tensors[name_of[index]].shape,
                remedy="Give the optimizer model.named_parameters(), so that its state has their names.",
            )
        slots.setdefault(_SPELLED[kind][slot], {})[name_of[index]] = tensor
    if len(steps) > 1:
        raise UnsupportedSource(
            "the parameters were updated a different number of times", found=sorted(steps)
        )
    held_slots = {slot: MappingProxyType(tensors) for slot, tensors in slots.items()}
    step = int(next(iter(steps))) if steps else None
    return OptimizerState(kind, _settings(kind, groups), step, MappingProxyType(held_slots))


def attach(state: OptimizerState, archive: Archive, model: Model) -> Archive:  # noqa: ARG001 - names are the state_dict's
    """The state_dict of an optimizer as an archive of its own, which goes into a file beside the weights."""
    settings = state.settings
    names = list(state.weights)
    group: dict[str, Any] = {**_DEFAULTS[state.kind], **_COMMON}
    for theirs, ours in _NUMBERS.items():
        if ours in settings and theirs in group:
            group[theirs] = settings[ours]
    if state.kind is Kind.ADAM:
        group["betas"] = (float(settings.get("beta_1", 0.9)), float(settings.get("beta_2", 0.999)))
        group["decoupled_weight_decay"] = bool(settings.get("weight_decay"))
    if state.kind is not Kind.RMSPROP:
        group["fused"] = None
    group |= {"params": list(range(len(names))), "param_names": names}
    spelled = {slot: name for name, slot in _SPELLED[state.kind].items()}
    tensors: dict[str, Lazy] = {}
    for index, name in enumerate(names):
        if state.kind is not Kind.SGD:
            tensors[f"{index}/step"] = Lazy.of(np.asarray(state.step or 0, np.float32))
        for slot in SLOTS[state.kind]:
            if name in state.slots.get(slot, {}):
                tensors[f"{index}/{spelled[slot]}"] = state.slots[slot][name]
    return Archive(MappingProxyType(tensors), {"param_groups": [group]})


def form(state: OptimizerState) -> tuple[float | None, Epsilon]:  # noqa: ARG001 - it is always the same
    """The unit of the momentum, and the place of epsilon."""
    return 1.0, Epsilon.CORRECTED


def beside(path: Path) -> Path:
    """The file with the optimizer's state that belongs to one with weights."""
    return path.with_name((path.name.split(".")[0] or path.stem) + BESIDE)


def _parameters(archive: Archive) -> list[str]:
    """The names of a state_dict that ``model.parameters()`` has, in its order: shared ones once."""
    again = {name for group in archive.metadata.get("shared", ()) for name in group[1:]}
    return [name for name in archive.tensors if not _NOT_TRAINED.search(name) and name not in again]


def _kind(held: Archive) -> Kind:
    slots = {name.partition("/")[2] for name in held.tensors}
    for kind, spelled in _SPELLED.items():
        if next(iter(spelled)) in slots:
            return kind
    raise UnsupportedSource(
        "the optimizer has no state that travels",
        found=", ".join(sorted(slots)) or "nothing: no step was made, or it is SGD without momentum",
        expected="Adam, AdamW, RMSprop, or SGD with momentum",
        remedy="Leave out --with-optimizer.",
    )


def _settings(kind: Kind, groups: list[Mapping[str, Any]]) -> Mapping[str, float | bool]:
    plain = [{k: v for k, v in group.items() if k not in ("params", "param_names")} for group in groups]
    if any(group != plain[0] for group in plain):
        raise UnsupportedSource("groups of parameters with different settings do not travel")
    group = plain[0]
    decay = float(group.get("weight_decay", 0) or 0)
    wrong = [key for key in ("amsgrad", "centered", "maximize") if group.get(key)]
    if float(group.get("dampening", 0) or 0):
        wrong.append("dampening")
    if decay and not group.get("decoupled_weight_decay"):
        wrong.append("weight_decay added to the gradient")
    if wrong:
        raise UnsupportedSource(
            f"the optimizer has {wrong[0]}, which does not travel", remedy="Leave out --with-optimizer."
        )
    found: dict[str, float | bool] = {}
    for theirs, ours in _NUMBERS.items():
        value = group.get(theirs)
        if theirs in group and not isinstance(value, bool | int | float):
            kind_of_value = type(value).__name__
            raise UnsupportedSource(f"the {theirs} of the optimizer is not a number", found=kind_of_value)
        if value is not None and (theirs != "weight_decay" or decay):
            found[ours] = value if isinstance(value, bool) else float(value)
    if kind is Kind.ADAM:
        found["beta_1"], found["beta_2"] = (float(beta) for beta in group["betas"])
    return MappingProxyType(found)
