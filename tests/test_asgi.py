"""Servers with few connections: nobody keeps them for himself."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from cloister.asgi import serving
from cloister.listen import bound_address, open_listeners

ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
MOST = 3
LARGE = 30_000_000


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr("cloister.asgi.IDLE_SECONDS", 0.5)
    app = Starlette(
        routes=[
            Route("/", lambda _: PlainTextResponse("served")),
            Route("/large", lambda _: PlainTextResponse("x" * LARGE)),
        ]
    )
    listeners = open_listeners("127.0.0.1", 0)
    with serving(app, listeners, connections=MOST):
        yield bound_address(listeners)[1]


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def answer(connected: socket.socket) -> bytes:
    connected.sendall(ASK)
    received = b""
    while not received.endswith(b"served") and (piece := connected.recv(4096)):
        received += piece
    return received


def is_closed(connected: socket.socket) -> bool:
    """Wait until the server closes the connection."""
    connected.settimeout(10)
    try:
        while connected.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET", ASK, ASK + b"GET /", ASK * 2 + ASK[:-2]],
    ids=["nothing", "a beginning", "one request", "and a beginning", "two and nearly a third"],
)
def test_a_connection_on_which_nothing_whole_is_asked_is_closed(port: int, sent: bytes) -> None:
    for _ in range(2):
        taken = [connect(port) for _ in range(MOST)]
        for connected in taken:
            connected.sendall(sent)
        assert all(map(is_closed, taken))
    with connect(port) as connected:
        assert b"served" in answer(connected)


def test_those_above_the_limit_are_closed_at_once(port: int) -> None:
    taken = [connect(port) for _ in range(MOST)]
    assert all(b"served" in answer(connected) for connected in taken)
    with connect(port) as one_more:
        assert is_closed(one_more)
    assert all(b"served" in answer(connected) for connected in taken)
    for connected in taken:
        connected.close()


def test_who_goes_on_asking_keeps_his_connection(port: int) -> None:
    with connect(port) as connected:
        for _ in range(6):
            assert b"served" in answer(connected)
            time.sleep(0.2)


def test_an_answer_that_is_read_slowly_comes_whole(port: int) -> None:
    """Longer than connections may be idle, and more than the kernel holds."""
    with connect(port) as connected:
        connected.sendall(
            ASK.replace(b"GET /", b"GET /large").replace(
                b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"
            )
        )
        received = 0
        while piece := connected.recv(500_000):
            received += len(piece)
            time.sleep(0.03)
    assert received > LARGE


def test_who_reads_nothing_does_not_keep_his_connection(port: int) -> None:
    taken = [connect(port) for _ in range(MOST)]
    for connected in taken:
        connected.sendall(ASK.replace(b"GET /", b"GET /large"))
    time.sleep(3)
    with connect(port) as one_more:
        assert b"served" in answer(one_more)
    for connected in taken:
        connected.close()
