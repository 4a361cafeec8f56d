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
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cloister.errors import CloisterError
from cloister.fuse.filesystem import Attributes, Caller, Change
from cloister.fuse.protocol import OpenFlag
from cloister.runtime.host import Place
from cloister.runtime.keyring import Keyring
from cloister.runtime.nodes import Handle, Node, refuse
from cloister.runtime.policy import Intent
from cloister.runtime.scene import WRITING, Scene, change_on_host, rename_on_host, shown

if TYPE_CHECKING:
    from cloister.encrypted.file import EncryptedFile

OWNER_MAY_READ_AND_WRITE = 0o600


class RejectedError(OSError):
    """An encrypted file did not open or authenticate; ``reason`` and ``mend`` say why and what."""

    def __init__(self, reason: str, mend: str | None) -> None:
        super().__init__(errno.EACCES, reason)
        self.reason = reason
        self.mend = mend


class EncryptedNode(Node):
    """A file that is encrypted on the host under a named key and bound to its URI path."""

    def __init__(self, scene: Scene, keys: Keyring, host: str, path: str, key_name: str) -> None:
        self.scene = scene
        self.place = Place(scene, host, path)
        self._keys = keys
        self._key_name = key_name
        self._engine: EncryptedFile | None = None
        self._anchor = -1  # the host's file, also when its name is gone
        self._handles = 0
        if not self._opens():
            # Only removal works on such a file; the kernel must ask again before every use.
            self.attribute_seconds = 0.0

    def _opens(self) -> bool:
        try:
            self._plain_size()
        except FileNotFoundError:
            return True  # about to be created
        except OSError:
            return False
        return True

    def _key(self) -> bytes:
        key = self._keys.get(self._key_name)
        if key is None:
            error = RejectedError(
                f'the key "{self._key_name}" is not set',
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
            rejected = RejectedError(error.message, error.hint)
            self.scene.report(self.place.path, intent, rejected)
            raise rejected from error
        except OSError as error:
            if intent is Intent.WRITE:  # the disk refused what the program believes is written
                self.scene.report(self.place.path, intent, error)
            raise

    def _plain_size(self) -> int:
        if self._engine is not None:
            return self._engine.size
        from cloister.encrypted.file import probe_size

        with self.translated(Intent.READ):
            return probe_size(self.place.use(), self._key(), self.place.path)

    def attributes(self) -> Attributes:
        """Return the host's attributes with the plaintext size."""
        if self._engine is not None:
            return self._shown(os.fstat(self._anchor))
        return self._shown(self.place.status(stat.S_IFREG))

    def _shown(self, status: os.stat_result) -> Attributes:
        return shown(self.scene, status, self._plain_size())

    def detach(self) -> None:
        """The name is gone; open handles keep working."""
        self.place.lose()

    def relocate(self, host: str, path: str) -> None:
        """The file has another name."""
        self.place.move(host, path)

    def change(self, change: Change, handle: Handle | None) -> None:
        """Change mode, size or times of the very file that authenticates."""
        with self._borrowed() as engine:
            if change.size is not None:
                with self.translated(Intent.WRITE):
                    engine.truncate(change.size)
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
                with self.translated(Intent.WRITE):
                    self.engine.truncate(0)
            except OSError:
                self._drop()
                raise
        return handle

    def create(self, mode: int) -> Handle:
        """Create the file on the host, encrypted from its first byte."""
        from cloister.encrypted.file import EncryptedFile

        with self.translated(Intent.CREATE):
            self._engine = EncryptedFile.create_path(
                self.place.use(),
                self._key(),
                self.place.path,
                mode=stat.S_IMODE(mode) | OWNER_MAY_READ_AND_WRITE,
            )
        self._anchor = self.place.open(os.O_RDONLY)
        self._handles = 1
        return EncryptedHandle(self, writing=True)

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
                self._engine = EncryptedFile.open_path(
                    host, self._key(), self.place.path, writable=os.access(host, os.W_OK)
                )
        except BaseException:
            os.close(anchor)
            raise
        self._anchor = anchor

    def _close_engine(self) -> None:
        engine, self._engine = self._engine, None
        os.close(self._anchor)
        with self.translated(Intent.WRITE):
            if engine is not None:
                engine.close()

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[EncryptedFile]:
        self._acquire()
        try:
            yield self.engine
        finally:
            self._drop()

    def release_handle(self) -> None:
        """One handle is gone."""
        self._drop()

    def rename(self, host: str, path: str, flags: int) -> None:
        """Move the file on the host and bind it to its new path; a crash leaves both or none."""

        def rename(old: os.PathLike[str], new: os.PathLike[str]) -> None:
            rename_on_host(os.fspath(old), os.fspath(new), flags)

        with self._borrowed() as engine, self.translated(Intent.RENAME):
            engine.move(host, path, rename=rename)
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
            return self._node.engine.read(offset, size)

    def write(self, offset: int, data: memoryview) -> int:
        """Encrypt; what reaches the host is decided at the next flush."""
        with self._node.translated(Intent.WRITE):
            self._node.engine.write(offset, data)
        return len(data)

    def flush(self) -> None:
        """Write what is pending: close() tells of errors."""
        with self._node.translated(Intent.WRITE):
            self._node.engine.flush()

    def fsync(self) -> None:
        """Write what is pending and sync."""
        with self._node.translated(Intent.WRITE):
            self._node.engine.fsync()

    def fallocate(self, offset: int, length: int, mode: int) -> None:
        """Extend the file with zeros; holes are not offered."""
        if mode != 0:
            refuse(errno.EOPNOTSUPP)
        if offset + length > self._node.engine.size:
            with self._node.translated(Intent.WRITE):
                self._node.engine.truncate(offset + length)

    def attributes(self) -> Attributes:
        """Return the attributes of the open file."""
        return self._node.attributes()

    def release(self) -> None:
        """Drop the shared state with the last handle."""
        self._node.release_handle()
