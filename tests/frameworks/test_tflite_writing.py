"""Whole networks written for LiteRT, judged by its runs against the source's, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lstmconvert as lc
from tests.matrix.judges import draw
from tests.matrix.judges_tflite import ran

Array = np.ndarray[Any, Any]


def words() -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [
            layers.Input((None,), dtype="int32"),
            layers.Embedding(20, 3),
            layers.Dropout(0.5),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True), merge_mode="ave"),
            layers.TimeDistributed(layers.Dense(5, activation="relu")),
            layers.LSTM(6, go_backwards=True),
            layers.Dense(3, activation="softmax", use_bias=False),
        ]
    )


def branches() -> Any:
    import keras
    from keras import layers

    x = layers.Input((5, 3))
    a = layers.LSTM(4, return_sequences=True)(x)
    b = layers.SimpleRNN(4, return_sequences=True, activation="relu")(x)
    joined = layers.Concatenate()([layers.Add()([a, b]), layers.Multiply()([a, b]), layers.Average()([a, b])])
    pooled = layers.GlobalAveragePooling1D()(joined)
    tops = layers.GlobalMaxPooling1D()(joined)
    flat = layers.Flatten()(layers.LeakyReLU(negative_slope=0.2)(layers.Dense(2, activation="tanh")(joined)))
    turned = layers.Flatten()(
        layers.Permute((2, 1))(layers.Rescaling(0.5, offset=1.5)(layers.Reshape((4, 5))(flat_four(a))))
    )
    y = layers.Concatenate()([pooled, tops, flat, turned])
    return keras.Model(
        x, [layers.Dense(2, activation="sigmoid")(y), layers.Bidirectional(layers.LSTM(3))(joined)]
    )


def repeated() -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [
            layers.Input((5, 3)),
            layers.LSTM(4),
            layers.RepeatVector(6),
            layers.LSTM(3, return_sequences=True),
            layers.TimeDistributed(layers.Dense(2)),
        ]
    )


def flat_four(a: Any) -> Any:
    from keras import layers

    return layers.Maximum()([a, layers.Activation("elu")(a)])


def filled(model: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    model.set_weights([draw(rng, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("build", [words, branches, repeated], ids=lambda build: build.__name__)
def test_a_whole_network(build: Any, tmp_path: Path) -> None:
    model = filled(build(), 7)
    source, target = tmp_path / "source.keras", tmp_path / "target.tflite"
    model.save(source)
    result = lc.convert(source, target)
    assert result.proof is not None
    assert result.proof.proved
    rng = np.random.default_rng(8)
    for batch in (1, 3):
        x = rng.integers(0, 20, (batch, 7)).astype(np.int32)
        if build is not words:
            x = rng.normal(0, 1, (batch, 5, 3)).astype(np.float32)
        expected = model(x)
        expected = expected if isinstance(expected, list) else [expected]
        found = ran(target, x)
        assert len(found) == len(expected)
        for y, other in zip(found, expected, strict=True):
            wanted = np.asarray(other)
            assert y.shape == wanted.shape
            assert np.max(np.abs(y - wanted)) <= 1e-5 * np.max(np.abs(wanted))
    back = tmp_path / "back.keras"
    lc.convert(target, back)
    import keras

    original, returned = model.get_weights(), keras.models.load_model(back).get_weights()
    assert sorted(w.tobytes() for w in returned) == sorted(w.tobytes() for w in original)


def refused(tmp_path: Path, *layers: Any) -> str:
    import keras

    model = keras.Sequential(list(layers))
    model.save(tmp_path / "source.keras")
    with pytest.raises(lc.NotRepresentable) as caught:
        lc.convert(tmp_path / "source.keras", tmp_path / "out.tflite")
    assert not list(tmp_path.glob("out*"))
    return str(caught.value)


def test_what_has_no_operator_is_refused_by_name(tmp_path: Path) -> None:
    from keras import layers

    given = layers.Input((5, 3))
    lstm = layers.LSTM(4, return_sequences=True)
    assert "has no GRU" in refused(tmp_path, given, layers.GRU(4))
    assert "hard_sigmoid" in refused(tmp_path, given, layers.LSTM(4, recurrent_activation="hard_sigmoid"))
    assert "BatchNormalization is not written" in refused(tmp_path, given, lstm, layers.BatchNormalization())
    assert "mask" in refused(tmp_path, given, layers.Masking(), layers.LSTM(4))
    words = layers.Input((5,))
    assert "a mask" in refused(tmp_path, words, layers.Embedding(9, 3, mask_zero=True), layers.LSTM(4))
    assert "activation mish" in refused(tmp_path, given, lstm, layers.Dense(2, activation="mish"))
    stateful = layers.Input(batch_shape=(2, 5, 3))
    assert "carried" in refused(tmp_path, stateful, layers.LSTM(4, stateful=True))


@pytest.mark.parametrize("option", [{"opset": 17}, {"states": True}])
def test_options_without_meaning_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    filled(words(), 3).save(tmp_path / "source.keras")
    with pytest.raises(lc.Usage):
        lc.convert(tmp_path / "source.keras", tmp_path / "out.tflite", **option)
