"""Models to ONNX: one graph whose nodes bear the names of the source's layers.

What the archive holds: ``tensors``, the weights under the names of the graph's initializers, and in
``metadata["model"]`` the ``onnx.ModelProto`` in which those initializers have name, shape and type but
no data; small constants are inline.

Ports keep the source's names, order, layout and dtype; the batch is free, and so is time where the
source leaves it free. A stateful layer, and with ``options.states`` every recurrent layer, has its states
outside: inputs ``<layer>_initial_h`` and ``<layer>_initial_c``, outputs ``<layer>_h_n`` and
``<layer>_c_n``, each (directions, batch, size), after the source's own ports. Where the initial state
comes from within the model there is no input for it. A second use of a layer has ``<layer>_2_...``; of a
stateful layer it goes on from the state in which the first use ended.

float64 and bfloat16 models are written as such: the operators have these types (bfloat16 from opset 22),
although ONNX Runtime refuses recurrent nodes of either on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lstmconvert import stacks
from lstmconvert.canonical import RecurrentLayer
from lstmconvert.containers import Archive
from lstmconvert.errors import NotRepresentable, Usage
from lstmconvert.frameworks.onnx import operations, recurrent
from lstmconvert.frameworks.onnx.graph import Dimension, Graph, Value, element_type, in_order, is_floating
from lstmconvert.frameworks.onnx.use import Use
from lstmconvert.gates import Cell
from lstmconvert.model import Call, Model, Port
from lstmconvert.onnx_proto import ModelProto, OperatorSetIdProto, ValueInfoProto, value_info
from lstmconvert.options import WriteOptions

DEFAULT_OPSET = 17
_BFLOAT16_OPSET = 22
_IR_VERSIONS: Mapping[int, int] = MappingProxyType(
    {14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
)
"""The IR version that came with each opset: the oldest reader that knows the one knows the other."""

_STATES = ("h", "c")


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """The ONNX archive of a model.

    Args:
        model: the model; one without topology has to be a single recurrent stack.
        container: ``onnx_file``.
        options: ``opset`` (14 to 22) and ``states`` act; ``dtype`` has to be what the model has.

    Raises:
        NotRepresentable: naming the layer and the reason.
        Usage: when an option cannot be heeded.
    """
    if container != "onnx_file":
        raise Usage("ONNX models are written to ONNX files only", found=container, expected="onnx_file")
    model = _with_topology(model)
    _check_dtype(model, options)
    return _ModelWriter(model, _opset(model, options), options).archive()


def _with_topology(model: Model) -> Model:
    if model.calls is not None:
        return model
    found = stacks.split(model)
    if len(found) != 1:
        raise NotRepresentable(
            "the source holds weights without the graph around them, and ONNX files are graphs",
            reasons=[
                f"it has {len(found)} recurrent stacks: {', '.join(found)}"
                if found
                else "it has no recurrent layer"
            ],
            remedy="Name one layer (--layer), or write to a folder (-o DIR).",
        )
    return next(iter(found.values()))


def _dtypes(model: Model) -> set[str]:
    dtypes = set()
    for layer in model.layers.values():
        if isinstance(layer, RecurrentLayer):
            dtypes.add(layer.dtype.name)
        else:
            dtypes |= {weight.dtype.name for weight in layer.weights.values()}
    return {dtype for dtype in dtypes if is_floating(dtype)}


def _check_dtype(model: Model, options: WriteOptions) -> None:
    other = _dtypes(model) - {options.dtype}
    if options.dtype is not None and other:
        raise Usage(
            "the model has weights of another dtype", found=", ".join(sorted(other)), expected=options.dtype
        )


def _opset(model: Model, options: WriteOptions) -> int:
    needs_newest = "bfloat16" in _dtypes(model)
    opset = options.opset or (_BFLOAT16_OPSET if needs_newest else DEFAULT_OPSET)
    if opset not in _IR_VERSIONS:
        known = f"{min(_IR_VERSIONS)} to {max(_IR_VERSIONS)}"
        raise Usage("this opset is not written", found=opset, expected=known)
    if needs_newest and opset < _BFLOAT16_OPSET:
        raise NotRepresentable(
            f"opset {opset} has no recurrent operators of bfloat16",
            remedy=f"Use --opset {_BFLOAT16_OPSET}, or --dtype float32.",
        )
    return opset


class _ModelWriter:
    """A model on its way into a graph."""

    def __init__(self, model: Model, opset: int, options: WriteOptions) -> None:
        self.model = model
        self.options = options
        self.opset = opset
        self.inputs: list[ValueInfoProto] = []
        self.outputs: dict[str, tuple[str, ValueInfoProto]] = {}
        self.values: dict[str, Value] = {}
        self.carried: dict[str, tuple[str, ...]] = {}
        self.taken = {port.name for port in (*model.inputs, *model.outputs)}
        self.graph = Graph(opset, self.taken)

    def archive(self) -> Archive:
        free = [port.name for port in self.model.inputs if len(port.shape) > 1 and port.shape[1] is None]
        for port in self.model.inputs:
            self._input(port, only_free_time=len(free) == 1)
        states: dict[str, tuple[str, ValueInfoProto]] = {}
        for call in self.model.calls or ():
            layer = self.model.layers[call.layer]
            self.graph.enter(call.layer)
            if isinstance(layer, RecurrentLayer):
                given = self._recurrent(call, layer, states)
            else:
                use = Use(self.graph, call.layer, layer.weights, self._taken_in(call), self._mask(call))
                given = operations.write(use, layer.operation)
            if len(given) < len(call.outputs):
                raise AssertionError(
                    f"layer {call.layer!r} gives {len(given)} values, {len(call.outputs)} are named"
                )
            self.values |= dict(zip(call.outputs, given, strict=False))
        for port in self.model.outputs:
            self._output(port)
        self.outputs |= states
        name = str(self.model.metadata.get("name") or "model")
        graph = self.graph.finish(name, self.inputs, self.outputs)
        proto = ModelProto(
            graph=graph,
            opset_import=[OperatorSetIdProto(domain="", version=self.opset)],
            ir_version=_IR_VERSIONS[self.opset],
            producer_name="lstmconvert",
        )
        return Archive(self.graph.weights, {"model": proto})

    # Ports.

    def _input(self, port: Port, *, only_free_time: bool) -> None:
        shape: list[Dimension] = []
        for axis, size in enumerate(port.shape):
            if axis == 0:
                shape.append("batch")
            elif size is None and axis == 1 and only_free_time:
                shape.append("time")
            elif size is None:
                shape.append(f"{port.name}_time" if axis == 1 else f"{port.name}_axis_{axis}")
            else:
                shape.append(size)
        self.inputs.append(_described(port.name, port.dtype, shape))
        self.values[port.value] = Value(port.name, tuple(shape), port.dtype, in_order(len(shape)))

    def _output(self, port: Port) -> None:
        self.graph.enter(f"{port.name}/port")
        value = self.graph.in_logical_order(self.graph.cast(self.values[port.value], port.dtype))
        name = port.name
        if name in self.outputs or name in {described.name for described in self.inputs}:
            name = self._own_name(f"{name}_output")
        shape = value.shape
        if len(shape) == len(port.shape):
            shape = tuple(
                given if given is not None or axis == 0 else stated
                for axis, (given, stated) in enumerate(zip(shape, port.shape, strict=True))
            )
        self.outputs[name] = (value.name, _described(name, port.dtype, shape))

    def _own_name(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name)
        return name

    # Calls.

    def _taken_in(self, call: Call) -> tuple[Value, ...]:
        return tuple(self.values[name] for name in call.inputs)

    def _mask(self, call: Call) -> Value | None:
        return None if call.mask is None else self.values[call.mask]

    def _recurrent(
        self, call: Call, layer: RecurrentLayer, states: dict[str, tuple[str, ValueInfoProto]]
    ) -> tuple[Value, ...]:
        outside = self.options.states or layer.sequence.stateful
        (x,) = self._taken_in(call)
        if call.initial_state:
            initial = self._joined_states(call, layer)
        elif layer.sequence.stateful and call.layer in self.carried:
            initial = self.carried[call.layer]
        elif outside:
            initial = self._state_inputs(layer)
        else:
            initial = ()
        outcome = recurrent.write(self.graph, layer, x, self._mask(call), initial)
        if layer.sequence.stateful:
            for name in _STATES:
                states.pop(f"{call.layer}_{name}_n", None)
            self.carried[call.layer] = outcome.states
        if outside:
            scope = call.layer if layer.sequence.stateful else self.graph.scope
            for kind, tensor, size in zip(
                _STATES, outcome.states, recurrent.state_sizes(layer), strict=False
            ):
                name = f"{scope}_{kind}_n"
                shape = (len(layer.directions), "batch", size)
                states[name] = (tensor, _described(name, layer.dtype.name, shape))
                self.taken.add(name)
        return outcome.outputs

    def _state_inputs(self, layer: RecurrentLayer) -> tuple[str, ...]:
        names = []
        for kind, size in zip(_STATES, recurrent.state_sizes(layer), strict=False):
            name = f"{self.graph.scope}_initial_{kind}"
            if name in self.taken:
                raise NotRepresentable(
                    f"the model has a port called {name!r} already", place=f"layer {layer.name!r}"
                )
            self.taken.add(name)
            names.append(name)
            shape = (len(layer.directions), "batch", size)
            self.inputs.append(_described(name, layer.dtype.name, shape))
        return tuple(names)

    def _joined_states(self, call: Call, layer: RecurrentLayer) -> tuple[str, ...]:
        """States (batch, size), ordered direction by direction, as (directions, batch, size) each."""
        kinds = 2 if layer.cell is Cell.LSTM else 1
        rows = []
        for name in call.initial_state:
            value = self.graph.in_logical_order(self.graph.cast(self.values[name], layer.dtype.name))
            rows.append(self.graph.add("Unsqueeze", [value.name, self.graph.integers(0)]))
        joined = []
        for kind in range(kinds):
            own = rows[kind::kinds]
            joined.append(own[0] if len(own) == 1 else self.graph.add("Concat", own, {"axis": 0}))
        return tuple(joined)


def _described(name: str, dtype: str, shape: tuple[Dimension, ...] | list[Dimension]) -> ValueInfoProto:
    return value_info(name, element_type(dtype), shape)
