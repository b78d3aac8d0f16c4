"""What each framework can read, write and express, as its mapping file and module say."""

from __future__ import annotations

from typing import Any

from lstmconvert import registry
from lstmconvert.mapping import Layout, MappingFile


def table() -> list[dict[str, Any]]:
    """One entry per framework: ``name``, ``title``, ``reads``, ``writes``, ``cells``, ``verified``, ..."""
    return [_entry(registry.mapping_of(name)) for name in registry.frameworks()]


def _entry(framework: MappingFile) -> dict[str, Any]:
    cells = [layout for layout in framework.layouts.values() if layout.cell is not None]
    known = registry.containers()
    return {
        "name": framework.name,
        "title": framework.title,
        "releases": framework.releases,
        "checked": framework.checked,
        "verified": framework.verified,
        "reads": [known[name].title for name in framework.containers if name in known and known[name].magic],
        "writes": list(registry.written_suffixes(framework)),
        "cells": {str(layout.cell).upper(): _expresses(layout) for layout in cells if not layout.reads_only},
        "layouts": {layout.name: _gates(layout) for layout in cells},
    }


def _gates(layout: Layout) -> dict[str, Any]:
    return {
        "classes": list(layout.classes),
        "gates": [str(g) for g in layout.gates],
        "reads_only": layout.reads_only,
    }


def _expresses(layout: Layout) -> dict[str, Any]:
    """What can be told to a layout's equations, in words."""
    dialect = layout.dialect
    return {
        "activations": {
            name.removesuffix("_activation"): [str(p) for p in patterns]
            for name, patterns in dialect.activations.items()
        },
        "choices": {name: list(values) for name, values in dialect.choices.items()},
        "clips": sorted(dialect.clips),
        "directions": list(dialect.directions),
        "parts": sorted({rule.part for rule in layout.tensors}),
    }
