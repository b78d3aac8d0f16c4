"""Where the tensors of each layer are: by their order in legacy files, by path in the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lstmconvert.errors import BadFile
from lstmconvert.frameworks.keras.slots import Slot, positions
from lstmconvert.tensors import Lazy, Tensors
from lstmconvert.values import dataclass

Found = Mapping[Slot, tuple[str, Lazy]]
"""Slot to the name of its tensor in the file and the tensor."""


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """A layer that has tensors of its own.

    Attributes:
        name: unique in the model (``outer/inner``).
        path: of its object in a ``.weights.h5``.
        slots: its tensors.
        trainable: whether the layer is; a frozen one's tensors all count as not trainable.
    """

    name: str
    path: str
    slots: tuple[Slot, ...]
    trainable: bool


class Store(Protocol):
    """Finds the tensors of the layers of one top-level layer."""

    def find(self, layer: str, owners: Sequence[Owner]) -> Mapping[str, Found]:
        """The tensors of every owner, by its name."""
        ...

    def everything(self, layer: str, path: str) -> Mapping[str, Lazy]:
        """All tensors of a top-level layer, under their names inside it."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PathStore:
    """A ``.weights.h5``: ``layers/lstm/cell/vars/0``.

    Attributes:
        tensors: of the file.
    """

    tensors: Tensors

    def find(self, layer: str, owners: Sequence[Owner]) -> Mapping[str, Found]:
        """By path and number.

        Raises:
            BadFile: when one is missing.
        """
        del layer
        return {owner.name: self._of(owner) for owner in owners}

    def _of(self, owner: Owner) -> Found:
        found: dict[Slot, tuple[str, Lazy]] = {}
        for slot, number in positions(owner.slots).items():
            if not slot.read:
                continue
            paths = [slot.path] if slot.old_path is None else [slot.path, slot.old_path]
            keys = [
                "/".join(part for part in (owner.path, path, "vars", str(number)) if part) for path in paths
            ]
            key = next((key for key in keys if key in self.tensors), None)
            if key is None:
                raise BadFile(
                    "the weights of this layer are not in the file",
                    place=f"layer {owner.name!r}: {slot.key}",
                    found=_near(owner.path, self.tensors),
                    expected=keys[0],
                )
            found[slot] = key, self.tensors[key]
        return found

    def everything(self, layer: str, path: str) -> Mapping[str, Lazy]:
        """By what stands behind the layer's path."""
        del layer
        return {
            key.removeprefix(f"{path}/"): lazy
            for key, lazy in self.tensors.items()
            if key.startswith(f"{path}/")
        }


def _near(path: str, tensors: Tensors) -> str:
    near = [key for key in tensors if key.startswith(f"{path}/")]
    if near:
        return ", ".join(near[:4])
    folders = dict.fromkeys("/".join(key.split("/")[:2]) for key in tensors)
    return ", ".join(list(folders)[:8]) or "no tensors"


@dataclass(frozen=True, slots=True, eq=False)
class OrderStore:
    """A legacy file: for each top-level layer, its tensors in order, the trainable ones first.

    Attributes:
        layer_weights: layer name to (name, key) of each tensor.
        tensors: of the file.
    """

    layer_weights: Mapping[str, Sequence[tuple[str, str]]]
    tensors: Tensors

    def find(self, layer: str, owners: Sequence[Owner]) -> Mapping[str, Found]:
        """By order; every name is checked.

        Raises:
            BadFile: when there are too few or too many, or one has the name of another.
        """
        stored = self.layer_weights.get(layer, ())
        if any(_is_keras1(name) for name, _ in stored):
            return self._by_name(layer, owners, stored)
        slots = [(owner, slot) for owner in owners for slot in owner.slots]
        wanted = [pair for pair in slots if pair[0].trainable and pair[1].trainable]
        wanted += [pair for pair in slots if not (pair[0].trainable and pair[1].trainable)]
        if len(stored) != len(wanted):
            raise BadFile(
                "the layer has another number of weights in the file than by its configuration",
                place=f"layer {layer!r}",
                found=", ".join(name for name, _ in stored) or "none",
                expected=", ".join(slot.key for _, slot in wanted) or "none",
            )
        result: dict[str, dict[Slot, tuple[str, Lazy]]] = {owner.name: {} for owner in owners}
        for (owner, slot), (name, key) in zip(wanted, stored, strict=True):
            if not _fits(name, slot):
                raise BadFile(
                    "the weights of this layer are in another order than its configuration says",
                    place=f"layer {owner.name!r}",
                    found=name,
                    expected=slot.key,
                )
            if slot.read:
                result[owner.name][slot] = key, self.tensors[key]
        return result

    def _by_name(
        self, layer: str, owners: Sequence[Owner], stored: Sequence[tuple[str, str]]
    ) -> Mapping[str, Found]:
        """Keras 1: ``lstm_1_W_i``, in an order of its own; two directions follow each other."""
        result: dict[str, dict[Slot, tuple[str, Lazy]]] = {}
        left = list(stored)
        for index, owner in enumerate(owners):
            paths = list(dict.fromkeys(slot.path for slot in owner.slots))
            last_owner = index == len(owners) - 1
            own: dict[Slot, tuple[str, Lazy]] = {}
            for number, path in enumerate(paths):
                wanted = [slot for slot in owner.slots if slot.path == path]
                everything = last_owner and number == len(paths) - 1
                taken = left if everything else left[: len(left) // (len(paths) - number)]
                left = left[len(taken) :]
                for name, key in taken:
                    own[_keras1_slot(name, wanted, path, layer)] = key, self.tensors[key]
            result[owner.name] = own
        return result

    def everything(self, layer: str, path: str) -> Mapping[str, Lazy]:
        """By the names that the tensors have."""
        del path
        return {name: self.tensors[key] for name, key in self.layer_weights.get(layer, ())}


_KERAS1 = re.compile(r"_(?:[WUb](?:_[ifcozrh])?|gamma|beta|running_mean|running_std)(?::\d+)?$")
_KERAS1_PARTS = {"W": "kernel", "U": "recurrent_kernel", "b": "bias"}


def _is_keras1(name: str) -> bool:
    return _KERAS1.search(name.rsplit("/", 1)[-1]) is not None


def _keras1_slot(name: str, slots: Sequence[Slot], path: str, layer: str) -> Slot:
    local = re.sub(r":\d+$", "", name.rsplit("/", 1)[-1])
    match = re.search(r"_([WUb](?:_[ifcozrh])?|gamma|beta|running_mean|running_std)$", local)
    assert match is not None
    found = match[1]
    if "_" in found and found[0] in _KERAS1_PARTS and len(found) == 3:
        return Slot(found, path)  # one array for each gate; a layout of its own
    for slot in slots:
        if slot.part == _KERAS1_PARTS.get(found, found) or found in slot.names:
            return slot
    raise BadFile(
        "the layer has a weight that its configuration does not have", place=f"layer {layer!r}", found=name
    )


def _fits(name: str, slot: Slot) -> bool:
    """Whether a tensor's name may be that of a slot: its last part, without TensorFlow's numbers."""
    local = re.sub(r":\d+$", "", name.rsplit("/", 1)[-1])
    return not slot.names or any(re.fullmatch(rf"{re.escape(wanted)}(_\d+)?", local) for wanted in slot.names)


def store_of(tensors: Tensors, metadata: Mapping[str, Any]) -> Store:
    """The store of an archive."""
    if metadata.get("layer_weights") is not None:
        return OrderStore(metadata["layer_weights"], tensors)
    return PathStore(tensors)
