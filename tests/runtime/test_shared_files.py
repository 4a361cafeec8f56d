"""Encrypted files that others have, too: another enclave with the same key, or their owner."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from applications import KEY, PYTHON, App
from cloister.encrypted import encrypt
from cloister.encrypted.file import EncryptedFile
from cloister.errors import InUseError
from evaluating import PROGRAM, Program, repeated, start

WRAP_KEY = bytes.fromhex(KEY)


class Shared:
    """A directory of encrypted files and the programs that have it."""

    def __init__(self, app: App, processes: contextlib.ExitStack) -> None:
        self._app = app
        self._processes = processes
        self.directory = app.directory / "secret"
        self.directory.mkdir()
        app.mount("/secret", "file:secret", "encrypted")
        app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
        # Writes the manifest; what it runs has nothing to say.
        app.direct([PYTHON, "-c", PROGRAM.format("/secret")], input="")

    def program(self) -> Program:
        """Start one more."""
        return start(self._app, self._processes)

    def put(self, name: str, content: bytes) -> None:
        """Put a file there, in place of one that is there, as its owner does."""
        new = self.directory.parent / "new"
        new.write_bytes(encrypt(content, WRAP_KEY, f"secret/{name}"))
        new.rename(self.directory / name)

    def open(self, name: str, *, writable: bool) -> EncryptedFile:
        """Open a file as another enclave does."""
        path = self.directory / name
        return EncryptedFile.open_path(
            path, WRAP_KEY, f"secret/{name}", writable=writable, against_writers=True
        )

    def wait_for(self, name: str) -> None:
        """The kernel tells of the last close a moment after it."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(InUseError):
                return self.open(name, writable=True).close()
            time.sleep(0.01)
        raise TimeoutError(name)

    def change(self, name: str, content: bytes) -> None:
        """Write into a file as another enclave does."""
        self.wait_for(name)
        file = self.open(name, writable=True)
        file.write(0, content)
        file.close()


@pytest.fixture
def shared(app: App) -> Iterator[Shared]:
    """A directory that no program has yet."""
    with contextlib.ExitStack() as processes:
        yield Shared(app, processes)


def test_two_enclaves_read_one_file_at_the_same_time(shared: Shared) -> None:
    shared.put("model", b"weights" * 5000)
    first, second = shared.program(), shared.program()
    for program in (first, second):
        assert program("files.setdefault('f', open('model', 'rb')).read(7)") == "b'weights'"
    for program in (first, second):
        assert program("len(files['f'].read())") == str(7 * 5000 - 7)


def test_who_writes_keeps_others_out_and_who_reads_keeps_writers_out(shared: Shared) -> None:
    shared.put("file", b"content" * 5000)
    program = shared.program()
    assert program("files.setdefault('r', open('file', 'rb', 0)).read(7)") == "b'content'"
    shared.open("file", writable=False).close()
    with pytest.raises(InUseError):
        shared.open("file", writable=True)
    reader = shared.open("file", writable=False)
    assert program("open('file', 'r+b')") == "PermissionError"
    assert program("files['r'].read(7)") == "b'content'"
    reader.close()
    assert program("files.setdefault('w', open('file', 'r+b')).write(b'CONTENT' * 2)") == "14"
    assert program("files['w'].flush(), files['r'].seek(0), files['r'].read(21)") == (
        "(None, 0, b'CONTENTCONTENTcontent')"
    )
    for writable in (False, True):
        with pytest.raises(InUseError):
            shared.open("file", writable=writable)
    assert program("files['w'].close(), files['r'].close()") == "(None, None)"
    shared.wait_for("file")


@pytest.mark.parametrize("size", [10, 5000, 50_000, 100_000])
def test_what_another_puts_in_place_is_seen_whole_when_it_is_opened(
    shared: Shared, size: int
) -> None:
    shared.put("model", b"1" * 50_000)
    program = shared.program()
    assert program("files.setdefault('old', open('model', 'rb')).read() == b'1' * 50000") == "True"
    shared.put("model", b"2" * size)
    assert program("files['old'].seek(0), files['old'].read() == b'1' * 50000") == "(0, True)"
    assert program("files['old'].close()") == "None"
    assert program(f"open('model', 'rb').read() == b'2' * {size}") == "True"
    assert program("os.stat('model').st_size") == str(size)


