"""The tree as a FUSE file system: numbers for nodes and handles, and nothing else.

A node gets a number when the kernel first hears of it and loses it when the kernel forgets it.
What a mount occupies is found before what the directory itself holds, and stays.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterable

from cloister.fuse.filesystem import (
    Attributes,
    Caller,
    Change,
    Entry,
    Filesystem,
    Listed,
    Opened,
    Statistics,
)
from cloister.fuse.protocol import ROOT_NODE, OpenFlag
from cloister.runtime import linux
from cloister.runtime.directory import HostDirectory, relocate
from cloister.runtime.foresight import Trail
from cloister.runtime.host import HostFile
from cloister.runtime.nodes import FOREVER, Directory, Handle, Node, refuse
from cloister.runtime.scene import HOST_SECONDS

_UNKNOWN_NUMBER = 0xFFFFFFFF
"""Inode number of names that the kernel lists before it looked them up."""


class _Known:
    """A node that the kernel knows: its number, its names, and how often it was told.

    A file with hard links has several names; a directory has one, a removed node none.
    """

    __slots__ = ("children", "node", "number", "places", "references")

    def __init__(self, number: int, node: Node) -> None:
        self.number = number
        self.node = node
        self.places: list[tuple[_Known, bytes]] = []
        self.references = 0
        self.children: dict[bytes, _Known] = {}

    def path(self) -> str:
        """Return the path inside the tree; without a name only the slash."""
        names: list[bytes] = []
        at = self
        while at.places:
            at, name = at.places[0]
            names.append(name)
        return "/" + os.fsdecode(b"/".join(reversed(names)))

    def put(self, parent: _Known, name: bytes) -> None:
        """Give the node a name."""
        self.places.append((parent, name))
        parent.children[name] = self

    def take(self, parent: _Known, name: bytes) -> None:
        """Take a name away; the kernel may go on using the number."""
        self.places.remove((parent, name))
        if parent.children.get(name) is self:
            del parent.children[name]


class View(Filesystem):
    """Serves a tree of nodes.

    Args:
        root: the node of ``/``.
        trail: is told of what is worth fetching ahead in the next run.
    """

    def __init__(self, root: Directory, trail: Trail | None = None) -> None:
        self._trail = trail
        self._names = trail if trail is not None and trail.names else None
        self._numbers = itertools.count(ROOT_NODE + 1)
        self._known: dict[int, _Known] = {ROOT_NODE: _Known(ROOT_NODE, root)}
        self._handle_numbers = itertools.count(1)
        self._handles: dict[int, Handle] = {}
        self._listings: dict[int, list[Listed]] = {}

    # Names

    def lookup(self, parent: int, name: bytes) -> Entry:
        """See :class:`Filesystem`. A name that does not exist is remembered as such."""
        entry = self.entry(parent, name)
        names = self._names
        if names is None or not names.names or entry.name_seconds <= HOST_SECONDS:
            return entry
        # A name that the host was never asked for is none of its business.
        if entry.node or self._directory(parent).asks_host(name):
            names.name(f"{self._known[parent].path().rstrip('/')}/{os.fsdecode(name)}")
        return entry

    def entry(self, parent: int, name: bytes) -> Entry:
        """See :class:`Filesystem`."""
        place = self._known[parent]
        directory = self._directory(parent)
        known = place.children.get(name)
        if known is not None and known.node.is_replaced():
            if name in directory.mounted:
                directory.mounted[name] = known.node.successor()
            self._lose(known, place, name)
            known = None
        try:
            if known is not None:
                return self._entry(known, _checked_kind(known.node))
            node = directory.mounted.get(name) or directory.child(name)
            found = node.looked_up()
            if found is not node:
                return self._entry(self._new(found), found.attributes())
            return self._add(place, name, node)
        except FileNotFoundError:
            if known is not None:
                known.take(place, name)
            return Entry(0, _NOTHING, directory.negative_seconds, 0)

    def _add(self, place: _Known, name: bytes, node: Node) -> Entry:
        attributes = _attributes_or_type(node)
        known = self._new(node)
        known.put(place, name)
        return self._entry(known, attributes)

    def _new(self, node: Node) -> _Known:
        """Give a node a number."""
        known = _Known(next(self._numbers), node)
        self._known[known.number] = known
        return known

    def _entry(self, known: _Known, attributes: Attributes) -> Entry:
        known.references += 1
        node = known.node
        return Entry(known.number, attributes, node.name_seconds, node.attribute_seconds)

    def forget(self, node: int, count: int) -> None:
        """See :class:`Filesystem`."""
        known = self._known.get(node)
        if known is None or node == ROOT_NODE:
            return
        known.references -= count
        if known.references <= 0:
            for place in list(known.places):
                known.take(*place)
            del self._known[node]

    # Attributes

    def getattr(self, node: int, handle: int | None) -> tuple[Attributes, float]:
        """See :class:`Filesystem`."""
        known = self._known[node]
        if handle is not None and handle in self._handles:
            attributes = self._handles[handle].attributes()
        else:
            attributes = known.node.attributes()
        return attributes, known.node.attribute_seconds

    def setattr(self, node: int, change: Change) -> tuple[Attributes, float]:
        """See :class:`Filesystem`."""
        handle = None if change.handle is None else self._handles.get(change.handle)
        self._known[node].node.change(change, handle)
        return self.getattr(node, change.handle)

    def readlink(self, node: int) -> bytes:
        """See :class:`Filesystem`."""
        return self._known[node].node.readlink()

    def statfs(self, node: int) -> Statistics:
        """See :class:`Filesystem`."""
        return self._known[node].node.statistics()

    def getxattr(self, node: int, name: bytes) -> bytes:
        """See :class:`Filesystem`."""
        return self._known[node].node.get_xattr(name)

    def setxattr(self, node: int, name: bytes, value: bytes, flags: int) -> None:
        """See :class:`Filesystem`."""
        self._known[node].node.set_xattr(name, value, flags)

    def listxattr(self, node: int) -> list[bytes]:
        """See :class:`Filesystem`."""
        return self._known[node].node.list_xattr()

    def removexattr(self, node: int, name: bytes) -> None:
        """See :class:`Filesystem`."""
        self._known[node].node.remove_xattr(name)

    # Creating, removing, renaming

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, Opened]:
        """See :class:`Filesystem`."""
        directory = self._directory(parent)
        mounted = directory.mounted.get(name)
        if mounted is None:
            node, handle = directory.create(name, flags, mode, caller)
        else:
            node, handle = mounted, mounted.appear(flags, mode, caller)
        return self._add(self._known[parent], name, node), self._opened(handle)

    def tmpfile(self, parent: int, flags: int, mode: int, caller: Caller) -> tuple[Entry, Opened]:
        """See :class:`Filesystem`."""
        node, handle = self._directory(parent).create_nameless(flags, mode, caller)
        known = self._new(node)
        return self._entry(known, handle.attributes()), self._opened(handle)

    def mknod(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """Create a regular file, a FIFO or a socket; devices are refused."""
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            self._require_free(parent, name)
            special = self._directory(parent).mknod(name, mode & ~caller.umask)
            return self._add(self._known[parent], name, special)
        if not stat.S_ISREG(mode):
            refuse(errno.EPERM)
        entry, opened = self.create(parent, name, 0, mode, caller)
        self.release(entry.node, opened.handle)
        return entry

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Entry:
        """See :class:`Filesystem`."""
        self._require_free(parent, name)
        node = self._directory(parent).mkdir(name, mode & ~caller.umask)
        return self._add(self._known[parent], name, node)

    def symlink(self, parent: int, name: bytes, target: bytes) -> Entry:
        """See :class:`Filesystem`."""
        self._require_free(parent, name)
        return self._add(self._known[parent], name, self._directory(parent).symlink(name, target))

    def link(self, node: int, parent: int, name: bytes) -> Entry:
        """See :class:`Filesystem`."""
        self._require_free(parent, name)
        known = self._known[node]
        self._directory(parent).link(known.node, name)
        known.put(self._known[parent], name)
        return self._entry(known, known.node.attributes())

    def unlink(self, parent: int, name: bytes) -> None:
        """See :class:`Filesystem`."""
        self._require_free(parent, name)
        directory = self._directory(parent)
        known = self._known[parent].children.get(name)
        directory.unlink(name, directory.child(name) if known is None else known.node)
        if known is not None:
            self._lose(known, self._known[parent], name)

    def rmdir(self, parent: int, name: bytes) -> None:
        """See :class:`Filesystem`."""
        self._require_free(parent, name)
        self._directory(parent).rmdir(name)
        known = self._known[parent].children.get(name)
        if known is not None:
            known.node.detach()
            known.take(self._known[parent], name)

    def rename(self, parent: int, name: bytes, target: int, new: bytes, flags: int) -> None:
        """See :class:`Filesystem`."""
        self._require_free(parent, name)
        self._require_free(target, new)
        source, goal = self._known[parent], self._known[target]
        directory = self._directory(parent)
        moved = source.children.get(name)
        node = directory.child(name) if moved is None else moved.node
        directory.rename(name, node, self._directory(target), new, flags)
        replaced = goal.children.get(new)
        if moved is not None:
            moved.take(source, name)
        if replaced is not None:
            replaced.take(goal, new)
            if flags & linux.RENAME_EXCHANGE:
                replaced.put(source, name)
                _relocate_to_another_name(replaced)
                _relocate_below(replaced)
            else:
                replaced.node.detach()
                _relocate_to_another_name(replaced)
        if moved is not None:
            moved.put(goal, new)
            _relocate_below(moved)

    def _lose(self, known: _Known, place: _Known, name: bytes) -> None:
        """Take a name from a file, which may have others."""
        known.node.detach()
        known.take(place, name)
        _relocate_to_another_name(known)

    def _require_free(self, parent: int, name: bytes) -> None:
        """Refuse to touch a name that a mount occupies."""
        if name in self._directory(parent).mounted:
            refuse(errno.EBUSY)

    # Open files

    def open(self, node: int, flags: int, caller: Caller) -> Opened:
        """See :class:`Filesystem`."""
        opened = self._known[node].node
        handle = opened.open(flags, caller)
        if self._names is not None and isinstance(opened, HostFile):
            self._names.opened(node, opened.place.path)
        return self._opened(handle)

    def _opened(self, handle: Handle) -> Opened:
        number = next(self._handle_numbers)
        self._handles[number] = handle
        return Opened(number, handle.flags, handle.behind)

    def read(self, node: int, handle: int, offset: int, size: int) -> bytes | memoryview:
        """See :class:`Filesystem`."""
        data = self._handles[handle].read(offset, size)
        if self._trail is not None:
            known = self._known[node]
            if known.node.costs_reading:
                self._trail.read(node, known.path, offset, len(data))
        return data

    def write(self, node: int, handle: int, offset: int, data: memoryview, *, append: bool) -> int:
        """See :class:`Filesystem`."""
        opened = self._handles[handle]
        return opened.append(offset, data) if append else opened.write(offset, data)

    def flush(self, node: int, handle: int) -> None:
        """See :class:`Filesystem`."""
        self._handles[handle].flush()

    def fsync(self, node: int, handle: int, data_only: bool) -> None:
        """See :class:`Filesystem`."""
        self._handles[handle].fsync()

    def release(self, node: int, handle: int) -> None:
        """See :class:`Filesystem`."""
        self._handles.pop(handle).release()

    def fallocate(self, node: int, handle: int, offset: int, length: int, mode: int) -> None:
        """See :class:`Filesystem`."""
        self._handles[handle].fallocate(offset, length, mode)

    def lseek(self, node: int, handle: int, offset: int, whence: int) -> int:
        """See :class:`Filesystem`."""
        return self._handles[handle].lseek(offset, whence)

    # Open directories

    def opendir(self, node: int, caller: Caller) -> Opened:
        """See :class:`Filesystem`; the names are gathered when they are first read."""
        directory = self._directory(node)
        number = next(self._handle_numbers)
        self._listings[number] = []
        flags = OpenFlag.CACHE_DIR | OpenFlag.KEEP_CACHE
        return Opened(number, flags if directory.attribute_seconds > 1 else OpenFlag.NONE)

    def readdir(self, node: int, handle: int, offset: int) -> Iterable[Listed]:
        """List from a snapshot, so that a stream sees each name once; a rewind takes a new one."""
        if offset == 0:
            self._listings[handle] = self._listing(node)
            names = self._names
            forever = self._directory(node).attribute_seconds == FOREVER
            if names is not None and names.names and forever:
                names.name(f"{self._known[node].path().rstrip('/')}/")
        return itertools.islice(self._listings[handle], offset, None)

    def _listing(self, node: int) -> list[Listed]:
        known = self._known[node]
        directory = self._directory(node)
        above = known.places[0][0].number if known.places else node
        listing = [Listed(b".", node, stat.S_IFDIR), Listed(b"..", above, stat.S_IFDIR)]
        names = dict(directory.entries())
        for name, mounted in directory.mounted.items():
            with contextlib.suppress(FileNotFoundError):  # the host took it away
                names[name] = stat.S_IFMT(mounted.attributes().mode)
        for name, mode in names.items():
            child = known.children.get(name)
            listing.append(Listed(name, _UNKNOWN_NUMBER if child is None else child.number, mode))
        return listing

    def fsyncdir(self, node: int) -> None:
        """See :class:`Filesystem`."""
        self._directory(node).sync()

    def releasedir(self, node: int, handle: int) -> None:
        """See :class:`Filesystem`."""
        del self._listings[handle]

    def destroy(self) -> None:
        """Release what is still open: the kernel sends no RELEASE for a mount that died.

        One file that cannot be closed must not keep the others from it; it has told why itself.
        """
        for number in list(self._handles):
            with contextlib.suppress(OSError):
                self._handles.pop(number).release()

    def _directory(self, node: int) -> Directory:
        directory = self._known[node].node
        if not isinstance(directory, Directory):
            refuse(errno.ENOTDIR)
        return directory


_NOTHING = Attributes(mode=0)


def _checked_kind(node: Node) -> Attributes:
    """Return the attributes of a known node if it is still of the same kind on the host."""
    attributes = _attributes_or_type(node)
    if isinstance(node, Directory) != stat.S_ISDIR(attributes.mode):
        raise FileNotFoundError(errno.ENOENT, "the host replaced it")
    return attributes


def _attributes_or_type(node: Node) -> Attributes:
    """Return the attributes; a file that refuses them can still be named, and so removed."""
    try:
        return node.attributes()
    except FileNotFoundError:
        raise
    except OSError:
        return Attributes(mode=stat.S_IFREG)


def _relocate_to_another_name(known: _Known) -> None:
    """Let a file that lost one of its names be found by another."""
    if known.places:
        parent, name = known.places[0]
        if isinstance(parent.node, HostDirectory):
            relocate(known.node, *parent.node.places(name))


def _relocate_below(moved: _Known) -> None:
    """Tell everything below a renamed directory where it is now, however deep."""
    waiting = [moved]
    while waiting:
        known = waiting.pop()
        if isinstance(known.node, HostDirectory):
            for name, child in known.children.items():
                relocate(child.node, *known.node.places(name))
                waiting.append(child)
