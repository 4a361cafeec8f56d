"""What all host nodes of one tree share, and how a host's attributes are shown and changed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cloister.fuse.filesystem import Attributes, Change
from cloister.runtime import linux
from cloister.runtime.keyring import DEFAULT_KEY
from cloister.runtime.nodes import refuse
from cloister.runtime.pins import Pins
from cloister.runtime.policy import DeniedError, Intent, PathSet, Rules

if TYPE_CHECKING:
    from cloister.runtime.encrypted import EncryptedNode
    from cloister.runtime.shelf import Shelf

HOST_SECONDS = 1.0
"""Seconds for which the kernel may remember what the host may change."""


WRITING = os.O_WRONLY | os.O_RDWR


@dataclass
class Scene:
    """What all host nodes of one tree share.

    Attributes:
        rules: decide what may be touched.
        report: told once for each denial: inside path, URI path, intent, error.
        uid, gid: owner that the program sees.
        encrypted: makes the node of an encrypted file (set by the tree builder).
        unbuffered: the kernel must not cache content (files whose size says nothing, as in sysfs).
        pins: host paths of the chroot mounts, and the way below them that follows no link.
        protected: files and directories that are encrypted under the default key wherever they
            are mounted (Graphene's dialect).
        opened: the encrypted files that are open.
        shelf: where trusted files are kept that are opened often.
    """

    rules: Rules
    report: Callable[[str, Intent, OSError], None]
    uid: int = 0
    gid: int = 0
    encrypted: Callable[[str, str, str], EncryptedNode] | None = None
    unbuffered: bool = False
    pins: Pins = field(default_factory=Pins)
    protected: PathSet = field(default_factory=lambda: PathSet(()))
    opened: set[EncryptedNode] = field(default_factory=set)
    shelf: Shelf | None = None

    def key_of(self, path: str, mounted: str | None) -> str | None:
        """Return the name of the key under which a file is encrypted, None if it is not.

        Args:
            path: the file's URI path.
            mounted: the key of the encrypted mount that holds it, if one does.
        """
        return mounted or (DEFAULT_KEY if self.protected.covers(path) else None)

    def require(self, path: str, intent: Intent) -> None:
        """Check ``intent`` and report a denial before it is raised."""
        try:
            self.rules.check(path, intent)
        except DeniedError as denied:
            self.report(path, intent, denied)
            raise

    def require_untrusted_below(self, directory: str) -> None:
        """Refuse, and report, where a trusted file lies at or below ``directory``."""
        if self.rules.holds_trusted(directory):
            denied = DeniedError(
                "a directory with trusted files keeps its name", "rename files one by one"
            )
            self.report(directory, Intent.RENAME, denied)
            raise denied


def shown(scene: Scene, status: os.stat_result, size: int | None = None) -> Attributes:
    """Turn a host's ``stat`` into what the program sees."""
    return Attributes(
        status.st_mode,
        status.st_size if size is None else size,
        status.st_nlink,
        scene.uid,
        scene.gid,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
        0,
        status.st_blocks,
    )


def change_on_host(target: str | int, change: Change) -> None:
    """Apply mode, size and times to a host file; owners are the program's imagination."""
    if change.mode is not None:
        os.chmod(target, stat.S_IMODE(change.mode))
    if change.size is not None:
        os.truncate(target, change.size)
    if change.atime_ns is not None or change.mtime_ns is not None:
        now = os.stat(target)
        atime = now.st_atime_ns if change.atime_ns is None else change.atime_ns
        mtime = now.st_mtime_ns if change.mtime_ns is None else change.mtime_ns
        os.utime(target, ns=(atime, mtime))


def rename_on_host(old: str, new: str, flags: int) -> None:
    """Rename on the host; of renameat2's flags RENAME_NOREPLACE and RENAME_EXCHANGE are offered."""
    if flags & ~(linux.RENAME_NOREPLACE | linux.RENAME_EXCHANGE):
        refuse(errno.EINVAL)
    if flags:
        linux.rename(old, new, flags)
    else:
        os.rename(old, new)


def user_attribute(name: bytes) -> bytes:
    """Return the name of an extended attribute if it is a user's; there are no others."""
    if not name.startswith(b"user."):
        refuse(errno.EOPNOTSUPP)
    return name
