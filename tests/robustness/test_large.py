"""Memory stays near the largest tensor, and large models are proved without running them for long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lstmconvert
from lstmconvert import proof
from lstmconvert.tensors import copy_into, same_bits
from scripts import large_model

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS, INPUT = 768, 512
TENSOR = UNITS * 4 * UNITS * 4 / 1e6
"""MB of the largest tensor."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_model.write(tmp_path_factory.mktemp("large") / "model.h5", [UNITS] * 4, input_size=INPUT)


def peak_megabytes(*arguments: str | Path) -> float:
    """Peak resident memory of a conversion in a process of its own."""
    # A lean process in between: the peak of a child begins with the memory of the one that started it.
    code = (
        "import resource, subprocess, sys; "
        "status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
        "print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    command = [sys.executable, "-c", code, sys.executable, "-m", "lstmconvert", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    status, peak = result.stdout.split()
    assert status == "0", result.stderr
    return float(peak)


@pytest.fixture(scope="module")
def sources(source: Path) -> dict[str, Path]:
    """The model in a file of each framework."""
    files = {
        "keras": source,
        "torch": source.with_name("torch.safetensors"),
        "onnx": source.with_name("m.onnx"),
    }
    for name in ("torch", "onnx"):
        lstmconvert.convert(source, files[name], proof=False)
    return files


@pytest.mark.parametrize(
    ("framework", "name"),
    [
        ("keras", "out.onnx"), ("keras", "out.safetensors"), ("keras", "out.keras"), ("keras", "out.pt"),
        ("torch", "out.onnx"), ("torch", "out.keras"), ("torch", "out.h5"),
        ("onnx", "out.safetensors"), ("onnx", "out.keras"),
    ],
)  # fmt: skip
def test_memory_is_bounded_by_the_largest_tensor(
    sources: dict[str, Path], tmp_path: Path, framework: str, name: str
) -> None:
    source = sources[framework]
    assert source.stat().st_size > 7 * TENSOR * 1e6
    assert peak_megabytes("convert", source, "-o", tmp_path / name) < 120 + 2 * TENSOR


def test_a_large_model_is_proved_in_bits_and_for_a_few_steps(source: Path, tmp_path: Path) -> None:
    found = lstmconvert.convert(source, tmp_path / "out.onnx").proof
    assert found is not None
    assert found.proved
    assert all(layer.bit_equal for layer in found.layers)
    assert [whole.runtime for whole in found.whole] == ["interpreter in float32"]
    assert any("--verify full" in reason for reason in found.skipped)


def test_a_large_model_with_one_other_bit_is_not_proved(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    lstmconvert.convert(source, target, proof=False)
    with target.open("r+b") as file:
        file.seek(target.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    found = lstmconvert.verify(source, target)
    assert sum(len(layer.differing) for layer in found.layers) == 1


def test_full_runs_a_large_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(proof, "LARGE", 100)
    monkeypatch.setattr("lstmconvert.whole.LARGE", 100)
    monkeypatch.setattr("lstmconvert.conversion.LARGE", 100)
    small = large_model.write(tmp_path / "model.h5", [8, 5], input_size=3)
    short = lstmconvert.convert(small, tmp_path / "a.onnx").proof
    full = lstmconvert.convert(small, tmp_path / "b.onnx", full=True).proof
    assert short is not None
    assert full is not None
    assert short.proved
    assert full.proved
    assert short.layers[0].tolerance == 0 < full.layers[0].tolerance
    assert len(full.whole) > len(short.whole)


@pytest.mark.parametrize(
    "shape", [(300, 200), (129, 1025), (3, 400_000), (1_200_000,), (7, 500, 400), (0, 5), ()]
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "complex128", "bool"])
def test_large_arrays_are_compared_and_copied_completely(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(3)
    a = rng.integers(0, 2, shape).astype(dtype)
    for order in ("C", "F"):
        b = np.empty(shape, dtype, order=order)  # type: ignore[call-overload]
        copy_into(b, a)
        assert np.array_equal(a, b)
        assert same_bits(a, b)
        for place in {0, a.size // 2, a.size - 1} if a.size else ():
            index = np.unravel_index(place, shape)
            was, b[index] = b[index], not b[index]
            assert not same_bits(a, b), place
            b[index] = was


def test_zeros_of_other_signs_and_other_nans_are_other_bits() -> None:
    zeros = np.zeros((200, 300), np.float32)
    other = zeros.copy()
    other[150, 250] = -0.0
    assert not same_bits(zeros, np.asfortranarray(other))
    nan = zeros.copy()
    nan[0, 0] = np.nan
    assert same_bits(nan, np.asfortranarray(nan))
    assert not same_bits(nan, nan.view(np.uint32).__xor__(1).view(np.float32))
