"""The movement of data, proved completely: every element carries its own index and must arrive.

No random numbers: two random matrices can agree after a wrong move, unique indices cannot. The index of
an element is its bit pattern in the dtype of the weights, so that the very code that moves the weights
moves the indices; in dtypes too narrow for that it is written in several digits, one run for each.
Source: reading is shown to take every element of a layer's tensors once. Target: what is written of
indexed blocks is read again, and every index must be back in its block, at its place.

Large tensors carry no indices: reading cuts views out of memory that stands in for them, and ``geometry``
tells from a view's place, lengths and strides which element each of its elements is. That is the same
proof, complete at any size. With it a large target needs no second writing: where reading takes every
element of the written file once, and every block read from it has the bits of the source's block, each
element of the source is in the file, at the place where the target's layout has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lstmconvert import pairing
from lstmconvert.canonical import RecurrentLayer, Weights
from lstmconvert.containers import Archive
from lstmconvert.errors import ConversionError
from lstmconvert.gates import Part
from lstmconvert.geometry import Region, StandIn, cover
from lstmconvert.model import Layer, Model
from lstmconvert.tensors import Array, Lazy, same_bits
from lstmconvert.values import dataclass

_MAPPED = 1 << 18
"""Elements of a tensor from which on its geometry is looked at, and not its elements."""
_COUNTED = 1 << 22
"""Elements of a file up to which they are followed one by one where their geometry does not tell."""
_STATES = (Part.INITIAL_HIDDEN, Part.INITIAL_CELL)
_FAILURES = (ConversionError, ValueError, TypeError, KeyError, IndexError, AssertionError)


@dataclass(frozen=True, slots=True)
class Movement:
    """Where the elements went.

    Attributes:
        source: elements of the source's tensors that were followed into canonical blocks.
        target: elements of canonical blocks that were followed through the written form and back.
        problems: elements that did not arrive, or arrived in the wrong place, or twice.
        skipped: what could not be followed, because its numbers are computed and not moved.
    """

    source: int = 0
    target: int = 0
    problems: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def proved(self) -> bool:
        """Whether nothing that was followed went astray."""
        return not self.problems

    def and_then(self, other: Movement) -> Movement:
        """Both halves as one."""
        return Movement(
            self.source + other.source,
            self.target + other.target,
            self.problems + other.problems,
            self.skipped + other.skipped,
        )


def _followed(tensor: Lazy) -> bool:
    return tensor.size > 0 and (
        tensor.dtype.kind == "f" or tensor.dtype.name.startswith(("bfloat", "float8"))
    )


@dataclass(frozen=True, slots=True)
class _Numbering:
    """How indices below ``total`` are spelled in ``width`` bytes: digits from 1 on, so that none is zero."""

    total: int
    width: int

    @property
    def base(self) -> int:
        return int(2 ** (8 * self.width)) - 1

    @property
    def digits(self) -> int:
        count = 1
        while self.base**count < self.total:
            count += 1
        return count

    def lazy(self, like: Lazy, start: int, digit: int) -> Lazy:
        """The digits of the indices from ``start`` on, as the bits of ``like``'s dtype."""

        def load() -> Array:
            if self.digits == 1 and self.width <= 4:
                bits: Array = np.arange(start + 1, start + 1 + like.size, dtype=np.dtype(f"u{self.width}"))
            else:
                index = np.arange(start, start + like.size, dtype=np.uint64)
                digits = index // np.uint64(self.base**digit) % np.uint64(self.base)
                bits = (digits + np.uint64(1)).astype(np.dtype(f"u{self.width}"))
            array: Array = bits.view(like.dtype).reshape(like.shape)
            return array

        return Lazy(like.shape, like.dtype, load)

    def indices(self, arrays: Sequence[Array]) -> Array:
        """The indices that arrays of digits stand for; -1 and less for what is none."""
        total: Array = np.zeros(arrays[0].shape, np.int64)
        for digit, array in enumerate(arrays):
            bits = np.ascontiguousarray(array).view(np.dtype(f"u{self.width}")).reshape(array.shape)
            total += (bits.astype(np.int64) - 1) * self.base**digit
        found: Array = np.where((total >= 0) & (total < self.total), total, -1)
        return found


def _numbering(tensors: Sequence[Lazy]) -> _Numbering | None:
    widths = {tensor.dtype.itemsize for tensor in tensors}
    if not widths:
        return None
    return _Numbering(sum(tensor.size for tensor in tensors), min(widths))


_Place = tuple[str, str]
"""A layer and which of its blocks."""


