"""Verification of whatever there is: files, models, and live objects of imported frameworks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lstmconvert import provenance
from lstmconvert.errors import AmbiguousSource, Usage
from lstmconvert.judging import verify_models
from lstmconvert.opening import Source, only_layer, open_source, source_movement, told_of
from lstmconvert.options import ReadOptions
from lstmconvert.proof import Proof


def verify(
    first: Any,
    second: Any,
    *,
    options: ReadOptions | None = None,
    tolerance: float | None = None,
    inputs: Sequence[Any] | None = None,
    runtime: bool = False,
    gradients: bool = False,
    example: Any = None,
) -> Proof:
    """Prove that two things compute the same.

    Args:
        first, second: a path, a ``Model``, or a live Keras, torch or ONNX model, in any mixture.
        options: what files do not say themselves.
        tolerance: largest accepted absolute difference; worked out from float32 rounding if not given.
        inputs: arrays for the whole models (one per input), instead of random ones.
        runtime: also run each file in its own runtime; only for two files. This loads a file into its
            framework, and executes the module that lstmconvert generated for torch.
        gradients: also compare the gradients of inputs and parameters; only for two live torch or Keras
            models.
        example: example inputs of torch modules whose wiring is wanted.

    Returns:
        The proof; ``proof.proved`` is the verdict.

    Raises:
        BadFile, UnsupportedSource, AmbiguousSource: see ``read``.
        Usage: when an option does not fit what is compared.
    """
    started = time.perf_counter()
    files = [isinstance(side, str | Path) for side in (first, second)]
    if all(files):
        if gradients:
            raise Usage(
                "files have no gradients", remedy="Load both into torch or Keras and give the live models."
            )
        found = verify_files(first, second, options=options, tolerance=tolerance, inputs=inputs)
        return _in_runtimes(found, first, second, options, tolerance, inputs) if runtime else found
    if runtime:
        raise Usage("runtime=True is for two files; live models are compared in what they hold")
    from lstmconvert import live

    models = [
        open_source(Path(side), options or ReadOptions()).model if is_file else live.read_any(side, example)
        for side, is_file in zip((first, second), files, strict=True)
    ]
    found = verify_models(models[0], models[1], tolerance=tolerance, inputs=inputs)
    if gradients:
        from lstmconvert import gradients as of

        found = replace(found, whole=(*found.whole, of.prove(first, second, models[0], tolerance=tolerance)))
    return replace(found, seconds=time.perf_counter() - started)


def _in_runtimes(
    found: Proof,
    first: Any,
    second: Any,
    options: ReadOptions | None,
    tolerance: float | None,
    inputs: Sequence[Any] | None,
) -> Proof:
    """The proof with what each file gives in its own runtime; the second ONNX file has been run already."""
    from lstmconvert import runtimes

    started = time.perf_counter()
    (a, b), _ = open_both(first, second, options or ReadOptions())
    whole, skipped = list(found.whole), list(found.skipped)
    for source in (a, b):
        if source is b and b.framework == "onnx" and a.model.calls is not None:
            continue
        results, reasons = runtimes.prove(source.model, source.path, tolerance, inputs=inputs)
        whole += results
        skipped += reasons
    seconds = found.seconds + time.perf_counter() - started
    return replace(found, whole=tuple(whole), skipped=tuple(skipped), seconds=seconds)


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
        told = replace(told, activation=told_of(a.model).activation)
        b = open_source(Path(second), told)
    if given.layer is not None and len(b.model.recurrent) > 1:
        b = replace(b, model=only_layer(b.model, given.layer, b.path))
    return (a, b), (given, told)
