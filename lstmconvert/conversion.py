"""Read, write, convert: the pipeline from one file to another, with the proof at its end."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert import bias_split, lowering, movement, pairing, provenance, registry, simplify, stacks
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.containers import Archive
from lstmconvert.errors import (
    AmbiguousSource,
    BadFile,
    ConversionError,
    NotRepresentable,
    UnsupportedSource,
    Usage,
    VerificationFailed,
)
from lstmconvert.lowering import Rewrite
from lstmconvert.mapping import MappingFile, load_file
from lstmconvert.model import Layer, Model, OperationLayer
from lstmconvert.options import CustomLayer, ReadOptions, WriteOptions
from lstmconvert.proof import LARGE, Proof, WholeProof, prove_layers
from lstmconvert.tensors import Lazy, same_bits
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    from lstmconvert.optimizers import Travelled

_LARGE_TENSOR = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A file that was read, before and after its names were understood."""

    path: Path
    container: str
    framework: str
    archive: Archive
    model: Model


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


def open_source(path: Path, options: ReadOptions) -> Source:
    """Read a file and find out what it is.

    Raises:
        BadFile: when it is missing, damaged or unknown.
        UnsupportedSource: when it is known, but holds what cannot be read.
        AmbiguousSource: when it does not say what its numbers mean.
    """
    try:
        entry = registry.container_of(path)
        archive = registry.container_module(entry.name).read(path)
        framework = _framework(path, entry.name, archive, options)
        _refuse_untold(options, framework)
        model = registry.module_of(framework).read(archive, entry.name, _with_mapping(options, framework))
    except ConversionError as error:
        raise error.located(file=path) from error.__cause__
    _check_ports(model, path)
    model = _remembered(replace(model, framework=framework.name), archive)
    if options.layer is not None:
        model = _only(model, options.layer, path)
    return Source(path, entry.name, framework.name, archive, model)


def _refuse_untold(options: ReadOptions, framework: MappingFile) -> None:
    """An option that a framework's files leave no room for is a mistake of the user's."""
    told = getattr(registry.module_of(framework), "TOLD", ())
    for name in ("forget_bias", "cell_clip", "projection_clip", "architecture"):
        if getattr(options, name) is not None and name not in told:
            option = "arch" if name == "architecture" else name.replace("_", "-")
            raise Usage(
                f"files of {framework.title} say themselves what --{option} would say",
                remedy="Leave the option out.",
            )


_LARGEST_AXIS = 1 << 31


def _check_ports(model: Model, path: Path) -> None:
    """See that inputs and outputs are arrays that there can be.

    Raises:
        BadFile: when a dtype is none, or a size is negative or beyond all bounds.
    """
    for port in (*model.inputs, *model.outputs):
        try:
            np.dtype(port.dtype)
        except (TypeError, ValueError) as error:
            raise BadFile(
                "an input or output has a dtype that there is not",
                file=path,
                place=port.name,
                found=repr(port.dtype),
            ) from error
        if len(port.shape) > 32 or any(n is not None and not 0 <= n < _LARGEST_AXIS for n in port.shape):
            raise BadFile(
                "an input or output has an impossible shape",
                file=path,
                place=port.name,
                found=str(port.shape)[:80],
            )


def _with_mapping(options: ReadOptions, framework: MappingFile) -> ReadOptions:
    """Frameworks that are nothing but named tensors need to be told which mapping file describes them."""
    return options if framework.module else replace(options, mapping=framework.path)


def _framework(path: Path, container: str, archive: Archive, options: ReadOptions) -> MappingFile:
    if options.mapping is not None:
        return replace(load_file(options.mapping), module="")
    if options.framework is not None:
        return registry.mapping_of(options.framework)
    # Packages of others are looked for only where nothing built in fits: that takes its time.
    for candidates in (registry.frameworks_in, registry.offered_in):
        recognized = _recognized(candidates(container), path, container, archive, options)
        if recognized is not None:
            return recognized
    known = list(archive.tensors)[:8]
    raise UnsupportedSource(
        "nothing in the file looks like the weights of a framework that is known",
        file=path,
        found=f"tensors {', '.join(known)}" if known else "no tensors",
        remedy="Describe the names with a mapping file of your own (--mapping FILE), "
        "or name the framework (--from).",
    )


