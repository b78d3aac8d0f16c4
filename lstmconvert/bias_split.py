"""A remembered split: two biases that were summed for a target with one come back bit for bit.

The same for constants that a cell adds at run time and that went into its biases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.canonical import BlockKey, RecurrentDirection, RecurrentLayer
from lstmconvert.gates import Gate, Part
from lstmconvert.tensors import Array, Lazy, same_bits

NOTE = "bias_split"
"""Note of a layer whose two biases were summed: what they were, and a digest of the sum."""

CONSTANT_NOTE = "moved_constant"
"""Note of a layer whose constants went into its biases: what they were, and digests of the new biases."""


FILLED_NOTE = "filled_biases"
"""Note of a layer with biases that are zeros only because its file's framework always has them."""


def is_zero(block: Lazy | None) -> bool:
    """Whether a block is there and zero throughout (of either sign)."""
    return block is not None and not np.any(block.read())


def total_of(a: Array, b: Array) -> Array:
    """a + b, with the other's bits untouched where one is zero throughout."""
    if not np.any(a):
        return b
    return a if not np.any(b) else np.asarray(a + b, a.dtype)


def _digest(array: Array) -> str:
    import hashlib  # only when there is a split to remember: its start-up is felt

    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:32]


def _text_of(data: bytes) -> str:
    import base64  # only where something is remembered, as above

    return base64.b64encode(data).decode()


def _bytes_of(text: str) -> bytes:
    import base64

    return base64.b64decode(text, validate=True)


def remember(a: Array, b: Array, total: Array) -> str:
    """The note of one gate: its biases (hidden,) and the digest of their sum."""
    both = np.concatenate([a, b]).tobytes()
    return f"{_digest(total)}:{_text_of(both)}"


def restore(layer: RecurrentLayer) -> RecurrentLayer:
    """Undo ``sum_biases`` where the layer's note still belongs to its numbers.

    After further training the sum has other bits than the note's digest, and the note is let go.
    """
    note = layer.notes.get(NOTE)
    if note is None:
        return layer
    notes = MappingProxyType({key: text for key, text in layer.notes.items() if key != NOTE})
    layer = replace(layer, notes=notes)
    try:
        split = json.loads(note)
        return layer.mapped(lambda direction: _restored(direction, split.get(direction.direction, {})))
    except (ValueError, AttributeError, TypeError):
        return layer  # a note that was tampered with is no note


def restore_filled(layer: RecurrentLayer) -> RecurrentLayer:
    """Undo ``fill_zero_biases``: biases that are still zeros are taken away again."""
    note = layer.notes.get(FILLED_NOTE)
    if note is None:
        return layer
    notes = MappingProxyType({key: text for key, text in layer.notes.items() if key != FILLED_NOTE})
    layer = replace(layer, notes=notes)
    try:
        filled = {way: set(keys) for way, keys in json.loads(note).items()}
    except (ValueError, AttributeError, TypeError):
        return layer  # a note that was tampered with is no note

    def emptied(direction: RecurrentDirection) -> RecurrentDirection:
        named = filled.get(direction.direction, set())

        def keep(key: BlockKey, block: Lazy) -> Lazy | None:
            is_bias = key[0] in (Part.BIAS_INPUT, Part.BIAS_RECURRENT)
            return None if is_bias and f"{key[0]}.{key[1]}" in named and is_zero(block) else block

        return replace(direction, weights=direction.weights.mapped(keep))

    return layer.mapped(emptied)


def _restored(direction: RecurrentDirection, split: Mapping[str, str]) -> RecurrentDirection:
    blocks: dict[BlockKey, Lazy] = {}
    size, dtype = direction.weights.hidden_size, direction.weights.dtype
    for gate_name, text in split.items():
        gate = Gate(gate_name)
        digest, _, data = text.partition(":")
        total = direction.weights.get((Part.BIAS_INPUT, gate))
        raw = _bytes_of(data)
        if total is None or (
            (Part.BIAS_RECURRENT, gate) in direction.weights
            and not is_zero(direction.weights[Part.BIAS_RECURRENT, gate])
        ):
            continue
        if len(raw) != 2 * size * dtype.itemsize or _digest(total.read()) != digest:
            continue
        both = np.frombuffer(raw, dtype)
        a, b = both[:size], both[size:]
        if same_bits(total_of(a, b), total.read()):
            blocks[Part.BIAS_INPUT, gate] = Lazy.of(a)
            blocks[Part.BIAS_RECURRENT, gate] = Lazy.of(b)
    return replace(direction, weights=direction.weights.with_blocks(blocks))


def remember_constant(before: Array | None, after: Array) -> str:
    """The note of one gate: its input bias (hidden,) before, if it had one, and a digest of the new one."""
    return f"{_digest(after)}:{'' if before is None else _text_of(before.tobytes())}"


def restore_constants(layer: RecurrentLayer) -> RecurrentLayer:
    """Undo ``move_constant_into_bias`` where the layer's note still belongs to its numbers."""
    note = layer.notes.get(CONSTANT_NOTE)
    if note is None:
        return layer
    notes = MappingProxyType({key: text for key, text in layer.notes.items() if key != CONSTANT_NOTE})
    layer = replace(layer, notes=notes)
    try:
        said = json.loads(note)
        return layer.mapped(lambda direction: _with_constants(direction, said[direction.direction]))
    except (ValueError, AttributeError, TypeError, KeyError):
        return layer  # a note that was tampered with is no note


def _with_constants(
    direction: RecurrentDirection, said: Mapping[str, Mapping[str, Any]]
) -> RecurrentDirection:
    """Raises KeyError when the numbers are not those of the note any more."""
    constant = {Gate(gate): float(value) for gate, value in said["constant"].items()}
    target = {Gate(gate): float(value) for gate, value in said["target"].items()}
    if dict(direction.equations.constant) != target:
        raise KeyError("constant")
    blocks: dict[BlockKey, Lazy | None] = {}
    size, dtype = direction.weights.hidden_size, direction.weights.dtype
    for gate_name, text in said["biases"].items():
        key = (Part.BIAS_INPUT, Gate(gate_name))
        digest, _, data = text.partition(":")
        after = direction.weights[key].read()
        if _digest(after) != digest:
            raise KeyError(gate_name)
        before = np.frombuffer(_bytes_of(data), dtype) if data else None
        difference = dtype.type(constant.get(key[1], 0.0) - target.get(key[1], 0.0))
        again = (np.zeros(size, dtype) if before is None else before) + difference
        if not same_bits(again, after):
            raise KeyError(gate_name)
        blocks[key] = None if before is None else Lazy.of(before)
    weights = direction.weights.mapped(lambda key, block: blocks.get(key, block))
    equations: Any = replace(direction.equations, constant=MappingProxyType(constant))
    return replace(direction, equations=equations, weights=weights)
