"""Encrypted files as nodes: plaintext for the program, ciphertext for the host.

All handles of a node share one :class:`~cloister.encrypted.file.EncryptedFile`, so that every
reader and writer sees the same content. It lives while a handle is open. Errors of the format
become ``EACCES``, as in Gramine, and are reported with their reason.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cloister.encrypted.paths import holds_content
from cloister.errors import CloisterError, EmbeddedPathError
from cloister.fuse.filesystem import Attributes, Caller, Change
from cloister.fuse.protocol import OpenFlag
from cloister.runtime import linux
from cloister.runtime.host import Place
from cloister.runtime.keyring import Keyring
from cloister.runtime.nodes import ROOM, Handle, Node, refuse
from cloister.runtime.policy import Intent
from cloister.runtime.scene import WRITING, Scene, change_on_host, rename_on_host, shown

if TYPE_CHECKING:
    from cloister.encrypted.file import EncryptedFile

OWNER_MAY_READ_AND_WRITE = 0o600
_SMALL = 8192  # bytes of a read for which the engine has a shorter way
_ZEROS = memoryview(bytes(1 << 20))
_OFFERED_ALLOCATIONS = (
    0,
    linux.FALLOC_ZERO_RANGE,
    linux.FALLOC_ZERO_RANGE | linux.FALLOC_KEEP_SIZE,
    linux.FALLOC_PUNCH_HOLE | linux.FALLOC_KEEP_SIZE,
)


_SMALL_GAP = 1 << 26


class RejectedError(OSError):
    """An encrypted file did not open or authenticate; ``reason`` and ``mend`` say why and what."""

    def __init__(self, reason: str, mend: str | None, number: int = errno.EACCES) -> None:
        super().__init__(number, reason)
        self.reason = reason
        self.mend = mend


class EncryptedNode(Node):
    """A file that is encrypted on the host under a named key and bound to its URI path."""

    costs_reading = True

    def __init__(self, scene: Scene, keys: Keyring, host: str, path: str, key_name: str) -> None:
        self.scene = scene
        self.place = Place(scene, host, path)
        self._keys = keys
        self.key_name = key_name
        self._engine: EncryptedFile | None = None
        self._anchor = -1  # the host's file, also when its name is gone
        self._written_ns: int | None = None  # when, if the host does not know it yet
        self._handles = 0
        self._just_probed: int | None = None  # plaintext size, for who made the node to see it
        if not self._opens():
            # Only removal works on such a file; the kernel must ask again before every use.
            self.attribute_seconds = 0.0

    def _opens(self) -> bool:
        try:
            self._just_probed = self._plain_size()
        except FileNotFoundError:
            return True  # about to be created
        except OSError:
            return False
        return True

    def _key(self) -> bytes:
        key = self._keys.get(self.key_name)
        if key is None:
            error = RejectedError(
                f'the key "{self.key_name}" is not set',
                "let a key server release it (loader.env.SECRET_PROVISION_*), or name one in "
                "fs.insecure__keys for tests",
            )
            self.scene.report(self.place.path, Intent.READ, error)
            raise error
        return key

    @contextlib.contextmanager
    def translated(self, intent: Intent) -> Iterator[None]:
        """Report errors of the format and turn them into ``EACCES``."""
        try:
            yield
        except CloisterError as error:
            too_long = isinstance(error, EmbeddedPathError)
            number = errno.ENAMETOOLONG if too_long else errno.EACCES
            rejected = RejectedError(error.message, error.hint, number)
            self.scene.report(self.place.path, intent, rejected)
            raise rejected from error
        except OSError as error:
            if intent is Intent.WRITE:  # the disk refused what the program believes is written
                self.scene.report(self.place.path, intent, error)
            raise

    def _plain_size(self) -> int:
        probed, self._just_probed = self._just_probed, None
        if self._engine is not None:
            return self._engine.size
        if probed is not None:
            return probed
        from cloister.encrypted.file import probe_size

        with self.translated(Intent.READ):
            return probe_size(self.place.use(), self._key(), self.place.path)

    def attributes(self) -> Attributes:
        """Return the host's attributes with the plaintext size."""
        if self._engine is not None:
            return self._shown(os.fstat(self._anchor))
        return self._shown(self.place.status(stat.S_IFREG))

    def _shown(self, status: os.stat_result) -> Attributes:
        attributes = shown(self.scene, status, self._plain_size())
        if self._written_ns is None:
            return attributes
        return attributes._replace(mtime_ns=self._written_ns, ctime_ns=self._written_ns)

    def detach(self) -> None:
        """The name is gone; open handles keep working."""
        self.place.lose()
        if self._engine is not None:
            self._engine.forget_name()

    def relocate(self, host: str, path: str) -> None:
        """The file has another name."""
        self.place.move(host, path)

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change mode, size or times of the very file that authenticates."""
        with self._borrowed() as engine:
            if change.size is not None and change.size != engine.size:
                self.truncate(change.size)
            if change.atime_ns is not None or change.mtime_ns is not None:
                self.flush()  # a later one would change the times again
            mode = change.mode
            if mode is not None:
                mode |= OWNER_MAY_READ_AND_WRITE
            change_on_host(self._anchor, change._replace(size=None, mode=mode))

    def open(self, flags: int, caller: Caller) -> Handle:
        """Open; all handles share one state."""
        self._acquire()
        handle = EncryptedHandle(self, writing=bool(flags & (WRITING | os.O_TRUNC)))
        if flags & os.O_TRUNC:
            try:
                self.truncate(0)
            except OSError:
                self._drop()
                raise
        return handle

    def create(self, mode: int) -> Handle:
        """Create the file on the host, encrypted from its first byte."""
        from cloister.encrypted.file import EncryptedFile

        with self.translated(Intent.CREATE):
            engine = EncryptedFile.create_path(
                self.place.use(),
                self._key(),
                self.place.path,
                mode=stat.S_IMODE(mode) | OWNER_MAY_READ_AND_WRITE,
            )
        self._begin(engine, self.place.open(os.O_RDONLY))
        self._handles = 1
        return EncryptedHandle(self, writing=True)

    def create_nameless(self, mode: int) -> Handle:
        """Create the file on the host without a name, encrypted from its first byte."""
        from cloister.encrypted.file import EncryptedFile

        with self.translated(Intent.CREATE):
            engine = EncryptedFile.create_nameless(
                self.place.use(),
                self._key(),
                self.place.path,
                mode=stat.S_IMODE(mode) | OWNER_MAY_READ_AND_WRITE,
            )
        self._begin(engine, os.dup(engine.fileno()))
        self._handles = 1
        self.place.lose()
        return EncryptedHandle(self, writing=True)

    def link(self, host: str, path: str) -> None:
        """Give a file without a name its first one; there is no second."""
        if not self.place.is_lost or self._engine is None or os.fstat(self._anchor).st_nlink != 0:
            refuse(errno.EPERM)
        with self.translated(Intent.CREATE):
            self._engine.link(host, path)
        self.place.move(host, path)

    @property
    def engine(self) -> EncryptedFile:
        """The shared state; there is one while a handle is open."""
        if self._engine is None:
            refuse(errno.EBADF)
        return self._engine

    def _acquire(self) -> None:
        if self._engine is None:
            self._open_engine()
        self._handles += 1

    def _drop(self) -> None:
        self._handles -= 1
        if self._handles == 0:
            self._close_engine()

    def _open_engine(self) -> None:
        from cloister.encrypted.file import EncryptedFile

        host = self.place.use()
        anchor = self.place.open(os.O_RDONLY)
        try:
            with self.translated(Intent.READ):
                engine = EncryptedFile.open_path(
                    host, self._key(), self.place.path, writable=os.access(host, os.W_OK)
                )
        except BaseException:
            os.close(anchor)
            raise
        self._begin(engine, anchor)

    def _begin(self, engine: EncryptedFile, anchor: int) -> None:
        self._engine, self._anchor = engine, anchor
        self.scene.opened.add(self)

    def _close_engine(self) -> None:
        self.scene.opened.discard(self)
        try:
            self.flush()
        finally:
            engine, self._engine = self._engine, None
            self._written_ns = None
            os.close(self._anchor)
            if engine is not None:
                with self.translated(Intent.WRITE):
                    engine.close()

    def write(self, offset: int, data: memoryview) -> None:
        """Encrypt; what reaches the host is decided at the next flush."""
        self._require_space(offset)
        with self.translated(Intent.WRITE):
            self.engine.write(offset, data)
        self._written_ns = time.time_ns()

    def truncate(self, size: int) -> None:
        """Cut the file, or extend it with zeros."""
        self._require_space(size)
        with self.translated(Intent.WRITE):
            self.engine.truncate(size)
        self._written_ns = time.time_ns()

    def _require_space(self, end: int) -> None:
        """Refuse at once to fill more with zeros than the host has room for: there are no holes."""
        gap = end - self.engine.size
        if gap > _SMALL_GAP:
            room = os.fstatvfs(self._anchor)
            if gap > room.f_bavail * room.f_frsize:
                refuse(errno.ENOSPC)

    def flush(self) -> None:
        """Write what is pending to the host, dated when the program wrote it."""
        with self.translated(Intent.WRITE):
            self.engine.flush()
        if self._written_ns is not None:
            atime = os.fstat(self._anchor).st_atime_ns
            os.utime(self._anchor, ns=(atime, self._written_ns))
            self._written_ns = None

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[EncryptedFile]:
        self._acquire()
        try:
            yield self.engine
        finally:
            self._drop()

    def require_movable(self, path: str) -> None:
        """Raise what :meth:`rename` to ``path`` would, as far as it can be told before."""
        from cloister.encrypted.checks import encode_path

        with self.translated(Intent.RENAME):
            encode_path(path)
        self._plain_size()

    def release_handle(self) -> None:
        """One handle is gone."""
        self._drop()

    def rename(self, host: str, path: str, flags: int) -> None:
        """Move the file on the host and bind it to its new path; a crash leaves both or none."""

        if flags & linux.RENAME_EXCHANGE:
            refuse(errno.EINVAL)

        def rename(old: os.PathLike[str], new: os.PathLike[str]) -> None:
            rename_on_host(os.fspath(old), os.fspath(new), flags)

        with self._borrowed() as engine, self.translated(Intent.RENAME):
            self.flush()
            before = os.fstat(self._anchor)
            engine.move(host, path, rename=rename)
            os.utime(self._anchor, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.place.move(host, path)


class EncryptedHandle(Handle):
    """An open encrypted file."""

    def __init__(self, node: EncryptedNode, *, writing: bool) -> None:
        self._node = node
        if writing:
            self.flags = OpenFlag.KEEP_CACHE  # close() writes and tells of errors

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Decrypt and authenticate."""
        with self._node.translated(Intent.READ):
            if size <= _SMALL:
                return self._node.engine.read(offset, size)
            target = ROOM[:size]
            return target[: self._node.engine.read_into(offset, target)]

    def write(self, offset: int, data: memoryview) -> int:
        """Encrypt; what reaches the host is decided at the next flush."""
        self._node.write(offset, data)
        return len(data)

    def flush(self) -> None:
        """Write what is pending: close() tells of errors."""
        self._node.flush()

    def fsync(self) -> None:
        """Write what is pending and sync."""
        self._node.flush()
        with self._node.translated(Intent.WRITE):
            self._node.engine.fsync()

    def fallocate(self, offset: int, length: int, mode: int) -> None:
        """Extend the file with zeros, or zero a range of it; no space is saved or reserved."""
        if mode not in _OFFERED_ALLOCATIONS:
            refuse(errno.EOPNOTSUPP)
        size = self._node.engine.size
        end = offset + length
        if mode & (linux.FALLOC_PUNCH_HOLE | linux.FALLOC_ZERO_RANGE):
            for start in range(offset, min(end, size), len(_ZEROS)):
                self._node.write(start, _ZEROS[: min(end, size) - start])
        if end > size and not mode & linux.FALLOC_KEEP_SIZE:
            self._node.truncate(end)

    def attributes(self) -> Attributes:
        """Return the attributes of the open file."""
        return self._node.attributes()

    def release(self) -> None:
        """Drop the shared state with the last handle."""
        self._node.release_handle()


