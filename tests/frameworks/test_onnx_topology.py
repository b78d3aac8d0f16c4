"""Whole ONNX graphs as models: what the NumPy interpreter makes of them, judged by ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lstmconvert.containers import onnx_file
from lstmconvert.frameworks import onnx as onnx_framework
from lstmconvert.model import Model, OperationLayer
from lstmconvert.options import ReadOptions
from lstmconvert.tensors import Array, same_bits

BATCH, TIME, FEATURES, HIDDEN = 3, 6, 4, 5
TOLERANCE = 3e-5


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def numbers(*shape: int) -> Array:
    return rng().standard_normal(shape).astype(np.float32)


X = {"x": numbers(BATCH, TIME, FEATURES)}
IMAGE = {"x": numbers(BATCH, FEATURES, TIME, 9)}
IDS = {"x": rng().integers(0, 20, (BATCH, TIME))}


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    feeds: dict[str, Array],
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 17,
    static: Sequence[int] = (),
) -> onnx.ModelProto:
    """A graph; the first two axes of its inputs are free, but for those in ``static``."""
    ports = []
    for name, array in feeds.items():
        free = [None if axis < 2 and axis not in static else size for axis, size in enumerate(array.shape)]
        ports.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), free))
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "g", ports, results, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    del inferred.graph.value_info[:]  # what an exporter leaves out
    return inferred


def read(model: onnx.ModelProto, tmp_path: Path) -> Model:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return onnx_framework.read(onnx_file.read(path), "onnx_file", ReadOptions())


def judged(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def assert_agrees(result: Model, model: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """The model computes what the runtime computes, whatever the sizes."""
    assert result.calls is not None, result.metadata["topology"]
    expected = judged(model, feeds)
    given = result.run(**feeds)
    found = given if isinstance(given, tuple) else (given,)
    assert [port.name for port in result.outputs] == [info.name for info in model.graph.output]
    for mine, judge in zip(found, expected, strict=True):
        assert mine.shape == judge.shape
        scale = max(1.0, float(np.abs(judge).max(initial=0)))
        assert np.abs(mine - judge).max(initial=0) / scale <= TOLERANCE


def operations(result: Model) -> list[str]:
    """The layers in the order of their calls, by what they are."""
    layers = [result.layers[call.layer] for call in result.calls or ()]
    return [
        type(layer.operation).__name__ if isinstance(layer, OperationLayer) else layer.cell.value
        for layer in layers
    ]


# One operator at a time.

node = helper.make_node

SINGLE: list[tuple[str, list[onnx.NodeProto], dict[str, Array], dict[str, Array], int]] = [
    (
        "activations",
        [node("Relu", ["x"], ["a"]), node("Tanh", ["a"], ["b"]), node("Sigmoid", ["b"], ["y"])],
        {},
        X,
        17,
    ),
    (
        "leaky",
        [
            node("LeakyRelu", ["x"], ["a"], alpha=0.3),
            node("Elu", ["a"], ["b"], alpha=0.7),
            node("Selu", ["b"], ["y"]),
        ],
        {},
        X,
        17,
    ),
    ("hard", [node("HardSigmoid", ["x"], ["a"]), node("HardSwish", ["a"], ["y"])], {}, X, 17),
    (
        "soft",
        [node("Softplus", ["x"], ["a"]), node("Softsign", ["a"], ["b"]), node("Exp", ["b"], ["y"])],
        {},
        X,
        17,
    ),
    (
        "thresholded",
        [
            node("ThresholdedRelu", ["x"], ["a"], alpha=0.2),
            node("Celu", ["a"], ["b"], alpha=0.5),
            node("Mish", ["b"], ["y"]),
        ],
        {},
        X,
        18,
    ),
    ("gelu", [node("Gelu", ["x"], ["a"]), node("Gelu", ["a"], ["y"], approximate="tanh")], {}, X, 20),
    ("softmax", [node("Softmax", ["x"], ["y"], axis=-1)], {}, X, 17),
    ("softmax over time", [node("Softmax", ["x"], ["y"], axis=1)], {}, X, 17),
    ("softmax of old", [node("Softmax", ["x"], ["y"], axis=2)], {}, X, 11),
    ("log softmax", [node("LogSoftmax", ["x"], ["y"], axis=2)], {}, X, 17),
    (
        "clip to six",
        [node("Clip", ["x", "zero", "six"], ["y"])],
        {"zero": np.float32(0), "six": np.float32(0.6)},
        X,
        17,
    ),
    ("clip below", [node("Clip", ["x", "zero"], ["y"])], {"zero": np.float32(0)}, X, 17),
    ("clip below a number", [node("Clip", ["x", "low"], ["y"])], {"low": np.float32(0.1)}, X, 17),
    (
        "clip between numbers",
        [node("Clip", ["x", "low", "high"], ["y"])],
        {"low": np.float32(-0.4), "high": np.float32(0.3)},
        X,
        17,
    ),
    (
        "a range of features",
        [node("Slice", ["x", "s", "e", "a"], ["y"])],
        {"s": ints(1), "e": ints(3), "a": ints(2)},
        X,
        17,
    ),
    (
        "halves of the features",
        [node("Split", ["x"], ["a", "b"], axis=-1), node("Mul", ["a", "b"], ["y"])],
        {},
        X,
        13,
    ),
    ("padded in time", [node("Pad", ["x", "p"], ["y"])], {"p": ints(0, 2, 0, 0, 1, 0)}, X, 17),
    ("padded in features", [node("Pad", ["x", "p"], ["y"])], {"p": ints(0, 0, 1, 0, 0, 2)}, X, 17),
    ("cut by padding", [node("Pad", ["x", "p"], ["y"])], {"p": ints(0, -1, 0, 0, 2, 0)}, X, 17),
    ("divided by three", [node("Div", ["x", "three"], ["y"])], {"three": np.float32(3)}, X, 17),
    ("divided by a row", [node("Div", ["x", "d"], ["y"])], {"d": numbers(FEATURES) + 4}, X, 17),
    (
        "mean of three",
        [
            node("Tanh", ["x"], ["a"]),
            node("Add", ["x", "a"], ["b"]),
            node("Add", ["b", "x"], ["c"]),
            node("Div", ["c", "three"], ["y"]),
        ],
        {"three": np.float32(3)},
        X,
        17,
    ),
    (
        "product of two",
        [
            node("Tanh", ["x"], ["a"]),
            node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
            node("MatMul", ["x", "b"], ["y"]),
        ],
        {},
        X,
        17,
    ),
    (
        "weights over time",
        [
            node("ReduceMax", ["x"], ["m"], axes=[2]),
            node("Softmax", ["m"], ["a"], axis=1),
            node("Mul", ["x", "a"], ["b"]),
            node("ReduceSum", ["b", "one"], ["y"], keepdims=0),
        ],
        {"one": ints(1)},
        X,
        17,
    ),
    (
        "einsum",
        [node("Einsum", ["x", "w"], ["y"], equation="btf,fg->btg")],
        {"w": numbers(FEATURES, 3)},
        X,
        17,
    ),
    (
        "copies of a row",
        [
            node("ReduceMean", ["x"], ["a"], axes=[1]),
            node("Expand", ["a", "s"], ["b"]),
            node("Tanh", ["b"], ["y"]),
        ],
        {"s": ints(1, 5, 1)},
        X,
        17,
    ),
    (
        "tiled row",
        [node("ReduceMean", ["x"], ["a"], axes=[1]), node("Tile", ["a", "s"], ["y"])],
        {"s": ints(1, 5, 1)},
        X,
        17,
    ),
    (
        "shrunk",
        [node("Shrink", ["x"], ["a"], lambd=0.3), node("Shrink", ["a"], ["y"], lambd=0.2, bias=0.2)],
        {},
        X,
        17,
    ),
    (
        "gelu by erf",
        [
            node("Mul", ["x", "r"], ["a"]),
            node("Erf", ["a"], ["b"]),
            node("Add", ["one", "b"], ["c"]),
            node("Mul", ["x", "c"], ["d"]),
            node("Mul", ["d", "half"], ["y"]),
        ],
        {"r": np.float32(0.5**0.5), "one": np.float32(1), "half": np.float32(0.5)},
        X,
        17,
    ),
    (
        "normalization of two axes",
        [node("LayerNormalization", ["x", "s"], ["y"], axis=1)],
        {"s": numbers(TIME, FEATURES)},
        X,
        17,
    ),
    ("prelu of everything", [node("PRelu", ["x", "s"], ["y"])], {"s": numbers(TIME, FEATURES)}, X, 17),
    (
        "all of it turned",
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "one"], ["t"]),
            node("Gather", ["s", "zero"], ["b"]),
            node("Expand", ["t", "b"], ["n"]),
            node("ReverseSequence", ["x", "n"], ["y"], time_axis=1, batch_axis=0),
        ],
        {"one": ints(1), "zero": ints(0)},
        X,
        17,
    ),
    ("clip to one", [node("Clip", ["x"], ["y"], min=-1.0, max=1.0)], {}, X, 9),
    ("prelu", [node("PRelu", ["x", "s"], ["y"])], {"s": numbers(FEATURES)}, X, 17),
    ("prelu of channels", [node("PRelu", ["x", "s"], ["y"])], {"s": numbers(FEATURES, 1, 1)}, IMAGE, 17),
    ("prelu of one", [node("PRelu", ["x", "s"], ["y"])], {"s": np.float32([0.3])}, X, 17),
    ("matmul", [node("MatMul", ["x", "w"], ["y"])], {"w": numbers(FEATURES, 7)}, X, 17),
    (
        "matmul and bias",
        [node("MatMul", ["x", "w"], ["a"]), node("Add", ["b", "a"], ["y"])],
        {"w": numbers(FEATURES, 7), "b": numbers(7)},
        X,
        17,
    ),
    (
        "matmul of transposed",
        [
            node("Transpose", ["x"], ["a"], perm=[2, 0, 1]),
            node("Transpose", ["a"], ["b"], perm=[2, 1, 0]),
            node("MatMul", ["b", "w"], ["y"]),
        ],
        {"w": numbers(FEATURES, 7)},
        X,
        17,
    ),
    (
        "matmul over time",
        [node("Transpose", ["x"], ["a"], perm=[0, 2, 1]), node("MatMul", ["a", "w"], ["y"])],
        {"w": numbers(TIME, 7)},
        X,
        17,
    ),
    (
        "gemm of a pair",
        [
            node("Reshape", ["x", "rows"], ["a"]),
            node("Gemm", ["a", "w", "b"], ["c"], transB=1),
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "two"], ["bt"]),
            node("Concat", ["bt", "seven"], ["target"], axis=0),
            node("Reshape", ["c", "target"], ["y"]),
        ],
        {
            "rows": ints(-1, FEATURES),
            "w": numbers(7, FEATURES),
            "b": numbers(7),
            "two": ints(0, 1),
            "seven": ints(7),
        },
        X,
        17,
    ),
    (
        "scale and offset",
        [
            node("Mul", ["x", "s"], ["a"]),
            node("Add", ["a", "o"], ["b"]),
            node("Sub", ["one", "b"], ["c"]),
            node("Sub", ["c", "o"], ["d"]),
            node("Div", ["d", "two"], ["y"]),
        ],
        {"s": numbers(FEATURES), "o": np.float32(0.3), "one": np.float32(1), "two": np.float32(2)},
        X,
        17,
    ),
    ("scale of channels", [node("Mul", ["x", "s"], ["y"])], {"s": numbers(FEATURES, 1, 1)}, IMAGE, 17),
    ("square", [node("Pow", ["x", "two"], ["y"])], {"two": np.float32(2)}, X, 17),
    (
        "combinations",
        [
            node("Tanh", ["x"], ["a"]),
            node("Add", ["x", "a"], ["b"]),
            node("Mul", ["b", "a"], ["c"]),
            node("Sub", ["c", "x"], ["d"]),
            node("Max", ["d", "a"], ["e"]),
            node("Min", ["e", "x", "b"], ["f"]),
            node("Mean", ["f", "a"], ["g"]),
            node("Sum", ["g", "a", "x"], ["y"]),
        ],
        {},
        X,
        17,
    ),
    (
        "combination of unlike arrangements",
        [
            node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
            node("Tanh", ["x"], ["b"]),
            node("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
            node("Softmax", ["c"], ["d"], axis=2),
            node("Add", ["a", "d"], ["y"]),
        ],
        {},
        X,
        17,
    ),
    (
        "combination with a row",
        [node("ReduceMean", ["x"], ["a"], axes=[1], keepdims=1), node("Mul", ["x", "a"], ["y"])],
        {},
        X,
        17,
    ),
    ("concat", [node("Tanh", ["x"], ["a"]), node("Concat", ["x", "a"], ["y"], axis=2)], {}, X, 17),
    (
        "concat over time",
        [node("Tanh", ["x"], ["a"]), node("Concat", ["x", "a", "x"], ["y"], axis=1)],
        {},
        X,
        17,
    ),
    (
        "concat of transposed",
        [
            node("Transpose", ["x"], ["a"], perm=[1, 0, 2]),
            node("Tanh", ["a"], ["b"]),
            node("Concat", ["a", "b"], ["y"], axis=-1),
        ],
        {},
        X,
        17,
    ),
    ("last step", [node("Gather", ["x", "last"], ["y"], axis=1)], {"last": np.array(-1)}, X, 17),
    ("last step kept", [node("Gather", ["x", "last"], ["y"], axis=1)], {"last": ints(-1)}, X, 17),
    (
        "last step of time-major",
        [node("Transpose", ["x"], ["a"], perm=[1, 0, 2]), node("Gather", ["a", "last"], ["y"], axis=0)],
        {"last": np.array(-1)},
        X,
        17,
    ),
    (
        "last step by slice",
        [node("Slice", ["x", "s", "e", "a"], ["b"]), node("Squeeze", ["b", "a"], ["y"])],
        {"s": ints(-1), "e": ints(2**62), "a": ints(1)},
        X,
        17,
    ),
    ("one feature", [node("Gather", ["x", "two"], ["y"], axis=2)], {"two": np.array(2)}, X, 17),
    ("first of the batch", [node("Gather", ["x", "zero"], ["y"], axis=0)], {"zero": np.array(0)}, X, 17),
    (
        "all but the ends",
        [node("Slice", ["x", "s", "e", "a"], ["y"])],
        {"s": ints(1), "e": ints(-2), "a": ints(1)},
        X,
        17,
    ),
    (
        "reversed time",
        [node("Slice", ["x", "s", "e", "a", "s"], ["y"])],
        {"s": ints(-1), "e": ints(-(2**63) + 1), "a": ints(1)},
        X,
        17,
    ),
    (
        "split of steps",
        [node("Split", ["x"], ["a", "b", "c"], axis=1), node("Concat", ["c", "a"], ["y"], axis=2)],
        {},
        {"x": numbers(BATCH, 3, FEATURES)},
        17,
    ),
    ("flatten", [node("Flatten", ["x"], ["y"])], {}, {"x": numbers(BATCH, TIME, FEATURES)}, 17),
    (
        "reshape to heads",
        [node("Reshape", ["x", "s"], ["a"]), node("Transpose", ["a"], ["y"], perm=[0, 2, 1, 3])],
        {"s": ints(0, 0, 2, 2)},
        X,
        17,
    ),
    (
        "unsqueeze and squeeze",
        [
            node("Unsqueeze", ["x", "two"], ["a"]),
            node("Tanh", ["a"], ["b"]),
            node("Squeeze", ["b", "two"], ["c"]),
            node("Unsqueeze", ["c", "last"], ["y"]),
        ],
        {"two": ints(2), "last": ints(-1)},
        X,
        17,
    ),
    ("embedding", [node("Gather", ["w", "x"], ["y"])], {"w": numbers(20, 7)}, IDS, 17),
    (
        "embedding with an index from the end",
        [
            node("Add", ["x", "n"], ["s"]),
            node("Less", ["x", "zero"], ["l"]),
            node("Where", ["l", "s", "x"], ["i"]),
            node("Gather", ["w", "i"], ["y"]),
        ],
        {"w": numbers(20, 7), "n": np.array(20), "zero": np.array(0)},
        IDS,
        17,
    ),
    (
        "embedding with an index from the end by products",
        [
            node("Add", ["x", "n"], ["s"]),
            node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            node("Less", ["f", "zero"], ["l"]),
            node("Not", ["l"], ["m"]),
            node("Cast", ["l"], ["li"], to=TensorProto.INT64),
            node("Cast", ["m"], ["mi"], to=TensorProto.INT64),
            node("Mul", ["x", "mi"], ["k"]),
            node("Mul", ["li", "s"], ["t"]),
            node("Add", ["t", "k"], ["i"]),
            node("Gather", ["w", "i"], ["y"]),
        ],
        {"w": numbers(20, 7), "n": np.array(20), "zero": np.float32(0)},
        IDS,
        17,
    ),
    ("cast", [node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], {}, IDS, 17),
    ("dropout", [node("Dropout", ["x", "rate"], ["y"])], {"rate": np.float32(0.3)}, X, 17),
    (
        "conv 1d",
        [
            node("Transpose", ["x"], ["a"], perm=[0, 2, 1]),
            node("Conv", ["a", "w", "b"], ["c"], kernel_shape=[3]),
            node("Transpose", ["c"], ["y"], perm=[0, 2, 1]),
        ],
        {"w": numbers(7, FEATURES, 3), "b": numbers(7)},
        X,
        17,
    ),
    (
        "conv 1d of channels first",
        [
            node("Conv", ["x", "w"], ["a"], pads=[1, 1]),
            node("Relu", ["a"], ["b"]),
            node("Conv", ["b", "w"], ["y"], strides=[2]),
        ],
        {"w": numbers(4, 4, 3)},
        {"x": numbers(BATCH, 4, 11)},
        17,
    ),
    (
        "conv 1d causal and dilated",
        [node("Conv", ["x", "w"], ["y"], pads=[4, 0], dilations=[2])],
        {"w": numbers(5, 4, 3)},
        {"x": numbers(BATCH, 4, 11)},
        17,
    ),
    (
        "conv 1d padded on one side",
        [node("Conv", ["x", "w"], ["y"], pads=[0, 3], strides=[2])],
        {"w": numbers(5, 4, 3)},
        {"x": numbers(BATCH, 4, 11)},
        17,
    ),
    (
        "conv 1d with groups",
        [node("Conv", ["x", "w"], ["y"], group=2)],
        {"w": numbers(6, 2, 3)},
        {"x": numbers(BATCH, 4, 11)},
        17,
    ),
    (
        "conv 1d same",
        [node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2], kernel_shape=[4])],
        {"w": numbers(5, 4, 4)},
        {"x": numbers(BATCH, 4, 11)},
        17,
    ),
    (
        "conv 1d as an image",
        [
            node("Unsqueeze", ["x", "one"], ["a"]),
            node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
            node("Conv", ["b", "w"], ["c"], auto_pad="SAME_UPPER", kernel_shape=[1, 3]),
            node("Squeeze", ["c", "two"], ["d"]),
            node("Relu", ["d"], ["e"]),
            node("Unsqueeze", ["e", "two"], ["f"]),
            node("MaxPool", ["f"], ["g"], kernel_shape=[1, 2], strides=[1, 2]),
            node("Squeeze", ["g", "two"], ["h"]),
            node("Transpose", ["h"], ["y"], perm=[0, 2, 1]),
        ],
        {"w": numbers(7, FEATURES, 1, 3), "one": ints(1), "two": ints(2)},
        X,
        17,
    ),
    (
        "conv 2d",
        [node("Conv", ["x", "w", "b"], ["y"], strides=[2, 1], pads=[1, 0, 1, 2], dilations=[1, 2])],
        {"w": numbers(7, FEATURES, 3, 2), "b": numbers(7)},
        IMAGE,
        17,
    ),
    (
        "conv 2d same",
        [node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        {"w": numbers(7, FEATURES, 3, 3)},
        IMAGE,
        17,
    ),
    (
        "pooling",
        [
            node("MaxPool", ["x"], ["a"], kernel_shape=[2, 3], strides=[1, 2]),
            node("AveragePool", ["a"], ["y"], kernel_shape=[2, 1]),
        ],
        {},
        IMAGE,
        17,
    ),
    (
        "pooling same",
        [node("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER")],
        {},
        IMAGE,
        17,
    ),
    (
        "global pooling",
        [node("GlobalAveragePool", ["x"], ["a"]), node("Flatten", ["a"], ["y"])],
        {},
        IMAGE,
        17,
    ),
    ("global pooling kept", [node("GlobalMaxPool", ["x"], ["y"])], {}, IMAGE, 17),
    ("mean over time", [node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)], {}, X, 17),
    (
        "mean over time, axes as input",
        [node("ReduceMean", ["x", "one"], ["y"], keepdims=0)],
        {"one": ints(1)},
        X,
        18,
    ),
    ("largest over time", [node("ReduceMax", ["x"], ["y"], axes=[1], keepdims=1)], {}, X, 17),
    (
        "batch normalization",
        [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=0.01)],
        {"s": numbers(4), "b": numbers(4) + 1, "m": numbers(4) * 2, "v": np.abs(numbers(4)) + 0.1},
        IMAGE,
        17,
    ),
    (
        "batch normalization of features",
        [node("Reshape", ["x", "rows"], ["a"]), node("BatchNormalization", ["a", "s", "b", "m", "v"], ["y"])],
        {
            "rows": ints(-1, FEATURES),
            "s": numbers(4),
            "b": numbers(4) + 1,
            "m": numbers(4) * 2,
            "v": np.abs(numbers(4)) + 0.1,
        },
        {"x": numbers(BATCH, FEATURES)},
        17,
    ),
    (
        "two activations after a matrix",
        [node("MatMul", ["x", "w"], ["a"]), node("Tanh", ["a"], ["b"]), node("Exp", ["b"], ["y"])],
        {"w": numbers(FEATURES, 7)},
        X,
        17,
    ),
    (
        "a product that is used twice",
        [
            node("MatMul", ["x", "w"], ["a"]),
            node("Tanh", ["a"], ["b"]),
            node("Add", ["a", "bias"], ["c"]),
            node("Mul", ["b", "c"], ["d"]),
            node("Add", ["d", "a"], ["y"]),
        ],
        {"w": numbers(FEATURES, 7), "bias": numbers(7)},
        X,
        17,
    ),
    (
        "an axis in front of time",
        [node("Transpose", ["x"], ["a"], perm=[1, 0, 2]), node("Unsqueeze", ["a", "zero"], ["y"])],
        {"zero": ints(0)},
        X,
        17,
    ),
    (
        "unequal heads",
        [node("Reshape", ["x", "s"], ["a"]), node("Transpose", ["a"], ["y"], perm=[0, 3, 1, 2])],
        {"s": ints(0, -1, 2, 3)},
        {"x": numbers(BATCH, TIME, 6)},
        17,
    ),
    (
        "unequal heads from the front",
        [node("Reshape", ["x", "s"], ["a"]), node("Transpose", ["a"], ["y"], perm=[0, 2, 1, 3])],
        {"s": ints(0, 2, 3, 6)},
        {"x": numbers(BATCH, TIME, 6)},
        17,
    ),
    (
        "steps of a stated time",
        [node("Slice", ["x", "s", "e", "a"], ["y"])],
        {"s": ints(1), "e": ints(-2), "a": ints(1)},
        {"x": numbers(BATCH, TIME, 6)},
        17,
    ),
    (
        "conv 1d padded after",
        [node("Conv", ["x", "w"], ["y"], pads=[0, 2])],
        {"w": numbers(5, 4, 3)},
        {"x": numbers(BATCH, 4, 11)},
        17,
    ),
    (
        "layer normalization",
        [node("LayerNormalization", ["x", "s", "b"], ["y"], epsilon=0.001)],
        {"s": numbers(4), "b": numbers(4) + 1},
        X,
        17,
    ),
]


@pytest.mark.parametrize(
    ("nodes", "constants", "feeds", "opset"), [c[1:] for c in SINGLE], ids=[c[0] for c in SINGLE]
)
def test_an_operator_is_folded_into_layers(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    feeds: dict[str, Array],
    opset: int,
    tmp_path: Path,
) -> None:
    # Channels and features have to be stated; so has time where a matrix acts on it.
    stated = (feeds is not X and feeds is not IDS) or ("w" in constants and len(constants["w"]) == TIME)
    stated |= any(len(array.shape) == 2 and len(array) == TIME for array in constants.values())
    static = [1] if stated else []
    model = model_of(nodes, constants, feeds, opset=opset, static=static)
    assert_agrees(read(model, tmp_path), model, feeds)


def test_transposes_and_reshapes_leave_nothing(tmp_path: Path) -> None:
    """What exporters write around a layer is folded into how its values are arranged."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node(
            "LSTM", ["t", "W", "R", "B"], ["Y", "", ""], "lstm", hidden_size=HIDDEN, direction="bidirectional"
        ),
        node("Transpose", ["Y"], ["s"], perm=[0, 2, 1, 3]),
        node("Reshape", ["s", "target"], ["m"]),
        node(
            "LSTM",
            ["m", "W2", "R", "B"],
            ["Y2", "", ""],
            "lstm_2",
            hidden_size=HIDDEN,
            direction="bidirectional",
        ),
        node("Transpose", ["Y2"], ["s2"], perm=[2, 0, 1, 3]),
        node("Reshape", ["s2", "target"], ["b"]),
        node("MatMul", ["b", "K"], ["k"], "fc"),
        node("Add", ["k", "bias"], ["f"]),
        node("Softmax", ["f"], ["y"], axis=-1),
    ]
    constants = {
        **lstm_weights(2),
        "W2": numbers(2, 20, 10) * 2,
        "target": ints(0, 0, -1),
        "K": numbers(10, 3),
        "bias": numbers(3),
    }
    model = model_of(nodes, constants, X)
    result = read(model, tmp_path)
    assert operations(result) == ["lstm", "lstm", "Dense"]
    assert_agrees(result, model, X)
    fc = result.layers["fc"]
    assert isinstance(fc, OperationLayer)
    assert same_bits(fc.weights["bias"].read(), constants["bias"])
    assert str(getattr(fc.operation, "activation", "")) == "softmax"


