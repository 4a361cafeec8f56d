"""Fills the kernel's cache with what a program will read of trusted files, in a process of its own.

Were they read through the mount, each would be opened, read and closed by requests, each of which
keeps the program's own requests waiting. So the process that fetches ahead looks files up and then
orders their content here; the filler reads it on the host, verifies it and gives it to the kernel,
while the server answers others.

A file is ordered by its inode number, and that of a trusted file follows from its place in the
index. So whatever the host does to names on the way, a node never gets another file's content.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

from cloister.errors import TrustedIndexError
from cloister.fuse.notify import store
from cloister.manifest.index import UNKNOWN_SIZE, TrustedEntry, TrustedIndex
from cloister.runtime import linux
from cloister.runtime.foresight import FIRST_NUMBER, ORDER, SPAN
from cloister.runtime.forks import fork_into
from cloister.runtime.trusted import read_verified, require_size

_PIECE = 1 << 18
_PAGE = mmap.PAGESIZE


def number_of(entry: TrustedEntry) -> int | None:
    """Return the inode number of a trusted file; None if its content cannot be ordered."""
    if entry.number is None or entry.size == UNKNOWN_SIZE:
        return None
    return FIRST_NUMBER + entry.number


class Filler:
    """The process, and what it tells.

    Args:
        fuse: a descriptor of ``/dev/fuse``.
        orders: where :func:`cloister.runtime.foresight.fetch_ahead` sends them. The process, which
            ends with them, takes the socket over.
        index: the trusted files.
        base: directory to which relative URI paths belong.
    """

    def __init__(self, fuse: int, orders: socket.socket, index: TrustedIndex, base: Path) -> None:
        self._whole = mmap.mmap(-1, max(len(index), 1))
        self._child = fork_into(lambda: self._fill(fuse, orders, index, base))
        orders.close()

    def found_whole(self, number: int) -> bool:
        """Tell whether the file with this inode number was there and had its signed size."""
        return self._whole[number - FIRST_NUMBER] != 0

    def close(self) -> None:
        """End the process."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        self._whole.close()

    def _fill(self, fuse: int, orders: socket.socket, index: TrustedIndex, base: Path) -> None:
        with suppress(OSError):  # it costs the others time, and nothing else
            linux.give_way()
        with orders.makefile("rb") as stream:
            while head := stream.read(ORDER.size):
                number, count = ORDER.unpack(head)
                spans = SPAN.iter_unpack(stream.read(count * SPAN.size))
                # What goes wrong with a file will be told to the program when it reads.
                with suppress(OSError, TrustedIndexError):
                    self._fill_one(fuse, number, list(spans), index, base)

    def _fill_one(
        self, fuse: int, number: int, spans: list[tuple[int, int]], index: TrustedIndex, base: Path
    ) -> None:
        entry = index.entry(number - FIRST_NUMBER)
        path = os.path.join(base, index.path(number - FIRST_NUMBER))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            require_size(descriptor, entry)
            for first, end in spans:
                until = min(-(-end // _PAGE) * _PAGE, entry.size)
                for at in range(first // _PAGE * _PAGE, until, _PIECE):
                    data = read_verified(descriptor, entry, at, min(_PIECE, until - at))
                    store(fuse, number, at, memoryview(data))
        finally:
            os.close(descriptor)
        self._whole[number - FIRST_NUMBER] = 1
