"""Signals reach the main thread although it is just about to wait."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The signal is taken by another thread: the main thread's call is not interrupted, as if it had
# begun just after the interpreter took note of the signal.
WAITING = """\
import contextlib, os, select, signal, sys, threading, time
from cloister.signals import prompt_signals

read, write = os.pipe()
calls = {
    "read": lambda: os.read(read, 1),
    "readv": lambda: os.readv(read, [bytearray(1)]),
    "poll": lambda: poll.poll(),
}
poll = select.poll()
poll.register(read, select.POLLIN)

def handler(number, frame):
    raise SystemExit(7)

signal.signal(signal.SIGUSR1, handler)

def strike():
    time.sleep(0.3)
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    time.sleep(60)

threading.Thread(target=strike, daemon=True).start()
with prompt_signals() if sys.argv[1] == "prompt" else contextlib.nullcontext():
    calls[sys.argv[2]]()
"""


def run(mode: str, call: str) -> int:
    command = [sys.executable, "-c", WAITING, mode, call]
    return subprocess.run(command, timeout=3, check=False).returncode


@pytest.mark.parametrize("call", ["read", "readv", "poll"])
def test_a_waiting_main_thread_acts(call: str) -> None:
    assert run("prompt", call) == 7


def test_natively_it_would_go_on_waiting() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run("plain", "read")
