"""A key server with a store: hot reload, audit log, metrics, health.

The parts know nothing of one another; this joins them and owns their threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import threading
import time
from collections.abc import Callable, Iterator

import sqlalchemy as sa

from cloister.attestation.expiry import expires
from cloister.attestation.trust import Trust
from cloister.errors import CloisterError
from cloister.provision.audit import AuditLog, AuditWriter
from cloister.provision.database import reading
from cloister.provision.decision import ClientJudge, Decision, Outcome, Secret
from cloister.provision.metrics import Metrics
from cloister.provision.store import SecretStore
from cloister.provision.store_key import StoreKey

RELOAD_SECONDS = 1.0
REFRESH_SECONDS = 3600.0


class Recorder:
    """Takes every decision: counts it, writes it to the audit log, reports it.

    Args:
        audit: the log; None keeps none.
        report: shows a decision to people.
    """

    def __init__(self, audit: AuditWriter | None, report: Callable[[Decision], None]) -> None:
        self._audit = audit
        self._report = report
        self.metrics: Metrics | None = None

    def __call__(self, decision: Decision) -> None:
        """Record a decision; returns when the audit log has it.

        Whoever merely dropped a connection decided nothing and is not in the audit log.

        Raises:
            AuditError: it could not be recorded; a secret must not leave then.
        """
        if self._audit is not None and decision.outcome is not Outcome.DROPPED:
            try:
                self._audit.record(decision)
            except CloisterError:
                self.failed("audit")
                raise
        if self.metrics is not None:
            self.metrics.decided(decision)
        self._report(decision)

    def failed(self, part: str) -> None:
        """Count a failure of the server itself."""
        if self.metrics is not None:
            self.metrics.failed(part)


@dataclasses.dataclass
class StoreWatcher:
    """Lets a judge release what is in the store now, and notices changes.

    A change that cannot be read (a secret sealed under another key, a database that is away)
    leaves the judge as it was and is told; nothing is released that was not readable once.

    Attributes:
        store: the secrets.
        key: opens them.
        judge: gets them.
        on_failure: told of a change that cannot be read.
        keep_seconds: how long secrets that were replaced are still needed by clients that were
            judged before; then they are wiped.
    """

    store: SecretStore
    key: StoreKey
    judge: ClientJudge
    on_failure: Callable[[CloisterError], None]
    keep_seconds: float

    def __post_init__(self) -> None:
        self._generation = -1
        self._retired: list[tuple[float, tuple[Secret, ...]]] = []
        self.problem: str | None = None

    def poll(self) -> None:
        """Look once; reload if the store has changed."""
        self._wipe_retired(time.monotonic() - self.keep_seconds)
        try:
            if self.store.generation() == self._generation:
                self.problem = None
                return
            generation, secrets = self.store.load(self.key)
        except CloisterError as error:
            if self.problem != error.message:
                self.on_failure(error)
            self.problem = error.message
            return
        self._retired.append((time.monotonic(), self.judge.secrets))
        self.judge.replace(secrets)
        self._generation = generation
        self.problem = None

    def close(self) -> None:
        """Wipe every secret."""
        self._retired.append((0.0, self.judge.secrets))
        self.judge.replace(())
        self._wipe_retired(time.monotonic())

    def _wipe_retired(self, before: float) -> None:
        due = [item for item in self._retired if item[0] <= before]
        self._retired = [item for item in self._retired if item[0] > before]
        for _, secrets in due:
            for secret in secrets:
                secret.wipe()


@contextlib.contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Do ``action`` again and again in a thread while the block runs."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def health_of(
    *,
    trust: Trust,
    engine: sa.Engine | None,
    watcher: StoreWatcher | None,
    clock: Callable[[], datetime.datetime],
) -> list[str]:
    """Return what is wrong with a server, one line each."""
    problems = []
    if engine is not None:
        try:
            with reading(engine) as connection:
                connection.execute(sa.select(1))
        except CloisterError as error:
            problems.append(error.message)
    if watcher is not None and watcher.problem:
        problems.append(watcher.problem)
    for anchor, collateral in trust.known:
        end = expires(collateral)
        if end < clock():
            problems.append(f"collateral under {anchor.name} ran out on {end.isoformat()}")
    return problems


def audit_writer(engine: sa.Engine | None, key: StoreKey | None) -> AuditWriter | None:
    """Return a writer to the audit log in a database; None without one."""
    return AuditWriter(AuditLog(engine, key)) if engine is not None else None
