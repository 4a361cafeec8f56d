"""Files and directories of the host, shown through a mount: the untrusted side.

Trusted files are verified as they are read, allowed files are passed through, encrypted ones are
handed to their own kind of node. Symbolic links of the host are followed without the program
seeing them; a program names a file by the name it uses.
"""

from __future__ import annotations

import errno
import os
import stat

from cloister.encrypted.paths import holds_content
from cloister.fuse.filesystem import Attributes, Caller, Change, Statistics
from cloister.fuse.protocol import OpenFlag
from cloister.manifest.index import UNKNOWN_SIZE, TrustedEntry
from cloister.runtime.encrypted import EncryptedNode
from cloister.runtime.nodes import Directory, Handle, Node, refuse
from cloister.runtime.policy import Intent
from cloister.runtime.scene import (
    HOST_SECONDS,
    WRITING,
    Scene,
    change_on_host,
    rename_on_host,
    shown,
)
from cloister.runtime.trusted import TamperedFileError, TrustedHandle, digest_whole, require_size

_ACCESS_AND_TRUNCATE = os.O_ACCMODE | os.O_TRUNC


class HostFile(Node):
    """A regular file of the host: trusted, allowed or unlisted, as the rules say."""

    def __init__(self, scene: Scene, host: str, path: str) -> None:
        self.scene = scene
        self.host = host
        self.path = path
        self._handles: list[HostHandle] = []
        self._trusted = scene.rules.trusted(path)
        if self._trusted is None and scene.rules.changes_on_host(path):
            self.name_seconds = self.attribute_seconds = HOST_SECONDS

    def attributes(self) -> Attributes:
        """Return the host's attributes; the size of a trusted file is the signed one."""
        if self._handles:
            return self._handles[0].attributes()
        known = self._trusted is not None and self._trusted.size != UNKNOWN_SIZE
        size = self._trusted.size if self._trusted is not None and known else None
        return shown(self.scene, os.stat(self.host), size)

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change mode, size or times where writing is granted."""
        self.scene.require(self.path, Intent.WRITE)
        target = handle if isinstance(handle, HostHandle) else None
        change_on_host(self.host if target is None else target.descriptor, change)

    def open(self, flags: int, caller: Caller) -> Handle:
        """Open with the checks that the intent needs."""
        writing = bool(flags & (WRITING | os.O_TRUNC))
        self.scene.require(self.path, Intent.WRITE if writing else Intent.READ)
        if self._trusted is not None:
            return self._open_trusted(self._trusted)
        return self.adopt(os.open(self.host, _host_flags(flags)), writing=writing)

    def adopt(self, descriptor: int, *, writing: bool) -> HostHandle:
        """Make a handle of a host descriptor, which becomes the handle's."""
        handle = HostHandle(self, descriptor, writing=writing)
        self._handles.append(handle)
        return handle

    def dropped(self, handle: HostHandle) -> None:
        """Forget a handle that was released."""
        self._handles.remove(handle)

    def _open_trusted(self, entry: TrustedEntry) -> Handle:
        descriptor = os.open(self.host, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if entry.size == UNKNOWN_SIZE:
                entry = self._trusted = digest_whole(descriptor, entry)
            require_size(descriptor, entry)
        except TamperedFileError as error:
            os.close(descriptor)
            self.scene.report(self.path, Intent.READ, error)
            raise
        return TrustedHandle(self.scene, self.path, descriptor, entry)

    def get_xattr(self, name: bytes) -> bytes:
        """Return an extended attribute of the host's file."""
        return os.getxattr(self.host, _user_attribute(name))

    def set_xattr(self, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute where writing is granted."""
        self.scene.require(self.path, Intent.WRITE)
        os.setxattr(self.host, _user_attribute(name), value, flags)

    def list_xattr(self) -> list[bytes]:
        """Return the names of the user's extended attributes."""
        return [os.fsencode(n) for n in os.listxattr(self.host) if n.startswith("user.")]

    def remove_xattr(self, name: bytes) -> None:
        """Remove an extended attribute where writing is granted."""
        self.scene.require(self.path, Intent.WRITE)
        os.removexattr(self.host, _user_attribute(name))


def _user_attribute(name: bytes) -> bytes:
    if not name.startswith(b"user."):
        refuse(errno.EOPNOTSUPP)
    return name


def _host_flags(flags: int) -> int:
    """Return the flags for the host: access and truncation; the kernel does the rest.

    A file that is only written is opened for reading too: the kernel fills a page before a program
    changes a part of it.
    """
    wanted = flags & _ACCESS_AND_TRUNCATE
    if wanted & os.O_ACCMODE == os.O_WRONLY:
        wanted = (wanted & ~os.O_ACCMODE) | os.O_RDWR
    return wanted | os.O_CLOEXEC


class HostHandle(Handle):
    """An open host file whose bytes are passed through."""

    def __init__(self, node: HostFile, descriptor: int, *, writing: bool) -> None:
        self._node = node
        self.descriptor = descriptor
        if node.scene.unbuffered:
            self.flags = OpenFlag.DIRECT_IO
        elif writing:
            self.flags = OpenFlag.KEEP_CACHE  # what a mapping changed is written out at close

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Read from the host."""
        return os.pread(self.descriptor, size, offset)

    def write(self, offset: int, data: memoryview) -> int:
        """Write to the host."""
        return os.pwrite(self.descriptor, data, offset)

    def fsync(self) -> None:
        """Sync the host's file."""
        os.fsync(self.descriptor)

    def fallocate(self, offset: int, length: int, mode: int) -> None:
        """Reserve space; punching holes is not offered."""
        if mode != 0:
            refuse(errno.EOPNOTSUPP)
        os.posix_fallocate(self.descriptor, offset, length)

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
    """A FIFO, socket or device of the host: visible, never opened."""

    def __init__(self, scene: Scene, host: str, path: str) -> None:
        self.scene = scene
        self.host = host
        self.path = path

    def attributes(self) -> Attributes:
        """Return the host's attributes."""
        return shown(self.scene, os.stat(self.host))


def host_node(scene: Scene, host: str, path: str, key_name: str | None) -> Node:
    """Return the node of whatever the host has at ``host``.

    Args:
        scene: rules and reporting.
        host: path on the host.
        path: URI path, by which the manifest knows it.
        key_name: name of the key if an encrypted mount holds it.

    Raises:
        FileNotFoundError: there is nothing.
    """
    if key_name is None and os.path.islink(host) and _stays_a_link(scene, host, path):
        return HostSymlink(scene, host, path)
    mode = os.stat(host).st_mode
    if stat.S_ISDIR(mode):
        return HostDirectory(scene, host, path, key_name)
    if not stat.S_ISREG(mode):
        return SpecialFile(scene, host, path)
    key_name = scene.key_of(path, key_name)
    if key_name is not None and scene.encrypted is not None:
        return scene.encrypted(host, path, key_name)
    return HostFile(scene, host, path)


def _stays_a_link(scene: Scene, host: str, path: str) -> bool:
    """Tell whether the program sees a symbolic link, or what it points to.

    Links in read-only places are followed without the program seeing them, so that a manifest
    names files by the names that programs use. Where the program may make links itself, they must
    not lead out of the mount: there the program sees the link, and its own tree resolves it.
    """
    if not scene.rules.follows_links_out(path):
        return True
    if not scene.rules.changes_on_host(path):
        return False
    target = os.readlink(host)
    if target.startswith("/"):
        return not os.path.exists(target)
    resolved = os.path.normpath(os.path.join(os.path.dirname(host), target))
    return any(_is_below(host, root) and _is_below(resolved, root) for root in scene.roots)


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root.rstrip('/')}/")


class HostSymlink(Node):
    """A symbolic link of the host that the program sees as one."""

    def __init__(self, scene: Scene, host: str, path: str) -> None:
        self.scene = scene
        self.host = host
        self.path = path
        self.name_seconds = self.attribute_seconds = HOST_SECONDS

    def attributes(self) -> Attributes:
        """Return the attributes of the link itself."""
        return shown(self.scene, os.lstat(self.host))

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change the times of the link itself; its mode means nothing."""
        if change.atime_ns is not None or change.mtime_ns is not None:
            now = os.lstat(self.host)
            atime = now.st_atime_ns if change.atime_ns is None else change.atime_ns
            mtime = now.st_mtime_ns if change.mtime_ns is None else change.mtime_ns
            os.utime(self.host, ns=(atime, mtime), follow_symlinks=False)

    def readlink(self) -> bytes:
        """Return the target; the program's own tree resolves it."""
        return os.readlink(os.fsencode(self.host))


class HostDirectory(Directory):
    """A directory of the host.

    Args:
        key_name: in an encrypted mount, the name of the key of all files below; else None.
    """

    def __init__(self, scene: Scene, host: str, path: str, key_name: str | None = None) -> None:
        super().__init__()
        self.scene = scene
        self.host = host
        self.path = path
        self.key_name = key_name
        if key_name is None and scene.rules.changes_on_host(path):
            self.name_seconds = self.attribute_seconds = self.negative_seconds = HOST_SECONDS

    def attributes(self) -> Attributes:
        """Return the host's attributes."""
        return shown(self.scene, os.stat(self.host))

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change mode or times where writing is granted."""
        self._require(self.path, Intent.WRITE)
        change_on_host(self.host, change)

    def child(self, name: bytes) -> Node:
        """Return the node of a host file, whatever its kind."""
        text = os.fsdecode(name)
        if self.key_name is not None and not holds_content(text):
            refuse(errno.ENOENT)
        return host_node(self.scene, *self.places(name), self.key_name)

    def _key_of(self, path: str) -> str | None:
        return self.scene.key_of(path, self.key_name)

    def places(self, name: bytes) -> tuple[str, str]:
        """Return the host path and the URI path of a name in this directory."""
        text = os.fsdecode(name)
        return f"{self.host}/{text}", self._below(text)

    def _below(self, name: str) -> str:
        if self.path == ".":
            return name
        return f"{self.path.rstrip('/')}/{name}"

    def _holds_encrypted(self, directory: str) -> bool:
        return self.key_name is not None or self.scene.protected.reaches_below(directory)

    def _require(self, path: str, intent: Intent) -> None:
        if self._key_of(path) is None:
            self.scene.require(path, intent)

    def entries(self) -> list[tuple[bytes, int]]:
        """Return the names of the host's directory; links count as what they point to."""
        with os.scandir(os.fsencode(self.host)) as listing:
            return [
                (entry.name, _type_bits(entry))
                for entry in listing
                if self.key_name is None or holds_content(os.fsdecode(entry.name))
            ]

    def create(self, name: bytes, flags: int, mode: int, caller: Caller) -> tuple[Node, Handle]:
        """Create a file on the host, encrypted where the mount says so."""
        text = os.fsdecode(name)
        host, path = self.places(name)
        if os.path.lexists(host) and not flags & os.O_EXCL:
            # The kernel remembered that there was no such file; the host has made one since.
            existing = self.child(name)
            return existing, existing.open(flags, caller)
        self._require(path, Intent.CREATE)
        key_name = self._key_of(path)
        if key_name is not None and self.scene.encrypted is not None:
            if not holds_content(text):
                refuse(errno.ENOENT)
            secret = self.scene.encrypted(host, path, key_name)
            return secret, secret.create(mode & ~caller.umask)
        descriptor = os.open(
            host, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & ~caller.umask
        )
        node = HostFile(self.scene, host, path)
        return node, node.adopt(descriptor, writing=True)

    def mkdir(self, name: bytes, mode: int) -> Node:
        """Create a directory on the host where creating files is granted."""
        text = os.fsdecode(name)
        self._require(self._below(text), Intent.CREATE)
        os.mkdir(f"{self.host}/{text}", mode)
        return HostDirectory(self.scene, f"{self.host}/{text}", self._below(text), self.key_name)

    def symlink(self, name: bytes, target: bytes) -> Node:
        """Create a symbolic link where creating files is granted.

        Encrypted mounts have none: the host could turn one to another file unnoticed, and a file
        is bound to the one path under which it was encrypted.
        """
        host, path = self.places(name)
        if self._key_of(path) is not None:
            refuse(errno.EPERM)
        self._require(path, Intent.CREATE)
        os.symlink(target, os.fsencode(host))
        return HostSymlink(self.scene, host, path)

    def link(self, node: Node, name: bytes) -> None:
        """Give a host file another name; both names must be writable. Not for encrypted files."""
        host, path = self.places(name)
        if not isinstance(node, HostFile) or self._key_of(path) is not None:
            refuse(errno.EPERM)
        self.scene.require(node.path, Intent.WRITE)
        self._require(path, Intent.CREATE)
        os.link(node.host, host)

    def unlink(self, name: bytes, node: Node) -> None:
        """Remove a host file where that is granted."""
        text = os.fsdecode(name)
        self._require(self._below(text), Intent.REMOVE)
        os.unlink(f"{self.host}/{text}")
        node.detach()

    def rmdir(self, name: bytes) -> None:
        """Remove an empty host directory where that is granted."""
        text = os.fsdecode(name)
        self._require(self._below(text), Intent.REMOVE)
        os.rmdir(f"{self.host}/{text}")

    def rename(self, name: bytes, node: Node, target: Directory, new: bytes, flags: int) -> None:
        """Move a file or directory of the host; both names must be writable."""
        if not isinstance(target, HostDirectory):
            refuse(errno.EXDEV)
        _, source_path = self.places(name)
        host, target_path = target.places(new)
        if self._key_of(source_path) != target._key_of(target_path):
            refuse(errno.EXDEV)  # the content would have to be encrypted, or decrypted
        self._require(source_path, Intent.RENAME)
        target._require(target_path, Intent.CREATE)
        if isinstance(node, EncryptedNode):
            node.rename(host, target_path, flags)
        elif isinstance(node, HostDirectory) and self._holds_encrypted(source_path):
            refuse(errno.EXDEV)  # every file below would need its embedded path rewritten
        else:
            rename_on_host(f"{self.host}/{os.fsdecode(name)}", host, flags)
        relocate(node, host, target_path)

    def statistics(self) -> Statistics:
        """Return the figures of the host's file system."""
        s = os.statvfs(self.host)
        return Statistics(
            s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, s.f_namemax
        )


def relocate(node: Node, host: str, path: str) -> None:
    """Tell a node that was renamed where it is now."""
    if isinstance(node, (HostFile, HostDirectory, HostSymlink, SpecialFile)):
        node.host = host
        node.path = path


def _type_bits(entry: os.DirEntry[bytes]) -> int:
    """Return the type bits of a listed name; 0 says that one has to look."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
