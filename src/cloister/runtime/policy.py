"""Which host files a program may touch: decisions only, no I/O.

A file is named by its *URI path*: the mount's URI without ``file:`` joined with the path below the
mount, normalised as text, never resolved through symbolic links. Relative and absolute paths are
different names. This is the naming of Graphene and Gramine, so that their manifests mean the same.

Where those leave holes, this is stricter: the target of a rename is checked like a creation, and a
trusted file cannot be unlinked, renamed or replaced.
"""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Protocol

from cloister.manifest.index import TrustedEntry
from cloister.manifest.uris import normalise


class Intent(Enum):
    """What a program wants of a file; the value is the word of the log line."""

    READ = "read"
    WRITE = "write"
    CREATE = "creation"
    REMOVE = "removal"
    RENAME = "renaming"


class DeniedError(OSError):
    """The manifest does not grant this; ``reason`` says why, ``mend`` what would permit it."""

    def __init__(self, reason: str, mend: str, number: int = errno.EACCES) -> None:
        super().__init__(number, reason)
        self.reason = reason
        self.mend = mend


class Rules(Protocol):
    """What decides: strict in an enclave, permissive in direct mode."""

    checks_content: bool

    def trusted(self, path: str) -> TrustedEntry | None:
        """Return the digests of a trusted file, or None where content is not checked."""

    def check(self, path: str, intent: Intent) -> None:
        """Return if ``intent`` on ``path`` is granted, else raise :class:`DeniedError`."""

    def changes_on_host(self, path: str) -> bool:
        """Tell whether somebody outside may change what the program sees of ``path``."""

    def follows_links_out(self, path: str) -> bool:
        """Tell whether a host's symbolic link may be followed to wherever it points.

        Only where the program cannot have made the link itself.
        """

    def holds_trusted(self, directory: str) -> bool:
        """Tell whether a trusted file lies at or below ``directory``."""


def is_below(path: str, directory: str) -> bool:
    """Tell whether ``path`` is ``directory`` or lies below it, as text."""
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


