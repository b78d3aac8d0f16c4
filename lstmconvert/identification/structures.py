"""Structures: how the arrays of a dump may follow each other as recurrent layers and a dense head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise, product

from lstmconvert.gates import Cell, Part
from lstmconvert.identification.forms import Form, Shapes, forms

_MOST_UNLIKE = 256
_MOST_CHAINS = 2000
_MOST_LEFT_OUT_INSIDE = 2
_LONGEST_HEAD = 2


@dataclass(frozen=True, slots=True)
class Dense:
    """A dense layer behind the recurrent ones.

    Attributes:
        kernel: name of its kernel.
        input_first: whether the kernel is (input, output), else (output, input).
        bias: name of its bias, if it has one.
        input_size, output_size: what the shapes say.
    """

    kernel: str
    input_first: bool
    bias: str | None
    input_size: int
    output_size: int

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of its arrays."""
        return (self.kernel,) if self.bias is None else (self.kernel, self.bias)


@dataclass(frozen=True, slots=True)
class Structure:
    """Recurrent layers that feed each other, then dense ones; ``unused`` are arrays that play no part."""

    layers: tuple[Form, ...]
    head: tuple[Dense, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def input_size(self) -> int:
        """Features of an input step."""
        return self.layers[0].input_size

    @property
    def output_size(self) -> int:
        """Features of an output step."""
        return self.head[-1].output_size if self.head else self.layers[-1].hidden_size

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that occur, each once."""
        return tuple(dict.fromkeys(form.cell for form in self.layers))


@dataclass(frozen=True, slots=True)
class _Span:
    """Some arrays, one after the other, that may be one recurrent layer of a cell."""

    cell: Cell
    arrays: tuple[tuple[str, tuple[int, ...]], ...]


_Part = _Span | Dense


@cache
def _forms(span: _Span, input_size: int | None) -> tuple[Form, ...]:
    return tuple(forms(span.cell, span.arrays, input_size))


def _lengths(cell: Cell) -> tuple[int, ...]:
    """How many arrays a layer may have."""
    gates = {Cell.LSTM: 4, Cell.GRU: 3, Cell.RNN: 1}[cell]
    matrices = {1, 2, gates, gates + 1, 2 * gates}
    biases = {0, 1, 2, gates, 2 * gates} | ({gates + 1} if cell is Cell.GRU else set())
    return tuple(sorted({m + b for m in matrices for b in biases}, reverse=True))


def _denses(arrays: Shapes, first: int, width: int) -> Iterator[Dense]:
    """Dense layers that begin at an array and take ``width`` features."""
    name, shape = arrays[first]
    for input_first in (True, False):
        if len(shape) != 2 or shape[0 if input_first else 1] != width:
            continue
        output = shape[1 if input_first else 0]
        following = arrays[first + 1] if first + 1 < len(arrays) else None
        if following is not None and following[1] in ((output,), (1, output)):
            yield Dense(name, input_first, following[0], width, output)
        yield Dense(name, input_first, None, width, output)
    # Alphabetical dumps have the bias before the kernel.
    if first + 1 < len(arrays) and len(shape) == 1:
        for dense in _denses(arrays[: first + 2], first + 1, width):
            if dense.bias is None and dense.output_size == shape[0]:
                yield Dense(dense.kernel, dense.input_first, name, width, dense.output_size)


def _chains(
    arrays: Shapes, input_size: int | None, output_size: int | None, most_inside: int
) -> Iterator[tuple[tuple[_Part, ...], tuple[str, ...]]]:
    """Ways to read the arrays as layers that feed each other, and the names of the arrays left out.

    Arrays are left out before and after the chain, and few of them inside it.
    """
    names = [name for name, _ in arrays]

    def follow(
        at: int, width: int | None, parts: tuple[_Part, ...], unused: tuple[str, ...], inside: int
    ) -> Iterator[tuple[tuple[_Part, ...], tuple[str, ...]]]:
        if parts and output_size in (None, width):
            yield parts, (*unused, *names[at:])
        if at == len(arrays):
            return
        heads = sum(isinstance(part, Dense) for part in parts)
        if not heads:
            for cell in (Cell.LSTM, Cell.GRU, Cell.RNN):
                for length in _lengths(cell):
                    if at + length <= len(arrays):
                        span = _Span(cell, tuple(arrays[at : at + length]))
                        for hidden in {form.hidden_size for form in _forms(span, width)}:
                            yield from follow(at + length, hidden, (*parts, span), unused, inside)
        if parts and width is not None and heads < _LONGEST_HEAD:
            for dense in _denses(arrays, at, width):
                end = at + len(dense.tensors)
                yield from follow(end, dense.output_size, (*parts, dense), unused, inside)
        if parts and inside:
            yield from follow(at + 1, width, parts, (*unused, names[at]), inside - 1)

    for start in range(len(arrays)):
        yield from follow(start, input_size, (), tuple(names[:start]), most_inside)


def _orders(arrays: Shapes) -> Iterator[Shapes]:
    """The order of the dump, then orders for dumps that list one part of every layer after the other."""
    yield arrays
    seen = {tuple(arrays)}
    for layers in range(2, 5):
        for parts in range(2, 5):
            count = layers * parts
            if count <= len(arrays):
                for start in (0, len(arrays) - count):
                    block = arrays[start : start + count]
                    turned = [
                        block[layer + part * layers] for layer in range(layers) for part in range(parts)
                    ]
                    order = (*arrays[:start], *turned, *arrays[start + count :])
                    if order not in seen:
                        seen.add(order)
                        yield order


def structures(
    arrays: Mapping[str, tuple[int, ...]], input_size: int | None = None, output_size: int | None = None
) -> Iterator[tuple[int, list[Structure]]]:
    """What the arrays may be, as batches of structures with ever more arrays left out and ever more layers.

    Args:
        arrays: names and shapes, in the order of the dump.
        input_size: features of a step of the sample's input, where there is one.
        output_size: features of the sample's output.

    Yields:
        How many arrays are left out, and the structures that leave out so many.
    """
    shapes = tuple(arrays.items())
    seen: set[Structure] = set()
    for most_inside, alike in ((0, True), (_MOST_LEFT_OUT_INSIDE, True), (0, False)):
        batches: dict[_Rank, dict[Structure, None]] = {}
        for order in _orders(shapes):
            for parts, unused in islice(_chains(order, input_size, output_size, most_inside), _MOST_CHAINS):
                for structure in _structures_of(parts, unused, input_size, alike=alike):
                    if structure not in seen:
                        batches.setdefault(_rank(structure), {})[structure] = None
            if any(not left_out for left_out, *_ in batches):
                break
        for _, found in sorted(batches.items(), key=lambda item: item[0]):
            yield len(next(iter(found)).unused), list(found)
        seen.update(structure for batch in batches.values() for structure in batch)


_Rank = tuple[bool, int, int, bool]


def _rank(structure: Structure) -> _Rank:
    """What to try first: the whole dump in the fewest layers, their matrices written alike.

    Then parts of the dump, a single layer with all its arrays first.
    """
    written = {
        tuple(rule.axes for rule in form.rules if rule.part in (Part.KERNEL, Part.RECURRENT))
        for form in structure.layers
    }
    left_out = len(structure.unused)
    return left_out > 0, len(structure.layers) + len(structure.head), left_out, len(written) > 1


def _structures_of(
    parts: Sequence[_Part], unused: tuple[str, ...], input_size: int | None, *, alike: bool
) -> list[Structure]:
    """The structures of a chain: those whose layers of one cell have one form, or those of any forms."""
    spans = [part for part in parts if isinstance(part, _Span)]
    head = tuple(part for part in parts if isinstance(part, Dense))
    options: list[tuple[Form, ...]] = []
    width = input_size
    for number, span in enumerate(spans):
        needed = _width_after(parts, number)
        fitting = tuple(f for f in _forms(span, width) if needed is None or f.hidden_size == needed)
        if not fitting:
            return []
        options.append(fitting)
        width = fitting[0].hidden_size if len({f.hidden_size for f in fitting}) == 1 else None
    styles = {
        cell: set.intersection(
            *({f.style for f in own} for span, own in zip(spans, options, strict=True) if span.cell is cell)
        )
        for cell in dict.fromkeys(span.cell for span in spans)
    }
    result: list[tuple[Form, ...]] = []
    if alike:
        for chosen in product(*styles.values()):
            style = dict(zip(styles, chosen, strict=True))
            layers = tuple(
                next(f for f in own if f.style == style[span.cell])
                for span, own in zip(spans, options, strict=True)
            )
            result.append(layers)
    elif not all(styles.values()):
        result = list(islice(product(*options), _MOST_UNLIKE))
    return [
        Structure(layers, head, unused)
        for layers in result
        if all(a.hidden_size == b.input_size for a, b in pairwise(layers))
        and (not head or layers[-1].hidden_size == head[0].input_size)
    ]


def _width_after(parts: Sequence[_Part], number: int) -> int | None:
    """The width that a dense layer right behind the layer asks for."""
    following = parts[number + 1] if number + 1 < len(parts) else None
    return following.input_size if isinstance(following, Dense) else None


def alone(arrays: Mapping[str, tuple[int, ...]]) -> list[list[Form]]:
    """The recurrent layers among arrays of which nothing else is known: for each every form that fits.

    Simple layers, which two dense layers could be as well, count only where there are no others; then what
    leaves the fewest arrays over, in the fewest layers. The forms of a layer are those of one set of arrays;
    there may be several cells.

    Returns:
        The layers in order, each as its forms; empty where no array is part of a layer.
    """
    for shapes in _orders(tuple(arrays.items())):
        best: list[tuple[tuple[int, int, int], tuple[tuple[Form, ...], ...]]] = [((0, 0, 0), ())]
        for end in range(1, len(shapes) + 1):
            options = [best[end - 1]]
            for length in {n for cell in (Cell.LSTM, Cell.GRU, Cell.RNN) for n in _lengths(cell)}:
                if length > end:
                    continue
                span = tuple(shapes[end - length : end])
                if length == 1 and len(shapes) > 1:
                    continue  # one matrix beside others is rather that of another layer
                fitting = [f for cell in (Cell.LSTM, Cell.GRU) for f in _forms(_Span(cell, span), None)]
                is_gated = bool(fitting)
                fitting = fitting or list(_forms(_Span(Cell.RNN, span), None))
                if fitting:
                    (used, simple, count), before = best[end - length]
                    score = (used + length * is_gated, simple + length * (not is_gated), count - 1)
                    options.append((score, (*before, tuple(fitting))))
            best.append(max(options, key=lambda option: option[0]))
        layers = best[-1][1]
        if layers:
            gated = [list(forms) for forms in layers if forms[0].cell is not Cell.RNN]
            return gated or [list(forms) for forms in layers]
    return []
