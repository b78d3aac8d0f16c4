"""The search: every structure and candidate against the sample, with cheap and safe early rejection.

A candidate's error is the largest difference from the sample, so what it is on a few steps of a few
sequences is a lower bound of what it is on all of them: a candidate that is dropped early is disproved.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lstmconvert.gates import Cell
from lstmconvert.identification.candidates import STATE_ORDERS, Choice, equations, orders
from lstmconvert.identification.evaluation import (
    Bench,
    Population,
    Store,
    choices,
    everyone,
    head_activations,
)
from lstmconvert.identification.forms import Form, forms
from lstmconvert.identification.readings import Reading
from lstmconvert.identification.structures import Structure, structures
from lstmconvert.proof import rounding
from lstmconvert.tensors import Array

CLOSE = 1e-3
"""Candidates that are no further off than this part of the largest output are looked at as a whole."""
_STAGES = ((1, 1), (1, 2), (2, 4), (4, 8))
_KEPT = 16
_MOST_REFINED = 64
_MOST_STRUCTURES = 4000


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A candidate and how far it is from the sample.

    Attributes:
        structure: the layers and the head.
        population: the candidate, as the one row of a population.
        reading: how the sample was read.
        error: largest difference, or a lower bound of it where ``complete`` is false.
        complete: whether the whole sample was looked at.
    """

    structure: Structure
    population: Population
    reading: Reading
    error: float
    complete: bool = False

    @property
    def layers(self) -> tuple[Choice, ...]:
        """Gates and equations of every layer."""
        return choices(self.structure, self.population, 0)

    @property
    def activations(self) -> tuple[str, ...]:
        """Activations of the dense layers."""
        return tuple(map(str, head_activations(self.structure)[int(self.population.head[0])]))

    @property
    def states(self) -> tuple[str, ...]:
        """The order in which states were given, if any were."""
        if not (self.reading.initial or self.reading.final):
            return ()
        if self.structure.layers[0].cell is not Cell.LSTM:
            return ("hidden",)
        return STATE_ORDERS[int(self.population.states[0])]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a search came to.

    Attributes:
        hits: candidates, the nearest to the sample first.
        tolerance: the difference that rounding explains, for the nearest one.
        tried: how many candidates there were.
        typical: the median of their errors.
        exhausted: whether all that can be tried was tried.
    """

    hits: tuple[Hit, ...]
    tolerance: float
    tried: int
    typical: float
    exhausted: bool = True

    @property
    def fits(self) -> bool:
        """Whether the nearest candidate explains the sample."""
        return bool(self.hits) and self.hits[0].error <= self.tolerance


def search(arrays: Mapping[str, Array], readings: Sequence[Reading]) -> Found | None:
    """The candidates nearest to a sample, or ``None`` where no structure fits its shapes."""
    hits: list[Hit] = []
    errors: list[Array] = []
    seen: set[object] = set()
    tolerance, count = 0.0, 0
    best: list[Hit] = []
    store: Store = {}
    for reading, batch in _batches(arrays, readings):
        for structure in batch:
            key = (id(reading), _identity(structure, arrays))
            if key in seen or not _takes_states(structure, reading):
                continue
            seen.add(key)
            count += 1
            own, measured = _screened(structure, arrays, reading, store)
            hits += own
            errors.append(measured)
            if count >= _MOST_STRUCTURES:
                break
        best = _refined([*best, *hits], arrays)
        if best:
            tolerance = _tolerance(best[0], arrays)
            if best[0].error <= tolerance:
                best = _refined([*best, *_neighbours(best[0], arrays)], arrays)
                break
        hits = []
        if count >= _MOST_STRUCTURES:
            break
    if not best:
        return None
    every = np.concatenate(errors)
    return Found(
        tuple(best), tolerance, int(every.size), float(np.median(every)), exhausted=count < _MOST_STRUCTURES
    )


def _batches(
    arrays: Mapping[str, Array], readings: Sequence[Reading]
) -> Iterator[tuple[Reading, list[Structure]]]:
    """Batches of structures for every reading in turn, those that leave out few arrays first."""
    shapes = {name: array.shape for name, array in arrays.items()}

    def ranked(number: int, reading: Reading) -> Iterator[tuple[int, int, int, Reading, list[Structure]]]:
        width = reading.x.shape[2]
        for place, (_, batch) in enumerate(structures(shapes, width, reading.y.shape[-1])):
            yield place, number, id(batch), reading, batch

    every = [ranked(number, reading) for number, reading in enumerate(readings)]
    for *_, reading, batch in heapq.merge(*every, key=lambda item: item[:3]):
        yield reading, batch


def _identity(structure: Structure, arrays: Mapping[str, Array]) -> object:
    """Equal for structures whose blocks are the same numbers, whatever the notation."""

    def place(array: Array) -> tuple[object, ...]:
        steps = tuple(s if n > 1 else 0 for n, s in zip(array.shape, array.strides, strict=True))
        return (array.__array_interface__["data"][0], array.shape, steps)

    layers = tuple(
        (form.cell, *((key, place(block)) for key, block in sorted(form.blocks(arrays).items())))
        for form in structure.layers
    )
    return layers, structure.head


def _takes_states(structure: Structure, reading: Reading) -> bool:
    if not reading.initial and not reading.final:
        return True
    wanted = 2 if structure.layers[0].cell is Cell.LSTM else 1
    size = structure.layers[0].hidden_size
    return (
        len(structure.layers) == 1
        and len(reading.initial) in (0, wanted)
        and len(reading.final) <= wanted
        and all(state.shape[1] == size for state in (*reading.initial, *reading.final))
    )


def _screened(
    structure: Structure, arrays: Mapping[str, Array], reading: Reading, store: Store
) -> tuple[list[Hit], Array]:
    """The candidates of a structure that are worth a second look, and the errors of all (lower bounds)."""
    bench = Bench(structure, arrays, store=store)
    alive = everyone(structure, reading)
    close = CLOSE * max(reading.scale, 1e-30)
    first: Array | None = None
    measured = np.zeros(len(alive))
    stages = _STAGES if reading.whole else ((1, reading.x.shape[1]), (4, reading.x.shape[1]))
    looked: set[tuple[int, int]] = set()
    for rows, steps in stages:
        size = (min(rows, reading.x.shape[0]), min(steps, reading.x.shape[1]))
        if size in looked:
            continue
        looked.add(size)
        measured = bench.errors(alive, reading.part(*size))
        first = measured if first is None or len(measured) == len(first) else first
        order = np.argsort(measured, kind="stable")
        kept = np.sort(np.union1d(order[:_KEPT], np.flatnonzero(measured <= close)))
        alive, measured = alive.take(kept), measured[kept]
    found = [
        Hit(structure, alive.take(slice(n, n + 1)), reading, float(measured[n]))
        for n in np.argsort(measured, kind="stable")
    ]
    assert first is not None
    return found, first


def _refined(hits: Sequence[Hit], arrays: Mapping[str, Array]) -> list[Hit]:
    """The hits in order of their errors, the nearest ones measured in float64 on the whole sample."""
    ordered = sorted(hits, key=lambda hit: hit.error)
    result: list[Hit] = []
    refined = 0
    benches: dict[int, Bench] = {}
    for hit in ordered:
        close = hit.error <= CLOSE * max(hit.reading.scale, 1e-30)
        if hit.complete or refined >= (_MOST_REFINED if close else _KEPT // 2):
            result.append(hit)
            continue
        key = id(hit.structure)
        if key not in benches:
            benches[key] = Bench(hit.structure, arrays, np.float64)
        error = float(benches[key].errors(hit.population, hit.reading)[0])
        result.append(replace(hit, error=error, complete=True))
        refined += 1
    return sorted(result, key=lambda hit: hit.error)[: 4 * _MOST_REFINED]


def _tolerance(hit: Hit, arrays: Mapping[str, Array]) -> float:
    """The difference that rounding explains: what the candidate itself loses in the sample's precision."""
    exact = Bench(hit.structure, arrays, np.float64).outputs(hit.population, hit.reading)
    single = Bench(hit.structure, arrays, np.float32).outputs(hit.population, hit.reading)
    tolerance = rounding([single], [exact])
    kinds = [a.dtype for a in (hit.reading.x, hit.reading.y) if a.dtype.kind not in "iu"]
    fine = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)
    if all(kind == np.float64 for kind in kinds) and hit.error <= tolerance * fine:
        return tolerance * fine  # the sample was made in float64: it says more
    for kind in kinds:
        if kind.itemsize < 4:
            tolerance = max(tolerance, 2.0 ** (-10 if kind == np.float16 else -7) * hit.reading.scale)
    return tolerance


