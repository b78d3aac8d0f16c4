"""Results as JSON values: what ``--json`` and ``--report`` give.

The report of a conversion or verification, version 1 (``schema``); later versions only add keys:

``verdict``
    ``proved``, ``failed`` or (without proof) ``unproved``.
``exact``
    whether every weight arrived bit for bit and every rewrite was exact.
``max_abs_error``, ``max_rel_error``, ``tolerance``
    the largest of all layers and runs.
``layers``
    for each recurrent layer ``name``, ``target``, ``proved``, ``bit_equal``, the three errors,
    ``time_errors`` (largest difference at each step), ``differing`` (``block``, ``max_abs_error``, ``ulps``),
    ``not_finite`` (``block``, ``count``: NaN and infinities among the weights).
``whole``
    for each way in which the whole model was run: ``runtime``, ``proved``, the errors, ``first_difference``.
``data_movement``
    ``verdict``, ``elements_read``, ``elements_written``, ``problems``, ``skipped``; ``null`` where
    nothing moved.
``rewrites``
    ``layer``, ``name``, ``description``, ``exact``, ``rounding``.
``problems``, ``skipped``
    sentences: what is wrong apart from numbers, and what could not be shown.
``source``, ``target``
    ``path``, ``sha256``, ``framework``; ``written`` lists every file.
``gate_maps``
    only in files written with ``--report``; see the module of that name.
``seconds``, ``versions``
    how long it took, and releases of what took part.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmconvert import __version__, gates
from lstmconvert.canonical import Equations, GruEquations, LstmEquations, RecurrentLayer, ResetPlace
from lstmconvert.gates import Part
from lstmconvert.lowering import Rewrite
from lstmconvert.model import Layer, Model, OperationLayer
from lstmconvert.proof import LayerProof, Proof, WholeProof

if TYPE_CHECKING:
    from lstmconvert.conversion import Result
    from lstmconvert.opening import Source

SCHEMA = 1
"""Version of the report's form."""


def conversion(result: Result) -> dict[str, Any]:
    """The report of a conversion.

    Keys: those of ``proof`` and ``schema``, ``source`` and ``target`` (path, sha256, framework), ``written``,
    ``versions``.
    """
    report: dict[str, Any] = {"schema": SCHEMA}
    if result.proof is not None:
        report |= proof(result.proof)
    else:
        report |= {"verdict": "unproved", "rewrites": [_rewrite(step) for step in result.rewrites]}
    report["source"] = _file(result.source, result.framework_from)
    report["target"] = _file(result.target, result.framework_to)
    report["written"] = [str(path) for path in result.written]
    report["versions"] = versions()
    return report


def proof(outcome: Proof) -> dict[str, Any]:
    """A proof: ``verdict``, ``exact``, ``max_abs_error``, ``max_rel_error``, ``tolerance``, ``layers``..."""
    return {
        "verdict": outcome.verdict,
        "exact": outcome.exact,
        "max_abs_error": outcome.max_abs_error,
        "max_rel_error": outcome.max_rel_error,
        "tolerance": outcome.tolerance,
        "layers": [_layer_proof(layer) for layer in outcome.layers],
        "whole": [_whole_proof(whole) for whole in outcome.whole],
        "problems": list(outcome.problems),
        "rewrites": [_rewrite(step) for step in outcome.rewrites],
        "skipped": list(outcome.skipped),
        "seconds": outcome.seconds,
        "data_movement": _movement(outcome),
    }


def _movement(outcome: Proof) -> dict[str, Any] | None:
    moved = outcome.movement
    if moved is None:
        return None
    return {
        "verdict": "proved" if moved.proved else "failed",
        "elements_read": moved.source,
        "elements_written": moved.target,
        "problems": list(moved.problems),
        "skipped": list(moved.skipped),
    }


def _layer_proof(layer: LayerProof) -> dict[str, Any]:
    return {
        "name": layer.name,
        "target": layer.target,
        "proved": layer.proved,
        "bit_equal": layer.bit_equal,
        "max_abs_error": layer.max_abs_error,
        "max_rel_error": layer.max_rel_error,
        "tolerance": layer.tolerance,
        "time_errors": list(layer.time_errors),
        "differing": [
            {"block": name, "max_abs_error": gap, "ulps": ulps} for name, gap, ulps in layer.differing
        ],
        "not_finite": [{"block": name, "count": count} for name, count in layer.not_finite],
    }


def _whole_proof(whole: WholeProof) -> dict[str, Any]:
    return {
        "runtime": whole.runtime,
        "proved": whole.proved,
        "max_abs_error": whole.max_abs_error,
        "max_rel_error": whole.max_rel_error,
        "tolerance": whole.tolerance,
        "first_difference": whole.first_difference,
    }


def _rewrite(step: Rewrite) -> dict[str, Any]:
    return {
        "layer": step.layer,
        "name": step.name,
        "description": step.description,
        "exact": step.exact,
        "rounding": step.rounding,
    }


def _file(path: Path, framework: str) -> dict[str, Any]:
    import hashlib  # only when a report is made: its start-up is felt

    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return {"path": str(path), "sha256": digest.hexdigest(), "framework": framework}


