"""The calls of a model, one after the other.

Floating inputs and weights are promoted as in ``equations.py``: float64 inputs give a float64 result;
``dtype`` runs everything in one dtype. Whole numbers and masks stay what they are until an operation
needs floating ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lstmconvert import equations
from lstmconvert.canonical import (
    Merge,
    RecurrentLayer,
    Returns,
    ReverseOutput,
)
from lstmconvert.errors import UnsupportedSource
from lstmconvert.gates import Direction
from lstmconvert.model import Call, Model, Port
from lstmconvert.operations import Embedding, Masking
from lstmconvert.tensors import Array


def run(model: Model, *inputs: Any, dtype: Any = None, **named: Any) -> Array | tuple[Array, ...]:
    """The outputs of a model.

    Args:
        model: whose topology is known.
        inputs: one array for each input port, in order; or by name.
        dtype: float16, float32 or float64, to run everything in it; by NumPy's promotion if not given.
        named: arrays under the names of input ports.

    Returns:
        The output, or a tuple of them where there are several.

    Raises:
        UnsupportedSource: when the topology is not known.
        ValueError: on inputs that are missing, unknown or of the wrong shape.
    """
    _check_topology(model)
    if len(inputs) > len(model.inputs):
        raise ValueError(f"{len(inputs)} inputs were given, the model has {_listed(model.inputs)}")
    given = {port.name: array for port, array in zip(model.inputs, inputs, strict=False)}
    twice = sorted(set(given) & set(named))
    if twice:
        raise ValueError(f"the input {twice[0]!r} was given twice")
    values = _evaluate(model, {**given, **named}, dtype, keep_all=False)
    outputs = tuple(values[port.value] for port in model.outputs)
    return outputs[0] if len(outputs) == 1 else outputs


class RunsDirections(Protocol):
    """What runs the directions of a layer: ``equations.run_directions``, or what stands in its place."""

    def __call__(
        self, layer: RecurrentLayer, x: Array, *, mask: Any = None, initial_state: Any = None
    ) -> tuple[list[Array], list[equations.State]]: ...


def run_values(
    model: Model,
    inputs: Mapping[str, Any],
    *,
    dtype: Any = None,
    instead: Mapping[str, RunsDirections] | None = None,
) -> dict[str, Array]:
    """Every value that a model computes on its way, under its name.

    Args:
        model: whose topology is known.
        inputs: an array for every input port, under its name.
        dtype: as for ``run``.
        instead: by the names of recurrent layers, what runs in their place.

    Raises:
        UnsupportedSource: when the topology is not known.
        ValueError: on inputs that are missing, unknown or of the wrong shape.
    """
    return _evaluate(model, inputs, dtype, keep_all=True, instead=instead)


def _check_topology(model: Model) -> tuple[Call, ...]:
    if model.calls is None:
        raise UnsupportedSource(
            "the model cannot be run as a whole: the source holds weights only and does not say how its "
            "layers are wired",
            remedy="Run one layer with model.recurrent[NAME].run(x), or read a file that holds the whole "
            "model (.keras, a whole-model .h5, .onnx).",
        )
    return model.calls


def _evaluate(
    model: Model,
    inputs: Mapping[str, Any],
    dtype: Any,
    *,
    keep_all: bool,
    instead: Mapping[str, RunsDirections] | None = None,
) -> dict[str, Array]:
    calls = _check_topology(model)
    wanted = None if dtype is None else np.dtype(dtype)
    if wanted is not None and wanted not in equations.COMPUTED_IN:
        raise ValueError(f"a model runs in float16, float32 or float64, not in {wanted}")
    values = _given(model.inputs, inputs, wanted)
    last_use = {} if keep_all else _last_uses(model)
    # Overflow and division by zero give infinities and NaNs here as they do in the frameworks.
    with np.errstate(all="ignore"):
        for index, call in enumerate(calls):
            values.update(_call(model, call, values, wanted, (instead or {}).get(call.layer)))
            for name in last_use.get(index, ()):
                del values[name]
    return values


def _last_uses(model: Model) -> dict[int, list[str]]:
    """The values that nothing needs after a call, by the call's index."""
    last: dict[str, int] = {}
    for index, call in enumerate(model.calls or ()):
        for name in (*call.outputs, *call.inputs, *call.initial_state, *([call.mask] if call.mask else [])):
            last[name] = index
    kept = {port.value for port in model.outputs}
    result: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in kept:
            result.setdefault(index, []).append(name)
    return result


def _listed(ports: Sequence[Port]) -> str:
    return f"{len(ports)}: {', '.join(f'{port.name} {_spelled(port.shape)}' for port in ports)}"


