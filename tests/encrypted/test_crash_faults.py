"""Every crash leaves the last flushed content, or that of the flush in progress."""

from __future__ import annotations

import contextlib
import copy
import random

import pytest

from cloister.encrypted.backing import Buffer
from cloister.encrypted.file import EncryptedFile
from cloister.encrypted.journal import DirectJournal, UndoJournal
from cloister.encrypted.layout import parse_header
from cloister.errors import RecoveryError
from model_disk import (
    KEY,
    PATH,
    Disk,
    DiskFile,
    DiskStore,
    PowerLoss,
    content_of,
    encrypted,
    open_on,
    outcomes,
)

# --- The scripts: steps on a file; None is a flush ------------------------------------------------

Step = tuple[str, int, bytes]
BODY = random.Random(7).randbytes(3072 + 4096 * 97 + 100)


def w(offset: int, size: int, salt: int = 1) -> Step:
    return ("write", offset, random.Random(salt * 1000003 + offset).randbytes(size))


def t(size: int) -> Step:
    return ("truncate", size, b"")


FLUSH: Step = ("flush", 0, b"")

SCRIPTS: dict[str, tuple[bytes, int, list[Step]]] = {
    # name: (content at the start, changed nodes kept in memory, steps)
    "small": (b"hello", 99, [w(0, 3), FLUSH, w(2, 700), FLUSH, t(1), FLUSH, t(3000), FLUSH]),
    "first growth": (b"hello", 99, [w(3000, 5000), FLUSH, w(9000, 10), FLUSH]),
    "overwrite": (BODY[:30000], 99, [w(3072, 4096), w(20000, 5000), FLUSH, w(0, 10), FLUSH]),
    "spilled overwrite": (BODY[:60000], 3, [w(0, 40000), w(50000, 9000), FLUSH, w(100, 9), FLUSH]),
    "spilled append": (BODY[:9000], 2, [w(9000, 40000), FLUSH, w(49000, 9000), w(5, 5), FLUSH]),
    "shrink": (BODY[:60000], 99, [t(20000), FLUSH, t(3072), FLUSH, t(100), FLUSH, t(0), FLUSH]),
    "shrink and grow": (BODY[:60000], 2, [t(9000), w(30000, 100), FLUSH, t(5), t(50000), FLUSH]),
    "two groups": (BODY, 60, [w(380000, 30000), FLUSH, t(390000), FLUSH, w(410000, 9000), FLUSH]),
}


def apply(file: EncryptedFile, model: bytearray, step: Step) -> None:
    """Do one step to the model, then to the file."""
    kind, number, data = step
    if kind == "write":
        model.extend(bytes(max(0, number - len(model))))
        model[number : number + len(data)] = data
        file.write(number, data)
    elif kind == "truncate":
        model[number:] = bytes(max(0, number - len(model)))
        file.truncate(number)
    else:
        file.flush()


def run(disk: Disk, content: bytes, limit: int, steps: list[Step], version: int = 2) -> list[bytes]:
    """Run a script; return the contents that a crash may leave when the disk stops."""
    model = bytearray(content)
    allowed = [content]
    try:
        file = open_on(disk, waiting_limit=limit, version=version)
        for step in steps:
            if step == FLUSH:
                allowed = [allowed[-1], bytes(model)]
            apply(file, model, step)
            if step == FLUSH:
                allowed = [bytes(model)]
        file.close()
    except PowerLoss:
        pass
    return allowed


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("versions", [(2, 2), (1, 2), (1, 1)], ids=["v2", "v1 to v2", "v1"])
def test_every_crash_leaves_a_flushed_content(name: str, versions: tuple[int, int]) -> None:
    content, limit, steps = SCRIPTS[name]
    start = {"main": encrypted(content, versions[0])}
    whole = Disk(start)
    final = run(whole, content, limit, steps, version=versions[1])
    assert content_of(whole.after_crash(lambda: True), writable=False) == final[-1]
    assert whole.operations > 10
    seen_old = seen_new = False
    for k in range(whole.operations + 1):
        disk = Disk(start, k)
        allowed = run(disk, content, limit, steps, version=versions[1])
        for number, files in enumerate(outcomes(disk, k)):
            for writable in (False, True):
                found = content_of(files, writable=writable)
                assert found in allowed, (k, number, len(found), [len(a) for a in allowed])
                seen_old |= len(allowed) > 1 and found == allowed[0]
                seen_new |= len(allowed) > 1 and found == allowed[1]
    assert seen_old and seen_new  # the crashes did fall on both sides of a commit


