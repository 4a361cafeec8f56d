"""Encrypted files as Python file objects, and encryption of bytes in memory."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from cloister.encrypted.backing import MemoryBacking
from cloister.encrypted.constants import GRAMINE_VERSION, VERSIONS
from cloister.encrypted.content import EncryptedContent
from cloister.encrypted.file import EncryptedFile
from cloister.encrypted.keys import read_wrap_key
from cloister.encrypted.paths import normalise

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

Key: TypeAlias = bytes | str | os.PathLike[str]
"""A wrap key of 16 bytes, or the file that holds it."""

MODES: Final = ("r", "r+", "w", "w+", "x", "x+", "a", "a+")
_LINE: Final = 8192  # bytes that peek() offers to readline()


class EncryptedStream(io.RawIOBase):
    """A handle on the plaintext: a position, and what a raw binary file object must do.

    Content that was written reaches the disk with :meth:`flush` and :meth:`close`, in one step;
    a crash before leaves the file as it was.

    Args:
        content: the open file; several handles may share it, and only the last closes it.
        mode: ``r``, ``w``, ``x`` or ``a``, with ``+`` for both directions.
        owner: whether closing this handle closes the file.
    """

    def __init__(self, content: EncryptedContent, mode: str, *, owner: bool = True) -> None:
        super().__init__()
        self._content = content
        self._owner = owner
        self._reads = mode.startswith("r") or "+" in mode
        self._writes = not mode.startswith("r") or "+" in mode
        self._appends = mode.startswith("a")
        self._position = content.size if self._appends else 0
        self.mode = f"{mode}b"

    @property
    def name(self) -> str:
        """The host path, or what errors call the bytes."""
        return self._content.name

    @property
    def embedded_path(self) -> str:
        """The path that the file is bound to."""
        return self._content.embedded_path

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        self._require_open()
        return self._reads

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        self._require_open()
        return self._writes

    def seekable(self) -> bool:
        """Return True: it is a random-access file."""
        self._require_open()
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill ``buffer`` from the position; return how many bytes there were.

        Raises:
            TamperedError, TruncatedError: a part of it does not authenticate or is missing.
        """
        self._require(self._reads, "reading")
        count = self._content.read_into(self._position, _bytes_of(buffer))
        self._position += count
        return count

    def readall(self) -> bytes:
        """Return everything from the position on."""
        self._require(self._reads, "reading")
        data = self._content.read(self._position, max(0, self._content.size - self._position))
        self._position += len(data)
        return data

    def peek(self, size: int = 0) -> bytes:
        """Return some bytes from the position on without moving; makes ``readline`` quick."""
        self._require(self._reads, "reading")
        return self._content.read(self._position, max(size, _LINE))

    def write(self, data: ReadableBuffer) -> int:
        """Write all of ``data`` at the position, or at the end if it was opened to append."""
        self._require(self._writes, "writing")
        view = _bytes_of(data)
        if self._appends:
            self._position = self._content.size
        self._content.write(self._position, view)
        self._position += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; it may lie behind the end."""
        self._require_open()
        base = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._position,
            os.SEEK_END: self._content.size,
        }.get(whence)
        if base is None:
            raise ValueError(f"whence is {whence}, expected 0, 1 or 2")
        if base + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        self._require_open()
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend with zeros, to the position if no size is given."""
        self._require(self._writes, "writing")
        size = self._position if size is None else size
        if size < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._content.truncate(size)
        return size

    def flush(self) -> None:
        """Make what was written the file's content, durably and in one step."""
        if not self.closed and self._writes:
            self._content.flush()

    def close(self) -> None:
        """Flush and release; idempotent."""
        if self.closed:
            return
        try:
            super().close()  # flushes
        finally:
            if self._owner:
                self._content.close()

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _require(self, allowed: bool, what: str) -> None:
        self._require_open()
        if not allowed:
            raise io.UnsupportedOperation(f"{self.name}: not opened for {what}")


