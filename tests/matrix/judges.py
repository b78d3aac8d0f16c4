"""Judges: the real runtimes, each making source files of its own and running what was converted for it.

A judge makes a file with random weights that differ in every gate, gives the runtime's own outputs for
it, and later runs a converted file. It never uses lstmconvert.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

BATCH, TIME, INPUT, HIDDEN = 2, 6, 3, 4


@dataclass(frozen=True, slots=True)
class Case:
    """A stack of recurrent layers: its cell, depth, directions, biases and one option of its framework."""

    cell: str
    layers: int
    bidirectional: bool
    bias: bool
    option: str = "plain"

    def __str__(self) -> str:
        parts = [self.cell, f"{self.layers}layer", "bi" if self.bidirectional else "uni"]
        return "-".join([*parts, "bias" if self.bias else "nobias", self.option])

    @property
    def seed(self) -> int:
        """A seed of its own for every case."""
        return sum(ord(c) * 31**n for n, c in enumerate(str(self))) % 2**32


@dataclass(frozen=True, slots=True)
class Sample:
    """A source file, an input and what the runtime made of it: y (batch, time, width)."""

    path: Path
    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Judge:
    """One framework's runtime.

    Attributes:
        name: the framework.
        suffix: of the files that it takes.
        options: option names by cell; ``plain`` is what every framework has.
        make: writes a source file of a case.
        run: runs a file on an input and gives the output sequence.
        weights: the tensors of a file, as the runtime reads them.
        read_options: what its files do not say.
        always_bias: whether its layers cannot be without biases.
        weights_only: whether its files hold no wiring but that of stacks.
        depths: how many layers its own sources may have.
        ways: whether its own sources may be bidirectional.
        one_way: cells of which its own sources run forwards only.
        remembers: whether its files have room for what a conversion remembers.
    """

    name: str
    suffix: str
    options: dict[str, tuple[str, ...]]
    make: Callable[[Case, Path], Sample]
    run: Callable[[Path, np.ndarray[Any, Any], Case], np.ndarray[Any, Any]]
    weights: Callable[[Path], list[np.ndarray[Any, Any]]]
    read_options: Callable[[Case], dict[str, Any]] = field(default=lambda case: {})
    always_bias: bool = False
    weights_only: bool = False
    depths: tuple[int, ...] = (1, 2)
    ways: tuple[bool, ...] = (False, True)
    one_way: tuple[str, ...] = ()
    remembers: bool = True


RESET_BEFORE = ("onnx", "openvino", "tensorflow1", "haiku", "coreml")
"""Whose GRU resets before the product where the case does not say otherwise."""


def resets_before(case: Case, source: str) -> bool:
    """Whether the reset gate of a source's GRU comes before the product."""
    return case.option == "reset_before" or (source in RESET_BEFORE and case.option != "reset_after")


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Weights large enough that some gates saturate."""
    return rng.normal(0, 0.7, shape).astype(np.float32)


def inputs(case: Case) -> np.ndarray[Any, Any]:
    """An input (batch, time, features)."""
    return np.random.default_rng(case.seed + 1).normal(0, 1.2, (BATCH, TIME, INPUT)).astype(np.float32)


# Keras 3.


def _keras_layer(case: Case) -> Any:
    import keras

    arguments: dict[str, Any] = {"return_sequences": True, "use_bias": case.bias}
    if case.option == "reset_before":
        arguments["reset_after"] = False
    elif case.option == "hard_sigmoid":
        arguments["recurrent_activation"] = "hard_sigmoid"
    elif case.option == "relu":
        arguments["activation"] = "relu"
    kind = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[case.cell]
    if case.option == "reverse":
        arguments["go_backwards"] = True
    layer = kind(HIDDEN, **arguments)
    merge = {"sum": "sum", "ave": "ave", "mul": "mul"}.get(case.option, "concat")
    return keras.layers.Bidirectional(layer, merge_mode=merge) if case.bidirectional else layer


def make_keras(case: Case, folder: Path) -> Sample:
    import keras

    model = keras.Sequential(
        [keras.layers.Input((None, INPUT)), *(_keras_layer(case) for _ in range(case.layers))]
    )
    rng = np.random.default_rng(case.seed)
    model.set_weights([draw(rng, w.shape) for w in model.get_weights()])
    path = folder / "source.keras"
    model.save(path)
    x = inputs(case)
    return Sample(path, x, np.asarray(model(x)))


def run_keras(path: Path, x: np.ndarray[Any, Any], case: Case) -> np.ndarray[Any, Any]:
    import keras

    return np.asarray(keras.models.load_model(path)(x))


def weights_keras(path: Path) -> list[np.ndarray[Any, Any]]:
    import keras

    return list(keras.models.load_model(path).get_weights())


# PyTorch.


def _torch_stack(case: Case) -> Any:
    import torch

    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[case.cell]
    arguments: dict[str, Any] = {"num_layers": case.layers, "batch_first": True, "bias": case.bias}
    arguments["bidirectional"] = case.bidirectional
    if case.option == "projection":
        arguments["proj_size"] = 2
    if case.option == "relu":
        arguments["nonlinearity"] = "relu"
    return kind(INPUT, HIDDEN, **arguments)


def make_torch(case: Case, folder: Path) -> Sample:
    import torch

    rng = np.random.default_rng(case.seed)
    module = _torch_stack(case).eval()
    module.load_state_dict(
        {n: torch.from_numpy(draw(rng, tuple(t.shape))) for n, t in module.state_dict().items()}
    )
    path = folder / "source.pt"
    torch.save({f"rnn.{name}": tensor for name, tensor in module.state_dict().items()}, path)
    x = inputs(case)
    with torch.no_grad():
        return Sample(path, x, module(torch.from_numpy(x))[0].numpy())


def _tensors(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def run_torch(path: Path, x: np.ndarray[Any, Any], case: Case) -> np.ndarray[Any, Any]:
    import torch

    source = path.with_suffix(".py")
    with torch.no_grad():
        if source.exists():
            spec = importlib.util.spec_from_file_location("converted", source)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.Model.load(path)(torch.from_numpy(x)).numpy()
        value = torch.from_numpy(x)
        for layer in _rebuilt(_tensors(path), case):
            value = layer(value)[0]
        return value.numpy()


def _rebuilt(tensors: dict[str, Any], case: Case) -> list[Any]:
    """torch's own layers around bare weights, in the order of the layers in the file."""
    import torch

    prefixes: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        prefix, _, own = name.rpartition(".")
        prefixes.setdefault(prefix, {})[own] = tensor
    layers = []
    for prefix in sorted(prefixes):
        own = prefixes[prefix]
        width = own["weight_ih_l0"].shape[1]
        kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[case.cell]
        depth = len([n for n in own if n.startswith("weight_ih_l") and not n.endswith("_reverse")])
        arguments: dict[str, Any] = {"num_layers": depth}
        if "weight_hr_l0" in own:
            arguments["proj_size"] = own["weight_hr_l0"].shape[0]
        if case.option == "relu":
            arguments["nonlinearity"] = "relu"
        layer = kind(
            width, HIDDEN, bias="bias_ih_l0" in own, batch_first=True,
            bidirectional="weight_ih_l0_reverse" in own, **arguments,
        )  # fmt: skip
        layer.load_state_dict(own, strict=True)
        layers.append(layer.eval())
    return layers


