"""Files that exist only in the tree: content made when they are opened, or none at all."""

from __future__ import annotations

import errno
import itertools
import stat
from collections.abc import Callable

from cloister.fuse.filesystem import Attributes, Caller, Change
from cloister.fuse.protocol import OpenFlag
from cloister.runtime.nodes import Handle, Node, refuse

Reader = Callable[[Caller], bytes]
Writer = Callable[[Caller, bytes], None]

_NUMBERS = itertools.count(1 << 40)
"""Inode numbers; those of other nodes do not come that far."""


class PseudoFile(Node):
    """A file whose content is made when it is opened.

    Each name that is looked up is a node of its own: openings may have different content, but what
    the kernel copies or maps by itself (sendfile(2), splice(2), mmap(2)) it takes from pages that
    belong to the node.

    Attributes:
        original: the node that lies in the tree.
    """

    name_seconds = 0.0
    attribute_seconds = 0.0

    def __init__(
        self, read: Reader, write: Writer | None = None, original: PseudoFile | None = None
    ) -> None:
        self._read = read
        self._write = write
        self._handles: list[_PseudoHandle] = []
        self.original = original or self
        self._number: int = next(_NUMBERS) if original is None else original._number

    def looked_up(self) -> PseudoFile:
        """Return a new node of the same file."""
        return PseudoFile(self._read, self._write, self)

    def attributes(self) -> Attributes:
        """Return the mode and size 0, or that of the content as long as it is open.

        Readers read to the end, whatever ``stat`` says. What the kernel copies by itself is as
        long as it last heard: who copies without fstat(2) copies nothing.
        """
        return self.shown(self._handles[-1].size if self._handles else 0)

    def shown(self, size: int) -> Attributes:
        """Return the attributes of the file with a content of so many bytes."""
        mode = 0o444 if self._write is None else 0o666
        return Attributes(mode=stat.S_IFREG | mode, size=size, number=self._number)

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
        return self._node.shown(self.size)

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