def _recognized(
    names: Sequence[str], path: Path, container: str, archive: Archive, options: ReadOptions
) -> MappingFile | None:
    """The one of these frameworks that a file is of; ``None`` if it is of none."""
    # A framework with a module looks at more than names, and so it is asked first.
    for name in (name for name in names if registry.has_module(name)):
        framework = registry.mapping_of(name)
        if registry.module_of(framework).reads(archive, container):
            return framework
    others = [registry.mapping_of(name) for name in names if not registry.has_module(name)]
    by_names_alone = [f for f in others if registry.module_of(f).fits(f, archive.tensors)]
    if by_names_alone and _mean_the_same(by_names_alone, archive, container, options):
        return by_names_alone[0]
    if by_names_alone:
        raise AmbiguousSource(
            "the names in the file fit several frameworks",
            file=path,
            expected=f"one of {', '.join(f.name for f in by_names_alone)}",
            remedy="Name the framework with --from.",
        )
    return None


def _mean_the_same(
    frameworks: Sequence[MappingFile], archive: Archive, container: str, options: ReadOptions
) -> bool:
    """Whether frameworks read the same numbers as the same blocks of the same equations."""
    if len(frameworks) == 1:
        return True
    readers = [
        lambda a, f=framework: registry.module_of(f).read(a, container, _with_mapping(options, f))
        for framework in frameworks
    ]
    return movement.same_reading(archive, readers)


def _remembered(model: Model, archive: Archive) -> Model:
    """The model with what the file remembers about its layers, where that fits its numbers."""
    memory = provenance.fitting(provenance.loads(archive.metadata.get(provenance.KEY)), model.recurrent)
    if memory is None:
        return model
    notes = {
        layer.name: record.notes
        for record, layer in zip(memory.layers, model.recurrent.values(), strict=True)
    }

    def restore(layer: Layer) -> Layer:
        if not isinstance(layer, RecurrentLayer):
            return layer
        merged = MappingProxyType({**layer.notes, **notes[layer.name]})
        restored = bias_split.restore_constants(bias_split.restore(replace(layer, notes=merged)))
        return bias_split.restore_filled(restored)

    return model.map_layers(restore)


def _only(model: Model, name: str, path: Path) -> Model:
    """A model of one recurrent layer, without the topology around it."""
    layer = model.recurrent.get(name)
    if layer is None:
        raise Usage(
            f"there is no recurrent layer called {name!r}",
            file=path,
            expected=f"one of {', '.join(model.recurrent) or '(there are none)'}",
        )
    return Model({name: layer}, framework=model.framework, metadata=model.metadata)


