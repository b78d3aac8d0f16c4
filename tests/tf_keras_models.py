"""Saves models of tf_keras in TensorFlow's own formats, in a process of its own: ``python tf_keras_models.py FOLDER``.

``FOLDER/saved`` is a SavedModel, ``FOLDER/weights`` a checkpoint of ``save_weights``, ``FOLDER/named`` one of
``tf.compat.v1.train.Saver``; ``FOLDER/reference.npz`` has an input, the output and the weights.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

os.environ["TF_USE_LEGACY_KERAS"] = "1"


def main() -> None:
    """Build, train one step so that there are optimizer slots, save."""
    import tensorflow as tf

    folder = Path(sys.argv[1])
    layers = tf.keras.layers
    given = layers.Input((None, 3), name="x")
    value = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(given)
    value = layers.BatchNormalization(name="norm")(value)
    value = layers.GRU(5, return_sequences=True, name="gru")(value)
    value = layers.SimpleRNN(4, return_sequences=True, name="simple")(value)
    model = tf.keras.Model(given, layers.Dense(2, name="dense")(value))
    model.compile("adam", "mse")
    model.fit(np.ones((2, 6, 3), np.float32), np.zeros((2, 6, 2), np.float32), verbose=0)
    rng = np.random.default_rng(5)
    model.set_weights([np.abs(rng.normal(0, 0.7, w.shape)).astype(np.float32) for w in model.get_weights()])
    model.save_weights(folder / "weights")
    model.save(folder / "saved", save_format="tf")
    names = {variable.name.removesuffix(":0"): variable for variable in model.variables}
    tf.compat.v1.train.Saver(names).save(
        None, str(folder / "named"), write_meta_graph=False, write_state=False
    )
    x = rng.normal(size=(2, 6, 3)).astype(np.float32)
    weights = {f"weight/{name}": variable.numpy() for name, variable in names.items()}
    np.savez(folder / "reference.npz", x=x, y=model(x).numpy(), **weights)


if __name__ == "__main__":
    main()
