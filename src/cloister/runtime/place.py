"""Where a node's file is on the host: a name that the program can take away or replace.

Every use of a name asks first whether it still is what the node stands for, and never follows a
link that the program itself could have made.
"""

from __future__ import annotations

import errno
import os
import stat

from cloister.runtime.nodes import refuse
from cloister.runtime.policy import is_below
from cloister.runtime.scene import Scene


class Place:
    """Where a node of the host is, as long as it has a name.

    Args:
        status: what ``stat`` said just now; the answer to the first question, which follows.

    Attributes:
        host: path on the host.
        path: URI path, by which the manifest knows it.
    """

    def __init__(
        self, scene: Scene, host: str, path: str, status: os.stat_result | None = None
    ) -> None:
        self._scene = scene
        self.move(host, path)
        self._status = status

    def move(self, host: str, path: str) -> None:
        """The node has a name again, or another one."""
        self.host, self.path, self._gone = host, path, False
        self._status = None
        self._read_only = self._scene.rules.follows_links_out(path)

    def lose(self) -> None:
        """The name is gone; whatever takes it is not this node."""
        self._gone = True

    @property
    def is_lost(self) -> bool:
        """Tell whether the name is gone."""
        return self._gone

    @property
    def follows(self) -> bool:
        """Tell whether a symbolic link in this place may be followed."""
        return self._read_only or self.host in self._scene.pins.roots

    def use(self) -> str:
        """Return the host path, if it may be used.

        Raises:
            OSError: ESTALE: the name is gone; EACCES: a link on the way leads out of the mount.
        """
        if self._gone:
            refuse(errno.ESTALE)
        if not (self._read_only or self.follows):
            parent = os.path.realpath(os.path.dirname(self.host))
            if not any(is_below(parent, root) for root in self._scene.pins.roots):
                refuse(errno.EACCES)
        return self.host

    def reach(self) -> str:
        """Return a path for the operation at hand, which no link on the way can lead astray.

        The last name itself may be a link.

        Raises:
            OSError: ESTALE: the name is gone; EACCES: a link on the way leads out of the mount.
        """
        if self._gone:
            refuse(errno.ESTALE)
        if self._read_only or self.follows:
            return self.host
        directory, _, name = self.host.rpartition("/")
        return f"{self._scene.pins.directory(directory)}/{name}"

    def inside(self) -> str:
        """Return, for a directory, a path by which to name what is in it; see :meth:`reach`."""
        if self._gone:
            refuse(errno.ESTALE)
        if self._read_only or self.follows:
            return self.host
        return self._scene.pins.directory(self.host)

    def hold(self, kind: int) -> str:
        """Return a path of the very file that has the name now, for calls that follow links.

        Raises:
            FileNotFoundError: something of another kind has the name.
        """
        if self._read_only or self.follows:
            self.status(kind)
            return self.host
        descriptor = os.open(self.reach(), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        path = self._scene.pins.keep(descriptor)
        if stat.S_IFMT(os.fstat(descriptor).st_mode) != kind:
            refuse(errno.ENOENT)
        return path

    def stands_for(self, descriptor: int) -> bool:
        """Tell whether the name still is that of an open file."""
        if self._gone:
            return False
        try:
            status = self._stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(status, os.fstat(descriptor))

    def status(self, kind: int) -> os.stat_result:
        """Return the host's ``stat``.

        Args:
            kind: the file type bits that the node stands for.

        Raises:
            FileNotFoundError: something else has the name now.
        """
        if self._read_only and self._status is not None and not self._gone:
            status, self._status = self._status, None
        else:
            status = self._stat()
        if stat.S_IFMT(status.st_mode) != kind:
            refuse(errno.ENOENT)
        return status

    def _stat(self) -> os.stat_result:
        host = self.reach()
        return os.stat(host) if self._read_only or self.follows else os.lstat(host)

    def open(self, flags: int) -> int:
        """Open a regular file of the host.

        Raises:
            OSError: the host refuses, or something else has the name now.
        """
        # Without O_NONBLOCK a FIFO in its place would stop the only thread that serves.
        flags |= os.O_CLOEXEC | os.O_NONBLOCK | (0 if self.follows else os.O_NOFOLLOW)
        descriptor = os.open(self.reach(), flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            refuse(errno.EACCES)
        return descriptor
