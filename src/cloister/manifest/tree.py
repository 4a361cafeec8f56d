"""Listing directories of trusted files, once per build however often they are asked for."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

from cloister.manifest.hashing import stamp_of

_BY_NAME = attrgetter("name")
_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_Listing = tuple[list[str], list[str]]  # files, links to directories
State = tuple[dict[str, _Listing], dict[str, tuple[int, bytes]]]


class Seen(NamedTuple):
    """What the disk says of one file: size in bytes, and its stamp."""

    size: int
    stamp: bytes


class FileTree:
    """Remembers the listings of one build, so that it works on one state of the disk."""

    def __init__(self) -> None:
        self._listed: dict[str, _Listing] = {}
        self._seen: dict[str, tuple[int, bytes]] = {}

    def files(self, directory: str) -> list[str]:
        """Return the regular files below ``directory``: names that start with it, in order.

        Each level is sorted by name; a directory's files stand at the directory's place. Symbolic
        links to files count as files, those to directories are not entered. Sockets, pipes and
        devices are left out, and so are directories that the caller may not list.

        Raises:
            OSError: ``directory`` itself cannot be listed.
        """
        return self._list(directory)[0]

    def links(self, directory: str) -> list[str]:
        """Return the symbolic links to directories below ``directory``, which are not entered.

        Raises:
            OSError: ``directory`` itself cannot be listed.
        """
        return self._list(directory)[1]

    def seen(self, name: str) -> Seen:
        """Return size and stamp of a file, as they were when it was listed; else as they are now.

        Raises:
            OSError: it is not there.
        """
        known = self._seen.get(name)
        if known is not None:
            return Seen(*known)
        status = os.stat(name)  # noqa: PTH116  (a Path would be slow)
        return Seen(status.st_size, stamp_of(status))

    def dump(self) -> State:
        """Return what is remembered, for :meth:`restore`: plain values that marshal can write."""
        return self._listed, self._seen

    def restore(self, state: State) -> None:
        """Remember what another tree remembered."""
        self._listed, self._seen = state

    def _list(self, directory: str) -> _Listing:
        if directory not in self._listed:
            self._listed[directory] = self._walk(f"{directory.removesuffix('/')}/")
        return self._listed[directory]

    def _walk(self, top: str) -> _Listing:
        listing: _Listing = ([], [])
        levels = [self._members(top, listing)]
        while levels:
            below = next(levels[-1], None)
            if below is None:
                levels.pop()
                continue
            try:
                levels.append(self._members(below, listing))
            except PermissionError:
                continue
        return listing

    def _members(self, directory: str, listing: _Listing) -> Iterator[str]:
        """Look at one directory; the iterator notes its files and yields its directories."""
        descriptor = os.open(directory, _DIRECTORY)
        try:
            with os.scandir(descriptor) as entries:
                # Relative to the descriptor, the kernel has the shortest way to each file.
                found = [(entry.name, _status(entry)) for entry in sorted(entries, key=_BY_NAME)]
        finally:
            os.close(descriptor)
        return self._note(directory, found, listing)

    def _note(
        self, directory: str, found: list[tuple[str, os.stat_result | None]], listing: _Listing
    ) -> Iterator[str]:
        files, links = listing
        for name, status in found:
            path = directory + name
            if status is None:
                yield f"{path}/"
            elif stat.S_ISREG(status.st_mode):
                files.append(path)
                self._seen[path] = (status.st_size, stamp_of(status))
            elif stat.S_ISDIR(status.st_mode):
                links.append(path)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return None for a directory, else the status of what the entry leads to."""
    if entry.is_dir(follow_symlinks=False):
        return None
    try:
        return entry.stat()
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return entry.stat(follow_symlinks=False)  # a link that leads nowhere: nothing of use
