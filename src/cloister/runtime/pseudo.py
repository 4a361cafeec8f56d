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

    attribute_seconds = 0.0

    def __init__(self, read: Reader, write: Writer | None = None) -> None:
        self._read = read
        self._write = write
        self._handles: list[_PseudoHandle] = []

    def attributes(self) -> Attributes:
        """Return the mode and size 0, or that of the content that was made last and is open.

        Readers read to the end, whatever ``stat`` says. But what copies a file without looking at
        it (sendfile(2), splice(2)) takes no more than an open file's size.
        """
        mode = 0o444 if self._write is None else 0o666
        size = self._handles[-1].size if self._handles else 0
        return Attributes(mode=stat.S_IFREG | mode, size=size)

    def change(self, change: Change, handle: Handle | None) -> None:
        """Accept truncation, which every shell redirection asks for, and nothing else."""
        if self._write is None or change.mode is not None:
            refuse(errno.EACCES)

    def open(self, flags: int, caller: Caller) -> Handle:
        """Make the content now."""
        handle = _PseudoHandle(self, self._read(caller), self._write, caller)
        self._handles.append(handle)
        return handle

    def dropped(self, handle: _PseudoHandle) -> None:
        """Forget a handle that was released."""
        self._handles.remove(handle)


class _PseudoHandle(Handle):
    flags = OpenFlag.DIRECT_IO

    def __init__(
        self, node: PseudoFile, content: bytes, write: Writer | None, caller: Caller
    ) -> None:
        self._node = node
        self._content = content
        self._write = write
        self._caller = caller

    @property
    def size(self) -> int:
        return len(self._content)

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

    def release(self) -> None:
        self._node.dropped(self)


class AbsentFile(Node):
    """Covers a file that shall not be there: a name that cannot be opened."""

    def attributes(self) -> Attributes:
        """Return those of a readable file, so that opening it is asked of us."""
        return Attributes(mode=stat.S_IFREG | 0o444)

    def open(self, flags: int, caller: Caller) -> Handle:
        """Refuse as if there were nothing."""
        refuse(errno.ENOENT)
