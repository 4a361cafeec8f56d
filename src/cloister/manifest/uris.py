"""URIs of host files, as manifests write them: ``file:PATH``, relative or absolute.

A path is a name, not a place: it is normalised as text and never resolved through symbolic links,
so that signer and runtime agree without looking at the same disk.
"""

from __future__ import annotations

import posixpath

FILE = "file:"
DEVICE = "dev:"


def normalise(path: str) -> str:
    """Normalise a URI path as text: no ``//``, ``.`` or inner ``..``; ``""`` becomes ``.``."""
    normal = posixpath.normpath(path)
    return normal[1:] if normal.startswith("//") else normal


def file_path(uri: str) -> str:
    """Return the normalised path of a ``file:`` URI.

    Raises:
        ValueError: another kind of URI.
    """
    if not uri.startswith(FILE):
        raise ValueError(f"{uri!r}: expected a URI that starts with {FILE}")
    return normalise(uri[len(FILE) :])
