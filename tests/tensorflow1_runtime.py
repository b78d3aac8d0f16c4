"""TensorFlow 1's own cells, run in a process of their own: they need TF_USE_LEGACY_KERAS before TensorFlow.

``Runtime`` starts the process once and sends it one JSON line for each task; arrays travel as ``.npy`` files.
Nothing here uses lstmconvert: which class a scope stands for is written down a second time, on purpose.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Runtime:
    """The process, started when the first task comes."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def _ask(self, task: Mapping[str, Any]) -> None:
        if self._process is None:
            environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("answer "):
                answer = json.loads(line.removeprefix("answer "))
                if answer:
                    raise AssertionError(f"TensorFlow: {answer}")
                return
        raise AssertionError("the process of TensorFlow has ended")

    def make(self, prefix: Path, specs: Sequence[Mapping[str, Any]], x: Any, seed: int, **more: Any) -> Any:
        """Build cells, give them random weights, save them as ``prefix``; their output on ``x``."""
        return self._run({"task": "make", "specs": list(specs), "seed": seed, **more}, prefix, x)

    def run(self, prefix: Path, x: Any, merge: str = "concat") -> Any:
        """Build the cells that the scopes in a checkpoint stand for, restore it, give their output on ``x``."""
        return self._run({"task": "run", "merge": merge}, prefix, x)

    def train(
        self, prefix: Path, target: Path, specs: Sequence[Mapping[str, Any]] | None, x: Any, goal: Any, *, steps: int,
        optimizer: str, arguments: Mapping[str, Any], weight: float, seed: int | None = None,
    ) -> None:  # fmt: skip
        """Train cells from random weights (``seed``) or from a checkpoint, optimizer and all, and save ``target``."""
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder, "x.npy"), x)
            np.save(Path(folder, "goal.npy"), goal)
            self._ask({
                "task": "train", "prefix": str(prefix), "target": str(target), "folder": folder, "seed": seed,
                "steps": steps, "optimizer": optimizer, "arguments": dict(arguments), "weight": weight,
                **({} if specs is None else {"specs": list(specs)}),
            })  # fmt: skip

    def _run(self, task: Mapping[str, Any], prefix: Path, x: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder, "x.npy"), x)
            self._ask({**task, "prefix": str(prefix), "folder": folder})
            return np.load(Path(folder, "y.npy"))

    def variables(self, prefix: Path) -> dict[str, Any]:
        """The arrays of a checkpoint as TensorFlow reads them; texts are left out."""
        with tempfile.TemporaryDirectory() as folder:
            self._ask({"task": "variables", "prefix": str(prefix), "folder": folder})
            with np.load(Path(folder, "y.npz")) as found:
                return dict(found)

    def save(self, prefix: Path, arrays: Mapping[str, Any]) -> None:
        """Save arrays as variables of these names."""
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder, "x.npz"), **arrays)
            self._ask({"task": "save", "prefix": str(prefix), "folder": folder})

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


RUNTIME = Runtime()
"""One process for all tests."""

# What follows runs in the process.


def _cell(tf1: Any, spec: Mapping[str, Any]) -> Any:
    arguments = dict(spec["arguments"])
    if spec["class"] == "CudnnCompatibleGRUCell":
        return _cudnn_compatible_gru(tf1, arguments["num_units"])
    if arguments.get("activation") == "relu":
        arguments["activation"] = tf1.nn.relu
    return getattr(tf1.nn.rnn_cell, spec["class"])(**arguments)


