"""Whatever happens during a conversion: a complete, proved output or none, and all else as it was."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import lstmconvert
from lstmconvert import atomic
from lstmconvert.errors import BadFile
from scripts import large_model

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = int(os.environ.get("LSTMCONVERT_KILLS", "10"))
SEED = 20261123
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
OLD = b"the previous output"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_model.write(tmp_path_factory.mktemp("large") / "model.h5", (384, 256), input_size=96)


def started(source: Path, target: Path, *more: str, limit: int | None = None) -> subprocess.Popen[str]:
    def limited() -> None:
        # A shell has what it starts in the background ignore Ctrl-C, the tests and all that they start.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "lstmconvert", "convert", str(source), "-o", str(target), *more],
        cwd=source.parent, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=limited,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, error = process.communicate(timeout=120)
    return process.returncode, error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["out.onnx", "out.keras"])
def test_a_kill_leaves_all_or_nothing(source: Path, tmp_path: Path, name: str) -> None:
    before = source.read_bytes()
    target = tmp_path / name
    start = time.monotonic()
    assert finished(started(source, target))[0] == 0
    whole, seconds = target.read_bytes(), time.monotonic() - start
    rng = random.Random(SEED)
    ends = {"killed": 0, "done": 0}
    for number in range(KILLS):
        old = number % 2 == 1
        target.write_bytes(OLD) if old else target.unlink(missing_ok=True)
        process = started(source, target, "--overwrite")
        time.sleep(rng.uniform(0, 1.1 * seconds))
        process.kill()
        process.communicate()
        ends["killed" if process.returncode else "done"] += 1
        present = target.read_bytes() if target.exists() else None
        assert present in (OLD if old else None, whole), f"kill {number} of seed {SEED}"
        assert source.read_bytes() == before
    assert ends["killed"]
    left = [path for path in names(tmp_path) if path != name]
    assert all(path.startswith(".lstmconvert-") for path in left)


def test_what_a_killed_run_left_is_removed_by_a_later_one(source: Path, tmp_path: Path) -> None:
    abandoned, foreign, new = (
        tmp_path / n for n in (".lstmconvert-dead", ".lstmconvert-alive", ".lstmconvert-new")
    )
    for folder in (abandoned, foreign, new):
        folder.mkdir()
        (folder / "out.onnx").write_bytes(b"half")
    for folder in (abandoned, foreign):
        os.utime(folder, (1, 1))
    held = atomic._locked(foreign)
    try:
        lstmconvert.convert(source, tmp_path / "out.onnx")
    finally:
        os.close(held)
    assert names(tmp_path) == [".lstmconvert-alive", ".lstmconvert-new", "out.onnx"]


@pytest.mark.parametrize("name", ["out.onnx", "out.keras", "out.h5", "out.safetensors", "out.pt", "out.npz"])
@pytest.mark.parametrize("limit", [1000, 1_000_000])
def test_a_full_disk_is_a_plain_error(source: Path, tmp_path: Path, name: str, limit: int) -> None:
    target = tmp_path / name
    target.write_bytes(OLD)
    status, error = finished(started(source, target, "--overwrite", limit=limit))
    assert status == 4, error
    assert "Traceback" not in error and "internal error" not in error
    assert error.startswith("lstmconvert: "), error
    assert target.read_bytes() == OLD
    assert names(tmp_path) == [name]


def test_ctrl_c_leaves_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    process = started(source, target)
    deadline = time.monotonic() + 60
    while not names(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    status, error = finished(process)
    assert status == 130, error
    assert error == "lstmconvert: interrupted; nothing was written\n"
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.mkdir", refuse)
    with pytest.raises(lstmconvert.Usage, match="cannot be written to: Permission denied"):
        lstmconvert.convert(source, tmp_path / "out.onnx")
    assert names(tmp_path) == []


def test_the_output_is_not_the_source(source: Path) -> None:
    before = source.read_bytes()
    status, error = finished(started(source, source, "--overwrite", "--to", "keras"))
    assert (status, source.read_bytes()) == (2, before), error
    assert "the output is the source itself" in error


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [_truncated, _emptied])
@pytest.mark.parametrize("name", ["in.h5", "in.keras", "in.onnx", "in.safetensors", "in.pt", "in.npz"])
def test_a_source_that_shrinks_while_it_is_read(
    source: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    lstmconvert.convert(source, folder / name, proof=False)
    model = lstmconvert.read(folder / name, activation="tanh", recurrent_activation="sigmoid")
    damage(folder / name)
    with pytest.raises(BadFile, match=r"bytes|ends|cut|short|damaged|read"):
        lstmconvert.write(model, tmp_path / "out.safetensors")
    assert names(tmp_path) == ["in"]


def test_a_source_that_changes_after_it_was_written_from_fails_the_proof(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lstmconvert.containers import safetensors

    changing = tmp_path / "model.h5"
    changing.write_bytes(source.read_bytes())
    write = safetensors.write

    def write_then_change(*given: object) -> None:
        write(*given)  # type: ignore[arg-type]
        with changing.open("r+b") as file:
            file.seek(changing.stat().st_size // 2)
            file.write(np.full(64, 0.5, np.float32).tobytes())

    monkeypatch.setattr(safetensors, "write", write_then_change)
    with pytest.raises((lstmconvert.VerificationFailed, BadFile)):
        lstmconvert.convert(changing, tmp_path / "out.safetensors")
    assert names(tmp_path) == ["model.h5"]


def test_two_conversions_to_one_output(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    ends: Sequence[tuple[int, str]] = [finished(p) for p in [started(source, target) for _ in range(2)]]
    assert sorted(status for status, _ in ends) in ([0, 2], [0, 0]), ends
    assert [status for status, _ in ends].count(0) == 1, ends
    assert lstmconvert.verify(source, target).proved
    assert names(tmp_path) == ["out.onnx"]
