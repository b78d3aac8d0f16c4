"""Where views lie in a tensor, and whether they cover it: against counting every element."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lstmconvert
from lstmconvert import conversion, movement, proof, registry, whole
from lstmconvert.canonical import RecurrentDirection, RecurrentLayer
from lstmconvert.containers import Archive
from lstmconvert.gates import Gate, Part
from lstmconvert.geometry import Cover, StandIn, cover
from lstmconvert.model import Model
from lstmconvert.options import ReadOptions
from lstmconvert.tensors import Lazy
from scripts import large_model


def stand_in(*shape: int, dtype: str = "float32") -> StandIn:
    return StandIn(Lazy(shape, dtype, lambda: np.zeros(shape, dtype)))


VIEWS = {
    "gates side by side": lambda a: [a[:, 3 * n : 3 * n + 3].T for n in range(4)],
    "gates interleaved": lambda a: [a.reshape(5, 3, 4)[..., n] for n in range(4)],
    "rows backwards": lambda a: [a[::-1, :6], a[:, 11:5:-1]],
    "flat": lambda a: [a.ravel()[:25].reshape(5, 5), a.ravel()[25:]],
    "one element at a time": lambda a: [a[n : n + 1, m] for n in range(5) for m in range(12)],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_that_cover_a_tensor_are_known_to(name: str) -> None:
    held = stand_in(5, 12)
    array = held.lazy.read()
    views = VIEWS[name](array)
    regions = [held.region(view) for view in views]
    assert cover([r for r in regions if r is not None], held.shape) == Cover(None, None)
    numbers = np.arange(60, dtype=np.float32).reshape(5, 12)
    for region, view in zip(regions, VIEWS[name](numbers), strict=True):
        assert region is not None
        assert np.array_equal(region.elements(), view.ravel())
    for left_out in range(len(views)):
        some = [r for n, r in enumerate(regions) if n != left_out and r is not None]
        missing = cover(some, held.shape).missing
        assert missing in VIEWS[name](numbers)[left_out]
        assert cover([*some, some[0]], held.shape).twice is not None


@pytest.mark.parametrize("seed", range(30))
def test_random_views_are_judged_as_by_counting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    held = stand_in(4, 6, 5)
    numbers = np.arange(120, dtype=np.float32).reshape(4, 6, 5)
    regions, shown = [], []
    for _ in range(rng.integers(1, 4)):
        cut = tuple(
            slice(int(rng.integers(0, n // 2)), int(rng.integers(n // 2, n)) + 1, int(rng.integers(1, 3)))
            for n in held.shape
        )
        order = rng.permutation(3)
        region = held.region(held.lazy.read()[cut].transpose(order))
        assert region is not None
        regions.append(region)
        shown += numbers[cut].transpose(order).ravel().tolist()
    counts = np.bincount(np.array(shown, int), minlength=120)
    found = cover(regions, held.shape)
    assert (found.twice is not None) == bool(counts.max() > 1)
    if found.twice is not None:
        assert counts[found.twice] > 1
    elif found.missing is not None:
        assert counts[found.missing] == 0
    else:
        assert counts.min() == 1


def test_what_repeats_or_lies_elsewhere_is_seen() -> None:
    held = stand_in(5, 12)
    array = held.lazy.read()
    repeated = held.region(np.broadcast_to(array[:1], (5, 12)))
    assert repeated is not None
    assert cover([repeated], held.shape).twice is not None
    assert held.region(array.copy()) is None
    assert held.region(array.view(np.uint16)) is None
    assert held.region(stand_in(5, 12).lazy.read()) is None


def of_file(path: Path, fault: str) -> movement.Movement:
    """The movement of a file's elements, where reading takes a wrong gate or a wrong part of one."""
    container = registry.container_of(path).name
    archive = registry.container_module(container).read(path)
    module = registry.module_of(registry.mapping_of("pytorch"))
    wrong = (Part.RECURRENT, Gate.FORGET)

    def spoiled(direction: RecurrentDirection) -> RecurrentDirection:
        weights = direction.weights
        block = weights[wrong]
        if fault == "another gate":
            block = weights[Part.RECURRENT, Gate.INPUT].map(lambda a: a, block.shape)
        elif fault == "one row again":
            block = block.map(lambda a: np.broadcast_to(a[:1], a.shape), block.shape)
        elif fault == "copied":
            block = block.map(np.copy, block.shape)
        return replace(direction, weights=weights.with_blocks({wrong: block}))

    def read(given: Archive) -> Model:
        model: Model = module.read(given, container, ReadOptions())
        return model.map_layers(
            lambda layer: layer.mapped(spoiled) if isinstance(layer, RecurrentLayer) else layer
        )

    return movement.of_source(archive, read)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geometry") / "model.h5"
    return large_model.write(path, [512, 300], input_size=600)


@pytest.mark.parametrize("name", ["a.onnx", "a.safetensors", "a.keras", "a.h5", "a.npz"])
def test_every_element_of_large_layers_is_followed(
    source: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (proof, conversion, whole):
        monkeypatch.setattr(module, "LARGE", 1 << 20)
    weights = lstmconvert.read(source).weights
    assert weights > 1 << 20
    found = lstmconvert.convert(source, tmp_path / name, to="pytorch" if name == "a.npz" else None).proof
    assert found is not None
    assert found.proved
    assert found.movement is not None
    assert found.movement.source == weights
    assert found.movement.target >= weights
    assert not found.movement.skipped


def test_a_large_layer_that_is_read_wrongly_is_seen(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movement, "_COUNTED", 0)
    target = tmp_path / "a.safetensors"
    lstmconvert.convert(source, target, proof=False)
    assert of_file(target, "none").proved
    for fault in ("another gate", "one row again"):
        problems = " ".join(of_file(target, fault).problems)
        assert "twice" in problems, fault
    copied = of_file(target, "copied")
    assert len(copied.skipped) == 2
    monkeypatch.setattr(movement, "_COUNTED", 1 << 22)
    assert of_file(target, "copied") == of_file(target, "none")
