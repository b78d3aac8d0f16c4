"""Convolutional LSTMs written out step by step: ONNX has no operator for them, and no Loop is written."""

from __future__ import annotations

from lstmconvert.activations import Activation
from lstmconvert.frameworks.onnx import activations
from lstmconvert.frameworks.onnx.graph import Dimension, Value
from lstmconvert.frameworks.onnx.use import Use
from lstmconvert.frameworks.onnx.windows import output_length, padding_attributes
from lstmconvert.onnx_proto import Attribute
from lstmconvert.operations import ConvolutionalLstm, Padding

LONGEST = 1000
"""Most steps that are written out, a dozen nodes each."""


def convolutional_lstm(use: Use, operation: ConvolutionalLstm) -> tuple[Value, ...]:
    """The steps of a sequence of fixed length, one after the other.

    Source: ConvLSTM1D and ConvLSTM2D of Keras 3.15; Shi et al. 2015 without peepholes.

    Raises:
        NotRepresentable: when the number of steps is free, or too large.
    """
    (x,) = use.floats()
    steps = x.shape[1]
    if not isinstance(steps, int) or steps > LONGEST:
        raise use.refused(
            "a convolutional LSTM is no operator of ONNX, and without a Loop it takes a fixed "
            f"number of steps (at most {LONGEST})"
        )
    return _Steps(use, operation, x).run(range(steps))


class _Steps:
    """A convolutional LSTM while it is written out; tensors (batch, filters, *places)."""

    def __init__(self, use: Use, operation: ConvolutionalLstm, x: Value) -> None:
        self.use, self.operation, self.graph = use, operation, use.graph
        self.rank = operation.rank
        self.order = (0, 1, self.rank + 2, *range(2, self.rank + 2))
        self.frames = self.graph.ordered(x, self.order)
        self.shape = x.shape
        self.filters = use.weights["recurrent"].shape[-2]
        self.window = use.weights["kernel"].shape[: self.rank]
        self.kernel = self._kernel("kernel")
        self.recurrent = self._kernel("recurrent")
        bias = use.weights.get("bias")
        self.bias = [] if bias is None else [self.graph.weight(use.layer, "bias", bias)]

    def _kernel(self, part: str) -> str:
        """(*window, input, output) as Conv has it: (output, input, *window)."""
        stored = self.use.weights[part]
        axes = (self.rank + 1, self.rank, *range(self.rank))

        shape = tuple(stored.shape[axis] for axis in axes)
        moved = stored.map(lambda array: array.transpose(axes), shape)
        return self.graph.weight(self.use.layer, part, moved)

    def _reach(self) -> list[int]:
        return [d * (w - 1) + 1 for w, d in zip(self.window, self.operation.dilation, strict=True)]

    def _given(self, step: int) -> str:
        """The input's share of a step's pre-activations."""
        operation = self.operation
        frame = self.graph.add("Gather", [self.frames, self.graph.integer(step)], {"axis": 1})
        attributes: dict[str, Attribute] = {
            "kernel_shape": list(self.window),
            "strides": list(operation.strides),
            "dilations": list(operation.dilation),
            **padding_attributes(operation.padding, self._reach(), operation.strides),
        }
        return self.graph.add("Conv", [frame, self.kernel, *self.bias], attributes)

    def _held(self, hidden: str) -> str:
        """The hidden state's share."""
        ones = [1] * self.rank
        window = self.use.weights["recurrent"].shape[: self.rank]
        attributes: dict[str, Attribute] = {
            "kernel_shape": list(window),
            **padding_attributes(Padding.SAME, window, ones),
        }
        return self.graph.add("Conv", [hidden, self.recurrent], attributes)

    def _step(self, step: int, hidden: str, cell: str) -> tuple[str, str]:
        use, operation = self.use, self.operation
        total = self._given(step)
        if hidden:
            total = use.add("Add", total, self._held(hidden))

        def gate(number: int, activation: Activation) -> str:
            bounds = number * self.filters, (number + 1) * self.filters
            part = use.add("Slice", total, *(self.graph.integers(n) for n in (*bounds, 1)))
            return self._activated(activation, part)

        i = gate(0, operation.recurrent_activation)
        g = gate(2, operation.activation)
        o = gate(3, operation.recurrent_activation)
        fresh = use.add("Mul", i, g)
        if cell:
            kept = use.add("Mul", gate(1, operation.recurrent_activation), cell)
            fresh = use.add("Add", kept, fresh)
        return use.add("Mul", o, self._activated(operation.activation, fresh)), fresh

    def _activated(self, activation: Activation, tensor: str) -> str:
        return activations.apply(self.graph, activation, tensor, self.use.dtype, 1)

    def run(self, steps: range) -> tuple[Value, ...]:
        """All steps; outputs in the order in which they are visited, as in Keras."""
        hidden = cell = ""
        outputs = []
        for step in reversed(steps) if self.operation.go_backwards else steps:
            hidden, cell = self._step(step, hidden, cell)
            outputs.append(hidden)
        places = [
            output_length(size, reach, stride, self.operation.padding)
            for size, reach, stride in zip(
                self.shape[2:-1], self._reach(), self.operation.strides, strict=True
            )
        ]
        final: tuple[Dimension, ...] = (self.shape[0], *places, self.filters)
        order = (0, self.rank + 1, *range(1, self.rank + 1))
        states = [Value(name, final, self.use.dtype, order) for name in (hidden, cell)]
        result = states[0]
        if self.operation.return_sequences:
            frames = [self.use.add("Unsqueeze", output, self.graph.integers(1)) for output in outputs]
            (joined,) = self.graph.add_main("Concat", frames, {"axis": 1})
            shape = (self.shape[0], len(outputs), *places, self.filters)
            result = Value(joined, shape, self.use.dtype, self.order)
        return (result, *states) if self.operation.return_state else (result,)
