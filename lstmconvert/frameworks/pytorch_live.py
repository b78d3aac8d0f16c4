"""Live modules of torch, read and made; this is the one module that imports torch, when it is called."""

from __future__ import annotations

import itertools
import linecache
import types
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np

from lstmconvert import stacks
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.containers import Archive
from lstmconvert.errors import UnsupportedSource
from lstmconvert.frameworks.pytorch import reader
from lstmconvert.frameworks.pytorch.writer import Written, bare_tensors
from lstmconvert.model import Layer, Model
from lstmconvert.options import ReadOptions
from lstmconvert.tensors import Array, Lazy

_NUMBERS = itertools.count(1)


def to_live(model: Model) -> Any:
    """A ``torch.nn.Module`` in eval mode of a model that was fitted to torch.

    Its class is that of the generated source, which ``inspect.getsource`` shows.

    Raises:
        UnsupportedSource: when the topology is not known.
        NotRepresentable: naming what torch cannot express.
    """
    if model.calls is None:
        raise UnsupportedSource(
            "the source holds weights only and does not say how its layers are wired, so it makes no module",
            found=", ".join(list(bare_tensors(model))[:8]),
            remedy="Load the written state_dict into a module of your own.",
        )
    written = Written.of(model, states=False)
    module = load_source(written.source("torch_archive")).Model()
    state = {name: tensor_of(lazy.read()) for name, lazy in written.module.tensors.items()}
    module.load_state_dict(state, assign=True)
    return module.eval()


def run_archive(archive: Archive, inputs: Sequence[Any]) -> list[Array]:
    """Run the module that ``write`` generated, with its weights, in torch; its results, states included.

    Args:
        archive: what ``write`` gave, for either container.
        inputs: arrays in the order of the source's inputs.
    """
    import torch

    module = load_source(archive.companions[".py"]).Model()
    state = {name: tensor_of(lazy.read()) for name, lazy in archive.tensors.items()}
    module.load_state_dict(state, assign=True)
    with torch.no_grad():
        result = module.eval()(*(tensor_of(np.asarray(array)) for array in inputs))
    return [array_of(item) for item in _flat(result)]


def _flat(value: Any) -> list[Any]:
    return [inner for item in value for inner in _flat(item)] if isinstance(value, tuple) else [value]


def load_source(source: str) -> types.ModuleType:
    """A fresh module that runs generated source; torch finds its text where it asks for it."""
    name = f"lstmconvert_model_{next(_NUMBERS)}"
    file = f"<{name}.py>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module = types.ModuleType(name)
    module.__file__ = file
    exec(compile(source, file, "exec"), module.__dict__)  # noqa: S102 - text that was generated here
    return module


def tensor_of(array: Array) -> Any:
    """A tensor of its own memory with the bits of an array."""
    import torch

    array = np.array(array, order="C", copy=True)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_of(tensor: Any) -> Array:
    """The numbers of a tensor, bit for bit."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        bits: Array = tensor.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def lazy_of(tensor: Any) -> Lazy:
    """A tensor that is read when it is asked for."""
    import torch

    if tensor.dtype is torch.bfloat16:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
    return Lazy(tuple(tensor.shape), dtype, lambda: array_of(tensor))


def read_live(module: Any, example: Any = None) -> Model:
    """A model from a live ``torch.nn.Module``.

    Args:
        module: an LSTM, GRU or RNN alone makes a whole model, which gives the sequence; of any other
            module, without an example, the recurrent layers come out, without topology.
        example: an input, or a tuple of them, by which the whole module is read.

    Raises:
        UnsupportedSource: naming the module or operator that cannot be read.
    """
    import torch

    found = {
        name: inner
        for name, inner in module.named_modules()
        if isinstance(inner, (torch.nn.RNNBase, torch.nn.RNNCellBase))
    }
    _refuse_quantised(module)
    if example is not None:
        from lstmconvert.frameworks import pytorch_export_live

        return pytorch_export_live.read_traced(module, example)
    if not found:
        raise UnsupportedSource(
            "there is no recurrent layer in this module",
            found=type(module).__qualname__,
            expected="torch.nn.LSTM, GRU or RNN, or one of their Cells",
        )
    archive = Archive(
        MappingProxyType(
            {name: lazy_of(t) for prefix, inner in found.items() for name, t in _own(prefix, inner)}
        ),
        MappingProxyType({"modules": {prefix: _described(inner) for prefix, inner in found.items()}}),
    )
    model = reader.read(archive, ReadOptions())

    def told(layer: Layer) -> Layer:
        """With what a state_dict does not say."""
        if not isinstance(layer, RecurrentLayer):
            return layer
        inner = found[layer.notes[reader.PREFIX].rstrip(".")]
        if not isinstance(inner, torch.nn.RNNBase):
            return layer
        return replace(
            layer,
            sequence=replace(layer.sequence, time_major=not inner.batch_first, dropout=float(inner.dropout)),
        )

    model = model.map_layers(told)
    if isinstance(module, torch.nn.RNNBase):
        (whole,) = stacks.split(model).values()
        return replace(whole, framework="pytorch")
    return model


def _own(prefix: str, module: Any) -> list[tuple[str, Any]]:
    """The weights of a recurrent module, those that are computed (weight_norm) included."""
    names = getattr(module, "_flat_weights_names", ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    before = f"{prefix}." if prefix else ""
    found = ((before + name, getattr(module, name, None)) for name in names)
    return [(name, tensor) for name, tensor in found if tensor is not None]


def _described(module: Any) -> Any:
    """What ``reader`` asks of the modules of a TorchScript archive."""
    mode = getattr(module, "mode", None) or getattr(module, "nonlinearity", None)
    return SimpleNamespace(settings={"mode": mode})


def _refuse_quantised(module: Any) -> None:
    for name, inner in module.named_modules():
        kind = type(inner)
        if "quantized" in kind.__module__ and kind.__name__ in (
            "LSTM",
            "GRU",
            "LSTMCell",
            "GRUCell",
            "RNNCell",
        ):
            raise UnsupportedSource(
                f"the module is quantised ({kind.__module__}.{kind.__name__})",
                place=name or None,
                remedy="Give the module as it was before quantisation, or convert its saved state_dict.",
            )
