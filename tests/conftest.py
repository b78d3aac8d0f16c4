"""Settings that hold for all tests."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import settings

from tests.counting import COUNTED

# No test asserts a time, and a failure prints what reproduces it.
settings.register_profile("lstmconvert", deadline=None, print_blob=True)
settings.load_profile("lstmconvert")

# Read when the judges are imported, which is later than this; scripts/test sets more.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests counted; properties also travel from the processes of a parallel run."""
    counts = Counter(
        str(value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == COUNTED
    )
    if counts:
        terminalreporter.section("counted")
        for text, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count:5d}  {text}")
