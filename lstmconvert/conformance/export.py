"""The cases as files for other projects: ONNX node-test folders and ``.npz``.

A folder is what ``onnx.backend.test`` reads: ``model.onnx``, ``test_data_set_0/input_0.pb`` and so on in the
order of the model's inputs, ``output_0.pb`` in that of its outputs, everything in the case's dtype. Beside
them ``case.npz`` holds the same inputs under ONNX's names and the outputs in float64 as ``expected_Y``,
``expected_Y_h`` and ``expected_Y_c``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lstmconvert.conformance import as_onnx
from lstmconvert.conformance.cases import Case, cases
from lstmconvert.errors import Usage


def export(folder: str | Path, chosen: Iterable[Case] | None = None) -> int:
    """Write cases to a new or empty folder; returns how many.

    Raises:
        Usage: when the folder holds something already.
    """
    from onnx import numpy_helper

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    if any(place.iterdir()):
        raise Usage(f"the folder {place} is not empty", remedy="Name a new one.")
    count = 0
    for case in cases() if chosen is None else chosen:
        given, expected = as_onnx.tensors(case)
        # Node tests give the weights as inputs, so that a backend must take them at run time.
        proto = as_onnx.model(case, weights_inside=False)
        data = place / f"test_{case.name}" / "test_data_set_0"
        data.mkdir(parents=True)
        (data.parent / "model.onnx").write_bytes(proto.SerializeToString())
        for number, port in enumerate(proto.graph.input):
            tensor = numpy_helper.from_array(given[port.name], port.name)
            (data / f"input_{number}.pb").write_bytes(tensor.SerializeToString())
        with np.errstate(over="ignore"):
            for number, port in enumerate(proto.graph.output):
                tensor = numpy_helper.from_array(expected[port.name].astype(case.dtype), port.name)
                (data / f"output_{number}.pb").write_bytes(tensor.SerializeToString())
        held = {**given, **{f"expected_{name}": array for name, array in expected.items()}}
        np.savez(data.parent / "case.npz", allow_pickle=False, **held)
        count += 1
    return count
