"""Modules of torch that its exporter takes apart or refuses, kept whole: each becomes one node of a graph.

torch's exporter spells attention out with the sizes of the example in it, and refuses an LSTM with
projections. Here ``nn.MultiheadAttention`` and each layer of such an LSTM are traced as nodes of the domain
``lstmconvert.torch``, which ``frameworks.onnx`` reads like any other.

Source: ``torch.nn.MultiheadAttention`` and ``torch.autograd.Function.symbolic`` of torch 2.13.
"""

from __future__ import annotations

import copy
from typing import Any

from lstmconvert.errors import UnsupportedSource

DOMAIN = "lstmconvert.torch"


def with_plain_weights(module: Any) -> Any:
    """A copy of a module, with the weights that it computes (``weight_norm``, parametrizations) made plain.

    What it computes in its own precision stays the same bit for bit.
    """
    import torch
    from torch.nn.utils import parametrize, remove_weight_norm
    from torch.nn.utils.weight_norm import WeightNorm

    # A weight that was computed with its history cannot be copied; a copy has no need of that.
    held = [value for inner in module.modules() for value in vars(inner).values()]
    computed = [value for value in held if isinstance(value, torch.Tensor) and not value.is_leaf]
    copied = copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})
    for inner in copied.modules():
        if parametrize.is_parametrized(inner):
            # torch's own function would take them from the class, which the original shares.
            weights = {name: getattr(inner, name).detach() for name in inner.parametrizations}
            inner.__class__ = parametrize.type_before_parametrizations(inner)
            del inner._modules["parametrizations"]
            for name, weight in weights.items():
                setattr(inner, name, torch.nn.Parameter(weight))
        for hook in list(inner._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(inner, hook.name)
    return copied


def keep_whole(module: Any) -> None:
    """Keep every attention module and LSTM with projections whole inside ``module``, which is changed.

    Raises:
        UnsupportedSource: when one has options that no layer of attention has, or another module cannot be
            traced.
    """
    import torch

    for name, inner in module.named_modules():
        if getattr(inner, "proj_size", 0):
            inner.forward = _projected_lstm(inner, name)
        if type(inner) in (torch.nn.LSTMCell, torch.nn.GRUCell, torch.nn.RNNCell):
            inner.forward = _cell(inner)
        if type(inner) is torch.nn.MultiheadAttention:
            if inner.bias_k is not None or inner.bias_v is not None or inner.add_zero_attn:
                raise UnsupportedSource(
                    "attention to trained or zero steps of its own is not converted",
                    place=f"module {name!r}",
                    expected="MultiheadAttention without add_bias_kv and add_zero_attn",
                )
            inner.forward = _attention(inner, name)


def _projected_lstm(module: Any, name: str) -> Any:
    """A forward() for one LSTM of which each layer is traced as one node."""
    import torch

    count = 2 if module.bidirectional else 1

    class Node(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(_context: Any, x: Any, hidden: Any, cells: Any, *weights: Any) -> Any:
            y, *states = torch.lstm(
                x, (hidden, cells), weights, module.bias, 1, 0.0, False, module.bidirectional, False
            )
            return y.unflatten(-1, (count, -1)).transpose(1, 2), *states

        @staticmethod
        def symbolic(graph: Any, *tensors: Any) -> Any:
            made: tuple[Any, ...] = graph.op(f"{DOMAIN}::LSTM", *tensors, outputs=3)
            for result, axes in zip(made, (4, 3, 3), strict=True):
                result.setType(tensors[0].type().with_sizes([None] * axes))
            return made

    def forward(x: Any, hx: Any = None) -> Any:
        if not isinstance(x, torch.Tensor) or x.dim() != 3:
            raise UnsupportedSource(
                "an LSTM with projections takes padded sequences of a batch here", place=f"module {name!r}"
            )
        x = x.transpose(0, 1) if module.batch_first else x
        states = []
        for number in range(module.num_layers):
            rows = slice(number * count, (number + 1) * count)
            if hx is None:
                start = [x.new_zeros(count, x.shape[1], n) for n in (module.proj_size, module.hidden_size)]
            else:
                start = [state[rows] for state in hx]
            weights = [tensor for direction in module.all_weights[rows] for tensor in direction]
            y, *finals = Node.apply(x, *start, *weights)
            x = y.transpose(1, 2).flatten(2)
            states.append(finals)
        hidden, cells = (torch.cat(kind) for kind in zip(*states, strict=True))
        return x.transpose(0, 1) if module.batch_first else x, (hidden, cells)

    return forward


def _cell(module: Any) -> Any:
    """A forward() for one cell that is traced as a layer on sequences of one step."""
    import torch

    run: Any = {
        "LSTMCell": torch.lstm,
        "GRUCell": torch.gru,
        "RNNCell": torch.rnn_relu if getattr(module, "nonlinearity", "") == "relu" else torch.rnn_tanh,
    }[type(module).__name__]
    several = type(module) is torch.nn.LSTMCell

    def forward(x: Any, hx: Any = None) -> Any:
        single = x.dim() == 1
        x = x.unsqueeze(0) if single else x
        if hx is None:
            zeros = x.new_zeros(x.shape[0], module.hidden_size)
            hx = (zeros, zeros) if several else zeros
        elif single:
            hx = tuple(state.unsqueeze(0) for state in hx) if several else hx.unsqueeze(0)
        start = tuple(state.unsqueeze(0) for state in hx) if several else hx.unsqueeze(0)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if module.bias else 2]
        weights = [getattr(module, name) for name in names]
        _, *final = run(x.unsqueeze(0), start, weights, module.bias, 1, 0.0, False, False, False)
        states = tuple(state.squeeze(0) for state in final)
        states = tuple(state.squeeze(0) for state in states) if single else states
        return states if several else states[0]

    return forward


def _attention(module: Any, name: str) -> Any:
    """A forward() for one module that is traced as one node, and computes what the module computes."""
    import torch

    attend: Any = torch.nn.functional.multi_head_attention_forward

    class Node(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(_context: Any, *tensors: Any) -> Any:
            query, key, value, *weights, causal = tensors
            steps = query.shape[1], key.shape[1]
            mask = torch.ones(steps, dtype=torch.bool).triu(1) if bool(causal) else None
            biases = [weight if weight.numel() else None for weight in (weights[3], weights[5])]
            turned = (tensor.transpose(0, 1) for tensor in (query, key, value))
            result, scores = attend(
                *turned, module.embed_dim, module.num_heads, None, biases[0], None, None, False, 0.0,
                weights[4], biases[1], training=False, attn_mask=mask, use_separate_proj_weight=True,
                q_proj_weight=weights[0], k_proj_weight=weights[1], v_proj_weight=weights[2],
                average_attn_weights=False,
            )  # fmt: skip
            return result.transpose(0, 1), scores

        @staticmethod
        def symbolic(graph: Any, *tensors: Any) -> Any:
            name = f"{DOMAIN}::MultiheadAttention"
            made: tuple[Any, Any] = graph.op(name, *tensors, num_heads_i=module.num_heads, outputs=2)
            made[0].setType(tensors[0].type())
            made[1].setType(tensors[0].type().with_sizes([None] * 4))
            return made

    def forward(
        query: Any,
        key: Any,
        value: Any,
        key_padding_mask: Any = None,
        need_weights: bool = True,
        attn_mask: Any = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        if key_padding_mask is not None or (attn_mask is not None and not _is_causal(attn_mask)):
            raise UnsupportedSource(
                "attention with this mask is not converted",
                place=f"module {name!r}",
                expected="no mask, or the causal one",
            )
        causal = attn_mask is not None
        if is_causal and not causal:
            raise UnsupportedSource(
                "is_causal is a hint for a mask, which is missing", place=f"module {name!r}"
            )
        if query.dim() != 3:
            raise UnsupportedSource("attention without a batch is not converted", place=f"module {name!r}")
        if not module.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        if module.in_proj_weight is None:
            matrices = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
        else:
            matrices = module.in_proj_weight.chunk(3)
        none = query.new_zeros(0)
        bias = none if module.in_proj_bias is None else module.in_proj_bias
        result, scores = Node.apply(
            query, key, value, *matrices, bias, module.out_proj.weight,
            none if module.out_proj.bias is None else module.out_proj.bias,
            torch.tensor(causal),
        )  # fmt: skip
        if need_weights and average_attn_weights:
            scores = scores.mean(1)
        result = result if module.batch_first else result.transpose(0, 1)
        return result, scores if need_weights else None

    return forward


def _is_causal(mask: Any) -> bool:
    """Whether a mask lets every step see itself and those before it, and nothing else."""
    import torch

    if mask.dim() != 2:
        return False
    wanted = torch.ones(mask.shape, dtype=torch.bool, device=mask.device).triu(1)
    if mask.dtype == torch.bool:
        return bool(torch.equal(mask, wanted))
    return bool(torch.equal(mask == float("-inf"), wanted) and (mask[~wanted] == 0).all())
