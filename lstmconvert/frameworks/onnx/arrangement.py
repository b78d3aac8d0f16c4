"""How the axes of an ONNX tensor are made of the axes of a model's value.

Exporters wrap every recurrent layer in transpositions, squeezes and reshapes, because ONNX's layers are
time-major with an axis of directions, while values here are batch first and features last. Such nodes
move no information: they change an arrangement. Only where an operator needs the numbers in another
order than the value has them is something emitted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import field, replace

from lstmconvert.frameworks.onnx.known import Size
from lstmconvert.values import dataclass

_SERIAL = itertools.count()


@dataclass(frozen=True, slots=True)
class Atom:
    """A factor of an axis that is moved as a whole; two of them are equal only if they are one.

    Attributes:
        size: its length, ``None`` where it is free.
        serial: tells atoms of equal size apart.
    """

    size: int | None
    serial: int = field(default_factory=lambda: next(_SERIAL))


Axis = tuple[Atom, ...]
"""The factors of an axis, the slowest first; an axis of length one that only keeps a place has none."""


@dataclass(frozen=True, slots=True)
class Held:
    """An ONNX tensor as an arrangement of a value.

    Attributes:
        value: the value's name.
        logical: the axes of the value.
        axes: the axes of the tensor, made of the same atoms (those of size one may be missing).
        dtype: NumPy's name of the dtype.
        parts: of an axis made of one atom, the values at its positions, if each is a value of its own.
    """

    value: str
    logical: tuple[Axis, ...]
    axes: tuple[Axis, ...]
    dtype: str
    parts: tuple[tuple[Atom, tuple[Held, ...]], ...] = ()

    @classmethod
    def plain(cls, value: str, axes: Sequence[Axis], dtype: str) -> Held:
        """A tensor that is arranged as its value is."""
        return cls(value, tuple(axes), tuple(axes), dtype)

    def arranged(self, axes: Iterable[Axis]) -> Held:
        """The same value with other axes of the tensor."""
        return replace(self, axes=tuple(axes))

    @property
    def rank(self) -> int:
        """How many axes the tensor has."""
        return len(self.axes)

    @property
    def sizes(self) -> tuple[int | Size, ...]:
        """The lengths of the tensor's axes."""
        return tuple(symbolic(axis) for axis in self.axes)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A tensor that the model cannot express, and why."""

    reason: str


def length(axis: Axis) -> int | None:
    """An axis's length, ``None`` where it is free."""
    sizes = [atom.size for atom in axis]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def is_unit(axis: Axis) -> bool:
    """Whether an axis has length one."""
    return length(axis) == 1


def symbolic(axis: Axis) -> int | Size:
    """An axis's length as a number, or as a symbol that stands for this axis."""
    known = length(axis)
    return Size(tuple(atom.serial for atom in axis)) if known is None else known


def pieces(held: Held, axis: int) -> tuple[Held, ...] | None:
    """The tensor at each position of an axis, where each of them is a value of its own."""
    taken = held.axes[axis]
    rest = tuple(a for n, a in enumerate(held.axes) if n != axis)
    if not taken:
        return (held.arranged(rest),)
    for atom, parts in held.parts:
        if taken == (atom,):
            return tuple(part.arranged(_translated(rest, parts[0], part)) for part in parts)
    return None


def _translated(axes: Iterable[Axis], first: Held, other: Held) -> tuple[Axis, ...]:
    """Axes made of the atoms of one tensor, as made of those of another that is built alike."""
    atoms = zip(*([atom for axis in held.logical for atom in axis] for held in (first, other)), strict=True)
    names = dict(atoms)
    return tuple(tuple(names[atom] for atom in axis) for axis in axes)


class CannotArrange(Exception):
    """The arrangement cannot be made; the text says why."""


def regrouped(held: Held, target: Sequence[int | Size | None]) -> Held:
    """The tensor after a reshape.

    Args:
        held: the tensor.
        target: the wanted lengths; one of them may be -1 or ``None`` and takes what is left.

    Raises:
        CannotArrange: when the new axes are not made of the old ones' factors.
    """
    open_places = [n for n, size in enumerate(target) if size is None or size == -1]
    if len(open_places) > 1:
        raise CannotArrange(f"the target shape has {len(open_places)} sizes that are not known")
    at = open_places[0] if open_places else len(target)
    rest = _Atoms([atom for axis in held.axes for atom in axis])
    front = [rest.take(size, from_front=True) for size in target[:at]]
    back = [rest.take(size, from_front=False) for size in reversed(target[at + 1 :])][::-1]
    left = tuple(rest.atoms)
    if open_places:
        axes = [*front, tuple(atom for atom in left if atom.size != 1), *back]
    else:
        if any(atom.size != 1 for atom in left):
            raise CannotArrange("the target shape has fewer elements")
        axes = front
    logical = tuple(rest.split_in(axis) for axis in held.logical)
    return replace(held, logical=logical, axes=tuple(rest.split_in(axis) for axis in axes), parts=())


