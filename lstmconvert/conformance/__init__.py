"""A conformance suite for recurrent layers: several hundred generated cases with outputs in float64.

``cases`` draws them, ``runners`` runs a runtime on one, ``judging`` says right, refused or wrong, ``export``
writes them for other projects. The operators and options are those of ONNX, the widest of the formats.
"""

from __future__ import annotations

from lstmconvert.conformance.cases import Case, cases
from lstmconvert.conformance.judging import Outcome, Verdict, run, summary
from lstmconvert.conformance.runners import RUNTIMES, Refused

__all__ = ["RUNTIMES", "Case", "Outcome", "Refused", "Verdict", "cases", "run", "summary"]
