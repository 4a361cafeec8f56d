"""Signals that somebody sends to this process: acted on at once, handed on to its program."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a service to end."""
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_KEYS = (signal.SIGINT, signal.SIGQUIT)
"""Signals that a terminal sends for a key, to all processes in its foreground."""

_NUDGE = signal.SIGURG
"""Sent by nobody else: the runtime reads no urgent data from sockets."""
_PATIENCE = 0.01
"""Seconds: on an idle machine killed children are gone after 0.2 to 7 ms."""
_NUDGES = (10, 100)
"""Milliseconds between a signal, and an interruption, and another one."""


def wait_for_children() -> None:
    """Have the kernel tell how children ended, though the caller of this process did not want that.

    Where SIGCHLD is ignored it forgets them at once, and their numbers are given to others.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def reap() -> None:
    """Take notice of the children that have died, or do so at once; there is nothing else to do.

    Those that a process leaves behind are the affair of process 1, which in some containers ignores
    them, so that there are more and more. On a busy machine some take too long to wait for.
    """
    until = time.monotonic() + _PATIENCE
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < until:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(_PATIENCE / 20)


def heeded(numbers: Iterable[int]) -> list[int]:
    """Return the signals that the caller of this process did not have it ignore.

    ``nohup`` does so with SIGHUP, a shell without job control with SIGINT and SIGQUIT of what runs
    in the background.
    """
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def forwarded_signals(
    send: Callable[[int], None], hears_keys: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Send the program what somebody sends to this process, but what it gets from the terminal.

    What this process ignores stays ignored.

    Args:
        send: sends it a signal.
        hears_keys: tells whether the program is there by now to get a terminal's signals itself.
    """

    def forward(number: int, frame: FrameType | None) -> None:
        if number not in _KEYS or not hears_keys() or not _in_foreground():
            send(number)

    numbers = heeded((*_FORWARDED, *_KEYS))
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def prompt_signals() -> Iterator[None]:
    """Have the main thread act on every signal, although it is just about to wait.

    The interpreter takes note of a signal and acts on it between two instructions, or when a system
    call is interrupted. If it comes after the last look and before the call, the call waits all the
    same. So a thread, which hears of each signal at once (``signal.set_wakeup_fd``), interrupts the
    main thread once more a little later.
    """
    told, tell = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(tell, False)
    wakeup = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    handler = signal.signal(_NUDGE, lambda number, frame: None)
    nudger = threading.Thread(target=_nudge, args=(told, threading.get_ident()), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # for the thread
    try:
        nudger.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(tell)
        nudger.join()
        os.close(told)
        signal.signal(_NUDGE, handler)


def _nudge(told: int, main: int) -> None:
    """Interrupt the main thread after each signal that this pipe tells of, until it ends."""
    events = select.poll()
    events.register(told, select.POLLIN)
    due: Iterator[int] = iter(())
    while True:
        if not events.poll(next(due, None)):
            signal.pthread_kill(main, _NUDGE)
            continue
        numbers = os.read(told, 256)
        if not numbers:
            return
        if set(numbers) != {_NUDGE}:
            due = iter(_NUDGES)


def _in_foreground() -> bool:
    """Tell whether keys of a terminal reach this process and the program."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)
