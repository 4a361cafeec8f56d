"""The index of trusted files: digests by chunk, beside the signed manifest.

A manifest with tens of thousands of trusted files takes seconds to parse. The signed manifest
therefore holds only the digest of this index, and the index is laid out so that loading it is one
hash and one split. Layout, all numbers little endian:

====================  =================================================================
header                ``CLOINDEX``, u32 version 1, u32 chunk size 65536, u32 number of
                      files, u32 size of the names in bytes, u64 number of chunk digests
records               a file: u64 size, 32 bytes SHA-256, u64 number of its first chunk.
                      All ones as size: only the SHA-256 is known, there are no chunks. All
                      zeros as SHA-256: only the chunks are known
names                 UTF-8, in the order of the records, each but the last followed by NUL
chunk digests         32 bytes SHA-256 each; the last chunk of a file may be short
====================  =================================================================

Files are sorted by name, so that equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cloister.errors import TrustedIndexError
from cloister.manifest.uris import normalise

CHUNK_SIZE = 65536
DIGEST_SIZE = 32
UNKNOWN_SIZE = -1

_MAGIC = b"CLOINDEX"
_VERSION = 1
_HEADER = struct.Struct("<8sIIIIQ")
_RECORD = struct.Struct("<Q32sQ")
_ENCODING = ("utf-8", "surrogateescape")
_ONLY_HASH = 0xFFFF_FFFF_FFFF_FFFF
_NO_DIGEST = bytes(DIGEST_SIZE)


class TrustedEntry(NamedTuple):
    """What is known of one trusted file.

    Attributes:
        size: in bytes; :data:`UNKNOWN_SIZE` where only the hash of the whole file is known.
        sha256: of the whole file, 32 bytes; empty where only those of its chunks are known.
        chunks: SHA-256 of each :data:`CHUNK_SIZE` bytes, 32 bytes each, one after the other; empty
            for an empty file and where only the hash of the whole file is known.
    """

    size: int
    sha256: bytes
    chunks: bytes


def chunk_count(size: int) -> int:
    """Return how many chunks a file of ``size`` bytes has."""
    return -(-size // CHUNK_SIZE)


def write_index(entries: Mapping[str, TrustedEntry]) -> bytes:
    """Return the bytes of an index.

    Args:
        entries: normalised URI path (see :mod:`cloister.manifest.uris`) -> sizes and digests.

    Raises:
        ValueError: a name with a NUL byte, or digests that do not fit the size.
        struct.error: a size that is no 64-bit number, or a digest of another length than 32.
    """
    names = sorted(entries, key=lambda name: name.encode(*_ENCODING))
    records = bytearray()
    digests = bytearray()
    for name in names:
        size, sha256, chunks = entries[name]
        only_hash = size == UNKNOWN_SIZE
        expected = 0 if only_hash else chunk_count(size) * DIGEST_SIZE
        nothing_known = not sha256 and not chunks
        if "\0" in name or len(chunks) != expected or nothing_known:
            raise ValueError(f"{name!r}: cannot be put into an index")
        first = len(digests) // DIGEST_SIZE
        records += _RECORD.pack(_ONLY_HASH if only_hash else size, sha256, first)
        digests += chunks
    blob = "\0".join(names).encode(*_ENCODING)
    header = _HEADER.pack(
        _MAGIC, _VERSION, CHUNK_SIZE, len(names), len(blob), len(digests) // DIGEST_SIZE
    )
    return b"".join((header, records, blob, digests))


class TrustedIndex:
    """Finds the digests of a trusted file by its URI path. Made by the named constructors."""

    def __init__(self, numbers: dict[str, int], records: bytes, digests: bytes) -> None:
        self._numbers = numbers
        self._records = records
        self._digests = digests

    @classmethod
    def load(cls, data: bytes, expected_sha256: bytes) -> TrustedIndex:
        """Read an index.

        Args:
            data: the whole file.
            expected_sha256: its digest as the signed manifest gives it, 32 bytes.

        Raises:
            TrustedIndexError: another digest, or a layout that does not hold together.
        """
        if not hmac.compare_digest(hashlib.sha256(data).digest(), expected_sha256):
            raise TrustedIndexError(
                "index of trusted files: its SHA-256 is not the one in the signed manifest"
            )
        count, names_size, digest_count = _read_header(data)
        names_at = _HEADER.size + count * _RECORD.size
        digests_at = names_at + names_size
        if digests_at + digest_count * DIGEST_SIZE != len(data):
            raise TrustedIndexError("index of trusted files: its parts do not add up to its size")
        blob = data[names_at:digests_at].decode(*_ENCODING)
        numbers = dict(zip(blob.split("\0") if count else (), range(count), strict=False))
        if len(numbers) != count or blob.count("\0") != max(count - 1, 0):
            raise TrustedIndexError("index of trusted files: names are missing or double")
        return cls(numbers, data[_HEADER.size : names_at], data[digests_at:])

    @classmethod
    def from_hashes(cls, hashes: Mapping[str, bytes]) -> TrustedIndex:
        """Make an index for a manifest without one: whole-file digests only.

        Args:
            hashes: URI path -> SHA-256 of the whole file, 32 bytes.
        """
        numbers = {normalise(path): number for number, path in enumerate(hashes)}
        records = b"".join(_RECORD.pack(_ONLY_HASH, sha256, 0) for sha256 in hashes.values())
        return cls(numbers, records, b"")

    def lookup(self, path: str) -> TrustedEntry | None:
        """Return what is known of the file with the normalised URI path ``path``, or None.

        Raises:
            TrustedIndexError: the file's chunks lie outside the index.
        """
        number = self._numbers.get(path)
        if number is None:
            return None
        size, sha256, first = _RECORD.unpack_from(self._records, number * _RECORD.size)
        if size == _ONLY_HASH:
            return TrustedEntry(UNKNOWN_SIZE, sha256, b"")
        start = first * DIGEST_SIZE
        end = start + chunk_count(size) * DIGEST_SIZE
        if end > len(self._digests):
            raise TrustedIndexError(f"index of trusted files: the chunks of {path} lie outside it")
        known = sha256 if sha256 != _NO_DIGEST else b""
        return TrustedEntry(size, known, self._digests[start:end])

    def number(self, path: str) -> int | None:
        """Return the place of ``path`` in the order of the names, from 0, or None."""
        return self._numbers.get(path)

    def entries(self) -> Iterator[tuple[str, TrustedEntry]]:
        """Iterate over the URI paths and what is known of each.

        Raises:
            TrustedIndexError: the chunks of a file lie outside the index.
        """
        for path in self._numbers:
            entry = self.lookup(path)
            if entry is not None:
                yield path, entry

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the URI paths."""
        return iter(self._numbers)


def _read_header(data: bytes) -> tuple[int, int, int]:
    if len(data) < _HEADER.size:
        raise TrustedIndexError(
            f"index of trusted files: {len(data)} bytes, too short for a header"
        )
    magic, version, chunk_size, count, names_size, digest_count = _HEADER.unpack_from(data)
    if (magic, version, chunk_size) != (_MAGIC, _VERSION, CHUNK_SIZE):
        raise TrustedIndexError("index of trusted files: not an index of version 1")
    return count, names_size, digest_count
