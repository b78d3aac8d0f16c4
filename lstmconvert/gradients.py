"""Gradients of two live models, of torch or Keras, compared where the forward passes were proved equal.

The loss is a fixed random weighting of the outputs. The gradients of the parameters are put in the place of
the parameters of a copy, and the copy is read to canonical form: the layouts that proved the weights map
the gradients.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstmconvert import layout as layouts
from lstmconvert import live, mapping, whole
from lstmconvert.errors import Usage
from lstmconvert.model import Model, OperationLayer
from lstmconvert.proof import SLACK, WholeProof, gap, scale
from lstmconvert.tensors import Array, Lazy
from lstmconvert.values import dataclass

_SEED = 20261123


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Of the inputs, and of the parameters in canonical form."""

    inputs: list[Array]
    blocks: dict[tuple[str, int, str], Array]


def prove(first: Any, second: Any, model: Model, *, tolerance: float | None = None) -> WholeProof:
    """Compare the gradients of two live models that take the same inputs.

    Args:
        first, second: a ``torch.nn.Module`` or ``keras.Model``.
        model: what ``first`` was read as, with its topology or a single recurrent layer.
        tolerance: largest accepted absolute difference; worked out from float32 rounding, for each parameter
            by itself, if not given.

    Raises:
        Usage: when one of them is no live model whose gradients can be had.
    """
    inputs = _inputs(model)
    noise = np.random.default_rng(_SEED + 1)
    eps = float(np.finfo(np.float32).eps)
    nudged = [
        x if x.dtype.kind in "iu" else (x * (1 + eps * noise.choice([-1, 1], x.shape))).astype(x.dtype)
        for x in inputs
    ]
    a, b, moved = _gradients(first, inputs), _gradients(second, inputs), _gradients(first, nudged)
    shared = [key for key in a.blocks if key in b.blocks]
    if not shared:
        raise Usage("the two models have no parameters in common whose gradients could be compared")
    pairs = [
        *zip(a.inputs, b.inputs, moved.inputs, strict=True),
        *((a.blocks[key], b.blocks[key], moved.blocks[key]) for key in shared),
    ]
    steps = max(x.shape[1] if x.ndim > 1 else 1 for x in inputs)
    limits = [
        # Every step backwards rounds once; a nudge of the inputs by one unit shows how much that counts.
        SLACK * steps * (gap([one], [third]) + eps * scale([one])) if tolerance is None else tolerance
        for one, _, third in pairs
    ]
    errors = [gap([one], [two]) for one, two, _ in pairs]
    excess = [
        error / limit if limit else float(error > 0) * 2 for error, limit in zip(errors, limits, strict=True)
    ]
    worst = max(range(len(pairs)), key=lambda n: excess[n])
    names = [
        *(f"input {n}" for n in range(len(a.inputs))),
        *(f"{kind} {number}: {block}" for kind, number, block in shared),
    ]
    found, size = errors[worst], scale([pairs[worst][0]])
    return WholeProof(
        "gradients", found, found / max(size, 1e-30) if found else 0.0, limits[worst],
        None if found <= limits[worst] else names[worst],
    )  # fmt: skip


def _inputs(model: Model) -> list[Array]:
    if model.calls is not None:
        case = whole.random_inputs(model)[0]
        return [
            case[port.name] if np.dtype(port.dtype).kind in "iub" or case[port.name].dtype.kind in "iu"
            else case[port.name].astype(np.float32)
            for port in model.inputs
        ]  # fmt: skip
    layers = list(model.recurrent.values())
    if not layers:
        raise Usage("there is no recurrent layer whose gradients could be compared")
    rng = np.random.default_rng(_SEED)
    return [rng.standard_normal((2, 9, layers[0].input_size)).astype(np.float32)]


def _weighting(shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    rng = np.random.default_rng(_SEED + 2)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def _gradients(source: Any, inputs: Sequence[Array]) -> _Gradients:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.nn.Module) and not hasattr(source, "get_config"):
        return _torch_gradients(source, inputs)
    if hasattr(source, "trainable_weights") and hasattr(source, "get_weights"):
        return _keras_gradients(source, inputs)
    raise Usage(
        f"gradients of a {type(source).__module__}.{type(source).__qualname__} cannot be had",
        expected="a live torch or keras model",
    )


def _recurrent(model: Model) -> list[tuple[str, dict[str, Lazy]]]:
    """The kind and the blocks of every recurrent layer."""
    return [
        (
            "recurrent layer",
            {
                f"{direction.direction} {part} {gate or ''}".strip(): block
                for direction in layer.directions
                for (part, gate), block in direction.weights.items()
            },
        )
        for layer in model.recurrent.values()
    ]


