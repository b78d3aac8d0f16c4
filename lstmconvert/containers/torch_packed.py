"""Modules that torch quantised dynamically: packed weights, under the names that the float module has.

Such a module keeps the two matrices of a layer and direction in one object, ``_all_weight_values.N.param``,
and a linear layer its matrix and bias in another; N counts directions within layers. Dequantising is left to
whoever reads the tensors. How a linear layer rounds its outputs (``scale``, ``zero_point``) is left out.

Source: ``torch.ao.nn.quantized.dynamic`` and the serialisation of ``CellParamsBase`` and
``LinearPackedParamsBase`` of torch 1.13 to 2.13, int8 and float16.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from lstmconvert.containers.pickle_objects import Unknown
from lstmconvert.containers.torch_pickle import Tensor
from lstmconvert.errors import BadFile, UnsupportedSource

_LAYER = re.compile(r"(?P<prefix>(?:.*\.)?)_all_weight_values\.(?P<number>\d{1,6})\.param")
_CELL = re.compile(r"(?P<prefix>(?:.*\.)?)_packed_weight_(?P<of>ih|hh)")
_LINEAR = re.compile(r"(?P<prefix>(?:.*\.)?)_packed_params\._packed_params")
_RECURRENT, _MATRIX = "torch.classes.rnn.CellParamsBase", "torch.classes.quantized.LinearPackedParamsBase"
_DEEPEST = 4

_Pair = tuple[Tensor, Tensor | None]
"""A matrix (gate hidden, input or hidden) and its bias."""


def unpack_dictionaries(checkpoint: object) -> None:
    """Replace what is packed in a checkpoint's dictionaries, and in those within them, by its tensors.

    Raises:
        BadFile: when packed weights are not as torch packs them.
        UnsupportedSource: when the number of directions cannot be told.
    """
    seen: set[int] = set()
    pending = [(checkpoint, _DEEPEST)]
    while pending:
        value, depth = pending.pop()
        if not isinstance(value, dict) or id(value) in seen or depth == 0:
            continue
        seen.add(id(value))
        if any(isinstance(name, str) and _is_packed(name, inner) for name, inner in value.items()):
            entries = unpacked({str(name): inner for name, inner in value.items()})
            value.clear()
            value.update(entries)
        pending.extend((inner, depth - 1) for inner in value.values())


def unpacked(
    values: Mapping[str, object], is_bidirectional: Callable[[str], bool | None] | None = None
) -> dict[str, object]:
    """Named values with packed ones replaced by the tensors in them.

    Args:
        values: tensors and packed objects by name.
        is_bidirectional: whether the module of a prefix (with its dot) has two directions, ``None`` where
            that is not said; the shapes have to tell then.

    Returns:
        Values in the same order; ``weight_ih_l0`` and the like where a module's first object was.

    Raises:
        BadFile: when packed weights are not as torch packs them.
        UnsupportedSource: when the number of directions cannot be told.
    """
    modules: dict[str, dict[int, tuple[_Pair, _Pair]]] = {}
    for name, value in values.items():
        if _is_packed(name, value) and (match := _LAYER.fullmatch(name)):
            modules.setdefault(match["prefix"], {})[int(match["number"])] = _recurrent(value, name)
    result: dict[str, object] = {}
    about = {
        f"{match['prefix']}{word}"
        for name, value in values.items()
        if _is_packed(name, value) and (match := _LINEAR.fullmatch(name))
        for word in ("scale", "zero_point", "_packed_params.dtype")
    }
    for name, value in values.items():
        if name in about:
            continue
        if not _is_packed(name, value):
            result[name] = value
        elif match := _LAYER.fullmatch(name):
            prefix = match["prefix"]
            said = is_bidirectional(prefix) if is_bidirectional is not None else None
            result |= _module(prefix, modules.pop(prefix, {}), said)
        elif match := _CELL.fullmatch(name):
            result |= _named(_matrix(value, name), f"{match['prefix']}weight_{match['of']}")
        elif match := _LINEAR.fullmatch(name):
            result |= _named(_matrix(value, name), f"{match['prefix']}weight")
    return result


def _module(prefix: str, layers: Mapping[int, tuple[_Pair, _Pair]], said: bool | None) -> dict[str, object]:
    """The tensors of a recurrent module; none when there are no layers left to name."""
    named: dict[str, object] = {}
    directions = 2 if layers and _is_bidirectional(prefix, layers, said) else 1
    for number, (kernel, recurrent) in sorted(layers.items()):
        layer, backward = divmod(number, directions)
        suffix = f"_l{layer}{'_reverse' if backward else ''}"
        named |= _named(kernel, f"{prefix}weight_ih{suffix}")
        named |= _named(recurrent, f"{prefix}weight_hh{suffix}")
    return named


def is_packed_object(value: object) -> bool:
    """Whether an object of a pickle is packed weights."""
    return _content(value, _RECURRENT) is not None or _content(value, _MATRIX) is not None


def _is_packed(name: str, value: object) -> bool:
    if _LINEAR.fullmatch(name):
        return isinstance(value, tuple) or is_packed_object(value)
    return is_packed_object(value) and bool(_LAYER.fullmatch(name) or _CELL.fullmatch(name))


def _content(value: object, kind: str) -> object:
    """The state of an object of a class of torch, ``None`` of any other."""
    if not isinstance(value, Unknown):
        return None
    if value.name == f"__torch__.{kind}":
        return value.state
    if value.name == "torch.ScriptObject" and isinstance(value.state, tuple) and len(value.state) == 2:
        state, name = value.state
        return state if name == f"__torch__.{kind}" else None
    return None


def _recurrent(value: object, place: str) -> tuple[_Pair, _Pair]:
    """The kernel and the recurrent kernel of a layer and direction."""
    content = _content(value, _RECURRENT)
    matrices = content[4] if isinstance(content, tuple) and len(content) == 5 else None
    if not isinstance(matrices, list) or len(matrices) != 2:
        raise BadFile("packed weights are not two matrices", place=place[:200])
    return _matrix(matrices[0], place), _matrix(matrices[1], place)


def _matrix(value: object, place: str) -> _Pair:
    content = value if isinstance(value, tuple) else _content(value, _MATRIX)
    if isinstance(content, tuple) and len(content) == 2:
        matrix, bias = content
        if isinstance(matrix, Tensor) and len(matrix.shape) == 2 and isinstance(bias, Tensor | None):
            return matrix, bias
    raise BadFile("packed weights are not a matrix and its bias", place=place[:200])


def _named(pair: _Pair, name: str) -> dict[str, object]:
    matrix, bias = pair
    named: dict[str, object] = {name: matrix}
    if bias is not None:
        head, dot, last = name.rpartition(".")
        named[f"{head}{dot}{last.replace('weight', 'bias')}"] = bias
    return named


def _is_bidirectional(prefix: str, layers: Mapping[int, tuple[_Pair, _Pair]], said: bool | None) -> bool:
    """Whether every second object is of the backward direction, which sizes tell where nothing else does."""
    place = f"{prefix}_all_weight_values"
    if sorted(layers) != list(range(len(layers))):
        raise BadFile("packed layers of a stack are missing", place=place[:200], found=sorted(layers)[:20])
    inputs = [kernel[0].shape[1] for kernel, _ in (layers[n] for n in range(len(layers)))]
    hidden = layers[0][1][0].shape[1]
    one = inputs[1:] == [hidden] * (len(inputs) - 1)
    two = len(inputs) % 2 == 0 and inputs == [inputs[0]] * 2 + [2 * hidden] * (len(inputs) - 2)
    possible = [way for way, fits in ((False, one), (True, two)) if fits and said in (None, way)]
    if not possible:
        raise BadFile(
            "the inputs of the packed layers do not follow from one another",
            place=place[:200],
            found=f"{inputs[:20]} inputs, {hidden} hidden units",
        )
    if len(possible) > 1:
        raise UnsupportedSource(
            "the module is quantised, and its sizes fit two layers as well as two directions",
            place=place[:200],
            remedy="Save the state_dict of the module before quantisation, or the module as TorchScript.",
        )
    return possible[0]
