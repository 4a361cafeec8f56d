"""Files behind files: what the kernel reads by itself, without a request (Linux 6.9).

Only root of the machine may announce such a file. Where that fails, the kernel goes on asking.
"""

from __future__ import annotations

import fcntl

from cloister.fuse import protocol as p


class Behind:
    """Numbers of the files behind others, for one ``/dev/fuse``; they end with it.

    Args:
        fuse: its descriptor.
    """

    def __init__(self, fuse: int) -> None:
        self._fuse = fuse
        self._numbers: dict[int, int | None] = {}

    def number(self, descriptor: int) -> int | None:
        """Return the number of the file behind, None where the kernel takes none.

        It is the same for every call: a file that is read through its pages once cannot be read
        past them at the same time.
        """
        if descriptor not in self._numbers:
            try:
                announced = bytearray(p.BACKING_MAP.pack(descriptor, 0, 0))
                self._numbers[descriptor] = fcntl.ioctl(self._fuse, p.BACKING_OPEN, announced)
            except OSError:
                self._numbers[descriptor] = None
        return self._numbers[descriptor]
