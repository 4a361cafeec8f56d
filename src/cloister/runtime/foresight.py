"""What a program used in one run is fetched ahead in the next, while the program still computes.

Between two requests of a program its runtime has nothing to do, and while it decrypts or verifies,
the program waits. So an enclave remembers the names that a run looked up, the directories that it
listed and which parts of its trusted and encrypted files it read. In the next run with the same
arguments a process of the sandbox does the same, file by file in the same order, beside the program
and with all checks. The program then finds names, attributes and content in the kernel's cache.

Only names and ranges are kept, no content, in the user's cache directory under a key that only
this very enclave has: the host, which was asked for each of them anyway, cannot add any. Losing the
record costs time and nothing else.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cloister.files import WRITE_ERRORS, make_private_directory, write_atomically
from cloister.manifest.index import CHUNK_SIZE

Spans = list[tuple[int, int]]
"""Ranges of a file: first byte and the byte behind the last."""

Steps = dict[str, Spans]
"""What was used of which path, in the order of first use.

No ranges: the name was looked up, whether it exists or not. A path with a slash at its end: the
directory was listed.
"""

MOST_BYTES = 1 << 30
"""More is not read ahead: it would take memory that the program needs."""

_FEWEST_BYTES = 4 << 20
_MOST_RANGES = 50_000
_MOST_NAMES = 25_000
_MOST_RECORDS = 32
_OUTDATED = 0.1  # share of bytes that were not foreseen
_PIECE = CHUNK_SIZE  # a larger one would keep the program's own requests waiting
_LARGE = 2 << 20  # one huge page
_SMALL_GAP = 1 << 16  # bytes that cost less than a request: as much is verified at once anyway
_LABEL = b"cloister: uses of a run\0"


class Record:
    """The remembered uses of one program with certain arguments.

    Args:
        directory: where records are kept.
        key: a secret that only this enclave has, 16 bytes.
        arguments: of the program.

    Attributes:
        foreseen: what the program uses.
        reread: the larger files of it that it reads from their start and opens again: URI path ->
            bytes that it reads.
    """

    def __init__(self, directory: Path, key: bytes, arguments: Sequence[str]) -> None:
        self._key = hmac.digest(key, _LABEL, "sha256")
        subject = json.dumps(list(arguments)).encode()
        self._path = directory / hmac.new(self._key, subject, hashlib.sha256).hexdigest()[:32]
        self.foreseen: Steps = {}
        self.reread: dict[str, int] = {}
        self._load()

    def _load(self) -> None:
        """Take what is remembered; what is not this enclave's own is nothing."""
        try:
            if not self._path.is_file():  # who reads from a FIFO waits
                return
            mac, _, text = self._path.read_bytes().partition(b"\n")
        except OSError:
            return
        if hmac.compare_digest(mac, self._mac(text)):
            steps, self.reread = json.loads(text)
            self.foreseen = {path: [(first, end) for first, end in spans] for path, spans in steps}

    def _mac(self, text: bytes) -> bytes:
        return hmac.new(self._key, text, hashlib.sha256).hexdigest().encode()

    def learn(self, trail: Trail) -> None:
        """Keep what this run used, or forget what no longer fits; a full disk keeps nothing."""
        with contextlib.suppress(*WRITE_ERRORS):
            if not self.foreseen:
                if _FEWEST_BYTES <= trail.bytes <= MOST_BYTES and not trail.is_cut:
                    self._keep(trail.steps, trail.reread())
            elif self._is_outdated_by(trail.unforeseen(self.foreseen)):
                self._path.unlink()

    def _is_outdated_by(self, unforeseen: int) -> bool:
        return unforeseen > _OUTDATED * (_size(self.foreseen.values()) + unforeseen)

    def _keep(self, steps: Steps, reread: dict[str, int]) -> None:
        merged = [(path, _merged(spans, _SMALL_GAP)) for path, spans in steps.items()]
        if _size(spans for _, spans in merged) > MOST_BYTES:
            merged = [(path, _merged(spans)) for path, spans in steps.items()]
        text = json.dumps([merged, reread], separators=(",", ":")).encode()
        directory = self._path.parent
        make_private_directory(directory)
        write_atomically(self._path, self._mac(text) + b"\n" + text, mode=0o600)
        others = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in others[:-_MOST_RECORDS]:
            path.unlink(missing_ok=True)


