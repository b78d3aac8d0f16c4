"""Verification of whatever there is: files, models, and live objects of imported frameworks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lstmconvert.conversion import verify_files, verify_models
from lstmconvert.errors import Usage
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
    from lstmconvert import conversion, live

    models = [
        conversion.open_source(Path(side), options or ReadOptions()).model
        if is_file
        else live.read_any(side, example)
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
    from lstmconvert import conversion, runtimes

    started = time.perf_counter()
    (a, b), _ = conversion.open_both(first, second, options or ReadOptions())
    whole, skipped = list(found.whole), list(found.skipped)
    for source in (a, b):
        if source is b and b.framework == "onnx" and a.model.calls is not None:
            continue
        results, reasons = runtimes.prove(source.model, source.path, tolerance, inputs=inputs)
        whole += results
        skipped += reasons
    seconds = found.seconds + time.perf_counter() - started
    return replace(found, whole=tuple(whole), skipped=tuple(skipped), seconds=seconds)
