"""What goes wrong with recurrent models in practice, looked for in a file.

Each finding says its consequence and the cure.

Two kinds of rules: those on the canonical layers, for files of every framework, and those on the nodes of
an ONNX graph, which the canonical form has already made harmless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lstmconvert import opening, registry
from lstmconvert.canonical import GruEquations, RecurrentLayer, ResetPlace
from lstmconvert.containers import Archive
from lstmconvert.errors import UnsupportedSource
from lstmconvert.finite import not_finite
from lstmconvert.gates import GATES, Cell, Gate
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions
from lstmconvert.tensors import Array, Tensors, same_bits
from lstmconvert.values import dataclass

SPREAD = 1000.0
"""How many times larger one gate's weights may be than another's of the same layer before it is odd."""
HUGE = 1e6


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a file, or will go wrong with it.

    Attributes:
        rule: short name of what was looked for.
        place: layer, node or tensor.
        message: what was found.
        consequence: what it does to results.
        cure: what to do about it.
    """

    rule: str
    place: str
    message: str
    consequence: str
    cure: str

    def as_json(self) -> dict[str, str]:
        """As plain values."""
        return asdict(self)


def check(path: str | Path, options: ReadOptions | None = None) -> list[Finding]:
    """Look for what goes wrong in practice in a file.

    Args:
        path: a file of any known framework.
        options: what it does not say itself.

    Raises:
        BadFile, AmbiguousSource, UnsupportedSource: see ``read``; an ONNX file whose layers cannot be read
            is still checked node by node.
    """
    path = Path(path)
    archive = registry.container_module(registry.container_of(path).name).read(path)
    found = list(_not_finite(archive))
    proto = archive.metadata.get("model")
    if proto is not None and hasattr(proto, "graph"):
        found += _nodes(proto, archive.tensors)
    try:
        source = opening.open_source(path, options or ReadOptions())
    except UnsupportedSource:
        if proto is None:
            raise
        return found
    found += _keras(source.model, source.framework)
    for name, layer in source.model.recurrent.items():
        found += _layer(name, layer)
    return found


def _not_finite(archive: Archive) -> Iterator[Finding]:
    for name, tensor in archive.tensors.items():
        array = tensor.read()
        if count := not_finite(array):
            finite = np.isfinite(array)
            at = np.unravel_index(int(np.argmin(finite)), array.shape)
            yield Finding(
                "not_finite",
                f"tensor {name!r}",
                f"{count} of {array.size} elements are NaN or infinite, the first at "
                f"{tuple(int(n) for n in at)}",
                "Every result that they reach is NaN, and runtimes differ in how far it spreads.",
                "Go back to a checkpoint from before training diverged.",
            )


# Canonical layers.


def _layer(name: str, layer: RecurrentLayer) -> Iterator[Finding]:
    place = f"layer {name!r}"
    for direction in layer.directions:
        side = f" ({direction.direction})" if len(layer.directions) == 2 else ""
        weights = direction.weights
        kernel, recurrent, bias = weights.kernel, weights.recurrent, weights.bias_input
        recurrent_bias = weights.bias_recurrent
        equations = direction.equations
        if isinstance(equations, GruEquations) and equations.reset is ResetPlace.BEFORE_PRODUCT:
            both = [b.get(Gate.CANDIDATE) for b in (bias, recurrent_bias)]
            if all(b is not None and np.any(b) for b in both):
                yield Finding(
                    "linear_before_reset",
                    place + side,
                    "the reset gate acts before the recurrent product (linear_before_reset=0), but the "
                    "candidate has a recurrent bias of its own",
                    "Weights with two candidate biases were trained with the reset gate after the product "
                    "(PyTorch, cuDNN, Keras reset_after=True); with these equations results are wrong by "
                    "several per cent.",
                    "Export again with linear_before_reset=1, or set that attribute, and verify against "
                    "the model that was trained.",
                )
        yield from _gates(place + side, layer.cell, kernel, recurrent, bias, recurrent_bias)


