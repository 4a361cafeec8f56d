"""Whole files and trees: outputs whole or absent, every failure named, the rest done."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.encrypted import bulk, trees, whole
from cloister.encrypted.file import EncryptedFile
from cloister.encrypted.layout import mark_pending
from cloister.encrypted.paths import holds_content, normalise, same_name
from cloister.encrypted.stream import decrypt, encrypt
from cloister.encrypted.stream import open as open_encrypted
from cloister.encrypted.workers import forked_map
from cloister.errors import (
    CloisterError,
    InputError,
    InUseError,
    NotEncryptedError,
    RecoveryError,
    RenamedError,
    TamperedError,
    WrongKeyError,
)

KEY = bytes(range(16))
NEW_KEY = bytes(range(16, 32))
ANY = whole.Expected()
LARGE = random.Random(2).randbytes(1 << 20) * 40 + b"tail"


def damaged(content: bytes) -> bytes:
    """Change the last byte, whatever it was."""
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("size", [0, 1, 3072, 3073, 3072 + 96 * 4096, len(LARGE)])
def test_files_come_back_whatever_the_size_and_the_number_of_jobs(
    tmp_path: Path, size: int, jobs: int, version: int
) -> None:
    plain, sealed, back = (tmp_path / name for name in ("plain", "sealed", "back"))
    plain.write_bytes(LARGE[:size])
    told: list[int] = []
    whole.encrypt(plain, sealed, KEY, "p", version=version, jobs=jobs, advance=told.append)
    assert sum(told) == size
    assert sealed.read_bytes()[8] == version
    assert decrypt(sealed.read_bytes(), KEY, "p") == LARGE[:size]
    told.clear()
    whole.decrypt(sealed, back, KEY, whole.Expected("p"), jobs=jobs, advance=told.append)
    assert sum(told) == size
    assert back.read_bytes() == LARGE[:size]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["back", "plain", "sealed"]


def test_permissions_follow_the_source(tmp_path: Path) -> None:
    plain, sealed, back = (tmp_path / name for name in ("plain", "sealed", "back"))
    plain.write_bytes(b"x")
    plain.chmod(0o600)
    whole.encrypt(plain, sealed, KEY, "p")
    whole.decrypt(sealed, back, KEY, ANY)
    assert sealed.stat().st_mode & 0o777 == 0o600
    assert back.stat().st_mode & 0o777 == 0o600


def test_a_failed_decryption_leaves_the_old_output_and_nothing_else(tmp_path: Path) -> None:
    sealed, back = tmp_path / "sealed", tmp_path / "back"
    damaged = bytearray(encrypt(LARGE, KEY, "p"))
    damaged[-1] ^= 1
    sealed.write_bytes(damaged)
    back.write_bytes(b"older result")
    for jobs in (1, 2):
        with pytest.raises(TamperedError):
            whole.decrypt(sealed, back, KEY, ANY, jobs=jobs)
        with pytest.raises(TamperedError):
            whole.verify(sealed, KEY, ANY, jobs=jobs)
    assert back.read_bytes() == b"older result"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["back", "sealed"]


def test_a_stream_gets_nothing_of_a_damaged_file(tmp_path: Path) -> None:
    sealed, output = tmp_path / "sealed", tmp_path / "output"
    damaged = bytearray(encrypt(LARGE[:900_000], KEY, "p"))
    damaged[-1] ^= 1
    sealed.write_bytes(damaged)
    with output.open("wb") as stream, pytest.raises(TamperedError):
        whole.decrypt(sealed, stream, KEY, ANY)
    assert output.read_bytes() == b""


def test_a_file_that_somebody_writes_is_not_called_tampered(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(encrypt(LARGE, KEY, "f"))
    with contextlib.closing(EncryptedFile.open_path(path, KEY, None, writable=True)) as writer:

        def write(_: int) -> None:
            writer.write(len(LARGE) - 1, b"!")
            writer.flush()

        reader = open_encrypted(path, KEY)
        with pytest.raises(InUseError, match="another process writes to the file"):
            whole.verify(path, KEY, ANY, advance=write)
        with pytest.raises(InUseError):
            whole.decrypt(path, tmp_path / "out", KEY, ANY, advance=write)
        reader.seek(len(LARGE) - 10)
        with pytest.raises(InUseError):
            reader.read(10)
        whole.verify(path, KEY, ANY)  # at rest
    with pytest.raises(InUseError):
        reader.read(10)  # what it knows of the file is past, though nobody writes any more
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(TamperedError):
        whole.verify(path, KEY, ANY)


def test_a_file_in_the_middle_of_a_write_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "f"
    content = encrypt(LARGE[:9000], KEY, "f")
    path.write_bytes(mark_pending(content[:4096]) + content[4096:])
    with pytest.raises(RecoveryError):
        whole.verify(path, KEY, ANY)
    with path.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        with pytest.raises(InUseError):
            whole.verify(path, KEY, ANY)


def test_a_source_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    plain.write_bytes(LARGE[:2_000_000])

    def cut(_: int) -> None:
        os.truncate(plain, 100_000)

    with pytest.raises(CloisterError, match="became shorter"):
        whole.encrypt(plain, sealed, KEY, "p", advance=cut)
    assert not sealed.exists()


def test_an_interrupted_command_leaves_its_old_output(tmp_path: Path) -> None:
    """Kill the writer at random moments: the target is the old file or the new one."""
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    plain.write_bytes(LARGE)
    old = encrypt(b"old", KEY, "p")
    finished = 0
    for turn in range(25):
        sealed.write_bytes(old)
        child = os.fork()
        if child == 0:
            try:
                whole.encrypt(plain, sealed, KEY, "p", jobs=2)
            finally:
                os._exit(0)
        time.sleep(turn * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        content = decrypt(sealed.read_bytes(), KEY, "p")
        assert content in (b"old", LARGE)
        finished += content == LARGE
    assert finished < 25


# --- Rekey ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [0, 5000, len(LARGE)])
def test_rekey_changes_the_key_and_nothing_else(tmp_path: Path, size: int, version: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(encrypt(LARGE[:size], KEY, "a/f", version=version))
    if os.geteuid() == 0:
        os.chown(path, 4321, 8765)
    path.chmod(0o664)
    os.utime(path, ns=(1_000_000_007, 1_000_000_007))
    before = path.read_bytes()
    assert whole.rekey(path, KEY, NEW_KEY, jobs=2) is True
    after = path.read_bytes()
    assert decrypt(after, NEW_KEY, "a/f") == LARGE[:size]
    with pytest.raises(WrongKeyError):
        decrypt(after, KEY)
    assert after[8] == version
    assert path.stat().st_mode & 0o777 == 0o664
    assert path.stat().st_mtime_ns == 1_000_000_007
    if os.geteuid() == 0:
        assert (path.stat().st_uid, path.stat().st_gid) == (4321, 8765)
    for start in range(4096, len(after), 4096):
        assert after[start : start + 4096] != before[start : start + 4096]
    assert whole.rekey(path, KEY, NEW_KEY) is False
    assert path.read_bytes() == after


def test_rekey_refuses_what_it_cannot_open_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content, error in (
        (encrypt(b"x", b"third key 123456", "f"), WrongKeyError),
        (b"plain", NotEncryptedError),
        (damaged(encrypt(LARGE[:9000], KEY, "f")), TamperedError),
    ):
        path.write_bytes(content)
        with pytest.raises(error):
            whole.rekey(path, KEY, NEW_KEY)
        assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_rekey_does_not_touch_a_file_that_somebody_writes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with_writer = EncryptedFile.create_path(path, KEY, "f")
    with pytest.raises(InUseError):
        whole.rekey(path, KEY, NEW_KEY)
    with_writer.close()


def test_a_killed_rekey_is_finished_by_the_next(tmp_path: Path) -> None:
    paths = [tmp_path / f"f{number}" for number in range(4)]
    contents = [LARGE[: 3_000_000 + number] for number in range(4)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(encrypt(content, KEY, path.name))
    for turn in range(8):
        child = os.fork()
        if child == 0:
            try:
                for path in paths:
                    whole.rekey(path, KEY, NEW_KEY)
            finally:
                os._exit(0)
        time.sleep(turn * 0.004)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for path, content in zip(paths, contents, strict=True):
            found = []
            for key in (KEY, NEW_KEY):
                try:
                    found.append(decrypt(path.read_bytes(), key, path.name))
                except WrongKeyError:
                    continue
            assert found == [content]
    for path, content in zip(paths, contents, strict=True):
        whole.rekey(path, KEY, NEW_KEY)
        assert decrypt(path.read_bytes(), NEW_KEY, path.name) == content
    whole.remove_leftovers(paths)
    assert sorted(tmp_path.iterdir()) == paths  # what the killed ones left is gone


# --- Trees ------------------------------------------------------------------------------------


def test_which_file_becomes_which(tmp_path: Path) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    (source / "sub").mkdir(parents=True)
    other.mkdir()
    for path in (source / "a", source / "sub" / "b", other / "c", tmp_path / "d"):
        path.write_bytes(b"x")
    target = tmp_path / "target"

    def shown(*sources: Path) -> set[tuple[str, str, str]]:
        plan = trees.pair(sources, target)
        assert not plan.skipped
        assert not plan.failed
        return {
            (str(p.source.relative_to(tmp_path)), str(p.target.relative_to(tmp_path)), p.relative)
            for p in plan.pairs
        }

    tree = {("source/a", "target/a", "a"), ("source/sub/b", "target/sub/b", "sub/b")}
    assert shown(tmp_path / "d") == {("d", "target", "d")}
    assert shown(source) == tree
    target.mkdir()
    assert shown(tmp_path / "d") == {("d", "target/d", "d")}
    assert shown(source) == tree
    assert shown(source, other, tmp_path / "d") == {
        ("source/a", "target/source/a", "a"),
        ("source/sub/b", "target/source/sub/b", "sub/b"),
        ("other/c", "target/other/c", "c"),
        ("d", "target/d", "d"),
    }


def test_pairs_that_would_destroy_something_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same").write_bytes(b"x")
    single = tmp_path / "one" / "same"
    for sources, target, said in (
        ([tmp_path / "none"], tmp_path / "t", "no such file"),
        ([tmp_path / "one"], tmp_path / "one", "into itself"),
        ([tmp_path / "one"], tmp_path / "one" / "sub", "into itself"),
        ([single, tmp_path / "two" / "same"], tmp_path / "t", "would become it"),
        ([single], single, "same file"),
        ([tmp_path / "one"], single, "is a file"),
    ):
        with pytest.raises(InputError, match=said):
            trees.pair(sources, target)


def test_a_walk_leaves_out_what_is_nobodys_content(tmp_path: Path) -> None:
    for name in ("a", "a.gramine.recovery", ".a.0123456789ab.tmp", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = trees.find([tmp_path])
    assert [relative for _, relative in found.files] == [".hidden", "a", "link"]
    assert {path.name for path, _ in found.skipped} == {"pipe", "loop", "dangling"}


@pytest.mark.parametrize("jobs", [1, 3])
def test_one_bad_file_does_not_stop_the_others(tmp_path: Path, jobs: int) -> None:
    paths = [tmp_path / f"f{number}" for number in range(30)]
    for path in paths:
        path.write_bytes(encrypt(path.name.encode(), KEY, path.name))
    paths[7].write_bytes(b"plain")
    paths[20].unlink()
    paths[25].write_bytes(damaged(encrypt(LARGE, KEY, paths[25].name)))
    told: list[int] = []
    answers: list[object] = [None] * len(paths)
    for index, answer in trees.run(
        paths,
        lambda index, jobs, advance: whole.verify(
            paths[index], KEY, whole.Expected(paths[index].name), jobs=jobs, advance=advance
        ),
        jobs=jobs,
        advance=told.append,
    ):
        answers[index] = answer
    bad = {index: type(answer) for index, answer in enumerate(answers) if answer is not None}
    assert bad == {7: NotEncryptedError, 20: FileNotFoundError, 25: TamperedError}
    assert sum(told) > len(LARGE) // 2


# --- Workers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_work_is_done_once_and_errors_come_back_whole(jobs: int) -> None:
    def work(item: int) -> object:
        if item == 3:
            raise TamperedError("node 3", hint="look")
        if item == 4:
            raise FileNotFoundError(2, "No such file", "name")
        return item * item if item % 2 else bytes(item) * 70_000

    answers = dict(forked_map(work, range(12), jobs))
    assert sorted(answers) == list(range(12))
    error = answers.pop(3)
    assert isinstance(error, TamperedError)
    assert (error.message, error.hint) == ("node 3", "look")
    missing = answers.pop(4)
    assert isinstance(missing, FileNotFoundError)
    assert missing.filename == "name"
    for item, answer in answers.items():
        assert answer == (item * item if item % 2 else bytes(item) * 70_000)


def test_a_worker_that_dies_is_an_error_and_none_is_left_behind() -> None:
    def work(item: int) -> int:
        if item == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()

    pids: list[int] = []
    with pytest.raises(CloisterError, match="worker process"):
        for _, pid in forked_map(work, range(50), 2):
            assert isinstance(pid, int)
            pids.append(pid)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_is_stopped_removes_what_it_began(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(LARGE)

    def work(item: int) -> None:
        if item == 0:
            raise CloisterError("stop")
        for _ in range(100):
            whole.encrypt(plain, tmp_path / "sealed", KEY, "p")

    for _, answer in forked_map(work, range(2), 2):
        assert isinstance(answer, CloisterError)
        break
    leftovers = {entry.name for entry in tmp_path.iterdir()} - {"plain", "sealed"}
    assert not leftovers


def test_a_worker_that_is_stopped_at_its_start_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Python does after a fork swallows exceptions, and so the one of an interrupt."""
    fork = os.fork
    children: list[int] = []

    def slow_fork() -> int:
        children.append(fork())
        if children[-1] == 0 and len(children) == 2:
            with contextlib.suppress(KeyboardInterrupt):
                while not signal.sigpending():
                    time.sleep(0.01)
        return children[-1]

    def work(item: int) -> None:
        if item == 0:
            raise CloisterError("stop")
        (tmp_path / "begun").touch()

    monkeypatch.setattr(os, "fork", slow_fork)
    for _, answer in forked_map(work, range(2), 2):
        assert isinstance(answer, CloisterError)
        break
    assert not (tmp_path / "begun").exists()


