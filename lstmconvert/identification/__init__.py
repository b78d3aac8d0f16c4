"""Which layout and equations are these arrays? ``identify`` says, and how certain it is.

With a sample of inputs and outputs it searches where the numbers may lie (``forms``, ``structures``), which
gate may stand where and which equations may run (``candidates``), measures them all (``evaluation``,
``search``) and says what that has shown (``verdict``). Without a sample there is only ``evidence``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lstmconvert import registry
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.errors import AmbiguousSource, BadFile, ConversionError, UnsupportedSource, Usage
from lstmconvert.gates import GATES
from lstmconvert.identification import evidence as evidence_of_arrays
from lstmconvert.identification import known, mapping_text, readings, structures
from lstmconvert.identification.candidates import Choice, equations
from lstmconvert.identification.evidence import Evidence
from lstmconvert.identification.forms import Form, forms
from lstmconvert.identification.search import Found, Hit, search
from lstmconvert.identification.verdict import Verdict, differences, judge, recurrent_layer
from lstmconvert.tensors import Array, Lazy

__all__ = ["Alternative", "Evidence", "Identification", "IdentifiedLayer", "identify"]

_MOST_SHOWN = 5
_LARGEST = 1 << 32


@dataclass(frozen=True, slots=True, eq=False)
class IdentifiedLayer:
    """One recurrent layer among the arrays.

    Attributes:
        name: its name in the mapping file.
        layer: the canonical layer; with the most plausible equations where there was no sample.
        form: where its numbers lie.
        axes: part to name and axes of each of its arrays.
        evidence: what the arrays alone say.
        statistics: of every block.
    """

    name: str
    layer: RecurrentLayer
    form: Form
    axes: Mapping[str, tuple[tuple[str, str], ...]]
    evidence: tuple[Evidence, ...]
    statistics: tuple[Mapping[str, object], ...]


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another way to read the arrays.

    Attributes:
        gates: of the first layer, in stored order.
        differs: in what it differs from the one that was chosen.
        error: its largest difference from the sample, or a lower bound of it; ``None`` without a sample.
        same_function: whether it computes the same on all inputs.
        excluded: whether the sample excludes it.
    """

    gates: tuple[str, ...]
    differs: str
    error: float | None
    same_function: bool
    excluded: bool


