"""Hashing trusted files: by chunk or also as a whole, on all processors.

A file's *stamp* says whether it is still the file that was hashed. Its change time (ctime) cannot
be set by programs, but has three holes, which are closed here: a change within the same tick of the
clock (a stamp younger than two seconds is not kept), a write through a shared memory mapping whose
page is already dirty (the page is written back first, so the next write updates the time), and file
systems that do not keep the time, such as tmpfs (only those known to keep it are trusted; overlay
file systems are not, because nobody can see what lies below them).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from cloister.errors import InputError
from cloister.manifest.index import CHUNK_SIZE, TrustedEntry, chunk_digest

Progress = Callable[[int], None]
"""Told how many more bytes are done."""
ShowProgress = Callable[[int], AbstractContextManager[Progress]]
"""Shows a work of so many bytes while the context is open."""
Result = tuple[bytes | None, TrustedEntry] | OSError
"""Stamp (None: do not keep) and digests of a file, or why it could not be read."""

_BUFFER_SIZE = 16 * CHUNK_SIZE
_BATCH_BYTES = 32 << 20
_BATCH_FILES = 800
_SMALL_JOB_BYTES = 8 << 20
_YOUNG_NS = 2_000_000_000

_STAMP = struct.Struct("<QQQqq")
STAMP_SIZE = _STAMP.size

# File systems whose ctime changes with every change, by statfs(2) f_type.
_RELIABLE = frozenset(
    {
        0xEF53,  # ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0x2FC12FC1,  # zfs
    }
)


def unseen(total: int) -> AbstractContextManager[Progress]:
    """Show nothing."""
    return nullcontext(lambda done: None)


def stamp_of(status: os.stat_result) -> bytes:
    """Return what changes whenever a file changes: device, inode, size, mtime and ctime."""
    return _STAMP.pack(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def hash_files(
    files: Sequence[tuple[str, int]], *, whole: bool, progress: Progress = lambda done: None
) -> list[Result]:
    """Hash files on all processors.

    Args:
        files: name and size in bytes; the size only serves to spread the work.
        whole: whether to hash whole files too, for formats that want their SHA-256.
        progress: told how many more bytes are done.

    Returns:
        A result for each file, in the order of ``files``.
    """
    results: dict[int, Result] = {}
    batches = list(_batches(files))
    for numbers, outcome in zip(batches, _outcomes(files, batches, whole=whole), strict=True):
        results.update(zip(numbers, outcome, strict=True))
        progress(sum(files[number][1] for number in numbers))
    return [results[number] for number in range(len(files))]


def _outcomes(
    files: Sequence[tuple[str, int]], batches: Sequence[Sequence[int]], *, whole: bool
) -> Iterator[list[Result]]:
    names = [[files[number][0] for number in batch] for batch in batches]
    hash_batch = functools.partial(_hash_batch, whole=whole)
    workers = min(len(batches), os.cpu_count() or 1)
    if workers < 2 or sum(size for _, size in files) < _SMALL_JOB_BYTES:
        yield from map(hash_batch, names)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Where it is safe, fork: nothing has to be imported again.
    context = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(hash_batch, names)


def _batches(files: Sequence[tuple[str, int]]) -> Iterator[list[int]]:
    """Group files, the biggest first, so that no processor ends long after the others."""
    batch: list[int] = []
    size = 0
    for number in sorted(range(len(files)), key=lambda number: -files[number][1]):
        batch.append(number)
        size += files[number][1]
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hash_batch(names: Sequence[str], *, whole: bool) -> list[Result]:
    buffer = bytearray(_BUFFER_SIZE)
    return [_hash_or_error(name, buffer, whole=whole) for name in names]


def _hash_or_error(name: str, buffer: bytearray, *, whole: bool) -> Result:
    try:
        return hash_file(name, buffer, whole=whole)
    except OSError as error:
        return error


def hash_file(
    name: str, buffer: bytearray | None = None, *, whole: bool
) -> tuple[bytes | None, TrustedEntry]:
    """Hash one file.

    Args:
        name: the file; symbolic links are followed.
        buffer: memory to read into, a multiple of the chunk size.
        whole: whether to hash the whole file too.

    Returns:
        Its stamp, None if the cache must not keep the digests, and the digests.

    Raises:
        InputError: it changed while it was read.
        OSError: it cannot be read.
    """
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise InputError(f"{name}: not a regular file")
        clean_since = _write_back(descriptor, before.st_dev)
        buffer = buffer if buffer is not None else bytearray(_BUFFER_SIZE)
        entry = _digest(descriptor, before.st_size, memoryview(buffer), whole=whole)
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    stamp = stamp_of(after)
    if entry is None or stamp_of(before) != stamp:
        raise InputError(
            f"{name}: changed while it was hashed", hint="build again when nothing writes to it"
        )
    settled = after.st_ctime_ns < clean_since - _YOUNG_NS
    return stamp if settled else None, entry


def _digest(descriptor: int, size: int, buffer: memoryview, *, whole: bool) -> TrustedEntry | None:
    """Digest exactly ``size`` bytes; None if the file is shorter."""
    all_of_it = hashlib.sha256()
    chunks: list[bytes] = []
    for length in _lengths(size, len(buffer)):
        piece = buffer[:length]
        if not _fill(descriptor, piece):
            return None
        if whole:
            all_of_it.update(piece)
        parts = (piece[at : at + CHUNK_SIZE] for at in range(0, length, CHUNK_SIZE))
        chunks += map(chunk_digest, parts)
    return TrustedEntry(size, all_of_it.digest() if whole else b"", b"".join(chunks))


def _lengths(size: int, most: int) -> Iterator[int]:
    yield from (most for _ in range(size // most))
    if size % most:
        yield size % most


def _fill(descriptor: int, piece: memoryview) -> bool:
    """Read until ``piece`` is full; False at the end of the file."""
    done = 0
    while done < len(piece):
        count = os.readv(descriptor, [piece[done:]])
        if count == 0:
            return False
        done += count
    return True


def _write_back(descriptor: int, device: int) -> int:
    """Write dirty pages back, so that the next write to a mapping changes ctime.

    Returns:
        Since when every change of the file changes ctime, in nanoseconds since 1970; 0 where that
        cannot be promised.
    """
    library = _libc()
    if library is None or not _is_reliable(library, descriptor, device):
        return 0
    now = time.time_ns()
    whole_file_and_wait = 7
    done = library.sync_file_range(descriptor, 0, 0, whole_file_and_wait) == 0
    return now if done else 0


_devices: dict[int, bool] = {}


def _is_reliable(library: ctypes.CDLL, descriptor: int, device: int) -> bool:
    """Tell whether the file system of ``device`` keeps ctime."""
    if device not in _devices:
        information = (ctypes.c_long * 32)()  # struct statfs is 120 bytes, f_type comes first
        failed = library.fstatfs(descriptor, information) != 0
        _devices[device] = not failed and information[0] in _RELIABLE
    return _devices[device]


@functools.lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    library.sync_file_range.argtypes = (
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_uint,
    )
    library.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
    return library
