"""Work spread over forked processes: AES-GCM in Python holds the interpreter's lock."""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from cloister.errors import CloisterError

Item = TypeVar("Item")
Result = TypeVar("Result")

_ORDER = struct.Struct("<I")
_ANSWER = struct.Struct("<?Q")


class _Worker:
    """One forked process and the socket to it."""

    def __init__(self, work: Callable[[int], Any], others: list[_Worker]) -> None:
        self.socket, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.socket.close()
            for other in others:
                other.socket.close()
            _serve(theirs, work)
        theirs.close()

    def order(self, index: int) -> None:
        self.socket.sendall(_ORDER.pack(index))

    def answer(self) -> tuple[bool, Any]:
        good, size = _ANSWER.unpack(_receive(self.socket, _ANSWER.size))
        # The bytes come from our own fork, over a socket that nobody else has.
        return good, pickle.loads(_receive(self.socket, size))  # noqa: S301

    def stop(self) -> None:
        self.socket.close()
        os.kill(self.pid, signal.SIGINT)
        os.waitpid(self.pid, 0)


def _receive(connection: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while len(view) > 0:
        count = connection.recv_into(view)
        if count == 0:
            raise CloisterError("a worker process ended before its work was done")
        view = view[count:]
    return bytes(buffer)


def _serve(connection: socket.socket, work: Callable[[int], Any]) -> None:
    """Answer orders until the other side goes away; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGINT, _stop)
        while order := connection.recv(_ORDER.size, socket.MSG_WAITALL):
            (index,) = _ORDER.unpack(order)
            good, answer = _attempt(work, index)
            content = pickle.dumps(answer, protocol=5)
            connection.sendall(_ANSWER.pack(good, len(content)) + content)
        status = 0
    finally:
        os._exit(status)  # not our interpreter to shut down: its buffers are the parent's


def _stop(number: int, frame: object) -> None:
    """Leave by an exception, so that unfinished files are removed, and only once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _attempt(work: Callable[[int], Any], index: int) -> tuple[bool, Any]:
    try:
        return True, work(index)
    except (CloisterError, OSError) as error:
        return False, error


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
        for index, item in enumerate(items):
            yield index, _attempt(lambda _, item=item: work(item), index)[1]  # type: ignore[misc]
        return
    workers: list[_Worker] = []
    try:
        for _ in range(jobs):
            workers.append(_Worker(lambda index: work(items[index]), workers))
        yield from _dispatch(workers, len(items))
    finally:
        for worker in workers:
            worker.stop()


def _dispatch(workers: list[_Worker], count: int) -> Iterator[tuple[int, Any]]:
    waiting = iter(range(count))
    busy: dict[_Worker, int] = {}
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.socket, selectors.EVENT_READ, worker)
            busy[worker] = next(waiting)
            worker.order(busy[worker])
        while busy:
            for key, _ in selector.select():
                worker = key.data
                index, answer = busy.pop(worker), worker.answer()[1]
                following = next(waiting, None)
                if following is not None:
                    busy[worker] = following
                    worker.order(following)
                yield index, answer
