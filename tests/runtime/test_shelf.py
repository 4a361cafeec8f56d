"""Trusted files that are read again and again are kept in memory, verified, for root."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from applications import CLOISTER, PROGRAMS, PYTHON, App
from cloister.manifest.index import CHUNK_SIZE
from cloister.runtime import linux
from cloister.runtime.foresight import Record, Trail

SIZE = (6 << 20) + 123
TWICE = "cat /files/large > /dev/null; cat /files/large | wc -c; echo ready; "


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


only_root = pytest.mark.skipif(
    not linux.is_root_of_the_machine() or kernel() < (6, 9),
    reason="files behind files need root and Linux 6.9",
)


@pytest.fixture
def reader(app: App) -> App:
    """An enclave with a large trusted file that was read twice in an earlier run."""
    (app.directory / "files").mkdir()
    large = app.directory / "files" / "large"
    large.write_bytes(bytes(n * n % 251 for n in range(SIZE)))
    app.mount("/files", "file:files")
    app.trusted.append("file:files/large")
    app.build_shell()
    assert app.run_shell(TWICE).stdout == f"{SIZE}\nready\n"
    return app


@contextmanager
def running(app: App, script: str) -> Iterator[subprocess.Popen[str]]:
    """A run that goes on with each line, and ends with its input."""
    with subprocess.Popen(
        [*CLOISTER, "run", "app", "-c", script],
        cwd=app.directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.communicate(timeout=60)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def copies(process: subprocess.Popen[str]) -> list[Path]:
    """The nameless files of the runtime that are as large as the trusted one."""
    found = []
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and (status.st_nlink, status.st_size) == (0, SIZE):
            found.append(path)
    return found


@only_root
def test_the_kernel_reads_the_copy_without_asking(reader: App) -> None:
    script = TWICE + "read x; head -c 3 /files/large; echo; read x"
    with running(reader, script) as process:
        assert (line(process), line(process)) == (f"{SIZE}\n", "ready\n")
    reader.run_shell(script, expect=1)  # other arguments have a record of their own
    with running(reader, script) as process:
        assert (line(process), line(process)) == (f"{SIZE}\n", "ready\n")
        (copy,) = copies(process)
        assert copy.read_bytes() == (reader.directory / "files" / "large").read_bytes()
        with copy.open("r+b") as stream:  # nobody but root of the machine can
            stream.write(b"abc")
        go_on(process)
        assert line(process) == "abc\n"


@only_root
def test_what_is_kept_was_verified(reader: App) -> None:
    large = reader.directory / "files" / "large"
    content = bytearray(large.read_bytes())
    content[SIZE // 2] ^= 1
    large.write_bytes(content)
    done = reader.run_shell(TWICE)
    at = SIZE // 2 // CHUNK_SIZE * CHUNK_SIZE
    assert int(done.stdout.split()[0]) <= at
    assert f"bytes {at} to {at + CHUNK_SIZE - 1} are not those that were signed" in done.stderr


@only_root
def test_the_host_changes_nothing_of_what_is_kept(reader: App) -> None:
    script = TWICE + "read x; cat /files/large | wc -c; cmp /files/large /files/other; read x"
    original = (reader.directory / "files" / "large").read_bytes()
    reader.run_shell(script, expect=None)
    with running(reader, script) as process:
        assert (line(process), line(process)) == (f"{SIZE}\n", "ready\n")
        (reader.directory / "files" / "large").write_bytes(b"short")
        go_on(process)
        assert line(process) == f"{SIZE}\n"
        assert [copy.read_bytes() for copy in copies(process)] == [original]


@only_root
def test_writing_is_judged_as_ever(reader: App) -> None:
    first, second = (reader.run_shell(TWICE + "echo x >> /files/large", 2) for _ in range(2))
    assert second.stdout == first.stdout == f"{SIZE}\nready\n"
    assert second.stderr == first.stderr
    assert "trusted files are read-only" in second.stderr


def test_a_recorded_run_counts_what_was_read(reader: App) -> None:
    reader.cloister("run", "--record", "run.json", "app", "-c", TWICE)
    record = json.loads((reader.directory / "run.json").read_text())
    (trusted,) = (files for files in record["files"] if files["kind"] == "trusted")
    (large,) = (file for file in trusted["listed"] if file["path"] == "files/large")
    assert large["read"] >= SIZE


def test_every_way_to_read_is_as_natively(app: App) -> None:
    (app.directory / "files").mkdir()
    large = app.directory / "files" / "large"
    large.write_bytes(bytes(n * n % 251 for n in range(SIZE)))
    native = subprocess.run(
        [PYTHON, str(PROGRAMS / "large_file.py"), str(large), str(app.directory / "scratch")],
        capture_output=True,
        text=True,
        check=True,
    )
    app.mount("/files", "file:files")
    app.mount("/out", "file:out")
    (app.directory / "out").mkdir()
    app.settings["sgx.allowed_files"] = '["file:out/"]'
    app.trusted.append("file:files/large")
    app.settings["loader.env.PYTHONDONTWRITEBYTECODE"] = '"1"'
    expected = json.loads(native.stdout)
    done = app.enclave_python("/programs/large_file.py", "/files/large", "/out/scratch")
    assert json.loads(done.stdout) == expected
    again = app.cloister("run", "app")
    assert json.loads(again.stdout) == expected


def read(trail: Trail, node: int, spans: list[tuple[int, int]], opened: int) -> None:
    for _ in range(opened):
        trail.opened(node)
    for first, size in spans:
        trail.read(node, lambda: f"/{node}", first, size)


def test_only_what_is_read_through_and_opened_again_is_worth_a_copy(tmp_path: Path) -> None:
    trail = Trail()
    large = 4 << 20
    read(trail, 1, [(0, large), (large, large)], opened=2)
    read(trail, 2, [(0, large)], opened=1)
    read(trail, 3, [(0, large), (2 * large, large)], opened=3)
    read(trail, 4, [(large, large)], opened=2)
    read(trail, 5, [(0, 4096)], opened=2)
    read(trail, 6, [], opened=2)
    Record(tmp_path, b"k" * 16, ["a"]).learn(trail)
    assert Record(tmp_path, b"k" * 16, ["a"]).reread == ["/1"]
    assert Record(tmp_path, b"x" * 16, ["a"]).reread == []
