"""Frameworks whose files are named weights, as judges: Flax (linen and nnx), Haiku, Equinox, MLX, Paddle, tinygrad."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.apart import apart
from tests.matrix import judges_paddle
from tests.matrix.judges import HIDDEN, INPUT, Case, Judge, Sample, draw, inputs

Array = np.ndarray[Any, Any]
Tree = dict[str, Any]
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def activation(case: Case) -> dict[str, Any]:
    """What a file with a simple RNN does not say."""
    return {"activation": "relu" if case.option == "relu" else "tanh"} if case.cell == "rnn" else {}


# What each of them can hold, said apart from the mapping files.

_ONE_WAY_AFTER = {"lstm", "gru", "reset after", "recurrent bias of the candidate"}
HOLDS: dict[str, set[str]] = {
    "flax": _ONE_WAY_AFTER | {"tanh rnn", "relu rnn", "bidirectional"},
    "flax_nnx": {"lstm", "gru", "reset after", "tanh rnn", "relu rnn", "bidirectional"},
    "haiku": {"lstm", "gru", "reset before", "relu rnn"},
    "equinox": _ONE_WAY_AFTER,
    "mlx": _ONE_WAY_AFTER | {"tanh rnn", "relu rnn"},
    "paddle": _ONE_WAY_AFTER | {"tanh rnn", "relu rnn", "bidirectional", "projection"},
    "tinygrad": {"lstm"},
}
_ALWAYS_AFTER = ("pytorch", "flax", "flax_nnx", "equinox", "mlx", "paddle")


def needs(case: Case, source: str) -> set[str]:
    """What a target must have to hold a case of a source."""
    found = {"bidirectional"} if case.bidirectional else set()
    if case.option in ("reverse", "projection", "peephole", "clip", "hard_sigmoid"):
        found.add(case.option)
    if case.cell == "rnn":
        return found | {"relu rnn" if case.option == "relu" else "tanh rnn"}
    found.add(case.cell)
    if case.option == "relu":
        found.add("relu cell")
    if case.cell == "gru":
        after = source in _ALWAYS_AFTER or case.option == "reset_after"
        after = after or (source == "keras" and case.option != "reset_before")
        found.add("reset after" if after else "reset before")
        if after and case.bias and source != "flax_nnx":
            found.add("recurrent bias of the candidate")
    return found


def refused(target: str) -> Callable[[Case, str], bool]:
    """Whether a target must refuse a case of a source."""
    return lambda case, source: not needs(case, source) <= HOLDS[target]


REFUSED = {name: refused(name) for name in HOLDS}


# Flax.


def subtrees(tree: Tree, is_layer: Callable[[Tree], bool]) -> Iterator[Tree]:
    """The layers of a tree of parameters, in its order."""
    if is_layer(tree):
        yield tree
        return
    for value in tree.values():
        if isinstance(value, dict):
            yield from subtrees(value, is_layer)


def random_tree(shapes: Any, rng: np.random.Generator) -> Any:
    """The same tree with random arrays of its leaves' shapes."""
    if isinstance(shapes, dict):
        return {key: random_tree(value, rng) for key, value in shapes.items()}
    return draw(rng, tuple(shapes.shape))


# Told apart by identity, so that a compiled function is found again.
MERGES: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda a, b: a + b,
    "ave": lambda a, b: (a + b) / 2,
    "mul": lambda a, b: a * b,
}


@cache
def _linen_layer(cell: str, option: str, *, bidirectional: bool, mgu: bool) -> Any:
    from flax import linen as nn

    def rnn() -> Any:
        match cell:
            case "lstm":
                return nn.RNN(nn.OptimizedLSTMCell(HIDDEN))
            case "gru":
                return nn.RNN(nn.MGUCell(HIDDEN) if mgu else nn.GRUCell(HIDDEN))
        return nn.RNN(nn.SimpleCell(HIDDEN, activation_fn=nn.relu if option == "relu" else nn.tanh))

    if not bidirectional:
        return rnn()
    if option in MERGES:
        return nn.Bidirectional(rnn(), rnn(), merge_fn=MERGES[option])
    return nn.Bidirectional(rnn(), rnn())


