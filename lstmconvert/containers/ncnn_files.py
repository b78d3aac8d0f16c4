"""ncnn's two files: the graph as text in ``.param``, the weights one after the other in a ``.bin`` beside it.

The ``.bin`` does not say what lies where: that follows from the parameters of the layers before. Tensors are
``NAME/MEMBER``, after the layer and its member (``weight_xc``, ``bias_c``, ...). ``graph`` in the metadata
is the list of layers, each a dictionary with ``type``, ``name``, ``inputs``, ``outputs`` (names of blobs) and
``params`` (number to text); ``unread`` says why the weights of later layers could not be placed, or is empty.

Source: ncnn's wiki pages "param and model file structure" and "operators", its source for how weights of 8
bits are stored, and files that release 20261020 ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges
from lstmconvert.errors import BadFile, NotRepresentable
from lstmconvert.pieces import pieces
from lstmconvert.tensors import Array, Lazy

NAME = "ncnn_files"
SUFFIXES = (".param",)

_MAGIC = b"7767517"
_LARGEST_TEXT = 1 << 26
_LARGEST = 1 << 40
_HALF, _INTEGERS, _WIDE = 0x01306B47, 0x000D4B38, 0x0002C056

Params = Mapping[int, str]
Member = tuple[str, tuple[int, ...], bool]
"""A member's name and shape, and whether a word that says how it is stored stands before it."""


def probe(path: Path) -> bool:
    """Whether the file begins with the magic number of text parameters, on a line of its own."""
    try:
        with path.open("rb") as file:
            return file.read(16).split()[:1] == [_MAGIC]
    except OSError:
        return False


def read(path: Path) -> Archive:
    """The layers and their weights; see the module.

    Raises:
        BadFile: when the text is damaged, or the weights do not lie in the ``.bin`` file.
    """
    path = Path(path)
    try:
        graph = list(_layers(path))
        tensors, unread = _weights(graph, path.with_suffix(".bin"))
    except BadFile as error:
        raise error.located(file=path) from error.__cause__
    return Archive(MappingProxyType(tensors), MappingProxyType({"graph": graph, "unread": unread}))


def _layers(path: Path) -> Iterator[dict[str, Any]]:
    size = byte_ranges.file_size(path)
    if size > _LARGEST_TEXT:
        raise BadFile("the graph is larger than any graph", found=f"{size} bytes")
    try:
        lines = byte_ranges.read_range(path, 0, size).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadFile("the graph is not text", remedy="A binary .param.bin is not read.") from error
    counts = lines[1].split() if len(lines) > 1 else []
    if len(counts) != 2 or not all(_is_number(word) for word in counts):
        raise BadFile("the second line does not say how many layers there are", place="line 2")
    stated = int(counts[0])
    rows = [(number, line.split()) for number, line in enumerate(lines[2:], 3) if line.strip()]
    if len(rows) != stated:
        raise BadFile("another number of layers than stated", found=len(rows), expected=stated)
    names: set[str] = set()
    for number, words in rows:
        place = f"line {number}"
        if len(words) < 4 or not _is_number(words[2]) or not _is_number(words[3]):
            raise BadFile("a line is not that of a layer", place=place)
        inputs, outputs = int(words[2]), int(words[3])
        if len(words) < 4 + inputs + outputs:
            raise BadFile("a layer has fewer blobs than it says", place=place)
        if words[1] in names:
            raise BadFile("two layers have one name", place=place, found=words[1])
        names.add(words[1])
        yield {
            "type": words[0],
            "name": words[1],
            "inputs": tuple(words[4 : 4 + inputs]),
            "outputs": tuple(words[4 + inputs : 4 + inputs + outputs]),
            "params": dict(_parameter(word, place) for word in words[4 + inputs + outputs :]),
        }


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 10


def _parameter(word: str, place: str) -> tuple[int, str]:
    key, mark, value = word.partition("=")
    if not mark or not key.lstrip("-").isdigit() or not key.isascii():
        raise BadFile("a parameter is not NUMBER=VALUE", place=place, found=word[:40])
    return int(key), value


# Where the weights lie.


def _number(params: Params, key: int, default: int = 0) -> int:
    text = params.get(key, str(default))
    try:
        value = int(text)
    except ValueError as error:
        raise BadFile("a parameter is not a whole number", found=f"{key}={text[:40]}") from error
    if not 0 <= value <= _LARGEST:
        raise BadFile("a parameter is out of range", found=f"{key}={value}")
    return value


