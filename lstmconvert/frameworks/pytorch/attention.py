"""Attention, and products of two sequences; formulas as in ``lstmconvert.interpreter``."""

from __future__ import annotations

from collections.abc import Mapping

from lstmconvert.frameworks.pytorch.source import call
from lstmconvert.frameworks.pytorch.use import Use
from lstmconvert.frameworks.pytorch.values import Value
from lstmconvert.operations import AdditiveAttention, Attention, Dot, MaskedRow, MultiHeadAttention
from lstmconvert.shapes import Shape

_NORM_FLOOR = "1e-7"
"""Keras divides by no smaller a norm."""


def _taken_apart(use: Use, names: tuple[str, ...]) -> tuple[Value, Value, Value, Mapping[str, str]]:
    """Query, value, key (the value where it is not given), and the masks that follow them."""
    count = len(use.inputs) - len(names)
    if count not in (2, 3):
        raise use.refused(f"it takes query, value and perhaps key, not {count} inputs")
    values = [value.in_dtype(use.dtype).last() for value in use.inputs[:count]]
    masks = [mask.in_dtype("bool").operand for mask in use.inputs[count:]]
    return values[0], values[1], values[-1], dict(zip(names, masks, strict=True))


def attention(use: Use, operation: Attention | AdditiveAttention, shapes: list[Shape]) -> list[Value]:
    """Scores by products, or by tanh of every pair's sum; then the mixed values."""
    query, value, key, masks = _taken_apart(use, operation.masks)
    module = use.module
    if isinstance(operation, Attention) and not operation.concat:
        code = f"{query.operand} @ {key.operand}.transpose(1, 2)"
        if "scale" in use.weights:
            code = f"{code} * {use.parameter('scale')}"
    else:
        code = _pair_scores(use, operation, query, key)
    scores = module.assigned("scores", code)
    in_scores = {role: mask for role, mask in masks.items() if role != "query"}
    if in_scores or operation.causal:
        allowed = _allowed(use, in_scores, query, value, causal=operation.causal)
        module.line(f"{scores} = {scores}.masked_fill(~{allowed}, torch.finfo({scores}.dtype).min)")
    weights = module.assigned("weights", f"torch.softmax({scores}, dim=-1)")
    mixed = f"{weights} @ {value.operand}"
    if "query" in masks:
        mixed = f"({mixed}).masked_fill(~{masks['query']}.unsqueeze(-1), 0.0)"
    results = [use.value(mixed, shapes[0])]
    return [*results, use.value(weights, shapes[1])] if operation.return_scores else results


def _pair_scores(use: Use, operation: Attention | AdditiveAttention, query: Value, key: Value) -> str:
    """Scores of every pair of steps (batch, query steps, key steps)."""
    module = use.module
    pairs = f"{query.operand}.unsqueeze(2) + {key.operand}.unsqueeze(1)"
    scale = use.parameter("scale") if "scale" in use.weights else ""
    if isinstance(operation, Attention):
        pairs = module.assigned("pairs", f"{scale} * ({pairs})" if scale else pairs)
        return f"{use.parameter('concat_score_weight')} * torch.tanh({pairs}).sum(dim=-1)"
    pairs = module.assigned("pairs", f"torch.tanh({pairs})")
    return f"({scale} * {pairs}).sum(dim=-1)" if scale else f"{pairs}.sum(dim=-1)"


def _allowed(use: Use, masks: Mapping[str, str], query: Value, value: Value, *, causal: bool) -> str:
    """A variable that says which scores count (batch or 1, query steps or 1, value steps or 1)."""
    axis = {"query": 2, "value": 1, "key": 1}
    each = [
        mask if role == "attention" else f"{mask}.unsqueeze({axis[role]})" for role, mask in masks.items()
    ]
    if causal:
        pairs = f"({query.operand}.shape[1], {value.operand}.shape[1])"
        ones = use.module.assigned(
            "pairs", f"torch.ones({pairs}, dtype=torch.bool, device={query.operand}.device)"
        )
        each.append(f"{ones}.tril().unsqueeze(0)")
    return use.module.assigned("allowed", " & ".join(each))


def multi_head_attention(use: Use, operation: MultiHeadAttention, shapes: list[Shape]) -> list[Value]:
    """A module of its own in the file: torch's has other sizes."""
    query, value, key, masks = _taken_apart(use, operation.masks)
    module = use.module
    heads, size, query_features = use.weights["query_kernel"].shape
    key_features, value_size = use.weights["key_kernel"].shape[2], use.weights["value_kernel"].shape[1]
    sizes = {
        "heads": heads,
        "size": size,
        "value_size": value_size,
        "query_features": query_features,
        "key_features": key_features,
        "value_features": use.weights["value_kernel"].shape[2],
        "output_features": use.weights["output_kernel"].shape[0],
    }
    named = {name: str(number) for name, number in sizes.items()}
    if "query_bias" not in use.weights:
        named["bias"] = "False"
    if operation.masked_row is not MaskedRow.ZERO:
        named["zero_masked"] = "False"
    constructor = call(module.helper("MultiHeadAttention"), **named)
    layer = use.sublayer(constructor, "multi_head_attention")
    arguments = [query.code, value.code, key.code]
    if masks or operation.causal:
        arguments.append(_allowed(use, masks, query, value, causal=operation.causal))
    name = module.result_variable(use.layer, {variable for item in use.inputs for variable in item.variables})
    weights = module.variable("weights") if operation.return_scores else "_"
    module.line(f"{name}, {weights} = {call(layer, *arguments)}")
    results = [use.value(name, shapes[0])]
    return [*results, use.value(weights, shapes[1])] if operation.return_scores else results


def dot(use: Use, operation: Dot, shape: Shape) -> Value:
    """Contraction of one axis of each, batch by batch; the result has at least two axes."""
    left, right = (value.last() for value in use.floats())
    a, b = operation.axes[0] % left.rank, operation.axes[1] % right.rank
    codes = [left.code, right.code]
    if operation.normalize:
        codes = [
            f"F.normalize({code}, dim={axis}, eps={_NORM_FLOOR})"
            for code, axis in zip(codes, (a, b), strict=True)
        ]
    letters = "abcdefghijklmnopqrstuvwxy"
    first = "z" + letters[: left.rank - 1]
    second = "z" + letters[left.rank - 1 : left.rank + right.rank - 2]
    second = second[:b] + first[a] + second[b + 1 :]
    kept = first.replace(first[a], "") + second[1:].replace(first[a], "")
    code = call("torch.einsum", f'"{first},{second}->{kept}"', *codes)
    return use.value(f"{code}.unsqueeze(1)" if len(kept) == 1 else code, shape)
