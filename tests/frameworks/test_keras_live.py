"""Live models and layers of Keras 3 and tf_keras."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from lstmconvert.errors import UnsupportedSource
from lstmconvert.frameworks import keras_live
from tests.frameworks import keras_zoo as zoo
from tests.frameworks.keras_files import assert_close, run

NAMES = ["two_lstm", "nested", "masked_embedding", "attention_scores", "stacked_cells", "frozen", "steps"]


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
@pytest.mark.parametrize("name", NAMES)
def test_a_live_model_comes_in_and_goes_out(package: str, name: str) -> None:
    built, inputs = zoo.build(name, importlib.import_module(package))
    wanted = zoo.predict(built, inputs)
    model = keras_live.read_live(built)
    assert_close(run(model, inputs), wanted, f"{package} {name}")
    live = keras_live.to_live(model)
    assert_close(zoo.predict(live, inputs), wanted, f"{package} {name} live again")


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_layers_on_their_own_and_models_that_are_code_give_recurrent_layers(package: str) -> None:
    keras = importlib.import_module(package)
    L = keras.layers
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 6, 4)).astype(np.float32)
    layer = L.Bidirectional(L.GRU(3, return_sequences=True), name="alone")
    wanted = np.asarray(layer(x))
    y, _ = keras_live.read_live(layer).recurrent["alone"].run(x)
    assert_close([y], [wanted], package)

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first = L.LSTM(3, return_sequences=True, name="first")
            self.second = L.LSTM(2, name="second")

        def call(self, inputs: Any) -> Any:
            return self.second(self.first(inputs))

    own = Own()
    wanted = np.asarray(own(x))
    found = keras_live.read_live(own)
    assert found.calls is None
    assert list(found.recurrent) == ["first", "second"]
    y, _ = found.recurrent["first"].run(x)
    y, _ = found.recurrent["second"].run(y)
    assert_close([y[:, -1]], [wanted], package)
    with pytest.raises(UnsupportedSource, match=r"no recurrent layers|no weights yet"):
        keras_live.read_live(L.LSTM(3))
