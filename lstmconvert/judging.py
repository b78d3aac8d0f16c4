"""A written file, read again and compared with what it came from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lstmconvert import finite, movement, pairing, registry
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.containers import Archive
from lstmconvert.errors import AmbiguousSource, BadFile, Usage
from lstmconvert.gates import Direction
from lstmconvert.mapping import MappingFile
from lstmconvert.model import DIRECTION_UNSAID, Layer, Model, OperationLayer
from lstmconvert.opening import told_of, with_mapping
from lstmconvert.options import ReadOptions
from lstmconvert.pieces import same
from lstmconvert.planning import Plan
from lstmconvert.proof import LayerProof, Proof, WholeProof, prove_layers
from lstmconvert.tensors import Lazy, same_bits

_LARGE_TENSOR = 1 << 20


def prove(
    original: Model,
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
        original: the model as it was read, which the whole is compared with.
        source: the same with the layers that are compared one by one.
        lowered: what it was fitted to.
        written: the file.
        back: what it holds, read again.
        framework: its framework.
        archive: what was to be written.
        tolerance, full: as for ``convert``.
    """
    container = registry.container_of(written).name
    target = read_again(back, container, registry.mapping_of(framework), lowered)
    target = replace(target, framework=framework)
    layers, problems = prove_layers(
        source.recurrent, _in_order(target, lowered), tolerance=tolerance, full=full
    )
    held = target.recurrent
    compared = {name for layer in layers if layer.bit_equal for name in held[layer.target].origin}
    problems += _lost_tensors(archive, back, compared)
    problems += _lost_neighbours(lowered, target)
    strange = _not_finite(original, layers)
    same = {
        layer.name: layer.target
        for layer in layers
        if layer.not_run and original.layers.get(layer.name) is source.layers[layer.name]
    }
    whole, skipped = _prove_whole(original, target, written, tolerance, full=full, same=same)
    if target.metadata.get(DIRECTION_UNSAID):
        skipped += [
            f"the file does not say that layer {layer.name!r} runs backwards: the layer that loads it has to"
            for layer in target.recurrent.values()
            if [d.direction for d in layer.directions] == [Direction.REVERSE]
        ]
    if archive.companions:
        skipped.append("the module beside the weights was not run; verify SRC OUT --runtime runs it")
    return Proof(tuple(layers), tuple(whole), tuple(problems), skipped=(*skipped, *strange))


def read_again(archive: Archive, container: str, mapping: MappingFile, lowered: Model) -> Model:
    """A written archive read; what it does not say itself is said as the person would who wrote it."""
    module = registry.module_of(mapping)
    model: Model
    try:
        model = module.read(archive, container, with_mapping(ReadOptions(), mapping))
    except AmbiguousSource:
        model = module.read(archive, container, with_mapping(told_of(lowered), mapping))
    return _turned(model, lowered) if model.metadata.get(DIRECTION_UNSAID) else model


def _turned(model: Model, lowered: Model) -> Model:
    """The model with the layers backwards that run so in what it was written from."""
    held = model.recurrent
    same_names = set(held) == set(lowered.recurrent)
    written = (
        dict(zip(held, lowered.recurrent.values(), strict=False)) if not same_names else lowered.recurrent
    )

    def turn(layer: Layer) -> Layer:
        twin = written.get(layer.name)
        if not isinstance(layer, RecurrentLayer) or twin is None:
            return layer
        ways = [[d.direction for d in one.directions] for one in (layer, twin)]
        if ways != [[Direction.FORWARD], [Direction.REVERSE]]:
            return layer
        (only,) = layer.directions
        return replace(layer, directions=(replace(only, direction=Direction.REVERSE),))

    return model.map_layers(turn)


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
        elif not same(tensor, other):
            problems.append(f"tensor {name!r} has other bits in the written file")
    return problems


def _not_finite(model: Model, layers: Sequence[LayerProof]) -> list[str]:
    """That there are NaN and infinities among the weights: of what they reach nothing is shown."""
    held = {layer.name: layer.not_finite for layer in layers}
    for name, layer in model.layers.items():
        if isinstance(layer, OperationLayer):
            counts = ((part, finite.count(block)) for part, block in layer.weights.items())
            held[name] = tuple((part, count) for part, count in counts if count)
    return [
        f"results that NaN or infinite weights reach ({sum(count for _, count in found)} in layer {name!r}: "
        f"{', '.join(block for block, _ in found)})"
        for name, found in held.items()
        if found
    ]


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
            if twin is not None and not _same_but_for_axes_of_one(block, twin):
                problems.append(f"{part} of layer {name!r} came back with other bits")
    return problems


def _same_but_for_axes_of_one(a: Lazy, b: Lazy) -> bool:
    if a.shape == b.shape:
        return same(a, b)
    return same_bits(np.squeeze(a.read()), np.squeeze(b.read()))


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


def movement_of(plan: Plan, back: Archive, *, once_more: bool) -> movement.Movement:
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
        return read_again(archive, plan.container, plan.framework, plan.model)

    if once_more:
        return movement.of_target(plan.model, write, read, back)
    found = movement.of_source(back, read)
    return replace(found, source=0, target=found.source)


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


def joined(proofs: Sequence[Proof], seconds: float) -> Proof:
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
    strange = _not_finite(first, layers)
    return Proof(tuple(layers), tuple(whole_proofs), tuple(problems), skipped=(*skipped, *strange))
