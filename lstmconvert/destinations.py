"""Which model goes into which file."""

from __future__ import annotations

from pathlib import Path

from lstmconvert import lowering, registry, stacks
from lstmconvert.errors import NotRepresentable, Usage
from lstmconvert.model import Model


def models_by_file(model: Model, source: Path, target: Path | None, to: str | None) -> dict[Path, Model]:
    """Which model goes into which file: several, where the target needs a topology and the source has none.

    Raises:
        Usage: when several would have to go into one file.
    """
    if to is not None and not registry.written_suffixes(registry.mapping_of(to)):
        raise Usage(f"files of {registry.mapping_of(to).title} are only read", expected="another --to")
    if target is None:
        if to is None:
            raise Usage("the target is neither named nor is its framework")
        target = default_target(source, registry.suffix_of(to))
        named = False
    else:
        named = True
    folder = not target.suffix or (target.is_dir() and not _named_as_output(target))
    framework = to if to is not None or folder else registry.target_of(target, None)[0]
    if framework is None:
        raise Usage(
            f"{target} is a folder and does not say what to write", remedy="Name the target with --to."
        )
    module = registry.module_of(registry.mapping_of(framework))
    projected = any(layer.projected_size is not None for layer in model.recurrent.values())
    helps = getattr(module, "spells_out", None) or (projected and getattr(module, "FOLDS_PROJECTIONS", False))
    if model.calls is None and helps and not _held(model, framework):
        # What the framework's own layers cannot hold is spelled out, or followed by others: that is wired.
        model = stacks.side_by_side(model)
    needs_topology = getattr(module, "NEEDS_TOPOLOGY", False)
    suffix = registry.suffix_of(framework)
    if model.calls is not None or not needs_topology:
        return {target / default_target(source, suffix).name if folder else target: model}
    parts = stacks.split(model)
    if len(parts) == 1:
        only = next(iter(parts.values()))
        return {target / default_target(source, suffix).name if folder else target: only}
    if named and not folder:
        raise Usage(
            f"the source holds {len(parts)} recurrent stacks, and "
            + str(model.metadata.get("topology") or "does not say how they are wired"),
            file=source,
            found=", ".join(parts),
            remedy="Choose one with --layer, or give -o a folder for one file per stack.",
        )
    place = target if named else target.with_suffix("")
    return {place / (_file_name(name) + suffix): part for name, part in parts.items()}


def _named_as_output(target: Path) -> bool:
    """Whether a folder is called as something that is written, and so is no folder for several outputs."""
    known = (suffix for entry in registry.containers().values() for suffix in entry.suffixes)
    return target.name.lower().endswith(tuple(known))


def _held(model: Model, framework: str) -> bool:
    """Whether a framework's own layers can hold every recurrent layer of a model."""
    try:
        lowering.lower(model, registry.mapping_of(framework))
    except NotRepresentable:
        return False
    return True


def _file_name(name: str) -> str:
    """A layer's name as a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip(".") or "layer"


def default_target(source: Path, suffix: str) -> Path:
    """The source's name with another suffix, in the source's folder."""
    name = source.name
    for known in sorted(
        (s for e in registry.containers().values() for s in e.suffixes), key=len, reverse=True
    ):
        if name.lower().endswith(known):
            return source.with_name(name[: -len(known)] + suffix)
    return source.with_name(name + suffix)
