"""Encrypted files as nodes: plaintext for the program, ciphertext for the host.

All handles of a node share one :class:`~cloister.encrypted.file.EncryptedFile`, so that every
reader and writer sees the same content. It is opened when a handle first needs it, to write only
if one writes, and closed with the last. Errors of the format become ``EACCES``, as in Gramine, and
are reported with their reason.

Others may have the file, too: another enclave with the same key, or its owner. While a program
writes, they are kept out; what they changed, the next open sees.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cloister.errors import CloisterError, EmbeddedPathError
from cloister.fuse.filesystem import Attributes, Caller, Change
from cloister.fuse.protocol import OpenFlag
from cloister.runtime import linux
from cloister.runtime.encrypted_handle import EncryptedHandle
from cloister.runtime.keyring import Keyring
from cloister.runtime.nodes import Handle, Node, refuse
from cloister.runtime.place import Place
from cloister.runtime.policy import Intent
from cloister.runtime.scene import WRITING, Scene, change_on_host, rename_on_host, shown

if TYPE_CHECKING:
    from cloister.encrypted.file import EncryptedFile, Probe

OWNER_MAY_READ_AND_WRITE = 0o600
_SMALL_GAP = 1 << 26
_CHANGED = "the host's file was changed while the program had it open"
_ATTRIBUTE_SECONDS = 10.0
"""How long the kernel may show name and attributes without asking; opening a file asks anyway."""


class RejectedError(OSError):
    """An encrypted file did not open or authenticate; ``reason`` and ``mend`` say why and what."""

    def __init__(self, reason: str, mend: str | None, number: int = errno.EACCES) -> None:
        super().__init__(number, reason)
        self.reason = reason
        self.mend = mend


class _Version(NamedTuple):
    """What tells one content of a host file, opened with one key, from another."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    keys: int


