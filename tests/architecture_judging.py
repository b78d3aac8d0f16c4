"""Takes a random architecture through the six directions, with the real runtimes as judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lstmconvert as lc
from lstmconvert import whole
from lstmconvert.frameworks import pytorch_live
from lstmconvert.model import Port
from lstmconvert.proof import rounding
from lstmconvert.runtimes import flat
from tests.architectures import Architecture, predict

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-5
"""Largest difference in float32, relative to the largest number of an output."""
LOOPS = {"Loop", "Scan", "If"}


@dataclass(frozen=True)
class Outcome:
    """What became of one conversion: its error relative to the outputs, or why it was refused."""

    direction: str
    error: float = 0.0
    refusal: str = ""
    derived: bool = False
    """Whether the error is beyond ``TOLERANCE`` and float32's own rounding of the source explains it."""

    @property
    def text(self) -> str:
        """Under which the outcome is counted."""
        if self.refusal:
            return f"architectures {self.direction}: refused"
        return f"architectures {self.direction}: agreed" + (" up to float32 rounding" if self.derived else "")


def run_keras(path: Path, cases: Sequence[Sequence[Array]], keras: Any) -> list[list[Array]]:
    """A file's outputs in Keras."""
    model = keras.models.load_model(path)
    return [predict(model, case) for case in cases]


def run_torch(path: Path, cases: Sequence[Sequence[Array]], _keras: Any) -> list[list[Array]]:
    """A generated module's outputs in torch, with the weights loaded as its user would."""
    import torch

    module = pytorch_live.load_source(path.with_suffix(".py").read_text(encoding="utf-8")).Model.load(path)
    with torch.no_grad():
        return [flat(module(*(torch.from_numpy(np.ascontiguousarray(x)) for x in case))) for case in cases]


def run_onnx(path: Path, cases: Sequence[Sequence[Array]], _keras: Any) -> list[list[Array]]:
    """A file's outputs in ONNX Runtime; states that it asks for are zeros."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    results = []
    for case in cases:
        feeds = {port.name: x for port, x in zip(session.get_inputs(), case, strict=False)}
        for port in session.get_inputs()[len(case) :]:
            shape = [n if isinstance(n, int) else case[0].shape[0] for n in port.shape]
            feeds[port.name] = np.zeros(shape, np.float32)
        results.append([np.asarray(y) for y in session.run(None, feeds)])
    return results


RUNNERS: dict[str, Callable[[Path, Sequence[Sequence[Array]], Any], list[list[Array]]]] = {
    ".keras": run_keras,
    ".h5": run_keras,
    ".safetensors": run_torch,
    ".onnx": run_onnx,
}


def difference(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Largest error of any output, relative to its largest number; infinite where a shape is another."""
    worst = 0.0
    for f, w in zip(found, wanted, strict=False):  # states may follow the source's outputs
        if f.shape != w.shape:
            return float("inf")
        same = (f == w) | (np.isnan(f) & np.isnan(w))
        with np.errstate(invalid="ignore"):
            gap = np.where(same, 0.0, np.abs(f.astype(np.float64) - w.astype(np.float64)))
        finite = np.abs(w[np.isfinite(w)]).max(initial=0.0)
        gap = np.where(np.isnan(gap), np.inf, gap)
        worst = max(worst, float(gap.max(initial=0.0)) / max(float(finite), 1e-2))
    return worst if len(found) >= len(wanted) else float("inf")


def explained(source: Path, cases: Sequence[Sequence[Array]], wanted: Sequence[Sequence[Array]]) -> float:
    """How far apart float32 rounding alone brings two computations of a source, relative to its outputs."""
    model = lc.read(source)
    worst = 0.0
    for case, outputs in zip(cases, wanted, strict=True):
        named = whole.given_inputs(model, case)
        exact, narrow = whole.outputs(model, named, np.float64), whole.outputs(model, named, np.float32)
        for e, n, w in zip(exact, narrow, outputs, strict=False):
            limit = rounding([n], [e])
            worst = max(worst, limit / max(float(np.abs(w[np.isfinite(w)]).max(initial=0.0)), 1e-2))
    return worst


def _initial_states(ports: Sequence[Port], batch: int) -> list[Array]:
    """Zeros for what a file of a stateful model asks for beside its source's inputs."""
    return [np.zeros([batch if n is None else n for n in port.shape], np.float32) for port in ports]


def convert(
    direction: str,
    source: Path,
    target: Path,
    architecture: Architecture,
    wanted: list[list[Array]],
    keras: Any,
) -> Outcome:
    """Convert, and hold the result against what Keras computed at the beginning.

    Raises:
        AssertionError: when the result is silently wrong.
    """
    try:
        result = lc.convert(source, target)
    except (lc.NotRepresentable, lc.UnsupportedSource) as error:
        assert len(str(error)) > 20
        return Outcome(direction, refusal=str(error))
    assert result.proof is not None
    assert result.proof.proved
    parts = [reason for reason in result.proof.skipped if reason.startswith("only the recurrent layers")]
    if parts:
        return Outcome(direction, refusal=parts[0])
    ports = lc.read(target).inputs
    cases = [[*case, *_initial_states(ports[len(case) :], len(case[0]))] for case in architecture.cases]
    got = RUNNERS[target.suffix](target, cases, keras)
    error = max(difference(g, w) for g, w in zip(got, wanted, strict=True))
    if error <= TOLERANCE:
        return Outcome(direction, error)
    limit = explained(source, architecture.cases, wanted)
    assert error <= limit, (
        f"seed {architecture.seed}: {direction} is silently wrong by {error:.3g} (float32 explains {limit:.3g}); "
        f"layers {architecture.kinds}"
    )
    return Outcome(direction, error, derived=True)


def fused(path: Path) -> None:
    """See that an ONNX file has no loop, here or inside."""
    import onnx

    def operators(graph: Any) -> set[str]:
        found = {node.op_type for node in graph.node}
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    found |= operators(attribute.g)
        return found

    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert not operators(model.graph) & {"Loop", "Scan"}, path


def directions(
    architecture: Architecture, folder: Path, keras: Any, *, suffix: str = ".keras"
) -> list[Outcome]:
    """All six directions of one architecture; those that need a refused file are left out."""
    source = folder / f"source{suffix}"
    architecture.model.save(source)
    wanted = [predict(architecture.model, case) for case in architecture.cases]
    onnx, torch = folder / "keras.onnx", folder / "keras.safetensors"
    outcomes = []

    def go(direction: str, start: Path, target: Path) -> bool:
        outcome = convert(direction, start, target, architecture, wanted, keras)
        outcomes.append(outcome)
        return not outcome.refusal

    if go("keras2onnx", source, onnx):
        fused(onnx)
        go("onnx2torch", onnx, folder / "onnx.safetensors")
        go("onnx2keras", onnx, folder / "onnx.keras")
    if go("keras2torch", source, torch):
        go("torch2onnx", torch, folder / "torch.onnx")
        go("torch2keras", torch, folder / "torch.keras")
    return outcomes
