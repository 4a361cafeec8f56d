"""What an encrypted file lies on: a few positioned operations, on a file or in memory."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from cloister.errors import InUseError, NotEncryptedError
from cloister.files import create_nameless, link_open_file, sync_directory

Buffer: TypeAlias = bytes | bytearray | memoryview


class Backing(Protocol):
    """Random access to bytes. Offsets and lengths are in bytes."""

    def pread(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes; fewer only at the end."""

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill ``buffers`` in turn; return how many bytes there were, fewer only at the end."""

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``; a gap behind the end is filled with zeros."""

    def truncate(self, size: int) -> None:
        """Cut or extend with zeros."""

    def size(self) -> int:
        """Return the size."""

    def fsync(self) -> None:
        """Return when everything written so far survives a power loss."""

    def is_disturbed(self) -> bool:
        """Tell whether others write, or have since it was opened: what was read may not fit."""

    def close(self) -> None:
        """Release it; idempotent."""


class RecoveryStore(Protocol):
    """The place beside a file for the old nodes that a write in progress replaces."""

    def needed(self) -> bool:
        """Tell whether anybody could open the file after a crash (False once it is unlinked)."""

    def open(self) -> Backing | None:
        """Open the existing recovery file for reading, or return None."""

    def create(self) -> Backing:
        """Return a new, empty recovery file whose name survives a power loss."""

    def remove(self) -> None:
        """Remove what :meth:`open` or :meth:`create` returned, if it is still there."""