class PathSet:
    """Files and directories by their URI paths; a directory stands for all below it."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = frozenset(normalise(path) for path in paths)

    def covers(self, path: str) -> bool:
        """Tell whether ``path`` is in the set, or lies below a member."""
        if not self._paths:
            return False
        if path in self._paths:
            return True
        end = len(path)
        while (end := path.rfind("/", 0, end)) > 0:
            if path[:end] in self._paths:
                return True
        return path.startswith("/") and "/" in self._paths

    def reaches_below(self, directory: str) -> bool:
        """Tell whether a member is ``directory``, or lies below or above it."""
        return self.covers(directory) or any(is_below(path, directory) for path in self._paths)


class EnclaveRules:
    """The rules of an enclave: trusted files, allowed files, nothing else.

    Args:
        lookup: finds the digests of a trusted URI path, None if it is not trusted.
        allowed: URI paths of allowed files and directories; a directory allows all below it.
        trusted: the URI paths that ``lookup`` knows.
        let_through: ``sgx.file_check_policy = "allow_all_but_log"``: called with the path of each
            unlisted file that is let through; None denies them.
        base: absolute path of the manifest's directory, to tell whoever listed a file relatively
            and mounted it absolutely, or the reverse. It decides nothing; None tells nobody.
    """

    checks_content = True

    def __init__(
        self,
        lookup: Callable[[str], TrustedEntry | None],
        allowed: Iterable[str],
        trusted: Iterable[str] = (),
        let_through: Callable[[str, Intent], None] | None = None,
        base: str | None = None,
    ) -> None:
        self._base = base
        self._lookup = lookup
        self._trusted = trusted
        self._allowed = PathSet(allowed)
        self._let_through = let_through

    def trusted(self, path: str) -> TrustedEntry | None:
        """Return the digests of a trusted file. A file that is also allowed counts as allowed."""
        return None if self._allowed.covers(path) else self._lookup(path)

    def check(self, path: str, intent: Intent) -> None:
        """Decide; see :class:`Rules`."""
        if self._allowed.covers(path):
            return
        if self._lookup(path) is not None:
            if intent is not Intent.READ:
                raise DeniedError(
                    "trusted files are read-only",
                    f'list "file:{path}" in sgx.allowed_files instead '
                    "(the host can then change it)",
                )
            return
        if self._let_through is not None:
            self._let_through(path, intent)
            return
        if intent is Intent.READ:
            raise DeniedError(
                "not a trusted, allowed or encrypted file",
                self._mend_of_read(path),
            )
        raise DeniedError(
            "the manifest allows no writing there",
            f'mount an encrypted or tmpfs directory there, or add "file:{path}" to '
            "sgx.allowed_files (the host can then read and change it)",
        )

    def _mend_of_read(self, path: str) -> str:
        """Return what would permit reading an unlisted file."""
        other = self._other_name(path)
        if other and (self._allowed.covers(other) or self._lookup(other) is not None):
            return (
                f'the manifest lists it as "file:{other}", which counts as another file: write the'
                " mount's uri and the list both absolutely, or both relatively, and build again"
            )
        line = f'add "file:{path}" to sgx.trusted_files and build again'
        if path.endswith(".pyc"):
            return f"Python goes on with the source, and starts more slowly; to avoid it, {line}"
        return line

    def _other_name(self, path: str) -> str | None:
        """Return the absolute name of a relative path, or the reverse."""
        if self._base is None:
            return None
        if path.startswith("/"):
            return posixpath.relpath(path, self._base)
        return posixpath.normpath(posixpath.join(self._base, path))

    def changes_on_host(self, path: str) -> bool:
        """Tell whether ``path`` is open to the host: only what is allowed or let through."""
        if self._allowed.covers(path):
            return True
        return self._let_through is not None and self._lookup(path) is None

    def follows_links_out(self, path: str) -> bool:
        """Tell whether ``path`` is read-only: trusted content is what was signed anyway."""
        return not self.changes_on_host(path)

    def holds_trusted(self, directory: str) -> bool:
        """Look through all trusted files: renaming a directory is rare."""
        return any(is_below(path, directory) for path in self._trusted)


class DirectRules:
    """The rules of direct mode: everything that is mounted may be read and written."""

    checks_content = False

    def trusted(self, path: str) -> TrustedEntry | None:
        """Return None: nothing is checked."""
        return None

    def check(self, path: str, intent: Intent) -> None:
        """Grant everything."""

    def changes_on_host(self, path: str) -> bool:
        """Return True: files are the host's."""
        return True

    def follows_links_out(self, path: str) -> bool:
        """Return True: direct mode protects nothing, and shows what the host shows."""
        return True

    def holds_trusted(self, directory: str) -> bool:
        """Return False: nothing is checked."""
        return False


class ReadOnlyRules:
    """The rules of information about the machine (sysfs): anybody may read, nobody may write."""

    checks_content = False

    def trusted(self, path: str) -> TrustedEntry | None:
        """Return None: the kernel makes the content."""
        return None

    def check(self, path: str, intent: Intent) -> None:
        """Grant reading only."""
        if intent is not Intent.READ:
            raise DeniedError("information about the machine is read-only", "do not write there")

    def changes_on_host(self, path: str) -> bool:
        """Return True: the kernel makes the content anew."""
        return True

    def follows_links_out(self, path: str) -> bool:
        """Return True: the program can make no links there."""
        return True

    def holds_trusted(self, directory: str) -> bool:
        """Return False: nothing is checked."""
        return False


class WatchedRules:
    """Other rules, and somebody who is told what they grant.

    Args:
        rules: what decides.
        granted: called with path and intent.
    """

    def __init__(self, rules: Rules, granted: Callable[[str, Intent], None]) -> None:
        self._rules = rules
        self._granted = granted
        self.checks_content = rules.checks_content
        self.changes_on_host = rules.changes_on_host
        self.follows_links_out = rules.follows_links_out
        self.holds_trusted = rules.holds_trusted

    def trusted(self, path: str) -> TrustedEntry | None:
        """Return what the others do; reading a trusted file asks no more."""
        entry = self._rules.trusted(path)
        if entry is not None:
            self._granted(path, Intent.READ)
        return entry

    def check(self, path: str, intent: Intent) -> None:
        """Decide as the others do, and tell."""
        self._rules.check(path, intent)
        self._granted(path, intent)