def _directories(top: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every directory below and its files, parents first; ``os.walk`` fails where it is deep.

    Raises:
        OSError: the host does not list one.
    """
    waiting = [top]
    while waiting:
        host = waiting.pop()
        with os.scandir(host) as listing:
            entries = list(listing)
        waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield host, [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]


def move_tree(scene: Scene, key_name: str, old: tuple[str, str], new: tuple[str, str]) -> None:
    """Move a directory of encrypted files, each of which is bound to its path.

    The program sees one step. A crash of the machine may leave some of the files in either
    directory, all of them whole and bound to where they are.

    Args:
        scene: what its nodes share.
        key_name: name of the key of all files below.
        old: host path and URI path of the directory.
        new: those that it gets; at most an empty directory is there.

    Raises:
        OSError: ENOTEMPTY: something is there; EACCES: a file below does not open; EXDEV: the host
            has a symbolic link below. Nothing was moved.
    """
    (old_host, old_path), (new_host, new_path) = old, new
    open_files = {node.place.host: node for node in scene.opened if not node.place.is_lost}
    moves: list[tuple[EncryptedNode, str, str]] = []
    others: list[tuple[str, str]] = []
    directories: list[tuple[str, os.stat_result]] = []
    for host, files in _directories(old_host):
        below = host[len(old_host) :]
        if any(os.path.islink(f"{host}/{name}") for name in files):
            refuse(errno.EXDEV)  # a link of the host's: what it leads to is bound to this path
        directories.append((below, os.stat(host)))
        for name in files:
            source, target = f"{host}/{name}", f"{new_host}{below}/{name}"
            if not holds_content(name) or not stat.S_ISREG(os.lstat(source).st_mode):
                others.append((source, target))
                continue
            node = open_files.get(source)
            if node is None and scene.encrypted is not None:
                node = scene.encrypted(source, f"{old_path}{below}/{name}", key_name)
            if node is not None:
                node.require_movable(f"{new_path}{below}/{name}")
                moves.append((node, target, f"{new_path}{below}/{name}"))
    if os.path.isdir(new_host):
        os.rmdir(new_host)
    for below, status in directories:
        os.mkdir(f"{new_host}{below}", stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
    for node, target, path in moves:
        node.rename(target, path, 0)
    for source, target in others:
        with contextlib.suppress(FileNotFoundError):  # a recovery file that is needed no more
            os.rename(source, target)
    for below, status in reversed(directories):
        os.rmdir(f"{old_host}{below}")
        os.chmod(f"{new_host}{below}", stat.S_IMODE(status.st_mode))
        os.utime(f"{new_host}{below}", ns=(status.st_atime_ns, status.st_mtime_ns))
