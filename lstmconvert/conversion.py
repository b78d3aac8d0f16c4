"""The pipeline from one file to another, with the proof at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lstmconvert import registry
from lstmconvert.containers import Archive
from lstmconvert.destinations import models_by_file
from lstmconvert.errors import AmbiguousSource, NotRepresentable, UnsupportedSource, VerificationFailed
from lstmconvert.judging import failure, joined, movement_of, prove
from lstmconvert.lowering import Rewrite
from lstmconvert.model import Model
from lstmconvert.opening import Source, open_source, source_movement
from lstmconvert.options import ReadOptions, WriteOptions
from lstmconvert.planning import plan_of, sealed, target_files, with_optimizer_state, write_files
from lstmconvert.proof import LARGE, Proof
from lstmconvert.values import dataclass

_MOST_NAMED = 6


@dataclass(frozen=True, slots=True)
class Result:
    """What a conversion did.

    Attributes:
        source, target: the files.
        framework_from, framework_to: what they are.
        written: every file that was written, the target first.
        proof: the proof, or ``None`` when it was not asked for.
        rewrites: what lowering did.
    """

    source: Path
    target: Path
    framework_from: str
    framework_to: str
    written: tuple[Path, ...]
    proof: Proof | None
    rewrites: tuple[Rewrite, ...]

    @property
    def report(self) -> Mapping[str, Any]:
        """The report as JSON values; see ``report.conversion``."""
        from lstmconvert import report

        return report.conversion(self)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    framework: str | None = None,
    to: str | None = None,
    mapping: str | Path | None = None,
    keras_version: str | None = None,
    recurrent_activation: str | None = None,
    activation: str | None = None,
    reset_after: bool | None = None,
    layer: str | None = None,
    opset: int | None = None,
    states: bool = False,
    dtype: str | None = None,
    weights_only: bool = False,
    tolerance: float | None = None,
    proof: bool = True,
    full: bool = False,
    overwrite: bool = False,
    forget_bias: float | None = None,
    cell_clip: float | None = None,
    projection_clip: float | None = None,
    with_optimizer: bool = False,
    arch: str | Path | None = None,
) -> Result:
    """Convert a file: read, lower, write, prove; the target appears only when it is proved.

    Args:
        source, target: the files; the target's suffix says the framework where ``to`` does not.
        framework, to: names of the frameworks of source and target.
        tolerance: largest accepted absolute difference; worked out from float32 rounding if not given.
        proof: whether to prove the result.
        full: prove a large model as thoroughly as a small one, whatever it takes.
        overwrite: replace what is there.
        with_optimizer: take the state of the optimizer along, between Keras, PyTorch and TensorFlow 1.
        The others: see ``read`` and ``write``.

    Returns:
        What was done; ``.report`` has the proof as JSON values.

    Raises:
        VerificationFailed: when the result is not what the source computes; nothing is left behind.
        BadFile, UnsupportedSource, AmbiguousSource, NotRepresentable, Usage: see ``read`` and ``write``.
    """
    options = ReadOptions(
        framework, None if mapping is None else Path(mapping), keras_version, recurrent_activation,
        activation, reset_after, layer,
        forget_bias=forget_bias, cell_clip=cell_clip, projection_clip=projection_clip,
        architecture=None if arch is None else Path(arch),
    )  # fmt: skip
    return run(
        Path(source),
        Path(target),
        options,
        to,
        WriteOptions(opset, states, dtype, weights_only),
        tolerance=tolerance,
        proof=proof,
        full=full,
        overwrite=overwrite,
        with_optimizer=with_optimizer,
    )


def run(
    source_path: Path,
    target: Path | None,
    read_options: ReadOptions,
    to: str | None,
    write_options: WriteOptions,
    *,
    tolerance: float | None = None,
    proof: bool = True,
    full: bool = False,
    overwrite: bool = False,
    with_optimizer: bool = False,
) -> Result:
    """``convert`` with its options as values; without a target it is named after the source."""
    from lstmconvert import atomic

    started = time.perf_counter()
    source = open_source(source_path, read_options)
    if not source.model.recurrent and not source.model.calls:
        raise UnsupportedSource(
            "there is no recurrent layer in it", file=source_path, found=_listing(source.archive)
        )
    try:
        parts = models_by_file(source.model, source_path, target, to)
        plans = {path: plan_of(model, path, to, write_options) for path, model in parts.items()}
    except NotRepresentable as error:
        raise error.located(file=source_path) from error.__cause__
    if with_optimizer:
        plans = {path: with_optimizer_state(source, read_options, plan) for path, plan in plans.items()}
    targets = {path: target_files(path, plan.archive, plan.beside) for path, plan in plans.items()}
    every = tuple(path for group in targets.values() for path in group)
    made = _made_folder(every[0].parent) if len(plans) > 1 or target is None or target.suffix == "" else None
    proofs: list[Proof] = []
    with (
        _removed_on_failure(made),
        atomic.replacing(*every, overwrite=overwrite, sources=(source_path,)) as places,
    ):
        left = list(places)
        for path, plan in plans.items():
            held = [left.pop(0) for _ in targets[path]]
            write_files(held, sealed(plan) if proof else plan)
            if proof:
                back = registry.container_module(registry.container_of(held[0]).name).read(held[0])
                found = prove(
                    plan.whole,
                    plan.source,
                    plan.model,
                    held[0],
                    back,
                    plan.framework.name,
                    plan.archive,
                    tolerance,
                    full=full,
                )
                moved = movement_of(plan, back, once_more=full or source.model.weights <= LARGE)
                if not proofs:
                    moved = source_movement(source, read_options).and_then(moved)
                skipped = (*found.skipped, *_left_out(source.model))
                found = replace(found, rewrites=plan.rewrites, movement=moved, skipped=skipped)
                proofs.append(found)
                if not proofs[-1].proved:
                    raise VerificationFailed(failure(found), file=path, remedy="Nothing was written.")
    rewrites = tuple(step for plan in plans.values() for step in plan.rewrites)
    framework = next(iter(plans.values())).framework.name
    outcome = joined(proofs, time.perf_counter() - started) if proof else None
    place = every[0] if len(plans) == 1 else every[0].parent
    return Result(source_path, place, source.framework, framework, every, outcome, rewrites)


def _left_out(model: Model) -> tuple[str, ...]:
    """What of a source was not converted: its layers look whole without it."""
    reasons = []
    if reason := model.metadata.get("topology"):
        reasons.append(f"only the recurrent layers were converted, not the whole model: {reason}")
    if others := list(model.metadata.get("other_tensors", ())):
        shown = ", ".join(others[:_MOST_NAMED])
        more = " and more (see inspect)" if len(others) > _MOST_NAMED else ""
        reasons.append(f"tensors that are part of no recurrent layer were left out: {shown}{more}")
    return tuple(reasons)


def _made_folder(folder: Path) -> Path | None:
    """Make the folder that is to hold one file per stack; ``None`` if it is there already."""
    if folder.is_dir():
        return None
    folder.mkdir()
    return folder


@contextmanager
def _removed_on_failure(folder: Path | None) -> Iterator[None]:
    """Takes a folder away again that was made for nothing."""
    try:
        yield
    except BaseException:
        if folder is not None:
            with suppress(OSError):
                folder.rmdir()
        raise


def _listing(archive: Archive) -> str:
    names = list(archive.tensors)
    return f"{len(names)} tensors: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"


def reopened(result: Result) -> tuple[Source, ReadOptions]:
    """The first file that a conversion wrote, read again, and what it had to be told."""
    options = ReadOptions(framework=result.framework_to)
    try:
        return open_source(result.written[0], options), options
    except AmbiguousSource:
        told = replace(options, activation="tanh")
        return open_source(result.written[0], told), told
