"""What a run tells the person who started it: denials once per file, and what was let through."""

from __future__ import annotations

from collections.abc import Callable

from cloister.runtime.encrypted import RejectedError
from cloister.runtime.policy import DeniedError, Intent
from cloister.runtime.trusted import TamperedFileError


class Journal:
    """Collects and prints what happens to files.

    Args:
        write: prints one line, without its newline.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._print = write
        self._told: set[tuple[str, Intent, type[OSError]]] = set()
        self._let_through: dict[str, Intent] = {}

    def _write(self, line: str) -> None:
        """Print a line; names chosen by a program or the host cannot forge another one."""
        self._print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))

    def note(self, line: str) -> None:
        """Print a line about the run itself."""
        self._write(f"cloister: {line}")

    def denied(self, path: str, intent: Intent, error: OSError) -> None:
        """Tell of a denial, once for each file, intent and kind of reason."""
        key = (path, intent, type(error))
        if key in self._told:
            return
        self._told.add(key)
        kind, reason, mend = _describe(error)
        self._write(f"cloister: {kind}: {intent.value} of file:{path}: {reason}")
        if mend:
            self._write(f"hint: {mend}")

    def limit(self, reached: str) -> None:
        """Tell of a limit that the program reached."""
        self._write(f"cloister: limit: {reached}")

    def let_through(self, path: str, intent: Intent) -> None:
        """Remember a file that ``allow_all_but_log`` let through."""
        self._let_through.setdefault(path, intent)

    def close(self) -> None:
        """List what was let through."""
        if not self._let_through:
            return
        self.note("sgx.file_check_policy = allow_all_but_log let through, without any protection:")
        for path, intent in sorted(self._let_through.items()):
            self._write(f"  {intent.value} of file:{path}")


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
