"""Files that exist only in the tree: content made when they are opened, or none at all."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from cloister.fuse.filesystem import Attributes, Caller, Change
from cloister.fuse.protocol import OpenFlag
from cloister.runtime.nodes import Handle, Node, refuse

Reader = Callable[[Caller], bytes]
Writer = Callable[[Caller, bytes], None]


class PseudoFile(Node):
    """A file whose content is made when it is opened."""

    def __init__(self, read: Reader, write: Writer | None = None) -> None:
        self._read = read
        self._write = write

    def attributes(self) -> Attributes:
        """Return size 0 and the mode: readers read to the end, whatever ``stat`` says."""
        mode = 0o444 if self._write is None else 0o666
        return Attributes(mode=stat.S_IFREG | mode)

    def change(self, change: Change, handle: Handle | None) -> None:
        """Accept truncation, which every shell redirection asks for, and nothing else."""
        if self._write is None or change.mode is not None:
            refuse(errno.EACCES)

    def open(self, flags: int, caller: Caller) -> Handle:
        """Make the content now."""
        return _PseudoHandle(self, self._read(caller), self._write, caller)


class _PseudoHandle(Handle):
    flags = OpenFlag.DIRECT_IO

    def __init__(
        self, node: PseudoFile, content: bytes, write: Writer | None, caller: Caller
    ) -> None:
        self._node = node
        self._content = content
        self._write = write
        self._caller = caller

    def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]

    def write(self, offset: int, data: memoryview) -> int:
        if self._write is None:
            refuse(errno.EACCES)
        value = bytes(data)
        self._write(self._caller, value)
        self._content = value
        return len(value)

    def attributes(self) -> Attributes:
        return self._node.attributes()


class AbsentFile(Node):
    """Covers a file that shall not be there: a name that cannot be opened."""

    def attributes(self) -> Attributes:
        """Return those of a readable file, so that opening it is asked of us."""
        return Attributes(mode=stat.S_IFREG | 0o444)

    def open(self, flags: int, caller: Caller) -> Handle:
        """Refuse as if there were nothing."""
        refuse(errno.ENOENT)
