"""Networks as people write them in torch, each with example inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class LastStep(nn.Module):
    """A classifier by the last step of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True, dropout=0.2)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.lstm(self.embed(x))
        return self.head(self.drop(y[:, -1]))


class Tagger(nn.Module):
    """A tag for each step, from both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.rnn = nn.GRU(5, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        return functional.softmax(self.head(self.rnn(self.embed(x))[0]), -1)


class FinalStates(nn.Module):
    """A classifier by the final states of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        _, (h, _c) = self.lstm(x)
        return torch.sigmoid(self.head(torch.cat([h[-2], h[-1]], 1)))


class CRNN(nn.Module):
    """Text from pictures: convolution, then both directions over the width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d((2, 1))
        self.rnn = nn.LSTM(4 * 4, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.pool(functional.relu(self.bn(self.conv(x))))
        x = x.permute(0, 3, 1, 2).flatten(2)
        return functional.log_softmax(self.head(self.rnn(x)[0]), 2)


class Attention(nn.Module):
    """Attention over the steps, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True)
        self.score = nn.Linear(6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.rnn(x)
        w = torch.softmax(self.score(y), 1)
        return self.head((w * y).sum(1))


class ConvolutionOverTime(nn.Module):
    """Convolution over time, layer normalization, mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1)
        self.rnn = nn.GRU(8, 6, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        y = functional.gelu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        y, _ = self.rnn(y)
        return self.head(self.norm(y).mean(1))


class LargestOverTime(nn.Module):
    """A plain RNN and the largest value over time."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 6, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x)[0].max(1).values)


class TimeMajor(nn.Module):
    """Time first."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x)[0])


class TwoInputs(nn.Module):
    """Two inputs, two layers, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.LSTM(3, 6, batch_first=True)
        self.b = nn.GRU(2, 4, batch_first=True)
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor, z: Tensor) -> Any:
        return self.head(torch.cat([self.a(x)[0][:, -1], self.b(z)[1][0]], -1))


class Residual(nn.Module):
    """A residual stack with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(3, 6)
        self.rnns = nn.ModuleList([nn.LSTM(6, 6, batch_first=True) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(6) for _ in range(2)])
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.inp(x)
        for r, n in zip(self.rnns, self.norms, strict=True):
            x = n(x + r(x)[0])
        return self.head(x), x.mean(1)


class Projection(nn.Module):
    """An LSTM with projection."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, proj_size=4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x)[0])


class ProjectionStack(nn.Module):
    """Two layers of both directions with projections, their last states and cell states used."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, num_layers=2, proj_size=4, bidirectional=True, bias=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        y, (h, c) = self.rnn(x)
        return self.head(y), h[-1], c[-2]


class ProjectionStreaming(nn.Module):
    """An LSTM with projection, its states in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, proj_size=4, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        y, (h, c) = self.rnn(x, (h, c))
        return y, h, c


class Streaming(nn.Module):
    """States in and out, for streaming."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 6, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor, h: Tensor) -> Any:
        y, h = self.rnn(x, h)
        return self.head(y), h


class TrainedStates(nn.Module):
    """Trained initial states."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True)
        self.h0 = nn.Parameter(torch.randn(1, 1, 6))
        self.c0 = nn.Parameter(torch.randn(1, 1, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        b = x.shape[0]
        y, _ = self.rnn(x, (self.h0.expand(-1, b, -1).contiguous(), self.c0.expand(-1, b, -1).contiguous()))
        return self.head(y[:, -1])


class Tied(nn.Module):
    """Output weights that are the embedding'self."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = nn.LSTM(6, 6, batch_first=True)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Any:
        return self.out(self.rnn(self.embed(x))[0])


class MultiHeadAttention(nn.Module):
    """Multi-head attention over a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 8, batch_first=True)
        self.att = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.rnn(x)
        a, _ = self.att(y, y, y, need_weights=False)
        return self.head(y + a)


class Packed(nn.Module):
    """Sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        p = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, (h, _) = self.rnn(p)
        y, _ = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)
        return self.head(y), h


class PackedStack(nn.Module):
    """Sorted sequences through two layers that start elsewhere than at zero, given back with all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 5, num_layers=2)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor, lengths: Tensor, state: Tensor) -> Any:
        p = nn.utils.rnn.pack_padded_sequence(x, lengths)
        y, h = self.rnn(p, state)
        y, _ = nn.utils.rnn.pad_packed_sequence(y, total_length=x.shape[0])
        return self.head(y), h


