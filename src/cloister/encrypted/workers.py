"""Work spread over forked processes: AES-GCM in Python holds the interpreter's lock."""

from __future__ import annotations

import os
import select
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from cloister.errors import CloisterError

Item = TypeVar("Item")
Result = TypeVar("Result")

_ORDER: Final = struct.Struct("<I")
_ANSWER: Final = struct.Struct("<?Q")  # whether it is pickled, or plain bytes; its size

_STOP: Final = signal.SIGUSR1


class _Worker:
    """One forked process and the pipes to it."""

    def __init__(self, work: Callable[[int], Any], others: list[_Worker]) -> None:
        orders, self._orders = os.pipe()
        self.answers, answers = os.pipe()
        # Until the child has its own handlers, signals wait: the exception of Python's handler
        # would be swallowed by what Python itself does after a fork.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, _STOP})
        try:
            self.pid = os.fork()
            if self.pid == 0:
                try:
                    for other in (self, *others):
                        other.close()
                    _serve(orders, answers, work)
                finally:
                    os._exit(1)  # nothing may unwind into what the parent was doing
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(orders)
        os.close(answers)

    def order(self, index: int) -> None:
        os.write(self._orders, _ORDER.pack(index))

    def answer(self) -> Any:
        pickled, size = _ANSWER.unpack(_receive(self.answers, _ANSWER.size))
        content = _receive(self.answers, size)
        if not pickled:
            return content
        import pickle

        # The bytes come from our own fork, over a pipe that nobody else has.
        return pickle.loads(content)  # noqa: S301

    def close(self) -> None:
        os.close(self._orders)
        os.close(self.answers)

    def stop(self) -> None:
        self.close()
        os.kill(self.pid, _STOP)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def _receive(descriptor: int, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = os.read(descriptor, size - len(received))
        if not piece:
            raise CloisterError("a worker process ended before its work was done")
        received += piece
    return bytes(received)


def _serve(orders: int, answers: int, work: Callable[[int], Any]) -> None:
    """Answer orders until the other side goes away or says stop; Ctrl-C is its affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(_STOP, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, _STOP})
    while order := os.read(orders, _ORDER.size):
        answer = _attempt(work, *_ORDER.unpack(order))
        pickled = not isinstance(answer, bytes)
        if pickled:
            import pickle

            answer = pickle.dumps(answer)
        content = memoryview(_ANSWER.pack(pickled, len(answer)) + answer)
        while len(content) > 0:
            content = content[os.write(answers, content) :]


def _stop(number: int, frame: object) -> None:
    """Leave by an exception, so that unfinished files are removed, and only once."""
    signal.signal(_STOP, signal.SIG_IGN)
    raise KeyboardInterrupt


def _attempt(work: Callable[[int], Any], index: int) -> Any:
    try:
        return work(index)
    except (CloisterError, OSError) as error:
        return error


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def forked_map(
    work: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[tuple[int, Result | CloisterError | OSError]]:
    """Do ``work`` on each item in ``jobs`` forked processes; yield in order of completion.

    With one job, or one item, it is done in this process. The items and everything that ``work``
    refers to are inherited by the fork; results must be picklable.

    Yields:
        the item's index, and the result or the error.
    """
    jobs = min(jobs, len(items))
    if jobs <= 1:
        for index in range(len(items)):
            yield index, _attempt(lambda index: work(items[index]), index)
        return
    workers: list[_Worker] = []
    try:
        for _ in range(jobs):
            workers.append(_Worker(lambda index: work(items[index]), workers))
        yield from _dispatch(workers, len(items))
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait()


def _dispatch(workers: list[_Worker], count: int) -> Iterator[tuple[int, Any]]:
    waiting = iter(range(count))
    busy: dict[int, tuple[_Worker, int]] = {}
    poll = select.poll()
    for worker in workers:
        poll.register(worker.answers, select.POLLIN)
        _give(worker, next(waiting), busy)
    while busy:
        for descriptor, _ in poll.poll():
            worker, index = busy.pop(descriptor)
            answer = worker.answer()
            following = next(waiting, None)
            if following is None:
                poll.unregister(descriptor)
            else:
                _give(worker, following, busy)
            yield index, answer


def _give(worker: _Worker, index: int, busy: dict[int, tuple[_Worker, int]]) -> None:
    busy[worker.answers] = (worker, index)
    worker.order(index)