def read(
    path: str | Path,
    *,
    framework: str | None = None,
    mapping: str | Path | None = None,
    keras_version: str | None = None,
    recurrent_activation: str | None = None,
    activation: str | None = None,
    reset_after: bool | None = None,
    layer: str | None = None,
    custom_layers: Mapping[str, CustomLayer] | None = None,
    forget_bias: float | None = None,
    cell_clip: float | None = None,
    projection_clip: float | None = None,
    arch: str | Path | None = None,
) -> Model:
    """Read a model from a file of any known framework, without that framework.

    Args:
        path: the file; what it is, is found out from its content.
        framework: name of the framework, where the content leaves it open.
        mapping: a mapping file of your own for home-made names.
        keras_version, recurrent_activation, activation, reset_after: what the file does not say; see
            ``options.ReadOptions``.
        layer: only this recurrent layer.
        custom_layers: for layers of your own classes, class name to a function that makes an operation or
            a layer of (configuration, weights); see ``options.ReadOptions``.
        forget_bias, cell_clip, projection_clip: as the first ones; see ``options.ReadOptions``.
        arch: of a torch state_dict: a description of how its modules follow each other; see
            ``frameworks.pytorch.architecture``.

    Returns:
        The model; its arrays are read from the file when they are used.

    Raises:
        BadFile, UnsupportedSource, AmbiguousSource: see ``open_source``.
    """
    options = ReadOptions(
        framework, None if mapping is None else Path(mapping), keras_version, recurrent_activation,
        activation, reset_after, layer, custom_layers or {}, forget_bias, cell_clip, projection_clip,
        None if arch is None else Path(arch),
    )  # fmt: skip
    return open_source(Path(path), options).model


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What is written of a source, fitted to its target, the archive to be written, and what goes with it."""

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


def _optimized(source: Source, told: ReadOptions, plan: _Plan) -> _Plan:
    """The plan with the state of the source's optimizer in it.

    Raises:
        NotRepresentable: when one of both frameworks has no optimizer that is known, or the state does not
            fit the target.
        UnsupportedSource: when there is no optimizer in the source, or one that is not known.
    """
    from lstmconvert import optimizers

    of_source = registry.mapping_of(source.framework)
    reader, writer = registry.module_of(of_source), registry.module_of(plan.framework)
    read_options = _with_mapping(told, of_source)
    written_options = _with_mapping(_told(plan.model), plan.framework)
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


def _plan(model: Model, target: Path, to: str | None, options: WriteOptions) -> _Plan:
    framework_name, container = registry.target_of(target, to)
    framework = registry.mapping_of(framework_name)
    module = registry.module_of(framework)
    source, unused = simplify.without_unused(model)
    model = source
    rewrites: tuple[Rewrite, ...] = tuple(
        Rewrite(name, "leave_out_unused", "left out: no output of the model depends on it", True)
        for name in unused
    )
    rewrites = (*_read_with(source), *rewrites)
    rewrites += _computed_wider(source)
    if options.dtype is not None:
        model, cast = lowering.cast(model, np.dtype(options.dtype))
        rewrites += cast
    keep = getattr(module, "spells_out", None) if model.calls is not None else None
    lowered, steps = lowering.lower(model, framework, keep)
    if not framework.module:
        options = replace(options, mapping=framework.path)
        lowered = stacks.noted(lowered)
    archive: Archive = module.write(lowered, container, options)
    memory = {provenance.KEY: provenance.of_model(lowered).dumps()}
    archive = replace(archive, metadata={**archive.metadata, **memory})
    return _Plan(source, lowered, archive, framework, container, (*rewrites, *steps), options)


def _computed_wider(model: Model) -> tuple[Rewrite, ...]:
    """That a source rounds every step to a narrower dtype than its variables have; the target does not."""
    names = ", ".join(str(name) for name in model.metadata.get("computed", ()))
    if not names:
        return ()
    text = (
        f"the source keeps float32 variables and rounds every step to {names}; the target computes in float32"
    )
    return (Rewrite("(all)", "compute_in_variable_dtype", text, False),)


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
    plan = _plan(model, target, to, WriteOptions(opset, states, dtype, weights_only))
    targets = _targets(target, plan.archive, plan.beside)
    with atomic.replacing(*targets, overwrite=overwrite) as places:
        _write_files(places, plan)
    return targets


def _targets(target: Path, archive: Archive, beside: Mapping[str, Archive]) -> tuple[Path, ...]:
    return (target, *(_beside(target, suffix) for suffix in (*archive.companions, *beside)))


def _beside(target: Path, suffix: str) -> Path:
    """The companion of a target: ``model.weights.h5`` has the stem ``model``."""
    stem = target.name.split(".")[0] or target.stem
    return target.with_name(stem + suffix)


def _write_files(places: Sequence[Path], plan: _Plan) -> None:
    archive = plan.archive if plan.optimizer is None else plan.optimizer.attach(plan.archive)
    registry.container_module(plan.container).write(places[0], archive)
    rest = iter(places[1:])
    for text in plan.archive.companions.values():
        next(rest).write_text(text, encoding="utf-8")
    for archive in plan.beside.values():
        from lstmconvert import optimizers

        optimizers.write_beside(next(rest), archive)


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
    if not source.model.recurrent and source.model.calls is None:
        raise UnsupportedSource(
            "there is no recurrent layer in it", file=source_path, found=_listing(source.archive)
        )
    try:
        parts = _parts(source.model, source_path, target, to)
        plans = {path: _plan(model, path, to, write_options) for path, model in parts.items()}
    except NotRepresentable as error:
        raise error.located(file=source_path) from error.__cause__
    if with_optimizer:
        plans = {path: _optimized(source, read_options, plan) for path, plan in plans.items()}
    targets = {path: _targets(path, plan.archive, plan.beside) for path, plan in plans.items()}
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
            _write_files(held, _sealed(plan) if proof else plan)
            if proof:
                back = registry.container_module(registry.container_of(held[0]).name).read(held[0])
                found = prove(
                    plan.source,
                    plan.model,
                    held[0],
                    back,
                    plan.framework.name,
                    plan.archive,
                    tolerance,
                    full=full,
                )
                moved = _moved(plan, back, once_more=full or source.model.weights <= LARGE)
                if not proofs:
                    moved = source_movement(source, read_options).and_then(moved)
                skipped = (*found.skipped, *_left_out(source.model))
                found = replace(found, rewrites=plan.rewrites, movement=moved, skipped=skipped)
                proofs.append(found)
                if not proofs[-1].proved:
                    raise VerificationFailed(failure(found), file=path, remedy="Nothing was written.")
    rewrites = tuple(step for plan in plans.values() for step in plan.rewrites)
    framework = next(iter(plans.values())).framework.name
    outcome = _joined(proofs, time.perf_counter() - started) if proof else None
    place = every[0] if len(plans) == 1 else every[0].parent
    return Result(source_path, place, source.framework, framework, every, outcome, rewrites)


def _left_out(model: Model) -> tuple[str, ...]:
    """That a source has a wiring, of which nothing was converted: its layers look whole without it."""
    reason = model.metadata.get("topology")
    return (f"only the recurrent layers were converted, not the whole model: {reason}",) if reason else ()


def _sealed(plan: _Plan) -> _Plan:
    """The plan with the digest of what is going to be proved; the file appears only if it is."""
    seal = provenance.Seal(provenance.of_model(plan.model), plan.archive.tensors)
    if not getattr(registry.container_module(plan.container), "TELLS_LATE", False):
        metadata = {**plan.archive.metadata, provenance.KEY: seal.closed().dumps()}
        return replace(plan, archive=replace(plan.archive, metadata=metadata))
    metadata = {**plan.archive.metadata, provenance.KEY: seal.open.dumps()}
    late = {provenance.KEY: lambda: seal.closed().dumps()}
    return replace(plan, archive=replace(plan.archive, tensors=seal.tensors, metadata=metadata, late=late))


def carried_proof(path: str | Path, options: ReadOptions | None = None) -> dict[str, str]:
    """Check a written file against the digest of the proof that it carries.

    Returns:
        ``file``, ``verdict`` (``intact``, ``changed`` or ``none``: it carries no proof) and ``detail``.

    Raises:
        BadFile, UnsupportedSource, AmbiguousSource: see ``read``.
    """
    path = Path(path)
    source = open_source(path, options or ReadOptions())
    memory = provenance.loads(source.archive.metadata.get(provenance.KEY))
    answer = {"file": str(path)}
    if memory is None or memory.proof is None:
        return {**answer, "verdict": "none", "detail": "it carries no proof of a conversion"}
    missing = [name for name in memory.sealed if name not in source.archive.tensors]
    if missing:
        return {
            **answer,
            "verdict": "changed",
            "detail": f"tensor {missing[0]!r} is gone since it was proved",
        }
    held = {name: source.archive.tensors[name] for name in memory.sealed}
    if provenance.Seal(memory, held).closed().proof != memory.proof:
        return {
            **answer,
            "verdict": "changed",
            "detail": "its numbers or equations are not those that were proved",
        }
    found = provenance.of_model(source.model).layers
    ordered = provenance.fitting(memory, source.model.recurrent) or memory
    ran, proved = [r.equations for r in found], [r.equations for r in ordered.layers]
    # A layer that is used twice may be held twice.
    same = ran == proved if len(ran) == len(proved) else all(e in proved for e in ran)
    if not same:
        return {**answer, "verdict": "changed", "detail": "it computes with other equations than were proved"}
    count = f"{len(held)} tensors and {len(found)} recurrent layers"
    detail = f"{count} are those that were proved ({memory.proof[:16]})"
    return {**answer, "verdict": "intact", "detail": detail}


def source_movement(source: Source, options: ReadOptions) -> movement.Movement:
    """Follow every element of a source into canonical blocks."""
    mapping = _framework(source.path, source.container, source.archive, options)
    module, told = registry.module_of(mapping), _with_mapping(options, mapping)
    return movement.of_source(source.archive, lambda archive: module.read(archive, source.container, told))


def block_places(
    source: Source, options: ReadOptions | None = None
) -> dict[str, dict[str, movement.BlockPlace]]:
    """Where the blocks of a file's recurrent layers lie; see ``movement.block_places``."""
    told = options or ReadOptions()
    mapping = _framework(source.path, source.container, source.archive, told)
    module, told = registry.module_of(mapping), _with_mapping(told, mapping)
    return movement.block_places(source.archive, lambda archive: module.read(archive, source.container, told))