def _cudnn_compatible_gru(tf1: Any, units: int) -> Any:
    """tf.contrib.cudnn_rnn.CudnnCompatibleGRUCell as r1.15 documents it; tensorflow 2 has no contrib."""

    class Cell(tf1.nn.rnn_cell.RNNCell):  # type: ignore[misc, name-defined]
        state_size = output_size = units

        def build(self, shape: Any) -> None:
            width = int(shape[-1])
            shapes = {
                "gates/kernel": (width + units, 2 * units), "gates/bias": (2 * units,),
                "candidate/input_projection/kernel": (width, units),
                "candidate/input_projection/bias": (units,),
                "candidate/hidden_projection/kernel": (units, units),
                "candidate/hidden_projection/bias": (units,),
            }  # fmt: skip
            self.held = {n: self.add_weight(name=n, shape=s) for n, s in shapes.items()}
            self.built = True

        def call(self, x: Any, state: Any) -> Any:
            held = self.held
            gates = tf1.sigmoid(
                tf1.matmul(tf1.concat([x, state], 1), held["gates/kernel"]) + held["gates/bias"]
            )
            r, u = tf1.split(gates, 2, 1)
            projected = tf1.matmul(state, held["candidate/hidden_projection/kernel"])
            projected += held["candidate/hidden_projection/bias"]
            given = tf1.matmul(x, held["candidate/input_projection/kernel"])
            candidate = tf1.tanh(given + held["candidate/input_projection/bias"] + r * projected)
            new = (1 - u) * candidate + u * state
            return new, new

    return Cell(name="cudnn_compatible_gru_cell")


def _merged(tf1: Any, pair: Any, merge: str) -> Any:
    a, b = pair
    match merge:
        case "sum":
            return a + b
        case "ave":
            return (a + b) / 2
        case "mul":
            return a * b
    return tf1.concat([a, b], 2)


def _built(tf1: Any, spec: Mapping[str, Any], x: Any, merge: str) -> Any:
    """The output of one construction; ``way`` says which function of TensorFlow makes it."""
    scope = spec["scope"]
    cells = spec["cells"]
    lengths = tf1.fill([x.shape[0]], x.shape[1])
    common = {"dtype": tf1.float32, "sequence_length": lengths}

    def joined() -> Any:
        made = [_cell(tf1, cell) for cell in cells]
        return made[0] if spec["way"] in ("plain", "both") else tf1.nn.rnn_cell.MultiRNNCell(made)

    match spec["way"]:
        case "plain" | "multi":
            return tf1.nn.dynamic_rnn(joined(), x, scope=scope, **common)[0]
        case "both" | "each_way_a_stack":
            both = tf1.nn.bidirectional_dynamic_rnn(joined(), joined(), x, scope=scope, **common)[0]
            return _merged(tf1, both, merge)
        case "stack_both":
            for number, cell in enumerate(cells):
                with tf1.variable_scope(f"{scope}/cell_{number}"):
                    a, b = _cell(tf1, cell), _cell(tf1, cell)
                    x = _merged(tf1, tf1.nn.bidirectional_dynamic_rnn(a, b, x, **common)[0], merge)
            return x
    raise ValueError(spec["way"])


