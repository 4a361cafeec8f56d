"""Checking a manifest without building it: all problems at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cloister.errors import CloisterError
from cloister.manifest.parse import ManifestText
from cloister.manifest.tree import FileTree
from cloister.manifest.trusted import expand


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
