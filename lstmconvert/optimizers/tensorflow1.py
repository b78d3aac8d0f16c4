"""Optimizers of TensorFlow 1: variables of the checkpoint, named after the weights.

Source: ``tf.compat.v1.train.AdamOptimizer``, ``RMSPropOptimizer`` and ``MomentumOptimizer`` of TensorFlow
2.21. A checkpoint has no settings: betas are taken for the defaults where their powers say so.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from lstmconvert.containers import Archive
from lstmconvert.errors import UnsupportedSource
from lstmconvert.model import Model
from lstmconvert.optimizers.state import Epsilon, Kind, OptimizerState, Slot
from lstmconvert.tensors import Lazy

_SUFFIXES = {
    Kind.ADAM: {"/Adam": Slot.FIRST_MOMENT, "/Adam_1": Slot.SECOND_MOMENT},
    Kind.RMSPROP: {"/RMSProp": Slot.MEAN_SQUARE, "/RMSProp_1": Slot.MOMENTUM},
    Kind.SGD: {"/Momentum": Slot.MOMENTUM},
}
_EPSILON = {Kind.ADAM: Epsilon.UNCORRECTED, Kind.RMSPROP: Epsilon.INSIDE, Kind.SGD: Epsilon.CORRECTED}
_BETA_1, _BETA_2 = 0.9, 0.999


def read(path: Path, archive: Archive, model: Model) -> OptimizerState | None:  # noqa: ARG001 - it is in the archive
    """The optimizer's state in a checkpoint, or ``None`` if there is none.

    Raises:
        UnsupportedSource: when the betas of Adam are not the defaults.
    """
    for kind, suffixes in _SUFFIXES.items():
        slots: dict[Slot, dict[str, Lazy]] = {}
        for suffix, slot in suffixes.items():
            for name, tensor in archive.tensors.items():
                weight = name.removesuffix(suffix)
                if name.endswith(suffix) and weight in archive.tensors:
                    slots.setdefault(slot, {})[weight] = tensor
        if not slots:
            continue
        notes: tuple[str, ...] = ()
        if kind is Kind.RMSPROP:
            # It is the last step where there is no momentum, and then of no use; which it is, nothing says.
            slots.pop(Slot.MOMENTUM, None)
            notes = ("the checkpoint does not say a momentum of RMSProp: it is taken for 0, the default",)
        settings = {"beta_1": _BETA_1, "beta_2": _BETA_2} if kind is Kind.ADAM else {}
        step = _step(archive) if kind is Kind.ADAM else None
        held = MappingProxyType({slot: MappingProxyType(tensors) for slot, tensors in slots.items()})
        return OptimizerState(
            kind, MappingProxyType(settings), step, held, epsilon=_EPSILON[kind], notes=notes
        )
    return None


def attach(state: OptimizerState, archive: Archive, model: Model) -> Archive:  # noqa: ARG001 - names are the archive's
    """The checkpoint with the optimizer's variables in it."""
    spelled = {slot: suffix for suffix, slot in _SUFFIXES[state.kind].items()}
    tensors = dict(archive.tensors)
    for slot, held in state.slots.items():
        tensors |= {name + spelled[slot]: tensor for name, tensor in held.items()}
    if state.kind is Kind.RMSPROP and Slot.MOMENTUM not in state.slots:
        for name, like in state.slots[Slot.MEAN_SQUARE].items():
            tensors[f"{name}/RMSProp_1"] = Lazy.of(np.zeros(like.shape, like.dtype))
    if state.kind is Kind.ADAM:
        for name, default in (("beta_1", _BETA_1), ("beta_2", _BETA_2)):
            power = float(state.settings.get(name, default)) ** ((state.step or 0) + 1)
            tensors[f"{name.replace('_', '')}_power"] = Lazy.of(np.asarray(power, np.float32))
    return replace(archive, tensors=MappingProxyType(tensors))


def form(state: OptimizerState) -> tuple[float | None, Epsilon]:
    """The unit of the momentum, and the place of epsilon."""
    if state.kind is Kind.RMSPROP and Slot.MOMENTUM in state.slots:
        rate = state.settings.get("learning_rate")
        return None if rate is None else float(rate), _EPSILON[state.kind]
    return 1.0, _EPSILON[state.kind]


def _step(archive: Archive) -> int | None:
    """How many updates the powers of Adam's betas stand for."""
    found = []
    for name, beta in (("beta1_power", _BETA_1), ("beta2_power", _BETA_2)):
        tensor = next((t for n, t in archive.tensors.items() if n.rpartition("/")[2] == name), None)
        if tensor is None:
            return None
        power = float(tensor.read())
        if power > 1e-30:  # smaller ones have lost their digits
            step = math.log(power) / math.log(beta) - 1
            if abs(step - round(step)) > 0.02 + 1e-4 * abs(step):
                raise UnsupportedSource(
                    "the optimizer's betas are not the defaults, and a checkpoint does not say them",
                    place=name,
                    found=power,
                    expected=f"a power of {beta}",
                    remedy="Leave out --with-optimizer.",
                )
            found.append(round(step))
    if len(set(found)) > 1:
        raise UnsupportedSource(
            "the powers of the optimizer's betas stand for different numbers of steps",
            found=found,
            remedy="Leave out --with-optimizer.",
        )
    return found[0] if found else None
