"""Models to torch: a state_dict, and the source of the module that it belongs to.

The archive's tensors are the state_dict of ``Model`` in the companion ``.py``. Inputs and outputs of
``forward`` are those of the source, in order and layout (batch first, features last). A stateful layer,
and with ``options.states`` every recurrent layer, has its state outside: an optional argument
``<layer>_state`` of the form that ``nn.LSTM`` takes, and its new value after the results. A second use of
a stateful layer goes on from the state in which the first ended.

A model without topology is a state_dict alone, of torch's own layers under the names of the source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field
from types import MappingProxyType

from lstmconvert import layout as layouts
from lstmconvert import lowering, mapping, shapes
from lstmconvert.canonical import Merge, RecurrentLayer, Returns
from lstmconvert.containers import Archive
from lstmconvert.errors import Usage
from lstmconvert.frameworks.pytorch import record, recurrent
from lstmconvert.frameworks.pytorch.declared import (
    INITIAL,
    Declared,
    Place,
    declare,
    fused_layout,
    fused_tensors,
)
from lstmconvert.frameworks.pytorch.module import Argument, Module, local_name, used_by
from lstmconvert.frameworks.pytorch.names import RESERVED_VARIABLES, Names
from lstmconvert.frameworks.pytorch.reader import PREFIX
from lstmconvert.frameworks.pytorch.use import Held, Use
from lstmconvert.frameworks.pytorch.values import Value, is_floating
from lstmconvert.model import Call, Model, OperationLayer
from lstmconvert.operations import Operation
from lstmconvert.options import WriteOptions
from lstmconvert.shapes import Shape
from lstmconvert.stacks import STACK
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass

TITLE = "A PyTorch model, written by lstmconvert; its weights are in the file beside it."
_CONTAINERS = ("safetensors", "torch_archive")
_GENERIC_INPUTS = ("input", "inputs", "input_layer", "keras_tensor", "x")


def write(model: Model, container: str, options: WriteOptions) -> Archive:
    """The state_dict of a model, and where its topology is known the source of its module.

    Args:
        model: the model.
        container: ``safetensors`` or ``torch_archive``.
        options: ``states`` and ``weights_only`` act; ``dtype`` has to be what the model has.

    Raises:
        NotRepresentable: naming the layer and the reason.
        Usage: when an option cannot be heeded.
    """
    if container not in (*_CONTAINERS, "npz"):
        raise Usage(
            "models of PyTorch are not written to this", found=container, expected=", ".join(_CONTAINERS)
        )
    check_dtype(model, options)
    if model.calls is None:
        if options.states:
            raise Usage(
                "the source does not say how its layers are wired, so there is no module to have states"
            )
        return Archive(MappingProxyType(bare_tensors(model)))
    written = Written.of(model, states=options.states)
    companions = {} if options.weights_only else {".py": written.source(container)}
    return Archive(
        MappingProxyType(written.module.tensors),
        MappingProxyType({record.KEY: written.record()}),
        MappingProxyType(companions),
    )


def dtypes(model: Model) -> set[str]:
    """NumPy's names of the dtypes of all floating weights."""
    found = {layer.dtype.name for layer in model.recurrent.values()}
    for layer in model.layers.values():
        if isinstance(layer, OperationLayer):
            found |= {weight.dtype.name for weight in layer.weights.values()}
    return {dtype for dtype in found if is_floating(dtype)}


def check_dtype(model: Model, options: WriteOptions) -> None:
    """Refuse a dtype that the weights do not have; casting is lowering's work."""
    other = dtypes(model) - {options.dtype}
    if options.dtype is not None and other:
        raise Usage(
            "the model has weights of another dtype", found=", ".join(sorted(other)), expected=options.dtype
        )


# Weights alone.


def bare_tensors(model: Model) -> dict[str, Lazy]:
    """The state_dict of layers that nothing wires, stacks of the source as stacks again.

    Raises:
        NotRepresentable: naming a layer that no layer of torch holds.
    """
    tensors: dict[str, Lazy] = {}
    groups: dict[str, list[RecurrentLayer]] = {}
    for layer in model.recurrent.values():
        groups.setdefault(layer.notes.get(STACK, layer.name), []).append(layer)
    for name, stack in groups.items():
        whole = _as_one(stack)
        for prefix, part in [(name, stack)] if whole else [(layer.name, [layer]) for layer in stack]:
            layout = lowering.layout_for(mapping.load("pytorch"), part[0])
            before = part[0].notes.get(PREFIX, f"{prefix}.")
            tensors |= {before + local: lazy for local, lazy in fused_tensors(part, layout).items()}
    known = {
        layout.operation: layout for layout in mapping.load("pytorch").layouts.values() if layout.operation
    }
    for key, neighbour in model.layers.items():
        if isinstance(neighbour, OperationLayer) and neighbour.weights:
            found = known.get(_operation_name(neighbour.operation))
            parts = layouts.pack_operation(found, neighbour.weights) if found else neighbour.weights
            tensors |= {f"{key}.{local}": lazy for local, lazy in parts.items()}
    return tensors


