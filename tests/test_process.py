"""How the command ends as a process: at once, but with everything done that somebody may wait for."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from lstmconvert import __main__ as entry

ROOT = Path(__file__).resolve().parent.parent

WATCHED = """
import atexit, os, sys, threading, time
from lstmconvert.__main__ import process

class Torn:
    def __del__(self, write=os.write):
        write(2, b"taken apart ")

kept = Torn()
atexit.register(lambda: os.write(2, b"handled "))

def late():
    time.sleep(0.2)
    os.write(2, b"thread ended ")

threading.Thread(target=late).start()
"""


def run(code: str, *arguments: str, more: Sequence[str] = (), **environment: str) -> tuple[int, str, str]:
    result = subprocess.run(
        [sys.executable, *more, "-c", code, *arguments],
        cwd=ROOT, capture_output=True, text=True, input="", check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"), [(["--version"], 0, "lstmconvert "), ([], 2, "usage: ")]
)
def test_the_process_ends_when_all_is_done(arguments: list[str], status: int, said: str) -> None:
    found, output, error = run(WATCHED + "process()", *arguments)
    assert found == status
    assert output.startswith(said)
    assert error == "thread ended handled "


def test_an_error_has_its_status_and_its_words() -> None:
    found, output, error = run(WATCHED + "process()", "inspect", "nowhere.h5")
    assert (found, output) == (4, "")
    assert "lstmconvert: nowhere.h5: there is no such file" in error
    assert "taken apart" not in error


def test_a_thread_that_was_interrupted_before_it_began_is_not_waited_for() -> None:
    interrupted = """
def interrupt(*_):
    raise KeyboardInterrupt

begin, threading._start_new_thread = threading._start_new_thread, interrupt
try:
    threading.Thread(target=late).start()
except KeyboardInterrupt:
    threading._start_new_thread = begin
process()
"""
    found, _, error = run(WATCHED + interrupted, "--version")
    assert (found, error) == (0, "thread ended handled ")


@pytest.mark.parametrize("watching", ["sys.settrace", "sys.setprofile"])
def test_who_looks_on_sees_the_ordinary_end(watching: str) -> None:
    found, _, error = run(WATCHED + f"{watching}(lambda *_: None)\nprocess()", "--version")
    assert found == 0
    assert error == "thread ended handled taken apart "


def test_an_interpreter_that_is_to_stay_stays() -> None:
    assert "taken apart" in run(WATCHED + "process()", "--version", more=["-i"])[2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_output_that_cannot_go_out_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "lstmconvert", "--version"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )  # fmt: skip
    assert result.returncode == 120
    assert "No space left" in result.stderr


@pytest.mark.parametrize(
    ("said", "threads"),
    [({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3"), ({"OMP_NUM_THREADS": "3"}, "None")],
)
def test_products_get_one_thread_where_nobody_says_how_many(said: dict[str, str], threads: str) -> None:
    code = """
import atexit, os, sys
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    if name not in sys.argv[2:]:
        os.environ.pop(name, None)
del sys.argv[2:]
atexit.register(lambda: print(os.environ.get("OPENBLAS_NUM_THREADS")))
from lstmconvert.__main__ import process
process()
"""
    _, output, _ = run(code, "--version", *said, **said)
    assert output.split()[-1] == threads


def test_the_command_is_the_process() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"lstmconvert": f"{entry.__name__}:{entry.process.__name__}"}
