"""Equinox: cells in ``.eqx`` files, whose arrays have no names; the shapes of neighbours tell them.

The fields of an ``LSTMCell`` are weight_ih (4 hidden, input), weight_hh (4 hidden, hidden), bias (4 hidden);
a ``GRUCell`` has 3 for 4, and bias_n (hidden) after its bias. Two matrices alone could as well be two layers
without biases: they are taken for a cell only where the file holds nothing but cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lstmconvert import layout as layouts
from lstmconvert import lowering, mapping, provenance
from lstmconvert.canonical import RecurrentDirection, RecurrentLayer
from lstmconvert.containers import Archive
from lstmconvert.errors import AmbiguousSource, NotRepresentable, UnsupportedSource
from lstmconvert.frameworks.named_tensors import equations_of
from lstmconvert.gates import Cell, Direction
from lstmconvert.mapping import Layout
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions, WriteOptions
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

NAME = "equinox"
_GATES = {4: Cell.LSTM, 3: Cell.GRU}
_MOST_LISTED = 1000
_REMEDY = "Describe the arrays, which are called 0, 1, ..., with a mapping file (--mapping FILE)."


@dataclass(frozen=True, slots=True)
class _Found:
    """A cell: its layout, and the position in the file of each of its fields."""

    layout: Layout
    fields: Mapping[str, int]


def reads(archive: Archive, container: str) -> bool:  # noqa: ARG001 - the container is Equinox's own
    """Whether the arrays came one after another in an ``.eqx`` file."""
    return container == "eqx"


def read(archive: Archive, container: str, options: ReadOptions) -> Model:
    """The cells as layers without wiring; see the module.

    Raises:
        UnsupportedSource: when no arrays have the shapes of a cell.
        AmbiguousSource: when arrays could be a cell or something else.
    """
    arrays = list(archive.tensors.values())
    names = list(archive.tensors)
    if container != "eqx":
        raise UnsupportedSource(
            "Equinox's arrays are told by their order in an .eqx file",
            remedy="Describe names with a mapping file of your own (--mapping FILE).",
        )
    found = _cells(arrays)
    if not found:
        shapes = [list(a.shape) for a in arrays[:6]]
        raise UnsupportedSource(
            "no arrays in a row have the shapes of an LSTMCell or GRUCell",
            found=f"shapes {', '.join(map(str, shapes))}",
            expected="(4 hidden, input), (4 hidden, hidden), (4 hidden,); or 3 for 4 and then (hidden,)",
        )
    memory = provenance.loads(archive.metadata.get(provenance.KEY))
    remembered = [record.name for record in memory.layers] if memory is not None else []
    if len(remembered) != len(found) or len(set(remembered)) != len(remembered):
        remembered = _default_names(found)
    layers: dict[str, RecurrentLayer] = {}
    for name, cell in zip(remembered, found, strict=True):
        assert cell.layout.cell is not None
        local = {field: arrays[at] for field, at in cell.fields.items()}
        weights = layouts.read_weights(cell.layout.cell, cell.layout, local)[Direction.FORWARD]
        equations = equations_of(cell.layout, options, name)
        layers[name] = RecurrentLayer(
            name,
            (RecurrentDirection(Direction.FORWARD, equations, weights),),
            origin=tuple(names[at] for at in cell.fields.values()),
            stored_gates=cell.layout.gates,
        )
    used = {name for layer in layers.values() for name in layer.origin}
    others = {name: list(t.shape) for name, t in archive.tensors.items() if name not in used}
    metadata: dict[str, Any] = {"other_tensors": dict(list(others.items())[:_MOST_LISTED])}
    return Model(MappingProxyType(dict(layers)), metadata=MappingProxyType(metadata))


def _default_names(found: Sequence[_Found]) -> list[str]:
    names: list[str] = []
    for cell in found:
        name, count = cell.layout.name, 1
        while name in names:
            name, count = f"{cell.layout.name}_{count}", count + 1
        names.append(name)
    return names


def _cells(arrays: Sequence[Lazy]) -> list[_Found]:
    described = mapping.load(NAME)
    found: list[_Found] = []
    bare = False
    at = 0
    while at + 1 < len(arrays):
        a, b = arrays[at].shape, arrays[at + 1].shape
        gates = b[0] // b[1] if len(b) == 2 and b[1] and not b[0] % b[1] else 0
        if len(a) != 2 or gates not in _GATES or a[0] != b[0]:
            at += 1
            continue
        cell, rows, hidden = _GATES[gates], b[0], b[1]
        layout = described.layouts[cell]
        after = [array.shape for array in arrays[at + 2 : at + 5]] + [()] * 3
        fields = {"weight_ih": at, "weight_hh": at + 1}
        if after[0] == (rows,):
            fields["bias"] = at + 2
            if cell is Cell.GRU and after[1] == (hidden,):
                fields["bias_n"] = at + 3
            elif cell is Cell.GRU or after[1] == (rows,):
                raise AmbiguousSource(
                    f"these arrays could be a {cell.upper()}, but not one of Equinox",
                    place=f"arrays {at} to {at + 3}",
                    found=f"{after[0]} and then {after[1]}",
                    expected="one bias (rows,)" + (", then (hidden,)" if cell is Cell.GRU else ""),
                    remedy=_REMEDY,
                )
        else:
            bare = True
        found.append(_Found(layout, MappingProxyType(fields)))
        at += len(fields)
    if bare and sum(len(cell.fields) for cell in found) != len(arrays):
        raise AmbiguousSource(
            "two matrices without a bias could be a cell or two other layers",
            found=f"{len(arrays)} arrays",
            remedy=_REMEDY,
        )
    return found


def write(model: Model, container: str, options: WriteOptions) -> Archive:  # noqa: ARG001 - one form
    """The arrays of the recurrent layers, in the order of the model and of the cells' fields.

    Raises:
        NotRepresentable: when another layer has weights: nothing would say which array is which.
    """
    described = mapping.load(NAME)
    arrays: list[Lazy] = []
    for layer in model.layers.values():
        if not isinstance(layer, RecurrentLayer):
            if layer.weights:
                raise NotRepresentable(
                    "an .eqx file has no names, and only cells can be told without them",
                    place=f"layer {layer.name!r}",
                    remedy="Take only the recurrent layers, one by one, with --layer.",
                )
            continue
        lowering.refuse_initial_states(layer, described)
        layout = lowering.layout_for(described, layer)
        packed = layouts.pack(layout, {d.direction: d.weights for d in layer.directions})
        arrays += [packed[rule.name] for rule in layout.tensors if rule.name in packed]
    return Archive(MappingProxyType({str(n): array for n, array in enumerate(arrays)}))
