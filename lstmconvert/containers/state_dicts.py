"""Finds the state_dict in whatever a training script saved around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lstmconvert.containers.pickle_objects import Global, Unknown
from lstmconvert.containers.pickled_arrays import PickledArray
from lstmconvert.containers.torch_pickle import Tensor
from lstmconvert.errors import BadFile, UnsupportedSource
from lstmconvert.values import dataclass

PREFERRED = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "parameters",
    "state",
)
"""Keys under which training scripts keep the model, as opposed to what else they keep."""

_NOT_THE_MODEL = ("optim", "scheduler", "scaler", "rng")
_DEEPEST = 4
_LONGEST_TEXT = 60
_MOST_NAMES = 200_000
_REMEDY = (
    "Load it where it was made and save the weights alone: torch.save(model.state_dict(), PATH), "
    "or as safetensors or TorchScript."
)


@dataclass(frozen=True, slots=True)
class Found:
    """A state_dict in a checkpoint.

    Attributes:
        values: everything in it by name; tensors, arrays, and what else was put there.
        path: the keys that lead to it, joined by dots; empty when it is the whole file.
        beside: what else the checkpoint has, key to description.
        attributes: what was set on the dictionary itself, such as ``_metadata``.
    """

    values: Mapping[str, object]
    path: str
    beside: Mapping[str, str]
    attributes: Mapping[object, object]


def find(checkpoint: object) -> Found:
    """The state_dict of a checkpoint.

    A dictionary that has tensors is one; so is a dictionary of dictionaries that have some, whose names
    are then joined by dots. A key that names the model is preferred to its neighbours; optimizers,
    schedulers and the like are never looked into.

    Raises:
        UnsupportedSource: when there is none, or the model was pickled whole.
    """
    if isinstance(checkpoint, Unknown):
        raise _pickled_object(checkpoint, "")
    if isinstance(checkpoint, list | tuple):
        checkpoint = {str(index): value for index, value in enumerate(checkpoint)}
    if isinstance(checkpoint, Tensor | PickledArray):
        checkpoint = {"tensor": checkpoint}
    if not isinstance(checkpoint, dict):
        raise UnsupportedSource("the file holds no tensors", found=describe(checkpoint), remedy=_REMEDY)
    holders = _Holders()
    if not holders.keys(checkpoint, _DEEPEST):
        _refuse_pickled_parts(checkpoint)
        raise UnsupportedSource(
            "there is no state_dict in the file", found=describe(checkpoint), remedy=_REMEDY
        )
    path: list[str] = []
    beside: dict[str, str] = {}
    place: dict[object, object] = checkpoint
    while len(path) < _DEEPEST and (step := _preferred(place, holders)) is not None:
        prefix = "".join(f"{part}." for part in path)
        beside.update({f"{prefix}{key}": describe(value) for key, value in place.items() if key != step})
        path.append(step)
        inner = place[step]
        assert isinstance(inner, dict)
        place = inner
    values: dict[str, object] = {}
    prefix = "".join(f"{part}." for part in path)
    for name, value, is_part in _flat(place, "", _DEEPEST, holders):
        if len(values) + len(beside) > _MOST_NAMES:
            raise BadFile("the checkpoint repeats its parts without end")
        if not is_part:
            beside[prefix + name] = describe(value)
        elif name in values:
            raise BadFile("two tensors of the checkpoint have one name", place=name)
        else:
            values[name] = value
    return Found(values, ".".join(path), beside, getattr(place, "attributes", {}))


def optimizer(checkpoint: object, depth: int = 2) -> Mapping[str, Any] | None:
    """The state_dict of an optimizer in a checkpoint: a dictionary with ``state`` and ``param_groups``."""
    if not isinstance(checkpoint, dict):
        return None
    if isinstance(checkpoint.get("state"), dict) and isinstance(checkpoint.get("param_groups"), list):
        return checkpoint
    if not depth:
        return None
    inner = (optimizer(value, depth - 1) for value in checkpoint.values())
    return next((found for found in inner if found is not None), None)


def _is_number_array(value: object) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, PickledArray) and value.dtype.number is not None)


def _is_other(key: object, value: object) -> bool:
    """Whether an entry is known not to be part of the model."""
    if not isinstance(key, str):
        return True
    if any(word in key.lower() for word in _NOT_THE_MODEL) and not _is_number_array(value):
        return True
    return isinstance(value, dict) and "param_groups" in value


class _Holders:
    """Which entries of dictionaries have tensors in or below them, each looked at once a depth.

    A pickle can put one dictionary into another, or into itself, any number of times.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], list[str]] = {}

    def keys(self, value: object, depth: int) -> list[str]:
        """The keys that lead to tensors within ``depth`` dictionaries."""
        if not isinstance(value, dict) or depth == 0:
            return []
        place = id(value), depth
        if place not in self._known:
            self._known[place] = [
                key
                for key, inner in value.items()
                if not _is_other(key, inner) and (_is_number_array(inner) or self.keys(inner, depth - 1))
            ]
        return self._known[place]