def _blocks(model: Model) -> Iterator[tuple[_Place, Lazy]]:
    for name, layer in model.layers.items():
        if isinstance(layer, RecurrentLayer):
            for direction in layer.directions:
                for (part, gate), block in direction.weights.items():
                    yield (name, f"{direction.direction} {part} {gate or ''}".strip()), block
        else:
            for own, block in layer.weights.items():
                yield (name, own), block


def _with_blocks(model: Model, blocks: Mapping[_Place, Lazy]) -> Model:
    def change(name: str, layer: Layer) -> Layer:
        if isinstance(layer, RecurrentLayer):
            return layer.mapped(
                lambda d: replace(
                    d,
                    weights=Weights(
                        d.weights.cell,
                        {
                            (part, gate): blocks.get(
                                (name, f"{d.direction} {part} {gate or ''}".strip()), block
                            )
                            for (part, gate), block in d.weights.items()
                        },
                    ),
                )
            )
        changed = {own: blocks.get((name, own), block) for own, block in layer.weights.items()}
        return replace(layer, weights=changed)

    return replace(model, layers={name: change(name, layer) for name, layer in model.layers.items()})


def of_source(archive: Archive, read: Callable[[Archive], Model]) -> Movement:
    """Follow every element of a file's tensors into the blocks that reading makes of them.

    Within a layer no element may be used twice, and none of a tensor of the layer may be left out but the
    zeros of a bias that it does not have.

    Args:
        archive: the file.
        read: reads an archive as the file was read.
    """
    followed = {name: tensor for name, tensor in archive.tensors.items() if _followed(tensor)}
    by_width: dict[int, dict[str, Lazy]] = {}
    for name, tensor in followed.items():
        by_width.setdefault(tensor.dtype.itemsize, {})[name] = tensor
    result = Movement()
    for tensors in by_width.values():
        found = _of_source(archive, tensors, read, _MAPPED)
        if found.skipped and sum(tensor.size for tensor in tensors.values()) <= _COUNTED:
            # What reading copies and does not cut out is followed element by element where that is cheap.
            found = _of_source(archive, tensors, read, _COUNTED + 1)
        result = result.and_then(found)
    return result


def _of_source(
    archive: Archive, tensors: Mapping[str, Lazy], read: Callable[[Archive], Model], mapped: int
) -> Movement:
    numbered = {name: tensor for name, tensor in tensors.items() if tensor.size < mapped}
    stand_ins = {name: StandIn(tensor) for name, tensor in tensors.items() if name not in numbered}
    width = next(iter(tensors.values())).dtype.itemsize
    numbering = _Numbering(sum(tensor.size for tensor in numbered.values()), width)
    starts = dict(zip(numbered, np.cumsum([0, *(t.size for t in numbered.values())]), strict=False))
    models = []
    for digit in range(numbering.digits):
        indexed = {name: numbering.lazy(t, int(starts[name]), digit) for name, t in numbered.items()}
        indexed |= {name: stand_in.lazy for name, stand_in in stand_ins.items()}
        try:
            models.append(read(replace(archive, tensors={**archive.tensors, **indexed})))
        except _FAILURES as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return Movement(
                skipped=(f"the source's elements were not followed: its numbers decide ({reason})",)
            )
    problems: list[str] = []
    skipped: list[str] = []
    count = 0
    order = np.array([int(starts[name]) for name in numbered])
    names = list(numbered)
    for name, layer in models[0].recurrent.items():
        if layer.dtype.itemsize != numbering.width:
            continue
        seen = np.zeros(numbering.total, np.uint8)
        started = np.zeros(numbering.total, bool)
        regions: dict[str, list[Region]] = {}
        computed = False
        own = [
            dict(_blocks(replace(m, layers={name: m.layers[name]}, calls=None, inputs=(), outputs=())))
            for m in models
        ]
        shared: set[int] = set()
        for place, block in own[0].items():
            if any(place not in blocks for blocks in own):
                computed = True
                break
            if id(block) in shared:
                continue  # gates that share their numbers have one block
            shared.add(id(block))
            if stand_ins and (found := _region(block, stand_ins)) is not None:
                regions.setdefault(found[0], []).append(found[1])
                count += block.size
                continue
            with np.errstate(all="ignore"):  # arithmetic on indices, where a reader computes
                index = numbering.indices([blocks[place].read() for blocks in own]).ravel()
            if index.min(initial=0) < 0:
                computed = True
                break
            if place[1].endswith(_STATES):
                # Two states may start from the same numbers, and one may be filled with a single number.
                last = int(np.searchsorted(order, int(index.max(initial=0)), "right")) - 1
                own_state = np.zeros_like(seen)
                _count(own_state, index)
                started |= own_state > 0
                if index.size and numbered[names[last]].size > 1:
                    seen[own_state > 1] = 2
            else:
                _count(seen, index)
            count += index.size
        if computed:
            skipped.append(f"layer {name!r} was not followed from its source: its numbers are computed there")
            continue
        if int(seen.max(initial=0)) > 1:
            at = int(np.argmax(seen > 1))
            owner = names[int(np.searchsorted(order, at, "right")) - 1]
            problems.append(f"layer {name!r} uses element {at - int(starts[owner])} of {owner!r} twice")
        seen[started & (seen == 0)] = 1
        for tensor in layer.origin:
            if tensor in numbered:
                part = seen[int(starts[tensor]) : int(starts[tensor]) + numbered[tensor].size]
                if part.any() and not part.all() and not _absent_bias(archive.tensors[tensor], part):
                    problems.append(f"layer {name!r} leaves out element {int(np.argmin(part))} of {tensor!r}")
        for tensor, shown in regions.items():
            whole = cover(shown, stand_ins[tensor].shape)
            if whole.twice is not None:
                problems.append(f"layer {name!r} uses element {whole.twice} of {tensor!r} twice")
            if whole.missing is not None and tensor in layer.origin:
                problems.append(f"layer {name!r} leaves out element {whole.missing} of {tensor!r}")
    return Movement(source=count, problems=tuple(problems), skipped=tuple(skipped))


