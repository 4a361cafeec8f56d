"""Where the processes of a run work: processors kept awake, and one shared by server and fetcher.

Every request wakes two processes in turn, and between the two a processor has nothing to do. Where
idle processors halt (virtual machines without halt polling), waking one costs more than serving the
request: the PyTorch example took 2.46 times as long as natively, and 1.75 times with its processors
kept awake.

Where idle processors can poll in place of halting, and this process may ask the kernel for it
(root, outside containers), they do as long as requests come: PM QoS, ``/dev/cpu_dma_latency``. Such
a processor needs no interrupt to be woken. Elsewhere a process of the lowest scheduling class
(SCHED_IDLE) turns on each processor; it yields to any other work at once. Opening a file takes a
program 15 us where processors poll, 35 to 55 us where they turn, and 75 to 90 us where they halt.

What fetches files ahead does nothing but ask and wait for the answer. On the server's own processor
it need not wake another one: a request costs 8 us there and 27 us across. So both stay on one while
it works, which leaves the others to the program.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import stat
import struct
import time
from pathlib import Path

from cloister.runtime import linux
from cloister.runtime.forks import fork_into, let_go

MOST_PROCESSORS = 4
"""Larger machines have others to keep awake, and seldom halt."""

_LATENCY = Path("/dev/cpu_dma_latency")
_IDLE_STATE = Path("/sys/devices/system/cpu/cpu0/cpuidle/state0/name")
_NO_LATENCY = struct.pack("=i", 0)  # microseconds that waking a processor may take
_ANY_LATENCY = struct.pack("=i", -1)  # PM_QOS_DEFAULT_VALUE

_BURST_SECONDS = 0.002
_POLLING_SECONDS = 0.02
_SHORTEST_REST = 0.005
_LONGEST_REST = 0.05
_BEATS, _PARTED = 0, 1  # words of the memory that the processes share


class Processors:
    """The processors that this process may use, and who works on which.

    The memory behind it is shared with processes that are forked later.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)
        self._words = memoryview(self._memory).cast("Q")
        self._all = os.sched_getaffinity(0)
        self._shares = False
        few = 1 < len(self._all) <= MOST_PROCESSORS
        self._keeping_awake = self._keep_awake() if few else []

    def _keep_awake(self) -> list[int]:
        """Start what keeps the processors awake, and return the numbers of its processes."""
        if _can_poll():
            return [fork_into(lambda: _let_poll(self._words))]
        return [self._start_turning(processor) for processor in self._all]

    def _start_turning(self, processor: int) -> int:
        return fork_into(lambda: _turn(processor, self._words))

    def request(self) -> None:
        """A request came; more will follow soon."""
        self._words[_BEATS] += 1
        if self._shares and self._words[_PARTED]:
            self._part()

    def share(self) -> int | None:
        """Stay on the present processor, and return its number for who is to share it.

        None where the kernel does not let us choose.
        """
        try:
            processor = linux.current_processor()
            os.sched_setaffinity(0, {processor})
        except OSError:
            return None
        self._shares = True
        return processor

    def _part(self) -> None:
        """Use all processors again, or those that the kernel has given us meanwhile."""
        self._shares = False
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, self._all)

    def part(self) -> None:
        """Let the process that shares a processor use all again, at its next request."""
        self._words[_PARTED] = 1

    def close(self) -> None:
        """End the processes that keep processors awake.

        On a busy machine they wait long for the time to die in, so nobody waits for them.
        """
        for child in self._keeping_awake:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, os.WNOHANG)
        self._words.release()
        self._memory.close()


def _can_poll() -> bool:
    """Tell whether idle processors can poll, and we may ask for it: all of them will."""
    if (os.cpu_count() or 0) > MOST_PROCESSORS:
        return False
    try:
        if _IDLE_STATE.read_text() != "POLL\n":
            return False
        latency = _open_latency()  # asks for nothing yet; only trying tells
    except OSError:
        return False
    try:
        return stat.S_ISCHR(os.fstat(latency).st_mode)
    finally:
        os.close(latency)


def _open_latency() -> int:
    return os.open(_LATENCY, os.O_WRONLY | os.O_CLOEXEC)


def _let_poll(words: memoryview) -> None:
    """Have idle processors poll as long as requests come; never returns.

    The kernel forgets what was asked for when this process ends.
    """
    linux.set_dumpable(False)
    let_go()
    latency = _open_latency()
    while True:
        os.write(latency, _NO_LATENCY)
        _await_end_of_requests(words)
        os.write(latency, _ANY_LATENCY)
        _await_requests(words)


def _await_end_of_requests(words: memoryview) -> None:
    """Wait until none has come for 20 ms; that is seen after 40 at most."""
    seen = None
    while seen != words[_BEATS]:
        seen = words[_BEATS]
        time.sleep(_POLLING_SECONDS)


def _await_requests(words: memoryview) -> None:
    """Wait until one has come, and look ever more seldom."""
    seen, rest = words[_BEATS], _SHORTEST_REST
    while seen == words[_BEATS]:
        time.sleep(rest)
        rest = min(rest * 2, _LONGEST_REST)


def _turn(processor: int, words: memoryview) -> None:
    """Turn on one processor as long as requests come; never returns."""
    linux.set_dumpable(False)
    let_go()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.sched_setaffinity(0, {processor})
    while True:
        seen = None
        while seen != words[_BEATS]:
            seen = words[_BEATS]
            until = time.perf_counter() + _BURST_SECONDS
            while words[_BEATS] == seen and time.perf_counter() < until:
                pass
        _await_requests(words)
