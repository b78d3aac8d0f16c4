"""The schema of LiteRT's model files, as far as it is read or written here, and the operators' codes.

Source: schema.fbs of LiteRT (release 2.3.0); field and union numbers are its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lstmconvert.containers.flatbuffer import Schema


def _fields(text: str) -> Mapping[str, tuple[int, str]]:
    """``NUMBER NAME TYPE``, one after the other, separated by commas."""
    found = {}
    for entry in text.split(","):
        number, name, kind = entry.split(maxsplit=2)
        found[name] = (int(number), kind.strip())
    return MappingProxyType(found)


SCHEMA = Schema(
    MappingProxyType(
        {
            "Model": _fields(
                "0 version uint32, 1 operator_codes [OperatorCode], 2 subgraphs [SubGraph],"
                "3 description string, 4 buffers [Buffer], 6 metadata [Metadata],"
                "7 signature_defs [SignatureDef]"
            ),
            "OperatorCode": _fields(
                "0 deprecated_builtin_code int8, 1 custom_code string, 2 version int32=1,"
                "3 builtin_code int32"
            ),
            "SubGraph": _fields(
                "0 tensors [Tensor], 1 inputs [int32], 2 outputs [int32], 3 operators [Operator],"
                "4 name string"
            ),
            "Tensor": _fields(
                "0 shape [int32], 1 type int8, 2 buffer uint32, 3 name string,"
                "4 quantization QuantizationParameters, 5 is_variable bool, 6 sparsity Sparsity,"
                "7 shape_signature [int32], 8 has_rank bool, 10 external_buffer uint32"
            ),
            "QuantizationParameters": _fields(
                "2 scale [float32], 3 zero_point [int64], 4 details_type uint8, 6 quantized_dimension int32"
            ),
            "Sparsity": _fields("0 traversal_order [int32]"),
            "Operator": _fields(
                "0 opcode_index uint32, 1 inputs [int32], 2 outputs [int32], 3 options_type uint8,"
                "4 options union options_type, 8 intermediates [int32]"
            ),
            "Buffer": _fields("0 data range, 1 offset uint64, 2 size uint64"),
            "Metadata": _fields("0 name string, 1 buffer uint32"),
            "SignatureDef": _fields(
                "0 inputs [TensorMap], 1 outputs [TensorMap], 2 signature_key string, 4 subgraph_index uint32"
            ),
            "TensorMap": _fields("0 name string, 1 tensor_index uint32"),
            "Conv2D": _fields(
                "0 padding int8, 1 stride_w int32, 2 stride_h int32, 3 activation int8,"
                "4 dilation_w int32=1, 5 dilation_h int32=1"
            ),
            "Pool2D": _fields(
                "0 padding int8, 1 stride_w int32, 2 stride_h int32, 3 filter_width int32,"
                "4 filter_height int32, 5 activation int8"
            ),
            "RNN": _fields("0 activation int8"),
            "FullyConnected": _fields("0 activation int8, 1 weights_format int8, 2 keep_num_dims bool"),
            "Softmax": _fields("0 beta float32"),
            "Concatenation": _fields("0 axis int32, 1 activation int8"),
            "Activated": _fields("0 activation int8"),
            "LSTM": _fields("0 activation int8, 1 cell_clip float32, 2 proj_clip float32,"
                "3 kernel_type int8"),
            "Reshape": _fields("0 new_shape [int32]"),
            "Gather": _fields("0 axis int32, 1 batch_dims int32"),
            "Empty": MappingProxyType({}),
            "Reducer": _fields("0 keep_dims bool"),
            "Squeeze": _fields("0 squeeze_dims [int32]"),
            "SequenceRNN": _fields("0 time_major bool, 1 activation int8"),
            "StridedSlice": _fields(
                "0 begin_mask int32, 1 end_mask int32, 2 ellipsis_mask int32, 3 new_axis_mask int32,"
                "4 shrink_axis_mask int32, 5 offset bool"
            ),
            "Cast": _fields("0 in_type int8, 1 out_type int8"),
            "BidirectionalSequenceLSTM": _fields(
                "0 activation int8, 1 cell_clip float32, 2 proj_clip float32, 3 merge_outputs bool,"
                "4 time_major bool=1"
            ),
            "BidirectionalSequenceRNN": _fields("0 time_major bool, 1 activation int8, 2 merge_outputs bool"),
            "UnidirectionalSequenceLSTM": _fields(
                "0 activation int8, 1 cell_clip float32, 2 proj_clip float32, 3 time_major bool,"
                "5 diagonal_recurrent_tensors bool"
            ),
            "LeakyRelu": _fields("0 alpha float32"),
            "Pack": _fields("0 count int32, 1 axis int32"),
        }
    ),
    MappingProxyType(
        {
            1: "Conv2D", 5: "Pool2D", 7: "RNN", 8: "FullyConnected", 9: "Softmax", 10: "Concatenation",
            11: "Activated", 14: "LSTM",
            17: "Reshape", 21: "Activated", 23: "Gather", 26: "Empty", 27: "Reducer", 28: "Activated",
            29: "Activated", 30: "Squeeze", 31: "SequenceRNN", 32: "StridedSlice", 37: "Cast", 38: "Empty",
            59: "Pack", 69: "BidirectionalSequenceLSTM", 70: "BidirectionalSequenceRNN",
            71: "UnidirectionalSequenceLSTM", 73: "Empty", 75: "LeakyRelu", 81: "Empty",
        }
    ),
)  # fmt: skip

_OPERATORS = """
ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE
EMBEDDING_LOOKUP FLOOR FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D
LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1
RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM
CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND
SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM
CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE
SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW
ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK
REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR
LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS
WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM
BATCH_MATMUL PLACEHOLDER CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS
HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE
READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS
"""
OPERATORS: Sequence[str] = tuple(_OPERATORS.split())
"""The operators in the order of their codes, as far as converters for CPUs write them."""
