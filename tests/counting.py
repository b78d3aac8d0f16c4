"""Counts that tests report and the summary of a run prints: how much was agreed, how much refused."""

from __future__ import annotations

COUNTED = "counted"
"""Name of the property under which a test says what it counts as: ``record_property(COUNTED, text)``."""
