"""TLS servers that judge their clients by the evidence in their certificates.

The client's certificate is judged by a callback during the handshake, and once more looked at
afterwards: whoever gets past without having been judged (a resumed session, a second certificate)
is refused. Sessions are never resumed, so that every connection is judged by itself.

Nothing here waits: what has to wait for the peer is a generator that yields what for, so that one
thread serves many clients. (A thread a client costs more than the handshakes: pyOpenSSL lets go of
the interpreter's lock some hundred times in each, and every time another thread takes it.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import selectors
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Generic, ParamSpec, Protocol, TypeVar

from OpenSSL import SSL, crypto

from cloister.errors import CloisterError, InputError, RaTlsError
from cloister.ratls.certificate import RaTlsIdentity
from cloister.ratls.deadline import Deadline


class Judgement(Protocol):
    """What a judge returns about a certificate."""

    @property
    def accepted(self) -> bool:
        """Whether the handshake may go on."""
        ...


J = TypeVar("J", bound=Judgement)
T = TypeVar("T")
P = ParamSpec("P")
Judge = Callable[[bytes], J | None]
"""Judges a certificate in DER; called once a connection. None: it cannot be judged at once."""
Waiting = Generator[int, None, T]
"""Yields ``selectors.EVENT_READ`` or ``EVENT_WRITE``, what the socket is waited for; and is resumed
when it is there, or the deadline has passed."""

MOST_RECEIVED = 256 << 10
"""Bytes that one connection may bring: ten times what handshake and request need."""
_PIECE = 16 << 10
_UNREAD_PIECES = 16


@dataclasses.dataclass
class _Peer(Generic[J]):
    """What is known about the other end of one connection."""

    certificate: bytes | None = None
    judgement: J | None = None
    failure: Exception | None = None


class RaTlsServer(Generic[J]):
    """Makes TLS channels whose clients were judged.

    Use :meth:`from_files` or :meth:`from_identity`.

    Args:
        judge: called with the client's certificate (DER) during the handshake. Where it returns
            None, the handshake goes on, and whoever asked for it has to judge before anything else.
    """

    def __init__(self, judge: Judge[J]) -> None:
        self._judge = judge
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verify_callback)
        self._context = context

    @classmethod
    def from_files(cls, certificate: Path, key: Path, judge: Judge[J]) -> RaTlsServer[J]:
        """Return a server with an ordinary certificate.

        Args:
            certificate: PEM file of the certificate chain, leaf first.
            key: PEM file of its private key.
            judge: decides about clients.

        Raises:
            InputError: the files cannot be used together.
        """
        server = cls(judge)
        try:
            server._context.use_certificate_chain_file(str(certificate))
            server._context.use_privatekey_file(str(key))
            server._context.check_privatekey()
        except (SSL.Error, OSError) as error:
            raise InputError(
                f"{certificate} and {key}: not a PEM certificate and its private key",
                hint="make a pair with: cloister certs new DIR",
            ) from error
        return server

    @classmethod
    def from_identity(cls, identity: RaTlsIdentity, judge: Judge[J]) -> RaTlsServer[J]:
        """Return a server in an enclave: both ends then judge one another."""
        server = cls(judge)
        server._context.use_certificate(identity.certificate)
        server._context.use_privatekey(identity.key)
        return server

    def _verify_callback(
        self, connection: SSL.Connection, certificate: crypto.X509, _error: int, depth: int, _: int
    ) -> bool:
        # An exception that left this callback would surface in some other thread's handshake,
        # because pyOpenSSL keeps it in the shared context. It is kept here and raised later.
        peer: _Peer[J] = connection.get_app_data()
        try:
            return depth == 0 and peer.failure is None and self._may_go_on(peer, certificate)
        except Exception as error:
            peer.failure = error
            return False

    def _may_go_on(self, peer: _Peer[J], certificate: crypto.X509) -> bool:
        # OpenSSL calls this once for each of its own complaints (self-signed, expired) and once
        # more at the end; the judgement is made once and is the only thing that counts.
        der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
        if peer.certificate is None:
            peer.certificate = der
            peer.judgement = self._judge(der)
        elif peer.certificate != der:
            return False
        return peer.judgement is None or peer.judgement.accepted

    def channel(self, connected: socket.socket, deadline: Deadline) -> Channel[J]:
        """Wrap an accepted TCP connection; the handshake is still to be done."""
        connected.setblocking(False)
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        connection.set_app_data(_Peer[J]())
        return Channel(connection, connected, deadline)


class Channel(Generic[J]):
    """One TLS connection; everything on it must be done before its deadline.

    TLS gets the socket's bytes piece by piece, and no more of them than the whole connection can
    need: a peer that sends without an end (key updates, records of one byte) would else be worked
    for as long as it sends.
    """

    def __init__(
        self, connection: SSL.Connection, connected: socket.socket, deadline: Deadline
    ) -> None:
        self._connection = connection
        self._socket = connected
        self._deadline = deadline
        self._received = 0
        self._unsent = b""

    def handshake(self) -> Waiting[J | None]:
        """Do the handshake and return the judgement on the client.

        Returns:
            The judgement, an accepting one; None if :attr:`certificate` is still to be judged.

        Raises:
            RaTlsError: the client was not accepted; :attr:`judgement` says why, if it was judged.
            SSL.Error: TLS itself failed.
            EOFError: the peer closed before.
            TimeoutError: it took too long.
        """
        try:
            yield from self._run(self._connection.do_handshake)
        except SSL.Error:
            self._raise_failure()
            raise
        self._raise_failure()
        peer = self._peer
        refused = peer.judgement is not None and not peer.judgement.accepted
        if refused or self._shown_certificates() != {peer.certificate}:
            raise RaTlsError("the client was not judged by the one certificate that it presents")
        return peer.judgement

    def judge(self, judgement: J) -> None:
        """Enter the judgement on a client that was not judged during the handshake."""
        self._peer.judgement = judgement

    @property
    def certificate(self) -> bytes:
        """The client's certificate in DER, as it was shown to the judge.

        Raises:
            RaTlsError: none was.
        """
        if self._peer.certificate is None:
            raise RaTlsError("the client has shown no certificate")
        return self._peer.certificate

    @property
    def judgement(self) -> J | None:
        """The judgement on the client, also when the handshake failed; None before it."""
        return self._peer.judgement

    def _shown_certificates(self) -> set[bytes]:
        leaf = self._connection.get_peer_certificate()
        chain = self._connection.get_peer_cert_chain() or []
        shown = [leaf, *chain] if leaf is not None else chain
        return {crypto.dump_certificate(crypto.FILETYPE_ASN1, item) for item in shown}

    @property
    def _peer(self) -> _Peer[J]:
        peer: _Peer[J] = self._connection.get_app_data()
        return peer

    def _raise_failure(self) -> None:
        failure = self._peer.failure
        if failure is not None:
            raise failure_of_judging(failure) from failure

    def read_exactly(self, size: int) -> Waiting[bytes]:
        """Return exactly ``size`` bytes.

        Raises:
            EOFError: the peer closed before.
            TimeoutError: it took too long.
        """
        received = bytearray()
        while len(received) < size:
            missing = size - len(received)
            try:
                received += yield from self._run(self._connection.recv, missing)
            except SSL.ZeroReturnError as error:
                raise EOFError("the peer closed the connection") from error
        return bytes(received)

    def write(self, data: bytes | bytearray) -> Waiting[None]:
        """Send all of ``data``."""
        view = memoryview(data)
        while view:
            sent = yield from self._run(self._connection.send, view)
            view = view[sent:]

    def close(self) -> None:
        """Send close_notify if that is possible at once, and close.

        Bytes that came after the request are taken off first: a socket that is closed with some
        unread is reset, and the peer may then lose what it has not read yet.
        """
        with contextlib.suppress(SSL.Error, OSError):
            self._connection.shutdown()
            self._send_what_can_be_sent()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            for _ in range(_UNREAD_PIECES):
                if not self._socket.recv(4096):
                    break
        self._socket.close()

    def _run(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Waiting[T]:
        while True:
            # Also when nothing has to be waited for: what is written after the deadline may have
            # been wiped by those who think this connection over.
            self._deadline.remaining()
            try:
                result = operation(*args, **kwargs)
            except SSL.WantReadError:
                yield from self._send()
                yield from self._receive()
            except SSL.Error:
                with contextlib.suppress(OSError):
                    self._send_what_can_be_sent()  # why we refuse
                raise
            else:
                yield from self._send()
                return result

    def _send(self) -> Waiting[None]:
        while not self._send_what_can_be_sent():
            yield selectors.EVENT_WRITE
            self._deadline.remaining()

    def _send_what_can_be_sent(self) -> bool:
        """Send what TLS has for the peer, as far as possible at once; tell whether that was all."""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                if not self._unsent:
                    self._unsent = self._connection.bio_read(_PIECE)
                try:
                    self._unsent = self._unsent[self._socket.send(self._unsent) :]
                except BlockingIOError:
                    return False
        return True

    def _receive(self) -> Waiting[None]:
        """Give TLS the next bytes of the peer, once they are there."""
        yield selectors.EVENT_READ
        self._deadline.remaining()
        with contextlib.suppress(BlockingIOError):
            data = self._socket.recv(_PIECE)
            if not data:
                raise EOFError("the peer closed the connection")
            self._received += len(data)
            if self._received > MOST_RECEIVED:
                raise RaTlsError(f"the peer sent more than {MOST_RECEIVED} bytes")
            self._connection.bio_write(data)


def failure_of_judging(error: Exception) -> CloisterError:
    """Return what a judge's failure is to its client's connection."""
    if isinstance(error, CloisterError):
        return error
    return RaTlsError(f"the peer could not be judged: internal error ({type(error).__name__})")
