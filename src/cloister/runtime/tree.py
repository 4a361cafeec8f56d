"""A tree of nodes, with places in it that belong to the kernel.

Most of the tree is nodes of ours. A few places belong to the kernel (tmpfs, procfs, devices); there
the tree has an empty mount point and the sandbox mounts over it. :mod:`cloister.runtime.mounts`
builds the tree of a manifest.
"""

from __future__ import annotations

import errno
import itertools
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from cloister.errors import InputError
from cloister.fuse.filesystem import Caller
from cloister.runtime.host import HostSymlink
from cloister.runtime.nodes import Directory, MountPoint, Node, Symlink, SyntheticDirectory
from cloister.runtime.policy import is_below

HIDDEN = "/proc/.cloister"
"""Where nodes wait that are bound over what the kernel mounts; procfs hides this directory."""

ABSENT_FILE, EMPTY_DIRECTORY = "absent-file", "empty-directory"
"""Names there of what covers the files and directories of procfs that are not shown."""

_MAX_READ = 1 << 20
_MOST_LINKS = 40  # as in the kernel


@dataclass(frozen=True)
class KernelMount:
    """Something that the sandbox mounts over the tree.

    Attributes:
        kind: ``tmpfs``, ``proc``, ``devpts``, ``bind`` of a host device, or ``tree`` for a part
            of the tree itself.
        path: absolute, inside the tree.
        source: of a ``bind``, the host's path; of a ``tree``, the name in ``HIDDEN``.
    """

    kind: str
    path: str
    source: str = ""


@dataclass
class Tree:
    """The root node and what the kernel has to mount over it, in order."""

    root: Directory
    kernel_mounts: list[KernelMount] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def place(self, path: str, node: Node, source: str) -> None:
        """Put ``node`` at an absolute path; what was there or below it before is hidden.

        Missing directories on the way are made up. Below what the kernel mounts, the node gets a
        hidden place, from which the sandbox binds it to where it belongs.

        Args:
            path: where, inside the tree.
            node: what.
            source: the manifest key, for messages.

        Raises:
            InputError: something on the way is not a directory.
        """
        self._hide(path)
        where = self._where(path)
        if where is None:
            hidden = str(next(self._numbers))
            self.kernel_mounts.append(KernelMount("tree", path, hidden))
            self.place_hidden(hidden, node)
        else:
            self._put(where, node, source)

    def place_hidden(self, name: str, node: Node) -> None:
        """Put ``node`` where only the sandbox finds it."""
        self._put(f"{HIDDEN}/{name}", node, HIDDEN)

    def mount_by_kernel(self, mount: KernelMount, mode: int, source: str) -> None:
        """Make an empty mount point and leave the rest to the sandbox.

        Args:
            mount: what and where.
            mode: file type and permissions of the mount point.
            source: the manifest key, for messages.

        Raises:
            InputError: something on the way is not a directory.
        """
        self._hide(mount.path)
        where = self._where(mount.path)
        if where is not None and where != "/":
            directory = stat.S_ISDIR(mode)
            self._put(where, SyntheticDirectory() if directory else MountPoint(mode), source)
        self.kernel_mounts.append(mount)

    def _where(self, path: str) -> str | None:
        """Return where the tree itself has ``path``; None if it belongs to the kernel."""
        for mount in reversed(self.kernel_mounts):
            if is_below(path, mount.path):
                if mount.kind != "tree":
                    return None
                return f"{HIDDEN}/{mount.source}/{posixpath.relpath(path, mount.path)}"
        return path

    def seen(self, path: str) -> str | None:
        """Return where a program sees what the tree has at ``path``; None if it sees it nowhere."""
        if not is_below(path, HIDDEN):
            return path
        for mount in self.kernel_mounts:
            place = f"{HIDDEN}/{mount.source}"
            if mount.kind == "tree" and is_below(path, place):
                return mount.path + path[len(place) :]
        return None

    def _hide(self, path: str) -> None:
        """Drop the kernel's mounts that a new mount at ``path`` covers."""
        self.kernel_mounts = [m for m in self.kernel_mounts if not is_below(m.path, path)]

    def _put(self, path: str, node: Node, source: str) -> None:
        *way, name = _parts(path)
        directory: Node = self.root
        so_far = ""
        for part in way:
            so_far += f"/{part}"
            directory = _step(directory, os.fsencode(part), f"{source}: {so_far}")
        if not isinstance(directory, Directory):
            raise InputError(f"{source}: {so_far} is not a directory, so {path} cannot be there")
        directory.mounted[os.fsencode(name)] = node

    def find(self, path: str) -> Node:
        """Return the node of an absolute path that is not the kernel's; links are followed.

        Raises:
            OSError: there is none.
        """
        for _ in range(_MOST_LINKS):
            found = self._walk(path)
            if isinstance(found, Node):
                return found
            path = found
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)

    def _walk(self, path: str) -> Node | str:
        """Return the node of a path, or the path to which the first link on the way leads."""
        node: Node = self.root
        parts = _parts(self._where(path) or path)
        for place, part in enumerate(parts):
            if not isinstance(node, Directory):
                raise NotADirectoryError(path)
            name = os.fsencode(part)
            node = node.mounted.get(name) or node.child(name)
            if isinstance(node, (Symlink, HostSymlink)):
                target = os.fsdecode(node.readlink())
                return posixpath.join("/", *parts[:place], target, *parts[place + 1 :])
        return node

    def read(self, path: str) -> bytes:
        """Read a whole file of the tree with all its checks, as the program would.

        Raises:
            OSError: it does not exist, or its mount or the manifest's rules refuse it.
        """
        return read_node(self.find(path))


def read_node(node: Node) -> bytes:
    """Read a whole file with all its checks, as the program would.

    Raises:
        OSError: its mount or the manifest's rules refuse it.
    """
    handle = node.open(os.O_RDONLY, Caller(os.getuid(), os.getgid(), os.getpid()))
    content = b""
    try:
        while piece := bytes(handle.read(len(content), _MAX_READ)):
            content += piece
    finally:
        handle.release()
    return content


def _parts(path: str) -> list[str]:
    return [part for part in posixpath.normpath(path).split("/") if part]


def _step(directory: Node, name: bytes, where: str) -> Node:
    """Return the directory ``name``, pinned in its parent so that mounts below it last."""
    if not isinstance(directory, Directory):
        raise InputError(f"{where}: the way there leads through a file")
    node = directory.mounted.get(name)
    if node is None:
        try:
            node = directory.child(name)
        except FileNotFoundError:
            node = SyntheticDirectory()
        directory.mounted[name] = node
    return node
