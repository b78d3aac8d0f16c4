"""The proof of a whole model: both sides run on the same inputs, from the first layer to the last."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lstmconvert import interpreter, shapes
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.errors import ConversionError, Usage
from lstmconvert.interpreter.running import RunsDirections
from lstmconvert.model import Model, OperationLayer, Port
from lstmconvert.operations import (
    AdditiveAttention,
    Attention,
    ConvolutionalLstm,
    Embedding,
    MultiHeadAttention,
    TimeDistributed,
    ValidSteps,
)
from lstmconvert.proof import LARGE, WholeProof, gap, rounding, scale
from lstmconvert.sampling import Sampler
from lstmconvert.tensors import Array

_SEED = 20261123
_CASES = ((2, 9), (1, 5))
"""(batch, time) of the random inputs, where the model leaves them free."""
_LARGE_CASE = (2, 5)
_LONGER = (1, 2, 4, 8, 16, 32, 64)
"""How many times more steps there may be, tried in turn."""
_MOST_ELEMENTS = 3 << 19
"""Of all values together, from which on a model is not run on random inputs: a few bytes can say so."""
_MOST_STEPS = 1 << 13
"""Of all recurrent layers together, likewise."""


def prove(
    source: Model,
    target: Model,
    written: Path | None,
    tolerance: float | None,
    *,
    inputs: Sequence[Any] | None = None,
    full: bool = False,
    same: Mapping[str, str] | None = None,
) -> tuple[list[WholeProof], list[str]]:
    """Run the source in float64 and the target in every way there is, and compare the outputs.

    Args:
        source: a model whose topology is known.
        target: what was read back; its topology may be unknown.
        written: the target's file, run by onnxruntime where it is ONNX and onnxruntime is installed.
        tolerance: largest accepted absolute difference; worked out from float32 rounding if not given.
        inputs: arrays for the source's inputs, in order, instead of random ones.
        full: run a large model as thoroughly as a small one.
        same: recurrent layers of the source and of the target that have the same bits in the same equations.

    Returns:
        A proof for every way of running, and what could not be run, with the reason.
    """
    if inputs is None and not full and (reason := _too_much(source)):
        return [], [f"the whole model was not run: {reason} (--verify full runs it)"]
    if not full and inputs is None and source.weights > LARGE and target.calls is not None:
        short = _prove_large(source, target, same or {})
        if short is not None:
            return short
    cases = [given_inputs(source, inputs)] if inputs is not None else random_inputs(source)
    if any_empty(cases):
        return [], ["the whole model was not run: it takes an input without elements"]
    proofs: list[WholeProof] = []
    skipped: list[str] = []
    exact = [outputs(source, case, np.float64) for case in cases]
    allowed = [
        rounding(outputs(source, case, np.float32), result) if tolerance is None else tolerance
        for case, result in zip(cases, exact, strict=True)
    ]
    if target.calls is not None:
        shown = _without_states(source, target)
        got = [outputs(shown, _renamed(source, target, case), np.float64) for case in cases]
        found = compare("interpreter", exact, got, allowed)
        if not found.proved:
            first = _first_difference(source, target, cases[0], max(allowed))
            found = replace(found, first_difference=first)
        proofs.append(found)
    if target.framework == "onnx" and written is not None:
        opened, why = session(written)
        if opened is None:
            skipped.append(why)
        else:
            try:
                ran = [run_onnx(opened, source, case) for case in cases]
            except ConversionError:
                raise
            except Exception as error:  # onnxruntime raises its own undocumented classes
                skipped.append(f"the ONNX file was not run: {why} refuses it: {str(error).splitlines()[0]}")
                return proofs, skipped
            if not all(np.isfinite(array).all() for result in exact for array in result):
                # Runtimes agree on nothing about NaN (onnxruntime's clamp takes it away).
                skipped.append("outputs that are NaN or infinite were not compared with onnxruntime's")
                ran = [_where_finite(e, r) for e, r in zip(exact, ran, strict=True)]
            proofs.append(compare(why, exact, ran, [limit * _coarseness(source) for limit in allowed]))
    if written is not None and target.framework == "onnx":
        stated, reasons = _prove_states(source, written, cases, tolerance)
        proofs += stated
        skipped += reasons
    if not proofs and not skipped:
        skipped.append(
            "the whole model was not run: the target's topology is code that only its framework runs"
        )
    return proofs, skipped


def any_empty(cases: Sequence[Mapping[str, Array]]) -> bool:
    """Whether an input has no elements: nothing can differ there, and ONNX Runtime 1.32 aborts on some."""
    return any(array.size == 0 for case in cases for array in case.values())


def _prove_states(
    source: Model, written: Path, cases: Sequence[Mapping[str, Array]], tolerance: float | None
) -> tuple[list[WholeProof], list[str]]:
    """Run a file that has its states outside from states that are not zero, final states included."""
    from lstmconvert import exposed

    opened, why = session(written)
    if opened is None:
        return [], []
    declared = [i.name for i in opened.get_inputs()]
    more = [name for name in declared if name not in {port.name for port in source.inputs}]
    calls = exposed.uses(source, len(more)) if more else None
    open_source = None if calls is None else exposed.with_states(source, calls)
    if calls is None or open_source is None:
        return [], ["the states outside were fed with what the source starts from only"] if more else []
    count = len(source.outputs)
    # A file that is fed LAYER_initial_h gives LAYER_h_n.
    finals = [re.sub(r"_initial_([hc])$", r"_\1_n", name) for name in more]
    if not {o.name for o in opened.get_outputs()}.issuperset(finals):
        finals = []
    exact, got, allowed = [], [], []
    for seed, case in enumerate(cases):
        states = exposed.random_states(source, calls, next(iter(case.values())).shape[0], _SEED + seed)
        given = exposed.fed(source, case, calls, states)
        runs = [outputs(open_source, given, kind) for kind in (np.float64, np.float32)]
        both = [
            [*run[:count], *(exposed.together(source, calls, run[count:]) if finals else ())] for run in runs
        ]
        exact.append(both[0])
        allowed.append(rounding(both[1], both[0]) if tolerance is None else tolerance)
        types = {i.name: _ONNX_DTYPES[i.type] for i in opened.get_inputs()}
        feeds = {name: array.astype(types[name]) for name, array in case.items()}
        feeds |= {name: state.astype(types[name]) for name, state in zip(more, states, strict=True)}
        names = [*(port.name for port in source.outputs), *finals]
        got.append([np.asarray(result) for result in opened.run(names, feeds)])
    limits = [limit * _coarseness(source) for limit in allowed]
    return [compare(f"{why}, from states that are not zero", exact, got, limits)], []


def _without_states(source: Model, target: Model) -> Model:
    """The target with the outputs of the source alone, where explicit states follow them."""
    named = {port.name: port for port in target.outputs}
    if len(target.outputs) <= len(source.outputs) or any(p.name not in named for p in source.outputs):
        return target
    return replace(target, outputs=tuple(named[port.name] for port in source.outputs))


def _coarseness(model: Model) -> float:
    """How many times coarser than float32 a runtime computes that takes the dtype of the weights."""
    narrow = any(layer.dtype == np.float16 for layer in model.recurrent.values())
    return float(np.finfo(np.float16).eps / np.finfo(np.float32).eps) if narrow else 1.0


def given_inputs(model: Model, arrays: Sequence[Any]) -> dict[str, Array]:
    """The user's arrays under the names of the model's inputs.

    Raises:
        Usage: when there are too few or too many.
    """
    if len(arrays) != len(model.inputs):
        raise Usage(
            f"the model has {len(model.inputs)} inputs ({', '.join(p.name for p in model.inputs)})",
            found=f"{len(arrays)} arrays",
        )
    return {port.name: np.asarray(array) for port, array in zip(model.inputs, arrays, strict=True)}


def random_inputs(model: Model, sizes: Sequence[tuple[int, int]] = _CASES) -> list[dict[str, Array]]:
    """Random inputs for a model, several shapes where they are free; whole numbers for embeddings.

    There are more steps where a window or a cut of the model would not fit into those of ``sizes``,
    each (batch, steps).
    """
    random = Sampler(_SEED)
    cases = []
    for batch, steps in sizes:
        case = {}
        time = next((n for n in (steps * f for f in _LONGER) if _fits(model, batch, n)), steps)
        for port in model.inputs:
            shape = _filled(model, port, batch, time)
            vocabulary, padded = _vocabulary(model, port)
            sequences = _measured(model, port)
            if sequences is not None:
                rows, longest, *_ = _shapes(model, batch, time)[sequences]
                values: Array = random.integers(1, (longest or time) + 1, [rows or batch])
            elif vocabulary is not None:
                values = random.integers(1 if vocabulary > 1 else 0, vocabulary, shape)
                if padded and len(shape) == 2:
                    lengths = random.integers(1, shape[1] + 1, shape[:1])
                    values = np.where(np.arange(shape[1]) < lengths[:, np.newaxis], values, 0)
            elif np.dtype(port.dtype).kind in "iub":
                values = random.integers(0, 2, shape)
            else:
                values = random.normal(shape)
            case[port.name] = values
        cases.append(case)
    return cases


def _filled(model: Model, port: Port, batch: int, time: int) -> list[int]:
    """The shape of an input with numbers for its free sizes."""
    front = any(p.shape[0] is None for p in model.inputs if p.shape)
    free = [axis for axis, size in enumerate(port.shape) if size is None]
    # A state of ONNX, (directions, batch, hidden), stands beside inputs that have their batch in front.
    first = free[0] if free and front else 0
    numbers = {axis: batch if axis == first else time for axis in free}
    return [numbers[axis] if size is None else size for axis, size in enumerate(port.shape)]


def _fits(model: Model, batch: int, time: int) -> bool:
    """Whether no value of a model is left without elements by a number of steps."""
    found = _shapes(model, batch, time)
    return all(size is None or size > 0 for shape in found.values() for size in shape)


def _shapes(model: Model, batch: int, time: int) -> Mapping[str, shapes.Shape]:
    """The shapes of all values where the free sizes are these."""
    ports = tuple(replace(p, shape=tuple(_filled(model, p, batch, time))) for p in model.inputs)
    return shapes.infer(replace(model, inputs=ports))


def _vocabulary(model: Model, port: Port) -> tuple[int | None, bool]:
    """The size of the smallest table that an input is looked up in, and whether 0 means padding."""
    sizes, padded = [], False
    for call in model.calls or ():
        layer = model.layers[call.layer]
        if port.value not in call.inputs or not isinstance(layer, OperationLayer):
            continue
        operation = layer.operation
        if isinstance(operation, TimeDistributed):
            operation = operation.inner
        if isinstance(operation, Embedding):
            sizes.append(layer.weights["embeddings"].shape[0])
            padded |= operation.mask_zero
    return (min(sizes), padded) if sizes else (None, False)


def _measured(model: Model, port: Port) -> str | None:
    """The sequences whose lengths an input gives; ``None`` of any other input."""
    for call in model.calls or ():
        layer = model.layers[call.layer]
        counts = isinstance(layer, OperationLayer) and isinstance(layer.operation, ValidSteps)
        if counts and call.inputs[0] == port.value:
            return call.inputs[1]
    return None


def _too_much(model: Model) -> str | None:
    """What is too much about running a model on random inputs, if anything is."""
    found = _shapes(model, *_CASES[0])
    elements = sum(math.prod(n or 1 for n in shape) for shape in found.values())
    steps = 0
    for call in model.calls or ():
        layer, shape = model.layers[call.layer], found[call.inputs[0]]
        if isinstance(layer, RecurrentLayer):
            steps += len(layer.directions) * (shape[1] or 1)
        elif isinstance(layer.operation, ConvolutionalLstm):
            steps += shape[1] or 1
        elif isinstance(layer.operation, Attention | AdditiveAttention | MultiHeadAttention):
            # Scores of every step with every other one.
            elements += math.prod(n or 1 for n in (*shape, found[call.inputs[1]][1]))
    if elements > _MOST_ELEMENTS:
        return f"its values would have {elements:,} elements"
    return f"its layers would run {steps:,} steps" if steps > _MOST_STEPS else None


def outputs(
    model: Model,
    case: Mapping[str, Array],
    dtype: type[np.floating[Any]],
    instead: Mapping[str, RunsDirections] | None = None,
) -> list[Array]:
    """What a model gives for inputs by name, port by port."""
    values = interpreter.run_values(model, case, dtype=dtype, instead=instead)
    return [np.asarray(values[port.value]) for port in model.outputs]


def _renamed(source: Model, target: Model, case: Mapping[str, Array]) -> dict[str, Array]:
    """The same inputs under the target's names: by name where they agree, else by position."""
    if {port.name for port in target.inputs} == set(case):
        return dict(case)
    named = {b.name: case[a.name] for a, b in zip(source.inputs, target.inputs, strict=False)}
    batch = next(iter(case.values())).shape[0] if case else 1
    more = target.inputs[len(source.inputs) :]  # explicit states
    return named | dict(zip((port.name for port in more), _started(source, more, batch), strict=True))