def test_what_another_writes_into_a_file_is_seen_when_it_is_opened(shared: Shared) -> None:
    shared.put("file", b"1" * 50_000)
    program = shared.program()
    assert program("open('file', 'rb').read() == b'1' * 50000") == "True"
    shared.change("file", b"2" * 50_000)
    assert program("open('file', 'rb').read() == b'2' * 50000") == "True"
    shared.change("file", b"3" * 50_000)
    time.sleep(11)  # until the kernel asks for the attributes of its own accord
    assert program("os.stat('file').st_size") == "50000"
    assert program("open('file', 'rb').read() == b'3' * 50000") == "True"
    assert program("open('file', 'r+b').write(b'3')") == "1"
    shared.change("file", b"4" * 60_000)
    assert program("open('file', 'rb').read() == b'4' * 60000") == "True"


def test_files_that_another_makes_or_removes_are_seen_soon(shared: Shared) -> None:
    program = shared.program()
    assert program("os.listdir(), os.path.exists('new')") == "([], False)"
    shared.put("new", b"text")
    repeated(program, "os.path.exists('new')", "True")
    repeated(program, "os.listdir()", "['new']")
    assert program("open('new', 'rb').read()") == "b'text'"
    (shared.directory / "new").unlink()
    assert program("open('new', 'rb')") == "FileNotFoundError"
    repeated(program, "os.listdir()", "[]")


def test_sizes_that_another_changes_are_seen_soon(shared: Shared) -> None:
    shared.put("file", b"1234")
    program = shared.program()
    assert program("os.stat('file').st_size") == "4"
    shared.put("file", b"12345")
    repeated(program, "os.stat('file').st_size", "5")


@pytest.mark.parametrize("end", ["os.unlink('file')", "os.rename('other', 'file')"])
def test_a_file_opened_from_the_cache_lasts_without_its_name(shared: Shared, end: str) -> None:
    shared.put("file", b"1" * 50_000)
    shared.put("other", b"2")
    program = shared.program()
    assert program("open('file', 'rb').read(5)") == "b'11111'"
    assert program("files.setdefault('f', open('file', 'rb')).tell()") == "0"
    assert program(end) == "None"
    assert program("os.fstat(files['f'].fileno()).st_size") == "50000"
    assert program("files['f'].read() == b'1' * 50000") == "True"


def test_a_file_that_is_damaged_between_two_opens_does_not_open(shared: Shared) -> None:
    shared.put("file", b"1" * 50_000)
    program = shared.program()
    assert program("len(open('file', 'rb').read())") == "50000"
    content = bytearray(Path(shared.directory / "file").read_bytes())
    content[100] ^= 1
    (shared.directory / "file").write_bytes(content)
    assert program("open('file', 'rb')") == "PermissionError"
    shared.put("file", b"mended")
    assert program("open('file', 'rb').read()") == "b'mended'"


def test_a_file_that_is_changed_while_it_is_open_is_never_shown_mixed(shared: Shared) -> None:
    shared.put("file", b"1" * 50_000)
    program = shared.program()
    assert program("open('file', 'rb').read(5)") == "b'11111'"
    assert program("files.setdefault('f', open('file', 'rb', 0)).tell()") == "0"
    # As only somebody does who takes no locks.
    (shared.directory / "file").write_bytes(encrypt(b"2" * 60_000, WRAP_KEY, "secret/file"))
    assert program("os.fstat(files['f'].fileno()).st_size") == "50000"
    assert program("open('file', 'r+b')") == "OSError"
    assert program("os.posix_fadvise(files['f'].fileno(), 0, 0, os.POSIX_FADV_DONTNEED)") == "None"
    assert program("files['f'].read()") == "OSError"
    assert program("files.pop('f').close()") == "None"
    assert program("open('file', 'rb').read() == b'2' * 60000") == "True"


@pytest.mark.parametrize("mode", ["a", "a+"])
def test_what_others_append_to_an_allowed_file_stays(app: App, mode: str) -> None:
    log = app.directory / "secret" / "log"
    log.parent.mkdir()
    app.mount("/secret", "file:secret")
    app.settings["sgx.allowed_files"] = '["file:secret/"]'
    app.direct([PYTHON, "-c", PROGRAM.format("/secret")], input="")
    with contextlib.ExitStack() as processes:
        program, other = start(app, processes), start(app, processes)
        for each in (program, other):
            each(f'files.update(a=open("log", "{mode}"))')
        program('print("one", file=files["a"], flush=True)')
        with log.open("a") as host:
            host.write("a longer line of the host\n")
        other('print("two", file=files["a"], flush=True)')
        program('print("three", file=files["a"], flush=True)')
        expected = "one\na longer line of the host\ntwo\nthree\n"
        assert log.read_text() == expected
        assert program('repr(open("log").read())') == repr(expected)
        if mode == "a+":
            assert program('repr([files["a"].seek(0), files["a"].read()][1])') == repr(expected)


