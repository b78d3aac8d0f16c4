"""Releases, forms and refusals of Keras files that need no runtime, or a small one, as judge."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import lstmconvert
from lstmconvert import operations
from lstmconvert.activations import HARD_SIGMOID_KERAS2, HARD_SIGMOID_KERAS3, SIGMOID, TANH
from lstmconvert.canonical import GruEquations, LstmEquations, ResetPlace
from lstmconvert.containers import Archive
from lstmconvert.errors import AmbiguousSource, BadFile, ConversionError, UnsupportedSource, Usage
from lstmconvert.frameworks import keras as framework
from lstmconvert.frameworks.keras.version import parse, release_of
from lstmconvert.gates import Gate
from lstmconvert.model import Model, OperationLayer
from lstmconvert.options import ReadOptions
from lstmconvert.tensors import Lazy
from tests.corpus import corpus_file
from tests.frameworks import keras_zoo as zoo
from tests.frameworks.keras_files import assert_close, read, run

I, H = 3, 5  # noqa: E741 - the input size, as in the layouts
rng = np.random.default_rng(7)


def numbers(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def archive(
    layers: list[dict[str, Any]],
    weights: dict[str, dict[str, np.ndarray]],
    version: str | None = "2.2.4",
    **more: Any,
) -> Archive:
    """A whole-model file with a list-style Sequential."""
    tensors = {f"{layer}/{name}": Lazy.of(a) for layer, own in weights.items() for name, a in own.items()}
    metadata = {
        "form": "whole_model",
        "model_config": {"class_name": "Sequential", "config": layers},
        "keras_version": version,
        "backend": "tensorflow",
        "layer_weights": {
            layer: tuple((name, f"{layer}/{name}") for name in own) for layer, own in weights.items()
        },
        **more,
    }
    return Archive(MappingProxyType(tensors), MappingProxyType(metadata))


def opened(source: Archive, **options: Any) -> Model:
    return framework.read(source, "hdf5", ReadOptions(**options))


def lstm_file(version: str | None = "2.2.4", **config: Any) -> Archive:
    weights = {
        "kernel:0": numbers(I, 4 * H),
        "recurrent_kernel:0": numbers(H, 4 * H),
        "bias:0": numbers(4 * H),
    }
    layer = {"name": "lstm", "units": H, "trainable": True, "batch_input_shape": [None, None, I], **config}
    return archive([{"class_name": "LSTM", "config": layer}], {"lstm": weights}, version)


def gate_activation(model: Model) -> Any:
    equations = model.recurrent["lstm"].equations
    assert isinstance(equations, LstmEquations)
    return equations.gate_activation


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.2.2", HARD_SIGMOID_KERAS2),
        ("2.0.8", HARD_SIGMOID_KERAS2),
        ("2.2.4", HARD_SIGMOID_KERAS2),
        ("2.3.1", SIGMOID),
        ("2.2.4-tf", SIGMOID),
        ("2.21.0", SIGMOID),
        ("3.15.1", SIGMOID),
    ],
)
def test_the_default_recurrent_activation_is_that_of_the_release(version: str, expected: Any) -> None:
    assert gate_activation(opened(lstm_file(version))) == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.2.4", HARD_SIGMOID_KERAS2), ("2.21.0", HARD_SIGMOID_KERAS2), ("3.0.0", HARD_SIGMOID_KERAS3)],
)
def test_the_slope_of_hard_sigmoid_is_that_of_the_release(version: str, expected: Any) -> None:
    assert gate_activation(opened(lstm_file(version, recurrent_activation="hard_sigmoid"))) == expected


def test_options_decide_only_what_the_file_leaves_open() -> None:
    assert gate_activation(opened(lstm_file("2.2.4"), recurrent_activation="sigmoid")) == SIGMOID
    source = lstm_file("2.2.4", recurrent_activation="hard_sigmoid")
    with pytest.raises(Usage, match="--recurrent-activation contradicts the file"):
        opened(source, recurrent_activation="sigmoid")
    with pytest.raises(Usage, match="--keras-version contradicts the file"):
        opened(source, keras_version="3")
    with pytest.raises(Usage, match="not a version"):
        opened(source, keras_version="newest")
    assert gate_activation(opened(source, keras_version="2.2")) == HARD_SIGMOID_KERAS2


def test_versions_are_parsed() -> None:
    for text, generation in (("1.2.2", 1), ("2.2.4-tf", 2), ("0.3.1", 1), ("3", 3), ("2", 2)):
        release = parse(text)
        assert release is not None
        assert release.generation == generation
    assert release_of({"form": "weights_v3"}, ReadOptions()) is None


@pytest.mark.parametrize(("reset_after", "shape"), [(None, (3 * H,)), (True, (2, 3 * H))])
def test_a_gru_without_reset_after_is_the_old_form(reset_after: bool | None, shape: tuple[int, ...]) -> None:
    weights = {
        "kernel:0": numbers(I, 3 * H),
        "recurrent_kernel:0": numbers(H, 3 * H),
        "bias:0": numbers(*shape),
    }
    config: dict[str, Any] = {"name": "gru", "units": H, "batch_input_shape": [None, None, I]}
    if reset_after is not None:
        config["reset_after"] = reset_after
    source = archive([{"class_name": "GRU", "config": config}], {"gru": weights})
    equations = opened(source).recurrent["gru"].equations
    assert isinstance(equations, GruEquations)
    place = ResetPlace.AFTER_PRODUCT if reset_after else ResetPlace.BEFORE_PRODUCT
    assert equations.reset is place
    with pytest.raises(Usage, match="--reset-after contradicts"):
        opened(source, reset_after=not reset_after)


def test_every_gate_lies_where_keras_has_it() -> None:
    source = lstm_file()
    layer = opened(source).recurrent["lstm"]
    kernel = source.tensors["lstm/kernel:0"].read()
    for number, gate in enumerate((Gate.INPUT, Gate.FORGET, Gate.CELL, Gate.OUTPUT)):
        assert np.array_equal(
            layer.directions[0].weights.kernel[gate], kernel[:, number * H : (number + 1) * H].T
        )
    assert layer.stored_gates == (Gate.INPUT, Gate.FORGET, Gate.CELL, Gate.OUTPUT)


# Keras 1.


def keras1_weights(layer: str, gates: str) -> dict[str, np.ndarray]:
    shapes = {"W": (I, H), "U": (H, H), "b": (H,)}
    return {f"{layer}_{part}_{gate}": numbers(*shape) for gate in gates for part, shape in shapes.items()}


@pytest.mark.parametrize(("class_name", "gates"), [("LSTM", "icfo"), ("GRU", "zrh")])
def test_keras1_keeps_an_array_for_each_gate(class_name: str, gates: str) -> None:
    """Keras 1 lists the LSTM's gates as i, c, f, o; the names decide, not the order."""
    config = {
        "name": "rec", "output_dim": H, "inner_activation": "hard_sigmoid", "activation": "tanh", "consume_less": "cpu",
        "batch_input_shape": [None, 7, I], "dropout_W": 0.2, "dropout_U": 0.0, "input_dim": I, "W_regularizer": None,
    }  # fmt: skip
    own = keras1_weights("rec", gates)
    layer = opened(archive([{"class_name": class_name, "config": config}], {"rec": own}, "1.2.2")).recurrent[
        "rec"
    ]
    names = dict(zip("ifcozrh", (Gate.INPUT, Gate.FORGET, Gate.CELL, Gate.OUTPUT, Gate.UPDATE, Gate.RESET,
                                 Gate.CANDIDATE), strict=True))  # fmt: skip
    weights = layer.directions[0].weights
    for gate in gates:
        assert np.array_equal(weights.kernel[names[gate]], own[f"rec_W_{gate}"].T)
        assert np.array_equal(weights.recurrent[names[gate]], own[f"rec_U_{gate}"].T)
        assert np.array_equal(weights.bias_input[names[gate]], own[f"rec_b_{gate}"])
    assert layer.sequence.dropout == 0.2


