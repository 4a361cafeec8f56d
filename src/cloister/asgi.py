"""Running an ASGI application until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cloister.signals import STOPPING, heeded

GRACE_SECONDS = 5
"""How long requests that are being answered may go on after a stop."""


IDLE_SECONDS = 10
"""How long a client may take to ask something, where connections are limited."""
_BACKLOG = 64


class _Limited(H11Protocol):
    """A connection that is closed if there are too many, or if nothing goes on on it.

    Every :data:`IDLE_SECONDS` is looked whether since the last time a whole request has come, or
    something of an answer has left. Where a server speaks TLS, connections in the handshake are
    not counted yet.
    """

    most = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._last_look: tuple[object, int] = (None, 0)
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._timer = self.loop.call_later(IDLE_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        request, unsent = self._last_look
        is_answered = self.cycle is None or self.cycle.response_complete
        left = self.transport.get_write_buffer_size()
        if is_answered and self.cycle is request and (not left or left >= unsent > 0):
            self.transport.abort()
            return
        self._last_look = (self.cycle, left)
        self._timer = self.loop.call_later(IDLE_SECONDS, self._look)


@contextmanager
def serving(
    app: Any,
    listeners: list[socket.socket],
    context: ssl.SSLContext | None = None,
    *,
    connections: int | None = None,
) -> Iterator[None]:
    """Serve ``app`` on open sockets in a thread while the block runs.

    Args:
        app: an ASGI application.
        listeners: listening sockets; they are closed at the end.
        context: for TLS; None speaks plain HTTP.
        connections: how many there may be at once; None: as many as come.
    """
    limited = type("Limited", (_Limited,), {"most": connections})
    config = uvicorn.Config(
        app,
        http="auto" if connections is None else limited,
        backlog=2048 if connections is None else _BACKLOG,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_context_factory=(lambda *_: context) if context else None,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": listeners})
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Let SIGINT and SIGTERM set an event while the block runs, in the main thread."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in heeded(STOPPING)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve_until_stopped(
    app: Any,
    listeners: list[socket.socket],
    *,
    context: ssl.SSLContext | None = None,
    on_ready: Callable[[], None],
    connections: int | None = None,
) -> None:
    """Serve ``app`` until SIGINT or SIGTERM; ``on_ready`` is called when it has begun."""
    with stop_signals() as stop, serving(app, listeners, context, connections=connections):
        on_ready()
        stop.wait()