def _started(source: Model, ports: Sequence[Port], batch: int) -> list[Array]:
    """What the source starts from, for the inputs that a target has beyond those of the source."""
    from lstmconvert import exposed

    calls = exposed.uses(source, len(ports))
    if calls is not None:
        return exposed.starts(source, calls, batch)
    return [np.zeros([batch if n is None else n for n in port.shape], port.dtype) for port in ports]


def compare(
    runtime: str,
    exact: Sequence[Sequence[Array]],
    got: Sequence[Sequence[Array]],
    allowed: Sequence[float],
) -> WholeProof:
    worst = relative = tolerance = 0.0
    for expected, found, limit in zip(exact, got, allowed, strict=True):
        shapes = [a.shape for a in expected], [a.shape for a in found]
        difference = gap(expected, found) if shapes[0] == shapes[1] else float("inf")
        worst = max(worst, difference)
        relative = max(relative, difference / max(scale(expected), 1e-30) if difference else 0.0)
        tolerance = max(tolerance, limit)
    return WholeProof(runtime, worst, relative, tolerance)


def _prove_large(
    source: Model, target: Model, same: Mapping[str, str]
) -> tuple[list[WholeProof], list[str]] | None:
    """A few steps in float32, without a copy of any weight; ``None`` where that leaves a doubt.

    Both sides go through the same arithmetic, so what is not changed on the way gives the same result.
    Layers that are known to be the ``same`` are run as sketches.
    """
    from lstmconvert.sketch import Sketch

    (case,) = random_inputs(source, (_LARGE_CASE,))
    layers = source.recurrent
    sketches = {name: Sketch(layers[name], seed) for seed, name in enumerate(same)}
    expected = outputs(source, case, np.float32, {n: s.run_directions for n, s in sketches.items()})
    got = outputs(
        _without_states(source, target),
        _renamed(source, target, case),
        np.float32,
        {same[name]: sketch.run_directions for name, sketch in sketches.items()},
    )
    found = compare("interpreter in float32", [expected], [got], [rounding(expected, expected)])
    if not found.proved:
        return None
    small = f", {len(same)} layers with the same bits as small ones of their kind" if same else ""
    return [found], [
        f"the whole model has {source.weights:,} weights and ran {_LARGE_CASE[1]} steps in float32 only"
        f"{small} (--verify full runs it in float64, and in its own runtime)"
    ]


