"""Forking: children that never run their caller's code, and leave signals to the program."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FOR_THE_PROGRAM = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)
"""Signals that a terminal or a person sends; only the program and its runtime answer them."""


@contextmanager
def never_returning() -> Iterator[None]:
    """End a forked process whatever happens: its caller's code belongs to the first one."""
    try:
        yield
    finally:
        os._exit(127)


def fork_into(run: Callable[[], None]) -> int:
    """Fork a process that does ``run`` and nothing else; return its number.

    The child ignores the signals that are for the program. They are blocked around the fork, so
    that none can run a handler of ours in both processes.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PROGRAM)
    child = os.fork()
    if child == 0:
        with never_returning():
            for number in FOR_THE_PROGRAM:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            run()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return child
