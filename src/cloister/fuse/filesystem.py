"""What a file system has to answer, in Python's words.

A file system works on *nodes* (numbers that the kernel learned from a :class:`Entry`) and on
*handles* (numbers that it learned from an :class:`Opened`). Every method may raise :class:`OSError`
with an ``errno``; that number is what the program sees. The methods of this base class refuse with
``ENOSYS``, which tells the kernel not to ask again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import NamedTuple, NoReturn

from cloister.fuse.protocol import OpenFlag


class Attributes(NamedTuple):
    """What ``stat`` shows of a node; times in nanoseconds since the epoch.

    ``number`` is shown as the inode number; 0 stands for the node's own.
    """

    mode: int
    size: int = 0
    links: int = 1
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    device: int = 0
    blocks: int = 0
    block_size: int = 4096
    number: int = 0


class Entry(NamedTuple):
    """A name that was found; node 0 says that the name does not exist (and may be remembered)."""

    node: int
    attributes: Attributes
    name_seconds: float
    attribute_seconds: float


class Opened(NamedTuple):
    """An open file or directory and how the kernel may cache it.

    ``behind`` is the number of a file that holds the same bytes, which the kernel reads there
    (:func:`cloister.fuse.passthrough.announce`).
    """

    handle: int
    flags: OpenFlag = OpenFlag.NONE
    behind: int | None = None


class Listed(NamedTuple):
    """One name of a directory; ``mode`` needs only the file type bits."""

    name: bytes
    node: int
    mode: int


class Caller(NamedTuple):
    """Who asks: numbers as the serving process sees them. ``pid`` is the thread's."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


class Change(NamedTuple):
    """What SETATTR is to change; None leaves a field as it is. Times in nanoseconds."""

    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    atime_ns: int | None
    mtime_ns: int | None
    handle: int | None


class Statistics(NamedTuple):
    """What ``statfs`` shows; sizes in blocks of ``block_size`` bytes."""

    blocks: int
    free: int
    available: int
    files: int
    free_files: int
    block_size: int = 4096
    name_length: int = 255


def _refuse() -> NoReturn:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


class Filesystem:
    """Base class: answers nothing. See the module's text for the rules."""

    def lookup(self, parent: int, name: bytes) -> Entry:
        """Find ``name`` in a directory; counts as one reference to the node."""
        _refuse()

    def entry(self, parent: int, name: bytes) -> Entry:
        """Return what is listed with a name (READDIRPLUS); it counts as :meth:`lookup` does."""
        return self.lookup(parent, name)

    def forget(self, node: int, count: int) -> None:
        """Drop ``count`` references to a node."""

    def getattr(self, node: int, handle: int | None) -> tuple[Attributes, float]:
        """Return the attributes and for how many seconds they may be remembered."""
        _refuse()

    def setattr(self, node: int, change: Change) -> tuple[Attributes, float]:
        """Change attributes and return all of them."""
        _refuse()

    def readlink(self, node: int) -> bytes:
        """Return the target of a symbolic link."""
        _refuse()

    def symlink(self, parent: int, name: bytes, target: bytes) -> Entry:
        """Create a symbolic link."""
        _refuse()

    def link(self, node: int, parent: int, name: bytes) -> Entry:
        """Give a node a second name."""
        _refuse()

    def mknod(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Create a file that is not opened at once."""
        _refuse()

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Create a directory."""
        _refuse()

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name that is not a directory's."""
        _refuse()

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        _refuse()

    def rename(self, parent: int, name: bytes, target: int, new: bytes, flags: int) -> None:
        """Rename; ``flags`` are those of renameat2(2)."""
        _refuse()

    def open(self, node: int, flags: int, caller: Caller) -> Opened:
        """Open a file; ``flags`` are those of open(2)."""
        _refuse()

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, Opened]:
        """Create and open a file in one step."""
        _refuse()

    def tmpfile(self, parent: int, flags: int, mode: int, caller: Caller) -> tuple[Entry, Opened]:
        """Create and open a file without a name (O_TMPFILE)."""
        _refuse()

    def read(self, node: int, handle: int, offset: int, size: int) -> bytes | memoryview:
        """Return at most ``size`` bytes from ``offset`` on; fewer only at the end of the file."""
        _refuse()

    def write(self, node: int, handle: int, offset: int, data: memoryview, *, append: bool) -> int:
        """Write and return how many bytes were taken; ``data`` dies with the call.

        With ``append`` they belong behind the last byte, which the kernel takes for ``offset``.
        """
        _refuse()

    def flush(self, node: int, handle: int) -> None:
        """One descriptor of the handle was closed; report delayed errors now."""
        _refuse()

    def fsync(self, node: int, handle: int, data_only: bool) -> None:
        """Make the file survive a power loss."""
        _refuse()

    def release(self, node: int, handle: int) -> None:
        """The last descriptor of the handle is gone. Errors reach nobody."""
        _refuse()

    def opendir(self, node: int, caller: Caller) -> Opened:
        """Open a directory."""
        _refuse()

    def readdir(self, node: int, handle: int, offset: int) -> Iterable[Listed]:
        """Return the names from the ``offset``-th on, ``.`` and ``..`` included."""
        _refuse()

    def fsyncdir(self, node: int) -> None:
        """Make the names in a directory survive a power loss."""
        _refuse()

    def releasedir(self, node: int, handle: int) -> None:
        """The last descriptor of a directory is gone."""
        _refuse()

    def statfs(self, node: int) -> Statistics:
        """Return the figures of ``df``."""
        _refuse()

    def setxattr(self, node: int, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute; ``flags`` are those of setxattr(2)."""
        _refuse()

    def getxattr(self, node: int, name: bytes) -> bytes:
        """Return an extended attribute."""
        _refuse()

    def listxattr(self, node: int) -> list[bytes]:
        """Return the names of the extended attributes."""
        _refuse()

    def removexattr(self, node: int, name: bytes) -> None:
        """Remove an extended attribute."""
        _refuse()

    def fallocate(self, node: int, handle: int, offset: int, length: int, mode: int) -> None:
        """Reserve, punch or zero a range; ``mode`` is that of fallocate(2)."""
        _refuse()

    def lseek(self, node: int, handle: int, offset: int, whence: int) -> int:
        """Find data or a hole (SEEK_DATA, SEEK_HOLE)."""
        _refuse()

    def destroy(self) -> None:
        """The mount is gone; close everything."""