class EncryptedNode(Node):
    """A file that is encrypted on the host under a named key and bound to its URI path."""

    costs_reading = True
    name_seconds = attribute_seconds = _ATTRIBUTE_SECONDS

    def __init__(self, scene: Scene, keys: Keyring, host: str, path: str, key_name: str) -> None:
        self.scene = scene
        self.place = Place(scene, host, path)
        self._keys = keys
        self.key_name = key_name
        self._engine: EncryptedFile | None = None
        self._anchor = -1  # the host's file while a handle is open, also when its name is gone
        self._written_ns: int | None = None  # when, if the host does not know it yet
        self._handles = 0
        self._known: _Version | None = None  # what authenticated last
        self._content: Probe | None = None  # of that
        self._added = 0  # permissions that the host's file has and the program took away
        self._told: _Version | None = None  # that of the attributes the kernel has
        self._cached: _Version | None = None  # that of the pages the kernel has, if it has any
        if not self._opens():
            # Only removal works on such a file; the kernel must ask again before every use, until
            # it does open.
            self.attribute_seconds = 0.0

    def _opens(self) -> bool:
        if self._keys.get(self.key_name) is None:
            return False  # yet; who uses it meanwhile is told
        try:
            self._plain_size(self.place.status(stat.S_IFREG))
        except FileNotFoundError:
            return True  # about to be created
        except OSError:
            return False
        return True

    def _version(self, status: os.stat_result) -> _Version:
        return _Version(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
            self._keys.changes,
        )  # fmt: skip

    def _key(self) -> bytes:
        key = self._keys.get(self.key_name)
        if key is None:
            error = RejectedError(
                f'the key "{self.key_name}" is not set',
                "let a key server release it (loader.env.SECRET_PROVISION_*), or name one in "
                "fs.insecure__keys for tests",
            )
            if self.key_name not in self._keys.awaited:
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

    def _plain_size(self, status: os.stat_result) -> int:
        """Return the size of what the host's ``status`` describes.

        Raises:
            OSError: it does not authenticate.
        """
        if self._engine is not None:
            return self._engine.size
        if self._handles > 0 and self._content is not None:
            return self._content.size  # whoever changes it now is found out when it is read
        version = self._version(status)
        if version != self._known or self._content is None:
            from cloister.encrypted.file import probe

            with self.translated(Intent.READ):
                self._content = probe(
                    self.place.host, self._key(), self.place.path, reach=self._reach()
                )
            self._known = version
        return self._content.size

    def _reach(self) -> str:
        """Return a path of the very file that is open, or of the one that has the name."""
        return self.place.reach() if self._anchor < 0 else f"/proc/self/fd/{self._anchor}"

    def attributes(self) -> Attributes:
        """Return the host's attributes with the plaintext size."""
        if self._anchor >= 0:
            return self._shown(os.fstat(self._anchor))
        return self._shown(self.place.status(stat.S_IFREG))

    def _shown(self, status: os.stat_result) -> Attributes:
        attributes = shown(self.scene, status, self._plain_size(status))
        attributes = attributes._replace(mode=attributes.mode & ~self._added)
        self.attribute_seconds = _ATTRIBUTE_SECONDS
        # While the file is open, its size is that of what was opened.
        self._told = self._version(status) if self._handles == 0 else self._known
        if self._written_ns is None:
            return attributes
        return attributes._replace(mtime_ns=self._written_ns, ctime_ns=self._written_ns)

    def is_replaced(self) -> bool:
        """Tell whether the host has put something else in the place of the open file."""
        if self._anchor < 0 or self.place.is_lost:
            return False
        return not self.place.stands_for(self._anchor)

    def successor(self) -> Node:
        """Return a node for what has the name now."""
        place = self.place
        node = EncryptedNode(self.scene, self._keys, place.host, place.path, self.key_name)
        node.may_appear = self.may_appear
        return node

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
        if change.size is not None and handle is None:
            self._require_name()
        with self._borrowed(writing=change.size is not None) as engine:
            if change.size is not None and change.size != engine.size:
                self.truncate(change.size)
            if change.atime_ns is not None or change.mtime_ns is not None:
                self.flush()  # a later one would change the times again
            mode = None if change.mode is None else self._on_host(change.mode)
            change_on_host(self._anchor, change._replace(size=None, mode=mode))
            self._remember(engine)

    def _require_name(self) -> None:
        """Have the kernel look the name up again (ESTALE) if it is another file's by now."""
        if self.is_replaced():
            refuse(errno.ESTALE)

    def _on_host(self, mode: int) -> int:
        """Return the host's mode for one of the program's: the runtime always reads and writes."""
        self._added = OWNER_MAY_READ_AND_WRITE & ~mode
        return mode | OWNER_MAY_READ_AND_WRITE

    def open(self, flags: int, caller: Caller) -> Handle:
        """Open; all handles share one state.

        Raises:
            OSError: ESTALE: others changed the file, or took it away. The kernel looks the name up
                again, and asks again if it is there.
        """
        self._require_name()
        writing = bool(flags & (WRITING | os.O_TRUNC))
        try:
            self._acquire(writing=writing)
        except FileNotFoundError:
            refuse(errno.ESTALE)
        handle = EncryptedHandle(self, writing=writing)
        if flags & os.O_TRUNC:
            try:
                self.truncate(0)
            except OSError:
                self._drop()
                raise
        if self._cached not in (None, self._known):
            handle.flags &= ~OpenFlag.KEEP_CACHE
        self._cached = self._known
        return handle

    def appear(self, flags: int, mode: int, caller: Caller) -> Handle:
        """Create the file; one that the host has made meanwhile is opened."""
        if not os.path.lexists(self.place.use()):
            return self.create(mode & ~caller.umask)
        if flags & os.O_EXCL:
            refuse(errno.EEXIST)
        return self.open(flags, caller)

    def create(self, mode: int) -> Handle:
        """Create the file on the host, encrypted from its first byte."""
        from cloister.encrypted.file import EncryptedFile

        with self.translated(Intent.CREATE):
            engine = EncryptedFile.create_path(
                self.place.use(),
                self._key(),
                self.place.path,
                mode=self._on_host(stat.S_IMODE(mode)),
            )
        self._begin(engine, self.place.open(os.O_RDONLY))
        return EncryptedHandle(self, writing=True)

    def create_nameless(self, mode: int) -> Handle:
        """Create the file on the host without a name, encrypted from its first byte."""
        from cloister.encrypted.file import EncryptedFile

        with self.translated(Intent.CREATE):
            engine = EncryptedFile.create_nameless(
                self.place.use(),
                self._key(),
                self.place.path,
                mode=self._on_host(stat.S_IMODE(mode)),
            )
        self._begin(engine, os.dup(engine.fileno()))
        self.place.lose()
        return EncryptedHandle(self, writing=True)

    @property
    def may_be_named(self) -> bool:
        """Whether it was created without a name, and has none yet."""
        return (
            self.place.is_lost and self._engine is not None and os.fstat(self._anchor).st_nlink == 0
        )

    def link(self, host: str, path: str) -> None:
        """Give a file that :attr:`may_be_named` its first name."""
        if self._engine is None:
            refuse(errno.EPERM)
        with self.translated(Intent.CREATE):
            self._engine.link(host, path)
        self.place.move(host, path)

    def _begin(self, engine: EncryptedFile, anchor: int) -> None:
        """Take a file that was created, with its first handle."""
        self._engine, self._anchor, self._handles = engine, anchor, 1
        self.scene.opened.add(self)

    @property
    def engine(self) -> EncryptedFile:
        """The shared state; it is there when it is needed, while a handle is open."""
        if self._handles == 0:
            refuse(errno.EBADF)
        return self._engine or self._open_engine(writing=False)

    def _acquire(self, *, writing: bool) -> None:
        """Count one handle more, of a file that authenticates."""
        if self._anchor < 0:
            self._anchor = self.place.open(os.O_RDONLY)
            self.scene.opened.add(self)
        try:
            if self._handles == 0:
                self._authenticate(os.fstat(self._anchor))
            if writing and (self._engine is None or not self._engine.writable):
                self._open_engine(writing=True)
        except BaseException:
            if self._handles == 0:
                self._close()
            raise
        self._handles += 1

    def _authenticate(self, status: os.stat_result) -> None:
        """Authenticate the file, unless it is what did so last, and the kernel knows its size."""
        self._plain_size(status)
        told, self._told = self._told, self._known
        if told not in (None, self._known):
            refuse(errno.ESTALE)

    def _drop(self) -> None:
        self._handles -= 1
        if self._handles == 0:
            self._close()

    def _open_engine(self, *, writing: bool) -> EncryptedFile:
        """Open the shared state in place of one that cannot write."""
        from cloister.encrypted.file import EncryptedFile

        before, self._engine = self._engine, None
        if before is not None:
            before.close()  # its lock would be in the way
        with self.translated(Intent.READ):
            engine = EncryptedFile.open_path(
                self.place.host, self._key(), self.place.path, writable=writing,
                reach=self._reach(), against_writers=True,
            )  # fmt: skip
        if self._content is None or engine.digest != self._content.digest:
            engine.close()  # the kernel may show the program parts of what it knew before
            error = RejectedError(_CHANGED, "close it and open it again", errno.ESTALE)
            self.scene.report(self.place.path, Intent.READ, error)
            raise error
        if self.place.is_lost:
            engine.forget_name()
        self._engine = engine
        return engine

    def _remember(self, engine: EncryptedFile) -> None:
        """The host's file is what ``engine`` holds, and the kernel knows it."""
        from cloister.encrypted.file import Probe

        version = self._version(os.fstat(self._anchor))
        if self._cached == self._known:
            self._cached = version
        self._known = self._told = version
        self._content = Probe(engine.size, engine.digest)

    def _close(self) -> None:
        self.scene.opened.discard(self)
        engine = self._engine
        try:
            self.flush()
            if engine is not None and engine.writable:
                self._remember(engine)
        finally:
            anchor, self._anchor = self._anchor, -1
            self._engine = self._written_ns = None
            os.close(anchor)
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
        if self._engine is None:
            return
        with self.translated(Intent.WRITE):
            self._engine.flush()
        if self._written_ns is not None:
            atime = os.fstat(self._anchor).st_atime_ns
            os.utime(self._anchor, ns=(atime, self._written_ns))
            self._written_ns = None

    @contextlib.contextmanager
    def _borrowed(self, *, writing: bool) -> Iterator[EncryptedFile]:
        self._acquire(writing=writing)
        try:
            yield self.engine
        finally:
            self._drop()

    def require_movable(self, path: str) -> None:
        """Raise what :meth:`rename` to ``path`` would, as far as it can be told before."""
        from cloister.encrypted.checks import encode_path

        with self.translated(Intent.RENAME):
            encode_path(path)
        self.attributes()

    def release_handle(self) -> None:
        """One handle is gone."""
        self._drop()

    def rename(self, host: str, path: str, flags: int) -> None:
        """Move the file on the host and bind it to its new path; a crash leaves both or none."""

        if flags & linux.RENAME_EXCHANGE:
            refuse(errno.EINVAL)

        def rename(old: os.PathLike[str], new: os.PathLike[str]) -> None:
            rename_on_host(os.fspath(old), os.fspath(new), flags)

        self._require_name()
        with self._borrowed(writing=True) as engine, self.translated(Intent.RENAME):
            self.flush()
            before = os.fstat(self._anchor)
            engine.move(host, path, rename=rename)
            os.utime(self._anchor, ns=(before.st_atime_ns, before.st_mtime_ns))
            self._remember(engine)
        self.place.move(host, path)
