"""Encrypted files of the host: opened, created and renamed under their names.

See :mod:`cloister.encrypted.content` for what can be done with an open one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cloister.encrypted import checks
from cloister.encrypted.backing import FileBacking, FileRecoveryStore
from cloister.encrypted.constants import GRAMINE_VERSION, RECOVERY_SUFFIX
from cloister.encrypted.content import EncryptedContent
from cloister.encrypted.journal import UndoJournal
from cloister.encrypted.keys import SystemKeys
from cloister.encrypted.layout import EMPTY_METADATA, seal_metadata
from cloister.errors import InputError, NotEncryptedError
from cloister.files import link_open_file, sync_directory

LONGEST_NAME = 255
"""Bytes of a file name on Linux file systems."""


class EncryptedFile(EncryptedContent):
    """One encrypted file of the host, open.

    All handles of a file share one object, and so see each other's writes. Not thread-safe: the
    caller serves one request at a time.
    """

    @classmethod
    def open_path(
        cls,
        host_path: str | os.PathLike[str],
        key: bytes,
        embedded_path: str | None,
        *,
        writable: bool,
        version: int = GRAMINE_VERSION,
        reach: str | None = None,
        against_writers: bool = False,
    ) -> EncryptedFile:
        """Open an encrypted file of the host.

        An interrupted write is undone first; a file opened for reading is not touched for that.

        Args:
            host_path: the file.
            key: the wrap key, 16 bytes.
            embedded_path: the path it must be bound to; None does not compare.
            writable: False opens it for reading only.
            version: major version it gets when it is changed.
            reach: a path that leads to the very file, if ``host_path`` may not: its name still says
                where its recovery file lies.
            against_writers: while it is open for reading, nobody is to open it for writing.

        Raises:
            NotEncryptedError, UnsupportedVersionError, TruncatedError: it is no whole file.
            WrongKeyError, RenamedError: the key or the path does not fit.
            RecoveryError: a write was interrupted and the recovery file is missing or useless.
            InUseError: another process has it open in a way that excludes this one.
            OSError: the host refuses.
        """
        name = os.fspath(host_path)
        main = FileBacking.open(
            name if reach is None else reach,
            writable=writable,
            name=name,
            against_writers=against_writers,
        )
        store = FileRecoveryStore(lambda: recovery_paths(Path(name)), main)
        try:
            return cls.open(
                main,
                key,
                embedded_path,
                name=name,
                store=store,
                writable=writable,
                version=version,
            )
        except BaseException:
            main.close()
            raise

    @classmethod
    def create_path(
        cls,
        host_path: str | os.PathLike[str],
        key: bytes,
        embedded_path: str,
        *,
        mode: int = 0o600,
        version: int = GRAMINE_VERSION,
    ) -> EncryptedFile:
        """Make an empty encrypted file on the host; it appears there complete.

        Raises:
            FileExistsError: ``host_path`` exists.
            EmbeddedPathError: the path cannot be embedded.
            OSError: the host refuses.
        """
        checks.check_key(key)
        path = Path(host_path)
        keys = SystemKeys()
        metadata = EMPTY_METADATA._replace(path=checks.encode_path(embedded_path))
        node0 = seal_metadata(metadata, key, keys.nonce(), version)
        main = FileBacking.create(path, node0, mode)
        store = FileRecoveryStore(lambda: recovery_paths(path), main)
        journal = UndoJournal(main, store, name=str(path), node0=node0, host_nodes=1)
        return cls(main, key, metadata, name=str(path), journal=journal, keys=keys, version=version)

    @classmethod
    def create_nameless(
        cls,
        host_path: str | os.PathLike[str],
        key: bytes,
        embedded_path: str,
        *,
        mode: int = 0o600,
        version: int = GRAMINE_VERSION,
    ) -> EncryptedFile:
        """Make an empty encrypted file that has no name until :meth:`link` gives it one.

        Args:
            host_path: a name in the directory whose disk is to hold it.
            key: the wrap key, 16 bytes.
            embedded_path: what it is bound to until then.
            mode: permission bits.
            version: major version to write.

        Raises:
            OSError: EOPNOTSUPP: the host's file system has no such files.
        """
        checks.check_key(key)
        path = Path(host_path)
        keys = SystemKeys()
        metadata = EMPTY_METADATA._replace(path=checks.encode_path(embedded_path))
        node0 = seal_metadata(metadata, key, keys.nonce(), version)
        main = FileBacking.create_nameless(path, node0, mode)
        store = FileRecoveryStore(lambda: recovery_paths(path), main)
        journal = UndoJournal(main, store, name=str(path), node0=node0, host_nodes=1)
        return cls(main, key, metadata, name=str(path), journal=journal, keys=keys, version=version)

    def fileno(self) -> int:
        """Return the descriptor of the host file; it stays the file's."""
        return self._backing.fileno()

    @property
    def _backing(self) -> FileBacking:
        if not isinstance(self._main, FileBacking):
            raise InputError(f"{self.name}: has no name on the host that could change")
        return self._main

    def link(self, host_path: str | os.PathLike[str], embedded_path: str) -> None:
        """Give a file of :meth:`create_nameless` its name and bind it to its path.

        Raises:
            FileExistsError: ``host_path`` exists.
            EmbeddedPathError: the path cannot be embedded.
            OSError: the host refuses; the file still has no name.
        """
        path = Path(host_path)
        journal = self._require_writable(0)
        self.rename(embedded_path)
        os.fsync(self.fileno())
        journal.belong_to(FileRecoveryStore(lambda: recovery_paths(path), self._backing), str(path))
        link_open_file(self.fileno(), None, path)
        sync_directory(path.parent)
        self.name = str(path)

    def forget_name(self) -> None:
        """Drop what a crash would need, if the last name of the host file is gone."""
        if self._journal is not None and os.fstat(self.fileno()).st_nlink == 0:
            self._journal.forget_name()

    def move(
        self,
        new_host_path: str | os.PathLike[str],
        new_embedded_path: str,
        *,
        rename: Callable[[Path, Path], None] = os.rename,
    ) -> None:
        """Rename the host file and bind it to its new path; a crash leaves both done or none.

        Args:
            new_host_path: the new name; an existing file there is replaced.
            new_embedded_path: the path it is bound to from now on.
            rename: does the rename on the host, or raises OSError.

        Raises:
            EmbeddedPathError: the path cannot be embedded.
            RecoveryError, WrongKeyError, InUseError: the file that is to be replaced has an
                interrupted write that cannot be undone first.
            OSError: the host refuses; the file keeps its name and path.
        """
        encoded = checks.encode_path(new_embedded_path)
        journal = self._require_writable(0)
        main = self._backing
        self.flush()
        old, new = Path(self.name), Path(new_host_path)
        if new.exists() and new.samefile(old):  # its own name, or another link to it
            rename(old, new)
            self.rename(new_embedded_path)
            return
        _finish_interrupted_write(new, self._wrap_key)

        def sync_names() -> None:
            for directory in {old.parent, new.parent}:
                sync_directory(directory)

        journal.move(
            self._sealed_node0(encoded),
            FileRecoveryStore(lambda: recovery_paths(new), main),
            rename=lambda: rename(old, new),
            sync_names=sync_names,
        )
        self._path, self.name = encoded, str(new)


