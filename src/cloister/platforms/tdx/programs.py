"""The programs that this virtual machine has started, logged and measured into RTMR 3.

The log is written before the register is extended. So a crash in between leaves one event too many
in the log, which shows, and the next start extends the register by it; the other way round nobody
could tell what was measured. Both vanish at a reboot: the register is cleared, and the log lies in
``/run``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cloister.errors import PlatformError
from cloister.files import write_atomically
from cloister.platforms.tdx.register import NUMBER, Register
from cloister.tdx.event_log import (
    MAX_PROGRAMS,
    ProgramEvent,
    decode_log,
    encode_log,
    replay,
)

DIRECTORY = Path("/run/cloister")
_REBOOT = "restart the virtual machine: its registers are cleared then"


class Programs:
    """The log and the register that belongs to it.

    Args:
        register: RTMR 3.
        directory: where the log lies; it must not outlive a boot.
    """

    def __init__(self, register: Register, directory: Path = DIRECTORY) -> None:
        self._register = register
        self._directory = directory
        self._path = directory / "tdx-programs"

    def record(self, event: ProgramEvent) -> None:
        """Measure a program, unless this virtual machine has run it before.

        Raises:
            PlatformError: the register was extended by somebody else, or is full, or does not
                follow.
        """
        with self.unchanged() as events:
            if event in events:
                return
            if len(events) == MAX_PROGRAMS:
                raise PlatformError(
                    f"this virtual machine has run {MAX_PROGRAMS} programs, which is the most",
                    hint=_REBOOT,
                )
            self._register.require()
            after = (*events, event)
            self._write(after)
            try:
                self._register.extend(event.digest())
            except PlatformError:
                self._take_back(events)
                raise
            self._require(after)

    def _take_back(self, events: tuple[ProgramEvent, ...]) -> None:
        """Restore the log if the register was not extended.

        Else whatever runs already would get no quotes: the extension would be tried for each.
        """
        with contextlib.suppress(PlatformError, OSError):  # why it was refused is told
            if self._register.read() == replay(events):
                self._write(events)

    def _write(self, events: tuple[ProgramEvent, ...]) -> None:
        write_atomically(self._path, encode_log(events), mode=0o600)

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[tuple[ProgramEvent, ...]]:
        """Give what was started so far, and keep others from starting anything meanwhile.

        Raises:
            PlatformError: log and register do not belong together.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise PlatformError(
                f"{error.filename}: {error.strerror}; the log of measured programs lies there",
                hint="run as root",
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._events()
        finally:
            os.close(lock)

    def _events(self) -> tuple[ProgramEvent, ...]:
        try:
            events = decode_log(self._path.read_bytes())
        except FileNotFoundError:
            events = ()
        value = self._register.read()
        if events and value == replay(events[:-1]):
            self._register.extend(events[-1].digest())  # the last start was cut short here
        self._require(events)
        return events

    def _require(self, events: tuple[ProgramEvent, ...]) -> None:
        value, expected = self._register.read(), replay(events)
        if value != expected:
            raise PlatformError(
                f"RTMR {NUMBER} is {value.hex()}, but what {self._path} logs gives"
                f" {expected.hex()}: somebody else has extended it",
                hint=_REBOOT,
            )
