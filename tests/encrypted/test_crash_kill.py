"""Real processes, killed at random moments while they write: the last flush is always there."""

from __future__ import annotations

import mmap
import os
import pydoc
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.encrypted.file import EncryptedFile

KEY = bytes(range(16))
NAME = "dir/file"
SIZE = 120_000


def edit(file: EncryptedFile | None, model: bytearray, dice: random.Random) -> None:
    """Do one random edit to the model, and to the file if there is one."""
    if dice.random() < 0.2:
        size = dice.randrange(SIZE)
        model[size:] = bytes(max(0, size - len(model)))
        if file:
            file.truncate(size)
        return
    offset, data = dice.randrange(SIZE), dice.randbytes(dice.choice([1, 100, 5000, 30000]))
    model.extend(bytes(max(0, offset - len(model))))
    model[offset : offset + len(data)] = data
    if file:
        file.write(offset, data)


def contents(start: bytes, seed: int) -> Iterator[bytes]:
    """Yield the content after each flush of a writer that was started on ``start``."""
    dice, model = random.Random(seed), bytearray(start)
    while True:
        for _ in range(dice.randrange(1, 6)):
            edit(None, model, dice)
        yield bytes(model)


def opened(path: Path, seed: int) -> EncryptedFile:
    """Open for writing; every third writer keeps so little that it writes out before it flushes."""
    file = EncryptedFile.open_path(path, KEY, NAME, writable=True)
    if seed % 3 == 0:
        file._nodes._waiting_limit = 4
    return file


def write_until_killed(path: Path, seed: int, progress: mmap.mmap) -> None:
    """Edit and flush for ever; count flushes begun (byte 0..) and done (byte 8..)."""
    if not path.exists():
        EncryptedFile.create_path(path, KEY, NAME).close()
    file = opened(path, seed)
    dice, model = random.Random(seed), bytearray(file.read(0, file.size))
    flushes = 0
    while True:
        for _ in range(dice.randrange(1, 6)):
            edit(file, model, dice)
        flushes += 1
        progress[0:8] = flushes.to_bytes(8, "little")
        if flushes % 10 == 0:
            file.close()
            file = opened(path, seed)
        else:
            file.flush()
        progress[8:16] = flushes.to_bytes(8, "little")


def kill_a_writer(path: Path, seed: int) -> tuple[int, int]:
    """Kill a writer after 0 to 3 flushes and a moment; return how many it began and finished."""
    progress = mmap.mmap(-1, 16)
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(path, seed, progress)
        finally:
            os._exit(1)
    dice = random.Random(seed)
    flushes = seed % 4
    deadline = time.monotonic() + 10
    while progress[8] < flushes and time.monotonic() < deadline:
        time.sleep(0.0002)
    time.sleep(dice.random() * 0.004)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer failed by itself"
    return int.from_bytes(progress[0:8], "little"), int.from_bytes(progress[8:16], "little")


