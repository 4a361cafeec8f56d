"""Short messages are sent at once: the kernel says so of both ends of a connection."""

from __future__ import annotations

import contextlib
import socket

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
