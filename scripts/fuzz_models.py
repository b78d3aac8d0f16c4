"""Whole models for ``scripts/fuzz`` to begin with, built layer by layer: what one LSTM does not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lstmconvert.canonical import (
    Equations,
    GruEquations,
    LstmEquations,
    MaskedOutput,
    RecurrentDirection,
    RecurrentLayer,
    ResetPlace,
    Returns,
    SequenceBehaviour,
    Weights,
)
from lstmconvert.gates import GATES, Cell, Direction, Gate, Part
from lstmconvert.model import Call, Layer, Model, OperationLayer, Port
from lstmconvert.operations import (
    AdditiveAttention,
    Combine,
    Concatenate,
    Convolution1D,
    Crop,
    Dense,
    Embedding,
    GlobalPooling,
    GroupNormalization,
    LayerNormalization,
    Masking,
    MultiHeadAttention,
    Operation,
    Pool,
    Pooling,
    Repeat,
    Reshape,
    Select,
    Transpose,
    UpSample,
    ValidSteps,
    ZeroPad,
)
from lstmconvert.tensors import Lazy

EXPORTED = Path(__file__).resolve().parent.parent / "tests" / "data" / "exported"
"""Files of other exporters."""


def models() -> dict[str, Model]:
    """Models of which each has what the others lack: masks, lengths, attention, a projection, neighbours."""
    return {
        "masked": _masked(),
        "lengths": _lengths(),
        "attention": _attention(),
        "projected": _projected(),
        "neighbours": _neighbours(),
    }


def _masked() -> Model:
    """A mask and states that go from layer to layer, both directions, and a token table."""
    rng = np.random.default_rng(1)
    layers: dict[str, Layer] = {
        "masking": OperationLayer("masking", Masking(0.0)),
        "first": _recurrent(rng, "first", Cell.LSTM, 2, 3, return_state=True),
        "second": _recurrent(rng, "second", Cell.LSTM, 3, 3),
        "third": _recurrent(rng, "third", Cell.GRU, 3, 2, both=True, returns=Returns.LAST),
        "words": _with(rng, "words", Embedding(mask_zero=True), embeddings=(6, 4)),
        "fourth": _recurrent(rng, "fourth", Cell.GRU, 4, 2, returns=Returns.LAST),
        "sum": OperationLayer("sum", Combine()),
        "head": _with(rng, "head", Dense(), kernel=(2, 4), bias=(2,)),
        "tail": _with(rng, "tail", Dense(), kernel=(2, 2), bias=(2,)),
    }
    calls = (
        Call("masking", ("x",), ("masked", "mask")),
        Call("first", ("masked",), ("a", "h", "c"), mask="mask"),
        Call("second", ("a",), ("b",), mask="mask", initial_state=("h", "c")),
        Call("third", ("b",), ("d",), mask="mask"),
        Call("words", ("tokens",), ("e", "known")),
        Call("fourth", ("e",), ("f",), mask="known"),
        Call("head", ("d",), ("g",)),
        Call("sum", ("g", "f"), ("s",)),
        Call("tail", ("s",), ("y",)),
    )
    inputs = (Port("x", "x", (None, None, 2)), Port("tokens", "tokens", (None, None), "int32"))
    return Model(layers, calls, inputs, (Port("y", "y", (None, 2)),))


def _lengths() -> Model:
    """Lengths that are an input."""
    rng = np.random.default_rng(2)
    layers: dict[str, Layer] = {
        "steps": OperationLayer("steps", ValidSteps()),
        "rnn": _recurrent(rng, "rnn", Cell.LSTM, 2, 3, both=True, return_state=True),
    }
    calls = (
        Call("steps", ("lengths", "x"), ("mask",)),
        Call("rnn", ("x",), ("y", "h", "c", "back_h", "back_c"), mask="mask"),
    )
    inputs = (Port("x", "x", (None, None, 2)), Port("lengths", "lengths", (None,), "int32"))
    return Model(layers, calls, inputs, (Port("y", "y", (None, None, 6)), Port("h", "h", (None, 3))))


def _attention() -> Model:
    """Attention of two kinds, a layer normalisation and a mean over the steps."""
    rng = np.random.default_rng(3)
    heads = {
        "query_kernel": (2, 2, 4), "query_bias": (2, 2), "key_kernel": (2, 2, 4), "key_bias": (2, 2),
        "value_kernel": (2, 2, 4), "value_bias": (2, 2), "output_kernel": (4, 2, 2), "output_bias": (4,),
    }  # fmt: skip
    layers: dict[str, Layer] = {
        "lstm": _recurrent(rng, "lstm", Cell.LSTM, 3, 4),
        "heads": _with(rng, "heads", MultiHeadAttention(), **heads),
        "add": OperationLayer("add", Combine()),
        "norm": _with(rng, "norm", LayerNormalization(), scale=(4,), offset=(4,)),
        "additive": _with(rng, "additive", AdditiveAttention(), scale=(4,)),
        "mean": OperationLayer("mean", GlobalPooling(Pool.AVERAGE)),
        "head": _with(rng, "head", Dense(), kernel=(2, 4), bias=(2,)),
    }
    calls = (
        Call("lstm", ("x",), ("a",)),
        Call("heads", ("a", "a"), ("b",)),
        Call("add", ("a", "b"), ("c",)),
        Call("norm", ("c",), ("d",)),
        Call("additive", ("d", "a"), ("e",)),
        Call("mean", ("e",), ("f",)),
        Call("head", ("f",), ("y",)),
    )
    return Model(layers, calls, (Port("x", "x", (None, None, 3)),), (Port("y", "y", (None, 2)),))


def _projected() -> Model:
    """A projection, which some targets fold."""
    rng = np.random.default_rng(4)
    layer = _recurrent(rng, "lstm", Cell.LSTM, 2, 4, projected=3)
    ports = (Port("x", "x", (None, None, 2)),), (Port("y", "y", (None, None, 3)),)
    return Model({"lstm": layer}, (Call("lstm", ("x",), ("y",)),), *ports)


def _neighbours() -> Model:
    """Layers whose options are whole numbers: windows, groups, axes, shapes."""
    rng = np.random.default_rng(5)
    layers: dict[str, Layer] = {
        "pad": OperationLayer("pad", ZeroPad(((1, 1),))),
        "conv": _with(rng, "conv", Convolution1D(stride=2), kernel=(4, 3, 3), bias=(4,)),
        "pool": OperationLayer("pool", Pooling(Pool.MAX, (2,), (1,))),
        "up": OperationLayer("up", UpSample((2,))),
        "crop": OperationLayer("crop", Crop(((1, 0),))),
        "groups": _with(rng, "groups", GroupNormalization(2), scale=(4,), offset=(4,)),
        "lstm": _recurrent(rng, "lstm", Cell.LSTM, 4, 3),
        "gru": _recurrent(rng, "gru", Cell.GRU, 4, 2),
        "beside": OperationLayer("beside", Concatenate(-1)),
        "turned": OperationLayer("turned", Transpose((0, 2, 1))),
        "last": OperationLayer("last", Select(1, -1)),
        "again": OperationLayer("again", Repeat(2)),
        "shaped": OperationLayer("shaped", Reshape((-1,))),
        "head": _with(rng, "head", Dense(), kernel=(2, 18), bias=(2,)),
    }
    before, behind = ("pad", "conv", "pool", "up", "crop", "groups"), ("turned", "last", "again", "shaped")
    chain = [Call(name, (f"v{n}",), (f"v{n + 1}",)) for n, name in enumerate(before)]
    chain += [
        Call("lstm", ("v6",), ("a",)),
        Call("gru", ("v6",), ("b",)),
        Call("beside", ("a", "b"), ("w0",)),
    ]
    chain += [Call(name, (f"w{n}",), (f"w{n + 1}",)) for n, name in enumerate(behind)]
    calls = (*chain, Call("head", ("w4",), ("y",)))
    return Model(layers, calls, (Port("x", "v0", (None, 11, 3)),), (Port("y", "y", (None, 2)),))


def _with(rng: np.random.Generator, name: str, operation: Operation, **shapes: tuple[int, ...]) -> Layer:
    return OperationLayer(name, operation, {part: _random(rng, shape) for part, shape in shapes.items()})


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> Lazy:
    return Lazy.of(rng.uniform(0.1, 1.0, shape).astype(np.float32))


def _recurrent(
    rng: np.random.Generator,
    name: str,
    cell: Cell,
    inputs: int,
    hidden: int,
    *,
    both: bool = False,
    projected: int | None = None,
    returns: Returns = Returns.SEQUENCE,
    return_state: bool = False,
) -> RecurrentLayer:
    equations: Equations = LstmEquations() if cell is Cell.LSTM else GruEquations(ResetPlace.AFTER_PRODUCT)
    shapes = {
        Part.KERNEL: (hidden, inputs), Part.RECURRENT: (hidden, projected or hidden),
        Part.BIAS_INPUT: (hidden,), **({} if cell is Cell.LSTM else {Part.BIAS_RECURRENT: (hidden,)}),
    }  # fmt: skip

    def direction(which: Direction) -> RecurrentDirection:
        blocks: dict[tuple[Part, Gate | None], Lazy] = {
            (part, gate): _random(rng, shape) for part, shape in shapes.items() for gate in GATES[cell]
        }
        if projected is not None:
            blocks[Part.PROJECTION, None] = _random(rng, (projected, hidden))
        return RecurrentDirection(which, equations, Weights(cell, blocks))

    ways = (Direction.FORWARD, Direction.REVERSE) if both else (Direction.FORWARD,)
    sequence = SequenceBehaviour(
        returns=returns,
        return_state=return_state,
        masked_output=MaskedOutput.HOLD if returns is Returns.LAST else MaskedOutput.ZERO,
    )
    return RecurrentLayer(name, tuple(direction(way) for way in ways), sequence)
