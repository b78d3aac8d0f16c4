"""Whole models of live torch modules: exported by torch itself, read as a graph, checked against the module.

torch's exporter knows what every module and function of torch computes, and gives one LSTM, GRU or RNN
node for each recurrent layer. What it makes is read like any other ONNX graph: shape arithmetic is folded
away, and an operator that is not known is refused by name. Whether nothing was lost, or specialised to the
example, is found out by running the module and the model on the example and on one of other sizes.

Source: ``torch.onnx.export(dynamo=False)`` of torch 2.2 to 2.13, which traces; the exporter on top of
``torch.export`` gave the same graphs in the tests where it worked, but takes ten times as long, needs
onnxscript, and fails for some modules that trace.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import io
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import interpreter
from lstmconvert.canonical import RecurrentLayer, Returns
from lstmconvert.errors import UnsupportedSource, VerificationFailed
from lstmconvert.frameworks import onnx_live, pytorch_leaves
from lstmconvert.gates import Cell
from lstmconvert.model import Layer, Model, OperationLayer
from lstmconvert.operations import ValidSteps
from lstmconvert.tensors import Array

_OPSET = 17
_OPEN: tuple[tuple[int, ...] | None, ...] = (None, (0, 1), (0, -1), (0,), ())
"""Which axes to leave open where the module takes other sizes: all, then fewer until it is understood."""
_TOLERANCE = 1e-9
"""Of the largest value, both in float64: what different orders of summation leave, and no more."""
_ROUGH = 1e-4
"""Where the module runs in its own precision only."""
_UNCUT = (
    "{} cuts its results at the longest of the given lengths; the converted model gives all the steps of its "
    "input. Give total_length=x.shape[1] to pad_packed_sequence and both are the same."
)
_FIXED = "{} takes inputs of other sizes as well; the converted model is for these only (None is free): {}"


def read_traced(module: Any, example: Any) -> Model:
    """The whole model of a ``torch.nn.Module``.

    Args:
        module: in any mode; it is read as in eval mode.
        example: an input tensor, or a tuple of them, as for ``module(*example)``.

    Returns:
        A model with its topology; axes that the module takes in other sizes are open.

    Raises:
        UnsupportedSource: naming the operator, or what of the module cannot be traced.
        VerificationFailed: when the model is not what the module computes, as with control flow that depends
            on the data.

    Warns:
        UserWarning: when the module gives steps up to the longest sequence only, and the model all of them;
            when the model holds for some of the sizes only that the module takes.
    """
    import torch

    given = tuple(example) if isinstance(example, tuple | list) else (example,)
    if not all(isinstance(tensor, torch.Tensor) for tensor in given):
        raise UnsupportedSource(
            "example inputs are tensors, one for each argument of forward()",
            found=", ".join(type(value).__name__ for value in given),
            remedy="Wrap the module in one that takes tensors only.",
        )
    twin = pytorch_leaves.with_plain_weights(module).eval()
    reference = copy.deepcopy(twin)
    pytorch_leaves.keep_whole(twin)
    other = _other_sizes(reference, given)
    names = _names(twin, len(given))
    reason, failed = "", None
    for which in _OPEN:
        if failed is not None and 0 not in (which or ()):
            break  # what holds for one batch only is not what the module computes
        opened = _cut(given, other, which)
        model = onnx_live.read_live(_exported(twin, given, opened, names))
        reason = reason or str(model.metadata.get("topology", ""))
        if model.calls is None:
            continue
        model = _renamed(_shared(model), [name for name, _ in module.named_modules() if name])
        try:
            uncut = [_check(reference, model, inputs) for inputs in (given, opened)]
        except VerificationFailed as error:
            failed = failed or error  # its number of steps may be that of the example
            continue
        if any(one.shape != two.shape for one, two in zip(opened, other, strict=True)):
            shapes = ", ".join(f"{port.name} {port.shape}" for port in model.inputs)
            warnings.warn(_FIXED.format(type(module).__qualname__, shapes), stacklevel=2)
        if any(uncut):
            warnings.warn(_UNCUT.format(type(module).__qualname__), stacklevel=2)
        return replace(model, framework="pytorch")
    if failed is not None:
        raise failed
    raise UnsupportedSource(
        "the wiring of this module is not understood",
        place=type(module).__qualname__,
        found=reason,
        remedy="Without example inputs its recurrent layers come out; or write it with known modules.",
    )


def _cut(given: Sequence[Any], other: Sequence[Any], which: Collection[int] | None) -> tuple[Any, ...]:
    """The inputs of other sizes, longer than the example only in some of their axes."""

    def cut(one: Any, two: Any) -> Any:
        kept = {axis % one.ndim for axis in which or ()} if one.ndim else set()
        for axis in range(one.ndim):
            if which is not None and axis not in kept:
                two = two.narrow(axis, 0, one.shape[axis])
        return two

    return tuple(cut(one, two) for one, two in zip(given, other, strict=True))


def _exported(module: Any, given: Sequence[Any], other: Sequence[Any], names: Sequence[str]) -> Any:
    """The ``onnx.ModelProto`` of a module, with all axes open that differ between the two inputs."""
    import onnx
    import torch

    axes = {
        name: {n: f"{name}_{n}" for n, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b}
        for name, one, two in zip(names, given, other, strict=True)
    }
    target = io.BytesIO()
    quick = torch.backends.mha.get_fastpath_enabled()
    try:
        with (
            warnings.catch_warnings(),
            torch.no_grad(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            torch.backends.mha.set_fastpath_enabled(False)  # which the exporter does not know
            torch.onnx.export(
                module, tuple(given), target, dynamo=False, input_names=list(names), dynamic_axes=axes,
                opset_version=_OPSET, do_constant_folding=False,
            )  # fmt: skip
    except UnsupportedSource:
        raise
    except Exception as error:  # the exporter raises what it likes
        raise UnsupportedSource(
            "torch cannot export this module",
            place=type(module).__qualname__,
            found=str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__,
            remedy="Save its state_dict and convert that: its recurrent layers come out.",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(quick)
    return onnx.load_from_string(target.getvalue())


def _names(module: Any, count: int) -> list[str]:
    """The names of forward()'s arguments."""
    parameters = [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return [parameters[n] if n < len(parameters) else f"input_{n}" for n in range(count)]


def _other_sizes(module: Any, given: Sequence[Any]) -> tuple[Any, ...]:
    """The inputs with every axis longer by one that can be, all equally long first axes together.

    Axes are lengthened one after the other; where the module does not take it, the axis stays. Equal sizes
    are tried together at first: a batch is that of all inputs.
    """
    import torch

    def longer(tensors: Sequence[Any], which: Mapping[int, int]) -> tuple[Any, ...]:
        found = list(tensors)
        for index, axis in which.items():
            last = found[index].narrow(axis, found[index].shape[axis] - 1, 1)
            found[index] = torch.cat([found[index], last], axis)
        return tuple(found)

    def runs(tensors: Sequence[Any]) -> bool:
        try:
            with torch.no_grad():
                module(*tensors)
        except Exception:  # whatever it raises, it does not take this
            return False
        return True

    held = tuple(given)
    changed: set[tuple[int, int]] = set()
    groups: list[dict[int, int]] = []
    sizes = {(n, axis): size for n, t in enumerate(given) for axis, size in enumerate(t.shape) if size}
    for size in dict.fromkeys(sizes.values()):
        places = [place for place, own in sizes.items() if own == size]
        first: dict[int, int] = {}
        for index, axis in places:
            first.setdefault(index, axis)
        groups += [first, *({index: axis} for index, axis in places)]
    for group in groups:
        free = {index: axis for index, axis in group.items() if (index, axis) not in changed}
        tried = longer(held, free)
        if free and runs(tried):
            held = tried
            changed |= set(free.items())
    return held


def _shared(model: Model) -> Model:
    """One layer for the uses of one cell, which a trace gives weights of its own at every step."""
    first: dict[object, RecurrentLayer] = {}
    same: dict[str, RecurrentLayer] = {}
    for layer in model.recurrent.values():
        path = re.sub(r"_\d+(?=/|$)", "", layer.name)
        if layer.sequence.returns is Returns.LAST and len(layer.directions) == 1:
            same[layer.name] = first.setdefault((path, _identity(layer)), layer)
    used = Counter(layer.name for layer in same.values())
    calls = []
    layers = dict(model.layers)
    for call in model.calls or ():
        if call.layer not in same or used[same[call.layer].name] == 1:
            calls.append(call)
            continue
        layer = same[call.layer]
        if call.layer != layer.name:
            del layers[call.layer]
        layers[layer.name] = replace(layer, sequence=replace(layer.sequence, return_state=True))
        states = ("h", "c") if layer.cell is Cell.LSTM else ("h",)
        outputs = call.outputs if len(call.outputs) > 1 else (
            *call.outputs, *(f"{call.outputs[0]}.{kind}" for kind in states)
        )  # fmt: skip
        calls.append(replace(call, layer=layer.name, outputs=outputs))
    return replace(model, layers=layers, calls=tuple(calls))


def _identity(layer: RecurrentLayer) -> object:
    """What two layers have in common that compute the same, whatever states they give on."""
    (direction,) = layer.directions
    digest = hashlib.blake2b()
    for key, block in direction.weights.items():
        digest.update(f"{key} {block.dtype} {block.shape}".encode())
        digest.update(np.ascontiguousarray(block.read()).tobytes())
    sequence = replace(layer.sequence, return_state=False)
    return direction.direction, repr(direction.equations), repr(sequence), digest.digest()


def _renamed(model: Model, modules: Sequence[str]) -> Model:
    """Layers named like the modules that they come from: ``/encoder/lstm/LSTM_1`` is ``encoder.lstm_1``."""
    known = {name.replace(".", "/"): name for name in modules}
    taken: Counter[str] = Counter()
    names: dict[str, str] = {}
    for layer in model.layers:
        path = layer.strip("/").replace(".", "/").split("/")
        owner = next(
            (known["/".join(path[:n])] for n in range(len(path), 0, -1) if "/".join(path[:n]) in known), None
        )
        # What stands around a module's own layer to fit it in, such as a transposition, is named for itself.
        held = model.layers[layer]
        own = isinstance(held, RecurrentLayer) or bool(held.weights)
        last = re.sub(r"\W", "_", path[-1].lower())
        plain = owner if owner and own else f"{owner}_{last}" if owner else last
        candidate = plain
        while candidate in taken:
            candidate = f"{plain}_{taken[plain]}"
            taken[plain] += 1
        taken[candidate] = 1
        names[layer] = candidate

    def named(layer: Layer) -> Layer:
        return replace(layer, name=names[layer.name])

    layers = {names[key]: named(layer) for key, layer in model.layers.items()}
    calls = None
    if model.calls is not None:
        calls = tuple(replace(call, layer=names[call.layer]) for call in model.calls)
    return replace(model, layers=MappingProxyType(layers), calls=calls)


def _check(module: Any, model: Model, inputs: Sequence[Any]) -> bool:
    """See that the model computes what the module computes, in float64 where the module can.

    Returns:
        Whether the model gives more steps than a module that unpacks sequences.
    """
    import torch

    def arrays(value: Any) -> list[Array]:
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, tuple | list):
            return [array for item in value for array in arrays(item)]
        return [value.detach().cpu().double().numpy()] if isinstance(value, torch.Tensor) else []

    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    tolerance = _TOLERANCE
    try:
        with torch.no_grad():
            expected = arrays(copy.deepcopy(module).double()(*wide))
    except Exception:  # a module that makes tensors of one precision
        tolerance = _ROUGH
        with torch.no_grad():
            expected = arrays(module(*inputs))
    result = interpreter.run(model, *(tensor.numpy() for tensor in wide), dtype=np.float64)
    got = [np.asarray(array) for array in (result if isinstance(result, tuple) else (result,))]
    if len(expected) != len(got):
        raise VerificationFailed(
            "the model read from this module has other outputs than it",
            place=type(module).__qualname__, found=len(got), expected=len(expected),
        )  # fmt: skip
    padded = any(isinstance(layer, OperationLayer) and isinstance(layer.operation, ValidSteps)
                 for layer in model.layers.values())  # fmt: skip
    uncut = False
    for number, (one, two) in enumerate(zip(expected, got, strict=True)):
        if padded and one.ndim == two.ndim and one.shape != two.shape:
            uncut = True
            two = two[tuple(slice(size) for size in one.shape)]
        scale = max(float(np.max(np.abs(one), initial=0.0)), 1e-30)
        error = float(np.max(np.abs(one - two), initial=0.0)) if one.shape == two.shape else float("inf")
        if not error <= tolerance * scale:
            sizes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
            raise VerificationFailed(
                f"the model read from this module is not what it computes: output {number} differs by "
                f"{error:.3g}",
                place=f"{type(module).__qualname__} on inputs of {sizes}",
                remedy="Its path may depend on the data or on sizes; convert its parts one by one.",
            )
    return uncut
