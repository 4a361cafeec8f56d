"""A model of a disk: it stops after the k-th operation, and then shows what may be found on it.

What was not synced by then is kept, dropped, torn into 512-byte sectors or kept in part, file by
file. With it encrypted files on it, opened through the engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from cloister.encrypted.backing import Buffer, MemoryBacking
from cloister.encrypted.file import EncryptedFile

KEY = bytes(range(16))
PATH = "dir/file"
SECTOR = 512


class PowerLoss(BaseException):
    """The model disk stopped; nothing may catch it but the test."""


class Disk:
    """The synced bytes and the operations since, of some files; stops after ``budget``."""

    def __init__(
        self, files: dict[str, bytes], budget: int | None = None, *, tears: bool = True
    ) -> None:
        self.synced: dict[str, bytes | None] = dict(files)
        self.now: dict[str, MemoryBacking] = {n: MemoryBacking(c) for n, c in files.items()}
        self.pending: dict[str, list[tuple[int, bytes | None]]] = {n: [] for n in files}
        self.removed: set[str] = set()
        self.budget = budget
        self.tears = tears  # whether the operation that does not happen may happen in part
        self.operations = 0

    def step(self) -> None:
        """Count one operation; the one that exceeds the budget does not happen."""
        if self.budget is not None and self.operations >= self.budget:
            raise PowerLoss
        self.operations += 1

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Do a write, or a truncate when there is no data; the last one may be torn."""
        self._begin(name, (offset, data))
        self.now[name].pwrite(offset, data)

    def truncate(self, name: str, size: int) -> None:
        """Set the size."""
        self._begin(name, (size, None))
        self.now[name].truncate(size)

    def _begin(self, name: str, change: tuple[int, bytes | None]) -> None:
        if self.tears:
            self.pending[name].append(change)
        self.step()
        if not self.tears:
            self.pending[name].append(change)

    def sync(self, name: str) -> None:
        """Make all that was done to a file last."""
        self.step()
        self.synced[name] = self.now[name].getvalue()
        self.pending[name].clear()

    def create(self, name: str) -> None:
        """Make an empty file and sync the directory."""
        self.step()
        self.now[name] = MemoryBacking()
        self.synced[name] = b""
        self.pending[name] = []
        self.removed.discard(name)

    def remove(self, name: str) -> None:
        """Remove a name; a crash may bring it back, for the directory is not synced."""
        self.step()
        self.removed.add(name)

    def after_crash(self, choose: Callable[[], bool]) -> dict[str, bytes]:
        """Return what is found: ``choose`` says of each unsynced sector if it was kept."""
        found: dict[str, bytes] = {}
        for name, synced in self.synced.items():
            if synced is None or (name in self.removed and choose()):
                continue
            file = MemoryBacking(synced)
            for offset, data in self.pending[name]:
                if data is None:
                    if choose():
                        file.truncate(offset)
                    continue
                for start, sector in _sectors(offset, data):
                    if choose():
                        file.pwrite(start, sector)
            found[name] = file.getvalue()
        return found


def _sectors(offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    done = 0
    while done < len(data):
        count = min(len(data) - done, SECTOR - (offset + done) % SECTOR)
        yield offset + done, data[done : done + count]
        done += count


class DiskFile:
    """A backing on the model disk."""

    def __init__(self, disk: Disk, name: str) -> None:
        self.disk = disk
        self.name = name

    def pread(self, offset: int, length: int) -> bytes:
        return self.disk.now[self.name].pread(offset, length)

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        return self.disk.now[self.name].preadv(offset, buffers)

    def pwrite(self, offset: int, data: Buffer) -> None:
        self.disk.write(self.name, offset, bytes(data))

    def truncate(self, size: int) -> None:
        self.disk.truncate(self.name, size)

    def size(self) -> int:
        return self.disk.now[self.name].size()

    def fsync(self) -> None:
        self.disk.sync(self.name)

    def is_disturbed(self) -> bool:
        return False

    def close(self) -> None:
        pass


class DiskStore:
    """A recovery store on the model disk."""

    def __init__(self, disk: Disk, name: str = "log") -> None:
        self.disk = disk
        self.name = name
        self.mine = False

    def needed(self) -> bool:
        return True

    def open(self) -> DiskFile | None:
        self.mine = self.name in self.disk.now and self.name not in self.disk.removed
        return DiskFile(self.disk, self.name) if self.mine else None

    def create(self) -> DiskFile:
        self.disk.create(self.name)
        self.mine = True
        return DiskFile(self.disk, self.name)

    def remove(self) -> None:
        if self.mine:
            self.disk.remove(self.name)
            self.mine = False


def open_on(
    disk: Disk,
    *,
    writable: bool = True,
    version: int = 2,
    waiting_limit: int = 99,
    log: str = "log",
) -> EncryptedFile:
    return EncryptedFile.open(
        DiskFile(disk, "main"),
        KEY,
        None,
        name="main",
        store=DiskStore(disk, log),
        writable=writable,
        version=version,
        waiting_limit=waiting_limit,
    )


def content_of(files: dict[str, bytes], *, writable: bool) -> bytes:
    file = open_on(Disk(files), writable=writable)
    return file.read(0, file.size + 1)


def encrypted(content: bytes, version: int = 2) -> bytes:
    backing = MemoryBacking()
    file = EncryptedFile.create(backing, KEY, PATH, name="new", version=version)
    file.write(0, content)
    file.close()
    return backing.getvalue()


def outcomes(disk: Disk, seed: int) -> list[dict[str, bytes]]:
    """Return different things that the disk may hold after the crash."""
    dice = random.Random(seed)
    return [
        disk.after_crash(lambda: True),
        disk.after_crash(lambda: False),
        disk.after_crash(lambda: dice.random() < 0.5),
        disk.after_crash(lambda: dice.random() < 0.9),
        disk.after_crash(lambda: dice.random() < 0.1),
    ]
