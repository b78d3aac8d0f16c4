"""Imports point one way, frameworks are never imported, and nothing ties the project to one machine.

Each rule has a twin that breaks it and sees it fail.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from scripts import first_case
from tests.no_frameworks.check import FRAMEWORKS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lstmconvert"

# From the bottom up: a module imports only from rooms below its own. Modules of one room may use
# each other; a name that is not here (the readers' helpers) belongs to the room of its folder.
ROOMS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "errors",
            "values",
            "gates",
            "activations",
            "tensors",
            "options",
            "axes",
            "finite",
            "geometry",
            "packing",
            "sampling",
            "reading_notes",
            "memory",
            "parallel",
            "pieces",
            "plain_toml",
            "prefixed",
            "onnx_proto",
        }
    ),
    frozenset({"canonical"}),
    frozenset({"equations", "operations", "pairing"}),
    frozenset({"model", "mapping", "provenance"}),
    frozenset({"layout", "stacks", "shapes", "interpreter", "atomic"}),
    frozenset({"containers"}),
    frozenset(
        {
            "registry",
            "dialect",
            "bias_split",
            "lowering",
            "simplify",
            "exposed",
            "single_stack",
            "projections",
        }
    ),
    frozenset({"frameworks"}),
    frozenset({"optimizers"}),
    frozenset({"proof", "capabilities", "pairs", "movement", "sketch"}),
    frozenset({"whole", "report", "page"}),
    frozenset({"opening", "destinations"}),
    frozenset({"planning"}),
    frozenset({"judging"}),
    frozenset({"conversion"}),
    frozenset(
        {
            "tracing",
            "text",
            "identification",
            "live",
            "verification",
            "runtimes",
            "gate_maps",
            "gradients",
            "linting",
            "conformance",
        }
    ),
    frozenset({"__init__"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
PACKAGES = ("lstmconvert", "lstmconvert.containers", "lstmconvert.frameworks")
ARCHIVE = ("lstmconvert.containers", "lstmconvert.containers.Archive")
"""What frameworks may know of containers: the value that both sides speak."""
TYPES_ONLY = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
LAZY_DOORS = {
    # (importer, imported): methods that run what a higher room knows, imported when called.
    ("canonical", "equations"),
    ("model", "interpreter"),
    ("lowering", "registry"),
}


def imports(tree: ast.AST, *, at_module_level: bool = True) -> Iterable[tuple[str, bool]]:
    """Every module that the code imports, and whether that happens when it is imported itself.

    What stands under ``if TYPE_CHECKING`` never runs and is left out.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, at_module_level
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for alias in node.names:
                yield f"{base}.{alias.name}" if base in PACKAGES else base, at_module_level
        elif isinstance(node, ast.If) and ast.unparse(node.test) in TYPES_ONLY:
            for branch in node.orelse:
                yield from imports(ast.Module([branch], []), at_module_level=at_module_level)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, at_module_level=at_module_level and not inside)


def room(module: str) -> str:
    """The room of a dotted module name inside the package: its first part.

    What is handed a live object of a framework stands with ``live``, above files and names alike.
    """
    parts = module.split(".")
    if parts[-1].endswith("_live"):
        return "live"
    return parts[1] if len(parts) > 1 else "__init__"


def faults_in(source: str, module: str) -> list[str]:
    """What a module's imports do against the rules."""
    rank = {name: level for level, names in enumerate(ROOMS) for name in names}
    own = room(module)
    found = []
    if own not in rank:
        return [f"{module}: the room {own!r} is not in ROOMS; say where it belongs"]
    for name, at_module_level in imports(ast.parse(source)):
        top = name.partition(".")[0]
        if top in FRAMEWORKS and at_module_level:
            found.append(f"{module}: imports {name} at module level")
        if top == "":
            found.append(f"{module}: has a relative import")
        if top != "lstmconvert":
            continue
        other = room(name)
        if {own, other} == {"containers", "frameworks"} and name not in ARCHIVE:
            found.append(f"{module}: imports {name}; containers and frameworks know nothing of each other")
        elif other == "__init__" and own != "cli" and own != "__main__":
            found.append(f"{module}: imports the public package")
        elif other in rank and rank[other] > rank[own] and (own, other) not in LAZY_DOORS:
            found.append(f"{module}: imports {name} from a room above its own")
        elif (own, other) in LAZY_DOORS and rank[other] > rank[own] and at_module_level:
            found.append(f"{module}: imports {name} at module level; only when called")
    return found


