"""A key server with a store: hot reload, audit log, metrics, health.

The parts know nothing of one another; this joins them and owns their threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from cloister.attestation.expiry import expires
from cloister.attestation.trust import Authenticator, Trust
from cloister.errors import AuditError, CloisterError, CollateralError, RaTlsError, StoreError
from cloister.listen import bound_address, open_listeners
from cloister.provision.audit import AuditLog, AuditRecord, as_audit_error
from cloister.provision.database import reading
from cloister.provision.decision import ClientJudge, Decision, Outcome
from cloister.provision.limits import Limits
from cloister.provision.metrics import Metrics, admin_app
from cloister.provision.server import KeyServer
from cloister.provision.store_key import StoreKey
from cloister.provision.store_watcher import StoreWatcher

RELOAD_SECONDS = 1.0
REFRESH_SECONDS = 3600.0
ADMIN_CONNECTIONS = 64
"""To metrics and health, at once; the key server's clients need their descriptors."""
SLOW_SECONDS = 5.0
"""A server whose decisions wait for so long to be recorded is not healthy."""
STALE_SECONDS = 15.0
"""A server that has not looked at its store for so long is not healthy."""


class Recorder:
    """Takes every decision: counts it, writes it to the audit log, reports it.

    Args:
        audit: the log; None keeps none.
        observer: shows decisions and failures to people.
    """

    def __init__(self, audit: AuditLog | None, observer: Observer) -> None:
        self._audit = audit
        self._observer = observer
        self._problems: dict[str, str] = {}
        self.metrics: Metrics | None = None

    @property
    def problems(self) -> list[str]:
        """What failed when it was last tried, one line each."""
        return list(self._problems.values())

    def __call__(self, decisions: Sequence[Decision]) -> list[AuditError | None]:
        """Record decisions in this order; returns when the audit log has them.

        Whoever merely dropped a connection decided nothing and is not in the audit log.

        Returns:
            Of each why it could not be recorded, or None; a secret must not leave without.
        """
        audited = [] if self._audit is None else [item for item in decisions if _counts(item)]
        try:
            records = iter(self._append(audited))
        except AuditError as error:
            return [error if _counts(item) else self._told(item, None) for item in decisions]
        return [
            self._told(item, next(records) if audited and _counts(item) else None)
            for item in decisions
        ]

    def _append(self, decisions: Sequence[Decision]) -> list[AuditRecord]:
        if self._audit is None or not decisions:
            return []
        try:
            records = self._audit.append(decisions)
        except Exception as error:  # whatever it is, no secret may leave
            failure = as_audit_error(error)
            self._problems["audit"] = failure.message
            self.failed("audit", failure)
            raise failure from error
        self._problems.pop("audit", None)
        return records

    def _told(self, decision: Decision, record: AuditRecord | None) -> AuditError | None:
        if self.metrics is not None:
            self.metrics.decided(decision)
        failure = self.shown(lambda: self._observer.decided(decision, record))
        return failure if self._audit is None else None  # then what is shown is the only record

    def failed(self, part: str, error: CloisterError) -> None:
        """Count and show a failure of the server itself."""
        if self.metrics is not None:
            self.metrics.failed(part)
        self.shown(lambda: self._observer.failed(error))

    def shown(self, show: Callable[[], None]) -> AuditError | None:
        """Show something; who reads the log may be gone, or its disk full."""
        try:
            show()
        except (OSError, ValueError) as error:
            failure = AuditError(f"log: cannot be written ({error})")
            self._problems["log"] = failure.message
            if self.metrics is not None:
                self.metrics.failed("log")
            return failure
        self._problems.pop("log", None)
        return None


def _counts(decision: Decision) -> bool:
    return decision.outcome is not Outcome.DROPPED


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
        try:
            end = expires(collateral)
        except CollateralError as error:
            problems.append(f"under {anchor.name}: {error.message}")
            continue
        if end < clock():
            problems.append(f"collateral under {anchor.name} ran out on {end.isoformat()}")
    return problems