class PackedTagger(nn.Module):
    """Words of sentences of different lengths, the last states of two stacked LSTMs, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.rnn = nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 3)

    def forward(self, words: Tensor, lengths: Tensor) -> Any:
        p = nn.utils.rnn.pack_padded_sequence(
            self.embedding(words), lengths, batch_first=True, enforce_sorted=False
        )
        _, (h, c) = self.rnn(p)
        return self.head(torch.cat([h[-2], h[-1], c[-2], c[-1]], dim=-1))


class CausalAttention(nn.Module):
    """Attention of each step to those before it, time first, over a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 8)
        self.att = nn.MultiheadAttention(8, 4)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.rnn(x)
        mask = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool).triu(1)
        a, _ = self.att(y, y, y, attn_mask=mask)
        return self.norm(y + a)


class CrossAttention(nn.Module):
    """A decoder that attends to an encoder of other sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 5, batch_first=True)
        self.decoder = nn.GRU(2, 8, batch_first=True)
        self.att = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, bias=False, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, z: Tensor) -> Any:
        memory, _ = self.encoder(x)
        y, _ = self.decoder(z)
        return self.head(self.att(y, memory, memory)[0] + y)


class Seq2Seq(nn.Module):
    """An encoder whose states the decoder starts from."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(11, 5)
        self.target = nn.Embedding(11, 4)
        self.encoder = nn.LSTM(5, 6, batch_first=True)
        self.decoder = nn.LSTM(4, 6, batch_first=True)
        self.head = nn.Linear(6, 11)

    def forward(self, x: Tensor, z: Tensor) -> Any:
        _, states = self.encoder(self.source(x))
        y, _ = self.decoder(self.target(z), states)
        return self.head(y)


class ConvolutionalTagger(nn.Module):
    """Convolutions of two widths over embedded tokens, then both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.narrow = nn.Conv1d(5, 4, 3, padding=1)
        self.wide = nn.Conv1d(5, 4, 5, padding=2)
        self.rnn = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        e = self.embed(x).transpose(1, 2)
        y = torch.cat([functional.relu(self.narrow(e)), torch.tanh(self.wide(e))], 1).transpose(1, 2)
        return self.head(self.rnn(y)[0])


class Unrolled(nn.Module):
    """A cell that is called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        h = c = x.new_zeros(x.shape[0], 6)
        for step in range(7):
            h, c = self.cell(x[:, step], (h, c))
        return self.head(h)


class Looped(nn.Module):
    """A cell over every step of its input, all of its outputs together."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        h = x.new_zeros(x.shape[0], 6)
        outputs = []
        for step in range(x.shape[1]):
            h = self.cell(x[:, step], h)
            outputs.append(self.head(h))
        return torch.stack(outputs, 1)


class Feedback(nn.Module):
    """A decoder that takes what it gave, two cells deep."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 6, batch_first=True)
        self.first = nn.LSTMCell(3, 6)
        self.second = nn.RNNCell(6, 4, nonlinearity="relu")
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        _, (h, c) = self.encoder(x)
        h, c, below = h[0], c[0], None
        y = x[:, -1]
        outputs = []
        for _ in range(5):
            h, c = self.first(y, (h, c))
            below = self.second(h, below)
            y = self.head(below)
            outputs.append(y)
        return torch.stack(outputs, 1)


class Summed(nn.Module):
    """Sums over time, with and without the axis, and over places."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.rnn(x)
        return self.head(y.sum(1)), y + y.sum(1, keepdim=True)


class SeveralHeads(nn.Module):
    """A stack of both directions, pooled in two ways, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 6, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.kind = nn.Linear(24, 3)
        self.place = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.rnn(x)
        pooled = torch.cat([y.mean(1), y.amax(1)], 1)
        return torch.log_softmax(self.kind(pooled), 1), torch.sigmoid(self.place(y)).squeeze(-1)


class Forecast(nn.Module):
    """Mean and deviation of what comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, num_layers=2, batch_first=True)
        self.mean = nn.Linear(6, 1)
        self.deviation = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Any:
        y, _ = self.rnn(x)
        return self.mean(y), functional.softplus(self.deviation(y)) + 1e-3


class VoiceActivity(nn.Module):
    """A frame at a time, with both states in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 3, stride=2, padding=1)
        self.rnn = nn.LSTM(5, 6, batch_first=True)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        y = functional.relu(self.conv(x)).transpose(1, 2)
        y, (h, c) = self.rnn(y, (h, c))
        return torch.sigmoid(self.head(y)), h, c


