"""Serving a backend over real HTTP while a test runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import httpx
import pytest

from cloister.asgi import serving
from cloister.listen import bound_address, open_listeners
from cloister.pccs.app import Backend, create_app


@pytest.fixture
def client_of() -> Iterator[Callable[[Backend], httpx.Client]]:
    """Return a function that serves a backend and returns a client of it."""
    with contextlib.ExitStack() as stack:

        def serve(backend: Backend) -> httpx.Client:
            listeners = open_listeners("127.0.0.1", 0)
            stack.enter_context(serving(create_app(backend), listeners))
            url = f"http://127.0.0.1:{bound_address(listeners)[1]}"
            return stack.enter_context(httpx.Client(base_url=url, timeout=20))

        yield serve
