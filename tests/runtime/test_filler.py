"""Content of trusted files is given to the kernel ahead, by a process that verifies it itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from applications import CLOISTER, App
from processes import children, descendants, is_gone, sockets

SIZE = 700_123
OTHER = 5 << 20
"""Read, too: a run that reads less is not remembered. As it is large, it is not ordered."""

SCRIPT = (
    "echo ready; read x; cat /files/other > /dev/null; "
    "for n in a b; do cat /files/$n/file || echo $n is refused; echo; done; "
    "wc -c < /files/a/file"
)


def content(letter: str, size: int = SIZE) -> bytes:
    return letter.encode() * size


@pytest.fixture
def files(app: App) -> Path:
    """Two trusted files of one size, and a large one, in an enclave."""
    directory = app.directory / "files"
    for name in ("a", "b"):
        (directory / name).mkdir(parents=True)
        (directory / name / "file").write_bytes(content(name))
    (directory / "other").write_bytes(bytes(OTHER))
    app.mount("/files", "file:files")
    app.trusted.append("file:files/")
    app.build_shell()
    return directory


def until_the_filler_is_done(runtime: int) -> None:
    """It ends when all that was ordered is done, and no other child does before the program."""
    deadline = time.monotonic() + 30
    while not any(map(is_gone, children(runtime))):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def waiting(app: App, script: str = SCRIPT) -> Iterator[subprocess.Popen[str]]:
    """A run that the program holds up until it gets a line."""
    with app.start_shell(script) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        yield run


def go_on(run: subprocess.Popen[str]) -> tuple[list[str], str]:
    printed, errors = run.communicate("\n", timeout=60)
    return printed.split("\n")[:-1], errors


@pytest.fixture
def learnt(app: App, files: Path) -> Path:
    """The files, after a run that read them."""
    with waiting(app) as run:
        assert go_on(run)[0] == [content("a").decode(), content("b").decode(), str(SIZE)]
    return files


def test_the_kernel_has_what_the_last_run_read(app: App, learnt: Path) -> None:
    """It reads nothing from the host any more, where other bytes are now."""
    with waiting(app) as run:
        until_the_filler_is_done(run.pid)
        for name in ("a", "b"):
            (learnt / name / "file").write_bytes(bytes(SIZE))
        printed, errors = go_on(run)
    assert printed == [content("a").decode(), content("b").decode(), str(SIZE)]
    assert "signed" not in errors


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (bytes(SIZE), "bytes 0 to 65535 are not those that were signed"),
        (content("a", SIZE + 1), f"has {SIZE + 1} bytes, but the signed file has {SIZE}"),
        (content("a", SIZE - 1), f"has {SIZE - 1} bytes, but the signed file has {SIZE}"),
    ],
)
def test_what_is_not_as_signed_is_not_given(
    app: App, learnt: Path, other: bytes, told: str
) -> None:
    """The program is refused when it reads, and the reason is told once."""
    (learnt / "a" / "file").write_bytes(other)
    with waiting(app) as run:
        until_the_filler_is_done(run.pid)
        printed, errors = go_on(run)
    assert printed[0] == "a is refused"
    assert content("b").decode() in printed
    assert errors.count(told) == 1


def test_a_part_that_is_not_as_signed_is_not_given(app: App, learnt: Path) -> None:
    other = bytearray(content("a"))
    other[300_000] ^= 1
    (learnt / "a" / "file").write_bytes(other)
    with waiting(app) as run:
        until_the_filler_is_done(run.pid)
        printed, errors = go_on(run)
    assert printed[0].removesuffix("a is refused").strip("a") == ""
    assert len(printed[0]) < 400_000
    assert errors.count("bytes 262144 to 327679 are not those that were signed") == 1


def test_a_file_never_gets_the_content_of_another(app: App, learnt: Path) -> None:
    """The host lets one directory's name lead to the other: what is looked up is what is there."""
    (learnt / "a").rename(learnt / "was-a")
    (learnt / "a").symlink_to("b")
    with waiting(app) as run:
        until_the_filler_is_done(run.pid)
        printed, _ = go_on(run)
    assert content("b").decode() in printed
    assert content("a").decode() not in printed


def test_a_file_that_is_there_twice(app: App, files: Path) -> None:
    app.mount("/again", "file:files")
    app.build_shell()
    names = " ".join(
        f"/{place}/{name}" for place in ("files", "again") for name in ("a/file", "other")
    )
    script = f"for f in {names} {names}; do cat $f | wc -c; done; cmp /files/a/file /again/a/file"
    for _ in range(3):
        assert app.run_shell(script).stdout == f"{SIZE}\n{OTHER}\n" * 4


def test_without_an_index_the_files_are_read(app: App, files: Path) -> None:
    """A manifest in Gramine's format knows whole files only."""
    app.build_shell("--format", "gramine")
    for _ in range(3):
        with waiting(app) as run:
            printed, _ = go_on(run)
            assert printed == [content("a").decode(), content("b").decode(), str(SIZE)]


def test_inode_numbers_are_those_of_the_last_run(app: App, files: Path) -> None:
    found = {app.run_shell("ls -i /files/a/file; ls -i /files/b/file").stdout for _ in range(2)}
    (both,) = found
    first, second = (line.split()[0] for line in both.splitlines())
    assert first != second


def test_a_run_goes_on_without_its_filler(app: App, learnt: Path) -> None:
    with app.start_shell(SCRIPT) as run:
        os.kill(working_in_the_background(run.pid), signal.SIGKILL)
        printed, errors = go_on(run)
    assert printed == ["ready", content("a").decode(), content("b").decode(), str(SIZE)]
    assert "signed" not in errors


def working_in_the_background(runtime: int) -> int:
    """The child of the runtime that gives way to the others: the filler, from its beginning."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for number in children(runtime):
            with contextlib.suppress(ProcessLookupError):
                if os.sched_getscheduler(number) == os.SCHED_BATCH:
                    return number
    raise AssertionError("there is no filler")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what these processes have open")
def test_it_shares_no_socket_with_the_runtime(app: App, learnt: Path) -> None:
    """Plans with secrets go through those."""
    with app.start_shell(SCRIPT) as run:
        filler = working_in_the_background(run.pid)
        os.kill(filler, signal.SIGSTOP)
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        assert sockets(filler)
        assert not sockets(filler) & sockets(run.pid)
        # The program opens what it was about to give, and does not wait for long.
        printed, _ = go_on(run)
    assert printed == [content("a").decode(), content("b").decode(), str(SIZE)]


def test_nothing_stays_when_the_runtime_is_killed(app: App, files: Path) -> None:
    """Also while the program reads what is just being given: see the module's text."""
    for number in range(40):
        (files / "b" / str(number)).write_bytes(content("c", 1 << 20))
    app.build_shell()
    script = "echo ready; cat /files/b/* /files/other > /dev/null; echo done"
    learn = app.run_shell(script)
    assert learn.stdout == "ready\ndone\n"
    for moment in range(8):
        with subprocess.Popen(
            [*CLOISTER, "run", "app", "-c", script], cwd=app.directory, stdout=subprocess.PIPE
        ) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == b"ready\n"
            forked = descendants(run.pid)
            assert len(forked) > 3
            time.sleep(moment / 100)
            run.kill()
        deadline = time.monotonic() + 10
        while not all(map(is_gone, forked)):
            assert time.monotonic() < deadline, [
                Path(f"/proc/{one}/stat").read_text() for one in forked if not is_gone(one)
            ]
            time.sleep(0.02)
