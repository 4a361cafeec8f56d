"""All clients of a key server, served by one thread."""

from __future__ import annotations

import collections
import heapq
import itertools
import selectors
import threading
import time
from collections.abc import Callable, Sequence

from cloister.errors import RaTlsError
from cloister.provision.decision import ClientJudgement, Decision
from cloister.provision.exchange import RECORDED, Exchange, Step, ToJudge, ToRecord
from cloister.ratls.server import failure_of_judging

_MOST_UNRECORDED = 16
_LONGEST_WAIT = 0.01
"""Seconds for which a decision may wait until others can be recorded with it."""

Record = Callable[[Sequence[Decision]], Sequence[Exception | None]]
"""Records decisions, in this order; says of each what failed, or None."""


class Exchanges:
    """Resumes each exchange when what it waits for is there.

    Only a judgement for which somebody else has to be asked is made in a thread of its own;
    decisions are recorded here. A transaction costs as much as a third of a handshake, however many
    decisions are in it; so a decision waits for others as long as other clients are served.

    Args:
        selector: waits for the sockets; an exchange is the data of its socket's key.
        judge: judges certificates, and may take long.
        record: records decisions, before anything follows from them.
        wake: lets the selector return; called from other threads.
        over: told of each exchange that is over, when its connection is closed.
        defect: told of what an exchange should have dealt with itself; it ends that one alone.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        *,
        judge: Callable[[bytes], ClientJudgement],
        record: Record,
        wake: Callable[[], None],
        over: Callable[[Exchange], None],
        defect: Callable[[Exception], None],
    ) -> None:
        self._selector = selector
        self._judge = judge
        self._record = record
        self._wake = wake
        self._over = over
        self._defect = defect
        self._watched: dict[Exchange, int] = {}
        self._running: set[Exchange] = set()
        self._deadlines: list[tuple[float, int, Exchange]] = []
        self._serial = itertools.count()
        self._judged: collections.deque[tuple[Exchange, ToJudge, ClientJudgement | Exception]] = (
            collections.deque()
        )
        self._unrecorded: list[tuple[Exchange, Decision]] = []
        self._since = 0.0  # when the first of them was decided

    @property
    def running(self) -> int:
        """How many are not over."""
        return len(self._running)

    @property
    def are_waiting(self) -> bool:
        """Whether decisions wait for being recorded, or judgements for being taken."""
        return bool(self._unrecorded or self._judged)

    @property
    def have_waited(self) -> bool:
        """Whether they have waited long enough."""
        if self._judged or len(self._unrecorded) >= _MOST_UNRECORDED:
            return True
        return bool(self._unrecorded) and time.monotonic() - self._since > _LONGEST_WAIT

    def begin(self, exchange: Exchange) -> None:
        """Serve one more client."""
        self._running.add(exchange)
        self._expect(exchange)
        self.go_on(exchange)

    def go_on(self, exchange: Exchange) -> None:
        """Resume an exchange whose socket is ready."""
        if exchange in self._running:
            self._resume(exchange)

    def seconds(self) -> float | None:
        """Return after how many seconds the next deadline passes; None if there is none."""
        if not self._deadlines:
            return None
        return max(0.0, self._deadlines[0][0] - time.monotonic())

    def expire(self) -> None:
        """Resume exchanges whose deadline has passed: they find out, and end."""
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            exchange = heapq.heappop(self._deadlines)[2]
            if exchange not in self._running:
                continue
            if exchange.deadline.end > now:
                self._expect(exchange)  # it has been given another one since
            elif not isinstance(exchange.step, ToRecord):  # which goes on soon, and finds out then
                self._resume(exchange)

    def settle(self) -> None:
        """Resume what was judged, record what was decided, and resume that, until none is left."""
        while self._judged:
            exchange, step, judgement = self._judged.popleft()
            if exchange.step is not step:
                continue  # it did not wait so long
            if isinstance(judgement, Exception):
                self._fail(exchange, judgement)
            else:
                self._resume(exchange, judgement)
        while self._unrecorded:
            pending, self._unrecorded = self._unrecorded, []
            failures = self._record([decision for _, decision in pending])
            for (exchange, _), failure in zip(pending, failures, strict=True):
                if failure is None:
                    self._resume(exchange, RECORDED)
                else:
                    self._fail(exchange, failure)

    def _resume(self, exchange: Exchange, answer: object = None) -> None:
        self._take(exchange, lambda: exchange.resume(answer))

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        self._take(exchange, lambda: exchange.fail(error))

    def _take(self, exchange: Exchange, go_on: Callable[[], Step | None]) -> None:
        try:
            step = go_on()
        except Exception as error:
            step = None
            self._defect(error)
        if isinstance(step, ToRecord):
            self._watch(exchange, 0)  # whatever the client sends: first the record
            if not self._unrecorded:
                self._since = time.monotonic()
            self._unrecorded.append((exchange, step.decision))
        elif isinstance(step, ToJudge):
            self._watch(exchange, 0)
            self._judge_apart(exchange, step)
        elif step is not None:
            self._watch(exchange, step)
        else:
            self._watch(exchange, 0)
            self._running.discard(exchange)
            exchange.close()
            self._over(exchange)

    def _watch(self, exchange: Exchange, events: int) -> None:
        before = self._watched.get(exchange, 0)
        if events == before:
            return
        if not events:
            del self._watched[exchange]
            self._selector.unregister(exchange.socket)
            return
        self._watched[exchange] = events
        if before:
            self._selector.modify(exchange.socket, events, exchange)
        else:
            self._selector.register(exchange.socket, events, exchange)

    def _expect(self, exchange: Exchange) -> None:
        heapq.heappush(self._deadlines, (exchange.deadline.end, next(self._serial), exchange))

    def _judge_apart(self, exchange: Exchange, step: ToJudge) -> None:
        def judge() -> None:
            try:
                judgement: ClientJudgement | Exception = self._judge(step.certificate)
            except Exception as error:
                judgement = failure_of_judging(error)
            self._judged.append((exchange, step, judgement))
            self._wake()

        try:
            threading.Thread(target=judge, daemon=True).start()
        except RuntimeError:
            error = RaTlsError("no thread is left to ask for the collateral of its platform")
            self._judged.append((exchange, step, error))