@pytest.mark.parametrize("size", [5, 60000])
def test_every_crash_leaves_the_old_or_the_new_path(size: int) -> None:
    start = {"main": encrypted(BODY[:size])}
    seen = set()
    for k in range(100):
        disk = Disk(start, k)
        with contextlib.suppress(PowerLoss):
            open_on(disk).rename("another/path")
        for files in outcomes(disk, k):
            file = open_on(Disk(files))
            assert file.read(0, size + 1) == BODY[:size]
            assert file.embedded_path in (PATH, "another/path")
            seen.add(file.embedded_path)
        if disk.operations < k:
            break
    assert file.embedded_path == "another/path"
    assert len(seen) == 2


@pytest.mark.parametrize("size", [5, 60000])
def test_every_crash_while_a_file_moves_leaves_it_whole_under_the_name_it_has(size: int) -> None:
    """The directory is a disk too: until it is synced, either name may be found."""
    start = {"main": encrypted(BODY[:size])}
    found_names = []
    for k in range(100):
        disk = Disk(start, k)
        names = ["old"]

        def rename(disk: Disk = disk, names: list[str] = names) -> None:
            disk.step()
            names.append("new")

        def sync_names(disk: Disk = disk, names: list[str] = names) -> None:
            disk.step()
            names.remove("old")

        try:
            file = open_on(disk)
            file.write(0, b"new")
            file.flush()
            assert isinstance(file._journal, UndoJournal)
            file._journal.move(
                file._sealed_node0(b"new/path"),
                DiskStore(disk, "new log"),
                rename=rename,
                sync_names=sync_names,
            )
        except PowerLoss:
            pass
        for files in outcomes(disk, k):
            for name in names:
                log, path = {"old": ("log", PATH), "new": ("new log", "new/path")}[name]
                again = open_on(Disk(files), log=log)
                assert again.embedded_path == path
                assert again.read(3, size) == BODY[3:size]
                if name == "new":
                    assert again.read(0, 3) == b"new"
        found_names.append(tuple(names))
        if disk.operations < k:
            break
    assert set(found_names) == {("old",), ("old", "new"), ("new",)}


@pytest.mark.parametrize("name", ["overwrite", "spilled overwrite", "shrink and grow", "small"])
def test_a_crash_while_a_crash_is_undone_changes_nothing(name: str) -> None:
    content, limit, steps = SCRIPTS[name]
    start = {"main": encrypted(content)}
    whole = Disk(start)
    run(whole, content, limit, steps)
    for k in range(0, whole.operations, 3):
        disk = Disk(start, k)
        allowed = run(disk, content, limit, steps)
        for files in outcomes(disk, k)[:3]:
            if not parse_header(files["main"]).pending_write:
                continue
            for j in range(1000):
                again = Disk(files, j)
                try:
                    open_on(again)
                except PowerLoss:
                    for later in outcomes(again, j):
                        assert content_of(later, writable=True) in allowed
                else:
                    break
            assert j > 2


