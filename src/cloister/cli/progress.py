"""Progress on a terminal: bar, rate and remaining time; nothing anywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PATIENCE = 0.3  # seconds; what is done sooner needs no bar
_REFRESH = 0.1


class _Bar:
    """A bar that appears when the work turns out to take its time."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._done = 0
        self._next = time.monotonic() + _PATIENCE
        self._shown: tuple[Progress, TaskID] | None = None

    def advance(self, count: int) -> None:
        """Say that ``count`` more bytes are done."""
        self._done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _REFRESH
        if self._shown is None:
            self._shown = self._show()
        progress, task = self._shown
        progress.update(task, completed=self._done, refresh=True)

    def _show(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            auto_refresh=False,  # a refreshing thread would be copied into forked workers
            transient=True,
        )
        progress.start()
        return progress, progress.add_task(self._label, total=self._total or None)

    def close(self) -> None:
        """Remove the bar."""
        if self._shown is not None:
            self._shown[0].stop()


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far a piece of work is, on standard error, if that is a terminal.

    Args:
        label: what is being done.
        total: bytes to do; 0 if nobody knows.

    Yields:
        what to call with the number of bytes that were done since the last call.
    """
    if not on_terminal():
        yield lambda _: None
        return
    bar = _Bar(label, total)
    try:
        yield bar.advance
    finally:
        bar.close()


def on_terminal() -> bool:
    """Tell whether a person watches standard error."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
