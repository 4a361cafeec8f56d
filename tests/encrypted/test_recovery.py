"""Recovery files from elsewhere: Gramine's are undone, foreign and hostile ones do no harm."""

from __future__ import annotations

import os
import random
import signal
import struct
from pathlib import Path

import pytest

from cloister.encrypted import whole
from cloister.encrypted.backing import MemoryBacking
from cloister.encrypted.content import EncryptedContent
from cloister.encrypted.file import EncryptedFile, probe, recovery_path
from cloister.encrypted.stream import encrypt
from cloister.errors import CloisterError, RecoveryError, WrongKeyError

KEY = bytes(range(16))
PATH = "f"
OLD = random.Random(1).randbytes(500_000)
NEW = OLD[:1000] + b"changed" * 5000 + OLD[36_000:400_000] + b"appended" * 30_000


def node(file: bytes, number: int) -> bytes:
    return file[number * 4096 : (number + 1) * 4096]


def record(number: int, content: bytes) -> bytes:
    return struct.pack("<Q", number) + content


def states() -> tuple[bytes, bytes]:
    """Return an encrypted file before and after a change, with unchanged nodes in common."""
    backing = MemoryBacking()
    file = EncryptedContent.create(backing, KEY, PATH, name=PATH)
    file.write(0, OLD)
    file.flush()
    before = backing.getvalue()
    file.truncate(400_000)
    file.write(0, NEW)
    file.flush()
    return before, backing.getvalue()


def crash_as_gramine_does(dice: random.Random, done: float) -> tuple[bytes, bytes]:
    """Return main and recovery file of a flush that Gramine began and did not finish.

    Gramine logs every changed node with the ciphertext it has in memory, which for appended nodes
    is nothing; then the root, then node 0; it sets the flag and writes the nodes.
    """
    before, after = states()
    last = max(len(before), len(after)) // 4096
    changed = [n for n in range(2, last) if node(before, n) != node(after, n)]
    log = b"".join(record(n, node(before, n) or bytes(4096)) for n in changed)
    log += record(1, node(before, 1)) + record(0, node(before, 0))
    main = bytearray(before)
    for number in [*changed, 1]:
        if dice.random() < done:
            end = number * 4096
            main.extend(bytes(max(0, end - len(main))))
            main[end : end + 4096] = node(after, number)
    main[58] |= 1
    return bytes(main), log


