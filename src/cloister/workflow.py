"""Steps of the confidential workflow, each a command line in a process of its own, shown by role.

What ``cloister demo`` and ``cloister try`` have in common.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloister.errors import CloisterError
from cloister.platforms.base import PLATFORM_VARIABLE

CLOISTER = (sys.executable, "-m", "cloister")
_SERVER_START_SECONDS = 30.0


@dataclass(frozen=True)
class Step:
    """One finished step."""

    role: str
    title: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Command:
    """A command and where it runs."""

    words: Sequence[str]
    directory: Path

    def __str__(self) -> str:
        return " ".join(self.words).replace(" ".join(CLOISTER), "cloister")


class Display(Protocol):
    """Where the steps are shown."""

    def running(self, role: str, title: str) -> contextlib.AbstractContextManager[None]:
        """Show that a step is being done."""

    def done(self, step: Step) -> None:
        """Show a finished step."""


class Timed:
    """Filled in when its step is done."""

    seconds = 0.0
    detail = ""


class Workflow:
    """Runs steps and shows them.

    Args:
        work: a directory for the roles' files; their own keys live and die there.
        display: where the steps are shown.
        hint: how to look closer at a command that failed.
    """

    def __init__(self, work: Path, display: Display, hint: str) -> None:
        self.work = work
        self.address = f"localhost:{free_port()}"
        self._display = display
        self._hint = hint
        self.environment: Mapping[str, str] = {
            **os.environ,
            PLATFORM_VARIABLE: "simulated",  # also where there is better: the owner trusts this one
            "XDG_CONFIG_HOME": str(work / "config"),
            "XDG_DATA_HOME": str(work / "data"),
        }

    @contextlib.contextmanager
    def step(self, role: str, title: str) -> Iterator[Timed]:
        """Show the block as a step."""
        timed = Timed()
        start = time.perf_counter()
        with self._display.running(role, title):
            yield timed
        timed.seconds = time.perf_counter() - start
        self._display.done(Step(role, title, timed.seconds, timed.detail))

    def timed(self, role: str, title: str, command: Command) -> float:
        """Run a command as a step; return its wall time in seconds."""
        with self.step(role, title) as timed:
            self.call(command)
        return timed.seconds

    def cloister(self, *arguments: str, cwd: Path) -> str:
        """Run a command of ours; return what it printed."""
        return self.call(Command([*CLOISTER, *arguments], cwd))

    def call(self, command: Command) -> str:
        """Run a command that must succeed; return what it printed.

        Raises:
            CloisterError: it failed.
        """
        done = self.start(command)
        if done.returncode != 0:
            raise CloisterError(
                f"{command}: exit code {done.returncode}: {last_line(done.stderr)}",
                hint=self._hint,
            )
        return done.stdout

    def start(self, command: Command) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever that is."""
        return subprocess.run(
            command.words,
            cwd=command.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @contextlib.contextmanager
    def background(
        self, role: str, title: str, command: Command, log: Path, address: str
    ) -> Iterator[None]:
        """Keep a server running while the block runs.

        Args:
            role, title: of the step that starts it.
            command: the server.
            log: where its output goes.
            address: ``HOST:PORT`` where it answers when it is ready.
        """
        with log.open("wb") as stream:
            server = subprocess.Popen(
                command.words,
                cwd=command.directory,
                env=self.environment,
                stdout=stream,
                stderr=stream,
            )
            try:
                with self.step(role, title):
                    _wait_for(address, server, log)
                yield
            finally:
                server.terminate()
                server.wait()

    def key_server(
        self, directory: Path, key: str, *more: str
    ) -> contextlib.AbstractContextManager[None]:
        """Release a key from ``directory`` while the block runs; ``more`` says to whom."""
        command = [
            *CLOISTER, "serve", "--key", key, "--cert", "certs/server.crt",
            "--cert-key", "certs/server.key", "--listen", self.address, *more,
        ]  # fmt: skip
        title = f"start the key server on {self.address}"
        log = directory / "serve.log"
        return self.background("owner", title, Command(command, directory), log, self.address)


def free_port() -> int:
    """Return a port of localhost that nobody uses now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import socket

    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + _SERVER_START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise CloisterError(f"{log.name}: {last_line(log.read_text())}")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.05)
    raise CloisterError(f"{address}: nobody answers; see {log}")


def lines_of(path: Path) -> list[str]:
    """Return the lines of a text file."""
    return path.read_text(encoding="utf-8").splitlines()


def last_line(text: str) -> str:
    """Return the line that tells most: an error of ours, else the last one."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    return (errors or lines or ["no message"])[-1]
