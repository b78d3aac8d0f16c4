"""Groups, links, attributes and the tree of an HDF5 file that nobody vouches for.

Only hard links are followed, one path component at a time, and no group is entered twice, so a file
cannot lead anywhere else on the disk or round in circles. h5py is imported inside the functions: a
conversion that has no HDF5 file does not pay for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from lstmconvert.containers import check_number
from lstmconvert.errors import BadFile

if TYPE_CHECKING:
    import h5py

_DEEPEST = 64
_MOST_NAMES = 1_000_000


def child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """The member of ``group`` called ``name`` (one path component).

    Raises:
        BadFile: it is missing, it is a link that leads elsewhere, or neither group nor dataset.
    """
    import h5py

    place = f"{group.name}/{name}".replace("//", "/")
    if name in ("", ".", "..") or "\0" in name:
        raise BadFile("a name in the file is not usable as a path", place=place, found=repr(name))
    try:
        link = group.id.links.get_info(name.encode())
    except UnicodeEncodeError as error:
        raise BadFile("a name in the file is not valid UTF-8", place=repr(place)) from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise BadFile("the file does not have this", place=place) from error
    if link.type != h5py.h5l.TYPE_HARD:
        kind = {h5py.h5l.TYPE_SOFT: "soft link", h5py.h5l.TYPE_EXTERNAL: "external link"}
        raise BadFile(
            "links inside an HDF5 file are not followed",
            place=place,
            found=kind.get(link.type, "a link of another kind"),
            remedy="Save the model again with the framework that wrote it; Keras writes no links.",
        )
    found = group[name]
    if not isinstance(found, h5py.Group | h5py.Dataset):
        raise BadFile("neither a group nor a dataset", place=place, found=type(found).__name__)
    return found


def descend(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    """Follow ``path`` ("a/b/c") below ``group``; see ``child`` for what it raises."""
    import h5py

    components = path.split("/")
    if len(components) > _DEEPEST:
        raise BadFile("a path in the file is too deep", place=path[:200], expected=f"at most {_DEEPEST}")
    found: h5py.Group | h5py.Dataset = group
    for component in components:
        if not isinstance(found, h5py.Group):
            raise BadFile("a dataset stands where a group should", place=str(found.name))
        found = child(found, component)
    return found


def subgroup(group: h5py.Group, path: str) -> h5py.Group:
    """``descend`` where only a group will do."""
    import h5py

    found = descend(group, path)
    if not isinstance(found, h5py.Group):
        raise BadFile("a dataset stands where a group should", place=str(found.name))
    return found


def dataset_at(group: h5py.Group, path: str) -> h5py.Dataset:
    """``descend`` where only a dataset will do."""
    import h5py

    found = descend(group, path)
    if not isinstance(found, h5py.Dataset):
        raise BadFile("a group stands where a dataset should", place=str(found.name))
    return found


def text(holder: h5py.Group | h5py.Dataset, name: str) -> str | None:
    """The attribute ``name`` as one string, or ``None`` where there is none."""
    values = _strings(holder, name)
    if values is None:
        return None
    if len(values) != 1:
        raise BadFile(
            f"the attribute {name!r} should be one string", place=str(holder.name), found=len(values)
        )
    return values[0]


def texts(holder: h5py.Group | h5py.Dataset, name: str) -> tuple[str, ...] | None:
    """The attribute ``name`` as a list of strings, also where it was cut into ``name0``, ``name1``, ...

    HDF5 keeps at most 64 KiB in an attribute, so Keras cuts long lists of names.
    """
    whole = _strings(holder, name)
    if whole is not None:
        return whole
    parts: list[str] = []
    count = 0
    while (part := _strings(holder, f"{name}{count}")) is not None:
        parts += part
        count += 1
        check_number(len(parts), "names", f"{holder.name} attribute {name!r}")
    return tuple(parts) if count else None


def _strings(holder: h5py.Group | h5py.Dataset, name: str) -> tuple[str, ...] | None:
    import h5py

    if not h5py.h5a.exists(holder.id, name.encode()):
        return None
    attribute = h5py.h5a.open(holder.id, name.encode())
    place = f"{holder.name} attribute {name!r}"
    number = attribute.get_space().get_simple_extent_npoints()
    if number == 0 or attribute.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return ()
    if attribute.get_type().get_class() != h5py.h5t.STRING:
        raise BadFile("an attribute of this name should hold text", place=place)
    check_number(number, "names", place)
    strings = []
    for value in np.asarray(holder.attrs[name], dtype=object).reshape(-1):
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError as error:
                raise BadFile("an attribute is not valid UTF-8", place=place) from error
        value = str(value)
        if not is_utf8(value):
            raise BadFile("an attribute is not valid UTF-8", place=place)
        strings.append(value)
    return tuple(strings)


def is_utf8(value: str) -> bool:
    """Whether a name can be printed and written: h5py hands undecodable bytes on as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def natural_order(name: str) -> list[str | int]:
    """Sorting key that puts ``lstm_2`` before ``lstm_10``; HDF5 itself lists names as text."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def walk(
    root: h5py.Group, *, enter: Callable[[str], bool] | None = None
) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """Every group and dataset below ``root`` with its path.

    They come in the order of creation where the file tracks it, else in natural order of names.

    Args:
        root: where to begin; not itself among the results.
        enter: says of a path whether to look at what is there; everywhere where it is left out.
    """
    import h5py

    def address(group: h5py.Group) -> tuple[int, int]:
        info = h5py.h5o.get_info(group.id)
        return info.fileno, info.addr

    seen = {address(root)}
    waiting: list[tuple[str, h5py.Group]] = [("", root)]
    met = 0
    while waiting:
        base, group = waiting.pop()
        check_number(len(group), "members of a group", base or "/")
        names = list(group)
        if not group.id.get_create_plist().get_link_creation_order():
            names.sort(key=natural_order)
        found: list[tuple[str, h5py.Group | h5py.Dataset]] = []
        for name in names:
            path = f"{base}/{name}" if base else name
            if enter is not None and not enter(path):
                continue
            met += 1
            if met > _MOST_NAMES or path.count("/") >= _DEEPEST:
                raise BadFile("the groups of the file are nested too deep or too many", place=path[:200])
            found.append((path, child(group, name)))
        yield from found
        for path, member in reversed(found):
            if isinstance(member, h5py.Group):
                if address(member) in seen:
                    raise BadFile("a group of the file is reached on two ways", place=path)
                seen.add(address(member))
                waiting.append((path, member))
