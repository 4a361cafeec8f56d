"""Connecting sockets: the counterpart of :mod:`cloister.listen`."""

from __future__ import annotations

import socket


def connect_tcp(host: str, port: int, timeout: float) -> socket.socket:
    """Connect over TCP, for protocols of short messages that wait for each other's answers.

    What is written is sent at once. TCP would otherwise hold a short message back until the one
    before is acknowledged, for which the other side takes 40 ms if it has nothing to say itself.

    Args:
        host: DNS name or IP address.
        port: TCP port.
        timeout: seconds for connecting, and for each operation afterwards.

    Raises:
        OSError, UnicodeError: nobody can be reached there.
    """
    connected = socket.create_connection((host, port), timeout)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected
