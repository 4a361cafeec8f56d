"""Where the processes of a run work: processors kept awake, and one shared by server and fetcher.

Every request wakes two processes in turn, and between the two a processor has nothing to do. Where
idle processors halt (virtual machines without halt polling), waking one costs more than serving the
request: the PyTorch example took 2.46 times as long as natively, and 1.75 times with its processors
kept awake. So a process of the lowest scheduling class (SCHED_IDLE) turns on each processor while
requests come. It yields to any other work at once, and rests when there were no requests for 2 ms.

What fetches files ahead does nothing but ask and wait for the answer. On the server's own processor
it need not wake another one: a request costs 8 us there and 27 us across. So both stay on one while
it works, which leaves the others to the program.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time

from cloister.runtime import linux
from cloister.runtime.forks import fork_into, let_go

MOST_PROCESSORS = 4
"""Larger machines have others to keep awake, and seldom halt."""

_BURST_SECONDS = 0.002
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
        self._turning = [self._start(one) for one in self._all] if few else []

    def _start(self, processor: int) -> int:
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
        """End the processes that turn.

        On a busy machine they wait long for the time to die in, so nobody waits for them.
        """
        for child in self._turning:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, os.WNOHANG)
        self._words.release()
        self._memory.close()


def _turn(processor: int, words: memoryview) -> None:
    """Turn on one processor as long as requests come; never returns."""
    linux.set_dumpable(False)
    let_go()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.sched_setaffinity(0, {processor})
    rest = _SHORTEST_REST
    while True:
        seen = words[_BEATS]
        until = time.perf_counter() + _BURST_SECONDS
        while words[_BEATS] == seen and time.perf_counter() < until:
            pass
        if words[_BEATS] == seen:
            time.sleep(rest)
            rest = min(rest * 2, _LONGEST_REST)
        else:
            rest = _SHORTEST_REST