def _moved(plan: _Plan, back: Archive, *, once_more: bool) -> movement.Movement:
    """Follow every element of a plan's blocks into the written form and back.

    Args:
        plan: what was written.
        back: the written file, read again.
        once_more: write indices in the place of the numbers; else only the way back is followed, which
            is enough where the blocks that came back have the bits of the source's.
    """
    module = registry.module_of(plan.framework)

    def write(model: Model) -> Archive:
        archive: Archive = module.write(model, plan.container, plan.options)
        return archive

    def read(archive: Archive) -> Model:
        return _read_again(archive, plan.container, plan.framework, plan.model)

    if once_more:
        return movement.of_target(plan.model, write, read, back)
    found = movement.of_source(back, read)
    return replace(found, source=0, target=found.source)


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


def _joined(proofs: Sequence[Proof], seconds: float) -> Proof:
    """The proofs of several files as one."""
    return Proof(
        tuple(p for proof in proofs for p in proof.layers),
        tuple(p for proof in proofs for p in proof.whole),
        tuple(p for proof in proofs for p in proof.problems),
        tuple(p for proof in proofs for p in proof.rewrites),
        tuple(dict.fromkeys(p for proof in proofs for p in proof.skipped)),
        seconds,
        _together([proof.movement for proof in proofs if proof.movement is not None]),
    )