def _specs(shapes: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
    """What a checkpoint's names stand for, in the order in which the layers follow each other."""
    cells: dict[str, dict[str, Any]] = {}
    for name in shapes:
        match = re.fullmatch(r"(.*)/(\w+_cell(?:_without_forget_bias)?)/(.*)", name)
        if match is None or match[3] not in ("kernel", "gates/kernel"):
            continue
        before, scope = match[1], match[2]
        path = f"{before}/{scope}"
        rows = shapes[name][1]
        if scope.endswith("gru_cell"):
            cell = {"class": "CudnnCompatibleGRUCell" if "cudnn" in scope else "GRUCell"}
            cell["arguments"] = {"num_units": rows // 2}
        elif scope in ("basic_rnn_cell", "relu_rnn_cell"):
            cell = {"class": "BasicRNNCell", "arguments": {"num_units": rows}}
            if scope == "relu_rnn_cell":
                cell["arguments"] |= {"activation": "relu", "name": scope}
        elif scope == "basic_lstm_cell":
            cell = {"class": "BasicLSTMCell", "arguments": {"num_units": rows // 4}}
        else:
            cell = {"class": "LSTMCell", "arguments": {"num_units": rows // 4, "name": scope}}
            cell["arguments"]["forget_bias"] = 1.0 if scope == "lstm_cell" else 0.0
            cell["arguments"]["use_peepholes"] = f"{path}/w_i_diag" in shapes
            if f"{path}/projection/kernel" in shapes:
                cell["arguments"]["num_proj"] = shapes[f"{path}/projection/kernel"][1]
        cells[before] = cell
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for before, cell in cells.items():
        if match := re.fullmatch(r"(.*)/cell_(\d+)/bidirectional_rnn/(?:fw|bw)", before):
            groups.setdefault((match[1], "stack_both"), {})[int(match[2])] = cell
        elif match := re.fullmatch(r"(.*)/(?:fw|bw)/multi_rnn_cell/cell_(\d+)", before):
            groups.setdefault((match[1], "each_way_a_stack"), {})[int(match[2])] = cell
        elif match := re.fullmatch(r"(.*)/multi_rnn_cell/cell_(\d+)", before):
            groups.setdefault((match[1], "multi"), {})[int(match[2])] = cell
        elif match := re.fullmatch(r"(.*)/(?:fw|bw)", before):
            groups.setdefault((match[1], "both"), {})[0] = cell
        else:
            groups.setdefault((before, "plain"), {})[0] = cell

    def order(key: tuple[str, str]) -> list[Any]:
        return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", key[0])]

    return [
        {"scope": scope, "way": way, "cells": [held[n] for n in sorted(held)]}
        for (scope, way), held in sorted(groups.items(), key=lambda item: order(item[0]))
    ]


def _do(tf: Any, task: Mapping[str, Any]) -> None:
    tf1 = tf.compat.v1
    folder = Path(task["folder"])
    prefix = task["prefix"]
    if task["task"] == "variables":
        reader = tf.train.load_checkpoint(prefix)
        kinds = reader.get_variable_to_dtype_map()
        found = {name: reader.get_tensor(name) for name in kinds if kinds[name] != tf.string}
        np.savez(folder / "y.npz", **found)
        return
    with tf1.Graph().as_default(), tf1.Session() as session:
        if task["task"] == "save":
            with np.load(folder / "x.npz") as given:
                made = {name: tf1.Variable(given[name], name=name) for name in given}
            session.run(tf1.global_variables_initializer())
            tf1.train.Saver(made).save(session, prefix, write_meta_graph=False, write_state=False)
            return
        value = tf1.constant(np.load(folder / "x.npy"))
        specs = task.get("specs")
        if specs is None:
            reader = tf.train.load_checkpoint(prefix)
            specs = _specs({n: tuple(s) for n, s in reader.get_variable_to_shape_map().items()})
        for spec in specs:
            value = _built(tf1, spec, value, task.get("merge", "concat"))
        if task["task"] == "train":
            loss = task["weight"] * tf1.reduce_sum((value - np.load(folder / "goal.npy")) ** 2)
            held = tf1.trainable_variables()
            step = getattr(tf1.train, task["optimizer"])(**task["arguments"]).minimize(loss)
            if task["seed"] is None:
                tf1.train.Saver().restore(session, prefix)
            else:
                rng = np.random.default_rng(task["seed"])
                session.run(tf1.global_variables_initializer())
                for variable in held:
                    variable.load(rng.normal(0, 0.5, variable.shape).astype(np.float32), session)
            for _ in range(task["steps"]):
                session.run(step)
            tf1.train.Saver().save(session, task["target"], write_meta_graph=False, write_state=False)
            return
        if task["task"] == "make":
            rng = np.random.default_rng(task["seed"])
            loss = tf1.reduce_sum(value)
            held = tf1.trainable_variables()
            if task.get("adam"):
                tf1.train.AdamOptimizer().minimize(loss)
            session.run(tf1.global_variables_initializer())
            for variable in held:
                variable.load(rng.normal(0, 0.7, variable.shape).astype(np.float32), session)
            tf1.train.Saver().save(session, prefix, write_meta_graph=False)
        else:
            tf1.train.Saver().restore(session, prefix)
        np.save(folder / "y.npy", session.run(value))


def main() -> None:
    """Do the tasks that come on standard input."""
    import tensorflow as tf

    tf.compat.v1.disable_eager_execution()
    for line in sys.stdin:
        try:
            _do(tf, json.loads(line))
            answer = ""
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print("answer " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
