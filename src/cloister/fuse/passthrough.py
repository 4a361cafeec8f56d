"""Files behind files: what the kernel reads by itself, without a request (Linux 6.9)."""

from __future__ import annotations

import fcntl

from cloister.fuse import protocol as p


def announce(fuse: int, descriptor: int) -> int | None:
    """Return the number under which the kernel takes a file that lies behind another one.

    It ends with the mount. Returned by an open as :attr:`~cloister.fuse.filesystem.Opened.behind`,
    it makes the kernel read there. The kernel keeps to one way of reading as long as a file is open
    (through its own pages, or past them) and answers ``EIO`` to an open that wants the other.

    Args:
        fuse: a descriptor of ``/dev/fuse``, after INIT.
        descriptor: the file behind.

    Returns:
        None where the kernel refuses: to all but root of the machine, before Linux 6.9, or where
        both sides have not agreed on it in INIT.
    """
    announced = bytearray(p.BACKING_MAP.pack(descriptor, 0, 0))
    try:
        number: int = fcntl.ioctl(fuse, p.BACKING_OPEN, announced)
    except OSError:
        return None
    return number