def _absent_bias(tensor: Lazy, used: Array) -> bool:
    """Whether what is left out of a vector is zeros: the place of a bias that the layer does not have."""
    if len(tensor.shape) != 1:
        return False
    left = tensor.read()[used == 0]
    return same_bits(left, np.zeros_like(left))


def _region(block: Lazy, stand_ins: Mapping[str, StandIn]) -> tuple[str, Region] | None:
    """The large tensor that a block was cut from, and which of its elements it is."""
    if block.size == 0:
        return None
    array = block.read()
    for name, stand_in in stand_ins.items():
        region = stand_in.region(array)
        if region is not None:
            return name, region
    return None


def _count(seen: Array, index: Array) -> None:
    """Marks elements: 1 where used once, 2 where used again."""
    before = seen[index]
    seen[index] = np.where(before > 0, 2, 1)
    ordered = np.sort(index)
    seen[ordered[1:][ordered[1:] == ordered[:-1]]] = 2


def of_target(
    model: Model, write: Callable[[Model], Archive], read: Callable[[Archive], Model], back: Archive
) -> Movement:
    """Follow every element of a model's blocks into what is written of them, and back.

    Args:
        model: the model as it was fitted to the target.
        write: makes the archive of a model, as the target's was made.
        read: reads an archive, as the target's is read.
        back: the written file, read again.
    """
    target = read(back)
    renamed = pairing.twins(model.recurrent, target.recurrent, wired=target.calls is not None)
    held = {place: block for place, block in _blocks(model) if _followed(block)}
    by_width: dict[int, dict[_Place, Lazy]] = {}
    for place, block in held.items():
        by_width.setdefault(block.dtype.itemsize, {})[place] = block
    result = Movement()
    for blocks in by_width.values():
        result = result.and_then(_of_target(model, blocks, write, read, back, renamed))
    return result


