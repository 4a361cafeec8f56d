"""Real terminals: keys reach the program and its children, job control works, streams are safe."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from applications import CLOISTER, PYTHON, App

RUN = (*CLOISTER, "run", "--mode", "direct", "app")


class Terminal:
    """The user's end of a terminal in which a command runs."""

    def __init__(self, command: Sequence[str], app: App) -> None:
        self._own, theirs = pty.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command,
            cwd=app.directory,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509  (one system call)
        )
        os.close(theirs)
        self.text = ""

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def wait_for(self, text: str) -> None:
        """Read until ``text`` was shown; what stands behind it is kept for the next call."""
        deadline = time.monotonic() + 30
        while text not in self.text:
            ready, _, _ = select.select([self._own], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} was not shown, but {self.text!r}"
            try:
                self.text += os.read(self._own, 4096).decode("utf-8", "replace")
            except OSError as error:
                raise AssertionError(f"{text!r} was not shown, but {self.text!r}") from error
        self.text = self.text.partition(text)[2]

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_until_stopped(self, name: str) -> None:
        """Wait until the program of that name is stopped here, so that it reads nothing more.

        The shell knows sooner that its own child is stopped.
        """
        deadline = time.monotonic() + 30
        while self._states(name) != {"T"}:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _states(self, name: str) -> set[str]:
        """The states of the processes of this session that have a name."""
        found = set()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # ended meanwhile
                start, _, rest = path.read_text().rpartition(")")
                state, _, _, session, *_ = rest.split()
                if session == str(self.process.pid) and start.partition("(")[2] == name:
                    found.add(state)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)


@contextmanager
def terminal(app: App, *command: str) -> Iterator[Terminal]:
    opened = Terminal(command or RUN, app)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def python(app: App) -> App:
    """An application that is an interpreter in direct mode; give it a program."""
    app.direct([PYTHON, "-c", "pass"])
    return app


def program(app: App, *argv: str) -> None:
    app.settings["libos.entrypoint"] = json.dumps(argv[0])
    app.settings["loader.argv"] = json.dumps(argv)
    app.settings["loader.env.PATH"] = '"/bin:/usr/bin"'
    (app.directory / "app.manifest").write_text(app.text())


CHILDREN = """\
import os, signal, sys, time
caught = []
signal.signal(signal.SIGINT, lambda *_: caught.append(1))
children = []
for n in range(2):
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, lambda *_: os._exit(20))
        print("child", flush=True)
        while True:
            time.sleep(10)
    children.append(pid)
print("ready", os.isatty(0), flush=True)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
time.sleep(0.2)
print("codes", codes, "caught", len(caught), flush=True)
sys.exit(9)
"""


def test_an_interrupt_reaches_all_processes_once(python: App) -> None:
    program(python, PYTHON, "-c", CHILDREN)
    with terminal(python) as opened:
        for _ in range(2):
            opened.wait_for("child")
        opened.type("\x03")
        opened.wait_for("codes [20, 20] caught 1")
        assert opened.process.wait(20) == 9