def lstm_weights(directions: int = 1) -> dict[str, Array]:
    generator = rng()
    scale = np.linspace(0.4, 1.6, 4).repeat(HIDDEN)[:, np.newaxis]
    return {
        "W": (generator.standard_normal((directions, 4 * HIDDEN, FEATURES)) * scale).astype(np.float32),
        "R": (generator.standard_normal((directions, 4 * HIDDEN, HIDDEN)) * scale).astype(np.float32),
        "B": generator.standard_normal((directions, 8 * HIDDEN)).astype(np.float32),
    }


def lstm(
    outputs: list[str], more: list[str] | None = None, direction: str = "forward"
) -> list[onnx.NodeProto]:
    inputs = ["t", "W", "R", "B", *(more or [])]
    return [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LSTM", inputs, outputs, "lstm", hidden_size=HIDDEN, direction=direction),
    ]


STATES: list[tuple[str, list[str], list[onnx.NodeProto], list[str]]] = [
    ("sequence", ["Y", "h", "c"], [], ["Y"]),
    ("last", ["", "h", ""], [], ["h"]),
    ("cell state alone", ["", "", "c"], [], ["c"]),
    ("both states", ["", "h", "c"], [], ["h", "c"]),
    ("everything", ["Y", "h", "c"], [], ["c", "Y", "h"]),
    ("sequence and last", ["Y", "h", ""], [], ["Y", "h"]),
    ("states joined", ["Y", "h", "c"], [node("Transpose", ["h"], ["a"], perm=[1, 0, 2]), node("Flatten", ["a"], ["y"])], ["y"]),
    ("states joined, with the sequence", ["Y", "h", "c"], [node("Transpose", ["h"], ["a"], perm=[1, 0, 2]), node("Flatten", ["a"], ["y"])], ["y", "Y"]),
    ("one direction of the state", ["Y", "h", "c"], [node("Gather", ["h", "minus"], ["y"])], ["y"]),
    ("one direction of the cell state", ["Y", "h", "c"], [node("Gather", ["c", "zero"], ["y"])], ["y"]),
    ("states stacked", ["Y", "h", "c"], [node("Concat", ["h", "c"], ["y"], axis=0)], ["y"]),
    ("states stacked and taken apart", ["Y", "h", "c"], [node("Concat", ["h", "c"], ["a"], axis=0), node("Gather", ["a", "minus"], ["b"]), node("Gather", ["a", "zero"], ["d"]), node("Add", ["b", "d"], ["y"])], ["y"]),
    ("a slice of the states", ["Y", "h", "c"], [node("Concat", ["h", "c"], ["a"], axis=0), node("Slice", ["a", "one", "two"], ["b"]), node("Squeeze", ["b", "start"], ["y"])], ["y"]),
    ("directions split", ["Y", "h", "c"], [node("Split", ["h"], ["a", "b"], axis=0, num_outputs=2), node("Concat", ["b", "a"], ["y"], axis=2)], ["y"]),
]  # fmt: skip


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("outputs", "nodes", "wanted"), [s[1:] for s in STATES], ids=[s[0] for s in STATES])
def test_outputs_of_a_layer_are_those_that_are_used(
    outputs: list[str], nodes: list[onnx.NodeProto], wanted: list[str], direction: str, tmp_path: Path
) -> None:
    if any(n.op_type == "Split" for n in nodes) and direction != "bidirectional":
        return
    constants = {
        **lstm_weights(2 if direction == "bidirectional" else 1),
        "minus": np.array(-1),
        "zero": np.array(0),
        "start": ints(0),
        "one": ints(1),
        "two": ints(2),
    }
    model = model_of([*lstm(outputs, direction=direction), *nodes], constants, X, wanted, opset=18)
    result = read(model, tmp_path)
    assert_agrees(result, model, X)
    (layer,) = result.recurrent.values()
    assert layer.sequence.time_major is False


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_states_that_are_inputs(direction: str, batch_first: bool, tmp_path: Path) -> None:
    count = 2 if direction == "bidirectional" else 1
    shape = (BATCH, count, HIDDEN) if batch_first else (count, BATCH, HIDDEN)
    feeds = {**X, "h0": numbers(*shape), "c0": numbers(*shape) * 2}
    nodes = []
    names = ["h0", "c0"]
    if batch_first:
        names = ["h", "c"]
        nodes = [node("Transpose", [f"{n}0"], [n], perm=[1, 0, 2]) for n in names]
    nodes += lstm(["Y", "hn", "cn"], ["", *names], direction)
    model = model_of(nodes, lstm_weights(count), feeds, ["Y", "hn", "cn"], static=[1] if batch_first else [0])
    for name in ("h0", "c0"):
        port = next(p for p in model.graph.input if p.name == name)
        port.type.tensor_type.shape.dim[1 if batch_first else 0].dim_value = count
    result = read(model, tmp_path)
    assert [port.name for port in result.inputs] == ["x", "h0", "c0"]
    assert_agrees(result, model, feeds)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_batch_major_node(direction: str, tmp_path: Path) -> None:
    """The runtime refuses layout=1; the same node with layout=0 between transpositions is the judge."""
    constants = lstm_weights(2 if direction == "bidirectional" else 1)
    judge = [
        *lstm(["Y4", "h3", "c3"], direction=direction),
        node("Transpose", ["Y4"], ["Y"], perm=[2, 0, 1, 3]),
        node("Transpose", ["h3"], ["h"], perm=[1, 0, 2]),
        node("Transpose", ["c3"], ["c"], perm=[1, 0, 2]),
    ]
    own = lstm(["Y", "h", "c"], direction=direction)[1]
    own.input[0] = "x"
    own.attribute.append(helper.make_attribute("layout", 1))
    expected = model_of(judge, constants, X, ["Y", "h", "c"])
    model = model_of(judge, constants, X, ["Y", "h", "c"])
    del model.graph.node[:]
    model.graph.node.append(own)
    result = read(model, tmp_path)
    assert_agrees(result, expected, X)


