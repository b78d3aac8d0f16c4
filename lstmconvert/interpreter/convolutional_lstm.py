"""The convolutional LSTM, step by step.

Source: ConvLSTM1D and ConvLSTM2D of Keras 3.15; Shi et al. 2015 without peepholes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lstmconvert.interpreter.windows import correlate
from lstmconvert.operations import ConvolutionalLstm, Padding
from lstmconvert.tensors import Array


def convolutional_lstm(
    operation: ConvolutionalLstm, weights: Mapping[str, Array], inputs: Sequence[Array]
) -> tuple[Array, ...]:
    """The sequence in visited order (batch, time, *places, filters) or its last frame, then states."""
    (x,) = inputs
    rank = operation.rank
    if x.ndim != rank + 3:
        raise ValueError(f"a convolutional LSTM of {rank} axes takes inputs of {rank + 3} axes")
    batch, time = x.shape[:2]
    frames = x.reshape(batch * time, *x.shape[2:])
    shares = correlate(
        frames, _outputs_first(weights["kernel"]), operation.strides, operation.dilation, operation.padding
    )
    if "bias" in weights:
        shares = shares + weights["bias"]
    shares = shares.reshape(batch, time, *shares.shape[1:])
    recurrent = _outputs_first(weights["recurrent"])
    ones = (1,) * rank
    h = np.zeros((*shares[:, 0].shape[:-1], shares.shape[-1] // 4), x.dtype)
    c = h
    outputs = []
    for step in range(time - 1, -1, -1) if operation.go_backwards else range(time):
        total = shares[:, step] + correlate(h, recurrent, ones, ones, Padding.SAME)
        i, f, g, o = np.split(total, 4, axis=-1)
        gate = operation.recurrent_activation
        c = gate(f) * c + gate(i) * operation.activation(g)
        h = gate(o) * operation.activation(c)
        outputs.append(h)
    result = np.stack(outputs, axis=1) if operation.return_sequences else h
    return (result, h, c) if operation.return_state else (result,)


def _outputs_first(kernel: Array) -> Array:
    """(*window, input, output) as (output, input, *window)."""
    rank = kernel.ndim - 2
    return kernel.transpose(rank + 1, rank, *range(rank))
