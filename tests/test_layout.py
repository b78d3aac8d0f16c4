"""Layouts: every element of every tensor is one element of one block, and the way back is the same."""

from __future__ import annotations

import numpy as np
import pytest

from lstmconvert import axes, layout, mapping
from lstmconvert.canonical import Weights
from lstmconvert.errors import BadFile
from lstmconvert.gates import GATES, PART_AXES, Cell, Direction, Gate, Part
from lstmconvert.mapping import BIAS_PAIR, Layout
from lstmconvert.tensors import Array, Lazy, same_bits

SIZES = {"input": 3, "hidden": 5, "recurrent": 5, "projected": 5}
BOTH = (Direction.FORWARD, Direction.REVERSE)


def recurrent_layouts() -> list[Layout]:
    return [
        found
        for path in sorted(mapping.folder().glob("*.toml"))
        for found in mapping.load_file(path).layouts.values()
        if found.cell is not None
    ]


def name_of(found: Layout) -> str:
    return f"{found.name}-{'-'.join(g[0] for g in found.gates)}"


def directions_of(found: Layout) -> tuple[Direction, ...]:
    kernel = next(rule for rule in found.tensors if rule.part == Part.KERNEL)
    return BOTH if "{direction}" in kernel.name or "direction" in kernel.axes.names else BOTH[:1]


def full_weights(found: Layout, start: int) -> Weights:
    """Weights that fill every place of a layout; every element is its own number."""
    assert found.cell is not None
    keys = list(dict.fromkeys(place.key for place in layout.places(found, BOTH[:1])))
    blocks = {}
    for part, gate in keys:
        shape = tuple(SIZES[axis] for axis in PART_AXES[part])
        count = int(np.prod(shape))
        blocks[part, gate] = Lazy.of(np.arange(start, start + count).reshape(shape))
        start += count
    for group in found.tied:
        blocks |= {
            (part, g): b for (part, first), b in list(blocks.items()) if first == group[0] for g in group
        }
    return Weights(found.cell, blocks)


@pytest.mark.parametrize("found", recurrent_layouts(), ids=name_of)
def test_a_layout_is_a_bijection_of_elements(found: Layout) -> None:
    """Every element that is packed lands in exactly one place, every place gets exactly one, and back."""
    directions = {d: full_weights(found, 1 + 10_000 * n) for n, d in enumerate(directions_of(found))}
    packed = {name: tensor.read() for name, tensor in layout.pack(found, directions).items()}
    for place in layout.places(found, tuple(directions)):
        if place.also is not None and place.also in packed:
            assert same_bits(packed.pop(place.also), packed[place.tensor]), "two names of one tensor"
    elements = np.concatenate([array.ravel() for array in packed.values()])
    shared = {gate for group in found.tied for gate in group[1:]}
    given = np.concatenate(
        [b.read().ravel() for w in directions.values() for key, b in w.items() if key[1] not in shared]
    )
    assert np.array_equal(np.sort(elements), np.sort(given))
    back = layout.unpack(found, {name: Lazy.of(array) for name, array in packed.items()})
    assert set(back) == set(directions)
    for direction, weights in directions.items():
        assert set(back[direction]) == set(weights)
        for key, block in weights.items():
            assert same_bits(back[direction][key].read(), block.read()), key


@pytest.mark.parametrize("found", recurrent_layouts(), ids=name_of)
def test_unpacked_gates_are_views_of_the_tensors(found: Layout) -> None:
    directions = {d: full_weights(found, 0) for d in directions_of(found)}
    arrays: dict[str, Array] = {n: t.read().copy() for n, t in layout.pack(found, directions).items()}
    blocks = layout.unpack(found, {name: Lazy.of(array) for name, array in arrays.items()})
    for by_key in blocks.values():
        for block in by_key.values():
            assert any(np.shares_memory(block.read(), array) for array in arrays.values())


def test_swapping_two_gates_in_a_layout_moves_the_numbers() -> None:
    """The bijection test alone cannot see an order; that the order acts at all is shown here."""
    found = mapping.load("pytorch").layouts["lstm"]
    weights = full_weights(found, 0)
    packed = layout.pack(found, {Direction.FORWARD: weights})["weight_ih_l0"].read()
    assert np.array_equal(packed[5:10], weights.kernel[Gate.FORGET])
    assert not np.array_equal(packed[5:10], weights.kernel[Gate.INPUT])


