"""Convolutional LSTMs: a class of their own in the file, step by step."""

from __future__ import annotations

from lstmconvert.frameworks.pytorch.expressions import activated
from lstmconvert.frameworks.pytorch.source import bracketed, call, indented, pair
from lstmconvert.frameworks.pytorch.use import Use
from lstmconvert.frameworks.pytorch.values import Value
from lstmconvert.operations import ConvolutionalLstm, Padding
from lstmconvert.shapes import Shape


def convolutional_lstm(use: Use, operation: ConvolutionalLstm, shapes: list[Shape]) -> list[Value]:
    """The sequence as visited or its last frame, then the states, all features last."""
    module = use.module
    kernel = use.weights["kernel"]
    rank = operation.rank
    filters = kernel.shape[-1] // 4
    bias = "bias" in use.weights
    key = (repr(operation), bias, kernel.shape[:rank])
    name = module.own_class(key, "ConvLSTM", None, _class(use, operation, bias=bias))
    order = (rank + 1, rank, *range(rank))
    tensors = {}
    for part, local in (("kernel", "weight"), ("recurrent", "recurrent_weight")):
        lazy = use.weights[part]
        shape = tuple(lazy.shape[axis] for axis in order)
        tensors[part] = (local, lazy.map(lambda array: array.transpose(order), shape), order)
    if bias:
        tensors["bias"] = ("bias", use.weights["bias"], (0,))
    layer = use.owner(
        call(
            name,
            str(kernel.shape[-2]),
            str(filters),
            f"({', '.join(map(str, kernel.shape[:rank]))}{',' if rank == 1 else ''})",
        ),
        tensors,
    )
    x = use.last()
    frames = module.variable("frames") if operation.return_sequences else "_"
    h, c = (module.variable(text) for text in "hc")
    module.line(f"{frames}, {h}, {c} = {call(layer, x.code)}")
    codes = [frames if operation.return_sequences else h, h, c]
    return [use.value(code, shape) for code, shape in zip(codes, shapes, strict=False)]


def _class(use: Use, operation: ConvolutionalLstm, *, bias: bool) -> list[str]:
    rank = operation.rank
    convolve = f"F.conv{rank}d"
    same = operation.padding is Padding.SAME
    plain = all(stride == 1 for stride in operation.strides)
    named: dict[str, str] = {}
    if not plain:
        named["stride"] = pair(operation.strides)
    if same and plain:
        named["padding"] = '"same"'
    if any(d != 1 for d in operation.dilation):
        named["dilation"] = pair(operation.dilation)
    pads = []
    if same and not plain:
        sizes = [
            str(d * (w - 1) + 1)
            for d, w in zip(operation.dilation, use.weights["kernel"].shape, strict=False)
        ]
        helper = use.module.helper("pad_same")
        reach = f"({', '.join(sizes)}{',' if rank == 1 else ''})"
        strides = f"({', '.join(map(str, operation.strides))}{',' if rank == 1 else ''})"
        pads = [f"frames = {helper}(frames, {reach}, {strides})"]
    share = call(convolve, "frames", "self.weight", *(["self.bias"] if bias else []), **named)
    init = [
        "super().__init__()",
        "self.filters = filters",
        "self.weight = nn.Parameter(torch.empty(4 * filters, features, *window))",
        "self.recurrent_weight = nn.Parameter(torch.empty(4 * filters, filters, *window))",
        *(["self.bias = nn.Parameter(torch.empty(4 * filters))"] if bias else []),
    ]
    times = "reversed(range(x.shape[1]))" if operation.go_backwards else "range(x.shape[1])"
    gates = [line for letter in "ifo" for line in _gate(letter, operation, gate=True)]
    step = [
        f'total = inputs[:, t] + {convolve}(h, self.recurrent_weight, padding="same")',
        "i, f, g, o = total.chunk(4, dim=1)",
        *gates,
        *_gate("g", operation, gate=False),
        "c = f * c + i * g",
        f"h = o * {bracketed(activated(operation.activation, 'c'))}",
        "outputs.append(h.movedim(1, -1))",
    ]
    forward = [
        "frames = x.flatten(0, 1).movedim(-1, 1)",
        *pads,
        f"inputs = {share}.unflatten(0, x.shape[:2])",
        "h = c = torch.zeros_like(inputs[:, 0, : self.filters])",
        "outputs = []",
        f"for t in {times}:",
        *indented(step),
        "return torch.stack(outputs, dim=1), h.movedim(1, -1), c.movedim(1, -1)",
    ]
    return [
        "class CLASS(nn.Module):",
        *indented(
            [
                '"""A convolutional LSTM over (batch, time, *places, features).',
                "",
                "The weights have the gates input, forget, cell, output below each other.",
                '"""',
                "",
                "def __init__(self, features, filters, window):",
                *indented(init),
                "",
                "def forward(self, x):",
                *indented(forward),
            ]
        ),
    ]


def _gate(letter: str, operation: ConvolutionalLstm, *, gate: bool) -> list[str]:
    activation = operation.recurrent_activation if gate else operation.activation
    result = activated(activation, letter)
    return [] if result == letter else [f"{letter} = {result}"]
