"""Live torch modules as whole models: what the module gives, ONNX Runtime, Keras and torch give for the result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import lstmconvert as lc
from lstmconvert.live import read_any
from tests.counting import COUNTED
from tests.frameworks import torch_zoo
from tests.frameworks.torch_zoo import ZOO

Array = np.ndarray[Any, Any]
WARNS = {
    torch_zoo.Packed: "longest",
    torch_zoo.Looped: r"x \(None, 7, 3\)",
    torch_zoo.CRNN: r"x \(None, 1, 8, 9\)",
}
NOT_IN = {
    (torch_zoo.TrainedStates, "keras"): "trained initial state",
    (torch_zoo.ProjectionStreaming, "keras"): "no projection",
    (torch_zoo.ProjectionStreaming, "onnx"): "no projection",
}


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(11)
    module = kind().eval()
    for inner in module.modules():
        if isinstance(inner, nn.BatchNorm2d):
            inner.running_mean.normal_()
            inner.running_var.uniform_(0.5, 2)
    return module


def others(kind: type[nn.Module], example: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inputs of another batch and another length, wherever that is free."""
    if kind is torch_zoo.CRNN:
        return tuple(torch.randn(5, *x.shape[1:]) for x in example)
    if kind in (torch_zoo.TimeMajor, torch_zoo.CausalAttention, torch_zoo.ProjectionStack):
        return (torch.randn(4, 3, 3),)
    if kind in (torch_zoo.Unrolled, torch_zoo.Looped, torch_zoo.Autoencoder):
        return (torch.randn(3, 7, 3),)  # the number of steps is in the module
    if kind is torch_zoo.VoiceActivity:
        return torch.randn(3, 3, 12), torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    if kind is torch_zoo.ProjectionStreaming:
        return torch.randn(2, 9, 3), torch.randn(1, 2, 4), torch.randn(1, 2, 6)
    if kind is torch_zoo.Packed:
        return torch.randn(4, 9, 3), torch.tensor([2, 9, 1, 5])
    if kind is torch_zoo.PackedStack:
        return torch.randn(9, 4, 3), torch.tensor([8, 8, 3, 1]), torch.randn(2, 4, 5)
    if kind is torch_zoo.PackedTagger:
        return torch.randint(0, 11, (3, 9)), torch.tensor([4, 2, 8])
    if kind is torch_zoo.Streaming:
        return torch.randn(3, 4, 3), torch.randn(1, 3, 6)
    if not example[0].is_floating_point():
        return tuple(torch.randint(0, 11, (3, x.shape[1] + 2)) for x in example)
    return tuple(torch.randn(3, x.shape[1] + 2, *x.shape[2:]) for x in example)


def flat(value: Any) -> list[Array]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [array for item in value for array in flat(item)]
    return [value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)]


def run(framework: str, live: Any, inputs: Sequence[Tensor]) -> list[Array]:
    arrays = [x.numpy() for x in inputs]
    if framework == "onnx":
        session = onnxruntime.InferenceSession(live.SerializeToString(), providers=["CPUExecutionProvider"])
        return list(session.run(None, {i.name: x for i, x in zip(session.get_inputs(), arrays, strict=True)}))
    if framework == "keras":
        return flat(live(arrays if len(arrays) > 1 else arrays[0]))
    with torch.no_grad():
        return flat(live(*inputs))


