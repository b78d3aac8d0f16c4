"""What is written of a model: fitted to its target, with its companions and its optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from lstmconvert import lowering, projections, provenance, registry, simplify, stacks
from lstmconvert.containers import Archive
from lstmconvert.errors import ConversionError
from lstmconvert.lowering import Rewrite
from lstmconvert.mapping import MappingFile
from lstmconvert.model import Model
from lstmconvert.opening import Source, told_of, with_mapping
from lstmconvert.options import ReadOptions, WriteOptions
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    from lstmconvert.optimizers import Travelled


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is written of a source, fitted to its target, the archive to be written, and what goes with it.

    Attributes:
        whole: the model as it was read, without what nothing needs.
        source: the same, with projections folded where the target has none: its layers are the target's.
        model: what it was fitted to.
        archive, framework, container, rewrites, options: what is written, and how.
        optimizer: the state of the source's optimizer, if it comes along.
    """

    whole: Model
    source: Model
    model: Model
    archive: Archive
    framework: MappingFile
    container: str
    rewrites: tuple[Rewrite, ...]
    options: WriteOptions
    optimizer: Travelled | None = None

    @property
    def beside(self) -> Mapping[str, Archive]:
        """Files that go beside the target, suffix to content."""
        return MappingProxyType({}) if self.optimizer is None else self.optimizer.beside


def plan_of(model: Model, target: Path, to: str | None, options: WriteOptions) -> Plan:
    framework_name, container = registry.target_of(target, to)
    framework = registry.mapping_of(framework_name)
    module = registry.module_of(framework)
    whole, unused = simplify.without_unused(model)
    keep = getattr(module, "spells_out", None) if model.calls is not None else None
    # Fed with a state from outside, a folded layer would take another one than the source's.
    folds = getattr(module, "FOLDS_PROJECTIONS", False) and not options.states
    source, unprojected = projections.folded(whole, framework, keep) if folds else (whole, ())
    model = source
    rewrites: tuple[Rewrite, ...] = tuple(
        Rewrite(name, "leave_out_unused", "left out: no output of the model depends on it", True)
        for name in unused
    )
    rewrites = (*_read_with(source), *rewrites, *unprojected)
    rewrites += _computed_wider(source)
    if options.dtype is not None:
        model, cast = lowering.cast(model, np.dtype(options.dtype))
        rewrites += cast
    lowered, steps = lowering.lower(model, framework, keep)
    if not framework.module:
        options = replace(options, mapping=framework.path)
        lowered = stacks.noted(lowered)
    archive: Archive = module.write(lowered, container, options)
    memory = {provenance.KEY: provenance.of_model(lowered).dumps()}
    archive = replace(archive, metadata={**archive.metadata, **memory})
    return Plan(whole, source, lowered, archive, framework, container, (*rewrites, *steps), options)


def _read_with(model: Model) -> tuple[Rewrite, ...]:
    """What reading the source changed, where its reader says so."""
    return tuple(
        Rewrite(
            str(step["layer"]),
            str(step["name"]),
            str(step["description"]),
            bool(step["exact"]),
            float(step["rounding"]),
        )
        for step in model.metadata.get("rewrites", ())
        if model.calls is not None or step["layer"] in model.layers
    )


def _computed_wider(model: Model) -> tuple[Rewrite, ...]:
    """That a source rounds every step to a narrower dtype than its variables have; the target does not."""
    names = ", ".join(str(name) for name in model.metadata.get("computed", ()))
    if not names:
        return ()
    text = (
        f"the source keeps float32 variables and rounds every step to {names}; the target computes in float32"
    )
    return (Rewrite("(all)", "compute_in_variable_dtype", text, False),)


def with_optimizer_state(source: Source, told: ReadOptions, plan: Plan) -> Plan:
    """The plan with the state of the source's optimizer in it.

    Raises:
        NotRepresentable: when one of both frameworks has no optimizer that is known, or the state does not
            fit the target.
        UnsupportedSource: when there is no optimizer in the source, or one that is not known.
    """
    from lstmconvert import optimizers

    of_source = registry.mapping_of(source.framework)
    reader, writer = registry.module_of(of_source), registry.module_of(plan.framework)
    read_options = with_mapping(told, of_source)
    written_options = with_mapping(told_of(plan.model), plan.framework)
    try:
        travelled = optimizers.travel(
            source.path, source.framework, source.archive, source.model,
            plan.framework.name, plan.archive, plan.model,
            read=lambda archive: reader.read(archive, source.container, read_options),
            write=lambda model: writer.write(model, plan.container, plan.options),
            reread=lambda archive: writer.read(archive, plan.container, written_options),
        )  # fmt: skip
    except ConversionError as error:
        raise error.located(file=source.path) from error.__cause__
    return replace(plan, optimizer=travelled, rewrites=(*plan.rewrites, *travelled.rewrites))


def sealed(plan: Plan) -> Plan:
    """The plan with the digest of what is going to be proved; the file appears only if it is."""
    seal = provenance.Seal(provenance.of_model(plan.model), plan.archive.tensors)
    if not getattr(registry.container_module(plan.container), "TELLS_LATE", False):
        metadata = {**plan.archive.metadata, provenance.KEY: seal.closed().dumps()}
        return replace(plan, archive=replace(plan.archive, metadata=metadata))
    metadata = {**plan.archive.metadata, provenance.KEY: seal.open.dumps()}
    late = {provenance.KEY: lambda: seal.closed().dumps()}
    return replace(plan, archive=replace(plan.archive, tensors=seal.tensors, metadata=metadata, late=late))


def target_files(target: Path, archive: Archive, beside: Mapping[str, Archive]) -> tuple[Path, ...]:
    return (target, *(_beside(target, suffix) for suffix in (*archive.companions, *beside)))


def _beside(target: Path, suffix: str) -> Path:
    """The companion of a target: ``model.weights.h5`` has the stem ``model``."""
    stem = target.name.split(".")[0] or target.stem
    return target.with_name(stem + suffix)


def write_files(places: Sequence[Path], plan: Plan) -> None:
    archive = plan.archive if plan.optimizer is None else plan.optimizer.attach(plan.archive)
    registry.container_module(plan.container).write(places[0], archive)
    rest = iter(places[1:])
    for text in plan.archive.companions.values():
        next(rest).write_text(text, encoding="utf-8")
    for archive in plan.beside.values():
        from lstmconvert import optimizers

        optimizers.write_beside(next(rest), archive)


def write(
    model: Model,
    path: str | Path,
    *,
    to: str | None = None,
    overwrite: bool = False,
    opset: int | None = None,
    states: bool = False,
    dtype: str | None = None,
    weights_only: bool = False,
) -> tuple[Path, ...]:
    """Write a model for a framework, without that framework; ``convert`` also proves what it wrote.

    Args:
        model: the model.
        path: the target; its suffix says the framework and container where ``to`` does not.
        to: name of the framework.
        overwrite: replace what is there.
        opset, states, dtype, weights_only: see ``options.WriteOptions``.

    Returns:
        The files written: the target, then companions such as the generated module.

    Raises:
        NotRepresentable: when the target cannot express the model.
        Usage: when the path says nothing, or exists.
    """
    from lstmconvert import atomic

    target = Path(path)
    plan = plan_of(model, target, to, WriteOptions(opset, states, dtype, weights_only))
    targets = target_files(target, plan.archive, plan.beside)
    with atomic.replacing(*targets, overwrite=overwrite) as places:
        write_files(places, plan)
    return targets
