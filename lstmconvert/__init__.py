"""lstmconvert: recurrent models from any framework to any other, without either installed, and proved.

import lstmconvert as lc

model = lc.read("model.h5")
y, state = model.recurrent["lstm_1"].run(x)
lc.convert("model.h5", "model.onnx")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lstmconvert.errors import (
    AmbiguousSource,
    BadFile,
    ConversionError,
    NotRepresentable,
    UnsupportedSource,
    Usage,
    VerificationFailed,
)

if TYPE_CHECKING:
    from lstmconvert.conversion import Result, convert
    from lstmconvert.identification import Identification, identify
    from lstmconvert.live import to_keras, to_onnx, to_torch
    from lstmconvert.model import Model
    from lstmconvert.opening import read
    from lstmconvert.planning import write
    from lstmconvert.verification import verify

__version__ = "0.1.0"

__all__ = [
    "AmbiguousSource",
    "BadFile",
    "ConversionError",
    "Identification",
    "Model",
    "NotRepresentable",
    "Result",
    "UnsupportedSource",
    "Usage",
    "VerificationFailed",
    "convert",
    "identify",
    "read",
    "to_keras",
    "to_onnx",
    "to_torch",
    "verify",
    "write",
]

# Where the public names that need NumPy live: `lstmconvert --help` must not pay for it.
_HOMES = {
    "Identification": ("lstmconvert.identification", "Identification"),
    "Model": ("lstmconvert.model", "Model"),
    "Result": ("lstmconvert.conversion", "Result"),
    "convert": ("lstmconvert.conversion", "convert"),
    "identify": ("lstmconvert.identification", "identify"),
    "read": ("lstmconvert.opening", "read"),
    "to_keras": ("lstmconvert.live", "to_keras"),
    "to_onnx": ("lstmconvert.live", "to_onnx"),
    "to_torch": ("lstmconvert.live", "to_torch"),
    "verify": ("lstmconvert.verification", "verify"),
    "write": ("lstmconvert.planning", "write"),
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'lstmconvert' has no attribute {name!r}")
    value = getattr(importlib.import_module(home[0]), home[1])
    globals()[name] = value
    return value
