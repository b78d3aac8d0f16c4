"""A whole model from a bare state_dict and a short description of how its modules follow each other.

A state_dict has every weight and no wiring. The description is a TOML file of the user's own::

    input = "tokens"                 # or "features", the default

    [[step]]
    module = "embed"                 # what stands before the names of its tensors
    kind = "embedding"

    [[step]]
    module = "lstm"                  # all layers of the module
    kind = "lstm"
    use = "last_step"                # or "sequence", the default, or "final_state"

    [[step]]
    module = "head"
    kind = "linear"
    activation = "softmax"

``kind`` is one of embedding, lstm, gru, rnn, linear, layer_norm, batch_norm, activation, mean_over_time,
max_over_time and last_step; the last four have no module. ``activation`` follows the step; of an rnn it is
its nonlinearity. A step takes what the one before it gives, or the step that ``from`` names by its ``name``
(that of the module where none is given), ``"input"`` being the input; ``output = ["a", "b"]`` names the steps
whose results are the model's, the last one being the default. ``epsilon`` is that of a normalization.
``ignore = ["decoder.*"]`` lists tensors that are meant to be left out: any other that is not used is an
error.

The model takes batches first, as (batch, time) of tokens or (batch, time, features). ``use`` says which of
torch's results is meant: ``y``, ``y[:, -1]``, or ``h_n`` of the last layer with both directions joined.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lstmconvert import layout, mapping
from lstmconvert import operations as ops
from lstmconvert.activations import KINDS, Activation
from lstmconvert.canonical import Returns
from lstmconvert.containers import Archive
from lstmconvert.errors import BadFile
from lstmconvert.frameworks.pytorch import reader
from lstmconvert.gates import Cell
from lstmconvert.model import Call, Layer, Model, OperationLayer, Port
from lstmconvert.reading_notes import Note, dequantised
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

_RECURRENT = ("lstm", "gru", "rnn")
_WITH_MODULE = (*_RECURRENT, "embedding", "linear", "layer_norm", "batch_norm")
_WITHOUT = ("activation", "mean_over_time", "max_over_time", "last_step")
_USES = ("sequence", "last_step", "final_state")
_TOP = {"input", "output", "ignore", "step"}
_EPSILON = 1e-5
"""torch's default, of both normalizations."""
_INPUT = "input"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the description.

    Attributes:
        kind, module, use, activation: as in the file; empty where not said.
        name: by which others name it.
        source: the step, or the input, whose result it takes.
        epsilon: of a normalization.
    """

    kind: str
    name: str
    source: str
    module: str = ""
    use: str = "sequence"
    activation: str = ""
    epsilon: float = _EPSILON


@dataclass(frozen=True, slots=True)
class Architecture:
    """A description that was read: the steps, whether tokens go in, what comes out, what is left out."""

    steps: tuple[Step, ...]
    tokens: bool
    outputs: tuple[str, ...]
    ignore: tuple[str, ...]


def load(path: Path) -> Architecture:
    """Read and check a description.

    Raises:
        BadFile: naming the step and the key that is wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile("the description of the architecture cannot be read", file=path, found=error) from error
    try:
        return _architecture(data)
    except BadFile as error:
        raise error.located(file=path) from error.__cause__


def _architecture(data: Mapping[str, Any]) -> Architecture:
    _known(data, _TOP, "the description")
    steps = data.get("step")
    if not isinstance(steps, list) or not steps:
        raise BadFile("there are no steps", expected="at least one [[step]] with a kind")
    told = data.get("input", "features")
    if told not in ("tokens", "features"):
        raise BadFile("the input is not one of those there are", found=told, expected="tokens or features")
    found: list[Step] = []
    for number, step in enumerate(steps, 1):
        found.append(_step(step, f"step {number}", [s.name for s in found]))
    names = [step.name for step in found]
    outputs = data.get("output", names[-1:])
    outputs = [outputs] if isinstance(outputs, str) else outputs
    for name in outputs if isinstance(outputs, list) else [outputs]:
        if name not in names:
            raise BadFile("an output is no step", found=repr(name), expected=", ".join(names))
    ignore = data.get("ignore", [])
    if not isinstance(ignore, list) or not all(isinstance(one, str) for one in ignore):
        raise BadFile("ignore is a list of names of tensors, with * for any", found=repr(ignore))
    return Architecture(tuple(found), told == "tokens", tuple(outputs), tuple(ignore))


