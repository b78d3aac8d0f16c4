"""Reads an HDF5 file in a process of its own first, to see whether HDF5 survives it.

Damaged structures of HDF5 1.8 and later make HDF5 1.14 crash the process now and then (one mutated file
in some thousands). Files that h5py and Keras write have the older structures, for which this is not
needed; what HDF5 does with a file depends on the file alone, so that one trial settles it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lstmconvert.containers.hdf5_bytes import FileBytes, Guard, Source
from lstmconvert.errors import BadFile, ConversionError

_SECONDS = 20
_REFUSED = 3


def survive(source: Source) -> None:
    """Read ``source`` in a child process.

    Raises:
        BadFile: when the child crashes or does not come to an end; a mere refusal is left to the
            caller's own reading, which can say more.
    """
    if not isinstance(source, FileBytes):
        raise BadFile(
            "compressed HDF5 with structures of HDF5 1.8 or later is not read",
            file=source.name,
            remedy="Store the member uncompressed: unzip the archive and zip it again with zip -0.",
        )
    command = [sys.executable, "-m", __name__, str(source.path), str(source.start), str(source.length)]
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        status = subprocess.run(  # noqa: S603 - our own interpreter and module
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        status = None
        cause: Exception | None = error
    else:
        cause = None
    if status not in (0, _REFUSED):
        raise BadFile(
            "the HDF5 structure is damaged in a way that HDF5 itself does not survive",
            file=source.name,
            found="no end" if status is None else f"exit status {status} of a trial",
            remedy="Copy or download the file again; it may have been cut off.",
        ) from cause


def _trial(path: str, start: str, length: str) -> int:
    from lstmconvert.containers import hdf5

    try:
        source = FileBytes(Path(path), int(start), int(length))
        tensors, _ = hdf5.structure(source, Guard(allows_newer=True))
        for each in tensors.values():
            if each.start is None:
                each.tensor.read()
    except ConversionError:
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_trial(*sys.argv[1:]))
