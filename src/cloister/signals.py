"""Signals that somebody sends to this process, handed on to the program that it runs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_KEYS = (signal.SIGINT, signal.SIGQUIT)
"""Signals that a terminal sends for a key, to all processes in its foreground."""


@contextlib.contextmanager
def forwarded_signals(send: Callable[[int], None]) -> Iterator[None]:
    """Send the program what somebody sends to this process, but what it gets from the terminal."""

    def forward(number: int, frame: FrameType | None) -> None:
        if number not in _KEYS or not _in_foreground():
            send(number)

    before = {number: signal.signal(number, forward) for number in (*_FORWARDED, *_KEYS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
