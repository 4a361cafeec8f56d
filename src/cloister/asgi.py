"""Running an ASGI application until it is told to stop."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

GRACE_SECONDS = 5
"""How long requests that are being answered may go on after a stop."""


@contextmanager
def serving(
    app: Any, listeners: list[socket.socket], context: ssl.SSLContext | None = None
) -> Iterator[None]:
    """Serve ``app`` on open sockets in a thread while the block runs.

    Args:
        app: an ASGI application.
        listeners: listening sockets; they are closed at the end.
        context: for TLS; None speaks plain HTTP.
    """
    config = uvicorn.Config(
        app,
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

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def serve_until_stopped(
    app: Any,
    listeners: list[socket.socket],
    *,
    context: ssl.SSLContext | None = None,
    on_ready: Callable[[], None],
) -> None:
    """Serve ``app`` until SIGINT or SIGTERM; ``on_ready`` is called when it has begun."""
    with stop_signals() as stop, serving(app, listeners, context):
        on_ready()
        stop.wait()