def _together(movements: Sequence[movement.Movement]) -> movement.Movement | None:
    """The movements of several files as one."""
    total = movement.Movement()
    for one in movements:
        total = total.and_then(one)
    return total if movements else None


def _parts(model: Model, source: Path, target: Path | None, to: str | None) -> dict[Path, Model]:
    """Which model goes into which file: several, where the target needs a topology and the source has none.

    Raises:
        Usage: when several would have to go into one file.
    """
    if to is not None and not registry.written_suffixes(registry.mapping_of(to)):
        raise Usage(f"files of {registry.mapping_of(to).title} are only read", expected="another --to")
    if target is None:
        if to is None:
            raise Usage("the target is neither named nor is its framework")
        target = default_target(source, registry.suffix_of(to))
        named = False
    else:
        named = True
    folder = target.is_dir() or not target.suffix
    framework = to if to is not None or folder else registry.target_of(target, None)[0]
    if framework is None:
        raise Usage(
            f"{target} is a folder and does not say what to write", remedy="Name the target with --to."
        )
    module = registry.module_of(registry.mapping_of(framework))
    if model.calls is None and getattr(module, "spells_out", None) and not _held(model, framework):
        # Only a module can spell out what the framework's own layers cannot hold, and a module is wired.
        model = stacks.side_by_side(model)
    needs_topology = getattr(module, "NEEDS_TOPOLOGY", False)
    suffix = registry.suffix_of(framework)
    if model.calls is not None or not needs_topology:
        return {target / default_target(source, suffix).name if folder else target: model}
    parts = stacks.split(model)
    if len(parts) == 1:
        only = next(iter(parts.values()))
        return {target / default_target(source, suffix).name if folder else target: only}
    if named and not folder:
        raise Usage(
            f"the source holds {len(parts)} recurrent stacks, and "
            + str(model.metadata.get("topology") or "does not say how they are wired"),
            file=source,
            found=", ".join(parts),
            remedy="Choose one with --layer, or give -o a folder for one file per stack.",
        )
    place = target if named else target.with_suffix("")
    return {place / (_file_name(name) + suffix): part for name, part in parts.items()}


