"""The owner's side of key release: judge each client, release a secret or refuse.

Every client is judged by its certificate's evidence during the TLS handshake, the decision is
recorded, and only then the secret's bytes leave. One thread serves one client; the number of
threads, the time of each client and the size of its message are bounded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import errno
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from OpenSSL import SSL

from cloister.attestation.dcap import printable
from cloister.attestation.policy import Policy
from cloister.attestation.trust import Authenticator
from cloister.attestation.verdict import Verdict
from cloister.errors import CloisterError, InputError, PolicyError, RaTlsError
from cloister.listen import bound_address, open_listeners
from cloister.provision import protocol
from cloister.ratls.deadline import Deadline
from cloister.ratls.server import Channel, RaTlsServer
from cloister.ratls.verify import authenticate_certificate

MAX_CLIENTS = 64
CLIENT_TIMEOUT = 10.0
"""Seconds that one client has for handshake, request and answer together."""
_NO_CERTIFICATE = "peer did not return a certificate"
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclasses.dataclass(frozen=True)
class Secret:
    """A secret and the enclaves that may have it.

    Attributes:
        name: what logs call it.
        value: the bytes that are sent; never logged.
        policy: which enclaves may have it.
    """

    name: str
    value: bytearray = dataclasses.field(repr=False)
    policy: Policy

    def wipe(self) -> None:
        """Overwrite the value with zeros."""
        self.value[:] = bytes(len(self.value))


class Outcome(enum.Enum):
    """What became of a client."""

    RELEASED = "released"
    REFUSED = "refused"
    DROPPED = "dropped"
    """It left, or failed at TLS, before it showed a certificate or asked for anything."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided about one client, and why; never contains the secret.

    Attributes:
        time: when.
        peer: the client's address.
        outcome: what became of it.
        secret: name of the released secret, or None.
        reason: one line.
        identity: the enclave's measurement, or None if the quote was not genuine.
        tcb_status: the platform's, or None likewise.
        simulated: whether the root is a simulated one; None if no trusted root was found.
    """

    time: datetime.datetime
    peer: str
    outcome: Outcome
    secret: str | None
    reason: str
    identity: str | None = None
    tcb_status: str | None = None
    simulated: bool | None = None

    def to_line(self) -> str:
        """Return the decision as one line for a log."""
        words = {
            Outcome.RELEASED: f"RELEASED {self.secret} to",
            Outcome.REFUSED: "REFUSED",
            Outcome.DROPPED: "no exchange with",
        }
        time = self.time.strftime("%Y-%m-%dT%H:%M:%SZ")
        parts = [time, words[self.outcome], f"{self.peer}:", self.reason]
        if self.identity:
            parts.append(f"[{self.identity}, TCB {self.tcb_status}]")
        if self.simulated:
            parts.append("SIMULATED")
        return printable(" ".join(parts))

    def to_dict(self) -> dict[str, Any]:
        """Return the decision for JSON."""
        shown = dataclasses.asdict(self)
        return shown | {"time": self.time.isoformat(), "outcome": self.outcome.value}


@dataclasses.dataclass(frozen=True)
class ClientJudgement:
    """The verdict on a client's certificate: the secret that it may have, or none."""

    secret: Secret | None
    verdict: Verdict

    @property
    def accepted(self) -> bool:
        """Whether there is a secret for this client."""
        return self.secret is not None and self.verdict.accepted

    @property
    def reason(self) -> str:
        """Why, in one line."""
        if self.accepted:
            return "every check passed"
        return self.verdict.failures[0].as_error().message


@dataclasses.dataclass(frozen=True)
class ClientJudge:
    """Judges certificates against the policies of several secrets; the first that fits counts."""

    secrets: tuple[Secret, ...]
    authenticator: Authenticator

    def __call__(self, certificate: bytes) -> ClientJudgement:
        """Judge a certificate in DER."""
        authentication = authenticate_certificate(certificate, self.authenticator)
        refusal: Verdict | None = None
        for secret in self.secrets:
            verdict = authentication.judge(secret.policy)
            if verdict.accepted:
                return ClientJudgement(secret, verdict)
            refusal = refusal or verdict
        if refusal is None:
            raise PolicyError("the key server has no secret")
        return ClientJudgement(None, refusal)


