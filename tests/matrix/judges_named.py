"""Frameworks whose files are named weights, as judges: Flax (linen and nnx), Haiku, Equinox, MLX, Paddle, tinygrad."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.matrix.judges import HIDDEN, INPUT, Case, Judge, Sample, draw, inputs

Array = np.ndarray[Any, Any]
Tree = dict[str, Any]
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def activation(case: Case) -> dict[str, Any]:
    """What a file with a simple RNN does not say."""
    return {"activation": "relu" if case.option == "relu" else "tanh"} if case.cell == "rnn" else {}


def merged(forward: Array, backward: Array, case: Case) -> Array:
    """Two directions as one output; the backward one in input order."""
    match case.option:
        case "sum":
            return forward + backward
        case "ave":
            return (forward + backward) / 2
        case "mul":
            return forward * backward
    return np.concatenate([forward, backward], axis=-1)


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


def _linen_cell(case: Case, *, mgu: bool = False) -> Any:
    from flax import linen as nn

    if case.cell == "lstm":
        return nn.OptimizedLSTMCell(HIDDEN)
    if case.cell == "gru":
        return nn.MGUCell(HIDDEN) if mgu else nn.GRUCell(HIDDEN)
    return nn.SimpleCell(HIDDEN, activation_fn=nn.relu if case.option == "relu" else nn.tanh)


def _linen_layer(case: Case, *, bidirectional: bool, mgu: bool = False) -> Any:
    from flax import linen as nn

    if not bidirectional:
        return nn.RNN(_linen_cell(case, mgu=mgu))
    return nn.Bidirectional(
        nn.RNN(_linen_cell(case, mgu=mgu)),
        nn.RNN(_linen_cell(case, mgu=mgu)),
        merge_fn=lambda a, b: merged(np.asarray(a), np.asarray(b), case),
    )


def make_flax(case: Case, folder: Path) -> Sample:
    import jax
    from flax import serialization

    x = inputs(case)
    module = _linen_layer(case, bidirectional=case.bidirectional, mgu=case.option == "mgu")
    rng = np.random.default_rng(case.seed)
    with jax.disable_jit():
        variables = random_tree(module.init(jax.random.key(0), x), rng)
        y = np.asarray(module.apply(variables, x))
    path = folder / "source.msgpack"
    path.write_bytes(serialization.to_bytes(variables))
    return Sample(path, x, y)


def run_flax(path: Path, x: Array, case: Case) -> Array:
    import jax
    from flax import serialization

    tree = serialization.msgpack_restore(path.read_bytes())
    cells = ("ii", "ir", "if", "i")
    for layer in subtrees(tree, lambda t: "forward_rnn" in t or any(c in t for c in cells) or "cell" in t):
        both = "forward_rnn" in layer
        own = layer if both or "cell" in layer else {"cell": layer}
        first = own["forward_rnn"]["cell"] if both else own["cell"]
        module = _linen_layer(case, bidirectional=both, mgu="if" in first and "ii" not in first)
        with jax.disable_jit():
            x = np.asarray(module.apply({"params": own}, x))
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


def _nnx_cell(case: Case, width: int, kind: str) -> Any:
    from flax import nnx

    rngs = nnx.Rngs(0)
    if case.cell == "lstm":
        return (nnx.LSTMCell if kind == "cell" else nnx.OptimizedLSTMCell)(width, HIDDEN, rngs=rngs)
    if case.cell == "gru":
        return nnx.GRUCell(width, HIDDEN, rngs=rngs)
    act = nnx.relu if case.option == "relu" else nnx.tanh
    return nnx.SimpleCell(width, HIDDEN, activation_fn=act, rngs=rngs)


def _nnx_layer(case: Case, width: int, kind: str, *, bidirectional: bool) -> Any:
    from flax import nnx

    def rnn() -> Any:
        return nnx.RNN(_nnx_cell(case, width, kind), rngs=nnx.Rngs(0))

    if not bidirectional:
        return rnn()
    merge = lambda a, b: merged(np.asarray(a), np.asarray(b), case)  # noqa: E731
    return nnx.Bidirectional(rnn(), rnn(), merge_fn=merge, rngs=nnx.Rngs(0))


def _nnx_run(layer: Any, tree: Tree, x: Array) -> Array:
    import jax
    from flax import nnx

    state = nnx.state(layer, nnx.Param)
    nnx.replace_by_pure_dict(state, tree)
    nnx.update(layer, state)
    with jax.disable_jit():
        return np.asarray(layer(x))


def make_flax_nnx(case: Case, folder: Path) -> Sample:
    from flax import nnx, serialization

    kind = "cell" if case.option == "cell" else "optimized"
    layer = _nnx_layer(case, INPUT, kind, bidirectional=case.bidirectional)
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
        x = _nnx_run(_nnx_layer(case, x.shape[-1], kind, bidirectional=both), own, x)
    return x


# Haiku.


def _haiku_core(case: Case) -> Any:
    import haiku

    return {"lstm": haiku.LSTM, "gru": haiku.GRU, "rnn": haiku.VanillaRNN}[case.cell](HIDDEN)


def _haiku(case: Case, depth: int) -> Any:
    import haiku
    import jax.numpy as jnp

    def forward(x: Any) -> Any:
        core = haiku.DeepRNN([_haiku_core(case) for _ in range(depth)])
        y, _ = haiku.static_unroll(core, x, core.initial_state(x.shape[1]))
        return y

    transformed = haiku.without_apply_rng(haiku.transform(forward))
    return transformed, lambda params, x: np.asarray(
        transformed.apply(params, jnp.asarray(x.transpose(1, 0, 2)))
    ).transpose(1, 0, 2)


def make_haiku(case: Case, folder: Path) -> Sample:
    import jax

    x = inputs(case)
    transformed, apply = _haiku(case, 1)
    params = random_tree(
        transformed.init(jax.random.key(0), x.transpose(1, 0, 2)), np.random.default_rng(case.seed)
    )
    path = folder / "source.pkl"
    path.write_bytes(pickle.dumps(params))
    return Sample(path, x, apply(params, x))


def run_haiku(path: Path, x: Array, case: Case) -> Array:
    with path.open("rb") as file:
        params = pickle.load(file)
    depth = len({name.split("/")[0] for name in params})
    return _haiku(case, depth)[1](params, x)


def weights_haiku(path: Path) -> list[Array]:
    with path.open("rb") as file:
        return _leaves(pickle.load(file))


# Equinox.


def _equinox_cell(case: Case, width: int, *, bias: bool) -> Any:
    import equinox
    import jax

    kind = {"lstm": equinox.nn.LSTMCell, "gru": equinox.nn.GRUCell}[case.cell]
    return kind(width, HIDDEN, use_bias=bias, key=jax.random.key(0))


def _equinox_run(cell: Any, x: Array) -> Array:
    import jax

    with jax.disable_jit():
        rows = []
        for row in x:
            h = np.zeros(HIDDEN, np.float32)
            state: Any = (h, h) if cell.weight_ih.shape[0] == 4 * HIDDEN else h
            steps = []
            for step in row:
                state = cell(step, state)
                steps.append(np.asarray(state[0] if isinstance(state, tuple) else state))
            rows.append(np.stack(steps))
    return np.stack(rows)


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


# PaddlePaddle.


def _paddle_stack(case: Case, width: int, layers: int, *, bidirectional: bool, bias: bool) -> Any:
    import paddle

    arguments: dict[str, Any] = {"num_layers": layers}
    if bidirectional:
        arguments["direction"] = "bidirect"
    if not bias:
        arguments |= {"bias_ih_attr": False, "bias_hh_attr": False}
    if case.option == "projection":
        arguments["proj_size"] = 2
    if case.cell == "rnn":
        arguments["activation"] = "relu" if case.option == "relu" else "tanh"
    kind = {"lstm": paddle.nn.LSTM, "gru": paddle.nn.GRU, "rnn": paddle.nn.SimpleRNN}[case.cell]
    return kind(width, HIDDEN, **arguments)


def make_paddle(case: Case, folder: Path) -> Sample:
    import paddle

    rng = np.random.default_rng(case.seed)
    stack = _paddle_stack(case, INPUT, case.layers, bidirectional=case.bidirectional, bias=case.bias)
    for parameter in stack.parameters():
        if not parameter.stop_gradient:
            parameter.set_value(draw(rng, tuple(parameter.shape)))
    stack.eval()
    path = folder / "source.pdparams"
    paddle.save(stack.state_dict(), str(path))
    x = inputs(case)
    return Sample(path, x, stack(paddle.to_tensor(x))[0].numpy())


def run_paddle(path: Path, x: Array, case: Case) -> Array:
    import paddle

    tensors = paddle.load(str(path), return_numpy=True)
    prefixes: dict[str, Tree] = {}
    for name, tensor in tensors.items():
        if ".cell" in name:
            before, own = name.split(".cell", 1)
            prefix, _, number = before.rpartition(".")
            prefixes.setdefault(prefix, {})[f"{number}.cell{own}"] = tensor
    for prefix in sorted(prefixes):
        own = prefixes[prefix]
        layers = len({name.split(".")[0] for name in own})
        both = any("cell_bw" in name for name in own)
        width = next(t for n, t in own.items() if n.startswith("0.") and n.endswith("weight_ih")).shape[1]
        bias = any("bias" in name for name in own)
        stack = _paddle_stack(case, width, layers, bidirectional=both, bias=bias)
        at = f"{prefix}." if prefix else ""
        flat = {name.removeprefix(at): t for name, t in tensors.items() if name.startswith(at)}
        missing, _ = stack.set_state_dict(flat)
        assert not missing, missing
        stack.eval()
        x = stack(paddle.to_tensor(x))[0].numpy()
    if case.option in ("sum", "ave", "mul"):
        half = x.shape[-1] // 2
        assert case.layers == 1, "how the layers follow each other is not in the file"
        return merged(x[..., :half], x[..., half:], case)
    return x


def weights_paddle(path: Path) -> list[Array]:
    import paddle

    tensors = paddle.load(str(path), return_numpy=True)
    return [np.asarray(tensors[name]) for name in sorted(tensors)]


# tinygrad: needs clang, and compiles for every shape; few options.


def _tinygrad_run(tensors: Tree, x: Array) -> Array:
    from tinygrad import Tensor, nn
    from tinygrad.nn.state import load_state_dict

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
    from tinygrad import Tensor, nn
    from tinygrad.nn.state import get_state_dict, safe_save

    rng = np.random.default_rng(case.seed)
    shapes = get_state_dict(nn.LSTMCell(INPUT, HIDDEN, bias=case.bias))
    tensors = {name: Tensor(draw(rng, t.shape)).realize() for name, t in shapes.items()}
    path = folder / "source.safetensors"
    safe_save(tensors, str(path))
    x = inputs(case)
    return Sample(path, x, _tinygrad_run(tensors, x))


def run_tinygrad(path: Path, x: Array, case: Case) -> Array:
    from tinygrad.nn.state import safe_load

    tensors = {name: t.to("CPU").realize() for name, t in safe_load(path).items()}
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
        make_paddle, run_paddle, weights_paddle, activation,
        weights_only=True,
    ),
    Judge(
        "tinygrad", ".safetensors", {"lstm": ("plain",)},
        make_tinygrad, run_tinygrad, weights_safetensors,
        weights_only=True, depths=(1,), ways=(False,),
    ),
)  # fmt: skip
