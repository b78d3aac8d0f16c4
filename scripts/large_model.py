"""Keras models of any size, for the benchmark and for what is tested while a conversion runs.

python scripts/large_model.py FILE.h5 2048,2048 [INPUT_SIZE]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_SEED = 20261123


def write(path: Path, units: Sequence[int], *, input_size: int) -> Path:
    """A whole-model HDF5 file of LSTM layers one after another, as Keras 2 writes it.

    Args:
        path: the file.
        units: hidden size of every layer.
        input_size: features of the input.
    """
    import h5py

    rng = np.random.default_rng(_SEED)
    layers: list[dict[str, Any]] = []
    names = []
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = np.bytes_("2.2.4")
        file.attrs["backend"] = np.bytes_("tensorflow")
        group = file.create_group("model_weights")
        width = input_size
        for number, size in enumerate(units, 1):
            name = f"lstm_{number}"
            names.append(name)
            config: dict[str, Any] = {
                "name": name,
                "units": size,
                "activation": "tanh",
                "recurrent_activation": "sigmoid",
                "use_bias": True,
                "return_sequences": number < len(units),
            }
            if number == 1:
                config["batch_input_shape"] = [None, None, input_size]
            layers.append({"class_name": "LSTM", "config": config})
            shapes = {"kernel": (width, 4 * size), "recurrent_kernel": (size, 4 * size), "bias": (4 * size,)}
            inner = group.create_group(name)
            inner.attrs["weight_names"] = np.array([f"{name}/{part}:0" for part in shapes], "S")
            for part, shape in shapes.items():
                values = rng.standard_normal(shape, np.float32)
                values *= np.float32(0.5 / np.sqrt(size))
                inner.create_dataset(f"{name}/{part}:0", data=values)
            width = size
        group.attrs["layer_names"] = np.array(names, "S")
        model = {"class_name": "Sequential", "config": {"name": "large", "layers": layers}}
        file.attrs["model_config"] = np.bytes_(json.dumps(model))
    return path


if __name__ == "__main__":
    write(
        Path(sys.argv[1]),
        [int(size) for size in sys.argv[2].split(",")],
        input_size=int(sys.argv[3]) if len(sys.argv) > 3 else 1024,
    )
