"""LiteRT as a judge: files made with the official schema's own classes, run by its interpreter.

``ai_edge_litert.schema_py_generated`` and the ``flatbuffers`` package write the sources, so that nothing of
lstmconvert's reader and writer is in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.matrix.judges import HIDDEN, INPUT, Case, Judge, Sample, draw, inputs

Array = np.ndarray[Any, Any]
GATES = ("input", "forget", "cell", "output")
PROJECTED = 2


class Builder:
    """A graph of one subgraph, operator by operator."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.buffers = [schema.BufferT()]
        self.codes: list[int] = []

    def tensor(
        self,
        shape: tuple[int, ...],
        content: Array | None = None,
        *,
        variable: bool = False,
        scale: list[float] | None = None,
        name: str = "",
    ) -> int:
        """A tensor; -1 in its shape is free."""
        made = self.schema.TensorT()
        made.shape = [max(1, n) for n in shape]
        if -1 in shape:
            made.shapeSignature = list(shape)
        made.hasRank, made.isVariable = True, variable
        made.name = name or f"tensor{len(self.graph.tensors)}"
        made.buffer = 0
        types = self.schema.TensorType
        made.type = types.FLOAT32
        if content is not None:
            made.type = getattr(types, content.dtype.name.upper())
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(content.tobytes(), np.uint8)
            self.buffers.append(buffer)
            made.buffer = len(self.buffers) - 1
        if scale is not None:
            made.quantization = self.schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = scale, [0] * len(scale)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def add(self, kind: str, given: list[int], given_back: list[int], options: str = "", **told: Any) -> None:
        """An operator, and its options by the names of the schema's classes."""
        operator = self.schema.OperatorT()
        code = getattr(self.schema.BuiltinOperator, kind)
        if code not in self.codes:
            self.codes.append(code)
        operator.opcodeIndex = self.codes.index(code)
        operator.inputs, operator.outputs = given, given_back
        if options:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.schema, f"{options}T")()
            for key, value in told.items():
                assert hasattr(operator.builtinOptions, key)
                setattr(operator.builtinOptions, key, value)
        self.graph.operators.append(operator)

    def save(self, path: Path, given: list[int], given_back: list[int]) -> Path:
        """Write the graph."""
        import flatbuffers

        model = self.schema.ModelT()
        model.version, model.buffers, model.subgraphs = 3, self.buffers, [self.graph]
        self.graph.inputs, self.graph.outputs = given, given_back
        model.operatorCodes = []
        for code in self.codes:
            made = self.schema.OperatorCodeT()
            made.builtinCode, made.deprecatedBuiltinCode, made.version = code, min(code, 127), 1
            model.operatorCodes.append(made)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path


def lstm_weights(made: Builder, rng: np.random.Generator, width: int, case: Case) -> list[int]:
    """The weights and biases of an LSTM's direction, in the order of the kernels' inputs."""
    state = PROJECTED if case.option == "projection" else HIDDEN
    found = [made.tensor((HIDDEN, width), draw(rng, (HIDDEN, width))) for _ in GATES]
    found += [made.tensor((HIDDEN, state), draw(rng, (HIDDEN, state))) for _ in GATES]
    if case.option == "peephole":
        found += [made.tensor((HIDDEN,), draw(rng, (HIDDEN,))) for _ in range(3)]
    else:
        found += [-1, -1, -1]
    found += [made.tensor((HIDDEN,), draw(rng, (HIDDEN,))) for _ in GATES]
    if case.option == "projection":
        found += [made.tensor((PROJECTED, HIDDEN), draw(rng, (PROJECTED, HIDDEN))), -1]
    else:
        found += [-1, -1]
    return found


def rnn_weights(made: Builder, rng: np.random.Generator, width: int) -> list[int]:
    shapes = ((HIDDEN, width), (HIDDEN, HIDDEN), (HIDDEN,))
    return [made.tensor(shape, draw(rng, shape)) for shape in shapes]