@pytest.mark.parametrize(
    "kills",
    [300, pytest.param(2000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
    ids=["300", "2000"],
)
def test_a_killed_writer_leaves_a_flushed_content(tmp_path: Path, kills: int) -> None:
    path = tmp_path / "file"
    content = b""
    interrupted = flushed = 0
    for seed in range(kills):
        begun, done = kill_a_writer(path, seed)
        if not path.exists():
            assert done == 0
            assert begun == 0
            continue
        states = [content]
        for state, _ in zip(contents(content, seed), range(begun), strict=False):
            states.append(state)
        interrupted += path.with_name("file.gramine.recovery").exists()
        flushed += done
        file = EncryptedFile.open_path(path, KEY, NAME, writable=seed % 2 == 0)
        found = file.read(0, file.size)
        file.close()
        assert found in states[done:]
        content = found
        if seed % 50 == 49:
            path.unlink()
            content = b""
    assert interrupted > kills // 15
    assert flushed >= kills
    leftovers = {entry.name for entry in tmp_path.iterdir()} - {"file", "file.gramine.recovery"}
    assert not leftovers


@pytest.mark.parametrize("existing", [False, True])
def test_a_new_file_appears_complete_or_not_at_all(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "file"
    if existing:
        path.write_bytes(b"plain")
        with pytest.raises(FileExistsError):
            EncryptedFile.create_path(path, KEY, NAME)
        assert path.read_bytes() == b"plain"
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
        return
    for seed in range(60):
        child = os.fork()
        if child == 0:
            EncryptedFile.create_path(path, KEY, NAME)
            os._exit(0)
        time.sleep(random.Random(seed).random() * 0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if path.exists():
            file = EncryptedFile.open_path(path, KEY, NAME, writable=False)
            assert file.size == 0
            file.close()
            path.unlink()
    assert list(tmp_path.iterdir()) == []


# Everything a move does to the host, in one list of what to count.
MOVE_CALLS = [
    "cloister.encrypted.backing.FileBacking.pwrite",
    "cloister.encrypted.backing.FileBacking.truncate",
    "cloister.encrypted.backing.FileBacking.fsync",
    "cloister.encrypted.backing.FileRecoveryStore.create",
    "cloister.encrypted.backing.FileRecoveryStore.remove",
    "cloister.encrypted.file.sync_directory",
]


def move_and_die(old: Path, new: Path, calls: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Move in a child that dies before its n-th call; tell whether it came to its end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    left = [calls]

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                os._exit(7)
            left[0] -= 1
            return function(*arguments, **options)

        return call

    try:
        file = EncryptedFile.open_path(old, KEY, "old", writable=True)
        file.write(5000, b"new")
        for name in MOVE_CALLS:
            module, _, attribute = name.rpartition(".")
            target = pydoc.locate(module)
            monkeypatch.setattr(target, attribute, counted(getattr(target, attribute)))
        file.move(new, "new", rename=counted(os.rename))
        file.write(0, b"more")
        file.close()
        os._exit(0)
    finally:
        os._exit(1)


def plant_target(path: Path, *, interrupted: bool) -> None:
    """Make the file that the move will replace, perhaps in the middle of a write."""
    file = EncryptedFile.create_path(path, KEY, "new")
    file.write(0, b"target")
    file.close()
    if interrupted:
        good = path.read_bytes()
        path.with_name("new.gramine.recovery").write_bytes(bytes(8) + good)
        path.write_bytes(good[:58] + b"\1" + bytes(4037))


@pytest.mark.parametrize("replaced", ["nothing", "complete", "interrupted"])
def test_a_killed_move_leaves_one_name_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: str
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    seen = set()
    for calls in range(100):
        for entry in tmp_path.iterdir():
            entry.unlink()
        file = EncryptedFile.create_path(old, KEY, "old")
        file.write(0, b"x" * 9000)
        file.close()
        if replaced != "nothing":
            plant_target(new, interrupted=replaced == "interrupted")
        done = move_and_die(old, new, calls, monkeypatch)
        moved = not old.exists()
        seen.add(moved)
        path = new if moved else old
        file = EncryptedFile.open_path(path, KEY, path.name, writable=True)
        content = file.read(0, 9000)
        file.close()
        assert len(content) == 9000
        assert not moved or content[5000:5003] == b"new"
        if replaced != "nothing" and not moved:
            other = EncryptedFile.open_path(new, KEY, "new", writable=True)
            assert other.read(0, 9) == b"target"
            other.close()
        if done:
            break
    assert done
    assert content[:4] == b"more"
    assert {entry.name for entry in tmp_path.iterdir()} == {"new"}
    assert seen == {True, False}


def test_a_move_that_the_host_refuses_changes_nothing(tmp_path: Path) -> None:
    old = tmp_path / "old"
    file = EncryptedFile.create_path(old, KEY, "old")
    file.write(0, b"x" * 9000)
    with pytest.raises(OSError, match="No such file"):
        file.move(tmp_path / "missing" / "new", "new")
    file.move(old, "old")
    file.write(1, b"y")
    file.close()
    again = EncryptedFile.open_path(old, KEY, "old", writable=False)
    assert again.read(0, 3) == b"xyx"
    again.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
