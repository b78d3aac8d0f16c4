"""Keras 3's arithmetic on masks, which it writes into functional models as operators, read back as masks."""

from __future__ import annotations

from typing import TypeAlias

from lstmconvert.errors import UnsupportedSource
from lstmconvert.frameworks.keras.graph import Graph, Symbol, Value
from lstmconvert.frameworks.keras.masks import Given, Joined, Mask, all_of, any_of
from lstmconvert.model import OperationLayer
from lstmconvert.operations import Masking, ValidSteps
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True)
class _Differs:
    """x != number, element by element."""

    value: str
    number: float


@dataclass(frozen=True, slots=True)
class _Spread:
    """A mask repeated along the features; ``None`` is true everywhere."""

    mask: Mask | None


@dataclass(frozen=True, slots=True)
class _Beside:
    """Spread masks joined along an axis."""

    spread: tuple[_Spread, ...]
    axis: int


_Meaning: TypeAlias = Mask | _Differs | _Spread | _Beside


def mask_of(graph: Graph, symbol: Symbol, place: str) -> Mask | None:
    """The mask that a symbol stands for; ``None`` where it is true everywhere.

    Raises:
        UnsupportedSource: when it is not one that Keras makes of the masks of its layers.
    """
    meaning = _meaning(graph, symbol, place)
    if isinstance(meaning, _Differs):
        made = graph.mask_origins.get(("zero", meaning.value, meaning.number))
        if made is not None:
            return made
        raise _refusal(symbol, place)
    if isinstance(meaning, _Spread) and meaning.mask is None:
        return None
    if isinstance(meaning, (_Spread, _Beside)):
        raise _refusal(symbol, place)
    return meaning


def _refusal(symbol: Symbol, place: str) -> UnsupportedSource:
    return UnsupportedSource(
        f"the mask is computed by the operator {symbol.operator!r} in a way that is not supported",
        place=place,
        expected="the masks of Embedding and Masking layers, and an input of the model",
    )


def _meaning(graph: Graph, item: object, place: str) -> _Meaning:
    if isinstance(item, Value):
        return Given(item.name)
    if not isinstance(item, Symbol):
        raise UnsupportedSource("a mask is computed from a constant", place=place, found=repr(item))
    arguments = item.arguments
    match item.operator:
        case "NotEqual":
            value, number = arguments
            if isinstance(value, Value) and isinstance(number, (int, float)):
                return _Differs(value.name, float(number))
        case "LessEqual" if len(arguments) == 2:
            made = _of_lengths(graph, *arguments)
            if made is not None:
                return made
        case "ConvertToTensor":
            return _meaning(graph, arguments[0], place)
        case "ExpandDims" if item.axis in (-1, 2):
            inner = _meaning(graph, arguments[0], place)
            return _Spread(_as_mask(graph, inner, item, place))
        case "OnesLike":
            return _Spread(None)
        case "ZerosLike":
            return _Spread(Given(""))  # false everywhere; only seen as the other half of LogicalOr below
        case "LogicalAnd":
            masks = [_as_mask(graph, _meaning(graph, a, place), item, place) for a in arguments]
            return all_of(masks)
        case "LogicalOr":
            return _either(graph, [_meaning(graph, a, place) for a in arguments], item, place)
        case "Concatenate":
            (items,) = arguments
            assert isinstance(items, tuple)
            spread = [_meaning(graph, part, place) for part in items]
            if all(isinstance(part, _Spread) for part in spread):
                return _Beside(tuple(s for s in spread if isinstance(s, _Spread)), item.axis or 0)
            if item.axis == 1:
                return Joined(tuple(_as_mask(graph, part, item, place) for part in spread))
        case "Any" if item.axis in (-1, 2):
            return _any(graph, _meaning(graph, arguments[0], place), item, place)
        case _:
            pass
    raise _refusal(item, place)


def _as_mask(graph: Graph, meaning: _Meaning, symbol: Symbol, place: str) -> Mask:
    if isinstance(meaning, _Differs):
        made = graph.mask_origins.get(("zero", meaning.value, meaning.number))
        if made is None:
            raise _refusal(symbol, place)
        return made
    if isinstance(meaning, (_Spread, _Beside)):
        raise _refusal(symbol, place)
    return meaning


def _either(graph: Graph, meanings: list[_Meaning], symbol: Symbol, place: str) -> _Meaning:
    spread = [m for m in meanings if isinstance(m, _Spread)]
    if spread:
        real = [m for m in spread if m.mask != Given("")]
        if len(spread) == len(meanings) == 2 and len(real) == 1:
            return real[0]
        raise _refusal(symbol, place)
    return any_of([_as_mask(graph, m, symbol, place) for m in meanings])


def _any(graph: Graph, meaning: _Meaning, symbol: Symbol, place: str) -> _Meaning:
    if isinstance(meaning, _Differs):
        made = graph.mask_origins.get(("steps", meaning.value, meaning.number))
        return made if made is not None else _made_by_masking(graph, meaning)
    if isinstance(meaning, _Beside):
        masks = [part.mask for part in meaning.spread]
        given = [mask for mask in masks if mask is not None]
        if meaning.axis in (-1, 2):
            return any_of(given) if len(given) == len(masks) else _Spread(None)
        if meaning.axis == 1 and len(given) == len(masks):
            return Joined(tuple(given))
    raise _refusal(symbol, place)


def _made_by_masking(graph: Graph, meaning: _Differs) -> Mask:
    """The mask of steps that differ somewhere from a number, computed as a Masking layer does."""
    name = graph.add_helper("masking", Masking(meaning.number))
    _, mask = graph.call(name, [meaning.value], [f"{name}.unused", f"{name}.mask"])
    made = Given(mask)
    graph.mask_origins["steps", meaning.value, meaning.number] = made
    return made


def _of_lengths(graph: Graph, numbers: object, column: object) -> Mask | None:
    """The mask of steps whose number, from one, is not above a length, as ``plan`` writes it."""
    match numbers, column:
        case Symbol("Cumsum", (Symbol() as ones,), 1), Symbol("ExpandDims", (Value() as lengths,), 1 | -1):
            pass
        case _:
            return None
    while ones.operator == "Max" and ones.axis == -1 and isinstance(ones.arguments[0], Symbol):
        ones = ones.arguments[0]
    x = ones.arguments[0]
    if ones.operator != "OnesLike" or not isinstance(x, Value):
        return None
    inputs = (lengths.name, x.name)
    for call in graph.calls:
        layer = graph.layers[call.layer]
        if call.inputs == inputs and isinstance(layer, OperationLayer) and layer.operation == ValidSteps():
            return Given(call.outputs[0])
    return Given(graph.apply("valid_steps", ValidSteps(), inputs))