def _preferred(place: dict[object, object], holders: _Holders) -> str | None:
    """The key that has the model while its neighbours have other things; ``None`` when all is the model."""
    found = holders.keys(place, _DEEPEST)
    nested = [key for key in found if isinstance(place[key], dict)]
    named = [key for key in nested if key in PREFERRED]
    if len(named) == 1:
        return named[0]
    return nested[0] if len(found) == 1 and nested else None


def _flat(
    place: Mapping[object, object], prefix: str, depth: int, holders: _Holders
) -> Iterator[tuple[str, object, bool]]:
    """Names, values, and whether they are part of the model, of a dictionary and those in it."""
    for key, value in place.items():
        name = f"{prefix}{key}"
        if _is_other(key, value):
            yield name, value, False
        elif isinstance(value, dict) and holders.keys(value, depth - 1):
            yield from _flat(value, f"{name}.", depth - 1, holders)
        else:
            yield name, value, _is_number_array(value) or _is_tensor_like(value)


def _is_tensor_like(value: object) -> bool:
    """Whether an unknown object is a tensor of a kind that is not read: these are refused, not left out."""
    return isinstance(value, Unknown) and value.name.startswith(
        ("torch._utils._rebuild", "torch._tensor.", "torch.sparse", "torch._C.", "torch.ScriptObject")
    )


def _refuse_pickled_parts(checkpoint: dict[object, object]) -> None:
    for key, value in checkpoint.items():
        if isinstance(value, Unknown) and _is_module(value):
            raise _pickled_object(value, str(key)[:80])


def _is_module(value: Unknown) -> bool:
    return isinstance(value.state, dict) and "_modules" in value.state


def _pickled_object(value: Unknown, place: str) -> UnsupportedSource:
    name = class_name(value)
    what = "a whole pickled module" if _is_module(value) else "a pickled object"
    return UnsupportedSource(
        f"the file holds {what}, the class {name}, not its weights; it is a program, which is not run",
        place=place or None,
        remedy=_REMEDY,
    )


def class_name(value: Unknown) -> str:
    """The class of an object that was not made."""
    if value.name.endswith("._reconstructor") and value.arguments and isinstance(value.arguments[0], Global):
        return value.arguments[0].name
    return value.name


def describe(value: object) -> str:
    """A value in a few words, for the list of what was left alone."""
    if isinstance(value, Unknown):
        return f"{class_name(value)} (not loaded)"[:200]
    if isinstance(value, Global):
        return f"{value.name} (not loaded)"[:200]
    if isinstance(value, Tensor):
        return f"tensor {value.dtype_name} {list(value.shape)}"
    if isinstance(value, PickledArray):
        return f"array {value.dtype.code} {list(value.shape)}"
    if isinstance(value, dict):
        return f"dictionary of {len(value)} entries"
    if isinstance(value, list | tuple | set):
        return f"{type(value).__name__} of {len(value)} elements"
    if isinstance(value, str | bytes):
        return repr(value[:_LONGEST_TEXT])
    if isinstance(value, int | float | complex) or value is None:
        return repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a large number"
    return type(value).__name__