def test_a_network_of_keras1_computes_what_keras1_computed(tmp_path: Path) -> None:
    """The same network in tf_keras, with Keras 1's arrays put together, is the judge."""
    import tf_keras

    del tmp_path
    layers = [
        {"class_name": "Convolution1D", "config": {
            "name": "conv", "nb_filter": 4, "filter_length": 2, "border_mode": "same", "activation": "relu",
            "subsample_length": 1, "bias": True, "batch_input_shape": [None, 6, I]}},
        {"class_name": "MaxPooling1D", "config": {"name": "pool", "pool_length": 2, "stride": 2, "border_mode": "valid"}},
        {"class_name": "Bidirectional", "config": {"name": "both", "merge_mode": "concat", "layer": {
            "class_name": "LSTM", "config": {
                "name": "rec", "output_dim": H, "inner_activation": "hard_sigmoid", "activation": "tanh",
                "return_sequences": True}}}},
        {"class_name": "Dropout", "config": {"name": "drop", "p": 0.5}},
        {"class_name": "TimeDistributed", "config": {"name": "steps", "layer": {
            "class_name": "Dense", "config": {"name": "dense", "output_dim": 2, "activation": "softmax", "bias": True}}}},
    ]  # fmt: skip
    conv = {"conv_W": numbers(2, 1, I, 4), "conv_b": numbers(4)}
    both = {}
    for side in ("forward", "backward"):
        shapes = {"W": (4, H), "U": (H, H), "b": (H,)}
        both |= {f"{side}_rec_{p}_{g}": numbers(*shape) for g in "icfo" for p, shape in shapes.items()}
    dense = {"steps_W": numbers(2 * H, 2), "steps_b": numbers(2)}
    model = opened(
        archive(layers, {"conv": conv, "pool": {}, "both": both, "drop": {}, "steps": dense}, "1.2.2")
    )

    L = tf_keras.layers
    judge = tf_keras.Sequential([
        tf_keras.Input((6, I)), L.Conv1D(4, 2, padding="same", activation="relu"), L.MaxPooling1D(2),
        L.Bidirectional(L.LSTM(H, recurrent_activation="hard_sigmoid", return_sequences=True)),
        L.TimeDistributed(L.Dense(2, activation="softmax")),
    ])  # fmt: skip

    def joined(side: str, part: str) -> np.ndarray:
        return np.concatenate([both[f"{side}_rec_{part}_{gate}"] for gate in "ifco"], axis=-1)

    judge.set_weights([
        conv["conv_W"][:, 0], conv["conv_b"],
        *(joined(side, part) for side in ("forward", "backward") for part in "WUb"), *dense.values(),
    ])  # fmt: skip
    x = numbers(3, 6, I)
    assert_close(run(model, [x]), [judge.predict(x, verbose=0)], "Keras 1")