class KeyServer:
    """A key server on one TCP port.

    Args:
        judge: decides about clients.
        certificate: PEM file of the server's certificate chain.
        key: PEM file of its private key.
        record: called with every decision, before a secret leaves; if it raises, none leaves.
        clock: gives the present time (aware).
        max_clients: clients served at once; more wait in the system's queue.
        client_timeout: seconds that each client has.
    """

    def __init__(
        self,
        judge: ClientJudge,
        *,
        certificate: Path,
        key: Path,
        record: Callable[[Decision], None],
        clock: Callable[[], datetime.datetime],
        max_clients: int = MAX_CLIENTS,
        client_timeout: float = CLIENT_TIMEOUT,
    ) -> None:
        self._tls = RaTlsServer.from_files(certificate, key, judge)
        self._record = record
        self._clock = clock
        self._client_timeout = client_timeout
        self._slots = threading.BoundedSemaphore(max_clients)
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._listeners: list[socket.socket] = []
        self._releases = 0
        self._wanted_releases: int | None = None

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
        try:
            self._accept_until_stopped()
        finally:
            for listener in self._listeners:
                listener.close()
            self._join()

    def stop(self) -> None:
        """Let :meth:`serve` return after the clients that are being served; from any thread.

        Also safe in a signal handler.
        """
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")

    def _accept_until_stopped(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in selector.select():
                    if isinstance(key.fileobj, socket.socket) and key.fileobj in self._listeners:
                        self._accept(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        while not self._slots.acquire(timeout=0.1):
            if self._stopping.is_set():
                return
        try:
            connected, address = listener.accept()
        except OSError as error:
            self._slots.release()
            if error.errno in _OUT_OF_RESOURCES:
                self._stopping.wait(0.1)
            return
        thread = threading.Thread(target=self._client, args=(connected, address), daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _join(self) -> None:
        with self._lock:
            running = list(self._threads)
        for thread in running:
            thread.join(self._client_timeout + 1)

    def _client(self, connected: socket.socket, address: tuple[object, ...]) -> None:
        peer = f"{address[0]}:{address[1]}"
        channel: Channel[ClientJudgement] | None = None
        try:
            channel = self._tls.channel(connected, Deadline(self._client_timeout))
            self._serve(channel, peer)
        except (CloisterError, SSL.Error, OSError, EOFError) as error:
            self._record_failure(peer, channel, error)
        finally:
            if channel is not None:
                channel.close()
            connected.close()
            self._slots.release()
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _serve(self, channel: Channel[ClientJudgement], peer: str) -> None:
        judgement = channel.handshake()
        secret = judgement.secret
        if secret is None or not judgement.accepted:
            raise RaTlsError("the client was not accepted")
        protocol.check_request(channel.read_exactly(len(protocol.REQUEST)))
        self._record(self._decision(peer, judgement, Outcome.RELEASED))
        channel.write(protocol.encode_head(len(secret.value)))
        channel.write(secret.value)
        self._count_release()

    @property
    def releases(self) -> int:
        """How many secrets were sent in full."""
        return self._releases

    def _count_release(self) -> None:
        with self._lock:
            self._releases += 1
            enough = self._wanted_releases is not None and self._releases >= self._wanted_releases
        if enough:
            self.stop()

    def _record_failure(
        self, peer: str, channel: Channel[ClientJudgement] | None, error: Exception
    ) -> None:
        judgement = channel.judgement if channel is not None else None
        if judgement is not None and not judgement.accepted:
            self._record(self._decision(peer, judgement, Outcome.REFUSED))
            return
        reason = _reason(error)
        outcome = Outcome.REFUSED if _NO_CERTIFICATE in reason else Outcome.DROPPED
        self._record(Decision(self._clock(), peer, outcome, None, reason))

    def _decision(self, peer: str, judgement: ClientJudgement, outcome: Outcome) -> Decision:
        evidence = judgement.verdict.evidence
        released = judgement.secret if outcome is Outcome.RELEASED else None
        return Decision(
            time=self._clock(),
            peer=peer,
            outcome=outcome,
            secret=released.name if released else None,
            reason=judgement.reason,
            identity=evidence.identity if evidence else None,
            tcb_status=evidence.tcb_status if evidence else None,
            simulated=judgement.verdict.simulated,
        )


def _reason(error: Exception) -> str:
    if isinstance(error, CloisterError):
        return error.message
    if isinstance(error, SSL.SysCallError):
        return "the client closed the connection during the handshake"
    if isinstance(error, SSL.Error):
        details = error.args[0] if error.args else []
        words = [str(item[2]) for item in details if len(item) > 2]
        return f"TLS failed ({', '.join(words) or 'unknown cause'})"
    return str(error) or type(error).__name__


def secrets_named(secrets: Sequence[Secret]) -> tuple[Secret, ...]:
    """Return the secrets as a tuple after checking that each name is there once.

    Raises:
        InputError: a name is there twice, or there is none at all.
    """
    names = [secret.name for secret in secrets]
    if not names:
        raise InputError("a key server needs at least one secret")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"secret {name}: named twice")
    return tuple(secrets)
