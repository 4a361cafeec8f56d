"""Renaming directories of encrypted files: all are bound to their new paths, or nothing moves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from applications import CLOISTER, KEY, PYTHON, App
from cloister.encrypted.file import EncryptedFile

RENAME = """\
import errno, os
os.chdir("/secret")
open("old/a", "w").write("a\\n")
try:
    os.rename("old", "new")
except OSError as error:
    print(errno.errorcode[error.errno], *sorted(os.listdir("old")))
"""


@pytest.fixture
def secret(app: App) -> App:
    """An application with an encrypted directory."""
    (app.directory / "secret").mkdir()
    app.mount("/secret", "file:secret", "encrypted")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    return app


def content(app: App, path: str) -> bytes:
    """Read a file that must be bound to where it lies."""
    file = EncryptedFile.open_path(app.directory / path, bytes.fromhex(KEY), path, writable=False)
    try:
        return file.read(0, file.size)
    finally:
        file.close()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_files_are_bound_to_their_new_paths(secret: App) -> None:
    script = """
set -e
cd /secret
mkdir -p old/deep/er target
echo one > old/one; echo two > old/deep/two; mkfifo old/fifo; : > old/deep/er/empty
chmod 750 old/deep
exec 5>> old/one; echo more >&5
mv -T old target
echo still >&5
ls -R target; cat target/one target/deep/two; stat -c %a target/deep
"""
    done = secret.direct(["/bin/sh", "-c", script])
    assert done.stdout.split() == [
        "target:", "deep", "fifo", "one", "target/deep:", "er", "two", "target/deep/er:", "empty",
        "one", "more", "still", "two", "750",
    ]  # fmt: skip
    assert content(secret, "secret/target/one") == b"one\nmore\nstill\n"
    assert content(secret, "secret/target/deep/two") == b"two\n"
    assert content(secret, "secret/target/deep/er/empty") == b""
    assert names(secret.directory / "secret") == ["target"]


def test_a_file_that_does_not_open_keeps_all_in_place(secret: App) -> None:
    (secret.directory / "secret" / "old").mkdir()
    (secret.directory / "secret" / "old" / "b").write_text("not encrypted")
    script = "cd /secret; echo a > old/a; echo c > old/c; mv old new || ls old"
    done = secret.direct(["/bin/sh", "-c", script])
    assert done.stdout.split() == ["a", "b", "c"]
    assert "not an encrypted file" in done.stderr
    assert content(secret, "secret/old/a") == b"a\n"
    assert not (secret.directory / "secret" / "new").exists()


def test_a_link_of_the_hosts_keeps_all_in_place(secret: App) -> None:
    old = secret.directory / "secret" / "old"
    (old / "real").mkdir(parents=True)
    (old / "link").symlink_to("real")
    done = secret.direct([PYTHON, "-c", RENAME])
    assert done.stdout.split() == ["EXDEV", "a", "link", "real"]
    assert content(secret, "secret/old/a") == b"a\n"


def test_a_run_killed_in_the_middle_loses_no_file(secret: App) -> None:
    numbers = [f"{n:03}" for n in range(120)]
    script = (
        "cd /secret; mkdir old; for n in $(seq -f %03g 0 119); do echo $n > old/$n; done;"
        "echo ready; read line; mv old new; echo moved; read line"
    )
    secret.direct(["/bin/sh", "-c", "true"])
    secret.settings["loader.argv"] = f'["/bin/sh", "-c", "{script}"]'
    secret.settings["loader.env.PATH"] = '"/bin:/usr/bin"'
    (secret.directory / "app.manifest").write_text(secret.text())
    process = subprocess.Popen(
        [*CLOISTER, "run", "--mode", "direct", "app"],
        cwd=secret.directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    new = secret.directory / "secret" / "new"
    deadline = time.monotonic() + 20
    while not (new.is_dir() and len(names(new)) > 30):
        assert time.monotonic() < deadline
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    found = {}
    for directory in ("old", "new"):
        for path in (secret.directory / "secret").glob(f"{directory}/???"):
            found[path.name] = content(secret, f"secret/{directory}/{path.name}")
    assert found == {name: f"{name}\n".encode() for name in numbers}


def test_a_nameless_file_gets_its_name_whole(secret: App) -> None:
    code = (
        "import os\n"
        "f = os.open('/secret', os.O_RDWR | os.O_TMPFILE, 0o640)\n"
        "os.write(f, b'x' * 100000)\n"
        "print(os.listdir('/secret'), os.fstat(f).st_nlink)\n"
        "os.link(f'/proc/self/fd/{f}', '/secret/named', src_dir_fd=os.open('/', 0),"
        " follow_symlinks=True)\n"
        "os.pwrite(f, b'yy', 5000); os.fsync(f)\n"
        "print(os.stat('/secret/named').st_size, os.stat('/secret/named').st_nlink)\n"
    )
    done = secret.direct([PYTHON, "-c", code])
    assert done.stdout == "[] 0\n100000 1\n"
    assert content(secret, "secret/named") == b"x" * 5000 + b"yy" + b"x" * 94998
    assert names(secret.directory / "secret") == ["named"]


def test_times_last_and_reading_leaves_them(secret: App) -> None:
    script = """
cd /secret
echo text > file; touch -d '2001-02-03 04:05:06 UTC' file; cat file > /dev/null
mv file other; stat -c '%X %Y' other
exec 5>> other; echo more >&5; touch -d '2001-02-03 04:05:06 UTC' other; exec 5>&-
stat -c '%Y' other
"""
    done = secret.direct(["/bin/sh", "-c", script])
    assert done.stdout.split() == ["981173106"] * 3
    assert (secret.directory / "secret" / "other").stat().st_mtime == 981173106


def test_a_second_name_is_refused_with_the_reason(secret: App) -> None:
    (secret.directory / "plain").mkdir()
    (secret.directory / "plain" / "p").write_text("p")
    secret.mount("/plain", "file:plain")
    program = (
        "import os\n"
        "open('/secret/a', 'w').write('a')\n"
        "for old, new in (('/secret/a', '/secret/b'), ('/secret/a', '/plain/b'),"
        " ('/plain/p', '/secret/p')):\n"
        "    try:\n"
        "        os.link(old, new)\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
    )
    done = secret.direct([PYTHON, "-c", program])
    assert done.stdout.splitlines() == ["Operation not permitted"] * 3
    assert done.stderr.count("an encrypted file is bound to one path") == 3