def _neighbours(best: Hit, arrays: Mapping[str, Array]) -> list[Hit]:
    """Of several layers that are alike: candidates in which one of them is different."""
    layers = best.structure.layers
    if len(layers) < 2:
        return []
    result: list[Hit] = []
    for n, form in enumerate(layers):
        e, o = np.meshgrid(np.arange(len(equations(form.cell))), np.arange(len(orders(form.cell))))
        count = e.size
        varied = best.population.take(np.zeros(count, np.intp))
        own = Population(
            tuple(e.ravel() if k == n else column for k, column in enumerate(varied.equations)),
            tuple(o.ravel() if k == n else column for k, column in enumerate(varied.orders)),
            varied.head,
            varied.states,
        )
        result += _measured(best, best.structure, own, arrays)
        shapes = [(name, arrays[name].shape) for name in _arrays_of(form, arrays)]
        for other in forms(form.cell, shapes, form.input_size):
            if other.hidden_size == form.hidden_size and other != form:
                changed = (*layers[:n], other, *layers[n + 1 :])
                structure = replace(best.structure, layers=changed)
                if _identity(structure, arrays) != _identity(best.structure, arrays):
                    result += _measured(best, structure, best.population, arrays)
    return result


def _arrays_of(form: Form, arrays: Mapping[str, Array]) -> list[str]:
    """The arrays of a layer in the order of the dump."""
    return [name for name in arrays if name in form.tensors]


def _measured(
    best: Hit, structure: Structure, population: Population, arrays: Mapping[str, Array]
) -> list[Hit]:
    """Candidates beside the best one, measured on a part of the sample and, where they are close, on all."""
    reading = best.reading
    part = reading.part(min(4, reading.x.shape[0]), min(8, reading.x.shape[1]))
    errors = Bench(structure, arrays).errors(population, part)
    same = (
        (
            np.stack((*population.equations, *population.orders))
            == np.stack((*best.population.equations, *best.population.orders))
        ).all(0)
        if structure is best.structure
        else np.zeros(len(population), bool)
    )
    order = [n for n in np.argsort(errors, kind="stable") if not same[n]]
    close = CLOSE * max(reading.scale, 1e-30)
    kept = [n for place, n in enumerate(order) if place < 4 or errors[n] <= close]
    return [Hit(structure, population.take(slice(n, n + 1)), reading, float(errors[n])) for n in kept]
