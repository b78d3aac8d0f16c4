"""The mapping file of a dump: what was found, in the language of mapping files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lstmconvert import atomic, layout, mapping
from lstmconvert.activations import Activation
from lstmconvert.canonical import Equations, GruEquations, LstmEquations, RecurrentLayer
from lstmconvert.errors import BadFile, NotRepresentable
from lstmconvert.gates import GATES
from lstmconvert.identification.candidates import Choice
from lstmconvert.identification.forms import CANDIDATE, Form, Rule
from lstmconvert.tensors import Array, Lazy, same_bits


def layer_names(forms: Sequence[Form]) -> list[str]:
    """A name for every layer: what the names of its arrays have in common, or its number."""
    names = []
    for number, form in enumerate(forms, 1):
        pieces = [re.split(r"([/.:_])", name)[:-1] for name in form.tensors]
        shared = [all_of[0] for all_of in zip(*pieces, strict=False) if len(set(all_of)) == 1]
        common = re.sub(r"[^A-Za-z0-9]+", "_", "".join(shared)).strip("_") if len(pieces) > 1 else ""
        usable = re.fullmatch(r"[A-Za-z]\w*", common) and common.lower() not in ("arr", "array", "param")
        names.append(common if usable and common not in names else f"layer_{number}")
    return names


def _activation(value: Activation) -> str:
    given = [repr(v) for v in (value.alpha, value.beta) if v is not None]
    return json.dumps(f"{value.kind}({', '.join(given)})" if given else value.kind)


def _equations(equations: Equations) -> list[str]:
    lines = []
    if not hasattr(equations, "gate_activation"):
        return [f"hidden_activation = {_activation(equations.hidden_activation)}"]
    lines.append(f"gate_activation = {_activation(equations.gate_activation)}")
    if isinstance(equations, LstmEquations):
        lines.append(f"cell_activation = {_activation(equations.cell_activation)}")
        lines.append(f"hidden_activation = {_activation(equations.hidden_activation)}")
        if equations.constant:
            told = ", ".join(f"{gate} = {value!r}" for gate, value in equations.constant.items())
            lines.append(f"constant = {{ {told} }}")
    if isinstance(equations, GruEquations):
        lines.append(f"candidate_activation = {_activation(equations.candidate_activation)}")
        lines.append(f'reset = "{equations.reset}"')
        lines.append(f'update_keeps = "{equations.update_keeps}"')
    return lines


def _rule(rule: Rule, form: Form, choice: Choice) -> str:
    gates = GATES[form.cell]
    entries = [f"name = {json.dumps(rule.tensor)}", f'axes = "{rule.axes.text}"']

    def spelled(position: int) -> str:
        return str(gates[2] if position == CANDIDATE else choice.gates[position])

    if rule.slots:
        entries.append(f"slots = {json.dumps([f'{part}.{spelled(n)}' for part, n in rule.slots])}")
    elif len(rule.positions) < len(gates):
        entries.append(f"gates = {json.dumps([spelled(n) for n in rule.positions])}")
    return "{ " + ", ".join(entries) + " }"


def text(
    layers: Mapping[str, tuple[Form, Choice]], source: str, container: str, remarks: Sequence[str]
) -> str:
    """The mapping file of some layers.

    Args:
        layers: name to where its numbers lie and what they are.
        source: name of the dump, for the file's head.
        container: its container.
        remarks: comments at the top.
    """
    lines = [f"# {remark}" for remark in remarks]
    lines += [
        "schema = 1",
        "",
        "[framework]",
        'name = "identified"',
        f"title = {json.dumps(source)}",
        f"documentation = {json.dumps(f'what lstmconvert identify found {source} to be')}",
        f'containers = ["{container}"]',
    ]
    for name, (form, choice) in layers.items():
        lines += ["", f"[layout.{name}]", f'cell = "{form.cell}"']
        if len(GATES[form.cell]) > 1:
            lines.append(f"gates = {json.dumps([str(gate) for gate in choice.gates])}")
        lines += ["", f"[layout.{name}.tensors]"]
        by_part: dict[str, list[Rule]] = {}
        for rule in form.rules:
            by_part.setdefault(str(rule.part), []).append(rule)
        for part, rules in by_part.items():
            spelled = [_rule(rule, form, choice) for rule in rules]
            if len(spelled) == 1:
                lines.append(f"{part} = {spelled[0]}")
            else:
                lines += [f"{part} = [", *(f"  {entry}," for entry in spelled), "]"]
        lines += ["", f"[layout.{name}.equations]", *_equations(choice.equations)]
    return "\n".join(lines) + "\n"


def write(
    path: Path,
    content: str,
    layers: Mapping[str, RecurrentLayer],
    arrays: Mapping[str, Array],
    *,
    overwrite: bool,
    sources: Sequence[Path] = (),
) -> None:
    """Write a mapping file and see that it reads the layers as they were found, bit for bit.

    Raises:
        NotRepresentable: when names of arrays cannot stand in a mapping file.
        Usage: when the file exists and is not to be replaced.
    """
    for layer in layers.values():
        for name in layer.origin:
            if "{" in name or "}" in name:
                raise NotRepresentable(
                    "a mapping file cannot name this array: braces are holes in its names",
                    place=name,
                    remedy="Rename the array in the dump.",
                )
    lazies = {name: Lazy.of(array) for name, array in arrays.items()}
    with atomic.replacing(path, overwrite=overwrite, sources=sources) as (place,):
        place.write_text(content, encoding="utf-8")
        described = mapping.load_file(place)
        for name, layer in layers.items():
            (blocks,) = layout.unpack(described.layouts[name], lazies).values()
            own = layer.directions[0].weights
            if blocks.keys() != own.keys() or not all(
                same_bits(_in_one_piece(blocks[key]), _in_one_piece(own[key])) for key in own
            ):
                raise BadFile("the mapping file does not say what was found", file=path, place=name)


def _in_one_piece(block: Lazy) -> Array:
    result: Array = block.read().copy(order="C")
    return result
