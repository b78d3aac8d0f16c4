"""Runs cells of tf.compat.v1 in a process of its own: they need TF_USE_LEGACY_KERAS before TensorFlow.

    python tests/tf1_cells.py CASES.npz RESULTS.npz

``CASES.npz`` holds for every case ``NAME/config`` (JSON: class, arguments), ``NAME/x``, ``NAME/lengths``,
``NAME/state/N`` and the cell's variables as ``NAME/variable/...``; the results are ``NAME/y``, ``NAME/state/N``.
"""

from __future__ import annotations

import json
import sys

import numpy as np


def main() -> None:
    """Run all cases of the file named first, and write the results to the file named second."""
    import tensorflow as tf

    tf1 = tf.compat.v1
    tf1.disable_eager_execution()
    cases = dict(np.load(sys.argv[1]))
    results = {}
    for name in sorted({key.split("/")[0] for key in cases}):
        config = json.loads(str(cases[f"{name}/config"]))
        with tf1.Graph().as_default(), tf1.Session() as session:
            cell = getattr(tf1.nn.rnn_cell, config["class"])(**config["arguments"])
            given = [cases[f"{name}/state/{n}"] for n in range(config["states"])]
            start = [tf1.constant(array) for array in given]
            state = tf1.nn.rnn_cell.LSTMStateTuple(*reversed(start)) if len(start) == 2 else start[0]
            y, final = tf1.nn.dynamic_rnn(
                cell,
                tf1.constant(cases[f"{name}/x"]),
                sequence_length=tf1.constant(cases[f"{name}/lengths"]),
                initial_state=state,
            )
            session.run(tf1.global_variables_initializer())
            for variable in cell.weights:
                short = variable.name.split("/", 2)[-1].removesuffix(":0")
                variable.load(cases[f"{name}/variable/{short}"], session)
            results[f"{name}/y"] = session.run(y)
            final = (final.h, final.c) if len(start) == 2 else (final,)
            for n, part in enumerate(session.run(list(final))):
                results[f"{name}/state/{n}"] = part
    np.savez(sys.argv[2], **results)


if __name__ == "__main__":
    main()
