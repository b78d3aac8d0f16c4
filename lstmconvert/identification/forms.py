"""Forms: every way in which the arrays of one recurrent layer may hold its gates.

A form says where each block lies, in the axis notation of mapping files, but not which gate a block is: its
gates are positions, 0 to 3 for an LSTM. Which gate stands where is the search's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations

from lstmconvert import axes as axis_notation
from lstmconvert.axes import Axes
from lstmconvert.gates import GATES, Cell, Part
from lstmconvert.mapping import BIAS_PAIR
from lstmconvert.tensors import Array

CANDIDATE = -1
"""Position that stands for the GRU's candidate gate, wherever that lies: the fourth block of four biases."""

Indices = tuple[int, ...]
Shapes = Sequence[tuple[str, tuple[int, ...]]]
"""Names and shapes of arrays, in their order."""

_AXES = ("input", "hidden", "recurrent", "gate", "bias", "slot")
_PAIR = (Part.BIAS_INPUT, Part.BIAS_RECURRENT)


@dataclass(frozen=True, slots=True)
class Rule:
    """Where one array's numbers belong.

    Attributes:
        part: as in mapping files.
        tensor: name of the array.
        axes: how its axes are made.
        positions: the gate positions that it holds, in order.
        slots: part and gate position of every place on the ``slot`` axis.
    """

    part: str
    tensor: str
    axes: Axes
    positions: tuple[int, ...]
    slots: tuple[tuple[Part, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Form:
    """One way to read some arrays as a layer, up to the names of the gates.

    Attributes:
        cell: which cell.
        rules: one for every array and part.
        input_size, hidden_size: what the shapes say.
        style: what makes two layers of one dump alike: the notation, and which array plays which part.
    """

    cell: Cell
    rules: tuple[Rule, ...]
    input_size: int
    hidden_size: int
    style: tuple[tuple[object, ...], Indices] = ((), ())

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the arrays, each once."""
        return tuple(dict.fromkeys(rule.tensor for rule in self.rules))

    @property
    def has_two_biases(self) -> bool:
        """Whether there is a recurrent bias, be it of one gate."""
        return any(rule.part in (BIAS_PAIR, Part.BIAS_RECURRENT) for rule in self.rules)

    def sizes(self, rule: Rule) -> dict[str, int]:
        """Length of every axis that a rule may name."""
        return {
            "input": self.input_size,
            "hidden": self.hidden_size,
            "recurrent": self.hidden_size,
            "gate": len(rule.positions),
            "bias": 2,
            "slot": len(rule.slots),
        }

    def blocks(self, arrays: Mapping[str, Array]) -> dict[tuple[Part, int], Array]:
        """Every block as a view: kernel (hidden, input), recurrent (hidden, recurrent), biases (hidden,)."""
        result: dict[tuple[Part, int], Array] = {}
        for rule in self.rules:

            def view(at: Mapping[str, int], order: tuple[str, ...], rule: Rule = rule) -> Array:
                return axis_notation.view(arrays[rule.tensor], rule.axes, self.sizes(rule), at, order)

            if rule.slots:
                for index, key in enumerate(rule.slots):
                    result[key] = view({"slot": index}, ("hidden",))
                continue
            parts = _PAIR if rule.part == BIAS_PAIR else (Part(rule.part),)
            own = {Part.KERNEL: ("hidden", "input"), Part.RECURRENT: ("hidden", "recurrent")}
            for number, part in enumerate(parts):
                at = {"bias": number} if len(parts) == 2 else {}
                for index, position in enumerate(rule.positions):
                    gate = {"gate": index} if "gate" in rule.axes.names else {}
                    result[part, position] = view({**at, **gate}, own.get(part, ("hidden",)))
        return result


@cache
def _parsed(text: str) -> Axes:
    return axis_notation.parse(text, _AXES)


_JOINED = ("(input + recurrent)", "(recurrent + input)")


def _stacked_matrices(own: str) -> tuple[str, ...]:
    """Patterns of an array that holds a matrix of every gate; ``own`` is the axis beside ``hidden``."""
    flat = (f"(gate hidden) {own}", f"{own} (gate hidden)", f"(hidden gate) {own}", f"{own} (hidden gate)")
    inner = (f"(gate {own}) hidden", f"hidden (gate {own})", f"({own} gate) hidden", f"hidden ({own} gate)")
    deep = tuple(" ".join(order) for order in permutations(("gate", "hidden", own)))
    return (*flat, *deep) if own in _JOINED else (*flat, *deep, *inner)


def _single_matrices(own: str) -> tuple[str, ...]:
    return (f"hidden {own}", f"{own} hidden")


_BIASES = ("(gate hidden)", "(hidden gate)", "gate hidden", "hidden gate")
_PAIRS = (
    *("(" + " ".join(order) + ")" for order in permutations(("bias", "gate", "hidden"))),
    "bias (gate hidden)", "bias (hidden gate)", "(gate hidden) bias", "(hidden gate) bias",
    "(bias gate) hidden", "(gate bias) hidden", "hidden (bias gate)", "hidden (gate bias)",
    "gate (bias hidden)",
    *(" ".join(order) for order in permutations(("bias", "gate", "hidden"))),
)  # fmt: skip
_PAIRS_OF_ONE = ("(bias hidden)", "(hidden bias)", "bias hidden", "hidden bias")
_SLOTS = ("(slot hidden)", "(hidden slot)", "slot hidden", "hidden slot")


def _fitting(
    text: str, shape: tuple[int, ...], known: Mapping[str, int]
) -> Sequence[tuple[Axes, dict[str, int]]]:
    """The pattern, with ``()`` for axes of length one that it lacks, wherever the shape fits it."""
    if len(shape) < _count(text):
        return ()
    return [(axes, dict(sizes)) for axes, sizes in _fits(text, shape, tuple(sorted(known.items())))]


@cache
def _count(text: str) -> int:
    return len(_parsed(text).dimensions)


@cache
def _fits(
    text: str, shape: tuple[int, ...], known: tuple[tuple[str, int], ...]
) -> tuple[tuple[Axes, tuple[tuple[str, int], ...]], ...]:
    missing = len(shape) - _count(text)
    ones = [n for n, size in enumerate(shape) if size == 1]
    found = []
    for extra in combinations(ones, missing):
        axes = _parsed(_with_ones(text, extra, len(shape)))
        sizes = dict(known)
        try:
            while axis_notation.solve(axes, shape, sizes):
                pass
            if "hidden" in sizes:
                sizes.setdefault("recurrent", sizes["hidden"])
                axis_notation.solve(axes, shape, sizes)
        except ValueError:
            continue
        if all(sizes.get(name, 0) > 0 for name in axes.names) and sizes.get("recurrent") == sizes.get(
            "hidden"
        ):
            found.append((axes, tuple(sizes.items())))
    return tuple(found)


def _with_ones(text: str, extra: Sequence[int], count: int) -> str:
    if not extra:
        return text
    items = iter(_items(text))
    return " ".join("()" if n in extra else next(items) for n in range(count))


@cache
def _items(text: str) -> tuple[str, ...]:
    """The pattern of each axis."""
    items: list[str] = []
    for word in text.split(" "):
        if items and items[-1].count("(") > items[-1].count(")"):
            items[-1] += f" {word}"
        else:
            items.append(word)
    return tuple(items)


Placed = tuple[tuple[Rule, ...], dict[str, int]]


def _groups(free: Sequence[int], shapes: Shapes, count: int) -> Iterator[Indices]:
    """Sets of ``count`` arrays of one shape at equal distances from each other: one for every gate."""
    held = set(free)
    for first in free:
        for step in range(1, len(shapes)):
            indices = tuple(first + step * n for n in range(count))
            if indices[-1] >= len(shapes):
                break
            if all(n in held and shapes[n][1] == shapes[first][1] for n in indices):
                yield indices


def _matrices(
    part: str, own: str, free: Sequence[int], shapes: Shapes, gates: int, known: Mapping[str, int]
) -> Iterator[tuple[Indices, Placed]]:
    """Ways to take the matrices of one part from the free arrays."""
    every = tuple(range(gates))
    if gates > 1:
        for n in free:
            name, shape = shapes[n]
            if 2 <= len(shape) <= 4:
                for text in _stacked_matrices(own):
                    for axes, sizes in _fitting(text, shape, {**known, "gate": gates}):
                        yield (n,), ((Rule(part, name, axes, every),), sizes)
    for indices in _groups(free, shapes, gates) if gates > 1 else ((n,) for n in free):
        shape = shapes[indices[0]][1]
        if 2 <= len(shape) <= 3:
            for text in _single_matrices(own):
                for axes, sizes in _fitting(text, shape, known):
                    rules = tuple(
                        Rule(part, shapes[n][0], axes, (position,)) for position, n in enumerate(indices)
                    )
                    yield indices, (rules, sizes)


def _both_matrices(shapes: Shapes, gates: int, known: Mapping[str, int]) -> Iterator[tuple[Indices, Placed]]:
    """Ways to take kernel and recurrent kernel: from arrays of their own, or from joined ones."""
    free = range(len(shapes))
    for own in _JOINED:
        for indices, (rules, sizes) in _matrices(Part.KERNEL, own, free, shapes, gates, known):
            again = tuple(Rule(Part.RECURRENT, r.tensor, r.axes, r.positions) for r in rules)
            yield indices, ((*rules, *again), sizes)
    for taken, (recurrent, sizes) in _matrices(Part.RECURRENT, "recurrent", free, shapes, gates, {}):
        rest = [n for n in free if n not in taken]
        own_known = {**known, "hidden": sizes["hidden"]}
        for also, (kernel, found) in _matrices(Part.KERNEL, "input", rest, shapes, gates, own_known):
            yield (*also, *taken), ((*kernel, *recurrent), found)


def _biases(
    cell: Cell, free: Sequence[int], shapes: Shapes, hidden: int
) -> Iterator[tuple[tuple[Rule, ...], Indices]]:
    """Ways in which all of the free arrays are the biases."""
    gates = len(GATES[cell])
    known = {"hidden": hidden, "gate": gates}
    every = tuple(range(gates))

    def single(n: int, part: str) -> Iterator[Rule]:
        name, shape = shapes[n]
        for text in _BIASES if gates > 1 else ("hidden",):
            for axes, _ in _fitting(text, shape, known):
                yield Rule(part, name, axes, every)

    def each(indices: Indices, part: str, texts: Sequence[str] = ("hidden",)) -> Iterator[tuple[Rule, ...]]:
        for text in texts:
            for axes, _ in _fitting(text, shapes[indices[0]][1], {**known, "bias": 2}):
                yield tuple(Rule(part, shapes[n][0], axes, (p,)) for p, n in enumerate(indices))

    count = len(free)
    if count == 0:
        yield (), ()
    if count == 1:
        name, shape = shapes[free[0]]
        for rule in single(free[0], Part.BIAS_INPUT):
            yield (rule,), (free[0],)
        for text in _PAIRS if gates > 1 else _PAIRS_OF_ONE:
            for axes, _ in _fitting(text, shape, {**known, "bias": 2}):
                yield (Rule(BIAS_PAIR, name, axes, every),), (free[0],)
        if cell is Cell.GRU:
            for text in _SLOTS:
                yield from (
                    ((Rule(BIAS_PAIR, name, axes, every, slots),), (free[0],))
                    for slots in _slot_orders(gates)
                    for axes, _ in _fitting(text, shape, {**known, "slot": len(slots)})
                )
    if count == 2:
        # The two are added, except where a reset gate comes between them: only then the order matters.
        for first, second in permutations(free) if cell is Cell.GRU else (tuple(free),):
            for one in single(first, Part.BIAS_INPUT):
                for two in single(second, Part.BIAS_RECURRENT):
                    if one.axes == two.axes:
                        yield (one, two), (first, second)
                if cell is Cell.GRU:
                    for (extra,) in each((second,), Part.BIAS_RECURRENT):
                        own = Rule(extra.part, extra.tensor, extra.axes, (CANDIDATE,))
                        yield (one, own), (first, second)
    if gates > 1 and count == gates:
        for indices in _groups(free, shapes, gates):
            for rules in each(indices, Part.BIAS_INPUT):
                yield rules, indices
            for rules in each(indices, BIAS_PAIR, _PAIRS_OF_ONE):
                yield rules, indices
    if cell is Cell.GRU and count == gates + 1:
        for indices in _groups(free, shapes, gates):
            (last,) = (n for n in free if n not in indices)
            for rules in each(indices, Part.BIAS_INPUT):
                for (extra,) in each((last,), Part.BIAS_RECURRENT):
                    own = Rule(extra.part, extra.tensor, extra.axes, (CANDIDATE,))
                    yield (*rules, own), (*indices, last)
    if gates > 1 and count == 2 * gates:
        for indices in _groups(free, shapes, gates):
            rest = [n for n in free if n not in indices]
            if cell is not Cell.GRU and rest[0] < indices[0]:
                continue
            for others in _groups(rest, shapes, gates):
                for first_rules in each(indices, Part.BIAS_INPUT):
                    for second_rules in each(others, Part.BIAS_RECURRENT):
                        yield (*first_rules, *second_rules), (*indices, *others)


def _slot_orders(gates: int) -> Iterator[tuple[tuple[Part, int], ...]]:
    """What the blocks of one array of biases may be where it is more than one block a gate."""
    both = [tuple((part, n) for n in range(gates)) for part in _PAIR]
    yield (*both[1], *both[0])
    for place in range(gates + 1):
        blocks = list(both[0])
        blocks.insert(place, (Part.BIAS_RECURRENT, CANDIDATE))
        yield tuple(blocks)


def forms(cell: Cell, shapes: Shapes, input_size: int | None = None) -> list[Form]:
    """Every form in which exactly these arrays are one layer of a cell.

    Args:
        cell: which cell.
        shapes: names and shapes of the arrays, in the order of the dump.
        input_size: the features of a step, where known.
    """
    gates = len(GATES[cell])
    if not 1 <= len(shapes) <= 4 * gates:
        return []
    known = {} if input_size is None else {"input": input_size}
    result: dict[tuple[tuple[object, ...], Indices], Form] = {}
    for taken, (matrices, sizes) in _both_matrices(shapes, gates, known):
        free = [n for n in range(len(shapes)) if n not in taken]
        for biases, order in _biases(cell, free, shapes, sizes["hidden"]):
            rules = (*matrices, *biases)
            style = (
                tuple((r.part, r.axes.text.replace("()", "").strip(), r.positions, r.slots) for r in rules),
                (*taken, *order),
            )
            form = Form(cell, rules, sizes["input"], sizes["hidden"], style)
            result.setdefault(style, form)
    # Dumps have the kernel before the recurrent kernel more often than not.
    return sorted(result.values(), key=lambda form: form.style[1])
