"""Trusted files: every chunk is verified on the very bytes that are served.

There is no gap between check and use: a file that the host changes at any moment is never served
with changed bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
from hmac import compare_digest
from typing import NoReturn

from cloister.fuse.filesystem import Attributes
from cloister.manifest.index import CHUNK_SIZE, DIGEST_SIZE, TrustedEntry
from cloister.runtime.nodes import Handle
from cloister.runtime.policy import Intent
from cloister.runtime.scene import Scene, shown


class TamperedFileError(OSError):
    """A trusted file's bytes are not those that were signed (EPERM, as Gramine answers)."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPERM, reason)
        self.reason = reason


class TrustedHandle(Handle):
    """An open trusted file: no byte is served whose chunk was not just verified."""

    def __init__(self, scene: Scene, path: str, descriptor: int, entry: TrustedEntry) -> None:
        self._scene = scene
        self._path = path
        self._descriptor = descriptor
        self.entry = entry

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Read and verify the chunks that hold the range.

        Raises:
            TamperedFileError: a chunk differs from what was signed.
        """
        size = min(size, self.entry.size - offset)
        if size <= 0:
            return b""
        first = offset // CHUNK_SIZE
        last = (offset + size - 1) // CHUNK_SIZE
        start = first * CHUNK_SIZE
        length = min((last + 1) * CHUNK_SIZE, self.entry.size) - start
        data = os.pread(self._descriptor, length, start)
        if len(data) != length:
            self._refuse(f"cut short at byte {start + len(data)} of {self.entry.size}")
        view = memoryview(data)
        for chunk in range(first, last + 1):
            begin = (chunk - first) * CHUNK_SIZE
            digest = hashlib.sha256(view[begin : begin + CHUNK_SIZE]).digest()
            if not compare_digest(
                digest, self.entry.chunks[chunk * DIGEST_SIZE : (chunk + 1) * DIGEST_SIZE]
            ):
                at = chunk * CHUNK_SIZE
                self._refuse(
                    f"bytes {at} to {min(at + CHUNK_SIZE, self.entry.size) - 1} are not those "
                    "that were signed"
                )
        return view[offset - start : offset - start + size]

    def _refuse(self, reason: str) -> NoReturn:
        error = TamperedFileError(reason)
        self._scene.report(self._path, Intent.READ, error)
        raise error

    def attributes(self) -> Attributes:
        """Return the attributes of the open file, with the signed size."""
        return shown(self._scene, os.fstat(self._descriptor), self.entry.size)

    def release(self) -> None:
        """Close the host's file."""
        os.close(self._descriptor)


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
    whole = hashlib.sha256()
    chunks = bytearray()
    size = 0
    while data := os.pread(descriptor, CHUNK_SIZE, size):
        whole.update(data)
        chunks += hashlib.sha256(data).digest()
        size += len(data)
    if not compare_digest(whole.digest(), entry.sha256):
        raise TamperedFileError("its SHA-256 is not the signed one")
    return TrustedEntry(size=size, sha256=entry.sha256, chunks=bytes(chunks))
