"""A recurrent node of an ONNX graph, its inputs and attributes by name.

Source: the documentation of the operators LSTM, GRU and RNN (onnx.ai, opset 1 to 22) and of
com.microsoft DynamicQuantizeLSTM (ONNX Runtime, docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.onnx.constants import Scope, attribute_value
from lstmconvert.gates import Cell, Direction
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

if TYPE_CHECKING:
    import onnx

_LAYOUTS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("", "LSTM"): "lstm",
        ("", "GRU"): "gru",
        ("", "RNN"): "rnn",
        ("com.microsoft", "DynamicQuantizeLSTM"): "dynamic_quantize_lstm",
    }
)

_INPUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "lstm": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
        "gru": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
        "rnn": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
        "dynamic_quantize_lstm": (
            *("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
            *("W_scale", "W_zero_point", "R_scale", "R_zero_point"),
        ),
    }
)

_ATTRIBUTES = frozenset(
    {
        *("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size"),
        *("input_forget", "layout", "linear_before_reset", "output_sequence"),
    }
)

_DIRECTIONS: Mapping[str, tuple[Direction, ...]] = MappingProxyType(
    {
        "forward": (Direction.FORWARD,),
        "reverse": (Direction.REVERSE,),
        "bidirectional": (Direction.FORWARD, Direction.REVERSE),
    }
)


def recurrent_layout(node: onnx.NodeProto) -> str | None:
    """The name of the layout of a recurrent node; ``None`` of any other node."""
    return _LAYOUTS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A recurrent node: its inputs and attributes by name.

    Attributes:
        name: of the layer.
        layout: the layout of its weights.
        inputs: the names of the inputs that are given.
        outputs: the names of the outputs, empty where one is left out.
        attributes: those that are given.
        scope: what is known of its inputs.
    """

    name: str
    layout: str
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    scope: Scope

    @classmethod
    def of(cls, node: onnx.NodeProto, scope: Scope, name: str) -> Recurrent:
        """The node by names.

        Raises:
            BadFile: when it has more inputs than its operator.
            UnsupportedSource: on an attribute that is not the operator's.
        """
        layout_name = recurrent_layout(node)
        assert layout_name is not None
        names = _INPUTS[layout_name]
        if len(node.input) > len(names):
            raise BadFile(
                f"{node.op_type} has too many inputs",
                place=name,
                found=len(node.input),
                expected=f"at most {len(names)}",
            )
        inputs = {key: value for key, value in zip(names, node.input, strict=False) if value}
        attributes = {a.name: attribute_value(a) for a in node.attribute}
        if unknown := sorted(attributes.keys() - _ATTRIBUTES):
            raise UnsupportedSource(
                f"{node.op_type} has an attribute that the specification does not know",
                place=name,
                found=unknown[0],
                expected=f"one of {', '.join(sorted(_ATTRIBUTES))}",
            )
        for required in ("X", "W", "R"):
            if required not in inputs:
                raise BadFile(f"{node.op_type} has no input {required}", place=name)
        return cls(name, layout_name, inputs, tuple(node.output), attributes, scope)

    @property
    def cell(self) -> Cell:
        """The node's cell."""
        return Cell(self.layout.rpartition("_")[2])

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions, forward first."""
        text = str(self.attributes.get("direction", "forward"))
        if text.lower() not in _DIRECTIONS:
            raise BadFile(
                "unknown direction", place=self.name, found=text, expected=f"one of {', '.join(_DIRECTIONS)}"
            )
        return _DIRECTIONS[text.lower()]

    @property
    def batch_first(self) -> bool:
        """Whether inputs are (batch, time, features): ``layout`` = 1."""
        value = self.attributes.get("layout", 0)
        if value not in (0, 1):
            raise BadFile("unknown layout", place=self.name, found=value, expected="0 or 1")
        return bool(value)

    def constant(self, key: str) -> Lazy | None:
        """An input that is a constant; ``None`` where it is not given.

        Raises:
            UnsupportedSource: when it depends on the inputs of the model.
        """
        if key not in self.inputs:
            return None
        array = self.scope.constant(self.inputs[key])
        if array is None:
            raise UnsupportedSource(
                f"the weights {key} are not constants: they are inputs of the model, or worked out by "
                "operators that are not folded",
                place=f"node {self.name!r}, input {self.inputs[key]!r}",
                remedy="Export the model with its weights inside, or run onnxsim on it first.",
            )
        return array

    def outputs_used(self) -> tuple[bool, bool]:
        """Whether the sequence, and whether a final state, is given on."""
        given = [bool(name) for name in self.outputs] + [False] * 3
        return given[0], given[1] or given[2]