def test_a_state_that_is_passed_on(tmp_path: Path) -> None:
    """An encoder's final state is a decoder's initial one."""
    nodes = [
        *lstm(["", "h", "c"]),
        node("LSTM", ["t", "W", "R", "B", "", "h", "c"], ["Y", "", ""], "decoder", hidden_size=HIDDEN),
        node("Squeeze", ["Y", "one"], ["y"]),
    ]
    model = model_of(nodes, {**lstm_weights(), "one": ints(1)}, X)
    result = read(model, tmp_path)
    assert_agrees(result, model, X)
    assert operations(result) == ["lstm", "lstm", "Transpose"]


# What reading changes is reported.


def unusual(tmp_path: Path, *more: onnx.NodeProto) -> Path:
    """A layer that is batch-major, with weights that are turned, a constant choice and a missing alpha."""
    constants = {**lstm_weights(), "yes": np.array(True)}
    constants["V"] = np.ascontiguousarray(constants.pop("W").transpose(0, 2, 1))
    branches = {
        f"{name}_branch": helper.make_graph(
            [node(kind, ["x"], [f"{name}_x"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_x", 1, [None, None, FEATURES])],
        )
        for name, kind in (("then", "Tanh"), ("else", "Relu"))
    }
    nodes = [
        node("If", ["yes"], ["z"], "choice", **branches),
        node("Transpose", ["V"], ["W"], perm=[0, 2, 1]),
        node(
            "LSTM",
            ["z", "W", "R", "B"],
            ["Y", "", ""],
            "lstm",
            hidden_size=HIDDEN,
            layout=1,
            activations=["HardSigmoid", "Tanh", "Tanh"],
        ),
        node("Tanh", ["Y"], ["y"]),
    ]
    model = model_of([*nodes[1:3], *more, node("Tanh", ["Y"], ["y"])], constants, {**X, "z": X["x"]})
    del model.graph.node[:], model.graph.input[1:]
    model.graph.node.extend([*nodes[:3], *(more or nodes[3:])])
    path = tmp_path / "unusual.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_normalised_file_says_what_was_changed(tmp_path: Path) -> None:
    import lstmconvert as lc
    from lstmconvert import report

    result = lc.convert(unusual(tmp_path), tmp_path / "plain.onnx")
    assert result.proof is not None and result.proof.exact
    named = {step.name: step for step in result.rewrites}
    assert {"layout", "fold_weights", "resolve_choice", "activation_parameters"} <= named.keys()
    assert "then_branch" in named["resolve_choice"].description
    assert report.conversion(result)["rewrites"][0]["name"] in named
    (written,) = [n for n in onnx.load(tmp_path / "plain.onnx").graph.node if n.op_type == "LSTM"]
    attributes = {a.name: helper.get_attribute_value(a) for a in written.attribute}
    assert attributes.get("layout", 0) == 0
    assert [round(alpha, 6) for alpha in attributes["activation_alpha"]] == [0.2]
    assert lc.read(tmp_path / "plain.onnx").metadata["rewrites"] == []


def test_a_file_that_is_not_read_as_a_whole_says_why_in_the_report(tmp_path: Path) -> None:
    import lstmconvert as lc
    from lstmconvert import opening, report, text

    path = unusual(tmp_path, node("Sin", ["Y"], ["y"], "wave"))
    result = lc.convert(path, tmp_path / "weights.safetensors")
    assert any("node 'wave' (Sin)" in reason for reason in report.conversion(result)["skipped"])
    value = report.inspection(opening.open_source(path, ReadOptions()))
    assert "node 'wave' (Sin)" in value["topology_unknown"]
    shown = text.inspection(value, verbose=False)
    assert "node 'wave' (Sin)" in shown
    assert "read with a change: lstm: layout=1" in shown


# What is not understood.


def refused(nodes: list[onnx.NodeProto], constants: dict[str, Array], tmp_path: Path, **more: Any) -> str:
    result = read(model_of(nodes, constants, X, **more), tmp_path)
    assert result.calls is None
    return str(result.metadata["topology"])


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        ([node("Sin", ["x"], ["y"], "wave")], {}, "node 'wave' (Sin)"),
        ([node("Sin", ["x"], ["a"], "wave"), node("Relu", ["a"], ["b"]), node("Add", ["b", "x"], ["y"])], {}, "node 'wave' (Sin)"),
        ([node("MatMul", ["x", "m"], ["y"], "product")], {"m": numbers(3, 4, 2)}, "node 'product' (MatMul): its matrix has 3 axes"),
        ([node("Clip", ["x", "low", "high"], ["y"], "clip")], {"low": np.float32(0.1), "high": np.float32(0)}, "between 0.1 and 0.0"),
        ([node("Slice", ["x", "s", "e", "a", "t"], ["y"], "cut")], {"s": ints(0), "e": ints(4), "a": ints(2), "t": ints(2)}, "every 2th position"),
        ([node("Pad", ["x", "p"], ["y"], "pad", mode="reflect")], {"p": ints(0, 1, 0, 0, 1, 0)}, "something else than a number"),
        ([node("Pad", ["x", "p", "v"], ["y"], "pad")], {"p": ints(0, 1, 0, 0, 1, 0), "v": np.float32(1)}, "something else than zeros"),
        ([node("Pad", ["x", "p"], ["y"], "pad")], {"p": ints(1, 0, 0, 0, 0, 0)}, "acts on the batch"),
        ([node("Einsum", ["x", "m"], ["y"], "sum", equation="btf,bfg->btg")], {"m": numbers(3, 4, 2)}, "the batch in front"),
        ([node("ReduceMean", ["x"], ["y"], "mean", axes=[0])], {}, "it reduces the batch"),
        ([node("Pow", ["x", "three"], ["y"], "power")], {"three": np.float32(3)}, "another power"),
        ([node("Div", ["x", "none"], ["y"], "quotient")], {"none": np.float32(0)}, "divides by zero"),
        ([node("Div", ["one", "x"], ["y"], "quotient")], {"one": np.float32(1)}, "something else than numbers"),
        ([node("Reshape", ["x", "s"], ["y"], "reshape")], {"s": ints(2, -1)}, "node 'reshape' (Reshape)"),
        ([node("Softmax", ["x"], ["y"], "softmax", axis=1)], {}, "several axes at once"),
        ([node("Add", ["x", "m"], ["y"], "offset")], {"m": numbers(TIME, FEATURES)}, "several axes"),
        ([node("ReverseSequence", ["x", "n"], ["y"], "turn", time_axis=1, batch_axis=0)], {"n": ints(6, 2, 4)}, "lengths of their own"),
        ([node("Identity", ["m"], ["y"])], {"m": numbers(3)}, "output 'y' is a constant"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_graph_that_is_not_understood_says_why(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], message: str, tmp_path: Path
) -> None:
    old = any(n.op_type == "Softmax" for n in nodes)
    assert message in refused(nodes, constants, tmp_path, opset=11 if old else 17)


def test_old_broadcasting_is_not_guessed(tmp_path: Path) -> None:
    """Before opset 7 an attribute says along which axis the second operand lies."""
    nodes = [node("Add", ["x", "b"], ["y"], "old", axis=1, broadcast=1)]
    model = model_of([node("Identity", ["x"], ["y"])], {"b": numbers(TIME)}, X)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import[0].version = 6
    result = read(model, tmp_path)
    assert result.calls is None
    assert "node 'old' (Add): its attribute 'axis'" in result.metadata["topology"]


def test_a_damaged_node_is_not_understood(tmp_path: Path) -> None:
    model = model_of([node("Identity", ["x"], ["y"])], {"k": numbers(3)}, X)
    damaged = [
        node("Concat", ["x", "x"], ["y"], "bad", axis="time"),
        node("Transpose", ["x"], ["y"], "bad", perm=[0, 0, 1]),
        node("Conv", ["x", "k"], ["y"], "bad"),
        node("Gather", ["x"], ["y"], "bad"),
        node("Reshape", ["x"], ["y"], "bad"),
        node("Softmax", ["x"], ["y"], "bad", axis=9),
    ]
    for bad in damaged:
        del model.graph.node[:]
        model.graph.node.append(bad)
        result = read(model, tmp_path)
        assert result.calls is None
        assert f"node 'bad' ({bad.op_type})" in result.metadata["topology"]


def test_what_no_output_needs_does_no_harm(tmp_path: Path) -> None:
    nodes = [node("Sin", ["x"], ["a"]), node("Relu", ["a"], ["unused"]), node("Tanh", ["x"], ["y"])]
    model = model_of(nodes, {}, X)
    result = read(model, tmp_path)
    assert operations(result) == ["Activate"]
    assert_agrees(result, model, X)


def test_lengths_that_are_computed_are_not_understood(tmp_path: Path) -> None:
    feeds = {**X, "lengths": np.array([6, 2, 4], np.int32)}
    nodes = [node("Neg", ["lengths"], ["computed"]), *lstm(["Y", "", ""], ["computed"])]
    model = model_of(nodes, lstm_weights(), feeds, ["Y"])
    result = read(model, tmp_path)
    assert result.calls is None
    assert "layer 'lstm': its sequence lengths" in result.metadata["topology"]
    assert list(result.recurrent) == ["lstm"]


def test_layers_that_follow_one_another_are_a_stack_even_so(tmp_path: Path) -> None:
    def layer(name: str, x: str, y: str) -> list[onnx.NodeProto]:
        outputs = [f"{y}_4", "", ""]
        return [
            node("LSTM", [x, "W5" if x != "t" else "W", "R", "B"], outputs, name, hidden_size=HIDDEN),
            node("Squeeze", [f"{y}_4", "one"], [y]),
        ]

    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        *layer("first", "t", "a"),
        *layer("second", "a", "b"),
        node("Transpose", ["b"], ["turned"], perm=[1, 0, 2]),
        *layer("other", "turned", "d"),  # goes over the batch: no stack
        *layer("left", "d", "e"),  # two of them take one sequence: no stack
        *layer("right", "d", "f"),
        node("Add", ["e", "f"], ["g"]),
        node("Sin", ["g"], ["y"]),
    ]
    constants = {**lstm_weights(), "W5": numbers(1, 20, 5), "one": ints(1)}
    result = read(model_of(nodes, constants, X), tmp_path)
    notes = {name: layer.notes.get("stack") for name, layer in result.recurrent.items()}
    assert notes == {"first": "first", "second": "first", "other": None, "left": None, "right": None}


def test_layers_inside_a_choice_are_read_without_their_wiring(tmp_path: Path) -> None:
    branches = {}
    for name in ("then_branch", "else_branch"):
        inner = [node("Tanh" if name == "then_branch" else "Relu", ["x"], [f"{name}_y"])]
        branches[name] = helper.make_graph(
            inner, name, [], [helper.make_tensor_value_info(f"{name}_y", 1, [None] * 3)]
        )
    nodes = [
        node("ReduceMax", ["x"], ["m"], axes=[0, 1, 2], keepdims=0),
        node("Greater", ["m", "zero"], ["c"]),
        node("If", ["c"], ["y"], "choice", **branches),
    ]
    message = refused(nodes, {"zero": np.float32(0)}, tmp_path)
    assert "node 'choice' (If): what it does depends on the inputs" in message


# What torch's exporters write.


def torch_modules() -> dict[str, Callable[[], tuple[Any, dict[str, Array]]]]:
    import torch
    from torch import nn

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 6)
            self.conv = nn.Conv1d(6, 8, 3, padding=1)
            self.pool = nn.MaxPool1d(2)
            self.lstm = nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True, dropout=0.3)
            self.norm = nn.LayerNorm(10)
            self.hidden = nn.Linear(10, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            x = self.pool(torch.relu(self.conv(self.embedding(x).transpose(1, 2)))).transpose(1, 2)
            x = self.norm(self.lstm(x)[0])
            return torch.softmax(self.head(torch.tanh(self.hidden(x))), -1)

    class LastStates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(10, 3)

        def forward(self, x: Any) -> Any:
            _, (h, _) = self.lstm(x)
            return self.head(torch.cat([h[-2], h[-1]], 1))

    class TrainedState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 5, batch_first=True)
            self.h = nn.Parameter(torch.randn(1, 1, 5))
            self.c = nn.Parameter(torch.randn(1, 1, 5))

        def forward(self, x: Any) -> Any:
            batch = x.size(0)
            return self.lstm(x, (self.h.expand(-1, batch, -1).contiguous(), self.c.repeat(1, batch, 1)))[0]

    class Streaming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 5, 2, batch_first=True)
            self.head = nn.Linear(5, 2)

        def forward(self, x: Any, h: Any, c: Any) -> Any:
            y, (h, c) = self.lstm(x, (h, c))
            return self.head(y), h, c

    class TimeMajor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 5)
            self.head = nn.Linear(5, 2)

        def forward(self, x: Any) -> Any:
            y, h = self.gru(x)
            return self.head(y), h

    class Picture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.second = nn.Conv2d(4, 6, 3)
            self.pool = nn.AvgPool2d((1, 2))
            self.gru = nn.GRU(18, 5, batch_first=True)
            self.head = nn.Linear(5, 2)

        def forward(self, x: Any) -> Any:
            x = self.pool(self.second(torch.relu(self.norm(self.conv(x)))))
            b, c, t, f = x.shape
            y, _ = self.gru(x.permute(0, 2, 1, 3).reshape(b, t, c * f))
            return self.head(y[:, -1])

    return {
        "classifier": lambda: (Classifier(), {"x": rng().integers(0, 20, (BATCH, 8))}),
        "last states": lambda: (LastStates(), X),
        "trained state": lambda: (TrainedState(), X),
        "streaming": lambda: (Streaming(), {**X, "h": numbers(2, BATCH, 5), "c": numbers(2, BATCH, 5)}),
        "time major": lambda: (TimeMajor(), X),
        "picture": lambda: (Picture(), {"x": numbers(BATCH, 1, 20, 16)}),
    }


