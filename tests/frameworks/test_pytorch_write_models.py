"""Whole models as generated modules: what Keras computes, torch computes; and the text is fit to be read."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lstmconvert import interpreter
from lstmconvert.activations import Activation
from lstmconvert.canonical import GruEquations, RecurrentLayer, ResetPlace
from lstmconvert.containers import Archive, safetensors, torch_archive
from lstmconvert.errors import NotRepresentable, Usage
from lstmconvert.frameworks import keras_live, pytorch, pytorch_live
from lstmconvert.frameworks.pytorch import record
from lstmconvert.frameworks.pytorch.names import LONGEST, RESERVED_ATTRIBUTES, Names, identifier
from lstmconvert.model import Call, Model, OperationLayer, Port
from lstmconvert.operations import (
    Activate,
    BatchNormalization,
    Concatenate,
    Dense,
    Embedding,
    Operation,
    Pool,
    Pooling,
    TimeDistributed,
)
from lstmconvert.options import ReadOptions, WriteOptions
from lstmconvert.tensors import Lazy, same_bits
from tests.frameworks import keras_zoo
from tests.frameworks.pytorch_running import (
    CONTAINERS,
    assert_formatted,
    fitted,
    module_of,
    one_layer,
    read_back,
    run,
    saved,
    source_of,
    written,
)
from tests.support import assert_close, random_layer

ZOO = [name for name in keras_zoo.MODELS if name not in keras_zoo.ONLY_KERAS2]


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", ZOO)
def test_torch_computes_what_keras_computes(name: str, tmp_path: Path) -> None:
    import keras

    built, inputs = keras_zoo.build(name, keras)
    model = keras_live.read_live(built)
    archive = written(model)
    (tmp_path / "model.py").write_text(source_of(archive), encoding="utf-8")
    assert_formatted(tmp_path)
    expected = keras_zoo.predict(built, inputs)
    got = run(module_of(archive), inputs)
    stateful = any(layer.sequence.stateful for layer in model.recurrent.values())
    assert len(got) > len(expected) if stateful else len(got) == len(expected)
    for index, (a, b) in enumerate(zip(got, expected, strict=False)):
        assert a.shape == b.shape
        assert_close(a, b, context=f"output {index}\n{source_of(archive)}")

    if not stateful:
        check_torch_takes_it(archive, inputs, got)
    back, lowered = read_back(archive), fitted(model)
    assert list(back.layers) == [n for n in model.layers if n in back.layers]
    assert (back.calls, back.inputs, back.outputs) == (lowered.calls, lowered.inputs, lowered.outputs)
    for key, layer in lowered.layers.items():
        other = back.layers[key]
        if isinstance(layer, OperationLayer):
            assert isinstance(other, OperationLayer)
            assert other.operation == layer.operation
            assert set(other.weights) == set(layer.weights)
            assert all(same_bits(other.weights[p].read(), w.read()) for p, w in layer.weights.items())


def check_torch_takes_it(archive: Archive, inputs: Sequence[Any], expected: Sequence[Any]) -> None:
    """torch.compile and torch.export take the module."""
    module = module_of(archive)
    given = tuple(torch.as_tensor(x) for x in inputs)
    torch.compiler.reset()
    for way in (
        lambda: torch.compile(module, backend="eager"),
        lambda: torch.export.export(module, given).module(),
    ):
        with torch.no_grad():
            result = way()(*given)
        for a, b in zip(result if isinstance(result, tuple) else (result,), expected, strict=True):
            assert_close(a, b)


# torch warns of its own layers when torch.export takes them.
@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_a_masked_module_is_exported_for_any_batch(kind: str) -> None:
    import keras

    layer = getattr(keras.layers, kind)
    given = keras.Input((None, 3))
    masked = keras.layers.Masking()(given)
    both = keras.layers.Bidirectional(layer(4, return_sequences=True, return_state=True))(masked)
    last = layer(5, return_state=True)(both[0])
    model = keras.Model(given, [*both, *last])
    rng = np.random.default_rng(7)
    model.set_weights([rng.normal(0, 0.8, w.shape) for w in model.get_weights()])
    module = module_of(written(keras_live.read_live(model)))
    free = {0: torch.export.Dim("batch", min=2)}  # torch.export fixes the time of torch's own layers
    exported = torch.export.export(module, (torch.ones(7, 9, 3),), dynamic_shapes=(free,)).module()
    for batch in (2, 5):
        x = rng.normal(0, 2, (batch, 9, 3)).astype(np.float32)
        x[0, 2:] = 0  # padding at the end
        x[1, ::2] = 0  # holes
        if batch > 2:
            x[2] = 0  # nothing valid
            x[3, :4] = 0  # padding at the beginning
        expected = model(x)
        with torch.no_grad():
            got, eager = exported(torch.from_numpy(x)), module(torch.from_numpy(x))
        for a, b, c in zip(got, eager, expected, strict=True):
            assert_close(a, b)
            assert_close(a, np.asarray(c))


# A small classifier, looked at closely.


def dense(
    rng: np.random.Generator, inputs: int, outputs: int, name: str, activation: str = "linear"
) -> OperationLayer:
    weights = {"kernel": rng.standard_normal((outputs, inputs)), "bias": rng.standard_normal(outputs)}
    arrays = {part: Lazy.of(array.astype(np.float32)) for part, array in weights.items()}
    return OperationLayer(name, Dense(Activation(activation)), arrays)


def classifier() -> Model:
    rng = np.random.default_rng(1)
    table = Lazy.of(rng.standard_normal((11, 3)).astype(np.float32))
    layers: dict[str, Any] = {
        "words": OperationLayer("words", Embedding(mask_zero=False), {"embeddings": table}),
        "lstm_1": random_layer(
            "lstm", seed=1, directions=("forward", "reverse"), biases="input", name="lstm_1"
        ),
        "lstm_2": random_layer("gru", seed=2, input_size=10, name="lstm_2"),
        "output": dense(rng, 5, 2, "output", "softmax"),
    }
    names = ["tokens", "a", "b", "c", "d"]
    calls = tuple(Call(layer, (names[n],), (names[n + 1],)) for n, layer in enumerate(layers))
    return Model(
        layers,
        calls,
        (Port("tokens", "tokens", (None, None), "int32"),),
        (Port("output", "d", (None, None, 2)),),
    )


EXPECTED = '''"""A PyTorch model, written by lstmconvert; its weights are in the file beside it."""

import torch
from safetensors.torch import load_file
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 3)
        self.lstm_1 = nn.LSTM(3, 5, batch_first=True, bidirectional=True)
        self.lstm_2 = nn.GRU(10, 5, batch_first=True)
        self.output = nn.Linear(5, 2)

    def forward(self, tokens):
        x = self.words(tokens)
        x, _ = self.lstm_1(x)
        x, _ = self.lstm_2(x)
        return torch.softmax(self.output(x), dim=-1)

    @classmethod
    def load(cls, path):
        """The model with its weights, in eval mode."""
        model = cls()
        model.load_state_dict(load_file(path))
        return model.eval()
'''


def test_a_classifier_is_what_a_person_would_write() -> None:
    assert source_of(written(classifier())) == EXPECTED


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_files_load_in_torch_alone(container: str, tmp_path: Path) -> None:
    model = classifier()
    path = saved(written(model, container), tmp_path, container)
    source = path.with_suffix(".py").read_text()
    roots = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
    }  # fmt: skip
    assert roots == ({"torch", "safetensors"} if container == "safetensors" else {"torch"})
    module = pytorch_live.load_source(source).Model.load(path)
    assert not module.training
    tokens = np.random.default_rng(0).integers(0, 11, (3, 4), dtype=np.int32)
    (got,) = run(module, [tokens])
    assert_close(got, interpreter.run(model, tokens))
    if container == "torch_archive":
        state = torch.load(path, weights_only=True)
    else:
        from safetensors.torch import load_file

        state = load_file(path)
    fresh = pytorch_live.load_source(source).Model()
    assert fresh.load_state_dict(state, strict=True)
    assert set(fresh.state_dict()) == set(state)
    archive = CONTAINERS[container][0].read(path)
    assert pytorch.reads(archive, container)
    assert pytorch.read(archive, container, ReadOptions()).calls == model.calls


def test_weights_only_leaves_the_module_out() -> None:
    archive = pytorch.write(classifier(), "safetensors", WriteOptions(weights_only=True))
    assert archive.companions == {}
    assert "lstm_2.weight_ih_l0" in archive.tensors


def test_a_dtype_that_the_weights_do_not_have_is_refused() -> None:
    with pytest.raises(Usage):
        pytorch.write(classifier(), "safetensors", WriteOptions(dtype="float16"))
    with pytest.raises(Usage):
        pytorch.write(classifier(), "onnx_file", WriteOptions())


def test_bfloat16_is_kept_by_the_file_and_the_module(tmp_path: Path) -> None:
    import ml_dtypes

    layer = random_layer("lstm", seed=1, dtype=ml_dtypes.bfloat16)
    model = one_layer(layer)
    port = replace(model.inputs[0], dtype="bfloat16")
    model = replace(model, inputs=(port,), outputs=(replace(model.outputs[0], dtype="bfloat16"),))
    path = saved(written(model), tmp_path)
    module = pytorch_live.load_source(path.with_suffix(".py").read_text()).Model.load(path)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    x = torch.randn(2, 3, layer.input_size, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        got = module(x)
    assert_close(got.float(), layer.run(x.float().numpy())[0], tolerance=3e-2)


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")
def test_export_and_compile_and_script_accept_it() -> None:
    module = module_of(written(classifier()))
    tokens = torch.randint(0, 11, (3, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(tokens)
        exported = torch.export.export(module, (tokens,))
        assert_close(exported.module()(tokens), expected)
        assert_close(torch.compile(module, backend="eager")(tokens), expected)
        assert_close(torch.jit.script(module)(tokens), expected)
    spelled_out = module_of(
        written(one_layer(random_layer("gru", seed=1, equations=GruEquations(ResetPlace.BEFORE_PRODUCT))))
    )
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(torch.export.export(spelled_out, (x,)).module()(x), spelled_out(x))
        assert_close(torch.jit.script(spelled_out)(x), spelled_out(x))


def test_to_live_is_the_same_module() -> None:
    model = classifier()
    tokens = np.random.default_rng(0).integers(0, 11, (3, 4))
    (got,) = run(pytorch_live.to_live(model), [tokens])
    assert_close(got, interpreter.run(model, tokens))


# Names.


@pytest.mark.parametrize(
    "text",
    [
        "lstm_1", "encoder/rnn", "class", "match", "1st", "", "é", "a b", "forward", "x" * 500, "_hidden",
        "__init__", 'a"; import os #', "a\nb", "self", "torch", "x", "lstm_state", "nn.Linear", "load", "F",
    ],
)  # fmt: skip
def test_any_name_becomes_an_identifier_and_the_module_still_computes(text: str, tmp_path: Path) -> None:
    name = Names(RESERVED_ATTRIBUTES).take(identifier(text))
    assert name.isidentifier() and name.isascii() and not keyword.iskeyword(name) and not name.startswith("_")
    assert len(name) <= LONGEST + 3
    rng = np.random.default_rng(3)
    layers: dict[str, Any] = {
        text: random_layer("lstm", seed=1, name=text),
        text + " ": dense(rng, 5, 2, text),
        text + "  ": OperationLayer(text, Concatenate(-1)),
    }
    first, second, third = layers
    calls = (
        Call(first, (text,), ("y",)),
        Call(second, ("y",), ("z",)),
        Call(third, ("y", "z", "other"), ("out",)),
    )
    ports = (Port(text, text, (None, None, 3)), Port(text + "?", "other", (None, None, 4)))
    model = Model(
        layers, calls, ports, (Port(text, "out", (None, None, 11)), Port("z", "z", (None, None, 2)))
    )
    archive = written(model)
    inputs = [rng.standard_normal((2, 3, n)).astype(np.float32) for n in (3, 4)]
    got = run(module_of(archive), inputs)
    expected = interpreter.run(model, **{port.name: array for port, array in zip(ports, inputs, strict=True)})
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b)
    (tmp_path / "m.py").write_text(source_of(archive))
    assert_formatted(tmp_path)


def test_what_a_module_has_is_reserved() -> None:
    own = {name for name in dir(torch.nn.Module) if not name.startswith("_")} | {"training", "load"}
    assert own <= RESERVED_ATTRIBUTES


def test_nothing_of_a_file_reaches_the_source_but_names_and_numbers() -> None:
    bad = '"""\nimport os  # injected'
    layer = replace(random_layer("lstm", seed=1), name=bad, notes={"stack": bad})
    model = one_layer(layer, name=bad)
    model = replace(model, inputs=(replace(model.inputs[0], name=bad),), metadata={"name": bad})
    source = source_of(written(model))
    assert "injected" not in re.sub(r"\w*import_os_injected\w*", "", source)
    ast.parse(source)


