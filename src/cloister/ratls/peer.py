"""TLS clients that judge their server by the evidence in its certificate.

The context is an ordinary :class:`ssl.SSLContext`, so that every Python library that takes one
(http.client, httpx, asyncio, urllib) talks to an enclave without knowing it. Names and
certification authorities do not count; the judge alone decides, right after the handshake and
before the first byte of the application leaves.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cloister.connect import connect_tcp
from cloister.errors import PeerError, RaTlsError
from cloister.ratls.certificate import RaTlsIdentity
from cloister.ratls.client import present

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Judge = Callable[[bytes], None]
"""Judges a certificate (DER); raises to refuse."""


def judging_context(judge: Judge, identity: RaTlsIdentity | None = None) -> ssl.SSLContext:
    """Return a client context that lets ``judge`` decide about each server.

    Args:
        judge: called with the server's certificate in DER after each handshake; raising refuses.
        identity: our own certificate, for servers that judge their clients too.
    """

    class JudgedSocket(ssl.SSLSocket):
        """A socket whose handshake ends with the judgement."""

        _accepted = False

        def do_handshake(self, block: bool = False) -> None:
            """Shake hands, then ask the judge; on a refusal nothing can be sent or read."""
            super().do_handshake(block)
            try:
                judge(_certificate(self))
            except BaseException:
                self.close()
                raise
            self._accepted = True

        def _require_judgement(self) -> None:
            # OpenSSL would shake hands by itself, and no judge be asked.
            if not self._accepted:
                self.do_handshake()

        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            """Read; the judge is asked before."""
            self._require_judgement()
            return super().read(len, buffer)

        def write(self, data: ReadableBuffer) -> int:
            """Write; the judge is asked before."""
            self._require_judgement()
            return super().write(data)

        def send(self, data: ReadableBuffer, flags: int = 0) -> int:
            """Send; the judge is asked before."""
            self._require_judgement()
            return super().send(data, flags)

    class JudgedObject(ssl.SSLObject):
        """The same for event loops, which move the bytes themselves."""

        _accepted = False

        def do_handshake(self) -> None:
            """Shake hands, then ask the judge; on a refusal the loop drops the connection."""
            super().do_handshake()
            judge(_certificate(self))
            self._accepted = True

        def _require_judgement(self) -> None:
            if not self._accepted:
                self.do_handshake()

        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            """Read; the judge is asked before."""
            self._require_judgement()
            return super().read(len, buffer)

        def write(self, data: ReadableBuffer) -> int:
            """Write; the judge is asked before."""
            self._require_judgement()
            return super().write(data)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Nor may another certificate come later.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # The chain proves nothing here: an enclave's certificate signs itself.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.sslsocket_class = JudgedSocket
    context.sslobject_class = JudgedObject
    if identity is not None:
        present(context, identity)
    return context


def fetch_certificate(host: str, port: int, *, timeout: float) -> bytes:
    """Return the certificate (DER) that a TLS server presents and proves to have the key of.

    Args:
        host: DNS name or IP address.
        port: TCP port.
        timeout: seconds for connecting and for the handshake.

    Raises:
        PeerError: it cannot be reached, or does not speak TLS.
    """
    found: list[bytes] = []
    context = judging_context(found.append)
    try:
        with (
            connect_tcp(host, port, timeout) as connected,
            context.wrap_socket(connected, server_hostname=host),
        ):
            return found[0]
    except OSError as error:
        raise PeerError(f"{host}:{port}: {error.strerror or error}") from error
    except UnicodeError as error:
        raise PeerError(f"{host}:{port}: no such name") from error


def _certificate(connection: ssl.SSLSocket | ssl.SSLObject) -> bytes:
    der = connection.getpeercert(binary_form=True)
    if not der:
        raise RaTlsError("the server showed no certificate")
    return der