# CuDNN layers, which tf_keras turns into plain ones when it loads them.


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_cudnn_layers_compute_what_tf_keras_makes_of_them(cell: str) -> None:
    import tf_keras
    from tf_keras.src.saving.legacy import hdf5_format

    count = {"LSTM": 4, "GRU": 3}[cell]
    weights = [numbers(I, count * H), numbers(H, count * H), numbers(2 * count * H)]
    config = {"name": "rec", "units": H, "return_sequences": True, "batch_input_shape": [None, None, I]}
    names = ("kernel:0", "recurrent_kernel:0", "bias:0")
    source = archive(
        [{"class_name": f"CuDNN{cell}", "config": config}],
        {"rec": dict(zip(names, weights, strict=True))},
        "2.1.6-tf",
    )
    L = tf_keras.layers
    options = {"reset_after": True} if cell == "GRU" else {}
    layer = getattr(L, cell)(H, return_sequences=True, recurrent_activation="sigmoid", **options)
    judge = tf_keras.Sequential([tf_keras.Input((None, I)), layer])
    layer.set_weights(hdf5_format.preprocess_weights_for_loading(layer, weights, "2.1.6", "tensorflow"))
    x = numbers(2, 6, I)
    assert_close(run(opened(source), [x]), [judge.predict(x, verbose=0)], cell)


# Weights without a configuration.