@pytest.mark.parametrize("done", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("writable", [False, True])
def test_an_interrupted_write_of_gramine_is_undone(
    tmp_path: Path, done: float, writable: bool
) -> None:
    main, log = crash_as_gramine_does(random.Random(4), done)
    path = tmp_path / PATH
    path.write_bytes(main)
    recovery_path(path).write_bytes(log)
    assert probe(path, KEY, PATH).size == len(OLD)
    file = EncryptedFile.open_path(path, KEY, PATH, writable=writable)
    assert file.read(0, file.size) == OLD
    file.close()
    if writable:
        assert not path.read_bytes()[58] & 1
        assert not recovery_path(path).exists()
        file = EncryptedFile.open_path(path, KEY, PATH, writable=False)
        assert file.read(0, file.size) == OLD
        file.close()
    else:
        assert path.read_bytes() == main
        assert recovery_path(path).read_bytes() == log


@pytest.mark.parametrize(
    "spoil",
    [
        lambda log: b"",
        lambda log: log[:100],
        lambda log: log[:-4104],  # no node 0
        lambda log: log[:-4104] + record(0, bytes(4096)),
        lambda log: log[:-4104] + record(0, encrypt(b"other", bytes(16), PATH)),
        lambda log: bytes(len(log)),
    ],
    ids=["empty", "torn", "no node 0", "zero node 0", "other key", "zeros"],
)
def test_a_useless_recovery_file_changes_nothing(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    main, log = crash_as_gramine_does(random.Random(4), 0.5)
    path = tmp_path / PATH
    path.write_bytes(main)
    recovery_path(path).write_bytes(spoil(log))
    for writable in (False, True):
        with pytest.raises((RecoveryError, WrongKeyError)):
            EncryptedFile.open_path(path, KEY, PATH, writable=writable)
    with pytest.raises((RecoveryError, WrongKeyError)):
        whole.recover(path, KEY)
    assert path.read_bytes() == main


def test_a_wrong_key_recovers_nothing(tmp_path: Path) -> None:
    main, log = crash_as_gramine_does(random.Random(4), 0.5)
    path = tmp_path / PATH
    path.write_bytes(main)
    recovery_path(path).write_bytes(log)
    with pytest.raises(WrongKeyError):
        EncryptedFile.open_path(path, bytes(16), PATH, writable=True)
    assert path.read_bytes() == main


def test_records_that_do_not_authenticate_are_left_alone(tmp_path: Path) -> None:
    main, log = crash_as_gramine_does(random.Random(4), 0.5)
    hostile = [
        record(2**64 - 1, b"x" * 4096),
        record(2**52, b"x" * 4096),
        record(0, b"x" * 4096),
        record(3, b"x" * 4096),
    ]
    path = tmp_path / PATH
    path.write_bytes(main)
    recovery_path(path).write_bytes(log + b"".join(hostile) + b"torn")
    file = EncryptedFile.open_path(path, KEY, PATH, writable=True)
    assert file.read(0, file.size) == OLD
    file.close()
    assert path.stat().st_size <= len(main)


def test_the_recovery_file_of_an_older_write_gives_at_most_an_older_state(tmp_path: Path) -> None:
    """Rollback is what the format permits an attacker; a mixture is not."""
    before, after = states()
    path = tmp_path / PATH
    main = bytearray(after)
    main[58] |= 1
    path.write_bytes(main)
    recovery_path(path).write_bytes(record(0, node(before, 0)))
    file = EncryptedFile.open_path(path, KEY, PATH, writable=True)
    with pytest.raises(CloisterError):
        file.read(0, file.size)
    file.close()


def test_a_link_in_place_of_the_recovery_file_is_not_followed(tmp_path: Path) -> None:
    main, log = crash_as_gramine_does(random.Random(4), 0.5)
    path = tmp_path / PATH
    path.write_bytes(main)
    (tmp_path / "elsewhere").write_bytes(log)
    recovery_path(path).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        EncryptedFile.open_path(path, KEY, PATH, writable=True)
    assert path.read_bytes() == main


@pytest.mark.parametrize("beside", ["the file", "the link"])
def test_a_file_reached_by_a_link_is_recovered_under_either_name(
    tmp_path: Path, beside: str
) -> None:
    """Gramine puts the recovery file beside the link, we beside the file."""
    main, log = crash_as_gramine_does(random.Random(4), 0.5)
    path, link = tmp_path / "sub" / PATH, tmp_path / "link"
    path.parent.mkdir()
    path.write_bytes(main)
    link.symlink_to(path)
    recovery_path(path if beside == "the file" else link).write_bytes(log)
    for writable in (False, True):
        file = EncryptedFile.open_path(link, KEY, PATH, writable=writable)
        assert file.read(0, file.size) == OLD
        file.close()
    assert sorted(tmp_path.rglob("*")) == [link, path.parent, path]


def test_a_crash_behind_a_link_is_undone_by_the_file_s_own_name(tmp_path: Path) -> None:
    path, link = tmp_path / PATH, tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    path.write_bytes(encrypt(OLD, KEY, PATH))
    link.symlink_to(path)
    child = os.fork()
    if child == 0:
        file = EncryptedFile.open_path(link, KEY, PATH, writable=True)
        file.write(0, NEW)
        file._nodes.seal()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    file = EncryptedFile.open_path(path, KEY, PATH, writable=True)
    assert file.read(0, file.size) == OLD
    file.close()
    assert list(link.parent.iterdir()) == [link]


def test_a_recovery_file_goes_when_it_has_done_its_work(tmp_path: Path) -> None:
    """What the old key opens must not lie beside a file that has a new key."""
    main, log = crash_as_gramine_does(random.Random(4), 0.5)
    path = tmp_path / PATH
    path.write_bytes(main)
    recovery_path(path).write_bytes(log)
    assert whole.rekey(path, KEY, bytes(16))
    assert list(tmp_path.iterdir()) == [path]


def test_recover_says_whether_there_was_something_to_do(tmp_path: Path) -> None:
    main, log = crash_as_gramine_does(random.Random(4), 0.5)
    path = tmp_path / PATH
    path.write_bytes(main)
    recovery_path(path).write_bytes(log)
    assert whole.recover(path, KEY) is True
    assert not recovery_path(path).exists()
    assert whole.recover(path, KEY) is False
    assert probe(path, KEY, PATH).size == len(OLD)


def test_a_complete_file_without_its_recovery_file_loses_only_its_mark(tmp_path: Path) -> None:
    complete = states()[1]
    marked = bytearray(complete)
    marked[58] |= 1
    path = tmp_path / PATH
    path.write_bytes(marked)
    assert whole.recover(path, KEY) is True
    assert path.read_bytes() == complete


def test_an_incomplete_file_without_its_recovery_file_stays_as_it_is(tmp_path: Path) -> None:
    main, _ = crash_as_gramine_does(random.Random(4), 0.5)
    path = tmp_path / PATH
    path.write_bytes(main)
    with pytest.raises(RecoveryError, match="is not complete") as caught:
        whole.recover(path, KEY)
    assert "gramine.recovery" in (caught.value.hint or "")
    assert path.read_bytes() == main