@pytest.mark.parametrize("name", ["small", "first growth", "overwrite"])
def test_a_power_loss_after_a_kill_leaves_a_flushed_content(name: str) -> None:
    """What a killed process wrote is there for the next one, and yet not on the disk."""
    content, limit, steps = SCRIPTS[name]
    start = {"main": encrypted(content)}
    whole = Disk(start)
    run(whole, content, limit, steps)
    for k in range(0, whole.operations):
        killed = Disk(start, k, tears=False)
        allowed = run(killed, content, limit, steps)
        for j in range(100):
            disk = copy.deepcopy(killed)
            disk.budget, disk.tears = k + j, True
            later = [*allowed]
            with contextlib.suppress(PowerLoss):
                file = open_on(disk)
                found = file.read(0, 1 << 20)
                assert found in allowed
                file.write(1, b"!")
                changed = found[:1] + b"!" + found[2:]
                later = [*allowed, changed]
                file.flush()
                later = [changed]
            for files in outcomes(disk, j)[:3]:
                assert content_of(files, writable=False) in later
            if disk.operations < k + j:
                break


def undo_as_gramine_does(files: dict[str, bytes]) -> dict[str, bytes]:
    """Write every record back in order, believing all, as Gramine's recovery does."""
    main, log = bytearray(files["main"]), files.get("log", b"")
    if not main[58] & 1:
        return files
    assert len(main) % 4096 == 0
    assert log
    assert len(log) % 4104 == 0
    for start in range(0, len(log), 4104):
        place = int.from_bytes(log[start : start + 8], "little") * 4096
        main[place : place + 4096] = log[start + 8 : start + 4104]
    assert not main[58] & 1
    return {"main": bytes(main)}


@pytest.mark.parametrize("name", ["small", "first growth", "overwrite", "shrink", "two groups"])
def test_gramine_can_undo_our_interrupted_writes(name: str) -> None:
    content, limit, steps = SCRIPTS[name]
    start = {"main": encrypted(content)}
    whole = Disk(start)
    run(whole, content, limit, steps)
    undone = 0
    for k in range(whole.operations):
        disk = Disk(start, k)
        allowed = run(disk, content, limit, steps)
        for crashed in outcomes(disk, k):
            recovered = undo_as_gramine_does(crashed)
            undone += recovered is not crashed
            assert content_of(recovered, writable=False) in allowed
    assert undone > 3


def test_a_transaction_of_several_batches_logs_each_node_once() -> None:
    content, limit, _ = SCRIPTS["spilled overwrite"]
    disk = Disk({"main": encrypted(content)})
    file = open_on(disk, waiting_limit=limit)
    for _ in range(3):
        file.write(0, bytes(40000))
    recovered = undo_as_gramine_does(disk.after_crash(lambda: True))
    assert content_of(recovered, writable=False) == content


def test_the_test_can_fail_without_the_journal() -> None:
    """The same crashes do break a file whose nodes are written straight through."""
    content, limit, steps = SCRIPTS["overwrite"]
    start = {"main": encrypted(content)}
    broken = 0
    for k in range(20):
        disk = Disk(start, k)
        file = open_on(disk, waiting_limit=limit)
        direct = DirectJournal(file._main)
        file._journal = file._nodes._journal = direct
        try:
            for step in steps:
                apply(file, bytearray(content), step)
        except PowerLoss:
            pass
        for files in outcomes(disk, k):
            try:
                content_of(files, writable=False)
            except Exception:
                broken += 1
    assert broken > 5


def test_a_recovery_file_that_could_not_be_written_is_written_anew() -> None:
    """What the failed attempt left must not make Gramine refuse the next one."""
    content = BODY[:60000]

    class Full(DiskFile):
        def pwrite(self, offset: int, data: Buffer) -> None:
            super().pwrite(offset, bytes(data)[:5000])
            raise OSError(28, "No space left on device")

    class Store(DiskStore):
        made = 0

        def create(self) -> DiskFile:
            log = super().create()
            full = Full(self.disk, "log")
            Store.made += 1
            return full if Store.made == 1 else log

    disk = Disk({"main": encrypted(content)})
    file = EncryptedFile.open(
        DiskFile(disk, "main"), KEY, None, name="main", store=Store(disk), writable=True
    )
    file.write(0, bytes(60000))
    with pytest.raises(OSError, match="No space"):
        file.flush()
    assert content_of(disk.after_crash(lambda: True), writable=False) == content
    assert isinstance(file._journal, UndoJournal)
    file._journal._log = DiskFile(disk, "log")  # there is room again
    file.truncate(100)
    disk.budget = disk.operations + 4
    with pytest.raises(PowerLoss):
        file.flush()
    crashed = disk.after_crash(lambda: True)
    assert crashed["main"][58] & 1
    assert content_of(undo_as_gramine_does(crashed), writable=False) == content