@cache
def _jitted(name: str) -> Any:
    import equinox
    import jax
    from flax import nnx

    functions: dict[str, Any] = {
        "linen": lambda module, variables, x: module.apply(variables, x),
        "nnx": lambda graph, state, x: nnx.merge(graph, state)(x),
    }
    if name == "equinox":
        return equinox.filter_jit(_equinox_scan)
    return jax.jit(functions[name], static_argnums=0)


def make_flax(case: Case, folder: Path) -> Sample:
    import jax
    from flax import serialization

    x = inputs(case)
    module = _linen_layer(case.cell, case.option, bidirectional=case.bidirectional, mgu=case.option == "mgu")
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    variables = random_tree(shapes, np.random.default_rng(case.seed))
    path = folder / "source.msgpack"
    path.write_bytes(serialization.to_bytes(variables))
    return Sample(path, x, np.asarray(_jitted("linen")(module, variables, x)))


def run_flax(path: Path, x: Array, case: Case) -> Array:
    from flax import serialization

    tree = serialization.msgpack_restore(path.read_bytes())
    cells = ("ii", "ir", "if", "i")
    for layer in subtrees(tree, lambda t: "forward_rnn" in t or any(c in t for c in cells) or "cell" in t):
        both = "forward_rnn" in layer
        own = layer if both or "cell" in layer else {"cell": layer}
        first = own["forward_rnn"]["cell"] if both else own["cell"]
        mgu = "if" in first and "ii" not in first
        module = _linen_layer(case.cell, case.option, bidirectional=both, mgu=mgu)
        x = np.asarray(_jitted("linen")(module, {"params": own}, x))
    return x


def _leaves(tree: Tree) -> list[Array]:
    found: list[Array] = []
    for key in sorted(tree):
        found += _leaves(tree[key]) if isinstance(tree[key], dict) else [np.asarray(tree[key])]
    return found


def weights_flax(path: Path) -> list[Array]:
    from flax import serialization

    tree = serialization.msgpack_restore(path.read_bytes())
    return _leaves({"": next(subtrees(tree, lambda t: not {"params", "cell"} & set(t)))})


@cache
def _nnx_layer(cell: str, option: str, width: int, kind: str, *, bidirectional: bool) -> Any:
    from flax import nnx

    rngs = nnx.Rngs(0)

    def rnn() -> Any:
        match cell:
            case "lstm":
                made = (nnx.LSTMCell if kind == "cell" else nnx.OptimizedLSTMCell)(width, HIDDEN, rngs=rngs)
            case "gru":
                made = nnx.GRUCell(width, HIDDEN, rngs=rngs)
            case _:
                act = nnx.relu if option == "relu" else nnx.tanh
                made = nnx.SimpleCell(width, HIDDEN, activation_fn=act, rngs=rngs)
        return nnx.RNN(made, rngs=nnx.Rngs(0))

    if not bidirectional:
        return rnn()
    if option in MERGES:
        return nnx.Bidirectional(rnn(), rnn(), merge_fn=MERGES[option], rngs=nnx.Rngs(0))
    return nnx.Bidirectional(rnn(), rnn(), rngs=nnx.Rngs(0))


def _nnx_run(layer: Any, tree: Tree, x: Array) -> Array:
    from flax import nnx

    state = nnx.state(layer, nnx.Param)
    nnx.replace_by_pure_dict(state, tree)
    nnx.update(layer, state)
    return np.asarray(_jitted("nnx")(*nnx.split(layer), x))


