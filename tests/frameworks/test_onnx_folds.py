"""What a graph computes from constants, judged by the onnx package's reference implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lstmconvert.errors import BadFile
from lstmconvert.frameworks.onnx.constants import Graphs, Scope
from lstmconvert.frameworks.onnx.known import Spread
from lstmconvert.tensors import Array, same_bits

GENERATOR = np.random.default_rng(3)
X = GENERATOR.standard_normal((2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.5)
INTEGERS = GENERATOR.integers(-9, 9, (3, 4))
INTEGERS[INTEGERS == 0] = 5


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


# Operator, its inputs, attributes, opset.
CASES: list[tuple[str, list[Array], dict[str, Any], int]] = [
    ("Unsqueeze", [X, ints(0, -1)], {}, 13),
    ("Unsqueeze", [X], {"axes": [1, 3]}, 11),
    ("Squeeze", [X[:1]], {}, 13),
    ("Squeeze", [X[:, :1], ints(1)], {}, 13),
    ("Squeeze", [X[:, :, :1]], {"axes": [-1]}, 11),
    ("Reshape", [X, ints(0, -1)], {}, 14),
    ("Reshape", [X, ints(4, 2, 3)], {}, 14),
    ("Reshape", [X[:0], ints(0, 7)], {"allowzero": 1}, 14),
    ("Flatten", [X], {"axis": 2}, 13),
    ("Flatten", [X], {"axis": -1}, 13),
    ("Flatten", [X], {"axis": 0}, 13),
    ("Transpose", [X], {}, 13),
    ("Transpose", [X], {"perm": [1, 2, 0]}, 13),
    ("Concat", [X, X[:, :1]], {"axis": 1}, 13),
    ("Concat", [X, X], {"axis": -1}, 13),
    ("Slice", [X, ints(1), ints(3), ints(2)], {}, 13),
    ("Slice", [X, ints(-3), ints(2**62), ints(-1)], {}, 13),
    ("Slice", [X, ints(-1), ints(-(2**63) + 1), ints(2), ints(-1)], {}, 13),
    ("Slice", [X, ints(3, 1), ints(0, -9), ints(2, 0), ints(-2, -1)], {}, 13),
    ("Slice", [X, ints(0, 1), ints(1, 2)], {}, 13),
    ("Slice", [X], {"starts": [1], "ends": [2], "axes": [1]}, 9),
    ("Gather", [X, ints(2, 0)], {"axis": 1}, 13),
    ("Gather", [X, np.array(-1)], {"axis": 2}, 13),
    ("Gather", [X, np.array([[1, 0], [0, 0]])], {"axis": 0}, 13),
    ("Expand", [X[:, :1], ints(2, 5, 1)], {}, 13),
    ("Expand", [X[0, 0], ints(3, 1, 4)], {}, 13),
    ("Tile", [X, ints(1, 2, 3)], {}, 13),
    ("ConstantOfShape", [ints(2, 3)], {"value": helper.make_tensor("v", TensorProto.INT32, [1], [7])}, 13),
    ("ConstantOfShape", [ints(4)], {}, 13),
    ("Shape", [X], {}, 13),
    ("Shape", [X], {"start": -2, "end": 3}, 15),
    ("Size", [X], {}, 13),
    ("Identity", [X], {}, 13),
    ("Cast", [X * 100], {"to": TensorProto.INT32}, 13),
    ("Cast", [X], {"to": TensorProto.FLOAT16}, 13),
    ("Cast", [X > 0], {"to": TensorProto.FLOAT}, 13),
    ("Add", [X, X[0, 0]], {}, 14),
    ("Sub", [X, X[:1]], {}, 14),
    ("Mul", [INTEGERS, INTEGERS[:1]], {}, 14),
    ("Div", [X, POSITIVE], {}, 14),
    ("Div", [INTEGERS * 7, INTEGERS[:1]], {}, 14),
    ("Mod", [np.array([7, -7, 7, -7]), np.array([3, 3, -3, -3])], {}, 13),
    ("Mod", [np.array([7, -7, 7, -7]), np.array([3, 3, -3, -3])], {"fmod": 1}, 13),
    ("Mod", [X, np.float32(0.3)], {"fmod": 1}, 13),
    ("Pow", [POSITIVE, np.float32(0.5)], {}, 13),
    ("Pow", [POSITIVE, np.array(2)], {}, 13),
    ("Max", [X, X[:1], np.float32(0.1)], {}, 13),
    ("Min", [X, X[:1]], {}, 13),
    ("Sum", [X, X[:1], X[0]], {}, 13),
    ("Where", [X > 0, X, np.zeros((), np.float32)], {}, 9),
    ("Equal", [INTEGERS, INTEGERS[:1]], {}, 13),
    ("Less", [X, X[:1]], {}, 13),
    ("Greater", [X, X[:1]], {}, 13),
    ("LessOrEqual", [X, X[:1]], {}, 12),
    ("GreaterOrEqual", [X, X[:1]], {}, 12),
    ("And", [X > 0, X[:1] > 0], {}, 7),
    ("Or", [X > 0, X[:1] > 0], {}, 7),
    ("Xor", [X > 0, X[:1] > 0], {}, 7),
    ("Not", [X > 0], {}, 1),
    ("Neg", [X], {}, 13),
    ("Abs", [INTEGERS], {}, 13),
    ("Sqrt", [POSITIVE], {}, 13),
    ("Reciprocal", [POSITIVE], {}, 13),
    ("Exp", [X], {}, 13),
    ("Log", [POSITIVE], {}, 13),
    ("Floor", [X], {}, 13),
    ("Ceil", [X], {}, 13),
    ("Tanh", [X], {}, 13),
    ("DequantizeLinear", [INTEGERS.astype(np.int8), np.float32(0.3), np.int8(2)], {}, 19),
    ("DequantizeLinear", [INTEGERS.astype(np.int8), POSITIVE[0, 0]], {"axis": 1}, 19),
    ("DequantizeLinear", [INTEGERS.astype(np.int8), POSITIVE[0, :, 0]], {"axis": -2}, 19),
    ("ReduceSum", [X, ints(0, -1)], {}, 13),
    ("ReduceSum", [X], {"axes": [1], "keepdims": 0}, 11),
    ("ReduceSum", [X], {"noop_with_empty_axes": 1}, 13),
    ("ReduceMean", [X, ints(1)], {"keepdims": 0}, 18),
    ("ReduceMean", [X], {}, 13),
    ("ReduceMax", [X], {"axes": [2]}, 13),
    ("ReduceMin", [X], {"axes": [0]}, 13),
    ("ReduceProd", [INTEGERS[:, :2]], {"axes": [1]}, 13),
    ("ReduceL2", [X], {"axes": [1, 2]}, 13),
]


def model_of(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, Array], outputs: Sequence[str], opset: int = 13
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, None])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(list(nodes), "g", [x], results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def scope_of(model: onnx.ModelProto) -> Scope:
    """What is known at the end of the model."""
    end = helper.make_node("Print", ["x"], [])  # an operator that nothing folds shows the scope
    model.graph.node.append(end)
    *_, (_, scope) = Graphs.of(model, {}).walk()
    model.graph.node.pop()
    return scope


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "opset"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)]
)
def test_an_operator_on_constants(
    op: str, inputs: list[Array], attributes: dict[str, Any], opset: int
) -> None:
    names = [f"in{n}" for n in range(len(inputs))]
    constants = dict(zip(names, map(np.asarray, inputs), strict=True))
    model = model_of([helper.make_node(op, names, ["out"], **attributes)], constants, ["out"], opset)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": np.zeros((1, 1, 1), np.float32)})
    result = scope_of(model).constant("out")
    assert result is not None
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    if op in ("Exp", "Log", "Tanh", "ReduceL2", "Pow", "ReduceMean", "ReduceSum"):
        np.testing.assert_allclose(result.read(), expected, rtol=1e-6)
    else:
        assert same_bits(np.ascontiguousarray(result.read()), np.ascontiguousarray(expected))


@pytest.mark.parametrize(
    ("inputs", "attributes", "opset"),
    [
        ([X], {"axis": 1}, 13),
        ([X, ints(1, 3)], {"axis": 2}, 13),
        ([X], {"axis": 2, "split": [3, 1]}, 11),
        ([X], {"axis": 1, "num_outputs": 2}, 18),
    ],
)
def test_split(inputs: list[Array], attributes: dict[str, Any], opset: int) -> None:
    outputs = ["a", "b", "c"] if attributes == {"axis": 1} else ["a", "b"]
    constants = {f"in{n}": array for n, array in enumerate(inputs)}
    model = model_of(
        [helper.make_node("Split", list(constants), outputs, **attributes)], constants, outputs, opset
    )
    expected = ReferenceEvaluator(model).run(None, {"x": np.zeros((1, 1, 1), np.float32)})
    scope = scope_of(model)
    for name, part in zip(outputs, expected, strict=True):
        found = scope.constant(name)
        assert found is not None
        assert same_bits(np.ascontiguousarray(found.read()), np.ascontiguousarray(part))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": numpy_helper.from_array(X)}, X),
        ({"value_float": 1.5}, np.float32(1.5)),
        ({"value_floats": [1.5, 2.5]}, np.float32([1.5, 2.5])),
        ({"value_int": 3}, np.array(3)),
        ({"value_ints": [3, 4]}, ints(3, 4)),
    ],
)
def test_constant(attributes: dict[str, Any], expected: Array) -> None:
    scope = scope_of(model_of([helper.make_node("Constant", [], ["out"], **attributes)], {}, ["out"]))
    result = scope.constant("out")
    assert result is not None
    assert same_bits(result.read(), np.asarray(expected))


def test_nothing_is_read_before_somebody_asks() -> None:
    from lstmconvert.tensors import Lazy

    reads = []

    def load() -> Array:
        reads.append(1)
        return X

    tensor = TensorProto(
        name="w", dims=X.shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="key")
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[2, 0, 1]),
        helper.make_node("Concat", ["t", "t"], ["c"], axis=0),
        helper.make_node("Add", ["c", "c"], ["out"]),
        helper.make_node("Print", ["x"], []),
    ]
    model = model_of(nodes, {}, ["out"])
    model.graph.initializer.append(tensor)
    *_, (_, scope) = Graphs.of(model, {"key": Lazy(X.shape, X.dtype, load)}).walk()
    result = scope.constant("out")
    assert result is not None
    assert (result.shape, reads) == ((8, 2, 3), [])
    turned = X.transpose(2, 0, 1)
    assert same_bits(result.read(), np.concatenate([turned, turned]) * 2)
    assert reads


def test_a_value_that_depends_on_an_input_is_not_known() -> None:
    nodes = [helper.make_node("Add", ["x", "one"], ["out"]), helper.make_node("Identity", ["out"], ["copy"])]
    scope = scope_of(model_of(nodes, {"one": np.float32(1)}, ["copy"]))
    assert scope.known("out") is None
    assert scope.known("copy") is None


SHAPE = [
    helper.make_node("Shape", ["x"], ["shape"]),
    helper.make_node("Gather", ["shape", "index"], ["batch"]),
    helper.make_node("Unsqueeze", ["batch", "zero"], ["batch_vector"]),
]
SHAPE_CONSTANTS = {"index": np.array(0), "zero": ints(0), "one": ints(1), "four": ints(4)}


def test_a_tile_along_an_axis_that_is_longer_than_one_is_no_broadcast() -> None:
    """Two rows repeated for a batch of unknown size alternate; no single row stands for them."""
    nodes = [
        *SHAPE,
        helper.make_node("Concat", ["one", "batch_vector", "one"], ["repeats"], axis=0),
        helper.make_node("Tile", ["rows", "repeats"], ["out"]),
        helper.make_node("Tile", ["row", "repeats"], ["good"]),
    ]
    rows = X[:1, :2]
    scope = scope_of(model_of(nodes, {**SHAPE_CONSTANTS, "rows": rows, "row": rows[:, :1]}, ["out"]))
    assert scope.known("out") is None
    assert isinstance(scope.known("good"), Spread)


def test_shape_arithmetic_keeps_what_is_known() -> None:
    """torch's expand(-1, ...): where the wanted size is -1, the old one stays."""
    nodes = [
        *SHAPE,
        helper.make_node("Concat", ["minus", "batch_vector", "four"], ["wanted"], axis=0),
        helper.make_node("Equal", ["wanted", "minus"], ["keep"]),
        helper.make_node("Where", ["keep", "one", "wanted"], ["target"]),
        helper.make_node("Gather", ["target", "both_ends"], ["known_part"]),
        helper.make_node("Mul", ["known_part", "known_part"], ["squares"]),
    ]
    constants = {**SHAPE_CONSTANTS, "minus": ints(-1), "both_ends": ints(0, 2)}
    scope = scope_of(model_of(nodes, constants, ["squares"]))
    result = scope.constant("squares")
    assert result is not None
    assert result.read().tolist() == [1, 16]