def _held(model: Model, framework: str) -> bool:
    """Whether a framework's own layers can hold every recurrent layer of a model."""
    try:
        lowering.lower(model, registry.mapping_of(framework))
    except NotRepresentable:
        return False
    return True


def _file_name(name: str) -> str:
    """A layer's name as a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip(".") or "layer"


def default_target(source: Path, suffix: str) -> Path:
    """The source's name with another suffix, in the source's folder."""
    name = source.name
    for known in sorted(
        (s for e in registry.containers().values() for s in e.suffixes), key=len, reverse=True
    ):
        if name.lower().endswith(known):
            return source.with_name(name[: -len(known)] + suffix)
    return source.with_name(name + suffix)


def _listing(archive: Archive) -> str:
    names = list(archive.tensors)
    return f"{len(names)} tensors: {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}"


def failure(proof: Proof) -> str:
    """What a failed proof found, in one sentence."""
    parts = [*proof.problems, *(proof.movement.problems if proof.movement is not None else ())]
    for layer in proof.layers:
        if not layer.proved:
            worst = ", ".join(f"{name} by {gap:.3g}" for name, gap, _ in layer.differing[:3])
            parts.append(
                f"layer {layer.name!r} differs by {layer.max_abs_error:.3g}, tolerance {layer.tolerance:.3g}"
                + (f" (weights: {worst})" if worst else "")
            )
    for whole in proof.whole:
        if not whole.proved:
            at = f", first at {whole.first_difference!r}" if whole.first_difference else ""
            parts.append(
                f"the whole model in {whole.runtime} differs by {whole.max_abs_error:.3g}, "
                f"tolerance {whole.tolerance:.3g}{at}"
            )
    if not parts:
        parts.append("nothing could be compared")
    return "the conversion is not proved: " + "; ".join(parts)


def prove(
    source: Model,
    lowered: Model,
    written: Path,
    back: Archive,
    framework: str,
    archive: Archive,
    tolerance: float | None,
    *,
    full: bool = False,
) -> Proof:
    """Compare a written file with the model that it came from.

    Args:
        source: the model as it was read.
        lowered: what it was fitted to.
        written: the file.
        back: what it holds, read again.
        framework: its framework.
        archive: what was to be written.
        tolerance, full: as for ``convert``.
    """
    container = registry.container_of(written).name
    target = _read_again(back, container, registry.mapping_of(framework), lowered)
    target = replace(target, framework=framework)
    layers, problems = prove_layers(
        source.recurrent, _in_order(target, lowered), tolerance=tolerance, full=full
    )
    compared = {name for layer in layers if layer.bit_equal for name in target.recurrent[layer.target].origin}
    problems += _lost_tensors(archive, back, compared)
    problems += _lost_neighbours(lowered, target)
    same = {layer.name: layer.target for layer in layers if layer.not_run}
    whole, skipped = _prove_whole(source, target, written, tolerance, full=full, same=same)
    if archive.companions:
        skipped.append("the module beside the weights was not run; verify SRC OUT --runtime runs it")
    return Proof(tuple(layers), tuple(whole), tuple(problems), skipped=tuple(skipped))


def _read_again(archive: Archive, container: str, mapping: MappingFile, lowered: Model) -> Model:
    """A written archive read; what it does not say itself is said as the person would who wrote it."""
    module = registry.module_of(mapping)
    model: Model
    try:
        model = module.read(archive, container, _with_mapping(ReadOptions(), mapping))
    except AmbiguousSource:
        model = module.read(archive, container, _with_mapping(_told(lowered), mapping))
    return model


def _told(lowered: Model) -> ReadOptions:
    """What a person who knows the source would say about the target where the file itself cannot."""
    from lstmconvert.canonical import RnnEquations

    kinds = {
        d.equations.hidden_activation.kind
        for layer in lowered.recurrent.values()
        for d in layer.directions
        if isinstance(d.equations, RnnEquations)
    }
    return ReadOptions(activation=kinds.pop() if len(kinds) == 1 else None)


def _in_order(target: Model, lowered: Model) -> Mapping[str, RecurrentLayer]:
    """The target's layers in the order of the source; a layer that is held for every use comes once."""
    held = target.recurrent
    found: dict[str, str] = {}
    twins = pairing.twins(lowered.recurrent, held, wired=target.calls is not None)
    for name, twin in twins.items():
        found.setdefault(twin, name)
    ordered = [found[name] for name in lowered.recurrent if name in found]
    return {name: held[name] for name in [*ordered, *(name for name in held if name not in twins)]}