def make_flax_nnx(case: Case, folder: Path) -> Sample:
    from flax import nnx, serialization

    kind = "cell" if case.option == "cell" else "optimized"
    layer = _nnx_layer(case.cell, case.option, INPUT, kind, bidirectional=case.bidirectional)
    tree = random_tree(nnx.to_pure_dict(nnx.state(layer, nnx.Param)), np.random.default_rng(case.seed))
    path = folder / "source.msgpack"
    path.write_bytes(serialization.to_bytes(tree))
    x = inputs(case)
    return Sample(path, x, _nnx_run(layer, tree, x))


def run_flax_nnx(path: Path, x: Array, case: Case) -> Array:
    from flax import serialization

    tree = serialization.msgpack_restore(path.read_bytes())
    for found in subtrees(tree, lambda t: bool({"forward_rnn", "dense_i", "if_", "cell"} & set(t))):
        both = "forward_rnn" in found
        own = found if both or "cell" in found else {"cell": found}
        first = own["forward_rnn"]["cell"] if both else own["cell"]
        kind = "cell" if "if_" in first else "optimized"
        layer = _nnx_layer(case.cell, case.option, x.shape[-1], kind, bidirectional=both)
        x = _nnx_run(layer, own, x)
    return x


# Haiku.


@cache
def _haiku(cell: str, depth: int) -> tuple[Any, Any]:
    """The initialisation and the compiled application of a stack; time-major inside."""
    import haiku
    import jax

    def forward(x: Any) -> Any:
        kind = {"lstm": haiku.LSTM, "gru": haiku.GRU, "rnn": haiku.VanillaRNN}[cell]
        core = haiku.DeepRNN([kind(HIDDEN) for _ in range(depth)])
        y, _ = haiku.static_unroll(core, x, core.initial_state(x.shape[1]))
        return y

    transformed = haiku.without_apply_rng(haiku.transform(forward))
    return transformed.init, jax.jit(transformed.apply)


def _haiku_run(params: Tree, x: Array, case: Case, depth: int) -> Array:
    y = _haiku(case.cell, depth)[1](params, x.transpose(1, 0, 2))
    return np.asarray(y).transpose(1, 0, 2)


def make_haiku(case: Case, folder: Path) -> Sample:
    import jax

    x = inputs(case)
    shapes = jax.eval_shape(_haiku(case.cell, 1)[0], jax.random.key(0), x.transpose(1, 0, 2))
    params = random_tree(shapes, np.random.default_rng(case.seed))
    path = folder / "source.pkl"
    path.write_bytes(pickle.dumps(params))
    return Sample(path, x, _haiku_run(params, x, case, 1))


def run_haiku(path: Path, x: Array, case: Case) -> Array:
    with path.open("rb") as file:
        params = pickle.load(file)
    depth = len({name.split("/")[0] for name in params})
    return _haiku_run(params, x, case, depth)


def weights_haiku(path: Path) -> list[Array]:
    with path.open("rb") as file:
        return _leaves(pickle.load(file))


# Equinox.


def _equinox_cell(case: Case, width: int, *, bias: bool) -> Any:
    import equinox
    import jax

    kind = {"lstm": equinox.nn.LSTMCell, "gru": equinox.nn.GRUCell}[case.cell]
    return kind(width, HIDDEN, use_bias=bias, key=jax.random.key(0))


def _equinox_scan(cell: Any, x: Any) -> Any:
    """The sequence that a cell gives, for every row of x (batch, time, features)."""
    import jax

    zeros = jax.numpy.zeros(HIDDEN)
    is_lstm = cell.weight_ih.shape[0] == 4 * HIDDEN

    def step(state: Any, value: Any) -> Any:
        state = cell(value, state)
        return state, state[0] if is_lstm else state

    return jax.vmap(lambda row: jax.lax.scan(step, (zeros, zeros) if is_lstm else zeros, row)[1])(x)


def _equinox_run(cell: Any, x: Array) -> Array:
    return np.asarray(_jitted("equinox")(cell, x))


