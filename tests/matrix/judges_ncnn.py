"""ncnn as a judge: files written here by hand as its wiki describes them, run by its own library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.matrix.judges import HIDDEN, INPUT, Case, Judge, Sample, draw, inputs, resets_before

Array = np.ndarray[Any, Any]
_GATES = {"lstm": (4, 4), "gru": (3, 4), "rnn": (1, 1)}
PROJECTED = 2


def members(case: Case, width: int, rng: np.random.Generator) -> list[Array]:
    """The weights of one layer in the order of the file."""
    gates, biases = _GATES[case.cell]
    count = 2 if case.bidirectional else 1
    out = PROJECTED if case.option == "projection" else HIDDEN
    shapes: list[tuple[int, ...]] = [
        (count, gates * HIDDEN, width),
        (count, biases * HIDDEN),
        (count, gates * HIDDEN, out),
    ]
    if case.option == "projection":
        shapes.append((count, PROJECTED, HIDDEN))
    return [draw(rng, shape) for shape in shapes]


def params(case: Case, weights: list[Array]) -> str:
    """The parameters of one layer."""
    out = PROJECTED if case.option == "projection" else HIDDEN
    direction = 2 if case.bidirectional else int(case.option == "reverse")
    told = f"0={out} 1={weights[0].size} 2={direction}"
    return f"{told} 3={HIDDEN}" if case.option == "projection" else told


def make_ncnn(case: Case, folder: Path) -> Sample:
    rng = np.random.default_rng(case.seed)
    lines, data, width, blob = ["Input in0 0 1 in0"], b"", INPUT, "in0"
    for number in range(case.layers):
        weights = members(case, width, rng)
        given = "out0" if number == case.layers - 1 else f"b{number}"
        lines.append(f"{case.cell.upper()} rnn_{number} 1 1 {blob} {given} {params(case, weights)}")
        data += b"".join(bytes(4) + array.tobytes() for array in weights)
        width = weights[2].shape[-1] * (2 if case.bidirectional else 1)
        blob = given
    path = folder / "source.param"
    path.write_text("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines]) + "\n")
    path.with_suffix(".bin").write_bytes(data)
    x = inputs(case)
    return Sample(path, x, run_ncnn(path, x, case))


def run_ncnn(path: Path, x: Array, case: Case) -> Array:
    import ncnn

    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    net.opt.num_threads = 1
    assert net.load_param(str(path)) == 0
    assert net.load_model(str(path.with_suffix(".bin"))) == 0
    rows = []
    for row in x:
        extractor = net.create_extractor()
        extractor.input(net.input_names()[0], ncnn.Mat(np.ascontiguousarray(row)).clone())
        rows.append(np.array(extractor.extract(net.output_names()[0])[1]))
    return np.stack(rows)


def weights_ncnn(path: Path) -> list[Array]:
    """All words of the file, the ones that say how the others are stored among them."""
    return [np.fromfile(path.with_suffix(".bin"), np.uint32)]


def refused(case: Case, source: str) -> bool:
    """What its layers cannot hold."""
    if case.option in ("peephole", "hard_sigmoid", "clip", "relu", "reset_before", "sum", "ave", "mul"):
        return True
    if case.option == "reverse" and source == "keras":
        return True  # its output is in the order of its visits
    return case.cell == "gru" and resets_before(case, source)


JUDGES = (
    Judge(
        "ncnn", ".param",
        {"lstm": ("plain", "projection", "reverse"), "gru": ("reset_after",), "rnn": ("plain",)},
        make_ncnn, run_ncnn, weights_ncnn,
        always_bias=True, remembers=False,
    ),
)  # fmt: skip