def test_a_recovery_file_that_could_not_be_emptied_is_written_anew() -> None:
    """Its records are of the state before the last; the next recovery must not find them first."""

    class Stuck(DiskFile):
        def truncate(self, size: int) -> None:
            if size == 0:
                raise OSError(5, "Input/output error")
            super().truncate(size)

    class Store(DiskStore):
        def create(self) -> DiskFile:
            super().create()
            return Stuck(self.disk, "log")

    disk = Disk({"main": encrypted(BODY[:60000])})
    file = EncryptedFile.open(
        DiskFile(disk, "main"), KEY, None, name="main", store=Store(disk), writable=True
    )
    file.write(0, b"1" * 50_000)
    with pytest.raises(OSError, match="Input/output"):
        file.flush()
    committed = file.read(0, 60_000)
    assert content_of(disk.after_crash(lambda: True), writable=False) == committed
    file.write(30_000, b"2" * 9000)
    file._nodes.seal()
    assert disk.now["main"].pread(58, 1) == b"\1"
    assert content_of(disk.after_crash(lambda: True), writable=False) == committed


def test_a_write_that_was_taken_in_part_leaves_whole_nodes() -> None:
    class Full(DiskFile):
        def pwrite(self, offset: int, data: Buffer) -> None:
            if offset < 40_000:
                super().pwrite(offset, data)
                return
            super().pwrite(offset, bytes(data)[:1000])
            raise OSError(28, "No space left on device")

    disk = Disk({"main": encrypted(BODY[:9000])})
    file = EncryptedFile.open(
        Full(disk, "main"),
        KEY,
        None,
        name="main",
        store=DiskStore(disk),
        writable=True,
        waiting_limit=2,
    )
    with pytest.raises(OSError, match="No space"):
        file.write(9000, bytes(60_000))
    file.truncate(5000)
    file.flush()
    for found in (disk.after_crash(lambda: False), disk.after_crash(lambda: True)):
        assert content_of(found, writable=True) == BODY[:5000]


class Refusing(DiskFile):
    """A file on which one operation fails, as on a full or failing disk."""

    left = -1

    def _refuse(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(28, "No space left on device")

    def pwrite(self, offset: int, data: Buffer) -> None:
        self._refuse()
        super().pwrite(offset, data)

    def fsync(self) -> None:
        self._refuse()
        super().fsync()


def test_a_flush_that_the_disk_refuses_loses_nothing() -> None:
    """It can be done again, or the file must be opened again; there is never a mixture."""
    content, limit, steps = SCRIPTS["overwrite"]
    again = broken = 0
    for left in range(1, 30):
        disk = Disk({"main": encrypted(content)})
        main = Refusing(disk, "main")
        file = EncryptedFile.open(
            main, KEY, PATH, name="main", store=DiskStore(disk), writable=True, waiting_limit=limit
        )
        model = bytearray(content)
        for step in steps[:2]:
            apply(file, model, step)
        main.left = left
        try:
            file.flush()
        except OSError:
            for crashed in outcomes(disk, left):
                assert content_of(crashed, writable=False) in (content, model)
            assert file.read(0, 1 << 20) == model
        else:
            break
        try:
            file.flush()
        except RecoveryError as error:
            assert "opened again" in str(error)
            broken += 1
        else:
            again += 1
            assert content_of(disk.after_crash(lambda: False), writable=False) == model
    assert left < 29
    assert again >= 3
    assert broken >= 3