@pytest.mark.parametrize("form", ["a.weights.h5", "legacy.h5"])
def test_weights_alone_give_their_recurrent_layers(form: str, tmp_path: Path) -> None:
    import keras
    import tf_keras

    package = keras if form == "a.weights.h5" else tf_keras
    L = package.layers
    layers = [
        package.Input((None, I)),
        L.Bidirectional(L.LSTM(4, return_sequences=True), name="both"),
        L.GRU(5, return_sequences=True, name="after"),
        L.GRU(2, reset_after=False, return_sequences=True, name="before"),
        L.Dense(3, name="dense"),
        L.SimpleRNN(3, name="simple"),
    ]
    built = package.Sequential(layers)
    zoo.randomise(built, np.random.default_rng(5))
    path = tmp_path / form
    built.save_weights(path)
    with pytest.raises(
        AmbiguousSource, match="--recurrent-activation sigmoid or --recurrent-activation hard_sigmoid"
    ):
        read(path)
    with pytest.raises(AmbiguousSource, match="--activation tanh or --activation relu"):
        read(path, recurrent_activation="sigmoid")
    model = read(path, recurrent_activation="sigmoid", activation="tanh")
    assert model.calls is None
    assert sorted(model.recurrent) == ["after", "before", "both", "simple"]
    assert any("dense" in name for name in model.metadata["other_tensors"])
    for name in model.recurrent:
        width = model.recurrent[name].input_size
        x = numbers(2, 6, width)
        i = package.Input((6, width))
        wanted = package.Model(i, built.get_layer(name)(i)).predict(x, verbose=0)
        y, _ = model.recurrent[name].run(x)
        assert_close([y if wanted.ndim == 3 else y[:, -1]], [wanted], name)


def test_hard_sigmoid_of_bare_weights_needs_the_release(tmp_path: Path) -> None:
    import keras

    built = keras.Sequential([keras.Input((None, I)), keras.layers.LSTM(4, name="one")])
    built.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(AmbiguousSource, match="--keras-version 2 or --keras-version 3"):
        read(tmp_path / "a.weights.h5", recurrent_activation="hard_sigmoid")
    for version, activation in (("2.2", HARD_SIGMOID_KERAS2), ("3", HARD_SIGMOID_KERAS3)):
        model = read(tmp_path / "a.weights.h5", recurrent_activation="hard_sigmoid", keras_version=version)
        equations = model.recurrent["one"].equations
        assert isinstance(equations, LstmEquations)
        assert (equations.gate_activation, equations.cell_activation) == (activation, TANH)
    by_default = read(tmp_path / "a.weights.h5", keras_version="2.2").recurrent["one"].equations
    assert isinstance(by_default, LstmEquations)
    assert by_default.gate_activation == HARD_SIGMOID_KERAS2


def test_a_gru_without_biases_says_nothing_of_its_form(tmp_path: Path) -> None:
    import keras

    built = keras.Sequential([keras.Input((None, I)), keras.layers.GRU(4, use_bias=False)])
    built.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(AmbiguousSource, match="--reset-after true"):
        read(tmp_path / "a.weights.h5", recurrent_activation="sigmoid")
    model = read(tmp_path / "a.weights.h5", recurrent_activation="sigmoid", reset_after=True)
    assert next(iter(model.recurrent.values())).equations.cell == "gru"


# Refusals.


def test_lambda_and_unknown_classes_are_refused_by_name_and_can_be_supplied(tmp_path: Path) -> None:
    import keras

    class Doubled(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return 2 * inputs

    x = keras.Input((5, 4))
    y = keras.layers.LSTM(3, name="lstm")(Doubled(name="twice")(x))
    built = keras.Model(x, y)
    path = tmp_path / "source.keras"
    built.save(path)
    with pytest.raises(
        UnsupportedSource, match=r"(?s)'twice' \(Doubled\).*custom_layers=\{'Doubled': function\}"
    ) as caught:
        read(path)
    assert caught.value.place == "layer 'twice' (Doubled)"
    model = lstmconvert.read(
        path, custom_layers={"Doubled": lambda config, weights: operations.Rescaling(2.0)}
    )
    x_in = numbers(2, 5, 4)
    assert_close(run(model, [x_in]), [built.predict(x_in, verbose=0)], "custom layer")
    with pytest.raises(UnsupportedSource, match="returned a str"):
        read(path, custom_layers={"Doubled": lambda config, weights: "nothing"})

    keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda v: v, name="code")]).save(
        tmp_path / "lambda.h5"
    )
    with pytest.raises(
        UnsupportedSource, match=r"'code'.*a Lambda layer holds Python code, which is never run"
    ):
        read(tmp_path / "lambda.h5")


