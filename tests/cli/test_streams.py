"""What a command does when its reader has left, or when it is interrupted early."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from applications import CLOISTER


def reader_left() -> int:
    """Return the writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("command", [["doctor"], ["--help"], ["run", "--help"], ["demo", "--help"]])
def test_a_reader_that_left_is_no_failure(command: list[str]) -> None:
    writing = reader_left()
    done = subprocess.run(
        [*CLOISTER, *command], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_while_the_command_line_is_loaded(tmp_path: Path) -> None:
    """A module that is interrupted while it is loaded stands in for all that are loaded."""
    (tmp_path / "click.py").write_text("import os; os.kill(os.getpid(), 2); print('went on')")
    done = subprocess.run(
        [*CLOISTER, "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
