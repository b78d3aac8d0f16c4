"""What a layer is in Keras 3: its class, its config, its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lstmconvert.activations import Activation
from lstmconvert.errors import NotRepresentable
from lstmconvert.frameworks.keras import activation_names
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class TensorToWrite:
    """One tensor of a layer.

    Attributes:
        path: of its object inside the layer, in a ``.weights.h5``.
        name: in a legacy file, without the layer's name.
        lazy: its numbers.
        trainable: whether it stands among the trainable ones.
    """

    path: str
    name: str
    lazy: Lazy
    trainable: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class LayerToWrite:
    """A layer of Keras.

    Attributes:
        class_name: its class.
        config: without name and dtype.
        tensors: in the order of Keras.
        module: of the class.
    """

    class_name: str
    config: Mapping[str, Any]
    tensors: tuple[TensorToWrite, ...] = ()
    module: str = "keras.layers"

    @property
    def is_operator(self) -> bool:
        """Whether it is one of ``keras.ops`` and no layer."""
        return self.module != "keras.layers"


OPERATORS = "keras.src.ops.numpy"


def refuse(layer: str, *reasons: str, remedy: str | None = None) -> NotRepresentable:
    """The error that Keras lacks something that a layer has."""
    return NotRepresentable(
        "Keras cannot express this layer", reasons=reasons, place=f"layer {layer!r}", remedy=remedy
    )


def activation_name(activation: Activation, layer: str) -> str:
    """Keras 3's name of an activation.

    Raises:
        NotRepresentable: when it has none.
    """
    name = activation_names.write(activation)
    if name is None:
        remedy = None
        if activation.kind == "hard_sigmoid":
            remedy = "Keras 3 computes hard_sigmoid as x / 6 + 0.5, Keras 2 as 0.2 x + 0.5."
        raise refuse(layer, f"no activation {activation}", remedy=remedy)
    return name