def _neighbours_of_module(module: Any) -> list[tuple[str, dict[str, Lazy]]]:
    """The kind and the parts of every submodule that is a neighbour in torch's mapping file."""
    found = []
    known = [layout for layout in mapping.load("pytorch").layouts.values() if layout.operation]
    for one in module.modules():
        tensors = {name: Lazy.of(p.detach().numpy()) for name, p in one.named_parameters(recurse=False)}
        for layout in known:
            if type(one).__name__ in layout.classes and tensors:
                kind = mapping.operation_class(layout.operation).__name__
                found.append((kind, layouts.unpack_operation(layout, tensors)))
                break
    return found


def _read(layers: Sequence[tuple[str, Mapping[str, Lazy]]]) -> dict[tuple[str, int, str], Array]:
    """Every block by the kind of its layer, the layer's place among those of its kind, and its own name."""
    found: dict[tuple[str, int, str], Array] = {}
    seen: Counter[str] = Counter()
    for kind, blocks in layers:
        for name, block in blocks.items():
            found[kind, seen[kind], name] = np.array(block.read())
        seen[kind] += 1
    return found


def _torch_gradients(module: Any, inputs: Sequence[Array]) -> _Gradients:
    torch: Any = importlib.import_module("torch")
    twin = copy.deepcopy(module)
    twin.train(mode=False)
    given = []
    for array in inputs:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if isinstance(twin, torch.nn.RNNBase) and not twin.batch_first:
            tensor = tensor.transpose(0, 1).contiguous()
        given.append(tensor.requires_grad_() if array.dtype.kind == "f" else tensor)
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    result = twin(*given)
    if isinstance(twin, torch.nn.RNNBase):
        result = result[0] if twin.batch_first else result[0].transpose(0, 1)
    tensors = _leaves(result)
    loss = sum(
        (tensor * torch.from_numpy(weight)).sum()
        for tensor, weight in zip(tensors, _weighting([tuple(t.shape) for t in tensors]), strict=True)
    )
    loss.backward()
    found = []
    for tensor in given:
        if tensor.grad is not None:
            grad = tensor.grad
            if isinstance(twin, torch.nn.RNNBase) and not twin.batch_first:
                grad = grad.transpose(0, 1)
            found.append(grad.detach().numpy().copy())
    with torch.no_grad():
        for parameter in twin.parameters():
            grad = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if grad is None else grad)
    return _Gradients(found, _read([*_recurrent(live.read_any(twin)), *_neighbours_of_module(twin)]))


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _keras_gradients(model: Any, inputs: Sequence[Array]) -> _Gradients:
    keras: Any = sys.modules[
        next(k.__module__.split(".")[0] for k in type(model).__mro__ if "keras" in k.__module__)
    ]
    backend = keras.backend.backend() if hasattr(keras.backend, "backend") else "tensorflow"
    if backend != "tensorflow":
        raise Usage(
            f"gradients of Keras on {backend} cannot be had",
            remedy="Run Keras on TensorFlow (KERAS_BACKEND).",
        )
    tf: Any = importlib.import_module("tensorflow")
    given = [tf.constant(array) for array in inputs]
    watched = [tensor for tensor, array in zip(given, inputs, strict=True) if array.dtype.kind == "f"]
    variables = [getattr(v, "value", v) for v in model.trainable_weights]
    variables = [v() if callable(v) and not hasattr(v, "assign") else v for v in variables]
    with tf.GradientTape() as tape:
        for tensor in watched:
            tape.watch(tensor)
        tensors = _leaves(model(given if len(given) > 1 else given[0], training=False))
        loss = tf.add_n(
            [
                tf.reduce_sum(tensor * weight)
                for tensor, weight in zip(tensors, _weighting([tuple(t.shape) for t in tensors]), strict=True)
            ]
        )
    of_inputs, of_weights = tape.gradient(loss, [watched, variables])
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    for variable, grad in zip(twin.trainable_weights, of_weights, strict=True):
        # An embedding's gradient comes as the rows that were looked up.
        variable.assign(tf.zeros(variable.shape) if grad is None else tf.convert_to_tensor(grad))
    model_of_gradients = live.read_any(twin)
    neighbours = [
        (type(layer.operation).__name__, layer.weights)
        for layer in model_of_gradients.layers.values()
        if isinstance(layer, OperationLayer) and layer.weights
    ]
    return _Gradients(
        [np.asarray(g) for g in of_inputs if g is not None],
        _read([*_recurrent(model_of_gradients), *neighbours]),
    )
