"""Trained models that ship inside packages, for tests (see tests/corpus.toml and scripts/corpus)."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "corpus"


@cache
def _fetched(name: str) -> tuple[Path | None, str]:
    """The path of a corpus file, or ``None`` and the reason why it cannot be had."""
    result = subprocess.run(
        [sys.executable, SCRIPT, "--path", name], capture_output=True, text=True, check=False
    )
    if result.returncode == 2:
        raise ValueError(result.stderr)
    if result.returncode:
        return None, result.stderr.strip()
    return Path(result.stdout.strip()), ""


def corpus_file(name: str) -> Path:
    """The path of the corpus file ``name``, fetched if need be.

    Skips the test with the reason where it cannot be had, and fails it where
    ``LSTMCONVERT_REQUIRE_CORPUS`` is set, as scripts/test does.

    Raises:
        ValueError: when tests/corpus.toml has no such name.
    """
    path, reason = _fetched(name)
    if path is not None:
        return path
    if os.environ.get("LSTMCONVERT_REQUIRE_CORPUS"):
        pytest.fail(f"corpus file {name} is required here and cannot be had: {reason}")
    pytest.skip(f"corpus file {name} cannot be had: {reason}")
