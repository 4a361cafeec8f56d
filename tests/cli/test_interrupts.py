"""Ctrl-C while files are encrypted: all processes of a terminal's foreground get it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloister.cli.main import run

CLOISTER = [sys.executable, "-m", "cloister"]
FILES = 250
SIZE = 1 << 20


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a key and many files, as working directory."""
    monkeypatch.chdir(tmp_path)
    assert run(["key", "new", "wrap-key"]) == 0
    (tmp_path / "plain").mkdir()
    for number in range(FILES):
        with (tmp_path / "plain" / str(number)).open("wb") as file:
            file.truncate(SIZE)
    return tmp_path


def encrypt_and_interrupt(work: Path, before: str) -> tuple[int, str]:
    """Interrupt ``cloister encrypt`` and its workers in their work."""
    command = [*CLOISTER, "encrypt", "-k", "wrap-key", "-j", "2", "plain", "sealed"]
    with subprocess.Popen(
        ["sh", "-c", f'{before}; exec "$@"', "sh", *command],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        sealed = work / "sealed"
        deadline = time.monotonic() + 30
        while not (sealed.is_dir() and any(sealed.iterdir())):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors.strip()


def test_an_interrupt_leaves_whole_files_only(work: Path) -> None:
    assert encrypt_and_interrupt(work, ":") == (130, "cloister: interrupted")
    left = sorted((work / "sealed").iterdir())
    assert len(left) < FILES
    assert {path.name for path in left} <= {str(number) for number in range(FILES)}
    for path in left:
        assert run(["verify", "-k", "wrap-key", str(path)]) == 0


def test_in_the_background_of_a_script_nobody_is_interrupted(work: Path) -> None:
    """There SIGINT is ignored: the key is meant for the foreground."""
    code, errors = encrypt_and_interrupt(work, "trap '' INT")
    assert code == 0
    assert "interrupted" not in errors
    assert run(["verify", "-k", "wrap-key", "sealed"]) == 0
    assert len(list((work / "sealed").iterdir())) == FILES