def _lost_tensors(archive: Archive, back: Archive, compared: Collection[str]) -> list[str]:
    """Tensors that are not in the written file bit for bit as they were to be written.

    Large ones of layers whose blocks were ``compared`` bit by bit already are not packed a second time.
    """
    problems = []
    for name, tensor in archive.tensors.items():
        other = back.tensors.get(name)
        if other is None:
            problems.append(f"tensor {name!r} is not in the written file")
        elif name in compared and tensor.size > _LARGE_TENSOR:
            if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
                problems.append(f"tensor {name!r} has another shape or dtype in the written file")
        elif not same_bits(np.asarray(tensor.read()), np.asarray(other.read())):
            problems.append(f"tensor {name!r} has other bits in the written file")
    return problems


def _lost_neighbours(lowered: Model, target: Model) -> list[str]:
    """Weights of neighbouring layers that came back with other bits, where the target knows them."""
    problems = []
    for name, layer in lowered.layers.items():
        other = target.layers.get(name)
        if not isinstance(layer, OperationLayer) or not isinstance(other, OperationLayer):
            continue
        if type(layer.operation) is not type(other.operation):
            continue  # The same numbers in other places, as of a depthwise convolution in groups.
        for part, block in layer.weights.items():
            twin: Lazy | None = other.weights.get(part)
            if twin is not None and not same_bits(np.squeeze(block.read()), np.squeeze(twin.read())):
                problems.append(f"{part} of layer {name!r} came back with other bits")
    return problems


