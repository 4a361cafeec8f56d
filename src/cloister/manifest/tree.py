"""Listing directories of trusted files, once per build however often they are asked for."""

from __future__ import annotations

import os
from typing import NamedTuple


class FileTree:
    """Remembers the listings of one build, so that it works on one state of the disk."""

    def __init__(self) -> None:
        self._listed: dict[str, _Listing] = {}

    def files(self, directory: str) -> list[str]:
        """Return the regular files below ``directory``: names that start with it, in order.

        Each level is sorted by name; a directory's files stand at the directory's place. Symbolic
        links to files count as files, those to directories are not entered. Sockets, pipes and
        devices are left out, and so are directories that the caller may not list.

        Raises:
            OSError: ``directory`` itself cannot be listed.
        """
        return self._list(directory).files

    def links(self, directory: str) -> list[str]:
        """Return the symbolic links to directories below ``directory``, which are not entered.

        Raises:
            OSError: ``directory`` itself cannot be listed.
        """
        return self._list(directory).links

    def _list(self, directory: str) -> _Listing:
        if directory not in self._listed:
            listing = _Listing([], [])
            _list_into(listing, directory, top=True)
            self._listed[directory] = listing
        return self._listed[directory]


class _Listing(NamedTuple):
    files: list[str]
    links: list[str]


def _list_into(listing: _Listing, directory: str, *, top: bool) -> None:
    try:
        with os.scandir(directory) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        if top:
            raise
        return
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            _list_into(listing, entry.path, top=False)
        elif entry.is_file():
            listing.files.append(entry.path)
        elif entry.is_dir():
            listing.links.append(entry.path)
