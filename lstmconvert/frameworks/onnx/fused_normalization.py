"""Layer normalisation as tf2onnx writes that of Keras 2: every step is a channel of one batch normalisation.

Keras reshapes x to (1, steps, features, 1), lets TensorFlow's FusedBatchNormV3 normalise each channel with
its own mean and variance, and shapes the result back; scale and offset follow as a product and a sum.

Source: ``LayerNormalization.call`` of tf_keras 2.21, as tf2onnx 1.17 converts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lstmconvert.frameworks.onnx.arrangement import Held, length
from lstmconvert.frameworks.onnx.neighbour_node import meant
from lstmconvert.frameworks.onnx.patterns import attributes_of

if TYPE_CHECKING:
    import onnx

    from lstmconvert.frameworks.onnx.supposed import Place

_OTHERS = [0, 2, 3]
"""The axes of a batch normalisation's input without its channels."""


def normalized(place: Place, name: str) -> tuple[Held, float] | None:
    """x and epsilon, of a tensor that is x normalised over its last axis; ``None`` of any other."""
    back = made_by(place, name, "Reshape")
    batch = None if back is None else made_by(place, back.input[0], "BatchNormalization")
    if back is None or batch is None or len(batch.input) != 5:
        return None
    channels, scale, offset, mean, variance = (place.flow.source(given) for given in batch.input)
    said = attributes_of(batch)
    there = made_by(place, channels, "Reshape")
    x = None if there is None else place.held(there.input[0])
    if there is None or x is None or x.rank < 2 or said.get("training_mode", 0):
        return None
    epsilon = said.get("epsilon", 1e-5)
    fits = (
        _integers(place, there.input[1]) == [1, -1, length(x.axes[-1]), 1]
        and _is_shape_of(place, back.input[1], there.input[0])
        and _is_everywhere(place, scale, 1.0)
        and _is_everywhere(place, offset, 0.0)
        and _is_mean(place, mean, channels)
        and _is_variance(place, variance, channels)
    )
    return (x, meant(epsilon)) if fits and isinstance(epsilon, float) else None


def made_by(place: Place, name: str, operator: str) -> onnx.NodeProto | None:
    """The node of a kind that makes a tensor."""
    maker = place.flow.maker(name)
    return maker[0] if maker is not None and maker[0].op_type == operator else None


def _integers(place: Place, name: str) -> list[int] | None:
    constant = place.flow.constant(name)
    return None if constant is None else [int(n) for n in constant.read().reshape(-1)]


def _axes(place: Place, node: onnx.NodeProto) -> list[int] | None:
    said = attributes_of(node).get("axes")
    if isinstance(said, list | tuple):
        return [int(n) for n in said]
    return _integers(place, node.input[1]) if len(node.input) > 1 else None


def _before_casts(place: Place, name: str) -> str:
    while (cast := made_by(place, name, "Cast")) is not None:
        name = cast.input[0]
    return name


def _is_shape_of(place: Place, name: str, of: str) -> bool:
    shape = made_by(place, _before_casts(place, name), "Shape")
    whole = shape is not None and not attributes_of(shape)
    return shape is not None and whole and place.flow.source(shape.input[0]) == place.flow.source(of)


def _is_everywhere(place: Place, name: str, number: float) -> bool:
    """Whether a tensor is one number, spread to a length that does not matter here."""
    spread = made_by(place, name, "Expand")
    constant = None if spread is None else place.flow.constant(spread.input[0])
    return constant is not None and constant.size == 1 and float(constant.read().reshape(())) == number


def _is_reduction(place: Place, name: str, operator: str, of: str, *, keep_axes: bool) -> bool:
    node = made_by(place, name, operator)
    if node is None or place.flow.source(node.input[0]) != of or _axes(place, node) != _OTHERS:
        return False
    return bool(attributes_of(node).get("keepdims", 1)) is keep_axes


def _is_mean(place: Place, name: str, channels: str) -> bool:
    node = made_by(place, name, "Squeeze")
    if node is None or _axes(place, node) != _OTHERS:
        return False
    return _is_reduction(place, node.input[0], "ReduceMean", channels, keep_axes=True)


def _is_variance(place: Place, name: str, channels: str) -> bool:
    """The mean of the squares of what is left of the channels without their means."""
    division = made_by(place, name, "Div")
    squares = None if division is None else made_by(place, division.input[0], "ReduceSumSquare")
    centred = None if squares is None else made_by(place, squares.input[0], "Sub")
    if division is None or centred is None:
        return False
    return (
        _is_reduction(
            place, division.input[0], "ReduceSumSquare", place.flow.source(centred.output[0]), keep_axes=False
        )
        and place.flow.source(centred.input[0]) == channels
        and _is_reduction(place, centred.input[1], "ReduceMean", channels, keep_axes=True)
        and _is_count(place, division.input[1], channels)
    )


def _is_count(place: Place, name: str, channels: str) -> bool:
    """Whether a number is that of the elements of one channel."""
    product = made_by(place, _before_casts(place, name), "ReduceProd")
    sizes = None if product is None else made_by(place, product.input[0], "Gather")
    if product is None or sizes is None or _integers(place, sizes.input[1]) != _OTHERS:
        return False
    return _axes(place, product) in (None, [0]) and _is_shape_of(place, sizes.input[0], channels)
