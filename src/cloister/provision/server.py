"""The owner's side of key release, on the network: judge each client, release a secret or refuse.

Every client is judged by its certificate's evidence during the TLS handshake, the decision is
recorded, and only then the secret's bytes leave. One thread serves one client; how many there
are, also from one address, how long each may take, and how often one address may come is limited.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import resource
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from OpenSSL import SSL

from cloister.errors import CloisterError, ProtocolError, RaTlsError, RefusedError
from cloister.listen import bound_address, open_listeners
from cloister.provision import protocol
from cloister.provision.decision import ClientJudge, ClientJudgement, Decision, Outcome
from cloister.provision.limits import Admission, Admitted, Limits, RateLimiter, origin_of
from cloister.ratls.deadline import Deadline
from cloister.ratls.server import Channel, RaTlsServer

_NO_CERTIFICATE = "peer did not return a certificate"
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_OTHER_DESCRIPTORS = 128

Arrived = tuple[socket.socket, str]
"""A connection and the peer's address, as text."""


class KeyServer:
    """A key server on one TCP port.

    Args:
        judge: decides about clients.
        certificate: PEM file of the server's certificate chain.
        key: PEM file of its private key.
        record: called with every decision, before a secret leaves; if it raises, none leaves.
        clock: gives the present time (aware).
        limits: what clients may take.
    """

    def __init__(
        self,
        judge: ClientJudge,
        *,
        certificate: Path,
        key: Path,
        record: Callable[[Decision], None],
        clock: Callable[[], datetime.datetime],
        limits: Limits | None = None,
    ) -> None:
        self._tls = RaTlsServer.from_files(certificate, key, judge)
        self._record = record
        self._clock = clock
        self._limits = limits or Limits()
        self._rates = RateLimiter(self._limits.rate, self._limits.burst)
        self._admission: Admission[Arrived] = Admission(self._limits)
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._turned_away = 0
        self._listeners: list[socket.socket] = []
        self._releases = 0
        self._reserved = 0
        self._wanted_releases: int | None = None

    @property
    def releases(self) -> int:
        """How many secrets were sent in full."""
        return self._releases

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
        self._wanted_releases = releases
        _allow_descriptors(self._limits.max_clients + self._limits.max_waiting + _OTHER_DESCRIPTORS)
        try:
            self._accept_until_stopped()
        finally:
            for listener in self._listeners:
                listener.close()
            for connected, _ in self._admission.dismiss():
                connected.close()
            self._join()

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

    def _accept_until_stopped(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in selector.select():
                    if key.fileobj is self._wake_reader:
                        self._start_waiting()
                    elif isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connected, address = listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:
                self._stopping.wait(0.1)
            return
        origin = origin_of(str(address[0]))
        arrived = (connected, f"{address[0]}:{address[1]}")
        admitted = Admitted.TURNED_AWAY
        if self._rates.allows(origin, time.monotonic()):
            admitted = self._admission.arrive(origin, arrived)
        if admitted is Admitted.STARTED:
            self._start(origin, arrived)
        elif admitted is Admitted.TURNED_AWAY:
            self._turned_away += 1
            connected.close()

    def _start_waiting(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_reader.recv(65536)
        while not self._stopping.is_set() and (following := self._admission.next()) is not None:
            self._start(*following)

    def _start(self, origin: str, arrived: Arrived) -> None:
        thread = threading.Thread(target=self._client, args=(origin, *arrived), daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            self._turned_away += 1
            self._gone(origin, arrived[0], thread)

    def _gone(self, origin: str, connected: socket.socket, thread: threading.Thread) -> None:
        connected.close()
        with self._lock:
            self._threads.discard(thread)
        self._admission.leave(origin)
        if self._admission.waiting:
            self._wake()

    def _join(self) -> None:
        with self._lock:
            running = list(self._threads)
        for thread in running:
            thread.join(self._limits.client_timeout + 1)

    def _client(self, origin: str, connected: socket.socket, peer: str) -> None:
        channel: Channel[ClientJudgement] | None = None
        try:
            _wait_for_a_byte(connected, self._limits.hello_timeout)
            channel = self._tls.channel(connected, Deadline(self._limits.client_timeout))
            self._serve(channel, peer)
        except Exception as error:
            # Whatever a client makes fail here ends its own connection and nothing else. If this
            # cannot be recorded either, the recorder has told so, and nothing was released.
            with contextlib.suppress(CloisterError):
                self._record_failure(peer, channel, error)
        finally:
            if channel is not None:
                channel.close()
            self._gone(origin, connected, threading.current_thread())

    def _serve(self, channel: Channel[ClientJudgement], peer: str) -> None:
        judgement = channel.handshake()
        secret = judgement.secret
        if secret is None or not judgement.accepted:
            raise RaTlsError("the client was not accepted")
        protocol.check_request(channel.read_exactly(len(protocol.REQUEST)))
        with self._reserved_release():
            self._record(self._decision(peer, judgement, Outcome.RELEASED))
            channel.write(protocol.encode_head(len(secret.value)))
            channel.write(secret.value)

    @contextlib.contextmanager
    def _reserved_release(self) -> Iterator[None]:
        """Count a release before it is made, so that never more are made than are wanted."""
        wanted = self._wanted_releases
        with self._lock:
            if wanted is not None and self._releases + self._reserved >= wanted:
                raise RaTlsError("as many secrets as are to be released are taken")
            self._reserved += 1
        sent = False
        try:
            yield
            sent = True
        finally:
            with self._lock:
                self._reserved -= 1
                self._releases += sent
                enough = wanted is not None and self._releases >= wanted
            if enough:
                self.stop()

    def _record_failure(
        self, peer: str, channel: Channel[ClientJudgement] | None, error: Exception
    ) -> None:
        judgement = channel.judgement if channel is not None else None
        reason = _reason(error)
        # Whoever leaves, or is too slow, was refused nothing.
        ours = _NO_CERTIFICATE in reason or isinstance(error, (RefusedError, ProtocolError))
        if judgement is None:
            outcome = Outcome.REFUSED if ours else Outcome.DROPPED
            self._record(Decision(self._clock(), peer, outcome, None, reason))
        elif not judgement.accepted:
            self._record(self._decision(peer, judgement, Outcome.REFUSED))
        else:
            outcome = Outcome.REFUSED if ours else Outcome.DROPPED
            decision = self._decision(peer, judgement, outcome)
            self._record(dataclasses.replace(decision, reason=reason))

    def _decision(self, peer: str, judgement: ClientJudgement, outcome: Outcome) -> Decision:
        evidence = judgement.verdict.evidence
        released = judgement.secret if outcome is Outcome.RELEASED else None
        return Decision(
            time=self._clock(),
            peer=peer,
            outcome=outcome,
            secret=released.name if released else None,
            reason=judgement.reason,
            check=judgement.failed_check,
            identity=evidence.identity if evidence else None,
            tcb_status=evidence.tcb_status if evidence else None,
            simulated=judgement.verdict.simulated,
        )


def _allow_descriptors(count: int) -> None:
    """Let this process open that many files, or as many as it may at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _wait_for_a_byte(connected: socket.socket, seconds: float) -> None:
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    if not poll.poll(seconds * 1000):
        raise TimeoutError(f"not one byte within {seconds:g} seconds")


def _reason(error: Exception) -> str:
    if isinstance(error, CloisterError):
        return error.message
    if isinstance(error, SSL.SysCallError):
        return "the client closed the connection during the handshake"
    if isinstance(error, SSL.Error):
        details = error.args[0] if error.args else []
        words = [str(item[2]) for item in details if len(item) > 2]
        return f"TLS failed ({', '.join(words) or 'unknown cause'})"
    if isinstance(error, (OSError, EOFError)):
        return str(error) or type(error).__name__
    return f"internal error ({type(error).__name__})"
