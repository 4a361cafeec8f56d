"""Connecting sockets: the counterpart of :mod:`cloister.listen`."""

from __future__ import annotations

import errno
import socket

_NO_WAY_THERE = (errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EAFNOSUPPORT)
"""What an address of the other kind gives where this machine has no IPv6, or no IPv4."""


def connect_tcp(host: str, port: int, timeout: float) -> socket.socket:
    """Connect over TCP, for protocols of short messages that wait for each other's answers.

    What is written is sent at once. TCP would otherwise hold a short message back until the one
    before is acknowledged, for which the other side takes 40 ms if it has nothing to say itself.

    Args:
        host: DNS name or IP address.
        port: TCP port.
        timeout: seconds for connecting, and for each operation afterwards.

    Raises:
        OSError, UnicodeError: nobody can be reached there. Of several addresses, the error is that
            of the first to which there was a way.
    """
    errors: list[OSError] = []
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        try:
            return _connected(socket.socket(family, kind, protocol), address, timeout)
        except OSError as error:
            errors.append(error)
    raise min(errors, key=lambda error: error.errno in _NO_WAY_THERE)


def _connected(new: socket.socket, address: tuple[object, ...], timeout: float) -> socket.socket:
    try:
        new.settimeout(timeout)
        new.connect(address)
        new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        new.close()
        raise
    return new
