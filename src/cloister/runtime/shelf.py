"""Trusted files that a program opens again and again, kept in memory in large pages.

Files of a FUSE mount lie in the kernel's cache in single pages, from which they are read at half
the speed of a disk's file. So root of the machine may put a verified copy of a whole file into a
nameless tmpfs of huge pages, and the kernel reads it there without asking
(:mod:`cloister.fuse.passthrough`). This takes the time to read the file once, during which nobody
else is served, and memory that the kernel cannot take back. So it is for files that an earlier run
read from start to end and opened again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cloister.fuse.filesystem import Attributes
from cloister.runtime import linux
from cloister.runtime.nodes import Handle

if TYPE_CHECKING:
    from cloister.runtime.trusted import TrustedHandle

_SHARE = 4
"""All copies together take at most this part of the memory that is free at the start."""

_PIECE = 1 << 20


class Kept(Handle):
    """A trusted file of which the kernel reads the copy.

    Args:
        behind: number of the copy, for the kernel.
        copy: its descriptor, which stays the shelf's.
        attributes: of the host's file when it was copied.
    """

    def __init__(self, behind: int, copy: int, attributes: Attributes) -> None:
        self.behind = behind
        self._copy = copy
        self._attributes = attributes

    def read(self, offset: int, size: int) -> bytes:
        """Read from the copy: for the runtime itself, since the kernel does not ask."""
        return os.pread(self._copy, size, offset)

    def attributes(self) -> Attributes:
        """Return the attributes that the file had."""
        return self._attributes


class Shelf:
    """Keeps the copies of one run.

    Args:
        wanted: URI path -> size in bytes of the files to be kept.
        room: bytes that all copies may take.
        announce: tells the kernel of a file; returns its number, or None if it will not read it.

    Raises:
        OSError: this kernel, or this user, cannot have huge pages in a nameless tmpfs.
    """

    def __init__(
        self, wanted: Mapping[str, int], room: int, announce: Callable[[int], int | None]
    ) -> None:
        self._wanted = wanted
        self._room = room
        self._announce = announce
        self._directory = linux.nameless_tmpfs({"huge": "always", "noswap": None})
        # digests of the content's chunks -> number for the kernel, and descriptor
        self._copies: dict[bytes, tuple[int, int]] = {}

    def keep(self, path: str, open_file: Callable[[], TrustedHandle]) -> Kept | None:
        """Return a trusted file that the kernel reads by itself, None if it is not to be kept.

        Whatever goes wrong, the file can be served as others are, and what is wrong with it will
        be told then.

        Args:
            path: its URI path.
            open_file: opens it.
        """
        if path not in self._wanted:
            return None
        try:
            return self._kept(open_file(), self._wanted[path])
        except OSError:
            return None

    def _kept(self, file: TrustedHandle, expected: int) -> Kept | None:
        size = file.entry.size
        key = file.entry.chunks
        try:
            if size != expected:
                return None
            if key not in self._copies:
                if size > self._room:
                    return None
                copied = self._copy(file)
                if copied is None:
                    return None
                self._room -= size
                self._copies[key] = copied
            return Kept(*self._copies[key], file.attributes())
        finally:
            file.release()

    def _copy(self, file: TrustedHandle) -> tuple[int, int] | None:
        """Copy a whole file, with all checks; return its number for the kernel, and a descriptor.

        Raises:
            OSError: a chunk differs from what was signed, or there is no more memory.
        """
        copy = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._directory)
        try:
            number = self._announce(copy)
            if number is not None:
                _write_all(copy, file)
                return number, copy
        except BaseException:
            os.close(copy)
            raise
        os.close(copy)
        self._wanted = {}  # nor will the kernel take another one
        return None


def _write_all(copy: int, file: TrustedHandle) -> None:
    at = 0
    while at < file.entry.size:
        at += os.pwrite(copy, file.read(at, _PIECE), at)


def shelf_for(wanted: Mapping[str, int], announce: Callable[[int], int | None]) -> Shelf | None:
    """Return a shelf for these files; None where there are none, or only the kernel caches."""
    if not wanted:
        return None
    try:
        return Shelf(wanted, _free_memory() // _SHARE, announce)
    except OSError:
        return None


def _free_memory() -> int:
    """Return how many bytes programs could still take, proc_meminfo(5)."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        fields = dict(line.split(":") for line in lines)
    return int(fields["MemAvailable"].split()[0]) << 10
