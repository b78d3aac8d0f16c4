"""Results as text for people: the few lines that a command prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstmconvert.conversion import Result
    from lstmconvert.proof import Proof


def conversion(result: Result, *, verbose: bool) -> str:
    """Which file became which, and the proof."""
    written = ", ".join(str(path) for path in result.written)
    lines = [f"{result.source} ({result.framework_from}) -> {written} ({result.framework_to})"]
    if result.proof is None:
        lines.append("not proved: --no-verify was given")
    else:
        lines.append(proof(result.proof, verbose=verbose))
    return "\n".join(lines)


def proof(outcome: Proof, *, verbose: bool) -> str:
    """The verdict in two or three lines; with ``verbose`` one more for every layer and rewrite."""
    lines = []
    equal = sum(layer.bit_equal for layer in outcome.layers)
    if outcome.layers:
        count = len(outcome.layers)
        layers = f"{count} recurrent layer{'s' * (count > 1)}"
        exact = f"weights of {layers if equal == count else f'{equal} of {layers}'} bit-equal"
        worst = max(layer.max_abs_error for layer in outcome.layers)
        allowed = max(layer.tolerance for layer in outcome.layers)
        lines.append(
            f"{outcome.verdict}: {exact}; outputs and states differ by {worst:.3g} (tolerance {allowed:.3g})"
        )
    else:
        lines.append(f"{outcome.verdict}: no recurrent layers to compare")
    for whole in outcome.whole:
        first = f", first at layer {whole.first_difference!r}" if whole.first_difference else ""
        lines.append(
            f"whole model in {whole.runtime}: differs by {whole.max_abs_error:.3g} "
            f"(tolerance {whole.tolerance:.3g}){first}"
        )
    if outcome.movement is not None:
        moved = outcome.movement
        ways = [f"{n} {way}" for n, way in ((moved.source, "read"), (moved.target, "written")) if n]
        lines.append(
            f"movement of data {'proved' if moved.proved else 'failed'}: "
            f"{' and '.join(ways) or 'no'} elements followed one by one"
        )
        lines += [f"problem: {problem}" for problem in moved.problems]
        lines += [f"not followed: {reason}" for reason in moved.skipped] if verbose else []
    rounding = [step for step in outcome.rewrites if not step.exact]
    lines += [
        f"rounds: layer {step.layer!r}: {step.description}"
        + (f" (by at most {step.rounding:.3g})" if step.rounding else "")
        for step in rounding
    ]
    lines += [f"problem: {problem}" for problem in outcome.problems]
    if verbose:
        lines += [
            f"layer {layer.name!r} -> {layer.target!r}: "
            f"{'bit-equal' if layer.bit_equal else 'differs in bits'}, "
            f"max error {layer.max_abs_error:.3g}, relative {layer.max_rel_error:.3g}"
            for layer in outcome.layers
        ]
        lines += [
            f"layer {layer.name!r}: {block} differs by {gap:.3g}"
            + (f" ({ulps} units in the last place)" if ulps is not None else "")
            for layer in outcome.layers
            for block, gap, ulps in layer.differing
        ]
        lines += [f"exact: layer {s.layer!r}: {s.description}" for s in outcome.rewrites if s.exact]
    lines += [f"not shown: {reason}" for reason in outcome.skipped]
    return "\n".join(lines)


def inspection(value: Mapping[str, Any], *, verbose: bool) -> str:
    """The recurrent layers, and then the rest of the model."""
    lines = [f"{value['file']}: {value['framework']}, {value['container']}"]
    for layer in value["layers"]:
        width = f", projection {layer['projection_size']}" if layer["projection_size"] else ""
        lines.append(
            f"{layer['name']}: {layer['cell'].upper()} {layer['direction']}, "
            f"input {layer['input_size']}, hidden {layer['hidden_size']}{width}, {layer['dtype']}"
        )
        lines.append(f"  gates as stored: {', '.join(layer['gates'])}")
        described = ", ".join(f"{role} {name}" for role, name in layer["activations"].items())
        lines.append(f"  activations: {described}; biases: {layer['biases']}")
        if layer["reset_after"] is not None:
            place = "after" if layer["reset_after"] else "before"
            lines.append(
                f"  reset gate acts {place} the recurrent product (reset_after={layer['reset_after']})"
            )
        extra = {k: v for k, v in layer["options"].items() if k != "update_keeps" or v != "state"}
        if layer["peephole"]:
            extra["peepholes"] = "yes"
        if extra:
            lines.append("  options: " + ", ".join(f"{k} {v}" for k, v in extra.items()))
        if verbose:
            lines.append("  tensors: " + ", ".join(layer["tensors"]))
    if not value["layers"]:
        lines.append("no recurrent layers")
    if value["topology"] is None:
        lines.append(f"no topology: {value['topology_unknown'] or 'the file holds weights only'}")
    else:
        lines.append("model: " + " -> ".join(_chain(value["topology"])))
    others = value["others"]
    if others:
        lines.append("other layers: " + ", ".join(f"{o['name']} ({o['operation']})" for o in others))
    lines += [f"read with a change: {step['layer']}: {step['description']}" for step in value["rewrites"]]
    tensors = value["other_tensors"]
    if tensors:
        named = [name if shape is None else f"{name} {_shape(shape)}" for name, shape in tensors.items()]
        shown = named if verbose else named[:6]
        more = f" and {len(named) - len(shown)} more" if len(named) > len(shown) else ""
        lines.append("other tensors: " + ", ".join(shown) + more)
    return "\n".join(lines)


def _chain(topology: Mapping[str, Any]) -> list[str]:
    inputs = [f"{p['name']} {_shape(p['shape'])}" for p in topology["inputs"]]
    outputs = [f"{p['name']} {_shape(p['shape'])}" for p in topology["outputs"]]
    return [", ".join(inputs), *(call["layer"] for call in topology["calls"]), ", ".join(outputs)]


def _shape(sizes: Sequence[int | None]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in sizes) + ")"


def trace(value: Mapping[str, Any]) -> str:
    """Every gate and state, step by step."""
    lines = []
    for layer in value["layers"]:
        roles = ", ".join(f"{role} {name}" for role, name in layer["activations"].items())
        lines.append(f"{layer['name']}: {layer['cell'].upper()} ({roles})")
        for number, step in enumerate(layer["steps"], 1):
            lines.append(f"  step {number}")
            width = max(len(name) for name in step)
            for name, batch in step.items():
                for row, values in enumerate(batch):
                    label = name if len(batch) == 1 else f"{name}[{row}]"
                    lines.append(
                        f"    {label:<{width + (len(batch) > 1) * 4}}  "
                        + "  ".join(f"{v: .8f}" for v in values)
                    )
    return "\n".join(lines)


def findings(value: Mapping[str, Any]) -> str:
    """What ``check`` found, or that it found nothing."""
    if not value["findings"]:
        return f"{value['file']}: nothing found"
    return "\n".join(
        f"{value['file']}: {found['place']}: {found['message']} [{found['rule']}]\n"
        f"  {found['consequence']}\n  {found['cure']}"
        for found in value["findings"]
    )


def identification(value: Mapping[str, Any], source: str, *, verbose: bool) -> str:
    """What arrays were found to be, how certain that is, and what to do next."""
    lines = [f"{source}: {_conclusion(value)}"]
    for layer in value["layers"]:
        lines.append(
            f"{layer['name']}: {layer['cell'].upper()}, input {layer['input_size']}, "
            f"hidden {layer['hidden_size']}"
        )
        lines.append(f"  gates as stored: {', '.join(layer['gates'])}")
        for part, entries in layer["tensors"].items():
            lines += [f"  {part.replace('_', ' ')}: {name} as {axes}" for name, axes in entries]
        described = ", ".join(f"{role} {name}" for role, name in layer["activations"].items())
        lines.append(f"  equations: {described}{_options(layer['equations'])}")
        for entry in layer["evidence"]:
            word = "certain" if entry["certain"] else "likely"
            lines.append(f"  from the arrays alone, {word}: {entry['claim']} ({entry['because']})")
        if verbose:
            for entry in layer["statistics"]:
                mean = "none" if entry["bias_mean"] is None else f"{entry['bias_mean']:.3g}"
                lines.append(
                    f"  block {entry['block']} ({entry['gate']}): mean of the bias {mean}, deviation of the "
                    f"kernel {entry['kernel_deviation']:.3g}, "
                    f"of the recurrent kernel {entry['recurrent_deviation']:.3g}"
                )
    for entry in value["head"]:
        lines.append(f"dense: {', '.join(entry['tensors'])}, {entry['activation']}")
    if value["sample"] is not None:
        lines.append(f"sample: {value['sample']}; {value['tried']} candidates measured")
    if value["states"]:
        lines.append(f"states were given in the order: {', '.join(value['states'])}")
    lines += [f"in doubt: {doubt}" for doubt in value["doubts"]]
    for other in value["alternatives"]:
        if other["same_function"]:
            lines.append(
                f"computes the same on all inputs: {other['differs'] or 'the same with other arrays'}"
            )
        elif other["error"] is None:
            lines.append(f"also possible: {other['differs']}")
        else:
            lines.append(
                f"{'next best' if other['excluded'] else 'not excluded'}: {other['error']:.3g} off; "
                f"{other['differs']}"
            )
    if value["unused"]:
        lines.append(f"arrays that play no part: {', '.join(value['unused'][:8])}")
    if value["frameworks"]:
        lines.append(f"laid out and computed as in: {', '.join(value['frameworks'])}")
    elif value["mapping"] is not None:
        lines.append(f"mapping: {value['mapping']}")
    lines.append(f"next: {_next(value, source)}")
    return "\n".join(lines)


def _conclusion(value: Mapping[str, Any]) -> str:
    gates = ", ".join(value["gates"])
    what = f"{value['cell'].upper()} with its gates in the order {gates}"
    if value["error"] is None:
        return f"perhaps {what} (no sample, so only evidence)"
    second = (
        "nothing else"
        if value["runner_up_error"] is None
        else f"the next best {value['runner_up_error']:.3g}"
    )
    errors = f"error {value['error']:.3g}, {second}; rounding explains {value['tolerance']:.3g}"
    if value["certain"]:
        return f"certain: {what} ({errors})"
    fits = value["error"] <= value["tolerance"]
    return f"not certain: {what} {'fits' if fits else 'comes nearest, and does not fit'} ({errors})"


def _options(told: Mapping[str, Any]) -> str:
    words = {
        "before_product": "reset gate before the recurrent product",
        "after_product": "reset gate after the recurrent product",
        "state": "update gate keeps the state",
        "candidate": "update gate keeps the candidate",
    }
    parts = [words[told[name]] for name in ("reset", "update_keeps") if name in told]
    if "constant" in told:
        added = told["constant"].get("forget", 0.0)
        parts.append(
            f"{added:g} is added to the forget gate at run time" if added else "no constants at run time"
        )
    return "".join(f"; {part}" for part in parts)


def _next(value: Mapping[str, Any], source: str) -> str:
    mapping = value["mapping"]
    if value["certain"] and mapping is not None and mapping.endswith(".toml"):
        return f"lstmconvert convert {source} -o OUT.onnx --mapping {mapping}"
    if value["certain"]:
        return (
            "the same command with --write-mapping FILE.toml, then "
            f"lstmconvert convert {source} -o OUT.onnx --mapping FILE.toml"
        )
    if value["error"] is None:
        return f"lstmconvert identify {source} --input X.npy --output Y.npy, with a sample of the model"
    return (
        "give a longer sample: several sequences of several steps, and the whole sequence where it can be had"
    )


def carried(value: Mapping[str, Any]) -> str:
    """What became of the proof that a written file carries."""
    return f"{value['file']}: {value['verdict']}: {value['detail']}"


def conformance(value: Mapping[str, Any], *, verbose: bool) -> str:
    """For each runtime a table of what it gets right, refuses and gets wrong."""
    lines = []
    if "exported" in value:
        lines.append(f"{value['exported']['cases']} cases written to {value['exported']['folder']}")
    for name, rows in value["runtimes"].items():
        totals = {kind: sum(row[kind] for row in rows) for kind in ("right", "refused", "wrong")}
        lines.append(f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in totals.items()))
        lines.append(f"  {'cell':<5}{'feature':<38}{'right':>6}{'refused':>9}{'wrong':>7}")
        for row in rows:
            lines.append(
                f"  {row['cell']:<5}{row['feature']:<38}{row['right']:>6}{row['refused']:>9}{row['wrong']:>7}"
            )
            if row["example"] and (verbose or row["wrong"]):
                lines.append(f"       {row['example']}")
    return "\n".join(lines)


_VERIFIED: Mapping[str, str] = {
    "runtime": "verified by its runtime",
    "documented": "from its documentation",
    "user": "described by its user",
}


def frameworks(value: Sequence[Mapping[str, Any]]) -> str:
    """One line per framework and cell."""
    lines = []
    for entry in value:
        lines.append(
            f"{entry['title']} ({entry['name']}): {entry['releases']}; {_VERIFIED[entry['verified']]}"
        )
        lines.append(
            f"  reads {', '.join(entry['reads']) or '-'}; writes {', '.join(entry['writes']) or '-'}"
        )
        for name, layout in entry["layouts"].items():
            only = " (read only)" if layout["reads_only"] else ""
            lines.append(f"  {name}: {', '.join(layout['gates'])}{only}")
    return "\n".join(lines)
