"""Written files run in their own runtimes, in the dtypes that they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lstmconvert as lc
from lstmconvert import live, runtimes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_a_torch_module_runs_in_the_dtype_of_its_file(
    tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(5)
    source = nn.LSTM(3, 5, num_layers=2, bidirectional=True, batch_first=True).to(dtype)
    path = tmp_path / "model.safetensors"
    lc.write(live.read_any(source), path)
    model = lc.read(path)
    inputs = [np.random.default_rng(6).normal(size=(2, 7, 3)).astype(model.inputs[0].dtype)]
    proofs, skipped = runtimes.prove(model, path, tolerance, inputs=inputs)
    assert not skipped
    assert len(proofs) == 1
    assert proofs[0].proved, proofs[0]
