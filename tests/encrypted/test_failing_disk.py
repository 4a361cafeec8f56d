"""A disk that fails now and then, and loses its power: nothing is lost that was flushed.

Random edits on the model disk: it takes writes in part and refuses syncs, truncations and the
making of recovery files. Who meets an error goes on, or opens the file again where it is told to.
"""

from __future__ import annotations

import contextlib
import random
from functools import partial

import pytest

from cloister.encrypted.backing import Buffer
from cloister.encrypted.file import EncryptedFile
from cloister.errors import RecoveryError
from model_disk import KEY, Disk, DiskFile, DiskStore, content_of, encrypted, outcomes

SIZES = (0, 100, 3072, 3073, 7168, 20_000, 60_000, 3072 + 96 * 4096, 3072 + 97 * 4096)
EVERYTHING = 1 << 22


class Trouble:
    """Says when an operation fails."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.rate = 0.0

    def strike(self) -> None:
        if self.dice.random() < self.rate:
            raise OSError(28, "No space left on device")


class FailingFile(DiskFile):
    """A file on the disk; a write that fails was taken in part."""

    def __init__(self, disk: Disk, name: str, trouble: Trouble) -> None:
        super().__init__(disk, name)
        self.trouble = trouble

    def pwrite(self, offset: int, data: Buffer) -> None:
        try:
            self.trouble.strike()
        except OSError:
            taken = self.trouble.dice.randrange(len(data) + 1)
            super().pwrite(offset, bytes(data)[:taken])
            raise
        super().pwrite(offset, data)

    def truncate(self, size: int) -> None:
        self.trouble.strike()
        super().truncate(size)

    def fsync(self) -> None:
        self.trouble.strike()
        super().fsync()


class FailingStore(DiskStore):
    """Recovery files on the disk."""

    def __init__(self, disk: Disk, trouble: Trouble) -> None:
        super().__init__(disk)
        self.trouble = trouble

    def create(self) -> DiskFile:
        self.trouble.strike()
        super().create()
        return FailingFile(self.disk, self.name, self.trouble)


class Life:
    """A file, what it should hold, and the contents that a power loss may leave."""

    def __init__(self, seed: int) -> None:
        self.trouble = Trouble(seed)
        self.dice = self.trouble.dice
        content = self.dice.randbytes(self.dice.choice(SIZES))
        self.limit = self.dice.choice([2, 3, 9, 99])
        self.disk = Disk({"main": encrypted(content)})
        self.model = content
        self.allowed = [content]
        self.file = self.open()

    def open(self) -> EncryptedFile:
        return EncryptedFile.open(
            FailingFile(self.disk, "main", self.trouble),
            KEY,
            None,
            name="main",
            store=FailingStore(self.disk, self.trouble),
            writable=True,
            waiting_limit=self.limit,
        )

    def near(self) -> int:
        return max(0, self.dice.choice([*SIZES, len(self.model)]) + self.dice.randrange(-9, 9))

    def edit(self) -> None:
        """Write or truncate; when it fails, each byte is the old one or the new one."""
        place, size = self.near(), self.near()
        old = self.model
        if self.dice.random() < 0.7:
            data = self.dice.randbytes(self.dice.choice([1, 50, 5000, 30_000]))
            padded = old.ljust(place, b"\0")
            new = padded[:place] + data + padded[place + len(data) :]
            action = partial(self.file.write, place, data)
        else:
            new = old[:size].ljust(size, b"\0")
            action = partial(self.file.truncate, size)
        try:
            action()
        except OSError:
            self.trouble.rate = 0
            self.model = self.file.read(0, EVERYTHING)
            assert len(self.model) <= max(len(old), len(new))
            longest = len(self.model)
            choices = zip(old.ljust(longest, b"\0"), new.ljust(longest, b"\0"), strict=False)
            assert all(byte in pair for byte, pair in zip(self.model, choices, strict=False))
        else:
            self.model = new

    def flush(self) -> None:
        self.allowed = [*self.allowed, self.model]
        with contextlib.suppress(OSError):
            self.file.fsync()
            self.allowed = [self.model]

    def reopen(self) -> None:
        """Close; whatever becomes of that, the file opens with a content that it may have."""
        self.allowed = [*self.allowed, self.model]
        try:
            self.file.fsync()  # what was only found by opening need not be on the disk
            self.file.close()
        except (OSError, RecoveryError):
            with contextlib.suppress(OSError, RecoveryError):
                self.file.close()
        else:
            self.allowed = [self.model]
        self.trouble.rate = 0
        self.file = self.open()
        self.model = self.file.read(0, EVERYTHING)
        assert self.model in self.allowed

    def step(self) -> None:
        self.trouble.rate = self.dice.choice([0, 0, 0.05, 0.3])
        try:
            self.dice.choice([self.edit] * 7 + [self.flush] * 2 + [self.reopen])()
        except RecoveryError:
            self.reopen()
        self.trouble.rate = 0


@pytest.mark.parametrize(
    "seeds",
    [range(20), pytest.param(range(20, 400), marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
    ids=["20 lives", "380 lives"],
)
def test_a_failing_disk_never_takes_what_was_flushed(seeds: range) -> None:
    for seed in seeds:
        life = Life(seed)
        for number in range(30):
            life.step()
            assert life.file.read(0, EVERYTHING) == life.model, seed
            if life.dice.random() < 0.2:
                for files in outcomes(life.disk, number):
                    assert content_of(files, writable=False) in life.allowed, seed