@pytest.mark.parametrize("mode", ["ab", "a+b"])
def test_a_mapping_is_written_to_its_place_though_a_handle_appends(app: App, mode: str) -> None:
    log = app.directory / "secret" / "log"
    log.parent.mkdir()
    log.write_bytes(bytes(8192))
    app.mount("/secret", "file:secret")
    app.settings["sgx.allowed_files"] = '["file:secret/"]'
    app.direct(
        [
            PYTHON,
            "-c",
            f"""\
import mmap
appending = open("/secret/log", "{mode}")
with open("/secret/log", "r+b") as file:
    pages = mmap.mmap(file.fileno(), 0)
pages[:4] = b"here"
appending.write(b"end")
appending.flush()
pages[4096:4101] = b"there"
pages.flush()
""",
        ],
    )
    content = bytearray(8192)
    content[:4], content[4096:4101] = b"here", b"there"
    assert log.read_bytes() == bytes(content) + b"end"


def test_an_allowed_file_that_is_read_and_appended_to_can_be_mapped(app: App) -> None:
    log = app.directory / "secret" / "log"
    log.parent.mkdir()
    log.write_bytes(b"start")
    app.mount("/secret", "file:secret")
    app.settings["sgx.allowed_files"] = '["file:secret/"]'
    done = app.direct(
        [
            PYTHON,
            "-c",
            """\
import mmap
file = open("/secret/log", "a+b", 0)
print(mmap.mmap(file.fileno(), 0)[:])
file.write(b", end")
print(mmap.mmap(file.fileno(), 0)[:])
""",
        ],
    )
    assert done.stdout == "b'start'\nb'start, end'\n"


def test_a_name_that_the_host_took_away_can_be_made_again(shared: Shared) -> None:
    program = shared.program()
    make = "open('made', 'w').write('abc') or 3"
    assert program(make) == "3"
    shared.wait_for("made")
    (shared.directory / "made").unlink()
    assert program(make) == "3"
    shared.wait_for("made")
    (shared.directory / "made").unlink()
    assert program("open('made').read()") == "FileNotFoundError"
    assert program("os.open('made', os.O_WRONLY | os.O_CREAT | os.O_EXCL) > 0") == "True"
    assert program("os.listdir('.')") == "['made']"


def test_what_an_interrupted_write_left_goes_with_its_file(shared: Shared) -> None:
    """As a write that found the disk full; the program does not see it, and it takes up space."""
    shared.put("file", b"content")
    (shared.directory / "file.gramine.recovery").write_bytes(b"left")
    program = shared.program()
    assert program("os.unlink('file')") == "None"
    assert list(shared.directory.iterdir()) == []


def test_a_directory_that_the_host_took_away_is_gone(shared: Shared) -> None:
    program = shared.program()
    assert program("os.mkdir('d') or os.listdir('d')") == "[]"
    (shared.directory / "d").rmdir()
    time.sleep(1.2)
    assert program("os.path.exists('d')") == "False"
    assert program("os.mkdir('d') or os.listdir('.')") == "['d']"
    assert program("open('d/x', 'w').write('1')") == "1"


@pytest.mark.parametrize("mode", [0o444, 0o400, 0o111, 0o000, 0o640])
def test_a_mode_is_what_the_program_made_it(shared: Shared, mode: int) -> None:
    """The host's file stays readable and writable for the runtime, which needs both."""
    program = shared.program()
    assert program("open('a', 'w').write('abc')") == "3"
    shown = "oct(os.stat('a').st_mode & 0o777)"
    assert program(f"os.chmod('a', {mode}) or {shown}") == oct(mode)
    assert (shared.directory / "a").stat().st_mode & 0o777 == mode | 0o600
    can_write = bool(mode & 0o200)
    assert program("open('a', 'a').write('d')") == ("1" if can_write else "PermissionError")
    make = f"os.close(os.open('b', os.O_RDWR | os.O_CREAT, {mode}))"
    assert program(f"{make} or oct(os.stat('b').st_mode & 0o777)") == oct(mode & ~0o022)
    assert program(f"os.fchmod(os.open('c', os.O_CREAT | os.O_RDWR), {mode})") == "None"
    assert program("oct(os.stat('c').st_mode & 0o777)") == oct(mode)