def test_a_supplied_layer_gets_its_weights(tmp_path: Path) -> None:
    import keras

    class Gain(keras.layers.Layer):
        def build(self, input_shape: Any) -> None:
            self.gain = self.add_weight(name="gain", shape=(input_shape[-1],), initializer="ones")

        def call(self, inputs: Any) -> Any:
            return inputs * self.gain

    built = keras.Sequential([keras.Input((5, 4)), Gain(name="gain"), keras.layers.LSTM(3)])
    zoo.randomise(built, np.random.default_rng(3))

    def gain(config: dict[str, Any], weights: dict[str, Any]) -> OperationLayer:
        assert config["name"] == "gain"
        (weight,) = weights.values()
        n = weight.shape[0]
        parts = {
            "scale": weight,
            "mean": Lazy.of(np.zeros(n, np.float32)),
            "variance": Lazy.of(np.ones(n, np.float32)),
        }
        return OperationLayer("any", operations.BatchNormalization(epsilon=0.0), parts)

    x = numbers(2, 5, 4)
    for suffix in ("keras", "h5"):
        built.save(tmp_path / f"source.{suffix}")
        model = read(tmp_path / f"source.{suffix}", custom_layers={"Gain": gain})
        assert_close(run(model, [x]), [built.predict(x, verbose=0)], suffix)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"data_format": "channels_first"}, "data_format='channels_first' is not supported"),
        ({"activation": "my_function"}, "'my_function' is not one of Keras's built-in ones"),
        ({"gating": 0.5}, "gating=0.5 of this layer is not known"),
        ({"padding": "reflect"}, "padding='reflect' is not supported"),
    ],
)
def test_options_that_are_not_known_are_refused_and_not_ignored(config: dict[str, Any], problem: str) -> None:
    layer = {"name": "conv", "filters": 4, "kernel_size": [2], "batch_input_shape": [None, 6, I], **config}
    weights = {"conv": {"kernel:0": numbers(2, I, 4), "bias:0": numbers(4)}}
    with pytest.raises(UnsupportedSource, match=problem):
        opened(archive([{"class_name": "Conv1D", "config": layer}], weights))


def test_weights_that_contradict_the_configuration_are_refused() -> None:
    def source(units: int, weights: dict[str, np.ndarray]) -> Archive:
        config = {"name": "dense", "units": units, "batch_input_shape": [None, I]}
        return archive([{"class_name": "Dense", "config": config}], {"dense": weights})

    kernel, bias = numbers(I, 4), numbers(4)
    with pytest.raises(BadFile, match=r"found 4, expected 6"):
        opened(source(6, {"kernel:0": kernel, "bias:0": bias}))
    with pytest.raises(BadFile, match="another number of weights"):
        opened(source(4, {"kernel:0": kernel}))
    with pytest.raises(BadFile, match="another order"):
        opened(source(4, {"bias:0": bias, "kernel:0": kernel}))
    with pytest.raises(BadFile, match="another number of units"):
        opened(lstm_file(units=H + 1))


@pytest.mark.parametrize(
    "config",
    [
        None,
        [],
        {},
        {"class_name": "Sequential"},
        {"class_name": "Functional", "config": {"layers": []}},
        "text",
    ],
)
def test_a_damaged_configuration_is_an_error_of_ours(config: Any) -> None:
    source = archive([], {})
    broken = Archive(
        source.tensors, {**source.metadata, "model_config": config or {"class_name": 3, "config": 4}}
    )
    with pytest.raises((BadFile, UnsupportedSource)):
        opened(broken)


@pytest.mark.parametrize("name", ["attention", "nested", "stacked_cells", "masking_merges", "steps"])
def test_a_configuration_with_something_else_in_one_place_never_fails_otherwise(
    name: str, tmp_path: Path
) -> None:
    import copy

    import keras

    from tests.frameworks.keras_files import archive_of

    built, _ = zoo.build(name, keras)
    built.save(tmp_path / "source.keras")
    source, container = archive_of(tmp_path / "source.keras")
    junk: list[Any] = [None, -1, 0, 3.5, 10**30, "", "text", [], {}, [[]], {"class_name": "LSTM"}, True]
    random = np.random.default_rng(11)
    outcomes: set[str] = set()
    for number in range(150):
        config = copy.deepcopy(source.metadata["config"])
        place = config
        while True:  # walk down to a random place
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[random.integers(len(keys))]
            inner = place[key]
            if isinstance(inner, (dict, list)) and inner and random.random() < 0.9:
                place = inner
                continue
            place[key] = junk[random.integers(len(junk))]
            break
        broken = Archive(source.tensors, {**source.metadata, "config": config})
        try:
            framework.read(broken, container, ReadOptions())
            outcomes.add("read")
        except ConversionError as error:
            outcomes.add(type(error).__name__)
        except Exception as error:
            raise AssertionError(f"{name} {number}: {key!r} = {place[key]!r}") from error
    assert {"read", "BadFile"} <= outcomes


