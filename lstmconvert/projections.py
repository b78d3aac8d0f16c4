"""Projections for targets that have none: folded into the recurrent kernel, and applied behind the layer.

An LSTM with a projection W (projected, hidden) hands W h on, and takes it back through its recurrent kernels
R (hidden, projected). A layer without projection whose recurrent kernels are R W (hidden, hidden) has the
same gates, cell states and h; W h is what a Dense layer without bias makes of that. Only the product R W is
rounded to the dtype of the weights. A state that is given from outside cannot be undone: it is W h, not h.

Source: Sak, Senior, Beaufays, "Long Short-Term Memory Recurrent Neural Network Architectures", 2014, and
``proj_size`` of ``torch.nn.LSTM`` (torch 2.13), which both apply W to o * tanh(c) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lstmconvert import lowering
from lstmconvert.canonical import (
    BlockKey,
    LstmEquations,
    Merge,
    RecurrentDirection,
    RecurrentLayer,
    Weights,
)
from lstmconvert.errors import NotRepresentable
from lstmconvert.gates import GATES, Part
from lstmconvert.lowering import Rewrite
from lstmconvert.mapping import MappingFile
from lstmconvert.model import Call, Layer, Model, OperationLayer
from lstmconvert.operations import Dense
from lstmconvert.tensors import Array, Lazy

_PROJECTION: BlockKey = (Part.PROJECTION, None)


def folded(
    model: Model, mapping: MappingFile, keep: Callable[[RecurrentLayer], bool] | None = None
) -> tuple[Model, tuple[Rewrite, ...]]:
    """The model with its projections folded where a target cannot hold them.

    Args:
        model: the model; one without wiring stays as it is.
        mapping: the target.
        keep: whether the target's writer spells out a layer that its own layers cannot hold.

    Returns:
        The model, and for every layer that was changed the largest rounding of a recurrent weight.
    """
    rewrites = []
    for layer in model.recurrent.values():
        if layer.projected_size is None or not _can_be_folded(layer, model) or _holds(mapping, layer, keep):
            continue
        model = _with_folded(model, layer)
        text = "the projection was multiplied into the recurrent kernels, and follows as a dense layer"
        rounding = max(_rounding(direction.weights) for direction in layer.directions)
        rewrites.append(Rewrite(layer.name, "fold_projection", text, rounding == 0.0, rounding))
    return model, tuple(rewrites)


def _holds(
    mapping: MappingFile, layer: RecurrentLayer, keep: Callable[[RecurrentLayer], bool] | None
) -> bool:
    try:
        lowering.lower_layer(layer, mapping)
    except NotRepresentable:
        return keep is not None and keep(layer)
    return True


def _can_be_folded(layer: RecurrentLayer, model: Model) -> bool:
    """Whether nothing but zero goes in as a hidden state, and what comes out is linear in each direction."""
    calls = [call for call in model.calls or () if call.layer == layer.name]
    merge = layer.sequence.merge
    return (
        bool(calls)
        and not any(call.initial_state for call in calls)
        and not layer.sequence.stateful
        and (len(layer.directions) == 1 or merge in (Merge.CONCAT, Merge.SEPARATE))
        and all(_is_plain(direction) for direction in layer.directions)
    )


def _is_plain(direction: RecurrentDirection) -> bool:
    equations = direction.equations
    clipped = isinstance(equations, LstmEquations) and equations.projection_clip is not None
    return not clipped and not direction.weights.has(Part.INITIAL_HIDDEN)


def _product(weights: Weights, key: BlockKey) -> Array:
    """R W in float64 (hidden, hidden)."""
    recurrent, projection = (weights[name].read().astype(np.float64) for name in (key, _PROJECTION))
    result: Array = recurrent @ projection
    return result


def _rounding(weights: Weights) -> float:
    """The largest difference that the dtype of the weights makes to an element of R W."""
    found = 0.0
    for gate in GATES[weights.cell]:
        exact = _product(weights, (Part.RECURRENT, gate))
        rounded = exact.astype(weights.dtype).astype(np.float64)
        found = max(found, float(np.max(np.abs(exact - rounded))))
    return found


def _unprojected(direction: RecurrentDirection) -> RecurrentDirection:
    weights = direction.weights
    shape = (weights.hidden_size, weights.hidden_size)

    def block(key: BlockKey) -> Lazy:
        if key[0] is not Part.RECURRENT:
            return weights[key]
        return Lazy(shape, weights.dtype, lambda: _product(weights, key).astype(weights.dtype))

    kept = {key: block(key) for key in weights if key != _PROJECTION}
    return replace(direction, weights=Weights(weights.cell, kept))


def _with_folded(model: Model, layer: RecurrentLayer) -> Model:
    projections = [direction.weights[_PROJECTION] for direction in layer.directions]
    layers: dict[str, Layer] = {**model.layers, layer.name: layer.mapped(_unprojected)}
    base = f"{layer.name}_projection"
    while any(name.startswith(base) for name in model.layers):
        base += "_"
    calls: list[Call] = []
    for call in model.calls or ():
        if call.layer != layer.name:
            calls.append(call)
            continue
        raw = list(call.outputs)
        behind = []
        for place, kernels in _projected_outputs(layer, projections, len(raw)):
            name = _name(base, projections, kernels)
            layers.setdefault(name, OperationLayer(name, Dense(), {"kernel": _diagonal(kernels)}))
            raw[place] = f"{raw[place]}.unprojected"
            behind.append(Call(name, (raw[place],), (call.outputs[place],)))
        calls += [replace(call, outputs=tuple(raw)), *behind]
    return replace(model, layers=layers, calls=tuple(calls))


def _projected_outputs(
    layer: RecurrentLayer, projections: Sequence[Lazy], count: int
) -> list[tuple[int, Sequence[Lazy]]]:
    """The outputs of a call that hold hidden states, and the projections of those that each holds."""
    apart = len(projections) == 2 and layer.sequence.merge is Merge.SEPARATE
    found: list[tuple[int, Sequence[Lazy]]] = (
        [(n, [projection]) for n, projection in enumerate(projections)] if apart else [(0, projections)]
    )
    first = len(found)  # the final states follow: h and c of each direction
    return found + [(first + 2 * n, [p]) for n, p in enumerate(projections) if first + 2 * n < count]


def _name(name: str, projections: Sequence[Lazy], kernels: Sequence[Lazy]) -> str:
    """A name of its own for each kernel, which the calls that share it share."""
    if len(kernels) == len(projections):
        return name
    return f"{name}_{'reverse' if kernels[0] is projections[1] else 'forward'}"


def _diagonal(blocks: Sequence[Lazy]) -> Lazy:
    """One projection, or two side by side (2 projected, 2 hidden) with zeros elsewhere."""
    if len(blocks) == 1:
        return blocks[0]
    rows, columns = blocks[0].shape

    def load() -> Array:
        whole = np.zeros((2 * rows, 2 * columns), blocks[0].dtype)
        whole[:rows, :columns], whole[rows:, columns:] = (block.read() for block in blocks)
        return whole

    return Lazy((2 * rows, 2 * columns), blocks[0].dtype, load)
