"""Paths that files are bound to, and names that never hold content."""

from __future__ import annotations

import posixpath
import re
from typing import Final

from cloister.encrypted.constants import RECOVERY_SUFFIX

_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")


def normalise(path: str) -> str:
    """Return ``path`` as the runtime spells it: ``//``, ``.`` and ``..`` resolved by the text.

    Symbolic links are not looked at and relative paths stay relative (Gramine encrypted files
    format, path binding).
    """
    return re.sub(r"^//", "/", posixpath.normpath(path))


def same_name(embedded: str, relative: str) -> bool:
    """Tell whether the last parts of an embedded path are those of ``relative``."""
    parts = normalise(relative).split("/")
    return embedded.split("/")[-len(parts) :] == parts


def holds_content(name: str) -> bool:
    """Tell whether a directory entry is a file of the user's.

    Recovery files and what an interrupted command left (``.NAME.<12 hex digits>.tmp``) are not.
    """
    return not name.endswith(RECOVERY_SUFFIX) and not is_leftover(name)


def is_leftover(name: str) -> bool:
    """Tell whether ``name`` is that of a temporary file of an interrupted command."""
    return _TEMPORARY.fullmatch(name) is not None
