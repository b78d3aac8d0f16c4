"""Right, refused or wrong: what a runtime makes of a case, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

import numpy as np

from lstmconvert.conformance.cases import Case, cases
from lstmconvert.conformance.runners import RUNTIMES, Refused
from lstmconvert.errors import Usage
from lstmconvert.tensors import Array
from lstmconvert.values import dataclass

Runner = Callable[[Case], Mapping[str, Array]]
"""Gives ``Y``, ``Y_h`` and ``Y_c`` (those that it has) for a case; raises ``Refused`` or anything else."""

SLACK = 32.0


class Verdict(StrEnum):
    """What a runtime does with a case."""

    RIGHT = "right"
    REFUSED = "refused"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on one case.

    Attributes:
        case: the case.
        verdict: right, refused or wrong.
        error: largest absolute difference from float64; infinite where shapes differ.
        tolerance: what rounding in the case's dtype explains.
        detail: the reason of a refusal, or which output is wrong and how.
    """

    case: Case
    verdict: Verdict
    error: float = 0.0
    tolerance: float = 0.0
    detail: str = ""


def run(runtime: str | Runner, chosen: Iterable[Case] | None = None) -> list[Outcome]:
    """Run a runtime on the cases.

    Args:
        runtime: a name in ``RUNTIMES``, or any callable that takes a ``Case`` and gives ``Y``, ``Y_h`` and
            ``Y_c`` by name (``conformance.as_onnx`` makes an ONNX model of a case).
        chosen: the cases, or all.

    Raises:
        Usage: when there is no runtime of that name, or it is not installed.
    """
    runner = runtime if callable(runtime) else named(runtime)
    return [judge(case, runner) for case in (cases() if chosen is None else chosen)]


def named(runtime: str) -> Runner:
    """The runner of a runtime by name.

    Raises:
        Usage: when there is none, or the runtime is not installed.
    """
    if runtime not in RUNTIMES:
        raise Usage(f"no runtime is called {runtime!r}", expected=f"one of {', '.join(RUNTIMES)}")
    try:
        return RUNTIMES[runtime]()
    except ImportError as error:
        raise Usage(f"{runtime} is not installed here", found=str(error)) from error


def judge(case: Case, runner: Runner) -> Outcome:
    """Run one case."""
    try:
        got = runner(case)
    except Refused as error:
        return Outcome(case, Verdict.REFUSED, detail=str(error))
    except Exception as error:  # whatever a runtime raises is its way to refuse
        text = str(error).splitlines()[0] if str(error) else ""
        return Outcome(case, Verdict.REFUSED, detail=f"{type(error).__name__}: {text}"[:200])
    expected = dict(zip(("Y", "Y_h", "Y_c"), case.expected(), strict=False))
    if case.layout:
        from lstmconvert.conformance.as_onnx import tensors

        expected = tensors(case)[1]
    tolerance = tolerance_of(case)
    worst, detail = 0.0, ""
    for name, array in got.items():
        difference, what = _difference(expected[name], np.asarray(array))
        if difference > worst:
            worst, detail = difference, f"{name} {what}"
    return Outcome(
        case,
        Verdict.RIGHT if worst <= tolerance else Verdict.WRONG,
        worst,
        tolerance,
        detail if worst > tolerance else "",
    )


def _difference(expected: Array, got: Array) -> tuple[float, str]:
    if expected.shape != got.shape:
        return float("inf"), f"has shape {got.shape}, expected {expected.shape}"
    wide = got.astype(np.float64)
    same = (wide == expected) | (np.isnan(wide) & np.isnan(expected))
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.where(same, 0.0, np.abs(wide - expected))
    error = float(np.max(np.where(np.isnan(gaps), np.inf, gaps), initial=0.0))
    what = "is all zero" if not wide.any() and expected.any() else f"differs by {error:.3g}"
    return error, what


def tolerance_of(case: Case) -> float:
    """What rounding explains: the reference in the case's precision against itself in float64."""
    exact = case.expected()
    single = np.float64 if case.dtype == "float64" else np.float32
    rough = case.expected(single)
    eps = float(np.finfo(case.dtype).eps)
    size = max(float(np.max(np.abs(a[np.isfinite(a)]), initial=0.0)) for a in exact)
    observed = 0.0
    for a, b in zip(exact, rough, strict=True):
        with np.errstate(invalid="ignore", over="ignore"):
            gaps = np.abs(a - b.astype(np.float64))
        observed = max(observed, float(np.max(gaps[np.isfinite(gaps)], initial=0.0)))
    # A runtime may take fast approximations of sigmoid and tanh, a few units in the last place off.
    unit = eps * max(size, 1.0 if case.scale >= 1e-3 else size)
    return SLACK * max(observed * eps / float(np.finfo(single).eps), unit)


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """By cell and feature: how many are right, refused and wrong, with an example of what is not right."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((str(outcome.case.cell), outcome.case.feature), []).append(outcome)
    rows: list[dict[str, object]] = []
    for (cell, feature), held in groups.items():
        row: dict[str, object] = {"cell": cell, "feature": feature}
        for verdict in Verdict:
            row[str(verdict)] = sum(o.verdict is verdict for o in held)
        details = [f"{o.case.name}: {o.detail}" for o in held if o.verdict is Verdict.WRONG]
        details += [f"{o.case.name}: {o.detail}" for o in held if o.verdict is Verdict.REFUSED]
        row["example"] = details[0] if details else ""
        rows.append(row)
    return rows