# The record of the topology.


def test_a_record_that_does_not_fit_is_let_go() -> None:
    archive = written(classifier())
    text = archive.metadata[record.KEY]
    fewer = {n: t for n, t in archive.tensors.items() if n != "output.weight"}
    for broken in ("", "{", "[]", "{}", "null", text.replace('"schema":1', '"schema":2'), text.replace('"Dense"', '"Nothing"'),
                   text.replace('"lstm_1.', '"lstm_9.'), text.replace('"mask_zero":false', '"mask_zero":3')):  # fmt: skip
        assert broken != text
        model = pytorch.read(Archive(archive.tensors, {record.KEY: broken}), "safetensors", ReadOptions())
        assert model.calls is None
        assert list(model.recurrent) == ["lstm_1", "lstm_2"]
    assert pytorch.read(Archive(fewer, {record.KEY: text}), "safetensors", ReadOptions()).calls is None


def test_what_cannot_be_written_is_refused_by_name() -> None:
    class Unknown(Operation):
        """Of no rule."""

    layers = {"strange": OperationLayer("strange", Unknown())}
    model = Model(
        layers, (Call("strange", ("x",), ("y",)),), (Port("x", "x", (None, 3)),), (Port("y", "y", (None, 3)),)
    )
    with pytest.raises((NotRepresentable, ValueError)):
        pytorch.write(model, "safetensors", WriteOptions())
    layers = {"pool": OperationLayer("pool", Pooling(Pool.MAX, (2,), (2,)))}
    model = Model(layers, (Call("pool", ("x",), ("y",), "m"),),
                  (Port("x", "x", (None, 4, 3)), Port("m", "m", (None, 4), "bool")), (Port("y", "y", (None, 2, 3)),))  # fmt: skip
    with pytest.raises(NotRepresentable, match="layer 'pool'"):
        pytorch.write(model, "safetensors", WriteOptions())


