"""All clients of a key server, served by one thread."""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import queue
import selectors
import threading
import time
from collections.abc import Callable, Sequence

from cloister.errors import AuditError, RaTlsError
from cloister.provision.audit import as_audit_error
from cloister.provision.decision import ClientJudgement, Decision, Outcome
from cloister.provision.exchange import READY, RECORDED, Exchange, Step, ToJudge, ToRecord
from cloister.ratls.server import failure_of_judging

_MOST_UNRECORDED = 16
_LONGEST_WAIT = 0.01
"""Seconds for which a decision may wait until others can be recorded with it."""

Record = Callable[[Sequence[Decision]], Sequence[Exception | None]]
"""Records decisions, in this order; says of each what failed, or None."""

Recorded = tuple[Exchange | None, ToRecord, Exception | None]
"""A decision, who waits for its record, and why there is none."""


class Exchanges:
    """Resumes each exchange when what it waits for is there.

    Two things are done apart, so that nobody else waits for them: a judgement for which a service
    has to be asked, in a thread of its own; and recording, in one thread for all. A transaction
    costs as much as a third of a handshake, however many decisions are in it; so a decision waits
    for others as long as other clients are served.

    Args:
        selector: waits for the sockets; an exchange is the data of its socket's key.
        judge: judges certificates, and may take long.
        record: records decisions, before anything follows from them; called in a thread.
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
        self._unhurried: set[Exchange] = set()
        self._deadlines: list[tuple[float, int, Exchange]] = []
        self._serial = itertools.count()
        self._judged: collections.deque[tuple[Exchange, ToJudge, ClientJudgement | Exception]] = (
            collections.deque()
        )
        self._unrecorded: list[tuple[Exchange | None, ToRecord]] = []
        self._since = 0.0  # when the first of them was decided
        self._recording_since: float | None = None
        self._recorded: collections.deque[list[Recorded]] = collections.deque()
        self._batches: queue.SimpleQueue[list[tuple[Exchange | None, ToRecord]] | None] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._record_apart, daemon=True).start()

    @property
    def running(self) -> int:
        """How many are not over."""
        return len(self._running)

    @property
    def are_waiting(self) -> bool:
        """Whether :meth:`settle` has something to do."""
        can_record = self._unrecorded and self._recording_since is None
        return bool(can_record or self._judged or self._recorded)

    @property
    def have_waited(self) -> bool:
        """Whether it has waited long enough."""
        if self._judged or self._recorded or len(self._unrecorded) >= _MOST_UNRECORDED:
            return True
        return bool(self._unrecorded) and time.monotonic() - self._since > _LONGEST_WAIT

    @property
    def recording_seconds(self) -> float:
        """For how long decisions have been on their way to the record; 0 if none are."""
        since = self._recording_since
        return 0.0 if since is None else time.monotonic() - since

    def begin(self, exchange: Exchange) -> None:
        """Serve one more client."""
        self._running.add(exchange)
        self._unhurried.add(exchange)
        self._expect(exchange)
        self._resume(exchange)

    def hurry(self) -> None:
        """Others wait: whoever has sent nothing yet has less time."""
        while self._unhurried:
            exchange = self._unhurried.pop()
            exchange.hurry()
            self._expect(exchange)

    def go_on(self, exchange: Exchange) -> None:
        """Resume an exchange whose socket is ready."""
        self._resume(exchange, READY)

    def seconds(self) -> float | None:
        """Return after how many seconds the next deadline passes; None if there is none."""
        if not self._deadlines:
            return None
        return max(0.0, self._deadlines[0][0] - time.monotonic())

    def expire(self) -> None:
        """Resume exchanges whose deadline has passed: they find out, and end.

        One that waits for its record ends, too; the record, if it comes, is followed by another
        one that takes it back.
        """
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            end, _, exchange = heapq.heappop(self._deadlines)
            if exchange not in self._running or exchange.deadline.end != end:
                continue  # over, or it has been given another one since
            if isinstance(exchange.step, ToRecord):
                self._fail(exchange, AuditError("audit log: not written in the client's time"))
            else:
                self._resume(exchange)

    def finish(self, seconds: float) -> None:
        """Wait until all that was decided is recorded, at most so long; nothing can follow."""
        end = time.monotonic() + seconds
        while (self._unrecorded or self._recording_since is not None) and time.monotonic() < end:
            self.settle()
            time.sleep(0.01)
        self._batches.put(None)

    def settle(self) -> None:
        """Take what was judged and recorded, resume that, and have recorded what was decided."""
        while self._judged:
            exchange, step, judgement = self._judged.popleft()
            if exchange.step is not step:
                continue  # it did not wait so long
            if isinstance(judgement, Exception):
                self._fail(exchange, judgement)
            else:
                self._resume(exchange, judgement)
        while self._recorded:
            self._recording_since = None
            for one in self._recorded.popleft():
                self._take_record(*one)
        if self._unrecorded and self._recording_since is None:
            batch, self._unrecorded = self._unrecorded, []
            self._recording_since = time.monotonic()
            self._batches.put(batch)

    def _take_record(
        self, exchange: Exchange | None, step: ToRecord, failure: Exception | None
    ) -> None:
        if exchange is not None and exchange.step is step:
            if failure is None:
                self._resume(exchange, RECORDED)
            else:
                self._fail(exchange, failure)
        elif failure is None and step.decision.outcome is Outcome.RELEASED:
            taken_back = dataclasses.replace(
                step.decision,
                outcome=Outcome.REFUSED,
                secret=None,
                reason="nothing was sent: the release was recorded after the client's time",
            )
            self._have_recorded(None, ToRecord(taken_back))

    def _resume(self, exchange: Exchange, answer: object = None) -> None:
        self._take(exchange, lambda: exchange.resume(answer))

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        self._take(exchange, lambda: exchange.fail(error))

    def _take(self, exchange: Exchange, go_on: Callable[[], Step | None]) -> None:
        """Let an exchange do its next step; whatever is wrong with that ends it alone."""
        if exchange not in self._running:
            return
        deadline = exchange.deadline
        try:
            step = go_on()
            if step is not None:
                self._wait_for(exchange, step)
        except Exception as error:
            step = None
            self._defect(error)
        if step is None:
            self._end(exchange)
        elif exchange.deadline is not deadline:
            self._expect(exchange)

    def _wait_for(self, exchange: Exchange, step: Step) -> None:
        if isinstance(step, int):
            self._watch(exchange, step)
            return
        self._watch(exchange, 0)  # whatever the client sends: first the answer to this
        if isinstance(step, ToRecord):
            self._have_recorded(exchange, step)
        else:
            self._judge_apart(exchange, step)

    def _have_recorded(self, exchange: Exchange | None, step: ToRecord) -> None:
        if not self._unrecorded:
            self._since = time.monotonic()
        self._unrecorded.append((exchange, step))

    def _end(self, exchange: Exchange) -> None:
        self._running.discard(exchange)
        self._unhurried.discard(exchange)
        if exchange.refusal is not None:  # nobody waits for that record
            self._have_recorded(None, ToRecord(exchange.refusal))
        try:
            self._watch(exchange, 0)
        except Exception as error:
            self._defect(error)
        try:
            exchange.close()
        except Exception as error:
            self._defect(error)
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

    def _record_apart(self) -> None:
        """Record what comes, until :meth:`finish`."""
        while (batch := self._batches.get()) is not None:
            failures: Sequence[Exception | None]
            try:
                failures = self._record([step.decision for _, step in batch])
            except Exception as error:
                failures = [as_audit_error(error)] * len(batch)
            self._recorded.append(
                [(*one, failure) for one, failure in zip(batch, failures, strict=True)]
            )
            self._wake()