def _bytes_of(buffer: ReadableBuffer) -> memoryview:
    """Return the bytes of anything that has some, arrays of any shape included."""
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")  # a shape with zeros has no cast


def _require_known(version: int) -> None:
    if version not in VERSIONS:
        raise ValueError(f"version is {version}, expected 1 (Graphene) or 2 (Gramine)")


def open(
    path: str | os.PathLike[str],
    key: Key,
    mode: str = "r",
    *,
    embedded_path: str | None = None,
    version: int = GRAMINE_VERSION,
) -> EncryptedStream:
    """Open an encrypted file as a raw binary file object on its plaintext.

    Nothing is decrypted to any disk. Wrap it in :class:`io.BufferedRandom` or
    :class:`io.TextIOWrapper` as any other raw file. In a notebook, on the machine that has the
    key::

        import cloister.encrypted, numpy, torch

        with cloister.encrypted.open("results/weights.pt", "wrap-key") as file:
            weights = torch.load(file, weights_only=True)

        with cloister.encrypted.open("inputs/batch.npy", "wrap-key", "w") as file:
            numpy.save(file, batch)

    No plaintext file is behind it, so what needs one (``fileno()``, ``numpy.memmap``) refuses.

    Args:
        path: the encrypted file on this machine.
        key: the wrap key, 16 bytes, or the file that holds it.
        mode: as for the built-in ``open``: ``r``, ``r+``, ``w``, ``w+``, ``x``, ``x+``, ``a``,
            ``a+``; a ``b`` is allowed and changes nothing.
        embedded_path: the path that the file must be bound to (None: any), or that a new file is
            bound to (None: ``path``, normalised).
        version: major version that a changed or new file gets: 2 (Gramine) or 1 (Graphene).

    Raises:
        CloisterError: see :meth:`cloister.encrypted.file.EncryptedFile.open_path`.
        FileNotFoundError, FileExistsError, OSError: as the built-in ``open``.
    """
    plain_mode = mode.replace("b", "", 1)
    if plain_mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(MODES)}, with or without b")
    _require_known(version)
    secret = key if isinstance(key, bytes) else read_wrap_key(key)
    host = Path(path)
    new = plain_mode[0] == "x" or (plain_mode[0] in "wa" and not host.exists())
    if new:
        bound = normalise(embedded_path if embedded_path is not None else os.fspath(path))
        file = EncryptedFile.create_path(host, secret, bound, version=version)
    else:
        writable = plain_mode != "r"
        file = EncryptedFile.open_path(
            host, secret, embedded_path, writable=writable, version=version
        )
        if plain_mode[0] == "w":
            file.truncate(0)
    return EncryptedStream(file, plain_mode)


def encrypt(
    data: bytes | bytearray | memoryview,
    key: Key,
    embedded_path: str,
    *,
    version: int = GRAMINE_VERSION,
) -> bytes:
    """Return an encrypted file with the content ``data``, bound to ``embedded_path``.

    Raises:
        CloisterError: the key or the path cannot be used.
    """
    _require_known(version)
    secret = key if isinstance(key, bytes) else read_wrap_key(key)
    backing = MemoryBacking()
    content = EncryptedContent.create(
        backing, secret, embedded_path, name=embedded_path, version=version
    )
    content.write(0, data)
    content.close()
    return backing.getvalue()


def decrypt(
    data: bytes | bytearray | memoryview, key: Key, embedded_path: str | None = None
) -> bytes:
    """Return the content of an encrypted file that is in memory, if all of it is authentic.

    Args:
        data: the encrypted file.
        key: the wrap key, 16 bytes, or the file that holds it.
        embedded_path: the path that it must be bound to; None: any.

    Raises:
        CloisterError: see :meth:`cloister.encrypted.file.EncryptedFile.open_path`.
    """
    secret = key if isinstance(key, bytes) else read_wrap_key(key)
    content = EncryptedContent.open(
        MemoryBacking(data),
        secret,
        embedded_path,
        name=embedded_path or "encrypted data",
        store=None,
        writable=False,
    )
    return content.read(0, content.size)
