"""Sorts what a traced script opened: its code, its data, Python's own, and the rest."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cloister.manifest.propose import Observed

_CODE_SUFFIXES = (".py", ".pyi", ".so")
# What every program looks at and does without.
_MACHINES_OWN = (
    *("/etc", "/proc", "/sys", "/dev", "/run"),
    *("/usr/share/zoneinfo", "/usr/share/locale", "/usr/lib/locale", "/usr/lib/ssl"),
)
INSIDE = "/project"
"""The script's directory in the enclave."""

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  (recognised, not used)


@dataclass(frozen=True)
class Sorted:
    """What a script needs and makes.

    Attributes:
        code: its own modules, relative to its directory; the script is the first.
        data: what it reads beside them, relative to its directory.
        results: what it writes there, likewise.
        elsewhere: absolute paths that it reads outside of its directory and of Python; the value
            is where ``../`` leads to them from the directory that it has in the enclave, or None.
        lost: absolute paths that it writes outside of its directory, and not temporarily.
    """

    code: tuple[str, ...]
    data: tuple[str, ...]
    results: tuple[str, ...]
    elsewhere: Mapping[str, str | None]
    lost: tuple[str, ...]


def sort(observed: Observed, *, script: str, home: str, python: Sequence[str]) -> Sorted:
    """Sort what was observed.

    Args:
        observed: absolute URI paths.
        script: name of the script in its directory.
        home: the script's directory, absolute.
        python: directories and files of the interpreter and its packages, absolute.
    """
    code, data, elsewhere = [script], [], []
    for path in observed.read:
        ours = _below(path, home)
        if ours is None:
            temporary = _is_below_any(path, _TEMPORARY) and _from_above(path, home) is None
            if not temporary and not _is_below_any(path, (*python, *_MACHINES_OWN)):
                elsewhere.append(path)
        elif _is_below_any(path, python) or "__pycache__" in path:
            continue  # a virtual environment beside the script, and what Python keeps for itself
        elif path.endswith(_CODE_SUFFIXES):
            code.append(ours)
        else:
            data.append(ours)
    changed = [ours for path in observed.changed if (ours := _below(path, home)) is not None]
    results = [ours for path in observed.written if (ours := _below(path, home)) is not None]
    lost = [
        path
        for path in observed.written
        if _below(path, home) is None and not _is_below_any(path, _TEMPORARY)
    ]
    return Sorted(
        code=tuple(dict.fromkeys(code)),
        # A file that is rewritten on every run is a result, unless its old content is read first;
        # which of the two cannot be told, and an old result does no harm among the inputs.
        data=tuple(dict.fromkeys((*data, *changed))),
        results=tuple(results),
        elsewhere={path: _from_above(path, home) for path in elsewhere},
        lost=tuple(lost),
    )


def _from_above(path: str, home: str) -> str | None:
    """Return how ``path`` is reached by ``../`` from :data:`INSIDE`; None: not in one step."""
    beside = _below(path, posixpath.dirname(home))
    return None if beside is None or f"/{beside}" == path else f"/{beside}"


def _below(path: str, directory: str) -> str | None:
    """Return ``path`` relative to a directory that holds it."""
    inside = path.startswith(f"{directory.rstrip('/')}/")
    return posixpath.relpath(path, directory) if inside else None


def _is_below_any(path: str, directories: Iterable[str]) -> bool:
    return any(path == each or path.startswith(f"{each.rstrip('/')}/") for each in directories)
