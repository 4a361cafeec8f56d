"""Directories of the host, and which kind of node each of their names is.

Symbolic links in read-only places are followed without the program seeing them; a program names a
file by the name it uses.
"""

from __future__ import annotations

import errno
import os
import stat

from cloister.encrypted.paths import holds_content
from cloister.fuse.filesystem import Attributes, Caller, Change, Statistics
from cloister.runtime.encrypted import EncryptedNode
from cloister.runtime.host import HostFile, HostSymlink, Place, SpecialFile
from cloister.runtime.nodes import Directory, Handle, Node, refuse
from cloister.runtime.policy import Intent, is_below
from cloister.runtime.scene import (
    HOST_SECONDS,
    Scene,
    change_on_host,
    rename_on_host,
    shown,
)


def host_node(
    scene: Scene, host: str, path: str, key_name: str | None, *, looked_up: bool = False
) -> Node:
    """Return the node of whatever the host has at ``host``.

    Args:
        scene: rules and reporting.
        host: path on the host.
        path: URI path, by which the manifest knows it.
        key_name: name of the key if an encrypted mount holds it.
        looked_up: the caller asks for the attributes at once; the file is looked at only once.

    Raises:
        FileNotFoundError: there is nothing.
    """
    status = os.lstat(host)
    if stat.S_ISLNK(status.st_mode):
        if key_name is None and _stays_a_link(scene, host, path):
            return HostSymlink(scene, host, path)
        status = os.stat(host)
    mode = status.st_mode
    known = status if looked_up else None
    if stat.S_ISDIR(mode):
        return HostDirectory(scene, host, path, key_name, known)
    if not stat.S_ISREG(mode):
        return SpecialFile(scene, host, path, stat.S_IFMT(mode))
    key_name = scene.key_of(path, key_name)
    if key_name is not None and scene.encrypted is not None:
        return scene.encrypted(host, path, key_name)
    return HostFile(scene, host, path, known)


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
    return any(is_below(host, root) and is_below(resolved, root) for root in scene.roots)


class HostDirectory(Directory):
    """A directory of the host.

    Args:
        key_name: in an encrypted mount, the name of the key of all files below; else None.
    """

    def __init__(
        self,
        scene: Scene,
        host: str,
        path: str,
        key_name: str | None = None,
        status: os.stat_result | None = None,
    ) -> None:
        super().__init__()
        self.scene = scene
        self.place = Place(scene, host, path, status)
        self.key_name = key_name
        if key_name is None and scene.rules.changes_on_host(path):
            self.name_seconds = self.attribute_seconds = self.negative_seconds = HOST_SECONDS

    def attributes(self) -> Attributes:
        """Return the host's attributes."""
        return shown(self.scene, self.place.status(stat.S_IFDIR))

    def detach(self) -> None:
        """The name is gone."""
        self.place.lose()

    def relocate(self, host: str, path: str) -> None:
        """The directory has another name."""
        self.place.move(host, path)

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change mode or times where writing is granted."""
        self._require(self.place.path, Intent.WRITE)
        self.place.status(stat.S_IFDIR)
        change_on_host(self.place.use(), change)

    def child(self, name: bytes) -> Node:
        """Return the node of a host file, whatever its kind."""
        if self.key_name is not None and not holds_content(os.fsdecode(name)):
            refuse(errno.ENOENT)
        return host_node(self.scene, *self.places(name), self.key_name, looked_up=True)

    def _key_of(self, path: str) -> str | None:
        return self.scene.key_of(path, self.key_name)

    def places(self, name: bytes) -> tuple[str, str]:
        """Return the host path and the URI path of a name in this directory."""
        text = os.fsdecode(name)
        place = self.place
        here = place.use()
        if not place.follows:
            self.place.status(stat.S_IFDIR)
        above = place.path
        path = text if above == "." else f"{above.rstrip('/')}/{text}"
        return f"{here}/{text}", path

    def _require(self, path: str, intent: Intent) -> None:
        if self._key_of(path) is None:
            self.scene.require(path, intent)

    def entries(self) -> list[tuple[bytes, int]]:
        """Return the names of the host's directory; links count as what they point to."""
        with os.scandir(os.fsencode(self.place.use())) as listing:
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
        host, path = self.places(name)
        self._require(path, Intent.CREATE)
        os.mkdir(host, mode)
        return HostDirectory(self.scene, host, path, self.key_name)

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
        self.scene.require(node.place.path, Intent.WRITE)
        self._require(path, Intent.CREATE)
        node.place.status(stat.S_IFREG)
        os.link(node.place.use(), host, follow_symlinks=False)

    def unlink(self, name: bytes, node: Node) -> None:
        """Remove a host file where that is granted."""
        host, path = self.places(name)
        self._require(path, Intent.REMOVE)
        os.unlink(host)

    def rmdir(self, name: bytes) -> None:
        """Remove an empty host directory where that is granted."""
        host, path = self.places(name)
        self._require(path, Intent.REMOVE)
        os.rmdir(host)

    def rename(self, name: bytes, node: Node, target: Directory, new: bytes, flags: int) -> None:
        """Move a file or directory of the host; both names must be writable."""
        if not isinstance(target, HostDirectory):
            refuse(errno.EXDEV)
        source, source_path = self.places(name)
        host, path = target.places(new)
        if self._key_of(source_path) != target._key_of(path):
            refuse(errno.EXDEV)  # the content would have to be encrypted, or decrypted
        self._require(source_path, Intent.RENAME)
        target._require(path, Intent.CREATE)
        if isinstance(node, EncryptedNode):
            node.rename(host, path, flags)
            return
        if isinstance(node, HostDirectory):
            self._require_plain_below(source_path)
            target._require_plain_below(path)
        rename_on_host(source, host, flags)
        relocate(node, host, path)

    def _require_plain_below(self, path: str) -> None:
        """Refuse to rename a directory whose files are bound to their paths.

        Every encrypted file below would need its embedded path rewritten, and a trusted file would
        take another's place.
        """
        if self.key_name is not None or self.scene.protected.reaches_below(path):
            refuse(errno.EXDEV)
        self.scene.require_untrusted_below(path)

    def statistics(self) -> Statistics:
        """Return the figures of the host's file system."""
        s = os.statvfs(self.place.use())
        return Statistics(
            s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, s.f_namemax
        )


def relocate(node: Node, host: str, path: str) -> None:
    """Tell a node of the host where it is now."""
    if isinstance(node, (HostFile, HostDirectory, HostSymlink, SpecialFile, EncryptedNode)):
        node.relocate(host, path)


def _type_bits(entry: os.DirEntry[bytes]) -> int:
    """Return the type bits of a listed name; 0 says that one has to look."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