class MemoryBacking:
    """Bytes in memory."""

    def __init__(self, content: Buffer = b"") -> None:
        self._content = bytearray(content)

    def pread(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes."""
        return bytes(self._content[offset : offset + length])

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill ``buffers`` as far as there are bytes."""
        done = 0
        for buffer in buffers:
            part = self._content[offset + done : offset + done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        return done

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``."""
        if offset > len(self._content):
            self.truncate(offset)
        self._content[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        """Cut or extend with zeros."""
        del self._content[size:]
        self._content.extend(bytes(size - len(self._content)))

    def size(self) -> int:
        """Return the size."""
        return len(self._content)

    def fsync(self) -> None:
        """Memory has nothing to sync."""

    def is_disturbed(self) -> bool:
        """Return False: nobody else has them."""
        return False

    def close(self) -> None:
        """Keep the bytes: they are the result."""

    def getvalue(self) -> bytes:
        """Return a copy of the bytes."""
        return bytes(self._content)


class StreamBacking:
    """Any seekable binary file object; it belongs to the caller and is not closed."""

    def __init__(self, stream: io.RawIOBase | io.BufferedIOBase) -> None:
        self._stream = stream

    def pread(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes."""
        buffer = bytearray(length)
        return bytes(buffer[: self.preadv(offset, [memoryview(buffer)])])

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill ``buffers`` as far as there are bytes."""
        self._stream.seek(offset)
        done = 0
        for buffer in buffers:
            count = self._read_full(buffer)
            done += count
            if count < len(buffer):
                break
        return done

    def _read_full(self, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer) and (count := self._stream.readinto(buffer[done:])):
            done += count
        return done

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``."""
        self._stream.seek(offset)
        view = memoryview(data)
        while len(view) > 0:
            view = view[self._stream.write(view) or 0 :]

    def truncate(self, size: int) -> None:
        """Cut or extend with zeros."""
        end = self.size()
        if size < end:
            self._stream.truncate(size)
        elif size > end:
            self.pwrite(size - 1, b"\0")

    def size(self) -> int:
        """Return the size."""
        return self._stream.seek(0, os.SEEK_END)

    def fsync(self) -> None:
        """Flush the object's own buffer; it may have no disk to sync."""
        self._stream.flush()

    def is_disturbed(self) -> bool:
        """Return False: who else has it, only the caller can know."""
        return False

    def close(self) -> None:
        """Flush; the stream stays open."""
        self._stream.flush()


class FileBacking:
    """A host file, by descriptor, which it owns."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._locked = False
        self._opened = os.fstat(descriptor)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool,
        name: str | os.PathLike[str] | None = None,
        against_writers: bool = False,
    ) -> FileBacking:
        """Open an existing file; a writable one is locked against all who lock it.

        Args:
            path: the file.
            writable: False opens it for reading only.
            name: what errors call it, if not ``path``.
            against_writers: lock what is opened for reading, too: against those who write.

        Raises:
            NotEncryptedError: it is no regular file.
            InUseError: another process has it open in a way that excludes this one.
            OSError: the host refuses.
        """
        flags = os.O_RDWR if writable else os.O_RDONLY
        flags |= os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not make us wait for its other end
        backing = cls(_open_without_access_time(path, flags))
        try:
            backing.require_regular(name or path)
            if writable:
                backing.lock(name or path)
            elif against_writers:
                backing.lock(name or path, fcntl.LOCK_SH)
        except BaseException:
            backing.close()
            raise
        return backing

    @classmethod
    def create(cls, path: Path, content: bytes, mode: int) -> FileBacking:
        """Make a file that appears under its name with ``content`` already on the disk.

        Raises:
            FileExistsError: ``path`` exists.
            OSError: the host refuses.
        """
        descriptor, temporary = create_nameless(path, mode)
        backing = cls(descriptor)
        try:
            backing.lock(path)
            backing.pwrite(0, content)
            backing.fsync()
            link_open_file(descriptor, temporary, path)
            sync_directory(path.parent)
        except BaseException:
            backing.close()
            raise
        finally:
            if temporary is not None:
                temporary.unlink()
        return backing

    @classmethod
    def create_nameless(cls, path: Path, content: bytes, mode: int) -> FileBacking:
        """Make a file without a name in the directory of ``path``, with ``content``.

        Raises:
            OSError: EOPNOTSUPP: the host's file system has no such files.
        """
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        backing = cls(os.open(path.parent, flags, mode))
        try:
            backing.lock(path)
            backing.pwrite(0, content)
        except BaseException:
            backing.close()
            raise
        return backing

    def require_regular(self, path: str | os.PathLike[str]) -> None:
        """Refuse directories, FIFOs and devices."""
        mode = self._opened.st_mode
        if stat.S_ISDIR(mode):
            raise NotEncryptedError(
                f"{path}: not an encrypted file, but a directory", hint="name the files in it"
            )
        if not stat.S_ISREG(mode):
            raise NotEncryptedError(
                f"{path}: not an encrypted file: not a regular file", hint="name a file"
            )

    def lock(self, path: str | os.PathLike[str], kind: int = fcntl.LOCK_EX) -> None:
        """Lock the file until it is closed: against all who lock it, or (LOCK_SH) who write."""
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            by_whom = "open" if kind == fcntl.LOCK_EX else "open for writing"
            raise InUseError(f"{path}: another process has the file {by_whom}") from error
        self._locked = True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def pread(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes."""
        data = os.pread(self._descriptor, length, offset)
        while len(data) < length:
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def preadv(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill ``buffers`` as far as there are bytes."""
        done = os.preadv(self._descriptor, buffers, offset)
        wanted, count = sum(map(len, buffers)), done
        while done < wanted and count:
            buffers = _behind(buffers, count)
            count = os.preadv(self._descriptor, buffers, offset + done)
            done += count
        return done

    def pwrite(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while len(view) > 0:
            count = os.pwrite(self._descriptor, view, offset)
            view = view[count:]
            offset += count

    def truncate(self, size: int) -> None:
        """Cut or extend with zeros."""
        os.ftruncate(self._descriptor, size)

    def size(self) -> int:
        """Return the size."""
        return os.fstat(self._descriptor).st_size

    def fsync(self) -> None:
        """Wait for the disk."""
        os.fsync(self._descriptor)

    def is_disturbed(self) -> bool:
        """Tell whether others change the file; a locked one is safe from all who lock it."""
        if self._locked:
            return False
        now = os.fstat(self._descriptor)
        if (now.st_mtime_ns, now.st_size) != (self._opened.st_mtime_ns, self._opened.st_size):
            return True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _behind(buffers: Sequence[memoryview], count: int) -> Sequence[memoryview]:
    """Return what is left of ``buffers`` behind the first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def _open_without_access_time(path: str | os.PathLike[str], flags: int) -> int:
    """Open; where the file is ours, reading it leaves its access time to the program."""
    try:
        return os.open(path, flags | getattr(os, "O_NOATIME", 0))
    except PermissionError:
        return os.open(path, flags)


class FileRecoveryStore:
    """The recovery file of a host file: its name with ``.gramine.recovery`` behind it.

    Args:
        places: finds the recovery file, and other names that an existing one may have; most files
            are only read, and never ask.
        main: the file that it protects.
    """

    def __init__(self, places: Callable[[], Sequence[Path]], main: FileBacking) -> None:
        self._places = places
        self._main = main
        self._mine: tuple[Path, os.stat_result] | None = None

    def needed(self) -> bool:
        """Tell whether the file still has a name."""
        return os.fstat(self._main.fileno()).st_nlink > 0

    def open(self) -> FileBacking | None:
        """Open the existing recovery file; a symbolic link there is not followed."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        for place in self._places():
            with contextlib.suppress(FileNotFoundError):
                return self._own(place, os.open(place, flags))
        return None

    def create(self) -> FileBacking:
        """Return a new file; one that lies there already belongs to no write any more."""
        place = self._places()[0]
        place.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        log = self._own(place, os.open(place, flags, 0o600))
        sync_directory(place.parent)
        return log

    def _own(self, place: Path, descriptor: int) -> FileBacking:
        self._mine = place, os.fstat(descriptor)
        return FileBacking(descriptor)

    def remove(self) -> None:
        """Remove the file, unless another one has taken its name since."""
        if self._mine is None:
            return
        (place, mine), self._mine = self._mine, None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(place.stat(follow_symlinks=False), mine):
                place.unlink()