@dataclass(frozen=True, slots=True, eq=False)
class Identification:
    """What some arrays are.

    Attributes:
        cell: of the first recurrent layer.
        gates: of the first recurrent layer, in stored order.
        certain: whether the sample excludes everything that computes something else.
        error: largest difference from the sample; ``None`` without one.
        runner_up_error: that of the nearest candidate that computes something else.
        tolerance: the difference that rounding explains.
        mapping: name of a framework that lays its numbers out so, or the mapping file that was written.
        frameworks: all that lay the first layer out and compute it so.
        alternatives: other ways to read the arrays, the nearest first.
        layers: the recurrent layers.
        head: activations of the dense layers behind them, with the names of their arrays.
        sample: how the sample was read, ``None`` without one.
        states: in which order states were given, if any were.
        unused: arrays that play no part.
        doubts: why it is not certain.
        tried: how many candidates were measured.
        seconds: how long it took.
    """

    cell: str
    gates: tuple[str, ...]
    certain: bool
    error: float | None
    runner_up_error: float | None
    tolerance: float | None
    mapping: str | None
    frameworks: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
    layers: tuple[IdentifiedLayer, ...]
    head: tuple[tuple[str, tuple[str, ...]], ...]
    sample: str | None
    states: tuple[str, ...]
    unused: tuple[str, ...]
    doubts: tuple[str, ...]
    tried: int
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the sample is explained to rounding; false without one."""
        return self.error is not None and self.tolerance is not None and self.error <= self.tolerance

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        from lstmconvert.report import activations

        def finite(value: float | None) -> float | None:
            return value if value is not None and np.isfinite(value) else None

        return {
            "cell": self.cell,
            "gates": list(self.gates),
            "certain": self.certain,
            "error": finite(self.error),
            "runner_up_error": finite(self.runner_up_error),
            "tolerance": self.tolerance,
            "mapping": self.mapping,
            "frameworks": list(self.frameworks),
            "alternatives": [
                {
                    "gates": list(other.gates),
                    "differs": other.differs,
                    "error": finite(other.error),
                    "same_function": other.same_function,
                    "excluded": other.excluded,
                }
                for other in self.alternatives
            ],
            "layers": [
                {
                    "name": own.name,
                    "cell": str(own.layer.cell),
                    "gates": [str(gate) for gate in own.layer.stored_gates],
                    "input_size": own.layer.input_size,
                    "hidden_size": own.layer.hidden_size,
                    "tensors": {
                        part: [list(entry) for entry in entries] for part, entries in own.axes.items()
                    },
                    "activations": activations(own.layer.equations),
                    "equations": _told(own.layer),
                    "evidence": [
                        {"claim": e.claim, "because": e.because, "certain": e.certain} for e in own.evidence
                    ],
                    "statistics": [dict(entry) for entry in own.statistics],
                }
                for own in self.layers
            ],
            "head": [{"activation": activation, "tensors": list(names)} for activation, names in self.head],
            "sample": self.sample,
            "states": list(self.states),
            "unused": list(self.unused),
            "doubts": list(self.doubts),
            "tried": self.tried,
            "seconds": self.seconds,
        }


def _told(layer: RecurrentLayer) -> dict[str, object]:
    """The options beside the activations that are not the same everywhere."""
    own = layer.equations
    told: dict[str, object] = {}
    for name in ("reset", "update_keeps"):
        if (value := getattr(own, name, None)) is not None:
            told[name] = str(value)
    if str(layer.cell) == "lstm":
        told["constant"] = {str(gate): value for gate, value in own.constant.items()}
    return told


def identify(
    weights: str | Path | Mapping[str, Any] | Sequence[Any],
    inputs: Any = None,
    outputs: Any = None,
    *,
    write_mapping: str | Path | None = None,
    overwrite: bool = False,
) -> Identification:
    """Find out which layout and equations some arrays are.

    Args:
        weights: a file or folder that can be read, or the arrays, named or in order.
        inputs: a sample's input (batch, time, features), (time, batch, features) or (time, features); or a
            tuple of it and the initial states, each (batch, size).
        outputs: its output, the sequence or its last step, of the last recurrent layer or of the dense layers
            behind it; or a tuple of it and the final states.
        write_mapping: write a mapping file here that makes the arrays convertible; only what is certain is
            written.
        overwrite: replace a mapping file that exists.

    Raises:
        BadFile, UnsupportedSource: when the file cannot be read, or no arrays of it make a recurrent layer.
        Usage: when a sample is no sample, or fits no layer that the arrays could make.
        AmbiguousSource: when a mapping file is wanted and nothing is certain.
    """
    started = time.perf_counter()
    path = Path(weights) if isinstance(weights, (str, Path)) else None
    container, arrays, ignored = _gathered(weights, path)
    if (inputs is None) != (outputs is None):
        raise Usage(
            "a sample is inputs and outputs together",
            found="inputs alone" if outputs is None else "outputs alone",
            remedy="Give both (--input X.npy --output Y.npy), or neither to see what the arrays say alone.",
        )
    try:
        if inputs is None:
            result = _from_arrays(arrays)
        else:
            result = _from_sample(arrays, readings.readings(readings.sample(inputs, outputs)))
    except ConversionError as error:
        raise error.located(file=path) from error.__cause__
    written = None
    if write_mapping is not None:
        written = _written(Path(write_mapping), result, path, container, arrays, overwrite=overwrite)
    return replace(
        result,
        mapping=written or result.mapping,
        unused=(*result.unused, *ignored),
        seconds=time.perf_counter() - started,
    )


def _with(
    result: Identification, *, mapping: str | None, unused: tuple[str, ...], seconds: float
) -> Identification:
    from dataclasses import replace

    return replace(result, mapping=mapping, unused=unused, seconds=seconds)


def _gathered(weights: Any, path: Path | None) -> tuple[str, dict[str, Array], tuple[str, ...]]:
    """The container, the arrays of numbers and the names of what else there is."""
    if path is not None:
        entry = registry.container_of(path)
        container = entry.name
        try:
            tensors: Mapping[str, Any] = registry.container_module(entry.name).read(path).tensors
        except ConversionError as error:
            raise error.located(file=path) from error.__cause__
    elif isinstance(weights, Mapping):
        container, tensors = "npz", weights
    else:
        container, tensors = "npz", {f"arr_{n}": array for n, array in enumerate(weights)}
    arrays: dict[str, Array] = {}
    ignored: list[str] = []
    for name, tensor in tensors.items():
        lazy = tensor if isinstance(tensor, Lazy) else Lazy.of(np.asarray(tensor))
        floating = lazy.dtype.kind == "f" or lazy.dtype.name in ("bfloat16",)
        if floating and lazy.shape and 0 < lazy.size < _LARGEST and len(lazy.shape) <= 4:
            arrays[name] = lazy.read()
        else:
            ignored.append(name)
    if not arrays:
        raise UnsupportedSource(
            "there are no arrays of floating point numbers",
            file=path,
            found=", ".join(list(tensors)[:8]) or "nothing",
        )
    for name, array in arrays.items():
        if not np.isfinite(array.astype(np.float32, copy=False)).all() and array.dtype != np.float64:
            raise BadFile(
                "an array holds NaN or infinities: no sample can tell what it is",
                file=path,
                place=name,
                remedy="Go back to a checkpoint from before training diverged.",
            )
    return container, arrays, tuple(ignored)


def _shapes(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:8]) + (
        f" and {len(arrays) - 8} more" if len(arrays) > 8 else ""
    )


def _described(
    named: Mapping[str, tuple[Form, Choice]], arrays: Mapping[str, Array]
) -> tuple[IdentifiedLayer, ...]:
    result = []
    for name, (form, choice) in named.items():
        axes: dict[str, tuple[tuple[str, str], ...]] = {}
        for rule in form.rules:
            axes[str(rule.part)] = (*axes.get(str(rule.part), ()), (rule.tensor, rule.axes.text))
        own = [(tensor, arrays[tensor].shape) for tensor in arrays if tensor in form.tensors]
        rivals = [f for cell in GATES for f in forms(cell, own)]
        result.append(
            IdentifiedLayer(
                name,
                recurrent_layer(form, choice, arrays, name),
                form,
                MappingProxyType(axes),
                tuple(evidence_of_arrays.of_layer(form, arrays, rivals)),
                tuple(evidence_of_arrays.statistics(form, choice, arrays)),
            )
        )
    return tuple(result)


def _frameworks(
    form: Form, choice: Choice, arrays: Mapping[str, Array]
) -> tuple[tuple[str, ...], str | None]:
    """The frameworks that a layer could be of, and the one to name: of its layout at least."""
    exact = known.frameworks_like(form, choice, arrays)
    laid_out = [name for _, name, _ in known.layouts_like(form, choice)]
    return exact, next(iter((*exact, *laid_out)), None)


def _from_sample(arrays: Mapping[str, Array], read: Sequence[readings.Reading]) -> Identification:
    found = search(arrays, read)
    if found is None:
        sizes = ", ".join(dict.fromkeys(f"{r.x.shape[2]} to {r.y.shape[-1]}" for r in read))
        raise Usage(
            "no reading of the arrays takes the sample's input to its output",
            found=f"features {sizes}; arrays {_shapes(arrays)}",
            expected="recurrent layers, with dense layers behind them or not, of these features",
            remedy="Check that the sample belongs to these arrays.",
        )
    verdict = judge(found, arrays)
    best = found.hits[0]
    names = mapping_text.layer_names(best.structure.layers)
    named = dict(zip(names, zip(best.structure.layers, best.layers, strict=True), strict=True))
    form, choice = best.structure.layers[0], best.layers[0]
    frameworks, nearest = _frameworks(form, choice, arrays)
    return Identification(
        cell=str(form.cell),
        gates=tuple(str(gate) for gate in choice.gates),
        certain=verdict.certain,
        error=best.error,
        runner_up_error=None if verdict.runner_up is None else verdict.runner_up.error,
        tolerance=found.tolerance,
        mapping=nearest if found.fits else None,
        frameworks=frameworks,
        alternatives=_alternatives(found, verdict),
        layers=_described(named, arrays),
        head=tuple(
            (activation, dense.tensors)
            for activation, dense in zip(best.activations, best.structure.head, strict=True)
        ),
        sample=best.reading.words,
        states=best.states,
        unused=best.structure.unused,
        doubts=verdict.doubts,
        tried=found.tried,
        seconds=0.0,
    )


def _alternatives(found: Found, verdict: Verdict) -> tuple[Alternative, ...]:
    best = found.hits[0]
    chosen: list[tuple[Hit, bool, bool]] = [(hit, False, False) for hit in verdict.undecided[:_MOST_SHOWN]]
    if verdict.runner_up is not None and verdict.runner_up not in verdict.undecided:
        chosen.append((verdict.runner_up, False, True))
    chosen += [(hit, True, False) for hit in verdict.equivalent[:_MOST_SHOWN]]
    return tuple(
        Alternative(
            tuple(str(gate) for gate in hit.layers[0].gates),
            differences(best, [hit]),
            hit.error,
            same,
            excluded,
        )
        for hit, same, excluded in chosen
    )


def _from_arrays(arrays: Mapping[str, Array]) -> Identification:
    every = structures.alone({name: array.shape for name, array in arrays.items()})
    if not every:
        raise UnsupportedSource(
            "no arrays of these shapes make a recurrent layer",
            found=_shapes(arrays),
            expected="a recurrent kernel of (hidden, gates x hidden) and what belongs to it",
            remedy="Check that the file holds a whole layer, and not a part of one.",
        )
    chosen: list[tuple[Form, Choice]] = []
    others: list[Alternative] = []
    for rivals in every:
        form, choice, known_orders = _plausible(rivals, arrays)
        chosen.append((form, choice))
        if len(chosen) == 1:
            for name, order in known_orders:
                if order != choice.gates:
                    gates = tuple(str(gate) for gate in order)
                    others.append(
                        Alternative(gates, f"order of gates: {', '.join(gates)} ({name})", None, False, False)
                    )
    names = mapping_text.layer_names([form for form, _ in chosen])
    named = dict(zip(names, chosen, strict=True))
    form, choice = chosen[0]
    frameworks, nearest = _frameworks(form, choice, arrays)
    used = {tensor for own, _ in chosen for tensor in own.tensors}
    return Identification(
        cell=str(form.cell),
        gates=tuple(str(gate) for gate in choice.gates),
        certain=False,
        error=None,
        runner_up_error=None,
        tolerance=None,
        mapping=nearest,
        frameworks=frameworks,
        alternatives=tuple(others),
        layers=_described(named, arrays),
        head=(),
        sample=None,
        states=(),
        unused=tuple(name for name in arrays if name not in used),
        doubts=("there is no sample: this is what shapes and biases speak for, not a proof",),
        tried=0,
        seconds=0.0,
    )


def _plausible(
    rivals: Sequence[Form], arrays: Mapping[str, Array]
) -> tuple[Form, Choice, list[tuple[str, tuple[Any, ...]]]]:
    """The form and gates that the evidence and the habits of frameworks speak for, and known orders."""
    best: tuple[tuple[Any, ...], Form, Choice, list[tuple[str, tuple[Any, ...]]]] | None = None
    for number, form in enumerate(rivals):
        place = evidence_of_arrays.forget_position(form, arrays)
        known_orders = [(rank, name, layout.gates, layout) for rank, name, layout in known.orders_like(form)]
        gates = evidence_of_arrays.guess(form, arrays, [order for _, _, order, _ in known_orders])
        told = [layout for _, _, order, layout in known_orders if order == gates]
        own = next(
            (e for e in equations(form.cell) if told and _told_by(told[0], e)), equations(form.cell)[0]
        )
        nearest = known_orders[0][0][:-1] if known_orders else (9,)
        score = (place is None or not place[1], place is None, not known_orders, nearest, number)
        if best is None or score < best[0]:
            named = {order: (name, order) for _, name, order, _ in reversed(known_orders)}
            best = (score, form, Choice(gates, own), list(named.values()))
    assert best is not None
    return best[1:]


def _told_by(layout: Any, candidate: Any) -> bool:
    """Whether a layout's equations may be these."""
    dialect = layout.dialect
    fits = all(
        any(pattern.matches(getattr(candidate, option)) for pattern in patterns)
        for option, patterns in dialect.activations.items()
        if hasattr(candidate, option)
    )
    chosen = all(
        str(getattr(candidate, option)) in values
        for option, values in dialect.choices.items()
        if hasattr(candidate, option)
    )
    constant = dialect.constant is None or dict(candidate.constant) == dict(dialect.constant)
    return fits and chosen and constant


def _written(
    path: Path,
    result: Identification,
    source: Path | None,
    container: str,
    arrays: Mapping[str, Array],
    *,
    overwrite: bool,
) -> str:
    if not result.certain:
        raise AmbiguousSource(
            "a mapping file would be a guess: " + "; ".join(result.doubts),
            file=source,
            remedy="Give a sample of inputs and outputs that excludes the others (--input, --output): "
            "several sequences of several steps, and the whole sequence where there is one.",
        )
    layers = {
        own.name: (own.form, Choice(own.layer.stored_gates, own.layer.equations)) for own in result.layers
    }
    name = "arrays" if source is None else source.name
    remarks = [
        f"What lstmconvert identify found {name!r} to be: within {result.error:.3g} of a sample, the nearest",
        "other reading "
        + ("none." if result.runner_up_error is None else f"{result.runner_up_error:.3g} away from it."),
        *(
            f"Behind the recurrent layers: dense {', '.join(names)}, {activation}."
            for activation, names in result.head
        ),
    ]
    content = mapping_text.text(layers, name, container, remarks)
    mapping_text.write(
        path,
        content,
        {own.name: own.layer for own in result.layers},
        arrays,
        overwrite=overwrite,
        sources=() if source is None else (source,),
    )
    return str(path)
