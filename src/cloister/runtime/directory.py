"""Directories of the host, and which kind of node each of their names is.

Symbolic links in read-only places are followed without the program seeing them; a program names a
file by the name it uses.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from cloister.encrypted.paths import holds_content
from cloister.fuse.filesystem import Attributes, Caller, Change, Statistics
from cloister.runtime import linux
from cloister.runtime.encrypted import EncryptedNode, RejectedError
from cloister.runtime.host import HostFile, HostSymlink, SpecialFile
from cloister.runtime.moving import move_tree
from cloister.runtime.nodes import Directory, Handle, Node, refuse
from cloister.runtime.place import Place
from cloister.runtime.policy import Intent, is_below
from cloister.runtime.scene import (
    HOST_SECONDS,
    Scene,
    change_on_host,
    rename_on_host,
    shown,
    user_attribute,
)

_NAMELESS = b".nameless"
"""How messages call a file that has no name."""


def host_node(
    scene: Scene,
    host: str,
    path: str,
    key_name: str | None,
    *,
    looked_up: bool = False,
    reached: str | None = None,
) -> Node:
    """Return the node of whatever the host has at ``host``.

    Args:
        scene: rules and reporting.
        host: path on the host.
        path: URI path, by which the manifest knows it.
        key_name: name of the key if an encrypted mount holds it.
        looked_up: the caller asks for the attributes at once; the file is looked at only once.
        reached: a path of the same place that no link on the way can lead astray.

    Raises:
        FileNotFoundError: there is nothing.
    """
    status = os.lstat(reached or host)
    if stat.S_ISLNK(status.st_mode):
        if key_name is None and _stays_a_link(scene, host, path):
            return HostSymlink(scene, host, path)
        status = os.stat(host)
    mode = status.st_mode
    known = status if looked_up else None
    if stat.S_ISDIR(mode):
        return HostDirectory(scene, host, path, key_name, known)
    if not stat.S_ISREG(mode):
        return SpecialFile(scene, host, path, stat.S_IFMT(mode), own=key_name is not None)
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
    return any(is_below(host, root) and is_below(resolved, root) for root in scene.pins.roots)


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
        self._last: Attributes | None = None
        # Into an encrypted directory another enclave, or the owner, may put files.
        if key_name is not None or scene.rules.changes_on_host(path):
            self.name_seconds = self.attribute_seconds = self.negative_seconds = HOST_SECONDS

    def attributes(self) -> Attributes:
        """Return the host's attributes; of a removed directory those that it had."""
        if self._last is not None and self.place.is_lost:
            return self._last._replace(links=0)
        self._last = shown(self.scene, self.place.status(stat.S_IFDIR))
        return self._last

    def detach(self) -> None:
        """The name is gone."""
        self.place.lose()

    def relocate(self, host: str, path: str) -> None:
        """The directory has another name."""
        self.place.move(host, path)

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change mode or times where writing is granted."""
        self._require(self.place.path, Intent.WRITE)
        change_on_host(self.place.hold(stat.S_IFDIR), change)

    def child(self, name: bytes) -> Node:
        """Return the node of a host file, whatever its kind."""
        if self.key_name is not None and not holds_content(os.fsdecode(name)):
            refuse(errno.ENOENT)
        host, path = self.places(name)
        reached = self._reach(name)
        return host_node(self.scene, host, path, self.key_name, looked_up=True, reached=reached)

    def asks_host(self, name: bytes) -> bool:
        """See :class:`Directory`."""
        return self.key_name is None or holds_content(os.fsdecode(name))

    def _key_of(self, path: str) -> str | None:
        return self.scene.key_of(path, self.key_name)

    def places(self, name: bytes) -> tuple[str, str]:
        """Return the host path and the URI path of a name in this directory, to be remembered."""
        text = os.fsdecode(name)
        above = self.place.path
        path = text if above == "." else f"{above.rstrip('/')}/{text}"
        return f"{self.place.host.rstrip('/')}/{text}", path

    def _reach(self, name: bytes) -> str:
        """Return a host path of a name in this directory, to be used now."""
        return f"{self.place.inside()}/{os.fsdecode(name)}"

    def _require(self, path: str, intent: Intent) -> None:
        if self._key_of(path) is None:
            self.scene.require(path, intent)

    def entries(self) -> list[tuple[bytes, int]]:
        """Return the names of the host's directory; links as the program sees them."""
        if self.place.is_lost:
            return []  # removed while somebody still stands in it
        with os.scandir(os.fsencode(self.place.inside())) as listing:
            return [
                (entry.name, _type_bits(entry) or self._type_of_link(entry.name))
                for entry in listing
                if self.key_name is None or holds_content(os.fsdecode(entry.name))
            ]

    def _type_of_link(self, name: bytes) -> int:
        """Return the type bits of what the program sees in a link's place, 0 if it is nothing."""
        try:
            return stat.S_IFMT(self.child(name).attributes().mode)
        except OSError:
            return 0

    def sync(self) -> None:
        """Sync the host's directory."""
        descriptor = os.open(self.place.inside(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def create(self, name: bytes, flags: int, mode: int, caller: Caller) -> tuple[Node, Handle]:
        """Create a file on the host, encrypted where the mount says so."""
        host, path = self.places(name)
        reached = self._reach(name)
        if os.path.lexists(reached) and not flags & os.O_EXCL:
            # The kernel remembered that there was no such file; the host has made one since.
            existing = self.child(name)
            return existing, existing.open(flags, caller)
        self._require(path, Intent.CREATE)
        key_name = self._key_of(path)
        if key_name is not None and self.scene.encrypted is not None:
            self._require_free_name(name)
            secret = self.scene.encrypted(host, path, key_name)
            return secret, secret.create(mode & ~caller.umask)
        descriptor = os.open(
            reached, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & ~caller.umask
        )
        node = HostFile(self.scene, host, path)
        return node, node.adopt(descriptor, flags)

    def _require_free_name(self, name: bytes) -> None:
        """Refuse names that belong to the encrypted files themselves, as recovery files do."""
        if not holds_content(os.fsdecode(name)):
            refuse(errno.ENOENT)

    def create_nameless(self, flags: int, mode: int, caller: Caller) -> tuple[Node, Handle]:
        """Create a file without a name where creating files is granted."""
        host, path = self.places(_NAMELESS)
        self._require(path, Intent.CREATE)
        key_name = self._key_of(path)
        if key_name is not None and self.scene.encrypted is not None:
            secret = self.scene.encrypted(host, path, key_name)
            return secret, secret.create_nameless(mode & ~caller.umask)
        nameless = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        descriptor = os.open(self.place.inside(), nameless, mode & ~caller.umask)
        node = HostFile(self.scene, host, path)
        node.detach()
        return node, node.adopt(descriptor, flags)

    def mkdir(self, name: bytes, mode: int) -> Node:
        """Create a directory on the host where creating files is granted."""
        host, path = self.places(name)
        if self.key_name is not None:
            self._require_free_name(name)
        self._require(path, Intent.CREATE)
        os.mkdir(self._reach(name), mode)
        return HostDirectory(self.scene, host, path, self.key_name)

    def mknod(self, name: bytes, mode: int) -> Node:
        """Create a FIFO or a socket where creating files is granted.

        On the host it is a name and nothing else, also in an encrypted mount.
        """
        host, path = self.places(name)
        if self.key_name is not None:
            self._require_free_name(name)
        self._require(path, Intent.CREATE)
        os.mknod(self._reach(name), mode)
        own = self.key_name is not None
        return SpecialFile(self.scene, host, path, stat.S_IFMT(mode), own=own)

    def symlink(self, name: bytes, target: bytes) -> Node:
        """Create a symbolic link where creating files is granted.

        Encrypted mounts have none. A link's target decides which file a program opens; the format
        of encrypted files has no authenticated place for it, so the host could turn a link from an
        encrypted file to one that it can read.
        """
        host, path = self.places(name)
        if self._key_of(path) is not None:
            error = RejectedError(
                "an encrypted mount has no symbolic links: the host could redirect them",
                "let the program copy instead, or put the link into a tmpfs mount",
                errno.EPERM,
            )
            self.scene.report(path, Intent.CREATE, error)
            raise error
        self._require(path, Intent.CREATE)
        os.symlink(target, os.fsencode(self._reach(name)))
        return HostSymlink(self.scene, host, path)

    def link(self, node: Node, name: bytes) -> None:
        """Give a host file or link another name; both names must be writable.

        An encrypted file is bound to one path, so it gets a name only if it has none yet.
        """
        host, path = self.places(name)
        key = self._key_of(path)
        if isinstance(node, EncryptedNode) and key == node.key_name and node.may_be_named:
            self._require_free_name(name)
            node.link(host, path)
            return
        if key is not None or isinstance(node, EncryptedNode):
            error = RejectedError(
                "an encrypted file is bound to one path, so it has no second name",
                "let the program copy instead, or rename",
                errno.EPERM,
            )
            self.scene.report(path, Intent.CREATE, error)
            raise error
        if not isinstance(node, (HostFile, HostSymlink)):
            refuse(errno.EPERM)
        self.scene.require(node.place.path, Intent.WRITE)
        self._require(path, Intent.CREATE)
        node.link(self._reach(name), host, path)

    def unlink(self, name: bytes, node: Node) -> None:
        """Remove a host file where that is granted, and what an interrupted write left of it."""
        _, path = self.places(name)
        self._require(path, Intent.REMOVE)
        reached = self._reach(name)
        os.unlink(reached)
        if self._key_of(path) is not None:
            from cloister.encrypted.file import recovery_path

            recovery_path(Path(reached)).unlink(missing_ok=True)

    def rmdir(self, name: bytes) -> None:
        """Remove an empty host directory where that is granted."""
        host, path = self.places(name)
        self._require(path, Intent.REMOVE)
        if self.key_name is not None:
            _remove_leftovers(host)
        os.rmdir(self._reach(name))

    def rename(self, name: bytes, node: Node, target: Directory, new: bytes, flags: int) -> None:
        """Move a file or directory of the host; both names must be writable."""
        if not isinstance(target, HostDirectory):
            refuse(errno.EXDEV)
        source, source_path = self.places(name)
        host, path = target.places(new)
        if self._key_of(source_path) != target._key_of(path):
            refuse(errno.EXDEV)  # the content would have to be encrypted, or decrypted
        self._require(source_path, Intent.RENAME)
        exchange = bool(flags & linux.RENAME_EXCHANGE)
        target._require(path, Intent.RENAME if exchange else Intent.CREATE)
        if target.key_name is not None:
            target._require_free_name(new)
        if exchange and target._key_of(path) is not None:
            refuse(errno.EINVAL)  # two files would change paths, and a crash could part them
        if isinstance(node, EncryptedNode):
            node.rename(host, path, flags)
            return
        if isinstance(node, HostDirectory) and self.key_name is not None:
            move_tree(self.scene, self.key_name, (source, source_path), (host, path))
            node.relocate(host, path)
            return
        if isinstance(node, HostDirectory) or exchange:
            self._require_plain_below(source_path)
            target._require_plain_below(path)
        rename_on_host(self._reach(name), target._reach(new), flags)
        relocate(node, host, path)

    def _require_plain_below(self, path: str) -> None:
        """Refuse to rename a directory with files that are bound to their paths.

        A trusted file would take another's place; protected files are named by the manifest.
        """
        if self.scene.protected.reaches_below(path):
            refuse(errno.EXDEV)
        self.scene.require_untrusted_below(path)

    def get_xattr(self, name: bytes) -> bytes:
        """Return an extended attribute of the host's directory."""
        self._require_plain()
        return os.getxattr(self.place.inside(), user_attribute(name))

    def set_xattr(self, name: bytes, value: bytes, flags: int) -> None:
        """Set an extended attribute where writing is granted."""
        self._require_plain()
        self.scene.require(self.place.path, Intent.WRITE)
        os.setxattr(self.place.inside(), user_attribute(name), value, flags)

    def list_xattr(self) -> list[bytes]:
        """Return the names of the user's extended attributes."""
        if self.key_name is not None:
            return []
        return [os.fsencode(n) for n in os.listxattr(self.place.inside()) if n.startswith("user.")]

    def remove_xattr(self, name: bytes) -> None:
        """Remove an extended attribute where writing is granted."""
        self._require_plain()
        self.scene.require(self.place.path, Intent.WRITE)
        os.removexattr(self.place.inside(), user_attribute(name))

    def _require_plain(self) -> None:
        """Refuse attributes in encrypted mounts: the host would read and write their values."""
        if self.key_name is not None:
            refuse(errno.EOPNOTSUPP)

    def statistics(self) -> Statistics:
        """Return the figures of the host's file system."""
        s = os.statvfs(self.place.inside())
        return Statistics(
            s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, s.f_namemax
        )


def relocate(node: Node, host: str, path: str) -> None:
    """Tell a node of the host where it is now."""
    if isinstance(node, (HostFile, HostDirectory, HostSymlink, SpecialFile, EncryptedNode)):
        node.relocate(host, path)


def _remove_leftovers(host: str) -> None:
    """Empty a directory of which the program sees nothing: what interrupted writes left there."""
    names = os.listdir(host)
    if not any(holds_content(name) for name in names):
        for name in names:
            os.unlink(f"{host}/{name}")


def _type_bits(entry: os.DirEntry[bytes]) -> int:
    """Return the type bits of a listed name; 0 says that one has to look."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return 0 if entry.is_symlink() else stat.S_IFMT(entry.stat().st_mode)