def make_equinox(case: Case, folder: Path) -> Sample:
    import equinox
    import jax

    cell = _equinox_cell(case, INPUT, bias=case.bias)
    rng = np.random.default_rng(case.seed)
    cell = jax.tree.map(lambda leaf: jax.numpy.asarray(draw(rng, leaf.shape)), cell)
    path = folder / "source.eqx"
    equinox.tree_serialise_leaves(path, cell)
    x = inputs(case)
    return Sample(path, x, _equinox_run(cell, x))


def run_equinox(path: Path, x: Array, case: Case) -> Array:
    import equinox

    like = []
    width = x.shape[-1]
    for _ in range(case.layers):
        cell = _equinox_cell(case, width, bias=_eqx_has_bias(path))
        like.append(cell)
        width = HIDDEN
    for cell in equinox.tree_deserialise_leaves(path, like):
        x = _equinox_run(cell, x)
    return x


def weights_equinox(path: Path) -> list[Array]:
    found = []
    with path.open("rb") as file:
        while file.peek(1):
            found.append(np.load(file))
    return [array for array in found if array.dtype != np.uint8]


def _eqx_has_bias(path: Path) -> bool:
    return any(array.ndim == 1 for array in weights_equinox(path))


# MLX.


def _mlx_layer(case: Case, tensors: Tree) -> Any:
    import mlx.core as mx
    import mlx.nn as nn

    width = tensors["Wxh" if case.cell == "rnn" else "Wx"].shape[1]
    bias = len(tensors) > 2
    if case.cell == "rnn":
        layer = nn.RNN(width, HIDDEN, bias=bias, nonlinearity=nn.relu if case.option == "relu" else None)
    else:
        layer = {"lstm": nn.LSTM, "gru": nn.GRU}[case.cell](width, HIDDEN, bias=bias)
    layer.load_weights([(name, mx.array(np.asarray(t))) for name, t in tensors.items()], strict=True)
    return layer


def _mlx_run(layer: Any, x: Array, case: Case) -> Array:
    import mlx.core as mx

    with mx.stream(mx.cpu):
        y = layer(mx.array(x))
        return np.array(y[0] if case.cell == "lstm" else y)


def make_mlx(case: Case, folder: Path) -> Sample:
    import mlx.core as mx
    import mlx.nn as nn

    kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[case.cell]
    rng = np.random.default_rng(case.seed)
    parameters = kind(INPUT, HIDDEN, bias=case.bias).parameters()
    tensors = {name: draw(rng, tuple(t.shape)) for name, t in parameters.items() if t is not None}
    path = folder / "source.safetensors"
    x = inputs(case)
    layer = _mlx_layer(case, tensors)
    layer.save_weights(str(path))
    assert set(mx.load(str(path))) == set(tensors)
    return Sample(path, x, _mlx_run(layer, x, case))