@given(st.integers(0, 10**12))
def test_parts_cover_the_content_once(size: int) -> None:
    size %= 3 * 10**9
    position = min(size, 3072)
    for part in bulk.parts(size):
        assert part.start == position
        position = min(size, position + part.runs * bulk.RUN_SIZE)
    assert position == size


# --- Paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "embedded"),
    [
        ("x", "x"),
        ("./x", "x"),
        ("a//b/./c", "a/b/c"),
        ("a/../b", "b"),
        ("../b", "../b"),
        ("/a//b/", "/a/b"),
        ("//a", "/a"),
        ("/../a", "/a"),
    ],
)
def test_paths_are_normalised_by_their_text(typed: str, embedded: str) -> None:
    assert normalise(typed) == embedded
    assert normalise(embedded) == embedded


def test_endings_are_compared_part_by_part() -> None:
    assert same_name("encrypted/sub/a", "sub/a")
    assert same_name("a", "a")
    assert not same_name("encrypted/ba", "a")
    assert not same_name("a", "sub/a")
    assert holds_content("a.recovery")
    assert not holds_content("a.gramine.recovery")


def test_an_expected_path_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(encrypt(b"x", KEY, "enc/f"))
    whole.verify(path, KEY, whole.Expected.of("f", None, any_path=False))
    whole.verify(path, KEY, whole.Expected.of("g", None, any_path=True))
    whole.verify(path, KEY, whole.Expected.of("g", "./enc//f", any_path=False))
    for expected in (
        whole.Expected.of("g", None, any_path=False),
        whole.Expected.of("f", "f", any_path=False),
    ):
        with pytest.raises(RenamedError, match="found 'enc/f'"):
            whole.verify(path, KEY, expected)
