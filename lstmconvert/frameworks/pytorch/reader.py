"""state_dicts to models: recurrent layers by the names of their tensors, whatever stands before them.

Each layer of a stack is one canonical layer. A module of one layer gives its prefix as the name
(``encoder.rnn``), a stack ``<prefix>.0``, ``<prefix>.1``; without a prefix the name is that of the cell
(``lstm``, or ``lstm.0``). Its notes tell which stack it belongs to and what stood before its names. A
state_dict says nothing of ``batch_first``, dropout or wiring: the layers are batch-major and have no calls,
unless the file was written here and says more (``record``).

Tensors that belong to no recurrent layer are listed in ``metadata["other_tensors"]``, name to shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lstmconvert import layout as layouts
from lstmconvert import mapping
from lstmconvert.activations import RELU, TANH, Activation
from lstmconvert.canonical import (
    Equations,
    RecurrentDirection,
    RecurrentLayer,
    RnnEquations,
    SequenceBehaviour,
)
from lstmconvert.containers import Archive
from lstmconvert.errors import AmbiguousSource, BadFile, UnsupportedSource, Usage
from lstmconvert.frameworks.named_tensors import equations_of
from lstmconvert.frameworks.pytorch import record
from lstmconvert.frameworks.pytorch.names import identifier
from lstmconvert.gates import Cell, Direction
from lstmconvert.layout import Found
from lstmconvert.mapping import Layout
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions
from lstmconvert.prefixed import Prefixed
from lstmconvert.provenance import KEY as PROVENANCE
from lstmconvert.provenance import loads as provenance_of
from lstmconvert.reading_notes import Note, dequantised
from lstmconvert.stacks import STACK
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

PREFIX = "torch_prefix"
"""Note of a layer: what stands before the names of its tensors in its state_dict."""
_FORMS = ("zip", "legacy", "torchscript")
_ROWS = {4: Cell.LSTM, 3: Cell.GRU, 1: Cell.RNN}
_MOST_LISTED = 1000


def reads(archive: Archive, container: str) -> bool:
    """Whether torch wrote the archive, or its tensors have names as in a state_dict."""
    if record.KEY in archive.metadata:
        return True
    if container == "torch_archive" and archive.metadata.get("form") in _FORMS:
        return True
    return bool(_modules(archive.tensors)) or bool(_spelled_out(archive.tensors))


def read(archive: Archive, options: ReadOptions) -> Model:
    """The model; see the module.

    Raises:
        BadFile: where tensors contradict each other.
        AmbiguousSource: where the nonlinearity of an RNN is not said.
        UnsupportedSource: where equations were lost.
    """
    whole = record.loads(archive.metadata.get(record.KEY), archive.tensors)
    if whole is not None:
        return replace(whole, framework="pytorch")
    tensors = archive.tensors
    if lost := _spelled_out(tensors):
        raise UnsupportedSource(
            "the layer has its equations in the source of a module that lstmconvert wrote, and the file no "
            "longer says which they are",
            place=lost[0],
            remedy="Convert from the original file, or keep the metadata of the written one.",
        )
    layers: dict[str, RecurrentLayer] = {}
    remembered = _remembered(archive)
    for module in _modules(tensors):
        for layer in _layers(module, tensors, archive.metadata, options, remembered, layers):
            layers[layer.name] = layer
    used = {name for layer in layers.values() for name in layer.origin}
    others = {name: list(lazy.shape) for name, lazy in tensors.items() if name not in used}
    metadata: dict[str, Any] = {
        "other_tensors": dict(list(others.items())[:_MOST_LISTED]),
        "rewrites": _dequantised(layers.values(), archive.metadata.get("quantised", {})),
    }
    return Model(MappingProxyType(layers), framework="pytorch", metadata=MappingProxyType(metadata))


def _dequantised(layers: Iterable[RecurrentLayer], quantised: Mapping[str, tuple[str, str]]) -> list[Note]:
    """What the container dequantised of the layers."""
    return [
        dequantised(layer.name, name, *quantised[name])
        for layer in layers
        for name in layer.origin
        if name in quantised
    ]


def _remembered(archive: Archive) -> Mapping[str, Equations]:
    """The equations of the layers by name, where a file that was written here still says them.

    Tensors may have been sorted since, so that their order says nothing. Under "" is what all simple
    RNNs of the file compute.
    """
    memory = provenance_of(archive.metadata.get(PROVENANCE))
    found: dict[str, Equations] = {}
    simple: list[Equations] = []
    for layer in () if memory is None else memory.layers:
        for equations in layer.equations[:1]:
            found[layer.name] = found[identifier(layer.name)] = equations
            if isinstance(equations, RnnEquations) and equations not in simple:
                simple.append(equations)
    return found | {"": simple[0]} if len(simple) == 1 else found


@dataclass(frozen=True, slots=True)
class _Module:
    """A recurrent module of torch: what stands before its names, and the numbers of its layers.

    Attributes:
        is_cell: whether it is a Cell, whose names have no number.
    """

    prefix: str
    layers: tuple[str, ...]
    is_cell: bool


def _modules(tensors: Mapping[str, Lazy]) -> list[_Module]:
    """The recurrent modules, in the order of the file."""
    described = mapping.load("pytorch").layouts
    found: dict[tuple[str, bool], list[Found]] = {}
    for name, is_cell in (("lstm", False), ("lstm_cell", True)):
        for one in layouts.find(described[name], tensors):
            found.setdefault((one.prefix, is_cell), []).append(one)
    names = {name: position for position, name in enumerate(tensors)}

    def first(item: tuple[tuple[str, bool], list[Found]]) -> int:
        (prefix, is_cell), ones = item
        return min(names[kernel_of(prefix, one.layer, is_cell=is_cell)] for one in ones)

    def kernel_of(prefix: str, layer: str, *, is_cell: bool) -> str:
        kernel = _kernel_name(prefix, layer, is_cell=is_cell)
        if kernel not in names:
            raise BadFile(
                "a backward direction is there, and the forward one is missing",
                place=kernel,
                expected="the input weights of both directions",
            )
        return kernel

    modules = []
    for (prefix, is_cell), ones in sorted(found.items(), key=first):
        numbers = sorted((one.layer for one in ones), key=int)
        if not is_cell and [int(number) for number in numbers] != list(range(len(numbers))):
            raise BadFile(
                "layers of a stack are missing",
                place=prefix.rstrip(".") or None,
                found=f"layers {', '.join(numbers)}",
                expected=f"0 to {len(numbers) - 1}",
            )
        if _kernel_is_matrix(tensors[_kernel_name(prefix, numbers[0], is_cell=is_cell)]):
            modules.append(_Module(prefix, tuple(numbers), is_cell))
    return modules


def _kernel_name(prefix: str, layer: str, *, is_cell: bool) -> str:
    described = mapping.load("pytorch").layouts["lstm_cell" if is_cell else "lstm"]
    (name,) = (place.tensor for place in layouts.places(described, (Direction.FORWARD,), layer)[:1])
    return prefix + name


def _kernel_is_matrix(lazy: Lazy) -> bool:
    return len(lazy.shape) == 2


def _spelled_out(tensors: Mapping[str, Lazy]) -> list[str]:
    """Prefixes of layers that are spelled out in the source of a written module."""
    described = mapping.load("pytorch").layouts["lstm_spelled_out"]
    found = []
    for one in layouts.find(described, tensors):
        if f"{one.prefix}recurrent_weight" in tensors:
            found.append(one.prefix.rstrip(".") or "input_weight")
    return found


def _layers(
    module: _Module,
    tensors: Mapping[str, Lazy],
    metadata: Mapping[str, Any],
    options: ReadOptions,
    remembered: Mapping[str, Equations],
    taken: Mapping[str, RecurrentLayer],
) -> list[RecurrentLayer]:
    """The canonical layers of a module."""
    local = Prefixed(module.prefix, tensors)
    result: list[RecurrentLayer] = []
    for number in module.layers:
        layout = _layout(module, local, number)
        assert layout.cell is not None
        base = module.prefix.strip("._/") or str(layout.cell)
        name = f"{base}.{number}" if len(module.layers) > 1 else base
        while name in taken:
            name += "_"
        weights = layouts.read_weights(layout.cell, layout, local, number)
        names = layouts.tensor_names(layout, tuple(weights), number)
        known = remembered.get(name, remembered.get(""))
        equations = _equations(layout.cell, module, metadata, options, known, name)
        notes = {PREFIX: module.prefix}
        if len(module.layers) > 1:
            notes[STACK] = base
        layer = RecurrentLayer(
            name,
            tuple(RecurrentDirection(direction, equations, own) for direction, own in weights.items()),
            SequenceBehaviour(),
            tuple(module.prefix + n for n in names if n in local),
            layout.gates,
            MappingProxyType(notes),
        )
        _check_follows(layer, result, module)
        result.append(layer)
    return result


def _check_follows(layer: RecurrentLayer, before: list[RecurrentLayer], module: _Module) -> None:
    if before and layer.input_size != before[-1].width:
        raise BadFile(
            "a layer of a stack does not take what the one before gives",
            place=module.prefix + f"weight_ih_l{len(before)}",
            found=f"{layer.input_size} inputs",
            expected=before[-1].width,
        )


def _layout(module: _Module, local: Mapping[str, Lazy], number: str) -> Layout:
    """The layout of a layer: rows of its recurrent kernel to hidden units tell the cell."""
    described = mapping.load("pytorch").layouts
    suffix = "" if module.is_cell else f"_l{number}"
    recurrent = local.get(f"weight_hh{suffix}")
    projection = local.get(f"weight_hr{suffix}")
    if recurrent is None or len(recurrent.shape) != 2:
        raise BadFile(
            "the recurrent weights of a layer are missing" if recurrent is None else "unexpected shape",
            place=f"{module.prefix}weight_hh{suffix}",
            found=None if recurrent is None else recurrent.shape,
            expected="a matrix",
        )
    rows, columns = recurrent.shape
    hidden = columns if projection is None else (projection.shape[1] if len(projection.shape) == 2 else 0)
    cell = _ROWS.get(rows // hidden) if hidden and rows % hidden == 0 else None
    if cell is None or (projection is not None and cell is not Cell.LSTM):
        raise BadFile(
            "the rows are no whole number of gates",
            place=f"{module.prefix}weight_hh{suffix}",
            found=f"{rows} rows for {hidden} units",
            expected="4 (LSTM), 3 (GRU) or 1 (RNN) times the units",
        )
    return described[f"{cell}_cell" if module.is_cell else str(cell)]


def _equations(
    cell: Cell,
    module: _Module,
    metadata: Mapping[str, Any],
    options: ReadOptions,
    remembered: Equations | None,
    name: str,
) -> Equations:
    _refuse_other_forms(cell, options, name)
    if cell is not Cell.RNN:
        return equations_of(mapping.load("pytorch").layouts[str(cell)], ReadOptions(), name)
    said = _scripted_activation(module, metadata) or options.activation
    if said is None and isinstance(remembered, RnnEquations):
        return remembered
    known: dict[str, Activation] = {"tanh": TANH, "relu": RELU}
    if said is None:
        raise AmbiguousSource(
            "a state_dict does not say which nonlinearity an RNN has",
            place=f"layer {name!r}",
            expected="tanh or relu",
            remedy="Say it with --activation tanh or --activation relu.",
        )
    if said not in known:
        raise Usage(
            f"torch.nn.RNN has no nonlinearity {said!r}", place=f"layer {name!r}", expected="tanh or relu"
        )
    return RnnEquations(known[said])


def _refuse_other_forms(cell: Cell, options: ReadOptions, name: str) -> None:
    """What torch's layers compute is fixed; an option that says otherwise is a mistake."""
    wrong = None
    if cell is not Cell.RNN and options.recurrent_activation not in (None, "sigmoid"):
        wrong = "recurrent activation", options.recurrent_activation, "sigmoid"
    if cell is Cell.GRU and options.reset_after is False:
        wrong = "reset gate before the product", "--no-reset-after", "after the product"
    if wrong is not None:
        raise Usage(
            f"torch's {cell.upper()} has no other {wrong[0]}",
            place=f"layer {name!r}",
            found=wrong[1],
            expected=wrong[2],
        )


def _scripted_activation(module: _Module, metadata: Mapping[str, Any]) -> str | None:
    """The nonlinearity that a TorchScript archive says."""
    modules = metadata.get("modules")
    if not isinstance(modules, Mapping):
        return None
    found = modules.get(module.prefix.rstrip("."))
    settings = getattr(found, "settings", {})
    mode = settings.get("mode") or settings.get("nonlinearity")
    return {"RNN_TANH": "tanh", "RNN_RELU": "relu", "tanh": "tanh", "relu": "relu"}.get(str(mode))