def _by_prefix(names: Iterator[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def run_mlx(path: Path, x: Array, case: Case) -> Array:
    import mlx.core as mx

    tensors = mx.load(str(path))
    for names in _by_prefix(iter(tensors)).values():
        layer = _mlx_layer(case, {name.rpartition(".")[2]: tensors[name] for name in names})
        x = _mlx_run(layer, x, case)
    return x


def weights_mlx(path: Path) -> list[Array]:
    import mlx.core as mx

    tensors = mx.load(str(path))
    return [np.array(tensors[name]) for name in sorted(tensors)]


# tinygrad: compiles for every shape with clang, or runs its emulation in Python; few options.


@cache
def _tinygrad_device() -> str:
    """Where tinygrad computes, from now on by default."""
    from tinygrad.helpers import DEV

    device = "CPU" if shutil.which(os.environ.get("CC", "clang")) else "PYTHON"
    DEV.value = device
    return device


def _tinygrad_run(tensors: Tree, x: Array) -> Array:
    from tinygrad import Tensor, nn
    from tinygrad.nn.state import load_state_dict

    _tinygrad_device()
    width = tensors["weight_ih"].shape[1]
    cell = nn.LSTMCell(width, HIDDEN, bias="bias_ih" in tensors)
    load_state_dict(cell, tensors, verbose=False)
    state: Any = None
    steps = []
    for n in range(x.shape[1]):
        state = cell(Tensor(x[:, n].copy()), state)
        state = (state[0].contiguous().realize(), state[1].contiguous().realize())
        steps.append(state[0].numpy())
    return np.stack(steps, axis=1)


def make_tinygrad(case: Case, folder: Path) -> Sample:
    from safetensors.numpy import save_file
    from tinygrad import Tensor, nn
    from tinygrad.nn.state import get_state_dict, safe_save

    device = _tinygrad_device()
    rng = np.random.default_rng(case.seed)
    shapes = get_state_dict(nn.LSTMCell(INPUT, HIDDEN, bias=case.bias))
    tensors = {name: Tensor(draw(rng, t.shape)).realize() for name, t in shapes.items()}
    path = folder / "source.safetensors"
    if device == "CPU":
        safe_save(tensors, str(path))
    else:  # tinygrad compiles something to write a file, which is plain safetensors
        save_file({name: tensor.numpy() for name, tensor in tensors.items()}, path)
    x = inputs(case)
    return Sample(path, x, _tinygrad_run(tensors, x))


def run_tinygrad(path: Path, x: Array, case: Case) -> Array:
    from tinygrad.nn.state import safe_load

    tensors = {name: t.to(_tinygrad_device()).realize() for name, t in safe_load(path).items()}
    for names in _by_prefix(iter(tensors)).values():
        x = _tinygrad_run({name.rpartition(".")[2]: tensors[name] for name in names}, x)
    return x


def weights_safetensors(path: Path) -> list[Array]:
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return [tensors[name] for name in sorted(tensors)]


JUDGES = (
    Judge(
        "flax", ".msgpack",
        {"lstm": ("plain",), "gru": ("plain", "mgu"), "rnn": ("plain", "relu")},
        make_flax, run_flax, weights_flax, activation,
        always_bias=True, weights_only=True, depths=(1,), remembers=False,
    ),
    Judge(
        "flax_nnx", ".msgpack",
        {"lstm": ("plain", "cell"), "gru": ("plain",), "rnn": ("plain", "relu")},
        make_flax_nnx, run_flax_nnx, weights_flax, activation,
        always_bias=True, weights_only=True, depths=(1,), remembers=False,
    ),
    Judge(
        "haiku", ".pkl", {"lstm": ("plain",), "gru": ("plain",), "rnn": ("relu",)},
        make_haiku, run_haiku, weights_haiku,
        always_bias=True, weights_only=True, depths=(1,), ways=(False,),
    ),
    Judge(
        "equinox", ".eqx", {"lstm": ("plain",), "gru": ("plain",)},
        make_equinox, run_equinox, weights_equinox,
        weights_only=True, depths=(1,), ways=(False,),
    ),
    Judge(
        "mlx", ".safetensors",
        {"lstm": ("plain",), "gru": ("plain",), "rnn": ("plain", "relu")},
        make_mlx, run_mlx, weights_mlx, activation,
        weights_only=True, depths=(1,), ways=(False,),
    ),
    Judge(
        "paddle", ".pdparams",
        {"lstm": ("plain", "projection"), "gru": ("plain",), "rnn": ("plain", "relu")},
        apart(judges_paddle.make), apart(judges_paddle.run), apart(judges_paddle.weights), activation,
        weights_only=True,
    ),
    Judge(
        "tinygrad", ".safetensors", {"lstm": ("plain",)},
        make_tinygrad, run_tinygrad, weights_safetensors,
        weights_only=True, depths=(1,), ways=(False,),
    ),
)  # fmt: skip
