"""Converts with the installed wheel where no framework is installed, and proves that none was wanted.

A plain script, because it runs where only the core dependencies are installed (scripts/test makes that
environment): ``python -I tests/no_frameworks/check.py DGAINTEL BEATNET NSNET2``, the paths of three
files of the corpus. Prints what was proved; the exit status is 1 if anything was not.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.abc import MetaPathFinder
from pathlib import Path

FRAMEWORKS = (
    "torch",
    "tensorflow",
    "tf_keras",
    "keras",
    "jax",
    "flax",
    "haiku",
    "equinox",
    "mlx",
    "paddle",
    "tinygrad",
    "openvino",
    "coremltools",
)
"""Modules that a conversion must do without."""

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"


class ImportRecorder(MetaPathFinder):
    """Notes every attempt to import a framework, also one that the code would survive."""

    def __init__(self) -> None:
        self.attempts: list[str] = []

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:  # noqa: ARG002
        """Called for every import that is not served from ``sys.modules``; finds nothing itself."""
        if fullname.partition(".")[0] in FRAMEWORKS:
            self.attempts.append(fullname)


def first_case_file(directory: Path) -> Path:
    """The whole-model file of scripts/first_case.py, loaded by path: the checkout is not importable here."""
    spec = importlib.util.spec_from_file_location("first_case", SCRIPTS / "first_case.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path: Path = module.write_model(directory / "first_case.h5", "sigmoid")
    return path


def command(*arguments: str | Path) -> tuple[int, str]:
    """Run the command line in this process; returns its exit status and what it printed."""
    from lstmconvert.cli import main

    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            status = main([str(argument) for argument in arguments])
    except Exception as error:  # one broken conversion does not hide the others
        return 1, repr(error)
    return status, printed.getvalue()


def conversions(
    first_case: Path, dgaintel: Path, beatnet: Path, nsnet2: Path, out: Path
) -> list[Sequence[str | Path]]:
    """All six directions, on real models wherever the target can hold them."""
    return [
        ("keras2torch", first_case, "-o", out / "first.safetensors"),
        ("keras2onnx", first_case, "-o", out / "first.onnx"),
        ("keras2torch", dgaintel, "-o", out / "dgaintel.pt"),
        ("keras2onnx", dgaintel, "-o", out / "dgaintel.onnx"),
        ("torch2onnx", beatnet, "-o", out / "beatnet_onnx"),
        ("torch2keras", beatnet, "-o", out / "beatnet_keras"),
        ("onnx2torch", nsnet2, "-o", out / "nsnet2.safetensors"),
        ("onnx2keras", nsnet2, "-o", out / "nsnet2_keras"),
        ("onnx2keras", out / "first.onnx", "-o", out / "first_back.keras"),
        ("verify", first_case, out / "first.safetensors"),
    ]


def main(paths: Sequence[str]) -> int:
    """Run every conversion; returns the exit status."""
    faults = [f"{name} is installed" for name in FRAMEWORKS if importlib.util.find_spec(name) is not None]
    recorder = ImportRecorder()
    sys.meta_path.insert(0, recorder)

    import lstmconvert

    print(f"lstmconvert from {Path(lstmconvert.__file__).parent}")
    proved = 0
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        for arguments in conversions(first_case_file(out), *map(Path, paths), out):
            shown = " ".join(Path(str(argument)).name for argument in arguments)
            status, printed = command(*arguments, "--json")
            if status == 0 and json.loads(printed)["verdict"] == "proved":
                proved += 1
                print(f"proved: {shown}")
            else:
                faults.append(f"{shown}: exit status {status}: {printed.strip()}")
    faults += [f"tried to import {name}" for name in recorder.attempts]
    faults += [f"{name} was imported" for name in FRAMEWORKS if name in sys.modules]
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"{proved} conversions proved without a framework, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
