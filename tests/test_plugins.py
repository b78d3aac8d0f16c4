"""The page on adding a framework, followed to the letter: a package of others that ships a mapping file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import lstmconvert as lc

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "mappings" / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with the one of the page in it, as an installer lays it out."""
    described, declared = blocks("toml")
    (source,) = blocks("python")
    place = tmp_path / "site"
    (place / "greynet").mkdir(parents=True)
    (place / "greynet" / "__init__.py").write_text(source)
    (place / "greynet" / "greynet.toml").write_text(described)
    metadata = place / "greynet-0.3.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: greynet\nVersion: 0.3.1\n")
    points = tomllib.loads(declared)["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in found.items()) for group, found in points.items()
    ]
    (metadata / "entry_points.txt").write_text("".join(lines))
    return place


def run(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lstmconvert", *arguments],
        cwd=folder, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}"},
    )  # fmt: skip


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def greynet(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """What GreyNet would compute: x (time, input), one direction."""
    hidden = weights["offset"].size // 4
    h, c, rows = np.zeros(hidden), np.zeros(hidden), []
    for value in x:
        o, i, f, g = np.split(
            value @ weights["input_matrix"] + h @ weights["hidden_matrix"] + weights["offset"], 4
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        rows.append(h)
    return np.array(rows)


def test_the_page_works_as_it_stands(site: Path, tmp_path: Path) -> None:
    assert len(blocks("toml")[0].splitlines()) <= 35
    rng = np.random.default_rng(12)
    shapes = {"input_matrix": (3, 16), "hidden_matrix": (4, 16), "offset": (16,)}
    weights = {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "weights.npz", **weights)
    (commands,) = blocks("console")
    for line in commands.splitlines():
        program, *arguments = line.split()
        assert program == "lstmconvert"
        done = run(site, tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        if arguments == ["frameworks"]:
            assert "GreyNet (greynet): 0.3; from its documentation" in done.stdout
    x = rng.normal(size=(6, 3))
    (layer,) = lc.read(tmp_path / "model.onnx").recurrent.values()
    np.testing.assert_allclose(layer.run(x[None])[0][0], greynet(weights, x), atol=1e-6)
    with np.load(tmp_path / "back.npz") as back:
        assert all(back[name].tobytes() == array.tobytes() for name, array in weights.items())


def test_a_framework_of_another_package_is_listed_as_json(site: Path, tmp_path: Path) -> None:
    listed = json.loads(run(site, tmp_path, "frameworks", "--json").stdout)
    (entry,) = [entry for entry in listed if entry["name"] == "greynet"]
    assert entry["verified"] == "documented"
    assert entry["writes"] == [".npz", ".safetensors"]


def test_without_the_package_the_names_mean_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", input_matrix=np.ones((3, 16)))
    done = run(tmp_path, tmp_path, "convert", "weights.npz", "-o", "model.onnx")
    assert done.returncode == 4
    assert "--mapping" in done.stderr


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("greynet/__init__.py", "raise RuntimeError('no such thing')", "RuntimeError: no such thing"),
        ("greynet/greynet.toml", "schema = 1\n", "framework"),
        ("greynet/greynet.toml", blocks("toml")[0].replace('"greynet"', '"other"'), "mapping file 'other'"),
    ],
)
def test_a_broken_package_is_one_plain_error(
    site: Path, tmp_path: Path, file: str, content: str, said: str
) -> None:
    (site / file).write_text(content)
    done = run(site, tmp_path, "frameworks")
    assert done.returncode == 2
    assert "greynet" in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
