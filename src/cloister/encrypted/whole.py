"""Whole files by name: encrypt, decrypt, verify, rekey, recover. Outputs appear whole or not."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, TypeAlias

from cloister.encrypted import bulk, checks
from cloister.encrypted.backing import FileBacking
from cloister.encrypted.bulk import Advance
from cloister.encrypted.constants import GRAMINE_VERSION, NODE_SIZE
from cloister.encrypted.content import EncryptedContent
from cloister.encrypted.file import EncryptedFile, recovery_paths
from cloister.encrypted.layout import parse_header
from cloister.encrypted.paths import normalise, same_name
from cloister.encrypted.recovery import clear_mark
from cloister.errors import (
    AuthenticationError,
    InputError,
    RecoveryError,
    RenamedError,
    TruncatedError,
    WrongKeyError,
)
from cloister.files import atomic_output, leftovers

Place: TypeAlias = Path | IO[bytes]
"""A file by name, or a standard stream."""

_OWNER = stat.S_IRUSR | stat.S_IWUSR


class Expected(NamedTuple):
    """What a file's embedded path has to be.

    ``path`` must be equal, but for the spelling: Graphene's tool embeds ``./x`` as it was typed.
    ``ending`` must be its last parts; None does not compare.
    """

    path: str | None = None
    ending: str | None = None

    @classmethod
    def of(cls, relative: str, path: str | None, *, any_path: bool) -> Expected:
        """Return what to expect: ``path`` if given, else the ending, unless any path will do."""
        if path is not None:
            return cls(path=normalise(path))
        return cls(ending=None if any_path else relative)

    def check(self, content: EncryptedContent) -> None:
        """Compare.

        Raises:
            RenamedError: the file was encrypted for another path.
        """
        found = content.embedded_path
        if self.path is not None and normalise(found) != self.path:
            raise RenamedError(
                f"{content.name}: encrypted for another path: expected {self.path!r}, "
                f"found {found!r}"
            )
        if self.ending is not None and not same_name(found, self.ending):
            import shlex

            raise RenamedError(
                f"{content.name}: encrypted for another path: expected one that ends in "
                f"{self.ending!r}, found {found!r}",
                hint="if you renamed it yourself: --any-path (or, to decrypt one file, --as "
                f"{shlex.quote(found)}); if not, files were exchanged",
            )


def encrypt(
    source: Place,
    target: Place,
    key: bytes,
    embedded_path: str,
    *,
    version: int = GRAMINE_VERSION,
    jobs: int = 1,
    advance: Advance = lambda _: None,
) -> None:
    """Encrypt one file or stream; a file gets the permissions of the source.

    Raises:
        CloisterError, OSError: it could not be done; ``target`` is untouched.
    """
    with _plain(source) as plain:
        mode = stat.S_IMODE(os.fstat(plain).st_mode) | _OWNER if isinstance(source, Path) else 0o644
        with _ciphertext(target, mode) as output:
            bulk.encrypt(
                plain,
                output,
                key,
                embedded_path,
                name=_name(source),
                version=version,
                jobs=jobs,
                advance=advance,
            )


@contextlib.contextmanager
def _plain(source: Place) -> Iterator[int]:
    """Open what is to be encrypted."""
    if not isinstance(source, Path):
        yield source.fileno()
        return
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise InputError(f"{source}: no such file") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{source}: not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _ciphertext(target: Place, mode: int) -> Iterator[FileBacking]:
    """Yield a nameless file that becomes ``target``, or is copied there, when it is complete."""
    with contextlib.ExitStack() as stack:
        if isinstance(target, Path):
            output = stack.enter_context(atomic_output(target, mode=mode))
        else:
            output = stack.enter_context(_nameless())
        yield stack.enter_context(contextlib.closing(FileBacking(os.dup(output.fileno()))))
        if not isinstance(target, Path):
            output.seek(0)
            _copy(output, target)


def decrypt(
    source: Place,
    target: Place,
    key: bytes,
    expected: Expected,
    *,
    jobs: int = 1,
    advance: Advance = lambda _: None,
) -> None:
    """Decrypt one file or stream; a file gets the permissions of the source.

    A stream gets nothing unless all of the content authenticates: it is read twice.

    Raises:
        CloisterError, OSError: it could not be done; ``target`` is untouched.
    """
    with opened(source, key, expected) as content:
        if isinstance(target, Path):
            mode = stat.S_IMODE(source.stat().st_mode) if isinstance(source, Path) else 0o600
            with atomic_output(target, mode=mode | _OWNER) as output:
                bulk.decrypt(content, output.fileno(), jobs=jobs, advance=advance)
            return
        bulk.each_part(content, lambda _, piece: None, jobs=jobs, advance=advance)
        bulk.each_part(content, lambda _, piece: target.write(piece))
        target.flush()


@contextlib.contextmanager
def opened(source: Place, key: bytes, expected: Expected) -> Iterator[EncryptedContent]:
    """Open an encrypted file or stream for reading and compare its embedded path.

    A stream waits in a nameless file, as ciphertext: its tree is not read in order.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, Path):
            content: EncryptedContent = EncryptedFile.open_path(source, key, None, writable=False)
        else:
            spool = stack.enter_context(_nameless())
            _copy(source, spool)
            backing = FileBacking(os.dup(spool.fileno()))
            stack.callback(backing.close)
            content = EncryptedContent.open(
                backing, key, None, name=_name(source), store=None, writable=False
            )
        stack.callback(content.close)
        expected.check(content)
        yield content


