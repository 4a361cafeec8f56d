"""Listening sockets: one port on every address that a name has."""

from __future__ import annotations

import errno
import re
import socket

from cloister.errors import InputError

BACKLOG = 512


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Open a TCP port on every address of ``host``; port 0 takes a free one.

    A name may have several addresses (localhost: 127.0.0.1 and ::1); all get the same port. An
    address family that this machine lacks is left out.

    Returns:
        Listening sockets that do not block; at least one.

    Raises:
        InputError: the port cannot be opened.
    """
    listeners: list[socket.socket] = []
    try:
        _open_all(host, port, listeners)
    except (OSError, UnicodeError) as error:  # the second: no DNS name at all
        for listener in listeners:
            listener.close()
        reason = error.strerror if isinstance(error, OSError) else "no such name"
        raise _refusal(host, port, reason or str(error)) from error
    if not listeners:
        raise _refusal(host, port, "no such address here")
    return listeners


def _open_all(host: str, port: int, listeners: list[socket.socket]) -> None:
    for family, kind, proto, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        chosen = bound_address(listeners)[1] if listeners else port
        try:
            listener = _open(family, kind, proto, (address[0], chosen, *address[2:]))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            continue
        listeners.append(listener)


def _refusal(host: str, port: int, reason: str) -> InputError:
    return InputError(
        f"cannot listen on {host}:{port}: {reason}",
        hint="choose another address or port",
    )


def _open(family: int, kind: int, proto: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What is accepted here inherits it: short answers are sent at once.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def bound_address(listeners: list[socket.socket]) -> tuple[str, int]:
    """Return the address and port of the first listener."""
    name = listeners[0].getsockname()
    return str(name[0]), int(name[1])


def parse_listen(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT`` (localhost).

    Raises:
        InputError: it is not of this form.
    """
    match = re.fullmatch(r"(?:\[(.+)\]|([^:]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise InputError(f"--listen {text}: not HOST:PORT (IPv6: [ADDRESS]:PORT)")
    return match[1] or match[2] or "localhost", int(match[3])
