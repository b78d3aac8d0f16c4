"""Live objects: models of frameworks that the caller has imported, in and out.

Only these functions import a framework, and only the one that they are asked for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lstmconvert import lowering, projections, registry
from lstmconvert.errors import Usage
from lstmconvert.model import Model
from lstmconvert.opening import read
from lstmconvert.options import WriteOptions


def read_any(source: Any, example: Any = None) -> Model:
    """A model from a path, a ``Model``, or a live Keras, torch or ONNX object.

    Args:
        source: a path; a ``Model``; a ``keras.Model`` (Keras 3 or tf_keras); a ``torch.nn.Module``; an
            ``onnx.ModelProto``.
        example: example inputs of a torch module whose wiring is wanted.

    Raises:
        Usage: when it is none of these.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, str | Path):
        return read(source)
    # A class can only be met if its framework is imported already.
    torch, onnx = sys.modules.get("torch"), sys.modules.get("onnx")
    if torch is not None and isinstance(source, torch.nn.Module):
        from lstmconvert.frameworks import pytorch_live

        return pytorch_live.read_live(source, example)
    if onnx is not None and isinstance(source, onnx.ModelProto):
        from lstmconvert.frameworks import onnx_live

        return onnx_live.read_live(source)
    if any(
        kind.__name__ in ("Model", "Layer") and "keras" in kind.__module__ for kind in type(source).__mro__
    ):
        from lstmconvert.frameworks import keras_live

        return keras_live.read_live(source)
    raise Usage(
        f"a {type(source).__module__}.{type(source).__qualname__} cannot be read",
        expected="a path, a lstmconvert Model, or a live keras, torch or onnx model",
    )


def _lowered(source: Any, example: Any, framework: str, *, states: bool = False) -> Model:
    model = read_any(source, example)
    mapping = registry.mapping_of(framework)
    module = registry.module_of(mapping)
    keep = getattr(module, "spells_out", None) if model.calls is not None else None
    if getattr(module, "FOLDS_PROJECTIONS", False) and not states:
        model, _ = projections.folded(model, mapping, keep)
    return lowering.lower(model, mapping, keep)[0]


def to_torch(source: Any, example: Any = None) -> Any:
    """A live ``torch.nn.Module`` in eval mode; see ``read_any`` for what ``source`` may be.

    Raises:
        NotRepresentable: when torch cannot express the source.
    """
    from lstmconvert.frameworks import pytorch_live

    return pytorch_live.to_live(_lowered(source, example, "pytorch"))


def to_keras(source: Any, example: Any = None) -> Any:
    """A live ``keras.Model``; see ``read_any`` for what ``source`` may be.

    Raises:
        NotRepresentable: when Keras cannot express the source.
    """
    from lstmconvert.frameworks import keras_live

    return keras_live.to_live(_lowered(source, example, "keras"))


def to_onnx(source: Any, example: Any = None, *, opset: int | None = None, states: bool = False) -> Any:
    """An ``onnx.ModelProto``; see ``read_any`` for what ``source`` may be.

    Raises:
        NotRepresentable: when ONNX cannot express the source.
    """
    from lstmconvert.frameworks import onnx_live

    return onnx_live.to_live(
        _lowered(source, example, "onnx", states=states), WriteOptions(opset=opset, states=states)
    )
