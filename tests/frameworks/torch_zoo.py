"""Networks as people write them in torch, each with example inputs."""

from __future__ import annotations

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
    Packed: lambda: (_steps(3, 7, 3), torch.tensor([7, 4, 2])),
}
"""Each network and how its inputs are made."""
