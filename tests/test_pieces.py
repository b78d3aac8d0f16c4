"""Arrays in pieces, and tensors that are put together from blocks, against the same as wholes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lstmconvert import axes, parallel, pieces
from lstmconvert.containers import byte_ranges
from lstmconvert.packing import Piece, assembled
from lstmconvert.provenance import Provenance, Seal
from lstmconvert.tensors import Array, Lazy

SEED = 20261130
SIZES = {"gate": 4, "hidden": 5, "input": 7}
BLOCK = (SIZES["hidden"], SIZES["input"])
IN_RANGES = (
    "(gate hidden) input",
    "input (gate hidden)",
    "(hidden gate) input",
    "hidden (input gate)",
    "gate hidden input",
    "gate input hidden",
    "() (gate hidden) input",
    "(gate input) hidden",
    "(input gate hidden)",
)
HIDDEN_IN_PARTS = ("(gate hidden) input", "gate hidden input", "() (gate hidden) input")
INPUT_IN_PARTS = ("gate input hidden", "(gate input) hidden")


@pytest.fixture(params=[1, 3], ids=["one core", "three cores"], autouse=True)
def small_pieces_on_some_cores(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_cores", lambda: request.param)
        patch.setattr(pieces, "LARGE", 1)
        patch.setattr(pieces, "PIECE", 64)
        yield


class Stored:
    """Numbers in a file, and how many of them were read."""

    def __init__(self, folder: Path, numbers: Array) -> None:
        path = folder / "numbers"
        path.write_bytes(b"head" + numbers.tobytes())
        plain = byte_ranges.lazy(path, 4, numbers.shape, numbers.dtype)
        self.numbers = numbers
        self.read = 0

        def counted(start: int, stop: int) -> Array:
            self.read += stop - start
            give = plain.ranges()
            assert give is not None
            return give(start, stop)

        def load() -> Array:
            self.read += plain.size
            return plain.read()

        self.lazy = Lazy(plain.shape, plain.dtype, load, lambda: counted)


def view_of(pattern: str, gate: int) -> Callable[[Array], Array]:
    parsed = axes.parse(pattern, SIZES)
    return lambda array: axes.view(array, parsed, SIZES, {"gate": gate}, ("hidden", "input"))


def random_tensor(pattern: str) -> Array:
    print("seed", SEED)
    shape = axes.shape(axes.parse(pattern, SIZES), SIZES)
    return np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("pattern", IN_RANGES)
@pytest.mark.parametrize("other", IN_RANGES)
def test_a_tensor_in_ranges_is_the_one_that_is_put_together_as_a_whole(
    pattern: str, other: str, tmp_path: Path
) -> None:
    stored = Stored(tmp_path, random_tensor(pattern))
    expected = np.zeros(axes.shape(axes.parse(other, SIZES), SIZES), np.float32)
    blocks = []
    for gate in (2, 0, 3):  # the place of the other one is zeros
        view_of(other, gate)(expected)[...] = view_of(pattern, gate)(stored.numbers)
        blocks.append(Piece(stored.lazy.view(view_of(pattern, gate), BLOCK), view_of(other, gate)))
    tensor = assembled(expected.shape, expected.dtype, blocks)
    assert np.array_equal(tensor.read(), expected)
    assert b"".join(pieces.pieces(tensor)) == expected.tobytes()
    give, flat = tensor.ranges(), expected.ravel()
    assert give is not None
    ends = np.sort(np.random.default_rng(SEED).integers(0, flat.size + 1, (40, 2)), axis=1)
    for start, stop in [(0, flat.size), (3, 3), *((int(a), int(b)) for a, b in ends)]:
        assert np.array_equal(give(start, stop), flat[start:stop]), (start, stop)


def test_blocks_that_lie_across_each_other_come_as_a_whole_only() -> None:
    first, second = np.full((3, 4), 1.0, np.float32), np.full((3, 2), 2.0, np.float32)
    tensor = assembled(
        (5, 6),
        np.dtype(np.float32),
        [Piece(Lazy.of(first), lambda a: a[:3, :4]), Piece(Lazy.of(second), lambda a: a[2:, 4:])],
    )
    expected = np.zeros((5, 6), np.float32)
    expected[:3, :4], expected[2:, 4:] = first, second
    assert tensor.ranges() is None
    assert b"".join(pieces.pieces(tensor)) == expected.tobytes()


def test_a_block_whose_rows_reach_into_each_other_comes_as_a_whole_only() -> None:
    one, two = np.full((2,), 1.0, np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)

    def woven(array: Array) -> Array:
        return np.lib.stride_tricks.as_strided(array[2:], (2, 3), (6 * 4, 4 * 4))

    tensor = assembled(
        (20,), np.dtype(np.float32), [Piece(Lazy.of(one), lambda a: a[1:8:6]), Piece(Lazy.of(two), woven)]
    )
    expected = np.zeros(20, np.float32)
    expected[[1, 7]], expected[[2, 6, 10, 8, 12, 16]] = 1, np.arange(6)
    assert tensor.ranges() is None
    assert b"".join(pieces.pieces(tensor)) == expected.tobytes()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("pattern", IN_RANGES)
def test_a_part_of_a_block_is_read_without_the_rest_where_it_lies_apart(
    pattern: str, axis: int, tmp_path: Path
) -> None:
    stored = Stored(tmp_path, random_tensor(pattern))
    whole = view_of(pattern, 2)(stored.numbers)
    slices = stored.lazy.view(view_of(pattern, 2), BLOCK).slices(axis)
    assert (slices is not None) == (pattern in (HIDDEN_IN_PARTS, INPUT_IN_PARTS)[axis])
    if slices is None:
        return
    for start in range(BLOCK[axis]):
        for stop in range(start, BLOCK[axis] + 1):
            stored.read = 0
            part = slices(start, stop)
            assert np.array_equal(part, whole[start:stop] if axis == 0 else whole[:, start:stop])
            assert stored.read == part.size


def test_a_view_of_a_view_knows_where_it_lies(tmp_path: Path) -> None:
    stored = Stored(tmp_path, random_tensor("gate hidden input"))
    block = stored.lazy.view(lambda a: a[1:], (3, *BLOCK)).view(lambda a: a[2, 1:], (4, 7))
    give = block.ranges()
    assert give is not None
    assert np.array_equal(give(3, 20), stored.numbers[3, 1:].ravel()[3:20])
    assert stored.read == 17
    assert np.array_equal(block.read(), stored.numbers[3, 1:])


@given(shape=st.lists(st.integers(0, 40), max_size=3), dtype=st.sampled_from(["f2", "f4", "f8"]))
def test_pieces_are_small_and_cover_everything(shape: list[int], dtype: str) -> None:
    tensor = Lazy.of(np.empty(shape, dtype))
    found = pieces.cuts(tensor)
    assert [n for start, stop in found for n in range(start, stop)] == list(range(tensor.size))
    assert all(0 < (stop - start) * tensor.dtype.itemsize <= pieces.PIECE for start, stop in found)
    row = shape[-1] * tensor.dtype.itemsize if shape else 0
    assert row == 0 or row > pieces.PIECE or all(start % shape[-1] == 0 for start, _ in found)


@pytest.mark.parametrize("pattern", IN_RANGES)
@pytest.mark.parametrize("other", IN_RANGES)
def test_one_element_that_differs_is_seen_and_at_most_one_tensor_is_read_as_a_whole(
    pattern: str, other: str, tmp_path: Path
) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    numbers = random_tensor(pattern)
    twin = np.zeros(axes.shape(axes.parse(other, SIZES), SIZES), np.float32)
    for gate in range(SIZES["gate"]):
        view_of(other, gate)(twin)[...] = view_of(pattern, gate)(numbers)

    def compared() -> bool:
        one, two = Stored(folders[0], numbers), Stored(folders[1], twin)
        blocks = [s.lazy.view(view_of(p, 1), BLOCK) for s, p in ((one, pattern), (two, other))]
        result = pieces.same(*blocks)
        in_parts = [pattern in each or other in each for each in (HIDDEN_IN_PARTS, INPUT_IN_PARTS)]
        if result and any(in_parts):
            assert sorted((one.read, two.read))[0] <= BLOCK[0] * BLOCK[1]
        return result

    assert compared()
    block = view_of(other, 1)(twin)
    for at in [(0, 0), (0, 6), (4, 0), (4, 6), (2, 3)]:
        block[at] = np.nextafter(block[at], np.float32(np.inf))
        assert not compared(), at
        block[at] = view_of(pattern, 1)(numbers)[at]
    assert compared()


def test_an_axis_of_one_position_is_not_what_is_cut(tmp_path: Path) -> None:
    stored = Stored(tmp_path, random_tensor("() (gate hidden) input"))
    sizes = pieces.of_pairs([(stored.lazy, stored.lazy)], lambda x, _: int(x.nbytes))
    assert max(size for _, size in sizes) <= pieces.PIECE


def test_gates_of_one_tensor_that_is_read_as_a_whole_are_read_once(tmp_path: Path) -> None:
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
    stored = Stored(folders[0], random_tensor("input (gate hidden)"))
    parts = Stored(folders[1], random_tensor("gate hidden input"))
    pairs = [
        (
            stored.lazy.view(view_of("input (gate hidden)", gate), BLOCK),
            parts.lazy.view(view_of("gate hidden input", gate), BLOCK),
        )
        for gate in range(SIZES["gate"])
    ]
    found = list(pieces.of_pairs(pairs, lambda x, y: (x.copy(), y.copy())))
    assert stored.read == parts.read == stored.numbers.size
    for gate, (first, second) in enumerate(pairs):
        taken = [part for number, part in found if number == gate]
        assert len(taken) > 1
        for whole, number in ((first, 0), (second, 1)):
            joined = np.concatenate([part[number].reshape(-1, BLOCK[1]) for part in taken])
            assert np.array_equal(np.sort(joined.ravel()), np.sort(whole.read().ravel()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_the_seal_of_ranges_is_that_of_the_whole(rows: int, columns: int) -> None:
    array = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    flat = array.ravel()
    tensor = Lazy(array.shape, array.dtype, lambda: array, lambda: lambda a, b: flat[a:b])
    unread, whole, ranges = (Seal(Provenance(), {"a": tensor}) for _ in range(3))
    whole.tensors["a"].read()
    assert b"".join(pieces.pieces(ranges.tensors["a"])) == array.tobytes()
    assert unread.closed() == whole.closed() == ranges.closed()
    array[-1, -1] += 1
    assert Seal(Provenance(), {"a": tensor}).closed() != whole.closed()
