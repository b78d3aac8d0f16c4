"""Runs a whole ``Model`` in NumPy: the reference that both sides of a conversion are held against."""

from __future__ import annotations

from lstmconvert.interpreter.running import run, run_values

__all__ = ["run", "run_values"]