def verification(outcome: Proof, first: Path, second: Path) -> dict[str, Any]:
    """The report of a verification: as that of a conversion, with nothing ``written``."""
    report: dict[str, Any] = {"schema": SCHEMA, **proof(outcome)}
    report["source"] = _file(first, "")
    report["target"] = _file(second, "")
    report["written"] = []
    report["versions"] = versions()
    return report


def versions() -> dict[str, str]:
    """Releases of what took part."""
    found = {"lstmconvert": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("numpy", "h5py", "onnx", "onnxruntime"):
        release = getattr(sys.modules.get(name), "__version__", None)
        if release is not None:
            found[name] = str(release)
    return found


def inspection(source: Source) -> dict[str, Any]:
    """What a file holds: ``framework``, ``container``, recurrent ``layers``, ``topology``, ``others``.

    ``topology_unknown`` says why there is no topology of a file that has one; ``rewrites`` what reading
    changed; ``other_tensors`` the tensors that belong to no layer, with their shapes where the reader knows.
    """
    model = source.model
    return {
        "file": str(source.path),
        "framework": source.framework,
        "container": source.container,
        "layers": [layer(found) for found in model.recurrent.values()],
        "topology": topology(model),
        "topology_unknown": model.metadata.get("topology"),
        "rewrites": [dict(step) for step in model.metadata.get("rewrites", ())],
        "other_tensors": _other_tensors(model),
        "others": [_other(found) for found in model.layers.values() if isinstance(found, OperationLayer)],
    }


def _other_tensors(model: Model) -> dict[str, list[int] | None]:
    held = model.metadata.get("other_tensors", ())
    if isinstance(held, Mapping):
        return {name: None if shape is None else list(shape) for name, shape in held.items()}
    return dict.fromkeys(held)


def layer(found: RecurrentLayer) -> dict[str, Any]:
    """One recurrent layer; ``gates`` are in the order in which the source stores them."""
    first = found.directions[0]
    return {
        "name": found.name,
        "cell": str(found.cell),
        "gates": [str(g) for g in found.stored_gates or gates.GATES[found.cell]],
        "input_size": found.input_size,
        "hidden_size": found.hidden_size,
        "projection_size": found.projected_size,
        "direction": found.direction,
        "biases": _biases(found),
        "activations": activations(first.equations),
        "reset_after": _reset_after(first.equations),
        "dtype": str(found.dtype),
        "options": options(first.equations),
        "peephole": first.weights.has(Part.PEEPHOLE),
        "merge": str(found.sequence.merge) if len(found.directions) == 2 else None,
        "returns": str(found.sequence.returns),
        "stateful": found.sequence.stateful,
        "time_major": found.sequence.time_major,
        "tensors": list(found.origin),
        "parameters": sum(b.size for d in found.directions for b in d.weights.values()),
    }


def _biases(found: RecurrentLayer) -> int:
    weights = found.directions[0].weights
    return int(weights.has(Part.BIAS_INPUT)) + int(weights.has(Part.BIAS_RECURRENT))


def _reset_after(equations: Equations) -> bool | None:
    return equations.reset is ResetPlace.AFTER_PRODUCT if isinstance(equations, GruEquations) else None


def activations(equations: Equations) -> dict[str, str]:
    """The activations by role, with parameters: ``{"gate": "hard_sigmoid(0.2, 0.5)", "cell": "tanh"}``."""
    names = [name for name in equations.__dataclass_fields__ if name.endswith("_activation")]
    return {name.removesuffix("_activation"): str(getattr(equations, name)) for name in names}


def options(equations: Equations) -> dict[str, Any]:
    """What else changes the result, as far as it is not the ordinary."""
    found: dict[str, Any] = {}
    for name in equations.__dataclass_fields__:
        value = getattr(equations, name)
        if name.endswith("_clip") and value is not None:
            found[name] = value
        elif name == "constant" and value:
            found[name] = {str(gate): number for gate, number in value.items()}
    if isinstance(equations, GruEquations):
        found["update_keeps"] = str(equations.update_keeps)
    if isinstance(equations, LstmEquations) and equations.coupling != "none":
        found["coupling"] = str(equations.coupling)
    return found


def topology(model: Model) -> Any:
    """The calls in order, or ``None`` where the file holds weights only."""
    if model.calls is None:
        return None
    return {
        "inputs": [{"name": p.name, "shape": list(p.shape), "dtype": p.dtype} for p in model.inputs],
        "outputs": [{"name": p.name, "shape": list(p.shape), "dtype": p.dtype} for p in model.outputs],
        "calls": [
            {
                "layer": call.layer,
                "inputs": list(call.inputs),
                "outputs": list(call.outputs),
                "mask": call.mask,
            }
            for call in model.calls
        ],
    }


def _other(found: Layer) -> Mapping[str, Any]:
    assert isinstance(found, OperationLayer)
    return {
        "name": found.name,
        "operation": type(found.operation).__name__,
        "weights": {part: list(block.shape) for part, block in found.weights.items()},
    }
