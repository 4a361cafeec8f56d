"""``cloister completion``: bash really completes, and a Tab loads no command's module."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.cli.main import COMMANDS, run

BIN = Path(sys.executable).parent


class Terminal:
    """An interactive bash that has loaded the script."""

    def __init__(self, directory: Path) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=directory,
            start_new_session=True,
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ "},
        )
        os.close(slave)
        self.type('eval "$(cloister completion bash)"; echo loa""ded\n')
        self.wait("loaded")

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait(self, expected: str, seconds: float = 60) -> str:
        """Read until ``expected`` is on the screen."""
        seen = ""
        end = time.monotonic() + seconds
        while expected not in seen:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            assert ready, f"expected {expected!r} on the terminal, saw {seen!r}"
            seen += os.read(self._master, 4096).decode(errors="replace")
        return seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "wrap-key-of-mine").write_bytes(bytes(16))
    opened = Terminal(tmp_path)
    yield opened
    opened.close()


def test_bash_completes_commands_options_choices_and_files(terminal: Terminal) -> None:
    for typed, completed in (
        ("cloister encr", "cloister encrypt "),
        ("--form", "--format "),
        ("graph", "graphene "),
        ("-k wrap", "wrap-key-of-mine "),
    ):
        terminal.type(typed + "\t")
        terminal.wait(completed)


def test_a_tab_imports_no_command() -> None:
    """Only then is it fast: PyTorch's users have slow disks too."""
    program = (
        "import sys; from cloister.cli.main import run; code = run([]);"
        "print([m for m in sys.modules if m.startswith('cloister.cli.')], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **os.environ,
            "_CLOISTER_COMPLETE": "bash_complete",
            "COMP_WORDS": "cloister ",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line.partition(",")[2] for line in done.stdout.split()] == list(COMMANDS)
    assert "cloister.cli.encrypt" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_of_its_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_CLOISTER_COMPLETE={shell}_complete" in script
    program = shutil.which(shell)
    if program is not None:
        checked = subprocess.run([program, "-n"], input=script, text=True, check=False)
        assert checked.returncode == 0