def _prove_whole(
    source: Model,
    target: Model,
    written: Path,
    tolerance: float | None,
    *,
    full: bool,
    same: Mapping[str, str],
) -> tuple[list[WholeProof], list[str]]:
    if source.calls is None:
        return [], []
    from lstmconvert import whole

    try:
        return whole.prove(source, target, written, tolerance, full=full, same=same)
    except ValueError as error:
        raise BadFile(f"the model does not fit together: {error}") from error


def verify_files(
    first: str | Path,
    second: str | Path,
    *,
    options: ReadOptions | None = None,
    tolerance: float | None = None,
    inputs: Sequence[Any] | None = None,
) -> Proof:
    """Prove that two files compute the same, whatever frameworks they are of.

    Args:
        first, second: the files.
        options: what they do not say themselves; applies to both.
        tolerance: largest accepted absolute difference; worked out from float32 rounding if not given.
        inputs: arrays for the whole models (one per input), instead of random ones.

    Returns:
        The proof; ``proof.proved`` is the verdict.

    Raises:
        BadFile, UnsupportedSource, AmbiguousSource: see ``read``.
        Usage: when there are inputs, but no whole model that could take them.
    """
    started = time.perf_counter()
    (a, b), (given, told) = open_both(first, second, options or ReadOptions())
    found = verify_models(a.model, b.model, b.path, tolerance=tolerance, inputs=inputs)
    moved = source_movement(a, given).and_then(source_movement(b, told))
    return replace(
        found,
        movement=moved,
        seconds=time.perf_counter() - started,
    )


def open_both(
    first: str | Path, second: str | Path, given: ReadOptions
) -> tuple[tuple[Source, Source], tuple[ReadOptions, ReadOptions]]:
    """Two files that are to be compared, and what each was told."""
    a = open_source(Path(first), given)
    told = replace(given, framework=None, mapping=None, layer=None)
    try:
        b = open_source(Path(second), told)
    except AmbiguousSource:
        if told.activation is not None:
            raise
        told = replace(told, activation=_told(a.model).activation)
        b = open_source(Path(second), told)
    if given.layer is not None and len(b.model.recurrent) > 1:
        b = replace(b, model=_only(b.model, given.layer, b.path))
    return (a, b), (given, told)


def reopened(result: Result) -> tuple[Source, ReadOptions]:
    """The first file that a conversion wrote, read again, and what it had to be told."""
    options = ReadOptions(framework=result.framework_to)
    try:
        return open_source(result.written[0], options), options
    except AmbiguousSource:
        told = replace(options, activation="tanh")
        return open_source(result.written[0], told), told


def verify_models(
    first: Model,
    second: Model,
    path: Path | None = None,
    *,
    tolerance: float | None = None,
    inputs: Sequence[Any] | None = None,
) -> Proof:
    """Prove that two models compute the same.

    Args:
        first, second: the models.
        path: the file that the second was read from, if there is one; ONNX Runtime then runs it.
        tolerance, inputs: as for ``verify_files``.

    Raises:
        Usage: when there are inputs, but no whole model that could take them.
    """
    layers, problems = prove_layers(first.recurrent, _in_order(second, first), tolerance=tolerance)
    whole_proofs: list[WholeProof] = []
    skipped: list[str] = []
    # The inputs go to whichever side knows its topology; what is equal does not depend on the order.
    known, other, file = (first, second, path) if first.calls is not None else (second, first, None)
    if known.calls is not None:
        from lstmconvert import whole

        same = {layer.name: layer.target for layer in layers if layer.not_run}
        same = same if known is first else {b: a for a, b in same.items()}
        whole_proofs, skipped = whole.prove(known, other, file, tolerance, inputs=inputs, same=same)
    elif inputs is not None:
        raise Usage(
            "there is no whole model that could take the input: neither side says how its layers are wired",
            remedy="Leave --input out; the layers are compared on inputs of their own.",
        )
    return Proof(tuple(layers), tuple(whole_proofs), tuple(problems), skipped=tuple(skipped))
