"""A bare state_dict and a description of its wiring: the whole model, judged by the module that the weights are from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import lstmconvert as lc
from lstmconvert.cli import main

Array = np.ndarray[Any, Any]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)
        self.other = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.lstm(self.embed(x))[0])
        return torch.softmax(self.head(y.mean(1)), -1), torch.relu(self.other(y))


CLASSIFIER = """
input = "tokens"
output = ["head", "tags"]

[[step]]
module = "embed"
kind = "embedding"

[[step]]
module = "lstm"
kind = "lstm"

[[step]]
module = "norm"
kind = "layer_norm"

[[step]]
kind = "mean_over_time"

[[step]]
module = "head"
kind = "linear"
activation = "softmax"

[[step]]
module = "other"
kind = "linear"
activation = "relu"
name = "tags"
from = "norm"
"""


class Regression(nn.Module):
    def __init__(self, use: str, *, both: bool) -> None:
        super().__init__()
        self.inp = nn.Linear(3, 4)
        self.rnn = nn.RNN(4, 5, nonlinearity="relu", bidirectional=both, batch_first=True)
        self.bn = nn.BatchNorm1d(10 if both else 5)
        self.head = nn.Linear(10 if both else 5, 2)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.rnn(torch.tanh(self.inp(x)))
        last = y[:, -1] if self.use == "last_step" else torch.cat(list(h), 1)
        return self.head(self.bn(last))


REGRESSION = """
[[step]]
module = "inp"
kind = "linear"
activation = "tanh"

[[step]]
module = "rnn"
kind = "rnn"
activation = "relu"
use = "USE"

[[step]]
module = "bn"
kind = "batch_norm"

[[step]]
module = "head"
kind = "linear"
"""


def saved(module: nn.Module, description: str, folder: Path) -> tuple[Path, Path]:
    torch.manual_seed(4)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    for inner in module.modules():
        if isinstance(inner, nn.BatchNorm1d):
            inner.running_mean.normal_()
            inner.running_var.uniform_(0.5, 2)
    module.eval()
    torch.save(module.state_dict(), folder / "source.pt")
    (folder / "arch.toml").write_text(description, encoding="utf-8")
    return folder / "source.pt", folder / "arch.toml"


def run_onnx(path: Path, x: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: x}))


def agree(found: list[Array], expected: list[Tensor]) -> None:
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_classifier_with_two_heads(tmp_path: Path) -> None:
    import keras

    module = Classifier()
    source, arch = saved(module, CLASSIFIER, tmp_path)
    x = torch.randint(0, 11, (3, 7))
    expected = list(module(x))
    assert (
        main(["torch2onnx", str(source), "-o", str(tmp_path / "o.onnx"), "--arch", str(arch), "--quiet"]) == 0
    )
    agree(run_onnx(tmp_path / "o.onnx", x.numpy()), expected)
    lc.convert(source, tmp_path / "o.keras", arch=arch)
    agree([np.asarray(y) for y in keras.models.load_model(tmp_path / "o.keras")(x.numpy())], expected)
    model = lc.read(source, arch=arch)
    agree(list(model.run(x.numpy())), expected)
    agree([y.detach().numpy() for y in lc.to_torch(model)(x)], expected)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("use", ["last_step", "final_state"])
def test_which_result_is_meant(use: str, both: bool, tmp_path: Path) -> None:
    module = Regression(use, both=both)
    source, arch = saved(module, REGRESSION.replace("USE", use), tmp_path)
    x = torch.randn(4, 6, 3)
    lc.convert(source, tmp_path / "o.onnx", arch=arch)
    agree(run_onnx(tmp_path / "o.onnx", x.numpy()), [module(x)])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "rnn"', 'kind = "lstm"', "no lstm of this name|fixed"),
        ('module = "head"', 'module = "tail"', "no module 'tail'"),
        ('kind = "rnn"', 'kind = "transformer"', "transformer"),
        ('use = "last_step"', 'use = "all"', "all"),
        ('use = "last_step"', 'uses = "last_step"', "uses"),
        ('activation = "relu"', 'activation = "gelu"', "gelu"),
        ('module = "bn"\nkind = "batch_norm"\n', 'kind = "mean_over_time"\n', "no steps of time"),
        ("[[step]]\nmodule = \"bn\"\nkind = \"batch_norm\"\n", "", "leaves tensors out"),
        ('module = "head"\nkind = "linear"\n', 'module = "head"\nkind = "linear"\nfrom = "inp"\n', "sizes do not follow"),
        ("[[step]]\nmodule = \"inp\"", "input = \"tokens\"\n[[step]]\nmodule = \"inp\"", "tokens"),
        ('kind = "linear"\n', 'kind = "linear"\nname = "rnn"\n', "one name"),
        ("[[step]]", "[[steps]]", "steps"),
        ("[[step]]", "[[step", "cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_said_to_be(old: str, new: str, words: str, tmp_path: Path) -> None:
    description = REGRESSION.replace("USE", "last_step")
    assert old in description
    source, arch = saved(Regression("last_step", both=False), description.replace(old, new), tmp_path)
    with pytest.raises(lc.BadFile, match=words):
        lc.convert(source, tmp_path / "o.onnx", arch=arch)
    assert not (tmp_path / "o.onnx").exists()


def test_tensors_that_are_meant_to_be_left_out(tmp_path: Path) -> None:
    description = CLASSIFIER[: CLASSIFIER.index('[[step]]\nmodule = "other"')].replace(', "tags"', "")
    module = Classifier()
    source, arch = saved(module, 'ignore = ["other.*"]\n' + description, tmp_path)
    x = torch.randint(0, 11, (2, 4))
    agree([np.asarray(lc.read(source, arch=arch).run(x.numpy()))], [module(x)[0]])


def test_only_a_state_dict_takes_a_description(tmp_path: Path) -> None:
    source, arch = saved(Classifier(), CLASSIFIER, tmp_path)
    lc.convert(source, tmp_path / "o.onnx", arch=arch)
    with pytest.raises(lc.Usage, match="--arch"):
        lc.convert(tmp_path / "o.onnx", tmp_path / "o.keras", arch=arch)
