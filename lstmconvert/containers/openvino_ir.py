"""OpenVINO's intermediate representation: the graph as ``.xml``, the constants in a ``.bin`` beside it.

The tensors are the ``Const`` layers under their names. ``graph`` in the metadata is the list of all layers,
each a dictionary with ``name``, ``type``, ``version``, ``data`` (the attributes), ``inputs`` (pairs of the
position of a layer in the list and the number of its output), ``outputs`` (pairs of a precision and a tuple
of lengths, ``None`` where free), and of a small constant ``zero``, whether it is all zero; ``network`` is the
model's name, and every text that ``write`` added stands under its own key.

Source: "OpenVINO Intermediate Representation" and "Operation sets" in OpenVINO's documentation, and models
that release 2026.4 saved. XML is read without document types and entities: a file with them is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmconvert.containers import Archive, byte_ranges
from lstmconvert.errors import BadFile, NotRepresentable
from lstmconvert.pieces import pieces
from lstmconvert.tensors import Lazy

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

NAME = "openvino_ir"
SUFFIXES = (".xml",)
TELLS_LATE = True

_LARGEST_XML = 1 << 28
_MOST_ELEMENTS = 1 << 40
_SMALL = 1 << 16
_NET = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*<net[\s>]", re.DOTALL)
_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "f32": "float32", "f16": "float16", "f64": "float64", "bf16": "bfloat16", "i64": "int64",
        "i32": "int32", "i16": "int16", "i8": "int8", "u64": "uint64", "u32": "uint32", "u16": "uint16",
        "u8": "uint8", "boolean": "bool",
    }
)  # fmt: skip
_ELEMENT_TYPES = {dtype: name for name, dtype in _DTYPES.items()}


def probe(path: Path) -> bool:
    """Whether the file is XML whose root is a network."""
    try:
        with path.open("rb") as file:
            return _NET.match(file.read(4096)) is not None
    except OSError:
        return False


def read(path: Path) -> Archive:
    """The graph and the constants of a model; see the module.

    Raises:
        BadFile: when the XML is damaged or unsafe, or a constant does not lie in the ``.bin`` file.
    """
    path = Path(path)
    try:
        return _archive(_parsed(path), path.with_suffix(".bin"))
    except BadFile as error:
        raise error.located(file=path) from error.__cause__


def _parsed(path: Path) -> Element:
    from xml.etree import ElementTree

    size = byte_ranges.file_size(path)
    if size > _LARGEST_XML:
        raise BadFile("the graph is larger than any graph", found=f"{size} bytes")
    data = byte_ranges.read_range(path, 0, size)
    # Entities could grow without bound, and need a document type, which the format has not. In another
    # encoding than UTF-8 one could hide from this look.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise BadFile(
            "the XML has a document type or entities, which the format does not have",
            remedy="It may be made to exhaust memory; do not use it.",
        )
    declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([^\"']+)", data)
    if declared and declared[1].lower() not in (b"utf-8", b"us-ascii", b"ascii"):
        raise BadFile("the XML is not in UTF-8", found=declared[1].decode("ascii", "replace"))
    try:
        return ElementTree.fromstring(data)  # noqa: S314 - without entities, see above
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise BadFile("the XML is damaged", found=str(error)) from error


def _archive(root: Element, data: Path) -> Archive:
    if root.tag != "net":
        raise BadFile("the XML is not a network", found=root.tag, expected="net")
    version = _integer(root, "version", "net")
    if not 10 <= version <= 11:
        raise BadFile(
            "this version of the format is not known",
            found=version,
            expected="10 or 11",
            remedy="Save the model again with openvino 2022.1 or later.",
        )
    tensors: dict[str, Lazy] = {}
    layers: list[dict[str, Any]] = []
    ports: dict[tuple[str, str], tuple[int, int]] = {}
    slots: dict[tuple[str, str], tuple[int, int]] = {}
    names: set[str] = set()
    for element in root.iterfind("layers/layer"):
        own, kind = _text(element, "id", "layer"), _text(element, "type", "layer")
        name = element.get("name") or own
        while name in names:
            name += f"#{own}"
        names.add(name)
        attributes = element.find("data")
        layer: dict[str, Any] = {
            "name": name,
            "type": kind,
            "version": element.get("version", "opset1"),
            "data": {} if attributes is None else dict(attributes.attrib),
            "inputs": [],
            "outputs": [],
        }
        for number, port in enumerate(element.iterfind("input/port")):
            slots[own, _text(port, "id", name)] = len(layers), number
            layer["inputs"].append(None)
        for number, port in enumerate(element.iterfind("output/port")):
            ports[own, _text(port, "id", name)] = len(layers), number
            layer["outputs"].append((port.get("precision", ""), _lengths(port, name)))
        if kind == "Const" and (tensor := _constant(layer["data"], data, name)) is not None:
            tensors[name] = tensor
            layer["zero"] = tensor.nbytes <= _SMALL and not np.any(tensor.read())
        layers.append(layer)
    for edge in root.iterfind("edges/edge"):
        source = ports.get((_text(edge, "from-layer", "edge"), _text(edge, "from-port", "edge")))
        target = slots.get((_text(edge, "to-layer", "edge"), _text(edge, "to-port", "edge")))
        if source is None or target is None:
            raise BadFile("an edge leads to a layer or port that is not there", place=str(dict(edge.attrib)))
        layers[target[0]]["inputs"][target[1]] = source
    for layer in layers:
        if None in layer["inputs"]:
            raise BadFile("an input of a layer has no edge", place=layer["name"])
    metadata: dict[str, Any] = {"graph": layers, "network": root.get("name", "")}
    for info in root.iterfind("rt_info/*"):
        if info.get("value") is not None and info.tag not in metadata:
            metadata[info.tag] = info.get("value")
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def _constant(data: Mapping[str, str], path: Path, name: str) -> Lazy | None:
    """A constant; ``None`` where its elements are smaller than a byte or texts."""
    dtype = _DTYPES.get(data.get("element_type", ""))
    if dtype is None:
        return None
    try:
        shape = tuple(int(n) for n in data["shape"].split(",") if n.strip())
        offset, size = int(data["offset"]), int(data["size"])
    except (KeyError, ValueError) as error:
        raise BadFile("a constant has no proper place in the .bin file", place=name) from error
    if any(n < 0 for n in shape) or math.prod(shape) > _MOST_ELEMENTS:
        raise BadFile("a constant has an impossible shape", place=name, found=shape)
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401 - makes the dtype known to NumPy
    stored = np.dtype(dtype).newbyteorder("<") if dtype != "bfloat16" else np.dtype(dtype)
    expected = math.prod(shape) * stored.itemsize
    if size != expected:
        raise BadFile(
            "the size of a constant does not fit its shape", place=name, found=size, expected=expected
        )
    try:
        return byte_ranges.lazy(path, offset, shape, stored, place=name)
    except BadFile as error:
        if not path.is_file():
            raise BadFile(
                "the file with the constants is missing",
                place=path.name,
                remedy="Put it beside the .xml file.",
            ) from error
        raise


def _lengths(port: Element, place: str) -> tuple[int | None, ...]:
    try:
        lengths = [int(dim.text or "") for dim in port.iterfind("dim")]
    except ValueError as error:
        raise BadFile("a length is not a number", place=place) from error
    return tuple(None if n < 0 else n for n in lengths)


def _text(element: Element, key: str, place: str) -> str:
    value = element.get(key)
    if value is None:
        raise BadFile(f"<{element.tag}> has no {key}", place=place)
    return value


def _integer(element: Element, key: str, place: str) -> int:
    text = _text(element, key, place)
    if not text.isascii() or not text.isdigit():
        raise BadFile(f"{key} is not a number", place=place, found=text)
    return int(text)


# Writing.


def write(path: Path, archive: Archive) -> None:
    """Write the constants to the ``.bin`` file beside the new file ``path``, then the graph to ``path``.

    Raises:
        NotRepresentable: when a constant has a dtype that the format does not name.
    """
    graph: list[dict[str, Any]] = archive.metadata["graph"]
    places: dict[str, tuple[int, int]] = {}
    with path.with_suffix(".bin").open("xb") as file:
        for name, tensor in archive.tensors.items():
            if tensor.dtype.name not in _ELEMENT_TYPES:
                raise NotRepresentable(f"OpenVINO has no dtype {tensor.dtype}", place=name)
            file.write(b"\0" * (-file.tell() % 64))
            places[name] = file.tell(), tensor.nbytes
            file.writelines(pieces(tensor))
    texts = {key: value for key, value in archive.metadata.items() if isinstance(value, str)}
    network = texts.pop("network", "model")
    texts |= archive.told()
    lines = ['<?xml version="1.0"?>', f'<net name={_quoted(network)} version="11">', "\t<layers>"]
    for number, layer in enumerate(graph):
        lines += _layer_lines(number, layer, graph, archive, places)
    lines += ["\t</layers>", "\t<edges>"]
    for number, layer in enumerate(graph):
        for slot, (source, output) in enumerate(layer["inputs"]):
            port = len(graph[source]["inputs"]) + output
            lines.append(
                f'\t\t<edge from-layer="{source}" from-port="{port}" to-layer="{number}" to-port="{slot}" />'
            )
    lines += ["\t</edges>", "\t<rt_info>"]
    lines += [f"\t\t<{key} value={_quoted(text)} />" for key, text in texts.items()]
    lines += ["\t</rt_info>", "</net>", ""]
    with path.open("x", encoding="utf-8", newline="\n") as out:
        out.write("\n".join(lines))


def _layer_lines(
    number: int,
    layer: Mapping[str, Any],
    graph: list[dict[str, Any]],
    archive: Archive,
    places: Mapping[str, tuple[int, int]],
) -> list[str]:
    name, kind = layer["name"], layer["type"]
    data = dict(layer["data"])
    if kind == "Const":
        tensor = archive.tensors[name]
        offset, size = places[name]
        data = {
            "element_type": _ELEMENT_TYPES[tensor.dtype.name],
            "shape": ", ".join(map(str, tensor.shape)),
            "offset": str(offset),
            "size": str(size),
        }
    lines = [f'\t\t<layer id="{number}" name={_quoted(name)} type="{kind}" version="{layer["version"]}">']
    if data:
        lines.append(
            "\t\t\t<data " + " ".join(f"{key}={_quoted(value)}" for key, value in data.items()) + " />"
        )
    if layer["inputs"]:
        lines.append("\t\t\t<input>")
        for slot, (source, output) in enumerate(layer["inputs"]):
            precision, lengths = graph[source]["outputs"][output]
            lines += _port_lines(slot, precision, lengths, "")
        lines.append("\t\t\t</input>")
    if layer["outputs"]:
        lines.append("\t\t\t<output>")
        named = layer.get("names", ())
        for output, (precision, lengths) in enumerate(layer["outputs"]):
            title = f" names={_quoted(named[output])}" if output < len(named) else ""
            lines += _port_lines(len(layer["inputs"]) + output, precision, lengths, title)
        lines.append("\t\t\t</output>")
    lines.append("\t\t</layer>")
    return lines


def _port_lines(number: int, precision: str, lengths: tuple[int | None, ...], title: str) -> list[str]:
    head = f'\t\t\t\t<port id="{number}" precision="{precision}"{title}'
    if not lengths:
        return [head + " />"]
    dims = [f"\t\t\t\t\t<dim>{-1 if n is None else n}</dim>" for n in lengths]
    return [head + ">", *dims, "\t\t\t\t</port>"]


def _quoted(text: str) -> str:
    from xml.sax.saxutils import escape

    return '"' + escape(text, {'"': "&quot;", "\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}) + '"'