def module_names() -> Mapping[str, Path]:
    """Every module of the package under its dotted name."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@pytest.mark.parametrize("module", module_names())
def test_imports_point_one_way(module: str) -> None:
    assert faults_in(module_names()[module].read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("lstmconvert.gates", "from lstmconvert.canonical import RecurrentLayer", "from a room above"),
        ("lstmconvert.gates", "def f():\n    from lstmconvert import proof", "from a room above"),
        ("lstmconvert.canonical", "from lstmconvert import equations", "only when called"),
        (
            "lstmconvert.containers.npz",
            "from lstmconvert.frameworks import keras",
            "know nothing of each other",
        ),
        ("lstmconvert.frameworks.keras", "import lstmconvert.containers.hdf5", "know nothing of each other"),
        (
            "lstmconvert.frameworks.keras",
            "from lstmconvert.containers import hdf5",
            "know nothing of each other",
        ),
        ("lstmconvert.proof", "import torch", "imports torch at module level"),
        (
            "lstmconvert.proof",
            "try:\n    import jax.numpy\nexcept ImportError:\n    pass",
            "imports jax.numpy at",
        ),
        ("lstmconvert.proof", "class A:\n    import keras", "imports keras at module level"),
        ("lstmconvert.proof", "if not TYPE_CHECKING:\n    import keras", "imports keras at module level"),
        ("lstmconvert.proof", "if TYPE_CHECKING:\n    pass\nelse:\n    import keras", "imports keras at"),
        ("lstmconvert.proof", "from . import gates", "relative import"),
        ("lstmconvert.proof", "import lstmconvert", "the public package"),
        ("lstmconvert.utilities", "", "is not in ROOMS"),
    ],
)
def test_a_broken_import_rule_is_seen(module: str, source: str, fault: str) -> None:
    (found,) = faults_in(source, module)
    assert fault in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lstmconvert.frameworks.keras", "from lstmconvert.containers import Archive"),
        ("lstmconvert.proof", "def to_torch():\n    import torch"),
        ("lstmconvert.canonical", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_what_the_rules_allow(module: str, source: str) -> None:
    assert faults_in(source, module) == []


# What is imported when the package runs, seen from outside in a fresh interpreter.

WATCH = "import sys, json; from tests.no_frameworks.check import ImportRecorder; r = ImportRecorder(); "
WATCH += "sys.meta_path.insert(0, r)\n"
REPORT = "\nprint('\\n' + json.dumps([r.attempts, sorted(m for m in sys.modules if '.' not in m)]))"


def run_watched(code: str) -> tuple[list[str], set[str]]:
    """Run code in a fresh interpreter; the frameworks that it tried to import, and all modules it loaded."""
    result = subprocess.run(
        [sys.executable, "-c", WATCH + code + REPORT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    attempts, modules = json.loads(result.stdout.splitlines()[-1])
    return attempts, set(modules)


def test_importing_the_package_imports_no_framework_and_no_file_library() -> None:
    attempts, modules = run_watched("import lstmconvert")
    assert attempts == []
    assert modules.isdisjoint({*FRAMEWORKS, "onnxruntime", "h5py", "onnx"})


@pytest.mark.parametrize("target", ["out.safetensors", "out.onnx"])
def test_converting_imports_no_framework(target: str, tmp_path: Path) -> None:
    source = first_case.write_model(tmp_path / "model.h5", "sigmoid")
    attempts, modules = run_watched(
        f"import lstmconvert; lstmconvert.convert({str(source)!r}, {str(tmp_path / target)!r})"
    )
    assert (tmp_path / target).is_file()
    assert attempts == []
    assert modules.isdisjoint(FRAMEWORKS)


@pytest.mark.parametrize(
    "code",
    ["import torch", "try:\n    import mlx.nowhere\nexcept ImportError:\n    pass"],
)
def test_an_imported_framework_is_seen(code: str) -> None:
    attempts, _ = run_watched("import os; os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'\n" + code)
    assert attempts[0].partition(".")[0] in code


# The project runs anywhere: no paths of one machine, no addresses of package registries.

_TIED = re.compile(
    r"/(?:work|root|home/\w+)/\w|/opt/\w|"  # paths of one machine
    r"\bpypi\.|pythonhosted|\bregistry\.npmjs|deb\.debian|conda\.anaconda|"  # registries
    r"--(?:extra-)?index[-]url|--find[-]links"
)


def tied_lines(text: str) -> list[str]:
    """The lines that name a machine's path or a registry's address."""
    return [line.strip() for line in text.splitlines() if _TIED.search(line)]


def project_files() -> list[Path]:
    """The text files of the project, without what tools leave behind and without this file."""
    kept = [
        path
        for name in ("lstmconvert", "mappings", "scripts", "tests", ".ci")
        for path in (ROOT / name).rglob("*")
    ]
    kept += [path for path in ROOT.iterdir() if path.name not in (".git", "LICENSE")]
    return [
        path for path in kept if path.is_file() and path.suffix != ".pyc" and path != Path(__file__).resolve()
    ]


def test_nothing_names_a_machine_or_a_registry() -> None:
    found = {}
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if lines := tied_lines(text):
            found[str(path.relative_to(ROOT))] = lines
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "see /wo" + "rk/main",
        "cd /root/" + "x",
        "https://py" + "pi.org/simple",
        "pip install --index" + "-url=x y",
    ],
)
def test_a_named_machine_or_registry_is_seen(line: str) -> None:
    assert tied_lines(line) == [line]
