"""Words to the kernel that answer no request."""

from __future__ import annotations

import os

from cloister.fuse import protocol as p

_HEADERS = p.OUT_HEADER.size + p.NOTIFY_STORE_OUT.size


def store(fuse: int, node: int, offset: int, data: memoryview) -> None:
    """Give the kernel content of a file, which it keeps as if it had read it.

    It waits where the kernel is just reading the same pages, so it must not be called by who
    answers requests.

    Args:
        fuse: a descriptor of ``/dev/fuse``, after INIT.
        node: number of a file that the kernel knows.
        offset: where the data belongs, at the beginning of a page.
        data: ends with a page, or where the file does.

    Raises:
        OSError: ENOENT: the kernel does not know, or has forgotten, the file; ENODEV: the file
            system was unmounted.
    """
    header = p.OUT_HEADER.pack(_HEADERS + len(data), p.NOTIFY_STORE, 0)
    os.writev(fuse, (header + p.NOTIFY_STORE_OUT.pack(node, offset, len(data)), data))