def _operation_name(operation: Operation) -> str:
    kinds = {
        mapping.operation_class(layout.operation): layout.operation
        for layout in mapping.load("pytorch").layouts.values()
        if layout.operation
    }
    return kinds.get(type(operation), "")


def _as_one(stack: Sequence[RecurrentLayer]) -> bool:
    """Whether one module of torch with several layers can hold a stack."""
    first = stack[0]
    layout = fused_layout(first)
    if (
        len(stack) == 1
        or layout is None
        or any(d.weights.has(part) for d in first.directions for part in INITIAL)
    ):
        return False
    keys = {tuple(d.weights) for layer in stack for d in layer.directions}
    return len(keys) == 1 and all(
        layer.equations == first.equations
        and (layer.direction, layer.hidden_size, layer.recurrent_size)
        == (first.direction, first.hidden_size, first.recurrent_size)
        and layer.direction != "reverse"
        and fused_layout(layer) == layout
        and layer.dtype == first.dtype
        and (number == 0 or layer.input_size == stack[number - 1].recurrent_size * len(first.directions))
        for number, layer in enumerate(stack)
    )


# The module.


@dataclass(slots=True, eq=False)
class Written:
    """A model whose module has been written.

    Attributes:
        module: the module.
        states: whether all states are outside.
        masked: keys of the layers that heed a mask where they are called.
        declared: recurrent layers, by the key of the first of a stack.
        held: where the weights of the other layers are.
    """

    model: Model
    module: Module
    states: bool
    shapes: Mapping[str, Shape]
    stacks: Mapping[int, tuple[int, ...]]
    masked: frozenset[str]
    declared: dict[str, Declared] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    places: dict[str, tuple[Place, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model, *, states: bool) -> Written:
        """Write the module of a model whose topology is known."""
        stacked = _stacked_calls(model, states=states)
        masked = frozenset(call.layer for call in model.calls or () if call.mask)
        written = cls(model, Module(model), states, shapes.infer(model), stacked, masked)
        written._write()
        return written

    def _write(self) -> None:
        module = self.module
        self._name_inputs()
        module.start(_uses(self.model))
        inside = {index for indices in self.stacks.values() for index in indices[:-1]}
        for index, call in enumerate(self.model.calls or ()):
            if index not in inside:
                self._call(index, call)
        self._declare_the_rest()
        self._return()

    def _name_inputs(self) -> None:
        names = Names(RESERVED_VARIABLES)
        ports = self.model.inputs
        for port in ports:
            name = local_name(port.name)
            if len(ports) == 1 and name.rstrip("_0123456789") in _GENERIC_INPUTS:
                name = "x"
            name = names.take(name)
            self.module.arguments.append(Argument(name))
            self.module.values[port.value] = Value(name, port.shape, port.dtype)

    def _call(self, index: int, call: Call) -> None:
        layer = self.model.layers[call.layer]
        module = self.module
        group = self.stacks.get(index, (index,))
        calls = [(self.model.calls or ())[n] for n in group]
        first = calls[0]
        module.begin(Call(call.layer, first.inputs, call.outputs, first.mask, first.initial_state))
        inputs = tuple(module.values[name] for name in first.inputs)
        mask = None if first.mask is None else module.values[first.mask]
        if isinstance(layer, RecurrentLayer):
            declared = self._declare(calls)
            outside = self.states or layer.sequence.stateful
            results = recurrent.write(
                module, declared, layer, first_outputs(first, call), inputs[0], mask, states=outside
            )
        else:
            if not any(module.is_used(name) for name in call.outputs):
                return
            from lstmconvert.frameworks.pytorch import neighbours  # felt where there are none

            held = self.held.setdefault(call.layer, Held())
            use = Use(module, call.layer, layer.weights, inputs, mask, held)
            results = neighbours.write(use, layer.operation, [self.shapes[name] for name in call.outputs])
        module.bind(call.outputs, results, local_name(call.layer))

    def _declare(self, calls: Sequence[Call]) -> Declared:
        """The layers of a call, or of the calls of a stack, made attributes when they are first met."""
        key = calls[0].layer
        if key not in self.declared:
            layers = [self.model.layers[call.layer] for call in calls]
            stack = [layer for layer in layers if isinstance(layer, RecurrentLayer)]
            name = stack[0].notes.get(STACK, key) if len(stack) > 1 else key
            declared = declare(self.module, name, stack, masked=key in self.masked)
            self.declared[key] = declared
            for call, places in zip(calls, declared.places, strict=True):
                self.places[call.layer] = places
        return self.declared[key]

    def _declare_the_rest(self) -> None:
        """Recurrent layers that nothing calls stay in the file."""
        called = {call.layer for call in self.model.calls or ()}
        for key in self.model.recurrent:
            if key not in called:
                self._declare([Call(key, (), ())])

    def _return(self) -> None:
        module = self.module
        results = []
        for port in self.model.outputs:
            value = module.values[port.value].last()
            results.append(value.in_dtype(port.dtype).code)
        results += module.returned_states
        last = module.forward[-1] if module.forward else ""
        start = f"{results[0]} = "
        if len(results) == 1 and last.startswith(start) and not last.startswith(" "):
            module.forward[-1] = f"return {last.removeprefix(start)}"
        else:
            module.line(f"return {', '.join(results)}")

    # What is written to files.

    def source(self, container: str) -> str:
        """The text of the ``.py``."""
        load, imports = _load(container, dtypes(self.model))
        return self.module.text(TITLE, load, imports)

    def record(self) -> str:
        """What the state_dict cannot say of the model, as JSON."""
        return record.dumps(self.model, self.places, self.held)


def first_outputs(first: Call, last: Call) -> Call:
    """One call for a stack: what goes into its first layer, what comes out of its last."""
    return Call(last.layer, first.inputs, last.outputs, first.mask, first.initial_state)


def _uses(model: Model) -> Counter[str]:
    """How often each value is used."""
    uses = Counter(name for call in model.calls or () for name in used_by(call))
    uses.update(port.value for port in model.outputs)
    return uses


def _stacked_calls(model: Model, *, states: bool) -> dict[int, tuple[int, ...]]:
    """Calls that one module of torch serves together: index of the last to the indices of all.

    Only layers that were one stack in their source become one again.
    """
    calls = model.calls or ()
    uses = _uses(model)
    times = Counter(call.layer for call in calls)
    found: dict[int, tuple[int, ...]] = {}
    index = 0
    while index < len(calls):
        group = [index]
        while _follows(model, calls, group, uses, times):
            group.append(group[-1] + 1)
        layers = [model.layers[calls[n].layer] for n in group]
        stack = [layer for layer in layers if isinstance(layer, RecurrentLayer)]
        stateful = states or any(layer.sequence.stateful for layer in stack)
        if len(group) > 1 and not stateful and _as_one(stack):
            found[group[-1]] = tuple(group)
        index = group[-1] + 1
    return found


def _follows(
    model: Model, calls: Sequence[Call], group: Sequence[int], uses: Counter[str], times: Counter[str]
) -> bool:
    """Whether the next call is the next layer of the same stack, fed by this one alone."""
    index = group[-1]
    if index + 1 >= len(calls):
        return False
    here, there = calls[index], calls[index + 1]
    layer, other = model.layers[here.layer], model.layers[there.layer]
    return (
        isinstance(layer, RecurrentLayer)
        and isinstance(other, RecurrentLayer)
        and STACK in layer.notes
        and layer.notes[STACK] == other.notes.get(STACK)
        and layer.sequence.returns is Returns.SEQUENCE
        and not layer.sequence.return_state
        and (len(layer.directions) == 1 or layer.sequence.merge is Merge.CONCAT)
        and there.inputs == here.outputs[:1]
        and uses[here.outputs[0]] == 1
        and here.mask is None
        and there.mask is None
        and not here.initial_state
        and not there.initial_state
        and times[here.layer] == times[there.layer] == 1
    )


def _load(container: str, kinds: set[str]) -> tuple[list[str], list[str]]:
    """The method that loads the weights, and what it imports."""
    own = kinds - {"float32"}
    assign = ", assign=True" if len(kinds) > 1 and own else ""
    cast = f".to(torch.{next(iter(own))})" if own and len(kinds) == 1 else ""
    if container == "torch_archive":
        tensors, imports = "torch.load(path, weights_only=True)", []
    else:
        tensors, imports = "load_file(path)", ["from safetensors.torch import load_file"]
    lines = [
        "@classmethod",
        "def load(cls, path):",
        '    """The model with its weights, in eval mode."""',
        f"    model = cls(){cast}",
        f"    model.load_state_dict({tensors}{assign})",
        "    return model.eval()",
    ]
    return lines, imports
