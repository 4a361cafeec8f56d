"""Trusted files: from the list in a manifest to single files.

Relative URIs are relative to the manifest's directory. The rules are those of Gramine's tools:
a directory is written with ``/`` at the end and stands for all files below it, a file with a given
hash is taken as it is and need not exist, doubles are merged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cloister.errors import CloisterError
from cloister.manifest.model import TrustedFile
from cloister.manifest.tree import FileTree
from cloister.manifest.uris import FILE

LIBOS = "libsysdb.so"
"""File name of Gramine's library OS, which most of its manifests trust; our runtime needs none."""
_OF_GRAMINE = "it is Gramine's library OS: install Gramine, or leave the line out"

Problem = Callable[[int, str, str | None], CloisterError]
"""Makes the error for a line of the list: its number from 0, what is wrong, what to do."""


class Candidate(NamedTuple):
    """One file to be trusted.

    Attributes:
        host: the file on this machine.
        line: number of the list item that names it, from 0.
        sha256: given in the manifest; None if it is to be hashed.
        named: whether the list names the file itself, so that it must be there.
    """

    host: str
    line: int
    sha256: bytes | None
    named: bool


def expand(
    listed: Sequence[TrustedFile],
    base: Path,
    tree: FileTree,
    problem: Problem,
    *,
    bare_directories: bool = False,
    needs_libos: bool = True,
) -> dict[str, Candidate]:
    """Expand directories and merge doubles.

    Args:
        listed: ``sgx.trusted_files``.
        base: directory of the manifest.
        tree: listings of directories.
        problem: makes the errors.
        bare_directories: whether a directory may be written without ``/`` (Graphene's dialect).
        needs_libos: whether Gramine's library OS must be there as any other file; if not, an absent
            one is passed over.

    Returns:
        Normalised URI path -> candidate, in the order of the list.

    Raises:
        CloisterError: made by ``problem``: a file or directory is missing, or two hashes differ.
    """
    found: dict[str, Candidate] = {}
    for line, file in enumerate(listed):
        if bare_directories and file.sha256 is None and (base / file.path).is_dir():
            file = TrustedFile(uri=f"{file.uri.rstrip('/')}/")  # noqa: PLW2901
        if not needs_libos and is_absent_libos(file, base):
            continue
        for path, candidate in _of_line(line, file, base, tree, problem):
            before = found.setdefault(path, candidate)
            if before.sha256 is None and candidate.sha256 is not None:
                found[path] = candidate
            elif candidate.sha256 is not None and candidate.sha256 != before.sha256:
                raise problem(line, f"{file.uri} has another sha256 further up", None)
    return found


def is_absent_libos(file: TrustedFile, base: Path) -> bool:
    """Tell whether an item of the list is Gramine's library OS, and not on this machine."""
    path = base / file.path
    return file.sha256 is None and path.name == LIBOS and not path.exists()


def _of_line(
    line: int, file: TrustedFile, base: Path, tree: FileTree, problem: Problem
) -> list[tuple[str, Candidate]]:
    path = file.path
    host = os.path.join(base, path)  # noqa: PTH118  (a Path would cost a second for a big tree)
    if file.uri.endswith("/"):
        return _of_directory(line, file, path, host, tree, problem)
    if file.sha256 is not None:
        return [(path, Candidate(host, line, bytes.fromhex(file.sha256), named=True))]
    if Path(host).is_dir():
        hint = f'write "{FILE}{path or "."}/" to trust all of it'
        raise problem(line, f"{file.uri} is a directory", hint)
    if not Path(host).is_file():
        mend = _OF_GRAMINE if os.path.basename(host) == LIBOS else None  # noqa: PTH119
        raise problem(line, f"{file.uri} does not exist, or is no regular file", mend)
    return [(path, Candidate(host, line, None, named=True))]


def _of_directory(
    line: int, file: TrustedFile, path: str, host: str, tree: FileTree, problem: Problem
) -> list[tuple[str, Candidate]]:
    if file.sha256 is not None:
        raise problem(line, f"{file.uri} is a directory, which has no sha256", None)
    try:
        names = tree.files(f"{host.rstrip('/')}/")
    except OSError as error:
        raise problem(line, f"{file.uri}: {error.strerror}", None) from error
    cut = len(host.rstrip("/")) + 1
    prefix = "" if path == "." else f"{path.rstrip('/')}/"
    return [(prefix + name[cut:], Candidate(name, line, None, named=False)) for name in names]
