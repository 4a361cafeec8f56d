"""Directories of a mount, reached without following a link: no race with whoever makes one.

A program may make links and rename directories where it may write, and a process of the host may
help it. So a path below such a mount is never given to the kernel as text, which could mean another
place a moment after it was checked: the directory is opened from the mount's own descriptor with
every link on the way forbidden (openat2(2), Linux 5.6; one by one before), and then named by the
descriptor, ``/proc/self/fd/N``.
"""

from __future__ import annotations

import errno
import os
from collections import deque

from cloister.runtime import linux
from cloister.runtime.nodes import refuse
from cloister.runtime.policy import is_below

_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_KEPT = 32  # one request needs far fewer; one after the other, so an older one is not in use


class Pins:
    """The roots of a tree's mounts, and the directories below them that the last requests used."""

    def __init__(self) -> None:
        self.roots: dict[str, int] = {}
        self._kept: deque[int] = deque()

    def add_root(self, host: str) -> None:
        """Take hold of a mounted directory or file, whose path has no links."""
        if host not in self.roots:
            self.roots[host] = os.open(host, os.O_PATH | os.O_CLOEXEC)

    def directory(self, host: str) -> str:
        """Return a path that means the directory at ``host`` for the time of a request.

        Raises:
            OSError: EACCES: a link on the way leads out of the mounts.
        """
        try:
            return self.keep(self._open(host))
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        # A link of the host's in a read-only place above, followed unseen: its target is a way too.
        try:
            return self.keep(self._open(os.path.realpath(host)))
        except OSError as error:
            if error.errno == errno.ELOOP:
                refuse(errno.EACCES)
            raise

    def _open(self, host: str) -> int:
        below = [root for root in self.roots if is_below(host, root)]
        if not below:
            refuse(errno.EACCES)
        root = max(below, key=len)
        return linux.open_beneath(self.roots[root], host[len(root) :].lstrip("/") or ".", _FLAGS)

    def keep(self, descriptor: int) -> str:
        """Return the path of a descriptor, which is closed some requests later."""
        self._kept.append(descriptor)
        if len(self._kept) > _KEPT:
            os.close(self._kept.popleft())
        return f"/proc/self/fd/{descriptor}"
