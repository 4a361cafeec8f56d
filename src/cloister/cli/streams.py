"""The standard streams, as they came: a caller may have closed some of them."""

from __future__ import annotations

import os
import sys
from typing import BinaryIO, Final

from cloister.errors import InputError

_NAMES: Final = ("input", "output", "error output")
_closed: set[int] = set()


def open_standard_streams() -> None:
    """Give closed standard streams to ``/dev/null``: nothing else may take their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one. Children have it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            _closed.add(number)
    # Python has None in place of streams that were closed when it started.
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def forget_output() -> None:
    """Let what is still to be written vanish: its reader is gone, or its disk full.

    Python would complain once more when it flushes at the end.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(line: str) -> None:
    """Print a line to standard error at once.

    What is told beside the work must not end it where nobody can read it: the log is on a full
    disk, or its reader has left.
    """
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        # The descriptor stays, for the program. What lies in the buffer would be tried once more.
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def data_input() -> BinaryIO:
    """Return standard input, from which the command is to take its data.

    Raises:
        InputError: the caller has closed it; that there was no data would be wrong.
    """
    _require(0)
    return sys.stdin.buffer


def data_output() -> BinaryIO:
    """Return standard output, to which the command's result is to go.

    Raises:
        InputError: the caller has closed it, and the result would be lost.
    """
    _require(1)
    return sys.stdout.buffer


def _require(number: int) -> None:
    if number in _closed:
        raise InputError(f"standard {_NAMES[number]} is closed", hint="name a file, or redirect it")
