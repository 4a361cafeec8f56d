"""The index of trusted files: digests by chunk, beside the signed manifest.

A manifest with tens of thousands of trusted files takes seconds to parse. The signed manifest
therefore holds only the digest of this index, and the index is laid out so that loading it is one
hash and nothing else; nothing is parsed before it is asked for. Layout, all numbers little endian:

====================  =================================================================
header                ``CLOINDEX``, u32 version 3, u32 chunk size 65536, u32 number of
                      files, u32 size of the names in bytes, u64 number of chunk digests
records               a file: u64 size, 32 bytes SHA-256, u64 number of its first chunk.
                      All ones as size: only the SHA-256 is known, there are no chunks. All
                      zeros as SHA-256: only the chunks are known
keys                  u64 for each file: the first 8 bytes of SHA-256 of its name; ascending
numbers               u32 for each key: the number of its file, from 0
places                u32 for each file: where its name begins in the names; and one more,
                      the size of the names
names                 UTF-8, in the order of the records, each followed by NUL
chunk digests         32 bytes BLAKE3 each; the last chunk of a file may be short
====================  =================================================================

Files are sorted by the bytes of their names, so that equal inputs give equal bytes. A name is found
by halving the keys: an index whose keys are in disorder, though signed, does not find its files.

Chunks are verified each time they are served, while a program waits. So their digests are BLAKE3,
which takes 0.4 of the time of SHA-256 where the processor has instructions for that, and less where
it has not.
"""

from __future__ import annotations

import array
import bisect
import hashlib
import hmac
import itertools
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from blake3 import blake3

from cloister.errors import TrustedIndexError
from cloister.manifest.uris import normalise

CHUNK_SIZE = 65536
DIGEST_SIZE = 32
UNKNOWN_SIZE = -1
INDEX_VERSION = 3

_MAGIC = b"CLOINDEX"
_HEADER = struct.Struct("<8sIIIIQ")
_RECORD = struct.Struct("<Q32sQ")
_KEY = struct.Struct("<Q")
_NUMBER = struct.Struct("<I")
_PLACE = struct.Struct("<I")
_BOUNDS = struct.Struct("<II")
_ENCODING = ("utf-8", "surrogateescape")
_ONLY_HASH = 0xFFFF_FFFF_FFFF_FFFF
_NO_DIGEST = bytes(DIGEST_SIZE)


class TrustedEntry(NamedTuple):
    """What is known of one trusted file.

    Attributes:
        size: in bytes; :data:`UNKNOWN_SIZE` where only the hash of the whole file is known.
        sha256: of the whole file, 32 bytes; empty where only those of its chunks are known.
        chunks: BLAKE3 of each :data:`CHUNK_SIZE` bytes, 32 bytes each, one after the other; empty
            for an empty file and where only the hash of the whole file is known.
    """

    size: int
    sha256: bytes
    chunks: bytes


