"""The first case: three LSTM units trained in Keras, and the question which numbers are which gate.

The question names no Keras release. The layer's default recurrent activation was hard_sigmoid until
multi-backend Keras 2.3 and sigmoid after, so knowing the gate order alone does not reproduce the numbers.

    python scripts/first_case.py DIRECTORY      writes the files below; needs numpy and h5py only
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT = (((0.725323664,), (0.7671179,), (0.805884672,)),)
"""(batch, time, features)"""

KERNEL = (
    (-0.40927699, -0.53539848, 0.40065038, -0.07722378, 0.30405849, 0.54959822,
     -0.23097005, 0.4720422, 0.05197877, -0.52746099, -0.5856396, -0.43691438),
)  # fmt: skip

RECURRENT_KERNEL = (
    (-0.25504839, -0.0823682, 0.11609183, 0.41123426, 0.03409858, -0.0647027,
     -0.59183347, -0.15359771, 0.21647622, 0.24863823, 0.46169096, -0.21100986),
    (0.29160395, 0.46513283, 0.33996364, -0.31195125, -0.24458826, -0.09762905,
     0.16202784, -0.01602131, 0.34460208, 0.39724654, 0.31806156, 0.1102117),
    (-0.15919448, -0.33053166, -0.22857222, -0.04912394, -0.21862955, 0.55346996,
     0.38505834, 0.18110731, 0.270677, -0.02759281, 0.42814475, -0.13496138),
)  # fmt: skip

BIAS = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

FINAL_HIDDEN_STATE: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "sigmoid": (-0.05508105, 0.1267179, 0.03343016),
        "hard_sigmoid": (-0.05672143, 0.13566435, 0.03405076),
    }
)
"""By recurrent activation (hard_sigmoid as in Keras 2), from an independent float64 computation."""

LAYER = "lstm_1"


def arrays() -> dict[str, NDArray[np.float32]]:
    """The weights under Keras's names."""
    return {
        name: np.array(values, np.float32)
        for name, values in (("kernel", KERNEL), ("recurrent_kernel", RECURRENT_KERNEL), ("bias", BIAS))
    }


def write_input(path: Path) -> Path:
    """The input as a ``.npy`` file."""
    np.save(path, np.array(INPUT, np.float64))
    return path


def write_dump(path: Path) -> Path:
    """The weights as arrays in an ``.npz`` file, under names that say nothing."""
    np.savez(path, **dict(zip("abc", arrays().values(), strict=True)))
    return path


def write_weights(path: Path) -> Path:
    """A weights-only HDF5 file as Keras 2 writes it: it does not say the recurrent activation."""
    import h5py

    with h5py.File(path, "w") as file:
        _write_layer(file)
    return path


def write_model(path: Path, recurrent_activation: str) -> Path:
    """A whole-model HDF5 file as Keras 2.2 writes it."""
    import h5py

    layer = {
        "name": LAYER,
        "trainable": True,
        "batch_input_shape": [None, len(INPUT[0]), 1],
        "dtype": "float32",
        "return_sequences": False,
        "return_state": False,
        "go_backwards": False,
        "stateful": False,
        "unroll": False,
        "units": len(RECURRENT_KERNEL),
        "activation": "tanh",
        "recurrent_activation": recurrent_activation,
        "use_bias": True,
        "unit_forget_bias": True,
        "dropout": 0.0,
        "recurrent_dropout": 0.0,
        "implementation": 1,
    }
    layers = [{"class_name": "LSTM", "config": layer}]
    config = {"class_name": "Sequential", "config": {"name": "sequential_1", "layers": layers}}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = np.bytes_("2.2.4")
        file.attrs["backend"] = np.bytes_("tensorflow")
        file.attrs["model_config"] = np.bytes_(json.dumps(config))
        _write_layer(file.create_group("model_weights"))
    return path


def _write_layer(group: Any) -> None:
    """The layer's weights in a Keras 2 weight group."""
    names = [f"{LAYER}/{name}:0" for name in arrays()]
    group.attrs["layer_names"] = np.array([LAYER], "S")
    inner = group.create_group(LAYER)
    inner.attrs["weight_names"] = np.array(names, "S")
    for name, values in zip(names, arrays().values(), strict=True):
        inner.create_dataset(name, data=values)


def main() -> None:
    """Write the input, an output, the weights, and a model for each reading of the activation."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    write_input(directory / "input.npy")
    write_weights(directory / "weights.h5")
    write_dump(directory / "dump.npz")
    np.save(directory / "output.npy", np.array([FINAL_HIDDEN_STATE["sigmoid"]]))
    for activation in FINAL_HIDDEN_STATE:
        write_model(directory / f"{activation}.h5", activation)


if __name__ == "__main__":
    main()
