"""The owner's side of key release, on the network: judge each client, release a secret or refuse.

Every client is judged by its certificate's evidence during the TLS handshake, the decision is
recorded, and only then the secret's bytes leave. One thread serves all clients; how many there
are, also from one address, how long each may take, and how often one address may come is limited.
To use more processors, start more servers on one database.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import resource
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from cloister.listen import bound_address, open_listeners
from cloister.provision.decision import ClientJudge
from cloister.provision.exchange import Exchange, Releases, Rules
from cloister.provision.exchanges import Exchanges, Record
from cloister.provision.limits import Admission, Admitted, Limits, RateLimiter, origin_of
from cloister.ratls.server import RaTlsServer

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 0.1
_LOOK_SECONDS = 0.02
"""How often those who wait are looked at: room is told of, but not that the rate permits more."""
_FINISH_SECONDS = 5.0
"""How long a server that stops waits for a record that does not come."""
_OTHER_DESCRIPTORS = 128
_AT_ONCE = 16
"""Clients that are resumed, or accepted, before something else is looked at."""

T = TypeVar("T")
Arrived = tuple[socket.socket, str]
"""A connection and the peer's address, as text."""


class KeyServer:
    """A key server on one TCP port.

    Args:
        judge: decides about clients.
        certificate: PEM file of the server's certificate chain.
        key: PEM file of its private key.
        record: called with all decisions, before a secret leaves; where it fails, none leaves.
        defect: told of defects of the server itself, which end one client's connection.
        clock: gives the present time (aware).
        limits: what clients may take.
    """

    def __init__(
        self,
        judge: ClientJudge,
        *,
        certificate: Path,
        key: Path,
        record: Record,
        defect: Callable[[Exception], None],
        clock: Callable[[], datetime.datetime],
        limits: Limits | None = None,
    ) -> None:
        self._tls = RaTlsServer.from_files(certificate, key, judge.at_once)
        self._judge = judge
        self._record = record
        self._defect = defect
        self._clock = clock
        self._limits = limits or Limits()
        self._rates = RateLimiter(self._limits.rate, self._limits.burst)
        self._admission: Admission[Arrived] = Admission(self._limits)
        self._stopping = threading.Event()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._turned_away = 0
        self._listeners: list[socket.socket] = []
        self._paused_until = 0.0
        self._releases = Releases()
        self._origins: dict[Exchange, str] = {}
        self._exchanges: Exchanges | None = None

    @property
    def recording_seconds(self) -> float:
        """For how long decisions have been on their way to the record; 0 if none are."""
        return 0.0 if self._exchanges is None else self._exchanges.recording_seconds

    @property
    def releases(self) -> int:
        """How many secrets were sent in full."""
        return self._releases.made

    @property
    def active_clients(self) -> int:
        """How many clients are being served."""
        return self._admission.active

    @property
    def waiting_clients(self) -> int:
        """How many clients wait until others are done."""
        return self._admission.waiting

    @property
    def turned_away(self) -> int:
        """How many connections were closed at once, because of the limits."""
        return self._turned_away

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Open the port; 0 takes a free one.

        Returns:
            The address and the port that were opened.

        Raises:
            InputError: it cannot be opened.
        """
        opened = open_listeners(host, port)
        self._listeners.extend(opened)
        return bound_address(opened)

    def serve(self, *, releases: int | None = None) -> None:
        """Serve clients until :meth:`stop` is called or enough secrets were released.

        Args:
            releases: return after this many; None never does.
        """
        self._releases = Releases(releases)
        _allow_descriptors(self._limits.max_clients + self._limits.max_waiting + _OTHER_DESCRIPTORS)
        with selectors.DefaultSelector() as selector:
            self._exchanges = exchanges = Exchanges(
                selector,
                judge=self._judge,
                record=self._record,
                wake=self._wake,
                over=self._gone,
                defect=self._defect,
            )
            selector.register(self._wake_reader, selectors.EVENT_READ)
            self._listen_with(selector)
            try:
                while not self._stopping.is_set():
                    self._turn(selector, exchanges)
            finally:
                self._leave(selector)
            while exchanges.running:  # their deadlines see to it that this ends
                self._turn(selector, exchanges)
            exchanges.finish(_FINISH_SECONDS)

    def stop(self) -> None:
        """Let :meth:`serve` return after the clients that are being served; from any thread.

        Also safe in a signal handler.
        """
        self._stopping.set()
        self._wake()

    def wakes_at(self) -> int:
        """Return a descriptor: a byte that is written there wakes the server (set_wakeup_fd)."""
        return self._wake_writer.fileno()

    def _wake(self) -> None:
        # A full pipe is as good: the loop wakes and looks at everything.
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")

    def _turn(self, selector: selectors.BaseSelector, exchanges: Exchanges) -> None:
        """Wait until something can be done, and do it."""
        ready = selector.select(0 if exchanges.are_waiting else self._seconds(exchanges))
        for keys in _pieces(ready, _AT_ONCE):
            for key, _ in keys:
                if isinstance(key.data, Exchange):
                    exchanges.go_on(key.data)
                elif key.fileobj is self._wake_reader:
                    self._drain()
                elif isinstance(key.fileobj, socket.socket):
                    self._accept(selector, key.fileobj, exchanges)
            if exchanges.have_waited:
                exchanges.settle()
        exchanges.expire()
        if not ready:
            exchanges.settle()
        if self._releases.enough:
            self._stopping.set()
        if self._paused_until and time.monotonic() >= self._paused_until:
            self._listen_with(selector)
        if self._admission.waiting:
            self._start_waiting(exchanges)
        if self._admission.waiting or self._stopping.is_set():
            exchanges.hurry()

    def _start_waiting(self, exchanges: Exchanges) -> None:
        for _ in range(_AT_ONCE):
            following = self._admission.next(self._is_within_rate)
            if following is None:
                return
            self._start(*following, exchanges)

    def _is_within_rate(self, origin: str) -> bool:
        return self._rates.allows(origin, time.monotonic())

    def _seconds(self, exchanges: Exchanges) -> float | None:
        """Return how long there is nothing to do but to wait for clients; None if for ever."""
        reasons = [exchanges.seconds()]
        if self._admission.waiting:
            reasons.append(_LOOK_SECONDS)
        if self._paused_until:
            reasons.append(max(0.0, self._paused_until - time.monotonic()))
        return min((seconds for seconds in reasons if seconds is not None), default=None)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(65536)

    def _listen_with(self, selector: selectors.BaseSelector) -> None:
        self._paused_until = 0.0
        for listener in self._listeners:
            listener.setblocking(False)
            selector.register(listener, selectors.EVENT_READ)

    def _pause(self, selector: selectors.BaseSelector) -> None:
        """Take no connections for a while: there is nothing left to take them with."""
        self._paused_until = time.monotonic() + _PAUSE_SECONDS
        for listener in self._listeners:
            selector.unregister(listener)

    def _leave(self, selector: selectors.BaseSelector) -> None:
        """Close the port, and let go of those who wait."""
        for listener in self._listeners:
            if not self._paused_until:
                selector.unregister(listener)
            listener.close()
        self._listeners.clear()
        self._paused_until = 0.0
        for connected, _ in self._admission.dismiss():
            connected.close()

    def _accept(
        self, selector: selectors.BaseSelector, listener: socket.socket, exchanges: Exchanges
    ) -> None:
        for _ in range(_AT_ONCE):
            try:
                connected, address = listener.accept()
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES and not self._paused_until:
                    self._pause(selector)
                return
            origin = origin_of(str(address[0]))
            arrived = (connected, f"{address[0]}:{address[1]}")
            admitted = self._admission.arrive(origin, arrived, self._is_within_rate)
            if admitted is Admitted.STARTED:
                self._start(origin, arrived, exchanges)
            elif admitted is Admitted.TURNED_AWAY:
                self._turned_away += 1
                connected.close()

    def _start(self, origin: str, arrived: Arrived, exchanges: Exchanges) -> None:
        rules = Rules(self._tls, self._limits, self._clock, self._releases)
        exchange = Exchange(*arrived, rules)
        self._origins[exchange] = origin
        exchanges.begin(exchange)

    def _gone(self, exchange: Exchange) -> None:
        self._admission.leave(self._origins.pop(exchange))


def _pieces(items: list[T], size: int) -> Iterable[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _allow_descriptors(count: int) -> None:
    """Let this process open that many files, or as many as it may at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
