"""Kinds of nodes and handles: what every file of the tree can be asked, and the synthetic ones.

A :class:`Node` is one name of the tree. :class:`~cloister.runtime.view.View` numbers nodes for the
kernel and forgets them again; a node itself knows nothing of numbers. Methods raise
:class:`OSError`; its ``errno`` is what the program sees.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import time
from typing import NoReturn

from cloister.fuse.filesystem import Attributes, Caller, Change, Statistics
from cloister.fuse.protocol import OpenFlag

FOREVER = 86400.0
"""Seconds for which the kernel may remember what only this process can change."""


ROOM = memoryview(mmap.mmap(-1, (1 << 20) + (1 << 17), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
"""Where a request's bytes are put together: the largest request and two chunks more.

One thread serves, one request at a time. What lies here is valid until the next read. It begins
with a page: the kernel copies to an odd address at a third of the speed.
"""


def refuse(number: int) -> NoReturn:
    """Raise the :class:`OSError` of ``number``."""
    raise OSError(number, os.strerror(number))


class Handle:
    """An open file. This one can do nothing; kinds of files override what they offer.

    ``flags`` tell the kernel how to cache it. A handle that has nothing to report when it is closed
    says NOFLUSH, which saves a request for every open file. ``behind`` is the number of a copy that
    the kernel reads by itself.
    """

    flags = OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH
    behind: int | None = None

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return at most ``size`` bytes from ``offset``, fewer only at the end.

        They are valid until the next read of any handle.
        """
        refuse(errno.EBADF)

    def write(self, offset: int, data: memoryview) -> int:
        """Write all of ``data`` and return its length."""
        refuse(errno.EBADF)

    def append(self, end: int, data: memoryview) -> int:
        """Write ``data`` behind the last byte; where nobody else writes, the kernel knows it."""
        return self.write(end, data)

    def flush(self) -> None:
        """A descriptor was closed."""

    def fsync(self) -> None:
        """Make the content survive a power loss."""

    def fallocate(self, offset: int, length: int, mode: int) -> None:
        """Reserve or punch a range."""
        refuse(errno.EOPNOTSUPP)

    def lseek(self, offset: int, whence: int) -> int:
        """Find data or a hole; without knowledge of holes, all is data."""
        size = self.attributes().size
        if offset >= size:
            refuse(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else size

    def attributes(self) -> Attributes:
        """Return the attributes of the open file, also when its name is gone."""
        refuse(errno.EBADF)

    def release(self) -> None:
        """The last descriptor is gone."""


class Node:
    """One name of the tree. Subclasses are directories, files and links."""

    name_seconds = FOREVER
    attribute_seconds = FOREVER
    costs_reading = False
    """Whether bytes are verified or decrypted before they are served."""
    may_appear = False
    """Whether it is mounted, but for the program to create, as a result is."""

    def looked_up(self) -> Node:
        """Return what the kernel gets to know by this name: this node each time, or a new one."""
        return self

    def attributes(self) -> Attributes:
        """Return what ``stat`` shows."""
        raise NotImplementedError  # pragma: no cover - every kind overrides this

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change attributes; the default refuses."""
        refuse(errno.EPERM)

    def open(self, flags: int, caller: Caller) -> Handle:
        """Open the file; the default refuses."""
        refuse(errno.EACCES)

    def appear(self, flags: int, mode: int, caller: Caller) -> Handle:
        """Create the file, if it :attr:`may_appear`; the default refuses."""
        refuse(errno.EBUSY)

    def readlink(self) -> bytes:
        """Return the target of a symbolic link."""
        refuse(errno.EINVAL)

    def statistics(self) -> Statistics:
        """Return the figures of ``df``: by default those of an empty, full file system."""
        return Statistics(blocks=0, free=0, available=0, files=0, free_files=0)

    def get_xattr(self, name: bytes) -> bytes:
        """Return an extended attribute; by default there are none."""
        refuse(errno.EOPNOTSUPP)

    def set_xattr(self, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute."""
        refuse(errno.EOPNOTSUPP)

    def list_xattr(self) -> list[bytes]:
        """Return the names of the extended attributes."""
        return []

    def remove_xattr(self, name: bytes) -> None:
        """Remove an extended attribute."""
        refuse(errno.EOPNOTSUPP)

    def is_replaced(self) -> bool:
        """Tell whether the node is an open file that lost its name to another, or to nothing."""
        return False

    def successor(self) -> Node:
        """Return a node for what has the name of one that :meth:`is_replaced`."""
        return self

    def detach(self) -> None:
        """The name is gone; handles may still be open."""


class Directory(Node):
    """A directory: finds, lists, creates and removes names.

    ``mounted`` holds the names that a mount, or the way to one, occupies. They come before those
    that :meth:`child` finds, and a program can neither remove nor replace them.
    """

    negative_seconds = FOREVER

    def __init__(self) -> None:
        self.mounted: dict[bytes, Node] = {}

    def child(self, name: bytes) -> Node:
        """Return a new node for ``name``.

        Raises:
            FileNotFoundError: there is none.
        """
        refuse(errno.ENOENT)

    def asks_host(self, name: bytes) -> bool:
        """Tell whether :meth:`child` asks the host for ``name``, who so learns it."""
        return False

    def entries(self) -> list[tuple[bytes, int]]:
        """Return names and file-type bits, without ``.`` and ``..``."""
        return []

    def sync(self) -> None:
        """Make the names survive a power loss; names that only the tree has do not need it."""

    def create(self, name: bytes, flags: int, mode: int, caller: Caller) -> tuple[Node, Handle]:
        """Create a file and open it."""
        refuse(errno.EACCES)

    def create_nameless(self, flags: int, mode: int, caller: Caller) -> tuple[Node, Handle]:
        """Create a file without a name (O_TMPFILE) and open it."""
        refuse(errno.EOPNOTSUPP)

    def mkdir(self, name: bytes, mode: int) -> Node:
        """Create a directory."""
        refuse(errno.EACCES)

    def mknod(self, name: bytes, mode: int) -> Node:
        """Create a FIFO or a socket."""
        refuse(errno.EACCES)

    def symlink(self, name: bytes, target: bytes) -> Node:
        """Create a symbolic link."""
        refuse(errno.EPERM)

    def link(self, node: Node, name: bytes) -> None:
        """Give ``node`` another name here."""
        refuse(errno.EPERM)

    def unlink(self, name: bytes, node: Node) -> None:
        """Remove the name of a file."""
        refuse(errno.EACCES)

    def rmdir(self, name: bytes) -> None:
        """Remove an empty directory."""
        refuse(errno.EACCES)

    def rename(self, name: bytes, node: Node, target: Directory, new: bytes, flags: int) -> None:
        """Move ``node`` from here to ``target``."""
        refuse(errno.EACCES)


_START_NS = time.time_ns()


class SyntheticDirectory(Directory):
    """A directory that exists only in the tree: the way to a mount point, or ``/dev``."""

    def attributes(self) -> Attributes:
        """Return attributes dated when the runtime started, read-only if nothing may appear."""
        writable = any(node.may_appear for node in self.mounted.values())
        return Attributes(
            mode=stat.S_IFDIR | (0o755 if writable else 0o555),
            links=2,
            mtime_ns=_START_NS,
            ctime_ns=_START_NS,
            atime_ns=_START_NS,
        )


class Symlink(Node):
    """A symbolic link that exists only in the tree."""

    def __init__(self, target: bytes) -> None:
        self._target = target

    def attributes(self) -> Attributes:
        """Return the attributes of a link."""
        return Attributes(mode=stat.S_IFLNK | 0o777, size=len(self._target), mtime_ns=_START_NS)

    def readlink(self) -> bytes:
        """Return the target."""
        return self._target


class MountPoint(Node):
    """An empty file or directory over which the sandbox mounts something of the kernel's."""

    def __init__(self, mode: int) -> None:
        self._mode = mode

    def attributes(self) -> Attributes:
        """Return the attributes of the empty file."""
        return Attributes(mode=self._mode, mtime_ns=_START_NS)
