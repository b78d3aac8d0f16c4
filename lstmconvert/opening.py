"""Files opened: found out what they are, and read as models, with what they remember of a conversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from lstmconvert import bias_split, movement, provenance, registry
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.containers import Archive, check_number
from lstmconvert.errors import AmbiguousSource, BadFile, ConversionError, UnsupportedSource, Usage
from lstmconvert.mapping import MappingFile, load_file
from lstmconvert.model import LARGEST_AXIS, Layer, Model
from lstmconvert.options import CustomLayer, ReadOptions
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A file that was read, before and after its names were understood."""

    path: Path
    container: str
    framework: str
    archive: Archive
    model: Model


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
        # Vectors are not counted: an unrolled graph has many small constants.
        check_number(sum(len(tensor.shape) > 1 for tensor in archive.tensors.values()), "matrices")
        framework = framework_of(path, entry.name, archive, options)
        _refuse_untold(options, framework)
        model = registry.module_of(framework).read(archive, entry.name, with_mapping(options, framework))
        _check(model)
    except ConversionError as error:
        raise error.located(file=path) from error.__cause__
    model = _remembered(replace(model, framework=framework.name), archive)
    if options.layer is not None:
        model = only_layer(model, options.layer, path)
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


def _check(model: Model) -> None:
    """See that inputs and outputs are arrays that there can be, and that the layers fit each other.

    Raises:
        BadFile: when a dtype is none, a size is negative or beyond all bounds, two layers do not fit, or
            there are no outputs.
    """
    for port in (*model.inputs, *model.outputs):
        try:
            np.dtype(port.dtype)
        except (TypeError, ValueError) as error:
            raise BadFile(
                "an input or output has a dtype that there is not", place=port.name, found=repr(port.dtype)
            ) from error
        if len(port.shape) > 32 or any(n is not None and not 0 <= n < LARGEST_AXIS for n in port.shape):
            raise BadFile(
                "an input or output has an impossible shape", place=port.name, found=str(port.shape)[:80]
            )
    if model.calls is None:
        return
    if model.layers and not model.outputs:
        raise BadFile("the model has no outputs", found=f"layers {', '.join(list(model.layers)[:6])}")
    from lstmconvert import shapes

    shapes.infer_read(model)


def with_mapping(options: ReadOptions, framework: MappingFile) -> ReadOptions:
    """Frameworks that are nothing but named tensors need to be told which mapping file describes them."""
    return options if framework.module else replace(options, mapping=framework.path)


def framework_of(path: Path, container: str, archive: Archive, options: ReadOptions) -> MappingFile:
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
        lambda a, f=framework: registry.module_of(f).read(a, container, with_mapping(options, f))
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


def only_layer(model: Model, name: str, path: Path) -> Model:
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


def told_of(lowered: Model) -> ReadOptions:
    """What a person who knows the source would say about the target where the file itself cannot."""
    from lstmconvert.canonical import RnnEquations

    kinds = {
        d.equations.hidden_activation.kind
        for layer in lowered.recurrent.values()
        for d in layer.directions
        if isinstance(d.equations, RnnEquations)
    }
    return ReadOptions(activation=kinds.pop() if len(kinds) == 1 else None)


def source_movement(source: Source, options: ReadOptions) -> movement.Movement:
    """Follow every element of a source into canonical blocks."""
    mapping = framework_of(source.path, source.container, source.archive, options)
    module, told = registry.module_of(mapping), with_mapping(options, mapping)
    return movement.of_source(source.archive, lambda archive: module.read(archive, source.container, told))


def block_places(
    source: Source, options: ReadOptions | None = None
) -> dict[str, dict[str, movement.BlockPlace]]:
    """Where the blocks of a file's recurrent layers lie; see ``movement.block_places``."""
    told = options or ReadOptions()
    mapping = framework_of(source.path, source.container, source.archive, told)
    module, told = registry.module_of(mapping), with_mapping(told, mapping)
    return movement.block_places(source.archive, lambda archive: module.read(archive, source.container, told))
