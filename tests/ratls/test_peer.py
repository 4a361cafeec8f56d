"""Clients that judge their server: with sockets, event loops, http.client and httpx."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cloister.errors import PeerError, RaTlsError
from cloister.ratls.certificate import RaTlsIdentity, create_identity
from cloister.ratls.client import present
from cloister.ratls.peer import fetch_certificate, judging_context
from cloister.sgx.quote import QuoteSignature, pack_quote_v3


def quote_for(report_data: bytes) -> bytes:
    header = struct.pack("<HHIHH", 3, 2, 0, 1, 2) + bytes(36)
    empty = QuoteSignature(bytes(64), bytes(64), bytes(384), bytes(64), bytes(32), 5, b"")
    return pack_quote_v3(header + bytes(320) + report_data, empty)


IDENTITY = create_identity(quote_for)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


class Enclave:
    """A server of Python's ssl that presents an RA-TLS certificate and answers HTTP."""

    def __init__(self, identity: RaTlsIdentity = IDENTITY) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        present(context, identity)
        self._listener = socket.create_server(("localhost", 0))
        self.port: int = self._listener.getsockname()[1]
        self.received: list[bytes] = []
        self.served = threading.Semaphore(0)
        threading.Thread(target=self._serve, args=(context,), daemon=True).start()

    def _serve(self, context: ssl.SSLContext) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            received = b""
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(connected, server_side=True) as tls,
            ):
                while b"\r\n\r\n" not in received and (piece := tls.recv(1000)):
                    received += piece
                if received:
                    tls.sendall(ANSWER)
            self.received.append(received)
            self.served.release()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def enclave() -> Iterator[Enclave]:
    made = Enclave()
    yield made
    made.close()


class Judge:
    def __init__(self, accept: bool) -> None:
        self.accept = accept
        self.judged: list[bytes] = []

    def __call__(self, certificate: bytes) -> None:
        self.judged.append(certificate)
        if not self.accept:
            raise RaTlsError("not the expected enclave")


def test_a_socket(enclave: Enclave) -> None:
    judge = Judge(True)
    with (
        socket.create_connection(("localhost", enclave.port), 10) as raw,
        judging_context(judge).wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert tls.recv(1000).startswith(b"HTTP/1.1 200")
    assert judge.judged == [IDENTITY.der]


def test_a_refused_server_hears_nothing(enclave: Enclave) -> None:
    context = judging_context(Judge(False))
    with (
        socket.create_connection(("localhost", enclave.port), 10) as raw,
        pytest.raises(RaTlsError),
    ):
        context.wrap_socket(raw, server_hostname="localhost")
    assert enclave.served.acquire(timeout=10)
    assert enclave.received == [b""]


def test_no_byte_leaves_before_the_judgement(enclave: Enclave) -> None:
    """OpenSSL shakes hands by itself when somebody writes first."""
    judge = Judge(False)
    with socket.create_connection(("localhost", enclave.port), 10) as raw:
        tls = judging_context(judge).wrap_socket(raw, do_handshake_on_connect=False)
        with pytest.raises(RaTlsError):
            tls.send(b"GET / HTTP/1.1\r\n\r\n")
    assert len(judge.judged) == 1
    assert enclave.served.acquire(timeout=10)
    assert enclave.received == [b""]


@pytest.mark.parametrize("first", ["read", "write", "recv", "recv_into", "sendall"])
def test_whatever_is_done_first_the_judge_is_asked_before(enclave: Enclave, first: str) -> None:
    arguments: dict[str, Any] = {"read": 10, "recv": 10, "recv_into": bytearray(10)}
    with socket.create_connection(("localhost", enclave.port), 10) as raw:
        tls = judging_context(Judge(False)).wrap_socket(raw, do_handshake_on_connect=False)
        with pytest.raises(RaTlsError):
            getattr(tls, first)(arguments.get(first, b"x"))


@pytest.mark.parametrize("operation", ["write", "read"])
def test_nor_in_an_event_loop(enclave: Enclave, operation: str) -> None:
    judge = Judge(False)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = judging_context(judge).wrap_bio(incoming, outgoing)
    with socket.create_connection(("localhost", enclave.port), 10) as raw:
        for _ in range(2):  # a caller who tries again after the refusal
            with pytest.raises(RaTlsError):
                drive(tls, operation, raw, incoming, outgoing)
            raw.sendall(outgoing.read())
    assert len(judge.judged) == 2
    assert enclave.served.acquire(timeout=10)
    assert enclave.received == [b""]


def drive(
    tls: ssl.SSLObject,
    operation: str,
    raw: socket.socket,
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
) -> None:
    """Repeat one operation, moving bytes between it and the socket, until it ends."""
    while True:
        try:
            if operation == "write":
                tls.write(b"GET / HTTP/1.1\r\n\r\n")
            else:
                tls.read(100)
        except ssl.SSLWantReadError:
            raw.sendall(outgoing.read())
            incoming.write(raw.recv(100_000))
        else:
            raw.sendall(outgoing.read())
            return


def test_http_client(enclave: Enclave) -> None:
    judge = Judge(True)
    connection = http.client.HTTPSConnection(
        "localhost", enclave.port, context=judging_context(judge), timeout=10
    )
    connection.request("GET", "/")
    assert connection.getresponse().read() == b"hello"
    connection.close()
    assert judge.judged == [IDENTITY.der]


@pytest.mark.parametrize("accept", [True, False])
def test_httpx(enclave: Enclave, accept: bool) -> None:
    url = f"https://localhost:{enclave.port}/"
    with httpx.Client(verify=judging_context(Judge(accept))) as client:
        if accept:
            assert client.get(url).text == "hello"
            return
        with pytest.raises(RaTlsError):
            client.get(url)
    assert enclave.served.acquire(timeout=10)
    assert enclave.received == [b""]


@pytest.mark.parametrize("accept", [True, False])
def test_httpx_in_an_event_loop(enclave: Enclave, accept: bool) -> None:
    async def ask() -> str:
        async with httpx.AsyncClient(verify=judging_context(Judge(accept))) as client:
            return (await client.get(f"https://localhost:{enclave.port}/")).text

    if accept:
        assert asyncio.run(ask()) == "hello"
        return
    with pytest.raises(RaTlsError):
        asyncio.run(ask())
    assert enclave.served.acquire(timeout=10)
    assert enclave.received == [b""]


def test_asyncio_streams_refuse(enclave: Enclave) -> None:
    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection(
            "localhost", enclave.port, ssl=judging_context(Judge(False)), server_hostname="x"
        )
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        return await reader.read()

    with pytest.raises((RaTlsError, ConnectionError)):
        asyncio.run(ask())
    assert enclave.served.acquire(timeout=10)
    assert enclave.received == [b""]


def test_a_certificate_is_fetched_without_any_trust(enclave: Enclave) -> None:
    assert fetch_certificate("localhost", enclave.port, timeout=10) == IDENTITY.der


def test_nobody_there() -> None:
    with socket.create_server(("localhost", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(PeerError, match=str(port)):
        fetch_certificate("localhost", port, timeout=10)


def test_something_else_there() -> None:
    with socket.create_server(("localhost", 0)) as listener:

        def behave() -> None:
            connected, _ = listener.accept()
            with connected:
                connected.sendall(b"SSH-2.0-OpenSSH\r\n" * 50)

        threading.Thread(target=behave, daemon=True).start()
        with pytest.raises(PeerError):
            fetch_certificate("localhost", listener.getsockname()[1], timeout=10)
