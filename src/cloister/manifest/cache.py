"""What was hashed before: files that have not changed are not hashed again.

Both caches are the user's own. Checksums in them guard against accidents, not against the user.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cloister.errors import TrustedIndexError
from cloister.files import WRITE_ERRORS, write_atomically
from cloister.manifest.hashing import STAMP_SIZE
from cloister.manifest.index import TrustedEntry, TrustedIndex, write_index

_KEEP_DAYS = 60
_KEEP_RESULTS = 8
_COUNT = struct.Struct("<I")
_RECORD = struct.Struct(f"<{STAMP_SIZE}sI")
_DIGEST_SIZE = 32


class HashCache:
    """Digests by file name and stamp, in one file.

    The file: SHA-256 of the rest, u32 number of records; a record for each file: its stamp and the
    u32 day on which it was last of use; then an index of the same files
    (see :mod:`cloister.manifest.index`).

    Args:
        path: the cache's file; None keeps nothing and finds nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._records = b""
        self._index = TrustedIndex.from_hashes({})
        self._numbers: dict[str, int] = {}
        if path is not None:
            self._load(path)

    def get(self, name: str, stamp: bytes) -> TrustedEntry | None:
        """Return the digests of file ``name`` if it still has ``stamp``."""
        number = self._numbers.get(name)
        if number is None or not self._records.startswith(stamp, number * _RECORD.size):
            return None
        return self._index.entry(number)

    def store(
        self, new: Mapping[str, tuple[bytes, TrustedEntry]], used: Iterable[str], today: int
    ) -> None:
        """Write the cache with new files added; what was of no use for 60 days is dropped.

        Args:
            new: file name -> stamp and digests.
            used: names of files that were found.
            today: days since 1970.
        """
        if self._path is None or not new:
            return
        records = {
            name: record
            for name, record in zip(self._numbers, self._all_records(), strict=True)
            if _RECORD.unpack(record)[1] > today - _KEEP_DAYS
        }
        records.update(
            (name, _RECORD.pack(records[name][:STAMP_SIZE], today))
            for name in used
            if name in records
        )
        records.update((name, _RECORD.pack(stamp, today)) for name, (stamp, _) in new.items())
        entries = {
            name: new[name][1] if name in new else self._index.entry(self._numbers[name])
            for name in records
        }
        with contextlib.suppress(*WRITE_ERRORS):  # the next run hashes again
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, _pack(records, entries), mode=0o600)

    def _all_records(self) -> Iterator[bytes]:
        for at in range(0, len(self._records), _RECORD.size):
            yield self._records[at : at + _RECORD.size]

    def _load(self, path: Path) -> None:
        """Load the file; whatever is wrong with it, an empty cache is right."""
        try:
            self._records, self._index, self._numbers = _unpack(_read_own(path))
        except (OSError, TrustedIndexError):
            return


def _read_own(path: Path) -> bytes:
    """Read a file that nobody else can have written: its hashes decide what is trusted.

    Raises:
        OSError: it cannot be read.
        TrustedIndexError: it belongs to somebody else, or others may write to it.
    """
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise TrustedIndexError(f"{path}: others can write to it")
        return stream.read()


def _pack(records: Mapping[str, bytes], entries: Mapping[str, TrustedEntry]) -> bytes:
    index = write_index(entries)
    order = TrustedIndex.load(index, hashlib.sha256(index).digest())
    body = b"".join((_COUNT.pack(len(records)), *(records[name] for name in order), index))
    return hashlib.sha256(body).digest() + body


def _unpack(data: bytes) -> tuple[bytes, TrustedIndex, dict[str, int]]:
    body = data[_DIGEST_SIZE:]
    if hashlib.sha256(body).digest() != data[:_DIGEST_SIZE] or len(body) < _COUNT.size:
        raise TrustedIndexError("cache of hashes: damaged")
    (count,) = _COUNT.unpack_from(body)
    end = _COUNT.size + count * _RECORD.size
    raw = body[end:]
    index = TrustedIndex.load(raw, hashlib.sha256(raw).digest())
    numbers = {name: number for number, name in enumerate(index)}
    if len(numbers) != count:
        raise TrustedIndexError("cache of hashes: damaged")
    return body[_COUNT.size : end], index, numbers


class Memo:
    """Results by a digest of everything that they follow from, so that they need not be made anew.

    Args:
        directory: where they are kept, each as its SHA-256 and itself; None keeps none.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def get(self, key: bytes) -> bytes | None:
        """Return the result for ``key``, or None."""
        if self._directory is None:
            return None
        try:
            data = _read_own(self._directory / key.hex())
        except (OSError, TrustedIndexError):
            return None
        result = data[_DIGEST_SIZE:]
        return result if hashlib.sha256(result).digest() == data[:_DIGEST_SIZE] else None

    def put(self, key: bytes, result: bytes) -> None:
        """Keep the result for ``key``; only the youngest few are kept."""
        if self._directory is None:
            return
        data = hashlib.sha256(result).digest() + result
        with contextlib.suppress(*WRITE_ERRORS):  # the next run makes it again
            self._directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self._directory / key.hex(), data, mode=0o600)
            kept = sorted(self._directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            for path in kept[:-_KEEP_RESULTS]:
                path.unlink(missing_ok=True)
