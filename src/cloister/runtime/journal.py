"""What a run tells the person who started it: denials once per file, and what was let through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cloister.errors import InputError
from cloister.runtime.encrypted import RejectedError
from cloister.runtime.policy import DeniedError, Intent
from cloister.runtime.trusted import TamperedFileError
from cloister.text import printable

if TYPE_CHECKING:
    from cloister.provision.request import Provisioned
    from cloister.runtime.recorder import Recorder


class Level(IntEnum):
    """How much is told: ``loader.log_level``."""

    NONE = 0
    ERROR = 1
    WARNING = 2
    DEBUG = 3
    TRACE = 4
    ALL = 5


class Journal:
    """Collects and prints what happens to files.

    What concerns the run itself, and what ``allow_all_but_log`` let through, is always told.
    Denials, failures and limits are errors; what was granted is for debugging.

    Args:
        write: prints one line, without its newline.

    Attributes:
        recorder: collects what happens for a record of the run, whatever is printed of it.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._print = write
        self._file: TextIO | None = None
        self._level = Level.ERROR
        self._told: set[tuple[str, type[OSError], str]] = set()
        self._granted: set[tuple[str, Intent]] = set()
        self._let_through: dict[str, set[Intent]] = {}
        self.recorder: Recorder | None = None

    def set_level(self, level: Level) -> None:
        """Tell this much from now on."""
        self._level = level

    def write_to(self, path: Path) -> None:
        """Append what happens to files to a file instead; the run itself is told as before.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise InputError(f"loader.log_file = {path}: {error.strerror}") from error

    def _write(self, line: str) -> None:
        """Print a line; names chosen by a program or the host cannot forge another one."""
        clean = printable(line)
        if self._file is None:
            self._print(clean)
        else:
            with contextlib.suppress(OSError):  # a full disk is no reason to end the program
                self._file.write(f"{clean}\n")

    def note(self, line: str) -> None:
        """Print a line about the run itself."""
        file, self._file = self._file, None
        self._write(f"cloister: {line}")
        self._file = file

    def denied(self, path: str, intent: Intent, error: OSError) -> None:
        """Tell of a denial, once for each file and reason."""
        kind, reason, mend = _describe(error)
        if self.recorder is not None:
            self.recorder.denied(kind, intent.value, path, reason, mend)
        key = (path, type(error), reason)
        if key in self._told or self._level < Level.ERROR:
            return
        self._told.add(key)
        self._write(f"cloister: {kind}: {intent.value} of file:{path}: {reason}")
        if mend:
            self._write(f"hint: {mend}")

    def limit(self, reached: str) -> None:
        """Tell of a limit that the program reached."""
        if self.recorder is not None:
            self.recorder.limit(reached)
        if self._level >= Level.ERROR:
            self._write(f"cloister: limit: {reached}")

    def fault(self, stack: int) -> None:
        """Tell that the program ended by a segmentation fault; its stack has so many bytes."""
        if self._level >= Level.ERROR:
            self._write("cloister: the program ended by a segmentation fault (SIGSEGV)")
            self._write(
                f"hint: if it does not natively: its stack has {stack >> 10} KiB here"
                " (sys.stack.size), and usually 8192 there"
            )

    def released(self, provisioned: Provisioned) -> None:
        """Tell who released a secret."""
        if self.recorder is not None:
            self.recorder.released(provisioned)
        what = "secret" if provisioned.key_name is None else f"key {provisioned.key_name}"
        self.note(f"{what} released by {provisioned.server}")

    @property
    def tells_of_grants(self) -> bool:
        """Tell whether :meth:`granted` prints anything."""
        return self._level >= Level.DEBUG

    def granted(self, path: str, intent: Intent) -> None:
        """Tell of what the rules granted, once for each file and intent."""
        if (path, intent) not in self._granted:
            self._granted.add((path, intent))
            self._write(f"cloister: granted: {intent.value} of file:{path}")

    def let_through(self, path: str, intent: Intent) -> None:
        """Remember a file that ``allow_all_but_log`` let through."""
        self._let_through.setdefault(path, set()).add(intent)

    def close(self) -> None:
        """List what was let through."""
        if self._let_through:
            self._write(
                "cloister: sgx.file_check_policy = allow_all_but_log let through, "
                "without any protection:"
            )
        for path, intents in sorted(self._let_through.items()):
            words = ", ".join(intent.value for intent in Intent if intent in intents)
            self._write(f"  {words} of file:{path}")
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def _describe(error: OSError) -> tuple[str, str, str | None]:
    """Return the kind of an error, its reason and what to do."""
    if isinstance(error, DeniedError):
        return "denied", error.reason, error.mend
    if isinstance(error, TamperedFileError):
        mend = "if you changed the file, build and sign again; if not, the host changed it"
        return "tampered", error.reason, mend
    if isinstance(error, RejectedError):
        return "refused", error.reason, error.mend
    return "failed", error.strerror or str(error), None
