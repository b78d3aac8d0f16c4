"""Models written for torch, run by torch: what the tests of the writer share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lstmconvert import lowering, mapping
from lstmconvert.canonical import Merge, RecurrentLayer
from lstmconvert.containers import Archive, safetensors, torch_archive
from lstmconvert.frameworks import pytorch, pytorch_live
from lstmconvert.model import Call, Layer, Model, Port
from lstmconvert.options import ReadOptions, WriteOptions

CONTAINERS = {"safetensors": (safetensors, ".safetensors"), "torch_archive": (torch_archive, ".pt")}


def fitted(model: Model) -> Model:
    """The model as the pipeline fits it to torch."""
    return lowering.lower(model, mapping.load("pytorch"), pytorch.spells_out)[0]


def source_of(archive: Archive) -> str:
    """The generated module."""
    return archive.companions[".py"]


def written(model: Model, container: str = "safetensors", *, states: bool = False) -> Archive:
    """The archive of a model, fitted first."""
    return pytorch.write(fitted(model), container, WriteOptions(states=states))


def module_of(archive: Archive) -> torch.nn.Module:
    """The module of an archive with its weights, without the way through a file."""
    module = pytorch_live.load_source(source_of(archive)).Model()
    tensors = {name: pytorch_live.tensor_of(lazy.read()) for name, lazy in archive.tensors.items()}
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.eval()


def saved(archive: Archive, folder: Path, container: str = "safetensors") -> Path:
    """Write an archive and its module to files; returns the weights' path."""
    made, suffix = CONTAINERS[container]
    path = folder / f"model{suffix}"
    made.write(path, archive)
    path.with_suffix(".py").write_text(source_of(archive), encoding="utf-8")
    return path


def run(module: torch.nn.Module, inputs: Sequence[Any]) -> list[np.ndarray]:
    """What a module gives for arrays, flat."""
    with torch.no_grad():
        result = module(*(torch.from_numpy(np.asarray(array)) for array in inputs))
    return [np.asarray(item) for item in _flat(result)]


def _flat(value: Any) -> list[Any]:
    return [inner for item in value for inner in _flat(item)] if isinstance(value, tuple) else [value]


def read_back(archive: Archive, container: str = "safetensors") -> Model:
    """The archive read again."""
    return pytorch.read(archive, container, ReadOptions())


def one_layer(
    layer: RecurrentLayer, *, mask: bool = False, states: bool = False, name: str | None = None
) -> Model:
    """A model of one recurrent layer: inputs x, the mask and the initial states, outputs all that it gives."""
    kinds = [layer.recurrent_size, layer.hidden_size][: 2 if layer.cell == "lstm" else 1]
    sides = range(len(layer.directions))
    inputs = [Port("x", "x", (None, None, layer.input_size))]
    initial = tuple(f"s{d}{k}" for d in sides for k in range(len(kinds))) if states else ()
    if mask:
        inputs.append(Port("valid", "valid", (None, None), "bool"))
    inputs += [Port(s, s, (None, kinds[int(s[-1])])) for s in initial]
    separate = len(layer.directions) == 2 and layer.sequence.merge is Merge.SEPARATE
    outputs = ["y", "z"] if separate else ["y"]
    if layer.sequence.return_state:
        outputs += [f"f{d}{k}" for d in sides for k in range(len(kinds))]
    call = Call(name or layer.name, ("x",), tuple(outputs), "valid" if mask else None, initial)
    layers: dict[str, Layer] = {name or layer.name: layer}
    return Model(layers, (call,), tuple(inputs), tuple(Port(o, o, (None, None)) for o in outputs))


def assert_formatted(folder: Path) -> None:
    """Every ``.py`` in a folder is as ``ruff format`` leaves it, and has nothing that ruff's lint objects to."""
    ruff = [sys.executable, "-m", "ruff"]
    formatted = subprocess.run(
        [*ruff, "format", "--isolated", "--diff", str(folder)], capture_output=True, text=True, check=False
    )
    assert formatted.returncode == 0, formatted.stdout
    rules = ["--select", "E,F,I,W,B,UP,RET,PIE,C4", "--ignore", "B905,RET505"]
    linted = subprocess.run(
        [*ruff, "check", "--isolated", *rules, str(folder)], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout
