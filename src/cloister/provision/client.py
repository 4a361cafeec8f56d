"""The enclave's side of key release: fetching what the environment asks for.

The variables are those of Graphene's and Gramine's ``libsecret_prov_attest.so``; the work of
that library is done here, so that no library is needed and a failure has a reason.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Protocol

from cloister.connect import connect_tcp
from cloister.errors import (
    CloisterError,
    ProvisioningError,
    ProvisioningRefusedError,
)
from cloister.provision import protocol
from cloister.provision.request import (
    Provisioned,
    ProvisioningRequest,
    ServerAddress,
    interpret,
)
from cloister.provision.variables import CA_CHAIN_PATH
from cloister.ratls.certificate import RaTlsIdentity, create_identity
from cloister.ratls.client import client_context
from cloister.ratls.deadline import Deadline

DEFAULT_TIMEOUT = 30.0
"""Seconds for one server: connecting, handshake and answer together."""


class Quoting(Protocol):
    """What key release needs of an enclave."""

    @property
    def event_log(self) -> bytes:
        """What must lie beside a quote; empty where nothing must."""
        ...

    def quote(self, report_data: bytes) -> bytes:
        """Return a quote over 64 bytes."""
        ...


def fetch_secret(
    enclave: Quoting, request: ProvisioningRequest, *, timeout: float = DEFAULT_TIMEOUT
) -> Provisioned:
    """Ask the servers in turn until one releases the secret.

    Args:
        enclave: makes the quotes of our certificate.
        request: whom to ask, and for what.
        timeout: seconds for each server.

    Raises:
        ProvisioningRefusedError: every server that answered refused.
        ProvisioningError: no server could be reached, or none of its answers is usable; the
            message names each server and its reason.
    """
    identity = create_identity(
        enclave.quote,
        event_log=enclave.event_log,
        not_before=request.not_before,
        not_after=request.not_after,
    )
    failures: list[tuple[ServerAddress, CloisterError]] = []
    for server in request.servers:
        try:
            return _fetch_from(server, identity, request, timeout)
        except ProvisioningError as error:
            failures.append((server, error))
    raise _summary(request, failures)


def _summary(
    request: ProvisioningRequest, failures: list[tuple[ServerAddress, CloisterError]]
) -> ProvisioningError:
    what = "secret" if request.key_name is None else f"key {request.key_name}"
    text = "; ".join(f"{server}: {error.message}" for server, error in failures)
    refusals = [error for _, error in failures if isinstance(error, ProvisioningRefusedError)]
    kind = ProvisioningRefusedError if refusals else ProvisioningError
    hints = [error.hint for _, error in failures if error.hint]
    return kind(f"no key server released the {what}: {text}", hint=hints[0] if hints else None)


def _fetch_from(
    server: ServerAddress,
    identity: RaTlsIdentity,
    request: ProvisioningRequest,
    timeout: float,
) -> Provisioned:
    context = client_context(identity, request.ca)
    deadline = Deadline(timeout)
    try:
        raw = connect_tcp(server.host, server.port, deadline.remaining())
    except socket.gaierror as error:
        raise ProvisioningError(
            f"no address is known for this name ({error.strerror})",
            hint="the enclave's runtime looks names up as this machine does; an /etc/hosts of the"
            " manifest is the program's alone",
        ) from error
    except (OSError, UnicodeError) as error:  # of a name that no host can have
        reason = error.strerror if isinstance(error, OSError) else None
        raise ProvisioningError(
            f"cannot connect ({reason or error})",
            hint="is the key server running there, and does a firewall let us through?",
        ) from error
    with raw:
        certificate, secret = _exchange(raw, context, server, deadline)
    return interpret(server, certificate, secret, request)


def _exchange(
    raw: socket.socket, context: ssl.SSLContext, server: ServerAddress, deadline: Deadline
) -> tuple[bytes, bytearray]:
    """Return the server's certificate and the secret."""
    try:
        raw.settimeout(deadline.remaining())
        with context.wrap_socket(raw, server_hostname=server.host) as tls:
            tls.settimeout(deadline.remaining())
            tls.sendall(protocol.REQUEST)
            head = _read_exactly(tls, protocol.RESPONSE_HEAD_SIZE, deadline)
            secret = _read_exactly(tls, protocol.decode_head(bytes(head)), deadline)
            certificate = tls.getpeercert(binary_form=True)
            _say_goodbye(tls)
            return certificate or b"", secret
    except ssl.SSLCertVerificationError as error:
        raise ProvisioningError(
            f"its certificate is not believed ({error.verify_message})",
            hint=f"{CA_CHAIN_PATH} must name its CA, and the address its certificate's name (an IP"
            " address as such: cloister certs new --host ADDRESS)",
        ) from error
    except TimeoutError as error:
        raise ProvisioningError(
            "it did not answer in time", hint="the server is busy or stuck; look at its log"
        ) from error
    except (ssl.SSLError, EOFError, ConnectionError) as error:
        raise _ended(error) from error
    except OSError as error:
        raise ProvisioningError(f"the connection broke ({error.strerror or error})") from error


def _ended(error: Exception) -> ProvisioningError:
    """Tell a refusal from a failure of TLS.

    In TLS 1.3 our handshake is complete before the server has judged our certificate, so that a
    refusal shows only when we read: as an alert, as an end, or, from servers whose alert is
    encrypted with keys that are no longer used, as a broken record.
    """
    reason = str(error.reason or error) if isinstance(error, ssl.SSLError) else str(error)
    marks = ("ALERT", "EOF", "BAD_RECORD_MAC")
    if isinstance(error, ssl.SSLError) and not any(mark in reason.upper() for mark in marks):
        return ProvisioningError(
            f"TLS failed ({reason})", hint="is there a key server at that address?"
        )
    return ProvisioningRefusedError(f"it ended the connection ({reason})")


def _read_exactly(tls: ssl.SSLSocket, size: int, deadline: Deadline) -> bytearray:
    received = bytearray(size)
    view = memoryview(received)
    while view:
        tls.settimeout(deadline.remaining())
        count = tls.recv_into(view)
        if count == 0:
            raise EOFError(f"closed {len(view)} bytes before the end of its answer")
        view = view[count:]
    return received


def _say_goodbye(tls: ssl.SSLSocket) -> None:
    """Send close_notify and do not wait for the server's: what it had to say is here."""
    with contextlib.suppress(OSError):
        tls.settimeout(0)
        tls.unwrap()
