"""What a conversion does not need, it does not import: modules are counted, not milliseconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import first_case

ROOT = Path(__file__).resolve().parent.parent.parent
CODE = """
import json, sys
from lstmconvert import cli
status = cli.main(sys.argv[1:])
print("\\n" + json.dumps([status, sorted(sys.modules)]))
"""


def modules_of(*arguments: str | Path) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    status, modules = json.loads(result.stdout.splitlines()[-1])
    assert status == 0, result.stderr
    return set(modules)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    source = first_case.write_model(folder / "model.h5", "sigmoid")
    modules_of("convert", source, "-o", folder / "model.onnx")
    modules_of("convert", source, "-o", folder / "model.safetensors")
    return folder


UNUSED = {
    ("model.h5", "out.safetensors"): {"onnx", "google.protobuf", "onnxruntime"},
    ("model.onnx", "out.safetensors"): {"h5py", "onnx", "onnxruntime"},
    ("model.onnx", "out.keras"): {"onnx", "onnxruntime"},
    ("model.safetensors", "out.keras"): {"onnx", "google.protobuf", "onnxruntime"},
    ("model.safetensors", "out.onnx"): {"h5py", "onnx", "onnxruntime"},
    ("model.h5", "out.onnx"): {"onnx", "onnxruntime"},
}


@pytest.mark.parametrize(("source", "target"), UNUSED)
def test_a_conversion_imports_only_what_it_needs(
    files: Path, tmp_path: Path, source: str, target: str
) -> None:
    modules = modules_of("convert", files / source, "-o", tmp_path / target, "--no-verify")
    assert not modules & (UNUSED[source, target] | {"torch", "tensorflow", "keras", "jax"})


@pytest.mark.parametrize(("source", "target"), [key for key in UNUSED if not key[1].endswith(".onnx")])
def test_the_proof_imports_no_more_than_numpy(files: Path, tmp_path: Path, source: str, target: str) -> None:
    modules = modules_of("convert", files / source, "-o", tmp_path / target)
    assert not modules & UNUSED[source, target]


def test_help_needs_no_numpy() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lstmconvert", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not loaded & {"numpy", "h5py", "onnx", "lstmconvert.conversion", "dataclasses"}


def test_what_is_imported_is_seen(files: Path, tmp_path: Path) -> None:
    assert {"h5py", "numpy"} <= modules_of("convert", files / "model.h5", "-o", tmp_path / "out.safetensors")