def _where_finite(expected: Sequence[Array], found: Sequence[Array]) -> list[Array]:
    """``found`` with what is expected wherever that is not finite, shapes permitting."""
    return [
        np.where(np.isfinite(e), f, e) if e.shape == f.shape else f
        for e, f in zip(expected, found, strict=True)
    ]


def _first_difference(source: Model, target: Model, case: Mapping[str, Array], limit: float) -> str | None:
    """The first layer of the source whose result differs from the target's layer of the same name."""
    left = interpreter.run_values(source, case, dtype=np.float64)
    right = interpreter.run_values(target, _renamed(source, target, case), dtype=np.float64)
    theirs = {call.layer: call for call in target.calls or ()}
    for call in source.calls or ():
        twin = theirs.get(call.layer)
        if twin is None:
            continue
        for a, b in zip(call.outputs, twin.outputs, strict=False):
            x, y = np.asarray(left[a]), np.asarray(right[b])
            if x.shape != y.shape or gap([x], [y]) > limit:
                return call.layer
    return None


def session(path: Path) -> tuple[Any, str]:
    """An onnxruntime session and its name and release, or ``None`` and the reason."""
    try:
        import onnxruntime
    except ImportError:
        return (
            None,
            "the ONNX file was not run: onnxruntime is not installed (pip install lstmconvert[runtime])",
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # A pool of threads takes longer to start than a few runs, and ends the process where it cannot.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own undocumented classes
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, f"the ONNX file was not run: onnxruntime {onnxruntime.__version__} refuses it: {text}"
    return session, f"onnxruntime {onnxruntime.__version__}"


_ONNX_DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
    "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool", "tensor(uint8)": "uint8",
}  # fmt: skip


def run_onnx(session: Any, source: Model, case: Mapping[str, Array]) -> list[Array]:
    """The outputs of an onnxruntime session for a model's inputs; states that it asks for are zeros.

    Raises:
        ConversionError: when the file lacks an input of the model.
    """
    declared = {i.name: i for i in session.get_inputs()}
    feeds: dict[str, Array] = {}
    for port in source.inputs:
        if port.name not in declared:
            raise ConversionError(f"the written model has no input {port.name!r}", found=", ".join(declared))
        feeds[port.name] = case[port.name].astype(_ONNX_DTYPES[declared[port.name].type])
    batch = next(iter(case.values())).shape[0]
    more = [
        Port(
            name, name, tuple(n if isinstance(n, int) else None for n in spec.shape), _ONNX_DTYPES[spec.type]
        )
        for name, spec in declared.items()
        if name not in feeds
    ]  # explicit states, (directions, batch, size)
    for port, start in zip(more, _started(source, more, batch), strict=True):
        feeds[port.name] = start.astype(port.dtype)
    results = session.run([port.name for port in source.outputs], feeds)
    return [np.asarray(result) for result in results]