def _gates(
    place: str,
    cell: Cell,
    kernel: Mapping[Gate, Array],
    recurrent: Mapping[Gate, Array],
    bias: Mapping[Gate, Array],
    recurrent_bias: Mapping[Gate, Array],
) -> Iterator[Finding]:
    sizes = {}
    for gate in GATES[cell]:
        blocks = [np.asarray(kernel[gate], np.float64), np.asarray(recurrent[gate], np.float64)]
        if not all(np.isfinite(block).all() for block in blocks):
            return
        sizes[gate] = float(np.sqrt(np.mean(np.concatenate([b.ravel() for b in blocks]) ** 2)))
    dead = [gate for gate, size in sizes.items() if size == 0.0]
    for gate in dead:
        yield Finding(
            "dead_gate",
            f"{place}, {gate} gate",
            "all its input and recurrent weights are zero",
            "The gate is a constant: it sees neither input nor state. A conversion that lost a tensor "
            "looks like this.",
            "Compare with the model that was trained; convert again if it has weights there.",
        )
    alive = {gate: size for gate, size in sizes.items() if size > 0.0}
    if alive and max(alive.values()) > SPREAD * min(alive.values()):
        small, large = min(alive, key=lambda g: alive[g]), max(alive, key=lambda g: alive[g])
        yield Finding(
            "gate_statistics",
            place,
            f"the weights of the {large} gate (rms {alive[large]:.3g}) are {alive[large] / alive[small]:.3g} "
            f"times those of the {small} gate (rms {alive[small]:.3g})",
            "Gates of one layer train to the same order of magnitude; this suggests that a scale was lost "
            "or that the tensor was cut in the wrong places.",
            "Check how the file was made; lstmconvert identify says what the arrays fit.",
        )
    elif alive and max(alive.values()) > HUGE:
        large = max(alive, key=lambda g: alive[g])
        yield Finding(
            "gate_statistics",
            place,
            f"the weights of the {large} gate have rms {alive[large]:.3g}",
            "Every gate saturates: the layer answers in steps.",
            "Look for a wrong byte order or dtype in how the file was made.",
        )
    for n, one in enumerate(GATES[cell]):
        for other in GATES[cell][n + 1 :]:
            if one in dead or kernel[one].size < 2:
                continue
            if same_bits(kernel[one], kernel[other]) and same_bits(recurrent[one], recurrent[other]):
                yield Finding(
                    "gate_statistics",
                    place,
                    f"the {one} gate and the {other} gate have the same weights, bit for bit",
                    "Training never makes two equal gates: one block was copied over another, or the file "
                    "is a test that cannot tell gates apart.",
                    "Check how the file was made.",
                )
    if cell is Cell.LSTM and bias:
        yield from _forget_bias(place, bias, recurrent_bias)


def _forget_bias(
    place: str, bias: Mapping[Gate, Array], recurrent_bias: Mapping[Gate, Array]
) -> Iterator[Finding]:
    """The forget bias starts at one in most frameworks, and training rarely takes it far away."""
    total = {}
    for gate, block in bias.items():
        second = recurrent_bias.get(gate)
        total[gate] = np.asarray(block, np.float64) + (0 if second is None else second)
    near_one = [g for g, b in total.items() if b.size > 1 and abs(b.mean() - 1) < 0.25 and b.std() < 0.5]
    forget = total.get(Gate.FORGET)
    if forget is not None and len(near_one) == 1 and Gate.FORGET not in near_one and abs(forget.mean()) < 0.4:
        yield Finding(
            "gate_statistics",
            place,
            f"the bias of the {near_one[0]} gate lies near 1 (mean {total[near_one[0]].mean():.2f}), that of "
            f"the forget gate does not (mean {forget.mean():.2f})",
            "Most frameworks start the forget bias at 1: the gates may stand in another order than the file "
            "says.",
            "Let lstmconvert identify find the order with a sample of inputs and outputs.",
        )


def _keras(model: Model, framework: str) -> Iterator[Finding]:
    release = str(model.metadata.get("keras_version", ""))
    if framework != "keras" or not release[:1].isdigit() or int(release.split(".")[0]) >= 3:
        return
    for name, layer in model.recurrent.items():
        roles = [
            role
            for role in layer.equations.__dataclass_fields__
            if getattr(getattr(layer.equations, role), "kind", None) == "hard_sigmoid"
        ]
        if roles:
            yield Finding(
                "keras2_hard_sigmoid",
                f"layer {name!r}",
                f"{', '.join(roles)} is hard_sigmoid in a file of Keras {release}",
                "Keras 2 computes clip(0.2 x + 0.5, 0, 1), Keras 3 clip(x / 6 + 0.5, 0, 1) under "
                "the same name: "
                "loaded under Keras 3 the model computes something else, without an error.",
                "Convert it to a target that spells the slope out, or load it with tf_keras.",
            )


# Nodes of an ONNX graph.

_RECURRENT = ("LSTM", "GRU", "RNN")
_NEEDED = {"Affine": "ab", "ScaledTanh": "ab", "ThresholdedRelu": "a", "LeakyRelu": "a", "Elu": "a"}
"""Activations whose parameters runtimes do not agree on when they are left out (``a`` alpha, ``b`` beta).

HardSigmoid is not among them: its default, 0.2 and 0.5, is what ONNX Runtime 1.32 computes.
"""
_STATE_PLACES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
_MOVES = (
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Reshape",
    "Identity",
    "Cast",
    "Concat",
    "Slice",
    "Split",
    "Gather",
)


