"""Optimizer state that travels with a model, for those who go on training.

The slots of an optimizer have the shapes of the weights, and so the same permutations: ``carrying`` sends
them through the layouts that the weights went through. What a framework calls its slots, where its files
have them and in which unit is said by one module each, named like the framework.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType

from lstmconvert.containers import Archive
from lstmconvert.errors import NotRepresentable, UnsupportedSource
from lstmconvert.lowering import Rewrite
from lstmconvert.model import Model

FRAMEWORKS = ("keras", "pytorch", "tensorflow1")
"""Those whose optimizers are known."""


def module_of(framework: str) -> ModuleType:
    """The module that reads and writes a framework's optimizer state.

    Raises:
        NotRepresentable: when there is none.
    """
    if framework not in FRAMEWORKS:
        raise NotRepresentable(
            f"optimizer state does not travel to or from {framework}",
            alternatives=FRAMEWORKS,
            remedy="Leave out --with-optimizer.",
        )
    return importlib.import_module(f"lstmconvert.optimizers.{framework}")


@dataclass(frozen=True, slots=True, eq=False)
class Travelled:
    """A target with an optimizer.

    Attributes:
        rewrites: what was done to the state.
        attach: puts the state into the target's archive, where the framework keeps it there.
        beside: files of their own, suffix to content.
    """

    rewrites: tuple[Rewrite, ...]
    attach: Callable[[Archive], Archive] = lambda archive: archive
    beside: Mapping[str, Archive] = field(default_factory=lambda: MappingProxyType({}))


def travel(
    path: Path,
    framework: str,
    archive: Archive,
    model: Model,
    to: str,
    target: Archive,
    lowered: Model,
    *,
    read: Callable[[Archive], Model],
    write: Callable[[Model], Archive],
    reread: Callable[[Archive], Model],
) -> Travelled:
    """Take the state of a source's optimizer to a target.

    Args:
        path, framework, archive, model: the source.
        to, target, lowered: the target's framework, its archive, and the model that is written.
        read: reads the source's framework.
        write, reread: write and read the target's framework.

    Raises:
        NotRepresentable: when one of both frameworks has no optimizer that is known, or the state does not
            fit the target.
        UnsupportedSource: when there is no optimizer in the source, or one that is not known.
    """
    from lstmconvert.optimizers import carrying, fitting

    theirs, ours = module_of(framework), module_of(to)
    state = theirs.read(path, archive, model)
    if state is None:
        raise UnsupportedSource(
            "there is no state of an optimizer in it",
            expected="a file that was saved with its optimizer, after at least one step",
            remedy="Leave out --with-optimizer.",
        )
    moved, carried = carrying.carry(state, archive, model, lowered, read, write)
    fitted, steps = fitting.fit(moved, *ours.form(moved))
    written = reread(target)
    attached = ours.attach(fitted, target, written)
    if (suffix := getattr(ours, "BESIDE", None)) is not None:
        return Travelled((*carried, *steps), beside=MappingProxyType({suffix: attached}))
    return Travelled((*carried, *steps), lambda archive: ours.attach(fitted, archive, written))


def write_beside(path: Path, archive: Archive) -> None:
    """Write a file with an optimizer's state, which only torch has apart from its weights."""
    from lstmconvert.containers import torch_archive

    torch_archive.write_optimizer(path, archive)
