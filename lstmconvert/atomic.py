"""Files that appear whole or not at all.

Everything is first written in a folder of its own beside the target, under the names that it will have;
only when all of it is there, and the caller found it good, is it moved to its place. Two runs that write
the same target do not see each other's files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from lstmconvert.errors import Usage
from lstmconvert.values import dataclass

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: what a killed run leaves behind stays.
    fcntl = None

_PREFIX = ".lstmconvert-"
_ABANDONED_SECONDS = 60


@contextmanager
def replacing(*targets: Path, overwrite: bool, sources: Sequence[Path] = ()) -> Iterator[tuple[Path, ...]]:
    """Places to write to; what was written moves to the targets when the block ends without an exception.

    The places are new, have the targets' names, and lie on the targets' file systems. Whatever else is
    written beside them (the data file of a large ONNX model) moves along. What is written may also be
    a folder; one that is there already is not replaced. The first target moves last, so that where it is, its
    companions are. On any exception, an interruption by the user included,
    everything that was written is removed, and what was there before is there again.

    Args:
        targets: the files to be.
        overwrite: replace files that exist.
        sources: files that are read meanwhile and are not to be overwritten in any case.

    Raises:
        Usage: when a target exists and is not to be replaced, is one of the sources, is a folder or lies
            in none.
    """
    finals = tuple(_final(target, overwrite=overwrite, sources=sources) for target in targets)
    if len(set(finals)) != len(finals):
        raise Usage("two outputs have one name", file=targets[0])
    folders: dict[Path, Path] = {}
    locks: list[int] = []
    try:
        for final in finals:
            if final.parent not in folders:
                _remove_abandoned(final.parent)
                # Known before it is made, so that an interruption right after it still removes it.
                folders[final.parent] = final.parent / (_PREFIX + os.urandom(8).hex())
                _make(folders[final.parent])
                locks.append(_locked(folders[final.parent]))
        yield tuple(folders[final.parent] / final.name for final in finals)
        _commit(_moves(finals, folders), overwrite=overwrite, sources=sources)
    finally:
        for folder in folders.values():
            _remove(folder)
        for lock in locks:
            os.close(lock)


def _final(target: Path, *, overwrite: bool, sources: Sequence[Path]) -> Path:
    """Where a target really is, behind symbolic links, once it is known that it may be written."""
    final = Path(os.path.realpath(target))
    if any(_same(final, source) for source in sources):
        raise Usage(
            "the output is the source itself", file=target, remedy="Choose another name for the output."
        )
    if final.is_dir():
        raise Usage(
            "the output is a folder",
            file=target,
            remedy="Name a file in it; if it is an older output, which is not replaced, remove it first.",
        )
    if os.path.lexists(final) and not final.is_file():
        raise Usage("the output is not a plain file", file=target)
    if not overwrite and os.path.lexists(target):
        raise _exists(target)
    if not final.parent.is_dir():
        raise Usage("the folder of the output does not exist", file=target, remedy="Make it first.")
    return final


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _exists(target: Path) -> Usage:
    return Usage("the output exists already", file=target, remedy="Replace it with --overwrite.")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise Usage(
            f"the folder of the output cannot be written to: {error.strerror}", file=folder.parent
        ) from error


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock: as long as the process lives, and no longer."""
    descriptor = os.open(folder, os.O_RDONLY)
    if fcntl is not None:
        with suppress(OSError):  # Not every file system has locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _remove_abandoned(parent: Path) -> None:
    """Remove what runs left behind that were killed: old folders of ours that nobody holds a lock on."""
    if fcntl is None:
        return
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if not entry.name.startswith(_PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if found.st_uid != os.geteuid() or time.time() - found.st_mtime < _ABANDONED_SECONDS:
                    continue  # Another user's; or so new that its lock may not be taken yet.
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(Path(entry.path))
                finally:
                    os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder of ours, which has files only, and whatever else somebody may have put there."""
    try:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    except OSError:
        import shutil  # only for what is not as it should be: its start-up is felt

        shutil.rmtree(folder, ignore_errors=True)


def _moves(finals: tuple[Path, ...], folders: Mapping[Path, Path]) -> list[tuple[Path, Path]]:
    """From where to where, the first target last."""
    moves = [
        (written, parent / written.name) for parent, folder in folders.items() for written in folder.iterdir()
    ]
    present = {final for _, final in moves}
    for final in finals:
        if final not in present:
            raise AssertionError(f"nothing was written to {final.name}")
    order = {final: -index for index, final in enumerate(finals)}
    return sorted(moves, key=lambda move: order.get(move[1], -len(finals)))


def _commit(moves: list[tuple[Path, Path]], *, overwrite: bool, sources: Sequence[Path]) -> None:
    """Move everything to its place, or nothing."""
    for written, final in moves:
        _final(final, overwrite=overwrite, sources=sources)
        if os.path.lexists(final):
            # What is replaced is lost: its successor must be on the disk first. A new file that a loss of
            # power takes away can be made again, and waiting for the disk takes longer than all else.
            _synchronise(written)
    done: list[_Move] = []
    try:
        for written, final in moves:
            # Known before it is made, so that an interruption right after it still undoes it.
            done.append(_Move(written, final, os.path.lexists(final), _kept(written, final)))
            _move(written, final, overwrite=overwrite)
    except BaseException:
        for move in reversed(done):
            with suppress(OSError):
                _undo(move)
        raise
    for parent in {move.final.parent for move in done if move.replaces}:
        with suppress(OSError):  # Not every system can synchronise a folder.
            _synchronise(parent)


@dataclass(frozen=True, slots=True)
class _Move:
    """A file on its way: from where to where, whether something was there, and that under another name."""

    written: Path
    final: Path
    replaces: bool
    kept: Path | None


def _kept(written: Path, final: Path) -> Path | None:
    """What is at the place now, under a second name in the folder that is removed afterwards."""
    kept = written.with_name(written.name + ".replaced")
    try:
        os.link(final, kept)
    except OSError:
        return None
    return kept


def _move(written: Path, final: Path, *, overwrite: bool) -> None:
    """Move a file in one step; without ``overwrite``, only to where nothing is."""
    if overwrite:
        written.replace(final)
        return
    try:
        os.link(written, final)
    except FileExistsError as error:
        raise _exists(final) from error
    except OSError:
        # A file system without hard links: the look before the move is the best there is.
        if os.path.lexists(final):
            raise _exists(final) from None
        written.replace(final)


def _undo(move: _Move) -> None:
    moved = not move.written.exists() or _same(move.written, move.final)
    if moved and move.kept is not None:
        move.kept.replace(move.final)
    elif moved and not move.replaces and move.final.is_dir():
        import shutil

        shutil.rmtree(move.final)
    elif moved and not move.replaces:
        move.final.unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    """Have the disk hold what was written, so that a loss of power does not leave an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