def _of_target(
    model: Model,
    held: Mapping[_Place, Lazy],
    write: Callable[[Model], Archive],
    read: Callable[[Archive], Model],
    back: Archive,
    renamed: Mapping[str, str],
) -> Movement:
    numbering = _numbering(list(held.values()))
    if numbering is None:
        return Movement()
    starts = dict(zip(held, np.cumsum([0, *(b.size for b in held.values())]), strict=False))
    first: dict[int, _Place] = {}
    for place, block in held.items():
        # Gates that share their numbers have one block, and so one set of indices.
        starts[place] = starts[first.setdefault(id(block), place)]
    found: list[Mapping[_Place, Lazy]] = []
    for digit in range(numbering.digits):
        indexed = {place: numbering.lazy(b, int(starts[place]), digit) for place, b in held.items()}
        try:
            made = write(_with_blocks(model, indexed))
            tensors = {name: made.tensors.get(name, t) for name, t in back.tensors.items()}
            arrived = _blocks(read(replace(back, tensors=tensors)))
            found.append({(renamed.get(name, name), own): block for (name, own), block in arrived})
        except _FAILURES as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return Movement(skipped=(f"the target's elements were not followed: {reason}",))
    count = 0
    layers = model.recurrent
    problems: list[str] = []
    skipped: list[str] = []
    for place, block in held.items():
        came = [blocks.get(place) for blocks in found]
        lazies = [lazy for lazy in came if lazy is not None]
        recurrent = place[0] in layers
        if len(lazies) < len(came) or lazies[0].dtype != block.dtype or lazies[0].shape != block.shape:
            if not recurrent:
                # A neighbour that the target spells in another way, such as a folded normalisation.
                skipped.append(f"{place[1]} of layer {place[0]!r} was not followed: the target computes it")
            else:
                problems.append(f"{place[1]} of layer {place[0]!r} did not arrive")
            continue
        index = numbering.indices([lazy.read() for lazy in lazies]).ravel()
        expected = np.arange(int(starts[place]), int(starts[place]) + block.size)
        wrong = index != expected
        if wrong.any():
            if not recurrent and (index < 0).any():
                skipped.append(f"{place[1]} of layer {place[0]!r} was not followed: the target computes it")
                continue
            at = int(np.argmax(wrong))
            problems.append(
                f"{int(wrong.sum())} of {block.size} elements of {place[1]} of layer {place[0]!r} "
                f"did not arrive in their place, the first is element {at}"
            )
        count += block.size
    return Movement(target=count, problems=tuple(problems), skipped=tuple(dict.fromkeys(skipped)))


def same_reading(archive: Archive, readers: Sequence[Callable[[Archive], Model]]) -> bool:
    """Whether several ways to read a file make the same blocks and equations of the same numbers."""
    tensors = {name: tensor for name, tensor in archive.tensors.items() if _followed(tensor)}
    numbering = _numbering(list(tensors.values()))
    if numbering is None:
        return False
    starts = [int(n) for n in np.cumsum([0, *(t.size for t in tensors.values())])]
    for digit in range(numbering.digits):
        indexed = {n: numbering.lazy(t, starts[k], digit) for k, (n, t) in enumerate(tensors.items())}
        changed = replace(archive, tensors={**archive.tensors, **indexed})
        try:
            models = [read(changed) for read in readers]
        except _FAILURES:
            return False
        first = models[0]
        for other in models[1:]:
            if list(other.recurrent) != list(first.recurrent):
                return False
            for a, b in zip(first.recurrent.values(), other.recurrent.values(), strict=True):
                if [d.equations for d in a.directions] != [d.equations for d in b.directions]:
                    return False
            mine, theirs = dict(_blocks(first)), dict(_blocks(other))
            if mine.keys() != theirs.keys():
                return False
            if not all(same_bits(block.read(), theirs[place].read()) for place, block in mine.items()):
                return False
    return True


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """Where a canonical block lies in a file.

    Attributes:
        tensor: the tensor; its shape is ``shape``.
        first, last: positions of the block's first and last element on the tensor's axes.
    """

    tensor: str
    shape: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]


def block_places(archive: Archive, read: Callable[[Archive], Model]) -> dict[str, dict[str, BlockPlace]]:
    """Where every block of every recurrent layer lies, found by following indices; layer, then block.

    A block whose numbers are computed has no place and is left out.
    """
    tensors = {name: tensor for name, tensor in archive.tensors.items() if _followed(tensor)}
    numbering = _numbering(list(tensors.values()))
    if numbering is None or len({t.dtype.itemsize for t in tensors.values()}) > 1:
        return {}
    starts = [int(n) for n in np.cumsum([0, *(t.size for t in tensors.values())])]
    models = []
    for digit in range(numbering.digits):
        indexed = {n: numbering.lazy(t, starts[k], digit) for k, (n, t) in enumerate(tensors.items())}
        try:
            models.append(read(replace(archive, tensors={**archive.tensors, **indexed})))
        except _FAILURES:
            return {}
    names = list(tensors)
    found: dict[str, dict[str, BlockPlace]] = {}
    every = [dict(_blocks(model)) for model in models]
    for name in models[0].recurrent:
        found[name] = {}
        for place in every[0]:
            if place[0] != name or any(place not in blocks for blocks in every):
                continue
            corners = [b[place].read().ravel()[[0, -1]] for b in every]
            ends = numbering.indices(corners)
            owners = np.searchsorted(starts, ends, "right") - 1
            if ends.min() < 0 or owners[0] != owners[1]:
                continue
            tensor = names[int(owners[0])]
            shape = tensors[tensor].shape
            at = [
                tuple(int(n) for n in np.unravel_index(int(end) - starts[int(owners[0])], shape))
                for end in ends
            ]
            found[name][place[1]] = BlockPlace(tensor, shape, at[0], at[1])
    return found
