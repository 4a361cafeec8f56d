"""Listing directories of trusted files, once per build however often they are asked for."""

from __future__ import annotations

import os


class FileTree:
    """Remembers the listings of one build, so that it works on one state of the disk."""

    def __init__(self) -> None:
        self._listed: dict[str, list[str]] = {}

    def files(self, directory: str) -> list[str]:
        """Return the regular files below ``directory``: names that start with it, in order.

        Each level is sorted by name; a directory's files stand at the directory's place. Symbolic
        links to files count as files, those to directories are not entered. Sockets, pipes and
        devices are left out, and so are directories that the caller may not list.

        Raises:
            OSError: ``directory`` itself cannot be listed.
        """
        if directory not in self._listed:
            found: list[str] = []
            _list_into(found, directory, top=True)
            self._listed[directory] = found
        return self._listed[directory]


def _list_into(found: list[str], directory: str, *, top: bool) -> None:
    try:
        with os.scandir(directory) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        if top:
            raise
        return
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            _list_into(found, entry.path, top=False)
        elif entry.is_file():
            found.append(entry.path)