def _spelled(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def _given(ports: Sequence[Port], inputs: Mapping[str, Any], dtype: np.dtype[Any] | None) -> dict[str, Array]:
    names = [port.name for port in ports]
    for name in inputs:
        if name not in names:
            raise ValueError(f"the model has no input {name!r}; it has {_listed(ports)}")
    values: dict[str, Array] = {}
    for port in ports:
        if port.name not in inputs:
            raise ValueError(f"the input {port.name!r} is missing; the model has {_listed(ports)}")
        array = np.asarray(inputs[port.name])
        fits = len(array.shape) == len(port.shape) and all(
            size is None or size == given for size, given in zip(port.shape, array.shape, strict=True)
        )
        if not fits:
            raise ValueError(f"the input {port.name!r} takes shape {_spelled(port.shape)}, not {array.shape}")
        values[port.value] = _as_port(array, np.dtype(port.dtype), dtype)
    return values


def _as_port(array: Array, declared: np.dtype[Any], dtype: np.dtype[Any] | None) -> Array:
    """Whole numbers become floating for a floating port, as frameworks do; floats follow ``dtype``."""
    if declared.kind == "b":
        return array.astype(bool, copy=False)
    if array.dtype.kind in "iub" and declared in equations.COMPUTED_IN:
        return array.astype(declared if dtype is None else dtype)
    if array.dtype.kind == "f" and dtype is not None:
        return array.astype(dtype, copy=False)
    return array


def _call(
    model: Model,
    call: Call,
    values: Mapping[str, Array],
    dtype: np.dtype[Any] | None,
    instead: RunsDirections | None,
) -> dict[str, Array]:
    layer = model.layers[call.layer]
    inputs = [values[name] for name in call.inputs]
    mask = None if call.mask is None else values[call.mask]
    try:
        if isinstance(layer, RecurrentLayer):
            states = [values[name] for name in call.initial_state]
            runs = instead or equations.run_directions
            results = run_recurrent(layer, inputs[0], mask=mask, states=states, dtype=dtype, runs=runs)
        else:
            from lstmconvert.interpreter import operations  # their start-up is felt where there are none

            results = operations.run(layer, inputs, mask=mask, dtype=dtype)
    except (ValueError, IndexError) as error:
        shapes = ", ".join(str(array.shape) for array in inputs)
        raise ValueError(f"layer {call.layer!r} on inputs of shape {shapes}: {error}") from error
    makes_mask = not isinstance(layer, RecurrentLayer) and isinstance(layer.operation, (Embedding, Masking))
    if makes_mask:
        results = results[: len(call.outputs)]  # a mask that nothing heeds need not have a name
    if len(results) != len(call.outputs):
        raise ValueError(f"layer {call.layer!r} gives {len(results)} values, its call names {call.outputs}")
    return dict(zip(call.outputs, results, strict=True))


def run_recurrent(
    layer: RecurrentLayer,
    x: Array,
    *,
    mask: Array | None = None,
    states: Sequence[Array] = (),
    dtype: np.dtype[Any] | None = None,
    runs: RunsDirections = equations.run_directions,
) -> tuple[Array, ...]:
    """What a call of a recurrent layer gives, with its ``SequenceBehaviour``.

    ``Returns.LAST`` is the output at the step that each direction visits last: step -1 of a forward
    direction, step 0 of a reverse one, and there what ``MaskedOutput`` says if the step is masked.

    Args:
        layer: the layer.
        x: (batch, time, input).
        mask: true at valid steps (batch, time).
        states: initial states, each (batch, size): h, c, reverse h, reverse c; trained ones or zeros if
            not given (a stateful layer starts there too).
        dtype: of the computation, if not by promotion.
        runs: what runs the directions.

    Returns:
        The sequence (batch, time, width) or last step (batch, width), two of them with
        ``Merge.SEPARATE``; then with ``return_state`` the final states in the order of ``states``.
    """
    if dtype is not None:
        x = x.astype(dtype, copy=False)
        # The equations themselves take weights that are narrower than the computation.
        widened = runs is equations.run_directions and equations.runs_in(x, layer) == dtype
        if layer.dtype != dtype and not widened:
            layer = layer.in_dtype(dtype)
    outputs, finals = runs(layer, x, mask=mask, initial_state=_stacked(layer, states) if states else None)
    behaviour = layer.sequence
    if behaviour.returns is Returns.LAST:
        if x.shape[1] == 0:
            raise ValueError("a sequence of no steps has no last step")
        outputs = [
            output[:, -1 if direction.direction is Direction.FORWARD else 0]
            for direction, output in zip(layer.directions, outputs, strict=True)
        ]
    elif behaviour.reverse_output is ReverseOutput.VISITED_ORDER:
        outputs = [output[:, ::-1] for output in outputs]
    separate = len(layer.directions) == 2 and behaviour.merge is Merge.SEPARATE
    results = tuple(outputs) if separate else (equations.merge(layer, outputs),)
    if behaviour.return_state:
        results += tuple(part for state in finals for part in state)
    return results


def _stacked(layer: RecurrentLayer, states: Sequence[Array]) -> tuple[Array, ...]:
    """Initial states one by one as ``run`` takes them: each kind (directions, batch, size)."""
    directions = len(layer.directions)
    kinds, rest = divmod(len(states), directions)
    if rest:
        raise ValueError(f"{len(states)} initial states were given to {directions} directions")
    return tuple(np.stack([states[d * kinds + kind] for d in range(directions)]) for kind in range(kinds))
