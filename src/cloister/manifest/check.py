"""Checking a manifest without building it: all problems at once."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from cloister.errors import CloisterError
from cloister.manifest.parse import ManifestText
from cloister.manifest.tree import FileTree
from cloister.manifest.trusted import expand

MOUNTED_PROC = (
    "/proc is the kernel's view of the program's own processes",
    "leave this mount out; /proc is always there",
)
"""What is wrong with a mount there, and what to do."""


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
            expand([file], base, tree, problem, bare_directories=text.graphene)
        except CloisterError as error:
            yield error


def mount_problems(text: ManifestText) -> Iterator[CloisterError]:
    """Yield what is wrong with the mounts of a manifest, as a run would find it."""
    for number, mount in enumerate(text.manifest.fs.mounts):
        if posixpath.normpath(mount.path) == "/proc":
            yield text.problem(("fs", "mounts", number), *MOUNTED_PROC)
