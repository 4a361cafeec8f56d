"""Files of the host, shown through a mount: the untrusted side.

Trusted files are verified as they are read, allowed files are passed through.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from cloister.files import link_open_file
from cloister.fuse.filesystem import Attributes, Caller, Change
from cloister.fuse.protocol import OpenFlag
from cloister.manifest.index import UNKNOWN_SIZE, TrustedEntry
from cloister.runtime import linux
from cloister.runtime.nodes import Handle, Node, refuse
from cloister.runtime.place import Place
from cloister.runtime.policy import Intent
from cloister.runtime.scene import (
    HOST_SECONDS,
    WRITING,
    Scene,
    change_on_host,
    shown,
    user_attribute,
)
from cloister.runtime.trusted import TamperedFileError, TrustedHandle, digest_whole, require_size

_ACCESS_AND_TRUNCATE = os.O_ACCMODE | os.O_TRUNC


class HostFile(Node):
    """A regular file of the host: trusted, allowed or unlisted, as the rules say."""

    def __init__(
        self, scene: Scene, host: str, path: str, status: os.stat_result | None = None
    ) -> None:
        self.scene = scene
        self.place = Place(scene, host, path, status)
        self._handles: list[HostHandle] = []
        self._trusted: TrustedEntry | None = None
        self._consult_rules()

    def _consult_rules(self) -> None:
        self._was_whole = False
        self._was_opened = False
        self._kept: Handle | None = None
        self._trusted = self.scene.rules.trusted(self.place.path)
        self.costs_reading = self._trusted is not None
        if self._trusted is None:
            if self.scene.rules.changes_on_host(self.place.path):
                self.name_seconds = self.attribute_seconds = HOST_SECONDS
        elif self._trusted.size == UNKNOWN_SIZE:
            self.attribute_seconds = 0.0  # until the file was hashed, its size is the host's word

    def attributes(self) -> Attributes:
        """Return the host's attributes; the size of a trusted file is the signed one."""
        if self._handles:
            return self._handles[0].attributes()
        if self._trusted is None:
            return shown(self.scene, self.place.status(stat.S_IFREG))
        if self._trusted.size == UNKNOWN_SIZE:
            self._open_trusted(self._trusted).release()
        return shown(self.scene, self.place.status(stat.S_IFREG), self._trusted.size)

    def is_replaced(self) -> bool:
        """Tell whether the host has put something else in the place of the open file."""
        if not self._handles or self.place.is_lost:
            return False
        return not self.place.stands_for(self._handles[0].descriptor)

    def successor(self) -> Node:
        """Return a node for what has the name now."""
        return HostFile(self.scene, self.place.host, self.place.path)

    def detach(self) -> None:
        """The name is gone; open handles keep working."""
        self.place.lose()

    def relocate(self, host: str, path: str) -> None:
        """The file has another name; the rules of that name count."""
        self.place.move(host, path)
        self._consult_rules()

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change mode, size or times where writing is granted."""
        self.scene.require(self.place.path, Intent.WRITE)
        if change.size is not None and handle is None:
            self._truncate(change.size)
            change = change._replace(size=None)
        change_on_host(self._target(handle), change)

    def _truncate(self, size: int) -> None:
        """Cut or extend the file; the handles that are open may all be for reading."""
        descriptor = self._open(os.O_WRONLY)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def _target(self, handle: Handle | None = None) -> str | int:
        """Return a descriptor of this very file, else its name if that still stands for it."""
        if isinstance(handle, HostHandle):
            return handle.descriptor
        if self._handles:
            return self._handles[0].descriptor
        return self.place.hold(stat.S_IFREG)

    def open(self, flags: int, caller: Caller) -> Handle:
        """Open with the checks that the intent needs."""
        writing = bool(flags & (WRITING | os.O_TRUNC))
        if self._trusted is not None and not writing:
            # Reading is what the rules grant.
            return self._kept_copy(self._trusted) or self._open_trusted(self._trusted)
        self.scene.require(self.place.path, Intent.WRITE if writing else Intent.READ)
        if self._trusted is not None:
            refuse(errno.EACCES)
        return self.adopt(self._open(_host_flags(flags)), flags)

    def _open(self, flags: int) -> int:
        """Open the very file.

        Raises:
            OSError: ESTALE: another has its name now, or none. The kernel looks the name up again.
        """
        if self.place.is_lost and self._handles:
            return os.open(f"/proc/self/fd/{self._handles[0].descriptor}", flags | os.O_CLOEXEC)
        if self.is_replaced():
            refuse(errno.ESTALE)
        try:
            return self.place.open(flags)
        except FileNotFoundError:
            refuse(errno.ESTALE)

    def adopt(self, descriptor: int, flags: int) -> HostHandle:
        """Make a handle of a host descriptor, which becomes the handle's.

        Args:
            descriptor: open on the host; to append to it is not the host's affair, as what the
                kernel writes out of a mapping comes through it too.
            flags: with which the program opened it.
        """
        handle = HostHandle(self, descriptor, flags)
        self._handles.append(handle)
        return handle

    def dropped(self, handle: HostHandle) -> None:
        """Forget a handle that was released."""
        self._handles.remove(handle)

    def _kept_copy(self, entry: TrustedEntry) -> Handle | None:
        """Return the copy that the kernel reads, if there is one.

        The first opening decides for all: the kernel does not change its way of reading.
        """
        if not self._was_opened:
            self._was_opened = True
            if self.scene.shelf is not None:
                path = self.place.path
                self._kept = self.scene.shelf.keep(path, lambda: self._open_trusted(entry))
        return self._kept

    def _open_trusted(self, entry: TrustedEntry) -> TrustedHandle:
        """Open a trusted file; one that was found whole before is opened when it has to be."""
        descriptor = None
        if not self._was_whole:
            descriptor = self._open_whole(entry)
            self._was_whole = True
        whole = self._trusted or entry
        return TrustedHandle(
            self.scene, self.place.path, whole, lambda: self._open_whole(whole), descriptor
        )

    def _open_whole(self, entry: TrustedEntry) -> int:
        """Open the host's file if it has the signed size.

        Raises:
            TamperedFileError: it has another.
        """
        descriptor = self.place.open(os.O_RDONLY)
        try:
            if entry.size == UNKNOWN_SIZE:
                entry = self._trusted = digest_whole(descriptor, entry)
            require_size(descriptor, entry)
        except TamperedFileError as error:
            os.close(descriptor)
            self.scene.report(self.place.path, Intent.READ, error)
            raise
        return descriptor

    def get_xattr(self, name: bytes) -> bytes:
        """Return an extended attribute of the host's file."""
        return os.getxattr(self._target(), user_attribute(name))

    def set_xattr(self, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute where writing is granted."""
        self.scene.require(self.place.path, Intent.WRITE)
        os.setxattr(self._target(), user_attribute(name), value, flags)

    def list_xattr(self) -> list[bytes]:
        """Return the names of the user's extended attributes."""
        return [os.fsencode(n) for n in os.listxattr(self._target()) if n.startswith("user.")]

    def remove_xattr(self, name: bytes) -> None:
        """Remove an extended attribute where writing is granted."""
        self.scene.require(self.place.path, Intent.WRITE)
        os.removexattr(self._target(), user_attribute(name))

    def link(self, reached: str, host: str, path: str) -> None:
        """Give the file another name on the host, or its first if it has none yet.

        Args:
            reached: the new name's place, to be used now.
            host: the same, to be remembered.
            path: its URI path.
        """
        if self._handles and self.place.is_lost:
            link_open_file(self._handles[0].descriptor, None, Path(reached))
            self.relocate(host, path)
        else:
            self.place.status(stat.S_IFREG)
            os.link(self.place.reach(), reached, follow_symlinks=False)


def _host_flags(flags: int) -> int:
    """Return the flags for the host: access and truncation; the kernel does the rest.

    A file that is only written is opened for reading too: the kernel fills a page before a program
    changes a part of it.
    """
    wanted = flags & _ACCESS_AND_TRUNCATE
    if wanted & os.O_ACCMODE == os.O_WRONLY:
        wanted = (wanted & ~os.O_ACCMODE) | os.O_RDWR
    return wanted


def _only_appends(flags: int) -> bool:
    """Tell whether the flags of an open file let a program do nothing but append."""
    return flags & os.O_ACCMODE == os.O_WRONLY and bool(flags & os.O_APPEND)


class HostHandle(Handle):
    """An open host file whose bytes are passed through."""

    def __init__(self, node: HostFile, descriptor: int, flags: int) -> None:
        self._node = node
        self.descriptor = descriptor
        # Where others append too, only the host knows the end: pages of the kernel would not fit
        # until it asks for the size again. What can be read can be mapped, which needs the pages.
        if node.scene.unbuffered or _only_appends(flags):
            self.flags = OpenFlag.DIRECT_IO
        elif flags & WRITING:
            self.flags = OpenFlag.KEEP_CACHE  # what a mapping changed is written out at close

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Read from the host."""
        return os.pread(self.descriptor, size, offset)

    def write(self, offset: int, data: memoryview) -> int:
        """Write to the host."""
        return os.pwrite(self.descriptor, data, offset)

    def append(self, end: int, data: memoryview) -> int:
        """Write behind the last byte on the host, in one step: others may append as well."""
        return os.pwritev(self.descriptor, [data], end, os.RWF_APPEND)

    def fsync(self) -> None:
        """Sync the host's file."""
        os.fsync(self.descriptor)

    def fallocate(self, offset: int, length: int, mode: int) -> None:
        """Reserve, punch or zero, as the host's file system can."""
        linux.fallocate(self.descriptor, mode, offset, length)

    def lseek(self, offset: int, whence: int) -> int:
        """Ask the host where data and holes are."""
        return os.lseek(self.descriptor, offset, whence)

    def attributes(self) -> Attributes:
        """Return the attributes of the open file."""
        return shown(self._node.scene, os.fstat(self.descriptor))

    def release(self) -> None:
        """Close the host's file."""
        self._node.dropped(self)
        os.close(self.descriptor)


class SpecialFile(Node):
    """A FIFO, socket or device of the host.

    The host's is never opened. FIFOs and sockets work between the processes of one run: the kernel
    ties them to this file system's node, and what passes through them never leaves it.

    Args:
        kind: file type bits.
        own: it lies in an encrypted mount, where the program may do everything.
    """

    def __init__(self, scene: Scene, host: str, path: str, kind: int, *, own: bool) -> None:
        self.scene = scene
        self.place = Place(scene, host, path)
        self._kind = kind
        self._own = own

    def attributes(self) -> Attributes:
        """Return the host's attributes."""
        return shown(self.scene, self.place.status(self._kind))

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change mode or times where writing is granted."""
        if not self._own:
            self.scene.require(self.place.path, Intent.WRITE)
        self.place.status(self._kind)
        change_on_host(self.place.reach(), change)

    def detach(self) -> None:
        """The name is gone."""
        self.place.lose()

    def relocate(self, host: str, path: str) -> None:
        """The file has another name."""
        self.place.move(host, path)


class HostSymlink(Node):
    """A symbolic link of the host that the program sees as one."""

    def __init__(self, scene: Scene, host: str, path: str) -> None:
        self.scene = scene
        self.place = Place(scene, host, path)
        self.name_seconds = self.attribute_seconds = HOST_SECONDS

    def attributes(self) -> Attributes:
        """Return the attributes of the link itself."""
        status = os.lstat(self.place.reach())
        if not stat.S_ISLNK(status.st_mode):
            refuse(errno.ENOENT)
        return shown(self.scene, status)

    def detach(self) -> None:
        """The name is gone."""
        self.place.lose()

    def relocate(self, host: str, path: str) -> None:
        """The link has another name."""
        self.place.move(host, path)

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change the times of the link itself; its mode means nothing."""
        if change.atime_ns is not None or change.mtime_ns is not None:
            now = os.lstat(self.place.reach())
            atime = now.st_atime_ns if change.atime_ns is None else change.atime_ns
            mtime = now.st_mtime_ns if change.mtime_ns is None else change.mtime_ns
            os.utime(self.place.reach(), ns=(atime, mtime), follow_symlinks=False)

    def link(self, reached: str, host: str, path: str) -> None:
        """Give the link another name on the host; see :meth:`HostFile.link`."""
        os.link(self.place.reach(), reached, follow_symlinks=False)

    def readlink(self) -> bytes:
        """Return the target; the program's own tree resolves it."""
        return os.readlink(os.fsencode(self.place.reach()))
