"""Whole Keras models: the tree of layers, their tensors, and the wiring, as a ``Model``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from types import MappingProxyType
from typing import Any

from lstmconvert import shapes
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.frameworks.keras import neighbours
from lstmconvert.frameworks.keras.arguments import Arguments
from lstmconvert.frameworks.keras.config import CallSpec, LayerSpec, ModelSpec, Reference, read_layer
from lstmconvert.frameworks.keras.graph import Graph, Symbol, Value
from lstmconvert.frameworks.keras.layer_options import LayerOptions
from lstmconvert.frameworks.keras.masks import Given
from lstmconvert.frameworks.keras.ordering import Node, orders
from lstmconvert.frameworks.keras.recurrent import RECURRENT, Context, snake
from lstmconvert.frameworks.keras.recurrent_units import read_recurrent
from lstmconvert.frameworks.keras.stores import Owner, Store
from lstmconvert.frameworks.keras.units import (
    ChainUnit,
    CustomUnit,
    OperationUnit,
    OperatorUnit,
    Unit,
    time_distributed,
)
from lstmconvert.model import Layer, Model, Port
from lstmconvert.tensors import Lazy
from lstmconvert.values import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class _Node:
    """A layer of the tree: its config and the unit that it became, or the model that it is."""

    spec: LayerSpec
    path: str
    unit: Unit | None = None
    inner: _Tree | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Tree:
    """A model of the tree: its layers in order, without those that only say what goes in."""

    spec: ModelSpec
    nodes: Mapping[str, _Node]


def read_model(
    config: Mapping[str, Any], store: Store, context: Context, metadata: Mapping[str, Any]
) -> Model:
    """A whole model.

    Args:
        config: of the model.
        store: of its tensors.
        context: release and options.
        metadata: what the model is to remember.

    Raises:
        UnsupportedSource: naming the layer and option that cannot be read.
        BadFile: where the file contradicts itself.
    """
    spec = read_layer(config)
    if spec.model is None:
        raise UnsupportedSource(
            "the file holds the configuration of a single layer or of a model of the user's own class",
            place=spec.class_name,
            remedy="Save a Sequential or functional model, or only the weights (model.save_weights).",
        )
    tree = _plant(spec.model, "", context)
    graph = Graph()
    for name, layer in _layers(tree, store, context).items():
        graph.add_layer(name, layer)
    wiring = _Wiring(graph)
    inputs, outputs = wiring.top(tree)
    model = Model(
        layers=MappingProxyType(graph.layers),
        calls=tuple(graph.calls),
        inputs=inputs,
        outputs=outputs,
        framework="keras",
        metadata=MappingProxyType(
            {
                **metadata,
                "name": spec.name,
                "policies": sorted(_policies(spec)),
                "computed": sorted({_MIXED[policy] for policy in _policies(spec) if policy in _MIXED}),
            }
        ),
    )
    return _with_output_shapes(model)


def _with_output_shapes(model: Model) -> Model:
    sizes, kinds = shapes.infer_read(model), shapes.dtypes(model)
    outputs = [replace(port, shape=sizes[port.value], dtype=kinds[port.value]) for port in model.outputs]
    return replace(model, outputs=tuple(outputs))


# The tree.


def _plant(model: ModelSpec, path: str, context: Context) -> _Tree:
    counts: dict[str, int] = {}
    nodes: dict[str, _Node] = {}
    for spec in model.layers:
        base = snake(spec.class_name)
        number = counts.get(base, 0)
        if not (spec.is_operator and context.release.generation >= 3):
            counts[base] = number + 1
        own = f"{path}/layers/{base}{f'_{number}' if number else ''}".lstrip("/")
        if spec.name in nodes:
            raise BadFile("two layers have the same name", place=f"layer {spec.name!r}")
        if spec.model is not None:
            nodes[spec.name] = _Node(spec, own, inner=_plant(spec.model, own, context))
        elif spec.class_name == "InputLayer":
            nodes[spec.name] = _Node(spec, own)
        else:
            nodes[spec.name] = _Node(spec, own, unit=read_unit(spec, context))
    return _Tree(model, MappingProxyType(nodes))


def read_unit(spec: LayerSpec, context: Context) -> Unit:
    """The unit of a layer.

    Raises:
        UnsupportedSource: for classes that are not known, and Lambda layers.
    """
    custom = context.options.custom_layers.get(spec.class_name.split(">")[-1])
    if custom is not None:
        return CustomUnit(custom, spec.config, spec.class_name)
    if spec.is_operator and context.release.generation >= 3:
        return OperatorUnit(spec.class_name, spec.config)
    recurrent = read_recurrent(spec, context)
    if recurrent is not None:
        return recurrent
    if spec.class_name == "TimeDistributed":
        return _read_time_distributed(spec, context)
    options = LayerOptions(spec)
    neighbour = neighbours.read(options, context.release.generation)
    if neighbour is None:
        raise _unknown(spec)
    return OperationUnit(spec.class_name, neighbour, context.release.generation)


def _read_time_distributed(spec: LayerSpec, context: Context) -> Unit:
    options = LayerOptions(spec)
    data = options.take("layer")
    options.finish()
    inner = read_layer(data, inside=options.place)
    if inner.model is not None and inner.model.sequential:
        layers = [layer for layer in inner.model.layers if layer.class_name != "InputLayer"]
        counts: dict[str, int] = {}
        paths = []
        for layer in layers:
            base = snake(layer.class_name)
            number = counts.get(base, 0)
            counts[base] = number + 1
            paths.append(f"layer/layers/{base}{f'_{number}' if number else ''}")
        units = [(layer.name, time_distributed(_inner_unit(layer, spec, context), "")) for layer in layers]
        return ChainUnit(tuple(units), tuple(paths))
    return time_distributed(_inner_unit(inner, spec, context))


def _inner_unit(inner: LayerSpec, outer: LayerSpec, context: Context) -> OperationUnit:
    plain = inner.model is None and inner.class_name not in {*RECURRENT, "Bidirectional", "TimeDistributed"}
    unit = read_unit(inner, context) if plain else None
    if not isinstance(unit, OperationUnit):
        raise UnsupportedSource(
            f"TimeDistributed around {inner.class_name} is not supported",
            place=f"layer {outer.name!r}",
            expected="a layer without recurrence, or a Sequential of such layers",
        )
    return unit


def _unknown(spec: LayerSpec) -> UnsupportedSource:
    if spec.class_name == "Lambda":
        message = "a Lambda layer holds Python code, which is never run"
    else:
        message = f"the layer class {spec.class_name!r} is not one that lstmconvert knows"
    return UnsupportedSource(
        message,
        place=f"layer {spec.name!r} ({spec.class_name})",
        remedy=(
            f"Say what it computes: lstmconvert.read(path, custom_layers={{{spec.class_name!r}: function}}), "
            "where function(config, weights) returns an operation or a layer of lstmconvert; "
            "or replace the layer by built-in ones and save the model again."
        ),
    )


# The tensors.


def _layers(tree: _Tree, store: Store, context: Context) -> Mapping[str, Layer]:
    result: dict[str, Layer] = {}
    for top, node in tree.nodes.items():
        units = dict(_units(node, top, _trainable(node.spec, parent=True)))
        owners = [owner for owner, _ in units.values()]
        if any(isinstance(unit, CustomUnit) for _, unit in units.values()):
            result.update(_custom_layers(top, units, store))
            continue
        found = store.find(top, owners) if any(owner.slots for owner in owners) else {}
        for name, (_, unit) in units.items():
            own = found.get(name, {})
            tensors = {slot.key: lazy for slot, (_, lazy) in own.items()}
            origin = tuple(key for key, _ in own.values())
            result.update(unit.layers(name, tensors, origin))
    del context
    return result


def _custom_layers(top: str, units: Mapping[str, tuple[Owner, Unit]], store: Store) -> Mapping[str, Layer]:
    if len(units) != 1:
        raise UnsupportedSource(
            "a custom layer inside a model inside a model is not supported", place=f"layer {top!r}"
        )
    ((name, (owner, unit)),) = units.items()
    tensors: Mapping[str, Lazy] = store.everything(top, owner.path)
    return unit.layers(name, tensors, tuple(tensors))


def _units(node: _Node, name: str, trainable: bool) -> Iterator[tuple[str, tuple[Owner, Unit]]]:
    if node.inner is not None:
        for inner, child in node.inner.nodes.items():
            yield from _units(child, f"{name}/{inner}", _trainable(child.spec, parent=trainable))
    elif node.unit is not None:
        yield name, (Owner(name, node.path, node.unit.slots, trainable), node.unit)


def _trainable(spec: LayerSpec, *, parent: bool) -> bool:
    return parent and spec.config.get("trainable", True) is not False


# The wiring.


@dataclass(slots=True, eq=False)
class _Wiring:
    graph: Graph
    ports: list[Port] = field(default_factory=list)

    def top(self, tree: _Tree) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
        """Wire the whole model; its ports."""
        if tree.spec.sequential:
            port, nodes = self._sequential_input(tree)
            self.ports.append(port)
            names = [list(nodes)[-1] if nodes else port.name]
            values = [self._sequential(nodes, "", Value(port.value))]
        else:
            given = [self._port(tree.nodes[reference.layer].spec) for reference in tree.spec.inputs]
            self.ports += given
            results = self._functional(tree, "", [Value(port.value) for port in given])
            names = [reference.layer for reference in tree.spec.outputs]
            values = [_value(result, name) for result, name in zip(results, names, strict=True)]
        return tuple(self.ports), tuple(self._outputs(names, values))

    def _outputs(self, names: Sequence[str], values: Sequence[Value]) -> Iterator[Port]:
        taken: dict[str, int] = {}
        for name, value in zip(names, values, strict=True):
            number = taken.get(name, 0)
            taken[name] = number + 1
            yield Port(f"{name}_{number}" if number else name, value.name, (), "float32")

    def _port(self, spec: LayerSpec, name: str | None = None) -> Port:
        shape = spec.config.get("batch_shape", spec.config.get("batch_input_shape"))
        if shape is None:
            raise BadFile("an input has no shape", place=f"layer {spec.name!r}")
        if isinstance(shape, Mapping):  # a tuple as Keras 3 serialises it
            shape = shape.get("items", shape.get("config", {}).get("items", ()))
        if spec.config.get("sparse") or spec.config.get("ragged"):
            raise UnsupportedSource(
                "sparse and ragged inputs are not supported", place=f"layer {spec.name!r}"
            )
        outside = name or spec.name
        dims = tuple(None if n is None else int(n) for n in shape)
        return Port(outside, self.graph.value_name(outside), dims, _dtype(spec.config.get("dtype")))

    def _sequential_input(self, tree: _Tree) -> tuple[Port, Mapping[str, _Node]]:
        nodes = dict(tree.nodes)
        if not nodes:
            raise UnsupportedSource("the model has no layers", place=f"model {tree.spec.name!r}")
        first = next(iter(nodes))
        node = nodes[first]
        if node.spec.class_name == "InputLayer":
            del nodes[first]
            return self._port(node.spec), nodes
        spec = node.spec
        if "batch_input_shape" not in spec.config and "batch_shape" not in spec.config:
            shape = _built_shape(tree.spec, spec)
            config = {**spec.config, "batch_shape": shape}
            spec = LayerSpec(spec.class_name, spec.name, MappingProxyType(config))
        return self._port(spec, f"{spec.name}_input"), nodes

    def _sequential(self, nodes: Mapping[str, _Node], prefix: str, value: Value) -> Value:
        for name, node in nodes.items():
            if node.spec.class_name == "InputLayer":
                continue
            (result, *_) = self._call(node, f"{prefix}{name}", 0, CallSpec((value,), MappingProxyType({})))
            value = _value(result, name)
        return value

    def _functional(self, tree: _Tree, prefix: str, inputs: Sequence[Value]) -> list[Value | Symbol]:
        results: dict[tuple[str, int], tuple[Value | Symbol, ...]] = {}
        for reference, value in zip(tree.spec.inputs, inputs, strict=True):
            results[reference.layer, reference.call] = (value,)
        for name, number in _running_order(tree):
            if (name, number) not in results:
                filled = _filled(tree.nodes[name].spec.calls[number], results, name)
                results[name, number] = self._call(tree.nodes[name], f"{prefix}{name}", number, filled)
        return [_result(results, reference, tree.spec.name) for reference in tree.spec.outputs]

    def _call(self, node: _Node, name: str, number: int, call: CallSpec) -> tuple[Value | Symbol, ...]:
        place = f"layer {name!r} ({node.spec.class_name})"
        arguments = Arguments(call.positional, call.named, place)
        if node.unit is not None:
            wanted = f"{name}:{number}" if number else name
            return node.unit.call(self.graph, name, wanted, arguments)
        if node.inner is None:
            raise BadFile("an input of the model is called like a layer", place=place)
        bound = arguments.bind("inputs", "mask")
        inputs = arguments.values(bound["inputs"])
        explicit = bound.get("mask")
        if isinstance(explicit, Value):
            inputs = [Value(inputs[0].name, Given(explicit.name)), *inputs[1:]]
        if node.inner.spec.sequential:
            return (self._sequential(node.inner.nodes, f"{name}/", inputs[0]),)
        if len(inputs) != len(node.inner.spec.inputs):
            raise BadFile("a model is called with another number of inputs than it has", place=place)
        return tuple(self._functional(node.inner, f"{name}/", inputs))


def _running_order(tree: _Tree) -> tuple[Node, ...]:
    """The calls on which an output depends, in the order in which Keras runs them.

    Raises:
        BadFile: when a call is missing, or calls need each other in a circle.
    """

    def parents(node: Node) -> list[Node]:
        name, number = node
        held = tree.nodes.get(name)
        if held is None or (held.spec.class_name != "InputLayer" and number >= len(held.spec.calls)):
            raise BadFile(
                "a call is referred to that is not in the configuration",
                place=f"layer {name!r}",
                found=number,
            )
        if held.spec.class_name == "InputLayer":
            return []
        return [(ref.layer, ref.call) for ref in held.spec.calls[number].references()]

    inputs = [reference.layer for reference in tree.spec.inputs]
    try:
        found = orders(inputs, [(ref.layer, ref.call) for ref in tree.spec.outputs], parents)
    except ValueError as error:
        raise BadFile("the graph of the model runs in a circle", place=f"model {tree.spec.name!r}") from error
    return found.calls


def _built_shape(model: ModelSpec, first: LayerSpec) -> Any:
    shape = model.built_shape
    if isinstance(shape, (list, tuple)) and shape and not isinstance(shape[0], (list, tuple)):
        return [None, *shape[1:]]
    raise UnsupportedSource(
        "the model does not say the shape of its input",
        place=f"model {model.name!r}, layer {first.name!r}",
        remedy="Give it an Input layer, or call it once before it is saved.",
    )


def _filled(
    call: CallSpec, results: Mapping[tuple[str, int], tuple[Value | Symbol, ...]], layer: str
) -> CallSpec:
    def fill(item: Any) -> Any:
        if isinstance(item, Reference):
            return _result(results, item, layer)
        if isinstance(item, tuple):
            return tuple(fill(part) for part in item)
        if isinstance(item, Mapping):
            return MappingProxyType({key: fill(part) for key, part in item.items()})
        return item

    return CallSpec(fill(call.positional), fill(call.named))


def _result(
    results: Mapping[tuple[str, int], tuple[Value | Symbol, ...]], reference: Reference, place: str
) -> Value | Symbol:
    outputs = results.get((reference.layer, reference.call), ())
    if not reference.output < len(outputs):
        raise BadFile(
            "a tensor is referred to that its layer does not give",
            place=f"layer {place!r}",
            found=f"output {reference.output} of call {reference.call} of {reference.layer!r}",
            expected=f"one of {len(outputs)}",
        )
    return outputs[reference.output]


def _value(result: Value | Symbol, place: str) -> Value:
    if isinstance(result, Value):
        return result
    raise UnsupportedSource(
        f"an output of the model is the operator {result.operator!r} of keras.ops", place=f"layer {place!r}"
    )


_MIXED = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}
"""The dtype in which a policy computes that keeps its variables in float32."""


def _dtype(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("config", {}).get("name", "float32")
    name = str(value or "float32")
    return "float32" if name in _MIXED else name


def _policies(spec: LayerSpec) -> set[str]:
    """The dtype policies of all layers."""
    if spec.model is not None:
        return {policy for layer in spec.model.layers for policy in _policies(layer)}
    value = spec.config.get("dtype")
    if isinstance(value, Mapping):
        value = value.get("config", {}).get("name")
    return {value} if isinstance(value, str) and spec.class_name != "InputLayer" else set()
