"""A program in the tree that evaluates Python expressions, one after the other."""

from __future__ import annotations

import contextlib
import subprocess
import time
from typing import IO

from applications import CLOISTER, App

PROGRAM = """\
import os, sys
os.chdir("{}")
files = {{}}
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


class Program:
    """A program in the tree that evaluates what it is told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin: IO[str] = process.stdin
        self._stdout: IO[str] = process.stdout

    def __call__(self, expression: str) -> str:
        self._stdin.write(f"{expression}\n")
        self._stdin.flush()
        return self._stdout.readline().rstrip("\n")


def start(app: App, processes: contextlib.ExitStack) -> Program:
    """Start the program of an application whose manifest is written."""
    process = subprocess.Popen(
        [*CLOISTER, "run", "--mode", "direct", "app"],
        cwd=app.directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    processes.callback(process.communicate)
    return Program(process)


def repeated(program: Program, expression: str, expected: str) -> None:
    """Ask until the answer is the expected one."""
    deadline = time.monotonic() + 20
    while (answer := program(expression)) != expected:
        assert time.monotonic() < deadline, answer
        time.sleep(0.1)