def test_the_shape_of_a_partly_known_vector_is_its_length() -> None:
    """torch's expand builds its vector of ones from the shape of the wanted shape."""
    nodes = [
        *SHAPE,
        helper.make_node("Concat", ["minus", "batch_vector", "four"], ["wanted"], axis=0),
        helper.make_node("Shape", ["wanted"], ["out"]),
        helper.make_node("Shape", ["batch"], ["scalar"]),
        helper.make_node("Size", ["wanted"], ["count"]),
    ]
    scope = scope_of(model_of(nodes, {**SHAPE_CONSTANTS, "minus": ints(-1)}, ["out"]))
    for name, expected in (("out", [3]), ("scalar", []), ("count", 3)):
        found = scope.constant(name)
        assert found is not None
        assert found.read().tolist() == expected


def test_stated_sizes_of_an_input_are_used() -> None:
    model = model_of([helper.make_node("Shape", ["x"], ["out"])], {}, ["out"])
    assert scope_of(model).constant("out") is None
    for size, dimension in zip((2, 5, 7), model.graph.input[0].type.tensor_type.shape.dim, strict=True):
        dimension.dim_value = size
    result = scope_of(model).constant("out")
    assert result is not None
    assert result.read().tolist() == [2, 5, 7]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Reshape", [X, ints(5, 5)], {}),
        ("Squeeze", [X, ints(1)], {}),
        ("Transpose", [X], {"perm": [0, 0, 1]}),
        ("Concat", [X, X[:, :2]], {"axis": 0}),
        ("Gather", [X, ints(9)], {"axis": 0}),
        ("Unsqueeze", [X, ints(9)], {}),
        ("Add", [X, X[:, :2]], {}),
        ("Split", [X, ints(1, 1)], {"axis": 2}),
        ("Cast", [X], {"to": 99}),
        ("Tile", [X, ints(2)], {}),
    ],
)
def test_operators_that_cannot_act_are_refused(
    op: str, inputs: list[Array], attributes: dict[str, Any]
) -> None:
    constants = {f"in{n}": array for n, array in enumerate(inputs)}
    outputs = ["out", "more"] if op == "Split" else ["out"]
    model = model_of(
        [helper.make_node(op, list(constants), outputs, "the node", **attributes)], constants, ["out"]
    )
    with pytest.raises(BadFile, match="cannot act on its constant inputs") as caught:
        scope_of(model)
    assert caught.value.place == "node 'the node'"


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile"])
def test_constants_beyond_measure_are_not_made(op: str) -> None:
    size = ints(1 << 30, 1 << 10, 1)
    inputs = ["size"] if op == "ConstantOfShape" else ["one", "size"]
    nodes = [helper.make_node(op, inputs, ["out"])]
    scope = scope_of(model_of(nodes, {"one": np.ones((1, 1, 1), np.float32), "size": size}, ["out"]))
    assert scope.constant("out") is None
