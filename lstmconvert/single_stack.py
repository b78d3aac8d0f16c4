"""Models that are one stack of recurrent layers and nothing else: all that some targets are written for."""

from __future__ import annotations

from lstmconvert import simplify, stacks
from lstmconvert.canonical import Merge, RecurrentLayer, Returns, ReverseOutput
from lstmconvert.errors import NotRepresentable
from lstmconvert.gates import Direction
from lstmconvert.model import Call, Layer, Model


def layers_of(model: Model, title: str) -> tuple[Model, tuple[RecurrentLayer, ...]]:
    """A model that is one stack of recurrent layers and nothing else, and the layers in their order.

    Args:
        model: the model; weights without topology are one if they are one stack.
        title: the framework that can hold no more, for errors.

    Raises:
        NotRepresentable: when the model is more than that, or a layer gives or takes more than a sequence.
    """
    if model.calls is None:
        found = stacks.split(model)
        if len(found) != 1:
            raise NotRepresentable(
                f"the source holds weights without the graph around them, and {title} files are a graph",
                reasons=[f"it has {len(found)} recurrent stacks"],
                remedy="Name one layer (--layer), or write to a folder (-o DIR).",
            )
        model = next(iter(found.values()))
    model = simplify.fold_reversals(model)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise NotRepresentable(f"only a model of one input and one output is written for {title}")
    value = model.inputs[0].value
    layers = []
    for call in model.calls or ():
        layers.append(_on_sequences(model.layers[call.layer], call, value, title))
        value = call.outputs[0]
    if value != model.outputs[0].value or not layers:
        raise NotRepresentable(
            "the model is not one stack of recurrent layers", remedy="Choose one with --layer."
        )
    return model, tuple(layers)


def _on_sequences(layer: Layer, call: Call, value: str, title: str) -> RecurrentLayer:
    """The layer of a call that makes a whole sequence of the whole sequence ``value``, and nothing else."""
    place = f"layer {call.layer!r}"
    remedy = "Take the recurrent layers one by one with --layer, or convert to ONNX."
    if not isinstance(layer, RecurrentLayer):
        raise NotRepresentable(
            f"{type(layer.operation).__name__} is not written for {title}: only recurrent layers are",
            place=place,
            remedy=remedy,
        )
    sequence = layer.sequence
    against = []
    if call.mask is not None or call.initial_state or sequence.stateful or sequence.return_state:
        against.append("a mask, or states that go in or out")
    if call.inputs != (value,):
        against.append("it does not take what the layer before it gives")
    if sequence.returns is Returns.LAST:
        against.append("only the last step is given")
    if len(layer.directions) == 2 and sequence.merge is not Merge.CONCAT:
        against.append(f"its directions are joined by {sequence.merge}, not side by side")
    if layer.direction == Direction.REVERSE and sequence.reverse_output is ReverseOutput.VISITED_ORDER:
        against.append("its output is in the order of its visits")
    if against:
        raise NotRepresentable(
            f"this use of a recurrent layer is not written for {title}",
            reasons=against,
            place=place,
            remedy=remedy,
        )
    return layer
