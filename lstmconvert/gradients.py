"""Gradients of two live models, of torch or Keras, compared where the forward passes were proved equal.

The loss is a fixed random weighting of the outputs. The gradients of the parameters are put in the place of
the parameters of a copy, and the copy is read to canonical form: the layouts that proved the weights map
the gradients.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstmconvert import live, whole
from lstmconvert.errors import Usage
from lstmconvert.model import Model
from lstmconvert.proof import SLACK, WholeProof, gap, scale
from lstmconvert.tensors import Array

_SEED = 20261123


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Of the inputs, and of the parameters in canonical form."""

    inputs: list[Array]
    blocks: dict[tuple[int, str], Array]


def prove(first: Any, second: Any, model: Model, *, tolerance: float | None = None) -> WholeProof:
    """Compare the gradients of two live models that take the same inputs.

    Args:
        first, second: a ``torch.nn.Module`` or ``keras.Model``.
        model: what ``first`` was read as, with its topology or a single recurrent layer.
        tolerance: largest accepted absolute difference; worked out from float32 rounding if not given.

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
    size = scale([one for one, _, _ in pairs])
    steps = max(x.shape[1] if x.ndim > 1 else 1 for x in inputs)
    # Every step backwards rounds once; a nudge of the inputs by one unit shows how much that counts.
    allowed = SLACK * steps * (max(gap([one], [third]) for one, _, third in pairs) + eps * size)
    errors = {n: gap([one], [two]) for n, (one, two, _) in enumerate(pairs)}
    worst = max(errors, key=lambda n: errors[n])
    limit = allowed if tolerance is None else tolerance
    names = [*(f"input {n}" for n in range(len(a.inputs))), *(name for _, name in shared)]
    found = errors[worst]
    return WholeProof(
        "gradients", found, found / max(size, 1e-30) if found else 0.0, limit,
        None if found <= limit else names[worst],
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


def _canonical(model: Model) -> dict[tuple[int, str], Array]:
    found: dict[tuple[int, str], Array] = {}
    for number, layer in enumerate(model.recurrent.values()):
        for direction in layer.directions:
            for (part, gate), block in direction.weights.items():
                found[number, f"layer {number}: {direction.direction} {part} {gate or ''}".strip()] = (
                    np.array(block.read())
                )
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
    return _Gradients(found, _canonical(live.read_any(twin)))


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
        variable.assign(np.zeros(variable.shape, np.float32) if grad is None else np.asarray(grad))
    return _Gradients([np.asarray(g) for g in of_inputs if g is not None], _canonical(live.read_any(twin)))
