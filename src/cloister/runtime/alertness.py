"""Keeps processors awake while a program waits for its files.

Every request wakes two processes in turn, and between the two a processor has nothing to do. Where
idle processors halt (virtual machines without halt polling), waking one costs more than serving the
request: the PyTorch example took 2.46 times as long as natively, and 1.75 times with its processors
kept awake. So a process of the lowest scheduling class (SCHED_IDLE) turns on each processor while
requests come. It yields to any other work at once, and rests when there were no requests for 2 ms.
"""

from __future__ import annotations

import mmap
import os
import signal
import time

from cloister.runtime import linux
from cloister.runtime.forks import fork_into

MOST_PROCESSORS = 4
"""Larger machines have others to keep awake, and seldom halt."""

_BURST_SECONDS = 0.002
_SHORTEST_REST = 0.005
_LONGEST_REST = 0.05


class Alertness:
    """The processes that turn; :meth:`beat` tells them of a request."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)
        self._beats = memoryview(self._memory).cast("Q")
        processors = os.sched_getaffinity(0)
        few = 1 < len(processors) <= MOST_PROCESSORS
        self._turning = [self._start(one) for one in processors] if few else []

    def _start(self, processor: int) -> int:
        return fork_into(lambda: _turn(processor, self._beats))

    def beat(self) -> None:
        """A request came; more will follow soon."""
        self._beats[0] += 1

    def close(self) -> None:
        """End the processes.

        On a busy machine they wait long for the time to die in, so nobody waits for them.
        """
        for child in self._turning:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, os.WNOHANG)
        self._beats.release()
        self._memory.close()


def _turn(processor: int, beats: memoryview) -> None:
    """Turn on one processor as long as requests come; never returns."""
    linux.die_with_parent(signal.SIGKILL)
    linux.set_dumpable(False)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.sched_setaffinity(0, {processor})
    rest = _SHORTEST_REST
    while True:
        seen = beats[0]
        until = time.perf_counter() + _BURST_SECONDS
        while beats[0] == seen and time.perf_counter() < until:
            pass
        if beats[0] == seen:
            time.sleep(rest)
            rest = min(rest * 2, _LONGEST_REST)
        else:
            rest = _SHORTEST_REST
