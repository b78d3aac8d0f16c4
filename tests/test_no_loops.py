"""Whole models to ONNX: no loop for what fused nodes express, and releases of two years load the file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import lstmconvert as lc
from tests.architecture_judging import fused
from tests.frameworks import keras_zoo as zoo

OLD_IR, OLD_OPSET = 10, 21
"""What ONNX Runtime 1.18 of May 2024 loads."""


@pytest.mark.parametrize(
    "name",
    [
        "gru_reset_after",
        "gru_reset_before",
        "lstm_hard_sigmoid",
        "bidirectional_sum",
        "bidirectional_gru_last_sum",
        "masked_embedding",
        "all_padding",
        "stateful",
    ],
)
def test_no_loop_and_an_old_format(name: str, tmp_path: Path) -> None:
    import keras

    model, _ = zoo.build(name, keras)
    model.save(tmp_path / "source.keras")
    lc.convert(tmp_path / "source.keras", tmp_path / "model.onnx")
    fused(tmp_path / "model.onnx")
    written = onnx.load(str(tmp_path / "model.onnx"))
    assert written.ir_version <= OLD_IR
    assert all(entry.version <= OLD_OPSET for entry in written.opset_import if entry.domain == "")
    assert any(node.op_type in ("LSTM", "GRU", "RNN") for node in written.graph.node)
