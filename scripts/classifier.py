"""A classifier of texts as many were trained in Keras: an embedding, two bidirectional LSTMs, a Dense layer.

python scripts/classifier.py FILE.h5        writes it as Keras 2 does; needs numpy and h5py only
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

WORDS, FEATURES, UNITS, CLASSES = 1000, 32, 64, 4


def write_model(path: Path, seed: int = 0) -> Path:
    """A whole-model HDF5 file as Keras 2.2 writes it, with random weights."""
    import h5py

    layers = [
        {
            "class_name": "Embedding",
            "config": {
                "name": "embedding", "batch_input_shape": [None, None], "dtype": "float32",
                "input_dim": WORDS, "output_dim": FEATURES, "mask_zero": False,
            },
        },
        _bidirectional("bidirectional", return_sequences=True),
        _bidirectional("bidirectional_1", return_sequences=False),
        {
            "class_name": "Dense",
            "config": {"name": "dense", "units": CLASSES, "activation": "softmax", "use_bias": True},
        },
    ]  # fmt: skip
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "embedding": {"embedding/embeddings:0": (WORDS, FEATURES)},
        "bidirectional": _lstm_shapes("bidirectional", FEATURES),
        "bidirectional_1": _lstm_shapes("bidirectional_1", 2 * UNITS),
        "dense": {"dense/kernel:0": (2 * UNITS, CLASSES), "dense/bias:0": (CLASSES,)},
    }
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = np.bytes_("2.2.4")
        file.attrs["backend"] = np.bytes_("tensorflow")
        config = {"class_name": "Sequential", "config": {"name": "sequential", "layers": layers}}
        file.attrs["model_config"] = np.bytes_(json.dumps(config))
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array(list(shapes), "S")
        for name, weights in shapes.items():
            inner = group.create_group(name)
            inner.attrs["weight_names"] = np.array(list(weights), "S")
            for weight, shape in weights.items():
                inner.create_dataset(weight, data=rng.normal(0, 0.2, shape).astype(np.float32))
    return path


def _bidirectional(name: str, *, return_sequences: bool) -> dict[str, Any]:
    layer = {
        "name": name.replace("bidirectional", "lstm"), "units": UNITS, "return_sequences": return_sequences,
        "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True,
    }  # fmt: skip
    inner = {"class_name": "LSTM", "config": layer}
    return {"class_name": "Bidirectional", "config": {"name": name, "layer": inner, "merge_mode": "concat"}}


def _lstm_shapes(name: str, inputs: int) -> dict[str, tuple[int, ...]]:
    cell = name.replace("bidirectional", "lstm")
    return {
        f"{name}/{way}_{cell}/{part}:0": shape
        for way in ("forward", "backward")
        for part, shape in {
            "kernel": (inputs, 4 * UNITS), "recurrent_kernel": (UNITS, 4 * UNITS), "bias": (4 * UNITS,),
        }.items()
    }  # fmt: skip


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))