def _nameless() -> IO[bytes]:
    """Return a file without a name, for ciphertext."""
    import tempfile

    return tempfile.TemporaryFile()


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    while piece := source.read(NODE_SIZE * 256):
        target.write(piece)
    target.flush()


def verify(
    path: Path,
    key: bytes,
    expected: Expected,
    *,
    jobs: int = 1,
    advance: Advance = lambda _: None,
) -> None:
    """Authenticate every byte of a file's content.

    Raises:
        CloisterError, OSError: a part of it is not what it was when it was encrypted.
    """
    with opened(path, key, expected) as content:
        bulk.each_part(content, lambda _, piece: None, jobs=jobs, advance=advance)


class Facts(NamedTuple):
    """What can be said of an encrypted file without its content.

    ``host_size`` and ``content_size`` are in bytes. Without a key, or if it does not fit, nobody
    knows the content's size and the embedded path.
    """

    version: int
    host_size: int
    pending_write: bool
    key_fits: bool | None
    content_size: int | None
    embedded_path: str | None


def describe(path: Path, key: bytes | None) -> Facts:
    """Look at a file's first node.

    Raises:
        CloisterError, OSError: it is no encrypted file, or (with a key that fits) not whole.
    """
    with contextlib.closing(FileBacking.open(path, writable=False)) as main:
        header = parse_header(checks.read_node0(main, str(path)))
        facts = Facts(header.major, main.size(), header.pending_write, None, None, None)
    if key is None:
        return facts
    try:
        with opened(path, key, Expected()) as content:
            return facts._replace(
                key_fits=True, content_size=content.size, embedded_path=content.embedded_path
            )
    except WrongKeyError:
        return facts._replace(key_fits=False)


def rekey(
    path: Path, old: bytes, new: bytes, *, jobs: int = 1, advance: Advance = lambda _: None
) -> bool:
    """Encrypt a file again under another key; it is replaced in one step.

    Every node gets a new key too. Sealing node 0 alone with the new wrap key would be quicker,
    but whoever had the old key once still knows the node keys, and with them could make nodes
    that fit the old tags.

    Returns:
        False if the file had the new key already: an interrupted run may be repeated.

    Raises:
        CloisterError, OSError: it could not be done; the file is as it was.
    """
    try:
        EncryptedFile.open_path(path, new, None, writable=False).close()
    except WrongKeyError:
        pass
    else:
        return False
    # Opened for writing, so that nobody else writes meanwhile.
    with contextlib.closing(EncryptedFile.open_path(path, old, None, writable=True)) as file:
        before = path.stat()
        with _ciphertext(path.resolve(), stat.S_IMODE(before.st_mode)) as output:
            bulk.encrypt_from(
                file.read_into,
                file.size,
                output,
                new,
                file.embedded_path,
                name=str(path),
                version=_version(path),
                jobs=jobs,
                advance=advance,
            )
            _keep_attributes(path, output.fileno(), before)
    return True


def _keep_attributes(path: Path, descriptor: int, before: os.stat_result) -> None:
    """Give a file that replaces another the other's owner, mode and times."""
    now = os.fstat(descriptor)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.fchown(descriptor, before.st_uid, before.st_gid)
        except PermissionError as error:
            raise InputError(
                f"{path}: belongs to user {before.st_uid} and group {before.st_gid}, which you "
                "cannot give to a new file",
                hint="let its owner do it, or root",
            ) from error
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
    os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove what killed runs of :func:`rekey` left beside the files."""
    for leftover in leftovers(path.resolve() for path in paths):
        leftover.unlink()


def _version(path: Path) -> int:
    return parse_header(_node0(path)).major


def _node0(path: Path) -> bytes:
    with contextlib.closing(FileBacking.open(path, writable=False)) as main:
        return checks.read_node0(main, str(path))


def recover(path: Path, key: bytes) -> bool:
    """Undo an interrupted write.

    Without a recovery file, a file of which every byte authenticates is complete and only loses
    its mark.

    Returns:
        False if there was nothing to do.

    Raises:
        RecoveryError: the recovery file is missing, and parts of the file do not authenticate.
        CloisterError, OSError: see :meth:`EncryptedFile.open_path`.
    """
    if not parse_header(_node0(path)).pending_write:
        return False
    recovery = recovery_paths(path)
    if any(place.exists() for place in recovery):
        EncryptedFile.open_path(path, key, None, writable=True).close()
        return True
    with contextlib.closing(FileBacking.open(path, writable=True)) as main:
        try:
            content = EncryptedContent.open(
                main, key, None, name=str(path), store=None, writable=False
            )
            bulk.each_part(content, lambda _, piece: None)
        except (AuthenticationError, TruncatedError) as error:
            raise RecoveryError(
                f"{path}: a write was interrupted, {recovery[0].name} is missing, and what is "
                f"there is not complete ({error.message})",
                hint=f"put {recovery[0].name} beside it, or fetch the file again",
            ) from error
        clear_mark(main)
    return True


def _name(place: Place) -> str:
    return str(place) if isinstance(place, Path) else "standard input"