def test_an_interrupt_by_kill_is_forwarded(python: App) -> None:
    program(python, "/bin/sh", "-c", "trap 'exit 8' INT; echo ready; while :; do sleep 0.1; done")
    process = subprocess.Popen(
        RUN, cwd=python.directory, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 8
    process.stdout.close()


def test_window_size_and_raw_mode(python: App) -> None:
    code = (
        "import os, signal, sys, termios, tty, time\n"
        # os.write, since the signal may come while another line is being printed.
        "show = lambda word: os.write(1, f'{word} {os.get_terminal_size()}\\n'.encode())\n"
        "signal.signal(signal.SIGWINCH, lambda *_: show('now'))\n"
        "show('first')\n"
        "while os.get_terminal_size().lines != 50: time.sleep(0.05)\n"
        "before = termios.tcgetattr(0); tty.setraw(0)\n"
        "print('raw', flush=True); key = os.read(0, 1)\n"
        "termios.tcsetattr(0, termios.TCSADRAIN, before); print('key', key)\n"
    )
    program(python, PYTHON, "-c", code)
    with terminal(python) as opened:
        opened.wait_for("first")
        opened.resize(50, 123)
        opened.wait_for("now os.terminal_size(columns=123, lines=50)")
        opened.wait_for("raw")
        opened.type("\x03")
        opened.wait_for("key b'\\x03'")
        assert opened.process.wait(20) == 0


def test_an_interpreter_to_talk_to(python: App) -> None:
    program(python, PYTHON)
    with terminal(python) as opened:
        opened.wait_for(">>> ")
        opened.type("6 * 7\n")
        opened.wait_for("42")
        opened.type("while True: pass\n\n")
        time.sleep(0.5)
        opened.type("\x03")
        opened.wait_for("KeyboardInterrupt")
        opened.type("exit(5)\n")
        assert opened.process.wait(20) == 5


def test_job_control_of_the_callers_shell(python: App) -> None:
    program(python, "/bin/sh", "-c", "echo started; read line; echo got $line; exit 6")
    with terminal(python, "/bin/bash", "--norc", "-i") as shell:
        shell.type("PS1='$ '\n")
        shell.type(" ".join(RUN) + "; echo code $?\n")
        shell.wait_for("started\r\n")
        shell.type("\x1a")
        shell.wait_for("Stopped")
        shell.wait_for("$ ")
        shell.wait_until_stopped("sh")
        shell.type("fg\n")
        time.sleep(0.5)
        shell.type("a line\n")
        shell.wait_for("got a line")
        shell.type(" ".join(RUN) + " < /dev/null &\n")
        shell.wait_for("started")
        shell.type("wait $!; echo background $?\n")
        shell.wait_for("background 6")


def test_a_shell_inside_has_job_control(python: App) -> None:
    with terminal(python, *RUN[:-1], "--shell", "app") as opened:
        opened.type("PS1='in''side '\n")
        opened.wait_for("inside ")
        opened.type("sleep 100\n")
        time.sleep(0.5)
        opened.type("\x03")
        opened.wait_for("inside ")
        opened.type("echo $((6 * 7)); exit 3\n")
        opened.wait_for("42")
        assert opened.process.wait(20) == 3


def test_a_hangup_ends_the_program(python: App) -> None:
    program(python, PYTHON, "-c", "import time; print('ready', flush=True); time.sleep(1000)")
    opened = Terminal(RUN, python)
    opened.wait_for("ready")
    os.close(opened._own)
    assert opened.process.wait(20) == 128 + signal.SIGHUP


def test_closed_standard_streams_become_empty_ones(python: App) -> None:
    """None of the runtime's own descriptors may take their numbers."""
    code = "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in range(3)]); os.read(0, 1)"
    program(python, PYTHON, "-c", code)
    for closing in ("<&-", "2>&-", "<&- 2>&-"):
        done = subprocess.run(
            ["/bin/sh", "-c", f"exec {' '.join(RUN)} {closing}"],
            cwd=python.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "/dev/null" in done.stdout
        assert "socket" not in done.stdout
    silent = subprocess.run(
        ["/bin/sh", "-c", f"exec {' '.join(RUN)} >&-"], cwd=python.directory, check=False
    )
    assert silent.returncode == 0


def test_what_the_program_leaves_running_ends_with_it(python: App) -> None:
    program(python, "/bin/sh", "-c", "sleep 1000 & echo left; exit 4")
    done = subprocess.run(
        RUN, cwd=python.directory, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (4, "left\n")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT])
def test_signals_are_forwarded(python: App, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'exit 7' {name}; echo ready; while :; do sleep 0.1; done"
    program(python, "/bin/sh", "-c", script)
    process = subprocess.Popen(
        RUN, cwd=python.directory, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(20) == 7
    process.stdout.close()


WHICH_ARE_TERMINALS = """\
import errno, fcntl, os, sys, termios
def answer(descriptor, question):
    try:
        fcntl.ioctl(descriptor, question, bytes(64))
        return "yes"
    except OSError as error:
        return errno.errorcode[error.errno]
os.dup2(0, 90)
places = (0, 1, 2, 90, *(os.open(name, 0) for name in (sys.argv[1], "/", "/dev/null")))
for question in (termios.TCGETS, termios.TIOCGWINSZ, 0x802C542A):
    print([answer(place, question) for place in places])
"""


@pytest.mark.parametrize("standard_input", ["terminal", "nothing"])
def test_a_program_without_terminals_knows_its_standard_streams(
    python: App, standard_input: str
) -> None:
    """As natively, but for copies of a terminal, and the one of the session."""
    python.settings["cloister.terminals"] = "false"
    program(python, PYTHON, "-c", WHICH_ARE_TERMINALS, PYTHON)
    own, theirs = pty.openpty()

    def answers(command: Sequence[str]) -> list[str]:
        done = subprocess.run(
            command,
            cwd=python.directory,
            stdin=theirs if standard_input == "terminal" else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.splitlines()

    try:
        natively = answers((PYTHON, "-c", WHICH_ARE_TERMINALS, PYTHON))
        inside = answers(RUN)
    finally:
        os.close(theirs)
        os.close(own)
    assert [line.split(", ")[:3] for line in inside] == [line.split(", ")[:3] for line in natively]
    assert [line.split(", ")[3] for line in inside] == ["'ENOTTY'"] * 3
    assert [line.split(", ")[4:] for line in inside] == [line.split(", ")[4:] for line in natively]


def test_a_program_without_terminals_is_told_why_there_are_none(python: App) -> None:
    python.settings["cloister.terminals"] = "false"
    code = (
        "import os\n"
        "print(sorted(os.listdir('/dev')))\n"
        "for name in ('/dev/ptmx', '/dev/tty', '/dev/pts', '/dev/ptmx'):\n"
        "    print(os.path.exists(name))\n"
        "os.openpty()\n"
    )
    program(python, PYTHON, "-c", code)
    done = subprocess.run(
        RUN, cwd=python.directory, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    listed, *found = done.stdout.splitlines()
    assert {"null", "urandom", "stdin", "shm"} <= set(ast.literal_eval(listed))
    assert found == ["False"] * 4
    assert "FileNotFoundError" in done.stderr
    for name in ("ptmx", "tty"):
        line = f"file:/dev/{name}: the manifest has cloister.terminals = false"
        assert done.stderr.count(line) == 1
    assert "hint: cloister.terminals = true" in done.stderr
