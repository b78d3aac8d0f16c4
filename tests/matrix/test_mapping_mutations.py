"""Mutated mapping files: with any of them wrong in one place, what a real runtime computed is no longer found.

Each mutant is the text of a mapping file with one line changed. Files that the runtimes made are read with it
and the equations run on what was read; where that shows nothing, they are written with it and the runtime runs
them. A mutant that gives every runtime's own numbers both ways survives.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import lstmconvert as lc
from lstmconvert import mapping
from tests.counting import COUNTED
from tests.matrix.judges import Case, Judge, Sample, cases
from tests.matrix.test_matrix import JUDGES

Record = Callable[[str, object], None]
_TABLE = re.compile(r"^\[layout\.(\w+)", re.MULTILINE)
_GROUPS = re.compile(r"\([^)]*\)|\S+")
ENOUGH = 3
"""After so many faults that no file notices, and none that one does, a layout is not in the files of a judge."""
OWN_LAYOUT = ("plain", "mgu", "cell", "program", "peephole")
"""Options of judges that have other names for tensors."""
_TOGGLED = {
    'reset = "after_product"': 'reset = "before_product"',
    'reset = "before_product"': 'reset = "after_product"',
    'update_keeps = "state"': 'update_keeps = "candidate"',
    'update_keeps = "candidate"': 'update_keeps = "state"',
    'gate_activation = "sigmoid"': 'gate_activation = "hard_sigmoid(0.2, 0.5)"',
    "constant = { forget = 1.0 }": "",
}


def changes(line: str, *, several: bool) -> Iterator[tuple[str, str]]:
    """What one line of a mapping file can have wrong: a name for it, and the wrong line.

    With one gate alone, where it stands among the gates is no fault: ``several`` says that there are more.
    """
    if line in _TOGGLED:
        yield f"toggle {line}", _TOGGLED[line]
    ordered = "axes" not in line or "gate" in line.partition("axes = ")[2].partition(",")[0]
    if ordered and (match := re.match(r"(.*\bgates = \[)([^\]]*)(\].*)$", line)):
        gates = match[2].split(", ")
        for one, other in combinations(range(len(gates)), 2):
            turned = list(gates)
            turned[one], turned[other] = turned[other], turned[one]
            yield f"swap gates {gates[one]} and {gates[other]}", f"{match[1]}{', '.join(turned)}{match[3]}"
    if match := re.match(r'(\w+) *= \{.*axes = "([^"]*)"', line):
        part, axes = match[1], match[2]
        groups = _GROUPS.findall(axes)
        for one, other in combinations(range(len(groups)), 2):
            turned = list(groups)
            turned[one], turned[other] = turned[other], turned[one]
            yield f"turn {part}", line.replace(f'"{axes}"', f'"{" ".join(turned)}"')
        if "(gate hidden)" in axes and several:
            yield f"interleave {part}", line.replace("(gate hidden)", "(hidden gate)")
        if part.startswith("bias"):
            yield f"leave out {part}", ""
    if match := re.match(r"(spelling\.\w+|gate_names) = \{ (.*) \}$", line):
        words = [word.split(" = ") for word in match[2].split(", ")]
        for (a, one), (b, other) in combinations(words, 2):
            if one == other:
                continue  # no fault
            told = ", ".join(
                f"{key} = {other if key == a else one if key == b else value}" for key, value in words
            )
            yield f"swap the spelling of {a} and {b}", f"{match[1]} = {{ {told} }}"


def mutants(text: str) -> Iterator[tuple[str, str, str]]:
    """Layout, fault and text of every mutant of a mapping file; only recurrent layouts."""
    lines = text.splitlines()
    recurrent = set(re.findall(r"^\[layout\.(\w+)\]\ncell =", text, re.MULTILINE))
    layout = ""
    for number, line in enumerate(lines):
        if match := _TABLE.match(line):
            layout = match[1]
        if layout not in recurrent:
            continue
        if line.startswith("gates = ") and not _orders(lines[number:]):
            continue  # each tensor says its own gates
        for fault, wrong in changes(line, several=not layout.startswith("rnn")):
            yield layout, fault, "\n".join([*lines[:number], wrong, *lines[number + 1 :]]) + "\n"


def _orders(lines: Sequence[str]) -> bool:
    """Whether a layout's order of gates stands for some tensor of it; ``lines`` begin with the order."""
    rest = "\n".join(lines[1:])
    end = re.search(r"^\[layout\.\w+\]", rest, re.MULTILINE)
    own = rest[: end.start()] if end else rest
    return any("(gate " in line or " gate)" in line for line in own.splitlines() if "gates = " not in line)


