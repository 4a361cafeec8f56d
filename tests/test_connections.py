"""Connections over TCP: short messages are sent at once, and the telling error is told."""

from __future__ import annotations

import contextlib
import socket

import pytest

from cloister.connect import connect_tcp
from cloister.listen import bound_address, open_listeners


def test_neither_end_waits_for_acknowledgements() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(each) for each in open_listeners("127.0.0.1", 0)]
        near = stack.enter_context(connect_tcp(*bound_address(listeners), 10))
        listeners[0].setblocking(True)
        far = stack.enter_context(listeners[0].accept()[0])
        for end in (near, far):
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


NOWHERE = "255.255.255.255"
"""An address to which there is no way over TCP, as to ``::1`` where there is no IPv6."""


@pytest.mark.parametrize("order", [("127.0.0.1", NOWHERE), (NOWHERE, "127.0.0.1")])
def test_of_several_addresses_the_one_that_could_be_reached_is_told(
    order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {one: socket.getaddrinfo(one, 1, type=socket.SOCK_STREAM)[0] for one in order}
    with pytest.raises(OSError, match="unreachable"):
        connect_tcp(NOWHERE, 1, 10)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found[one] for one in order])
    with pytest.raises(ConnectionRefusedError):
        connect_tcp("both.example.org", 1, 10)


@pytest.mark.parametrize("before", [(), (NOWHERE,)])
def test_the_first_address_that_answers_is_taken(
    before: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = [
            socket.getaddrinfo(one, port, type=socket.SOCK_STREAM)[0]
            for one in (*before, "127.0.0.1")
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with connect_tcp("both.example.org", port, 10) as connected:
            assert connected.getpeername() == ("127.0.0.1", port)
