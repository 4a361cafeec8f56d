"""Trusted files that are read again and again are kept in memory, verified, for root."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from applications import CLOISTER, PROGRAMS, PYTHON, App
from cloister.manifest.index import CHUNK_SIZE
from cloister.runtime.foresight import Record, Trail

SIZE = (6 << 20) + 123
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
TWICE = "cat /files/large > /dev/null; cat /files/large | wc -c; echo ready; "


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


only_root = pytest.mark.skipif(
    os.geteuid() != 0 or kernel() < (6, 9), reason="files behind files need root and Linux 6.9"
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
    with app.start_shell(script) as process:
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
        try:
            status = path.stat()
        except FileNotFoundError:  # closed meanwhile
            continue
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
def test_files_of_one_size_have_a_copy_each(app: App) -> None:
    """Unless they are the same."""
    (app.directory / "files").mkdir()
    for name in ("a", "b", "c"):
        (app.directory / "files" / name).write_bytes(name.replace("c", "a").encode() * SIZE)
    app.mount("/files", "file:files")
    app.trusted.append("file:files/")
    app.build_shell()
    script = "for n in a b c; do cat /files/$n >/dev/null; head -c 1 /files/$n; done; echo; read x"
    for kept in (0, 2):
        with running(app, script) as process:
            assert line(process) == "aba\n"
            assert len(copies(process)) == kept


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
    script = TWICE + f"read x; od -A d -t x1 -j {SIZE - 11} /files/large; read x"
    original = (reader.directory / "files" / "large").read_bytes()
    reader.run_shell(script, expect=None)
    with running(reader, script) as process:
        assert (line(process), line(process)) == (f"{SIZE}\n", "ready\n")
        (reader.directory / "files" / "large").write_bytes(b"short")
        assert [copy.read_bytes() for copy in copies(process)] == [original]
        go_on(process)
        assert line(process).split()[1:] == [f"{byte:02x}" for byte in original[-11:]]
        assert line(process) == f"{SIZE:07}\n"


@only_root
@pytest.mark.parametrize("limit", [SIZE - 100, SIZE - 70_000, 0])
def test_a_copy_that_is_cut_short_is_not_used(reader: App, limit: int) -> None:
    """As by a full memory: the file is served as ever."""
    done = subprocess.run(
        [*CLOISTER, "run", "app", "-c", TWICE],
        cwd=reader.directory,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.stdout == f"{SIZE}\nready\n"
    assert "cloister: failed" not in done.stderr


@only_root
@pytest.mark.skipif(
    not os.access(DROP_CACHES, os.W_OK), reason="the kernel's caches stay as they are"
)
def test_a_node_that_the_kernel_forgot_finds_the_same_copy(reader: App) -> None:
    script = TWICE + "for n in 1 2 3; do read x; cat /files/large | wc -c; done; read x"
    reader.run_shell(script, expect=None)
    with running(reader, script) as process:
        assert (line(process), line(process)) == (f"{SIZE}\n", "ready\n")
        for _ in range(3):
            DROP_CACHES.write_text("2")
            go_on(process)
            assert line(process) == f"{SIZE}\n"
        assert len(copies(process)) == 1


@only_root
def test_only_whole_files_are_kept(reader: App) -> None:
    script = "for n in 1 2 3; do head -c 4000000 /files/large | wc -c; done; read x"
    reader.run_shell(script, expect=None)
    with running(reader, script) as process:
        assert [line(process) for _ in range(3)] == ["4000000\n"] * 3
        assert copies(process) == []


@only_root
def test_a_record_is_not_outdated_by_what_the_kernel_reads(reader: App) -> None:
    """Nearly all is read past the record; what is new is little of the whole."""
    (reader.directory / "files" / "small").write_bytes(bytes(300_000))
    reader.trusted.append("file:files/small")
    reader.build_shell()
    script = TWICE + "read name; test -z $name || cat $name | wc -c; read x"
    reader.run_shell(script, expect=None)
    for _ in range(3):
        with running(reader, script) as process:
            assert (line(process), line(process)) == (f"{SIZE}\n", "ready\n")
            assert process.stdin is not None
            process.stdin.write("/files/small\n")
            process.stdin.flush()
            assert line(process) == "300000\n"
            assert len(copies(process)) == 1


@only_root
def test_below_a_mount_of_the_kernel_too(app: App) -> None:
    (app.directory / "files").mkdir()
    (app.directory / "files" / "large").write_bytes(bytes(SIZE))
    app.mount("/scratch", kind="tmpfs")
    app.mount("/scratch/files", "file:files")
    app.trusted.append("file:files/large")
    app.build_shell()
    script = "for n in 1 2; do cat /scratch/files/large | wc -c; done; read x"
    app.run_shell(script, expect=None)
    with running(app, script) as process:
        assert [line(process) for _ in range(2)] == [f"{SIZE}\n"] * 2
        assert len(copies(process)) == 1


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


@only_root
def test_every_way_to_read_is_as_natively(app: App) -> None:
    (app.directory / "files").mkdir()
    (app.directory / "out").mkdir()
    large = app.directory / "files" / "large"
    large.write_bytes(bytes(n * n % 251 for n in range(SIZE)))
    native = subprocess.run(
        [PYTHON, str(PROGRAMS / "large_file.py"), str(large), str(app.directory / "scratch")],
        input="everything\n\n",
        capture_output=True,
        text=True,
        check=True,
    )
    app.mount("/files", "file:files")
    app.mount("/out", "file:out")
    app.settings["sgx.allowed_files"] = '["file:out/"]'
    app.trusted.append("file:files/large")
    # The first run reads the file twice, and no more.
    app.enclave_python("/programs/large_file.py", "/files/large", "/out/scratch")
    with subprocess.Popen(
        [*CLOISTER, "run", "app"],
        cwd=app.directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write("everything\n")
        process.stdin.flush()
        assert json.loads(line(process)) == json.loads(native.stdout)
        assert len(copies(process)) == 1
        process.communicate("\n", timeout=60)


def read(trail: Trail, node: int, spans: list[tuple[int, int]], opened: int) -> None:
    for _ in range(opened):
        trail.opened(node, f"uri/{node}")
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
    assert Record(tmp_path, b"k" * 16, ["a"]).reread == {"uri/1": 2 * large}
    assert Record(tmp_path, b"x" * 16, ["a"]).reread == {}