def weights_torch(path: Path) -> list[np.ndarray[Any, Any]]:
    found = _tensors(path)
    return [found[name].numpy() for name in sorted(found)]


# ONNX.

_ONNX_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def _onnx_attributes(case: Case, directions: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"hidden_size": HIDDEN}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    elif case.option == "reverse":
        attributes["direction"] = "reverse"
    if case.option == "reset_after":
        attributes["linear_before_reset"] = 1
    elif case.option == "clip":
        attributes["clip"] = 0.8
    elif case.option == "input_forget":
        attributes["input_forget"] = 1
    elif case.option in ("hard_sigmoid", "relu"):
        inner = {"lstm": ["Tanh", "Tanh"], "gru": ["Tanh"], "rnn": []}[case.cell]
        if case.option == "relu":
            first = [] if case.cell == "rnn" else ["Sigmoid"]
            names = [*first, *(["Relu"] * max(1, len(inner)))]
        else:
            names = ["HardSigmoid", *inner]
            attributes["activation_alpha"] = [0.3] * directions
            attributes["activation_beta"] = [0.45] * directions
        attributes["activations"] = names * directions
    return attributes


def make_onnx(case: Case, folder: Path) -> Sample:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(case.seed)
    gates = _ONNX_GATES[case.cell]
    directions = 2 if case.bidirectional else 1
    nodes = [helper.make_node("Transpose", ["x"], ["time_major"], perm=[1, 0, 2])]
    initializers = [numpy_helper.from_array(np.array([0, 0, -1]), "flat")]
    value, width = "time_major", INPUT
    for number in range(case.layers):
        arrays = {
            "W": draw(rng, (directions, gates * HIDDEN, width)),
            "R": draw(rng, (directions, gates * HIDDEN, HIDDEN)),
        }
        if case.bias or case.option == "peephole":
            arrays["B"] = draw(rng, (directions, 2 * gates * HIDDEN))
        if case.option == "peephole":
            arrays["P"] = draw(rng, (directions, 3 * HIDDEN))
        initializers += [numpy_helper.from_array(a, f"{key}{number}") for key, a in arrays.items()]
        names = [value, f"W{number}", f"R{number}", f"B{number}" if "B" in arrays else ""]
        if "P" in arrays:
            names += ["", "", "", f"P{number}"]
        while names[-1] == "":
            names.pop()
        nodes.append(
            helper.make_node(
                case.cell.upper(),
                names,
                [f"y{number}"],
                name=f"rnn_{number}",
                **_onnx_attributes(case, directions),
            )
        )
        nodes.append(helper.make_node("Transpose", [f"y{number}"], [f"t{number}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"t{number}", "flat"], [f"z{number}"]))
        value, width = f"z{number}", directions * HIDDEN
    nodes.append(helper.make_node("Transpose", [value], ["y"], perm=[1, 0, 2]))
    graph = helper.make_graph(
        nodes, "stack",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", INPUT])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "time", width])],
        initializers,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "source.onnx"
    onnx.save(model, path)
    x = inputs(case)
    return Sample(path, x, run_onnx(path, x, case))


def run_onnx(path: Path, x: np.ndarray[Any, Any], case: Case) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def weights_onnx(path: Path) -> list[np.ndarray[Any, Any]]:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type in ("LSTM", "GRU", "RNN")]
    return [held[name] for node in nodes for n, name in enumerate(node.input) if n in (1, 2, 3, 7) and name]


JUDGES = (
    Judge(
        "keras", ".keras",
        {
            "lstm": ("plain", "hard_sigmoid", "reverse", "sum"),
            "gru": ("plain", "reset_before", "hard_sigmoid", "ave"),
            "rnn": ("plain", "relu", "mul"),
        },
        make_keras, run_keras, weights_keras,
    ),
    Judge(
        "pytorch", ".safetensors",
        {"lstm": ("plain", "projection"), "gru": ("plain",), "rnn": ("plain", "relu")},
        make_torch, run_torch, weights_torch,
        lambda case: {"activation": "relu" if case.option == "relu" else "tanh"} if case.cell == "rnn" else {},
    ),
    Judge(
        "onnx", ".onnx",
        {
            "lstm": ("plain", "peephole", "clip", "input_forget", "hard_sigmoid", "relu", "reverse"),
            "gru": ("plain", "reset_after", "clip", "hard_sigmoid"),
            "rnn": ("plain", "relu", "clip"),
        },
        make_onnx, run_onnx, weights_onnx,
    ),
)  # fmt: skip


def few(judge: Judge) -> list[Case]:
    """The cases for pairs of frameworks that are nothing but weights: every option once, and plain layers in all forms."""
    found: dict[tuple[object, ...], Case] = {}
    for case in cases(judge):
        form: tuple[object, ...] = (case.cell, case.option)
        if case.option == "plain":
            if (
                (case.layers == 2) != case.bidirectional
                and {1, 2} == set(judge.depths)
                and len(judge.ways) == 2
            ):
                continue  # two layers in two directions, or one in one
            form = (*form, case.layers, case.bidirectional, case.bias if case.layers == 1 else None)
        found.setdefault(form, case)
    return list(found.values())


def cases(judge: Judge) -> list[Case]:
    """Every combination that a framework's own files can be."""
    found = []
    for cell, options in judge.options.items():
        for option in options:
            for layers in judge.depths:
                for bidirectional in (False,) if cell in judge.one_way else judge.ways:
                    for bias in (True,) if judge.always_bias else (True, False):
                        merges = option in ("sum", "ave", "mul")
                        if (merges and not bidirectional) or (option == "reverse" and bidirectional):
                            continue
                        found.append(Case(cell, layers, bidirectional, bias, option))
    return found