class Trail:
    """Collects what a run used.

    Args:
        names: collect names and listings too; without, only what is read.

    Attributes:
        steps: what was used, by the path inside the tree; what comes after tens of thousands is
            left out.
        bytes: how many were read.
    """

    def __init__(self, *, names: bool = True) -> None:
        self.names = names
        self.steps: Steps = {}
        self.bytes = 0
        self._of_node: dict[int, Spans] = {}
        self._opened: dict[int, tuple[str, int]] = {}
        self._ranges = 0
        self._left_out = 0

    def name(self, path: str) -> None:
        """Take a name that was looked up; with a slash at its end, a directory that was listed."""
        self.steps.setdefault(path, [])
        self.names = len(self.steps) < _MOST_NAMES

    def read(self, node: int, path: Callable[[], str], offset: int, size: int) -> None:
        """Take one read.

        Args:
            node: number of the node.
            path: tells its path inside the tree; asked once for each node.
            offset, size: what was read.
        """
        self.bytes += size
        spans = self._of_node.get(node)
        if spans and spans[-1][1] == offset:
            spans[-1] = (spans[-1][0], offset + size)
            return
        if self._ranges == _MOST_RANGES:
            self._left_out += size
            return
        if spans is None:
            spans = self._of_node[node] = self.steps.setdefault(path(), [])
        spans.append((offset, offset + size))
        self._ranges += 1

    def opened(self, node: int, uri_path: str) -> None:
        """Take one opening of a host's file."""
        _, times = self._opened.get(node, ("", 0))
        self._opened[node] = uri_path, times + 1

    def reread(self) -> dict[str, int]:
        """Return the larger files that were read from their start and opened again.

        Only a file that was read in order has a single range; that it ends with the file is for
        others to see.
        """
        found = {}
        for node, (uri_path, times) in self._opened.items():
            spans = self._of_node.get(node, [])
            if times > 1 and len(spans) == 1 and spans[0][0] == 0 and spans[0][1] >= _LARGE:
                found[uri_path] = spans[0][1]
        return found

    def move(self, seen: Callable[[str], str | None]) -> None:
        """Tell every path as the program sees it; forget what it does not see."""
        moved = [(seen(path), spans) for path, spans in self.steps.items()]
        self.steps = {path: spans for path, spans in moved if path is not None}

    @property
    def is_cut(self) -> bool:
        """Whether so much was left out that the next run would not fit a record."""
        return self._left_out > _OUTDATED * self.bytes

    def unforeseen(self, foreseen: Steps) -> int:
        """Return how many bytes were read that are not in ``foreseen``."""
        return sum(_outside(spans, foreseen.get(path, [])) for path, spans in self.steps.items())


def _size(of_files: Iterable[Spans]) -> int:
    """Return how many bytes the ranges hold."""
    return sum(end - first for spans in of_files for first, end in spans)


def _merged(spans: Spans, gap: int = 0) -> Spans:
    """Return the ranges in ascending order, those that are at most ``gap`` bytes apart as one."""
    merged: Spans = []
    for first, end in sorted(spans):
        if merged and first <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def divided(steps: Steps, places: Sequence[str]) -> tuple[Steps, Steps]:
    """Return the steps that lie at or below none of ``places`` (absolute paths), and the others."""
    below = tuple(f"{place.rstrip('/')}/" for place in places)
    later = {path: spans for path, spans in steps.items() if f"{path}/".startswith(below)}
    return {path: spans for path, spans in steps.items() if path not in later}, later


def _outside(spans: Spans, covering: Spans) -> int:
    """Return how many bytes of ``spans`` lie in none of ``covering``."""
    merged = _merged(covering)
    outside = 0
    for first, end in spans:
        number = max(bisect.bisect(merged, (first, first)) - 1, 0)
        outside += end - first
        while number < len(merged) and merged[number][0] < end:
            outside -= max(0, min(end, merged[number][1]) - max(first, merged[number][0]))
            number += 1
    return outside


def fetch_ahead(foreseen: Steps) -> None:
    """Use files of the tree so that the kernel has them; what cannot be used is left to others.

    Runs in a process of the sandbox. Nothing is imported here: the host's files are gone. Between
    two requests the processor is given to the server, if it has any of the program to answer.
    """
    buffer = memoryview(bytearray(_PIECE))
    for path, spans in foreseen.items():
        os.sched_yield()
        with contextlib.suppress(OSError):
            if path.endswith("/"):
                os.listdir(path)
                os.stat(path)  # listing made the kernel forget when it was last read
            elif spans:
                _read_ahead(path, spans, buffer)
            else:
                os.lstat(path)


def _read_ahead(path: str, spans: Spans, buffer: memoryview) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no more than asked for
        for first, end in spans:
            for at in (first, *range(first - first % _PIECE + _PIECE, end, _PIECE)):
                until = min(at - at % _PIECE + _PIECE, end)
                os.preadv(descriptor, [buffer[: until - at]], at)
                os.sched_yield()
        os.fstat(descriptor)  # reading made the kernel forget when the file was last read
    finally:
        os.close(descriptor)