class Observer(Protocol):
    """Shows people and programs what a server does; called from several threads."""

    def started(self, host: str, port: int, admin: tuple[str, int] | None) -> None:
        """The server listens."""
        ...

    def decided(self, decision: Decision, record: AuditRecord | None) -> None:
        """A client was served, refused or dropped; the record is that of the audit log."""
        ...

    def failed(self, error: CloisterError) -> None:
        """Something went wrong that concerns no client."""
        ...

    def stopped(self, releases: int) -> None:
        """The server has stopped."""
        ...


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a server runs.

    Attributes:
        certificate: PEM file of its certificate chain.
        key: PEM file of its private key.
        listen: address and port for clients.
        admin: address and port of metrics and health, or None.
        limits: what clients may take.
        releases: stop after this many; None never does.
    """

    certificate: Path
    key: Path
    listen: tuple[str, int]
    admin: tuple[str, int] | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)
    releases: int | None = None


class Service:
    """A key server with everything around it.

    Args:
        settings: how it runs.
        judge: decides about clients.
        authenticator: what the judge uses; its trust is exchanged on a reload.
        load_trust: reads again whom the owner trusts.
        observer: shows what happens.
        clock: gives the present time (aware).
        engine: database of the audit log; None keeps none.
        store_key: seals the audit log; None leaves it unsealed.
        watcher: keeps the judge's secrets those of a store; None leaves them.
    """

    def __init__(
        self,
        settings: Settings,
        judge: ClientJudge,
        authenticator: Authenticator,
        *,
        load_trust: Callable[[], Trust],
        observer: Observer,
        clock: Callable[[], datetime.datetime],
        engine: sa.Engine | None = None,
        store_key: StoreKey | None = None,
        watcher: StoreWatcher | None = None,
    ) -> None:
        self._settings = settings
        self._judge = judge
        self._authenticator = authenticator
        self._load_trust = load_trust
        self._observer = observer
        self._clock = clock
        self._engine = engine
        self._watcher = watcher
        audit = AuditLog(engine, store_key) if engine is not None else None
        self._recorder = Recorder(audit, observer)
        self._server = KeyServer(
            judge,
            certificate=settings.certificate,
            key=settings.key,
            record=self._recorder,
            defect=self._on_defect,
            clock=clock,
            limits=settings.limits,
        )
        self._metrics = Metrics(
            active_clients=lambda: self._server.active_clients,
            waiting_clients=lambda: self._server.waiting_clients,
            turned_away=lambda: self._server.turned_away,
            secrets=lambda: len(judge.secrets),
        )
        self._recorder.metrics = self._metrics
        self._looked = 0.0
        self._wake = threading.Event()
        self._reload = threading.Event()
        self._stopping = threading.Event()

    def run(self) -> int:
        """Serve until :meth:`stop` is called or enough secrets were released.

        Returns:
            How many secrets were released.

        Raises:
            InputError: a port cannot be opened.
        """
        host, port = self._server.listen(*self._settings.listen)
        keeper = threading.Thread(target=self._keep_fresh, daemon=True)
        # Not waited for: a request to a service takes its time, and loses nothing when it ends.
        refresher = threading.Thread(target=self._keep_collateral, daemon=True)
        self._looked = time.monotonic()
        with self._admin() as admin:
            keeper.start()
            refresher.start()
            self._observer.started(host, port, admin)
            try:
                self._server.serve(releases=self._settings.releases)
            finally:
                self._stopping.set()
                self._wake.set()
                keeper.join()
        self._recorder.shown(lambda: self._observer.stopped(self._server.releases))
        return self._server.releases

    def stop(self) -> None:
        """Stop after the clients that are being served; safe in a signal handler."""
        self._server.stop()

    def wakes_at(self) -> int:
        """Return the descriptor that signal handlers are to be announced at (set_wakeup_fd).

        A handler runs when the main thread does something; a signal that comes just before it
        begins to wait for clients, or to another thread, would else wait for a client too.
        """
        return self._server.wakes_at()

    def reload(self) -> None:
        """Read trust and store again soon; safe in a signal handler."""
        self._reload.set()
        self._wake.set()

    @contextlib.contextmanager
    def _admin(self) -> Iterator[tuple[str, int] | None]:
        if self._settings.admin is None:
            yield None
            return
        from cloister.asgi import serving

        app = admin_app(self._metrics, health=self._health, clock=self._clock)
        listeners = open_listeners(*self._settings.admin)
        address = bound_address(listeners)
        with serving(app, listeners, connections=ADMIN_CONNECTIONS):
            yield address

    def _health(self) -> list[str]:
        problems = health_of(
            trust=self._authenticator.trust,
            engine=self._engine,
            watcher=self._watcher,
            clock=self._clock,
        )
        idle = time.monotonic() - self._looked
        if idle > STALE_SECONDS:
            problems.append(f"the last look at store and trust was {idle:.0f} seconds ago")
        waiting = self._server.recording_seconds
        if waiting > SLOW_SECONDS:
            problems.append(f"the audit log has not taken a decision for {waiting:.0f} seconds")
        return [*problems, *self._recorder.problems]

    def _on_defect(self, error: Exception) -> None:
        words = f"{type(error).__name__}: {error}"
        self._recorder.failed("client", RaTlsError(f"internal error ({words})"))

    def _keep_fresh(self) -> None:
        """Look at the store every second, and at the collateral every hour, whatever fails."""
        while not self._stopping.is_set():
            self._wake.wait(RELOAD_SECONDS)
            self._wake.clear()
            try:
                self._look()
            except Exception as error:  # nothing may end this: removed secrets would be released on
                words = f"{type(error).__name__}: {error}"
                self._recorder.failed("reload", StoreError(f"internal error ({words})"))
            else:
                self._looked = time.monotonic()

    def _look(self) -> None:
        if self._reload.is_set():
            self._reload.clear()
            self._reload_trust()
        if self._watcher is not None:
            self._watcher.poll()

    def _keep_collateral(self) -> None:
        """Refresh collateral in a thread of its own: a slow service must not delay the store."""
        while not self._stopping.wait(REFRESH_SECONDS):
            try:
                self._authenticator.trust.refresh_due()
            except Exception as error:  # as above
                words = f"{type(error).__name__}: {error}"
                self._recorder.failed("collateral", CollateralError(f"internal error ({words})"))

    def _reload_trust(self) -> None:
        try:
            self._authenticator.trust = self._load_trust()
        except (CloisterError, OSError) as error:
            failure = error if isinstance(error, CloisterError) else StoreError(str(error))
            self._recorder.failed("reload", failure)