@pytest.mark.parametrize("framework", ["onnx", "keras", "torch"])
@pytest.mark.parametrize("kind", ZOO, ids=lambda kind: kind.__name__)
def test_a_module_is_converted_whole(
    kind: type[nn.Module], framework: str, record_property: Callable[[str, object], None]
) -> None:
    module = made(kind)
    example = ZOO[kind]()
    convert = {"onnx": lc.to_onnx, "keras": lc.to_keras, "torch": lc.to_torch}[framework]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    if (kind, framework) in NOT_IN:
        with pytest.raises(lc.ConversionError, match=NOT_IN[kind, framework]):
            convert(module, example)
        record_property(COUNTED, f"torch module to {framework}: refused")
        return
    warning = WARNS.get(kind)
    with nullcontext() if warning is None else pytest.warns(UserWarning, match=warning):
        live = convert(module, example if len(example) > 1 else example[0])
    for inputs in (example, others(kind, example)):
        with torch.no_grad():
            expected = flat(module(*inputs))
        found = run(framework, live, inputs)
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5 * float(np.max(np.abs(two))))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    if framework == "onnx":
        assert not {"Loop", "Scan", "If"} & {node.op_type for node in live.graph.node}
    record_property(COUNTED, f"torch module to {framework}: agreed")


def test_layers_are_named_like_the_modules() -> None:
    model = read_any(made(torch_zoo.Residual), ZOO[torch_zoo.Residual]())
    assert list(model.recurrent) == ["rnns.0", "rnns.1"]
    assert {"inp", "norms.0", "norms.1", "head"} <= set(model.layers)
    assert [port.name for port in model.inputs] == ["x"]


@pytest.mark.parametrize(
    ("kind", "layers"), [(torch_zoo.Unrolled, 1), (torch_zoo.Looped, 1), (torch_zoo.Feedback, 3)]
)
def test_a_cell_is_one_layer_however_often_it_is_used(kind: type[nn.Module], layers: int) -> None:
    with pytest.warns(UserWarning) if kind in WARNS else nullcontext():
        model = read_any(made(kind), ZOO[kind]())
    assert len(model.recurrent) == layers
    uses = [call for call in model.calls or () if call.layer in model.recurrent]
    assert len(uses) == {torch_zoo.Feedback: 11}.get(kind, 7)


class ByTheData(nn.Module):
    """Takes a path that depends on its input: a trace has one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x)[0]
        return y * 2 if x.shape[0] > 2 else y


class Opaque(nn.Module):
    """Uses what ONNX has no operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.qr(self.rnn(x)[0])[0]


def test_what_a_trace_does_not_hold_is_found_out() -> None:
    with pytest.raises(lc.VerificationFailed, match="not what it computes"):
        lc.to_onnx(ByTheData().eval(), torch.randn(2, 5, 3))
    with pytest.raises(lc.UnsupportedSource, match="Opaque"):
        lc.to_onnx(Opaque().eval(), torch.randn(2, 5, 3))
    with pytest.raises(lc.UnsupportedSource, match="tensors"):
        lc.to_onnx(ByTheData().eval(), "x")


def test_a_module_in_training_mode_is_read_as_in_eval_mode() -> None:
    module = made(torch_zoo.LastStep).train()
    example = ZOO[torch_zoo.LastStep]()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        live = lc.to_torch(module, example)
    assert module.training
    module.eval()
    np.testing.assert_allclose(live(*example).detach(), module(*example).detach(), atol=1e-6)


class WithAttention(nn.Module):
    """Attention with options."""

    def __init__(self, *, weights: bool = False, padding: bool = False, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.att = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        self.weights, self.padding = weights, padding

    def forward(self, x: Tensor) -> Any:
        y = self.rnn(x)[0]
        mask = y[..., 0] > 10 if self.padding else None
        result = self.att(y, y, y, key_padding_mask=mask)
        return result if self.weights else result[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": True}, "weights of attention are not converted"),
        ({"padding": True}, "attention with this mask is not converted"),
        ({"add_bias_kv": True}, "trained or zero steps"),
        ({"add_zero_attn": True}, "trained or zero steps"),
    ],
)
def test_attention_that_no_layer_has_is_refused(options: dict[str, bool], reason: str) -> None:
    with pytest.raises(lc.UnsupportedSource, match=reason):
        lc.to_onnx(WithAttention(**options).eval(), torch.randn(2, 5, 3))
