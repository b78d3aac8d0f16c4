"""The orders of a functional model in Keras: of its layers once it is loaded, and of its calls when it runs.

Weights are found by the first: through the counters of equal classes in a ``.weights.h5``, through the
position in a legacy file. The second decides which masks are still there (see ``Graph.taken_masks``).
Source: ``map_graph`` and ``_run_through_graph`` of Keras 3.15 (ops/function.py) and
``_map_graph_network`` of tf_keras 2.21, which follow the same rule: by the longest way to an output, then
by the order in which a walk from the outputs first meets a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lstmconvert.values import dataclass

Node = tuple[str, int]
"""A call: the layer's name, and which of its calls."""


@dataclass(frozen=True, slots=True)
class Orders:
    """Of a model.

    Attributes:
        layers: names, as Keras sorts them.
        calls: in the order in which Keras runs them.
    """

    layers: tuple[str, ...]
    calls: tuple[Node, ...]


def orders(
    inputs: Sequence[str], outputs: Sequence[Node], parents: Callable[[Node], Sequence[Node]]
) -> Orders:
    """Sort the layers and calls of a model.

    Args:
        inputs: names of the input layers; those that nothing needs come last.
        outputs: the calls that give the model's outputs, in order.
        parents: the calls that a call needs, in the order of its arguments.

    Raises:
        ValueError: when calls need each other in a circle.
    """
    met: dict[str, int] = {}
    finished = _walk(outputs, parents, met)
    calls: dict[Node, int] = {}
    layers: dict[str, int] = {}
    for node in reversed(finished):
        depth = max(calls.setdefault(node, 0), layers.get(node[0], 0))
        calls[node] = layers[node[0]] = depth
        for parent in parents(node):
            calls[parent] = max(depth + 1, calls.get(parent, 0))
    for name in inputs:
        if name not in layers:
            layers[name], met[name] = 0, -1
    by_layer = sorted(layers, key=lambda name: (-layers[name], met[name]))
    return Orders(tuple(by_layer), tuple(sorted(calls, key=lambda node: -calls[node])))


def _walk(
    outputs: Sequence[Node], parents: Callable[[Node], Sequence[Node]], met: dict[str, int]
) -> list[Node]:
    """Depth first from the outputs: calls, each after all that it needs."""
    finished: dict[Node, None] = {}
    for output in outputs:
        stack = [(output, 0)]
        open_nodes: set[Node] = set()
        while stack:
            node, position = stack.pop()
            if position == 0:
                if node in finished:
                    continue
                if node in open_nodes:
                    raise ValueError(f"the call {node[1]} of {node[0]!r} needs itself")
                open_nodes.add(node)
                met.setdefault(node[0], len(met))
            before = parents(node)
            if position < len(before):
                stack += [(node, position + 1), (before[position], 0)]
            else:
                open_nodes.discard(node)
                finished[node] = None
    return list(finished)