def _step(step: object, place: str, before: list[str]) -> Step:
    if not isinstance(step, dict):
        raise BadFile("a step is a table", place=place, found=type(step).__name__)
    _known(step, {"kind", "module", "use", "activation", "name", "from", "epsilon"}, place)
    kind, module = step.get("kind"), step.get("module", "")
    if kind not in (*_WITH_MODULE, *_WITHOUT):
        raise BadFile(
            "the kind is not one of those there are",
            place=place,
            found=repr(kind),
            expected=", ".join((*_WITH_MODULE, *_WITHOUT)),
        )
    if (kind in _WITH_MODULE) != bool(module) or not isinstance(module, str):
        word = "needs" if kind in _WITH_MODULE else "has no"
        raise BadFile(f"a step of the kind {kind} {word} module", place=place, found=repr(module))
    use, activation = step.get("use", "sequence"), step.get("activation", "")
    if use not in _USES or (use != "sequence" and kind not in _RECURRENT):
        raise BadFile(
            "the use is not one of those there are", place=place, found=repr(use), expected=", ".join(_USES)
        )
    allowed = ("tanh", "relu") if kind == "rnn" else () if kind in ("lstm", "gru") else KINDS
    if (activation or kind in ("activation", "rnn")) and activation not in allowed:
        raise BadFile(
            "the activation is not one that this step can have",
            place=place,
            found=repr(activation),
            expected=", ".join(allowed) or "none: those of an LSTM and a GRU are fixed",
        )
    name = step.get("name") or module or f"{kind}_{len(before) + 1}"
    if not isinstance(name, str) or name in (*before, _INPUT):
        raise BadFile("two steps have one name", place=place, found=repr(name), expected="a name of its own")
    source = step.get("from", before[-1] if before else _INPUT)
    if source not in (*before, _INPUT):
        raise BadFile(
            "from names no step before this one", place=place, found=repr(source), expected=", ".join(before)
        )
    epsilon = step.get("epsilon", _EPSILON)
    if not isinstance(epsilon, int | float) or isinstance(epsilon, bool):
        raise BadFile("epsilon is a number", place=place, found=repr(epsilon))
    return Step(kind, name, source, module, use, activation, float(epsilon))


def _known(table: Mapping[str, Any], keys: set[str], place: str) -> None:
    unknown = sorted(set(table) - keys)
    if unknown:
        raise BadFile("a key is not known", place=place, found=unknown[0], expected=", ".join(sorted(keys)))


def nonlinearity(architecture: Architecture) -> str | None:
    """The activation of all simple RNNs, or ``None`` where there are none.

    Raises:
        BadFile: when they have different ones.
    """
    found = list(dict.fromkeys(step.activation for step in architecture.steps if step.kind == "rnn"))
    if len(found) > 1:
        raise BadFile(
            "simple RNNs of different activations are not read from one state_dict", found=", ".join(found)
        )
    return found[0] if found else None


