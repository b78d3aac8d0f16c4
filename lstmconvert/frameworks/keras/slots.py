"""Which tensors a layer has, in which order, and where each form of file keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor of a layer.

    Attributes:
        part: what the layer calls it (``recurrent_kernel``); unique under ``path``.
        path: the objects inside the layer that lead to it in a ``.weights.h5`` (``cell``), or ``""``.
        names: what it may be called at the end of its name in a legacy file; empty: anything.
        trainable: whether it stands among the trainable ones, which legacy files list first.
        old_path: another path, of an older release.
        read: whether it is needed; the others only take their place.
    """

    part: str
    path: str = ""
    names: tuple[str, ...] = ()
    trainable: bool = True
    old_path: str | None = None
    read: bool = True

    @property
    def key(self) -> str:
        """Its name inside the layer."""
        return f"{self.path}/{self.part}" if self.path else self.part

    def under(self, path: str, old_path: str | None = None) -> Slot:
        """The same slot one object further in."""

        def join(a: str, b: str) -> str:
            return f"{a}/{b}" if b else a

        old = None
        if old_path is not None or self.old_path is not None:
            old = join(old_path if old_path is not None else path, self.old_path or self.path)
        return replace(self, path=join(path, self.path), old_path=old)


def slots(*parts: str, **others: tuple[str, ...]) -> tuple[Slot, ...]:
    """Trainable tensors of a layer itself, under these names; ``others`` gives further names of some."""
    return tuple(Slot(part, names=(part, *others.get(part, ()))) for part in parts)


def positions(all_slots: Iterable[Slot]) -> Mapping[Slot, int]:
    """The number that each slot has in the ``vars`` of its object."""
    counts: dict[str, int] = {}
    result: dict[Slot, int] = {}
    for slot in all_slots:
        result[slot] = counts.get(slot.path, 0)
        counts[slot.path] = result[slot] + 1
    return result