class _Atoms:
    """Factors from which axes are taken; one that is longer than wanted is split."""

    def __init__(self, atoms: list[Atom]) -> None:
        self.atoms = atoms
        self._pieces: dict[Atom, tuple[Atom, Atom]] = {}

    def take(self, size: int | Size | None, *, from_front: bool) -> Axis:
        place = 0 if from_front else -1
        taken: list[Atom] = []
        if isinstance(size, Size):
            wanted = list(size.factors)
            while wanted and self.atoms:
                atom = self.atoms.pop(place)
                taken.append(atom)
                if atom.serial in wanted:
                    wanted.remove(atom.serial)
                elif atom.size != 1:
                    break
            if wanted or any(atom.size != 1 and atom.serial not in size.factors for atom in taken):
                raise CannotArrange("an axis of free size is not the one that was there")
        else:
            missing = size or 0
            while missing > 1 and self.atoms:
                atom = self.atoms.pop(place)
                if atom.size is None:
                    raise CannotArrange(f"an axis of free size becomes one of {size}")
                if missing % atom.size == 0 and atom.size > 0:
                    missing //= atom.size
                elif atom.size % missing == 0:
                    atom = self._split(atom, missing, from_front=from_front)
                    missing = 1
                else:
                    raise CannotArrange(f"axes of {atom.size} become one of {size}")
                taken.append(atom)
            if missing != 1:
                raise CannotArrange(f"an axis of {size} is not made of whole axes")
        return tuple(taken if from_front else taken[::-1])

    def _split(self, atom: Atom, wanted: int, *, from_front: bool) -> Atom:
        assert atom.size is not None
        sizes = (wanted, atom.size // wanted) if from_front else (atom.size // wanted, wanted)
        slow, fast = Atom(sizes[0]), Atom(sizes[1])
        self._pieces[atom] = slow, fast
        if from_front:
            self.atoms.insert(0, fast)
            return slow
        self.atoms.append(slow)
        return fast

    def split_in(self, axis: Axis) -> Axis:
        """An axis with the split atoms replaced by their pieces."""
        result: list[Atom] = []
        for atom in axis:
            result += self.split_in(self._pieces[atom]) if atom in self._pieces else (atom,)
        return tuple(result)


@dataclass(frozen=True, slots=True)
class Moved:
    """A step of a rearrangement: the permutation of a transposition."""

    permutation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reshaped:
    """A step of a rearrangement: new axes behind the first, with their lengths; one may be free (-1)."""

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]


Step = Moved | Reshaped


def steps(logical: Sequence[Axis], wanted: Sequence[Axis]) -> list[Step]:
    """What turns a value with one order of axes into one with another.

    Raises:
        CannotArrange: when the first axis would have to be split or joined, or two axes of free size would
            have to pass through one reshape.
    """
    front = next((n for n, axis in enumerate(wanted) if axis == logical[0]), 0)
    try:
        return _steps(tuple(logical), tuple(wanted))
    except CannotArrange:
        if front == 0:
            raise
    # The batch stays in front until all axes are there, and then goes to its place.
    behind = [n for n in range(len(wanted)) if n != front]
    order = [front, *behind]
    first = [wanted[n] for n in order]
    return [*_steps(tuple(logical), tuple(first)), Moved(tuple(order.index(n) for n in range(len(wanted))))]


def _steps(logical: tuple[Axis, ...], wanted: tuple[Axis, ...]) -> list[Step]:
    if logical == wanted:
        return []
    kept = {atom for axis in wanted for atom in axis}
    atoms = {atom for axis in logical for atom in axis}
    if not kept <= atoms or any(atom.size != 1 for atom in atoms - kept):
        raise CannotArrange("the tensors do not hold the same axes")
    sequence = [atom for axis in wanted for atom in axis]
    order = _order(logical, sequence, kept)
    if order is not None:
        moved = [logical[n] for n in order]
        return [*_moved(order), *_reshaped(moved, wanted)]
    single: list[Axis] = [(atom,) for axis in logical for atom in axis if atom in kept]
    turned = [single.index((atom,)) for atom in sequence]
    return [
        *_reshaped(list(logical), single),
        *_moved(turned),
        *_reshaped([single[n] for n in turned], wanted),
    ]


def _order(logical: Sequence[Axis], sequence: Sequence[Atom], kept: set[Atom]) -> list[int] | None:
    """An order of whole axes that gives the atoms in sequence; axes without any go to the end if need be."""
    trimmed = [[atom for atom in axis if atom in kept] for axis in logical]
    order: list[int] = []
    rest = list(sequence)
    while rest:
        found = next((n for n, axis in enumerate(trimmed) if axis and axis == rest[: len(axis)]), None)
        if found is None:
            return None
        order.append(found)
        rest = rest[len(trimmed[found]) :]
    empty = [n for n, axis in enumerate(trimmed) if not axis]
    if order == sorted(order) and 0 not in empty:
        return sorted([*order, *empty])
    return [*order, *empty]


def _moved(order: Sequence[int]) -> list[Step]:
    return [] if list(order) == list(range(len(order))) else [Moved(tuple(order))]


def _reshaped(before: Sequence[Axis], after: Sequence[Axis]) -> list[Step]:
    if tuple(before) == tuple(after):
        return []
    if not before or not after or not after[0] or before[0] != after[0]:
        raise CannotArrange("the batch would have to be joined with another axis or split")
    shape = [length(axis) for axis in after[1:]]
    if shape.count(None) > 1:
        raise CannotArrange("two axes of free size pass through one reshape")
    return [Reshaped(tuple(after), tuple(-1 if size is None else size for size in shape))]
