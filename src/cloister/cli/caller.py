"""What the caller of a command gave it."""

from __future__ import annotations

import os
from pathlib import Path

_ADDED_BY_PYTHON = "LC_CTYPE"


def callers_environment() -> dict[str, str]:
    """Return the environment that the caller gave, for programs that get it.

    Where no locale is set, Python sets ``LC_CTYPE`` for itself when it starts (PEP 538).
    """
    variables = dict(os.environ)
    if _ADDED_BY_PYTHON in variables:
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
        if not any(item.startswith(f"{_ADDED_BY_PYTHON}=".encode()) for item in given):
            del variables[_ADDED_BY_PYTHON]
    return variables
