"""RA-TLS for Python programs that run in an enclave, and for those that talk to one.

In the enclave::

    identity = this_enclave()
    context = server_context(identity)            # an ssl.SSLContext for any server
    run_asgi(app, "0.0.0.0:443", identity)        # or a whole web application

Outside::

    judge = expect(policy, authenticator)
    with connect("service.example.org", 443, judge) as tls:
        tls.sendall(...)
    httpx.Client(verify=judging_context(judge))   # or any library that takes a context

The key never leaves the enclave's memory; every start makes a new one.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cloister.attestation.policy import Policy, completed
from cloister.attestation.trust import Authenticator
from cloister.connect import connect_tcp
from cloister.errors import InputError, PeerError
from cloister.ratls.certificate import RaTlsIdentity, create_identity
from cloister.ratls.client import present
from cloister.ratls.peer import Judge, judging_context
from cloister.ratls.validity import validity_from
from cloister.ratls.verify import authenticate_certificate

ATTESTATION = Path("/dev/attestation")
"""Where an enclave meets its platform (Graphene, Gramine and Cloister alike)."""

_REPORTING = threading.Lock()


def quote_of_this_enclave(report_data: bytes, directory: Path = ATTESTATION) -> bytes:
    """Return a quote of the enclave in which this program runs.

    Args:
        report_data: 64 bytes.
        directory: the attestation files.

    Raises:
        InputError: this is no enclave, or its manifest asks for no remote attestation.
    """
    # The two files are one state of the process, so that only one thread may use them at a time.
    with _REPORTING:
        try:
            # One write, to a file that must be there: that is how the platform takes it over.
            with (directory / "user_report_data").open("r+b", buffering=0) as stream:
                stream.write(report_data)
            return (directory / "quote").read_bytes()
        except OSError as error:
            raise InputError(
                f"{error.filename}: {error.strerror}; there is no quote to be had here",
                hint='run in an enclave whose manifest has sgx.remote_attestation = "dcap"',
            ) from error


def event_log_of_this_enclave(directory: Path = ATTESTATION) -> bytes:
    """Return what must lie beside this enclave's quotes; nothing on most platforms."""
    try:
        return (directory / "event_log").read_bytes()
    except FileNotFoundError:
        return b""


def this_enclave() -> RaTlsIdentity:
    """Return a fresh key and the certificate that proves it lives in this enclave.

    Its validity is that of ``RA_TLS_CERT_TIMESTAMP_NOT_BEFORE`` and ``_NOT_AFTER``, if they are
    set; verifiers of evidence do not look at it.

    Raises:
        InputError: this is no enclave, its manifest asks for no remote attestation, or a malformed
            variable.
    """
    not_before, not_after = validity_from(os.environ)
    return create_identity(
        quote_of_this_enclave,
        event_log=event_log_of_this_enclave(),
        not_before=not_before,
        not_after=not_after,
    )


def server_context(identity: RaTlsIdentity) -> ssl.SSLContext:
    """Return a context for servers that present ``identity``; clients are not asked for theirs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    present(context, identity)
    return context


def expect(policy: Policy, authenticator: Authenticator) -> Judge:
    """Return a judge that accepts the enclaves of a policy, on platforms that are trusted.

    The judge raises what failed; see :meth:`cloister.attestation.Verdict.require`.

    Raises:
        PolicyError: the policy does not say which enclave it means.
    """
    policy = completed(policy)

    def judge(certificate: bytes) -> None:
        authenticate_certificate(certificate, authenticator).judge(policy).require()

    return judge


@contextlib.contextmanager
def connect(
    host: str,
    port: int,
    judge: Judge,
    *,
    identity: RaTlsIdentity | None = None,
    timeout: float = 30.0,
) -> Iterator[ssl.SSLSocket]:
    """Connect to an enclave; the block runs only if the judge accepted it.

    Args:
        host: DNS name or IP address.
        port: TCP port.
        judge: decides about the server's certificate; see :func:`expect`.
        identity: our own certificate, for servers that judge their clients too.
        timeout: seconds for connecting, and for each operation afterwards.

    Raises:
        PeerError: it cannot be reached, or does not speak TLS.
        RefusedError: the judge refused it.
    """
    context = judging_context(judge, identity)
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(connect_tcp(host, port, timeout))
            tls = stack.enter_context(context.wrap_socket(raw, server_hostname=host))
        except OSError as error:
            raise PeerError(f"{host}:{port}: {error.strerror or error}") from error
        yield tls


def run_asgi(
    app: Any,
    listen: str,
    identity: RaTlsIdentity,
    *,
    on_ready: Callable[[str, int], None] = lambda _host, _port: None,
) -> None:
    """Serve an ASGI application over RA-TLS until SIGINT or SIGTERM.

    Args:
        app: the application, e.g. of Starlette or FastAPI.
        listen: ``HOST:PORT``; port 0 takes a free one.
        identity: what the server presents; see :func:`this_enclave`.
        on_ready: called with the address and port when it has begun.
    """
    from cloister.asgi import serve_until_stopped
    from cloister.listen import bound_address, open_listeners, parse_listen

    listeners = open_listeners(*parse_listen(listen))
    host, port = bound_address(listeners)
    serve_until_stopped(
        app, listeners, context=server_context(identity), on_ready=lambda: on_ready(host, port)
    )