def _finish_interrupted_write(path: Path, key: bytes) -> None:
    """Undo an interrupted write to ``path``, if it is an encrypted file and has one."""
    try:
        main = FileBacking.open(path, writable=False)
    except (FileNotFoundError, NotEncryptedError):
        return
    try:
        marked = checks.is_marked(main)
        main.fsync()  # that it is not marked must last before its recovery file goes
    finally:
        main.close()
    if marked:
        EncryptedFile.open_path(path, key, None, writable=True).close()


def recovery_paths(host_path: Path) -> list[Path]:
    """Return where the recovery file of ``host_path`` is made, and where one may lie already.

    A file that is reached by a symbolic link has its recovery file where all who reach it look:
    beside itself. Gramine's lies beside the link.
    """
    named = recovery_path(host_path)
    return [recovery_path(host_path.resolve()), named] if host_path.is_symlink() else [named]


def recovery_path(host_path: Path) -> Path:
    """Return the name of the recovery file of ``host_path``, as Gramine gives it.

    Where that name would be longer than a file system permits, a digest stands for the file's name.
    """
    name = host_path.name + RECOVERY_SUFFIX
    if len(os.fsencode(name)) > LONGEST_NAME:
        import hashlib  # loads a library of its own, and few names are so long

        name = hashlib.sha256(os.fsencode(host_path.name)).hexdigest() + RECOVERY_SUFFIX
    return host_path.with_name(name)


class Probe(NamedTuple):
    """What the first node of an encrypted file says.

    Attributes:
        size: plaintext bytes.
        digest: that of :attr:`EncryptedContent.digest`.
    """

    size: int
    digest: bytes


def probe(
    host_path: str | os.PathLike[str],
    key: bytes,
    embedded_path: str | None,
    *,
    reach: str | None = None,
) -> Probe:
    """Authenticate the first node of a file, and nothing else.

    Args, raises: as :meth:`EncryptedFile.open_path`.
    """
    file = EncryptedFile.open_path(host_path, key, embedded_path, writable=False, reach=reach)
    with contextlib.closing(file):
        return Probe(file.size, file.digest)
