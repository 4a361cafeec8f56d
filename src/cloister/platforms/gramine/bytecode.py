"""Compiled Python modules that Gramine makes Python compile again.

A ``.pyc`` file says for which state of its source it was made: by modification time and size, or by
a hash (PEP 552). Gramine's files have no modification time, so the first kind is never up to date
there, and every start compiles every module that it imports.
"""

from __future__ import annotations

import os
import re
import shlex
import struct
from collections.abc import Iterator
from pathlib import Path

from cloister.manifest.model import Manifest

_HEADER = struct.Struct("<4sI")  # magic number, flags; what follows depends on the flags
_CACHE = "__pycache__"
_SUFFIX = ".pyc"
_VERSIONED = re.compile(r"python3\.\d+")


def notes_on(manifest: Manifest, base: Path) -> list[str]:
    """Return what to tell of trusted modules that would be compiled at each start, if any.

    Args:
        base: the directory of relative URIs.
    """
    directories = (base / item.path for item in manifest.sgx.trusted_files)
    roots = {
        _root(directory)
        for directory in directories
        if any(map(_is_judged_by_time, _one_of_each_cache(directory)))
    }
    if not roots:
        return []
    return [
        "Python compiles its modules anew at each start, because Gramine shows no modification"
        " times to judge the compiled ones by; mend it once with the program's Python, and build"
        " again: python -m compileall -q -f --invalidation-mode checked-hash "
        + " ".join(shlex.quote(str(root)) for root in sorted(roots))
    ]


def _root(directory: Path) -> Path:
    """Return the installation's directory of modules that this one belongs to, or itself."""
    for parent in (directory, *directory.parents):
        if _VERSIONED.fullmatch(parent.name):
            return parent
    return directory


def _one_of_each_cache(directory: Path) -> Iterator[Path]:
    """Yield a compiled module of each package; they were compiled together."""
    for place, _, names in os.walk(directory):
        if Path(place).name == _CACHE:
            yield from [Path(place, name) for name in names if name.endswith(_SUFFIX)][:1]


def _is_judged_by_time(path: Path) -> bool:
    """Tell whether a ``.pyc`` file is for a source of a certain time: all flags are clear then."""
    with path.open("rb") as file:
        start = file.read(_HEADER.size)
    return len(start) == _HEADER.size and _HEADER.unpack(start)[1] == 0
