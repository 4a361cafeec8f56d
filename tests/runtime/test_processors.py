"""Processors are kept awake while a program asks for files, and not longer."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from applications import CLOISTER, App
from cloister.runtime.processors import MOST_PROCESSORS
from processes import descendants, wait_until_gone

LATENCY = Path("/dev/cpu_dma_latency")
IDLE_STATE = Path("/sys/devices/system/cpu/cpu0/cpuidle/state0/name")
ASKING = "echo ready; while :; do ls /bin > /dev/null; done"
RESTING = "echo ready; sleep 60"
OWN_DEVICES = """
mount -t tmpfs none "$0"
for device in fuse null random tty urandom zero; do cp -a /dev/$device "$0"; done
mkdir "$0/pts" "$0/shm"
mount --bind "$0" /dev
"$@"
ls /dev
"""


def polls() -> bool:
    few = len(os.sched_getaffinity(0)) > 1 and (os.cpu_count() or 0) <= MOST_PROCESSORS
    return (
        few
        and LATENCY.is_char_device()
        and os.access(LATENCY, os.W_OK)
        and IDLE_STATE.exists()
        and IDLE_STATE.read_text() == "POLL\n"
    )


only_where_processors_poll = pytest.mark.skipif(
    not polls(), reason="needs root, and a kernel whose idle processors can poll"
)


def holders(process: int) -> list[int]:
    """The processes of a run that may ask the kernel for processors that answer at once."""
    found = []
    for one in descendants(process):
        try:
            links = [path.readlink() for path in Path(f"/proc/{one}/fd").iterdir()]
        except OSError:  # it has ended
            continue
        if LATENCY in links:
            found.append(one)
    return found


def asked() -> int:
    """Microseconds that waking a processor may take, in the kernel's words."""
    with LATENCY.open("rb", buffering=0) as latency:
        value: int = struct.unpack("=i", latency.read(4))[0]
        return value


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60  # others may run programs too
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def running(app: App, script: str) -> Iterator[subprocess.Popen[str]]:
    """A run of a script that has said that it is ready; it is killed at the end."""
    app.build_shell()
    with app.start_shell(script) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
            yield run
        finally:
            run.kill()


@only_where_processors_poll
def test_processors_poll_while_a_program_asks_for_files(app: App) -> None:
    with running(app, ASKING) as run:
        assert wait_for(lambda: asked() == 0)
        held = holders(run.pid)
        run.terminate()
        assert run.wait(20) == 128 + signal.SIGTERM
    assert len(held) == 1
    wait_until_gone(held)


@only_where_processors_poll
def test_processors_halt_again_when_the_runtime_is_killed(app: App) -> None:
    with running(app, ASKING) as run:
        assert wait_for(lambda: bool(holders(run.pid)))
        held = holders(run.pid)
    assert len(held) == 1
    wait_until_gone(held)


@only_where_processors_poll
def test_processors_may_halt_while_a_program_rests(app: App) -> None:
    with running(app, RESTING):
        assert wait_for(lambda: asked() > 0)


@only_where_processors_poll
def test_no_file_is_made_where_there_is_no_such_device(
    app: App, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As in containers, whose root may write to /dev."""
    devices = str(tmp_path_factory.mktemp("devices"))
    app.build_shell()
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-ec", OWN_DEVICES, devices),
            *(*CLOISTER, "run", "app", "-c", "echo ran"),
        ],
        cwd=app.directory,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ran\nfuse\nnull\npts\nrandom\nshm\ntty\nurandom\nzero\n"
