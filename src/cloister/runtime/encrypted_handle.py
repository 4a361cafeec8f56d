"""An open encrypted file: what a program does with its descriptor; see ``encrypted``."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cloister.fuse.filesystem import Attributes
from cloister.fuse.protocol import OpenFlag
from cloister.runtime import linux
from cloister.runtime.nodes import ROOM, Handle, refuse
from cloister.runtime.policy import Intent

if TYPE_CHECKING:
    from cloister.runtime.encrypted import EncryptedNode

_SMALL = 8192  # bytes of a read for which the engine has a shorter way
_ZEROS = memoryview(bytes(1 << 20))
_OFFERED_ALLOCATIONS = (
    0,
    linux.FALLOC_ZERO_RANGE,
    linux.FALLOC_ZERO_RANGE | linux.FALLOC_KEEP_SIZE,
    linux.FALLOC_PUNCH_HOLE | linux.FALLOC_KEEP_SIZE,
)


class EncryptedHandle(Handle):
    """An open encrypted file."""

    def __init__(self, node: EncryptedNode, *, writing: bool) -> None:
        self._node = node
        if writing:
            self.flags = OpenFlag.KEEP_CACHE  # close() writes and tells of errors

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Decrypt and authenticate."""
        with self._node.translated(Intent.READ):
            if size <= _SMALL:
                return self._node.engine.read(offset, size)
            target = ROOM[:size]
            return target[: self._node.engine.read_into(offset, target)]

    def write(self, offset: int, data: memoryview) -> int:
        """Encrypt; what reaches the host is decided at the next flush."""
        self._node.write(offset, data)
        return len(data)

    def flush(self) -> None:
        """Write what is pending: close() tells of errors."""
        self._node.flush()

    def fsync(self) -> None:
        """Write what is pending and sync."""
        self._node.flush()
        with self._node.translated(Intent.WRITE):
            self._node.engine.fsync()

    def fallocate(self, offset: int, length: int, mode: int) -> None:
        """Extend the file with zeros, or zero a range of it; no space is saved or reserved."""
        if mode not in _OFFERED_ALLOCATIONS:
            refuse(errno.EOPNOTSUPP)
        size = self._node.engine.size
        end = offset + length
        if mode & (linux.FALLOC_PUNCH_HOLE | linux.FALLOC_ZERO_RANGE):
            for start in range(offset, min(end, size), len(_ZEROS)):
                self._node.write(start, _ZEROS[: min(end, size) - start])
        if end > size and not mode & linux.FALLOC_KEEP_SIZE:
            self._node.truncate(end)

    def attributes(self) -> Attributes:
        """Return the attributes of the open file."""
        return self._node.attributes()

    def release(self) -> None:
        """Drop the shared state with the last handle."""
        self._node.release_handle()
