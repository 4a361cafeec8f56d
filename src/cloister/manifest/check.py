"""Checking a manifest without building it: all problems at once."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from cloister.errors import CloisterError
from cloister.manifest.parse import ManifestText
from cloister.manifest.tree import FileTree
from cloister.manifest.trusted import expand

_PROC = "/proc"


def proc_problem(path: str) -> tuple[str, str] | None:
    """Return what is wrong with a mount at a path, and what to do, if it is in ``/proc``.

    Files that the kernel has there can be mounted over; new ones it does not take.
    """
    path = posixpath.normpath(path)
    if path == _PROC:
        return (
            "/proc is the kernel's view of the program's own processes",
            "leave this mount out; /proc is always there",
        )
    if path.startswith(f"{_PROC}/") and not Path(path).exists():
        return (
            f"{path}: the kernel has no such file, and takes no new ones below /proc",
            "mount it somewhere else",
        )
    return None


def file_problems(text: ManifestText, base: Path) -> Iterator[CloisterError]:
    """Yield what is wrong with the trusted files of a manifest.

    Args:
        text: the manifest.
        base: its directory, where relative URIs start.
    """
    tree = FileTree()
    for number, file in enumerate(text.manifest.sgx.trusted_files):

        def problem(_: int, what: str, hint: str | None, number: int = number) -> CloisterError:
            return text.trusted_file_problem(number, what, hint)

        try:
            expand([file], base, tree, problem, bare_directories=text.graphene, needs_libos=False)
        except CloisterError as error:
            yield error


def mount_problems(text: ManifestText) -> Iterator[CloisterError]:
    """Yield what is wrong with the mounts of a manifest, as a run would find it."""
    for number, mount in enumerate(text.manifest.fs.mounts):
        found = proc_problem(mount.path)
        if found is not None:
            yield text.problem(("fs", "mounts", number), *found)