# Operations in forms that Keras does not bring up.


def operation(
    op: Operation, shape: tuple[int | None, ...], weights: dict[str, np.ndarray] | None = None
) -> Model:
    arrays = {part: Lazy.of(array.astype(np.float32)) for part, array in (weights or {}).items()}
    layers = {"op": OperationLayer("op", op, arrays)}
    from lstmconvert import shapes

    model = Model(layers, (Call("op", ("x",), ("y",)),), (Port("x", "x", shape),))
    return replace(model, outputs=(Port("y", "y", shapes.infer(model)["y"]),))


OPERATIONS: dict[str, tuple[Operation, tuple[int | None, ...], dict[str, tuple[int, ...]]]] = {
    "softmax_over_time": (Activate(Activation("softmax"), 1), (None, 4, 3), {}),
    "batch_normalisation_over_time": (BatchNormalization(axis=1), (None, 4, 3), {"mean": (4,), "variance": (4,), "scale": (4,)}),
    "batch_normalisation_bare": (BatchNormalization(), (None, 3), {"mean": (3,), "variance": (3,)}),
    "batch_normalisation_offset": (BatchNormalization(), (None, None, 5, 3), {"mean": (3,), "variance": (3,), "offset": (3,)}),
    "batch_normalisation_every_step": (TimeDistributed(BatchNormalization(axis=1)), (None, 4, 5, 3), {"mean": (5,), "variance": (5,)}),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    op, shape, parts = OPERATIONS[name]
    rng = np.random.default_rng(6)
    weights = {
        p: np.abs(rng.standard_normal(s)) + 0.3 if p == "variance" else rng.standard_normal(s)
        for p, s in parts.items()
    }
    model = operation(op, shape, weights)
    x = rng.standard_normal([2, *(n or 4 for n in shape[1:])]).astype(np.float32)
    (got,) = run(module_of(written(model)), [x])
    assert_close(got, interpreter.run(model, x))


def test_the_layers_are_those_of_the_canonical_model() -> None:
    assert all(
        isinstance(layer, (RecurrentLayer, OperationLayer))
        for layer in read_back(written(classifier())).layers.values()
    )
    assert {safetensors.NAME, torch_archive.NAME} == set(CONTAINERS)
