"""Fills the kernel's cache with what a program will read of trusted files, in a process of its own.

Were they read through the mount, each would be opened, read and closed by requests, each of which
keeps the program's own requests waiting. So the process that fetches ahead looks files up and then
orders their content here; the filler reads it on the host, verifies it and gives it to the kernel,
while the server answers others.

A file is ordered by its inode number, and that of a trusted file follows from its place in the
index. So whatever the host does to names on the way, a node never gets another file's content.

While a page is being read, the kernel has who gives it wait, and not even a signal ends that: if
the server were killed meanwhile, nothing would end it any more. So nothing is given of a file that
somebody has opened. Both processes tell the other first, and look at what the other told then: the
server which file is opened, the filler which one it is giving.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from cloister.errors import TrustedIndexError
from cloister.fuse.notify import store
from cloister.manifest.index import UNKNOWN_SIZE, TrustedEntry, TrustedIndex
from cloister.runtime import linux
from cloister.runtime.foresight import FIRST_NUMBER, ORDER, SPAN
from cloister.runtime.forks import fork_into, hold_only
from cloister.runtime.trusted import read_verified, require_size

_PIECE = 1 << 20
_PATIENCE = 0.1  # seconds
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
        self._fuse = fuse
        self._index = index
        self._base = base
        # Both processes see these. A byte for each file:
        self._filled = mmap.mmap(-1, max(len(index), 1))
        self._opened = mmap.mmap(-1, max(len(index), 1))
        # and the number of the file of which something is being given, or 0.
        self._memory = mmap.mmap(-1, 8)
        self._giving = memoryview(self._memory).cast("Q")
        self._fence = threading.Lock()
        self._child = fork_into(lambda: self._fill(orders))
        orders.close()

    def take(self, number: int) -> bool:
        """Take the file with this inode number over: it is being opened, so no more is given of it.

        Return whether the kernel got all that was ordered; then it had its signed size.
        """
        place = number - FIRST_NUMBER
        if not self._opened[place]:
            self._opened[place] = 1
            self._tell()
            if self._giving[0] == number:
                self._await(number)
        return self._filled[place] != 0

    def _await(self, number: int) -> None:
        """Wait until nothing is given of a file: microseconds, if the filler gets to work."""
        patient_until = time.monotonic() + _PATIENCE
        while self._giving[0] == number:
            if time.monotonic() > patient_until:
                os.kill(self._child, signal.SIGKILL)
                os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOWAIT)
                return
            time.sleep(0)

    def close(self) -> None:
        """End the process; nobody waits for that."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, os.WNOHANG)

    def _tell(self) -> None:
        """Make what was written visible to the other process before anything is read here.

        Taking a lock is a full barrier of the processor.
        """
        with self._fence:
            pass

    # In the process itself

    def _fill(self, orders: socket.socket) -> None:
        hold_only(self._fuse, orders.fileno())
        with suppress(OSError):  # it costs the others time, and nothing else
            linux.give_way()
        with orders.makefile("rb") as stream:
            while head := stream.read(ORDER.size):
                number, count = ORDER.unpack(head)
                spans = list(SPAN.iter_unpack(stream.read(count * SPAN.size)))
                # What goes wrong with a file will be told to the program when it reads.
                with suppress(OSError, TrustedIndexError):
                    self._fill_one(number, spans)

    def _fill_one(self, number: int, spans: list[tuple[int, int]]) -> None:
        place = number - FIRST_NUMBER
        entry = self._index.entry(place)
        path = os.path.join(self._base, self._index.path(place))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            require_size(descriptor, entry)
            for first, end in spans:
                until = min(-(-end // _PAGE) * _PAGE, entry.size)
                for at in range(first // _PAGE * _PAGE, until, _PIECE):
                    data = read_verified(descriptor, entry, at, min(_PIECE, until - at))
                    if not self._give(number, at, memoryview(data)):
                        return
        finally:
            os.close(descriptor)
        self._filled[place] = 1

    def _give(self, number: int, offset: int, data: memoryview) -> bool:
        """Give the kernel a piece of a file, unless somebody has opened it."""
        self._giving[0] = number
        self._tell()
        try:
            if self._opened[number - FIRST_NUMBER]:
                return False
            store(self._fuse, number, offset, data)
            return True
        finally:
            self._giving[0] = 0
