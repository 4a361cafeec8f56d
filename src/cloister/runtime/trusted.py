"""Trusted files: every chunk is verified on the very bytes that are served.

There is no gap between check and use: a file that the host changes at any moment is never served
with changed bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest

from cloister.fuse.filesystem import Attributes
from cloister.manifest.index import CHUNK_SIZE, DIGEST_SIZE, TrustedEntry, chunk_digest
from cloister.runtime.nodes import ROOM, Handle
from cloister.runtime.policy import Intent
from cloister.runtime.scene import Scene, shown

_MOST_AT_ONCE = len(ROOM) - 2 * CHUNK_SIZE


class TamperedFileError(OSError):
    """A trusted file's bytes are not those that were signed (EPERM, as Gramine answers)."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPERM, reason)
        self.reason = reason


class TrustedHandle(Handle):
    """An open trusted file: no byte is served whose chunk was not just verified.

    Args:
        scene: where refusals are reported.
        path: URI path.
        entry: what was signed.
        open_file: opens the host's file.
        descriptor: it is open already; None opens it when something is read that the kernel has
            not cached.
    """

    def __init__(
        self,
        scene: Scene,
        path: str,
        entry: TrustedEntry,
        open_file: Callable[[], int],
        descriptor: int | None = None,
    ) -> None:
        self._scene = scene
        self._path = path
        self._open_file = open_file
        self._opened = descriptor
        self.entry = entry

    def _descriptor(self) -> int:
        if self._opened is None:
            try:
                self._opened = self._open_file()
            except TamperedFileError:
                raise  # and has been reported
            except OSError as error:
                gone = TamperedFileError(f"cannot be opened any more ({error.strerror})")
                self._scene.report(self._path, Intent.READ, gone)
                raise gone from error
        return self._opened

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Read and verify the chunks that hold the range.

        Raises:
            TamperedFileError: a chunk differs from what was signed.
        """
        descriptor = self._descriptor()
        try:
            return read_verified(descriptor, self.entry, offset, size)
        except TamperedFileError as error:
            self._scene.report(self._path, Intent.READ, error)
            raise

    def attributes(self) -> Attributes:
        """Return the attributes of the open file, with the signed size."""
        return shown(self._scene, os.fstat(self._descriptor()), self.entry.size)

    def release(self) -> None:
        """Close the host's file."""
        if self._opened is not None:
            os.close(self._opened)


def read_verified(
    descriptor: int, entry: TrustedEntry, offset: int, size: int
) -> bytes | memoryview:
    """Read a range of a trusted file, and verify the chunks that hold it.

    Returns:
        Less than ``size`` bytes where the file ends or they are too many. They are valid until the
        next read.

    Raises:
        TamperedFileError: a chunk differs from what was signed.
    """
    size = min(size, entry.size - offset, _MOST_AT_ONCE)
    if size <= 0:
        return b""
    first = offset // CHUNK_SIZE
    start = first * CHUNK_SIZE
    end = min(-(-(offset + size) // CHUNK_SIZE) * CHUNK_SIZE, entry.size)
    view = ROOM[: end - start]
    got = os.preadv(descriptor, [view], start)
    if got != end - start:
        raise TamperedFileError(f"cut short at byte {start + got} of {entry.size}")
    digests = [chunk_digest(view[at : at + CHUNK_SIZE]) for at in range(0, got, CHUNK_SIZE)]
    signed = entry.chunks[first * DIGEST_SIZE : (first + len(digests)) * DIGEST_SIZE]
    if not compare_digest(b"".join(digests), signed):
        raise _changed(entry, first, digests)
    return view[offset - start : offset - start + size]


def _changed(entry: TrustedEntry, first: int, digests: list[bytes]) -> TamperedFileError:
    """Name the first chunk that is not the signed one."""
    for number, digest in enumerate(digests, start=first):
        if entry.chunks[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE] != digest:
            break
    at = number * CHUNK_SIZE
    last = min(at + CHUNK_SIZE, entry.size) - 1
    return TamperedFileError(f"bytes {at} to {last} are not those that were signed")


def require_size(descriptor: int, entry: TrustedEntry) -> None:
    """Refuse a file of another size at once: what was appended would never be read.

    Raises:
        TamperedFileError: the host's file is longer or shorter than the signed one.
    """
    size = os.fstat(descriptor).st_size
    if size != entry.size:
        raise TamperedFileError(f"has {size} bytes, but the signed file has {entry.size}")


def digest_whole(descriptor: int, entry: TrustedEntry) -> TrustedEntry:
    """Verify a whole file and return its entry with chunk digests for the reads to come.

    For manifests without an index, such as those that Gramine's signer writes.

    Raises:
        TamperedFileError: the file's SHA-256 is not the signed one.
    """
    whole = sha256()
    chunks = bytearray()
    size = 0
    while data := os.pread(descriptor, CHUNK_SIZE, size):
        whole.update(data)
        chunks += chunk_digest(data)
        size += len(data)
    if not compare_digest(whole.digest(), entry.sha256):
        raise TamperedFileError("its SHA-256 is not the signed one")
    return TrustedEntry(size, entry.sha256, bytes(chunks))