def test_one_tensor_is_read_once_for_all_its_gates() -> None:
    found = mapping.load("keras").layouts["lstm"]
    reads = []

    def counted(shape: tuple[int, ...]) -> Lazy:
        def load() -> Array:
            reads.append(shape)
            return np.zeros(shape, np.float32)

        return Lazy(shape, np.float32, load)

    tensors = {"kernel": counted((3, 20)), "recurrent_kernel": counted((5, 20)), "bias": counted((20,))}
    weights = layout.read_weights(Cell.LSTM, found, tensors)[Direction.FORWARD]
    target = mapping.load("pytorch").layouts["lstm"]
    for tensor in layout.pack(target, {Direction.FORWARD: weights}).values():
        tensor.read()
    assert reads == [(3, 20), (5, 20), (20,)]


def test_absent_blocks_are_zeros_only_where_their_tensor_is_needed() -> None:
    found = mapping.load("onnx").layouts["lstm"]
    full = full_weights(found, 1)
    no_recurrent = full.mapped(
        lambda key, block: None if key[0] in (Part.BIAS_RECURRENT, Part.PEEPHOLE) else block
    )
    packed = layout.pack(found, {Direction.FORWARD: no_recurrent})
    assert set(packed) == {"W", "R", "B"}
    assert np.all(packed["B"].read()[:, :20] != 0)
    assert np.all(packed["B"].read()[:, 20:] == 0)
    bare = no_recurrent.mapped(lambda key, block: None if key[0] is Part.BIAS_INPUT else block)
    assert set(layout.pack(found, {Direction.FORWARD: bare})) == {"W", "R"}


def test_a_block_without_a_place_is_refused() -> None:
    onnx = mapping.load("onnx").layouts["lstm"]
    keras = mapping.load("keras").layouts["lstm"]
    with pytest.raises(ValueError, match="no place for bias_recurrent input"):
        layout.pack(keras, {Direction.FORWARD: full_weights(onnx, 0)})


@pytest.mark.parametrize(
    ("change", "pieces"),
    [
        ({"weight_ih_l0": None}, ["weight_ih_l0", "missing"]),
        ({"bias_hh_l0": None}, ["bias_hh_l0", "some are missing"]),
        ({"weight_hh_l0": (20, 4)}, ["weight_hh_l0"]),
        ({"weight_ih_l0": (21, 3)}, ["weight_ih_l0", "not a multiple of 4"]),
        ({"weight_ih_l0": (20, 3, 1)}, ["weight_ih_l0", "has 3 axes"]),
        ({"bias_ih_l0": (16,)}, ["bias_ih_l0"]),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: dict[str, tuple[int, ...] | None], pieces: list[str]
) -> None:
    shapes: dict[str, tuple[int, ...] | None] = {
        "weight_ih_l0": (20, 3), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,), "bias_hh_l0": (20,),
    }  # fmt: skip
    shapes |= change
    tensors = {
        name: Lazy.of(np.zeros(shape, np.float32)) for name, shape in shapes.items() if shape is not None
    }
    with pytest.raises(BadFile) as caught:
        layout.read_weights(Cell.LSTM, mapping.load("pytorch").layouts["lstm"], tensors)
    for piece in pieces:
        assert piece in str(caught.value)


def test_layers_are_found_behind_any_prefix() -> None:
    found = mapping.load("pytorch").layouts["lstm"]
    names = [
        "module.rnn.weight_ih_l0",
        "module.rnn.weight_ih_l1_reverse",
        "weight_ih_l0",
        "x.my_weight_ih_l0",
    ]
    places = {(f.prefix, f.layer) for f in layout.find(found, names)}
    assert places == {("module.rnn.", "0"), ("module.rnn.", "1"), ("", "0"), ("x.my_", "0")}


def test_every_pair_axis_is_declared() -> None:
    for found in recurrent_layouts():
        assert found.cell is not None
        for rule in found.tensors:
            if rule.part == BIAS_PAIR:
                assert {"bias", "slot"} & set(rule.axes.names)
            assert set(rule.gates) <= set(GATES[found.cell])
            assert axes.parse(rule.axes.text, rule.axes.names) == rule.axes