FOLDED = {
    "classifier": [
        "Embedding",
        "Convolution1D",
        "Pooling",
        "lstm",
        "lstm",
        "LayerNormalization",
        "Dense",
        "Dense",
    ],
    "last states": ["lstm", "lstm", "Concatenate", "Dense"],
    "trained state": ["lstm"],
}
AXES = {"x": {0: "batch", 1: "time"}, "h": {1: "batch"}, "c": {1: "batch"}}


@pytest.mark.parametrize("dynamo", [False, True], ids=["TorchScript", "dynamo"])
@pytest.mark.parametrize(
    "name", ["classifier", "last states", "trained state", "streaming", "time major", "picture"]
)
def test_what_torch_exports_is_understood(name: str, dynamo: bool, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(3)
    module, feeds = torch_modules()[name]()
    module.eval()
    arguments = tuple(torch.from_numpy(array) for array in feeds.values())
    path = tmp_path / "torch.onnx"
    names = list(feeds)
    axes = {"x": {0: "batch"}} if name == "picture" else {k: v for k, v in AXES.items() if k in feeds}
    options = {"dynamic_axes": axes} if not dynamo else {"external_data": False, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, arguments, str(path), dynamo=dynamo, input_names=names, **options)
    model = onnx.load(path)
    result = onnx_framework.read(onnx_file.read(path), "onnx_file", ReadOptions())
    assert_agrees(result, model, feeds)
    if name in FOLDED:
        assert operations(result) == FOLDED[name]
    if not dynamo:  # with other sizes than those of the example
        smaller = {key: np.ascontiguousarray(a[:2] if key == "x" else a[:, :2]) for key, a in feeds.items()}
        if name == "time major":
            smaller = {"x": feeds["x"][:, :2]}
        assert_agrees(result, model, smaller)
