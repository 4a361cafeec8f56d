"""Whole contents at full speed: many nodes at a time, large files in several processes.

Sources and targets are file descriptors. Targets are new files without a name, which their caller
names when they are complete; so nothing here needs a recovery file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from cloister.encrypted.backing import Backing, FileBacking
from cloister.encrypted.constants import (
    ENTRY_SIZE,
    HEAD_SIZE,
    NODE_SIZE,
)
from cloister.encrypted.content import EncryptedContent
from cloister.encrypted.keys import KeySource, SystemKeys
from cloister.encrypted.layout import data_node
from cloister.encrypted.runs import RUN_NODES, RunBuffer
from cloister.encrypted.workers import forked_map
from cloister.errors import CloisterError

RUN_SIZE: Final = RUN_NODES * NODE_SIZE  # content bytes that are read, ciphered, written at once
PART_RUNS: Final = 84  # runs in a part that one process takes at a time: 8 MB, 21 MHT nodes
PARALLEL_FROM: Final = 4 * PART_RUNS * RUN_SIZE  # smaller files are not worth a fork
_WINDOW_PARTS: Final = 256  # parts in flight: bounds the keys and tags that wait, 17 MB

Advance = Callable[[int], object]
"""Is told how many more content bytes are done."""


class Part(NamedTuple):
    """Neighbouring runs of a file."""

    first: int
    runs: int

    @property
    def start(self) -> int:
        """Offset of its first content byte."""
        return HEAD_SIZE + self.first * RUN_SIZE


def parts(size: int) -> list[Part]:
    """Divide the content behind the first 3072 bytes of a file of ``size`` bytes."""
    runs = -(-max(0, size - HEAD_SIZE) // RUN_SIZE)
    return [Part(first, min(PART_RUNS, runs - first)) for first in range(0, runs, PART_RUNS)]


class RunSealer:
    """Seals runs of up to 24 data nodes, through buffers that are used again and again."""

    def __init__(self, target: Backing, keys: KeySource) -> None:
        self._target = target
        self._keys = keys
        self._buffer = RunBuffer()
        self.plain = self._buffer.plain

    def seal(self, run: int, length: int) -> bytes:
        """Encrypt ``plain[:length]``, write it as ``run``; return keys and tags."""
        count = -(-length // NODE_SIZE)
        self.plain[length : count * NODE_SIZE] = bytes(count * NODE_SIZE - length)
        keys = self._keys.keys(count)
        entries = self._buffer.seal(keys, self._buffer.plain_nodes[:count])
        place = data_node(run * RUN_NODES) * NODE_SIZE
        self._target.pwrite(place, self._buffer.cipher[: count * NODE_SIZE])
        return entries


def encrypt(
    source: int,
    target: Backing,
    wrap_key: bytes,
    embedded_path: str,
    *,
    name: str,
    version: int,
    jobs: int = 1,
    advance: Advance = lambda _: None,
) -> None:
    """Encrypt a whole file or stream into a new file.

    Args:
        source: descriptor of the plaintext, read from where it stands.
        target: the new file, empty.
        wrap_key: 16 bytes.
        embedded_path: the path the result is bound to.
        name: what errors call the source.
        version: major version to write.
        jobs: processes that may share the work on a large regular file.
        advance: is told of progress.

    Raises:
        CloisterError: the source shrank meanwhile, or the path cannot be embedded.
        OSError: reading or writing failed.
    """
    size = _size_from_start(source)
    if size:
        encrypt_from(
            lambda offset, buffer: _pread_full(source, buffer, offset),
            size,
            target,
            wrap_key,
            embedded_path,
            name=name,
            version=version,
            jobs=jobs,
            advance=advance,
        )
        return
    content = EncryptedContent.create(target, wrap_key, embedded_path, name=name, version=version)
    _append_stream(source, target, content, advance)
    content.flush()


def _size_from_start(descriptor: int) -> int:
    """Return the size of a regular file that stands at its start, 0 for anything else."""
    status = os.fstat(descriptor)
    regular = stat.S_ISREG(status.st_mode)
    return status.st_size if regular and os.lseek(descriptor, 0, os.SEEK_CUR) == 0 else 0


def _append_stream(
    source: int, target: Backing, content: EncryptedContent, advance: Advance
) -> None:
    sealer = RunSealer(target, SystemKeys())
    length = _read_full(source, sealer.plain[:HEAD_SIZE])
    content.write(0, sealer.plain[:length])
    advance(length)
    run = 0
    while length > 0 and content.size >= HEAD_SIZE:
        length = _read_full(source, sealer.plain)
        if length:
            entries = sealer.seal(run, length)
            content.adopt(entries, content.size + length)
            advance(length)
            run += 1


def encrypt_from(
    read: Callable[[int, memoryview], int],
    size: int,
    target: Backing,
    wrap_key: bytes,
    embedded_path: str,
    *,
    name: str,
    version: int,
    jobs: int = 1,
    advance: Advance = lambda _: None,
) -> None:
    """Encrypt ``size`` bytes that ``read(offset, buffer)`` delivers; see :func:`encrypt`."""
    content = EncryptedContent.create(target, wrap_key, embedded_path, name=name, version=version)
    sealers: list[RunSealer] = []  # one in each process, made when it is first needed

    def fill(offset: int, buffer: memoryview) -> memoryview:
        if read(offset, buffer) < len(buffer):
            raise CloisterError(
                f"{name}: became shorter while it was read",
                hint="encrypt it when nobody writes to it",
            )
        return buffer

    def seal_part(part: Part) -> bytes:
        if not sealers:
            sealers.append(RunSealer(target, SystemKeys()))
        sealer = sealers[0]
        entries = []
        for run in range(part.first, part.first + part.runs):
            start = HEAD_SIZE + run * RUN_SIZE
            length = len(fill(start, sealer.plain[: min(RUN_SIZE, size - start)]))
            entries.append(sealer.seal(run, length))
        return b"".join(entries)

    head = fill(0, memoryview(bytearray(min(size, HEAD_SIZE))))
    content.write(0, head)
    advance(len(head))
    everything = parts(size)
    jobs = jobs if size >= PARALLEL_FROM else 1
    for first in range(0, len(everything), _WINDOW_PARTS):
        window = everything[first : first + _WINDOW_PARTS]
        for entries in _in_order(seal_part, window, jobs, size, advance):
            _adopt(content, entries, size)
    content.flush()


def _adopt(content: EncryptedContent, entries: bytes, size: int) -> None:
    """Append the nodes of one part to the tree; ``size`` is that of the whole content."""
    for start in range(0, len(entries), RUN_NODES * ENTRY_SIZE):
        run = entries[start : start + RUN_NODES * ENTRY_SIZE]
        grown = content.size + len(run) // ENTRY_SIZE * NODE_SIZE
        content.adopt(run, min(grown, size))


def _in_order(
    seal_part: Callable[[Part], bytes], window: list[Part], jobs: int, size: int, advance: Advance
) -> Iterator[bytes]:
    """Yield the keys and tags of each part, in the order of the file."""
    early: dict[int, bytes] = {}
    following = 0
    for index, answer in forked_map(seal_part, window, jobs):
        if isinstance(answer, Exception):
            raise answer
        part = window[index]
        advance(min(part.runs * RUN_SIZE, size - part.start))
        early[index] = answer
        while following in early:
            yield early.pop(following)
            following += 1


def decrypt(
    content: EncryptedContent,
    target: int,
    *,
    jobs: int = 1,
    advance: Advance = lambda _: None,
) -> None:
    """Decrypt a whole file into a new, empty one.

    Args:
        content: the encrypted file, open.
        target: descriptor of a regular file.
        jobs: processes that may share the work on a large file.
        advance: is told of progress.

    Raises:
        TamperedError, TruncatedError: a node does not authenticate or is missing.
        OSError: reading or writing failed.
    """
    output = FileBacking(os.dup(target))
    try:
        each_part(content, output.pwrite, jobs=jobs, advance=advance)
    finally:
        output.close()


def each_part(
    content: EncryptedContent,
    use: Callable[[int, memoryview], object],
    *,
    jobs: int = 1,
    advance: Advance = lambda _: None,
) -> None:
    """Decrypt a whole file piece by piece.

    Args:
        content: the encrypted file, open.
        use: is called with the offset and the bytes of each piece, 98304 at most, which are only
            valid during the call. With one job the pieces come in order.
        jobs: processes that may share the work on a large file; ``use`` runs in them.
        advance: is told of progress.

    Raises:
        TamperedError, TruncatedError: a node does not authenticate or is missing.
    """

    def open_part(part: Part) -> int:
        done = 0
        for run in range(part.first, part.first + part.runs):
            piece = content.run(run)
            use(HEAD_SIZE + run * RUN_SIZE, piece)
            done += len(piece)
        return done

    head = content.read(0, HEAD_SIZE)
    use(0, memoryview(head))
    advance(len(head))
    everything = parts(content.size)
    for _, answer in forked_map(
        open_part, everything, jobs if content.size >= PARALLEL_FROM else 1
    ):
        if isinstance(answer, Exception):
            raise answer
        advance(answer)


def _read_full(descriptor: int, buffer: memoryview) -> int:
    """Read from the descriptor's position until ``buffer`` is full or the source ends."""
    done = 0
    while done < len(buffer):
        count = os.readv(descriptor, [buffer[done:]])
        if count == 0:
            break
        done += count
    return done


def _pread_full(descriptor: int, buffer: memoryview, offset: int) -> int:
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done
