"""Files run in the runtime that they belong to, where it is installed and was asked for.

Nothing here is imported or run unless a person says ``--runtime``: loading a Keras file runs Keras, and a
generated torch module is code.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lstmconvert import whole
from lstmconvert.model import Model
from lstmconvert.proof import WholeProof, rounding
from lstmconvert.tensors import Array

GENERATED = "class Model("
"""What stands in every module that lstmconvert writes for torch."""


def prove(
    model: Model, path: Path, tolerance: float | None, *, inputs: Sequence[Any] | None = None
) -> tuple[list[WholeProof], list[str]]:
    """Run a file in its own runtime and compare it with what its model computes in float64.

    Args:
        model: what was read from the file, with its topology.
        path: the file.
        tolerance: largest accepted absolute difference; worked out from float32 rounding if not given.
        inputs: arrays for the model's inputs, in order, instead of random ones.

    Returns:
        The proof, or nothing and the reason.
    """
    if model.calls is None:
        return [], [f"{path.name} was not run in its runtime: it does not say how its layers are wired"]
    cases = [whole.given_inputs(model, inputs)] if inputs is not None else whole.random_inputs(model)
    if whole.any_empty(cases):
        return [], [f"{path.name} was not run in its runtime: it takes an input without elements"]
    try:
        name, got = _RUNNERS[model.framework](model, path, cases)
    except KeyError:
        return [], [f"{path.name} was not run: lstmconvert cannot start the runtime of {model.framework}"]
    except Exception as error:  # whatever a framework raises on a file that it does not take
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [], [f"{path.name} was not run in its runtime: {text}"]
    exact = [whole.outputs(model, case, np.float64) for case in cases]
    allowed = [
        rounding(whole.outputs(model, case, np.float32), result) if tolerance is None else tolerance
        for case, result in zip(cases, exact, strict=True)
    ]
    return [whole.compare(f"{name} ({path.name})", exact, got, allowed)], []


Ran = tuple[str, list[list[Array]]]


def _run_onnx(model: Model, path: Path, cases: Sequence[Mapping[str, Array]]) -> Ran:
    session, why = whole.session(path)
    if session is None:
        raise RuntimeError(why)
    return why, [whole.run_onnx(session, model, case) for case in cases]


def _in_order(model: Model, case: Mapping[str, Array]) -> list[Array]:
    return [
        case[port.name] if case[port.name].dtype.kind in "iub" else case[port.name].astype(port.dtype)
        for port in model.inputs
    ]


def _run_keras(model: Model, path: Path, cases: Sequence[Mapping[str, Array]]) -> Ran:
    errors = []
    for package in ("keras", "tf_keras"):
        if importlib.util.find_spec(package) is None:
            continue
        keras: Any = importlib.import_module(package)
        try:
            live = keras.models.load_model(path, compile=False)
        except Exception as error:  # Keras raises whatever its layers raise
            errors.append(f"{package} {keras.__version__} refuses it: {str(error).splitlines()[0]}")
            continue
        results = []
        for case in cases:
            given = _in_order(model, case)
            results.append(flat(live(given if len(given) > 1 else given[0])))
        return f"{package} {keras.__version__}", results
    raise RuntimeError("; ".join(errors) or "Keras is not installed")


def _run_torch(model: Model, path: Path, cases: Sequence[Mapping[str, Array]]) -> Ran:
    if importlib.util.find_spec("torch") is None:
        raise RuntimeError("torch is not installed")
    source = path.with_name((path.name.split(".")[0] or path.stem) + ".py")
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    if GENERATED not in text:
        raise RuntimeError("a state_dict needs its module, and there is no generated one beside it")
    from lstmconvert import registry
    from lstmconvert.frameworks import pytorch_live

    torch: Any = importlib.import_module("torch")
    archive = registry.container_module(registry.container_of(path).name).read(path)
    module = pytorch_live.load_source(text).Model()
    # Assigned, not copied into float32, so that the module runs in the dtypes of its file.
    state = {name: pytorch_live.tensor_of(lazy.read()) for name, lazy in archive.tensors.items()}
    module.load_state_dict(state, assign=True)
    module.eval()
    results = []
    with torch.no_grad():
        for case in cases:
            given = [pytorch_live.tensor_of(array) for array in _in_order(model, case)]
            results.append(flat(module(*given)))
    return f"torch {torch.__version__}", results


def _run_tflite(model: Model, path: Path, cases: Sequence[Mapping[str, Array]]) -> Ran:
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise RuntimeError("ai-edge-litert is not installed")
    from importlib.metadata import version

    from lstmconvert import registry

    runtime: Any = importlib.import_module("ai_edge_litert.interpreter")
    archive = registry.container_module(registry.container_of(path).name).read(path)
    graph = archive.metadata["graph"]
    positions = dict(graph["inputs"])
    alone = all(graph["tensors"][place]["shape"][:1] == (1,) for place in positions.values())

    def run(given: Mapping[str, Array]) -> list[Array]:
        interpreter = runtime.Interpreter(str(path))  # a new one: states are kept from run to run
        for name, array in given.items():
            interpreter.resize_tensor_input(positions[name], array.shape)
        interpreter.allocate_tensors()
        for name, array in given.items():
            interpreter.set_tensor(positions[name], array)
        interpreter.invoke()
        return [np.asarray(interpreter.get_tensor(place)) for _, place in graph["outputs"]]

    results = []
    for case in cases:
        given = {port.name: case[port.name].astype(port.dtype) for port in model.inputs}
        if not alone:
            results.append(run(given))
            continue
        # Where a file holds one sequence, its states do, too.
        count = len(next(iter(given.values())))
        rows = [run({name: array[n : n + 1] for name, array in given.items()}) for n in range(count)]
        results.append([np.concatenate(parts) for parts in zip(*rows, strict=True)])
    return f"LiteRT {version('ai-edge-litert')}", results


def flat(value: Any) -> list[Array]:
    """The arrays in a framework's result, in order."""
    if isinstance(value, Mapping):
        return [array for item in value.values() for array in flat(item)]
    if isinstance(value, tuple | list):
        return [array for item in value for array in flat(item)]
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return [np.asarray(value)]


_RUNNERS = {"onnx": _run_onnx, "keras": _run_keras, "pytorch": _run_torch, "tflite": _run_tflite}
