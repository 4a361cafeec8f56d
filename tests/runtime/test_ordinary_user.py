"""The same as an ordinary user: with what the kernel permits, and told what is missing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from applications import KEY, App

HELPER = Path(__file__).parent.parent / "as_ordinary_user.py"
NOBODY = 65534


@pytest.fixture
def own(app: App) -> App:
    """An application that belongs to the ordinary user."""
    (app.directory / "secret").mkdir()
    app.mount("/secret", "file:secret", "encrypted")
    app.settings["fs.insecure__keys.default"] = f'"{KEY}"'
    app.direct(["/bin/sh", "-c", "id -u; echo text > /secret/file; cat /secret/file"])
    (app.directory / "secret" / "file").unlink()
    if os.geteuid() == 0:
        for directory in (app.directory, *app.directory.parents[:2]):
            directory.chmod(0o755)
        for path in (app.directory, *app.directory.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    return app


def run(app: App, fuse_mode: str) -> subprocess.CompletedProcess[str]:
    import sys

    command = [sys.executable, "-m", "cloister", "run", "--mode", "direct", "app"]
    if os.geteuid() == 0:
        command = [sys.executable, str(HELPER), fuse_mode, *command]
    return subprocess.run(
        command, cwd=app.directory, capture_output=True, text=True, check=False, timeout=60
    )


def test_it_works_without_any_privilege(own: App) -> None:
    done = run(own, "666")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\ntext\n", "")
    written = own.directory / "secret" / "file"
    assert b"text" not in written.read_bytes()
    if os.geteuid() == 0:
        assert written.stat().st_uid == NOBODY


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take /dev/fuse away for a test")
def test_what_is_missing_is_told_with_the_mend(own: App) -> None:
    done = run(own, "600")
    assert done.returncode == 1
    assert done.stderr == (
        "cloister: error: /dev/fuse: Permission denied\n"
        "hint: as root: modprobe fuse && chmod 666 /dev/fuse\n"
    )
