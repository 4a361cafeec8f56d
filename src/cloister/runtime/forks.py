"""Forking: children that run none of their caller's code, end with it, and get only their own."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cloister.errors import SandboxError
from cloister.runtime import linux

FOR_THE_PROGRAM = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)
"""Signals that a terminal or a person sends; only the program and its runtime answer them."""

LAST_STANDARD_STREAM = 2
NO_MORE_PROCESSES = "ulimit -u, or the container's limit of processes, may be reached"

_private: set[socket.socket] = set()


def keep_private(end: socket.socket) -> None:
    """Close ``end`` in every process that :func:`fork_into` makes from now on."""
    _private.add(end)


def close_private(end: socket.socket) -> None:
    """Close ``end`` here too."""
    _private.discard(end)
    end.close()


@contextmanager
def never_returning() -> Iterator[None]:
    """End a forked process whatever happens: its caller's code belongs to the first one."""
    try:
        yield
    finally:
        os._exit(127)


def let_go() -> None:
    """Close all descriptors, in a process that nobody waits for when it is killed.

    On a busy machine one of low priority takes seconds to die, and whoever reads what the program
    wrote would wait for it: a pipe ends with the last process that can write to it.
    """
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > LAST_STANDARD_STREAM:
            with suppress(OSError):  # the listing's own is closed by now
                os.close(descriptor)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in range(LAST_STANDARD_STREAM + 1):
        os.dup2(nothing, stream)
    os.close(nothing)


def fork_into(run: Callable[[], None]) -> int:
    """Fork a process that does ``run`` and nothing else; return its number.

    The child ignores the signals that are for the program. They are blocked around the fork, so
    that none can run a handler of ours in both processes. It is killed when its parent ends.

    Raises:
        SandboxError: there may be no more processes.
    """
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PROGRAM)
    try:
        child = os.fork()
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise SandboxError(f"fork: {error.strerror}", hint=NO_MORE_PROCESSES) from error
    if child == 0:
        with never_returning():
            for number in FOR_THE_PROGRAM:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            linux.die_with_parent(signal.SIGKILL)
            if os.getppid() != parent:  # it ended before we were tied to it
                os._exit(1)
            for end in _private:
                end.close()
            run()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return child
