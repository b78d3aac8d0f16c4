"""Attention, and products of two sequences.

Source: Attention, AdditiveAttention, MultiHeadAttention and Dot of Keras 3.15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstmconvert.operations import AdditiveAttention, Attention, Dot, MaskedRow, MultiHeadAttention
from lstmconvert.tensors import Array

Weights = Mapping[str, Array]

_NORM_FLOOR = 1e-7
"""Keras divides by no smaller a norm."""


def attention(operation: Attention, weights: Weights, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """Scores by products, or by ``concat`` through tanh of every pair's sum."""
    query, value, key, masks = _taken_apart(operation.masks, inputs)
    scale = weights.get("scale", query.dtype.type(1))
    if operation.concat:
        pairs = np.tanh(scale * (query[:, :, np.newaxis] + key[:, np.newaxis]))
        scores = weights["concat_score_weight"] * pairs.sum(axis=-1)
    else:
        scores = (query @ key.swapaxes(1, 2)) * scale
    return _attended(operation, scores, value, masks)


def additive_attention(
    operation: AdditiveAttention, weights: Weights, inputs: Sequence[Array]
) -> tuple[Array, ...]:
    """Scores by tanh of every pair's sum (Bahdanau)."""
    query, value, key, masks = _taken_apart(operation.masks, inputs)
    terms = np.tanh(query[:, :, np.newaxis] + key[:, np.newaxis])
    if "scale" in weights:
        terms = weights["scale"] * terms
    return _attended(operation, terms.sum(axis=-1), value, masks)


def _taken_apart(
    names: tuple[str, ...], inputs: Sequence[Array]
) -> tuple[Array, Array, Array, Mapping[str, Array]]:
    """Query, value, key (the value where it is not given), and the masks that follow them by name."""
    count = len(inputs) - len(names)
    if count not in (2, 3):
        raise ValueError(f"attention takes query, value and perhaps key, not {count} inputs")
    query, value = inputs[0], inputs[1]
    masks = {name: mask.astype(bool) for name, mask in zip(names, inputs[count:], strict=True)}
    for name, mask in masks.items():
        rows, columns = query.shape[:2], value.shape[:2]
        expected = {"query": rows, "value": columns, "key": columns, "attention": (*rows, columns[1])}[name]
        if mask.shape != expected:
            raise ValueError(f"the {name} mask has shape {mask.shape}, expected {expected}")
    return query, value, inputs[count - 1], masks


def _attended(
    operation: Attention | AdditiveAttention, scores: Array, value: Array, masks: Mapping[str, Array]
) -> tuple[Array, ...]:
    in_scores = {name: mask for name, mask in masks.items() if name != "query"}
    shares = _softmax(scores, _allowed(in_scores, scores.shape, causal=operation.causal))
    mixed = shares @ value
    if "query" in masks:
        mixed = np.where(masks["query"][:, :, np.newaxis], mixed, mixed.dtype.type(0))
    return (mixed, shares) if operation.return_scores else (mixed,)


def _allowed(masks: Mapping[str, Array], shape: tuple[int, ...], *, causal: bool) -> Array | None:
    """Which scores count, broadcastable to (batch, query steps, value steps)."""
    found: list[Array] = []
    for name, mask in masks.items():
        if name == "attention":
            found.append(mask)
        else:
            found.append(mask[:, :, np.newaxis] if name == "query" else mask[:, np.newaxis, :])
    if causal:
        found.append(np.tri(shape[-2], shape[-1], dtype=bool)[np.newaxis])
    if not found:
        return None
    total: Array = found[0]
    for mask in found[1:]:
        total = np.logical_and(total, mask)
    return total


def _softmax(scores: Array, allowed: Array | None) -> Array:
    """Over the last axis, of the scores that count; uniform where none does."""
    if allowed is not None:
        # As far down as float32 can be taken for minus infinity, yet the same for all.
        scores = np.where(allowed, scores, scores.dtype.type(-65504 if scores.dtype == np.float16 else -1e9))
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Array = raised / raised.sum(axis=-1, keepdims=True)
    return result


def multi_head_attention(
    operation: MultiHeadAttention, weights: Weights, inputs: Sequence[Array]
) -> tuple[Array, ...]:
    """Projections to heads, attention in every head, and the projection of all heads together."""
    query, value, key, masks = _taken_apart(operation.masks, inputs)

    def heads(x: Array, part: str) -> Array:
        """(batch, steps, features) to (batch, head, steps, size)."""
        projected = np.einsum("btf,hsf->bhts", x, weights[f"{part}_kernel"], optimize=True)
        bias = weights.get(f"{part}_bias")
        split: Array = projected if bias is None else projected + bias[:, np.newaxis]
        return split

    q = heads(query, "query")
    scores = (q / q.dtype.type(np.sqrt(q.shape[-1]))) @ heads(key, "key").swapaxes(2, 3)
    allowed = _allowed(masks, scores.shape, causal=operation.causal)
    if allowed is not None:
        allowed = allowed[:, np.newaxis]
    shares = _softmax(scores, allowed)
    if allowed is not None and operation.masked_row is MaskedRow.ZERO:
        shares = np.where(allowed, shares, shares.dtype.type(0))
    mixed = shares @ heads(value, "value")
    result = np.einsum("bhtv,ohv->bto", mixed, weights["output_kernel"], optimize=True)
    if "output_bias" in weights:
        result = result + weights["output_bias"]
    return (result, shares) if operation.return_scores else (result,)


def dot(operation: Dot, inputs: Sequence[Array]) -> Array:
    """Contraction of one axis of each, batch by batch; the result has at least two axes."""
    left, right = inputs
    a, b = operation.axes[0] % left.ndim, operation.axes[1] % right.ndim
    if a == 0 or b == 0:
        raise ValueError("the batch axis cannot be contracted")
    if operation.normalize:
        left, right = _unit(left, a), _unit(right, b)
    letters = "abcdefghijklmnopqrstuvwxy"
    first = "z" + letters[: left.ndim - 1]
    second = "z" + letters[left.ndim - 1 : left.ndim + right.ndim - 2]
    second = second[:b] + first[a] + second[b + 1 :]
    kept = first.replace(first[a], "") + second[1:].replace(first[a], "")
    result: Array = np.einsum(f"{first},{second}->{kept}", left, right, optimize=True)
    return result if result.ndim > 1 else result[:, np.newaxis]


def _unit(x: Array, axis: int) -> Array:
    norm: Any = np.sqrt((x * x).sum(axis=axis, keepdims=True))
    unit: Array = x / np.maximum(norm, x.dtype.type(_NORM_FLOOR))
    return unit
