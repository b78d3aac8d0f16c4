"""Functions and classes that generated source may need beside the model; each is written where it is used."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_RUN_MASKED = '''
def run_masked(layer, x, mask, state=None):
    """Run a recurrent layer over the steps where the mask is true.

    At the others the state is held and the output is zero.
    """
    lengths = mask.sum(dim=1)
    valid_first = mask.logical_not().int().argsort(dim=1, stable=True)
    x = at_steps(x, valid_first)
    if torch.compiler.is_exporting():
        output, final = run_padded(layer, x, lengths.clamp(min=1), state)
    else:
        packed = pack_padded_sequence(
            x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        output, final = layer(packed, state)
        output, _ = pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])
    output = at_steps(output, valid_first.argsort(dim=1))
    output = output.masked_fill(~mask.unsqueeze(-1), 0.0)
    stays = (lengths == 0).view(1, -1, 1)  # sequences without a valid step
    if isinstance(final, Tensor):
        start = torch.zeros_like(final) if state is None else state
        return output, torch.where(stays, start, final)
    if state is None:
        state = [torch.zeros_like(part) for part in final]
    return output, tuple(torch.where(stays, s, f) for s, f in zip(state, final))
'''

_RUN_PADDED = '''
def run_padded(layer, x, lengths, state=None):
    """Run a recurrent layer over padded sequences as over packed ones.

    The sizes of packed sequences are data, which torch.export cannot know. Forwards the
    padding comes last; backwards it has to come first, to be visited last.
    """
    steps = torch.arange(x.shape[1], device=x.device)
    lengths = lengths.unsqueeze(1)
    size = layer.hidden_size
    output, cells = hold_cells(layer, x, steps >= lengths, state)
    hidden = [at_steps(output[:, :, :size], lengths - 1)[:, 0]]
    if layer.bidirectional:
        moved = at_steps(x, (steps + lengths) % x.shape[1])
        padding = steps < x.shape[1] - lengths
        other, other_cells = hold_cells(layer, moved, padding, state)
        other = at_steps(other, (steps - lengths) % x.shape[1])[:, :, size:]
        output = torch.cat([output[:, :, :size], other], dim=-1)
        hidden.append(other[:, 0])
        cells = None if cells is None else torch.stack([cells[0], other_cells[1]])
    hidden = torch.stack(hidden)
    return output, hidden if cells is None else (hidden, cells)
'''

_HOLD_CELLS = '''
def hold_cells(layer, x, padding, state):
    """Run a recurrent layer; where there is padding, an LSTM keeps its cell state.

    One more feature says so: it opens the forget gate wholly and shuts the input gate.
    """
    if not isinstance(layer, nn.LSTM):
        return layer(x, state)[0], None
    size, directions = layer.hidden_size, 2 if layer.bidirectional else 1
    if state is None:
        zeros = x.new_zeros(directions, x.shape[0], size)
        state = (zeros, zeros)
    shut = torch.cat([x.new_full((size, 1), v) for v in (-1e4, 1e4, 0.0, 0.0)])
    weights = []
    for kernel, *others in layer.all_weights:
        weights += [torch.cat([kernel, shut], dim=1), *others]
    x = torch.cat([x, padding.unsqueeze(-1).to(x.dtype)], dim=-1)
    output, _, cells = torch.lstm(
        x, state, weights, layer.bias, 1, 0.0, False, layer.bidirectional, True
    )
    return output, cells
'''

_AT_STEPS = '''
def at_steps(x, steps):
    """The given steps of each sequence (batch, time, features)."""
    return x.gather(1, steps.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
'''

_HOLD = '''
def hold(output, mask, start=0.0):
    """Repeat the output of the valid step before in every masked step."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, -1).cummax(dim=1).values
    held = at_steps(output, last.clamp(min=0))
    return torch.where(last.unsqueeze(-1) < 0, start, held)
'''

_PAD_SAME = '''
def pad_same(x, windows, strides, value=0.0):
    """Pad places (batch, features, *places) to ceil(size / stride) windows.

    Where the padding is odd, the end gets one more.
    """
    amounts = []
    for size, window, stride in zip(x.shape[2:], windows, strides):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        amounts = [total // 2, total - total // 2, *amounts]
    return F.pad(x, amounts, value=value)
'''

_MULTI_HEAD_ATTENTION = '''
class MultiHeadAttention(nn.Module):
    """Attention in several heads; the mask is true where a score counts."""

    def __init__(
        self,
        heads,
        size,
        value_size,
        query_features,
        key_features,
        value_features,
        output_features,
        bias=True,
        zero_masked=True,
    ):
        super().__init__()
        self.heads = heads
        self.size = size
        self.zero_masked = zero_masked
        self.query = nn.Linear(query_features, heads * size, bias=bias)
        self.key = nn.Linear(key_features, heads * size, bias=bias)
        self.value = nn.Linear(value_features, heads * value_size, bias=bias)
        self.output = nn.Linear(heads * value_size, output_features, bias=bias)

    def forward(self, query, value, key, mask=None):
        query = self.split(self.query(query)) / self.size**0.5
        scores = query @ self.split(self.key(key)).transpose(2, 3)
        if mask is not None:
            mask = mask.unsqueeze(1)
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1)
        if mask is not None and self.zero_masked:
            weights = weights.masked_fill(~mask, 0.0)
        mixed = weights @ self.split(self.value(value))
        return self.output(mixed.transpose(1, 2).flatten(2)), weights

    def split(self, x):
        """Features of all heads as (batch, head, steps, features of one head)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
'''

TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "run_masked": _RUN_MASKED,
        "run_padded": _RUN_PADDED,
        "hold_cells": _HOLD_CELLS,
        "at_steps": _AT_STEPS,
        "hold": _HOLD,
        "pad_same": _PAD_SAME,
        "MultiHeadAttention": _MULTI_HEAD_ATTENTION,
    }
)
"""The source of each under its name."""
NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"run_masked": ("at_steps", "run_padded"), "run_padded": ("hold_cells",), "hold": ("at_steps",)}
)
"""The others that each of them calls."""


def lines(name: str) -> list[str]:
    """The lines of a helper."""
    return TEXTS[name].strip("\n").split("\n")