def _nodes(proto: Any, tensors: Tensors) -> Iterator[Finding]:
    for graph in _graphs(proto.graph):
        for number, node in enumerate(graph.node):
            if node.op_type in _RECURRENT and node.domain in ("", "ai.onnx"):
                place = f"node {node.name or f'{node.op_type} {number}'!r}"
                yield from _attributes(place, node)
                yield from _lengths(place, node, graph, tensors)
                yield from _states(place, node, graph)


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _attributes(place: str, node: Any) -> Iterator[Finding]:
    from onnx import helper

    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if given.get("layout", 0) == 1:
        yield Finding(
            "batch_major_layout",
            place,
            "layout=1 (batch first)",
            "ONNX Runtime refuses the file; other runtimes ignore the attribute and take time for batch.",
            "Write layout=0 with a Transpose before and after: lstmconvert convert does that.",
        )
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in given.get("activations", ())]
    proper = {known.lower(): known for known in _NEEDED}
    needed = [proper[n.lower()] for n in names if n.lower() in proper]
    for letter, attribute in (("a", "activation_alpha"), ("b", "activation_beta")):
        missing = [name for name in needed if letter in _NEEDED[name]]
        if missing and not given.get(attribute):
            yield Finding(
                "activation_parameters",
                place,
                f"{', '.join(dict.fromkeys(missing))} without {attribute}",
                "ONNX Runtime takes the missing value for 0: Affine and ScaledTanh give zeros, silently.",
                f"Write {attribute} out.",
            )


def _input(node: Any, place: int) -> str:
    return str(node.input[place]) if place < len(node.input) else ""


def _output(node: Any, place: int) -> str:
    return str(node.output[place]) if place < len(node.output) else ""


def _lengths(place: str, node: Any, graph: Any, tensors: Tensors) -> Iterator[Finding]:
    if not _input(node, 4) or not _output(node, 0):
        return
    why = _unmasked_use(_output(node, 0), graph, _constants(graph, tensors))
    if why:
        yield Finding(
            "lengths_ignored",
            place,
            f"it is given sequence_lens, but its output is used without them: {why}",
            "Sequences shorter than the longest take part with the zeros of their padding.",
            "Use Y_h, which is the state at each sequence's own length, or mask before reducing over time.",
        )


def _unmasked_use(start: str, graph: Any, constants: Mapping[str, Array]) -> str:
    """How the padded end of an output is used, following it through nodes that only move it."""
    seen, left = {start}, [start]
    while left:
        value = left.pop()
        for node in graph.node:
            if value not in node.input:
                continue
            if node.op_type == "Gather" and node.input[0] == value:
                if np.array_equal(np.ravel(constants.get(node.input[1], [0])), [-1]):
                    return f"{node.op_type} takes the last step"
                continue
            if node.op_type == "Slice" and len(node.input) > 1 and node.input[0] == value:
                if np.array_equal(np.ravel(constants.get(node.input[1], [0])), [-1]):
                    return f"{node.op_type} takes the last step"
                continue
            if node.op_type in ("ReduceMean", "GlobalAveragePool"):
                return f"{node.op_type} averages over all steps"
            if node.op_type in ("Squeeze", "Unsqueeze", "Transpose", "Reshape", "Identity", "Cast"):
                new = [name for name in node.output if name not in seen]
                seen.update(new)
                left += new
    return ""


def _constants(graph: Any, held: Tensors) -> dict[str, Array]:
    """The small whole numbers of a graph: indices and shapes."""
    from lstmconvert.onnx_proto import TensorProto, array_of

    found: dict[str, Array] = {}
    tensors = [(t.name, t) for t in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant":
            tensors += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
    for name, tensor in tensors:
        if tensor.data_type not in (TensorProto.INT64, TensorProto.INT32):
            continue
        if tensor.data_location != TensorProto.EXTERNAL:
            found[name] = array_of(tensor)
        elif name in held and held[name].size < 64:
            found[name] = held[name].read()
    return found


def _states(place: str, node: Any, graph: Any) -> Iterator[Finding]:
    places = _STATE_PLACES[node.op_type]
    held = [bool(_input(node, n)) for n in places]
    if any(held) and not all(held):
        given, missing = ("initial_h", "initial_c") if held[0] else ("initial_c", "initial_h")
        yield Finding(
            "state_dropped",
            place,
            f"it is given {given} but not {missing}",
            f"The missing state starts at zero: what was carried in {missing} is lost.",
            "Give both.",
        )
        return
    outside = {i.name for i in graph.input} - {t.name for t in graph.initializer}
    if not all(held) or not all(_from(_input(node, n), graph) & outside for n in places):
        return
    finals = [_output(node, 1 + n) for n in range(len(places))]
    used = {name for other in graph.node for name in other.input} | {o.name for o in graph.output}
    lost = [
        name for name, final in zip(("Y_h", "Y_c"), finals, strict=False) if not final or final not in used
    ]
    if lost:
        yield Finding(
            "state_dropped",
            place,
            f"its initial state is an input of the model, its final state ({', '.join(lost)}) goes nowhere",
            "A caller that runs the model piece by piece cannot carry the state on.",
            "Make the final states outputs of the model (lstmconvert convert --states).",
        )


def _from(name: str, graph: Any) -> set[str]:
    """The values that one is made of by moving alone."""
    producers = {output: node for node in graph.node for output in node.output}
    found, left = {name}, [name]
    while left:
        node = producers.get(left.pop())
        if node is not None and node.op_type in _MOVES:
            new = [i for i in node.input if i and i not in found]
            found.update(new)
            left += new
    return found
