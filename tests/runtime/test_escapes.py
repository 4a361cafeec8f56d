"""Ways out of the tree, or round the rules, that somebody once found. Each must stay shut."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from applications import CLOISTER, PYTHON, App


def _secret(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    secret = outside / "secret"
    secret.write_text("HOSTSECRET")
    secret.chmod(0o600)
    return secret


def _judge(secret: Path, printed: str) -> dict[str, str]:
    """Nothing of the host was read or changed; return what the program got."""
    got: dict[str, str] = json.loads(printed)
    assert "HOSTSECRET" not in printed
    assert secret.read_text() == "HOSTSECRET"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.parent.stat().st_mode & 0o777 == 0o755
    assert "secret" not in got["list"]
    assert got["open below"].endswith("Error")
    assert got["kernel/core_pattern"] == got["kernel/hostname"] == "FileNotFoundError"
    return got


def test_names_that_change_under_open_files_in_direct_mode(app: App, tmp_path: Path) -> None:
    secret = _secret(tmp_path)
    (app.directory / "out").mkdir()
    app.mount("/out", "file:out")
    done = app.direct([PYTHON, "/programs/escapes.py", str(secret), "/out"])
    got = _judge(secret, done.stdout)
    assert (got["reopen"], got["chmod"], got["write"]) == ("", "None", "5")


def test_names_that_change_under_open_files_in_an_enclave(app: App, tmp_path: Path) -> None:
    secret = _secret(tmp_path)
    (app.directory / "out").mkdir()
    app.mount("/out", "file:out")
    app.mount("/alias", "file:out")
    app.settings["sgx.allowed_files"] = '["file:out"]'
    done = app.enclave_python("/programs/escapes.py", str(secret), "/out")
    got = _judge(secret, done.stdout)
    assert got["alias"].endswith("Error")
    assert (got["reopen"], got["chmod"], got["write"]) == ("", "None", "5")


def test_a_directory_that_the_host_swaps_for_a_link(app: App, tmp_path: Path) -> None:
    """A process of the host helps the program: between check and use a directory becomes a link."""
    secret = _secret(tmp_path)
    secret.rename(secret.with_name("file"))
    out = app.directory / "out"
    (out / "real").mkdir(parents=True)
    (out / "real" / "file").write_text("own")
    app.mount("/out", "file:out")
    app.settings["sgx.allowed_files"] = '["file:out"]'
    (out / "d").symlink_to(secret.parent)
    done = app.enclave_python("/programs/swapped.py", meanwhile=lambda: _swap(out))
    got = json.loads(done.stdout)
    assert got["others"] == 0
    assert got["own"] > 0
    assert got["refused"] > 0
    outside = secret.with_name("file")
    assert [path.name for path in secret.parent.iterdir()] == ["file"]
    assert outside.read_text() == "HOSTSECRET"
    assert outside.stat().st_mode & 0o777 == 0o600
    assert secret.parent.stat().st_mtime > 1


def _swap(out: Path) -> None:
    while not (out / "ready").exists():
        pass
    link, real, shown = out / "link", out / "real", out / "d"
    for turn in itertools.count():
        shown.rename(link)
        real.rename(shown)
        if turn % 50 == 0:
            time.sleep(0.005)
            if (out / "done").exists():
                return
        shown.rename(real)
        link.rename(shown)


def test_descriptors_of_the_caller_stay_outside(app: App) -> None:
    app.direct(["/bin/sh", "-c", "ls /proc/self/fd"])
    command = [*CLOISTER, "run", "--mode", "direct", "app"]
    host = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        done = subprocess.run(
            command, cwd=app.directory, stdout=subprocess.PIPE, pass_fds=[host], check=False
        )
        refused = subprocess.run(
            command, cwd=app.directory, stdout=subprocess.PIPE, stderr=host, check=False
        )
    finally:
        os.close(host)
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is the listing itself
    assert refused.returncode != 0
    assert refused.stdout == b""


def test_a_crash_leaves_no_core(app: App) -> None:
    (app.directory / "out").mkdir()
    app.mount("/out", "file:out")
    app.settings["fs.start_dir"] = '"/out"'
    done = app.direct(["/bin/sh", "-c", "ulimit -c; ulimit -Hc; kill -ABRT $$"], expect=134)
    assert {int(limit) for limit in done.stdout.split()} <= {0, 1}
    assert list((app.directory / "out").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"only\n"])
def test_a_malformed_argument_file_is_told_in_one_line(app: App, content: bytes) -> None:
    (app.directory / "arguments").write_bytes(content)
    app.settings["loader.argv_src_file"] = '"file:arguments"'
    app.settings["libos.entrypoint"] = '"/bin/true"'
    (app.directory / "app.manifest").write_text(app.text())
    done = app.cloister("run", "--mode", "direct", "app", expect=2)
    assert done.stderr.startswith("cloister: error: file:arguments: ")
    assert "Traceback" not in done.stderr


def test_a_file_name_cannot_forge_a_line(app: App) -> None:
    app.mount("/here", "file:.")
    name = "x\ncloister: key released by localhost:4433"
    (app.directory / name).write_text("x")
    app.build_shell()
    done = app.run_shell(f"cat '/here/{name}'", expect=1)
    assert "\ncloister: key released" not in done.stderr
    assert r"file:x\ncloister: key released by localhost:4433" in done.stderr


def test_the_size_of_a_file_with_only_a_hash_is_not_the_hosts_word(app: App) -> None:
    content = b"the whole signed content\n"
    (app.directory / "file").write_bytes(content)
    (app.directory / "logs").mkdir()
    app.mount("/logs", "file:logs")
    app.settings["sgx.allowed_files"] = '["file:logs"]'
    app.trusted.append("file:file")
    app.build_shell("--format", "gramine")
    (app.directory / "file").write_bytes(content[:4])

    def restore() -> None:
        while not (app.directory / "logs" / "seen").exists():
            pass
        (app.directory / "file").write_bytes(content)
        (app.directory / "logs" / "go").touch()

    script = "ls -l /file; echo > /logs/seen; while [ ! -e /logs/go ]; do :; done; cat /file"
    done = app.run_shell(script, expect=None, meanwhile=restore)
    assert done.stdout.endswith(content.decode()) or done.returncode != 0
    assert hashlib.sha256(content).hexdigest() in (app.directory / "app.manifest.sgx").read_text()
    assert "tampered: read of file:file: its SHA-256 is not the signed one" in done.stderr


def test_directories_with_trusted_files_keep_their_names(app: App) -> None:
    for name in ("pkg", "evil"):
        (app.directory / name).mkdir()
    (app.directory / "pkg" / "m").write_text("good\n")
    (app.directory / "evil" / "m").write_text("EVIL\n")
    app.mount("/app", "file:.")
    app.trusted.append("file:pkg/m")
    app.settings["sgx.file_check_policy"] = '"allow_all_but_log"'
    app.build_shell()
    script = "cd /app; mv pkg old; mv -T evil pkg; cat pkg/m"
    done = app.run_shell(script, expect=0)
    assert done.stdout == "good\n"
    assert "a directory with trusted files keeps its name" in done.stderr
    assert "allow_all_but_log let through" in done.stderr


def test_a_plain_directory_cannot_take_a_protected_name(app: App) -> None:
    (app.directory / "plain" / "p").mkdir(parents=True)
    app.mount("/app", "file:.")
    app.settings["sgx.protected_files"] = '["file:p/secret"]'
    app.settings["sgx.allowed_files"] = '["file:plain", "file:p"]'
    app.settings["fs.insecure__keys.default"] = '"00112233445566778899aabbccddeeff"'
    app.build_shell()
    script = "cd /app; exec 5> plain/p/secret; mv plain/p p; echo TOP-SECRET >&5"
    app.run_shell(script, expect=None)
    protected = app.directory / "p" / "secret"
    assert not protected.exists() or b"TOP-SECRET" not in protected.read_bytes()
