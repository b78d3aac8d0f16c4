"""The messages of onnx.proto and what is put into them, judged by the onnx package."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper, numpy_helper

from lstmconvert import onnx_proto
from lstmconvert.tensors import same_bits

PLAIN = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
OTHERS = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4")
NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
WHOLE = st.integers(-(2**63), 2**63 - 1)
SINGLE = st.floats(width=32)
ATTRIBUTE = st.one_of(
    WHOLE,
    SINGLE,
    NAMES,
    st.booleans(),
    WHOLE.map(np.int64),
    st.lists(WHOLE, min_size=1),
    st.lists(WHOLE.map(np.int64), min_size=1),
    st.lists(SINGLE | st.integers(-9, 9), min_size=1),
    st.lists(NAMES, min_size=1),
)


def any_array() -> st.SearchStrategy[np.ndarray]:
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return st.sampled_from(PLAIN).flatmap(lambda dtype: arrays.arrays(dtype, shapes))


@given(any_array(), NAMES)
def test_any_array_becomes_the_tensor_that_onnx_makes_of_it(array: np.ndarray, name: str) -> None:
    tensor = onnx_proto.tensor_of(array, name)
    assert tensor.SerializeToString() == numpy_helper.from_array(array, name).SerializeToString()
    assert same_bits(onnx_proto.array_of(tensor), numpy_helper.to_array(tensor))


@given(any_array())
def test_data_in_fields_of_their_own_type_are_read(array: np.ndarray) -> None:
    number = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = helper.make_tensor("x", number, array.shape, array.flatten().tolist())
    assert same_bits(onnx_proto.array_of(tensor), numpy_helper.to_array(tensor))


@pytest.mark.parametrize("dtype", OTHERS)
def test_dtypes_that_numpy_lacks(dtype: str) -> None:
    array = np.array([[1, -2, 0], [3, -4, 5]], getattr(ml_dtypes, dtype))
    tensor = onnx_proto.tensor_of(array, "x")
    assert tensor.SerializeToString() == numpy_helper.from_array(array, "x").SerializeToString()
    assert onnx_proto.array_of(tensor).tobytes() == array.tobytes()


@pytest.mark.parametrize("number", sorted(set(onnx.TensorProto.DataType.values()) - {0}))
def test_every_element_type_has_the_dtype_that_onnx_says(number: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(number)
    assert onnx_proto.dtype_of(number) == dtype
    assert onnx_proto.element_type_of(dtype) == helper.np_dtype_to_tensor_dtype(dtype)


def test_what_is_no_element_type() -> None:
    with pytest.raises(KeyError):
        onnx_proto.dtype_of(999)
    for tensor in (
        onnx.TensorProto(data_type=1, dims=[2], raw_data=b"123"),
        onnx.TensorProto(data_type=1, dims=[2], raw_data=b"1234"),
        onnx.TensorProto(data_type=1, dims=[1], raw_data=b"1234", segment={"begin": 0, "end": 1}),
    ):
        with pytest.raises(ValueError, match=r"size|dimension|reshape|segment"):
            onnx_proto.array_of(tensor)


@given(NAMES, st.lists(NAMES), st.lists(NAMES), st.dictionaries(NAMES, ATTRIBUTE, max_size=4), NAMES)
def test_any_node_is_the_one_that_onnx_makes(
    operator: str, inputs: list[str], outputs: list[str], attributes: dict[str, object], name: str
) -> None:
    made = onnx_proto.node(operator, inputs, outputs, attributes, name=name)  # type: ignore[arg-type]
    expected = onnx.NodeProto(op_type=operator, input=inputs, output=outputs, name=name or None)
    expected.attribute.extend(helper.make_attribute(key, attributes[key]) for key in sorted(attributes))
    assert made.SerializeToString() == expected.SerializeToString()


def test_an_attribute_without_elements_has_no_kind() -> None:
    with pytest.raises(ValueError, match="no elements"):
        onnx_proto.node("Pad", [], [], {"pads": []})


@given(NAMES, st.sampled_from([1, 7, 11, 16]), st.lists(st.none() | st.integers(0, 2**40) | NAMES))
def test_any_shape_is_described_as_onnx_describes_it(name: str, number: int, shape: list[object]) -> None:
    made = onnx_proto.value_info(name, number, shape)  # type: ignore[arg-type]
    expected = helper.make_tensor_value_info(name, number, shape)
    assert made.SerializeToString() == expected.SerializeToString()


@pytest.mark.parametrize("first", ["onnx", "lstmconvert.onnx_proto"])
@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_there_is_one_class_for_a_message(first: str, implementation: str) -> None:
    code = f"""
import sys, {first}
alone = "onnx" not in sys.modules
import onnx
from lstmconvert import onnx_proto
assert onnx_proto.ModelProto is onnx.ModelProto and onnx_proto.TensorProto is onnx.TensorProto
onnx.checker.check_node(onnx_proto.node("Relu", ["x"], ["y"], {{}}))
model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {{ y = Relu(x) }}')
assert isinstance(model, onnx_proto.ModelProto)
print(alone)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path), "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(first != "onnx")