def layer(made: Builder, rng: np.random.Generator, case: Case, x: int, width: int, batch: int) -> int:
    """One fused operator; the states of its variables have the sizes of the batch."""
    ways = 2 if case.bidirectional else 1
    function = made.schema.ActivationFunctionType
    told: dict[str, Any] = {
        "fusedActivationFunction": function.RELU if case.option == "relu" else function.TANH,
        "timeMajor": False,
    }
    # Batch-major, with joined outputs and several sequences, the LSTM's kernel gives other numbers in every run.
    apart = ways == 2 and case.cell == "lstm"
    if ways == 2:
        told["mergeOutputs"] = not apart
    state = PROJECTED if case.option == "projection" else HIDDEN
    operands = [x]
    name = "BIDIRECTIONAL_SEQUENCE_" if ways == 2 else "UNIDIRECTIONAL_SEQUENCE_"
    title = "BidirectionalSequence" if ways == 2 else "UnidirectionalSequence"
    if case.cell == "lstm":
        for _ in range(ways):
            operands += lstm_weights(made, rng, width, case)
        for _ in range(ways):
            operands += [made.tensor((batch, n), variable=True) for n in (state, HIDDEN)]
        if ways == 2:
            operands += [-1] * 9
        if case.option == "cell_clip":
            told["cellClip"] = 0.8
        name, title = f"{name}LSTM", f"{title}LSTMOptions"
    else:
        for _ in range(ways):
            operands += rnn_weights(made, rng, width)
            operands.append(made.tensor((batch, HIDDEN), variable=True))
        if ways == 2:
            operands += [-1] * 3
        name, title = f"{name}RNN", "BidirectionalSequenceRNNOptions" if ways == 2 else "SequenceRNNOptions"
    y = made.tensor((batch, -1, state * ways), name=f"layer{len(made.graph.operators)}")
    if not apart:
        made.add(name, operands, [y], title, **told)
        return y
    both = [made.tensor((batch, -1, state)) for _ in range(2)]
    made.add(name, operands, both, title, **told)
    made.add("CONCATENATION", both, [y], "ConcatenationOptions", axis=2)
    return y


def make_tflite(case: Case, folder: Path) -> Sample:
    rng = np.random.default_rng(case.seed)
    given = inputs(case)
    made = Builder()
    x = made.tensor((given.shape[0], -1, INPUT), name="x")
    value, width = x, INPUT
    for _ in range(case.layers):
        value = layer(made, rng, case, value, width, given.shape[0])
        width = made.graph.tensors[value].shape[-1]
    path = made.save(folder / "source.tflite", [x], [value])
    return Sample(path, given, run_tflite(path, given, case))


def interpreter_of(path: Path, *shapes: tuple[int, ...]) -> Any:
    """An interpreter whose inputs have these shapes."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    for entry, shape in zip(interpreter.get_input_details(), shapes, strict=True):
        interpreter.resize_tensor_input(entry["index"], shape)
    interpreter.allocate_tensors()
    return interpreter


def ran(path: Path, *given: Array) -> list[Array]:
    """All outputs of the first run after the states are reset."""
    interpreter = interpreter_of(path, *[array.shape for array in given])
    for entry, array in zip(interpreter.get_input_details(), given, strict=True):
        interpreter.set_tensor(entry["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(entry["index"]) for entry in interpreter.get_output_details()]


def run_tflite(path: Path, x: Array, case: Case) -> Array:
    return ran(path, x)[0]


def weights_tflite(path: Path) -> list[Array]:
    """The constants that the recurrent operators take, in the order of the operators."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (graph,) = model.subgraphs
    found = []
    for operator in graph.operators:
        options = type(operator.builtinOptions).__name__
        if "SequenceLSTM" not in options and "SequenceRNN" not in options:
            continue
        for index in operator.inputs[1:]:
            tensor = graph.tensors[index]
            data = model.buffers[tensor.buffer].data
            if index >= 0 and data is not None and len(data):
                found.append(np.array(data, np.uint8).view(np.float32).reshape(tensor.shape))
    return found


def refused(case: Case, source: str) -> bool:
    """What its kernels cannot hold."""
    return case.cell == "gru" or case.option in ("hard_sigmoid", "clip")


JUDGES = (
    Judge(
        "tflite", ".tflite",
        {
            "lstm": ("plain", "projection", "peephole", "cell_clip", "relu"),
            "rnn": ("plain", "relu"),
        },
        make_tflite, run_tflite, weights_tflite,
        always_bias=True,
    ),
)  # fmt: skip
