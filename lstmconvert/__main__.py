"""The process: ``python -m lstmconvert``, and the command ``lstmconvert``."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

_OBJECTS_BETWEEN_SEARCHES = 500_000


def process() -> NoReturn:
    """Run the command line as a process of its own, and end it.

    NumPy's products get one thread where the user does not say how many: those of the proof are a few rows
    each, and threads that wait for the next one take more time than they save.

    Objects that only refer to each other are searched for rarely: what is imported never becomes such, and
    looking through it again and again takes a twentieth of a small conversion.

    Once all is done, the process ends without taking its modules apart, which would take a tenth of a small
    conversion and frees nothing that the system does not. What may still matter to somebody is done first,
    as the interpreter does it: threads end, handlers at exit run (coverage saves its data there) and what
    was printed goes out. Where it cannot go out, where a debugger or a profiler looks on, or where the
    interpreter is to stay (``python -i``), the ordinary way is taken to its end.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_SEARCHES)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from lstmconvert.cli import main

    status = main()
    if sys.gettrace() is None and sys.getprofile() is None and not sys.flags.inspect:
        _end(status)
    sys.exit(status)


def _end(status: int) -> None:
    """End the process with this exit status; return if what was printed cannot go out."""
    import atexit
    import threading

    for thread in threading.enumerate():
        # One without an identity was interrupted before it began.
        if thread is not threading.current_thread() and not thread.daemon and thread.ident is not None:
            thread.join()
    # What the interpreter does; there is no other name for it.
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return
    os._exit(status)


if __name__ == "__main__":
    process()
