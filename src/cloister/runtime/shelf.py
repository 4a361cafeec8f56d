"""Trusted files that a program opens again and again, kept in memory in large pages.

Files of a FUSE mount lie in the kernel's cache in single pages, from which they are read at half
the speed of a disk's file. So root of the machine may put a verified copy of a whole file into a
nameless tmpfs of huge pages, and the kernel reads it there without asking
(:mod:`cloister.fuse.passthrough`). This takes the time to read the file once and memory that the
kernel cannot take back; it is for files that an earlier run read from start to end more than once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from cloister.fuse.filesystem import Attributes
from cloister.runtime import linux
from cloister.runtime.host import HostFile
from cloister.runtime.nodes import Handle, Node

if TYPE_CHECKING:
    from cloister.runtime.trusted import TrustedHandle

_SHARE = 4
"""All copies together take at most this part of the memory that is free at the start."""

_PIECE = 1 << 20


class Kept(Handle):
    """The verified copy of a trusted file; one handle for all who open it.

    Args:
        descriptor: the copy.
        attributes: of the host's file when it was copied.
    """

    def __init__(self, descriptor: int, attributes: Attributes) -> None:
        self.behind = descriptor
        self._descriptor = descriptor
        self._attributes = attributes

    def read(self, offset: int, size: int) -> bytes:
        """Read from the copy: where the kernel will not do so by itself."""
        return os.pread(self._descriptor, size, offset)

    def attributes(self) -> Attributes:
        """Return the attributes that the file had."""
        return self._attributes


class Shelf:
    """Keeps the copies of one run.

    Args:
        paths: of the files, inside the tree.
        room: bytes that all copies may take.

    Raises:
        OSError: this kernel, or this user, cannot have huge pages in a nameless tmpfs.
    """

    def __init__(self, paths: Collection[str], room: int) -> None:
        self._paths = frozenset(paths)
        self._room = room
        self._directory = linux.nameless_tmpfs("huge", "always")

    def offer(self, node: Node, path: Callable[[], str]) -> None:
        """Let a node that is about to be opened keep its file here, if it is one of them."""
        if isinstance(node, HostFile) and path() in self._paths:
            node.offer(self.keep)

    def keep(self, handle: TrustedHandle) -> Kept | None:
        """Copy and verify a whole file; None where there is no room for it.

        Raises:
            TamperedFileError: a chunk differs from what was signed.
        """
        size = handle.entry.size
        if size > self._room:
            return None
        self._room -= size
        copy = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            for at in range(0, size, _PIECE):
                os.pwrite(copy, handle.read(at, _PIECE), at)
            return Kept(copy, handle.attributes())
        except BaseException:
            os.close(copy)
            raise


def shelf_for(paths: Collection[str]) -> Shelf | None:
    """Return a shelf for these files; None where there are none, or only the kernel caches."""
    if not paths or not linux.is_root_of_the_machine():
        return None
    try:
        return Shelf(paths, linux.free_memory() // _SHARE)
    except OSError:
        return None