def test_weights_that_we_wrote_need_no_options(tmp_path: Path) -> None:
    import keras

    import lstmconvert as lc

    L = keras.layers
    i = keras.Input((None, I))
    x = L.GRU(
        4, use_bias=False, reset_after=False, return_sequences=True, name="one", recurrent_activation="relu"
    )(i)
    built = keras.Model(i, L.SimpleRNN(3, activation="relu", name="two")(x))
    zoo.randomise(built, np.random.default_rng(2))
    built.save(tmp_path / "source.keras")
    result = lc.convert(tmp_path / "source.keras", tmp_path / "target.weights.h5")
    assert result.proof is not None
    assert result.proof.verdict == "proved"
    before, after = (
        lc.read(path).recurrent for path in (tmp_path / "source.keras", tmp_path / "target.weights.h5")
    )
    assert [a.equations for a in before.values()] == [a.equations for a in after.values()]


# Trained models that others made.


def test_shakkala_is_a_list_without_reset_after() -> None:
    model = read(corpus_file("shakkala_simple_gru"))
    equations = model.recurrent["gru_1"].equations
    assert isinstance(equations, GruEquations)
    assert equations.reset is ResetPlace.BEFORE_PRODUCT
    assert equations.gate_activation == HARD_SIGMOID_KERAS2
    assert model.outputs[0].shape == (None, 495, 28)
    tokens = np.random.default_rng(0).integers(0, 149, (2, 495))
    assert_close(run(model, [tokens]), [shakkala_in_tf_keras(model, tokens)], "shakkala")


def shakkala_in_tf_keras(model: Model, tokens: np.ndarray) -> np.ndarray:
    import tf_keras

    L = tf_keras.layers
    gru = L.GRU(256, reset_after=False, recurrent_activation="hard_sigmoid", return_sequences=True)
    built = tf_keras.Sequential([
        tf_keras.Input((495,)), L.Embedding(149, 256), gru, L.Dense(256, activation=head(model, "dense_1")),
        L.Dense(28, activation=head(model, "dense_2")),
    ])  # fmt: skip
    path = corpus_file("shakkala_simple_gru")
    built.load_weights(path)
    result: np.ndarray = built.predict(tokens, verbose=0)
    return result


def head(model: Model, name: str) -> str:
    layer = model.layers[name]
    assert isinstance(layer, OperationLayer)
    assert isinstance(layer.operation, operations.Dense)
    return layer.operation.activation.kind


def test_dgaintel_is_a_functional_model_of_tf_keras() -> None:
    import tf_keras

    path = corpus_file("dgaintel")
    model = read(path)
    built = tf_keras.models.load_model(path, compile=False)
    tokens = np.random.default_rng(0).integers(0, 30, (4, 82))
    assert_close(run(model, [tokens]), [built.predict(tokens, verbose=0)], "dgaintel")


def test_chars2vec_has_to_be_asked_for_its_activation() -> None:
    import tf_keras

    path = corpus_file("chars2vec_eng50")
    with pytest.raises(
        AmbiguousSource, match=r"(?s)the default of Keras 2\.2\.0 was hard_sigmoid.*--recurrent-activation"
    ):
        read(path)
    model = read(path, recurrent_activation="hard_sigmoid")
    assert [layer.hidden_size for layer in model.recurrent.values()] == [50, 50]
    for name, layer in model.recurrent.items():
        x = numbers(2, 6, layer.input_size)
        judge = tf_keras.layers.LSTM(50, recurrent_activation="hard_sigmoid", return_sequences=True)
        built = tf_keras.Sequential([tf_keras.Input((None, layer.input_size)), judge])
        weights = layer.directions[0].weights
        order = (Gate.INPUT, Gate.FORGET, Gate.CELL, Gate.OUTPUT)
        parts = (weights.kernel, weights.recurrent, weights.bias_input)
        judge.set_weights([np.concatenate([part[gate] for gate in order]).T for part in parts])
        assert_close([layer.run(x)[0]], [built.predict(x, verbose=0)], name)
