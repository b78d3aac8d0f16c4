"""Traces of the layers of a file, and the arrays that a user hands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lstmconvert.canonical import RecurrentLayer
from lstmconvert.equations import Trace
from lstmconvert.errors import BadFile, Usage
from lstmconvert.model import Model
from lstmconvert.opening import Source
from lstmconvert.report import activations
from lstmconvert.tensors import Array


def load_array(path: Path) -> Array:
    """The array in a ``.npy`` file.

    Raises:
        BadFile: when it is none.
    """
    arrays = load_arrays(path)
    if len(arrays) != 1:
        raise BadFile("one array was expected", file=path, found=f"{len(arrays)} arrays")
    return arrays[0]


def load_arrays(path: Path) -> list[Array]:
    """The arrays of a ``.npy`` or ``.npz`` file, in order; nothing in it is executed.

    Raises:
        BadFile: when it is neither.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        return [loaded] if isinstance(loaded, np.ndarray) else [loaded[name] for name in loaded.files]
    except FileNotFoundError as error:
        raise BadFile("there is no such file", file=path) from error
    except (OSError, ValueError, EOFError) as error:
        raise BadFile("this is not a .npy or .npz file of plain arrays", file=path, found=error) from error


def trace_file(source: Source, x: Array, wanted: str | None) -> dict[str, Any]:
    """Traces of the recurrent layers of a file.

    Where the whole model is known, ``x`` is its input and every layer sees what the layers before it
    make of that. Otherwise ``x`` is the input (batch, time, features) of each layer that takes it.

    Args:
        source: the file.
        x: the input.
        wanted: only this layer.

    Returns:
        ``{"layers": [{"name", "cell", "activations", "steps": [{gate or state: values}]}]}``; values are
        (batch, size) nested lists, names of a reverse direction end in ``_reverse``.

    Raises:
        Usage: when the input fits no layer.
    """
    model = source.model
    if not model.recurrent:
        raise Usage("there is no recurrent layer in it", file=source.path)
    traced = _in_topology(model, x) if model.calls is not None else _alone(model, x, source.path)
    chosen = {name: found for name, found in traced.items() if wanted in (None, name)}
    return {
        "file": str(source.path),
        "layers": [_entry(model.recurrent[name], found) for name, found in chosen.items()],
    }


def _alone(model: Model, x: Array, path: Path) -> dict[str, Trace]:
    fitting = {
        name: layer.trace(x)
        for name, layer in model.recurrent.items()
        if x.ndim == 3 and x.shape[2] == layer.input_size
    }
    if not fitting:
        sizes = ", ".join(f"{name} takes {layer.input_size}" for name, layer in model.recurrent.items())
        raise Usage(
            "the input fits no layer",
            file=path,
            found=f"shape {x.shape}",
            expected=f"(batch, time, features): {sizes}",
        )
    return fitting


def _in_topology(model: Model, x: Array) -> dict[str, Trace]:
    from lstmconvert import interpreter

    if len(model.inputs) != 1:
        raise Usage(f"the model has {len(model.inputs)} inputs; choose a layer with --layer")
    try:
        values = interpreter.run_values(model, {model.inputs[0].name: x})
    except ValueError as error:
        raise Usage(f"the input does not fit the model: {error}") from error
    traced = {}
    for call in model.calls or ():
        layer = model.layers[call.layer]
        if isinstance(layer, RecurrentLayer) and call.layer not in traced:
            states = [np.asarray(values[name]) for name in call.initial_state]
            count = len(layer.directions)
            stacked = (
                [np.stack(states[n :: len(states) // count]) for n in range(len(states) // count)]
                if states
                else None
            )
            initial: Any = None if stacked is None else tuple(stacked)
            mask = None if call.mask is None else values[call.mask]
            traced[call.layer] = layer.trace(
                np.asarray(values[call.inputs[0]]), mask=mask, initial_state=initial
            )
    return traced


def _entry(layer: RecurrentLayer, found: Trace) -> dict[str, Any]:
    return {
        "name": layer.name,
        "cell": str(layer.cell),
        "activations": activations(layer.equations),
        "steps": [{name: value.tolist() for name, value in step.items()} for step in found],
    }