def chosen(judge: Judge) -> list[Case]:
    """One layer of each cell with each option; of those with a layout of their own every form."""
    held: dict[tuple[object, ...], Case] = {}
    for case in cases(judge):
        if case.layers == 1:
            plain = (case.bidirectional, case.bias) if case.option in OWN_LAYOUT else ()
            held.setdefault((case.cell, case.option, *plain), case)
    return list(held.values())


def found(judge: Judge, case: Case, sample: Sample) -> bool:
    """Whether reading a runtime's file gives the runtime's numbers."""
    try:
        model = lc.read(sample.path, framework=judge.name, **judge.read_options(case))
        (layer,) = model.recurrent.values()
        y = layer.run(sample.x.astype(np.float64))[0]
    except (lc.ConversionError, ValueError, KeyError):
        return False
    return y.shape == sample.y.shape and bool(np.max(np.abs(y - sample.y)) <= 2e-5 * np.max(np.abs(sample.y)))


def written(judge: Judge, case: Case, sample: Sample, folder: Path) -> bool:
    """Whether a file written from a runtime's file gives the runtime's numbers when the runtime runs it."""
    suffix = sample.path.suffix if sample.path.is_dir() and sample.path.suffix else judge.suffix
    target = folder / f"written{suffix}"
    if target.is_dir():
        shutil.rmtree(target)
    try:
        told = judge.read_options(case)
        lc.convert(sample.path, target, framework=judge.name, to=judge.name, overwrite=True, **told)
        y = judge.run(target, sample.x, case)
    except Exception:  # whatever a runtime raises at a wrong file
        return False
    return y.shape == sample.y.shape and bool(np.max(np.abs(y - sample.y)) <= 2e-5 * np.max(np.abs(sample.y)))


def forget_mappings() -> None:
    mapping.load.cache_clear()


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: judge.name)
def test_a_wrong_mapping_file_is_noticed(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    samples: list[tuple[Case, Sample]] = []
    for number, case in enumerate(chosen(judge)):
        place = tmp_path / f"sample{number}"
        place.mkdir()
        samples.append((case, judge.make(case, place)))
    assert all(found(judge, *sample) and written(judge, *sample, tmp_path) for sample in samples)

    def seen(layout: str) -> bool:
        return noticed(judge, samples, layout, tmp_path)

    all_are_noticed(judge.name, seen, tmp_path, monkeypatch, record_property, enough=ENOUGH)


def all_are_noticed(
    name: str,
    seen: Callable[[str], bool],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
    *,
    enough: int | None = None,
) -> None:
    """Put every mutant in the place of a mapping file; whether each of them is ``seen``, given its layout.

    Args:
        name: the framework.
        seen: whether something is noticed.
        folder: for the wrong mapping files.
        enough: after so many faults of a layout that nothing notices, and none that something does, the layout
            is left alone.
    """
    text = (mapping.folder() / f"{name}.toml").read_text(encoding="utf-8")
    wrong = folder / "mappings"
    wrong.mkdir()
    for other in mapping.folder().glob("*.toml"):
        (wrong / other.name).write_bytes(other.read_bytes())
    monkeypatch.setattr(mapping, "folder", lambda: wrong)
    survivors: dict[str, list[str]] = {}
    caught: dict[str, int] = {}
    refused = 0
    try:
        for layout, fault, mutant in mutants(text):
            if layout not in caught and len(survivors.get(layout, [])) == enough:
                continue
            (wrong / f"{name}.toml").write_text(mutant, encoding="utf-8")
            forget_mappings()
            try:
                mapping.load(name)
            except lc.BadFile:
                refused += 1
                continue
            if seen(layout):
                caught[layout] = caught.get(layout, 0) + 1
            else:
                survivors.setdefault(layout, []).append(fault)
    finally:
        monkeypatch.undo()
        forget_mappings()
    # A layout of which nothing at all is noticed is one that no file here has.
    missed = {layout: faults for layout, faults in survivors.items() if layout in caught}
    found_out = sum(caught.values())
    every = found_out + sum(map(len, missed.values()))
    record_property(
        COUNTED, f"mapping file {name}: {found_out} of {every} mutants noticed, {refused} refused at once"
    )
    assert caught
    assert not missed


def noticed(judge: Judge, samples: Sequence[tuple[Case, Sample]], layout: str, folder: Path) -> bool:
    """Whether some file is read or written otherwise; those of the layout's cell first."""
    ordered = sorted(samples, key=lambda sample: not layout.startswith(sample[0].cell))
    own = [sample for sample in ordered if layout.startswith(sample[0].cell)]
    return not all(found(judge, *sample) for sample in ordered) or not all(
        written(judge, *sample, folder) for sample in own
    )