def _recurrent(gates: int, bias_rows: int) -> Callable[[Params], list[Member]]:
    def members(params: Params) -> list[Member]:
        width = _number(params, 0)
        hidden = _number(params, 3, width) if gates == 4 else width
        count = 2 if _number(params, 2) == 2 else 1
        size = _number(params, 1)
        rows = gates * hidden
        if not rows or size % (rows * count) or not size:
            raise BadFile("the size of the weights does not fit the layer", found=f"{size} for {rows} rows")
        found: list[Member] = [
            ("weight_xc", (count, rows, size // rows // count), True),
            ("bias_c", (count, bias_rows * hidden), True),
            ("weight_hc", (count, rows, width), True),
        ]
        if hidden != width:
            found.append(("weight_hr", (count, width, hidden), True))
        if _number(params, 8):
            found += [("weight_xc_scales", (count, rows), False), ("weight_hc_scales", (count, rows), False)]
        return found

    return members


def _matrix(size: int, bias: int, *, int8: int | None) -> Callable[[Params], list[Member]]:
    def members(params: Params) -> list[Member]:
        if int8 is not None and _number(params, int8):
            raise BadFile("weights of 8 bits are not placed")
        found: list[Member] = [("weight", (_number(params, size),), True)]
        if _number(params, bias):
            found.append(("bias", (_number(params, 0),), False))
        return found

    return members


def _plain(*names: str, when: int | None = None) -> Callable[[Params], list[Member]]:
    def members(params: Params) -> list[Member]:
        if when is not None and not _number(params, when, 1):
            return []
        return [(name, (_number(params, 0),), False) for name in names]

    return members


def _scale(params: Params) -> list[Member]:
    names = ("scale", "bias") if _number(params, 1) else ("scale",)
    return [(name, (_number(params, 0),), False) for name in names]


_MEMBERS: Mapping[str, Callable[[Params], list[Member]]] = MappingProxyType(
    {
        "LSTM": _recurrent(4, 4),
        "GRU": _recurrent(3, 4),
        "RNN": _recurrent(1, 1),
        "InnerProduct": _matrix(2, 1, int8=8),
        "Embed": _matrix(3, 2, int8=18),
        "Convolution": _matrix(6, 5, int8=8),
        "Convolution1D": _matrix(6, 5, int8=None),
        "BatchNorm": _plain("slope", "mean", "variance", "bias"),
        "LayerNorm": _plain("gamma", "beta", when=2),
        "PReLU": _plain("slope"),
        "Scale": _scale,
    }
)
_WITHOUT_WEIGHTS = frozenset(
    {
        *("Input", "Split", "Permute", "Reshape", "Squeeze", "ExpandDims", "Flatten", "Softmax", "Sigmoid"),
        *("TanH", "ReLU", "Dropout", "Concat", "Crop", "Slice", "BinaryOp", "UnaryOp", "Reduction", "Noop"),
        *("Padding", "Pooling", "Pooling1D", "Clip", "ELU", "GELU", "HardSigmoid", "HardSwish", "Swish",),
        *("Mish", "Eltwise", "MatMul", "Interp", "Packing", "Cast", "Flip"),
    }
)  # fmt: skip


def _weights(graph: list[dict[str, Any]], path: Path) -> tuple[dict[str, Lazy], str]:
    """The tensors in the order of the layers, up to a layer of which it is not known what it has."""
    tensors: dict[str, Lazy] = {}
    at = 0
    for layer in graph:
        kind, name = layer["type"], layer["name"]
        if kind in _WITHOUT_WEIGHTS:
            continue
        if kind not in _MEMBERS:
            return tensors, f"what {name!r} ({kind}) has in the .bin file is not known"
        if not path.is_file():
            raise BadFile(
                "the file with the weights is missing", place=path.name, remedy="Put it beside the .param."
            )
        try:
            for member, shape, flagged in _MEMBERS[kind](layer["params"]):
                tensors[f"{name}/{member}"], at = _tensor(path, at, shape, flagged=flagged, place=name)
        except BadFile as error:
            raise error.located(place=f"layer {name!r}") from error.__cause__
    if path.is_file() and (left := byte_ranges.file_size(path) - at):
        raise BadFile(
            "the .bin file is longer than the layers need", place=path.name, found=f"{left} bytes more"
        )
    return tensors, ""


def _tensor(path: Path, at: int, shape: tuple[int, ...], *, flagged: bool, place: str) -> tuple[Lazy, int]:
    """A tensor at an offset and where it ends."""
    size = int(np.prod(shape, dtype=object))
    if size > _LARGEST:
        raise BadFile("a tensor has an impossible size", place=place, found=shape)
    if not flagged:
        return byte_ranges.lazy(path, at, shape, "<f4", place=place), at + 4 * size
    tag = int.from_bytes(byte_ranges.read_range(path, at, 4, place=place), "little")
    at += 4
    padded = size + -size % 4
    if tag in (0, _WIDE):
        return byte_ranges.lazy(path, at, shape, "<f4", place=place), at + 4 * size
    if tag == _HALF:
        return byte_ranges.lazy(path, at, shape, "<f2", place=place), at + 2 * size + -(2 * size) % 4
    if tag == _INTEGERS:
        return byte_ranges.lazy(path, at, shape, "i1", place=place), at + padded
    table = byte_ranges.lazy(path, at, (256,), "<f4", place=place)
    indices = byte_ranges.lazy(path, at + 1024, shape, "u1", place=place)

    def looked_up(array: Array) -> Array:
        values: Array = table.read()[array]
        return values

    return indices.map(looked_up, shape, np.float32), at + 1024 + padded


# Writing.


def write(path: Path, archive: Archive) -> None:
    """Write the weights to the ``.bin`` file beside the new file ``path``, then the graph to ``path``.

    Raises:
        NotRepresentable: when a tensor is not of float32.
    """
    graph = archive.metadata["graph"]
    with path.with_suffix(".bin").open("xb") as file:
        for name, tensor in archive.tensors.items():
            if tensor.dtype != np.float32:
                raise NotRepresentable(
                    f"weights of {tensor.dtype} are not written", place=name, remedy="Choose --dtype float32."
                )
            file.write(bytes(4))
            file.writelines(pieces(tensor))
    blobs = {blob for layer in graph for blob in layer["outputs"]}
    lines = [_MAGIC.decode(), f"{len(graph)} {len(blobs)}"]
    for layer in graph:
        words = [layer["type"], layer["name"], str(len(layer["inputs"])), str(len(layer["outputs"]))]
        words += [*layer["inputs"], *layer["outputs"]]
        words += [f"{key}={value}" for key, value in layer["params"].items()]
        lines.append(" ".join(words))
    with path.open("x", encoding="utf-8", newline="\n") as out:
        out.write("\n".join(lines) + "\n")