def wired(weights: Model, archive: Archive, architecture: Architecture) -> Model:
    """The whole model.

    Args:
        weights: the recurrent layers of the state_dict.
        archive: the state_dict.
        architecture: what the user says of it.

    Raises:
        BadFile: when a module is not there, its shapes do not follow each other, or a tensor is left over.
    """
    tensors = archive.tensors
    building = _Building(weights, tensors)
    widths: dict[str, tuple[str, int | None, int]] = {_INPUT: (_INPUT, None, 2 if architecture.tokens else 3)}
    for number, step in enumerate(architecture.steps, 1):
        try:
            widths[step.name] = building.add(step, *widths[step.source], tokens=architecture.tokens)
        except BadFile as error:
            raise error.located(place=f"step {number} ({step.name})") from error.__cause__
    left = [
        name
        for name in tensors
        if name not in building.used
        and not any(fnmatch.fnmatchcase(name, one) for one in architecture.ignore)
    ]
    if left:
        raise BadFile(
            "the description leaves tensors out",
            found=", ".join(left[:8]),
            expected="a step for each of them",
            remedy="Describe them, or list them under ignore.",
        )
    size = building.input_size
    if not architecture.tokens and size is None:
        raise BadFile("the size of the features is not known", expected="a recurrent layer or linear first")
    shape = (None, None) if architecture.tokens else (None, None, size)
    ports = []
    for name in architecture.outputs:
        value, width, rank = widths[name]
        ports.append(Port(name, value, (*(None,) * (rank - 1), width)))
    dtype = "int64" if architecture.tokens else str(next(iter(weights.recurrent.values())).dtype)
    return replace(
        weights,
        layers=MappingProxyType(building.layers),
        calls=tuple(building.calls),
        inputs=(Port("input", _INPUT, shape, dtype),),
        outputs=tuple(ports),
        metadata=MappingProxyType({"rewrites": _dequantised(archive, building.used)}),
    )


