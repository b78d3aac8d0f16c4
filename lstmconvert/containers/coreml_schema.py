"""The messages of Core ML's specification that recurrent layers and their surroundings are read from.

Each message: field number to name and kind. Kinds are ``int``, ``float``, ``text``, ``ints``, ``numbers``
(32 bit floats in a row), ``bytes``, or the name of a message; ``*`` marks a repeated field.

Source: the protobuf descriptors of coremltools 9.0 (Model, NeuralNetwork, MIL).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Schema = Mapping[str, Mapping[int, tuple[str, str]]]


def _message(text: str) -> Mapping[int, tuple[str, str]]:
    fields = (item.split() for item in text.split(","))
    return MappingProxyType({int(number): (name, kind) for number, name, kind in fields})


_GATES = ("inputGate", "forgetGate", "blockInput", "outputGate")
_LSTM_WEIGHTS = ",".join(
    f"{start + n} {gate}{part} Weights"
    for start, part in ((1, "WeightMatrix"), (20, "RecursionMatrix"), (40, "BiasVector"))
    for n, gate in enumerate(_GATES)
)
_GRU_WEIGHTS = ",".join(
    f"{start + n} {gate}{part} Weights"
    for start, part in ((30, "WeightMatrix"), (50, "RecursionMatrix"), (70, "BiasVector"))
    for n, gate in enumerate(("updateGate", "resetGate", "outputGate"))
)
_ACTIVATIONS = (
    "5 linear Numbers,10 ReLU Numbers,15 leakyReLU Numbers,20 thresholdedReLU Numbers,25 PReLU Numbers,"
    "30 tanh Numbers,31 scaledTanh Numbers,40 sigmoid Numbers,41 sigmoidHard Numbers,50 ELU Numbers,"
    "60 softsign Numbers,70 softplus Numbers,71 parametricSoftplus Numbers"
)
_SIZES = "1 inputVectorSize int,2 outputVectorSize int"

SCHEMA: Schema = MappingProxyType(
    {
        "Model": _message(
            "1 specificationVersion int,2 description Description,303 neuralNetworkRegressor Network,"
            "403 neuralNetworkClassifier Network,500 neuralNetwork Network,502 mlProgram Program"
        ),
        "Description": _message("1 input Feature*,10 output Feature*,100 metadata Metadata"),
        "Feature": _message("1 name text,3 type FeatureType"),
        "FeatureType": _message("5 multiArrayType ArrayType,1000 isOptional int"),
        "ArrayType": _message("1 shape ints,2 dataType int,31 shapeRange ShapeRange"),
        "ShapeRange": _message("1 sizeRanges SizeRange*"),
        "SizeRange": _message("1 lowerBound int,2 upperBound int"),
        "Metadata": _message("100 userDefined TextEntry*"),
        "TextEntry": _message("1 key text,2 value text"),
        "Network": _message("1 layers Layer*"),
        "Layer": _message(
            "1 name text,2 input text*,3 output text*,400 simpleRecurrent Simple,410 gru Gru,"
            "420 uniDirectionalLSTM Lstm,430 biDirectionalLSTM BiLstm"
        ),
        "Simple": _message(
            f"{_SIZES},10 activations Activation*,15 sequenceOutput int,20 hasBiasVectors int,"
            "30 weightMatrix Weights,31 recursionMatrix Weights,32 biasVector Weights,100 reverseInput int"
        ),
        "Gru": _message(
            f"{_SIZES},10 activations Activation*,15 sequenceOutput int,20 hasBiasVectors int,{_GRU_WEIGHTS},"
            "100 reverseInput int"
        ),
        "Lstm": _message(
            f"{_SIZES},10 activations Activation*,15 params LstmOptions,20 weightParams LstmWeights,"
            "100 reverseInput int"
        ),
        "BiLstm": _message(
            f"{_SIZES},10 activations Activation*,11 activationsBackward Activation*,15 params LstmOptions,"
            "20 weightParams LstmWeights*"
        ),
        "LstmOptions": _message(
            "10 sequenceOutput int,20 hasBiasVectors int,30 forgetBias int,40 hasPeepholeVectors int,"
            "50 coupledInputAndForgetGate int,60 cellClipThreshold float"
        ),
        "LstmWeights": _message(
            f"{_LSTM_WEIGHTS},60 inputGatePeepholeVector Weights,61 forgetGatePeepholeVector Weights,"
            "62 outputGatePeepholeVector Weights"
        ),
        "Weights": _message(
            "1 floatValue numbers,2 float16Value bytes,30 rawValue bytes,31 int8RawValue bytes,"
            "40 quantization Quantization"
        ),
        "Quantization": _message("1 numberOfBits int,101 linearQuantization Linear,102 lookupTable Table"),
        "Linear": _message("1 scale numbers,2 bias numbers"),
        "Table": _message("1 floatValue numbers"),
        "Activation": _message(_ACTIVATIONS),
        "Numbers": _message("1 alpha float,2 beta float"),
        # Programs (MIL).
        "Program": _message("1 version int,2 functions FunctionEntry*"),
        "FunctionEntry": _message("1 key text,2 value Function"),
        "Function": _message("1 inputs NamedType*,2 opset text,3 block_specializations BlockEntry*"),
        "BlockEntry": _message("1 key text,2 value Block"),
        "Block": _message("2 outputs text*,3 operations Operation*"),
        "Operation": _message(
            "1 type text,2 inputs InputEntry*,3 outputs NamedType*,5 attributes ValueEntry*"
        ),
        "InputEntry": _message("1 key text,2 value Argument"),
        "Argument": _message("1 arguments Binding*"),
        "Binding": _message("1 name text,2 value Value"),
        "ValueEntry": _message("1 key text,2 value Value"),
        "NamedType": _message("1 name text,2 type ValueType"),
        "Value": _message("2 type ValueType,3 immediateValue Immediate,5 blobFileValue Blob"),
        "Immediate": _message("1 tensor TensorValue"),
        "Blob": _message("1 fileName text,2 offset int"),
        "TensorValue": _message(
            "1 floats Floats,2 ints Ints,3 bools Ints,4 strings Strings,5 longInts Ints,7 bytes Bytes"
        ),
        "Floats": _message("1 values numbers"),
        "Ints": _message("1 values ints"),
        "Strings": _message("1 values text*"),
        "Bytes": _message("1 values bytes"),
        "ValueType": _message("1 tensorType TensorType"),
        "TensorType": _message("1 dataType int,2 rank int,3 dimensions Dimension*"),
        "Dimension": _message("1 constant Constant,2 unknown Unknown"),
        "Constant": _message("1 size int"),
        "Unknown": _message("1 variadic int"),
    }
)
"""Fields that are not here are passed over; of a layer, the number of the last one says what it is."""