class WeightNorm(nn.Module):
    """Weights that are computed from a direction and a length, in both ways that torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.utils.parametrizations.weight_norm(nn.LSTM(3, 6, batch_first=True), "weight_hh_l0")
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.last = nn.utils.weight_norm(nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Any:
        return self.last(self.head(self.rnn(x)[0]))


class Siamese(nn.Module):
    """One layer for two inputs, and how far apart they are."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor, z: Tensor) -> Any:
        a, b = self.rnn(x)[0][:, -1], self.rnn(z)[0][:, -1]
        return torch.sigmoid(self.head((a - b) * (a - b)))


class Autoencoder(nn.Module):
    """The last state, repeated, and decoded again."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, 6, batch_first=True)
        self.decoder = nn.GRU(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        _, h = self.encoder(x)
        return self.head(self.decoder(h[-1].unsqueeze(1).repeat(1, 7, 1))[0])


class Gated(nn.Module):
    """A layer beside a shortcut, mixed by a gate; activations with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.shortcut = nn.Linear(3, 12)
        self.gate = nn.Linear(3, 12)
        self.slope = nn.PReLU()
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Any:
        g = torch.sigmoid(self.gate(x))
        y = g * self.rnn(x)[0] + (1 - g) * self.slope(self.shortcut(x))
        return self.head(functional.leaky_relu(y, 0.1))


class Dilated(nn.Module):
    """Causal convolutions with holes, then a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 6, 2)
        self.second = nn.Conv1d(6, 6, 2, dilation=2)
        self.rnn = nn.GRU(6, 5, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        y = functional.silu(self.first(functional.pad(x.transpose(1, 2), (1, 0))))
        y = functional.elu(self.second(functional.pad(y, (2, 0))))
        return self.rnn(y.transpose(1, 2))[0]


def _steps(*shape: int) -> Tensor:
    return torch.randn(*shape)


def _tokens(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape)


ZOO: dict[type[nn.Module], Callable[[], tuple[Tensor, ...]]] = {
    LastStep: lambda: (_tokens(2, 7),),
    Tagger: lambda: (_tokens(2, 7),),
    FinalStates: lambda: (_steps(2, 7, 3),),
    CRNN: lambda: (_steps(2, 1, 8, 9),),
    Attention: lambda: (_steps(2, 7, 3),),
    ConvolutionOverTime: lambda: (_steps(2, 7, 3),),
    LargestOverTime: lambda: (_steps(2, 7, 3),),
    TimeMajor: lambda: (_steps(7, 2, 3),),
    TwoInputs: lambda: (_steps(2, 7, 3), _steps(2, 5, 2)),
    Residual: lambda: (_steps(2, 7, 3),),
    Streaming: lambda: (_steps(2, 7, 3), _steps(1, 2, 6)),
    TrainedStates: lambda: (_steps(2, 7, 3),),
    Tied: lambda: (_tokens(2, 7),),
    MultiHeadAttention: lambda: (_steps(2, 7, 3),),
    Projection: lambda: (_steps(2, 7, 3),),
    CausalAttention: lambda: (_steps(7, 2, 3),),
    CrossAttention: lambda: (_steps(2, 7, 3), _steps(2, 5, 2)),
    Seq2Seq: lambda: (_tokens(2, 7), _tokens(2, 5)),
    ConvolutionalTagger: lambda: (_tokens(2, 7),),
    Unrolled: lambda: (_steps(2, 7, 3),),
    Summed: lambda: (_steps(3, 7, 3),),
    Looped: lambda: (_steps(3, 7, 3),),
    Feedback: lambda: (_steps(3, 7, 3),),
    SeveralHeads: lambda: (_steps(2, 7, 3),),
    Forecast: lambda: (_steps(2, 7, 3),),
    VoiceActivity: lambda: (_steps(2, 3, 8), _steps(1, 2, 6), _steps(1, 2, 6)),
    WeightNorm: lambda: (_steps(2, 7, 3),),
    Siamese: lambda: (_steps(2, 7, 3), _steps(2, 5, 3)),
    Autoencoder: lambda: (_steps(2, 7, 3),),
    Gated: lambda: (_steps(2, 7, 3),),
    Dilated: lambda: (_steps(2, 7, 3),),
    ProjectionStack: lambda: (_steps(7, 3, 3),),
    ProjectionStreaming: lambda: (_steps(3, 7, 3), _steps(1, 3, 4), _steps(1, 3, 6)),
    Packed: lambda: (_steps(3, 7, 3), torch.tensor([7, 4, 2])),
    PackedStack: lambda: (_steps(7, 3, 3), torch.tensor([7, 4, 2]), _steps(2, 3, 5)),
    PackedTagger: lambda: (torch.randint(0, 11, (4, 7)), torch.tensor([3, 7, 1, 5])),
}
"""Each network and how its inputs are made."""