def _dequantised(archive: Archive, used: AbstractSet[str]) -> list[Note]:
    """What the container dequantised of the tensors that are used."""
    return [
        dequantised(name.rpartition(".")[0], name, *said)
        for name, said in archive.metadata.get("quantised", {}).items()
        if name in used
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """An operation of a step, the width and rank that it gives, its weights, and the width that it takes."""

    operation: ops.Operation
    gives: int | None
    rank: int
    parts: dict[str, Lazy] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    takes: int | None = None


class _Building:
    """Layers and calls, as the steps come."""

    def __init__(self, weights: Model, tensors: Mapping[str, Lazy]) -> None:
        self.weights = weights
        self.tensors = tensors
        self.layers: dict[str, Layer] = {}
        self.calls: list[Call] = []
        self.used: set[str] = set()
        self.input_size: int | None = None

    def add(
        self, step: Step, value: str, width: int | None, rank: int, *, tokens: bool
    ) -> tuple[str, int | None, int]:
        """The value that a step gives, its width and its rank."""
        if value == _INPUT and tokens != (step.kind == "embedding"):
            raise BadFile(
                "tokens go into an embedding, and nothing else does",
                found=step.kind,
                expected='input = "tokens" and an embedding first, or input = "features"',
            )
        if step.kind in _RECURRENT:
            return self._recurrent(step, value, width, rank)
        made = self._operation(step, width, rank)
        if made.takes is not None:
            self._expect(step, value, made.takes, width)
        self.used |= set(made.names)
        layer = OperationLayer(step.name, made.operation, MappingProxyType(made.parts), made.names)
        value = self._call(layer, value)
        if step.activation and step.kind not in ("activation", "linear"):
            activation = ops.Activate(Activation(step.activation))
            value = self._call(OperationLayer(f"{step.name}_activation", activation), value)
        return value, made.gives, made.rank

    def _operation(self, step: Step, width: int | None, rank: int) -> _Made:
        """What a step other than a recurrent layer is, for a value of a width and a rank."""
        match step.kind:
            case "embedding":
                parts, names = self._parts(step, "embedding", ("weight",))
                return _Made(ops.Embedding(), parts["embeddings"].shape[1], 3, parts, names)
            case "linear":
                parts, names = self._parts(step, "dense", ("weight", "bias"))
                gives, takes = parts["kernel"].shape
                dense = ops.Dense(Activation(step.activation or "linear"))
                return _Made(dense, gives, rank, parts, names, takes)
            case "layer_norm":
                own = self._own(step, ("weight", "bias"))
                parts = {part: own[n] for part, n in (("scale", "weight"), ("offset", "bias")) if n in own}
                takes = next(iter(parts.values())).shape[0]
                normalization = ops.LayerNormalization(epsilon=step.epsilon)
                return _Made(normalization, width, rank, parts, self._names(step, own), takes)
            case "batch_norm":
                parts, names = self._parts(
                    step, "batch_normalization", ("weight", "bias", "running_mean", "running_var")
                )
                counted = f"{step.module}.num_batches_tracked"
                names += (counted,) if counted in self.tensors else ()
                batch = ops.BatchNormalization(epsilon=step.epsilon)
                return _Made(batch, width, rank, parts, names, parts["mean"].shape[0])
            case "activation":
                return _Made(ops.Activate(Activation(step.activation)), width, rank)
        if rank != 3:
            raise BadFile("there are no steps of time left to take one of", found=step.kind)
        if step.kind == "last_step":
            return _Made(ops.Select(1, -1), width, 2)
        pool = ops.Pool.AVERAGE if step.kind == "mean_over_time" else ops.Pool.MAX
        return _Made(ops.GlobalPooling(pool), width, 2)

    def _recurrent(self, step: Step, value: str, width: int | None, rank: int) -> tuple[str, int | None, int]:
        stack = [
            layer
            for layer in self.weights.recurrent.values()
            if layer.notes.get(reader.PREFIX, "").rstrip(".") == step.module
        ]
        if not stack or str(stack[0].cell) != step.kind:
            kinds = {
                layer.notes.get(reader.PREFIX, "").rstrip("."): layer.cell
                for layer in self.weights.recurrent.values()
            }
            raise BadFile(
                f"there is no {Cell(step.kind)} of this name in the file",
                found=repr(step.module),
                expected=", ".join(f"{cell} {name!r}" for name, cell in kinds.items()) or "a recurrent layer",
            )
        if rank != 3:
            raise BadFile("there are no steps of time left to run over", found=f"a value of {rank} axes")
        self._expect(step, value, stack[0].input_size, width)
        for number, layer in enumerate(stack):
            last = number == len(stack) - 1
            ends = last and (
                step.use == "final_state" or (step.use == "last_step" and len(layer.directions) == 1)
            )
            sequence = replace(layer.sequence, returns=Returns.LAST) if ends else layer.sequence
            self.used |= set(layer.origin)
            name = step.name if number == 0 else f"{step.name}_{number}"
            value = self._call(replace(layer, name=name, sequence=sequence), value)
        output = len(stack[-1].directions) * stack[-1].recurrent_size
        if step.use == "last_step" and len(stack[-1].directions) == 2:
            value = self._call(OperationLayer(f"{step.name}_last_step", ops.Select(1, -1)), value)
        return value, output, 3 if step.use == "sequence" else 2

    def _expect(self, step: Step, value: str, size: int, width: int | None) -> None:
        if value == _INPUT:
            if self.input_size not in (None, size):
                raise BadFile(
                    "two steps take the input in different sizes", found=size, expected=self.input_size
                )
            self.input_size = size
        elif width != size:
            raise BadFile(
                f"the sizes do not follow each other: {step.name} takes {size} features",
                found=f"{width} from the step before",
            )

    def _call(self, layer: Layer, value: str) -> str:
        self.layers[layer.name] = layer
        self.calls.append(Call(layer.name, (value,), (f"{layer.name}_result",)))
        return f"{layer.name}_result"

    def _parts(
        self, step: Step, name: str, expected: tuple[str, ...]
    ) -> tuple[dict[str, Lazy], tuple[str, ...]]:
        own = self._own(step, expected)
        described = mapping.load("pytorch").layouts[name]
        return dict(layout.unpack_operation(described, own)), self._names(step, own)

    def _own(self, step: Step, expected: tuple[str, ...]) -> dict[str, Lazy]:
        """The tensors of a module by their own names."""
        own = {
            name: self.tensors[f"{step.module}.{name}"]
            for name in expected
            if f"{step.module}.{name}" in self.tensors
        }
        if not own:
            raise BadFile(
                f"there is no module {step.module!r} of the kind {step.kind} in the file",
                expected=f"tensors called {', '.join(f'{step.module}.{name}' for name in expected)}",
                found=", ".join(sorted({name.rpartition(".")[0] for name in self.tensors}))[:200],
            )
        return own

    @staticmethod
    def _names(step: Step, own: Mapping[str, Lazy]) -> tuple[str, ...]:
        return tuple(f"{step.module}.{name}" for name in own)
