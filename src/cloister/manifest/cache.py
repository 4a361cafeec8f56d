"""The cache of hashes: a file that has not changed since it was hashed is not hashed again.

One file in the user's cache directory: SHA-256 of the rest (against accidents, not against the
user), u32 number of records; a record for each file: its stamp and the u32 day on which it was last
of use; then an index of the same files (see :mod:`cloister.manifest.index`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from cloister.errors import TrustedIndexError
from cloister.files import write_atomically
from cloister.manifest.hashing import STAMP_SIZE
from cloister.manifest.index import TrustedEntry, TrustedIndex, write_index

_KEEP_DAYS = 60
_COUNT = struct.Struct("<I")
_RECORD = struct.Struct(f"<{STAMP_SIZE}sI")
_DIGEST_SIZE = 32


class HashCache:
    """Digests by file name and stamp.

    Args:
        path: the cache's file; None keeps nothing and finds nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._records: dict[str, bytes] = {}
        self._index = TrustedIndex.from_hashes({})
        if path is not None:
            self._load(path)

    def get(self, name: str, stamp: bytes) -> TrustedEntry | None:
        """Return the digests of file ``name`` if it still has ``stamp``."""
        record = self._records.get(name)
        if record is None or record[:STAMP_SIZE] != stamp:
            return None
        return self._index.lookup(name)

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
            for name, record in self._records.items()
            if _RECORD.unpack(record)[1] > today - _KEEP_DAYS
        }
        records.update(
            (name, _RECORD.pack(records[name][:STAMP_SIZE], today))
            for name in used
            if name in records
        )
        records.update((name, _RECORD.pack(stamp, today)) for name, (stamp, _) in new.items())
        entries = {name: new[name][1] if name in new else self._entry(name) for name in records}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, _pack(records, entries), mode=0o600)

    def _entry(self, name: str) -> TrustedEntry:
        entry = self._index.lookup(name)
        assert entry is not None  # noqa: S101  (every record has its entry)
        return entry

    def _load(self, path: Path) -> None:
        """Load the file; whatever is wrong with it, an empty cache is right."""
        try:
            data = path.read_bytes()
            self._records, self._index = _unpack(data)
        except (OSError, TrustedIndexError):
            return


def _pack(records: Mapping[str, bytes], entries: Mapping[str, TrustedEntry]) -> bytes:
    index = write_index(entries)
    order = TrustedIndex.load(index, hashlib.sha256(index).digest())
    body = b"".join((_COUNT.pack(len(records)), *(records[name] for name in order), index))
    return hashlib.sha256(body).digest() + body


def _unpack(data: bytes) -> tuple[dict[str, bytes], TrustedIndex]:
    body = data[_DIGEST_SIZE:]
    if hashlib.sha256(body).digest() != data[:_DIGEST_SIZE] or len(body) < _COUNT.size:
        raise TrustedIndexError("cache of hashes: damaged")
    (count,) = _COUNT.unpack_from(body)
    end = _COUNT.size + count * _RECORD.size
    raw = body[end:]
    index = TrustedIndex.load(raw, hashlib.sha256(raw).digest())
    starts = range(_COUNT.size, end, _RECORD.size)
    records = {name: body[at : at + _RECORD.size] for name, at in zip(index, starts, strict=False)}
    if len(records) != count:
        raise TrustedIndexError("cache of hashes: damaged")
    return records, index