def chunk_count(size: int) -> int:
    """Return how many chunks a file of ``size`` bytes has."""
    return -(-size // CHUNK_SIZE)


def chunk_digest(chunk: bytes | memoryview) -> bytes:
    """Return the digest of a chunk, 32 bytes."""
    return blake3(chunk).digest()


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
        nothing_known = only_hash and not sha256
        if "\0" in name or len(chunks) != expected or nothing_known:
            raise ValueError(f"{name!r}: cannot be put into an index")
        first = len(digests) // DIGEST_SIZE
        records += _RECORD.pack(_ONLY_HASH if only_hash else size, sha256, first)
        digests += chunks
    encoded = [name.encode(*_ENCODING) for name in names]
    keys = [_key(name) for name in encoded]
    numbers = sorted(range(len(keys)), key=keys.__getitem__)
    places = itertools.accumulate((len(name) + 1 for name in encoded), initial=0)
    search = struct.pack(
        f"<{len(keys)}Q{len(keys)}I{len(keys) + 1}I", *sorted(keys), *numbers, *places
    )
    blob = b"".join(name + b"\0" for name in encoded)
    header = _HEADER.pack(
        _MAGIC, INDEX_VERSION, CHUNK_SIZE, len(names), len(blob), len(digests) // DIGEST_SIZE
    )
    return b"".join((header, records, search, blob, digests))


class TrustedIndex:
    """Finds the digests of a trusted file by its URI path. Made by the named constructors."""

    def __init__(
        self,
        records: memoryview,
        keys: array.array[int],
        numbers: memoryview,
        places: memoryview,
        names: memoryview,
        digests: memoryview,
    ) -> None:
        self._records = records
        self._keys = keys
        self._numbers = numbers
        self._places = places
        self._names = names
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
        return cls._parse(data)

    @classmethod
    def from_hashes(cls, hashes: Mapping[str, bytes]) -> TrustedIndex:
        """Make an index for a manifest without one: whole-file digests only.

        Args:
            hashes: URI path -> SHA-256 of the whole file, 32 bytes.
        """
        return cls._parse(
            write_index(
                {
                    normalise(path): TrustedEntry(UNKNOWN_SIZE, sha256, b"")
                    for path, sha256 in hashes.items()
                }
            )
        )

    @classmethod
    def _parse(cls, data: bytes) -> TrustedIndex:
        count, names_size, digest_count = _read_header(data)
        sizes = (
            *(_HEADER.size, count * _RECORD.size, count * _KEY.size, count * _NUMBER.size),
            *((count + 1) * _PLACE.size, names_size, digest_count * DIGEST_SIZE),
        )
        if sum(sizes) != len(data):
            raise TrustedIndexError("index of trusted files: its parts do not add up to its size")
        view = memoryview(data)
        _, records, keys, *others = (
            view[end - size : end]
            for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)
        )
        return cls(records, _numbers_of(keys), *others)

    def lookup(self, path: str) -> TrustedEntry | None:
        """Return what is known of the file with the normalised URI path ``path``, or None.

        Raises:
            TrustedIndexError: its name or its chunks lie outside the index.
        """
        number = self.number(path)
        return None if number is None else self.entry(number)

    def number(self, path: str) -> int | None:
        """Return the place of ``path`` in the order of the names, from 0, or None.

        Raises:
            TrustedIndexError: a name lies outside the index.
        """
        name = path.encode(*_ENCODING)
        key = _key(name)
        for at in range(bisect.bisect_left(self._keys, key), len(self._keys)):
            if self._keys[at] != key:
                break
            (number,) = _NUMBER.unpack_from(self._numbers, at * _NUMBER.size)
            if number < len(self) and self._name(number) == name:
                return int(number)
        return None

    def entry(self, number: int) -> TrustedEntry:
        """Return what is known of the file with this :meth:`number`.

        Raises:
            TrustedIndexError: its chunks lie outside the index.
        """
        size, sha256, first = _RECORD.unpack_from(self._records, number * _RECORD.size)
        if size == _ONLY_HASH:
            return TrustedEntry(UNKNOWN_SIZE, sha256, b"")
        start = first * DIGEST_SIZE
        end = start + chunk_count(size) * DIGEST_SIZE
        if end > len(self._digests):
            raise TrustedIndexError(f"index of trusted files: chunks of file {number} lie outside")
        known = sha256 if sha256 != _NO_DIGEST else b""
        return TrustedEntry(size, known, bytes(self._digests[start:end]))

    def entries(self) -> Iterator[tuple[str, TrustedEntry]]:
        """Iterate over the URI paths and what is known of each.

        Raises:
            TrustedIndexError: names are missing, or the chunks of a file lie outside the index.
        """
        for number, path in enumerate(self):
            yield path, self.entry(number)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the URI paths.

        Raises:
            TrustedIndexError: names are missing.
        """
        names = bytes(self._names).decode(*_ENCODING).split("\0")[:-1]
        if len(names) != len(self):
            raise TrustedIndexError("index of trusted files: names are missing, or too many")
        return iter(names)

    def _name(self, number: int) -> bytes:
        start, following = _BOUNDS.unpack_from(self._places, number * _PLACE.size)
        if not start < following <= len(self._names):
            raise TrustedIndexError(f"index of trusted files: the name of file {number} is broken")
        return bytes(self._names[start : following - 1])


def _key(name: bytes) -> int:
    """Return what a name is searched by."""
    (key,) = _KEY.unpack_from(hashlib.sha256(name).digest())
    return int(key)


def _numbers_of(keys: memoryview) -> array.array[int]:
    numbers = array.array("Q", bytes(keys))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _read_header(data: bytes) -> tuple[int, int, int]:
    if len(data) < _HEADER.size:
        raise TrustedIndexError(
            f"index of trusted files: {len(data)} bytes, too short for a header"
        )
    magic, version, chunk_size, count, names_size, digest_count = _HEADER.unpack_from(data)
    if magic == _MAGIC and version != INDEX_VERSION:
        raise TrustedIndexError(
            f"index of trusted files: version {version}, expected {INDEX_VERSION}",
            hint="another version of Cloister built it; build again",
        )
    if (magic, chunk_size) != (_MAGIC, CHUNK_SIZE):
        raise TrustedIndexError("index of trusted files: not an index")
    return count, names_size, digest_count
